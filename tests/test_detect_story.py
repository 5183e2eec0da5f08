"""Whole outages as the Balancer would live them: default detector, guard and limit, for services of one, two, three and many regions."""

from __future__ import annotations

import random

import pytest
from detecting import DOWN, UP, probe, say

from lbcore.detect import Guard, default_detector, limit_ejections


class World:
    """Every region gets `rate` requests a second from ten groups and a probe every 5 s; `sick` maps a region to its share of failures."""

    def __init__(self, regions: int, rate: int = 20) -> None:
        self.rng = random.Random(regions)
        self.regions, self.rate = range(regions), rate
        self.guard = Guard(default_detector(rng=random.Random(0)))
        self.sick: dict[int, float] = {}
        self.probes_too = True
        self.now = 0.0
        self.out: frozenset[int] = frozenset()
        self.changes: list[tuple[float, int, bool]] = []

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.now = round(self.now + 0.1, 1)
            for region in self.regions:
                self.step(region)
            self.guard.sweep(self.now)
            self.apply()

    def step(self, region: int) -> None:
        share, gen = self.sick.get(region, 0.01), self.guard.generation(region)
        if round(self.now * 10) % 50 == region % 50:
            probe(self.guard, region, not (self.probes_too and share > 0.5), self.now, gen=gen)
        if region not in self.out:
            for _ in range(self.rate // 10):
                say(self.guard, region, self.rng.random() >= share, self.now, group=self.rng.randrange(10), gen=gen)
        self.apply()

    def apply(self) -> None:
        if not self.guard.changed:
            return
        self.guard.changed.clear()
        down = [region for region in self.regions if self.guard.verdict(region) is DOWN]
        out = limit_ejections(down, len(self.regions), hard={region for region in down if self.guard.hard(region)}, ejected=self.out)
        self.changes += [(self.now, region, region in out) for region in sorted(out ^ self.out)]
        self.out = out


SIZES = [1, 2, 3, 5, 50]


@pytest.mark.parametrize("regions", SIZES)
def test_background_errors_take_nobody_out(regions: int) -> None:
    world = World(regions)
    world.run(60 if regions < 50 else 20)
    assert world.changes == []
    assert all(world.guard.verdict(region) is UP for region in world.regions)


@pytest.mark.parametrize("regions", SIZES)
def test_one_region_dies_is_noticed_within_half_a_second_and_returns_with_its_probes(regions: int) -> None:
    world = World(regions)
    world.run(10)
    world.sick = {0: 1.0}
    world.run(30)
    [(at, region, out)] = world.changes[:1]
    # 20 requests a second: 5 failures are there at once, a share of one half within 1.5 s of a window of 3 s
    assert (region, out) == (0, True) and at <= 11.7
    assert world.guard.hard(0)
    world.sick = {}
    world.run(15)
    assert world.out == frozenset() and {region for _, region, _ in world.changes} == {0}


@pytest.mark.parametrize(("regions", "limit"), [(2, 1), (3, 1), (5, 2), (7, 3)])
def test_statistics_never_take_a_majority(regions: int, limit: int) -> None:
    world = World(regions)
    world.probes_too = False
    world.run(10)
    world.sick = dict.fromkeys(range(regions), 0.9)
    world.run(9)
    assert len(world.out) == limit


@pytest.mark.parametrize("regions", [1, 2, 3, 5])
def test_when_probes_find_all_down_all_are_out_and_all_return(regions: int) -> None:
    # the core fails open then: nothing is eligible, the lowest tier serves
    world = World(regions)
    world.run(10)
    world.sick = dict.fromkeys(range(regions), 1.0)
    world.run(30)
    assert world.out == frozenset(world.regions)
    world.sick = {}
    world.run(15)
    assert world.out == frozenset()


def test_a_region_without_requests_is_found_by_probes_alone() -> None:
    world = World(3, rate=0)
    world.run(10)
    world.sick = {1: 1.0}
    world.run(20)
    [(at, region, out)] = world.changes
    assert (region, out) == (1, True) and 10 + 2 * 5 <= at <= 10 + 3 * 5  # §2.4: N I to (N + 1) I for refused
