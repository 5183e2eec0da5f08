"""How well lbcore and its peers decide in synthetic worlds with drift and outages.

    python benchmarks/decisions_world.py                    held-out seeds 100 to 104
    python benchmarks/decisions_world.py --seeds 20         100 to 119
    python benchmarks/decisions_world.py --dev              the seeds on which parameters were chosen, 1 to 10

Regret: what a request is expected to cost where it was sent, minus the same at the best region at that moment; a failure
costs the timeout of 1 s. Every policy meets the same worlds, requests, beacons (each group measures each region every 10 s),
probes and detector; so what differs is the estimate and the choice. With --native peers treat failures in their own way, without one.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from typing import Protocol

import numpy as np
from policies import PEERS, Policy, StaticGeography, nearest_first
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import lbcore
from lbcore.detect import Guard, VantageSuspect, Verdict, default_detector, limit_ejections
from lbcore.sense.prior import great_circle_km
from lbcore.sim import Request, VirtualClock, World, season

REGIONS = ("westeurope", "eastus", "southeastasia", "brazilsouth", "australiaeast", "uaenorth")
GROUPS, DURATION, RATE, BEACON = 40, 3600.0, 1.0, 10.0
TIMEOUT, PROBE = 1.0, 5.0
RECOVERY = 300.0  # seconds after an outage
DEV, HELD_OUT = range(1, 11), 100
BOUND = "(the truth, 10 s late)"
HOW = ("refused", "timeout", "timeout, waiting told")
WAITING = 0.3  # seconds after which a request counts as waiting


class Chooser(Protocol):
    """One policy as the simulation meets it."""

    def pick(self, group: int, now: float) -> int: ...
    def learn(self, group: int, region: int, ms: float, cause: str | None, now: float) -> None: ...
    def probed(self, region: int, ok: bool, now: float) -> None: ...
    def tick(self, now: float) -> None: ...
    def sent(self, group: int, region: int) -> None: ...
    def done(self, group: int, region: int) -> None: ...


class Lbcore:
    """The real Balancer, on the world's clock."""

    def __init__(self, world: World, seed: int) -> None:
        self.clock, self.world = VirtualClock(), world
        self.lb = lbcore.Balancer(world.regions, locate=world.map, clock=self.clock)
        self.names = [region.name for region in world.regions]
        self.slots = {name: slot for slot, name in enumerate(self.names)}
        self.homes, self.moves = self.lb.table.homes(), list[float]()

    def pick(self, group: int, now: float) -> int:
        return self.slots[self.lb.pick(self.world.clients[group]).name]

    def learn(self, group: int, region: int, ms: float, cause: str | None, now: float) -> None:
        self.clock.advance(now)
        client, name = self.world.clients[group], self.names[region]
        if cause is None:
            self.lb.observe(name, ms, client)
        self.lb.report(name, cause is None, client, cause=cause)

    def probed(self, region: int, ok: bool, now: float) -> None:
        self.clock.advance(now)
        self.lb.report(self.names[region], ok, cause=None if ok else "timeout", source="probe")

    def tick(self, now: float) -> None:
        self.clock.advance(now)
        self.lb.tick()
        homes = self.lb.table.homes()
        if now > 1:
            self.moves += [now] * int((homes != self.homes)[1:].sum())
        self.homes = homes

    def sent(self, group: int, region: int) -> None: ...
    def done(self, group: int, region: int) -> None: ...


