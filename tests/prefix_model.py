"""Plain models of PrefixMap: longest prefix by trying every network, group keys from decoded records."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable
from typing import Any

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
FORMS = [ipaddress.IPv6Network(text) for text in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "2002::/16", "2001::/32")]
COMPATIBLE, MAPPED, NAT64, SIX_TO_FOUR, TEREDO = FORMS


def carried(address: ipaddress.IPv6Address) -> tuple[ipaddress.IPv4Address, int] | None:
    """Give the IPv4 address inside an IPv6 one and the length of the form's prefix."""
    if address.teredo:
        return address.teredo[1], TEREDO.prefixlen
    inner = address.ipv4_mapped or address.sixtofour
    if inner:
        return inner, 16 if address.sixtofour else 96
    if address in COMPATIBLE or address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF), 96
    return None


def unmapped(network: IPNetwork) -> IPNetwork:
    """Give the IPv4 network that one inside ::ffff:0:0/96 means."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(MAPPED):
        return ipaddress.IPv4Network((int(network[0]) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def common_bits(a: IPAddress, b: IPAddress) -> int:
    return a.max_prefixlen - (int(a) ^ int(b)).bit_length()


class Model:
    """Networks and their groups; every answer looks at all of them."""

    def __init__(self, prefixes: Iterable[tuple[str, int]]) -> None:
        self.groups = {unmapped(ipaddress.ip_network(network)): group for network, group in prefixes}
        self.rows = [(n.version, int(n[0]), int(n[-1]), n.prefixlen, group) for n, group in self.groups.items()]

    def lookup(self, address: IPAddress) -> int:
        version, number = address.version, int(address)
        length, group = max(((row[3], row[4]) for row in self.rows if row[0] == version and row[1] <= number <= row[2]), default=(-1, 0))
        inner = carried(address) if isinstance(address, ipaddress.IPv6Address) else None
        return self.lookup(inner[0]) if inner and length < inner[1] else group

    def scope(self, address: IPAddress) -> int:
        """Give the shortest prefix length over which lookup is the same, by looking at every place where it could change."""
        group = self.lookup(address)
        differing = [common_bits(address, point) for point in self.turning_points(address) if self.lookup(point) != group]
        return max(differing, default=-1) + 1

    def turning_points(self, address: IPAddress) -> list[IPAddress]:
        v4 = {a for a in edges(n for n in self.groups if n.version == 4) if 0 <= a < 1 << 32} | {0}
        if address.version == 4:
            return [ipaddress.IPv4Address(a) for a in v4]
        v6 = edges(n for n in [*FORMS, *self.groups] if n.version == 6)
        server = int(address) >> 32 & (1 << 64) - 1 if address in TEREDO else 0
        for a in v4:
            v6 |= {a, 0xFFFF << 32 | a, int(NAT64[0]) | a, 0x2002 << 112 | a << 80, 0x20010000 << 96 | server << 32 | a ^ 0xFFFFFFFF}
        return [ipaddress.IPv6Address(a) for a in v6 if 0 <= a < 1 << 128]


def edges(networks: Iterable[IPNetwork]) -> set[int]:
    """Give the first and last address of each network and their neighbours."""
    return {int(end) + step for network in networks for end in (network[0], network[-1]) for step in (-1, 0, 1)}


def part(record: Any, *path: str | int) -> Any:
    """Follow keys and indices into a record; None where it does not go that far."""
    for step in path:
        if isinstance(step, int):
            record = record[step] if isinstance(record, list) and len(record) > step else None
        else:
            record = record.get(step) if isinstance(record, dict) else None
    return record


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def fields(record: Any) -> tuple[str, str, str, tuple[float, float] | None]:
    """Give (country, subdivision, city, location) of a record, nested or flat."""
    country = text(part(record, "country_code")) or text(part(record, "country", "iso_code"))
    country = country or text(part(record, "registered_country", "iso_code"))
    region = text(part(record, "state1")) or text(part(record, "subdivisions", 0, "iso_code"))
    city = text(part(record, "city")) or text(part(record, "city", "names", "en")) or str(part(record, "city", "geoname_id") or "")
    nested = [part(record, "location", name) for name in ("latitude", "longitude")]
    lat, lon = [part(record, name) if value is None else value for name, value in zip(("latitude", "longitude"), nested, strict=True)]
    located = isinstance(lat, int | float) and isinstance(lon, int | float) and abs(lat) <= 90 and abs(lon) <= 180
    return country, region, city, (lat, lon) if located else None


def key_of(record: Any, kind: str) -> str:
    """Give the key that a record's group must have."""
    country, region, city, where = fields(record)
    if kind == "grid":
        return grid_key(country, region, city, where)
    parts = [country, *[region] * (kind != "country"), *[city] * (kind in ("city", "record"))]
    if where and kind == "record":
        return "/".join([*parts, *map(four_decimals, where)])
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return "/".join(parts)


def four_decimals(degrees: float) -> str:
    """Write degrees with four decimals, halves away from zero."""
    units = math.floor(abs(degrees) * 10000 + 0.5)
    return f"{'-' if degrees < 0 < units else ''}{units // 10000}.{units % 10000:04d}"


def grid_key(country: str, region: str, city: str, where: tuple[float, float] | None) -> str:
    wide = not region and not city
    if not country and not where:
        return ""
    if not where or country and wide:
        return f"{country or 'ZZ'}/wide"
    cell = "/".join(str(math.floor(degrees / 2) * 2) for degrees in where)
    return f"{country or 'ZZ'}/{cell}/{'wide' if wide else 'point'}"
