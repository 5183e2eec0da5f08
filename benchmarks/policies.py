"""Peers' policies, a few lines each, for comparison only.

Each keeps one state per group, as one client of that system would, and picks among the regions that a detector leaves it.
`failed` is what the system itself does with a failure; who judges by a detector instead never calls it.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from statistics import median

import numpy as np

__all__ = ["PEERS", "CassandraSnitch", "DataStax", "EwmaArgmin", "MongoWindow", "PeakEwma", "Policy", "StaticGeography"]


class Policy:
    """Pick a region for a group of clients and learn from what happened. order: the group's regions, geographically nearest first."""

    def __init__(self, order: Sequence[int], rng: random.Random) -> None:
        self.order, self.rng = list(order), rng

    def pick(self, regions: Sequence[int], now: float) -> int:
        """Give one of `regions`, which are in geographic order."""
        return regions[0]

    def observe(self, region: int, ms: float, now: float) -> None:
        """Take a measured round trip."""

    def failed(self, region: int, ms: float, now: float) -> None:
        """Take a failure that was known after `ms`."""

    def sent(self, region: int) -> None:
        """Note that a request is under way."""

    def done(self, region: int) -> None:
        """Note that it ended."""


class StaticGeography(Policy):
    """The geographically nearest. Source: what GeoDNS and PowerDNS `pickclosest` do."""


class EwmaArgmin(Policy):
    """The least moving average, weight 0.2; unmeasured regions last, in geographic order.

    Source: Cloudflare Load Balancing, dynamic steering: an EWMA per pool, the failover order where there is no data.
    """

    def __init__(self, order: Sequence[int], rng: random.Random, timeouts: bool = False) -> None:
        super().__init__(order, rng)
        self.mean = dict.fromkeys(order, math.inf)
        self.timeouts = timeouts

    def pick(self, regions: Sequence[int], now: float) -> int:
        return min(regions, key=self.mean.__getitem__)

    def observe(self, region: int, ms: float, now: float) -> None:
        mean = self.mean[region]
        self.mean[region] = ms if mean == math.inf else 0.2 * ms + 0.8 * mean

    def failed(self, region: int, ms: float, now: float) -> None:
        self.observe(region, max(ms, 1000.0), now)


class MongoWindow(EwmaArgmin):
    """Of two random regions within 15 ms of the least average, the one with fewer operations under way.

    Source: MongoDB server selection specification (localThresholdMS, RTT weight 0.2, operationCount); a failure clears the average.
    """

    def __init__(self, order: Sequence[int], rng: random.Random) -> None:
        super().__init__(order, rng)
        self.operations = dict.fromkeys(order, 0)

    def pick(self, regions: Sequence[int], now: float) -> int:
        least = min(self.mean[region] for region in regions)
        window = [region for region in regions if self.mean[region] <= least + 15.0] if least < math.inf else [regions[0]]
        two = self.rng.sample(window, min(2, len(window)))
        return min(two, key=self.operations.__getitem__)

    def failed(self, region: int, ms: float, now: float) -> None:
        self.mean[region] = math.inf

    def sent(self, region: int) -> None:
        self.operations[region] += 1

    def done(self, region: int) -> None:
        self.operations[region] -= 1


class PeakEwma(Policy):
    """Least peak-sensitive average x (requests under way + 1), decaying to zero when idle; the better of two random regions.

    choices: how many random regions are compared; 0 = all, kinder between regions than Finagle's two
    Source: Finagle PeakEwma.scala: tau 10 s; a greater sample resets the average, reading lets it decay; one probe when unmeasured.
    """

    TAU = 10.0

    def __init__(self, order: Sequence[int], rng: random.Random, choices: int = 2) -> None:
        super().__init__(order, rng)
        self.mean, self.at = dict.fromkeys(order, 0.0), dict.fromkeys(order, 0.0)
        self.pending = dict.fromkeys(order, 0)
        self.choices = choices

    def pick(self, regions: Sequence[int], now: float) -> int:
        drawn = self.rng.sample(list(regions), min(self.choices, len(regions))) if self.choices else regions
        return min(drawn, key=lambda region: self._cost(region, now))

    def _cost(self, region: int, now: float) -> float:
        if self.mean[region] == 0.0:
            return 1e9 + self.pending[region] if self.pending[region] else 0.0
        return self.mean[region] * math.exp(-(now - self.at[region]) / self.TAU) * (self.pending[region] + 1)

    def observe(self, region: int, ms: float, now: float) -> None:
        w = math.exp(-max(0.0, now - self.at[region]) / self.TAU)
        decayed = self.mean[region] * w
        self.mean[region] = ms if ms > decayed else ms * (1 - w) + decayed
        self.at[region] = now

    def failed(self, region: int, ms: float, now: float) -> None:
        self.observe(region, ms, now)

    def sent(self, region: int) -> None:
        self.pending[region] += 1

    def done(self, region: int) -> None:
        self.pending[region] -= 1


