"""Processes that share a table: what workers meet, the owner judges at its next look, and all are told at theirs."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import shared_memory

import numpy as np
import pytest
from conftest import Clock
from hypothesis import given
from hypothesis import strategies as st

import lbcore
from lbcore import LatencyTable, PrefixMap, Region
from lbcore.detect import AnyOf, Consecutive, Pooled

GROUPS = PrefixMap.from_prefixes([(f"10.{n}.0.0/16", n + 1) for n in range(40)])
NAMES = ("eastus", "westeurope", "uksouth")
SIZE = LatencyTable.nbytes_for(GROUPS.groups, 8)
PATIENCE = 60.0  # real seconds; only a failure takes that long


class Process:
    """A Balancer as a process of its own pid has it, over a block shared with others."""

    def __init__(self, pid: int, block: object, clock: Clock) -> None:
        self.pid, self.pooled, self.told = pid, Pooled(), list[str]()
        with self:
            detector = AnyOf(Consecutive(2, 2), self.pooled)
            self.lb = lbcore.Balancer([Region(name) for name in NAMES], GROUPS, detector, clock, buffer=block)
        self.lb.on_change(lambda change: self.told.append(f"{change.region} {change.after}"))

    def __enter__(self) -> lbcore.Balancer | None:
        self._getpid = os.getpid
        os.getpid = lambda: self.pid
        return getattr(self, "lb", None)

    def __exit__(self, *error: object) -> None:
        os.getpid = self._getpid

    def report(self, outcomes: str, region: str = "eastus", client: str = "10.1.0.1", gen: int | None = None) -> None:
        """Report a string of outcomes: . succeeded, x refused, t timeout."""
        with self:
            for each in outcomes:
                cause = {".": None, "x": "refused", "t": "timeout"}[each]
                self.lb.report(region, each == ".", client, cause=cause, gen=gen)

    def look(self) -> None:
        with self:
            self.lb.look()

    def tick(self) -> None:
        with self:
            self.lb.tick()


@pytest.fixture
def processes(clock: Clock) -> list[Process]:
    """Give an owner and two workers; each has ticked."""
    block = mmap.mmap(-1, SIZE)
    made = [Process(pid, block, clock) for pid in (1, 2, 3)]
    for process in made:
        process.tick()
    assert made[0].lb.table.owner == 1
    return made


def test_what_workers_meet_is_judged_at_the_owners_next_look_and_told_at_theirs(processes: list[Process]) -> None:
    owner, one, two = processes
    one.report("." * 2000)
    owner.tick()
    one.report("xxxxx")
    two.report("xxxx")
    owner.look()
    assert owner.lb.status("eastus") == "up"
    two.report("x")
    owner.look()
    assert [each.lb.status("eastus") for each in processes] == ["ejected"] * 3
    assert [each.told for each in processes] == [["eastus ejected"], [], []]
    for each in processes:
        for _ in range(3):
            each.look()
            each.tick()
    assert [each.told for each in processes] == [["eastus ejected"]] * 3


def test_a_worker_does_not_judge(processes: list[Process]) -> None:
    _, one, _ = processes
    one.report("x" * 100)
    one.look()
    one.tick()
    assert one.lb.status("eastus") == "up" and one.told == []


STEPS = st.lists(st.tuples(st.sampled_from((0, 1, 2)), st.sampled_from((".", "x", "t")), st.integers(1, 6), st.booleans()), max_size=30)


@given(STEPS)
def test_the_owner_ejects_for_runs_that_were_and_for_every_run_that_is(steps: list[tuple[int, str, int, bool]]) -> None:
    """Of what happened between two looks the order is lost, but not what was refused since the last success anywhere."""
    block, clock = mmap.mmap(-1, SIZE), Clock()
    processes = [Process(pid, block, clock) for pid in (1, 2, 3)]
    owner = processes[0]
    owner.report("." * 500)
    owner.tick()
    run = longest = 0
    for worker, outcome, count, looks in steps:
        processes[worker].report(outcome * count, client=f"10.{worker}.0.1")
        run = 0 if outcome == "." else run + count * (outcome == "x")
        longest = max(longest, run)
        assert owner.lb.table.refused(0) == run
        if looks and outcome != ".":  # a success is no news
            owner.look()
            out = owner.lb.status("eastus") != "up"
            assert out if run >= 10 else not out or longest >= 10
            if out:
                return
            counted = owner.pooled._states[0].run
            assert (counted.length if counted else 0) == run


def test_what_came_between_two_looks_is_judged_by_its_share(processes: list[Process]) -> None:
    """A third failed; no order of the reports may look like an outage."""
    owner, one, two = processes
    for _ in range(40):
        for group in range(8):
            one.report("x..", client=f"10.{group}.0.1")
            two.report(".t.", client=f"10.{group + 8}.0.1")
        owner.look()
    assert owner.lb.status("eastus") == "up"


def test_refusals_that_others_met_make_no_run(processes: list[Process]) -> None:
    owner, one, _ = processes
    one.report("." * 500)
    with one:
        for _ in range(50):
            one.lb.report("eastus", False, "10.1.0.1", cause="refused", vantage="beacon")
    owner.look()
    assert owner.lb.status("eastus") == "up" and owner.lb.table.counts()[0, :, 0].sum() == 50


def test_causes_and_counts_arrive(processes: list[Process]) -> None:
    owner, one, _ = processes
    for group in range(30):
        one.report("t", client=f"10.{group}.0.1")
    owner.look()
    assert owner.lb.status("eastus") == "ejected" and "(timeout)" in owner.lb.guard.cause(0)


def test_late_reports_from_before_a_recovery_are_dropped(processes: list[Process], clock: Clock) -> None:
    owner, one, _ = processes
    gen = one.lb.generation("eastus")
    one.report("." * 500 + "x" * 10, gen=gen)
    owner.look()
    for _ in range(2):
        with owner:
            owner.lb.report("eastus", True, source="probe", gen=owner.lb.generation("eastus"))
    assert owner.lb.status("eastus") == "up" and one.lb.generation("eastus") == gen + 1
    one.report("x" * 50, gen=gen)
    owner.look()
    assert owner.lb.status("eastus") == "up"
    one.report("." * 500 + "x" * 10, gen=gen + 1)
    owner.look()
    assert owner.lb.status("eastus") == "ejected"


def test_who_waits_is_added_up_over_the_workers(processes: list[Process], clock: Clock) -> None:
    owner, one, two = processes
    for step in range(30):
        one.report("." * 50, client=f"10.{step}.0.1")
        clock.advance(0.05)
        owner.tick()
    clock.advance(0.3)
    for worker, groups in ((one, (1, 2, 3)), (two, (4, 5))):
        with worker:
            for group in groups:
                worker.lb.waiting("eastus", 1, f"10.{group}.0.1")
            worker.lb.tick()
        owner.look()
        assert owner.lb.status("eastus") == ("ejected" if worker is two else "up")
    assert "5 requests wait" in owner.lb.guard.cause(0)


@pytest.mark.parametrize("how", ["waits", "fails"])
@pytest.mark.parametrize("others", [False, True])
def test_when_all_who_use_a_region_are_one_group_their_path_is_the_region(
    processes: list[Process], clock: Clock, how: str, others: bool
) -> None:
    """Paths are not excluded in a shared table; who is alone must not wait for the probes."""
    owner, one, two = processes
    for _ in range(30):
        one.report("." * 20)
        clock.advance(0.05)
        owner.tick()
    if others:
        two.report("...", client="10.5.0.1")
    clock.advance(0.3)
    for _ in range(8):
        if how == "fails":
            one.report("t" * 100)
        with one:
            one.lb.waiting("eastus", 9 if how == "waits" else 0, "10.1.0.1")
            one.lb.tick()
        owner.tick()
    assert owner.lb.status("eastus") == ("up" if others else "ejected")
    for _ in range(110):
        clock.advance(0.1)
        owner.tick()
    assert owner.lb.status("eastus") == "up"


def test_who_waits_is_a_gauge(processes: list[Process], clock: Clock) -> None:
    owner, one, two = processes
    table = owner.lb.table

    def told() -> int:
        return int(table.waiting(clock.now)[0].sum())

    for _ in range(3):
        with one:
            one.lb.waiting("eastus", 3, "10.1.0.1")
            one.lb.waiting("eastus", 4, "10.2.0.1")
            one.lb.tick()
        with two:
            two.lb.waiting("eastus", 70_000, "10.2.0.1")
            two.lb.tick()
        assert told() == 7 + 65535
    with two:
        two.lb.waiting("eastus", 0, "10.2.0.1")
        two.lb.tick()
    assert told() == 7
    clock.advance(0.9)
    with one:
        one.lb.waiting("eastus", 5, "10.2.0.1")
        one.lb.tick()
    assert told() == 8
    clock.advance(0.5)
    one.tick()  # what was not repeated is forgotten
    assert told() == 5
    clock.advance(1.0)
    assert told() == 0  # and so is a worker that says nothing


def test_seats_of_those_who_say_who_waits() -> None:
    table = LatencyTable(4, 2, region_capacity=2, buffer=bytearray(LatencyTable.nbytes_for(4, 2)))
    counts, real = np.full((2, 8), 1), os.getpid
    try:
        for now in (10.0, 10.5):
            for pid in range(1, 70):
                os.getpid = lambda pid=pid: pid  # type: ignore[misc]
                assert table.tell_waiting(counts, now) is (pid <= 64)
        assert table.waiting(10.5).tolist() == [[64] * 8] * 2
        assert table.tell_waiting(counts, 14.0) and table.waiting(14.0).tolist() == [[1] * 8] * 2
    finally:
        os.getpid = real
    with pytest.raises(ValueError):
        table.tell_waiting(np.zeros((3, 8), int), 1.0)
    with pytest.raises(ValueError):
        table.tell_waiting(np.zeros((2, 7), int), 1.0)


def test_what_the_operator_does_in_one_process_is_told_in_all(processes: list[Process]) -> None:
    owner, one, two = processes
    with one:
        one.lb.disable("uksouth")
    with owner:
        owner.lb.drain("westeurope")
    for each in processes:
        each.look()
        each.look()
        each.tick()
        assert sorted(each.told) == ["uksouth disabled", "westeurope draining"]


def test_without_news_there_is_nothing_to_look_at(processes: list[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    owner, one, _ = processes
    owner.look()
    one.report("." * 50)
    monkeypatch.setattr(owner.lb, "_judge_shared", lambda now: pytest.fail("judged"))
    owner.look()
    alone = lbcore.Balancer([Region("eastus")])
    alone.report("eastus", False, cause="refused")
    alone.look()
    assert not alone.shared and owner.lb.shared


# ---- processes


@contextmanager
def a_block() -> Iterator[shared_memory.SharedMemory]:
    memory = shared_memory.SharedMemory(create=True, size=SIZE + 64)
    try:
        yield memory
    finally:
        memory.close()
        memory.unlink()


def work(name: str, index: int) -> None:
    """Report successes; once told, only refused connections; note when `on_change` told of the region that is gone."""
    memory = shared_memory.SharedMemory(name)
    assert memory.buf is not None
    lb = lbcore.Balancer([Region(region) for region in NAMES], GROUPS, buffer=memory.buf[:SIZE])
    flags = memory.buf[SIZE:]
    lb.on_change(lambda change: flags.__setitem__(8 + index, 1 if (change.region, change.after) == ("eastus", "ejected") else 2))
    number = 0
    while not flags[8 + index]:
        number += 1
        dead = bool(flags[0])
        lb.report("eastus", not dead, f"10.{number % 40}.0.1", cause="refused" if dead else None)
        if number % 100 == 0:
            flags[16 + index] = 1
            lb.tick()
        lb.look()
        time.sleep(0.0005)
    while not flags[1]:
        time.sleep(0.001)
    os._exit(0)


def until(condition: Callable[[], object], act: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        act()
        time.sleep(0.002)


@pytest.mark.slow
def test_the_owner_ejects_what_two_real_workers_are_refused_by() -> None:
    with a_block() as memory:
        assert memory.buf is not None
        lb = lbcore.Balancer([Region(region) for region in NAMES], GROUPS, buffer=memory.buf[:SIZE])
        lb.tick()
        flags, changes = memory.buf[SIZE:], list[str]()
        lb.on_change(lambda change: changes.append(f"{change.region} {change.after}: {change.cause}"))
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=work, args=(memory.name, index), daemon=True) for index in range(2)]
        for worker in workers:
            worker.start()
        until(lambda: flags[16] and flags[17], lb.tick)
        assert changes == [] and lb.table.owner == os.getpid()
        flags[0] = 1
        until(lambda: changes, lb.look)  # looks only: no tick is needed
        until(lambda: flags[8] and flags[9], lb.tick)
        assert (flags[8], flags[9]) == (1, 1) and changes[0].startswith("eastus ejected: refused")
        flags[1] = 1
        for worker in workers:
            worker.join(PATIENCE)
        flags.release()
        del lb
