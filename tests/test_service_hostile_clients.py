"""What clients without a token can do to a management plane: nothing that lasts."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from planes import Place, done, living
from running import eventually

from lbcore.cli.management_worker import _is_ours
from lbcore.cli.patience import Patient
from lbcore.service.api import application
from lbcore.service.plane import Plane
from lbcore.service.portal import routes
from lbcore.service.rotation import Look, StatusPages

# ===== connections


class Hurried(Patient):
    """The same in tenths of seconds."""

    HEAD, KEPT, STUCK = 0.3, 0.3, 0.3


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    config = uvicorn.Config(app, port=0, http=Hurried, lifespan="off", log_config=None, timeout_keep_alive=1, ws="none")
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    yield server, server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True
    await task


async def says(scope: Any, receive: Any, send: Any) -> None:
    size = 64 << 20 if scope["path"] == "/large" else 2
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(size).encode())]})
    for _ in range(size >> 20):
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
    await send({"type": "http.response.body", "body": b"ok" if size == 2 else b""})


@pytest.mark.parametrize("head", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX: "])
async def test_who_asks_for_nothing_is_not_waited_for(head: bytes) -> None:
    async with served(says) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                if head:
                    writer.write(b"x")  # slowly, but for ever
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        assert await reader.read(1) == b""
        await eventually(lambda: not server.server_state.connections)
        writer.close()


async def test_a_connection_serves_one_request_after_another(tmp_path: Path) -> None:
    async with served(says) as (server, port), httpx.AsyncClient() as client:
        for _ in range(20):
            assert (await client.get(f"http://127.0.0.1:{port}/")).text == "ok"
            assert len(server.server_state.connections) == 1
            await asyncio.sleep(0.05)
        await eventually(lambda: not server.server_state.connections)


async def test_who_does_not_take_the_answer_is_not_waited_for() -> None:
    async with served(says) as (server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: server.server_state.connections)
        await eventually(lambda: not server.server_state.connections and not server.server_state.tasks)
        writer.close()


# ===== requests


@pytest.mark.parametrize(("host", "ours"), [("[::1", False), ("primary.test:9180", True), ("[", False), ("other.test", False)])
def test_a_host_that_is_none_is_not_ours(host: str, ours: bool) -> None:
    assert _is_ours("primary.test", host) is ours


def test_of_who_is_unknown_no_long_body_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(place: Place, plane: Plane) -> None:
        transport = httpx.ASGITransport(application(plane))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            read = 0

            async def pieces() -> AsyncIterator[bytes]:
                nonlocal read
                for _ in range(100):
                    read += 1
                    yield b"[" * 10_000

            headers = {"content-type": "application/json"}
            answer = await client.put("/services/contoso/gatewayConfiguration", content=pieces(), headers=headers)
            assert (answer.status_code, read) == (401, 0)
            answer = await client.put("/services/contoso/gatewayConfiguration", content=b"[", headers=headers)
            assert answer.status_code == 400, "syntax comes first where it costs nothing"

    living(work, tmp_path)


def test_the_developer_portal_is_made_once_for_all_who_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    real = routes.developer

    def counted(*given: Any) -> Any:
        nonlocal made
        made += 1
        return real(*given)

    monkeypatch.setattr(routes, "developer", counted)

    async def work(place: Place, plane: Plane) -> None:
        await done(plane)
        app = application(plane)
        routes.mount(app, plane, app.state.verifier)
        await plane.configuration.put({"apis": []}, who="ann")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            assert [(await client.get("/developer")).status_code for _ in range(3)] == [200] * 3
            assert made == 1
            await plane.configuration.put({"apis": [], "backends": [{"name": "b", "urls": ["http://127.0.0.1:9"]}]}, who="ann")
            assert (await client.get("/developer")).status_code == 200
            assert made == 2

    living(work, tmp_path)


# ===== gateways that are none


async def test_a_status_page_that_never_ends_or_unpacks_to_all_memory() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not reader.at_eof():
            writer.write(b" ")
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.05):
                    await reader.read(100)

    async def packed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"accept-encoding: identity" in (await reader.readuntil(b"\r\n\r\n")).lower()
        body = gzip.compress(b'{"status": "serving", "region": "x", "revision": null}')
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    assert "does not answer within 0.5 s" in (await looked(endless)).cause
    assert "cannot be read" in (await looked(packed)).cause


async def looked(behaves: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]) -> Look:
    """Look at a gateway that behaves like this."""
    over = asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behaves(reader, writer)
        finally:
            writer.close()
            over.set()

    server, pages = await asyncio.start_server(connected, "127.0.0.1", 0), StatusPages(timeout=0.5)
    found = await pages.look("x", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await pages.close()
    await over.wait()
    server.close()
    await server.wait_closed()
    return found
