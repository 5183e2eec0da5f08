"""Rows of what changes a table: observe, observe_many, verdicts and ticks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count

import numpy as np
from build_floors import floors
from rows import NOW, AtMost, Row, Within, Work, random_groups, round_trips, settled, with_floors

import lbcore

GROUPS = 100_000


def samples(table: lbcore.LatencyTable, n: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give n samples as arrays of groups, regions and milliseconds: what the table believes, give or take 10 %."""
    rng = np.random.default_rng(seed)
    groups, regions = random_groups(table.groups, n, seed), rng.integers(0, table.regions, n).astype(np.uint16)
    return groups, regions, (round_trips(table.groups, table.regions)[groups, regions] * rng.lognormal(0, 0.1, n)).astype(np.float32)


def _observe() -> Mapping[str, Work]:
    """Each sample meets a cell that was last touched a second ago, so that all of the arithmetic is done."""
    table, clock = settled(256, 8), count(int(NOW) + 1)
    rows = [(region, list(enumerate((round_trips(table.groups, table.regions)[:, region] * 1.05).tolist()))) for region in range(8)]

    def calling(function: Callable[[int, int, float, float], object]) -> Work:
        def run() -> None:
            now = float(next(clock))
            for region, means in rows:
                for group, ms in means:
                    function(group, region, ms, now)

        return Work(run, 8 * 256)

    return {"observe": calling(table.observe), "C": calling(floors().c)}


def _observe_many() -> Mapping[str, Work]:
    table, clock = settled(256, 8), count(int(NOW) + 1)
    columns = samples(table, 5000)
    return with_floors({"observe_many": Work(lambda: table.observe_many(*columns, float(next(clock))), 5000)}, "A")


# ---- verdicts and ticks


def _region_down() -> Mapping[str, Work]:
    """Time the verdict alone; the table has been ticked, and recovers untimed."""
    table, regions = settled(GROUPS, 64, 64), range(64)

    def up() -> None:
        for region in regions:
            table.set_tier(region, 0, NOW)

    def down() -> None:
        for region in regions:
            table.set_tier(region, 3, NOW)

    return with_floors({"set_tier": Work(down, 64, up)}, "A")


def _tick_after_down(regions: int) -> Mapping[str, Work]:
    table, clock = settled(GROUPS, regions, regions), count(int(NOW) + 100, 100)
    now = NOW

    def recover_then_down() -> None:
        nonlocal now
        for offset in (0, 40, 80, 81, 82):  # past the ramp every group is back, and was looked at once more
            now = float(next(clock)) + offset
            table.set_tier(0, 0, now)
            table.tick(now)
        assert (table.homes() == 0).any(), "the region that goes down was nobody's home"
        table.set_tier(0, 3, now)

    return with_floors({"tick": Work(lambda: table.tick(now), 1, recover_then_down)}, "A")


def _tick_idle(sampled: bool) -> Mapping[str, Work]:
    table, now = settled(GROUPS, 8, 8), NOW
    if sampled:
        groups, regions = np.repeat(np.arange(GROUPS, dtype=np.uint32), 8), np.tile(np.arange(8, dtype=np.uint16), GROUPS)
        table.observe_many(groups, regions, round_trips(table.groups, table.regions).ravel(), NOW)
        table.tick(NOW)

    def run() -> None:
        nonlocal now
        for _ in range(100):
            now += 0.1
            table.tick(now)

    return with_floors({"tick": Work(run, 100)}, "A")


def _tick_after_samples() -> Mapping[str, Work]:
    table, now, turn = settled(GROUPS, 8, 8), NOW, count()
    batches = [samples(table, 10_000, seed) for seed in range(10)]

    def learn() -> None:
        nonlocal now
        now += 0.1
        table.observe_many(*batches[next(turn) % 10], now)

    return with_floors({"tick": Work(lambda: table.tick(now), 1, learn)}, "A")


ROWS = (
    Row("observe, full prior_ewma", (AtMost(2.3, "C"),), _observe),
    Row("observe_many, hot", (Within(14, "ns"),), _observe_many),
    Row("a region goes down", (Within(0.3, "µs"),), _region_down),
    Row("its tick, 100 k groups x 8", (Within(2, "ms"),), partial(_tick_after_down, 8)),
    Row("its tick, 100 k groups x 64", (Within(4, "ms"),), partial(_tick_after_down, 64)),
    Row("tick, 100 k groups x 8, idle", (Within(20, "µs"),), partial(_tick_idle, False)),
    Row("tick, 100 k groups x 8, idle, every cell measured", (), partial(_tick_idle, True)),
    Row("tick, 100 k groups x 8, after 10 k samples", (Within(150, "µs"),), _tick_after_samples),
)
