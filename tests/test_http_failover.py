"""The front door when a gateway fails: how soon it is out, what is retried, what is left behind; alone and with a shared table."""

from __future__ import annotations

import asyncio
import mmap
import socketserver
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from proxying import OK, Reader, Writer, answering, answers, on_both_loops, read_request, request, talk
from test_http_front import CLIENTS, NAMES, World, named, silent, until, world

import lbcore
from lbcore import LatencyTable
from lbcore.http.forward import Timeouts
from lbcore.http.front import Affinity, FrontDoor
from lbcore.sense.geo import GeoIP

COOKIE = Affinity(b"0123456789abcdef")


def all_near_the_first(lb: lbcore.Balancer) -> None:
    for client in (None, *CLIENTS):
        for index in range(len(NAMES)):
            lb.table.seed(lb.match(client)[0], index, 10.0 + 20 * index, 2.0)
    lb.tick()


@asynccontextmanager
async def shared(here: World, **options: object) -> AsyncIterator[World]:
    """Give the same world with a front door whose table others could share; this process is its owner."""
    block = mmap.mmap(-1, LatencyTable.nbytes_for(GeoIP(None).map.groups, 8))
    here.lb = lbcore.Balancer(here.lb.regions, buffer=block)
    all_near_the_first(here.lb)
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


async def test_a_late_tick_accuses_nobody_and_takes_back_what_was_said() -> None:
    async with world(silent, patience=0.05, timeouts=Timeouts(), trusted=["127.0.0.1"]) as here:
        all_near_the_first(here.lb)
        said, waiting = dict[object, int](), here.lb.waiting

        def note(name: Any, count: int, client: Any = None, **more: Any) -> None:
            said[client] = count
            waiting(name, count, client, **more)

        here.lb.waiting = note  # type: ignore[method-assign, assignment]
        calls = [asyncio.create_task(here.get(f"X-Forwarded-For: {client}")) for client in CLIENTS[:4]]  # one too few for a verdict
        await until(lambda: sum(said.values()) == 4)
        calls.append(asyncio.create_task(here.get(f"X-Forwarded-For: {CLIENTS[4]}")))
        await until(lambda: len(here.origins[0].got) == 5)
        time.sleep(0.1)
        here.door.tick(0.06)
        assert here.changes == [] and sum(said.values()) == 0
        here.door.tick(0.04)
        assert {*await asyncio.gather(*calls)} == {b"eastus"}
        assert here.changes == [("westeurope", "ejected")]


class Apart(socketserver.ThreadingTCPServer):
    """A gateway that does not stand still when the test's loop does: one call a connection; those to /held wait for `release`."""

    request_queue_size, daemon_threads = 100, True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Apart.Handler)
        self.held, self.release = list[object](), threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            assert isinstance(self.server, Apart)
            if self.request.recv(65536).startswith(b"GET /held"):
                self.server.held.append(self)
                self.server.release.wait(10)
            self.request.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")


@on_both_loops
async def test_a_front_door_that_stood_still_accuses_nobody() -> None:
    """Answers that came while the process did nothing are read before it says who waits."""
    with Apart() as server:
        async with world(patience=1.0, timeouts=Timeouts(), trusted=["127.0.0.1"]) as here:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            here.lb.set_regions([lbcore.Region(NAMES[0], gateway=url), *here.lb.regions[1:]])
            all_near_the_first(here.lb)
            fields = [f"X-Forwarded-For: {client}" for client in CLIENTS]
            for _ in range(20):
                assert {await here.get(field) for field in fields} == {b"ok"}
            calls = [asyncio.create_task(talk(here.port, request("GET", "/held", b"", field))) for field in fields * 3]
            await until(lambda: len(server.held) == len(calls))
            server.release.set()
            time.sleep(1.3)
            assert [answers(await call)[0].body for call in calls] == [b"ok"] * len(calls)
            assert here.changes == [] and "moved" not in here.door.counters
        server.shutdown()


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
