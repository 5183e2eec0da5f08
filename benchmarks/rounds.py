"""Alternating rounds: the one way the benchmarks measure.

Machines are shared and noisy, so that an absolute figure says little. The works that are compared run one after the other,
round after round, in an order that rotates; a ratio is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ROUNDS = 15
SLOT = 0.01  # seconds that one work runs within a round, more when a single run takes longer


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Work:
    """Something to time: `run()` does `count` operations; `prepare()` goes before each run and is not timed.

    clock: CPU seconds of this thread, which other processes hardly disturb; wall clock where several threads work
    """

    run: Callable[[], object]
    count: int = 1
    prepare: Callable[[], object] = _nothing
    clock: Callable[[], float] = time.thread_time

    def seconds(self, runs: int) -> float:
        """Give the seconds per operation over `runs` runs."""
        total, clock = 0.0, self.clock
        for _ in range(runs):
            self.prepare()
            start = clock()
            self.run()
            total += clock() - start
        return total / runs / self.count

    def runs_for(self, slot: float) -> int:
        """Give how many runs fill `slot` seconds, at least 1; this also warms up."""
        self.seconds(1)
        return max(1, int(slot / max(self.seconds(1) * self.count, 1e-7)))


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds per operation of each work in each round."""

    rounds: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def seconds(self, name: str) -> float:
        """Give the median seconds per operation."""
        return float(np.median(self.rounds[name]))

    def ratio(self, name: str, other: str) -> float:
        """Give the median over rounds of `name`'s seconds / `other`'s."""
        return float(np.median(self.rounds[name] / self.rounds[other]))


@contextmanager
def _no_gc() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def alternate(works: Mapping[str, Work], rounds: int = ROUNDS, slot: float = SLOT) -> Timings:
    """Time the works in alternating rounds."""
    names = list(works)
    found: dict[str, list[float]] = {name: [] for name in names}
    with _no_gc():
        runs = {name: works[name].runs_for(slot) for name in names}
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                found[name].append(works[name].seconds(runs[name]))
    return Timings({name: np.array(values) for name, values in found.items()})
