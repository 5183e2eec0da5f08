"""Backends: where a region's gateway sends calls. Each is a Balancer over its URLs, seen from this gateway alone.

    outcomes of calls, probes -> Balancer of the URLs -> the closest healthy one, the next for what is tried again
A backend that the next revision has unchanged keeps its health; an origin that is still used keeps its connections.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from lbcore._prefix import PrefixMap
from lbcore.balancer import Balancer
from lbcore.detect import AnyOf, Backoff, Consecutive, Pooled, Verdict
from lbcore.http.forward import Forwarder, Target
from lbcore.http.gateway.document import BackendEntry, ProbeEntry
from lbcore.http.upstream import Upstream
from lbcore.region import Region, canonical
from lbcore.sense.monitor import Monitor
from lbcore.sense.probe import Prober

__all__ = ["Backend", "Backends", "Way"]


@dataclass(slots=True, eq=False)
class Way:
    """One URL of a backend. name: of its region in the backend's Balancer; targets: by how long its answer may take, seconds."""

    name: str
    url: str
    target: Target
    targets: dict[float, Target] = field(default_factory=dict)

    def within(self, first_byte: float) -> Target:
        """Give the target for calls whose answer must begin within so many seconds."""
        found = self.targets.get(first_byte)
        if found is None:
            target = self.target
            found = self.targets[first_byte] = Target(target.upstream, target.name, target.prefix, target.host, first_byte)
        return found


class Backend:
    """A backend as one gateway sees it. entry: of the configuration; urls: those for this gateway's region."""

    def __init__(self, entry: BackendEntry, urls: Sequence[str], clock: Callable[[], float]) -> None:
        self.entry, self.name, self.urls = entry, entry.name, tuple(urls)
        regions = [Region(str(number), 0.0, 0.0, gateway=url) for number, url in enumerate(urls)]
        self.lb = Balancer(regions, PrefixMap.from_prefixes([]), _detector(entry.probe), clock)
        self.ways: dict[str, Way] = {}
        self.only: Way | None = None
        self.holders = 0  # revisions
        self._probing: asyncio.Task[None] | None = None

    def attach(self, engine: Forwarder, tls: ssl.SSLContext | None, options: Mapping[str, Any]) -> None:
        """Make the ways to its URLs, and probe them."""
        for region in self.lb.regions:
            upstream = engine.upstream(region.gateway, tls=tls, **options)
            host = None if self.entry.keep_host else upstream.authority
            prefix = urlsplit(region.gateway).path.rstrip("/").encode("ascii")
            self.ways[region.name] = Way(region.name, region.gateway, Target(upstream, self.name, prefix, host))
        self.only = next(iter(self.ways.values())) if len(self.ways) == 1 else None
        if self.entry.probe is not None:
            prober = Prober(self.lb, monitor=_monitor(self.entry.probe), vantage="gateway")
            self._probing = asyncio.get_running_loop().create_task(prober.run(), name=f"probe {self.name}")

    def detach(self) -> None:
        """Probe no more and forget the connections."""
        self.ways, self.only = {}, None
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None

    @property
    def upstreams(self) -> set[Upstream]:
        """Give the connections that it uses."""
        return {way.target.upstream for way in self.ways.values()}

    # ---- a call's way

    def pick(self) -> Way:
        """Give the way to the closest healthy URL."""
        return self.only or self.ways[self.lb.pick(None).name]

    def next(self, tried: Sequence[str]) -> Way:
        """Give the next way: of those not tried before the closest, healthy ones first; when all were, the best there is."""
        ranked = [self.ways[region.name] for region in self.lb.rank(None)]
        return next((way for way in ranked if way.name not in tried and self._usable(way.name)), None) or next(
            (way for way in ranked if way.name not in tried), ranked[0]
        )

    def _usable(self, name: str) -> bool:
        return self.lb.status(name) in ("up", "degraded") and self.lb.guard.verdict(self.lb.slot(name)) is not Verdict.DOWN

    # ---- health

    @property
    def up(self) -> bool:
        """Say whether some URL of it is taken to be up."""
        return any(self._usable(region.name) for region in self.lb.regions)

    def health(self) -> dict[str, str]:
        """Give "up" or "down" by URL."""
        return {region.gateway: "up" if self._usable(region.name) else "down" for region in self.lb.regions}

    def tick(self) -> None:
        """Do what is due; a Prober does it by itself."""
        if self._probing is None and (self.only is None or not self.up):
            self.lb.tick()


class Backends:
    """The backends of all revisions in use, each once. region: of the gateway; tls, options: of connections to them."""

    def __init__(
        self, region: str, clock: Callable[[], float], tls: ssl.SSLContext | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self._region, self._clock, self._tls, self._options = canonical(region), clock, tls, options or {}
        self._engine: Forwarder | None = None
        self._held: list[Backend] = []

    def hold(self, entries: Iterable[BackendEntry]) -> dict[str, Backend]:
        """Give the backends for a revision's entries by name; those without a URL for this region are left out. `release` ends it."""
        known = {backend.name: backend for backend in self._held}  # the latest of a name
        found = {}
        for entry in entries:
            backend = known.get(entry.name)
            if backend is None or backend.entry != entry:
                backend = self._make(entry)
            if backend is not None:
                backend.holders += 1
                found[entry.name] = backend
        return found

    def _make(self, entry: BackendEntry) -> Backend | None:
        own = next((urls for region, urls in entry.regions.items() if canonical(region) == self._region and urls), entry.urls)
        if not own:
            return None
        backend = Backend(entry, own, self._clock)
        self._held.append(backend)
        if self._engine is not None:
            backend.attach(self._engine, self._tls, self._options)
        return backend

    def release(self, backends: Iterable[Backend]) -> None:
        """Let go of a revision's backends; connections that no other one uses are closed, after their calls."""
        gone = []
        for backend in backends:
            backend.holders -= 1
            if not backend.holders:
                self._held.remove(backend)
                gone.append(backend)
        used = {upstream for backend in self._held for upstream in backend.upstreams} if gone else set()
        for backend in gone:
            for upstream in backend.upstreams - used:
                upstream.retire()
            backend.detach()

    def attach(self, engine: Forwarder) -> None:
        """Use an engine."""
        self._engine = engine
        for backend in self._held:
            backend.attach(engine, self._tls, self._options)

    def detach(self) -> None:
        """Use it no more."""
        self._engine = None
        for backend in self._held:
            backend.detach()

    def tick(self) -> None:
        """Do what is due. Every 100 ms."""
        for backend in self._held:
            backend.tick()


def _detector(probe: ProbeEntry | None) -> AnyOf:
    """All that this gateway sends is one group's evidence, so one group is enough to judge by."""
    rise = probe.rise if probe else 2
    return AnyOf(Consecutive(probe.tolerated if probe else 2, rise), Pooled(spread=1, backoff=Backoff(rise=rise)))


def _monitor(probe: ProbeEntry) -> Monitor:
    return Monitor(path=probe.path, interval=probe.interval, timeout=probe.timeout, tolerated=probe.tolerated, rise=probe.rise)
