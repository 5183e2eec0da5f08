"""Transports for httpx that send every request to the closest healthy gateway.

    lb = lbcore.Balancer([...])
    client = httpx.Client(transport=BalancedTransport(lb))
    client.get("https://api.example/orders", extensions={"lbcore_client": "203.0.113.7"})   # for whom; default: this process

The host of the URL is a name for the service, nothing resolves it: scheme, host and port are those of the region's `gateway`, a path
there goes before the request's. `exchange` decides, here is only I/O: the two classes differ in `await`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache, partial

import httpx

from lbcore.balancer import Change
from lbcore.http.budget import RetryBudget
from lbcore.http.exchange import Balancing, Exchange, Pool, Pools, Rules
from lbcore.region import Region
from lbcore.sense.geo import Client

__all__ = ["AsyncBalancedTransport", "BalancedTransport", "RetryBudget"]


class BalancedTransport(httpx.BaseTransport):
    """Send requests to the closest healthy gateway, learn from how they went, and retry on the next-ranked region.

    transport: one for all regions, or a function that gives one for a Region (for client certificates, limits, HTTP/2...);
        None = an `httpx.HTTPTransport` per region, whose connections are closed when the region goes down
    retries: how many further regions one request may be sent to, >= 0
    budget: of retries; None = RetryBudget's defaults on the Balancer's clock
    client_address: for whom, unless a request's extension `lbcore_client` says; None = this process
    keep_host: False = Host header and TLS server name are the gateway's; True = the request's own, as if DNS had sent it there

    Retried is what failed before any response headers came, if it was never sent (no connection), or if it is idempotent (GET,
    HEAD, OPTIONS, TRACE, PUT, DELETE, or it carries an Idempotency-Key) and its body is not a stream. Each attempt has the
    request's whole timeout. 502, 503 and 504 count as failures of the region but are the caller's answer.
    The time to the response's headers is learned as latency, unless the request had a long or streamed body.
    `response.extensions["lbcore_region"]` names the region; `counters` counts requests, retries, failed_<cause>, budget_exhausted.
    Errors are httpx's; NoRegionError when nothing can be picked, ValueError when the client is no address.
    Source: RFC 9110 §9.2.2 (what may be repeated), draft-ietf-httpapi-idempotency-key-header, Finagle (budget).
    """

    def __init__(
        self, lb: Balancing, *, transport: httpx.BaseTransport | Callable[[Region], httpx.BaseTransport] | None = None,
        retries: int = 2, budget: RetryBudget | None = None, client_address: Client = None, keep_host: bool = False,
    ) -> None:  # fmt: skip
        self._rules = _rules(lb, retries, budget, client_address, keep_host)
        self._shared = transport if isinstance(transport, httpx.BaseTransport) else None
        make = transport if callable(transport) else lambda region: self._shared or httpx.HTTPTransport(verify=_tls())
        self._pools: Pools[httpx.BaseTransport] = Pools(make, lb)
        self._unfollow = _follow(lb, self)

    @property
    def counters(self) -> dict[str, int]:
        """Give what was counted so far."""
        return dict(self._rules.counters)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the response's body is still to be read."""
        exchange = Exchange(self._rules, request)
        while True:
            pool, unused = self._pools.acquire(exchange.region)
            self._close(unused)
            try:
                response = pool.transport.handle_request(exchange.send())
            except BaseException as error:
                self._release(pool)
                if not isinstance(error, Exception) or not exchange.failed(error):
                    raise
            else:
                exchange.answered(response)
                assert isinstance(response.stream, httpx.SyncByteStream)
                response.stream = _Body(response.stream, exchange, partial(self._release, pool))
                return response

    def close(self) -> None:
        """Close all connections, and follow the Balancer's changes no more."""
        self._unfollow()
        self._close(self._pools.clear())
        if self._shared is not None:
            self._shared.close()

    def _changed(self, change: Change) -> None:
        self._close(self._pools.changed(change))

    def _close(self, pools: list[Pool[httpx.BaseTransport]]) -> None:
        for pool in pools:
            if pool.transport is not self._shared:
                pool.transport.close()

    def _release(self, pool: Pool[httpx.BaseTransport]) -> None:
        self._close(self._pools.release(pool))


