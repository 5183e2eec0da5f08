"""Exchange: every decision about one request, without any I/O. The transports send what it says and tell it what became of that.

    send() -> request for a region ---- error ---> failed(error) -> send again? (another region; else the error is the caller's)
                                   \\--- headers -> answered(response): measured, reported, never sent again
                                                       \\--- error in the body -> cut_off(error): reported
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

import httpx

from lbcore.balancer import Change
from lbcore.errors import NoRegionError, UnknownRegionError, cause_of
from lbcore.http.budget import RetryBudget
from lbcore.region import Region
from lbcore.sense.geo import Client

__all__ = ["CLIENT", "REGION", "Balancing", "Exchange", "Pool", "Pools", "Rules"]

CLIENT, REGION = "lbcore_client", "lbcore_region"  # names of extensions
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))  # RFC 9110 §9.2.2
FAILURES = frozenset((502, 503, 504))
SMALL = 16_384  # bytes of a body whose sending does not distort the time to the response's headers
_GONE = frozenset(("down", "ejected", "disabled", "draining"))


class Balancing(Protocol):
    """What the transports need of a Balancer."""

    @property
    def regions(self) -> Sequence[Region]:
        """Give the regions as they are now."""

    @property
    def clock(self) -> Callable[[], float]:
        """Give the function that tells monotonic seconds."""

    @property
    def fail_open(self) -> bool:
        """Say whether no region is up."""

    def pick(self, client: Client, /) -> Region:
        """Give the region for a client, or raise NoRegionError."""

    def rank(self, client: Client, /) -> list[Region]:
        """Give the regions for a client, best first."""

    def status(self, region: str, /) -> str:
        """Give up, degraded or another word for a region that is not to be used."""

    def generation(self, region: str, /) -> int:
        """Give what a report about work that begins now passes as `gen`."""

    def observe(self, region: str, ms: float, client: Client, /) -> object:
        """Learn one sample, ms."""

    def report(self, region: str, ok: bool, client: Client, /, *, cause: str | None = None, gen: int | None = None) -> object:
        """Take one outcome."""

    def on_change(self, callback: Callable[[Change], object], /) -> Callable[[], object]:
        """Call back after every change of a region's status, until what this gives is called."""


@dataclass(frozen=True)
class Rules:
    """What all exchanges of a transport share."""

    lb: Balancing
    budget: RetryBudget
    retries: int
    client: Client
    keep_host: bool
    counters: Counter[str]


class Exchange:
    """One request on its way to one region after another."""

    def __init__(self, rules: Rules, request: httpx.Request) -> None:
        self._rules, self._lb, self._request = rules, rules.lb, request
        self._client = request.extensions.get(CLIENT, rules.client)
        self._tried: list[str] = []
        self._gen = 0
        self._since = 0.0
        self.region = self._first()
        rules.counters["requests"] += 1
        rules.budget.deposit()

    def send(self) -> httpx.Request:
        """Give the request as the current region's gateway gets it; the clock runs from here."""
        region, request = self.region, self._request
        self._tried.append(region.name)
        gateway, path = _gateway(region.gateway)
        headers, extensions = request.headers.copy(), {key: value for key, value in request.extensions.items() if key != CLIENT}
        if self._rules.keep_host:
            extensions.setdefault("sni_hostname", request.url.host)
        else:
            headers["Host"] = gateway.netloc.decode("ascii")
        self._gen, self._since = self._generation(), self._lb.clock()
        url = gateway.copy_with(raw_path=path + request.url.raw_path)
        return httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=extensions)

    def _generation(self) -> int:
        try:
            return self._lb.generation(self.region.name)
        except UnknownRegionError:
            return 0  # removed since it was picked: its gateway is still the best that is known

    def failed(self, error: Exception) -> bool:
        """Take an error that came before any response; True = send again, `region` is the next one."""
        cause = self._cause(error)
        if cause is None:
            return False
        self._report(False, cause)
        if len(self._tried) > self._rules.retries or not self._repeatable(error):
            return False
        following = self._next()
        if following is None:
            return False
        if not self._rules.budget.withdraw():
            self._rules.counters["budget_exhausted"] += 1
            return False
        self._rules.counters["retries"] += 1
        self.region = following
        return True

    def answered(self, response: httpx.Response) -> None:
        """Take a response's headers."""
        response.extensions = {**response.extensions, REGION: self.region.name}
        if response.status_code in FAILURES:
            self._report(False, "status")
            return
        if self._small():
            self._tell(self._lb.observe, self.region.name, max(0.0, self._lb.clock() - self._since) * 1000.0, self._client)
        self._report(True, None)

    def cut_off(self, error: Exception) -> None:
        """Take an error in the middle of a response's body: the caller gets it, the region is charged with it."""
        if (cause := self._cause(error)) is not None:
            self._report(False, cause)

    # ---- which

    def _first(self) -> Region:
        region = self._lb.pick(self._client)
        if region.gateway:
            return region
        for other in self._lb.rank(self._client):
            if other.gateway:
                return other
        raise NoRegionError("no region that can be picked has a gateway URL")

    def _next(self) -> Region | None:
        """Give the next in rank that was not tried; one that is down only when all are."""
        for region in self._lb.rank(self._client):
            if region.name not in self._tried and region.gateway and (self._usable(region) or self._lb.fail_open):
                return region
        return None

    def _usable(self, region: Region) -> bool:
        try:
            return self._lb.status(region.name) in ("up", "degraded")
        except UnknownRegionError:
            return False

    # ---- whether

    def _repeatable(self, error: Exception) -> bool:
        """Say whether sending again can do no harm: it does the same twice, or was not sent at all (RFC 9110 §9.2.2)."""
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return True  # the body was not touched either
        idempotent = self._request.method.upper() in IDEMPOTENT or "Idempotency-Key" in self._request.headers
        return idempotent and isinstance(self._request.stream, httpx.ByteStream)

    def _small(self) -> bool:
        try:
            return isinstance(self._request.stream, httpx.ByteStream) and int(self._request.headers.get("Content-Length", 0)) <= SMALL
        except ValueError:
            return False  # a header of the caller's that is no number

    @staticmethod
    def _cause(error: Exception) -> str | None:
        """Give the cause for which the region answers; what is not httpx's comes from the caller's own body."""
        return cause_of(error) if isinstance(error, httpx.TransportError) else None

    # ---- tell

    def _report(self, ok: bool, cause: str | None) -> None:
        if not ok:
            self._rules.counters[f"failed_{cause}"] += 1
        self._tell(self._lb.report, self.region.name, ok, self._client, cause=cause, gen=self._gen)

    def _tell(self, method: Callable[..., object], *args: object, **options: object) -> None:
        try:
            method(*args, **options)
        except UnknownRegionError:
            pass  # removed while the request was under way