class Peer:
    """A peer's policy, one instance per group, behind the detector that the Balancer has; native: behind none."""

    def __init__(self, make: type[Policy], native: bool, world: World, seed: int) -> None:
        lat, lon = world.map.locations
        places = np.array([(region.lat, region.lon) for region in world.regions], np.float64)
        km = great_circle_km(lat[1:], lon[1:], places[:, 0], places[:, 1])
        rng = random.Random(seed * 1000 + zlib.crc32(make.__name__.encode()))
        self.policies = [make(order, rng) for order in nearest_first(km)]
        self.guard = None if native else Guard(default_detector(), suspect=VantageSuspect)
        self.down: frozenset[int] = frozenset()
        self.excluded: dict[int, frozenset[int]] = {}
        self.count = len(world.regions)

    def pick(self, group: int, now: float) -> int:
        return self.policies[group].pick(self.available(group), now)

    def available(self, group: int) -> list[int]:
        """Give the regions that the detector leaves the group, nearest first; all of them when it leaves none."""
        order = self.policies[group].order
        if not self.down and not self.excluded:
            return order
        up = [region for region in order if region not in self.down]
        return [region for region in up if group not in self.excluded.get(region, ())] or up or order

    def learn(self, group: int, region: int, ms: float, cause: str | None, now: float) -> None:
        policy = self.policies[group]
        if cause is None:
            policy.observe(region, ms, now)
        elif self.guard is None:
            policy.failed(region, ms, now)
        self._report(region, cause, "request", group, now)

    def probed(self, region: int, ok: bool, now: float) -> None:
        self._report(region, None if ok else "timeout", "probe", -1, now)

    def _report(self, region: int, cause: str | None, source: str, group: int, now: float) -> None:
        if self.guard is not None:
            gen = self.guard.generation(region)
            self.guard.report(region, cause is None, cause=cause, source=source, vantage="local", group=group + 1, gen=gen, now=now)
            self._take_verdicts()

    def tick(self, now: float) -> None:
        if self.guard is not None:
            self.guard.sweep(now)
            self._take_verdicts()

    def _take_verdicts(self) -> None:
        if self.guard is None or not self.guard.changed:
            return
        self.guard.changed.clear()
        down = [region for region in range(self.count) if self.guard.verdict(region) is Verdict.DOWN]
        hard = {region for region in down if self.guard.hard(region)}
        self.down = limit_ejections(down, self.count, hard=hard, ejected=self.down)
        found = {region: frozenset(group - 1 for group in self.guard.excluded(region)) for region in range(self.count)}
        self.excluded = {region: groups for region, groups in found.items() if groups}

    def sent(self, group: int, region: int) -> None:
        self.policies[group].sent(region)

    def done(self, group: int, region: int) -> None:
        self.policies[group].done(region)


class Late(Peer):
    """The truth as it was one beacon ago, behind the same detector: about as good as a policy with such beacons can be."""

    def __init__(self, world: World, seed: int) -> None:
        super().__init__(StaticGeography, False, world, seed)
        self.world = world

    def pick(self, group: int, now: float) -> int:
        costs = self.world.round_trips(max(0.0, now - BEACON))[group]
        return min(self.available(group), key=costs.__getitem__)


@dataclass(frozen=True, slots=True)
class Score:
    """One policy in one world.

    regret: milliseconds a request, over all; calm: while nothing was broken for five minutes; p99: percentile of all
    lost: share of requests that failed; rerouted: how often a group's next request went elsewhere, per hour
    moves: how often its home moved, per hour; calm_moves: the same, while calm
    parts: what each kind of outage contributes to `regret`, ms, and the first 20 s ("start")
    """

    policy: str
    seed: int
    regret: float
    calm: float
    p99: float
    lost: float
    rerouted: float
    moves: float
    calm_moves: float
    parts: dict[str, float]


