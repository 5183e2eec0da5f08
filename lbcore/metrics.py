"""Metrics as Prometheus reads them: a page that shows collectors, and what every edge tells of regions.

Counted elsewhere and collected when somebody asks; reading stops nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lbcore.layout import STATUSES

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError('metrics need prometheus-client: pip install "lbcore[dns]" or "lbcore[http]"', name="prometheus_client") from error

if TYPE_CHECKING:
    from lbcore.balancer import Balancer

__all__ = ["MetricsPage", "Reloads", "counter", "gauge", "health", "reloading", "text_of"]

PATIENCE = 5.0  # seconds for a scraper to ask and to take the page
_STATES = (*dict.fromkeys((*STATUSES, "draining", "disabled")),)
Counts = Mapping[Any, float]


class Reloads:
    """How reloads went: `done` by result, `at` the wall-clock time of the last success, `seconds` that it took."""

    def __init__(self) -> None:
        self.done = {"ok": 0, "failed": 0}
        self.at = time.time()
        self.seconds = 0.0

    def note(self, ok: bool, seconds: float) -> None:
        """Count one."""
        self.done["ok" if ok else "failed"] += 1
        if ok:
            self.at, self.seconds = time.time(), seconds


def health(lb: Balancer) -> Iterator[Metric]:
    """Give what a Balancer knows of its regions."""
    status = {region.name: lb.status(region.name) for region in lb.regions}
    yield gauge("lbcore_region_eligible", "1: clients are sent there", ("region",), {(name,): now == "up" for name, now in status.items()})
    states = {(name, each): now == each for name, now in status.items() for each in _STATES}
    yield gauge("lbcore_region_status", "1: what holds of the region", ("region", "status"), states)
    yield gauge("lbcore_fail_open", "1: no region is up", (), {(): lb.fail_open})
    suspect = lb.guard.suspicion is not None
    yield gauge("lbcore_vantage_suspect", "1: verdicts are frozen, this machine's uplink is suspect", (), {(): suspect})


def reloading(prefix: str, reloads: Reloads) -> Iterator[Metric]:
    """Give how the reloads of a configuration went; names begin with `prefix`, say "lbcore_dns"."""
    yield counter(f"{prefix}_reloads", "Reloads, by result", ("result",), {(r,): n for r, n in reloads.done.items()})
    yield gauge(f"{prefix}_reload_timestamp_seconds", "When the configuration in use was read", (), {(): reloads.at})
    yield gauge(f"{prefix}_reload_seconds", "How long the last reload took", (), {(): reloads.seconds})


def counter(name: str, text: str, labels: Iterable[str], counts: Counts) -> Metric:
    """Give a counter's values by its labels' values."""
    return _filled(CounterMetricFamily(name, text, labels=[*labels]), counts)


def gauge(name: str, text: str, labels: Iterable[str], counts: Counts) -> Metric:
    """Give a gauge's values by its labels' values."""
    return _filled(GaugeMetricFamily(name, text, labels=[*labels]), counts)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, counts: Counts) -> Metric:
    for labels, count in counts.items():
        family.add_metric(labels, float(count))
    return family


def text_of(collector: Collector) -> bytes:
    """Give a collector's metrics as a page has them, to be shown on another process's."""
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)


class MetricsPage:
    """Show a collector's metrics, and the process's own, at /metrics while the `async with` block runs.

    listening: a socket that is bound, say one taken over; else host and port are bound (OSError when they cannot be)
    more: gives what stands below, as `text_of` does
    """

    def __init__(
        self, collector: Collector, host: str = "127.0.0.1", port: int = 9190, *,
        listening: socket.socket | None = None, more: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:  # fmt: skip
        self._host, self._port, self._listening, self._more = host, port, listening, more
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(collector)
        self._server: asyncio.Server | None = None

    @property
    def socket(self) -> socket.socket:
        """Give what it listens on."""
        assert self._listening is not None
        return self._listening

    async def __aenter__(self) -> Self:
        if self._listening is None:
            self._listening = socket.create_server(
                (self._host, self._port), family=socket.AF_INET6 if ":" in self._host else socket.AF_INET, backlog=16
            )
            self._listening.setblocking(False)
        self._server = await asyncio.start_server(self._show, sock=self._listening.dup(), limit=1 << 14)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._server is not None:
            self._server.close()
        if self._listening is not None:
            self._listening.close()

    async def _show(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError, OSError, EOFError, asyncio.LimitOverrunError):
            async with asyncio.timeout(PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._response(head.split(b"\r\n", 1)[0].split()))
                await writer.drain()
        writer.close()

    async def _response(self, request: list[bytes]) -> bytes:
        method, path = (request + [b"", b""])[:2]
        if method not in (b"GET", b"HEAD"):
            return _http("405 Method Not Allowed", b"only GET and HEAD\n", extra="Allow: GET, HEAD\r\n")
        if path.partition(b"?")[0] != b"/metrics":
            return _http("404 Not Found", b"the metrics are at /metrics\n")
        page = await asyncio.to_thread(generate_latest, self._registry)  # elsewhere: a long page must not make others wait
        page += await self._more() if self._more else b""
        whole = _http("200 OK", page, CONTENT_TYPE_LATEST)
        return whole if method == b"GET" else whole[: -len(page)]


def _http(status: str, body: bytes, content_type: str = "text/plain; charset=utf-8", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n"
    return head.encode() + body
