"""Print every in-process row: what was asked, what was measured, and whether that is good enough.

    python benchmarks/report.py             all rows and the growth tables
    python benchmarks/report.py --quick     fewer and shorter rounds, smaller tables
    python benchmarks/report.py -k pick     rows whose name contains "pick"
    python benchmarks/report.py --json      the same as JSON

A figure is a ratio from one run in which subject and floor (or peer) alternate, the median over the rounds; absolute figures
are this machine's, and CPU time of the thread except where threads or processes are timed. Floors, in the same process:
A a Cython method with one index, B the same as a bare method descriptor, C that with the four arguments of `observe`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import addresses
import growth
import importing
import learning
import picking
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rounds import ROUNDS, SLOT, Timings, alternate
from rows import Row

ROWS: tuple[Row, ...] = (*picking.ROWS, *addresses.ROWS, *learning.ROWS, *importing.ROWS)
QUICK_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Line:
    """One row as measured."""

    name: str
    asked: tuple[str, ...]
    measured: tuple[str, ...]
    met: tuple[bool, ...]
    judged: bool
    nanoseconds: dict[str, float]

    @property
    def verdict(self) -> str:
        if not (self.judged and self.met):
            return "-"
        return "met" if all(self.met) else "MISSED"


def measure(row: Row, quick: bool) -> Line:
    """Measure one row."""
    rounds, slot = (QUICK_ROUNDS, SLOT / 4) if quick else (ROUNDS, SLOT)
    timings = alternate(row.works(), rounds, slot)
    figures = [asked.measure(timings) for asked in row.asked]
    judged = list(zip(row.asked, figures, strict=True))
    return Line(
        row.name,
        tuple(asked.text for asked in row.asked),
        tuple(asked.show(figure) for asked, figure in judged) or (_times_floor(timings),),
        tuple(asked.met(figure) for asked, figure in judged),
        row.judged,
        {name: timings.seconds(name) * 1e9 for name in timings.rounds},
    )


def _times_floor(timings: Timings) -> str:
    return f"{timings.ratio(next(iter(timings.rounds)), 'A'):.0f} A"


def lines(rows: list[Row], quick: bool, progress: Progress) -> Iterator[Line]:
    """Measure the rows one after the other, saying which is under way."""
    task = progress.add_task("", total=len(rows))
    for row in rows:
        progress.update(task, description=row.name)
        yield measure(row, quick)
        progress.advance(task)


def costs(quick: bool, progress: Progress) -> Iterator[growth.Cost]:
    """Measure every size of the growth tables."""
    sizes = list(growth.sizes(quick))
    task = progress.add_task("growth", total=len(sizes))
    for groups, regions in sizes:
        progress.update(task, description=f"{groups:,} groups x {regions} regions")
        yield growth.cost(groups, regions, 10)
        progress.advance(task)


def seconds(ns: float) -> str:
    """Write a duration with a unit that suits it."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.3g} ns"


def rows_table(found: list[Line]) -> Table:
    """Give the table of rows."""
    table = Table("row", "asked", "measured", "absolute", "verdict", title="lbcore, in process")
    for line in found:
        subject, *others = line.nanoseconds.items()
        absolute = seconds(subject[1]) + "".join(f"; {name} {seconds(ns)}" for name, ns in others)
        style = "red" if line.verdict == "MISSED" else ""
        table.add_row(line.name, "\n".join(line.asked) or "-", "\n".join(line.measured), absolute, line.verdict, style=style)
    return table


def growth_table(title: str, found: list[growth.Cost]) -> Table:
    """Give one growth table."""
    heads = ("groups", "regions", "pick", "pick, home lost", "observe", "idle tick", "build", "memory")
    table = Table(title=title)
    for head in heads:
        table.add_column(head, justify="right")
    for cost in found:
        table.add_row(
            f"{cost.groups:,}", str(cost.regions), f"{cost.pick_ns:.1f} ns", f"{cost.rescan_ns:.1f} ns", f"{cost.observe_ns:.1f} ns",
            f"{cost.tick_us:.1f} µs", f"{cost.build_s:.3f} s", f"{cost.megabytes:,.1f} MB",
        )  # fmt: skip
    return table


def machine() -> dict[str, Any]:
    """Give what the figures depend on beside lbcore."""
    load = os.getloadavg()[0]
    return {
        "python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count(), "load": load,
        "city database": addresses.name_of(addresses.city_database()),
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="TEXT", default="", help="only rows whose name contains TEXT")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, smaller growth tables")
    parser.add_argument("--no-growth", action="store_true", help="leave the growth tables out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    chosen = arguments()
    rows = [row for row in ROWS if chosen.k.lower() in row.name.lower()]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        found = list(lines(rows, chosen.quick, progress))
        grown = [] if chosen.no_growth or chosen.k else list(costs(chosen.quick, progress))
    if chosen.json:
        rows_found = [asdict(line) | {"verdict": line.verdict} for line in found]
        print(json.dumps({"machine": machine(), "rows": rows_found, "growth": [asdict(cost) for cost in grown]}, indent=1))
        return
    console = Console(width=None if Console().is_terminal else 180)
    console.print(", ".join(f"{key} {value}" for key, value in machine().items()))
    console.print(rows_table(found))
    for title, axis in (("growth over groups", "regions"), ("growth over regions", "groups")):
        part = [cost for cost in grown if getattr(cost, axis) == getattr(growth, f"AT_{axis.upper()}")]
        if part:
            console.print(growth_table(title, part))
    verdicts = [line.verdict for line in found]
    console.print(f"{verdicts.count('met')} rows met, {verdicts.count('MISSED')} missed, {verdicts.count('-')} not judged")


if __name__ == "__main__":
    main()
