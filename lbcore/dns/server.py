"""Server: UDP and TCP around a Responder, on asyncio. It moves bytes and bounds what a client can hold on to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

if TYPE_CHECKING:
    from lbcore.dns.responder import Responder

__all__ = ["Server"]

logger = logging.getLogger(__name__)

TICK = 0.1


class Server:
    """Serve a Responder while the `async with` block runs; `address` is what it listens on, UDP and TCP alike.

    host: one address; with a wildcard, a host of several addresses would answer UDP from another than was asked
    port: 0 = any that is free for both
    idle: seconds a TCP client has for each whole query, and for taking each answer; so slow senders and readers end alike
    connections: TCP connections at once; one more closes the one that has been waiting longest
    grace: seconds for answers under way when the block ends
    A query on TCP may follow before the last is answered, answers come in order, and a client that has closed its sending side
    still gets them. Raises OSError when the address cannot be bound.
    Source: RFC 7766 §6 (pipelining, idle time, half-closed), §10 (limits); most idle first as gdnsd does.
    """

    def __init__(
        self, responder: Responder, host: str = "127.0.0.1", port: int = 5353, *,
        idle: float = 10.0, connections: int = 256, grace: float = 1.0,
    ) -> None:  # fmt: skip
        self._responder, self._host, self._port = responder, host, port
        self._idle, self._most, self._grace = idle, connections, grace
        self._tcp: asyncio.Server | None = None
        self._udp: list[asyncio.DatagramTransport] = []
        self._ticker: asyncio.Task[None] | None = None
        self._waiting: dict[asyncio.Task[None], asyncio.StreamWriter] = {}  # in the order of their last answer
        self.address: tuple[str, int] = (host, port)

    async def __aenter__(self) -> Self:
        for attempt in range(20):
            try:
                await self._bind()
                break
            except OSError as error:
                self._unbind()
                if self._port or error.errno != errno.EADDRINUSE or attempt == 19:
                    raise
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._unbind()
        tasks = [task for task in (*self._waiting, self._ticker) if task is not None]
        if self._ticker is not None:
            self._ticker.cancel()
        for writer in self._waiting.values():
            writer.close()  # what was written is still sent
        if tasks:
            await asyncio.wait(tasks, timeout=self._grace)
        for task, writer in [*self._waiting.items()]:
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _bind(self) -> None:
        loop = asyncio.get_running_loop()
        self._tcp = await asyncio.start_server(self._connected, self._host, self._port)
        for host, port in [socket.getsockname()[:2] for socket in self._tcp.sockets]:
            transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self.reply), local_addr=(host, port))
            self._udp.append(transport)
        self.address = self._tcp.sockets[0].getsockname()[:2]

    def _unbind(self) -> None:
        if self._tcp is not None:
            self._tcp.close()
        for transport in self._udp:
            transport.close()
        self._tcp, self._udp = None, []

    async def _tick(self) -> None:
        while True:
            try:
                self._responder.tick()
            except Exception:
                logger.exception("tick failed; the next one tries again")
            await asyncio.sleep(TICK)

    def reply(self, query: bytes, client: str, tcp: bool) -> bytes | None:
        """Answer one packet; an error in the answering is logged and becomes SERVFAIL, never the end of the server."""
        self._responder.counters["tcp" if tcp else "udp"] += 1
        try:
            return self._responder.answer(query, client, tcp=tcp)
        except Exception:
            logger.exception("no answer for %s to %s", query.hex(), client)
            return self._responder.failure(query)

    # ---- TCP

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._responder.counters["tcp_connections"] += 1
        if len(self._waiting) >= self._most:
            self._evict()
        self._waiting[task] = writer
        try:
            await self._converse(task, reader, writer)
        except TimeoutError:
            self._responder.counters["tcp_timeouts"] += 1
            writer.transport.abort()
        except (OSError, EOFError):
            pass  # the client is gone, or closed its side: no more queries
        finally:
            self._waiting.pop(task, None)
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), self._idle)

    async def _converse(self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = writer.get_extra_info("peername")[0]
        while not writer.is_closing():
            async with asyncio.timeout(self._idle):
                query = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
            answer = self.reply(query, client, True)
            if answer is None:
                return
            writer.write(len(answer).to_bytes(2) + answer)
            async with asyncio.timeout(self._idle):
                await writer.drain()
            if self._waiting.pop(task, None) is None:
                return  # evicted meanwhile
            self._waiting[task] = writer

    def _evict(self) -> None:
        self._responder.counters["tcp_evicted"] += 1
        task = next(iter(self._waiting))
        self._waiting.pop(task).transport.abort()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, reply: Callable[[bytes, str, bool], bytes | None]) -> None:
        self._reply = reply
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._reply(data, addr[0], False) if addr[1] else None  # nobody listens on port 0: the source is forged
        if answer is not None and self._transport is not None and not self._transport.is_closing():
            self._transport.sendto(answer, addr)

    def error_received(self, exc: Exception) -> None:
        logger.debug("UDP: %s", exc)
