"""Synthetic worlds: what is true of groups x regions over time, seeded, for policies to be judged by.

A world knows what no policy may see: the mean round trip and the failure probability of every pair at every moment. It
hands out requests (whoever serves chooses the region) and beacons (measurements of all regions), and says how each ended.
Every request carries its own luck, so two policies that choose alike see the same, and seeds can be compared in pairs.
Source: the axes of variation are those of docs/design.md "Worlds"; base round trips are the published ones (NOTICE).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lbcore._prefix import PrefixMap
from lbcore.region import CataloguedRegion, Region, catalogue
from lbcore.sense.prior import Precision, great_circle_km, published_ms
from lbcore.sim.replay import Event, Outcome, Query, Sample

__all__ = ["Outage", "Reply", "Request", "Weather", "World", "events", "season"]

F64 = NDArray[np.float64]
Kind = Literal["hard", "refused", "gray", "slow", "flapping", "local"]

FIRST_CLIENT = 20 << 24  # group g has the network 20.0.g.0/24
ACCESS_MS_PER_KM = 0.018
PATH_EVENTS: tuple[tuple[float, float], ...] = ((8.0, 1.0), (20.0, 1.0), (60.0, 1.0), (120.0, 1.0), (0.0, 0.7))  # (added ms, factor)
EVENT_SECONDS = 1200.0  # mean time that a path event lasts
GRAY = 0.3
SLOW = 3.0
FLAP = 20  # seconds down, then as many up


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How a world behaves.

    error: deviation of the log of true / published round trips; mislocated: share of groups whose location is wrong
    near_ties: share of groups whose two best regions differ by less than 5 ms
    path_events: changes of a path per group and hour; diurnal: amplitude of the daily swing, a share
    noise: deviation of the log of a single measurement; tail: share of measurements with a Pareto excess
    failures: share of requests that fail for no reason
    """

    error: float = 0.2
    mislocated: float = 0.1
    near_ties: float = 0.2
    path_events: float = 3.0
    diurnal: float = 0.08
    noise: float = 0.1
    tail: float = 0.01
    failures: float = 0.01


@dataclass(frozen=True, slots=True)
class Outage:
    """From `start` to `end` seconds a region (index) fails.

    kind: "hard" answers nothing; "refused" refuses at once; "gray" fails three requests in ten; "slow" takes three times as
    long; "flapping" is hard for 20 s and well for 20 s; "local" is hard for a third of the groups
    """

    region: int
    start: float
    end: float
    kind: Kind = "hard"


@dataclass(frozen=True, slots=True)
class Request:
    """At `at` seconds somebody of a group asks; noise and luck decide how it ends, wherever it goes."""

    at: float
    group: int
    noise: float
    luck: float


@dataclass(frozen=True, slots=True)
class Reply:
    """How a request ended: known at `at` seconds, after `ms`; `cause` as `Balancer.report` takes it, None = it succeeded."""

    at: float
    ms: float
    cause: str | None

    @property
    def ok(self) -> bool:
        """Say whether it succeeded."""
        return self.cause is None


