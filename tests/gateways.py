"""Gateways on loopback for the tests of the transports: real sockets, each in a thread of its own, told how to behave."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from listening import accepted

WAIT = 20  # seconds until a test gives up


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT)

    def close(self) -> None:
        self.run(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT)
        self.loop.close()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Seen:
    """A request as a gateway got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Gateway:
    """One HTTP/1.1 server. `mode` holds for the next request:

    ok          200, the body names the gateway
    <digits>    that status
    hang        the request is read and never answered
    reset       the request is read and the connection reset
    cut         headers promise more body than comes before the connection is reset
    stream      one part of the body, and the rest once `proceed` is set
    """

    def __init__(self, name: str, tls: ssl.SSLContext | None = None) -> None:
        self.name, self.mode, self._tls = name, "ok", tls
        self.seen: list[Seen] = []
        self.first_part, self.proceed, self.all_closed = threading.Event(), threading.Event(), threading.Event()
        self.connections = 0
        self._open = 0
        self._loop = Loop()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}/base"

    def start(self) -> Self:
        self._loop.run(self._listen())
        return self

    def kill(self) -> None:
        """Stop listening and drop every connection."""
        self._loop.run(self._stop())

    def close(self) -> None:
        self.kill()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server is not None:
            await accepted()
            self._server.close()
            self._server = None
        await self._loop._cancel_all()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open += 1
        self.all_closed.clear()
        try:
            while True:
                self.seen.append(await self._read(reader))
                if self.mode == "hang":
                    await reader.read()  # until the client gives up
                else:
                    await self._answer(writer, self.mode)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._open -= 1
            if not self._open:
                self.all_closed.set()
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> Seen:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
                self.first_part.set()
            await reader.readline()
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Seen(method, path, headers, body)

    async def _answer(self, writer: asyncio.StreamWriter, mode: str) -> None:
        if mode == "reset":
            reset(writer)
        if mode in ("cut", "stream"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
            await writer.drain()
        if mode == "cut":
            reset(writer)
        if mode == "stream":
            await asyncio.to_thread(self.proceed.wait, WAIT)
            writer.write(b"-rest")
        if mode.isdigit() or mode == "ok":
            body = self.name.encode()
            writer.write(f"HTTP/1.1 {200 if mode == 'ok' else mode} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the peer gets a reset instead of an orderly end."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    raise ConnectionResetError
