"""An event loop on virtual time with a virtual network, so that code on asyncio, anyio and httpx runs for hours in an instant.

Only the clock and the network are replaced: `time` jumps to the next timer when nothing else is to be done, `create_connection` ends at a
Server of this file, names resolve to themselves. A loop that waits for something that can never happen raises at once.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("nothing will ever happen: every task waits for another")
            self.loop.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, servers: Mapping[str, Server] | None = None, now: float = 0.0) -> None:
        self.now, self.servers = now, dict(servers or {})
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]

    async def create_connection(self, factory: Callable[[], Any], host: Any = None, port: Any = None, **_: Any) -> Any:  # type: ignore[override]
        protocol = factory()
        return await self.servers[host].connect(protocol), protocol


def run(loop: VirtualLoop, main: Coroutine[Any, Any, T]) -> T:
    """Run to the end, then hold the loop to having no task left."""
    asyncio.set_event_loop(loop)
    try:
        result = loop.run_until_complete(main)
        loop.run_until_complete(asyncio.sleep(0))
        assert asyncio.all_tasks(loop) == set()
        return result
    finally:
        asyncio.set_event_loop(None)
        loop.close()


class Server:
    """A host whose behaviour is a function of time: (since, mode) pairs in order.

    mode: an int answers with this status; "refuse", "hang" (never connects), "silent" (connects, never answers), "reset" (breaks off when
    asked), "garbage" (answers what is not HTTP); an OSError is what the operating system gives to the one who connects.
    rtt: round trip, seconds
    """

    def __init__(self, *modes: tuple[float, Any], rtt: float = 0.0) -> None:
        self.modes, self.rtt = modes or ((0.0, 200),), rtt
        self.started: list[float] = []
        self.requests: list[bytes] = []
        self.open = self.most_open = 0

    def mode(self, now: float) -> Any:
        return [mode for since, mode in self.modes if since <= now][-1]

    async def connect(self, protocol: Any) -> Connection:
        loop = asyncio.get_running_loop()
        self.started.append(loop.time())
        mode = self.mode(loop.time())
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            if mode == "hang":
                await asyncio.sleep(3600)
            if mode == "refuse":
                raise ConnectionRefusedError(111, "Connection refused")
            if isinstance(mode, OSError):
                raise mode
            await asyncio.sleep(self.rtt)
            return Connection(self, protocol)
        except BaseException:
            self.open -= 1
            raise

    def answer(self, connection: Connection, request: bytes) -> None:
        self.requests.append(request)
        loop = asyncio.get_running_loop()
        mode = self.mode(loop.time())
        if mode == "reset":
            loop.call_later(self.rtt, connection.lose, ConnectionResetError(104, "Connection reset by peer"))
        elif mode == "garbage":
            loop.call_later(self.rtt, connection.deliver, b"\x00\xff\x13 not http \r\n\r\n")
        elif isinstance(mode, int):
            head = f"HTTP/1.1 {mode} Whatever\r\nlocation: /again\r\ncontent-length: 2\r\n\r\nok"
            loop.call_later(self.rtt, connection.deliver, head.encode())


class _Socket:
    family = socket.AF_INET

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 1

    getpeername = getsockname


class Connection(asyncio.Transport):
    def __init__(self, server: Server, protocol: Any) -> None:
        super().__init__({"socket": _Socket()})
        self.server, self.protocol, self.closed, self.request = server, protocol, False, b""
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        self.request += data
        if self.request.endswith(b"\r\n\r\n"):
            self.server.answer(self, self.request)
            self.request = b""

    def deliver(self, data: bytes) -> None:
        if not self.closed:
            self.protocol.data_received(data)

    def lose(self, error: Exception | None = None) -> None:
        if not self.closed:
            self.closed = True
            self.server.open -= 1
            self.protocol.connection_lost(error)

    abort = close = lose

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def write_eof(self) -> None: ...