class Game:
    """A policy serves a world's requests; what comes of each is known when its reply arrives."""

    def __init__(self, name: str, chooser: Chooser, world: World) -> None:
        self.name, self.chooser, self.world = name, chooser, world
        self.replies: list[tuple[float, int, int, int, float, str | None, bool]] = []
        self.number, self.last = count(), [-1] * world.groups
        self.regrets: list[float] = []
        self.kinds: list[str] = []
        self.lost = self.rerouted = 0
        self.costs: tuple[int, list[list[float]]] = (-1, [])

    def play(self, seed: int) -> Score:
        """Play to the end."""
        world, span = self.world, self.world.duration
        ticks = ((at, self.chooser.tick, None) for at in np.arange(0, span, 0.1).tolist())
        probes = ((at, self.probe, region) for at in np.arange(0, span, PROBE).tolist() for region in range(len(world.regions)))
        requests = ((request.at, self.serve, request) for request in world.requests(RATE))
        beacons = ((beacon[0].at, self.measure, beacon) for beacon in world.beacons(BEACON))
        for at, act, what in heapq.merge(ticks, probes, requests, beacons, key=lambda event: event[0]):
            self.deliver(at)
            act(at) if what is None else act(what, at)
        return self.score(seed)

    def deliver(self, now: float) -> None:
        """Let the policy learn what is known by now."""
        while self.replies and self.replies[0][0] <= now:
            at, _, group, region, ms, cause, ours = heapq.heappop(self.replies)
            if ours:
                self.chooser.done(group, region)
            self.chooser.learn(group, region, ms, cause, at)

    def probe(self, region: int, now: float) -> None:
        """The service's own probe, which no local outage reaches; its failure is known a second later, at the next tick or so."""
        failing = self.world.failing[min(int(now), len(self.world.failing) - 1), :, region]
        self.chooser.probed(region, not bool((failing == 1.0).all()), now)

    def measure(self, beacon: tuple[Request, int], now: float) -> None:
        """A group measures a region, whatever the policy would choose."""
        self._send(beacon[0], beacon[1], False)

    def serve(self, request: Request, now: float) -> None:
        """The policy sends a request somewhere."""
        group = request.group
        region = self.chooser.pick(group, now)
        self.chooser.sent(group, region)
        self.lost += not self._send(request, region, True)
        self.rerouted += self.last[group] not in (-1, region)
        self.last[group] = region
        costs = self._expected(now)[group]
        self.regrets.append(costs[region] - min(costs))
        self.kinds.append(kind_of(self.world, now))

    def _send(self, request: Request, region: int, ours: bool) -> bool:
        reply = self.world.reply(request, region, TIMEOUT)
        heapq.heappush(self.replies, (reply.at, next(self.number), request.group, region, reply.ms, reply.cause, ours))
        return reply.ok

    def _expected(self, now: float) -> list[list[float]]:
        if self.costs[0] != int(now):
            self.costs = int(now), self.world.expected(now, TIMEOUT).tolist()
        return self.costs[1]

    def score(self, seed: int) -> Score:
        """Sum up."""
        regrets, kinds = np.array(self.regrets), np.array(self.kinds)
        hours = self.world.duration / 3600 * self.world.groups
        parts = {str(kind): float(regrets[kinds == kind].sum() / len(regrets)) for kind in np.unique(kinds)}
        moves = getattr(self.chooser, "moves", [])
        calm_moves = sum(not any(outage.start <= at < outage.end + RECOVERY for outage in self.world.outages) for at in moves)
        calm = regrets[(kinds == "calm") | (kinds == "start")]
        return Score(
            self.name, seed, float(regrets.mean()), float(calm.mean()), float(np.quantile(regrets, 0.99)),
            self.lost / len(regrets), self.rerouted / hours, len(moves) / hours, calm_moves / hours, parts,
        )  # fmt: skip


def kind_of(world: World, now: float) -> str:
    """Name the outage under way, or "recovery" for five minutes after one: detectors hold back regions that flapped."""
    for outage in world.outages:
        if outage.start <= now < outage.end + RECOVERY:
            return outage.kind if now < outage.end else "recovery"
    return "start" if now < 20 else "calm"


def choosers(native: bool) -> Iterator[tuple[str, Callable[[World, int], Chooser]]]:
    """Give lbcore, every peer, and what bounds them all, by name."""
    yield "lbcore", Lbcore
    yield BOUND, Late
    for name, make in PEERS.items():
        yield name, partial(Peer, make, native)


def the_world(seed: int) -> World:
    """Give the world of a seed: an hour with one outage of every kind."""
    regions = [lbcore.Region(name) for name in REGIONS]
    return World(regions, GROUPS, DURATION, seed=seed, outages=season(len(regions), DURATION, seed))


