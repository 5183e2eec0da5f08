"""Key files as BIND has them: `K<zone>+<algorithm>+<tag>.key` is public, `.private` holds the secret; both tell the timing.

BIND's tools read what is written here, and the other way round. The `.private` file's timing counts, as with BIND.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dns.dnssec
import dns.exception
import dns.name
import dns.zonefile
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from dns.dnssecalgs.base import GenericPrivateKey
from dns.dnssecalgs.ecdsa import PrivateECDSAP256SHA256
from dns.dnssecalgs.eddsa import PrivateED25519
from dns.dnssectypes import Algorithm
from dns.name import Name
from dns.rdatatype import DNSKEY as TYPE_DNSKEY
from dns.rdtypes.ANY.DNSKEY import DNSKEY
from dns.rdtypes.dnskeybase import Flag

from lbcore.dns.keys import ALGORITHMS, Key, Timing
from lbcore.errors import ConfigError, Violation

__all__ = ["any_of", "create", "load", "path_of", "read", "retime"]

logger = logging.getLogger(__name__)

_TIMES = {
    "Created": "created", "Publish": "publish", "Activate": "activate", "Inactive": "inactive", "Delete": "delete",
    "SyncPublish": "sync_publish", "SyncDelete": "sync_delete",
}  # fmt: skip
_STAMP = "%Y%m%d%H%M%S"
_NAME = re.compile(r"K(?P<zone>.+)\+(?P<algorithm>\d{3})\+(?P<tag>\d{5})")


# ===== writing


def create(zone: str | Name, directory: Path, *, algorithm: Algorithm, zsk: bool = False, timing: Timing) -> tuple[Key, Path]:
    """Make a key and write its pair of files; give it and the path of its public file.

    Its tag is one that no other key of the zone in the directory has. Files are complete when they appear, and none is ever
    overwritten; only the owner can read the private one. Raises OSError.
    """
    while True:
        key = Key.generate(zone, algorithm=algorithm, zsk=zsk, timing=replace(timing, created=timing.created or time.time()))
        if key.tag in _tags(key.zone, directory):
            continue
        path = path_of(key, directory)
        try:
            _write(path.with_suffix(".private"), _private_text(key), 0o600)
        except FileExistsError:
            continue  # another process had the same luck just now
        try:
            _write(path, _public_text(key), 0o644)
        except OSError:
            path.with_suffix(".private").unlink()
            raise
        return key, path


def retime(path: Path, timing: Timing) -> Key:
    """Give a key that is in files another timing, and the key as it is now; `path` is either file. Raises as `read` does, and OSError."""
    key = replace(read(path), timing=timing)
    private = path.with_suffix(".private")
    kept = [line for line in private.read_text().splitlines() if line.partition(":")[0] not in _TIMES]
    _write(private, "\n".join([*kept, *_time_lines(timing), ""]), 0o600, anew=False)
    _write(path.with_suffix(".key"), _public_text(key), 0o644, anew=False)
    return key


def _write(path: Path, text: str, mode: int, *, anew: bool = True) -> None:
    """Let a file appear whole: as a new one (FileExistsError if there is one), or in place of what is there."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "w") as file:
            os.fchmod(file.fileno(), mode)
            if not anew:
                _keep_owner(file.fileno(), path)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if anew:
            os.link(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _keep_owner(file: int, path: Path) -> None:
    """Let a file belong to whom it belonged, who serves and must read it, when root replaces it."""
    before = path.stat()
    if os.geteuid() == 0:
        os.fchown(file, before.st_uid, before.st_gid)


def _public_text(key: Key) -> str:
    kind = "key" if key.sep else "zone"
    times = [f"; {line} ({datetime.strptime(line[-14:], _STAMP):%c})" for line in _time_lines(key.timing)]
    head = f"; This is a {kind}-signing key, keyid {key.tag}, for {key.zone}"
    return "\n".join([head, *times, f"{key.zone} IN DNSKEY {key.dnskey.to_text()}", ""])


def _private_text(key: Key) -> str:
    secret = base64.b64encode(_secret(key.private)).decode()
    head = ["Private-key-format: v1.3", f"Algorithm: {key.algorithm.value} ({key.algorithm.name})", f"PrivateKey: {secret}"]
    return "\n".join([*head, *_time_lines(key.timing), ""])


def _time_lines(timing: Timing) -> Iterator[str]:
    for word, field in _TIMES.items():
        if (at := getattr(timing, field)) is not None:
            yield f"{word}: {datetime.fromtimestamp(at, UTC):{_STAMP}}"


def path_of(key: Key, directory: Path) -> Path:
    """Give where a key's public file stands."""
    return directory / f"{_stem(key.zone, key.dnskey)}.key"


def _stem(zone: Name, dnskey: DNSKEY) -> str:
    return f"K{_file_name(zone)}+{int(dnskey.algorithm):03}+{dns.dnssec.key_id(dnskey):05}"


def _file_name(zone: Name) -> str:
    """Give a zone's name as BIND's tools write it in names of files: no slash gets through (RFC 2317 has such zones)."""
    return re.sub(r"[^a-z0-9_.-]", lambda match: f"%{ord(match[0]):02X}", zone.canonicalize().to_text())


def _tags(zone: Name, directory: Path) -> set[int]:
    found = (_NAME.fullmatch(path.stem) for path in directory.iterdir())
    return {int(match["tag"]) for match in found if match and match["zone"] == _file_name(zone)}


# ===== reading


def load(zone: str | Name, directory: str | Path) -> list[Key]:
    """Give all keys of a zone that a directory holds; keys of other zones may lie beside them.

    Raises ConfigError with all that is wrong with any of them, also when there is none. A private file that others may read is
    a warning in the log.
    """
    name, directory = dns.name.from_text(zone) if isinstance(zone, str) else zone, Path(directory)
    keys: list[Key] = []
    wrong: list[Violation] = []
    try:
        paths = _paths(name, directory)
    except OSError as error:
        raise ConfigError([Violation("dns.keys", str(directory), f"a directory that can be read ({error.strerror})")]) from None
    for path in paths:
        try:
            keys.append(read(path, name))
        except ConfigError as error:
            wrong += error.violations
    if not paths:
        made = f"lbcore dns keygen {name} --directory {directory}"
        wrong.append(Violation("dns.keys", str(directory), f"a folder with a key of {name}, as `{made}` makes it"))
    if wrong:
        raise ConfigError(wrong)
    return keys


def any_of(zone: str | Name, directory: str | Path) -> bool:
    """Say whether a directory holds keys of a zone. Raises OSError."""
    return bool(_paths(dns.name.from_text(zone) if isinstance(zone, str) else zone, Path(directory)))


def _paths(zone: Name, directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix == ".key" and path.name.startswith(f"K{_file_name(zone)}+"))


def read(path: Path, zone: Name | None = None) -> Key:
    """Give the key of one pair of files, of which `path` is either. Raises ConfigError with all that is wrong with it."""
    public, private = path.with_suffix(".key"), path.with_suffix(".private")
    wrong: list[Violation] = []
    owner_and_data, secret, timing = _public(public, wrong), _Private({}), Timing()
    if (text := _text(private, wrong)) is not None:
        _warn_if_open(private)
        secret = _Private.parse(text)
        timing = secret.timing(private.name, wrong)
    if owner_and_data is None:
        raise ConfigError(wrong)
    owner, dnskey = owner_and_data
    wrong += _misnamed(public, owner, dnskey, zone)
    key = secret.key(private.name, dnskey, wrong) if text is not None else None
    if wrong or key is None:
        raise ConfigError(wrong)
    return Key(owner.canonicalize(), dnskey, key, timing)


class _Private(dict[str, str]):
    """The fields of a private file. Violations name them, and never show their values but of times."""

    @classmethod
    def parse(cls, text: str) -> _Private:
        return cls((word.strip(), value.strip()) for word, colon, value in (line.partition(":") for line in text.splitlines()) if colon)

    def key(self, name: str, dnskey: DNSKEY, wrong: list[Violation]) -> GenericPrivateKey | None:
        """Give the secret half of a DNSKEY; None, and violations, when it is not that."""
        if not self.get("Private-key-format", "").startswith("v1."):
            wrong.append(Violation(name, self.get("Private-key-format"), "Private-key-format: v1.3"))
        if self.get("Algorithm", "").split(" ")[0] != str(int(dnskey.algorithm)):
            wrong.append(Violation(name, self.get("Algorithm"), f"Algorithm: {int(dnskey.algorithm)}, that of the .key file"))
        if dnskey.algorithm not in ALGORITHMS:
            return None  # said already
        try:
            key = _from_secret(dnskey.algorithm, base64.b64decode(self.get("PrivateKey", ""), validate=True))
        except (ValueError, binascii.Error):
            wrong.append(Violation(name, "PrivateKey", "a secret of 32 bytes in base64"))
            return None
        if key.public_key().to_dnskey(dnskey.flags).key != dnskey.key:
            wrong.append(Violation(name, "PrivateKey", "the secret half of the .key file's"))
        return key

    def timing(self, name: str, wrong: list[Violation]) -> Timing:
        """Give the timing; violations for times that are none or in an impossible order."""
        times: dict[str, float] = {}
        for word, field in _TIMES.items():
            try:
                if (value := self.get(word, "0")) != "0":
                    times[field] = datetime.strptime(value, _STAMP).replace(tzinfo=UTC).timestamp()
            except ValueError:
                wrong.append(Violation(f"{name}: {word}", value, "a time such as 20260131120000 (UTC)"))
        timing = Timing(**times)
        wrong += [Violation(f"{name}: {word}", self[word], f"a time not before {earlier}") for earlier, word in timing.disorder()]
        return timing


def _public(path: Path, wrong: list[Violation]) -> tuple[Name, DNSKEY] | None:
    if (text := _text(path, wrong)) is None:
        return None
    try:
        found = dns.zonefile.read_rrsets(text, rdclass=None, default_ttl=0)
    except (dns.exception.DNSException, ValueError):
        found = []
    if len(found) != 1 or found[0].rdtype != TYPE_DNSKEY or len(found[0]) != 1:
        wrong.append(Violation(path.name, text.strip()[:80], "one DNSKEY record"))
        return None
    data = found[0][0]
    assert isinstance(data, DNSKEY)
    if data.flags & ~Flag.SEP != Flag.ZONE or data.protocol != 3:
        wrong.append(Violation(path.name, f"{int(data.flags)} {data.protocol}", "flags 256 (ZSK) or 257 (KSK, CSK) and protocol 3"))
    if data.algorithm not in ALGORITHMS:
        wrong.append(Violation(path.name, int(data.algorithm), " or ".join(f"{one.value} ({one.name})" for one in ALGORITHMS)))
    return found[0].name, data


def _misnamed(path: Path, owner: Name, dnskey: DNSKEY, zone: Name | None) -> Iterator[Violation]:
    if zone is not None and owner != zone:
        yield Violation(path.name, str(owner), f"a key of {zone}")
    expected = _stem(owner, dnskey)
    if path.stem != expected:
        yield Violation(path.name, path.stem, f"{expected}, after the key in it")


def _text(path: Path, wrong: list[Violation]) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        wrong.append(Violation(path.name, str(path.parent), f"a file that can be read ({reason})"))
        return None


def _warn_if_open(path: Path) -> None:
    if (mode := path.stat().st_mode & 0o777) & 0o077:
        logger.warning("%s: mode %o lets others than its owner at the secret; chmod 600 it", path, mode)


def _secret(private: GenericPrivateKey) -> bytes:
    key = getattr(private, "key", None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.private_numbers().private_value.to_bytes(32, "big")
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def _from_secret(algorithm: int, secret: bytes) -> GenericPrivateKey:
    """Give the key of a secret. Raises ValueError when it is none."""
    if len(secret) != 32:
        raise ValueError("length")
    if algorithm == Algorithm.ED25519:
        return PrivateED25519(ed25519.Ed25519PrivateKey.from_private_bytes(secret))
    return PrivateECDSAP256SHA256(ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1()))
