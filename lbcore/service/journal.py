"""Journal: long-running operations, written down step by step together with the state that each step leads to.

    begin --> InProgress --advance, advance, …--> finish: Succeeded, PartiallySucceeded, Failed or Canceled

One at a time. Whoever starts after a crash asks `running()`: the state beside it is that of the last step written, and planning from it to
what is wanted gives what is left to do.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lbcore.errors import ServiceError
from lbcore.service.logbook import clean
from lbcore.service.model import ServiceState
from lbcore.service.plan import Plan
from lbcore.service.progress import accept
from lbcore.service.record import canonical_json, from_record

if TYPE_CHECKING:
    from lbcore.service.store import Store

__all__ = ["FINAL", "Journaled", "Operation", "Operations"]

FINAL = ("Succeeded", "PartiallySucceeded", "Failed", "Canceled")
COLUMNS = "id, kind, status, created, updated, who, why, percent, cancel, plan, results, error"


@dataclass(frozen=True, slots=True)
class Operation:
    """A long-running operation. created, updated: wall-clock seconds; plan: as Plan.as_dict gave it; results: by region's name

    cancel: whether somebody asked for its end
    """

    id: str
    kind: str
    status: str
    created: float
    updated: float
    who: str
    why: str
    percent: int
    cancel: bool
    plan: Mapping[str, Any]
    results: Mapping[str, Any]
    error: str


@dataclass(frozen=True, slots=True)
class Journaled:
    """One line of an operation's journal. at: wall-clock seconds"""

    step: int
    at: float
    region: str
    entry: str
    detail: str


