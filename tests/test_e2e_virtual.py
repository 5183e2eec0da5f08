"""Scenarios 2 to 5 and 9 of the requirements on a virtual clock: balancer, probes, DNS and synchronisation as they are, in seconds.

Scenarios with processes are in the other test_e2e_*; test_detect_guard has 9 with many more seeds, of the judge alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Clock
from resolving import answers, ask, subnet
from syncing import INTERVAL, World, body, in_virtual_time, loop_of_now
from test_service_sync_histories import Way
from virtual import Server, VirtualLoop, run

from lbcore import Balancer, PrefixMap, Region, detect
from lbcore.balancer import Change
from lbcore.dns import Profile, Responder, Zone
from lbcore.http.gateway import Gateway
from lbcore.sense.monitor import Monitor
from lbcore.sense.probe import Prober
from lbcore.service.primary import Primary
from lbcore.service.store import Store
from lbcore.service.sync import State
from lbcore.service.timing import failover

REGIONS = (
    Region("westus2", gateway="http://10.0.0.1", addresses=("192.0.2.1",)),
    Region("westeurope", gateway="http://10.0.0.2", addresses=("192.0.2.2",)),
    Region("eastasia", gateway="http://10.0.0.3", addresses=("192.0.2.3",)),
)
NAMES = tuple(region.name for region in REGIONS)
NETWORKS = ("81.1.0.0/24", "81.2.0.0/24", "81.3.0.0/24")
MATRIX = np.array([[20.0, 90.0, 150.0], [95.0, 18.0, 140.0], [150.0, 200.0, 25.0]])  # ms, network x region


def service(clock: Callable[[], float], **options: Any) -> tuple[Balancer, Responder]:
    networks = [(network, group) for group, network in enumerate(NETWORKS, 1)]
    lb = Balancer(REGIONS, PrefixMap.from_prefixes(networks), clock=clock, **options)
    return lb, Responder(lb, zones=[Zone("test", {"contoso": Profile("contoso", "test")})])


def answered(responder: Responder, network: str) -> str:
    """Give the region that DNS sends a network to, "" for none."""
    found = answers(ask(responder, "contoso.test", "A", **subnet(network)), "A")
    return next((region.name for region in REGIONS if found == list(region.addresses)), "")


# ===== 2: closest


def measure(lb: Balancer, clock: Clock, rng: random.Random, matrix: Any, seconds: int) -> None:
    for _ in range(seconds):
        clock.advance(1.0)
        for network, row in zip(NETWORKS, matrix, strict=True):
            for name, ms in zip(NAMES, row, strict=True):
                lb.observe(name, ms * rng.uniform(0.97, 1.03), network.replace("0/24", "9"))
        lb.tick()


def cells(lb: Balancer) -> list[list[str]]:
    return [[region.name for region in lb.rank(network.replace("0/24", "77"))] for network in NETWORKS]


def order(matrix: Any) -> list[list[str]]:
    return [[NAMES[place] for place in np.argsort(row)] for row in matrix]


@pytest.mark.parametrize("estimator", ["ewma", "prior_ewma"])
def test_2_the_closest_by_measurement_and_right_again_within_three_time_constants_of_an_inversion(clock: Clock, estimator: str) -> None:
    rng, tau = random.Random(2), 10.0
    lb, responder = service(clock, estimator=estimator, tau=tau)
    measure(lb, clock, rng, MATRIX, 60)
    assert cells(lb) == order(MATRIX)
    assert [answered(responder, network) for network in NETWORKS] == [row[0] for row in order(MATRIX)]
    inverted = 220.0 - MATRIX
    measure(lb, clock, rng, inverted, int(3 * tau))
    assert cells(lb) == order(inverted)
    assert [answered(responder, network) for network in NETWORKS] == [row[0] for row in order(inverted)]


# ===== 3 and 5: loss of regions, drill


@dataclass
class Play:
    """The service on virtual time: gateways that behave by a timetable, probes, and what DNS answers the first network."""

    timetable: tuple[tuple[float, Any], ...]
    monitor: Monitor
    seen: dict[float, str] = field(default_factory=dict)
    lb: Balancer = field(init=False)

    @property
    def look(self) -> float:
        """Give the seconds between two looks at what DNS answers."""
        return self.monitor.interval / 20

    def run(self, seconds: float) -> None:
        servers = [Server((0, 200), *((at, mode) for at, mode in self.timetable[place : place + 1])) for place in range(len(REGIONS))]
        loop = VirtualLoop({f"10.0.0.{place + 1}": server for place, server in enumerate(servers)})
        detector = {"tolerated": self.monitor.tolerated, "rise": self.monitor.rise}
        self.lb, responder = service(loop.time, detector=detect.load("consecutive", **detector))
        for network, row in enumerate(MATRIX, 1):
            for place, ms in enumerate(row):
                self.lb.table.seed(network, place, ms, 1.0)

        def look() -> None:
            self.seen[round(loop.now, 3)] = answered(responder, NETWORKS[0])
            loop.call_later(self.look, look)

        async def main() -> None:
            prober = asyncio.ensure_future(Prober(self.lb, monitor=self.monitor).run())
            loop.call_later(1.0, look)
            await asyncio.sleep(seconds)
            prober.cancel()
            await asyncio.wait([prober])

        run(loop, main())

    def first(self, name: str, after: float) -> float:
        """Give how long after a moment DNS first answered with a region, and hold it to staying there until the next loss."""
        return min(at for at, seen in self.seen.items() if at > after and seen == name) - after

    def during(self, since: float, until: float) -> set[str]:
        return {seen for at, seen in self.seen.items() if since < at < until}


@pytest.mark.parametrize("mode", ["hang", "refuse"])
@pytest.mark.parametrize(
    "monitor",
    [Monitor(), Monitor.azure(protocol="http"), Monitor.azure(protocol="http", interval=10)],
    ids=["ours", "azure 30/10/3", "azure 10/9/3"],
)  # fmt: skip
def test_3_lost_regions_are_left_within_the_bounds_one_after_the_other_and_the_last_fails_open(monitor: Monitor, mode: str) -> None:
    span = failover(monitor, 0).detect_silent if mode == "hang" else failover(monitor, 0).detect_refused
    gap = span.longest + 3 * monitor.interval
    losses = [200.0 + 7.3 + gap * place for place in range(3)]
    play = Play(tuple((at, mode) for at in losses), monitor)
    play.run(losses[2] + gap)
    assert play.during(60.0, losses[0]) == {"westus2"}
    for place in range(2):
        took = play.first(NAMES[place + 1], losses[place])
        assert span.shortest - 0.01 <= took <= span.longest + play.look + 0.11  # and the next tick
        assert play.during(losses[place], losses[place] + took) == {NAMES[place]}
        assert play.during(losses[place] + took + 0.11, losses[place + 1]) == {NAMES[place + 1]}
    assert play.lb.fail_open
    assert "" not in play.during(losses[2], losses[2] + gap), "with every region down DNS answers all the same"


def test_5_a_region_is_drilled_out_and_comes_back_slowly(clock: Clock) -> None:
    lb = Balancer(REGIONS, clock=clock)
    every = np.arange(lb.table.groups, dtype=np.uint32)

    def share(slot: int) -> float:
        return float(np.count_nonzero(lb.table.pick_many(every) == slot))

    def pass_by(seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            clock.advance(0.1)
            lb.tick()

    pass_by(40)
    slot = lb.slot("westus2")
    before = share(slot)
    lb.disable("westus2")
    assert before > 100 and share(slot) == 0
    pass_by(60)
    lb.enable("westus2")
    shares = []
    for _ in range(31):
        pass_by(1.0)
        shares.append(share(slot) / before)
    assert shares == sorted(shares) and 0.05 < shares[0] < 0.3 and shares[-1] == 1.0


# ===== 9: flapping


class Flapping(Server):
    """Refuses every other connection, by chance, from second 10 on."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance, self._second = chance, -1
        self._mode: Any = 200

    def mode(self, now: float) -> Any:
        if now >= 10.0 and int(now) != self._second:
            self._second, self._mode = int(now), self._chance.choice([200, "refuse"])
        return self._mode