class World:
    """True round trips and failures of groups x regions over `duration` seconds; the same for the same seed and arguments.

    regions: with coordinates or names of the catalogue; groups: how many client networks
    Memory: 16 bytes x duration / step x groups x regions. Raises ValueError for no regions or groups, or no time.
    """

    def __init__(
        self, regions: Sequence[Region], groups: int = 60, duration: float = 1800.0, *,
        seed: int = 1, weather: Weather | None = None, outages: Sequence[Outage] = (), step: float = 1.0,
    ) -> None:  # fmt: skip
        if not (regions and groups > 0 and duration > 0 and step > 0):
            raise ValueError(f"a world needs regions, groups, duration and step, got {len(regions)}, {groups}, {duration}, {step}")
        self.regions, self.groups, self.duration = tuple(regions), groups, duration
        self.weather, self.outages = weather or Weather(), tuple(outages)
        self._step, self._seed = step, seed
        rng = np.random.default_rng([seed, 0])
        places = _client_places(self.regions)
        homes = [places[i] for i in rng.integers(0, len(places), groups)]
        spots = np.array([(place.lat, place.lon) for place in homes]) + rng.normal(0, 4, (groups, 2))
        spots = np.clip(spots, (-85, -180), (85, 180))
        base = _tie(_base(spots, homes, self.regions, self.weather, rng), self.weather.near_ties, rng)
        self.map = self._map(spots, places, rng)
        self.clients = tuple(f"20.{g >> 16 & 255}.{g >> 8 & 255}.{g & 255}" for g in range(256, 256 * groups + 1, 256))
        self.ms = self._over_time(base, spots[:, 1], rng)
        self.failing = np.full_like(self.ms, self.weather.failures)
        self.refuses = np.zeros((len(self.ms), len(self.regions)), np.bool_)
        for outage in self.outages:
            self._break(outage)

    # ---- what is true

    def round_trips(self, now: float) -> F64:
        """Give the mean round trips at `now`: f64[groups, regions], milliseconds."""
        found: F64 = self.ms[self._index(now)]
        return found

    def expected(self, now: float, timeout: float = 1.0) -> F64:
        """Give what a request costs on average at `now`, a failure costing the timeout (seconds): f64[groups, regions], ms."""
        at = self._index(now)
        wait = np.where(self.failing[at] > self.weather.failures, timeout * 1000.0, self.ms[at])
        return np.asarray(self.ms[at] * (1 - self.failing[at]) + wait * self.failing[at])

    def reply(self, request: Request, region: int, timeout: float = 1.0) -> Reply:
        """Give how a request ends when it goes to a region; without an answer it ends after `timeout` seconds."""
        at = self._index(request.at)
        ms = float(self.ms[at, request.group, region]) * request.noise
        failing = float(self.failing[at, request.group, region])
        cause: str | None = None
        if request.luck < failing:
            cause = "reset" if failing <= self.weather.failures else "refused" if self.refuses[at, region] else "timeout"
        if cause == "timeout" or ms > timeout * 1000.0:
            ms, cause = timeout * 1000.0, "timeout"
        return Reply(request.at + ms / 1000.0, ms, cause)

    def _index(self, now: float) -> int:
        return min(max(int(now / self._step), 0), len(self.ms) - 1)

    # ---- who asks

    def requests(self, rate: float = 1.0) -> Iterator[Request]:
        """Give requests in order of time, `rate` a second from each group, at random instants (Poisson)."""
        rng = np.random.default_rng([self._seed, 1])
        n = int(rng.poisson(rate * self.groups * self.duration))
        return self._drawn(np.sort(rng.uniform(0, self.duration, n)), rng.integers(0, self.groups, n), rng)

    def beacons(self, interval: float = 10.0) -> Iterator[tuple[Request, int]]:
        """Give measurements in order of time: each group reaches out to each region every `interval` seconds, at its own phase."""
        rng = np.random.default_rng([self._seed, 2])
        pairs = self.groups * len(self.regions)
        rounds = np.arange(0, self.duration, interval)[:, np.newaxis] + rng.uniform(0, interval, pairs)
        order = np.argsort(rounds, axis=None, kind="stable")
        at, pair = rounds.ravel()[order], np.tile(np.arange(pairs), len(rounds))[order]
        inside = at < self.duration
        regions = (pair[inside] % len(self.regions)).tolist()
        return zip(self._drawn(at[inside], pair[inside] // len(self.regions), rng), regions, strict=True)

    def _drawn(self, at: F64, groups: NDArray[np.int64], rng: np.random.Generator) -> Iterator[Request]:
        n = len(at)
        excess = np.where(rng.random(n) < self.weather.tail, rng.pareto(1.5, n), 0.0)
        noise = rng.lognormal(0, self.weather.noise, n) * (1 + excess)
        columns = at.tolist(), groups.tolist(), noise.tolist(), rng.random(n).tolist()
        return (Request(*fields) for fields in zip(*columns, strict=True))

    # ---- how it is made

    def _map(self, spots: F64, places: Sequence[CataloguedRegion], rng: np.random.Generator) -> PrefixMap:
        """Give the prefix map: group g of the world is group g + 1 of the map, some of them at a wrong place."""
        known = spots.copy()
        for g in np.flatnonzero(rng.random(self.groups) < self.weather.mislocated):
            place = places[int(rng.integers(0, len(places)))]
            known[g] = place.lat, place.lon
        starts = np.array([FIRST_CLIENT + 256 * (g + 1) for g in range(self.groups + 1)], np.uint32)
        groups = np.array([*range(1, self.groups + 1), 0], np.uint32)
        nothing = np.array([np.nan])
        lat, lon = (np.concatenate([nothing, known[:, axis]]).astype(np.float32) for axis in (0, 1))
        precision = np.array([Precision.NONE] + [Precision.POINT] * self.groups, np.uint8)
        keys = ["", *(f"world/{g}" for g in range(self.groups))]
        zero = np.array([0], np.uint32)
        v4 = np.concatenate([zero, starts]), np.concatenate([zero, groups])
        return PrefixMap.from_ranges(*v4, np.zeros(1, np.uint64), zero, keys, lat, lon, precision=precision)

    def _over_time(self, base: F64, lon: F64, rng: np.random.Generator) -> F64:
        steps = int(np.ceil(self.duration / self._step))
        seconds = np.arange(steps) * self._step
        swing = 1 + self.weather.diurnal * np.sin(2 * np.pi * (seconds[:, np.newaxis] / 86400 + lon / 360))
        ms = base[np.newaxis] * swing[:, :, np.newaxis]
        for group in range(self.groups):
            for start in rng.uniform(0, self.duration, rng.poisson(self.weather.path_events * self.duration / 3600)):
                region = int(base[group].argmin()) if rng.random() < 0.5 else int(rng.integers(0, base.shape[1]))
                added, factor = PATH_EVENTS[int(rng.integers(0, len(PATH_EVENTS)))]
                span = slice(self._index_of(start), self._index_of(start + rng.exponential(EVENT_SECONDS)) + 1)
                ms[span, group, region] = ms[span, group, region] * factor + added
        return np.asarray(ms)

    def _index_of(self, seconds: float) -> int:
        return int(seconds / self._step)

    def _break(self, outage: Outage) -> None:
        at = np.arange(self._index_of(outage.start), min(self._index_of(outage.end), len(self.ms)))
        if outage.kind == "slow":
            self.ms[at, :, outage.region] *= SLOW
            return
        if outage.kind == "flapping":
            at = at[(at * self._step - outage.start) % (2 * FLAP) < FLAP]
        groups = np.arange(outage.region % 3, self.groups, 3) if outage.kind == "local" else np.arange(self.groups)
        self.failing[at[:, np.newaxis], groups, outage.region] = GRAY if outage.kind == "gray" else 1.0
        self.refuses[at, outage.region] = outage.kind == "refused"


def _client_places(regions: Sequence[Region]) -> list[CataloguedRegion]:
    """Give the catalogued places whose round trips to all regions are published (or that are such a region)."""
    names = [region.name for region in regions]
    found = [
        place
        for place in catalogue().values()
        if all(place.name == name or published_ms(place.name, name) is not None for name in names)
    ]
    if not found:
        raise ValueError(f"no place has published round trips to all of {', '.join(names)}; take regions of one provider")
    return found


def _base(
    spots: F64, homes: Sequence[CataloguedRegion], regions: Sequence[Region], weather: Weather, rng: np.random.Generator
) -> F64:
    """Give round trips without weather: published ones from the nearest known place, the way there, the last mile, an error."""
    published = np.array([[published_ms(home.name, region.name) or 2.0 for region in regions] for home in homes])
    km = np.array([great_circle_km(lat, lon, home.lat, home.lon)[0, 0] for (lat, lon), home in zip(spots.tolist(), homes, strict=True)])
    last_mile = rng.lognormal(np.log(6.0), 0.5, len(homes))
    error = rng.lognormal(0, weather.error, published.shape)
    return np.asarray(published * error + (ACCESS_MS_PER_KM * km + last_mile)[:, np.newaxis])


def _tie(base: F64, share: float, rng: np.random.Generator) -> F64:
    """Bring the second best region of a share of the groups within 5 ms of the best."""
    if base.shape[1] > 1:
        for group in np.flatnonzero(rng.random(len(base)) < share):
            best, second = np.argsort(base[group])[:2]
            base[group, second] = base[group, best] + rng.uniform(0, 5)
    return base


def season(regions: int, duration: float, seed: int, length: float = 120.0) -> tuple[Outage, ...]:
    """Give one outage of each kind, evenly over `duration`, each of `length` seconds and of a random region."""
    rng = np.random.default_rng([seed, 3])
    kinds: list[Kind] = ["hard", "refused", "gray", "slow", "flapping", "local"]
    starts = (np.arange(len(kinds)) + 0.3) * duration / len(kinds)
    order = zip(starts.tolist(), rng.permutation(len(kinds)).tolist(), strict=True)
    return tuple(Outage(int(rng.integers(0, regions)), start, start + length, kinds[kind]) for start, kind in order)


def events(world: World, rate: float = 1.0, interval: float = 10.0) -> Iterator[Event]:
    """Give a world as a recording for `replay`: every beacon as Sample and Outcome, every request as Query, in order of time.

    rate: queries per second and group; interval: seconds between a group's beacons to one region
    """
    queries = (Query(request.at, world.clients[request.group]) for request in world.requests(rate))
    return heapq.merge(queries, _measured(world, interval), key=lambda event: event.at)


def _measured(world: World, interval: float) -> Iterator[Event]:
    found = ((world.reply(request, region), request, region) for request, region in world.beacons(interval))
    pending: list[tuple[float, int, Event]] = []
    for number, (reply, request, region) in enumerate(found):
        name, client = world.regions[region].name, world.clients[request.group]
        while pending and pending[0][0] <= request.at:
            yield heapq.heappop(pending)[2]
        heapq.heappush(pending, (reply.at, 2 * number, Outcome(reply.at, name, reply.ok, client, reply.cause)))
        if reply.ok:
            heapq.heappush(pending, (reply.at, 2 * number + 1, Sample(reply.at, name, reply.ms, client)))
    while pending:
        yield heapq.heappop(pending)[2]
