"""Rows of `LatencyTable.pick`: hot, with regions down before and after the tick, at scale, in arrays, beside peers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
from pymongo.hello import Hello
from pymongo.read_preferences import Nearest
from pymongo.server_description import ServerDescription
from pymongo.topology_description import TOPOLOGY_TYPE, TopologyDescription
from rows import NOW, AtMost, Faster, Flat, Row, Within, Work, busiest, each, random_groups, settled, with_floors

import lbcore

HOT = list(range(256)) * 20
REGIONS = (8, 64, 256, 1024)
UNTICKED = {8: 1.2, 64: 1.3, 256: 2.2, 1024: 6.5}


def hot(regions: int, down: bool = False, ticked: bool = True) -> Work:
    """Give the work of picking for 256 groups, over and over; `down`: after a verdict on the busiest tenth of the regions."""
    table = settled(256, regions)
    for region in busiest(table) if down else ():
        table.set_tier(region, 3, NOW + 1)
    if ticked:
        table.tick(NOW + 1)
    return each(table.pick, HOT)


def _picking(regions: int, down: bool, ticked: bool = True) -> Mapping[str, Work]:
    return with_floors({"pick": hot(regions, down, ticked)}, *(("A", "B") if ticked else ("A",)), arguments=HOT)


def _hot_row(regions: int, down: bool) -> Row:
    state = "after the tick that follows a verdict" if down else "all up"
    return Row(f"pick, hot, {regions} regions, {state}", (AtMost(0.9, "A"), AtMost(1.5, "B")), partial(_picking, regions, down))


def _unticked_row(regions: int) -> Row:
    works = partial(_picking, regions, True, False)
    return Row(f"pick, between a verdict and its tick, busiest 10 % of {regions} down", (AtMost(UNTICKED[regions], "A"),), works)


def _flat() -> Mapping[str, Work]:
    return {f"{regions} {'down' if down else 'up'}": hot(regions, down) for regions in REGIONS for down in (False, True)}


GROUPS, WIDE = 1_000_000, 64
IDLE = (os.cpu_count() or 1) - os.getloadavg()[0] >= 1.5  # two threads on the wall clock are judged where they have cores


def _random_rows() -> Mapping[str, Work]:
    table = settled(GROUPS, WIDE, WIDE)
    rows = random_groups(GROUPS, 1_000_000).tolist()
    return with_floors({"pick": each(table.pick, rows)}, "A", arguments=rows)


# ---- arrays


def _many(table: lbcore.LatencyTable, groups: np.ndarray) -> Work:
    out = np.empty(len(groups), np.uint16)
    return Work(partial(table.pick_many, groups, out), len(groups))


def _many_hot() -> Mapping[str, Work]:
    return with_floors({"pick_many": _many(settled(256, WIDE), np.tile(np.arange(256, dtype=np.uint32), 400))}, "A")


def _many_random() -> Mapping[str, Work]:
    return with_floors({"pick_many": _many(settled(GROUPS, 8, 8), random_groups(GROUPS, 1_000_000))}, "A")


def _two_threads(clock: Callable[[], float]) -> Mapping[str, Work]:
    """One thread and two over the same four million groups.

    On the wall clock this needs two cores that nobody else uses; CPU time, of which each of two threads takes half, tells
    what they would gain then: what they cost each other is in it.
    """
    table, groups = settled(GROUPS, 8, 8), random_groups(GROUPS, 4_000_000)
    out, pool, half = np.empty(len(groups), np.uint16), ThreadPoolExecutor(2), len(groups) // 2
    parts = [(groups[:half], out[:half]), (groups[half:], out[half:])]

    def both() -> None:
        for done in [pool.submit(table.pick_many, *part) for part in parts]:
            done.result()

    return {
        "two threads": Work(both, len(groups) * (1 if clock is time.perf_counter else 2), clock=clock),
        "one thread": Work(partial(table.pick_many, groups, out), len(groups), clock=clock),
    }


# ---- peers


def _numpy_argmin(table: lbcore.LatencyTable) -> Callable[[int], object]:
    latency = np.stack([table.scores(group) for group in range(table.groups)])
    penalty, out = np.zeros(table.regions, np.float32), np.empty(table.regions, np.float32)

    def choose(group: int) -> object:
        np.add(latency[group], penalty, out=out)  # infinite where a region is down
        return out.argmin()

    return choose


def _python_min(table: lbcore.LatencyTable) -> Callable[[int], object]:
    latency = [dict(enumerate(table.scores(group).tolist())) for group in range(table.groups)]
    healthy = set(range(table.regions))
    return lambda group: min(healthy, key=latency[group].__getitem__)


def _pymongo_nearest(table: lbcore.LatencyTable) -> Callable[[int], object]:
    """Server selection as MongoDB's driver does it: every suitable server, then those within 15 ms of the nearest."""
    names = [(f"region{region}", 27017) for region in range(table.regions)]
    hello = Hello({"ok": 1, "setName": "rs", "hosts": [f"{host}:{port}" for host, port in names], "secondary": True, "maxWireVersion": 21})
    settings = SimpleNamespace(heartbeat_frequency=10, local_threshold_ms=15)
    towards = []
    for group in range(8):
        servers = {name: ServerDescription(name, hello, float(ms) / 1e3) for name, ms in zip(names, table.scores(group), strict=True)}
        towards.append(TopologyDescription(TOPOLOGY_TYPE.ReplicaSetNoPrimary, servers, "rs", None, None, settings))
    nearest = Nearest()
    return lambda group: towards[group & 7].apply_selector(nearest)


def _peer_row(name: str, limit: float, make: Callable[[lbcore.LatencyTable], Callable[[int], object]], calls: int) -> Row:
    def works() -> Mapping[str, Work]:
        table = settled(256, WIDE)
        return with_floors({"pick": each(table.pick, HOT), name: each(make(table), HOT[:calls])}, "A", arguments=HOT)

    return Row(f"pick among {WIDE} regions beside {name}", (Faster(limit, name),), works)


ROWS = (
    *(_hot_row(regions, down) for regions in REGIONS for down in (False, True)),
    Row("pick, hot, 8 to 1024 regions in both states", (Flat(0.15),), _flat),
    *(_unticked_row(regions) for regions in REGIONS),
    Row("pick, 1 M groups x 64 regions, random rows", (AtMost(2.5, "A"),), _random_rows, slow=True),
    Row("pick_many, hot", (Within(1.5, "ns"),), _many_hot),
    Row("pick_many, 1 M random groups", (Within(3, "ns"),), _many_random, slow=True),
    Row("pick_many, two threads, wall clock", (Faster(1.5, "one thread"),), partial(_two_threads, time.perf_counter), True, IDLE),
    Row("pick_many, two threads, CPU time", (Faster(1.5, "one thread"),), partial(_two_threads, time.process_time), True),
    _peer_row("numpy argmin", 40, _numpy_argmin, 2000),
    _peer_row("Python min()", 80, _python_min, 1000),
    _peer_row("pymongo nearest", 2000, _pymongo_nearest, 50),
)
