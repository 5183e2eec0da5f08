"""Server: UDP and TCP around a Responder. It moves bytes and bounds what a client can hold on to.

UDP has two ways. Where the compiled loop exists (`_wire`), a thread of it for each socket answers what is prepared, and hands
everything else over a socket pair to the event loop, which asks the Responder (`slow`). Elsewhere the event loop reads the sockets
itself. TCP is always the event loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lbcore.dns.loops import Loops, Wire, compiled
from lbcore.dns.sockets import BACKLOG, Address, Endpoint, adopt, retire, room_for
from lbcore.dns.stream import Stream, Streams

if TYPE_CHECKING:
    from lbcore.dns.querylog import QueryLog
    from lbcore.dns.responder import Responder

__all__ = ["BUCKETS", "Server"]

logger = logging.getLogger(__name__)

TICK = 0.1
AT_ONCE = 64  # datagrams that are answered before it is others' turn
MOST_LEFT = 1 << 16  # datagrams that are answered when a socket is given up; a receive buffer holds fewer
MakeWire = Callable[["Responder", int, contextlib.ExitStack], Wire | None]
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)  # seconds, of the histogram `slow`


class Server:
    """Serve a Responder while the `async with` block runs.

    host, port: one address; port 0 = any that is free for both. With a wildcard, a host of several addresses would answer UDP
        from another than was asked
    listen: several addresses, in place of host and port
    threads: UDP sockets for each address, and with the compiled loop as many threads
    idle: seconds a TCP client has for each whole query, and for taking each answer; so slow senders and readers end alike
    connections: TCP connections at once, fewer where fewer open files are allowed; one more closes the one that has waited longest
    grace: seconds for TCP queries under way when the block ends
    inherited: sockets of the process that this one takes over from; what it did not have is bound
    wire: makes the compiled loop, from the Responder, how many answers to log, and what ends when nothing is read any more; None = the
        event loop answers everything
    log: gets every answer that the Responder gave, and those that the compiled loop samples
    A query on TCP may follow before the last is answered, answers come in order, and a client that has closed its sending side
    still gets them. Raises OSError when an address cannot be bound.
    Source: RFC 7766 §6 (pipelining, idle time, half-closed), §10 (limits); most idle first as gdnsd does.
    """

    def __init__(
        self, responder: Responder, host: str = "127.0.0.1", port: int = 5353, *,
        listen: Sequence[Address] = (), threads: int = 1, idle: float = 10.0, connections: int = 4096, grace: float = 1.0,
        inherited: Iterable[socket.socket] = (), wire: MakeWire | None = compiled, log: QueryLog | None = None,
    ) -> None:  # fmt: skip
        self.responder = responder
        self.grace = grace
        self.counters: Counter[str] = Counter()
        self.slow = [0] * (len(BUCKETS) + 1)  # answers that the Responder gave, by the seconds it took; the last: longer
        self.slow_seconds = 0.0
        self.endpoints: list[Endpoint] = []
        self._listen, self._threads, self._inherited = [*listen] or [(host, port)], threads, [*inherited]
        self._idle, self._most = idle, connections
        self._wire, self._log = wire, log
        self.handed_over = False  # to a process that takes over
        self._preceded = bool(self._inherited)  # by a process that may still read
        self._spare: list[socket.socket] = []  # inherited, and needed only until the other process is gone
        self._accepting: dict[socket.socket, asyncio.Server] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._loops: Loops | None = None
        self._following = contextlib.ExitStack()
        self._quiet = _Quiet()

    @property
    def addresses(self) -> list[Address]:
        """Give what it listens on, UDP and TCP alike."""
        return [endpoint.address for endpoint in self.endpoints]

    @property
    def address(self) -> Address:
        """Give the first address that it listens on."""
        return self.endpoints[0].address

    @property
    def sockets(self) -> list[socket.socket]:
        """Give what a process that takes over needs."""
        return [each for endpoint in self.endpoints for each in endpoint.sockets]

    def fast(self) -> Mapping[str, Any]:
        """Give the counters of the compiled loop; empty without one."""
        return self._loops.counters() if self._loops else {}

    @property
    def connections(self) -> int:
        """Give the number of TCP connections."""
        return len(self._streams)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._streams = Streams(self._reply_tcp, self.counters, idle=self._idle, most=room_for(self._most))
        self.endpoints, self._spare = adopt(self._listen, self._threads, self._inherited)
        try:
            await self._begin()
        except BaseException:
            await self.stop_reading()
            raise
        return self

    async def _begin(self) -> None:
        served = [each for endpoint in self.endpoints for each in endpoint.udp]
        wire = self._wire and self._wire(self.responder, self._log.sample if self._log else 0, self._following)
        if wire is None:
            self._read(served)
        else:
            self._loops = Loops(wire, self._handed_over, self._lost)
            self._loops.start(served)
        await self._accept([endpoint.tcp for endpoint in self.endpoints if endpoint.tcp])
        self._read([each for each in self._spare if each.type == socket.SOCK_DGRAM])
        await self._accept([each for each in self._spare if each.type == socket.SOCK_STREAM])
        self._ticker = asyncio.create_task(self._tick())

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop_reading()
        await self._streams.drain(self.grace)
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])

    async def stop_reading(self) -> None:
        """Take no more datagrams and connections, and answer the datagrams that came so far. TCP connections go on."""
        for accepting in self._accepting.values():
            accepting.close()
        if self._loops:
            await self._loops.stop()
        self._following.close()
        for endpoint in self.endpoints:
            for each in endpoint.udp:
                self._loop.remove_reader(each)
                self._empty(each)
            endpoint.close()
        self._close_spare()

    @property
    def shared(self) -> bool:
        """Say whether another process reads the sockets, too, the one before or the one after: they must stay as they are."""
        return self._preceded or self.handed_over

    def release(self) -> None:
        """Say that the process that this server took over from reads no more: inherited sockets that are not needed are closed."""
        self._preceded = False
        self._close_spare()

    def _close_spare(self) -> None:
        for each in self._spare:
            if each.type == socket.SOCK_DGRAM:
                self._loop.remove_reader(each)
                self._empty(each)
            else:
                self._accepting[each].close()
            each.close()
        self._spare = []

    def _empty(self, udp: socket.socket) -> None:
        """Answer what waits in a socket that nobody reads from here on."""
        if self.shared:
            return
        retire(udp)
        for _ in range(MOST_LEFT // AT_ONCE):
            if not self._read_some(udp):
                break

    def _read(self, sockets: Iterable[socket.socket]) -> None:
        for each in sockets:
            self._loop.add_reader(each, self._read_some, each)

    async def _accept(self, sockets: Iterable[socket.socket]) -> None:
        for each in sockets:
            # A copy: asyncio closes what it accepts on, and this server decides when.
            self._accepting[each] = await self._loop.create_server(lambda: Stream(self._streams), sock=each.dup(), backlog=BACKLOG)

    async def _tick(self) -> None:
        while True:
            try:
                self.responder.tick()
                if self._loops:
                    self._loops.suspect(self.responder.suspect)
            except Exception:
                self._quiet.exception("tick failed; the next one tries again")
            self._streams.sweep()
            await asyncio.sleep(TICK)

    # ---- answer

    def reply(self, query: bytes, client: str, tcp: bool) -> bytes | None:
        """Answer one packet; an error in the answering is logged and becomes SERVFAIL, never the end of the server."""
        transport = "tcp" if tcp else "udp"
        self.counters[transport] += 1
        began = time.perf_counter()
        try:
            answer = self.responder.answer(query, client, tcp=tcp)
        except Exception:
            answer = self._failure(query, client)
        self._observe(time.perf_counter() - began)
        if self._log is not None and answer is not None:
            self._log.offer(answer, client, transport)
        return answer

    def _failure(self, query: bytes, client: str) -> bytes | None:
        self.counters["failures"] += 1
        self._quiet.exception("no answer for %s to %s", query.hex(), client)
        try:
            return self.responder.failure(query)
        except Exception:
            self.counters["mute"] += 1
            return None

    def _reply_tcp(self, query: bytes, client: str) -> bytes | None:
        return self.reply(query, client, True)

    def _observe(self, seconds: float) -> None:
        self.slow[bisect_left(BUCKETS, seconds)] += 1
        self.slow_seconds += seconds

    # ---- UDP

    def _handed_over(self, udp: socket.socket, packet: bytes, source: tuple[str | int, ...], sampled: bool) -> None:
        """Take what the compiled loop leaves to the Responder, or an answer of its own for the log."""
        if not sampled:
            self._send(udp, self.reply(packet, str(source[0]), False), source)
        elif self._log is not None:
            self._log.take(packet, str(source[0]), "udp")

    def _lost(self, udp: socket.socket) -> None:
        """Go on without the compiled loop where it ended by an error."""
        self.counters["loops_lost"] += 1
        if udp.fileno() >= 0:
            self._read([udp])

    def _read_some(self, udp: socket.socket) -> int:
        """Answer datagrams that wait in a socket; gives how many it took."""
        for taken in range(AT_ONCE):
            try:
                query, source = udp.recvfrom(65_535, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                return taken
            except OSError as error:  # an ICMP message that came back
                logger.debug("UDP: %s", error)
                continue
            if source[1]:  # nobody listens on port 0: the source is forged
                self._send(udp, self.reply(query, source[0], False), source)
        return AT_ONCE

    def _send(self, udp: socket.socket, answer: bytes | None, to: tuple[str | int, ...]) -> None:
        if answer is None:
            return
        try:
            udp.sendto(answer, socket.MSG_DONTWAIT, to)
        except OSError as error:  # a full buffer, no route: the resolver asks again
            self.counters["unsent"] += 1
            logger.debug("UDP to %s: %s", to[0], error)


class _Quiet:
    """Log what a client can make happen once a second; the next line says how many were left out."""

    def __init__(self) -> None:
        self._next, self._left_out = 0.0, 0

    def exception(self, message: str, *args: object) -> None:
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        more = f" ({self._left_out} more like it were not logged)" if self._left_out else ""
        self._next, self._left_out = now + 1.0, 0
        logger.exception(message + more, *args)
