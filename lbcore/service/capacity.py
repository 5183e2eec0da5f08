"""Capacity: how much of a region works, how busy it is, and whether it should have more units or fewer.

Zones are a share of a region, not regions: one serves for as long as a unit of it works, with the capacity of those that do (R59).
"""

from __future__ import annotations

from dataclasses import dataclass

from lbcore.service.facts import Live
from lbcore.service.model import Location

__all__ = ["Gauge", "advice", "units_live"]

SCALE_OUT, SCALE_OUT_SINGLE, SCALE_IN = 70.0, 40.0, 20.0  # percent


@dataclass(frozen=True, slots=True)
class Gauge:
    """How busy a region's gateway was over some time, percent of what its live units can do; 100 = all of it."""

    average: float
    maximum: float

    @classmethod
    def of(cls, inflight: list[int], per_unit: int, units: int) -> Gauge:
        """Give the gauge of requests in flight as they were counted; 0 without counts, 100 without units that work."""
        room = per_unit * units
        shares = [100.0 if room <= 0 else min(100.0, 100.0 * count / room) for count in inflight] or [0.0]
        return cls(sum(shares) / len(shares), max(shares))


def units_live(each: Location, live: Live | None = None) -> int:
    """Give how many of a location's units work: those that are known to, in zones that are up. Units are spread evenly over zones."""
    live = live or Live()
    known = each.units if live.units is None else min(live.units, each.units)
    if not each.zones:
        return known
    up = len(set(each.zones) - live.zones_down)
    return min(known, each.units * up // len(each.zones))


def advice(gauge: Gauge, each: Location, most: int) -> int:
    """Give how many units a location should have: a step more when it is busy, a step fewer when it is idle, else those it has.

    A step is a unit in every zone; `most`: of its tier. A single unit has none beside it to take over its load, so it is busy sooner.
    Source: API Management, capacity metric: scale out at 60-70 % of sustained load, at 40 % with one unit (R61).
    """
    step = max(1, len(each.zones))
    busy = SCALE_OUT_SINGLE if each.units == 1 else SCALE_OUT
    if gauge.average >= busy:
        return each.units + step if each.units + step <= most else each.units
    fewer = each.units - step
    if fewer < 1 or gauge.maximum > SCALE_IN:
        return each.units
    then = gauge.maximum * each.units / fewer  # those that stay must not be told at once to become more again
    return fewer if then < (SCALE_OUT_SINGLE if fewer == 1 else SCALE_OUT) else each.units
