"""Gauges: how busy each region is, as its gateway says on its status page, and how many units it should have (R61).

What a gateway said holds for a minute, the time that it speaks of. Nobody is routed by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from lbcore.service.capacity import Gauge, advice
from lbcore.service.facts import Facts
from lbcore.service.model import TIERS, ServiceState
from lbcore.service.rotation import StatusPages
from lbcore.service.rotations import Rotations

__all__ = ["Capacity", "Gauges"]

EVERY = 10.0  # seconds between two looks
FRESH = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Capacity:
    """How busy a region is.

    advised: units that it should have, fewer only after a minute with those it has; None while it gets another number of them, and when
    it is leaving
    """

    gauge: Gauge
    advised: int | None


@dataclass(frozen=True, slots=True)
class _Said:
    gateway: str
    units: int
    gauge: Gauge
    at: float
    since: float  # it has said something, with these units


class Gauges:
    """Ask gateways how busy they are, and remember it for as long as it tells something.

    rotations: what runs;  pages: looks at status pages, each within a bounded time;  facts: the most units of a tier
    clock: monotonic seconds
    """

    def __init__(self, rotations: Rotations, pages: StatusPages, facts: Facts, clock: Callable[[], float]) -> None:
        self._rotations, self._pages, self._facts, self._clock = rotations, pages, facts, clock
        self._said: dict[str, _Said] = {}

    async def look(self) -> None:
        """Ask every gateway at once. It takes the time between two looks, so that one that hangs delays no other."""
        gateways = self._gateways()
        self._said = {name: said for name, said in self._said.items() if said.gateway == gateways.get(name)}
        await asyncio.gather(asyncio.sleep(EVERY), *(self._ask(name, gateway) for name, gateway in gateways.items()))

    async def _ask(self, name: str, gateway: str) -> None:
        look = await self._pages.look(name, gateway)
        state = self._rotations.known.state
        runs = state.of(name).deployed if state else None
        if look.capacity is None or look.region != name or runs is None:
            return
        now, before = self._clock(), self._said.get(name)
        same = before is not None and (before.gateway, before.units) == (gateway, runs.units)
        self._said[name] = _Said(gateway, runs.units, look.capacity, now, before.since if before and same else now)

    def _gateways(self) -> dict[str, str]:
        state = self._rotations.known.state
        return {name: one.gateway for name, one in state.states.items() if one.deployed and one.gateway} if state else {}

    def capacities(self) -> dict[str, Capacity]:
        """Give how busy the regions are of which that is known, by name."""
        state, gateways, oldest = self._rotations.known.state, self._gateways(), self._clock() - FRESH
        return {
            name: Capacity(said.gauge, self._advised(state, name, said))
            for name, said in self._said.items()
            if state is not None and said.at >= oldest and said.gateway == gateways.get(name)
        }

    def _advised(self, state: ServiceState, name: str, said: _Said) -> int | None:
        wanted = next((each for each in state.service.locations if each.name == name), None)
        runs = state.of(name).deployed
        if wanted is None or runs is None or runs.units != wanted.units:
            return None
        advised = advice(said.gauge, wanted, self._facts.most_units(TIERS[state.service.tier]))
        young = said.units != runs.units or said.at - said.since < FRESH  # nobody has come yet, or it speaks of the units before
        return max(advised, runs.units) if young else advised
