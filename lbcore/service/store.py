"""Store: what the primary must not forget. One SQLite file, one service.

    store.state() / save()      the service with what runs of it, by ETag
    store.document() / put()    further resources with an ETag of their own
    store.history()             who changed what, when and why; never rewritten
    store.operations            the journal of long-running operations, one at a time
    store.revisions             gateway configurations, (epoch, sequence)
    store.tokens, .events       access tokens (hashed), and what happened

Each write is one transaction: there as a whole when it returns, gone as a whole when it raises, also after kill -9.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from lbcore.errors import ServiceError
from lbcore.service.database import Database
from lbcore.service.journal import Operations
from lbcore.service.logbook import Entry, Events, clean, history_of, remember
from lbcore.service.model import ServiceState
from lbcore.service.record import canonical_json, etag_of, from_record, matches, to_record
from lbcore.service.revisions import Revisions
from lbcore.service.tokenrows import TokenRows

__all__ = ["Document", "Store"]


@dataclass(frozen=True, slots=True)
class Document:
    """A stored resource: its JSON value and its ETag."""

    body: Any
    etag: str


class Store:
    """The primary's memory.

    path: of the file, created when missing, readable by its owner alone;  timeout: seconds to wait for other writers
    clock: wall-clock seconds, for what people read: it may jump, the order of things does not come from it
    Raises ServiceError as `Database` does. Any thread may use it; several processes may, too.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 5.0, clock: Callable[[], float] = time.time) -> None:
        self.database, self.clock = Database(path, timeout=timeout), clock
        self.operations = Operations(self)
        self.revisions = Revisions(self)
        self.tokens = TokenRows(self.database, clock)
        self.events = Events(self.database, clock)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def lease(self) -> AbstractContextManager[None]:
        """Be the only primary on this file for the time of a `with`; StoreLocked when another one runs."""
        return self.database.lease()

    # ===== the service

    def state(self) -> ServiceState | None:
        """Give the service with what runs of it, None when none was created."""
        with self.database.reading() as connection:
            return self.read(connection)

    def marks(self) -> tuple[object, ...]:
        """Give what is another when anything here was written but events, tokens and the steps of an operation's journal."""
        query = (
            "SELECT (SELECT etag FROM service), (SELECT group_concat(etag) FROM document), (SELECT max(epoch) FROM epoch), "
            "(SELECT group_concat(value) FROM meta)"
        )
        with self.database.reading() as connection:
            found: tuple[object, ...] = connection.execute(query).fetchone()
            return found

    @property
    def sequence(self) -> int:
        """Give the number of the last state that was written, also of a service that is gone; 0 before the first."""
        with self.database.reading() as connection:
            return self.sequence_of(connection)

    def sequence_of(self, connection: sqlite3.Connection) -> int:
        """Give it as a transaction sees it."""
        return _last(connection)

    def save(
        self, state: ServiceState, *, who: str, what: str, why: str = "", if_match: str | None = None, target: str = ""
    ) -> ServiceState:
        """Write the state and who changed what; give it with its new ETag.

        if_match: the ETag that must still hold, as an If-Match header has it; None = whatever there is
        Raises ServiceError PreconditionFailed (V17), Fenced (V18).
        """
        with self.database.writing() as connection:
            self.check(connection, if_match)
            return self.write(connection, state, who, what, why, target)

    def update(
        self, change: Callable[[ServiceState], ServiceState], *, who: str, what: str, why: str = "", if_match: str | None = None
    ) -> ServiceState:
        """Write what `change` makes of the state that is there, between any two steps of an operation, and give it; no write for no change.

        Raises ServiceError as `save`, ResourceNotFound without a service, and what `change` raises: nothing has happened then.
        """
        with self.database.writing() as connection:
            self.check(connection, if_match)
            before = self.read(connection)
            if before is None:
                raise ServiceError("ResourceNotFound", "there is no service")
            after = change(before)
            return before if after == before else self.write(connection, after, who, what, why)

    def delete(self, *, who: str, why: str = "", if_match: str | None = None) -> bool:
        """Forget the service, and say whether there was one; its history stays."""
        with self.database.writing() as connection:
            self.check(connection, if_match)
            self.refuse_while_busy(connection)
            there = connection.execute("DELETE FROM service").rowcount == 1
            if there:
                remember(connection, self.clock(), who, "delete service", why, "", "", "")
            return there

    # ===== further resources

    def document(self, kind: str) -> Document | None:
        """Give a resource, None when it was never put."""
        with self.database.reading() as connection:
            return self.document_of(connection, kind)

    def document_of(self, connection: sqlite3.Connection, kind: str) -> Document | None:
        """Give it as a transaction sees it."""
        row = connection.execute("SELECT body, etag FROM document WHERE kind = ?", (kind,)).fetchone()
        return None if row is None else Document(json.loads(_sound(*row)), row[1])

    def put(self, kind: str, body: Any, *, who: str, why: str = "", if_match: str | None = None) -> Document:
        """Write a resource and who did; `body` is a JSON value. PreconditionFailed and Fenced as for `save`."""
        text = canonical_json(body)
        with self.database.writing() as connection:
            self.refuse_when_fenced(connection)
            row = connection.execute("SELECT sequence, etag FROM document WHERE kind = ?", (kind,)).fetchone() or (0, "")
            _match(if_match, row[1])
            etag = etag_of(row[0] + 1, text)
            connection.execute("INSERT OR REPLACE INTO document VALUES (?, ?, ?, ?)", (kind, row[0] + 1, etag, text))
            remember(connection, self.clock(), who, f"put {kind}", why, kind, etag, text)
        return Document(json.loads(text), etag)

    def history(self, *, limit: int = 100, before: int | None = None) -> list[Entry]:
        """Give who changed what, the latest first; before: an entry's id, for the next page."""
        with self.database.reading() as connection:
            return history_of(connection, limit, before)

    # ===== who may write

    @property
    def fenced(self) -> int | None:
        """Give the epoch of the primary that has taken over, None while this one is it."""
        with self.database.reading() as connection:
            return self.fence_of(connection)

    def fence(self, epoch: int, *, who: str, why: str = "") -> None:
        """Refuse every write from now on, for another primary has begun `epoch`; `unfence` ends it (R49)."""
        with self.database.writing() as connection:
            self.set_fence(connection, epoch, who, why)

    def unfence(self, *, who: str, why: str = "") -> None:
        """Be the primary again."""
        with self.database.writing() as connection:
            self.lift_fence(connection, who, why)

    # ===== for the other parts of the store, in a transaction of theirs

    def read(self, connection: sqlite3.Connection) -> ServiceState | None:
        """Give the service as a transaction sees it; StoreCorrupt for one that is not what was written."""
        row = connection.execute("SELECT record, etag, sequence FROM service").fetchone()
        return None if row is None else from_record(_sound(row[0], row[1]), row[1], row[2])

    def write(
        self, connection: sqlite3.Connection, state: ServiceState, who: str, what: str, why: str, target: str = "", least: int = 0
    ) -> ServiceState:
        """Write the service in a transaction and, where `what` says something, remember who did; least: for the sequence."""
        sequence, text = max(_last(connection) + 1, least), to_record(state)
        etag = etag_of(sequence, text)
        connection.execute("INSERT OR REPLACE INTO service VALUES (1, ?, ?, ?)", (sequence, etag, text))
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('sequence', ?)", (str(sequence),))  # goes on when the service is deleted
        if what:
            remember(connection, self.clock(), who, what, why, target, etag, text)
        return replace(state, etag=etag, sequence=sequence)

    def check(self, connection: sqlite3.Connection, if_match: str | None) -> None:
        """Refuse a write that is fenced, or whose writer has not seen what there is."""
        self.refuse_when_fenced(connection)
        row = connection.execute("SELECT etag FROM service").fetchone()
        _match(if_match, row[0] if row else "")

    def set_fence(self, connection: sqlite3.Connection, epoch: int, who: str, why: str, to: str = "") -> None:
        """Refuse every later write; the latest epoch of all fences counts. to: the location that it is given to, "" = not by this store"""
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('fenced', ?)", (str(max(epoch, self.fence_of(connection) or 0)),))
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('handed over', ?)", (to,))
        remember(connection, self.clock(), who, f"fence by epoch {epoch}", why, "", "", "")

    def lift_fence(self, connection: sqlite3.Connection, who: str, why: str) -> None:
        """Take writes again."""
        if connection.execute("DELETE FROM meta WHERE key = 'fenced'").rowcount:
            connection.execute("DELETE FROM meta WHERE key = 'handed over'")
            remember(connection, self.clock(), who, "unfence", why, "", "", "")

    def handed_over(self, connection: sqlite3.Connection) -> tuple[str, int] | None:
        """Give the location to which this store was handed over, and with which epoch; None when it was not."""
        row = connection.execute("SELECT value FROM meta WHERE key = 'handed over' AND value <> ''").fetchone()
        epoch = self.fence_of(connection)
        return None if row is None or epoch is None else (row[0], epoch)

    def fence_of(self, connection: sqlite3.Connection) -> int | None:
        """Give the epoch of the primary that has taken over, None while this one is it."""
        row = connection.execute("SELECT value FROM meta WHERE key = 'fenced'").fetchone()
        return None if row is None else int(row[0])

    def refuse_when_fenced(self, connection: sqlite3.Connection) -> None:
        """Raise ServiceError Fenced when another primary has taken over."""
        if (epoch := self.fence_of(connection)) is not None:
            raise ServiceError("Fenced", f"another primary has taken over with epoch {epoch}; this one is read-only")

    def refuse_while_busy(self, connection: sqlite3.Connection) -> None:
        """Raise ServiceError OperationInProgress while one runs; its `target` is the operation's id (V16)."""
        row = connection.execute("SELECT id, kind, who, created FROM operation WHERE status = 'InProgress'").fetchone()
        if row is not None:
            age = max(0.0, self.clock() - row[3])
            message = f"operation {row[0]} ({row[1]}, begun by {row[2]} {age:.0f} s ago) is in progress; wait for it, or cancel it"
            raise ServiceError("OperationInProgress", message, row[0])


def _last(connection: sqlite3.Connection) -> int:
    query = "SELECT sequence AS seq FROM service UNION SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'sequence'"
    return int(connection.execute(f"SELECT coalesce(max(seq), 0) FROM ({query})").fetchone()[0])


def _match(if_match: str | None, etag: str) -> None:
    if not matches(if_match, etag):
        now = f"it is {etag} now" if etag else "there is nothing yet"
        wanted = ascii(clean(if_match or ""))[:100]
        raise ServiceError("PreconditionFailed", f"If-Match does not hold: {now}, expected {wanted}", "If-Match")


def _sound(text: str, etag: str) -> str:
    """Give a text whose ETag says that it is the one that was written."""
    if etag_of(int(etag.partition("-")[0]), text) != etag:
        raise ServiceError("StoreCorrupt", f"what is stored under ETag {etag} is not what was written; restore a backup")
    return text