# ---- how fast an outage is seen


def detection_seconds(seed: int, how: str, rate: float = 20.0, groups: int = 40) -> float:
    """Give the seconds until a region that gets `rate` requests a second and answers no more is out of the picks.

    how: "refused": a failure is known at once; "timeout": 1 s after it began; "timeout, waiting told": likewise, but every tick
    tells how many requests have been waiting for 0.3 s. Probes go on every 5 s, at a random phase.
    """
    rng, clock, start = np.random.default_rng([seed, 9]), VirtualClock(), 60.0
    lb = lbcore.Balancer([lbcore.Region(name) for name in REGIONS[:4]], clock=clock)
    clients = _one_client_per_group(lb, groups)
    wait, phase = (0.02 if how == "refused" else TIMEOUT), rng.uniform(0, PROBE)
    sent = [(at, str(rng.choice(clients))) for at in np.sort(rng.uniform(0, start + 20, int(rate * (start + 20)))).tolist()]
    events = [(at + (0.05 if at < start else wait), client, at < start) for at, client in sent]
    events += [(at + (0.05 if at < start else wait), "probe", at < start) for at in np.arange(phase, start + 20, PROBE).tolist()]
    events += [(at, "tick", True) for at in np.arange(0, start + 20, 0.1).tolist()]
    for at, what, ok in sorted(events):
        clock.advance(at)
        if what == "tick":
            if how == "timeout, waiting told" and at > start:
                _tell_waiting(lb, [client for began, client in sent if began >= start and WAITING <= at - began < TIMEOUT])
            lb.tick()
        else:
            source, client, cause = ("probe", None, "timeout") if what == "probe" else ("request", what, how[:7])
            lb.report(REGIONS[0], ok, client, cause=None if ok else cause, source=source)
        if at >= start and lb.status(REGIONS[0]) != "up":
            return at - start
    return float("inf")


def _tell_waiting(lb: lbcore.Balancer, clients: list[str]) -> None:
    for client in dict.fromkeys(clients):
        lb.waiting(REGIONS[0], clients.count(client), client)


def _one_client_per_group(lb: lbcore.Balancer, groups: int) -> list[str]:
    found: dict[int, str] = {}
    rng = np.random.default_rng(0)
    while len(found) < groups:
        address = ".".join(str(byte) for byte in rng.integers(1, 223, 4).tolist())
        group = lb.match(address)[0]
        if group:
            found.setdefault(group, address)
    return list(found.values())


def false_ejections(seed: int, days: float, rate: float, failures: float = 0.01) -> tuple[int, float]:
    """Give how often a healthy region was ejected, and over how many region-days, with random failures and nothing broken."""
    rng = np.random.default_rng([seed, 10])
    guard = Guard(default_detector(), suspect=VantageSuspect)
    regions, groups, ejected = len(REGIONS), 40, 0
    for second in range(int(days * 86400 / regions)):
        n = int(rng.poisson(rate * regions))
        times, bad = np.sort(rng.uniform(second, second + 1, n)).tolist(), (rng.random(n) < failures).tolist()
        places = rng.integers(0, regions, n).tolist(), rng.integers(1, groups, n).tolist()
        for at, failed, region, group in zip(times, bad, *places, strict=True):
            cause, gen = "reset" if failed else None, guard.generation(region)
            guard.report(region, not failed, cause=cause, source="request", vantage="local", group=group, gen=gen, now=at)
        guard.sweep(second + 1.0)
        ejected += sum(guard.verdict(region) is Verdict.DOWN for region in guard.changed)
        guard.changed.clear()
    return ejected, days


# ---- report


