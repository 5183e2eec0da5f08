"""The latency table in memory that processes share: made by the supervisor, joined by its workers, gone with the last of them."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from lbcore._fast import LatencyTable
from lbcore._prefix import PrefixMap
from lbcore.balancer import Balancer
from lbcore.config import Settings
from lbcore.region import Region
from lbcore.sense.geo import GeoIP

__all__ = ["StaleError", "Table", "databases", "join"]


class StaleError(ValueError):
    """The database of networks is another than the one that the table was made for."""


class Table:
    """A new table for a configuration: `lb` owns it, `fd` is its memory, `fingerprint` says what groups and regions mean.

    `databases` tells the files that it was made from. Raises ValueError or OSError for a database that cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.databases = databases(settings)
        options = settings.balancer_options()
        options["locate"] = prefixes = _map(options["locate"])
        self.fingerprint = _fingerprint(prefixes, settings.regions)
        size = LatencyTable(prefixes.groups, len(settings.regions)).nbytes
        self.fd = os.memfd_create("lbcore-table")
        try:
            os.ftruncate(self.fd, size)
            self.lb = Balancer(**options, buffer=mmap.mmap(self.fd, size))
            for name in settings.draining:
                self.lb.drain(name)
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Let go of the memory; workers that have it keep it."""
        os.close(self.fd)


def join(settings: Settings, fd: int, fingerprint: str) -> Balancer:
    """Give a Balancer on the supervisor's table; StaleError when the database was replaced since, else errors as Table."""
    options = settings.balancer_options()
    options["locate"] = prefixes = _map(options["locate"])
    if _fingerprint(prefixes, settings.regions) != fingerprint:
        raise StaleError("the database of networks has changed since the table was made")
    return Balancer(**options, buffer=mmap.mmap(fd, os.fstat(fd).st_size))


def _map(locate: str | PrefixMap | None) -> PrefixMap:
    return locate if isinstance(locate, PrefixMap) else GeoIP(locate).map


def _fingerprint(prefixes: PrefixMap, regions: Sequence[Region]) -> str:
    text = "\n".join([*(region.name for region in regions), "", *prefixes.keys])
    return hashlib.sha256(text.encode()).hexdigest()


def databases(settings: Settings) -> tuple[object, ...]:
    """Give what tells whether a database was replaced."""
    files = [Path(settings.folder / name) for name in settings.document.latency.database]
    return tuple((str(file), (found := file.stat()).st_ino, found.st_size, found.st_mtime_ns) for file in files if file.exists())
