"""The compiled table equals the brute-force model of `model.py`, bit for bit, whatever happens to both.

Two sources of operations: Hypothesis, which shrinks what it finds, and a seeded driver, which covers more states. Each
run of the driver draws its own mix of operations (swarm testing, Groce et al., ISSTA 2012), because a mix of everything
hides what only a long stretch of one thing shows. `LBCORE_ORACLE_SEED` moves the driver to other states.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model import ModelTable

from lbcore._fast import LatencyTable

COUNTS = (1, 2, 3, 63, 64, 65, 200, 500)
SEED = int(os.environ.get("LBCORE_ORACLE_SEED", "1"))
REFUSALS = (IndexError, ValueError, OverflowError)
Op = tuple[Any, ...]


def outcome(call: Callable[..., Any], args: Sequence[Any]) -> Any:
    """Give what the call returned, or the kind of its refusal."""
    try:
        return call(*args)
    except REFUSALS as refusal:
        return next(kind for kind in REFUSALS if isinstance(refusal, kind))


def bits(values: Any) -> Any:
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


class Twins:
    """A table and its model, given the same operations and compared."""

    def __init__(self, groups: int, regions: int, now: float, **options: Any) -> None:
        self.table, self.model = LatencyTable(groups, regions, **options), ModelTable(groups, regions, **options)
        self.now, self.compared, self.options = now, 0, options
        self.all = np.arange(groups, dtype=np.uint32)
        self.out = np.empty(groups, np.uint16)

    def apply(self, op: Op) -> None:
        """Do one operation on both: (name, *arguments), NOW standing for the clock; ("wait", s) moves the clock and ticks."""
        name, *args = op
        if name == "restart":
            return self.restart(*args)
        if name == "wait":
            self.now += args[0]
            name, args = "tick", [NOW]
        args = [self.now if arg is NOW else arg for arg in args]
        mine, theirs = (outcome(getattr(one, name), args) for one in (self.table, self.model))
        assert mine == theirs, op
        if name == "tick":
            self.compare()

    def restart(self, age: float) -> None:
        """Go on with new ones that know only what the old ones saved `age` seconds ago."""
        old, shape = (self.table, self.model), (self.model.groups, self.model.regions)
        options = self.options | {"region_capacity": self.model.region_capacity}
        self.table, self.model = LatencyTable(*shape, **options), ModelTable(*shape, **options)
        for before, after in zip(old, (self.table, self.model), strict=True):
            after.restore(before.snapshot(self.now), self.now, age)
        self.compare()

    def compare(self) -> None:
        """Compare everything that a caller can read, for every group."""
        table, model = self.table, self.model
        groups, used = range(model.groups), model.configured[: model.regions]
        assert np.array_equal(table.eligible(), model.eligible())
        assert table.fail_open == model.fail_open
        assert [table.home(g) for g in groups] == model.homes.tolist()
        self.compare_picks()
        for g in groups:
            assert np.array_equal(bits(table.estimates(g))[used], bits(model.estimates(g))[used]), g
            assert np.array_equal(bits(table.deviations(g))[used], bits(model.deviations(g))[used]), g
        for g in {0, model.groups - 1, int(self.now) % model.groups}:
            assert table.rank(g).tolist() == model.rank(g), g
        self.compared += model.groups

    def compare_picks(self) -> None:
        expected = self.model.picks()
        self.table.pick_many(self.all, self.out)
        assert np.array_equal(np.where(self.out == 65535, -1, self.out.astype(int)), expected)
        probe = int(self.now * 7) % self.model.groups
        assert self.table.pick(probe) == expected[probe]
        count = -(-self.model.region_capacity // 64)
        words = np.array([0x9E3779B97F4A7C15 * (probe + 1) >> n & 2**64 - 1 for n in range(count)], np.uint64)
        assert self.table.pick_in(probe, words) == self.model.pick_in(probe, words.tolist())


NOW = object()


# -- Hypothesis --------------------------------------------------------------------------------------------------


def index(count: int) -> st.SearchStrategy[int]:
    """Give an index below `count`, sometimes one past the end."""
    return st.integers(0, 30).map(lambda i: count if i == 30 else i % count)


def operations(groups: int, regions: int) -> st.SearchStrategy[Op]:
    """Give one operation; its numbers include NaN, infinities, ties and negatives, its waits go backwards too."""
    group, region, clock = index(groups), index(regions), st.just(NOW)
    near = st.sampled_from([0.0, 20.0, 22.9, 23.0, 23.1, 29.0, 29.5, 40.0, 60.0, 80.0, 300.0])
    ms = near | near | near | st.floats(0, 2000, width=32) | st.sampled_from([float("nan"), float("inf"), -1.0, 1e39])
    sd = st.sampled_from([0.5, 2.0, 28.0, 28.0, 100.0]) | st.floats(0.125, 200, width=32) | st.sampled_from([0.0, -1.0, float("nan")])
    seconds = st.sampled_from([1 / 64, 0.1, 1.0, 3.0, 4.0, 9.9, 10.0, 10.0, 31.0, 300.0, 1e5, 3.4e7, -0.5, -5.0, -1e4])
    kinds = [
        *[st.tuples(st.just("observe"), group, region, ms, clock)] * 6,
        *[st.tuples(st.just("wait"), seconds)] * 6,
        st.just(("tick", NOW)),
        st.tuples(st.just("seed"), group, region, ms, sd),
        st.tuples(st.just("set_tier"), region, st.sampled_from([0, 0, 0, 1, 2, 3, 4]), clock | clock | st.just(float("nan"))),
        st.tuples(st.sampled_from(["set_enabled", "set_synced"]), region, st.sampled_from([True, True, False])),
        st.tuples(st.just("set_draining"), region, st.sampled_from([True, False, False])),
        st.tuples(st.just("exclude"), group, region, st.booleans()),
        st.tuples(st.just("set_penalty"), region, ms),
        st.tuples(st.just("set_share"), region, st.floats(0, 1) | st.sampled_from([1.0, -0.1, 1.5, float("nan")])),
        st.just(("add_region",)),
        st.tuples(st.just("remove_region"), region),
        st.tuples(st.just("restart"), st.sampled_from([0.0, 2.5, 1800.0])),
    ]
    return st.one_of(kinds)


@st.composite
def stories(draw: st.DrawFn) -> tuple[dict[str, Any], float, list[Op]]:
    regions = draw(st.sampled_from([1, 2, 3, 3, 4, 7, 63, 64, 65]))
    shape = {"groups": draw(st.integers(1, 9)), "regions": regions, "region_capacity": regions + draw(st.integers(0, 3))}
    if draw(st.booleans()):
        shape |= {"estimator": draw(st.sampled_from(["prior_ewma", "ewma"])), "tau": 30.0}
    start = draw(st.sampled_from([0.0, 1.0, 1e6, 67108863.9, -3.0]))
    acted_on = min(3, regions) if draw(st.booleans()) else shape["region_capacity"]
    return shape, start, draw(st.lists(operations(shape["groups"], acted_on), min_size=20, max_size=120))


def live(story: tuple[dict[str, Any], float, list[Op]]) -> None:
    shape, start, ops = story
    twins = Twins(now=start, **shape)
    for op in ops:
        twins.apply(op)
        twins.compare_picks()
    twins.apply(("tick", NOW))


RELAXED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
SMALL = os.environ.get("LBCORE_PROFILE") == "ci"


@settings(max_examples=80, suppress_health_check=RELAXED)
@given(stories())
def test_no_sequence_of_operations_tells_table_and_model_apart(story: tuple[dict[str, Any], float, list[Op]]) -> None:
    live(story)


@pytest.mark.heavy
@settings(max_examples=1000 if SMALL else 10_000, suppress_health_check=RELAXED, derandomize=False)
@given(stories())
def test_no_sequence_of_ten_thousand_tells_table_and_model_apart(story: tuple[dict[str, Any], float, list[Op]]) -> None:
    live(story)


# -- the seeded driver -------------------------------------------------------------------------------------------

WAITS = (0.0, 1 / 64, 0.1, 0.1, 1.0, 1.0, 2.5, 5.0, 10.0, 31.0, 61.0, 900.0)
RARE_WAITS = (86400.0, 4e7, -0.3, -20.0)


class Swarm:
    """Random operations on a world of nearly tied latencies, in a mix of its own."""

    def __init__(self, rng: random.Random, twins: Twins) -> None:
        self.rng, self.twins = rng, twins
        samples, bits = [self.nudge, self.observe, self.better, self.worse, self.seed], [self.tier, self.flag, self.repair]
        self.kinds: list[Callable[[], Op]] = [*samples, *bits, self.exclude, self.penalty, self.share, self.grow, self.restart]
        self.weights = [rng.choice([0, 0, 1, 4, 20]) for _ in self.kinds]
        self.weights[0] += 1
        self.weights[7] += max(self.weights[5:7])  # what breaks regions is balanced by what repairs them
        self.level = [rng.uniform(5, 60) for _ in range(twins.model.region_capacity)]
        self.rare, self.batch = rng.choice([0, 0, 0.02]), rng.choice([1, 4, 40])
        self.waits = rng.choice([WAITS, (0.1,), (0.1, 1.0, 5.0, 10.1)])
        self.hot = [rng.randrange(twins.model.groups) for _ in range(rng.choice([1, 3, 30]))]

    def group(self) -> int:
        """Give a group, mostly one of a few: what takes several steps in one group happens there."""
        return self.rng.choice(self.hot) if self.rng.random() < 0.9 else self.rng.randrange(self.twins.model.groups)

    def region(self, g: int) -> int:
        """Give any region, or rather one that matters to the group: its home or its pick."""
        choice = self.rng.choice([self.twins.model.homes[g], self.twins.model.homes[g], -1])
        return int(choice) if choice >= 0 else self.rng.randrange(self.twins.model.regions)

    def observe(self) -> Op:
        g = self.group()
        r = self.rng.randrange(self.twins.model.regions)
        return ("observe", g, r, self.level[r] * self.rng.lognormvariate(0, 0.1), NOW)

    def nudge(self) -> Op:
        """A sample about as long as the home's estimate: what comes near the threshold, from both sides, without a mark."""
        g, m = self.group(), self.twins.model
        r = self.region(g)
        off = self.rng.choice([self.rng.uniform(-9, 9), self.rng.uniform(-3, 3), self.rng.uniform(3, 20)])
        return ("observe", g, r, max(0.0, float(m.x[g, max(m.homes[g], 0)]) + off), NOW)

    def better(self) -> Op:
        g = self.group()
        return ("observe", g, self.rng.randrange(self.twins.model.regions), self.rng.choice([0.0, 1.0, 4.0, 5.0, 9.0, 18.0, 30.0]), NOW)

    def worse(self) -> Op:
        g = self.group()
        return ("observe", g, self.region(g), self.rng.choice([24.0, 80.0, 200.0, 3000.0]), NOW)

    def seed(self) -> Op:
        g = self.group()
        return ("seed", g, self.region(g), self.rng.uniform(0, 90), self.rng.choice([0.5, 3.0, 20.0, 60.0]))

    def tier(self) -> Op:
        return ("set_tier", self.region(self.group()), self.rng.choice([0, 0, 0, 1, 2, 3]), NOW)

    def flag(self) -> Op:
        name = self.rng.choice(["set_enabled", "set_synced", "set_draining"])
        return (name, self.region(self.group()), self.rng.random() < (0.3 if name == "set_draining" else 0.7))

    def repair(self) -> Op:
        """Undo whatever keeps one region from being eligible."""
        m = self.twins.model
        r = self.rng.choice(np.flatnonzero(~m.eligible()).tolist() or [0])
        cures: list[tuple[bool, Op]] = [
            (m.tiers[r] > 0, ("set_tier", r, 0, NOW)),
            (m.draining[r], ("set_draining", r, False)),
            (not m.enabled[r], ("set_enabled", r, True)),
            (not m.synced[r], ("set_synced", r, True)),
            (not m.configured[r], ("add_region",)),
        ]
        wrong = [cure for ill, cure in cures if ill]
        return self.rng.choice(wrong or [("set_share", r, 1.0)])

    def exclude(self) -> Op:
        g = self.group()
        return ("exclude", g, self.region(g), self.rng.random() < 0.3)

    def penalty(self) -> Op:
        return ("set_penalty", self.region(self.group()), self.rng.choice([0.0, 0.0, 2.0, 10.0, 500.0]))

    def share(self) -> Op:
        return ("set_share", self.region(self.group()), self.rng.choice([0.0, 1.0, 1.0, 1.0, self.rng.random()]))

    def grow(self) -> Op:
        return self.rng.choice([("add_region",), ("remove_region", self.region(self.group()))])

    def restart(self) -> Op:
        return ("restart", self.rng.choice([0.0, 2.5, 1800.0]))

    def round(self) -> None:
        for _ in range(self.rng.randrange(self.batch + 1)):
            self.twins.apply(self.rng.choices(self.kinds, self.weights)[0]())
        self.twins.apply(("wait", self.rng.choice(RARE_WAITS if self.rng.random() < self.rare else self.waits)))


