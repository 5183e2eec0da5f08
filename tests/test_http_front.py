"""The front door: the closest healthy gateway, what is learned on the way, and what happens when a gateway fails."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from proxying import (
    OK,
    QUICK,
    Origin,
    Reader,
    Script,
    Writer,
    answering,
    answers,
    origin,
    read_request,
    request,
    resetting,
    talk,
    understand,
)

import lbcore
from lbcore.http.budget import RetryBudget
from lbcore.http.forward import Timeouts
from lbcore.http.front import Affinity, FrontDoor

ROOT = Path(__file__).parent.parent
CLIENTS = ("81.2.69.142", "12.0.0.1", "133.242.0.3", "200.160.0.8", "1.120.0.1")  # of five groups
NAMES = ("westeurope", "eastus", "japaneast")


def named(name: str) -> Script:
    return answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name.encode()))


class World:
    """Three regions whose gateways do as told, and a front door; this process is closest to the first."""

    def __init__(self, origins: list[Origin], **options: object) -> None:
        self.origins = origins
        self.lb = lbcore.Balancer([lbcore.Region(name, gateway=there.url) for name, there in zip(NAMES, origins, strict=True)])
        for index in range(len(NAMES)):
            self.lb.table.seed(0, index, 10.0 + 20 * index, 2.0)
        self.lb.tick()
        self.changes: list[tuple[str, str]] = []
        self.lb.on_change(lambda change: self.changes.append((change.region, change.after)))
        self.door = FrontDoor(self.lb, **{"timeouts": QUICK, **options})  # type: ignore[arg-type]
        self.port = 0

    async def get(self, *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
        [answer] = answers(await talk(self.port, request(method, "/", body, *fields)), [method])
        return answer.body if answer.status == 200 else b"%d" % answer.status


@asynccontextmanager
async def world(*scripts: Script, **options: object) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        every = [scripts[index] if index < len(scripts) else named(name) for index, name in enumerate(NAMES)]
        made = World([await stack.enter_async_context(origin(script)) for script in every], **options)
        await stack.enter_async_context(made.door)
        _, made.port = await made.door.listen("127.0.0.1", 0)
        yield made


async def silent(reader: Reader, writer: Writer) -> None:
    await reader.read()


async def reset_after_request(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    resetting(writer)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_closest_gateway_answers_and_is_timed() -> None:
    async with world() as here:
        before = here.lb.stats()["samples"]
        assert [await here.get() for _ in range(3)] == [b"westeurope"] * 3
        assert here.lb.stats()["samples"] == before + 3
        assert here.lb.table.estimates(0)[0] < 10  # loopback is closer than was thought
        [heard] = understand(bytes(here.origins[0].got[0]))[:1]
        assert heard.field(b"host") == here.origins[0].url.removeprefix("http://").encode()
        assert heard.field(b"x-forwarded-host") == b"api.example"


async def test_each_client_has_its_own_closest_gateway() -> None:
    async with world(trusted=["127.0.0.1"]) as here:
        for client, region in (("81.2.69.142", 0), ("12.0.0.1", 1), ("133.242.0.3", 2)):
            group = here.lb.match(client)[0]
            for index in range(3):
                here.lb.table.seed(group, index, 5.0 if index == region else 80.0, 1.0)
            here.lb.tick()
            assert await here.get(f"X-Forwarded-For: {client}") == NAMES[region].encode() == here.lb.pick(client).name.encode()


async def test_a_gateway_with_a_path() -> None:
    async with origin(answering()) as there:
        lb = lbcore.Balancer([lbcore.Region("eastus", gateway=f"{there.url}/base/")])
        async with FrontDoor(lb, keep_host=True) as door:
            _, port = await door.listen("127.0.0.1", 0)
            await talk(port, request("GET", "/x?y"))
        [heard] = understand(bytes(there.got[0]))
        assert heard.target == b"/base/x?y" and heard.field(b"host") == b"api.example"


@pytest.mark.parametrize("script", [reset_after_request, silent])
@pytest.mark.parametrize(("method", "status"), [("GET", b"eastus"), ("POST", None)])
async def test_retries_go_to_the_next_in_rank(script: Script, method: str, status: bytes | None) -> None:
    async with world(script) as here:
        got = await here.get(method=method, body=b"x")
        assert got == (status or (b"504" if script is silent else b"502"))
        assert here.door.counters.get("retries", 0) == (1 if status else 0)
        assert here.door.counters["failed_timeout" if script is silent else "failed_reset"] == 1


async def test_retries_end() -> None:
    async with world(*[reset_after_request] * 3, retries=1) as here:
        assert await here.get() == b"502" and here.door.counters["retries"] == 1
        assert [len(there.got) for there in here.origins] == [1, 1, 0]
    budget = RetryBudget(lambda: 0.0, ratio=0.0, minimum=0.2)
    async with world(*[reset_after_request] * 2, budget=budget) as here:
        assert [await here.get() for _ in range(2)] == [b"japaneast", b"502"]
        assert here.door.counters["budget_exhausted"] == 1


async def test_statuses_of_failure_are_evidence_but_the_clients_answer() -> None:
    async with world(answering(b"HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\nbusy")) as here:
        assert await here.get() == b"503" and here.door.counters["failed_status"] == 1
        for _ in range(40):
            await here.get()
        assert await here.get() == b"eastus"


@pytest.mark.slow
async def test_a_gateway_is_killed_under_load() -> None:
    """Idempotent calls all succeed, and few of the others fail; afterwards nobody tries there."""
    async with world() as here:
        statuses: list[bytes] = []
        stop = asyncio.Event()

        async def load(method: str) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
            while not stop.is_set():
                writer.write(request(method, "/", b"x", close=False))
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                statuses.append(method.encode() + b" " + (body if head.startswith(b"HTTP/1.1 200") else head[9:12]))
                if b"Connection: close" in head:
                    writer.close()
                    reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
                await asyncio.sleep(0.004)
            writer.close()

        clients = [asyncio.create_task(load("GET" if number % 2 else "POST")) for number in range(8)]
        await until(lambda: len(statuses) > 300)
        assert {*statuses} == {b"GET westeurope", b"POST westeurope"}
        here.origins[0].kill()
        await until(lambda: here.lb.pick(None).name != "westeurope")
        marked = len(statuses)
        await until(lambda: len(statuses) > marked + 300)
        stop.set()
        await asyncio.gather(*clients)
        failed = [status for status in statuses if status[-3:].isdigit()]
        assert len(failed) <= 5 and not [status for status in failed if status.startswith(b"GET")]
        assert {*statuses[-100:]} <= {b"GET eastus", b"POST eastus"}
        assert not here.door.engine.upstream(here.origins[0].url).open


@pytest.mark.parametrize("groups", [1, 5])
async def test_calls_that_wait_are_evidence_and_go_elsewhere(groups: int) -> None:
    """A gateway that swallows requests is out long before the first-byte timeout, and its calls are answered by the next."""
    slow = Timeouts(first_byte=30.0)
    async with world(silent, patience=0.3, timeouts=slow, trusted=["127.0.0.1"]) as here:
        clients = CLIENTS[:groups] * 12
        for client in CLIENTS:
            for index in range(3):
                here.lb.table.seed(here.lb.match(client)[0], index, 10.0 + 20 * index, 2.0)
        here.lb.tick()
        async with asyncio.timeout(3):
            got = await asyncio.gather(*(here.get(f"X-Forwarded-For: {client}") for client in clients))
        assert {*got} == {b"eastus"} and here.door.counters["moved"] == 12 * groups
        assert here.changes == ([("westeurope", "ejected")] if groups > 1 else [])  # one group's trouble is its path's


async def test_calls_that_cannot_be_repeated_stay() -> None:
    async def late(reader: Reader, writer: Writer) -> None:
        head = await read_request(reader)
        await (asyncio.sleep(1.2) if head.startswith(b"POST") else reader.read())
        writer.write(OK)
        await reader.read()

    async with world(late, patience=0.3, timeouts=Timeouts(first_byte=5.0)) as here:
        got = await asyncio.gather(*(here.get(method="POST" if number < 2 else "GET", body=b"x") for number in range(12)))
        assert got == [b"ok"] * 2 + [b"eastus"] * 10


@pytest.mark.parametrize("cut", [False, True])
async def test_streams_of_a_region_that_goes_down(cut: bool) -> None:
    proceed = asyncio.Event()

    async def stream(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
        await proceed.wait()
        writer.write(b"done")
        await reader.read()

    async with world(stream, cut_streams=cut, timeouts=Timeouts()) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(request())
        data = await reader.readuntil(b"half")
        for client in CLIENTS * 10:
            here.lb.report("westeurope", False, client, cause="refused")
        assert here.lb.status("westeurope") == "ejected"
        await asyncio.sleep(0.05)
        proceed.set()
        try:
            data += await reader.read(-1)
        except ConnectionResetError:
            assert cut
        writer.close()
        assert answers(data)[0].complete is not cut


@pytest.mark.parametrize("cut", [False, True])
async def test_websockets_of_a_region_that_goes_down(cut: bool) -> None:
    async def switch(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        while data := await reader.read(100):
            writer.write(data)

    async with world(switch, cut_streams=cut, timeouts=Timeouts()) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(request("GET", "/", b"", "Connection: Upgrade", "Upgrade: websocket", close=False))
        await reader.readuntil(b"\r\n\r\n")
        for client in CLIENTS * 10:
            here.lb.report("westeurope", False, client, cause="refused")
        await asyncio.sleep(0.05)
        writer.write(b"ping")
        assert await reader.read(100) == (b"" if cut else b"ping")
        writer.close()


async def test_disabling_closes_idle_connections() -> None:
    async with world() as here:
        await here.get()
        upstream = here.door.engine.upstream(here.origins[0].url)
        assert len(upstream.open) == 1
        here.lb.disable("westeurope")
        await until(lambda: not upstream.open)
        assert await here.get() == b"eastus"


async def test_no_region() -> None:
    async with world() as here:
        for name in NAMES:
            here.lb.disable(name)
        assert await here.get() == b"503"


async def test_regions_come_go_and_move() -> None:
    async with world() as here:
        await here.get()
        first, second, third = here.lb.regions
        here.lb.set_regions([lbcore.Region("westeurope", gateway=here.origins[2].url)])
        assert await here.get() == b"japaneast"
        upstream = here.door.engine.upstreams
        await until(lambda: not any(each.open for key, each in upstream.items() if key[1] == here.origins[0].port))
        here.lb.set_regions([second])
        assert await here.get() == b"eastus"


async def test_affinity_lasts_as_long_as_the_region_is_healthy() -> None:
    async with world(affinity=Affinity(b"0123456789abcdef")) as here:
        [answer] = answers(await talk(here.port, request()))
        cookie = (answer.field(b"set-cookie") or b"").split(b";")[0].decode()
        assert answer.body == b"westeurope" and b"HttpOnly" in (answer.field(b"set-cookie") or b"")
        here.lb.disable("westeurope")
        [answer] = answers(await talk(here.port, request("GET", "/", b"", f"Cookie: {cookie}")))
        cookie = (answer.field(b"set-cookie") or b"").split(b";")[0].decode()
        assert answer.body == b"eastus"
        here.lb.enable("westeurope")
        await until(lambda: here.lb.pick(None).name == "westeurope")
        [answer] = answers(await talk(here.port, request("GET", "/", b"", f"Cookie: a=b; {cookie}")))
        assert answer.body == b"eastus" and answer.field(b"set-cookie") is None
        assert await here.get(f"Cookie: {cookie[:-1]}x") == b"westeurope"  # nobody can choose a region by guessing
        here.lb.disable("eastus")
        [answer] = answers(await talk(here.port, request("GET", "/", b"", f"Cookie: {cookie}")))
        assert answer.body == b"westeurope" and cookie.encode() not in (answer.field(b"set-cookie") or cookie.encode())
    with pytest.raises(ValueError, match="16 bytes"):
        Affinity(b"short")


async def test_explanations_are_for_those_who_may() -> None:
    async with world(explain_to=["127.0.0.0/8"]) as here:
        [answer] = answers(await talk(here.port, request("GET", "/", b"", "X-Lbcore-Explain: 1")))
        assert json.loads(answer.field(b"x-lbcore-explain") or b"")["region"] == "westeurope"
        assert b'desc="westeurope"' in (answer.field(b"server-timing") or b"")
    async with world(explain_to=["192.0.2.0/24"]) as here:
        [answer] = answers(await talk(here.port, request("GET", "/", b"", "X-Lbcore-Explain: 1")))
        assert answer.field(b"x-lbcore-explain") is None and answer.field(b"server-timing") is None


async def test_draining_lets_calls_end() -> None:
    async def slow(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await asyncio.sleep(0.2)
        writer.write(OK)
        await reader.read()

    async with world(slow, timeouts=Timeouts()) as here:
        call = asyncio.create_task(talk(here.port, request(close=False)))
        idle = asyncio.create_task(talk(here.port))
        await asyncio.sleep(0.05)
        await here.door.close(grace=2.0)
        [answer] = answers(await call)
        assert answer.body == b"ok" and answer.field(b"connection") == b"close" and await idle == b""
        with pytest.raises(OSError):
            await talk(here.port)


async def test_serve_runs_until_cancelled() -> None:
    async with origin(answering()) as there:
        lb = lbcore.Balancer([lbcore.Region("eastus", gateway=there.url)])
        door = FrontDoor(lb)
        with pytest.raises(RuntimeError, match="closed"):
            _ = door.engine
        task = asyncio.create_task(door.serve("127.0.0.1", 0))
        await asyncio.sleep(0.15)
        ticks = lb.stats()["ticks"]
        assert ticks >= 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_arguments() -> None:
    lb = lbcore.Balancer([lbcore.Region("eastus")])
    with pytest.raises(ValueError, match="retries"):
        FrontDoor(lb, retries=-1)
    with pytest.raises(ValueError):
        FrontDoor(lb, explain_to=["nowhere"])


async def test_the_example_serves_and_goes_around_a_dead_gateway(tmp_path: Path) -> None:
    async with origin(answering()) as there:
        config = tmp_path / "lbcore.toml"
        regions = (("eastus", "http://127.0.0.1:9"), ("westeurope", there.url))
        config.write_text("".join(f'[[service.regions]]\nname = "{name}"\ngateway = "{url}"\n' for name, url in regions))
        command = [sys.executable, str(ROOT / "examples" / "front_door.py"), str(config), "0"]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        try:
            assert process.stdout is not None
            line = b""
            while not line.startswith(b"serving on"):
                line = await asyncio.wait_for(process.stdout.readline(), 20)
            port = int(line.rpartition(b":")[2])
            for _ in range(3):
                assert answers(await talk(port, request()))[0].body == b"ok"
        finally:
            process.terminate()
            await process.wait()
