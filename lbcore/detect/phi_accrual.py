"""PhiAccrual: how unlikely is it that a region still lives, given how regularly its probes used to succeed?

Silence is the evidence: each success of a probe is a heartbeat, a failure is only one that did not come. So it needs a prober that runs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from lbcore.detect.protocol import Verdict, check_region
from lbcore.detect.quorum import admit, expire, tally

__all__ = ["PhiAccrual", "phi"]

_UP, _DOWN = Verdict.UP, Verdict.DOWN
TAILS = ("logistic", "erfc", "exponential")


def phi(elapsed: float, mean: float, deviation: float, tail: str = "logistic") -> float:
    """Give -log10 of the chance that a heartbeat comes later than `elapsed`; 8 means 1 in 10^8. May be inf.

    elapsed, mean, deviation: in one unit; deviation > 0, mean > 0
    tail: "logistic", Akka's approximation of the Gaussian, which overstates far tails (10.78 for 9.01 at six deviations);
        "erfc", the Gaussian itself; "exponential", Cassandra's, which ignores the deviation
    Raises ValueError for another tail.
    Source: Hayashibara et al., The phi accrual failure detector (2004); akka.remote.PhiAccrualFailureDetector.phi; Cassandra
    gms.FailureDetector (PHI_FACTOR = 1 / ln 10).
    """
    if tail == "exponential":
        return max(0.0, elapsed) / mean / math.log(10.0)
    y = (elapsed - mean) / deviation
    if tail == "erfc":
        return _minus_log10(0.5 * math.erfc(y / math.sqrt(2.0)))
    if tail != "logistic":
        raise ValueError(f"tail must be one of {', '.join(TAILS)}, got {tail!r}")
    # e overflows below some -20 deviations, where the chance is 1, and vanishes above +20, where it is 0
    e = math.exp(-y * (1.5976 + 0.070566 * y * y)) if y > -20.0 else math.inf
    return _minus_log10(e / (1.0 + e) if elapsed > mean else 1.0 - 1.0 / (1.0 + e))


def _minus_log10(chance: float) -> float:
    return -math.log10(chance) + 0.0 if chance > 0.0 else math.inf  # + 0.0: no "-0.0"


class _Beats:
    """The intervals between one vantage's heartbeats: exact sums over whole microseconds, so that nothing drifts."""

    __slots__ = ("_intervals", "_squares", "_sum", "heard", "verdict")

    def __init__(self, samples: int, now: float, first: Iterable[float]) -> None:
        self._intervals: deque[int] = deque(maxlen=samples)
        self._sum = self._squares = 0
        self.heard = now
        self.verdict: Verdict | None = None
        for seconds in first:
            self.add(seconds)

    def add(self, seconds: float) -> None:
        if len(self._intervals) == self._intervals.maxlen:
            oldest = self._intervals[0]
            self._sum -= oldest
            self._squares -= oldest * oldest
        micros = round(seconds * 1e6)
        self._intervals.append(micros)
        self._sum += micros
        self._squares += micros * micros

    @property
    def mean(self) -> float:
        return self._sum / len(self._intervals) / 1e6

    @property
    def deviation(self) -> float:
        count = len(self._intervals)
        return math.sqrt(count * self._squares - self._sum * self._sum) / count / 1e6


class _Region:
    __slots__ = ("beats", "verdict")

    def __init__(self) -> None:
        self.beats: dict[str, _Beats] = {}
        self.verdict: Verdict | None = None


