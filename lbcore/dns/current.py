"""Current: what is answered from, kept up to date: prepared Answers and the compiled Program, replaced together.

    regions, the table or the map are others    Answers and Program, before a client can be sent to a new region
    zones or signatures are others              Answers and Program
    a verdict, a switch of the operator's       nothing: a Program reads them from the table as it walks
    time                                        how long an answer may live by what probes could find (`foresee`)
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from lbcore.dns.answers import Answers
from lbcore.dns.place import place_of
from lbcore.dns.prepare import build
from lbcore.dns.route import Foreseeing, Horizon, Program, compile_routes, foresee
from lbcore.dns.zone import Zone
from lbcore.region import Region

__all__ = ["Balancing", "Current", "Prepared", "Version"]

logger = logging.getLogger(__name__)

PAUSE = 100  # ticks until signatures that could not be renewed are tried again

Prepared = Callable[[Answers, Program], object]


class Balancing(Foreseeing, Protocol):
    """What a Responder needs of a Balancer."""

    def unchanged(self) -> AbstractContextManager[None]:
        """Let no other thread replace the table, the map or the regions while the block runs."""

    def on_publish(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back, within `unchanged`, whenever the table, the map or the regions are others; gives a function that ends it."""

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
        self._pause = 0
        self._preparing = threading.Lock()  # taken before the Balancer's, never within it
        self._followers: list[tuple[Prepared]] = []
        with lb.unchanged():
            self.version = self._compiled(build(self.zones, lb.objects))
            self._end = lb.on_publish(self._published)

    def close(self) -> None:
        """Follow the Balancer no longer."""
        self._end()

    def follow(self, callback: Prepared) -> Callable[[], None]:
        """Call `callback(answers, program)` now, and whenever they are others; gives a function that ends it."""
        entry = (callback,)  # one of its own, should the same be given twice

        def end() -> None:
            with self._lb.unchanged():
                self._followers = [other for other in self._followers if other is not entry]

        with self._lb.unchanged():
            callback(self.version.answers, self.version.program)
            self._followers = [*self._followers, entry]
        return end

    def reload(self, zones: Iterable[Zone]) -> None:
        """Answer for other zones from now on; raises what is wrong with them, and the old ones stay."""
        with self._preparing:
            self._prepare(tuple(zones))

    def tick(self) -> None:
        """Look ahead for the TTLs that follow health, and prepare again where signatures are due."""
        if self.version.program.horizon is not None:
            with self._lb.unchanged():
                foresee(self.version.program, self._lb)
        self._pause -= self._pause > 0
        if not self._pause and any(part.due for part in self.version.answers.parts.values()):
            self._pause = PAUSE
            with self._preparing, self._reported():
                self._prepare(self.zones)
                self._pause = 0

    def _prepare(self, zones: tuple[Zone, ...]) -> None:
        """Prepare without holding the Balancer up: what takes long comes first, and again if the regions are others by then."""
        while True:
            objects = self._lb.objects
            answers = build(zones, objects, before=self.version.answers)
            with self._lb.unchanged():
                if self._lb.objects is objects:
                    self.zones = zones
                    return self._replace(answers)

    def _published(self) -> None:
        with self._reported():
            self._replace(build(self.zones, self._lb.objects, before=self.version.answers))

    def _replace(self, answers: Answers) -> None:
        self.version = self._compiled(answers)
        for (follower,) in self._followers:
            follower(self.version.answers, self.version.program)

    def _compiled(self, answers: Answers) -> Version:
        follows = any(root.profile.ttl_min is not None for root in answers.roots)
        horizon = Horizon(self._lb.table.region_capacity) if follows else None
        program = compile_routes(answers.roots, self._lb, families=_families, horizon=horizon)
        foresee(program, self._lb)
        return Version(answers, program)

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.failures += 1
            logger.exception("answers could not be prepared; the old ones stay in use")


def _families(region: Region, direct: bool) -> tuple[bool, bool]:
    return place_of(region).families(direct)
