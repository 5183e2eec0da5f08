"""Other protocols and other people's clients through the engine: WebSockets, curl, httpx, aiohttp."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable

import aiohttp
import httpx
import pytest
from proxying import (
    QUICK,
    Reader,
    To,
    Writer,
    answering,
    answers,
    forwarding,
    on_both_loops,
    origin,
    read_request,
    request,
    resetting,
    talk,
)
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from lbcore.http.forward import Timeouts

UPGRADE = ("Connection: keep-alive, Upgrade", "Upgrade: WebSocket", "Sec-WebSocket-Key: x")
SWITCH = b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: y\r\n\r\n"


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@on_both_loops
async def test_websockets_pass() -> None:
    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        port = server.sockets[0].getsockname()[1]
        handler = To(f"http://127.0.0.1:{port}")
        async with forwarding(handler, dataclasses.replace(QUICK, relay=30)) as front:
            async with connect(f"ws://127.0.0.1:{front}/chat?x=y", max_size=None) as socket:
                assert socket.request is not None and socket.response is not None
                for number in range(200):
                    await socket.send(f"{number}")
                    assert await socket.recv() == f"{number}"
                big = bytes(range(256)) * 20_000
                await socket.send(big)
                assert await socket.recv() == big
            assert handler.heads == [101]
    assert handler.calls[0].status == 101 and handler.calls[0].cause is None


async def test_an_upgrade_that_is_declined_leaves_an_ordinary_connection() -> None:
    async with origin(answering()) as there, forwarding(To(there.url)) as port:
        data = await talk(port, request("GET", "/", b"", *UPGRADE, close=False) + request("GET", "/2"))
        assert [answer.body for answer in answers(data, ["GET", "GET"])] == [b"ok", b"ok"]
        assert b"Upgrade: websocket\r\n" in bytes(there.got[0])
        with pytest.raises(InvalidStatus):
            await connect(f"ws://127.0.0.1:{port}/")


async def test_what_is_sent_before_the_answer_waits_for_it() -> None:
    async def late(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await asyncio.sleep(0.05)
        writer.write(SWITCH + b"hello")
        writer.write(await reader.readexactly(5))
        await writer.drain()

    async with origin(late) as there, forwarding(To(there.url)) as port:
        data = await talk(port, request("GET", "/", b"", *UPGRADE, close=False) + b"early", pause=0.01)
    assert data.startswith(b"HTTP/1.1 101 ") and data.endswith(b"helloearly")


@pytest.mark.parametrize("who", ["client", "upstream", "nobody"])
async def test_the_end_of_one_side_is_the_end_of_the_other(who: str) -> None:
    ended = asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(SWITCH)
        if who == "upstream":
            await asyncio.sleep(0.02)
            resetting(writer)
        try:
            await reader.read()
        finally:
            ended.set()

    async with origin(script) as there:
        handler = To(there.url)
        async with forwarding(handler) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request("GET", "/", b"", *UPGRADE, close=False))
            await reader.readuntil(b"\r\n\r\n")
            if who == "client":
                resetting(writer)
            async with asyncio.timeout(3):
                await ended.wait()
                while not handler.calls:
                    await asyncio.sleep(0.01)
                if who != "client":
                    assert await reader.read() == b""
            writer.close()
    assert len(handler.calls) == 1


async def test_back_pressure_in_a_relay() -> None:
    """A side that takes nothing stops the other; nothing is lost when it takes again."""
    sent = 0

    async def flood(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(SWITCH)
        for _ in range(400):
            writer.write(bytes(100_000))
            sent += 100_000
            await writer.drain()

    async with origin(flood) as there, forwarding(To(there.url), dataclasses.replace(QUICK, relay=30)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=65536)
        writer.write(request("GET", "/", b"", *UPGRADE, close=False))
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.5)
        assert sent < 25_000_000  # what the kernel's buffers hold
        got = 0
        while data := await reader.read(1_000_000):
            got += len(data)
        writer.close()
    assert got == 40_000_000


async def test_a_websocket_whose_server_dies_is_closed() -> None:
    async def dies(connection: ServerConnection) -> None:
        connection.transport.abort()

    async with serve(dies, "127.0.0.1", 0) as server:
        async with forwarding(To(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")) as port:
            with pytest.raises(ConnectionClosed):
                async with connect(f"ws://127.0.0.1:{port}/") as socket:
                    await socket.recv()


# ===== real clients


async def test_curl(program: Callable[[str], str]) -> None:
    async with origin(answering()) as there, forwarding(To(there.url), Timeouts()) as port:
        for options in ([], ["--http1.0"], ["--http2"], ["-d", "x" * 2000], ["-T", "-", "-H", "Expect:"], ["-I"]):
            command = [program("curl"), "-sS", "-m", "5", "-w", "%{http_code}", *options, f"http://127.0.0.1:{port}/"]
            process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
            output, _ = await process.communicate(b"body" if "-T" in options else None)
            if options == ["-I"]:
                assert b"200 OK" in output
            else:
                assert output == b"ok200", options


async def test_httpx_and_aiohttp() -> None:
    async def echoing(reader: Reader, writer: Writer) -> None:
        while True:
            body = (await read_request(reader)).partition(b"\r\n\r\n")[2]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async def parts() -> AsyncIterator[bytes]:
        yield b"streamed"
        yield b" body"

    async with origin(echoing) as there, forwarding(To(there.url)) as port:
        url = f"http://127.0.0.1:{port}/"
        async with httpx.AsyncClient(trust_env=False) as client:
            assert [(await client.post(url, content=b"x" * size)).content for size in (0, 10, 100_000)] == [b"", b"x" * 10, b"x" * 100_000]
            assert b"streamed body" in b"".join((await client.post(url, content=parts())).content.split(b"\r\n")[1::2])
        async with aiohttp.ClientSession() as session:
            for size in (0, 10, 100_000):
                async with session.post(url, data=b"y" * size) as response:
                    assert await response.read() == b"y" * size
