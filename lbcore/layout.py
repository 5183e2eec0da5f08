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
from lbcore.sense.prior import FLAT_MS, PRIORS
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
    places: what priors go by, per group: lat, lon, precision
    """

    def __init__(
        self, prefixes: PrefixMap, objects: Sequence[Region | None], make_table: MakeTable, *, used: bool = False, prior: str = "round_trip"
    ) -> None:
        self.prior = prior
        self.map, self.make_table, self.places = prefixes, make_table, places(prefixes)
        self.table = make_table(prefixes.groups, len(objects))
        if self.table.regions != len(objects):
            raise ValueError(f"the shared table has {self.table.regions} regions, got {len(objects)}: workers pass the same regions")
        self.slots = {region.name: slot for slot, region in enumerate(objects) if region is not None}
        self.objects: tuple[Region | None, ...] = tuple(objects)
        if not used:
            self._open()
        self._seed()

    def _open(self) -> None:
        for slot, region in enumerate(self.objects):
            if region is None:
                self.table.remove_region(slot)
            elif not region.enabled:
                self.table.set_enabled(slot, False)

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
        if not self.table.enabled(slot):
            return "disabled"
        return "draining" if self.table.draining(slot) else STATUSES[self.table.tier(slot)]

    def serving(self) -> set[int]:
        """Give the slots of regions that the operator wants and does not empty."""
        return {slot for slot in self.slots.values() if self.table.enabled(slot) and not self.table.draining(slot)}

    def remove(self, name: str) -> int:
        """Close a region's slot and give it."""
        slot = self.slots.pop(name)
        self.table.remove_region(slot)
        self._place({slot: None})
        return slot

    def has_room(self, count: int) -> bool:
        """Say whether the table has free slots for so many regions."""
        return len(self.slots) + count <= self.table.region_capacity

    def update(self, wanted: Sequence[Region]) -> list[int]:
        """Take in these regions, new or changed; give the slots of those whose `enabled` still has to be published."""
        places = {region.name: (region.lat, region.lon) for region in self.regions}
        told = [region for region in wanted if self._switched(region)]
        for region in wanted:
            if region.name not in self.slots:
                self.slots[region.name] = self.table.add_region(False)
        self._place({self.slots[region.name]: region for region in wanted})
        if places != {region.name: (region.lat, region.lon) for region in wanted}:
            self._seed()
        return [self.slots[region.name] for region in told]

    def _switched(self, region: Region) -> bool:
        """Say whether the list says something new of `enabled`; where it does not, what the operator did since holds."""
        slot = self.slots.get(region.name)
        return slot is None or self.at(slot).enabled != region.enabled

    def moved(self, prefixes: PrefixMap, regions: Sequence[Region], now: float) -> Layout:
        """Give a Layout of other groups or regions that carries over health and whatever was learned.

        Regions that stay keep their slots, by which detectors know them; new ones fill the gaps.
        """
        new = Layout(prefixes, self._arranged(regions), self.make_table, prior=self.prior)
        new.table.tick(now)  # what is out now was up once, and will come back by a ramp
        to_region = np.full(self.table.regions, _NOWHERE, np.uint16)
        for name, slot in self.slots.items():
            if name in new.slots:
                to_region[slot] = slot
                self._hand_over(new, slot, now)
        new.table.restore(self.table.snapshot(now), now, 0.0, index_keys(self.map.keys, prefixes.keys), to_region)
        return new

    def _arranged(self, regions: Sequence[Region]) -> list[Region | None]:
        staying = {region.name: region for region in regions if region.name in self.slots}
        objects = [None if region is None else staying.get(region.name) for region in self.objects]
        for region in regions:
            if region.name not in staying:
                slot = next((slot for slot, there in enumerate(objects) if there is None), len(objects))
                objects[slot : slot + 1] = [region]
        while objects[-1] is None:
            objects.pop()
        return objects

    def _hand_over(self, new: Layout, slot: int, now: float) -> None:
        old, table, tier = self.table, new.table, self.table.tier(slot)
        table.set_tier(slot, tier, old.answered(slot) if tier == 3 else now)
        table.set_penalty(slot, old.penalty(slot))
        table.set_share(slot, old.share(slot))
        table.set_synced(slot, old.synced(slot))
        table.set_draining(slot, old.draining(slot))
        if not self._switched(new.at(slot)):
            table.set_enabled(slot, old.enabled(slot))

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
            ms[:, slots], sd[:, slots] = PRIORS[self.prior](*self.places, [self.at(slot) for slot in slots])
        self.table.seed_many(ms, sd)
