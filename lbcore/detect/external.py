"""External: what somebody else knows, such as the operator, a provider's status feed or routing data."""

from __future__ import annotations

import math

from lbcore.detect.protocol import Verdict, check_region

__all__ = ["External"]

_STALE = ("healthy", "unhealthy", "last_known")


class _Statement:
    __slots__ = ("cause", "until", "verdict")

    def __init__(self, verdict: Verdict, until: float, cause: str) -> None:
        self.verdict: Verdict | None = verdict
        self.until = until
        self.cause = cause


class External:
    """Repeat what was last said of a region: by `set`, or by reports with source "external".

    expiry: seconds that a statement holds unless it says otherwise; None = for ever
    stale: what counts once it has run out: "healthy", "unhealthy" or "last_known"
    hard: a statement is no statistic; `limit_ejections` lets it pass. False for a feed that is itself a guess
    A region of which nothing was said, or whose statement was cleared, has no verdict.
    Raises ValueError for values out of range.
    Source: Route 53 health checks on CloudWatch alarms, InsufficientDataHealthStatus (Healthy | Unhealthy | LastKnownStatus).
    """

    sources = frozenset({"external"})

    def __init__(self, *, expiry: float | None = None, stale: str = "last_known", hard: bool = True) -> None:
        if expiry is not None and not expiry > 0:
            raise ValueError(f"expiry must be > 0 or None, got {expiry!r}")
        if stale not in _STALE:
            raise ValueError(f"stale must be one of {', '.join(_STALE)}, got {stale!r}")
        self._expiry = math.inf if expiry is None else expiry
        self._stale, self._hard = stale, hard
        self._said: dict[int, _Statement] = {}

    def set(self, region: int, verdict: Verdict, now: float, *, expiry: float | None = None, cause: str = "") -> None:
        """State a verdict at `now`, for `expiry` seconds (None: the detector's own); it replaces the one before."""
        holds = self._expiry if expiry is None else expiry
        self._said[check_region(region)] = _Statement(verdict, now + holds, cause)

    def clear(self, region: int) -> None:
        """Take back what was said of the region."""
        self._said.pop(region, None)

    def report(
        self, region: int, ok: bool, *, cause: str | None, source: str, vantage: str, group: int, gen: int, now: float
    ) -> None:
        """Take an external outcome as a statement; other sources are none."""
        if source == "external":
            self.set(region, Verdict.UP if ok else Verdict.DOWN, now, cause=cause or "")

    def sweep(self, now: float) -> None:
        """Let statements run out."""
        for said in self._said.values():
            if now >= said.until:
                said.until = math.inf
                if self._stale != "last_known":
                    said.verdict = Verdict.UP if self._stale == "healthy" else Verdict.DOWN
                    said.cause = f"nothing heard any more, taken for {self._stale}"

    def verdict(self, region: int) -> Verdict | None:
        """Give what was said last, or what its staleness makes of it; None without a statement."""
        said = self._said.get(region)
        return said.verdict if said else None

    def reset(self, region: int) -> None:
        """Forget what was said of the region."""
        self.clear(region)

    def hard(self, region: int) -> bool:
        """Say whether the region was declared DOWN by somebody to be trusted."""
        return self._hard and self.verdict(region) is Verdict.DOWN

    def cause(self, region: int) -> str:
        """Give the reason that came with the statement; "" unless DOWN."""
        said = self._said.get(region)
        return (said.cause or "declared down") if said and said.verdict is Verdict.DOWN else ""
