"""One table in shared memory under load from several processes, any of which may be killed at any moment.

Time is a double in the same shared memory, which only the test moves: nobody waits for three real seconds.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Generator
from multiprocessing import shared_memory
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
import pytest

from lbcore._fast import LatencyTable

pytestmark = pytest.mark.slow

GROUPS, REGIONS, CAPACITY, WORKERS = 400, 5, 8, 4
PATIENCE = 60.0  # real seconds for a worker to get somewhere; only a failure takes that long


class Block:
    """The table's block, the clock, and how many rounds each worker did, counting one outcome in each."""

    def __init__(self, name: str | None = None) -> None:
        size = LatencyTable.nbytes_for(GROUPS, CAPACITY)
        self.memory = shared_memory.SharedMemory(name, create=name is None, size=size + 4096)
        self.table = LatencyTable(GROUPS, REGIONS, region_capacity=CAPACITY, buffer=self.memory.buf[:size])
        tail = self.memory.buf[size : size + 4096]
        self.clock = np.frombuffer(tail, np.float64, 1)
        self.rounds = np.frombuffer(tail, np.uint64, WORKERS, offset=64)

    def advance(self, seconds: float) -> float:
        self.clock[0] += seconds
        return float(self.clock[0])

    def close(self) -> None:
        del self.table, self.clock, self.rounds
        self.memory.close()


def work(name: str, worker: int) -> None:
    """Pick, observe, count and tick as fast as possible, until killed."""
    block, rng = Block(name), np.random.default_rng(worker)
    table, out = block.table, np.empty(64, np.uint16)
    while True:
        groups = rng.integers(0, GROUPS, 64).astype(np.uint32)
        table.pick_many(groups, out)
        if not set(out.tolist()) <= {*range(REGIONS), 65535}:
            return  # an impossible pick: the test sees the process gone
        now = float(block.clock[0])
        regions = rng.integers(0, REGIONS, 64).astype(np.uint16)
        ms = (15 + 50 * ((groups + regions + int(now)) % 3) + rng.uniform(0, 4, 64)).astype(np.float32)
        table.observe_many(groups, regions, ms, now)
        table.tick(now, 37)
        table.count(int(regions[0]), bool(groups[0] & 1))
        block.rounds[worker] += np.uint64(1)


@pytest.fixture
def block() -> Generator[Block]:
    block = Block()
    block.clock[0] = 1000.0
    yield block
    block.close()
    block.memory.unlink()


@pytest.fixture
def workers(block: Block) -> Generator[list[SpawnProcess]]:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(block.memory.name, n), daemon=True) for n in range(WORKERS)]
    for process in processes:
        process.start()
    yield processes
    for process in processes:
        process.kill()
        process.join()


def eventually(what: Callable[[], Any]) -> None:
    """Let the other processes run until `what` holds."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "the others got nowhere"
        time.sleep(0.001)


def run_on(block: Block, workers: list[SpawnProcess], rounds: int = 60) -> None:
    """Let every living worker do so many rounds while time goes on; assert that none gave up."""
    living = [n for n, process in enumerate(workers) if process.exitcode != -9]
    goal = block.rounds[living] + np.uint64(rounds)

    def done() -> bool:
        block.advance(0.1)
        assert all(workers[n].is_alive() for n in living), "a worker met an impossible pick or an exception"
        assert_sound(block.table)
        return bool((block.rounds[living] >= goal).all())

    eventually(done)


def assert_sound(table: LatencyTable) -> None:
    for g in range(0, GROUPS, 7):
        assert -1 <= table.home(g) < REGIONS
        ms, sd = table.estimates(g), table.deviations(g)
        assert np.isfinite(ms).all() and (ms >= 0).all() and (ms < 500).all()
        assert np.isfinite(sd).all() and (sd > 0).all()
        assert sorted(table.rank(g).tolist()) == list(range(REGIONS))


def kill(process: SpawnProcess) -> None:
    process.kill()
    process.join()
    assert process.exitcode == -9


def owner_among(table: LatencyTable, workers: list[SpawnProcess]) -> SpawnProcess | None:
    return next((process for process in workers if process.is_alive() and process.pid == table.owner), None)


def assert_homes_follow_belief(table: LatencyTable, now: float) -> None:
    """A quiet minute later (ageing has looked at every group again) each home is within what hysteresis allows of the best."""
    for later in (0.0, 61.0, 72.0):
        table.tick(now + later)
    for g in range(GROUPS):
        ms, sd, home = table.estimates(g), table.deviations(g), table.home(g)
        best = int(ms.argmin())
        assert ms[home] - ms[best] <= 1.0001 * max(3.0, 0.05 * ms[home], np.hypot(sd[home], sd[best])), g


def test_any_process_may_be_killed_and_the_others_go_on(block: Block, workers: list[SpawnProcess]) -> None:
    """Kill a bystander, then each owner in turn; another takes the table over once the heartbeat is 3 s old."""
    table = block.table
    run_on(block, workers)
    bystander = next(process for process in workers if process.pid != table.owner)
    kill(bystander)
    run_on(block, workers)
    while (owner := owner_among(table, workers)) is not None:
        before = table.counts().copy()
        kill(owner)
        if not any(process.is_alive() for process in workers):
            break
        block.advance(3.5)
        eventually(lambda: owner_among(table, workers))
        run_on(block, workers)
        assert (table.counts() >= before).all()
    assert sum(process.is_alive() for process in workers) == 0
    counted = int(block.rounds.sum())
    assert counted <= int(table.counts().sum()) <= counted + WORKERS, "no outcome was lost; one per process was in flight"
    now = block.advance(4.0)
    assert_homes_follow_belief(table, now)
    assert_sound(table)


def test_while_the_owner_lives_nobody_else_ticks(block: Block) -> None:
    """The owner's pid is another process's, and its heartbeat decides."""
    context = multiprocessing.get_context("spawn")
    owner = context.Process(target=tick_once, args=(block.memory.name,))
    owner.start()
    owner.join()
    table = block.table
    assert table.owner == owner.pid
    table.observe(3, 2, 1.0, 1000.0)
    before = [table.home(g) for g in range(GROUPS)]
    for later in (0.0, 2.9):
        assert table.tick(1000.0 + later) == 0
        assert [table.home(g) for g in range(GROUPS)] == before
        assert table.owner == owner.pid
    for later in (3.1, 13.2):
        table.tick(1000.0 + later)
    assert table.owner == multiprocessing.current_process().pid
    assert table.home(3) == 2


def tick_once(name: str) -> None:
    block = Block(name)
    block.table.tick(float(block.clock[0]))
    block.close()


def test_a_region_down_in_one_process_is_down_in_the_next_pick_of_all(block: Block) -> None:
    block.table.tick(1000.0)
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=take_down, args=(block.memory.name,))
    other.start()
    other.join()
    assert other.exitcode == 0
    assert {block.table.pick(g) for g in range(GROUPS)} == {1}
    assert block.table.counts()[0].sum() == 1


def take_down(name: str) -> None:
    block = Block(name)
    block.table.set_tier(0, 3, 1001.0)
    block.table.count(0, False)
    block.close()
