"""`bench`: what the core costs on this machine, in a few seconds. `benchmarks/` has every figure, with peers."""

from __future__ import annotations

import platform
import timeit
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import typer

from lbcore.balancer import Balancer
from lbcore.cli.common import AsJson, print_json, print_table
from lbcore.region import Region, catalogue

__all__ = ["bench"]

ROUNDS = 5
CLIENTS = 4096
BATCH = 1 << 16


Regions = Annotated[int, typer.Option("--regions", min=1, max=500, help="Regions, from the catalogue and then made up.")]
Seconds = Annotated[float, typer.Option("--seconds", min=0.05, max=600, help="Time for all figures together.")]


def bench(regions: Regions = 10, seconds: Seconds = 4.0, json: AsJson = False) -> None:
    """Measure the calls that matter in this process on this machine: nanoseconds each, the best of five rounds."""
    lb = Balancer(_some_regions(regions))
    cases, names = [*_cases(lb)], _names(lb)
    figures = {what: _measure(statement, names, seconds / len(cases)) / operations for what, statement, operations in cases}
    if json:
        print_json({"regions": regions, "groups": lb.table.groups, "python": platform.python_version(), "machine": platform.machine(),
                    "ns": {what: round(ns, 1) for what, ns in figures.items()}})  # fmt: skip
        return
    print_table(["call", ">ns", ">per second"], [(what, _digits(ns), f"{1e9 / ns:,.0f}") for what, ns in figures.items()])
    print(f"{regions} regions, {lb.table.groups:,} groups, Python {platform.python_version()} on {platform.machine()}; one thread")


def _some_regions(count: int) -> list[Region]:
    known = [Region(name) for name, place in catalogue().items() if place.provider == "azure"][:count]
    return known + [Region(f"region{i}", lat=(i * 37) % 120 - 60, lon=(i * 73) % 360 - 180) for i in range(count - len(known))]


def _clients(count: int, v6: bool = False) -> list[str]:
    rng = np.random.default_rng(0)
    if v6:
        return [f"2a0{rng.integers(1, 16):x}:{rng.integers(0, 65536):x}:{rng.integers(0, 65536):x}::{i:x}" for i in range(count)]
    return [".".join(map(str, (rng.integers(1, 224), *rng.integers(0, 256, 3)))) for _ in range(count)]


def _cases(lb: Balancer) -> Iterator[tuple[str, str, int]]:
    """Give name, statement and how many operations one run of it is."""
    loop = "for client in {}: pick(client)"
    yield "for scale: len(text)", "len(client)", 1
    yield "table.pick(group)", "table_pick(7)", 1
    yield 'lb.pick("8.8.8.8")', "pick(client)", 1
    yield f"lb.pick, {CLIENTS:,} IPv4 clients in turn", loop.format("v4"), CLIENTS
    yield f"lb.pick, {CLIENTS:,} IPv6 clients in turn", loop.format("v6"), CLIENTS
    yield f"table.pick_many, {BATCH:,} groups", "table.pick_many(groups, out)", BATCH
    yield f"map.lookup_many, {BATCH:,} IPv4 addresses", "lb.map.lookup_many(addresses)", BATCH
    yield "lb.rank(client)", "lb.rank(client)", 1
    yield "table.observe(group, region, ms, now)", "table.observe(7, 0, 20.0, now)", 1
    yield "lb.observe(region, ms, client)", "lb.observe(region, 20.0, client)", 1
    yield "lb.report(region, True, client)", "lb.report(region, True, client)", 1
    yield "lb.tick()", "lb.tick()", 1


def _names(lb: Balancer) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "lb": lb, "table": lb.table, "pick": lb.pick, "table_pick": lb.table.pick, "client": "8.8.8.8", "region": lb.regions[0].name,
        "v4": _clients(CLIENTS), "v6": _clients(CLIENTS, v6=True), "now": lb.clock(), "out": np.empty(BATCH, np.uint16),
        "groups": rng.integers(0, lb.table.groups, BATCH, dtype=np.uint32),
        "addresses": rng.integers(1 << 24, 224 << 24, BATCH, dtype=np.uint32),
    }  # fmt: skip


def _measure(statement: str, names: dict[str, Any], budget: float) -> float:
    """Give nanoseconds for one run of a statement, the best of some rounds that together take about `budget` seconds."""
    timer, number = timeit.Timer(statement, globals=names), 1
    while (took := timer.timeit(number)) < budget / ROUNDS / 8:
        number *= 2
    number = max(1, int(number * budget / ROUNDS / took))
    return min(timer.repeat(ROUNDS, number)) / number * 1e9


def _digits(ns: float) -> str:
    return f"{ns:,.1f}" if ns < 100 else f"{ns:,.0f}"
