"""Kept: the last documents that were used, on disk: what a gateway serves after a restart when nobody is there to publish.

One file a revision: a line such as `lbcore-configuration 1 <SHA-256>`, then the document. Written whole or not at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from lbcore import state
from lbcore.errors import ConfigError
from lbcore.http.gateway.configuration import MOST_BYTES, Configuration

__all__ = ["Kept", "KeptDocuments"]

logger = logging.getLogger(__name__)

_OLD = 60.0  # seconds after which a file that was never renamed belongs to nobody
T = TypeVar("T")


class KeptDocuments(Generic[T]):
    """Keep numbered documents in a folder, which is made when it is missing.

    kind: what stands in a file's first line; prefix: of the files' names; read: makes a document of its bytes, which may raise ValueError
        or ConfigError; most: bytes of one; count: the last so many are kept, >= 1
    """

    def __init__(
        self, folder: str | os.PathLike[str], kind: str, prefix: str, read: Callable[[bytes], T], *, most: int, count: int = 5
    ) -> None:  # fmt: skip
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count!r}")
        self._folder, self._prefix, self._make, self._most, self._count = Path(folder), prefix, read, most, count
        self._magic = b"lbcore-%b 1 " % kind.encode()
        self._name = re.compile(rf"{prefix}-(\d+)-(\d+)\.json")

    def keep(self, epoch: int, sequence: int, document: bytes) -> None:
        """Keep a document, and no more than the last few; when this returns, a power failure does not lose it. OSError otherwise."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._prefix}-{epoch}-{sequence}.json"
        state.write(path, b"%b%b\n%b" % (self._magic, hashlib.sha256(document).hexdigest().encode(), document))
        for old in [*self._paths()][self._count :]:
            old.unlink(missing_ok=True)
        self._clear()

    def read(self) -> Iterator[T]:
        """Give those that are whole, newest first; what is not is logged."""
        for path in [*self._paths()]:
            try:
                yield self._read(path)
            except (OSError, ValueError, ConfigError) as error:
                logger.error("%s cannot be used, the revision before it is tried: %s", path, error)

    def _paths(self) -> Iterator[Path]:
        """Give the files, newest revision first."""
        found = []
        for path in self._folder.glob(f"{self._prefix}-*.json") if self._folder.is_dir() else ():
            if (match := self._name.fullmatch(path.name)) is not None:
                found.append((int(match[1]), int(match[2]), path))
        yield from (path for *_, path in sorted(found, reverse=True))

    def _clear(self) -> None:
        """Remove what a process left that died while it wrote."""
        for path in self._folder.glob(f".{self._prefix}-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _OLD:
                    path.unlink()

    def _read(self, path: Path) -> T:
        with path.open("rb") as file:
            head, _, document = file.read(self._most + 1000).partition(b"\n")
        sound = hashlib.sha256(document).hexdigest().encode()
        if head != self._magic + sound:
            raise ValueError("no such document, or a damaged one (checksum)")
        return self._make(document)


class Kept(KeptDocuments[Configuration]):
    """Keep a gateway's configurations in a folder, which is made when it is missing. count: the last so many, >= 1."""

    def __init__(self, folder: str | os.PathLike[str], count: int = 5) -> None:
        super().__init__(folder, "configuration", "revision", Configuration.from_json, most=MOST_BYTES, count=count)

    def write(self, configuration: Configuration) -> None:
        """Keep a configuration; errors as `keep`."""
        self.keep(configuration.epoch, configuration.sequence, configuration.canonical)
