"""Timing: how long an outage lasts for clients with these monitor settings, by arithmetic.

A gateway that dies at any moment is probed next within one interval; failure number tolerated + 1 in a row condemns it. A gateway that
refuses is found out at the start of that probe, one that says nothing `timeout` later. Then DNS answers live on for their TTL.

    fails   probe 1   probe 2   probe 3 (tolerated = 2)
      |-phi->|----I----|----I----|--T--> down: phi + N*I + T, 0 <= phi < I     then publish + TTL: the last client has moved

Source: REQUIREMENTS §2.4; azure-docs#104593 has the upper bound of probes that are paced from end to start (`end_to_start`), lbcore's
Prober paces them from start to start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lbcore.sense.monitor import Monitor

__all__ = ["Failover", "Span", "failover", "passive"]

RAMP = 30.0  # seconds until a recovered region has its full share again (DESIGN §3)


@dataclass(frozen=True, slots=True)
class Span:
    """The shortest and the longest time something takes, seconds."""

    shortest: float
    longest: float

    @property
    def mean(self) -> float:
        """Give the mean over all moments at which it may begin."""
        return (self.shortest + self.longest) / 2

    def plus(self, seconds: float) -> Span:
        """Give the span of what takes so much longer."""
        return Span(self.shortest + seconds, self.longest + seconds)

    def as_list(self) -> list[float]:
        """Give [shortest, longest], to the millisecond."""
        return [round(self.shortest, 3), round(self.longest, 3)]


@dataclass(frozen=True, slots=True)
class Failover:
    """The times that monitor settings give; seconds.

    detect_silent: until a gateway that does not answer at all is down;  detect_refused: until one that refuses is
    end_to_start: as detect_silent, of a prober that waits the interval after each probe
    worst, worst_refused: until the last client whose resolver keeps to the TTL is sent elsewhere
    recover: until a gateway that is back is up;  full_share: until it has all its clients again, TTL included
    Connections that clients hold open are theirs to give up; resolvers that exceed the TTL are not counted.
    """

    detect_silent: Span
    detect_refused: Span
    end_to_start: Span
    worst: float
    worst_refused: float
    worst_end_to_start: float
    recover: Span
    full_share: float

    def as_dict(self) -> dict[str, Any]:
        """Give it for JSON, in seconds."""
        return {
            "detectSilent": self.detect_silent.as_list(), "detectRefused": self.detect_refused.as_list(),
            "detectEndToStart": self.end_to_start.as_list(), "worst": round(self.worst, 3), "worstRefused": round(self.worst_refused, 3),
            "worstEndToStart": round(self.worst_end_to_start, 3), "recover": self.recover.as_list(),
            "fullShare": round(self.full_share, 3),
        }  # fmt: skip


def failover(monitor: Monitor, ttl: float, *, publish: float = 0.0) -> Failover:
    """Give the times for monitor settings and a TTL, seconds. publish: between the verdict and the first answer that heeds it."""
    interval, timeout, tolerated = monitor.interval, monitor.timeout, monitor.tolerated
    refused = Span(tolerated * interval, (tolerated + 1) * interval)
    silent = refused.plus(timeout)
    paced = Span(tolerated * (interval + timeout) + timeout, (tolerated + 1) * (interval + timeout))
    recover = Span((monitor.rise - 1) * interval, monitor.rise * interval)
    return Failover(
        silent, refused, paced, silent.longest + publish + ttl, refused.longest + publish + ttl, paced.longest + publish + ttl,
        recover, recover.longest + publish + RAMP + ttl,
    )  # fmt: skip


def passive(rate: float, failures: int = 5, timeout: float = 0.0) -> float:
    """Give the longest time until requests themselves condemn a region, seconds: `failures` in a row at `rate` a second, then a timeout."""
    if not rate > 0:
        raise ValueError(f"rate must be above 0 requests a second, got {rate!r}")
    return failures / rate + timeout
