"""Rows that begin with an address: `lb.pick("203.0.113.7")` beside GeoIP readers, and the building of the map.

LBCORE_GEO names a folder with real databases (*.mmdb or *.mmdb.gz, looked for in its subfolders): a nested City database
such as GeoLite2-City.mmdb, or flat ones. Without it a synthetic City database stands in.
"""

from __future__ import annotations

import gzip
import ipaddress
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import maxminddb
import maxminddb_rust
import numpy as np
from build_floors import BUILD
from mmdb_writer import MMDBWriter
from netaddr import IPSet
from rows import Asked, Faster, Megabytes, Row, Within, Work, each, with_floors

import lbcore
from lbcore.region import catalogue

REGIONS = ("westeurope", "eastus", "southeastasia", "brazilsouth", "australiaeast", "japaneast", "centralindia", "westus2")
SYNTHETIC_NETWORKS = 20_000


@cache
def city_database() -> Path:
    """Give a nested City database: the first of $LBCORE_GEO, else a synthetic one."""
    found = sorted(Path(os.environ["LBCORE_GEO"]).rglob("GeoLite2-City.mmdb*")) if os.environ.get("LBCORE_GEO") else []
    if not found:
        return _synthetic()
    if found[0].suffix != ".gz":
        return found[0]
    unpacked = BUILD / found[0].stem
    if not unpacked.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with gzip.open(found[0]) as packed, unpacked.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    return unpacked


def _synthetic() -> Path:
    """Write a City database of random networks around the catalogue's places."""
    path = BUILD / "synthetic-city.mmdb"
    if path.exists():
        return path
    BUILD.mkdir(parents=True, exist_ok=True)
    rng, places = np.random.default_rng(1), list(catalogue().values())
    writer = MMDBWriter(6, "GeoLite2-City", languages=["en"], ipv4_compatible=True)
    for number in rng.choice(2**16, SYNTHETIC_NETWORKS, replace=False).tolist():
        place = places[number % len(places)]
        lat, lon = np.clip(np.array([place.lat, place.lon]) + rng.normal(0, 3, 2), (-85, -180), (85, 180)).round(2).tolist()
        location = {"latitude": lat, "longitude": lon}
        record = {"country": {"iso_code": place.name[:2].upper()}, "location": location, "city": {"names": {"en": place.name}}}
        writer.insert_network(IPSet([f"{number >> 8}.{number & 255}.0.0/16"]), record)
    writer.to_db_file(str(path))
    return path


def name_of(path: Path) -> str:
    """Say which database was used."""
    return f"{path.name}, {maxminddb.open_database(path).metadata().node_count / 1e6:.2f} M nodes"


@cache
def balancer() -> lbcore.Balancer:
    """Give a Balancer of eight regions over the City database."""
    return lbcore.Balancer([lbcore.Region(name) for name in REGIONS], locate=city_database())


def random_addresses(n: int, seed: int = 4) -> list[str]:
    """Give random public IPv4 addresses as text."""
    numbers = np.random.default_rng(seed).integers(2**24, 223 * 2**24, 2 * n).tolist()
    addresses = (ipaddress.IPv4Address(number) for number in numbers)
    return [str(address) for address in addresses if address.is_global][:n]


HOT, RANDOM = 200, 100_000


def _pick(addresses: Callable[[], list[str]]) -> Mapping[str, Work]:
    clients = addresses()
    reader = maxminddb.open_database(city_database(), maxminddb.MODE_MMAP_EXT)
    rust: Any = maxminddb_rust.open_database(str(city_database()))
    works = {
        "lb.pick": each(balancer().pick, clients),
        "maxminddb": each(reader.get, clients[:4000]),
        "maxminddb-rust": each(rust.get, clients[:4000]),
    }
    return with_floors(works, "A")


def _build_map() -> Mapping[str, Work]:
    return with_floors({"from_mmdb": Work(lambda: lbcore.PrefixMap.from_mmdb(city_database()))}, "A")


def _map_size() -> int:
    return balancer().map.nbytes


def _row(name: str, asked: tuple[Asked, ...], works: Callable[[], Mapping[str, Work]]) -> Row:
    """What was asked was asked for a real database; the synthetic one is a hundredth of that."""
    return Row(name, asked, works, slow=True, judged="LBCORE_GEO" in os.environ)


ROWS = (
    _row(
        'lb.pick("203.0.113.7"), hot',
        (Within(60, "ns"), Faster(60, "maxminddb"), Faster(0, "maxminddb-rust")),
        lambda: _pick(lambda: random_addresses(HOT) * 50),
    ),
    _row(
        'lb.pick("203.0.113.7"), random addresses',
        (Within(250, "ns"), Faster(20, "maxminddb"), Faster(0, "maxminddb-rust")),
        lambda: _pick(lambda: random_addresses(RANDOM)),
    ),
    _row("PrefixMap from a City database", (Within(1, "s"), Megabytes(45, _map_size)), _build_map),
)
