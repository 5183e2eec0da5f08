"""AnyOf: several detectors beside each other; `Watched`: none of them can harm the others or their caller."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from lbcore.detect.protocol import Detector, Verdict, check_region

__all__ = ["AnyOf", "Watched"]

logger = logging.getLogger("lbcore.detect")
_NOBODY: frozenset[int] = frozenset()
_QUIET = 60.0  # seconds between two log lines about one detector, which may fail at every request
T = TypeVar("T")

OPTIONAL = ("hard", "excluded", "cause", "waiting", "until_change", "successes")


class Watched:
    """Stand between a detector and its users: what it raises is logged, and what it said last stays.

    `errors` counts what was raised. Optional methods the detector lacks answer as if there was nothing to say.
    Source: REQUIREMENTS R68.
    """

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.sources: frozenset[str] | None = getattr(detector, "sources", None)
        self.resolution: float | None = getattr(detector, "resolution", None)
        self.errors = 0
        self._verdicts: dict[int, Verdict | None] = {}
        self._said: dict[tuple[str, int], object] = {}
        self._optional = {name: method for name in OPTIONAL if (method := getattr(detector, name, None))}
        self._logged = -math.inf
        self._now = 0.0

    def offers(self, name: str) -> bool:
        """Say whether the detector has this optional method."""
        return name in self._optional

    def takes(self, source: str) -> bool:
        """Say whether the detector wants reports from this source."""
        return self.sources is None or source in self.sources

    def failed(self, doing: str, now: float | None = None) -> None:
        """Note that the detector raised; call it in the except block."""
        self.errors += 1
        self._now = self._now if now is None else now
        if not self._now - self._logged < _QUIET:
            self._logged = self._now
            logger.exception("detector %r raised in %s (%d times so far); its last verdicts stay", self.detector, doing, self.errors)

    def sweep(self, now: float) -> None:
        """Sweep the detector."""
        self._now = now
        try:
            self.detector.sweep(now)
        except Exception:
            self.failed("sweep")

    def reset(self, region: int) -> None:
        """Forget the region, also what was said of it."""
        self._verdicts.pop(region, None)
        for key in [key for key in self._said if key[1] == region]:
            del self._said[key]
        try:
            self.detector.reset(region)
        except Exception:
            self.failed("reset")

    def waiting(self, region: int, count: int, *, vantage: str, group: int, gen: int, now: float) -> None:
        """Pass the gauge of waiting requests on, if the detector knows what to do with it."""
        method = self._optional.get("waiting")
        if method:
            try:
                method(region, count, vantage=vantage, group=group, gen=gen, now=now)
            except Exception:
                self.failed("waiting", now)

    def successes(self, region: int, groups: Sequence[int], *, vantage: str, gen: int, now: float) -> None:
        """Tell successes of requests together, or one by one where the detector wants that."""
        method = self._optional.get("successes") if self.resolution is not None else None
        try:
            if method:
                method(region, groups, vantage=vantage, gen=gen, now=now)
                return
            for group in groups:
                self.detector.report(region, True, cause=None, source="request", vantage=vantage, group=group, gen=gen, now=now)
        except Exception:
            self.failed("successes", now)

    def verdict(self, region: int) -> Verdict | None:
        """Give the detector's verdict."""
        try:
            verdict = self._verdicts[region] = self.detector.verdict(region)
        except Exception:
            self.failed("verdict")
            return self._verdicts.get(region)
        return verdict

    def hard(self, region: int) -> bool:
        """Say whether the verdict rests on probes."""
        return self._ask("hard", region, False)

    def excluded(self, region: int) -> frozenset[int]:
        """Give the groups for which the region is excluded."""
        return self._ask("excluded", region, _NOBODY)

    def cause(self, region: int) -> str:
        """Say why the region is DOWN."""
        return self._ask("cause", region, "")

    def until_change(self, region: int, now: float, *, interval: float, slack: float) -> float | None:
        """Give the seconds for which the verdict stands as far as probes go; None where the detector cannot tell."""
        method: Callable[..., float | None] | None = self._optional.get("until_change")
        try:
            return method(region, now, interval=interval, slack=slack) if method else None
        except Exception:
            self.failed("until_change", now)
            return None

    def _ask(self, name: str, region: int, default: T) -> T:
        method: Callable[[int], T] | None = self._optional.get(name)
        if method is None:
            return default
        try:
            answer = method(region)
        except Exception:
            self.failed(name)
            return cast(T, self._said.get((name, region), default))  # what this method said before
        if answer != default or (name, region) in self._said:
            self._said[name, region] = answer
        return answer