def drive(regions: int, comparisons: int, seed: int) -> None:
    """Compare at least so many (state, group) pairs, in swarms of 40 ticks."""
    done = 0
    while done < comparisons:
        rng = random.Random(f"{SEED}/{seed}/{regions}/{done}")
        options: dict[str, Any] = {"region_capacity": regions + rng.randrange(4)}
        if rng.random() < 0.4:
            options |= {"estimator": "ewma", "tau": rng.choice([1e-3, 1.0, 60.0])}
        twins = Twins(rng.choice([7, 24, 64]), regions, rng.choice([0.0, 1e5, 67108800.0]), **options)
        swarm = Swarm(rng, twins)
        for _ in range(40):
            swarm.round()
        done += twins.compared


@pytest.mark.parametrize("regions", COUNTS)
def test_homes_picks_ranks_and_estimates_equal_the_model(regions: int) -> None:
    drive(regions, 12_500, seed=0)


@pytest.mark.heavy
@pytest.mark.parametrize("regions", COUNTS)
def test_homes_picks_ranks_and_estimates_equal_the_model_a_million_times(regions: int) -> None:
    drive(regions, 12_500 if SMALL else 126_000, seed=1)


# -- the model itself --------------------------------------------------------------------------------------------


def test_a_difference_of_one_bit_or_one_home_is_noticed() -> None:
    """The comparison can fail: a model that strays by one unit in the last place, or in one home, is told apart."""
    for stray in ("x", "homes"):
        twins = Twins(3, 3, 0.0)
        twins.apply(("observe", 1, 1, 12.0, NOW))
        twins.apply(("tick", NOW))
        if stray == "x":
            twins.model.x[2, 2] = np.nextafter(twins.model.x[2, 2], np.float32(0))
        else:
            twins.model.homes[2] = 2
        with pytest.raises(AssertionError):
            twins.compare()