def test_9_half_of_the_probes_are_lost_and_the_region_does_not_flap() -> None:
    counts = []
    for seed in range(2):
        rng = random.Random(seed)
        servers = [Flapping(rng), Server()]
        loop = VirtualLoop({f"10.0.0.{place + 1}": server for place, server in enumerate(servers)})
        lb = Balancer(REGIONS[:2], detector=detect.load("consecutive", tolerated=3, rise=2), clock=loop.time)
        changes = list[Change]()
        lb.on_change(changes.append)

        async def main(lb: Balancer = lb) -> None:
            prober = asyncio.ensure_future(Prober(lb, monitor=Monitor(interval=1.0, timeout=0.5, tolerated=3, rise=2, jitter=0.0)).run())
            await asyncio.sleep(610.0)
            prober.cancel()
            await asyncio.wait([prober])

        run(loop, main())
        seen = [change for change in changes if "up" in (change.before, change.after)]
        assert {change.region for change in seen} == {"westus2"}
        counts.append(len(seen))
    assert max(counts) <= 11, counts


# ===== 4: the primary is lost


class Away:
    """What Way asks of a history: the primary of the moment."""

    def __init__(self, primary: Primary) -> None:
        self.primary = primary


@pytest.mark.parametrize("mode", ["refuse", "hang"])
def test_4_without_the_primary_regions_serve_on_restart_and_have_the_next_revision_in_time(tmp_path: Path, mode: str) -> None:
    async def main() -> None:
        with Store(tmp_path / "store") as store:
            primary, loop, rng = Primary(store), loop_of_now(), random.Random(4)
            ways = {name: Way(Away(primary)) for name in NAMES[1:]}  # type: ignore[arg-type]
            worlds: dict[str, World] = {}
            stacks = {name: AsyncExitStack() for name in ways}

            async def begin(name: str) -> None:
                gateway = Gateway(name, keep=tmp_path / name, clock=loop.time)
                worlds[name] = World(ways[name], loop, gateway=gateway, draw=rng.random())  # type: ignore[arg-type]
                await stacks[name].enter_async_context(worlds[name])

            first = await primary.put(body("a"), who="ann")
            for name in ways:
                await begin(name)
            await asyncio.sleep(INTERVAL)
            for way in ways.values():
                way.mode = mode
            for minute in range(60):
                if minute == 30:
                    await stacks["eastasia"].aclose()
                    await begin("eastasia")
                await asyncio.sleep(60)
                assert {world.sync.held for world in worlds.values()} == {first}
                assert {world.gateway.status()[0] for world in worlds.values()} == {200}
            assert {world.sync.state for world in worlds.values()} == {State.ORPHANED}
            for way in ways.values():
                way.mode = "up"
            second = await primary.put(body("b"), who="ann")
            await asyncio.sleep(13.0 + (10.0 if mode == "hang" else 0.0))  # a look that hangs ends after its timeout
            assert {world.sync.held for world in worlds.values()} == {second}
            assert {world.sync.state for world in worlds.values()} == {State.IN_SYNC}
            for stack in stacks.values():
                await stack.aclose()

    in_virtual_time(main())
