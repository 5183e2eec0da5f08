"""Metrics of a DNS server as Prometheus reads them: counted elsewhere, collected when somebody asks, and a page that shows them.

Reading stops nobody: counters of the compiled loop are summed over its threads as they stand.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lbcore.dns.server import BUCKETS, Server
from lbcore.layout import STATUSES

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError('metrics need prometheus-client: pip install "lbcore[dns]"', name="prometheus_client") from error

if TYPE_CHECKING:
    from lbcore.balancer import Balancer

__all__ = ["MOST_SERIES", "DnsCollector", "MetricsPage", "Reloads"]

MOST_SERIES = 5000  # of lbcore_dns_answers_total; what comes later is counted under the name "(others)"
PATIENCE = 5.0  # seconds for a scraper to ask and to take the page
_ANSWER = ("zone", "name", "type", "region", "result")


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


class DnsCollector(Collector):
    """Everything that a server, its Responder and its Balancer count.

    reloads: of the configuration. log: the query log, or whatever has `dropped` and `written`. Series are bounded: names are those
    of the zones, never what a client made up, and at most MOST_SERIES of them.
    """

    def __init__(self, server: Server, lb: Balancer, *, reloads: Reloads | None = None, log: Any = None) -> None:
        self._server, self._lb, self._reloads, self._querylog = server, lb, reloads or Reloads(), log
        self._known: set[tuple[str, ...]] = set()

    def collect(self) -> Iterator[Metric]:
        """Give all metrics as they stand."""
        yield from self._queries()
        yield from self._answers()
        yield from self._transport()
        yield from self._health()
        yield from self._upkeep()

    def _queries(self) -> Iterator[Metric]:
        fast, slow = self._server.fast(), self._server.responder.counters
        udp, tcp = self._server.counters["udp"], self._server.counters["tcp"]
        by_path = {("udp", "fast"): fast.get("queries", 0) - fast.get("slow", 0), ("udp", "slow"): udp, ("tcp", "slow"): tcp}
        yield _counter("lbcore_dns_queries", "Packets that came, by transport and by who answered", ("transport", "path"), by_path)
        for key, text in _EITHER.items():
            yield _counter(f"lbcore_dns_{key}", text, (), {(): fast.get(key, 0) + slow.get(key, 0)})
        limited = fast.get("limited", 0) + fast.get("truncated", 0) + slow["limited"]
        yield _counter("lbcore_dns_limited", "Queries over the response rate limit, truncated or dropped", (), {(): limited})
        results = {(result,): slow[result] for result in _RESULTS if result in slow}
        yield _counter("lbcore_dns_slow_responses", "Answers that the Responder gave, by result", ("result",), results)
        drops = {
            ("unanswerable",): fast.get("unanswerable", 0) + slow["dropped"], ("failure",): self._server.counters["mute"],
            ("limited",): fast.get("limited", 0) + slow["withheld"],
            ("unsent",): fast.get("unsent", 0) + self._server.counters["unsent"], ("slow path full",): fast.get("lost", 0),
        }  # fmt: skip
        yield _counter("lbcore_dns_dropped", "Packets without an answer, by reason", ("reason",), drops)

    def _answers(self) -> Iterator[Metric]:
        counts: dict[tuple[str, ...], int] = {}
        for source in (self._server.fast(), self._server.responder.counters):
            answers: Any = source.get("answers", {})
            for key, count in [*answers.items()] if isinstance(answers, Mapping) else ():
                labels = self._bounded(tuple(map(str, key)))
                counts[labels] = counts.get(labels, 0) + count
        yield _counter("lbcore_dns_answers", "Answers, by region and result", _ANSWER, counts)

    def _bounded(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Give the labels under which an answer is counted; who is known stays so, or its counter would go back."""
        if labels not in self._known:
            if len(self._known) >= MOST_SERIES:
                return ("", "(others)", "", "", labels[-1])
            self._known.add(labels)
        return labels

    def _transport(self) -> Iterator[Metric]:
        server = self._server
        yield _gauge("lbcore_dns_tcp_connections", "TCP connections now", (), {(): server.connections})
        ends = {(end,): server.counters[f"tcp_{end}"] for end in ("evicted", "timeouts")}
        yield _counter("lbcore_dns_tcp_accepted", "TCP connections taken", (), {(): server.counters["tcp_connections"]})
        yield _counter("lbcore_dns_tcp_closed", "TCP connections that the server ended, by reason", ("reason",), ends)
        yield _counter("lbcore_dns_failures", "Errors in the answering (SERVFAIL)", (), {(): server.counters["failures"]})
        total, buckets = 0, []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), [*server.slow], strict=True):
            total += count
            buckets.append((bound, float(total)))
        yield HistogramMetricFamily(
            "lbcore_dns_slow_seconds", "Seconds that the Responder took for an answer", buckets=buckets, sum_value=server.slow_seconds
        )

    def _health(self) -> Iterator[Metric]:
        status = {region.name: self._lb.status(region.name) for region in self._lb.regions}
        eligible = {(name,): float(now == "up") for name, now in status.items()}
        yield _gauge("lbcore_region_eligible", "1: clients are sent there", ("region",), eligible)
        states = {(name, each): float(now == each) for name, now in status.items() for each in _STATES}
        yield _gauge("lbcore_region_status", "1: what holds of the region", ("region", "status"), states)
        yield _gauge("lbcore_fail_open", "1: no region is up", (), {(): float(self._lb.fail_open)})
        suspect = self._lb.guard.suspicion is not None
        yield _gauge("lbcore_vantage_suspect", "1: verdicts are frozen, this machine's uplink is suspect", (), {(): float(suspect)})

    def _upkeep(self) -> Iterator[Metric]:
        reloads = self._reloads
        yield _counter("lbcore_dns_reloads", "Reloads, by result", ("result",), {(r,): n for r, n in reloads.done.items()})
        yield _gauge("lbcore_dns_reload_timestamp_seconds", "When the configuration in use was read", (), {(): reloads.at})
        yield _gauge("lbcore_dns_reload_seconds", "How long the last reload took", (), {(): reloads.seconds})
        signed = {zone.origin: zone.keys for zone in self._server.responder.zones if zone.keys is not None}
        by_zone = {(name,): at for name, signer in signed.items() if (at := signer.expires) is not None}
        yield _gauge("lbcore_dns_signature_expiry_timestamp_seconds", "When the first signature of a zone expires", ("zone",), by_zone)
        if self._querylog is not None:
            counts = {("written",): self._querylog.written, ("dropped",): self._querylog.dropped}
            yield _counter("lbcore_dns_query_log_lines", "Lines of the query log, by what became of them", ("result",), counts)


