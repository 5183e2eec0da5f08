"""Logbook: history of changes, and events. Both keep the order in which things were written; the wall clock's word stands beside."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lbcore.service.database import Database

__all__ = ["Entry", "Event", "Events", "clean", "history_of", "remember"]

LONGEST = 1000  # characters of what people write of a change
KEPT = 10_000  # events


@dataclass(frozen=True, slots=True)
class Entry:
    """One change. at: wall-clock seconds; etag, record: of what was written, as JSON text, "" where nothing is left"""

    id: int
    at: float
    who: str
    what: str
    why: str
    target: str
    etag: str
    record: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. at: wall-clock seconds; region: "" = the service as a whole; detail: JSON"""

    id: int
    at: float
    kind: str
    region: str
    detail: Mapping[str, Any]


def clean(text: str) -> str:
    """Give a text that a file and a terminal can hold: no control characters, no half characters, not over 1000 long."""
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[:LONGEST])
    return printable.encode("utf-8", "replace").decode()


def remember(
    connection: sqlite3.Connection, at: float, who: str, what: str, why: str, target: str, etag: str, record: str
) -> None:  # fmt: skip
    """Add to the history, within the transaction of the change itself."""
    row = (at, clean(who), clean(what), clean(why), clean(target), etag, record)
    connection.execute("INSERT INTO history(at, who, what, why, target, etag, record) VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def history_of(connection: sqlite3.Connection, limit: int, before: int | None) -> list[Entry]:
    """Give changes, the latest first, those before an id."""
    where, values = ("WHERE id < ?", [before]) if before is not None else ("", [])
    columns = "id, at, who, what, why, target, etag, record"
    rows = connection.execute(f"SELECT {columns} FROM history {where} ORDER BY id DESC LIMIT ?", (*values, limit))
    return [Entry(*row) for row in rows]


class Events:
    """What happened, the last 10,000."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def add(self, kind: str, region: str = "", /, **detail: Any) -> int:
        """Write an event and give its id; detail: JSON values."""
        row = (self._clock(), clean(kind), clean(region), json.dumps(detail))
        with self._database.writing() as connection:
            added = connection.execute("INSERT INTO event(at, kind, region, detail) VALUES (?, ?, ?, ?)", row).lastrowid or 0
            connection.execute("DELETE FROM event WHERE id <= ?", (added - KEPT,))
        return added

    def since(self, after: int = 0, *, limit: int = 1000) -> list[Event]:
        """Give the latest `limit` events after an id, in the order in which they were written."""
        query = "SELECT id, at, kind, region, detail FROM event WHERE id > ? ORDER BY id DESC LIMIT ?"
        with self._database.reading() as connection:
            rows = connection.execute(query, (after, limit)).fetchall()
        return [Event(id, at, kind, region, json.loads(detail)) for id, at, kind, region, detail in reversed(rows)]
