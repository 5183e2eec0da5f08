"""TokenRows: access tokens as the store keeps them. A token itself is never seen here, only what hashing made of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from lbcore.errors import ServiceError
from lbcore.service.database import Database
from lbcore.service.logbook import clean, remember

__all__ = ["TokenRow", "TokenRows"]

COLUMNS = "id, name, role, created, expires, used, revoked"


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One token, without its hash. Times are wall-clock seconds, None = never."""

    id: str
    name: str
    role: str
    created: float
    expires: float | None
    used: float | None
    revoked: float | None


class TokenRows:
    """The table of tokens."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock

    def add(self, id: str, name: str, role: str, digest: bytes, *, who: str, expires: float | None = None) -> TokenRow:
        """Add a token by its hash. role: of `tokens.ROLES`; ServiceError InvalidProperty for another, or a token that is there."""
        row = TokenRow(id, clean(name), role, self._clock(), expires, None, None)
        with self._database.writing() as connection:
            try:
                connection.execute(
                    "INSERT INTO token(id, name, role, hash, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
                    (row.id, row.name, row.role, digest, row.created, row.expires),
                )
            except sqlite3.IntegrityError:
                message = f"a token needs an id of its own and a role that exists; got {ascii(id)[:80]}, {ascii(role)[:80]}"
                raise ServiceError("InvalidProperty", message) from None
            remember(connection, row.created, who, f"create token {id}", "", row.name, "", "")
        return row

    def find(self, id: str) -> tuple[TokenRow, bytes] | None:
        """Give a token with its hash, also one that expired or was revoked; None for an unknown one."""
        with self._database.reading() as connection:
            row = connection.execute(f"SELECT {COLUMNS}, hash FROM token WHERE id = ?", (id,)).fetchone()
        return None if row is None else (TokenRow(*row[:-1]), bytes(row[-1]))

    def all(self) -> list[TokenRow]:
        """Give every token, the oldest first."""
        with self._database.reading() as connection:
            return [TokenRow(*row) for row in connection.execute(f"SELECT {COLUMNS} FROM token ORDER BY rowid")]

    def revoke(self, id: str, *, who: str) -> bool:
        """End a token for good; say whether there was one that had not ended."""
        with self._database.writing() as connection:
            update = "UPDATE token SET revoked = ? WHERE id = ? AND revoked IS NULL"
            found = connection.execute(update, (self._clock(), id)).rowcount == 1
            if found:
                remember(connection, self._clock(), who, f"revoke token {id}", "", id, "", "")
            return found

    def used(self, id: str) -> None:
        """Note that a token was used now."""
        with self._database.writing() as connection:
            connection.execute("UPDATE token SET used = ? WHERE id = ?", (self._clock(), id))
