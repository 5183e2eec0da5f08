"""Clients: where their groups go now, read from a Balancer's table, and how large the groups are.

Nobody counts clients by group. How large one is, is told by the share of the IPv4 addresses that belong to it, estimated from a fixed
sample; groups whose path was measured come first, since somebody calls from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lbcore import Balancer, PrefixMap
from lbcore.sense.geo import places

__all__ = ["Clients", "Group", "Standing"]

SHOWN = 40  # groups, of
LOOKED_AT = 120  # whose latency counts for their region's
SAMPLE = 65_536  # addresses
RESCAN = 5.0  # seconds between two looks for groups that were measured


@dataclass(frozen=True, slots=True)
class Group:
    """One client group. region: canonical, "" = none;  size: share of all addresses, 0 to 1;  measured: by samples, else by prior only

    lat, lon: NaN = unknown;  reason: home, failover, fail_open, first, none
    """

    key: str
    lat: float
    lon: float
    region: str
    ms: float
    size: float
    measured: bool
    reason: str

    @property
    def away(self) -> bool:
        """Say whether it goes elsewhere than to its closest region."""
        return self.reason == "failover"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where clients go now. groups: the most telling first;  sizes: share of all addresses by region;  ms: mean latency by region"""

    groups: tuple[Group, ...]
    sizes: Mapping[str, float]
    ms: Mapping[str, float]


class Clients:
    """Looks at a Balancer again and again; what does not change with every look is kept."""

    def __init__(self) -> None:
        self._map: PrefixMap | None = None
        self._sizes: NDArray[np.float64] = np.zeros(1)
        self._lat = self._lon = np.full(1, np.nan, np.float32)
        self._measured: NDArray[np.bool_] = np.zeros(1, bool)
        self._scanned = -RESCAN

    def look(self, lb: Balancer, now: float) -> Standing:
        """Give where clients go. now: of the Balancer's clock"""
        with lb.unchanged():
            table, prefixes, objects = lb.table, lb.map, lb.objects
            self._renew(prefixes)
            if now - self._scanned >= RESCAN or len(self._measured) != table.groups:
                self._measured = np.array([bool(np.isfinite(table.ages(group, now)).any()) for group in range(table.groups)])
                self._scanned = now
            picks = table.pick_many(np.arange(table.groups, dtype=np.uint32))
            self._measured[0] = False  # this process, and whoever nobody can locate
            order = np.lexsort((-self._sizes, ~self._measured))[:LOOKED_AT]
            telling = [int(group) for group in order if self._measured[group] or self._sizes[group] > 0]
            slots, eligible = [slot for slot, region in enumerate(objects) if region is not None], table.eligible()
            found = [self._group(lb, group, int(picks[group]), slots, eligible) for group in telling]
        named = {slot: region.name for slot, region in enumerate(objects) if region is not None}
        sizes = {name: float(self._sizes[picks == slot].sum()) for slot, name in named.items()}
        return Standing(tuple(found[:SHOWN]), sizes, {name: ms for name in named.values() if (ms := _mean(found, name)) is not None})

    def _renew(self, prefixes: PrefixMap) -> None:
        if prefixes is self._map:
            return
        addresses = np.random.default_rng(1).integers(1 << 24, 224 << 24, SAMPLE, dtype=np.uint32)
        counts = np.bincount(prefixes.lookup_many(addresses), minlength=prefixes.groups).astype(np.float64)
        counts[0] = 0.0  # those that nobody can locate, and addresses that nobody has
        self._map, self._sizes = prefixes, counts / (counts.sum() or 1.0)
        self._lat, self._lon, _ = places(prefixes)
        self._scanned = -RESCAN

    def _group(self, lb: Balancer, group: int, pick: int, slots: list[int], eligible: NDArray[np.bool_]) -> Group:
        """Look at one group. It is away while a region that is there would be closer, and cannot serve."""
        table, region = lb.table, lb.objects[pick] if pick < len(lb.objects) else None
        estimates = table.estimates(group)
        closest = min(slots, key=lambda slot: float(estimates[slot]))
        reason = "none" if region is None else "fail_open" if table.fail_open else "first" if table.home(group) < 0 else "home"
        if reason == "home" and closest != pick and not (eligible[closest] and not table.excluded(group, closest)):
            reason = "failover"
        return Group(
            lb.map.keys[group], float(self._lat[group]), float(self._lon[group]), region.name if region else "",
            float(estimates[pick]) if region else float("nan"), float(self._sizes[group]), bool(self._measured[group]), reason,
        )  # fmt: skip


def _mean(groups: list[Group], region: str) -> float | None:
    """Give the mean latency of a region's groups by their sizes: of the measured ones where there are any."""
    those = [group for group in groups if group.region == region and np.isfinite(group.ms)]
    those = [group for group in those if group.measured] or those
    weight = sum(group.size for group in those)
    if not those:
        return None
    return sum(group.ms * group.size for group in those) / weight if weight > 0 else sum(group.ms for group in those) / len(those)
