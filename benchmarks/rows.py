"""What a row of the benchmarks is: what is timed, against what, and what was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from build_floors import floors
from numpy.typing import NDArray
from rounds import Timings, Work

import lbcore

UNITS = {"ns": 1e9, "µs": 1e6, "ms": 1e3, "s": 1.0}
NOW = 1000.0  # seconds at which every table's life begins


class Asked(Protocol):
    """One demand on a row's timings; the row's first work is its subject."""

    @property
    def text(self) -> str:
        """What is asked, as the table has it."""

    @property
    def other(self) -> str:
        """The work that the subject is set against, "" = none."""

    def measure(self, timings: Timings) -> float:
        """Give the figure that is asked about."""

    def met(self, figure: float) -> bool:
        """Tell whether the figure is good enough."""

    def show(self, figure: float) -> str:
        """Write the figure as the table has it."""


@dataclass(frozen=True, slots=True)
class AtMost:
    """The subject takes at most `limit` times what `of` takes."""

    limit: float
    of: str

    @property
    def text(self) -> str:
        return f"<= {self.limit:g} {self.of}"

    @property
    def other(self) -> str:
        return self.of

    def measure(self, timings: Timings) -> float:
        return timings.ratio(subject(timings), self.of)

    def met(self, figure: float) -> bool:
        return figure <= self.limit

    def show(self, figure: float) -> str:
        return f"{figure:.2f} {self.of}"


@dataclass(frozen=True, slots=True)
class Faster:
    """The subject is at least `limit` times as fast as `than`; 0: only compared."""

    limit: float
    than: str

    @property
    def text(self) -> str:
        return f">= {self.limit:g}x {self.than}" if self.limit else f"beside {self.than}"

    @property
    def other(self) -> str:
        return self.than

    def measure(self, timings: Timings) -> float:
        return timings.ratio(self.than, subject(timings))

    def met(self, figure: float) -> bool:
        return figure >= self.limit

    def show(self, figure: float) -> str:
        return f"{figure:.{1 if figure < 10 else 0}f}x {self.than}"


@dataclass(frozen=True, slots=True)
class Within:
    """The subject takes at most `limit` of a unit of time per operation, on this machine."""

    limit: float
    unit: str

    @property
    def text(self) -> str:
        return f"<= {self.limit:g} {self.unit}"

    @property
    def other(self) -> str:
        return ""

    def measure(self, timings: Timings) -> float:
        return timings.seconds(subject(timings)) * UNITS[self.unit]

    def met(self, figure: float) -> bool:
        return figure <= self.limit

    def show(self, figure: float) -> str:
        return f"{figure:.3g} {self.unit}"


@dataclass(frozen=True, slots=True)
class Flat:
    """All works take the same time, give or take a share."""

    share: float

    @property
    def text(self) -> str:
        return f"flat ±{self.share:.0%}"

    @property
    def other(self) -> str:
        return ""

    def measure(self, timings: Timings) -> float:
        seconds = np.array([timings.seconds(name) for name in timings.rounds])
        return float(np.abs(seconds / seconds.mean() - 1).max())

    def met(self, figure: float) -> bool:
        return figure <= self.share

    def show(self, figure: float) -> str:
        return f"±{figure:.0%}"


@dataclass(frozen=True, slots=True)
class Megabytes:
    """What the subject built holds at most `limit` MB; the size is known once the row has run."""

    limit: float
    size: Callable[[], int]

    @property
    def text(self) -> str:
        return f"<= {self.limit:g} MB"

    @property
    def other(self) -> str:
        return ""

    def measure(self, timings: Timings) -> float:
        return self.size() / 1e6

    def met(self, figure: float) -> bool:
        return figure <= self.limit

    def show(self, figure: float) -> str:
        return f"{figure:.3g} MB"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    works: makes what is timed, the subject first
    slow: seconds or gigabytes, so that pytest-benchmark does fewer rounds
    judged: False where this machine lacks what the row was asked for
    """

    name: str
    asked: Sequence[Asked]
    works: Callable[[], Mapping[str, Work]]
    slow: bool = False
    judged: bool = True


def subject(timings: Timings) -> str:
    """Give the name of a row's first work."""
    return next(iter(timings.rounds))


# ---- what the rows share


def each(function: Callable[[object], object], arguments: Iterable[object]) -> Work:
    """Give the work of calling a function with each argument, from a Python loop."""
    items = list(arguments)

    def run() -> None:
        for item in items:
            function(item)

    return Work(run, len(items))


def with_floors(works: Mapping[str, Work], *names: str, arguments: Iterable[object] = (0,) * 5000) -> dict[str, Work]:
    """Add the floors of these names, called in the same loop."""
    items = list(arguments)
    return dict(works) | {name: each(getattr(floors(), name.lower()), items) for name in names}


def round_trips(groups: int, regions: int) -> NDArray[np.float32]:
    """Give the milliseconds that `settled` believes: float32[groups, regions]."""
    ms = np.random.default_rng(1).random((groups, regions), np.float32)
    ms *= 195
    ms += 5
    return ms


def settled(groups: int, regions: int, capacity: int | None = None, ms: NDArray[np.float32] | None = None) -> lbcore.LatencyTable:
    """Give a table whose groups have random priors (or `ms`) and are at home."""
    table = lbcore.LatencyTable(groups, regions, region_capacity=capacity)
    ms = round_trips(groups, regions) if ms is None else ms
    table.seed_many(ms, ms * np.float32(0.35))
    table.tick(NOW)
    return table


def busiest(table: lbcore.LatencyTable, share: float = 0.1) -> list[int]:
    """Give the share of regions, at least one, that are home to the most groups."""
    homes = np.bincount(table.homes(), minlength=table.regions)
    return np.argsort(-homes, kind="stable")[: max(1, round(table.regions * share))].tolist()


def random_groups(groups: int, n: int, seed: int = 2) -> NDArray[np.uint32]:
    """Give n uniformly random groups."""
    return np.random.default_rng(seed).integers(0, groups, n, dtype=np.uint32)