class AnyOf:
    """Say DOWN when any of the detectors does, UP when at least one does and none says DOWN.

    A detector that raises is logged and keeps its last verdict; the others go on. Exclusions are united, and DOWN is hard when any
    detector that says so is sure by probes.
    Raises ValueError without a detector.
    Source: REQUIREMENTS R68; Envoy runs its outlier detectors beside active health checks in the same way.
    """

    def __init__(self, *detectors: Detector) -> None:
        if not detectors:
            raise ValueError("AnyOf needs at least one detector")
        self._parts = tuple(Watched(detector) for detector in detectors)
        self._regions: set[int] = set()
        self._untold = self._takers("")
        self._takers_of = {source: self._takers(source) for source in ("probe", "request", "external")}
        self._excluding = tuple(part for part in self._parts if part.offers("excluded"))
        if all(part.sources is not None for part in self._parts):
            self.sources = frozenset().union(*(part.sources or () for part in self._parts))

    def _takers(self, source: str) -> tuple[tuple[Callable[..., None], Watched], ...]:
        return tuple((part.detector.report, part) for part in self._parts if part.takes(source))

    @property
    def detectors(self) -> tuple[Detector, ...]:
        """Give the detectors, in the order given."""
        return tuple(part.detector for part in self._parts)

    def report(
        self, region: int, ok: bool, *, cause: str | None, source: str, vantage: str, group: int, gen: int, now: float
    ) -> None:
        """Hand the outcome to every detector that counts its source."""
        if region not in self._regions:
            self._regions.add(check_region(region))
        for report, part in self._takers_of.get(source, self._untold):
            try:
                report(region, ok, cause=cause, source=source, vantage=vantage, group=group, gen=gen, now=now)
            except Exception:
                part.failed("report", now)

    @property
    def resolution(self) -> float | None:
        """Give what all that count requests agree on, None where they do not."""
        wanted = {part.resolution for _, part in self._takers_of["request"]} - {0.0}
        return 0.0 if not wanted else wanted.pop() if len(wanted) == 1 else None

    def successes(self, region: int, groups: Sequence[int], *, vantage: str, gen: int, now: float) -> None:
        """Hand successes of requests to every detector that counts them."""
        if region not in self._regions:
            self._regions.add(check_region(region))
        for _, part in self._takers_of["request"]:
            part.successes(region, groups, vantage=vantage, gen=gen, now=now)

    def waiting(self, region: int, count: int, *, vantage: str, group: int, gen: int, now: float) -> None:
        """Hand the gauge of waiting requests to the detectors that take it."""
        for part in self._parts:
            part.waiting(region, count, vantage=vantage, group=group, gen=gen, now=now)

    def sweep(self, now: float) -> None:
        """Sweep every detector."""
        for part in self._parts:
            part.sweep(now)

    def verdict(self, region: int) -> Verdict | None:
        """Give the worst verdict that anybody has."""
        answer = None
        for part in self._parts:
            verdict = part.verdict(region)
            if verdict is Verdict.DOWN:
                return verdict
            answer = answer or verdict
        return answer

    def reset(self, region: int) -> None:
        """Forget the region everywhere."""
        self._regions.discard(region)
        for part in self._parts:
            part.reset(region)

    def hard(self, region: int) -> bool:
        """Say whether any detector knows by probes that the region is DOWN."""
        return any(part.hard(region) for part in self._parts)

    def excluded(self, region: int) -> frozenset[int]:
        """Give the groups that any detector excludes from the region."""
        if len(self._excluding) == 1:
            return self._excluding[0].excluded(region)
        return _NOBODY.union(*(part.excluded(region) for part in self._excluding))

    def until_change(self, region: int, now: float, *, interval: float, slack: float) -> float | None:
        """Give the least that any detector tells."""
        told = [part.until_change(region, now, interval=interval, slack=slack) for part in self._parts]
        return min((seconds for seconds in told if seconds is not None), default=None)

    def cause(self, region: int) -> str:
        """Give the reasons of those that say DOWN."""
        return "; ".join(reason for part in self._parts if (reason := part.cause(region)))
