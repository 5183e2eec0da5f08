"""Static records in the form of a zone file: read by dnspython, then judged as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dns.name import Name
from dns.rdata import Rdata

from lbcore.errors import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lbcore.dns.zone import Zone

__all__ = ["Content", "Records", "check", "read"]


class Records(NamedTuple):
    """Records of one type at one name."""

    ttl: int
    rdatas: tuple[Rdata, ...]


Content = dict[bytes, dict[int, Records]]  # by name, by type
Lines = dict[tuple[bytes, int], str]


def read(records: str | Path | None, origin: Name, ttl: int, violations: list[Violation]) -> tuple[Content, Lines]:
    """Give the records of a zone file, and where each stands as "file:line"; what cannot be read is added to `violations`."""
    return {}, {}


def check(content: Content, lines: Lines, zone: Zone) -> Iterator[Violation]:
    """Give everything that is wrong with the records of a zone, together."""
    return iter(())
