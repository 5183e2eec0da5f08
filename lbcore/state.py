"""What a Balancer learned, as a file: written whole or not at all, matched by names when it is read.

Layout: b"LBSTATE1", CRC-32 of the rest, then zlib of one JSON line (at, regions, keys) and the table's snapshot.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Saved", "index_keys", "pack", "read", "write"]

_MAGIC = b"LBSTATE1"
_LIMIT = 1 << 32  # bytes a file may unpack to


@dataclass(frozen=True, slots=True)
class Saved:
    """A file's content: wall-clock time, names of the regions by slot, keys by group, and the table's snapshot."""

    at: float
    regions: Sequence[str]
    keys: Sequence[str]
    snapshot: bytes


def pack(regions: Sequence[str], keys: Sequence[str], snapshot: bytes, at: float) -> bytes:
    """Give the bytes of a state file."""
    head = json.dumps({"at": at, "regions": list(regions), "keys": list(keys)}, separators=(",", ":")).encode()
    body = zlib.compress(head + b"\n" + snapshot, 1)
    return _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def write(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a crash at any moment leaves the old file or the new one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path) -> Saved:
    """Give what `write` wrote; ValueError naming the file when it is anything else."""
    data = path.read_bytes()
    if data[:8] != _MAGIC or zlib.crc32(data[12:]) != int.from_bytes(data[8:12], "little"):
        raise ValueError(f"{path}: no lbcore state file, or a damaged one (checksum)")
    try:
        head, snapshot = zlib.decompressobj().decompress(data[12:], _LIMIT).split(b"\n", 1)
        fields = json.loads(head)
        return Saved(float(fields["at"]), [str(r) for r in fields["regions"]], [str(k) for k in fields["keys"]], snapshot)
    except (zlib.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: a state file with unusable content: {error}") from error


def index_keys(old: Sequence[str], new: Sequence[str]) -> NDArray[np.uint32]:
    """Give for each old group the new group of the same key, 0xFFFFFFFF for none; group 0 stays group 0."""
    places = {key: group for group, key in enumerate(new)} | {"": 0}
    return np.array([places.get(key, 0xFFFFFFFF) for key in old], np.uint32)
