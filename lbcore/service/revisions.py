"""Revisions: gateway configurations as immutable bytes, numbered (epoch, sequence).

    (1,1) (1,2) … (1,5) (1,6) (1,7)         restored from a backup of (1,5):
                    '--------------> (2,5) (2,6) …      epoch 2 wins over all of epoch 1; (1,6) and (1,7) are lost
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lbcore.errors import ServiceError
from lbcore.service.logbook import clean, remember

if TYPE_CHECKING:
    from lbcore.service.store import Store

__all__ = ["LARGEST", "Number", "Revision", "Revisions"]

LARGEST = 4 * 1024 * 1024  # bytes
COLUMNS = "epoch, sequence, sha256, at, who, why"


class Number(NamedTuple):
    """What orders revisions: of two, the one of the later epoch wins, then the one of the higher sequence."""

    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.sequence}"


@dataclass(frozen=True, slots=True)
class Revision:
    """One configuration without its bytes. at: wall-clock seconds"""

    number: Number
    sha256: str
    at: float
    who: str
    why: str


class Revisions:
    """The table of revisions."""

    def __init__(self, store: Store) -> None:
        self._store, self._database = store, store.database

    def put(self, body: bytes, *, who: str, why: str = "", if_revision: Number | None = None) -> Revision:
        """Publish a configuration as the next revision.

        if_revision: what must be the latest still; Number(0, 0) = there is none; None = whatever it is
        Raises ServiceError RevisionConflict, InvalidConfiguration for over 4 MiB (V24), Fenced.
        """
        if len(body) > LARGEST:
            raise ServiceError("InvalidConfiguration", f"a configuration has at most {LARGEST:,} bytes, got {len(body):,}")
        with self._database.writing() as connection:
            self._store.refuse_when_fenced(connection)
            last = _latest(connection)
            there = Number(0, 0) if last is None else last.number
            if if_revision is not None and if_revision != there:
                raise ServiceError("RevisionConflict", f"the latest revision is {there}, not {Number(*if_revision)}", str(there))
            number = Number(_epoch(connection), there.sequence + 1)
            made = Revision(number, hashlib.sha256(body).hexdigest(), self._store.clock(), clean(who), clean(why))
            _insert(connection, made, body)
            remember(connection, made.at, who, f"publish {number}", why, str(number), made.sha256, "")
        return made

    def latest(self) -> Revision | None:
        """Give the revision that every gateway should have, None before the first."""
        with self._database.reading() as connection:
            return _latest(connection)

    def body(self, number: tuple[int, int]) -> bytes | None:
        """Give a revision's bytes, None for an unknown one; StoreCorrupt when they are not what was published."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT sha256, body FROM revision WHERE epoch = ? AND sequence = ?", tuple(number)).fetchone()
        if row is None:
            return None
        if hashlib.sha256(row[1]).hexdigest() != row[0]:
            raise ServiceError("StoreCorrupt", f"revision {Number(*number)} is not what was published; restore a backup")
        return bytes(row[1])

    def newest(self, *, limit: int = 100) -> list[Revision]:
        """Give the revisions, the newest first."""
        query = f"SELECT {COLUMNS} FROM revision ORDER BY epoch DESC, sequence DESC LIMIT ?"
        with self._database.reading() as connection:
            return [_revision(row) for row in connection.execute(query, (limit,))]

    def prune(self, keep: int) -> int:
        """Drop all but the newest `keep` revisions, at least one; give how many went."""
        query = """DELETE FROM revision WHERE (epoch, sequence) NOT IN
                   (SELECT epoch, sequence FROM revision ORDER BY epoch DESC, sequence DESC LIMIT ?)"""
        with self._database.writing() as connection:
            return int(connection.execute(query, (max(1, keep),)).rowcount)

    @property
    def epoch(self) -> int:
        """Give the epoch that new revisions belong to."""
        with self._database.reading() as connection:
            return self.epoch_of(connection)

    def epoch_of(self, connection: sqlite3.Connection) -> int:
        """Give it as a transaction sees it."""
        return _epoch(connection)

    def begin_epoch(self, *, why: str, who: str, at_least: int = 0) -> int:
        """Begin a later epoch, in which the latest revision is published again under its sequence; give it.

        at_least: beyond whatever epoch some gateway has seen, so that this primary wins (R47, R49)
        """
        with self._database.writing() as connection:
            return self.advance(connection, why, who, at_least)

    def advance(self, connection: sqlite3.Connection, why: str, who: str, at_least: int = 0, ended: int = 0) -> int:
        """Begin a later epoch in a transaction. ended: the one before, where that is not the last one known and has no revision"""
        last, old, now = _latest(connection), _epoch(connection), self._store.clock()
        new, before = max(old + 1, at_least), last.number if last else Number(ended or old, 0)
        connection.execute("INSERT INTO epoch VALUES (?, ?, ?, ?, ?)", (new, now, clean(why), *before))
        if last is not None:
            query = "SELECT body FROM revision WHERE epoch = ? AND sequence = ?"
            body = connection.execute(query, before).fetchone()[0]
            _insert(connection, Revision(Number(new, before.sequence), last.sha256, now, clean(who), clean(why)), body)
        remember(connection, now, who, f"begin epoch {new}", why, str(before), "", "")
        return new

    def lost(self, held: tuple[int, int]) -> list[Number]:
        """Give what a gateway that holds this revision has seen and the latest one does not build upon, the oldest first.

        [] when nothing was lost, or nothing is known of the epoch.
        """
        with self._database.reading() as connection:
            rows = connection.execute("SELECT epoch, from_epoch, from_sequence FROM epoch").fetchall()
            now = _epoch(connection)
        begun = {epoch: Number(from_epoch, from_sequence) for epoch, from_epoch, from_sequence in rows}
        return _beyond(Number(*held), begun, _lineage(begun, now))

    def take(self, connection: sqlite3.Connection, saved: sqlite3.Connection, why: str, who: str, at_least: int) -> int:
        """Put the revisions of another file in the place of these and begin an epoch that wins over both, in a transaction."""
        ended = _epoch(saved)
        connection.execute("DELETE FROM revision")
        connection.executemany("INSERT OR REPLACE INTO epoch VALUES (?, ?, ?, ?, ?)", saved.execute("SELECT * FROM epoch"))
        connection.executemany("INSERT INTO revision VALUES (?, ?, ?, ?, ?, ?, ?)", saved.execute("SELECT * FROM revision"))
        return self.advance(connection, why, who, at_least, ended)


