"""Routes: regions as the front door uses them, each with the connections to its gateway."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from lbcore._fast import LatencyTable
from lbcore.decision import Decision
from lbcore.errors import NoRegionError, UnknownRegionError
from lbcore.http.exchange import Balancing
from lbcore.http.forward import Forwarder, Target
from lbcore.region import Region
from lbcore.sense.geo import Client

__all__ = ["Route", "Routes", "Ticking"]


class Ticking(Balancing, Protocol):
    """What a front door needs of a Balancer."""

    @property
    def table(self) -> LatencyTable:
        """Give the latency table in use."""

    def slot(self, region: str, /) -> int:
        """Give a region's index in it."""

    @property
    def shared(self) -> bool:
        """Say whether other processes share the table."""

    def look(self) -> None:
        """Take in what they met and decided."""

    def tick(self) -> None:
        """Do what is due."""

    def match(self, client: Client, /) -> tuple[int, int]:
        """Give a client's group first."""

    def explain(self, client: Client = None) -> Decision:
        """Give the reasons for a pick."""

    def answered(self, region: str, ms: float, client: Client = None, *, gen: int | None = None) -> None:
        """Take a success and how long it took."""

    def waiting(self, region: str, count: int, client: Client = None, *, gen: int | None = None) -> None:
        """Take how many calls wait for long."""


@dataclass(slots=True, eq=False)
class Route:
    """A region, its gateway, and how long the first byte of a response usually takes there, seconds."""

    region: Region
    target: Target
    usual: float = 0.0


class Routes:
    """Keep a Route for every region that is used. keep_host, tls: as FrontDoor."""

    def __init__(self, lb: Ticking, engine: Forwarder, keep_host: bool, tls: ssl.SSLContext | None) -> None:
        self._lb, self._engine, self._keep_host, self._tls = lb, engine, keep_host, tls
        self.known: dict[str, Route] = {}

    def of(self, region: Region) -> Route | None:
        """Give a region's route, None when it has no gateway; a gateway that moved gets other connections."""
        old = self.known.get(region.name)
        if old is not None and old.region is region:
            return old
        if not region.gateway:
            return None
        upstream = self._engine.upstream(region.gateway, tls=self._tls)
        if old is not None and old.target.upstream is not upstream:
            old.target.upstream.retire()
        prefix = urlsplit(region.gateway).path.rstrip("/").encode("ascii")
        target = Target(upstream, region.name, prefix, None if self._keep_host else upstream.authority)
        route = self.known[region.name] = Route(region, target)
        return route

    def any(self, client: Client) -> Route:
        """Give the best route that has a gateway; NoRegionError when none has."""
        for region in self._lb.rank(client):
            if (route := self.of(region)) is not None:
                return route
        raise NoRegionError("no region that can be picked has a gateway URL")

    def next(self, client: Client, tried: Sequence[str], failed: bool = False) -> Route | None:
        """Give the next in rank that was not tried. failed: the call has failed, so that one that is out is better than none."""
        left = [region for region in self._lb.rank(client) if region.name not in tried and region.gateway]
        usable = left if self._lb.fail_open else [region for region in left if self.usable(region)]
        best = next(iter(usable or (left if failed else ())), None)
        return None if best is None else self.of(best)

    def usable(self, region: Region) -> bool:
        """Say whether a region may be sent calls."""
        try:
            return self._lb.status(region.name) in ("up", "degraded")
        except UnknownRegionError:
            return False

    def serves(self, region: Region, client: Client) -> bool:
        """Say whether a region may be sent a client's calls: it is usable, and the path from the client's group is not broken."""
        return self.usable(region) and not self.excluded(region.name, client)

    def excluded(self, name: str, client: Client) -> bool:
        """Say whether the path from a client's group to the region is taken for broken."""
        try:
            return self._lb.table.excluded(self._lb.match(client)[0], self._lb.slot(name))
        except (UnknownRegionError, IndexError):
            return False

    def generation(self, route: Route) -> int:
        """Give the region's generation, 0 once it is removed."""
        try:
            return self._lb.generation(route.target.name)
        except UnknownRegionError:
            return 0

    def tidy(self) -> None:
        """Close the connections to regions that were removed, and those that calls left behind to regions out of use."""
        if len(self.known) > len(self._lb.regions):
            for name in self.known.keys() - {region.name for region in self._lb.regions}:
                self.known.pop(name).target.upstream.retire()
        for route in self.known.values():
            if route.target.upstream.idle and not self.usable(route.region) and not self._lb.fail_open:
                route.target.upstream.close_idle()
