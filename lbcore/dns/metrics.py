"""Metrics of a DNS server as Prometheus reads them: counted elsewhere, collected when somebody asks.

Counters of the compiled loop are summed over its threads as they stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lbcore.dns.server import BUCKETS, Server
from lbcore.metrics import Reloads, counter, gauge, health, reloading

try:
    from prometheus_client.core import HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError('metrics need prometheus-client: pip install "lbcore[dns]"', name="prometheus_client") from error

if TYPE_CHECKING:
    from lbcore.balancer import Balancer

__all__ = ["MOST_SERIES", "DnsCollector"]

MOST_SERIES = 5000  # of lbcore_dns_answers_total; what comes later is counted under the name "(others)"
_ANSWER = ("zone", "name", "type", "region", "result")


class DnsCollector(Collector):
    """Everything that a server, its Responder and its Balancer count.

    lb: None leaves out what is known of regions, where another process tells it
    reloads: of the configuration. log: the query log, or whatever has `dropped` and `written`. Series are bounded: names are those
    of the zones, never what a client made up, and at most MOST_SERIES of them.
    """

    def __init__(self, server: Server, lb: Balancer | None, *, reloads: Reloads | None = None, log: Any = None) -> None:
        self._server, self._lb, self._reloads, self._querylog = server, lb, reloads or Reloads(), log
        self._known: set[tuple[str, ...]] = set()

    def collect(self) -> Iterator[Metric]:
        """Give all metrics as they stand."""
        yield from self._queries()
        yield from self._answers()
        yield from self._transport()
        if self._lb is not None:
            yield from health(self._lb)
        yield from self._upkeep()

    def _queries(self) -> Iterator[Metric]:
        fast, slow = self._server.fast(), self._server.responder.counters
        udp, tcp = self._server.counters["udp"], self._server.counters["tcp"]
        by_path = {("udp", "fast"): fast.get("queries", 0) - fast.get("slow", 0), ("udp", "slow"): udp, ("tcp", "slow"): tcp}
        yield counter("lbcore_dns_queries", "Packets that came, by transport and by who answered", ("transport", "path"), by_path)
        for key, text in _EITHER.items():
            yield counter(f"lbcore_dns_{key}", text, (), {(): fast.get(key, 0) + slow.get(key, 0)})
        limited = fast.get("limited", 0) + fast.get("truncated", 0) + slow["limited"]
        yield counter("lbcore_dns_limited", "Queries over the response rate limit, truncated or dropped", (), {(): limited})
        results = {(result,): slow[result] for result in _RESULTS if result in slow}
        yield counter("lbcore_dns_slow_responses", "Answers that the Responder gave, by result", ("result",), results)
        drops = {
            ("unanswerable",): fast.get("unanswerable", 0) + slow["dropped"], ("failure",): self._server.counters["mute"],
            ("limited",): fast.get("limited", 0) + slow["withheld"],
            ("unsent",): fast.get("unsent", 0) + self._server.counters["unsent"], ("slow path full",): fast.get("lost", 0),
        }  # fmt: skip
        yield counter("lbcore_dns_dropped", "Packets without an answer, by reason", ("reason",), drops)

    def _answers(self) -> Iterator[Metric]:
        counts: dict[tuple[str, ...], int] = {}
        for source in (self._server.fast(), self._server.responder.counters):
            answers: Any = source.get("answers", {})
            for key, count in [*answers.items()] if isinstance(answers, Mapping) else ():
                labels = self._bounded(tuple(map(str, key)))
                counts[labels] = counts.get(labels, 0) + count
        yield counter("lbcore_dns_answers", "Answers, by region and result", _ANSWER, counts)

    def _bounded(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Give the labels under which an answer is counted; who is known stays so, or its counter would go back."""
        if labels not in self._known:
            if len(self._known) >= MOST_SERIES:
                return ("", "(others)", "", "", labels[-1])
            self._known.add(labels)
        return labels

    def _transport(self) -> Iterator[Metric]:
        server = self._server
        yield gauge("lbcore_dns_tcp_connections", "TCP connections now", (), {(): server.connections})
        ends = {(end,): server.counters[f"tcp_{end}"] for end in ("evicted", "timeouts")}
        yield counter("lbcore_dns_tcp_accepted", "TCP connections taken", (), {(): server.counters["tcp_connections"]})
        yield counter("lbcore_dns_tcp_closed", "TCP connections that the server ended, by reason", ("reason",), ends)
        yield counter("lbcore_dns_failures", "Errors in the answering (SERVFAIL)", (), {(): server.counters["failures"]})
        total, buckets = 0, []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), [*server.slow], strict=True):
            total += count
            buckets.append((bound, float(total)))
        yield HistogramMetricFamily(
            "lbcore_dns_slow_seconds", "Seconds that the Responder took for an answer", buckets=buckets, sum_value=server.slow_seconds
        )

    def _upkeep(self) -> Iterator[Metric]:
        yield from reloading("lbcore_dns", self._reloads)
        signed = {zone.origin: zone.keys for zone in self._server.responder.zones if zone.keys is not None}
        by_zone = {(name,): at for name, signer in signed.items() if (at := signer.expires) is not None}
        yield gauge("lbcore_dns_signature_expiry_timestamp_seconds", "When the first signature of a zone expires", ("zone",), by_zone)
        if self._querylog is not None:
            counts = {("written",): self._querylog.written, ("dropped",): self._querylog.dropped}
            yield counter("lbcore_dns_query_log_lines", "Lines of the query log, by what became of them", ("result",), counts)


_EITHER = {
    "ecs": "Queries with a client subnet", "fail_open": "Answers given while no region was up",
    "truncated": "UDP answers with TC",
}  # fmt: skip
_RESULTS = ("noerror", "nodata", "referral", "nxdomain", "refused", "formerr", "notimp", "badvers", "badcookie", "notauth", "servfail")
