"""Facts: what the rules need to know of the world, and the places in the body that they speak of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lbcore.region import catalogue
from lbcore.service.model import TIERS, Location, Service, Tier

__all__ = ["AT", "TOP", "Facts", "Live", "at", "called", "shown", "skus"]

# Attribute of a Location -> its place in an additional location; the primary's stand at the top, most of them in "properties".
AT: Mapping[str, tuple[str, ...]] = {
    "name": ("location",),
    "units": ("sku", "capacity"),
    "zones": ("zones",),
    "disable_gateway": ("disableGateway",),
    "subnet": ("virtualNetworkConfiguration", "subnetResourceId"),
    "subnet_location": ("virtualNetworkConfiguration", "location"),
    "public_ip": ("publicIpAddressId",),
    "lat": ("geo", "lat"),
    "lon": ("geo", "lon"),
    "gateway": ("gateway",),
}
TOP = ("location", "sku", "zones")
MAX_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Live:
    """What is known to work in a region now. units: None = all of them; zones_down: names"""

    units: int | None = None
    zones_down: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules need to know of the world.

    networks: the region of each virtual network by its folded id, from whoever provisions; beats what the operator says of it
    live: by region's name; absent = all of it works
    max_units: of a Premium location;  strict_azure: a moved network or zones need another public IP address (V10)
    """

    networks: Mapping[str, str] = field(default_factory=dict)
    live: Mapping[str, Live] = field(default_factory=dict)
    max_units: int = TIERS["Premium"].maximum
    strict_azure: bool = False

    def most_units(self, tier: Tier) -> int:
        """Give how many units a location may have in a tier."""
        return self.max_units if tier.multi_region else tier.maximum


def skus(facts: Facts | None = None) -> list[dict[str, object]]:
    """Give the tiers with their capacities as GET …/skus lists them."""
    facts = facts or Facts()
    return [
        {
            "sku": {"name": tier.name},
            "capacity": {
                "minimum": tier.minimum, "maximum": facts.most_units(tier), "default": tier.default, "scaleType": tier.scale_type,
            },
            "multiRegion": tier.multi_region, "zones": tier.zones,
        }
        for tier in TIERS.values()
    ]  # fmt: skip


def at(service: Service, which: Location, name: str) -> str:
    """Give the place of a location's attribute in the body, such as properties.additionalLocations[0].sku.capacity."""
    if which is service.primary:
        path = AT[name] if AT[name][0] in TOP else ("properties", *AT[name])
        return ".".join(path)
    index = next(i for i, each in enumerate(service.additional_locations) if each is which)
    return ".".join((f"properties.additionalLocations[{index}]", *AT[name]))


def shown(value: object) -> str:
    """Give a value as a message may show it: what it is in Python's words, without control characters, not long."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of over 30 digits"  # Python refuses to write out the longest ones
    if isinstance(value, Mapping | list | tuple) and not (len(value) <= 8 and all(isinstance(one, str) for one in value)):
        return f"{'an object' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def called(each: Location) -> str:
    """Give a location's name as a message may show it."""
    return each.display_name if each.name in catalogue() else shown(each.display_name)
