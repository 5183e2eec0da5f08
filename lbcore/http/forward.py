"""Forwarder: the forwarding engine. Requests in, a Handler's decision, requests out; responses on the same way back.

    clients -> Inbound -> Call -> Handler.begin -> Target -> Upstream -> Outbound -> gateways or backends
Callbacks all the way: no task is made for a call that finds an idle connection. What is forwarded is parsed and written anew.
HTTP/1.0 and 1.1. Front doors and gateways are Handlers.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from lbcore.http.call import Call
from lbcore.http.heads import Heads
from lbcore.http.inbound import Inbound
from lbcore.http.message import Field, Request, Response
from lbcore.http.proxy_protocol import accept_behind_proxy
from lbcore.http.reading import Limits
from lbcore.http.relay import Relay
from lbcore.http.response import ResponseReader
from lbcore.http.target import Target
from lbcore.http.upstream import Upstream

__all__ = ["Call", "Field", "Forwarder", "Handler", "Limits", "Request", "Response", "Target", "Timeouts", "Upstream"]

logger = logging.getLogger(__name__)

SWEEP = 0.1  # seconds


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long things may take, seconds.

    head: of a request, from its first byte, and a TLS handshake; body: between two parts of a request's body; rate: bytes a second at
        which a body must come in all, 0 = any; keep_alive: an idle client connection
    first_byte: of a response, from the request's last; idle: between two parts of a response; total: a whole call, None = any
    stall: a client that takes nothing of its response; relay: an upgraded connection on which nothing passes; linger: reading on after
        the last response, so that it arrives
    Source: limits against slow clients as Apache's mod_reqtimeout has them.
    """

    head: float = 10.0
    body: float = 30.0
    rate: float = 256.0
    keep_alive: float = 75.0
    first_byte: float = 30.0
    idle: float = 60.0
    total: float | None = None
    stall: float = 60.0
    relay: float = 3600.0
    linger: float = 2.0


class Handler(Protocol):
    """Decide about calls. Every method runs in the event loop and must not block.

    What it raises is logged; a call that cannot begin because of it is answered with 500, any other goes on without.
    """

    def begin(self, call: Call, /) -> Target | Response | Awaitable[Target | Response]:
        """Say where a call goes, or answer it. May change the request's fields and target."""

    def retry(self, call: Call, cause: str | None, /) -> Target | None:
        """Take a failed attempt, and say where to try again; used only if the call is `repeatable`.

        cause: refused, timeout, tls, status or reset; None = not the upstream's fault (all its connections in use, no descriptors...)
        """

    def answered(self, call: Call, head: ResponseReader, /) -> Target | Response | None:
        """Take a response's head (`head.status`, `head.fields`, which may be changed) before it is passed on.

        A Target sends the call there instead, if it is `repeatable`; a Response is sent in place of the upstream's.
        """

    def failed(self, call: Call, response: Response, /) -> Response:
        """Take a call that failed (`call.cause`) without a response and is not tried again; give what the client is answered.

        response: 502, 503 or 504, as the engine would answer.
        """

    def done(self, call: Call, /) -> None:
        """Take the end of a call: answered, cut off (`call.cause`) or left by the client (`call.aborted`)."""