def _lineage(begun: dict[int, Number], epoch: int) -> dict[int, int]:
    """Give the epochs that the latest one builds upon, each with the last sequence of it that counts."""
    found, last = {}, 2**62
    while epoch in begun and epoch not in found:
        found[epoch] = last
        epoch, last = begun[epoch]
    return found


def _beyond(held: Number, begun: dict[int, Number], lineage: dict[int, int]) -> list[Number]:
    """Walk down from what is held to the lineage. A revision that begins an epoch is that of the epoch before, published again."""
    found: list[Number] = []
    while held.epoch in begun:
        keeps = lineage.get(held.epoch, begun[held.epoch].sequence)
        found = [Number(held.epoch, sequence) for sequence in range(keeps + 1, held.sequence + 1)] + found
        if held.epoch in lineage:
            break
        held = begun[held.epoch]
    return found


def _epoch(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT max(epoch) FROM epoch").fetchone()[0])


def _latest(connection: sqlite3.Connection) -> Revision | None:
    row = connection.execute(f"SELECT {COLUMNS} FROM revision ORDER BY epoch DESC, sequence DESC LIMIT 1").fetchone()
    return None if row is None else _revision(row)


def _revision(row: tuple[int, int, str, float, str, str]) -> Revision:
    epoch, sequence, sha256, at, who, why = row
    return Revision(Number(epoch, sequence), sha256, at, who, why)


def _insert(connection: sqlite3.Connection, made: Revision, body: bytes) -> None:
    row = (*made.number, made.sha256, body, made.at, made.who, made.why)
    connection.execute("INSERT INTO revision VALUES (?, ?, ?, ?, ?, ?, ?)", row)