class PhiAccrual:
    """Suspect a region by the length of its silence, per vantage; vantages decide by majority. Verdicts change at sweeps only.

    interval: seconds expected between heartbeats; set it to the probe interval. It stands in for history until there is some
    threshold: phi from which on a vantage says DOWN. 8 is the default of Akka and Cassandra; Akka advises 12 on uneasy networks
    tail: see `phi`
    samples: intervals remembered per region and vantage
    min_deviation: seconds, a floor that keeps a very regular history from panicking; default interval / 10
    pause: seconds of silence on top of the mean that are still in order; default 3 intervals. Not used by "exponential"
    local_pause: after so many seconds without a sweep nobody is suspected for as long again: it was us who slept
    sources, share, expiry: as for `Consecutive`
    The first heartbeat after DOWN is not added to the history: an outage must not teach that silence is normal. "exponential" leaves out
    intervals longer than twice `interval` instead.
    DOWN is hard: it rests on probes.
    Raises ValueError for values out of range.
    Source: akka-cluster reference.conf (heartbeats 1 s: threshold 8, 1000 samples, min-std-deviation 100 ms, acceptable-heartbeat-pause
    3 s; the first history is interval -/+ interval / 4); Cassandra gms.FailureDetector (1000 samples, threshold 8, first sample and
    longest interval two gossip intervals, local pause 5 s).
    """

    def __init__(
        self, interval: float = 5.0, *, threshold: float = 8.0, tail: str = "logistic", samples: int = 1000,
        min_deviation: float | None = None, pause: float | None = None, local_pause: float = 5.0,
        sources: Iterable[str] = ("probe",), share: float = 0.5, expiry: float = 86400.0,
    ) -> None:  # fmt: skip
        self._deviation = interval / 10.0 if min_deviation is None else min_deviation
        self._pause = 3.0 * interval if pause is None else pause
        numbers = (interval, threshold, samples, self._deviation, local_pause, expiry)
        if not (all(number > 0 for number in numbers) and self._pause >= 0 and 0 <= share <= 1 and math.isfinite(interval)):
            raise ValueError(f"PhiAccrual needs numbers > 0, pause >= 0 and a share within 0..1, got {numbers}, {self._pause!r}, {share!r}")
        if tail not in TAILS:
            raise ValueError(f"tail must be one of {', '.join(TAILS)}, got {tail!r}")
        self.sources = frozenset(sources)
        self._interval, self._threshold, self._tail, self._samples = interval, threshold, tail, samples
        self._local_pause, self._share, self._expiry = local_pause, share, expiry
        self._first = (2.0 * interval,) if tail == "exponential" else (0.75 * interval, 1.25 * interval)
        self._longest = 2.0 * interval if tail == "exponential" else math.inf
        self._regions: dict[int, _Region] = {}
        self._swept = math.inf
        self._awake_from = -math.inf

    def report(
        self, region: int, ok: bool, *, cause: str | None, source: str, vantage: str, group: int, gen: int, now: float
    ) -> None:
        """Note a heartbeat: a success of a source that is counted."""
        if not ok or source not in self.sources:
            return
        watch = self._regions.get(region)
        if watch is None:
            watch = self._regions[check_region(region)] = _Region()
        beats = watch.beats.get(vantage)
        if beats is None:
            admit(watch.beats, vantage, _Beats(self._samples, now, self._first))
            return
        elapsed = now - beats.heard
        if 0.0 <= elapsed <= self._longest and self._phi(beats, now) < self._threshold:
            beats.add(elapsed)
        beats.heard = max(beats.heard, now)

    def sweep(self, now: float) -> None:
        """Work out phi of every region and vantage, and settle the verdicts."""
        if now - self._swept > self._local_pause:
            self._awake_from = now + self._local_pause
        self._swept = now
        for watch in self._regions.values():
            if watch.beats:
                expire(watch.beats, now - self._expiry)
            for beats in watch.beats.values():
                self._suspect(beats, now)
            watch.verdict = tally((beats.verdict for beats in watch.beats.values()), watch.verdict, self._share)

    def _suspect(self, beats: _Beats, now: float) -> None:
        if self._phi(beats, now) < self._threshold:
            beats.verdict = _UP
        elif now >= self._awake_from:
            beats.verdict = _DOWN

    def phi(self, region: int, now: float, vantage: str | None = None) -> float:
        """Give phi as one vantage sees it, or the least suspicious of all; 0 without any heartbeat."""
        watch = self._regions.get(region)
        beats = watch.beats if watch else {}
        return min((self._phi(b, now) for name, b in beats.items() if vantage in (None, name)), default=0.0)

    def _phi(self, beats: _Beats, now: float) -> float:
        mean = beats.mean + (0.0 if self._tail == "exponential" else self._pause)
        return phi(now - beats.heard, max(mean, 1e-6), max(beats.deviation, self._deviation), self._tail)

    def verdict(self, region: int) -> Verdict | None:
        """Give the verdict of the last sweep; None without any heartbeat so far."""
        watch = self._regions.get(region)
        return watch.verdict if watch else None

    def reset(self, region: int) -> None:
        """Forget the region's heartbeats."""
        self._regions.pop(region, None)

    def hard(self, region: int) -> bool:
        """Say whether the region is DOWN; if so, probes say it."""
        return self.sources == {"probe"} and self.verdict(region) is _DOWN

    def cause(self, region: int) -> str:
        """Say for how long there was no heartbeat; "" unless DOWN."""
        watch = self._regions.get(region)
        if watch is None or watch.verdict is not _DOWN or not watch.beats:
            return ""
        silence = self._swept - max(beats.heard for beats in watch.beats.values())
        return f"no heartbeat for {silence:.1f} s, phi >= {self._threshold:g}"
