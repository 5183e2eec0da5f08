"""Vantage suspect: when most regions fail at once, the fault is likelier here than there.

States:  CLEAR --a region is about to go DOWN while most fail--> FROZEN --`freeze` seconds, or a control answers--> SPENT
           ^-------------------------------- no longer most -------'------------------------------------------------'
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["Suspicion", "VantageSuspect"]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """One moment at which this vantage stopped trusting itself."""

    at: float  # monotonic seconds
    until: float  # the freeze ends then at the latest
    failing: tuple[int, ...]  # regions
    regions: int  # of so many that could say something
    control: bool  # whether a control target confirmed it


class _Phase(enum.Enum):
    CLEAR = enum.auto()
    FROZEN = enum.auto()
    SPENT = enum.auto()


class VantageSuspect:
    """Say for how long new DOWN verdicts should not be believed.

    interval: seconds (one probe interval and its jitter) within which the failures must fall together
    freeze: seconds after which verdicts apply all the same, <= 5 in the service's promise
    fewest: regions below which there is no suspicion; a service of two fails over normally
    A region fails when its last outcome was a failure within the interval; one that is DOWN for longer than that is not counted at all.
    Where a control target (an anchor, the own gateway) is configured, which its first report shows, it must be failing too. One freeze
    per episode: there is no other before half of the regions or more have answered again.
    Raises ValueError for values out of range.
    Source: DESIGN §5; Cassandra FailureDetector (local pause: no convictions for 5 s) and Lifeguard's local health, arXiv 1707.00788.
    """

    def __init__(self, interval: float = 5.0, freeze: float = 5.0, fewest: int = 3) -> None:
        if not (interval > 0 and freeze >= 0 and fewest >= 1):
            raise ValueError(f"a suspicion needs interval > 0, freeze >= 0 and fewest >= 1, got {interval!r}, {freeze!r}, {fewest!r}")
        self._interval, self.freeze, self._fewest = interval, freeze, fewest
        self._failed: dict[int, float] = {}  # region -> its last outcome was a failure, then
        self._down: dict[int, float] = {}  # region -> DOWN since
        self._regions: set[int] = set()
        self._control: bool | None = None  # its last outcome; None = no control target
        self._phase = _Phase.CLEAR
        self._until = 0.0
        self.last: Suspicion | None = None

    def report(self, region: int, ok: bool, now: float) -> None:
        """Note a region's outcome."""
        if ok:
            if region in self._failed:
                del self._failed[region]
        else:
            self._failed[region] = now
        self._regions.add(region)

    def control(self, ok: bool) -> None:
        """Note a control target's outcome: one that answers shows that this vantage is sound."""
        self._control = ok

    def forget(self, region: int) -> None:
        """Forget a region that is no more."""
        self._regions.discard(region)
        self._failed.pop(region, None)
        self._down.pop(region, None)

    def went(self, region: int, down: bool, now: float) -> None:
        """Note that the region's own verdict changed; its outcomes need not be reported while it is DOWN."""
        if down:
            self._down[region] = now
        else:
            self._down.pop(region, None)
            self._failed.pop(region, None)

    def failing(self, now: float) -> tuple[int, ...]:
        """Give the regions whose last outcome was a failure within the interval."""
        return tuple(sorted(region for region, at in self._failed.items() if now - at <= self._interval))

    def _voters(self, now: float) -> set[int]:
        return {region for region in self._regions if now - self._down.get(region, now) <= self._interval}

    @property
    def frozen(self) -> bool:
        """Say whether new DOWN verdicts are withheld, as of the last `refresh` or `withhold`."""
        return self._phase is _Phase.FROZEN

    def withhold(self, now: float) -> bool:
        """Say whether a region that is about to go DOWN should stay for now; the first time in an episode this starts a freeze."""
        self.refresh(now)
        if self._phase is _Phase.CLEAR and self._suspicious(now):
            self._phase, self._until = _Phase.FROZEN, now + self.freeze
            self.last = Suspicion(now, self._until, self.failing(now), len(self._voters(now)), self._control is not None)
        return self.frozen

    def refresh(self, now: float) -> None:
        """Let time pass."""
        if self._phase is _Phase.CLEAR:
            return
        voters = self._voters(now)
        if 2 * len(voters & self._failed.keys()) <= len(voters):
            self._phase = _Phase.CLEAR
        elif self.frozen and (now >= self._until or self._sound()):
            self._phase = _Phase.SPENT

    def _suspicious(self, now: float) -> bool:
        voters = self._voters(now)
        return len(voters) >= self._fewest and 2 * len(voters.intersection(self.failing(now))) > len(voters) and not self._sound()

    def _sound(self) -> bool:
        return self._control is True
