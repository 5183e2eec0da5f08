"""Region: a place where the service runs, and the catalogue of known cloud regions.

Knows nothing of health or latency; those live in the table, indexed by the region's position.
"""

from __future__ import annotations

import csv
import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

__all__ = ["CataloguedRegion", "Region", "canonical", "catalogue"]

DATA = Path(__file__).with_name("data")


def canonical(name: str) -> str:
    """Fold a region's spellings into one name: "West US 2", "WestUS2" and "westus2" are the same."""
    return re.sub(r"\s+", "", name).lower()


@dataclass(frozen=True, slots=True)
class CataloguedRegion:
    """A cloud region as its provider publishes it.

    name: canonical; provider: azure, aws or gcp; lat, lon: decimal degrees
    zones: availability zones, 1 = not zoned; paired: the provider's partner region, "" = none
    """

    name: str
    provider: str
    display_name: str
    lat: float
    lon: float
    zones: int
    paired: str


@cache
def catalogue() -> Mapping[str, CataloguedRegion]:
    """Give the known cloud regions by canonical name, read once. No name stands for two providers' regions.

    Source: NOTICE names the files of lbcore/data and where each comes from.
    """
    with (DATA / "regions.csv").open(encoding="utf-8", newline="") as file:
        rows = [_catalogued(**row) for row in csv.DictReader(file)]
    return MappingProxyType({row.name: row for row in rows})


def _catalogued(lat: str, lon: str, zones: str, **texts: str) -> CataloguedRegion:
    return CataloguedRegion(lat=float(lat), lon=float(lon), zones=int(zones), **texts)


@dataclass(frozen=True, slots=True)
class Region:
    """A place where the service runs.

    name: canonicalised (R8); `display_name` keeps the spelling given
    lat, lon: decimal degrees; None = taken from the catalogue of cloud regions, when it knows the name
    gateway: base URL of the region's gateway
    addresses: IPv4 and IPv6 addresses that DNS answers with
    units: capacity steps, >= 1
    always_serve: never probed and always up (Traffic Manager's alwaysServe)
    Raises ValueError for an empty name, coordinates or units out of range, or a malformed address.
    """

    name: str
    lat: float | None = None
    lon: float | None = None
    gateway: str = ""
    addresses: tuple[str, ...] = ()
    units: int = 1
    enabled: bool = True
    always_serve: bool = False
    display_name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "display_name", self.display_name or self.name)
        set_field(self, "name", canonical(self.name))
        given: object = self.addresses
        if isinstance(given, str):
            raise TypeError(f"region {self.name!r}: addresses must be a sequence of addresses, got one string, {given!r}")
        set_field(self, "addresses", tuple(str(ipaddress.ip_address(a)) for a in self.addresses))
        if not self.name:
            raise ValueError("a region needs a name, got an empty string")
        if self.lat is None and self.lon is None and (known := catalogue().get(self.name)):
            set_field(self, "lat", known.lat)
            set_field(self, "lon", known.lon)
        for key, value, limit in (("lat", self.lat, 90.0), ("lon", self.lon, 180.0)):
            if value is not None and not (math.isfinite(value) and abs(value) <= limit):
                raise ValueError(f"region {self.name!r}: {key} must be within ±{limit:g} degrees, got {value!r}")
        if (self.lat is None) != (self.lon is None):
            raise ValueError(f"region {self.name!r}: lat and lon go together, got {self.lat!r}, {self.lon!r}")
        if not isinstance(self.units, int) or self.units < 1:
            raise ValueError(f"region {self.name!r}: units must be a whole number, at least 1, got {self.units!r}")
