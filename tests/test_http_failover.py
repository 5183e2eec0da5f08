"""The front door when a gateway fails: how soon it is out, what is retried, what is left behind; alone and with a shared table."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from proxying import OK, Reader, Writer, answering, answers, read_request, request, talk
from test_http_front import CLIENTS, NAMES, World, named, silent, until, world

import lbcore
from lbcore import LatencyTable
from lbcore.http.forward import Timeouts
from lbcore.http.front import Affinity, FrontDoor
from lbcore.sense.geo import GeoIP

COOKIE = Affinity(b"0123456789abcdef")


@asynccontextmanager
async def shared(here: World, **options: object) -> AsyncIterator[World]:
    """Give the same world with a front door whose table others could share; this process is its owner."""
    block = mmap.mmap(-1, LatencyTable.nbytes_for(GeoIP(None).map.groups, 8))
    here.lb = lbcore.Balancer(here.lb.regions, buffer=block)
    for client in (None, *CLIENTS):
        for index in range(len(NAMES)):
            here.lb.table.seed(here.lb.match(client)[0], index, 10.0 + 20 * index, 2.0)
    here.lb.tick()
    here.lb.on_change(lambda change: here.changes.append((change.region, change.after)))
    here.door = FrontDoor(here.lb, **options)  # type: ignore[arg-type]
    async with here.door:
        _, here.port = await here.door.listen("127.0.0.1", 0)
        yield here


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_ten_refused_connections_are_all_that_a_dead_gateway_gets(method: str) -> None:
    """One client, so one group; what was not sent may be sent elsewhere, whatever it is."""
    async with world(named("westeurope"), retries=1) as here:
        assert {await here.get() for _ in range(30)} == {b"westeurope"}
        here.origins[0].kill()
        await until(lambda: not here.door.engine.upstream(here.origins[0].url).open)
        assert {await here.get(method=method, body=b"x") for _ in range(30)} == {b"eastus"}
        assert here.changes == [("westeurope", "ejected")]
        assert here.door.counters["failed_refused"] == here.door.counters["retries"] == 10
        assert here.lb.guard.cause(0) == "refused 10 times in a row"


async def test_a_connection_that_was_closed_meanwhile_is_no_attempt_at_a_region() -> None:
    """The gateway dies when the second call comes on a kept connection: one retry is enough to get an answer."""
    gone = asyncio.Event()

    async def die(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        gone.set()
        await reader.read()

    async with world(die, retries=1, timeouts=Timeouts()) as here:
        assert await here.get() == b"ok"
        call = asyncio.create_task(here.get())
        await gone.wait()
        here.origins[0].kill()
        assert await call == b"eastus"
        assert here.door.counters["retries"] == here.door.counters["failed_refused"] == 1 and "failed_reset" not in here.door.counters


async def test_without_retries_calls_stay_where_they_are() -> None:
    async with world(silent, retries=0, patience=0.1, timeouts=Timeouts(first_byte=0.8)) as here:
        assert {*await asyncio.gather(*(here.get() for _ in range(12)))} == {b"504"}
        assert "moved" not in here.door.counters


async def test_with_a_shared_table_the_next_look_takes_it_out() -> None:
    async with world() as first, shared(first) as here:
        assert {await here.get() for _ in range(30)} == {b"westeurope"}
        here.origins[0].kill()
        await until(lambda: not here.door.engine.upstream(here.origins[0].url).open)
        got = await asyncio.gather(*(here.get() for _ in range(12)))
        assert {*got} == {b"eastus"}
        await until(lambda: here.changes)
        assert here.changes == [("westeurope", "ejected")]


@pytest.mark.parametrize("groups", [1, 5])
async def test_with_a_shared_table_calls_that_wait_go_elsewhere(groups: int) -> None:
    options = {"patience": 0.3, "timeouts": Timeouts(first_byte=30.0), "trusted": ["127.0.0.1"]}
    async with world(silent) as first, shared(first, **options) as here:
        clients = CLIENTS[:groups] * 12
        async with asyncio.timeout(5):
            got = await asyncio.gather(*(here.get(f"X-Forwarded-For: {client}") for client in clients))
        assert {*got} == {b"eastus"} and here.changes == [("westeurope", "ejected")]


async def test_affinity_ends_where_the_clients_own_path_does() -> None:
    async with world(affinity=COOKIE) as here:
        [answer] = answers(await talk(here.port, request()))
        cookie = (answer.field(b"set-cookie") or b"").split(b";")[0].decode()
        here.lb.table.exclude(0, 0, True)
        here.lb.table.tick(here.lb.clock())
        [answer] = answers(await talk(here.port, request("GET", "/", b"", f"Cookie: {cookie}")))
        assert answer.body == b"eastus" and answer.field(b"set-cookie")


async def test_a_region_that_fails_keeps_nobody() -> None:
    async with world(answering(b"HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\nbusy"), affinity=COOKIE) as here:
        [answer] = answers(await talk(here.port, request()))
        assert answer.status == 503 and answer.field(b"set-cookie") is None


async def test_a_retry_sets_the_cookie_of_whoever_answered() -> None:
    async with world(affinity=COOKIE) as here:
        [answer] = answers(await talk(here.port, request()))
        cookie = (answer.field(b"set-cookie") or b"").split(b";")[0].decode()
        here.origins[0].kill()
        [answer] = answers(await talk(here.port, request("GET", "/", b"", f"Cookie: {cookie}")))
        assert answer.body == b"eastus"
        set_anew = (answer.field(b"set-cookie") or b"").split(b";")[0].decode()
        assert set_anew and set_anew != cookie
        assert await here.get(f"Cookie: {set_anew}") == b"eastus"


async def test_connections_that_calls_leave_behind_are_closed() -> None:
    proceed = asyncio.Event()

    async def late(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await proceed.wait()
        writer.write(OK)
        await reader.read()

    async with world(late, timeouts=Timeouts()) as here:
        call = asyncio.create_task(here.get())
        upstream = here.door.engine.upstream(here.origins[0].url)
        await until(lambda: upstream.open)
        here.lb.drain("westeurope")
        proceed.set()
        assert await call == b"ok"
        await until(lambda: not upstream.open)
