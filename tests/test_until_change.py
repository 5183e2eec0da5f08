"""`until_change` promises: no probe changes a verdict before the time that was told. Requests and the operator may, at any moment."""

from __future__ import annotations

import random

import pytest
from conftest import Clock
from detecting import DOWN, UP, Scripted, probe, say

from lbcore import Balancer, Region
from lbcore.detect import AnyOf, Consecutive, Detector, Guard, HoldDown, PhiAccrual, Pooled, Quorum
from lbcore.dns.answers import Root
from lbcore.dns.profile import Profile
from lbcore.dns.route import Horizon, compile_routes, foresee

INTERVAL, TIMEOUT = 5.0, 2.0
MAKERS = {
    "consecutive": Consecutive,
    "azure": lambda: Consecutive(3, 1),
    "at once": lambda: Consecutive(0, 1),
    "default": lambda: AnyOf(Consecutive(), Pooled()),
    "quorum": lambda: Quorum(Consecutive),
    "guarded": lambda: Guard(AnyOf(Consecutive(), Pooled())),
    "held down": lambda: Guard(Consecutive(0, 1), hold_down=lambda: HoldDown(transitions=1, base=30.0)),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("make", MAKERS)
def test_no_probe_breaks_the_promise(make: str, seed: int) -> None:
    rng, detector = random.Random(seed), MAKERS[make]()
    due = {vantage: rng.uniform(0, INTERVAL) for vantage in ("v", "w", "x")[: rng.randint(1, 3)]}
    for vantage in due:
        probe(detector, 0, True, 0.0, vantage=vantage)  # a vantage that was never heard of is promised nothing
    reports = [(start + k * INTERVAL + rng.uniform(0, TIMEOUT), vantage) for vantage, start in due.items() for k in range(400)]
    earliest, verdict, changes, good, longest = 0.0, detector.verdict(0), 0, 0.9, 0.0
    for now, vantage in sorted(reports):
        good = rng.choice((0.05, 0.5, 0.97)) if rng.random() < 0.05 else good
        probe(detector, 0, rng.random() < good, now, vantage=vantage)
        detector.sweep(now)
        changed = (detector.verdict(0) is DOWN) != (verdict is DOWN)
        assert not changed or now >= earliest
        changes, verdict = changes + changed, detector.verdict(0)
        told = detector.until_change(0, now, interval=INTERVAL, slack=TIMEOUT)
        assert told is not None
        earliest, longest = max(earliest, now + told) if not changed else now + told, max(longest, told)
    assert changes > 3
    assert longest > 0 or make == "at once"


def test_a_detector_that_cannot_tell_tells_nothing() -> None:
    for detector in (PhiAccrual(), Scripted({0: UP})):
        assert Guard(detector).until_change(0, 0.0, interval=5.0, slack=2.0) is None
    assert Consecutive(sources=("probe", "request")).until_change(0, 0.0, interval=5.0, slack=2.0) is None
    assert AnyOf(PhiAccrual(), Consecutive(2)).until_change(0, 0.0, interval=5.0, slack=2.0) == 8.0


def test_a_detector_that_raises_tells_nothing() -> None:
    class Raises(Consecutive):
        def until_change(self, region: int, now: float, *, interval: float, slack: float) -> float | None:
            raise RuntimeError

    guard = Guard(Raises())
    assert guard.until_change(0, 0.0, interval=5.0, slack=2.0) is None


def test_an_ejection_ends_at_its_time_or_by_probes() -> None:
    detector: Detector = Pooled()
    for group in range(1, 8):
        say(detector, 0, False, 0.0, group=group)
    assert detector.verdict(0) is DOWN
    assert isinstance(detector, Pooled)
    assert detector.until_change(0, 0.0, interval=5.0, slack=2.0) == 3.0  # two successes in a row, the first of them now
    assert detector.until_change(1, 0.0, interval=5.0, slack=2.0) is None


def test_the_horizon_holds_whole_seconds_of_every_region(clock: Clock) -> None:
    lb = Balancer([Region("westeurope"), Region("eastus", always_serve=True), Region("uksouth")], clock=clock)
    program = compile_routes([Root(Profile(ttl_min=5))], lb, horizon=Horizon(lb.table.region_capacity))
    horizon = program.horizon
    assert horizon is not None
    assert horizon[0] == 0  # nothing is promised before it was asked for
    foresee(program, lb)
    assert [horizon[slot] for slot in range(3)] == [Horizon.NEVER] * 3  # nobody probes
    lb.expect_probes(5.0, 2.0)
    lb.report("westeurope", True, source="probe")
    lb.report("uksouth", False, source="probe", cause="refused")
    foresee(program, lb)
    assert [horizon[slot] for slot in range(3)] == [13, Horizon.NEVER, 8]
    clock.now += 4.5
    foresee(program, lb)
    assert horizon[0] == 8
