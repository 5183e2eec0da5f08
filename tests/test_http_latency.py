"""Latency through the front door on a virtual clock: five gateways, five client networks, injected round trips.

Requests are real, on real sockets; a gateway that is asked advances the clock by the round trip of the asking network.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from conftest import Clock
from proxying import Reader, Script, Writer, answers, origin, read_request, request, talk

import lbcore
from lbcore.http.front import FrontDoor

NAMES = ("westeurope", "northeurope", "eastus", "japaneast", "koreacentral")
CLIENTS = ("145.97.0.1", "87.32.0.1", "12.0.0.1", "133.242.0.3", "211.32.0.1")  # each closest to the region of its index
ROUND_TRIPS = ((8, 28, 90, 230, 240), (30, 6, 80, 235, 250), (100, 95, 30, 160, 180), (235, 240, 165, 9, 38), (245, 250, 185, 40, 7))


class World:
    """Five gateways, their round trips to each network, and a front door."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ms = {client: list(row) for client, row in zip(CLIENTS, ROUND_TRIPS, strict=True)}
        self.lb: lbcore.Balancer
        self.door: FrontDoor
        self.port = 0

    def gateway(self, index: int) -> Script:
        async def script(reader: Reader, writer: Writer) -> None:
            while True:
                head = (await read_request(reader)).decode()
                client = head.partition("X-Forwarded-For: ")[2].partition(",")[0]
                self.clock.advance(self.ms[client][index] / 1000)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(NAMES[index]), NAMES[index].encode()))

        return script

    async def ask(self, client: str) -> str:
        [answer] = answers(await talk(self.port, request("GET", "/", b"", f"X-Forwarded-For: {client}")))
        return answer.body.decode()

    async def second(self) -> list[str]:
        """Let a second pass, with a tick every 100 ms and one request of each network; gives who answered them."""
        end, served = self.clock() + 1.0, [await self.ask(client) for client in CLIENTS]
        while self.clock() < end - 0.05:
            self.clock.advance(0.1)
            self.door.tick()
        return served

    async def until(self, client: str, region: str, seconds: float) -> float:
        """Let time pass until the network is served there; gives how long it took, at most `seconds`."""
        since = self.clock()
        while (await self.second())[CLIENTS.index(client)] != region:
            assert self.clock() - since < seconds, self.lb.explain(client).text()
        return self.clock() - since


@asynccontextmanager
async def world(clock: Clock) -> AsyncIterator[World]:
    made = World(clock)
    async with AsyncExitStack() as stack:
        origins = [await stack.enter_async_context(origin(made.gateway(index))) for index in range(len(NAMES))]
        regions = [lbcore.Region(name, gateway=there.url) for name, there in zip(NAMES, origins, strict=True)]
        made.lb = lbcore.Balancer(regions, clock=clock)
        made.door = await stack.enter_async_context(FrontDoor(made.lb, trusted=["127.0.0.1"], patience=10.0))
        _, made.port = await made.door.listen("127.0.0.1", 0)
        yield made


async def settled(here: World, seconds: int = 20) -> None:
    for _ in range(seconds):
        served = await here.second()
    assert served == [*NAMES]


async def test_each_network_is_served_by_its_closest_gateway(clock: Clock) -> None:
    async with world(clock) as here:
        await settled(here)
        for client, name in zip(CLIENTS, NAMES, strict=True):
            decision = here.lb.explain(client)
            measured = next(each for each in decision.candidates if each.region == name)
            assert measured.estimate_ms == pytest.approx(here.ms[client][NAMES.index(name)], rel=0.05)
            assert (decision.region, decision.reason) == (name, "home") and "measured" in decision.text()
        for _ in range(60):
            assert await here.second() == [*NAMES]
        assert here.door.counters.get("explored", 0) == 0  # nobody's request pays for exploring while nothing changes


@pytest.mark.parametrize("index", [0, 3])
async def test_a_route_gets_slower_and_recovers(clock: Clock, index: int) -> None:
    """80 ms more: the network moves within the switch rule, alone, and comes back in at most twice the time that it lasted."""
    client, home, other = CLIENTS[index], NAMES[index], NAMES[(1, 0, 0, 4, 3)[index]]
    async with world(clock) as here:
        await settled(here)
        here.ms[client][index] += 80
        assert await here.until(client, other, 30) < 14  # 10 s at every tick, and a sample a second to learn it from
        decision = here.lb.explain(client)
        first, second = decision.candidates[0], next(each for each in decision.candidates if each.region == home)
        assert (decision.region, decision.home, decision.reason, decision.forced) == (other, other, "home", False)
        assert first.region == other and second.estimate_ms > 80 and second.status == "up"
        assert lbcore.Decision.replay(decision.as_dict()) == other
        served = [await here.second() for _ in range(100)]
        elsewhere = sum(each[index] != other for each in served)
        assert 1 <= elsewhere <= 6 and elsewhere == here.door.counters["explored"]  # 5, 15, 35, 75 s after the move
        assert all(each[:index] + each[index + 1 :] == [*NAMES[:index], *NAMES[index + 1 :]] for each in served)
        here.ms[client][index] -= 80
        await here.until(client, home, 120)  # a request that looks finds it, and the next ones confirm it
        for _ in range(30):
            served.append(await here.second())
        assert {each[index] for each in served[-15:]} == {home} == {here.lb.explain(client).home}
        assert not here.door.engine.counters["exceptions"]


async def test_little_more_moves_nobody(clock: Clock) -> None:
    async with world(clock) as here:
        await settled(here)
        for client, row in here.ms.items():
            row[CLIENTS.index(client)] += 3
        for _ in range(60):
            assert await here.second() == [*NAMES]


async def test_a_former_home_that_fails_is_not_looked_at(clock: Clock) -> None:
    """A request that would look costs its client nothing: it is a GET and goes on to the next."""
    client = CLIENTS[0]
    async with world(clock) as here:
        await settled(here)
        here.ms[client][0] += 80
        await here.until(client, "northeurope", 30)
        here.lb.disable("westeurope")
        for _ in range(40):
            assert (await here.second())[0] == "northeurope"
        here.lb.enable("westeurope")
        here.ms[client][0] -= 80
        await here.until(client, "westeurope", 120)
