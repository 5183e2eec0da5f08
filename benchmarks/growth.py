"""How cost grows: pick, observe, tick, build time and memory over groups and over regions, one axis at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rounds import Work, alternate
from rows import NOW, each, random_groups, round_trips, settled

import lbcore

GROUPS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
REGIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
AT_REGIONS, AT_GROUPS = 8, 10_000
MOST_BYTES = 4_000_000_000
CALLS = 20_000


@dataclass(frozen=True, slots=True)
class Cost:
    """What one size of table costs: nanoseconds per call on random groups, µs per idle tick, seconds to build, MB held."""

    groups: int
    regions: int
    pick_ns: float
    rescan_ns: float
    observe_ns: float
    tick_us: float
    build_s: float
    megabytes: float


def cost(groups: int, regions: int, rounds: int) -> Cost:
    """Measure one size. `rescan` is a pick whose group has lost its home and awaits the tick."""
    ms = round_trips(groups, regions)
    start = time.thread_time()
    table = settled(groups, regions, regions, ms)
    build = time.thread_time() - start
    del ms
    rows = random_groups(groups, CALLS).tolist()
    timings = alternate({"pick": each(table.pick, rows), "observe": _observing(table, rows), "tick": _ticking(table)}, rounds)
    for region in range(0, regions - 1, 2):
        table.set_tier(region, 3, NOW)
    homes = table.homes()
    bereft = [group for group in rows if homes[group] % 2 == 0] if regions > 1 else rows
    rescan = alternate({"rescan": each(table.pick, bereft or rows)}, rounds)
    ns, us = 1e9, 1e6
    return Cost(
        groups, regions, timings.seconds("pick") * ns, rescan.seconds("rescan") * ns, timings.seconds("observe") * ns,
        timings.seconds("tick") * us, build, table.nbytes / 1e6,
    )  # fmt: skip


def _observing(table: lbcore.LatencyTable, rows: list[int]) -> Work:
    now, region = NOW, table.regions // 2
    means = {group: float(table.estimates(group)[region]) for group in set(rows)}
    cells = [(group, means[group]) for group in rows]

    def run() -> None:
        nonlocal now
        now += 1.0
        for group, ms in cells:
            table.observe(group, region, ms, now)

    return Work(run, len(rows))


def _ticking(table: lbcore.LatencyTable) -> Work:
    now = NOW

    def run() -> None:
        nonlocal now
        for _ in range(10):
            now += 0.1
            table.tick(now)

    return Work(run, 10)


def sizes(quick: bool = False) -> Iterator[tuple[int, int]]:
    """Give the sizes of both tables, leaving out what is over 4 GB and, in a hurry, what takes long."""
    both = [(groups, AT_REGIONS) for groups in GROUPS] + [(AT_GROUPS, regions) for regions in REGIONS]
    for groups, regions in dict.fromkeys(both):
        priors = 8 * groups * regions  # two float32 arrays
        if lbcore.LatencyTable.nbytes_for(groups, regions) + priors <= MOST_BYTES and not (quick and groups * regions > 2_000_000):
            yield groups, regions


def bytes_per_cell(found: list[Cost]) -> float:
    """Give the bytes per (group, region) of the largest table."""
    largest = max(found, key=lambda cost: cost.megabytes)
    return float(np.float64(largest.megabytes) * 1e6 / largest.groups / largest.regions)
