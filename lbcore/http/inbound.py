"""Inbound: one client's connection. Requests are read ahead and answered one after the other, in their order."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from lbcore.http.call import Call
from lbcore.http.message import Refusal, Response, plain_address
from lbcore.http.reading import RequestReader
from lbcore.http.relay import relay

if TYPE_CHECKING:
    from lbcore.http.forward import Forwarder
    from lbcore.http.response import ResponseReader

__all__ = ["Inbound"]


class Inbound:
    """One client's connection: an asyncio.Protocol.

    peer: the other end's address; client: for whom it speaks; secure: over TLS
    since: seconds on the engine's clock when the client's turn began: to send a head, a body, or to take what was written
    """

    def __init__(self, engine: Forwarder, peer: str | None = None) -> None:
        self.engine = engine
        self.reader = RequestReader(engine.limits)
        self.call: Call | None = None
        self.peer = self.client = peer or ""
        self.secure = False
        self.lines = b""  # the fields about this client that were written last, for the host `lines_for`
        self.lines_for: bytes | None = None
        self.lingering = False
        self.since = self.started = engine.now
        self._ended = False  # the client sends no more
        self._closing = False  # after the calls that are there
        self._paused = False  # reading
        self._stalled = False  # the client does not take what is written
        self._refusal: Refusal | None = None

    # ---- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast(asyncio.Transport, transport)
        if not self.peer:
            peername = transport.get_extra_info("peername")
            self.peer = self.client = peername[0] if isinstance(peername, tuple) else ""
        self.peer = self.client = plain_address(self.peer)
        self.secure = transport.get_extra_info("ssl_object") is not None
        self.transport.set_write_buffer_limits(self.engine.limits.held)
        self.engine.opened(self)

    def data_received(self, data: bytes) -> None:
        """Take what was received."""
        if self._closing or self.lingering:
            return
        reader = self.reader
        if reader.begun or reader.reading is None:
            begun = reader.begun
            self._feed(data)
            if reader.begun and not begun:
                self.started = self.since = self.engine.now
        else:
            self.since = self.engine.now
            self._feed(data)
        call = self.call
        if call is None:
            self._next()
        elif not call.sent_all:
            call.more()
        if self._refusal is not None:
            self._refuse()
        elif reader.reading is not None or reader.ready or reader.switch is not None or self._paused:
            self.regulate()

    def _feed(self, data: bytes) -> None:
        try:
            self.reader.feed(data)
        except Refusal as refusal:
            self._refusal = refusal

    def eof_received(self) -> bool:
        """Answer what is there before closing: the client may only have ended its side."""
        self._closing = self._ended = True
        whole = (self.call is not None or bool(self.reader.ready)) and self.reader.reading is None
        return whole and not self.secure

    def connection_lost(self, error: Exception | None) -> None:
        """Take the connection's end."""
        self._closing = True
        self.engine.closed(self)
        self.reader.ready.clear()
        call, self.call = self.call, None
        if call is not None:
            call.abort()

    def pause_writing(self) -> None:
        """Take that the other end does not take what is written."""
        self._stalled, self.since = True, self.engine.now
        if self.call is not None and self.call.connection is not None:
            self.call.connection.pause()

    def resume_writing(self) -> None:
        """Take that the other end does."""
        self._stalled = False
        if self.call is not None and self.call.connection is not None:
            self.call.connection.resume()
        elif self.call is None and self.reader.ready:
            self.engine.loop.call_soon(self._continue)

    # ---- one call after the other

    def _next(self) -> None:
        """Begin the next call that is there, unless the client does not take the answers of those before it."""
        while self.call is None and self.reader.ready and not self._stalled:
            request = self.reader.ready.popleft()
            self.call = call = Call(self, request, self.engine.clock())
            if len(request.special) > 1:
                self.engine.heads.identify(call)
            self.engine.counters["requests"] += 1
            call.begin()

    def answered(self, call: Call) -> None:
        """Take the end of a call's response."""
        self.call = None
        self.since = self.engine.now
        if not call.request.complete or self.closes(call):
            self._finish()
            return
        if self.reader.switch is call.request:
            self._feed_rest()
        if self.reader.ready:
            self.engine.loop.call_soon(self._continue)  # not from here: a thousand short answers would be as many frames deep
        elif self._refusal is not None:
            self._refuse()
        elif self._paused:
            self.regulate()

    def _feed_rest(self) -> None:
        try:
            self.reader.go_on()
        except Refusal as refusal:
            self._refusal = refusal

    def _continue(self) -> None:
        if self.call is None:
            self._next()
        if self._refusal is not None:
            self._refuse()
        self.regulate()

    def closes(self, call: Call) -> bool:
        """Say whether the connection ends after a call."""
        request = call.request
        if not request.keep_alive or request.old or not request.complete:
            return True
        if self.reader.ready:
            return False
        return self._closing or self.engine.draining

    def write(self, data: bytes) -> None:
        """Write to the client, unless it is gone."""
        if not self.transport.is_closing():
            self.transport.write(data)

    # ---- ends

    def _refuse(self) -> None:
        """Answer what cannot be understood, after what could, and close."""
        refusal, call = self._refusal, self.call
        assert refusal is not None
        if call is not None and call.request is self.reader.reading:
            self._refuse_body(call, refusal)
        elif call is None and not self.reader.ready:
            self.engine.counters["refused"] += 1
            self._refusal = None
            self.write(self.engine.heads.refusal(Response(refusal.status, f"{refusal}\n".encode())))
            self._finish()

    def _refuse_body(self, call: Call, refusal: Refusal) -> None:
        """The body of the call under way is malformed or too long."""
        self.engine.counters["refused"] += 1
        self._refusal = None
        if call.status:
            self.leave()
        else:
            if call.connection is not None:
                call.connection.drop()
                call.connection = None
            call.reply(Response(refusal.status, f"{refusal}\n".encode()))

    def _finish(self) -> None:
        """Close so that the last response arrives: end our side and read on for a moment, or a reset could overtake it.

        Source: RFC 9112 §9.6.
        """
        self._closing = True
        self._refusal = None
        self.reader.ready.clear()  # what came after it is nobody's business any more
        if self.transport.is_closing():
            return
        if self._ended or self.secure or not self.transport.can_write_eof():
            self.transport.close()
            return
        with suppress(OSError, RuntimeError):
            self.transport.write_eof()
        self.lingering, self.since = True, self.engine.now
        self._set_paused(False)

    def abort(self, reset: bool = False) -> None:
        """Close at once; reset: so that nobody takes it for an orderly end."""
        self.call = None
        self._closing = True
        if reset and (raw := self.transport.get_extra_info("socket")) is not None:
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if not self.transport.is_closing():
            self.transport.abort()

    def leave(self) -> None:
        """Close at once; the call under way is cut off."""
        call = self.call
        if call is not None:
            call.abort()
        self.abort()

    def close_if_idle(self) -> None:
        """Close unless a call is under way or begins."""
        if self.call is None and not self.reader.ready and not self.reader.begun and not self.lingering:
            self._closing = True
            self.transport.close()

    # ---- back-pressure

    def regulate(self) -> None:
        """Read on, or not: while a body waits to be sent on, or while requests wait for their turn."""
        reader, call = self.reader, self.call
        pause = bool(reader.ready) or reader.switch is not None
        if call is not None and not call.sent_all:
            if call.connection is not None:
                pause = pause or call.connection.write_paused
            else:
                pause = pause or sum(map(len, call.request.parts)) > self.engine.limits.held
        self._set_paused(pause)

    def _set_paused(self, pause: bool) -> None:
        if pause == self._paused or self.transport.is_closing():
            return
        self._paused = pause
        if pause:
            self.transport.pause_reading()
        else:
            self.since = self.engine.now
            self.transport.resume_reading()

    # ---- another protocol

    def switch(self, call: Call, reader: ResponseReader) -> None:
        """Pass bytes on both ways from now on."""
        relay(self, call, reader)

    # ---- time

    def sweep(self, now: float) -> None:
        """End what takes too long. Called every 100 ms."""
        times, waited, call, reader = self.engine.timeouts, now - self.since, self.call, self.reader
        if self.lingering:
            if waited > (times.stall if self.transport.get_write_buffer_size() else times.linger):
                self.transport.abort()
        elif self._stalled:
            if waited > times.stall:
                self._give_up("stalled_clients")
        elif call is None:
            self._sweep_idle(now, waited)
        elif reader.reading is not None and not self._paused and call.request is reader.reading:
            self._sweep_body(call, now, waited)
        else:
            self._sweep_upstream(call, now)

    def _sweep_idle(self, now: float, waited: float) -> None:
        times = self.engine.timeouts
        if self.reader.begun:
            if now - self.started > times.head:
                self._refusal = Refusal(408, "the head took too long")
                self._refuse()
        elif waited > times.keep_alive:
            self.close_if_idle()

    def _sweep_body(self, call: Call, now: float, waited: float) -> None:
        times = self.engine.timeouts
        slow = times.rate and now - call.begun_at > times.body + call.request.received / times.rate
        if waited > times.body or slow:
            self._refusal = Refusal(408, "the body took too long")
            self._refuse()

    def _sweep_upstream(self, call: Call, now: float) -> None:
        times, target = self.engine.timeouts, call.target
        if times.total is not None and now - call.begun_at > times.total:
            call.expire()
        elif call.connection is None or target is None:
            return
        elif not call.status:
            if now - call.sent_at > ((target.first_byte or times.first_byte) if call.sent_all else times.idle):
                call.failed("timeout")
        elif now - max(call.connection.active_at, call.sent_at) > times.idle:
            call.failed("timeout")

    def _give_up(self, why: str) -> None:
        self.engine.counters[why] += 1
        self.leave()
