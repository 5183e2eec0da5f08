"""WebSockets of unmodified clients through the front door and the gateway: websockets, aiohttp, and a page in a headless browser."""

from __future__ import annotations

import asyncio
import html
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from sites import WAYS, site, way_to
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as connect_in_thread

pytestmark = pytest.mark.slow
both = pytest.mark.parametrize("way", WAYS)


@both
async def test_websockets(way: str) -> None:
    async with site() as (made, url), way_to(url, way) as there:
        async with connect(f"ws://{there}/ws", subprotocols=["chat"], max_size=None, proxy=None) as socket:  # type: ignore[list-item]
            assert socket.subprotocol == "chat"
            assert [type(each).__name__ for each in socket.protocol.extensions] == ["PerMessageDeflate"]
            for text in ("", "\u00fc" * 1000, "x" * 200_000):
                await socket.send(text)
                assert await socket.recv() == text
            await socket.send([b"in", b" frag", b"ments"])
            assert await socket.recv() == b"in fragments"
            random = os.urandom(3_000_000)
            await socket.send(random)
            assert await socket.recv() == random
            async with asyncio.timeout(5):
                assert await (await socket.ping()) >= 0
        assert made.closed_with == 1000


@both
@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_many_conversations_at_once(way: str, compression: str | None) -> None:
    async def converse(there: str, number: int) -> None:
        async with connect(f"ws://{there}/ws", compression=compression, proxy=None, open_timeout=60) as socket:
            for turn in range(20):
                await socket.send(f"{number} {turn}")
                assert await socket.recv() == f"{number} {turn}"

    async with site() as (_, url), way_to(url, way) as there:
        await asyncio.gather(*(converse(there, number) for number in range(60)))


@both
async def test_close_codes_pass_both_ways(way: str) -> None:
    async with site() as (made, url), way_to(url, way) as there:
        async with connect(f"ws://{there}/ws", proxy=None) as socket:
            await socket.send("close 4001 that's enough")
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None and (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "that's enough")
        async with connect(f"ws://{there}/ws", proxy=None) as socket:
            await socket.close(4002, "bye")
        assert made.closed_with == 4002
        with pytest.raises(InvalidStatus, match="404"):
            await connect(f"ws://{there}/nothing", proxy=None)


@both
async def test_websockets_in_a_thread(way: str) -> None:
    def visit(there: str) -> str | bytes:
        with connect_in_thread(f"ws://{there}/ws", proxy=None) as socket:
            socket.send("from a thread")
            return socket.recv(timeout=10)

    async with site() as (_, url), way_to(url, way) as there:
        assert await asyncio.to_thread(visit, there) == "from a thread"


@both
async def test_aiohttp_websocket(way: str) -> None:
    async with site() as (_, url), way_to(url, way) as there:
        async with aiohttp.ClientSession(f"http://{there}") as session, session.ws_connect("/ws", compress=15, heartbeat=1.0) as socket:
            for number in range(50):
                await socket.send_str(f"{number}")
                assert await socket.receive_str() == f"{number}"
            await socket.send_str("close 4003 x")
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE and socket.close_code == 4003


@both
async def test_a_page_in_a_browser(way: str, program: Callable[[str], str], tmp_path: Path) -> None:
    """fetch, gzip, EventSource and a WebSocket in Chromium; the image /hold lets the page's loading wait for all of them."""
    command = [
        program("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", "--no-first-run", "--no-proxy-server", f"--user-data-dir={tmp_path}",
        "--timeout=60000", "--dump-dom",
    ]  # fmt: skip
    async with site() as (_, url), way_to(url, way) as there:
        process = await asyncio.create_subprocess_exec(
            *command, f"http://{there}/page", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, start_new_session=True
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
    shown = re.search(r'<p id="told">(.*?)</p>', output.decode(), re.DOTALL)
    assert shown is not None, output
    assert html.unescape(shown[1]).split("; ") == [
        "fetch 200 \u00fcber", "gzip 6700", "events", "open chat deflate", "binary 100000", "closed 4001 enough true",
    ]  # fmt: skip
