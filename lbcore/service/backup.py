"""Backup: one file with the service, its configurations and its history of them; and the way back.

    NAME.zip    manifest.json   of what, when, until when, with which checksum
                store.sqlite    the store, without tokens: what was revoked since must not come back

A restore is one transaction in the store that is in use: what is wanted and the configurations become those of the backup, what runs,
tokens and history stay. A new epoch makes sure that every gateway follows, though its revision was a later one (R47).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sqlite3
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from lbcore.errors import ServiceError
from lbcore.service.database import Database, explained
from lbcore.service.model import ServiceState
from lbcore.service.revisions import Number, Revision
from lbcore.service.schema import SCHEMA_VERSION
from lbcore.service.store import Store

__all__ = ["LIFETIME", "Manifest", "Restored", "backup", "inspect", "restore"]

LIFETIME = 30 * 86_400.0  # seconds; API Management's
FORMAT = 1
MANIFEST, CONTENT = "manifest.json", "store.sqlite"
LARGEST = 4 * 1024**3  # bytes of a store
CHUNK = 1024 * 1024
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_A_BACKUP = (
    OSError, EOFError, KeyError, NotImplementedError, RuntimeError, ValueError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error,
)  # fmt: skip
LEFT_OUT = ("token", "event", "journal", "operation")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup is of. created: wall-clock seconds; epoch, sequence: of its latest revision, sequence 0 = none; size: bytes"""

    format: int
    service: str
    tier: str
    created: float
    schema: int
    epoch: int
    sequence: int
    size: int
    sha256: str

    @property
    def expires(self) -> float:
        """Give when it is too old to be restored without saying so, wall-clock seconds."""
        return self.created + LIFETIME

    def expired(self, now: float) -> bool:
        """Say whether it is over 30 days old at `now`; one that seems to come from the future is not."""
        return now > self.expires


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. revision: now the latest, None = there is none; lost: revisions that were published and are gone"""

    manifest: Manifest
    state: ServiceState
    epoch: int
    revision: Revision | None
    lost: tuple[Number, ...]


def backup(store: Store, path: str | os.PathLike[str]) -> Manifest:
    """Write all that is in the store now into one file, whole or not at all; readable by its owner alone.

    Raises ServiceError ResourceNotFound without a service, StoreFull when the file cannot be written.
    """
    target = Path(os.path.abspath(path))
    with _explaining(target), tempfile.TemporaryDirectory(prefix=f".{target.name[:50]}.", dir=target.parent) as folder:
        copy, archive = Path(folder, CONTENT), Path(folder, "backup.zip")
        store.database.copy_to(copy)
        _without_secrets(copy)
        manifest = _manifest(copy, store.clock())
        with archive.open("xb") as file:
            _pack(file, manifest, copy)
            file.flush()
            os.fsync(file.fileno())
        archive.chmod(0o600)
        os.replace(archive, target)
        _sync(target.parent)
    return manifest


def inspect(path: str | os.PathLike[str]) -> Manifest:
    """Give what a backup is of; ServiceError InvalidBackup when it is none, or not what was written."""
    with tempfile.TemporaryDirectory() as folder:
        return _unpack(Path(path), Path(folder, CONTENT))


def restore(
    store: Store, path: str | os.PathLike[str], *, name: str, tier: str, who: str, why: str = "", allow_expired: bool = False,
    at_least: int = 0, primary: str = "",
) -> Restored:  # fmt: skip
    """Put a backup in the place of what is wanted and of the configurations, all or nothing.

    name, tier: of the service that it is for, which must be those of the backup;  at_least: for the epoch, see Revisions.begin_epoch
    What runs is not touched: `plan(state, state.service)` tells what has to be done now.
    primary: the location that becomes the primary with the epoch `at_least`, see `promotion`: what ran when the backup was made runs
        now, and a fence of an earlier epoch is lifted;  "" = as it was
    Raises ServiceError BackupExpired, SkuMismatch, NameMismatch (V25), InvalidBackup, OperationInProgress, Fenced, StoreFromTheFuture.
    """
    with tempfile.TemporaryDirectory(prefix=".restore.", dir=store.database.path.parent) as folder:
        copy = Path(folder, CONTENT)
        manifest = _unpack(Path(path), copy)
        _refuse(manifest, name, tier, store.clock(), allow_expired)
        with contextlib.closing(Database(copy)) as saved, saved.reading() as source:
            return _restore(store, manifest, source, who, why or f"restore of {Path(path).name}", at_least, primary)


def _restore(
    store: Store, manifest: Manifest, source: sqlite3.Connection, who: str, why: str, at_least: int, primary: str
) -> Restored:  # fmt: skip
    wanted = store.read(source)
    if wanted is None:
        raise ServiceError("InvalidBackup", "the backup holds no service")
    with store.database.writing() as connection:
        if primary and (store.fence_of(connection) or 0) < at_least:
            store.lift_fence(connection, who, why)
        store.refuse_when_fenced(connection)
        store.refuse_while_busy(connection)
        running, last = store.read(connection), _last(connection)
        epoch = store.revisions.take(connection, source, why, who, at_least)
        connection.execute("DELETE FROM document")
        connection.executemany("INSERT INTO document VALUES (?, ?, ?, ?)", source.execute("SELECT * FROM document"))
        if primary:
            merged = replace(wanted, service=wanted.service.led_by(primary))
        else:
            merged = replace(wanted, states=running.states if running else wanted.states)
        state = store.write(connection, merged, who, "promote" if primary else "restore", why, least=wanted.sequence + 1)
    lost = () if last is None else tuple(store.revisions.lost(last))
    return Restored(manifest, state, epoch, store.revisions.latest(), lost)


def _refuse(manifest: Manifest, name: str, tier: str, now: float, allow_expired: bool) -> None:
    if manifest.service.lower() != name.lower():
        raise ServiceError("NameMismatch", f"the backup is of service {manifest.service!r}, not of {name!r}", "name")
    if manifest.tier != tier:
        raise ServiceError("SkuMismatch", f"the backup is of tier {manifest.tier}, the service has {tier}", "sku.name")
    if manifest.expired(now) and not allow_expired:
        age = (now - manifest.created) / 86_400
        raise ServiceError("BackupExpired", f"the backup is {age:.0f} days old, which is over 30; say that it may be expired", "created")


def _last(connection: sqlite3.Connection) -> tuple[int, int] | None:
    row: tuple[int, int] | None = connection.execute(
        "SELECT epoch, sequence FROM revision ORDER BY epoch DESC, sequence DESC LIMIT 1"
    ).fetchone()
    return row


# ===== the file


def _without_secrets(copy: Path) -> None:
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        for table in LEFT_OUT:
            connection.execute(f"DELETE FROM {table}")
        connection.execute("VACUUM")  # deleted rows are still in the file before


def _manifest(copy: Path, now: float) -> Manifest:
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        row = connection.execute("SELECT record ->> '$.service.name', record ->> '$.service.tier' FROM service").fetchone()
        epoch, sequence = _last(connection) or (connection.execute("SELECT max(epoch) FROM epoch").fetchone()[0], 0)
    if row is None:
        raise ServiceError("ResourceNotFound", "there is no service to back up")
    return Manifest(FORMAT, row[0], row[1], now, SCHEMA_VERSION, epoch, sequence, copy.stat().st_size, _sha256(copy))


def _pack(file: IO[bytes], manifest: Manifest, copy: Path) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(MANIFEST, json.dumps(asdict(manifest), indent=2))
        archive.write(copy, CONTENT)


def _unpack(path: Path, copy: Path) -> Manifest:
    """Write the store of a backup to `copy` and give the manifest; only the two members are looked at, names in the file lead nowhere."""
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _read_manifest(archive, path)
            with archive.open(CONTENT) as source, copy.open("xb") as target:
                left = manifest.size
                while left >= 0 and (chunk := source.read(CHUNK)):  # a file that says it is small must be
                    target.write(chunk)
                    left -= len(chunk)
    except NOT_A_BACKUP as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise ServiceError("StoreFull", f"{copy} cannot be written: {error.strerror}", str(copy)) from error
        message = f"{path} is no backup, or damaged: {str(error)[:200] or type(error).__name__}"
        raise ServiceError("InvalidBackup", message, str(path)) from error
    if left != 0 or _sha256(copy) != manifest.sha256:
        raise ServiceError("InvalidBackup", f"{path} is not what was written: its checksum differs; take another backup", str(path))
    return manifest


def _read_manifest(archive: zipfile.ZipFile, path: Path) -> Manifest:
    if archive.getinfo(MANIFEST).file_size > CHUNK:
        raise ValueError("its manifest is too large")
    data = json.loads(archive.read(MANIFEST))
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise ValueError("its manifest is none")
    if data["format"] > FORMAT or data.get("schema", 0) > SCHEMA_VERSION:
        raise ServiceError("StoreFromTheFuture", f"{path} was written by a newer lbcore; restore with that", str(path))
    try:
        manifest = Manifest(**data)
    except TypeError as error:
        raise ValueError(str(error)) from None
    kinds = {"service": str, "tier": str, "created": int | float, "schema": int, "epoch": int, "sequence": int, "size": int, "sha256": str}
    wrong = [key for key, kind in kinds.items() if not isinstance(getattr(manifest, key), kind)]
    if wrong or not 0 < manifest.size <= LARGEST:
        raise ValueError(f"its manifest has no sound {', '.join(wrong) or 'size'}")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, sqlite3.Error):
            raise explained(error, path) from error
        code = "StoreFull" if error.errno in NO_ROOM else "StoreUnavailable"
        raise ServiceError(code, f"{path} cannot be written: {error.strerror}", str(path)) from error
