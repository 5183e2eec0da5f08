"""Relay: after 101 Switching Protocols the bytes of both sides are passed on as they come, with back-pressure both ways."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbcore.http.call import Call
    from lbcore.http.forward import Forwarder
    from lbcore.http.inbound import Inbound
    from lbcore.http.response import ResponseReader

__all__ = ["Relay", "relay"]


class _Side(asyncio.Protocol):
    """One of the two connections of a relay."""

    def __init__(self, whole: Relay, transport: asyncio.Transport) -> None:
        self.whole, self.transport = whole, transport
        self.other: _Side
        self.ended = False

    def data_received(self, data: bytes) -> None:
        self.whole.active_at = self.whole.engine.now
        if not self.other.transport.is_closing():
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        other = self.other.transport
        if self.other.ended or not other.can_write_eof() or not self.transport.can_write_eof():
            self.whole.close()
            return False
        if not other.is_closing():
            other.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.whole.close()

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.transport.is_closing():
            self.other.transport.resume_reading()


class Relay:
    """A call that went over to another protocol, until one side is gone."""

    def __init__(self, engine: Forwarder, call: Call, client: asyncio.Transport, upstream: asyncio.Transport) -> None:
        self.engine, self.call = engine, call
        self.active_at = engine.now
        self._client, self._upstream = _Side(self, client), _Side(self, upstream)
        self._client.other, self._upstream.other = self._upstream, self._client
        for side in (self._client, self._upstream):
            side.transport.set_write_buffer_limits(engine.limits.held)
            side.transport.set_protocol(side)
            side.transport.resume_reading()
        engine.relays.add(self)

    def close(self) -> None:
        """End both sides, after what was already written to them."""
        if self in self.engine.relays:
            self.engine.relays.discard(self)
            for side in (self._client, self._upstream):
                side.transport.close()
            self.call.relayed()

    def sweep(self, now: float) -> None:
        """End a relay that nobody uses."""
        if now - self.active_at > self.engine.timeouts.relay:
            self.close()


def relay(inbound: Inbound, call: Call, reader: ResponseReader) -> None:
    """Write the 101 and what follows it, and connect both sides."""
    connection = call.connection
    assert connection is not None
    engine, early = inbound.engine, inbound.reader.rest
    inbound.write(engine.heads.switching(call, reader) + reader.rest)
    if early:
        connection.transport.write(early)
    connection.call = None
    connection.upstream.open.discard(connection)
    engine.closed(inbound)
    Relay(engine, call, inbound.transport, connection.transport)
