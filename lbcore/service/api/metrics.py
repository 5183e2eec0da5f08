"""Metrics: what the management plane knows, as Prometheus reads it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from lbcore.metrics import counter, gauge, health, text_of
from lbcore.service.journal import Operation
from lbcore.service.revisions import Revision

if TYPE_CHECKING:
    from lbcore.service.plane import Plane

__all__ = ["Requests", "page"]

STATUSES = ("Online", "Degraded", "CheckingEndpoint", "Disabled", "Inactive", "Stopped", "Unmonitored")
RECENT = 1000  # operations that are counted


class Requests:
    """Requests served so far, by method and status."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def note(self, method: str, status: int) -> None:
        """Count one."""
        known = method if method in ("GET", "HEAD", "PUT", "PATCH", "POST", "DELETE") else "other"
        self.counts[known, str(status)] += 1


async def page(plane: Plane, requests: Requests) -> bytes:
    """Give the page as it is now."""
    latest, operations = await asyncio.gather(
        asyncio.to_thread(plane.store.revisions.latest), asyncio.to_thread(lambda: plane.store.operations.newest(limit=RECENT))
    )
    found = [*_seen(plane), *_configuration(plane, latest), *_operations(operations), _served(requests)]
    return await asyncio.to_thread(text_of, _Found(found))


class _Found(Collector):
    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def _seen(plane: Plane) -> Iterator[Metric]:
    rotation = plane.rotation()
    if rotation is not None and rotation.regions:
        yield from health(plane.lb)
    statuses = plane.statuses()
    shown = {(name, each): now == each for name, now in statuses.items() for each in STATUSES}
    yield gauge("lbcore_endpoint_monitor_status", "1: the word that the profile has for the region", ("region", "status"), shown)
    yield from _capacity(plane)
    ages = {(one.edge,): max(0.0, plane.now - one.received) for one in plane.edges()}
    yield gauge("lbcore_edge_report_age_seconds", "How long ago an edge reported", ("edge",), ages)
    if rotation is not None:
        epoch, sequence = rotation.number
        yield gauge("lbcore_rotation", "Number of the rotation", ("part",), {("epoch",): epoch, ("sequence",): sequence})
        behind = {(one.edge,): one.rotation is None or one.rotation < rotation.number for one in plane.edges()}
        yield gauge("lbcore_edge_behind", "1: the edge does not follow this rotation yet", ("edge",), behind)


def _capacity(plane: Plane) -> Iterator[Metric]:
    known = plane.capacities()
    percent = {(name, "average"): one.gauge.average for name, one in known.items()}
    percent |= {(name, "maximum"): one.gauge.maximum for name, one in known.items()}
    yield gauge("lbcore_location_capacity_percent", "How full a region's units were in the last minute, as its gateway says",
                ("region", "of"), percent)  # fmt: skip
    advised = {(name,): one.advised for name, one in known.items() if one.advised is not None}
    yield gauge("lbcore_location_advised_units", "How many units a region should have", ("region",), advised)


def _configuration(plane: Plane, latest: Revision | None) -> Iterator[Metric]:
    reports = plane.configuration.reports
    if latest is not None:
        epoch, sequence = latest.number
        yield gauge("lbcore_config_revision", "Number of the latest revision", ("part",), {("epoch",): epoch, ("sequence",): sequence})
    yield gauge("lbcore_config_lag_seconds", "Since when a region's gateway was last up to date, as it says",
                ("region",), {(name,): one.lag for name, one in reports.items()})  # fmt: skip
    held = {(name,): latest is not None and one.held is not None and one.held.number == latest.number for name, one in reports.items()}
    yield gauge("lbcore_config_in_sync", "1: the region's gateway has the latest revision", ("region",), held)
    yield gauge("lbcore_config_refused", "1: the region's gateway does not take the latest revision",
                ("region",), {(name,): bool(one.refused) for name, one in reports.items()})  # fmt: skip


def _operations(operations: list[Operation]) -> Iterator[Metric]:
    counts = Counter((one.kind, one.status) for one in operations)
    yield gauge("lbcore_operations", f"Of the last {RECENT} operations, by what and how they ended", ("kind", "status"), counts)
    running = [one for one in operations if one.status == "InProgress"]
    yield gauge("lbcore_operation_in_progress", "1: one runs", (), {(): bool(running)})
    if running:
        yield gauge("lbcore_operation_percent", "How far it is", (), {(): running[0].percent})


def _served(requests: Requests) -> Metric:
    return counter("lbcore_management_requests", "Requests to the management plane", ("method", "status"), dict(requests.counts))
