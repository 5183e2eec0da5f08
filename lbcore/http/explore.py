"""Explorer: look again at what was closest before. A group that moved because of latency measures its new home only; the old one's
estimate would stay as bad as it was for as long as an hour after its path has recovered.

    a group's home moves, though the old one is eligible -> after 5 s one request goes there -> no better: after 10, 20, ... 300 s the next
                                                                    \\-- better than the new home: every second, until the rule decides
One request in a while, and only of groups that are away from where they were: nothing is explored while nothing has changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lbcore.http.routes import Ticking
from lbcore.region import Region
from lbcore.sense.geo import Client

__all__ = ["Explorer"]

LOOK, FIRST, LAST = 1.0, 5.0, 300.0  # seconds: between looks at the homes; from a move to the first request; between two, at most


@dataclass(slots=True)
class _Away:
    """A group away from its former home: when the next request goes there, and how long it waits after that."""

    region: Region
    at: float
    wait: float


class Explorer:
    """Say which requests go to a group's former home. `away`: the groups that have one."""

    def __init__(self, lb: Ticking) -> None:
        self._lb = lb
        self._homes: NDArray[np.uint16] = lb.table.homes()
        self._next = lb.clock()
        self.away: dict[int, _Away] = {}

    def tick(self) -> None:
        """Take notice of homes that moved; looks once a second."""
        now = self._lb.clock()
        if now < self._next:
            return
        self._next = now + LOOK
        before, self._homes = self._homes, self._lb.table.homes()
        if len(before) != len(self._homes):  # other groups: a new map
            self.away.clear()
        elif (moved := np.nonzero(before != self._homes)[0]).size:
            self._note(moved, before, now)

    def _note(self, moved: NDArray[np.intp], before: NDArray[np.uint16], now: float) -> None:
        by_slot = {self._lb.slot(region.name): region for region in self._lb.regions}
        eligible = self._lb.table.eligible()
        for group in moved.tolist():
            old, new = by_slot.get(int(before[group])), by_slot.get(int(self._homes[group]))
            known = self.away.get(group)
            if known is not None and known.region is new:
                del self.away[group]
            elif known is None and old is not None and eligible[before[group]]:
                self.away[group] = _Away(old, now + FIRST, FIRST)

    def take(self, client: Client) -> Region | None:
        """Give the region that a client's request should measure, None = its home. Asked only while `away` has groups."""
        group = self._lb.match(client)[0]
        known, now = self.away.get(group), self._lb.clock()
        if known is None or now < known.at:
            return None
        known.wait = min(known.wait * 2, LAST)
        known.at = now + known.wait
        if known.region not in self._lb.regions:
            del self.away[group]
            return None
        slot = self._lb.slot(known.region.name)
        return known.region if self._lb.table.eligible()[slot] and not self._lb.table.excluded(group, slot) else None

    def learned(self, region: Region, ms: float, client: Client) -> None:
        """Take what a request was measured at: if that is better than home, the next need not wait for long."""
        group = self._lb.match(client)[0]
        known = self.away.get(group)
        if known is not None and known.region is region and ms < self._lb.table.estimates(group)[self._homes[group]]:
            known.at, known.wait = self._lb.clock() + LOOK, FIRST
