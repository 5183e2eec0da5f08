"""Upstream: the connections to one origin. Idle ones are kept for the next call, new ones are made up to a limit, the rest waits.

    take -> a connection that was idle ----------------------------\\
    want -> a new one, or the first that another call gives back --- call.attach(connection) ... give back or close
                 \\-- error or timeout -- call.failed(cause)
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import TYPE_CHECKING, cast

from lbcore.errors import cause_of
from lbcore.http.message import Refusal
from lbcore.http.response import ResponseReader

if TYPE_CHECKING:
    from lbcore.http.call import Call
    from lbcore.http.forward import Forwarder

__all__ = ["Outbound", "Upstream"]


class Outbound:
    """One connection to an upstream, an asyncio.Protocol; `call` is the one that uses it, None while it is idle."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.reader = ResponseReader(upstream.engine.limits)
        self.call: Call | None = None
        self.fresh = True  # no call has had an answer on it
        self.idle_since = self.active_at = 0.0
        self.write_paused = self._reader_paused = self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take what was received."""
        call, reader = self.call, self.reader
        if call is None:
            self.drop()  # nobody asked: whatever it is, it must not become the answer to the next call
            return
        try:
            reader.feed(data)
        except Refusal as refusal:
            if not reader.complete:
                call.broken(str(refusal))
                return
            reader.surplus = True
        self.active_at = self.upstream.engine.now
        call.received(reader)

    def eof_received(self) -> bool:
        """Take the end of what the upstream sends."""
        call, self.closed = self.call, True
        if call is not None:
            call.ended(self.reader)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """Take the connection's end."""
        self.closed = True
        self.upstream.lost(self)
        call = self.call
        if call is not None:
            call.ended(self.reader)

    def pause_writing(self) -> None:
        """Take that the other end does not take what is written."""
        self.write_paused = True
        if self.call is not None:
            self.call.inbound.regulate()

    def resume_writing(self) -> None:
        """Take that the other end does."""
        self.write_paused = False
        if self.call is not None:
            self.call.inbound.regulate()

    def pause(self) -> None:
        """Read no more until `resume`: the client takes no more."""
        if not self._reader_paused and not self.closed:
            self._reader_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._reader_paused and not self.closed:
            self._reader_paused = False
            self.active_at = self.upstream.engine.now  # until now it could not be
            self.transport.resume_reading()

    def release(self) -> None:
        """Keep the connection for another call, after a whole response to a whole request."""
        reader = self.reader
        self.call, self.fresh = None, False
        if not reader.keep_alive or reader.surplus or self.closed or self.write_paused:
            self.drop()
            return
        if self._reader_paused:
            self.resume()
        if reader.headless:
            reader.restart()
        self.upstream.give(self)

    def drop(self) -> None:
        """Close the connection, whatever state it is in."""
        self.call, self.closed = None, True
        self.transport.abort()


class Upstream:
    """One origin: host, port and whether TLS is spoken.

    tls: context, None = plain; server_name: what its certificate must be for, and SNI
    limit: open connections, >= 1; keep: idle ones, >= 0; idle: seconds one is kept; connect: seconds to be connected, TLS included
    patience: seconds a call waits for a connection when all are in use
    """

    def __init__(
        self, engine: Forwarder, host: str, port: int, *, tls: ssl.SSLContext | None = None, server_name: str | None = None,
        limit: int = 1024, keep: int = 256, idle: float = 30.0, connect: float = 1.0, patience: float = 1.0,
    ) -> None:  # fmt: skip
        self.engine, self.host, self.port = engine, host, port
        self._tls, self._server_name = tls, server_name or (host if tls else None)
        self._limit, self._keep, self._idle_for, self._connect_in, self._patience = limit, keep, idle, connect, patience
        self.idle: list[Outbound] = []
        self.open: set[Outbound] = set()
        self._waiting: deque[tuple[Call, float]] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self.retired = False

    @property
    def authority(self) -> bytes:
        """Give what Host says of it."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self._tls else 80
        return (name if self.port == default else f"{name}:{self.port}").encode("ascii")

    def take(self) -> Outbound | None:
        """Give an idle connection, the last used first, or None."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.closed:
                return connection
        return None

    def want(self, call: Call) -> None:
        """Attach a connection to the call as soon as there is one."""
        if len(self.open) + len(self._connecting) < self._limit:
            task = asyncio.get_running_loop().create_task(self._connect(call))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        else:
            self._waiting.append((call, self.engine.clock() + self._patience))

    async def _connect(self, call: Call) -> None:
        connection = Outbound(self)
        protocol = cast(asyncio.Protocol, connection)
        try:
            async with asyncio.timeout(self._connect_in):
                await asyncio.get_running_loop().create_connection(
                    lambda: protocol, self.host, self.port, ssl=self._tls, server_hostname=self._server_name
                )
        except Exception as error:  # OSError, TimeoutError, and UnicodeError for a host that cannot be a name
            if call.wants(self):
                call.failed(cause_of(error))
            return
        if connection.closed:  # between its handshake and this task's turn
            if call.wants(self):
                call.failed("reset")
            return
        self.open.add(connection)
        if call.wants(self):
            call.attach(connection)
        else:
            self.give(connection)

    def give(self, connection: Outbound) -> None:
        """Take back a connection that can be used again."""
        if self.retired or connection.closed:
            connection.drop()
            return
        while self._waiting:
            call, _ = self._waiting.popleft()
            if call.wants(self):
                call.attach(connection)
                return
        if len(self.idle) >= self._keep:
            connection.drop()
            return
        connection.idle_since = self.engine.now
        self.idle.append(connection)

    def lost(self, connection: Outbound) -> None:
        """Take notice of a connection's end."""
        self.open.discard(connection)
        if connection.call is None and connection in self.idle:
            self.idle.remove(connection)
        while self._waiting and len(self.open) + len(self._connecting) < self._limit:
            call, _ = self._waiting.popleft()
            if call.wants(self):
                self.want(call)

    def sweep(self, now: float) -> None:
        """Close what was idle for too long, and answer those who waited too long for a connection."""
        while self.idle and now - self.idle[0].idle_since > self._idle_for:
            self.idle.pop(0).drop()
        while self._waiting and now > self._waiting[0][1]:
            call, _ = self._waiting.popleft()
            if call.wants(self):
                call.failed(None)

    def close_idle(self) -> None:
        """Close every connection that no call uses."""
        idle, self.idle = self.idle, []
        for connection in idle:
            connection.drop()

    def retire(self) -> None:
        """Close what is idle now, and every other connection after its call."""
        self.retired = True
        self.close_idle()

    async def close(self) -> None:
        """Close everything now."""
        self.retire()
        for task in [*self._connecting]:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connection in [*self.open]:
            connection.drop()