_EITHER = {
    "ecs": "Queries with a client subnet", "fail_open": "Answers given while no region was up",
    "truncated": "UDP answers with TC",
}  # fmt: skip
_RESULTS = ("noerror", "nodata", "referral", "nxdomain", "refused", "formerr", "notimp", "badvers", "badcookie", "notauth", "servfail")
_STATES = (*dict.fromkeys((*STATUSES, "draining", "disabled")),)
Counts = Mapping[Any, float]


def _counter(name: str, text: str, labels: Iterable[str], counts: Counts) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=[*labels]), counts)


def _gauge(name: str, text: str, labels: Iterable[str], counts: Counts) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=[*labels]), counts)


def _filled(family: CounterMetricFamily | GaugeMetricFamily, counts: Counts) -> Metric:
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


class MetricsPage:
    """Show a collector's metrics, and the process's own, at /metrics while the `async with` block runs.

    listening: a socket that is bound, say one taken over; else host and port are bound (OSError when they cannot be).
    """

    def __init__(self, collector: Collector, host: str = "127.0.0.1", port: int = 9190, *, listening: socket.socket | None = None) -> None:
        self._host, self._port, self._listening = host, port, listening
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
        page = await asyncio.to_thread(generate_latest, self._registry)  # elsewhere: a long page must not make queries wait
        whole = _http("200 OK", page, CONTENT_TYPE_LATEST)
        return whole if method == b"GET" else whole[: -len(page)]


def _http(status: str, body: bytes, content_type: str = "text/plain; charset=utf-8", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n"
    return head.encode() + body
