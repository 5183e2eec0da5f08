"""Where the demo's regions and clients are: universities on six continents, and the published round trips between them and the regions."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from lbcore.region import Region, catalogue
from lbcore.sense.geo import prior_ms, published_ms

__all__ = ["CLIENTS", "CLOSE", "LIKELY", "PRIMARY", "REGIONS", "SAME_METRO_MS", "Client", "round_trip", "round_trips"]

REGIONS = ("westus2", "brazilsouth", "westeurope", "southeastasia", "australiaeast")
PRIMARY = REGIONS[0]
SAME_METRO_MS = 2.0  # nobody publishes the round trip within a region
CLOSE, LIKELY = 1.1, 1.35  # times the lowest published round trip: of regions that were measured, of those that nobody was at yet
LOOPBACK_MS = 5.0  # that everything takes here besides

# City, address, cloud region whose published round trips are theirs. Addresses of universities: they stay where they are.
CLIENTS = (
    ("Stanford", "171.64.1.1", "westus"),
    ("Seattle", "128.95.1.1", "westus2"),
    ("Boulder", "128.138.1.1", "westcentralus"),
    ("Toronto", "128.100.1.1", "canadacentral"),
    ("Mexico City", "132.248.1.1", "mexicocentral"),
    ("São Paulo", "143.107.1.1", "brazilsouth"),
    ("Cambridge", "131.111.8.1", "uksouth"),
    ("Paris", "2001:660::1", "francecentral"),
    ("Warsaw", "193.0.96.1", "polandcentral"),
    ("Tel Aviv", "192.114.1.1", "israelcentral"),
    ("Cape Town", "137.158.1.1", "southafricawest"),
    ("Dubai", "94.200.1.1", "uaenorth"),
    ("Mumbai", "103.21.124.1", "westindia"),
    ("Kuala Lumpur", "202.185.1.1", "malaysiawest"),
    ("Jakarta", "152.118.1.1", "indonesiacentral"),
    ("Seoul", "147.46.1.1", "koreacentral"),
    ("Osaka", "2001:200::1", "japanwest"),
    ("Melbourne", "128.250.1.1", "australiasoutheast"),
    ("Auckland", "130.216.1.1", "newzealandnorth"),
)


@cache
def round_trip(origin: str, region: str) -> float:
    """Give the published round trip between two places, ms; an estimate by where they are for regions of which none is published."""
    if origin == region:
        return SAME_METRO_MS
    ms = published_ms(origin, region)
    return ms if ms is not None else prior_ms(catalogue()[origin].lat, catalogue()[origin].lon, Region(region))


def round_trips() -> dict[str, dict[str, float]]:
    """Give all round trips: ms by client's address, then by region."""
    return {address: {region: round(round_trip(origin, region), 1) for region in catalogue()} for _, address, origin in CLIENTS}


@dataclass(eq=False, slots=True)
class Client:
    """Somebody with a public address, the cloud region whose published round trips are theirs, and what they last saw."""

    city: str
    address: str
    origin: str
    by_dns: str = ""  # region
    by_http: str = ""
    ms: float = 0.0  # of the last request
    revision: str = ""  # that answered it

    @property
    def subnet(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """Give what a resolver would send along: /24 or /56."""
        return ipaddress.ip_network((self.address, 24 if "." in self.address else 56), strict=False)

    def published(self, region: str) -> float:
        """Give the published round trip to a region, ms."""
        return round_trip(self.origin, region)

    def rank(self, regions: Iterable[str]) -> list[str]:
        """Give regions, the closest by the published round trips first."""
        return sorted(regions, key=self.published)

    def is_close(self, region: str, regions: Iterable[str], within: float = CLOSE) -> bool:
        """Say whether a region is the closest of these, or almost."""
        return region != "" and self.published(region) <= min(map(self.published, regions)) * within + LOOPBACK_MS