def means(scores: list[Score]) -> dict[str, dict[str, float]]:
    """Give each policy's means over the seeds."""
    fields = ("regret", "calm", "p99", "lost", "rerouted", "moves", "calm_moves")
    found = {}
    for name in dict.fromkeys(score.policy for score in scores):
        own = [score for score in scores if score.policy == name]
        found[name] = {field: float(np.mean([getattr(score, field) for score in own])) for field in fields}
        kinds = sorted({kind for score in own for kind in score.parts})
        found[name] |= {f"of {kind}": float(np.mean([score.parts.get(kind, 0.0) for score in own])) for kind in kinds}
    return found


def scores_table(scores: list[Score], title: str) -> Table:
    """Give the table of policies."""
    table = Table("policy", title=title)
    found = means(scores)
    kinds = [key for key in found["lbcore"] if key.startswith("of ")]
    for head in ("regret ms", *kinds, "p99", "lost", "rerouted /group/h"):
        table.add_column(head, justify="right")
    for name, mean in found.items():
        parts = [f"{mean[kind]:.2f}" for kind in kinds]
        table.add_row(name, f"{mean['regret']:.2f}", *parts, f"{mean['p99']:.0f}", f"{mean['lost']:.2%}", f"{mean['rerouted']:.1f}")
    return table


def demands(scores: list[Score], detection: dict[str, list[float]], ejected: int, days: float) -> Table:
    """Give what was asked beside what was found."""
    found = means(scores)
    mine, peers = found["lbcore"], {name: mean for name, mean in found.items() if name not in ("lbcore", BOUND)}
    table = Table("asked", "found", "verdict", title="demands")

    def add(asked: str, shown: str, met: bool) -> None:
        table.add_row(asked, shown, "met" if met else "MISSED", style="" if met else "red")

    for field, what in (("regret", "regret"), ("calm", "regret while calm")):
        best = min(peers, key=lambda name: peers[name][field])
        ratio = mine[field] / peers[best][field]
        add(f"{what} <= 50 % of the best peer's", f"{ratio:.0%} of {best}", ratio <= 0.5)
    shown = f"{mine['moves']:.1f}, of which {mine['calm_moves']:.1f} far from any outage"
    add("homes moved <= 5 per group and hour", shown, mine["moves"] <= 5)
    for how, seconds in detection.items():
        p95 = float(np.quantile(seconds, 0.95))
        add(f"outage seen ({how}), 20 requests/s: p95 <= 1.5 s", f"p50 {np.median(seconds):.2f}, p95 {p95:.2f} s", p95 <= 1.5)
    add("<= 0.1 false ejections per region and day at 1 % failures", f"{ejected} in {days:g} region-days", ejected <= 0.1 * days)
    return table


def main() -> None:
    """Play every seed and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds from 100 on")
    parser.add_argument("--dev", action="store_true", help="the seeds 1 to 10 instead")
    parser.add_argument("--native", action="store_true", help="peers treat failures in their own way, without the detector")
    parser.add_argument("--days", type=float, default=1.0, help="region-days that false ejections are counted over")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args()
    seeds = DEV[: chosen.seeds] if chosen.dev else range(HELD_OUT, HELD_OUT + chosen.seeds)
    scores: list[Score] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(seeds) * (2 + len(PEERS)))
        for seed in seeds:
            world = the_world(seed)
            for name, make in choosers(chosen.native):
                progress.update(task, description=f"seed {seed}, {name}", advance=1)
                scores.append(Game(name, make(world, seed), world).play(seed))
        progress.update(task, description="outages")
        detection = {how: [detection_seconds(seed, how) for seed in range(HELD_OUT, HELD_OUT + 40)] for how in HOW}
        progress.update(task, description="false ejections")
        ejected, days = false_ejections(HELD_OUT, chosen.days, 20.0)
    if chosen.json:
        print(json.dumps({"scores": [asdict(s) for s in scores], "detection": detection, "ejected": ejected, "region_days": days}))
        return
    console = Console(width=None if Console().is_terminal else 140)
    console.print(scores_table(scores, f"{len(seeds)} worlds of {DURATION / 60:g} min, {GROUPS} groups x {len(REGIONS)} regions"))
    console.print(demands(scores, detection, ejected, days))


if __name__ == "__main__":
    main()
