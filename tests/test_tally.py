"""Tally: successes that are noted in passing change nothing of what is decided, or when; and the clock behind it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from conftest import Clock
from hypothesis import given
from hypothesis import strategies as st

import lbcore
from lbcore import LatencyTable, PrefixMap, Region
from lbcore._tally import Steady, Tally
from lbcore.detect import AnyOf, Consecutive, PhiAccrual, Pooled, SuccessRate, default_detector

GROUPS = PrefixMap.from_prefixes([(f"10.{n}.0.0/16", n + 1) for n in range(12)])
NAMES = ("eastus", "westeurope", "uksouth")

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ok"), st.integers(0, 1), st.integers(0, 11), st.integers(1, 40)),
        st.tuples(st.just("ok"), st.integers(0, 1), st.integers(0, 11), st.just(600)),
        st.tuples(st.sampled_from(("refused", "timeout")), st.integers(0, 1), st.integers(0, 11), st.integers(1, 12)),
        st.tuples(st.sampled_from(("probe", "probe failed", "wait", "late")), st.integers(0, 1), st.integers(0, 11), st.integers(1, 6)),
        st.tuples(st.sampled_from(("tick", "pass", "pass for long")), st.just(0), st.just(0), st.integers(1, 9)),
    ),
    max_size=40,
)


class World:
    """A Balancer and what it told."""

    def __init__(self, one_by_one: bool) -> None:
        self.pooled = Pooled()
        detector = AnyOf(Consecutive(2, 2), self.pooled, SuccessRate(interval=5.0, volume=50))
        if one_by_one:
            self.pooled.resolution = None  # type: ignore[assignment]
            detector = AnyOf(*detector.detectors)
        self.clock = Clock()
        self.lb = lbcore.Balancer([Region(name) for name in NAMES], GROUPS, detector, self.clock)
        self.told: list[tuple[float, str, str, str]] = []
        self.lb.on_change(lambda change: self.told.append((change.at, change.region, change.after, change.cause)))

    def act(self, what: str, region: int, group: int, count: int) -> None:
        name, client = NAMES[region], f"10.{group}.0.1"
        if what == "tick":
            self.lb.tick()
        elif what.startswith("pass"):
            self.clock.advance(count * (0.04 if what == "pass" else 0.7))
        elif what == "wait":
            self.lb.waiting(name, count, client)
        else:
            for _ in range(count):
                self.report(what, name, client)

    def report(self, what: str, name: str, client: str) -> None:
        self.clock.advance(0.0005)
        if what.startswith("probe"):
            self.lb.report(name, what == "probe", source="probe", cause=None if what == "probe" else "timeout")
        elif what == "late":
            self.lb.report(name, True, client, gen=self.lb.generation(name) - 1)
        else:
            self.lb.report(name, what == "ok", client, cause=None if what == "ok" else what)

    def state(self) -> tuple[Any, ...]:
        self.lb.tick()
        windows = [self.pooled._states[slot].window for slot in sorted(self.pooled._states)]
        counts = [[dict(bucket) for bucket in window.tries] + [window.total, window.failed] for window in windows]
        return self.told, [self.lb.status(name) for name in NAMES], [self.lb.pick(f"10.{g}.0.1").name for g in range(12)], counts


@given(STEPS)
def test_everything_is_decided_as_if_each_success_had_been_reported(steps: list[tuple[str, int, int, int]]) -> None:
    noted, reported = World(False), World(True)
    assert noted.lb.guard.resolution == 4.0 and reported.lb.guard.resolution is None
    for step in steps:
        noted.act(*step)
        reported.act(*step)
        assert noted.told == reported.told
    assert noted.state() == reported.state()


def test_who_wants_each_success_at_its_time_gets_it() -> None:
    assert AnyOf(Pooled(), PhiAccrual(sources=("request",))).resolution is None
    assert AnyOf(Pooled(), Pooled(window=2.0)).resolution is None
    assert AnyOf(Pooled(), SuccessRate()).resolution == default_detector().resolution == 4.0


def tally(clock: Clock, resolution: float | None = 4.0, shared: bool = False) -> tuple[Tally, LatencyTable]:
    table = LatencyTable(GROUPS.groups, 2)
    made = Tally(table, GROUPS, {"eastus": 0, "westeurope": 1}, Steady(clock), resolution, shared)
    made.deadline = clock.now + 100.0
    return made, table


def test_notes_keep_groups_and_the_time_of_the_last(clock: Clock) -> None:
    made, _ = tally(clock)
    assert not made.success("eastus") and made.take(0) is None  # not calm yet
    made.calm(0, True)
    for number in range(30):
        assert made.success(Region("eastus") if number % 2 else "eastus", f"10.{number % 12}.0.1")
        clock.advance(0.001)
    groups, last = made.take(0) or ([], 0.0)
    assert groups == [number % 12 + 1 for number in range(30)] and last == pytest.approx(1000.029)
    assert made.take(0) is None and made.take(1) is None and made.take(70_000) is None


def test_what_is_not_noted(clock: Clock) -> None:
    made, _ = tally(clock)
    made.calm(0, True, 3)
    assert made.success("eastus", None, 3) and not made.success("eastus", None, 2)
    assert not made.success("westeurope") and not made.success("nowhere")
    clock.advance(0.25)
    assert not made.success("eastus")  # another step of time: the notes are due
    assert made.take(0) == ([0], 1000.0) and made.success("eastus")
    made.calm(0, False)
    assert not made.success("eastus")
    with pytest.raises(ValueError):
        made.success("eastus", "no address")
    off, _ = tally(clock, None)
    off.calm(0, True)
    assert not off.success("eastus")


def test_notes_are_bounded_and_the_deadline_is_kept(clock: Clock) -> None:
    made, _ = tally(clock, 0.0)
    made.calm(0, True)
    assert sum(made.success("eastus") for _ in range(2000)) == 512
    made.take(0)
    assert made.success("eastus")
    clock.advance(100.1)
    assert not made.success("eastus")


def test_a_shared_table_is_counted_in(clock: Clock) -> None:
    made, table = tally(clock, shared=True)
    for number in range(24):
        assert made.success("westeurope", f"10.{number % 12}.0.1")
    expected = Counter(table.spread(group) for group in range(1, 13))
    assert table.counts()[1, :, 1].tolist() == [2 * expected[slot] for slot in range(8)]
    table.set_tier(1, 2, 0.0)
    table.set_tier(1, 0, 1.0)
    assert made.success("westeurope", None, 0) and table.counts()[1].sum() == 24  # late: from before the recovery
    assert made.success("westeurope", None, 1) and table.counts()[1].sum() == 25


@pytest.mark.parametrize("shared", [False, True])
def test_an_answer_is_a_sample_and_a_success(shared: bool, clock: Clock) -> None:
    block = bytearray(LatencyTable.nbytes_for(GROUPS.groups, 8)) if shared else None
    lb = lbcore.Balancer([Region(name) for name in NAMES], GROUPS, clock=clock, buffer=block)
    same = lbcore.Balancer([Region(name) for name in NAMES], GROUPS, clock=clock)
    for number in range(50):
        lb.answered("eastus", 10.0 + number, f"10.{number % 3}.0.1", gen=0)
        same.observe("eastus", 10.0 + number, f"10.{number % 3}.0.1")
        same.report("eastus", True, f"10.{number % 3}.0.1", gen=0)
        clock.advance(0.03)
    lb.tick()
    same.tick()
    assert lb.stats()["samples"] == same.stats()["samples"] == 50
    assert [lb.table.estimates(group).tolist() for group in range(13)] == [same.table.estimates(group).tolist() for group in range(13)]
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError):
            lb.answered("eastus", wrong, "10.0.0.1")
    with pytest.raises(ValueError):
        lb.answered("eastus", 1.0, "no address")
    with pytest.raises(lbcore.UnknownRegionError):
        lb.answered("nowhere", 1.0)
    lb.answered("East US", 1.0)
    assert lb.stats()["samples"] == 51


def test_a_clock_that_jumps_back_stands_still() -> None:
    times = iter([100.0, 100.0, 99.5, 50.0, 51.0])
    clock = Steady(lambda: next(times))
    assert [clock() for _ in range(4)] == [100.0, 99.5, 99.5, 100.5]
