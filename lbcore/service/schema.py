"""Schema: the tables of the store, and how a file of an earlier version becomes one of this.

A migration is a list of statements; all that a file lacks run in one transaction. Never change one that was released: add another.
"""

from __future__ import annotations

__all__ = ["APPLICATION_ID", "MIGRATIONS", "SCHEMA_VERSION"]

APPLICATION_ID = 0x4C42434F  # "LBCO", in the header of the file

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # The service: what is wanted and what runs, one row.
        """CREATE TABLE service(
            id INTEGER PRIMARY KEY CHECK (id = 1), sequence INTEGER NOT NULL, etag TEXT NOT NULL, record TEXT NOT NULL) STRICT""",
        # Further resources with an ETag of their own, such as trafficManager.
        """CREATE TABLE document(kind TEXT PRIMARY KEY, sequence INTEGER NOT NULL, etag TEXT NOT NULL, body TEXT NOT NULL) STRICT""",
        # Who changed what, when and why. `at` is the wall clock's word; the order is the id's.
        """CREATE TABLE history(
            id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL, why TEXT NOT NULL,
            target TEXT NOT NULL, etag TEXT NOT NULL, record TEXT NOT NULL) STRICT""",
        """CREATE TRIGGER history_is_not_rewritten BEFORE UPDATE ON history BEGIN SELECT RAISE(ABORT, 'history stays'); END""",
        """CREATE TRIGGER history_is_not_deleted BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'history stays'); END""",
        """CREATE TABLE operation(
            id TEXT PRIMARY KEY, kind TEXT NOT NULL, status TEXT NOT NULL
                CHECK (status IN ('InProgress', 'Succeeded', 'PartiallySucceeded', 'Failed', 'Canceled')),
            created REAL NOT NULL, updated REAL NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL, percent INTEGER NOT NULL DEFAULT 0,
            cancel INTEGER NOT NULL DEFAULT 0, before TEXT NOT NULL, plan TEXT NOT NULL, results TEXT NOT NULL DEFAULT '{}',
            error TEXT NOT NULL DEFAULT '') STRICT""",
        """CREATE UNIQUE INDEX one_operation_at_a_time ON operation(status) WHERE status = 'InProgress'""",
        """CREATE TABLE journal(
            operation TEXT NOT NULL REFERENCES operation(id), step INTEGER NOT NULL, at REAL NOT NULL, region TEXT NOT NULL,
            entry TEXT NOT NULL, detail TEXT NOT NULL, PRIMARY KEY (operation, step)) STRICT""",
        # An epoch begins where another one ended: what that one had beyond it is lost.
        """CREATE TABLE epoch(
            epoch INTEGER PRIMARY KEY, at REAL NOT NULL, why TEXT NOT NULL, from_epoch INTEGER NOT NULL,
            from_sequence INTEGER NOT NULL) STRICT""",
        """CREATE TABLE revision(
            epoch INTEGER NOT NULL REFERENCES epoch(epoch), sequence INTEGER NOT NULL, sha256 TEXT NOT NULL, body BLOB NOT NULL,
            at REAL NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL, PRIMARY KEY (epoch, sequence)) STRICT""",
        """CREATE TABLE token(
            id TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL CHECK (role IN ('node', 'reader', 'operator', 'owner')),
            hash BLOB NOT NULL UNIQUE, created REAL NOT NULL, expires REAL, used REAL, revoked REAL) STRICT""",
        """CREATE TABLE event(
            id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL, region TEXT NOT NULL,
            detail TEXT NOT NULL) STRICT""",
        """CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT""",
        """INSERT INTO epoch VALUES (1, 0, 'the first', 0, 0)""",
    ),
)
SCHEMA_VERSION = len(MIGRATIONS)
