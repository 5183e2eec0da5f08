"""Watching: the primary's own look at the regions that are listed: a Balancer, and a Prober with the profile's monitor.

Nobody is routed by it; it answers what would be decided, and how regions are while no edge says so.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lbcore.balancer import Balancer, Change
from lbcore.detect import Detector, Guard, VantageSuspect, default_detector
from lbcore.learned import Learned
from lbcore.region import Region
from lbcore.sense.checks import Check, check
from lbcore.sense.monitor import Monitor
from lbcore.sense.probe import Prober
from lbcore.service.rotation_document import Place

__all__ = ["Watching", "detector_of"]

logger = logging.getLogger(__name__)

MOST_LEARNED = 64 << 20  # bytes
NOBODY = Region("nowhere", 0.0, 0.0, enabled=False)  # a Balancer has one region at least; this one never serves


def detector_of(monitor: Monitor) -> Detector:
    """Give the usual detector for a monitor's counts."""
    inner = default_detector(tolerated=monitor.tolerated, rise=monitor.rise)
    return Guard(inner, suspect=lambda: VantageSuspect(interval=monitor.interval))


class Watching:
    """Watch regions, from the primary's place.

    clock: monotonic seconds;  locate: as Balancer has it;  detector: makes one for a monitor;  anchors: as Prober has them
    changed: is called with each change of a region's status as this place sees it
    probe: does one probe
    """

    def __init__(
        self, *, clock: Callable[[], float], locate: Any = None, detector: Callable[[Monitor], Detector] = detector_of,
        anchors: Sequence[str] = (), changed: Callable[[Change], object] = lambda change: None, probe: Check = check,
    ) -> None:  # fmt: skip
        self._clock, self._detector, self._anchors, self._changed, self._probe = clock, detector, anchors, changed, probe
        self.monitor = Monitor()
        self._regions: tuple[Region, ...] = (NOBODY,)
        self._draining: frozenset[str] = frozenset()
        self._heard: frozenset[str] = frozenset()  # by the prober before this one
        self.lb = self._made(locate)
        self._prober: Prober | None = None
        self._task: asyncio.Task[None] | None = None
        self._running = False

    def _made(self, locate: Any) -> Balancer:
        lb = Balancer(self._regions, locate, self._detector(self.monitor), self._clock)
        lb.on_change(self._changed)
        return lb

    # ---- who is watched

    def follow(self, places: Sequence[Place], monitor: Monitor, off: Collection[str], always: Collection[str]) -> None:
        """Watch exactly these regions, by this monitor. off: regions that are not to serve; always: those that are not probed"""
        regions = tuple(replace(_region(each), enabled=each.enabled and each.name not in off, always_serve=each.name in always)
                        for each in places) or (NOBODY,)  # fmt: skip
        if monitor != self.monitor:
            self._begin_anew(monitor)
        if regions != self._regions:
            self._regions = regions
            self._heard &= {region.name for region in regions}
            self.lb.set_regions(regions)
        self._drain(frozenset(each.name for each in places if each.draining))

    def _drain(self, draining: frozenset[str]) -> None:
        there = {region.name for region in self.lb.regions}
        for name in (self._draining ^ draining) & there:
            self.lb.drain(name, name in draining)
        self._draining = draining

    def _begin_anew(self, monitor: Monitor) -> None:
        """Judge by another monitor from now on, with what was learned."""
        self._heard = frozenset(region.name for region in self.lb.regions if self.seen(region.name) != "checking")
        before, self.monitor = self.lb, monitor
        learned = Learned.of(before)
        self.lb = self._made(before.map)
        for name in self._draining:
            self.lb.drain(name)
        learned.give(self.lb)
        if self._running:
            self._watch()

    def learn(self, state: bytes) -> None:
        """Take over what an edge learned; what cannot be used is logged. It takes time: not on the event loop."""
        try:
            size = len(zlib.decompressobj().decompress(state[12:], MOST_LEARNED))
        except zlib.error as error:
            logger.warning("what an edge learned cannot be used: %s", error)
            return
        if size < MOST_LEARNED:  # a small report may unpack to whatever there is memory for
            Learned(state, {}).give(self.lb)
        else:
            logger.warning("what an edge learned is too much to be true")

    # ---- run

    def start(self) -> None:
        """Begin to probe."""
        self._running = True
        self._watch()

    def _watch(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._prober = Prober(self.lb, monitor=self.monitor, anchors=self._anchors, vantage="primary", probe=self._probe)
        self._task = asyncio.create_task(self._prober.run())
        self._task.add_done_callback(_told)

    async def close(self) -> None:
        """Stop probing."""
        self._running = False
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({self._task})
            self._task = None

    # ---- what is seen

    def seen(self, name: str) -> str | None:
        """Give the word of `Balancer.status` for a region, "checking" before its first probe; None for one that is not watched."""
        if all(region.name != name for region in self.lb.regions):
            return None
        status, probed = self.lb.status(name), name in self._heard or (self._prober is not None and name in self._prober.results)
        return "checking" if status == "up" and not probed else status

    def cause(self, name: str) -> str:
        """Give why a region is down, "" when it is not."""
        known = any(region.name == name for region in self.lb.regions)
        return self.lb.guard.cause(self.lb.slot(name)) if known else ""


def _region(each: Place) -> Region:
    return each.region


def _told(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("nobody probes any more", exc_info=error)
