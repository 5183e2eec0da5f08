"""Vantages vote: `tally`, the rule, and `Quorum`, which gives every vantage its own copy of a detector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Protocol, TypeVar

from lbcore.detect.protocol import Detector, Verdict, check_region

__all__ = ["MAX_VANTAGES", "Heard", "Quorum", "admit", "expire", "tally"]

MAX_VANTAGES = 64  # per region; the one silent for longest makes room
_UP, _DOWN = Verdict.UP, Verdict.DOWN


class Heard(Protocol):
    """Something that remembers when its vantage last spoke (monotonic seconds)."""

    heard: float


H = TypeVar("H", bound=Heard)


def tally(votes: Iterable[Verdict | None], last: Verdict | None, share: float = 0.5) -> Verdict | None:
    """Give the verdict of many vantages: DOWN when more than `share` of them say so, UP when more than 1 - share do, else `last`.

    votes: one per known vantage; None = known but undecided, which counts in the whole
    share: 0..1; 0.5 is the majority, and a tie keeps what was known. 0.82 is Route 53's rule, healthy while more than 18 % say so
    Source: REQUIREMENTS R34; Route 53 health checkers; LastKnownStatus of CloudWatch-backed health checks for what is undecided.
    """
    up = down = known = 0
    for vote in votes:
        known += 1
        up += vote is _UP
        down += vote is _DOWN
    if down > share * known:
        return _DOWN
    return _UP if up > (1.0 - share) * known else last


def admit(voters: MutableMapping[str, H], vantage: str, voter: H) -> H:
    """Add a voter; beyond `MAX_VANTAGES` the one silent for longest goes, so that names made up by a caller cannot fill the memory."""
    if len(voters) >= MAX_VANTAGES:
        del voters[min(voters, key=lambda name: voters[name].heard)]
    voters[vantage] = voter
    return voter


def expire(voters: MutableMapping[str, H], before: float) -> bool:
    """Drop voters not heard since `before`; say whether there were any. A vantage that is gone must not veto for ever."""
    silent = [vantage for vantage, voter in voters.items() if voter.heard < before]
    for vantage in silent:
        del voters[vantage]
    return bool(silent)


class _Seat:
    __slots__ = ("detector", "heard", "regions")

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.heard = 0.0
        self.regions: set[int] = set()


class Quorum:
    """Let every vantage judge by itself and count the votes.

    make: builds one vantage's detector, e.g. `PhiAccrual` or `lambda: SuccessRate(volume=50)`
    share: of the vantages that report on a region, see `tally`; majority by default
    expiry: seconds of silence after which a vantage loses its vote; what was decided stays until somebody decides otherwise
    Exclusions of single groups are not passed on: a path from one vantage is nothing to vote about.
    Raises ValueError for a share outside 0..1 or an expiry <= 0.
    Source: REQUIREMENTS R34 (three vantages: one cut off changes nothing, two do).
    """

    def __init__(self, make: Callable[[], Detector], *, share: float = 0.5, expiry: float = 600.0) -> None:
        if not (0 <= share <= 1 and expiry > 0):
            raise ValueError(f"a quorum needs a share within 0..1 and an expiry > 0, got {share!r}, {expiry!r}")
        self._make, self._share, self._expiry = make, share, expiry
        self._seats: dict[str, _Seat] = {}
        self._verdicts: dict[int, Verdict | None] = {}

    def report(
        self, region: int, ok: bool, *, cause: str | None, source: str, vantage: str, group: int, gen: int, now: float
    ) -> None:
        """Hand the outcome to its vantage's own detector and count again."""
        if region not in self._verdicts:
            self._verdicts[check_region(region)] = None
        seat = self._seats.get(vantage) or admit(self._seats, vantage, _Seat(self._make()))
        seat.heard = max(seat.heard, now)
        seat.regions.add(region)
        seat.detector.report(region, ok, cause=cause, source=source, vantage=vantage, group=group, gen=gen, now=now)
        self._count(region)

    def sweep(self, now: float) -> None:
        """Sweep every vantage's detector, drop the silent ones and count again."""
        expire(self._seats, now - self._expiry)
        for seat in self._seats.values():
            seat.detector.sweep(now)
        for region in self._verdicts:
            self._count(region)

    def verdict(self, region: int) -> Verdict | None:
        """Give what the vantages decided last."""
        return self._verdicts.get(region)

    def reset(self, region: int) -> None:
        """Forget the region at every vantage."""
        self._verdicts.pop(region, None)
        for seat in self._seats.values():
            seat.regions.discard(region)
            seat.detector.reset(region)

    def hard(self, region: int) -> bool:
        """Say whether the region is DOWN and every vantage that says so knows it by probes."""
        blaming = [seat.detector for seat in self._voters(region) if seat.detector.verdict(region) is _DOWN]
        return self.verdict(region) is _DOWN and bool(blaming) and all(getattr(d, "hard", lambda _: False)(region) for d in blaming)

    def cause(self, region: int) -> str:
        """Name the vantages that say DOWN."""
        blaming = [name for name, seat in self._seats.items() if region in seat.regions and seat.detector.verdict(region) is _DOWN]
        return f"down from {len(blaming)} of {len(self._voters(region))} vantages: {', '.join(blaming)}" if blaming else ""

    def until_change(self, region: int, now: float, *, interval: float, slack: float) -> float | None:
        """Give the least that any vantage's detector tells, or until one that falls silent loses its vote."""
        told = []
        for seat in self._voters(region):
            method = getattr(seat.detector, "until_change", None)
            told.append(method(region, now, interval=interval, slack=slack) if method else None)
            told.append(max(0.0, seat.heard + self._expiry - now))
        return None if None in told else min((seconds for seconds in told if seconds is not None), default=None)

    def _voters(self, region: int) -> list[_Seat]:
        return [seat for seat in self._seats.values() if region in seat.regions]

    def _count(self, region: int) -> None:
        votes = (seat.detector.verdict(region) for seat in self._voters(region))
        self._verdicts[region] = tally(votes, self._verdicts[region], self._share)
