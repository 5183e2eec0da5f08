"""Kept: the last configurations that were applied, on disk: what a gateway serves after a restart when nobody is there to publish.

One file a revision: a line `lbcore-configuration 1 <SHA-256>`, then the document as canonical JSON. Written whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lbcore import state
from lbcore.errors import ConfigError
from lbcore.http.gateway.configuration import MOST_BYTES, Configuration

__all__ = ["Kept"]

logger = logging.getLogger(__name__)

_MAGIC = b"lbcore-configuration 1 "
_NAME = re.compile(r"revision-(\d+)-(\d+)\.json")
_OLD = 60.0  # seconds after which a file that was never renamed belongs to nobody


class Kept:
    """Keep configurations in a folder, which is made when it is missing. count: the last so many, >= 1."""

    def __init__(self, folder: str | os.PathLike[str], count: int = 5) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count!r}")
        self._folder, self._count = Path(folder), count

    def write(self, configuration: Configuration) -> None:
        """Keep a configuration, and no more than the last few; when this returns, a power failure does not lose it. OSError otherwise."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"revision-{configuration.epoch}-{configuration.sequence}.json"
        state.write(path, b"%b%b\n%b" % (_MAGIC, configuration.sha256.encode(), configuration.canonical))
        for old in [*self._paths()][self._count :]:
            old.unlink(missing_ok=True)
        self._clear()

    def read(self) -> Iterator[Configuration]:
        """Give those that are whole, newest first; what is not is logged."""
        for path in [*self._paths()]:
            try:
                yield _read(path)
            except (OSError, ValueError, ConfigError) as error:
                logger.error("%s cannot be used, the revision before it is tried: %s", path, error)

    def _paths(self) -> Iterator[Path]:
        """Give the files, newest revision first."""
        found = []
        for path in self._folder.glob("revision-*.json") if self._folder.is_dir() else ():
            if (match := _NAME.fullmatch(path.name)) is not None:
                found.append((int(match[1]), int(match[2]), path))
        yield from (path for *_, path in sorted(found, reverse=True))

    def _clear(self) -> None:
        """Remove what a process left that died while it wrote."""
        for path in self._folder.glob(".revision-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _OLD:
                    path.unlink()


def _read(path: Path) -> Configuration:
    with path.open("rb") as file:
        head, _, document = file.read(MOST_BYTES + 1000).partition(b"\n")
    if not head.startswith(_MAGIC) or head.removeprefix(_MAGIC).decode("latin-1") != hashlib.sha256(document).hexdigest():
        raise ValueError("no configuration, or a damaged one (checksum)")
    return Configuration.from_json(document)
