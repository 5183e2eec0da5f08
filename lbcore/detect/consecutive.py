"""Consecutive: Traffic Manager's way of counting probes.

One vantage's state, as its endpoint monitor has it (in its words CheckingEndpoint, Online, Degraded):
    None --1 success--> UP --failure number tolerated+1 in a row--> DOWN --`rise` successes in a row--> UP
      '-----------------failure number tolerated+1 in a row----------^
"""

from __future__ import annotations

from collections.abc import Iterable

from lbcore.detect.protocol import Verdict, check_region
from lbcore.detect.quorum import admit, expire, tally

__all__ = ["Consecutive"]

_UP, _DOWN = Verdict.UP, Verdict.DOWN


class _Streak:
    __slots__ = ("cause", "fails", "heard", "oks", "source", "verdict")

    def __init__(self) -> None:
        self.oks = self.fails = 0
        self.heard = float("-inf")
        self.cause: str | None = None
        self.source = ""
        self.verdict: Verdict | None = None

    def count(self, ok: bool, tolerated: int, rise: int) -> bool:
        """Count one outcome; say whether the verdict changed."""
        before = self.verdict
        if ok:
            self.oks, self.fails = self.oks + 1, 0
            if before is None or self.oks >= rise:
                self.verdict = _UP
        else:
            self.oks, self.fails = 0, self.fails + 1
            if self.fails > tolerated:
                self.verdict = _DOWN
        return self.verdict is not before


class _Watch:
    __slots__ = ("streaks", "verdict")

    def __init__(self) -> None:
        self.streaks: dict[str, _Streak] = {}
        self.verdict: Verdict | None = None


class Consecutive:
    """Count failures in a row, per region and vantage; vantages decide by majority.

    tolerated: failures in a row that change nothing; the next one is DOWN. Any success starts the count again
    rise: successes in a row that bring a region back. The first success of a region still being checked is enough
    sources: what is counted. Only probes by default: a region without traffic must still be judged, and requests meet their own errors
    share, expiry: how vantages decide and when a silent one loses its vote, see `tally` and `Quorum`
    Raises ValueError for values out of range.
    Source: Azure Traffic Manager endpoint monitoring ("Tolerated number of failures", REQUIREMENTS R31, R34, §2.2; its own defaults are
    tolerated 3, rise 1, interval 30 s, timeout 10 s); HAProxy `rise` for the way back.
    """

    def __init__(
        self, tolerated: int = 2, rise: int = 2, *, sources: Iterable[str] = ("probe",), share: float = 0.5, expiry: float = 600.0
    ) -> None:
        if not (tolerated >= 0 and rise >= 1 and 0 <= share <= 1 and expiry > 0):
            got = f"{tolerated!r}, {rise!r}, {share!r}, {expiry!r}"
            raise ValueError(f"Consecutive needs tolerated >= 0, rise >= 1, share within 0..1 and expiry > 0, got {got}")
        self.sources = frozenset(sources)
        self._tolerated, self._rise, self._share, self._expiry = tolerated, rise, share, expiry
        self._watches: dict[int, _Watch] = {}
        self._look_at = float("-inf")

    def report(
        self, region: int, ok: bool, *, cause: str | None, source: str, vantage: str, group: int, gen: int, now: float
    ) -> None:
        """Count one outcome of a source that is counted."""
        if source not in self.sources:
            return
        watch = self._watches.get(region)
        if watch is None:
            watch = self._watches[check_region(region)] = _Watch()
        streak = watch.streaks.get(vantage)
        known = streak is not None
        if streak is None:
            streak = admit(watch.streaks, vantage, _Streak())
        streak.heard = max(streak.heard, now)
        if not ok:
            streak.cause, streak.source = cause, source
        if streak.count(ok, self._tolerated, self._rise) or not known:
            self._count(watch)

    def sweep(self, now: float) -> None:
        """Take the vote from vantages that fell silent; looked for only now and then."""
        if now < self._look_at:
            return
        self._look_at = now + self._expiry / 60.0
        for watch in self._watches.values():
            if expire(watch.streaks, now - self._expiry) and watch.streaks:
                self._count(watch)

    def verdict(self, region: int) -> Verdict | None:
        """Give the majority's verdict; None while the region is still being checked."""
        watch = self._watches.get(region)
        return watch.verdict if watch else None

    def reset(self, region: int) -> None:
        """Begin again, as for an endpoint that was disabled and enabled."""
        self._watches.pop(region, None)

    def hard(self, region: int) -> bool:
        """Say whether the region is DOWN by probes alone (requests that are counted make it soft)."""
        return self.sources == {"probe"} and self.verdict(region) is _DOWN

    def cause(self, region: int) -> str:
        """Say what failed and how often in a row, e.g. "probe timeout x4"; "" unless DOWN."""
        watch = self._watches.get(region)
        if watch is None or watch.verdict is not _DOWN:
            return ""
        down = [streak for streak in watch.streaks.values() if streak.verdict is _DOWN]
        worst = max(down, key=lambda streak: streak.fails, default=None)
        if worst is None or not worst.fails:
            return "not enough successes yet"
        return f"{worst.source} {worst.cause or 'failure'} x{worst.fails}"

    def until_change(self, region: int, now: float, *, interval: float, slack: float) -> float | None:
        """Give the seconds until the first vantage could have counted what turns it; None when requests are counted as well.

        Vantages that were never heard of are left out, for one alone does not outvote those that were.
        """
        if self.sources != {"probe"}:
            return None
        watch = self._watches.get(region)
        streaks = [*watch.streaks.values()] if watch else []
        times = [self._until(streak, now, interval) for streak in streaks]
        if len(streaks) > 1:  # a vantage that falls silent loses its vote
            times += [streak.heard + self._expiry for streak in streaks]
        first = min(times, default=now + self._tolerated * interval)
        return max(0.0, first - slack - now)

    def _until(self, streak: _Streak, now: float, interval: float) -> float:
        """Give when the outcome that turns the streak is due at the earliest: probes that are overdue come now, the others after them."""
        left = self._rise - streak.oks if streak.verdict is _DOWN else self._tolerated + 1 - streak.fails
        return max(streak.heard + left * interval, now + (left - 1) * interval)

    def _count(self, watch: _Watch) -> None:
        watch.verdict = tally((streak.verdict for streak in watch.streaks.values()), watch.verdict, self._share)