class Operations:
    """The tables of operations and their journal."""

    def __init__(self, store: Store) -> None:
        self._store, self._database = store, store.database

    def begin(
        self, planned: Plan, based_on: ServiceState | None, *, who: str, why: str = "", kind: str = "save", if_match: str | None = None
    ) -> tuple[Operation, ServiceState]:
        """Accept a plan: write down the operation and the state in which the wish is accepted, both or none.

        based_on: the state that was planned from; when it is no longer the one stored, the plan is void
        Raises ServiceError, in this order: Fenced, PreconditionFailed, OperationInProgress.
        """
        with self._database.writing() as connection:
            self._store.check(connection, if_match)
            now = self._store.read(connection)
            self._store.refuse_while_busy(connection)
            if (now.etag if now else None) != (based_on.etag if based_on else None):
                raise ServiceError("PreconditionFailed", "the service was changed while this was planned; read it and plan anew", "etag")
            state = self._store.write(connection, accept(now, planned), who, kind, why)
            operation = self._insert(connection, planned, now, kind, who, why)
        return operation, state

    def _insert(
        self, connection: sqlite3.Connection, planned: Plan, before: ServiceState | None, kind: str, who: str, why: str
    ) -> Operation:
        at, plan = self._store.clock(), planned.as_dict()
        made = Operation(uuid.uuid4().hex, clean(kind), "InProgress", at, at, clean(who), clean(why), 0, False, plan, {}, "")
        connection.execute(
            "INSERT INTO operation(id, kind, status, created, updated, who, why, before, plan) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (made.id, made.kind, made.status, at, at, made.who, made.why, before.etag if before else "", canonical_json(plan)),
        )
        return made

    def advance(
        self, id: str, change: Callable[[ServiceState], ServiceState], *, region: str, entry: str, detail: str = "", percent: int = 0,
        result: Mapping[str, Any] | None = None,
    ) -> ServiceState:  # fmt: skip
        """Take one step of a running operation: the state, and a line in its journal, both or none; give the state.

        change: from the state as it is stored now to the next, such as those of `progress`
        percent: of the whole, never less than before;  result: of the region, as GET of the operation shows it
        Raises ServiceError ResourceNotFound when no such operation runs, and what `change` raises: nothing has happened then.
        """
        with self._database.writing() as connection:
            return self._advance(connection, id, change, region, entry, detail, percent, result)

    def _advance(
        self, connection: sqlite3.Connection, id: str, change: Callable[[ServiceState], ServiceState], region: str, entry: str, detail: str,
        percent: int, result: Mapping[str, Any] | None,
    ) -> ServiceState:  # fmt: skip
        self._store.refuse_when_fenced(connection)
        row = connection.execute("SELECT results FROM operation WHERE id = ? AND status = 'InProgress'", (id,)).fetchone()
        state = self._store.read(connection)
        if row is None or state is None:
            raise ServiceError("ResourceNotFound", f"no operation {ascii(id)[:80]} is in progress", id)
        results = json.loads(row[0]) | ({} if result is None else {region: dict(result)})
        at = self._store.clock()
        connection.execute(
            "UPDATE operation SET updated = ?, percent = max(percent, ?), results = ? WHERE id = ?", (at, percent, json.dumps(results), id)
        )
        connection.execute(
            "INSERT INTO journal SELECT ?, count(*), ?, ?, ?, ? FROM journal WHERE operation = ?",
            (id, at, clean(region), clean(entry), clean(detail), id),
        )
        after = change(state)
        return state if after == state else self._store.write(connection, after, "", "", "")

    def finish(
        self, id: str, status: str, *, change: Callable[[ServiceState], ServiceState] = lambda state: state, error: str = "",
        who: str = "operation",
    ) -> ServiceState:  # fmt: skip
        """End a running operation and give the state; `change` as for `advance`, such as taking back what was not begun.

        status: one of FINAL, else ValueError
        """
        if status not in FINAL:
            raise ValueError(f"status must be one of {', '.join(FINAL)}, got {status!r}")
        with self._database.writing() as connection:
            percent = 100 if status == "Succeeded" else 0
            self._advance(connection, id, change, "", status, error, percent, None)
            connection.execute("UPDATE operation SET status = ?, error = ? WHERE id = ?", (status, clean(error), id))
            state = self._store.read(connection)
            assert state is not None
            return self._store.write(connection, state, who, f"operation {id}: {status}", error)

    def cancel(self, id: str) -> bool:
        """Ask for the end of an operation; say whether it still runs. Whoever runs it decides how."""
        with self._database.writing() as connection:
            found = connection.execute("UPDATE operation SET cancel = 1 WHERE id = ? AND status = 'InProgress'", (id,)).rowcount
            return bool(found)

    def get(self, id: str) -> Operation | None:
        """Give an operation, None for an unknown id."""
        return self._first("WHERE id = ?", id)

    def running(self) -> Operation | None:
        """Give the operation in progress, None when there is none."""
        return self._first("WHERE status = 'InProgress'")

    def before(self, id: str) -> ServiceState | None:
        """Give the state in which an operation found the service; None when there was no service."""
        query = "SELECT record, etag FROM history WHERE etag = (SELECT before FROM operation WHERE id = ?) AND etag <> '' LIMIT 1"
        with self._database.reading() as connection:
            row = connection.execute(query, (id,)).fetchone()
        return None if row is None else from_record(row[0], row[1], int(row[1].partition("-")[0]))

    def newest(self, *, limit: int = 100) -> list[Operation]:
        """Give the operations, the newest first."""
        with self._database.reading() as connection:
            rows = connection.execute(f"SELECT {COLUMNS} FROM operation ORDER BY rowid DESC LIMIT ?", (limit,))
            return [_operation(row) for row in rows]

    def journal(self, id: str) -> list[Journaled]:
        """Give the lines of an operation's journal, in order."""
        query = "SELECT step, at, region, entry, detail FROM journal WHERE operation = ? ORDER BY step"
        with self._database.reading() as connection:
            return [Journaled(*row) for row in connection.execute(query, (id,))]

    def _first(self, where: str, *values: str) -> Operation | None:
        with self._database.reading() as connection:
            row = connection.execute(f"SELECT {COLUMNS} FROM operation {where}", values).fetchone()
        return None if row is None else _operation(row)


def _operation(row: tuple[Any, ...]) -> Operation:
    id, kind, status, created, updated, who, why, percent, cancel, plan, results, error = row
    given = json.loads(plan), json.loads(results)
    return Operation(id, kind, status, created, updated, who, why, percent, bool(cancel), *given, error)