class AsyncBalancedTransport(httpx.AsyncBaseTransport):
    """The same for `httpx.AsyncClient`: see BalancedTransport for everything."""

    def __init__(
        self, lb: Balancing, *, transport: httpx.AsyncBaseTransport | Callable[[Region], httpx.AsyncBaseTransport] | None = None,
        retries: int = 2, budget: RetryBudget | None = None, client_address: Client = None, keep_host: bool = False,
    ) -> None:  # fmt: skip
        self._rules = _rules(lb, retries, budget, client_address, keep_host)
        self._shared = transport if isinstance(transport, httpx.AsyncBaseTransport) else None
        make = transport if callable(transport) else lambda region: self._shared or httpx.AsyncHTTPTransport(verify=_tls())
        self._pools: Pools[httpx.AsyncBaseTransport] = Pools(make, lb)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._unused: deque[Pool[httpx.AsyncBaseTransport]] = deque()  # filled by any thread
        self._closing: set[asyncio.Task[None]] = set()
        self._unfollow = _follow(lb, self)

    @property
    def counters(self) -> dict[str, int]:
        """Give what was counted so far."""
        return dict(self._rules.counters)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the response's body is still to be read."""
        self._note_loop()
        exchange = Exchange(self._rules, request)
        while True:
            pool, unused = self._pools.acquire(exchange.region)
            await self._close(unused)
            try:
                response = await pool.transport.handle_async_request(exchange.send())
            except BaseException as error:
                await self._release(pool)
                if not isinstance(error, Exception) or not exchange.failed(error):
                    raise
            else:
                exchange.answered(response)
                assert isinstance(response.stream, httpx.AsyncByteStream)
                response.stream = _AsyncBody(response.stream, exchange, partial(self._release, pool))
                return response

    async def aclose(self) -> None:
        """Close all connections, and follow the Balancer's changes no more."""
        self._unfollow()
        await self._close(self._pools.clear())
        if self._closing:
            await asyncio.wait(self._closing)
        if self._shared is not None:
            await self._shared.aclose()

    def _note_loop(self) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None  # not asyncio: what is unused is closed with the next request

    def _changed(self, change: Change) -> None:
        """Close from whatever thread the change is told in: by the loop that uses the connections."""
        self._unused.extend(self._pools.changed(change))
        if self._unused and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # that loop is closed, and its connections with it
                self._loop.call_soon_threadsafe(self._close_soon)

    def _close_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._close([]))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, pools: list[Pool[httpx.AsyncBaseTransport]]) -> None:
        self._unused.extend(pools)
        while self._unused:
            pool = self._unused.popleft()
            if pool.transport is not self._shared:
                await pool.transport.aclose()

    async def _release(self, pool: Pool[httpx.AsyncBaseTransport]) -> None:
        await self._close(self._pools.release(pool))


class _Body(httpx.SyncByteStream):
    """A response's body that tells when it is cut off, and gives the connection's pool back once."""

    def __init__(self, inner: httpx.SyncByteStream, exchange: Exchange, release: Callable[[], None]) -> None:
        self._inner, self._exchange, self._release = inner, exchange, release
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._inner
        except Exception as error:
            self._exchange.cut_off(error)
            raise

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                self._inner.close()
            finally:
                self._release()


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, exchange: Exchange, release: Callable[[], Awaitable[None]]) -> None:
        self._inner, self._exchange, self._release = inner, exchange, release
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._inner:
                yield part
        except Exception as error:
            self._exchange.cut_off(error)
            raise

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                await self._inner.aclose()
            finally:
                await self._release()


def _rules(lb: Balancing, retries: int, budget: RetryBudget | None, client: Client, keep_host: bool) -> Rules:
    if retries < 0:
        raise ValueError(f"retries must be at least 0, got {retries!r}")
    return Rules(lb, budget or RetryBudget(lb.clock), retries, client, keep_host, Counter())


@cache
def _tls() -> ssl.SSLContext:
    """Give one TLS context for all regions: loading the certificate authorities takes longer than a request."""
    return httpx.create_ssl_context()


def _follow(lb: Balancing, transport: BalancedTransport | AsyncBalancedTransport) -> Callable[[], object]:
    """Be told of changes without keeping the transport alive, until what this gives is called."""
    method = weakref.WeakMethod(transport._changed)

    def changed(change: Change) -> None:
        if (call := method()) is not None:
            call(change)

    return lb.on_change(changed)
