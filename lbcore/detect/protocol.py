"""What a detector is: outcomes go in, a verdict per region comes out.

No clock, no thread, no randomness of its own, no I/O: `now` is an argument, and one lock (the Balancer's) guards each instance.
"""

from __future__ import annotations

import enum
from typing import Protocol, runtime_checkable

__all__ = ["MAX_REGIONS", "Detector", "Verdict", "check_region"]

MAX_REGIONS = 65535  # the table's regions are u16, with 65535 for "none"


class Verdict(enum.Enum):
    """What a detector says of a region; None beside it means no opinion (yet)."""

    UP = "up"
    DOWN = "down"


@runtime_checkable
class Detector(Protocol):
    """Judge regions by their outcomes. One instance per Balancer, called under its lock.

    region: index, 0..65534; IndexError outside
    source: "probe" | "request" | "external"; a detector ignores sources it does not count
    cause: why it failed ("timeout", "refused", ...; any text is tolerated), None for a success
    vantage: who measured; group: the client's row of the table (0 = own vantage); gen: `Guard.generation` when the work began
    now: seconds of a monotonic clock, finite. Time that runs backwards stands still until it has caught up

    Optional, looked up with getattr:
    sources: frozenset[str], the only sources `report` wants (absent: all)
    hard(region) -> bool: DOWN by probes (or by decree), not by statistics: exempt from `limit_ejections`
    excluded(region) -> frozenset[int]: groups whose path to the region is broken while the region is not; the same object while unchanged
    cause(region) -> str: why the region is DOWN, for people, such as "probe timeout x4"
    until_change(region, now, *, interval, slack) -> float | None: seconds for which no probe can change the verdict, when those
        of a vantage begin `interval` apart and report at most `slack` later; 0 = any moment, None = not told
    waiting(region, count, *, vantage, group, gen, now): `count` requests of this vantage and group are still waiting, longer than an answer
        should take. A gauge: it replaces what the pair said before, and is forgotten after a second
    successes(region, groups, *, vantage, gen, now): one success of a request for each of `groups`, as if reported one by one
    resolution: float: told together may be successes with the same floor(now * resolution), before anything else is told; 0 = any.
        Absent: successes are reported one by one
    """

    def report(
        self, region: int, ok: bool, *, cause: str | None, source: str, vantage: str, group: int, gen: int, now: float
    ) -> None:
        """Take one outcome."""

    def sweep(self, now: float) -> None:
        """Let time pass: end ejections, close intervals. Called about every 100 ms."""

    def verdict(self, region: int) -> Verdict | None:
        """Give the verdict as of the last report or sweep; None = no opinion, also for a region never heard of."""

    def reset(self, region: int) -> None:
        """Forget the region: its slot was freed or given to another."""


def check_region(region: int) -> int:
    """Give `region` back, or raise IndexError when no table could have it. Called once per region, not per report."""
    if not 0 <= region < MAX_REGIONS:
        raise IndexError(f"region index must be within 0..{MAX_REGIONS - 1}, got {region!r}")
    return region
