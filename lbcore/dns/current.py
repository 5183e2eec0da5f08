"""Current: what is answered from, kept up to date: prepared Answers and the compiled Program, replaced together.

    regions, the table or the map are others    Answers and Program, before a client can be sent to a new region
    zones or signatures are others              Answers and Program
    a verdict, a switch of the operator's       nothing: a Program reads them from the table as it walks
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from lbcore.dns.answers import Answers
from lbcore.dns.place import place_of
from lbcore.dns.prepare import build
from lbcore.dns.route import Foreseeing, Horizon, Program, compile_routes, foresee
from lbcore.dns.zone import Zone
from lbcore.region import Region

__all__ = ["Balancing", "Current", "Prepared", "Version"]

logger = logging.getLogger(__name__)

Prepared = Callable[[Answers | None, Program], object]


class Balancing(Foreseeing, Protocol):
    """What a Responder needs of a Balancer."""

    def on_publish(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back whenever the table, the map or the regions are others; gives a function that ends it."""

    def tick(self) -> object:
        """Do what is due."""


class Version(NamedTuple):
    """What one query is answered from, from beginning to end."""

    answers: Answers
    program: Program


class Current:
    """Prepare Answers and Program, and again when they are no longer right.

    `version` is what holds now. An error in preparing leaves the last version in use, is logged and counted in `failures`; only the
    first time it is raised. May be used by several threads.
    """

    def __init__(self, lb: Balancing, zones: Iterable[Zone]) -> None:
        self.zones = tuple(zones)
        self.failures = 0
        self._lb = lb
        # Under the Balancer's lock this one may be wanted (on_publish), so nobody who holds it may want that one.
        self._lock = threading.RLock()
        self._followers: list[Prepared] = []
        self.version = self._prepared(self.zones)
        self._end = lb.on_publish(self._published)

    def close(self) -> None:
        """Follow the Balancer no longer."""
        self._end()

    def follow(self, callback: Prepared) -> None:
        """Call `callback(answers, program)` now, and whenever they are others: answers None = they are the same as before."""
        with self._lock:
            self._followers.append(callback)
            callback(*self.version)

    def reload(self, zones: Iterable[Zone]) -> None:
        """Answer for other zones from now on; raises what is wrong with them, and the old ones stay."""
        with self._lock:
            zones = tuple(zones)
            self._replace(self._prepared(zones))
            self.zones = zones

    def renew(self) -> None:
        """Prepare again where signatures are due, and let TTLs follow health."""
        foresee(self.version.program, self._lb)
        if any(zone.keys is not None and zone.keys.due() for zone in self.zones):
            self._published()

    def _published(self) -> None:
        with self._lock:
            try:
                self._replace(self._prepared(self.zones))
            except Exception:
                self.failures += 1
                logger.exception("answers could not be prepared; the old ones stay in use")

    def _replace(self, version: Version) -> None:
        self.version = version
        for follower in self._followers:
            follower(*version)

    def _prepared(self, zones: tuple[Zone, ...]) -> Version:
        while True:
            table, objects = self._lb.table, self._lb.objects
            answers = build(zones, objects)
            follows = any(root.profile.ttl_min is not None for root in answers.roots)
            horizon = Horizon(table.region_capacity) if follows else None  # promises nothing until `renew`
            program = compile_routes(answers.roots, self._lb, families=_families, horizon=horizon)
            if self._lb.table is table and self._lb.objects is objects:
                return Version(answers, program)


def _families(region: Region, direct: bool) -> tuple[bool, bool]:
    return place_of(region).families(direct)