class Forwarder:
    """Forward what comes in as the handler says, in the event loop that runs when it is made.

    trusted: networks of the proxies in front, whose word on clients is believed; name: in Via, None = one that nobody else has
    clock: monotonic seconds

    A client that ends its side (FIN) while a call is under way still gets its answer, as HTTP has it: whether it is gone shows when it
    is written to. Methods that llhttp does not know are answered with 501. Upstreams are believed that no body follows their answer to
    HEAD: one that comes while nobody uses the connection ends it, one that comes later is taken for the next answer.
    """

    def __init__(
        self, handler: Handler, *, limits: Limits | None = None, timeouts: Timeouts | None = None, trusted: Sequence[str] = (),
        name: str | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.handler, self.limits, self.timeouts = handler, limits or Limits(), timeouts or Timeouts()
        self.heads = Heads(trusted, name)
        self.clock = clock
        self.now = clock()  # as of the last sweep
        self._excused = False
        self.loop = asyncio.get_running_loop()
        self.counters: Counter[str] = Counter()
        self.inbounds: set[Inbound] = set()
        self.relays: set[Relay] = set()
        self.upstreams: dict[tuple[str, int, bool, str | None], Upstream] = {}
        self.draining = False
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Future[None]] = set()
        self._sweeper = self.loop.call_later(SWEEP, self._sweep)

    # ---- listen

    async def listen(
        self, host: str = "127.0.0.1", port: int = 8080, *, sock: socket.socket | None = None, tls: ssl.SSLContext | None = None,
        proxy_protocol: bool = False, reuse_port: bool = False, backlog: int = 1024,
    ) -> tuple[str, int]:  # fmt: skip
        """Accept clients; gives the address. proxy_protocol: every connection begins with a PROXY header (v1 or v2).

        sock: a bound socket, in place of host and port. Raises OSError when the address cannot be bound.
        """
        if proxy_protocol:
            listening = sock or socket.create_server((host, port), backlog=backlog, reuse_port=reuse_port)
            self.keep(self.loop.create_task(accept_behind_proxy(self, listening, tls)))
            return cast(tuple[str, int], listening.getsockname()[:2])
        where: dict[str, Any] = {"sock": sock} if sock is not None else {"host": host, "port": port, "reuse_port": reuse_port}
        if tls is not None:
            where["ssl_handshake_timeout"] = self.timeouts.head
        server = await self.loop.create_server(lambda: cast(asyncio.Protocol, Inbound(self)), ssl=tls, backlog=backlog, **where)
        self._servers.append(server)
        return cast(tuple[str, int], server.sockets[0].getsockname()[:2])

    def upstream(self, url: str, *, tls: ssl.SSLContext | None = None, server_name: str | None = None, **options: float) -> Upstream:
        """Give the connections to a URL's origin, the same for the same origin; options as Upstream. ValueError for no http(s) URL."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"expected an http:// or https:// URL with a host, got {url!r}")
        secure = parts.scheme == "https"
        key = parts.hostname, parts.port or (443 if secure else 80), secure, server_name
        known = self.upstreams.get(key)
        if known is None or known.retired:
            context = (tls or ssl.create_default_context()) if secure else None
            known = Upstream(self, key[0], key[1], tls=context, server_name=server_name, **options)  # type: ignore[arg-type]  # two are int
            self.upstreams[key] = known
        return known

    # ---- what the parts tell

    def opened(self, inbound: Inbound) -> None:
        """Take a new client's connection."""
        self.inbounds.add(inbound)

    def closed(self, inbound: Inbound) -> None:
        """Take the end of a client's connection."""
        self.inbounds.discard(inbound)

    def keep(self, task: asyncio.Future[None]) -> None:
        """Hold on to a task until it ends."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def unexpected(self, where: str) -> None:
        """Log an exception that should not have been."""
        self.counters["exceptions"] += 1
        logger.exception("%s raised", where)

    # ---- time

    def _sweep(self) -> None:
        stood = self.clock() - self.now
        late = stood > 2 * SWEEP and not self._excused
        self._excused = late
        self._sweeper = self.loop.call_later(SWEEP / 10 if late else SWEEP, self._sweep)
        if late:
            self._excuse(stood)  # this process stood still: what came in meanwhile is read first, and nobody is blamed for that
            return
        try:
            self.sweep()
        except Exception:
            self.unexpected("sweep")

    def _excuse(self, stood: float) -> None:
        """Take it that these seconds have not passed for connections, those that were active after them included."""
        self.now += stood
        for inbound in self.inbounds:
            inbound.since += stood
            inbound.started += stood
        for relay in self.relays:
            relay.active_at += stood
        for upstream in self.upstreams.values():
            for connection in upstream.open:
                connection.active_at += stood

    def sweep(self) -> None:
        """End what has taken too long. Called every 100 ms."""
        self.now = now = self.clock()
        for inbound in [*self.inbounds]:
            inbound.sweep(now)
        for relay in [*self.relays]:
            relay.sweep(now)
        for upstream in [*self.upstreams.values()]:
            upstream.sweep(now)

    # ---- end

    async def close(self, grace: float = 0.0) -> None:
        """Accept nobody new, give calls and relays `grace` seconds to end, then close everything."""
        self.draining = True
        for server in self._servers:
            server.close()
        deadline = self.clock() + grace
        for inbound in [*self.inbounds]:
            inbound.close_if_idle()
        while (self.inbounds or self.relays) and self.clock() < deadline:
            await asyncio.sleep(0.01)
            for inbound in [*self.inbounds]:
                inbound.close_if_idle()
        self._sweeper.cancel()
        for inbound in [*self.inbounds]:
            inbound.leave()
        for relay in [*self.relays]:
            relay.close()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for upstream in self.upstreams.values():
            await upstream.close()
        await self._gone()

    async def _gone(self) -> None:
        """Wait until the loop has told of every connection's end."""
        for _ in range(1000):
            if not self.inbounds and not any(upstream.open for upstream in self.upstreams.values()):
                return
            await asyncio.sleep(0.001)
