"""TCP: queries with a length before each, and bounds on what a client can hold on to.

One Protocol for each connection, without a task of its own: ten thousand idle ones cost memory for a transport and little else.
Source: RFC 7766 §6 (pipelining, idle time, half-closed), §10 (limits), RFC 1035 §4.2.2 (framing).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import cast

__all__ = ["Stream", "Streams"]

BURST = 16  # answers that one client gets before it is others' turn
BATCH = 1 << 16  # bytes that are written at once

Reply = Callable[[bytes, str], bytes | None]


class Streams:
    """All TCP connections of a server.

    reply: (query, client's address) -> answer; None ends the connection
    idle: seconds for each whole query and for taking its answer, so that slow senders and readers end alike
    most: connections at once; one more closes the one that has waited longest, as gdnsd does
    counters: tcp, tcp_connections, tcp_evicted, tcp_timeouts are counted in it
    """

    def __init__(self, reply: Reply, counters: MutableMapping[str, int], *, idle: float, most: int) -> None:
        self.reply, self.counters, self.idle, self.most = reply, counters, idle, most
        self.loop = asyncio.get_running_loop()
        self._since: dict[Stream, float] = {}  # when it got its last answer; the longest ago is first

    def __len__(self) -> int:
        return len(self._since)

    def admit(self, stream: Stream) -> None:
        """Take a new connection, and close another if there are too many."""
        self.counters["tcp_connections"] += 1
        if len(self._since) >= self.most:
            self.counters["tcp_evicted"] += 1
            self._abort(next(iter(self._since)))
        self._since[stream] = self.loop.time()

    def answered(self, stream: Stream) -> None:
        """Give a connection its full time again."""
        if self._since.pop(stream, None) is not None:
            self._since[stream] = self.loop.time()

    def forget(self, stream: Stream) -> None:
        """Count a connection no longer."""
        self._since.pop(stream, None)

    def sweep(self) -> None:
        """Close those whose time is up; a few times a second is right."""
        latest = self.loop.time() - self.idle
        for stream in self._before(latest):
            self.counters["tcp_timeouts"] += 1
            self._abort(stream)

    async def drain(self, grace: float) -> None:
        """End all connections within `grace` seconds: each once it has been quiet for a fifth of that, the rest then."""
        end = self.loop.time() + grace
        while self._since and (now := self.loop.time()) < end:
            for stream in self._before(now - grace / 5):
                stream.finish()
            await asyncio.sleep(min(0.02, grace))
        for stream in [*self._since]:
            self._abort(stream)

    def _before(self, latest: float) -> list[Stream]:
        found = []
        for stream, since in self._since.items():
            if since > latest:
                break
            found.append(stream)
        return found

    def _abort(self, stream: Stream) -> None:
        self._since.pop(stream, None)
        stream.transport.abort()


class Stream(asyncio.Protocol):
    """One connection: queries are answered in their order, and not read faster than the client takes the answers."""

    __slots__ = ("transport", "_all", "_unread", "_client", "_over", "_blocked", "_due")

    transport: asyncio.Transport

    def __init__(self, all_: Streams) -> None:
        self._all = all_
        self._unread = bytearray()
        self._client = ""
        self._over = self._blocked = self._due = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        if not peer:  # gone already
            self.transport.abort()
            return
        self._client = peer[0]
        self._all.admit(self)

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        self._unread += data
        if not self._due:
            self._work()

    def eof_received(self) -> bool:
        """Answer what was asked before the client closed its side, then close the other."""
        self._over = True
        if not self._due:
            self._work()
        return True

    def pause_writing(self) -> None:
        """Read no more: the client does not take its answers."""
        self._blocked = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self._blocked = False
        if not self._due:
            self._work()

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        self._all.forget(self)

    def finish(self) -> None:
        """Close unless a query is under way; what was written is still sent."""
        if not self._unread and not self._due and not self._blocked:
            self.transport.close()

    def _work(self) -> None:
        """Answer a burst; more of it later, when others had their turn."""
        self._due = False
        if self._blocked or self.transport.is_closing():
            return
        answers, whole = self._burst()
        if answers:
            self.transport.write(b"".join(answers))
            self._all.answered(self)
        if not whole:
            self.transport.close()
        elif self._next_size() is not None:
            self._due = True
            self.transport.pause_reading()
            self._all.loop.call_soon(self._work)
        elif self._over:
            self.transport.close()
        elif not self._blocked:
            self.transport.resume_reading()

    def _burst(self) -> tuple[list[bytes], bool]:
        """Give framed answers, and False if the connection must end after them."""
        answers: list[bytes] = []
        total = 0
        while len(answers) < BURST and total < BATCH and (size := self._next_size()) is not None:
            query = bytes(self._unread[2 : 2 + size])
            del self._unread[: 2 + size]
            answer = self._all.reply(query, self._client)
            if answer is None:
                return answers, False
            answers.append(len(answer).to_bytes(2) + answer)
            total += len(answer)
        return answers, True

    def _next_size(self) -> int | None:
        """Give the size of the next query, None while it is not whole."""
        if len(self._unread) < 2:
            return None
        size = int.from_bytes(self._unread[:2])
        return size if len(self._unread) >= 2 + size else None
