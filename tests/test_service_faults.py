"""The store when the world is wrong: full disks, locks, damage, the future, other programs."""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from service_worlds import contoso, running

from lbcore.errors import ServiceError
from lbcore.service import database
from lbcore.service.backup import backup
from lbcore.service.model import ServiceState
from lbcore.service.schema import SCHEMA_VERSION
from lbcore.service.store import Store

FORK = multiprocessing.get_context("fork")
CLONE_NEWNS, CLONE_NEWUSER, MS_REMOUNT, MS_PRIVATE, MS_REC = 0x20000, 0x10000000, 32, 1 << 18, 16384
Mount = Callable[..., bool]
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, where a process may have mounts of its own")


def filled(path: Path, saves: int = 3) -> ServiceState:
    """Make a store with something in it."""
    with Store(path) as store:
        for _ in range(saves):
            state = store.save(running(contoso("eastasia")), who="ann", what="save")
        store.revisions.put(b"one", who="ann")
    return state


def everything(folder: Path) -> dict[str, str]:
    """Give the checksums of all files of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def refused(path: Path, timeout: float = 0.2) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        Store(path, timeout=timeout).close()
    return caught.value


# ===== files that are no store


def test_a_file_of_garbage_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    for content in (b"garbage", b"\x00" * 5000, b"SQLite format 3\x00" + b"\xff" * 5000, b"SQLite format 3\x00"):
        path.write_bytes(content)
        error = refused(path)
        assert error.code == "StoreCorrupt", content[:20]
        assert "lbcore restore" in str(error)
        assert path.read_bytes() == content


def test_the_file_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks(url)")
    before = everything(tmp_path)
    assert refused(path).code == "StoreCorrupt"
    assert "another program" in str(refused(path))
    assert everything(tmp_path) == before


def test_a_store_from_the_future_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    filled(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    before = everything(tmp_path)
    error = refused(path)
    assert (error.code, f"schema {SCHEMA_VERSION + 1}" in str(error)) == ("StoreFromTheFuture", True)
    assert everything(tmp_path) == before


def test_damaged_pages_are_noticed_at_the_door_or_at_the_row(tmp_path: Path) -> None:
    """Overwrite each page in turn: what is read is either refused, or what was written."""
    path = tmp_path / "store.sqlite"
    state = filled(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sound = path.read_bytes()
    refusals = 0
    for page in range(len(sound) // 4096):
        damaged = bytearray(sound)
        damaged[page * 4096 + 40 : page * 4096 + 4096] = random.Random(page).randbytes(4056)
        path.write_bytes(damaged)
        for name in ("store.sqlite-wal", "store.sqlite-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        try:
            with Store(path, timeout=0.2) as store:
                assert store.state() == state
                assert store.revisions.body((1, 1)) == b"one"
                store.history()
        except ServiceError as error:
            assert error.code in ("StoreCorrupt", "StoreFromTheFuture")
            refusals += 1
    assert refusals > 8  # the others hold nothing


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "store.sqlite"
    filled(path)
    os.truncate(path, int(path.stat().st_size * share))
    assert refused(path).code == "StoreCorrupt"


def test_places_where_no_file_can_be_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "store.sqlite", tmp_path, tmp_path / "a\x00b", tmp_path / ("x" * 300)):
        try:
            assert refused(path).code == "StoreUnavailable"
        except ValueError:  # what the system itself calls no path
            assert "\x00" in str(path)


def test_names_that_mean_something_to_sqlite_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "file:x?mode=memory", "a'; DROP TABLE service; --", "?"):
        with Store(name) as store:
            store.save(running(contoso()), who="ann", what="save")
        assert (tmp_path / name).stat().st_size > 0


# ===== locked


def test_a_locked_store_says_so_in_time_and_works_when_it_is_free(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    state = filled(path)
    with Store(path, timeout=0.1) as store, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ServiceError, match="StoreLocked.*try again"):
            store.save(state, who="ann", what="save")
        assert store.state() == state
        other.execute("ROLLBACK")
        assert store.save(state, who="ann", what="save").sequence == state.sequence + 1


def test_a_writer_waits_for_another_one(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    state = filled(path)
    with Store(path, timeout=30.0) as store, closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.2, other.execute, ["COMMIT"]).start()
        assert store.save(state, who="ann", what="save").sequence == state.sequence + 1


def test_a_thread_waits_no_longer_for_another_one_than_for_a_process(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    state = filled(path)
    with Store(path, timeout=0.1) as store:
        codes: list[str] = []

        def save() -> None:
            try:
                store.save(state, who="bob", what="save")
            except ServiceError as error:
                codes.append(error.code)

        with store.database.writing():
            other = threading.Thread(target=save)
            other.start()
            other.join(30.0)
        assert codes == ["StoreLocked"]
        store.save(state, who="ann", what="save")


def test_a_store_that_is_locked_while_it_is_opened_says_so_in_time(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    filled(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("DELETE FROM event")
        assert refused(path, timeout=0.1).code == "StoreLocked"
        other.execute("ROLLBACK")


def test_many_processes_may_make_the_same_store(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"

    def make(number: int) -> None:
        with Store(path, timeout=30.0) as store:
            store.events.add(f"{number}")

    workers = [FORK.Process(target=make, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    with Store(path) as store:
        assert {event.kind for event in store.events.since()} == {f"{number}" for number in range(8)}


def test_one_primary_at_a_time_and_a_killed_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    ours, theirs = FORK.Pipe()

    def hold() -> None:
        with Store(path) as store, store.lease():
            theirs.send("held")
            signal.pause()

    other = FORK.Process(target=hold)
    other.start()
    assert ours.poll(30)
    with Store(path) as store:
        with pytest.raises(ServiceError, match="StoreLocked.*another primary"), store.lease():
            pass
        other.kill()
        other.join()
        with store.lease():
            pass


# ===== full


def test_a_full_database_keeps_what_it_had_and_takes_more_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    state = filled(path)
    with Store(path) as store:
        with store.database.writing() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
        store.database._writer.execute(f"PRAGMA max_page_count={pages + 4}")
        with pytest.raises(ServiceError, match="StoreFull.*make room"):
            for _ in range(1000):
                store.put("ballast", "x" * 10_000, who="ann")
        assert store.state() == state
        store.database._writer.execute("PRAGMA max_page_count=1000000")
        store.put("ballast", "x" * 10_000, who="ann")


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    """The system itself refuses to write, in a process of its own."""
    path = tmp_path / "store.sqlite"
    state = filled(path)
    ours, theirs = FORK.Pipe()

    def fill() -> None:
        with Store(path) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            written = _fill(store)
            same = store.state() == state
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
            store.put("ballast", "after", who="ann")
            theirs.send((written, same))

    worker = FORK.Process(target=fill)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    (code, last), same = ours.recv()
    assert (code, same) == ("StoreFull", True)
    with Store(path) as store:
        assert (store.document("ballast") or pytest.fail()).body == "after"
        assert (store.document("last") or pytest.fail()).body == last
        assert store.state() == state


def _fill(store: Store) -> tuple[str, int]:
    """Write until it is full; give the code, and the number of the last write that was acknowledged."""
    last = -1
    try:
        for number in range(10_000):
            store.put("last", number, who="ann", why="x" * 900)
            last = number
    except ServiceError as error:
        return error.code, last
    return "", last


def on_a_small_disk(folder: Path, size: str, body: Callable[[Mount], None]) -> None:
    """Run `body` in a process of its own that has a file system of so many bytes at `folder`, which nobody else sees."""
    ours, theirs = FORK.Pipe(duplex=False)

    def run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        own = os.geteuid() == 0 and libc.unshare(CLONE_NEWNS) == 0  # anybody may where he is root of a namespace of his own
        if not own and libc.unshare(CLONE_NEWNS | CLONE_NEWUSER) != 0:
            theirs.send(("skip", f"needs a mount namespace ({os.strerror(ctypes.get_errno())})"))
            return
        libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)

        def mount(size: str, flags: int = 0) -> bool:
            return bool(libc.mount(b"tmpfs", bytes(folder), b"tmpfs", flags, f"size={size}".encode()) == 0)

        if not mount(size):
            theirs.send(("skip", f"needs the right to mount a tmpfs ({os.strerror(ctypes.get_errno())})"))
            return
        try:
            body(mount)
            theirs.send(("done", ""))
        except BaseException:
            theirs.send(("failed", traceback.format_exc()))

    worker = FORK.Process(target=run)
    worker.start()
    theirs.close()
    outcome, detail = ours.recv()
    worker.join()
    if outcome == "skip":
        pytest.skip(detail)
    assert outcome == "done", detail


@linux
def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"

    def body(mount: Mount) -> None:
        state = filled(path)
        with Store(path) as store:
            code, last = _fill(store)
            assert code == "StoreFull"
            assert store.state() == state
        with Store(path) as store:  # a start on a full disk, too
            assert store.state() == state
            assert (store.document("last") or pytest.fail()).body == last
            with pytest.raises(ServiceError, match="StoreFull"):
                _ = [store.put("ballast", "x" * 50_000, who="ann") for _ in range(50)]
            with pytest.raises(ServiceError, match="StoreFull"):
                backup(store, tmp_path / "backup.zip")
            assert not [name for name in os.listdir(tmp_path) if "backup" in name]
        assert mount("8m", MS_REMOUNT)
        with Store(path) as store:
            store.put("last", "after", who="ann")
            assert (store.document("last") or pytest.fail()).body == "after"

    on_a_small_disk(tmp_path, "1m", body)


@linux
def test_a_disk_too_full_for_a_new_store_is_told(tmp_path: Path) -> None:
    def body(mount: Mount) -> None:
        (tmp_path / "ballast").write_bytes(bytes(8192))
        assert refused(tmp_path / "store.sqlite").code == "StoreFull"

    on_a_small_disk(tmp_path, "16k", body)


def test_what_sqlite_says_becomes_a_code_and_advice(tmp_path: Path) -> None:
    for number, code in (
        (sqlite3.SQLITE_BUSY, "StoreLocked"), (sqlite3.SQLITE_BUSY_SNAPSHOT, "StoreLocked"), (sqlite3.SQLITE_FULL, "StoreFull"),
        (sqlite3.SQLITE_IOERR_WRITE, "StoreFull"), (sqlite3.SQLITE_IOERR_READ, "StoreUnavailable"),
        (sqlite3.SQLITE_CORRUPT_INDEX, "StoreCorrupt"), (sqlite3.SQLITE_NOTADB, "StoreCorrupt"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "StoreReadOnly"), (sqlite3.SQLITE_CANTOPEN, "StoreUnavailable"), (0, "StoreUnavailable"),
    ):  # fmt: skip
        error = sqlite3.OperationalError("the reason")
        error.sqlite_errorcode = number  # type: ignore[misc]
        found = database.explained(error, tmp_path)
        assert found.code == code
        assert "the reason" in str(found)
        assert str(tmp_path) in str(found)