class CassandraSnitch(Policy):
    """Geographic order, unless some region's median is worse than its place by more than the badness threshold; then by score.

    Source: Cassandra DynamicEndpointSnitch: median of 100 samples, scores every 100 ms, reset every 10 min, unknown = 0 (best).
    """

    def __init__(self, order: Sequence[int], rng: random.Random, badness: float = 0.1) -> None:
        super().__init__(order, rng)
        self.badness = badness
        self.samples: dict[int, deque[float]] = {region: deque(maxlen=100) for region in order}
        self.score = dict.fromkeys(order, 0.0)
        self.scored = self.reset = 0.0

    def pick(self, regions: Sequence[int], now: float) -> int:
        if now - self.scored >= 0.1:
            self._update(now)
        by_score = sorted(regions, key=self.score.__getitem__)
        bad = any(self.score[near] > self.score[best] * (1 + self.badness) for near, best in zip(regions, by_score, strict=True))
        return by_score[0] if bad else regions[0]

    def _update(self, now: float) -> None:
        self.scored = now
        if now - self.reset >= 600.0:
            self.reset = now
            for kept in self.samples.values():
                kept.clear()
        medians = {region: median(kept) if kept else 0.0 for region, kept in self.samples.items()}
        worst = max(medians.values()) or 1.0
        self.score = {region: middle / worst for region, middle in medians.items()}

    def observe(self, region: int, ms: float, now: float) -> None:
        self.samples[region].append(ms)

    def failed(self, region: int, ms: float, now: float) -> None:
        self.observe(region, ms, now)


class DataStax(Policy):
    """Geographic order, without regions whose average is over twice the least one.

    Source: DataStax Java driver, LatencyAwarePolicy: scale 100 ms, exclusion threshold 2, retry after 10 s, 50 samples at least.
    """

    SCALE, THRESHOLD, RETRY, LEAST = 0.1, 2.0, 10.0, 50

    def __init__(self, order: Sequence[int], rng: random.Random) -> None:
        super().__init__(order, rng)
        self.mean, self.at, self.count = dict.fromkeys(order, 0.0), dict.fromkeys(order, 0.0), dict.fromkeys(order, 0)

    def pick(self, regions: Sequence[int], now: float) -> int:
        fresh = [r for r in self.order if self.count[r] >= self.LEAST and now - self.at[r] <= self.RETRY]
        least = min((self.mean[region] for region in fresh), default=math.inf)
        slow = {region for region in fresh if self.mean[region] > self.THRESHOLD * least}
        return next((region for region in regions if region not in slow), regions[0])

    def observe(self, region: int, ms: float, now: float) -> None:
        d = (now - self.at[region]) / self.SCALE
        self.count[region] += 1
        if self.count[region] <= 0.3 * self.LEAST or self.mean[region] == 0.0:
            self.mean[region], self.at[region] = ms, now
        elif d > 0:
            weight = math.log(d + 1) / d
            self.mean[region] = (1 - weight) * ms + weight * self.mean[region]
            self.at[region] = now

    def failed(self, region: int, ms: float, now: float) -> None:
        self.observe(region, ms, now)


class PeakEwmaOfAll(PeakEwma):
    """Peak EWMA over all regions in place of two."""

    def __init__(self, order: Sequence[int], rng: random.Random) -> None:
        super().__init__(order, rng, choices=0)


PEERS: dict[str, type[Policy]] = {
    "static geography": StaticGeography,
    "EWMA argmin": EwmaArgmin,
    "MongoDB 15 ms window": MongoWindow,
    "Peak EWMA, two choices": PeakEwma,
    "Peak EWMA, all": PeakEwmaOfAll,
    "Cassandra snitch": CassandraSnitch,
    "DataStax latency-aware": DataStax,
}


def nearest_first(km: np.ndarray) -> list[list[int]]:
    """Give each group's regions from f64[groups, regions] km, nearest first; unknown distances keep the order of regions."""
    return np.argsort(np.nan_to_num(km), axis=1, kind="stable").tolist()
