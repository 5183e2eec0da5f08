"""How long a statistical ejection lasts, and how many of them there may be at once.

States of one `Ejection`:   free --start--> active --expire (time) or probed (rise successes in a row)--> free
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

__all__ = ["Backoff", "Ejection", "limit_ejections", "max_ejections"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """How ejection times grow: min(cap, base * 2^(n-1)) * (1 + U[0, jitter]) seconds for the n-th in a row.

    heal: seconds of health that take one off n
    rise: probe successes in a row that end an ejection early
    rng: source of the jitter; None = no jitter. Nodes of a fleet need different seeds, or they all return at one instant
    Raises ValueError for values out of range.
    Source: Envoy outlier detection (base_ejection_time x multiplier, max_ejection_time, max_ejection_time_jitter, the multiplier falling
    with health, active health checks ending an ejection); doubling in place of Envoy's linear growth, reference ALGORITHMS §3.7.
    """

    base: float = 10.0
    cap: float = 300.0
    jitter: float = 0.2
    heal: float = 60.0
    rise: int = 2
    rng: random.Random | None = None
    top: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        if not (0 < self.base <= self.cap < math.inf and self.jitter >= 0 and self.heal > 0 and self.rise >= 1):
            raise ValueError(f"a backoff needs 0 < base <= cap, jitter >= 0, heal > 0 and rise >= 1, got {self}")
        # n stops where the cap is reached: health must bring it down again within minutes
        object.__setattr__(self, "top", 1 + math.ceil(math.log2(self.cap / self.base)))

    def seconds(self, level: int) -> float:
        """Give the length of the `level`-th ejection in a row (level >= 1), jittered."""
        stretch = 1.0 + self.jitter * self.rng.random() if self.rng else 1.0
        return min(self.cap, self.base * 2.0 ** (level - 1)) * stretch


class Ejection:
    """One region's (or one group's) ejection and how often it came about."""

    __slots__ = ("active", "level", "oks", "since", "until")

    def __init__(self) -> None:
        self.active = False
        self.level = 0  # n of the formula
        self.oks = 0
        self.since = 0.0  # of the present state
        self.until = 0.0

    def start(self, backoff: Backoff, now: float) -> None:
        """Eject at `now`, longer than last time unless health has lasted in between."""
        self.level = min(self.healed(backoff, now) + 1, backoff.top)
        self.active, self.oks, self.since = True, 0, now
        self.until = now + backoff.seconds(self.level)

    def healed(self, backoff: Backoff, now: float) -> int:
        """Give the level that is left at `now`, after the healthy time since the last ejection."""
        return max(0, self.level - max(0, int((now - self.since) // backoff.heal)))

    def expire(self, now: float) -> bool:
        """End the ejection when its time is over; say whether it ended."""
        return self.active and now >= self.until and self._end(now)

    def probed(self, ok: bool, backoff: Backoff, now: float) -> bool:
        """Count a probe; `rise` successes in a row end the ejection. Say whether it ended."""
        self.oks = self.oks + 1 if ok else 0
        return self.active and self.oks >= backoff.rise and self._end(now)

    def _end(self, now: float) -> bool:
        self.active, self.since = False, now
        return True


def max_ejections(regions: int) -> int:
    """Give how many of `regions` statistics may take out: max(1, floor((regions - 1) / 2)).

    A lone region may be ejected too; nothing is eligible then, and the core fails open to the lowest tier: the same region, flagged.
    """
    return max(1, (regions - 1) // 2)


def limit_ejections(wanted: Iterable[int], regions: int, *, hard: Collection[int] = (), ejected: Collection[int] = ()) -> frozenset[int]:
    """Give those of `wanted` that may be taken out.

    wanted: regions with a DOWN verdict, the strongest case (or the earliest) first
    regions: how many regions the service has enabled
    hard: those of them that probes found down; always granted, and not counted against the limit
    ejected: those that are out by statistics already; they keep their place, so that nobody is swapped
    Source: Envoy max_ejection_percent and gRFC A50, whose 10 % ejects nobody (Envoy) or one (gRPC) of three hosts; here a minority, at
    least one, see `max_ejections`.
    """
    granted, statistical = set(), []
    for region in wanted:
        if region in hard:
            granted.add(region)
        else:
            statistical.append(region)
    statistical.sort(key=lambda region: region not in ejected)  # stable: incumbents first, then the caller's order
    granted.update(statistical[: max_ejections(regions)])
    return frozenset(granted)
