"""RunCollector: the metrics page of `lbcore run`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from lbcore.http.metrics import Book, metrics_of
from lbcore.metrics import Reloads, counter, gauge, health, reloading

if TYPE_CHECKING:
    from lbcore.cli.generation import Generation

__all__ = ["RunCollector"]

PREFIXES = {"front-door": "lbcore_http", "gateway": "lbcore_gateway"}


class RunCollector(Collector):
    """Everything that workers count, summed, and what the supervisor knows of them and of the regions.

    generations: gives those that have workers, the current one first; more: gives further metrics
    """

    def __init__(
        self, books: Mapping[str, Book], generations: Callable[[], Sequence[Generation]], reloads: Reloads,
        more: Callable[[], Iterable[Metric]] = tuple,
    ) -> None:  # fmt: skip
        self._books, self._generations, self._reloads, self._more = books, generations, reloads, more

    def collect(self) -> Iterator[Metric]:
        """Give all metrics as they stand."""
        generations = self._generations()
        current = generations[0]
        for role, prefix in PREFIXES.items():
            if role in current.crews:
                yield from metrics_of(prefix, self._books[role])
        if "gateway" in current.crews:
            yield from self._capacity(current)
        yield from health(current.lb)
        yield gauge("lbcore_workers", "Worker processes that serve", ("role",), {(r,): len(p) for r, p in current.pids.items()})
        leaving = Counter(role for one in generations[1:] for role, pids in one.pids.items() for _ in pids)
        before = {(role,): leaving[role] for role in current.pids}
        yield gauge("lbcore_workers_leaving", "Worker processes of an earlier configuration", ("role",), before)
        yield counter("lbcore_worker_deaths", "Workers that ended unasked", ("role",), {(r,): current.deaths[r] for r in current.pids})
        yield from reloading("lbcore", self._reloads)
        yield from self._more()

    def _capacity(self, current: Generation) -> Iterator[Metric]:
        """Give how full the gateway's units are, and by what it serves."""
        crew, book = current.crews["gateway"], self._books["gateway"]
        section = current.settings.document.gateway
        region = current.settings.region(section.region).name if section is not None else ""
        average, most, advice = book.gauge("capacity_avg"), book.gauge("capacity_max"), book.gauge("advice")
        percent = {(region, "avg"): sum(average) / max(1, len(average)), (region, "max"): max(most, default=0.0)}
        yield gauge("lbcore_gateway_capacity_percent", "How full the units were in the last minute", ("region", "of"), percent)
        advised = {(region,): max(advice, default=0.0)}
        yield gauge("lbcore_scale_advice", "2: add units now, 1: plan for it, 0: neither", ("region",), advised)
        yield counter("lbcore_gateway_overloaded", "Calls for which the units had no room", (), {(): book.count("overloaded")})
        found = crew.documents.configuration if crew.documents is not None else None
        if found is not None:
            revision = {(str(found.epoch),): found.sequence}
            yield gauge("lbcore_gateway_revision", "The sequence of the configuration that is served", ("epoch",), revision)
