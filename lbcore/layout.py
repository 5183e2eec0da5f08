"""Layout: which region stands in which slot of the latency table, and how all of it moves to another table.

Changed only by the Balancer, under its lock. Readers may hold an old Layout: it stays consistent in itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lbcore._fast import LatencyTable
from lbcore.errors import UnknownRegionError
from lbcore.region import Region, canonical
from lbcore.sense.geo import places
from lbcore.sense.prior import FLAT_MS, priors
from lbcore.state import index_keys

if TYPE_CHECKING:
    from lbcore._prefix import PrefixMap

__all__ = ["STATUSES", "Layout"]

STATUSES = ("up", "degraded", "ejected", "down")  # by tier
_FLAT_SD = 28.0
_NOWHERE = 65535

MakeTable = Callable[[int, int], LatencyTable]


class Layout:
    """Regions in slots of a table whose rows are a map's groups, seeded with priors.

    objects: the region of each slot, None for a free one; what the Picker gives out
    wanted, draining: slots the operator enabled; slots being emptied
    places: what priors go by, per group: lat, lon, precision
    """

    def __init__(self, prefixes: PrefixMap, regions: Sequence[Region], make_table: MakeTable) -> None:
        self.map, self.make_table, self.places = prefixes, make_table, places(prefixes)
        self.table = make_table(prefixes.groups, len(regions))
        self.slots = {region.name: slot for slot, region in enumerate(regions)}
        self.objects: tuple[Region | None, ...] = tuple(regions)
        self.wanted = {slot for slot, region in enumerate(regions) if region.enabled}
        self.draining: set[int] = set()
        for slot in range(len(regions)):
            if slot not in self.wanted:
                self.table.set_enabled(slot, False)
        self._seed()

    @property
    def regions(self) -> tuple[Region, ...]:
        """Give the regions by slot."""
        return tuple(region for region in self.objects if region is not None)

    def slot(self, region: str | Region) -> int:
        """Give a region's slot by its name in any spelling; UnknownRegionError names the nearest ones."""
        name = region if isinstance(region, str) else region.name
        slot = self.slots.get(name)
        if slot is None:
            slot = self.slots.get(canonical(name))
        if slot is None:
            raise UnknownRegionError(name, self.slots)
        return slot

    def at(self, slot: int) -> Region:
        """Give the region in a slot."""
        region = self.objects[slot]
        assert region is not None
        return region

    def status(self, slot: int) -> str:
        """Give what holds of the region in a slot: disabled, draining, up, degraded, ejected or down."""
        if slot not in self.wanted:
            return "disabled"
        return "draining" if slot in self.draining else STATUSES[self.table.tier(slot)]

    def enable(self, slot: int, on: bool) -> None:
        """Note and publish whether the operator wants the region."""
        (self.wanted.add if on else self.wanted.discard)(slot)
        self.table.set_enabled(slot, on)

    def drain(self, slot: int, on: bool) -> None:
        """Note and publish whether the region is being emptied."""
        (self.draining.add if on else self.draining.discard)(slot)
        self.table.set_draining(slot, on)

    def remove(self, name: str) -> int:
        """Close a region's slot and give it."""
        slot = self.slots.pop(name)
        self.table.remove_region(slot)
        self.draining.discard(slot)
        self.wanted.discard(slot)
        self._place({slot: None})
        return slot

    def has_room(self, count: int) -> bool:
        """Say whether the table has free slots for so many regions."""
        return len(self.slots) + count <= self.table.region_capacity

    def update(self, wanted: Sequence[Region]) -> list[int]:
        """Take in these regions, new or changed; give the new ones' slots, which still have to be enabled."""
        places = {region.name: (region.lat, region.lon) for region in self.regions}
        added = [region for region in wanted if region.name not in self.slots]
        for region in added:
            self.slots[region.name] = self.table.add_region(False)
        self._place({self.slots[region.name]: region for region in wanted})
        if places != {region.name: (region.lat, region.lon) for region in wanted}:
            self._seed()
        return [self.slots[region.name] for region in added]

    def moved(self, prefixes: PrefixMap, regions: Sequence[Region], now: float) -> Layout:
        """Give a Layout of other groups or regions that carries over health and whatever was learned."""
        new = Layout(prefixes, regions, self.make_table)
        to_region = np.full(self.table.regions, _NOWHERE, np.uint16)
        for name, slot in self.slots.items():
            to_region[slot] = there = new.slots[name]
            new.table.set_tier(there, self.table.tier(slot), now)
            new.enable(there, slot in self.wanted)
            new.drain(there, slot in self.draining)
        new.table.restore(self.table.snapshot(now), now, 0.0, index_keys(self.map.keys, prefixes.keys), to_region)
        return new

    def _place(self, changed: dict[int, Region | None]) -> None:
        size = max([len(self.objects), *(slot + 1 for slot in changed)])
        objects = [*self.objects, *[None] * (size - len(self.objects))]
        for slot, region in changed.items():
            objects[slot] = region
        self.objects = tuple(objects)

    def _seed(self) -> None:
        ms = np.full((self.table.groups, self.table.regions), FLAT_MS, np.float32)
        sd = np.full_like(ms, _FLAT_SD)
        slots = list(self.slots.values())
        if slots:
            ms[:, slots], sd[:, slots] = priors(*self.places, [self.at(slot) for slot in slots])
        self.table.seed_many(ms, sd)
