"""Learned: what one Balancer knows, for another that goes on: latencies, and which regions are down."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from lbcore.balancer import Balancer
from lbcore.detect import HoldDown
from lbcore.errors import CAUSES
from lbcore.sense.checks import Streak

__all__ = ["Learned"]

logger = logging.getLogger(__name__)

MOST_REPORTS = 20  # until a detector believes what the last one knew


@dataclass(frozen=True, slots=True)
class Learned:
    """What `Balancer.save` writes, and why each region that is down or ejected is so, by name.

    holds: what is remembered of regions' changes; streaks: how the last probes ended, but of ejected ones. Within one process alone
    """

    state: bytes
    down: Mapping[str, str]
    holds: Mapping[str, HoldDown] = field(default_factory=dict)
    streaks: Mapping[str, Streak] = field(default_factory=dict)

    @classmethod
    def of(cls, lb: Balancer, streaks: Mapping[str, Streak] | None = None) -> Self:
        """Take it from a Balancer, and what its Prober knows."""
        slots = {region.name: lb.slot(region) for region in lb.regions}
        holds = {name: hold for name, slot in slots.items() if (hold := lb.guard.hold(slot)) is not None}
        counted = {name: streak for name, streak in (streaks or {}).items() if name in slots and lb.table.tier(slots[name]) != 2}
        return cls(_state(lb), _out(lb), holds, counted)

    def give(self, lb: Balancer) -> None:
        """Let another Balancer go on from it; what cannot be used is learned anew."""
        try:
            with tempfile.NamedTemporaryFile() as file:
                file.write(self.state)
                file.flush()
                lb.load(file.name)
        except (OSError, ValueError) as error:
            logger.warning("what the last process learned cannot be used: %s", error)
        names = {region.name for region in lb.regions}
        _put_down(lb, self.down)
        for name in self.holds.keys() & names:
            lb.guard.set_hold(lb.slot(name), self.holds[name])
        for name in self.streaks.keys() & names:
            self._repeat(lb, name, self.streaks[name])

    def catch_up(self, before: Balancer, lb: Balancer) -> None:
        """Tell the other Balancer which regions went down since this was taken from the one before."""
        _put_down(lb, {name: cause for name, cause in _out(before).items() if name not in self.down})

    def _repeat(self, lb: Balancer, name: str, streak: Streak) -> None:
        """Have the detector count on from where the last one was: successes of a region that is down, failures of one that is up."""
        down = name in self.down
        if not down:
            lb.report(name, True, source="probe")
        for _ in range(min(streak.times, MOST_REPORTS) if down == streak.ok else 0):
            lb.report(name, streak.ok, cause=streak.cause if streak.cause in CAUSES else None, source="probe")


def _out(lb: Balancer) -> dict[str, str]:
    """Give the regions that are down or ejected, also of those that the operator took out, and why."""
    slots = {region.name: lb.slot(region) for region in lb.regions}
    return {name: lb.guard.cause(slot) for name, slot in slots.items() if lb.table.tier(slot) in (2, 3)}


def _put_down(lb: Balancer, down: Mapping[str, str]) -> None:
    names = {region.name for region in lb.regions}
    for name, cause in down.items():
        for _ in range(MOST_REPORTS if name in names else 0):
            if lb.table.tier(lb.slot(name)):
                break
            lb.report(name, False, cause=cause if cause in CAUSES else None, source="probe")


def _state(lb: Balancer) -> bytes:
    """Give what `Balancer.save` writes, nothing where no file can be: latencies are learned anew, that is no reason to change nothing."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "state")
            lb.save(file)
            return file.read_bytes()
    except OSError as error:
        logger.warning("what was learned of latencies cannot be kept: %s", error)
        return b""