@lru_cache(maxsize=4096)
def _gateway(url: str) -> tuple[httpx.URL, bytes]:
    """Give a gateway's URL and the path that goes before a request's."""
    gateway = httpx.URL(url)
    return gateway, gateway.raw_path.partition(b"?")[0].rstrip(b"/")


T = TypeVar("T")


class Pool(Generic[T]):
    """One region's connections and how many exchanges use them."""

    __slots__ = ("retired", "transport", "users")

    def __init__(self, transport: T) -> None:
        self.transport, self.users, self.retired = transport, 0, False


class Pools(Generic[T]):
    """The connections of each region apart, so that those of one that went down can be closed.

    make: gives the transport for a region. A retired pool gets no new exchange and is to be closed after its last one.
    """

    def __init__(self, make: Callable[[Region], T], lb: Balancing) -> None:
        self._make, self._lb = make, lb
        self._lock = threading.Lock()
        self._pools: dict[Region, Pool[T]] = {}
        self._open: set[Pool[T]] = set()

    def acquire(self, region: Region) -> tuple[Pool[T], list[Pool[T]]]:
        """Give the pool for a region and those that are to be closed, because their regions are gone or changed."""
        with self._lock:
            pool = self._pools.get(region)
            unused: list[Pool[T]] = []
            if pool is None:
                regions = self._lb.regions
                unused = self._retire([known for known in self._pools if known not in regions])
                pool = self._pools[region] = Pool(self._make(region))
                self._open.add(pool)
            pool.users += 1
            return pool, unused

    def release(self, pool: Pool[T]) -> list[Pool[T]]:
        """End one use; gives the pool if it is to be closed now."""
        with self._lock:
            pool.users -= 1
            return self._closing([pool] if pool.retired else [])

    def changed(self, change: Change) -> list[Pool[T]]:
        """Retire the pools of a region that is no longer to be used; gives those to be closed now."""
        with self._lock:
            if change.after not in _GONE:
                return []
            return self._retire([known for known in self._pools if known.name == change.region])

    def clear(self) -> list[Pool[T]]:
        """Retire everything; gives all pools that are open, used or not."""
        with self._lock:
            found = [*self._retire([*self._pools]), *self._open]
            self._open.clear()
            return found

    def _retire(self, keys: Sequence[Region]) -> list[Pool[T]]:
        pools = [self._pools.pop(key) for key in keys]
        for pool in pools:
            pool.retired = True
        return self._closing(pools)

    def _closing(self, pools: Sequence[Pool[T]]) -> list[Pool[T]]:
        unused = [pool for pool in pools if pool.users == 0 and pool in self._open]
        self._open.difference_update(unused)
        return unused
