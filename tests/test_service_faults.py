"""The store when the world is wrong: full disks, locks, damage, the future, other programs, and kill -9 at any moment."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from service_worlds import Ledger, contoso, running

from lbcore.errors import ServiceError
from lbcore.service import database
from lbcore.service.model import Service, ServiceState, location
from lbcore.service.plan import Plan, Step, plan
from lbcore.service.progress import Granted, begin, done
from lbcore.service.revisions import Number
from lbcore.service.schema import SCHEMA_VERSION
from lbcore.service.store import Store

FORK = multiprocessing.get_context("fork")


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


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Give a file system of its own in memory; skip the test where nobody may mount one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size}".encode()) != 0:
        pytest.skip(f"needs the right to mount a tmpfs ({errno.errorcode.get(ctypes.get_errno(), '?')})")
    try:
        yield folder
    finally:
        libc.umount2(bytes(folder), 2)


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    with small_disk(tmp_path, "1m") as folder:
        state = filled(folder / "store.sqlite")
        with Store(folder / "store.sqlite") as store:
            code, last = _fill(store)
            assert code == "StoreFull"
            assert store.state() == state
        with Store(folder / "store.sqlite") as store:  # a start on a full disk, too
            assert store.state() == state
            assert (store.document("last") or pytest.fail()).body == last
            with pytest.raises(ServiceError, match="StoreFull"):
                _ = [store.put("ballast", "x" * 50_000, who="ann") for _ in range(50)]
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 32, b"size=8m") == 0  # MS_REMOUNT
        with Store(folder / "store.sqlite") as store:
            store.put("last", "after", who="ann")
            assert (store.document("last") or pytest.fail()).body == "after"


def test_a_disk_too_full_for_a_new_store_is_told(tmp_path: Path) -> None:
    with small_disk(tmp_path, "16k") as folder:
        (folder / "ballast").write_bytes(bytes(8192))
        assert refused(folder / "store.sqlite").code in ("StoreFull", "StoreUnavailable")


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


# ===== kill -9


def wishes(random: random.Random) -> Service:
    names = random.sample(["westeurope", "eastasia", "uksouth", "japaneast"], random.randrange(5))
    return contoso(*names).put(location("westus2", units=random.randrange(1, 5)))


def finished(step: Step, planned: Plan, granted: Granted, now: ServiceState) -> ServiceState:
    return done(now, step, planned, granted, 0.0)


def work(path: Path, seed: int, pipe: Connection) -> None:
    """Save and publish without end, and tell of everything that was acknowledged."""
    chance, ledger = random.Random(seed), Ledger(seed * 10_000)  # no address twice, whoever gives it
    with Store(path, timeout=30.0) as store:
        while True:
            state = store.state()
            wanted = wishes(chance)
            planned = plan(state, wanted)
            operation, state = store.operations.begin(planned, state, who="ann")
            pipe.send(("begin", operation.id, state.etag))
            for step in planned.steps:
                state = store.operations.advance(operation.id, partial(begin, step=step), region=step.name, entry="begun")
                granted = ledger.grant(step, planned)
                done_with = partial(finished, step, planned, granted)
                state = store.operations.advance(operation.id, done_with, region=step.name, entry="done")
                pipe.send(("step", operation.id, state.etag))
                body = chance.randbytes(chance.randrange(20_000))
                pipe.send(("publish", store.revisions.put(body, who="ann").number, hashlib.sha256(body).hexdigest()))
            pipe.send(("finish", operation.id, store.operations.finish(operation.id, "Succeeded").etag))


def received(pipe: Connection) -> list[tuple[str, object, str]]:
    found = []
    try:
        while True:
            found.append(pipe.recv())
    except EOFError:
        return found


def check_after_a_kill(store: Store, told: list[tuple[str, object, str]]) -> None:
    """Look whether everything acknowledged is there, and nothing is half there."""
    state, operation = store.state(), store.operations.running()
    for kind, what, mark in told:
        if kind == "publish":
            assert isinstance(what, Number)
            body = store.revisions.body(what)
            assert body is not None
            assert hashlib.sha256(body).hexdigest() == mark
        else:
            assert state is not None
            assert int(mark.partition("-")[0]) <= state.sequence
    finished = [what for kind, what, _ in told if kind == "finish"]
    assert all((store.operations.get(str(id)) or pytest.fail()).status == "Succeeded" for id in finished)
    if state is None:
        assert not told
        return
    rest = plan(state, state.service)
    if operation is None:
        assert rest.empty
        return
    planned = {step["name"]: step["action"] for key in ("creates", "updates", "deletes") for step in operation.plan[key]}
    assert {step.name: step.action for step in rest.steps}.items() <= planned.items()
    journal = {line.region: line.entry for line in store.operations.journal(operation.id)}
    assert {name for name, entry in journal.items() if entry == "done"} == planned.keys() - {step.name for step in rest.steps}


def resume(store: Store, ledger: Ledger) -> None:
    """Do what is left of an operation, as a primary does that comes back."""
    state, operation = store.state(), store.operations.running()
    if state is None or operation is None:
        return
    rest = plan(state, state.service)
    for step in rest.steps:
        granted = ledger.grant(step, rest)
        store.operations.advance(operation.id, partial(finished, step, rest, granted), region=step.name, entry="done")
    store.operations.finish(operation.id, "Succeeded")


def kill_again_and_again(path: Path, seed: int, rounds: int) -> int:
    """Kill a worker at seeded moments; give how many operations were found unfinished."""
    chance, interrupted, ledger = random.Random(seed), 0, Ledger()
    for number in range(rounds):
        ours, theirs = FORK.Pipe(duplex=False)
        worker = FORK.Process(target=work, args=(path, seed * 1000 + number + 1, theirs))
        worker.start()
        theirs.close()
        if chance.random() < 0.8:
            ours.poll(30)  # else it may not even have opened the file
        time.sleep(chance.random() ** 2 * 0.05)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        told = received(ours)
        with Store(path, timeout=30.0) as store:
            check_after_a_kill(store, told)
            interrupted += store.operations.running() is not None
            resume(store, ledger)
            assert store.operations.running() is None
            state = store.state()
            assert state is None or plan(state, state.service).empty
    return interrupted


@pytest.mark.slow
def test_kill_9_leaves_what_some_plan_said(tmp_path: Path) -> None:
    assert kill_again_and_again(tmp_path / "store.sqlite", seed=0, rounds=25) > 5


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(4))
def test_kill_9_at_a_hundred_moments(tmp_path: Path, seed: int) -> None:
    assert kill_again_and_again(tmp_path / "store.sqlite", seed=seed, rounds=100) > 30
