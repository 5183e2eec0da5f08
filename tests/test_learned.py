"""What a Balancer knows outlives it: latencies, regions that are out, hold-downs, and how far the detector has counted."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lbcore import Balancer, Region
from lbcore.detect import Consecutive, Guard, HoldDown
from lbcore.learned import Learned
from lbcore.sense.checks import Streak

REGIONS = [Region("westeurope"), Region("eastus"), Region("southeastasia")]


class World:
    """A Balancer whose regions are probed every second, and again and again another one that goes on from it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.streaks: dict[str, Streak] = {}
        self.lb = self.made()

    def made(self, regions: list[Region] = REGIONS) -> Balancer:
        guard = Guard(Consecutive(2, 2), suspect=None, hold_down=lambda: HoldDown(base=30.0))
        return Balancer(regions, detector=guard, clock=lambda: self.now)

    def probe(self, ok: bool, name: str = "eastus") -> None:
        self.now += 1
        last = self.streaks.get(name, Streak(ok, 0, None))
        self.streaks[name] = Streak(ok, 1 + (last.times if last.ok == ok else 0), None if ok else "timeout")
        self.lb.report(name, ok, cause=None if ok else "timeout", source="probe")
        self.lb.tick()

    def renew(self, regions: list[Region] = REGIONS) -> list[str]:
        """Go on with another one; gives what it told of the regions meanwhile."""
        learned, self.lb = Learned.of(self.lb, self.streaks), self.made(regions)
        learned.give(self.lb)
        told: list[str] = []
        self.lb.on_change(lambda change: told.append(f"{change.region} {change.after}"))
        self.lb.tick()
        return told


@given(st.lists(st.booleans(), max_size=40), st.sets(st.integers(0, 40)))
def test_whoever_goes_on_judges_as_the_last_one_would_have(outcomes: list[bool], changes: set[int]) -> None:
    """The statuses are the same, whenever and however often one gives way to another."""
    alone, handed = World(), World()
    for world in (alone, handed):
        world.probe(True)  # as at a start: the first round is over before anybody serves
    for step, ok in enumerate(outcomes):
        if step in changes:
            assert handed.renew() == []
        alone.probe(ok)
        handed.probe(ok)
        assert handed.lb.status("eastus") == alone.lb.status("eastus"), (step, outcomes)


def test_a_region_that_flaps_stays_out_for_as_long_as_it_would_have() -> None:
    world = World()
    for ok in [True, *([False] * 3 + [True] * 2) * 2, *[False] * 3]:
        world.probe(ok)
    for _ in range(12):
        world.probe(True)
        world.renew()
    assert world.lb.status("eastus") == "down"
    for _ in range(20):
        world.probe(True)
    assert world.lb.status("eastus") == "up"


def test_regions_may_stand_elsewhere_and_those_that_are_gone_are_forgotten() -> None:
    world = World()
    for ok in (True, False, False, False):
        world.probe(ok)
    world.lb.observe("southeastasia", 12.0)
    assert world.renew([REGIONS[2], Region("westus2"), REGIONS[1]]) == []
    assert [world.lb.status(name) for name in ("southeastasia", "westus2", "eastus")] == ["up", "up", "down"]
    assert world.lb.table.estimates(0)[0] < 20
    assert world.renew([REGIONS[0]]) == []


def test_what_goes_down_while_the_other_one_is_made_is_down_there_and_what_came_back_stays() -> None:
    world = World()
    for ok in (True, False, False, False):
        world.probe(ok)
        world.probe(True, "southeastasia")
    learned, before, made = Learned.of(world.lb, world.streaks), world.lb, world.made()
    learned.give(made)
    for _ in range(2):
        world.now += 1
        made.report("eastus", True, source="probe")
    for _ in range(3):
        world.probe(False, "southeastasia")
    learned.catch_up(before, made)
    assert [made.status(name) for name in ("eastus", "southeastasia", "westeurope")] == ["up", "down", "up"]


def test_what_the_operator_took_out_is_known_to_be_down_when_it_is_back() -> None:
    world = World()
    for ok in (True, False, False, False):
        world.probe(ok)
    world.lb.disable("eastus")
    world.renew()
    assert world.lb.status("eastus") == "down"


def test_a_state_that_cannot_be_used_costs_only_the_latencies(tmp_path: Path) -> None:
    lb = World().lb
    Learned(b"nonsense", {"eastus": "timeout", "nowhere": "refused"}, {}, {"nowhere": Streak(True, 3, None)}).give(lb)
    assert lb.status("eastus") == "down" and lb.status("westeurope") == "up"
