"""Database: one SQLite file that survives kill -9, and says in words what is wrong with it.

WAL, synchronous=FULL: what a transaction committed is on the disk. Writers queue (BEGIN IMMEDIATE, other processes too) and get StoreLocked
when the queue takes longer than `timeout`; readers never wait for them. A file of another program, of a later version or with damage is
refused and left as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lbcore.errors import ServiceError
from lbcore.service.schema import APPLICATION_ID, MIGRATIONS, SCHEMA_VERSION

__all__ = ["Database", "explained"]

PAUSE = 0.01  # between two tries to open a file that is busy; waiting for a writer is left to SQLite
HEADER = b"SQLite format 3\x00"
PRAGMAS = ("synchronous=FULL", "foreign_keys=ON", "trusted_schema=OFF", "cell_size_check=ON", "temp_store=MEMORY", "wal_autocheckpoint=256")
FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_TRUNCATE}
BY_CODE = {
    sqlite3.SQLITE_BUSY: "StoreLocked", sqlite3.SQLITE_LOCKED: "StoreLocked", sqlite3.SQLITE_CORRUPT: "StoreCorrupt",
    sqlite3.SQLITE_NOTADB: "StoreCorrupt", sqlite3.SQLITE_READONLY: "StoreReadOnly", sqlite3.SQLITE_PERM: "StoreReadOnly",
}  # fmt: skip
ADVICE = {
    "StoreLocked": "another process holds it: try again, or find out who with `fuser`",
    "StoreFull": "it cannot be written: the disk is full, or a quota or file size limit is reached. Nothing of this change was kept; "
    "make room and try again",
    "StoreReadOnly": "it cannot be written: check its owner and mode, its folder's, and whether the disk is mounted read-only",
    "StoreCorrupt": "it is damaged or no store of lbcore. Move it away, with its -wal and -shm, and run `lbcore restore` with a backup; "
    "secondaries serve on meanwhile",
    "StoreUnavailable": "it cannot be used",
}


def explained(error: sqlite3.Error, path: Path) -> ServiceError:
    """Give the ServiceError for what SQLite says of a file: code, and what to do."""
    full: int = getattr(error, "sqlite_errorcode", 0)
    code = "StoreFull" if full in FULL else BY_CODE.get(full & 0xFF, "StoreUnavailable")
    return ServiceError(code, f"{path}: {ADVICE[code]} ({error})", str(path))


class Database:
    """An open file: `reading()` and `writing()` give a connection for the time of a `with`.

    timeout: seconds to wait for other writers
    Raises ServiceError: StoreLocked, StoreFull, StoreReadOnly, StoreCorrupt, StoreFromTheFuture, StoreUnavailable. Any thread may use it.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 5.0) -> None:
        self.path, self._timeout = Path(os.path.abspath(path)), timeout
        self._write_lock, self._read_lock = threading.RLock(), threading.RLock()
        deadline = time.monotonic() + timeout
        with self._explaining():
            _touch(self.path)
            self._writer = self._open(deadline)
            try:
                self._reader = self._connect()
                self._reader.execute("PRAGMA query_only=ON")
            except BaseException:
                self._writer.close()
                raise

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give the connection in a transaction that commits at the end of the `with`, or leaves nothing behind when it raises."""
        with self._held(self._write_lock), self._explaining():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:  # a full disk has rolled back by itself
                    self._writer.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that sees one moment of the file for the time of the `with`."""
        with self._held(self._read_lock), self._explaining():
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                self._reader.execute("ROLLBACK")

    @contextlib.contextmanager
    def _held(self, lock: threading.RLock) -> Iterator[None]:
        """Wait for another thread no longer than for another process."""
        if not lock.acquire(timeout=self._timeout):
            message = f"{self.path}: another thread of this process has held it for {self._timeout:g} s; try again"
            raise ServiceError("StoreLocked", message, str(self.path))
        try:
            yield
        finally:
            lock.release()

    def copy_to(self, path: Path) -> None:
        """Write what the file holds now to another one, while it is in use.

        Source: SQLite's online backup.
        """
        with self._read_lock, self._explaining(), contextlib.closing(sqlite3.connect(path)) as target:
            self._reader.backup(target)

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Be the only process that acts on the file for the time of the `with`; ends with the process, however that ends.

        Raises ServiceError StoreLocked at once when another one is.
        """
        handle = os.open(f"{self.path}.lease", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"{self.path}: another primary runs on it already"
                raise ServiceError("StoreLocked", message, str(self.path)) from None
            yield
        finally:
            os.close(handle)

    def close(self) -> None:
        """Close the file; once is enough, twice does no harm."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise explained(error, self.path) from error
        except UnicodeEncodeError as error:  # half of a surrogate pair, which no file in UTF-8 can hold
            raise ServiceError("InvalidProperty", f"text that is no Unicode: {ascii(error.object)[:100]}") from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        try:
            with self._sense():
                for pragma in PRAGMAS:
                    connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self, deadline: float) -> sqlite3.Connection:
        """Open, check and bring up to date; what is refused has not been written to."""
        while True:
            try:
                return self._checked(self._connect())
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE)  # turning to WAL and its recovery do not wait by themselves

    def _checked(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        try:
            with self._sense():
                self._check(connection)
            self._switch_to_wal(connection)
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _sense(self) -> Iterator[None]:
        """Take a file that makes no sense to SQLite for a damaged one: nothing but fixed questions is asked."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            raise ServiceError("StoreCorrupt", f"{self.path}: {ADVICE['StoreCorrupt']} ({error})", str(self.path)) from error

    def _check(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if owner != APPLICATION_ID and (owner or version or tables):
            raise ServiceError("StoreCorrupt", f"{self.path}: {ADVICE['StoreCorrupt']} (it belongs to another program)", str(self.path))
        if version > SCHEMA_VERSION:
            message = f"{self.path} has schema {version}, this version of lbcore knows {SCHEMA_VERSION}: run the newer lbcore that wrote it"
            raise ServiceError("StoreFromTheFuture", message, str(self.path))
        wrong = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if wrong != "ok":
            raise ServiceError("StoreCorrupt", f"{self.path}: {ADVICE['StoreCorrupt']} ({wrong})", str(self.path))

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            message = f"{self.path}: the file system has no shared memory (journal mode {mode}); the store needs a local disk"
            raise ServiceError("StoreUnavailable", message, str(self.path))

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]  # another process may have been faster
            for statement in (each for step in MIGRATIONS[version:] for each in step):
                connection.execute(statement)
            if version < SCHEMA_VERSION:
                connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _touch(path: Path) -> None:
    """Make sure of the file, for nobody else's eyes, and that its name is on the disk, too."""
    try:
        with path.open("rb") as file:
            head = file.read(len(HEADER))
    except FileNotFoundError:
        head = b""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise ServiceError("StoreUnavailable", f"{path} cannot be created: {error.strerror}", str(path)) from None
    except OSError as error:
        raise ServiceError("StoreUnavailable", f"{path} cannot be read: {error.strerror}", str(path)) from None
    if head and head != HEADER:
        raise ServiceError("StoreCorrupt", f"{path}: {ADVICE['StoreCorrupt']} (it is no SQLite file)", str(path))
