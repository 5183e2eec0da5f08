"""The order of regions by distance is gdnsd's (gdnsd_geoip_test, City auto mode), with its database, its coordinates and no measurements.

LBCORE_GEO   a folder with a City database such as GeoLite2-City.mmdb: a million random addresses (marked `heavy` and `real`)
A synthetic database of random networks is compared always.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import maxminddb
import numpy as np
import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet
from numpy.typing import NDArray

from lbcore import Balancer, PrefixMap, Region

SEED = 11
TIE_KM = 1.0
PLACES = {
    "amsterdam": (52.3667, 4.9), "virginia": (37.3719, -79.8164), "washington": (47.233, -119.852), "saopaulo": (-23.55, -46.633),
    "johannesburg": (-26.20227, 28.04363), "pune": (18.5822, 73.9197), "tokyo": (35.68, 139.77), "sydney": (-33.86, 151.2094),
    "fiji": (-17.7134, 178.065), "honolulu": (21.3099, -157.8581),
}  # fmt: skip
FOLDER = os.environ.get("LBCORE_GEO")
CITIES = sorted(path for path in Path(FOLDER).rglob("*City*.mmdb")) if FOLDER else []

pytestmark = pytest.mark.skipif(not shutil.which("gdnsd_geoip_test"), reason="gdnsd_geoip_test is missing: apt install gdnsd")


def synthetic(folder: Path) -> Path:
    """Write a City database of random networks at random places, poles and the date line included; some have no place."""
    rng = np.random.default_rng(SEED)
    writer = MMDBWriter(6, "GeoLite2-City", languages=["en"], ipv4_compatible=True)
    for number in range(2000):
        lat, lon = (round(float(rng.uniform(-limit, limit)), 4) for limit in (90, 180))
        place = {} if number % 50 == 0 else {"location": {"latitude": lat, "longitude": lon}}
        first, second = divmod(int(rng.integers(1 << 8, 223 << 8)), 256)
        network = f"{first}.{second}.0.0/{rng.integers(10, 21)}"
        writer.insert_network(IPSet([network]), {"city": {"names": {"en": f"c{number}"}}} | place)
    path = folder / "synthetic-City.mmdb"
    writer.to_db_file(str(path))
    return path


def addresses(count: int) -> NDArray[np.uint32]:
    return np.random.default_rng(SEED).integers(1 << 24, 224 << 24, count, dtype=np.uint32)


def text(number: int) -> str:
    return ".".join(map(str, number.to_bytes(4, "big")))


def gdnsd_orders(database: Path, numbers: NDArray[np.uint32], folder: Path) -> NDArray[np.intp]:
    """Give the regions' indices in gdnsd's order, addresses x regions; it reads as many addresses from stdin as one likes."""
    places = " ".join(f"{name} => [ {lat}, {lon} ]" for name, (lat, lon) in PLACES.items())
    (folder / "config").write_text(
        f"plugins => {{ geoip => {{ maps => {{ world => {{ geoip2_db => {database}, auto_dc_limit => 0\n"
        f" datacenters => [ {', '.join(PLACES)} ], auto_dc_coords => {{ {places} }} }} }}\n"
        f" resources => {{ www => {{ map => world, service_types => up, dcmap => {{\n"
        f" {' '.join(f'{name} => 192.0.2.{at}' for at, name in enumerate(PLACES, 1))} }} }} }} }} }}\n"
    )
    asked = "".join(f"world {text(number)}\n" for number in numbers.tolist())
    ran = subprocess.run(["gdnsd_geoip_test", "-c", str(folder)], input=asked, capture_output=True, text=True, timeout=600, check=True)
    found = re.findall(r"^world => ([0-9.]+)/\d+ => (.+)$", ran.stdout, re.MULTILINE)
    assert [address for address, _ in found] == [text(number) for number in numbers.tolist()], ran.stderr[-1000:]
    index = {name: at for at, name in enumerate(PLACES)}
    orders = {line: [index[name] for name in line.split(", ")] for line in {line for _, line in found}}
    return np.array([orders[line] for _, line in found], np.intp)


def located(database: Path, numbers: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Give latitude and longitude of each address by maxminddb, NaN without."""
    places = np.full((len(numbers), 2), np.nan)
    with maxminddb.open_database(str(database)) as reader:
        for at, number in enumerate(numbers.tolist()):
            record = reader.get(text(number))
            if isinstance(record, dict) and isinstance(place := record.get("location"), dict):
                places[at] = place.get("latitude", np.nan), place.get("longitude", np.nan)
    return places


def kilometres(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give great-circle distances, places x regions. Source: haversine formula, mean Earth radius 6371.0088 km (IUGG)."""
    lat, lon = np.radians(places).T[:, :, None]
    to_lat, to_lon = np.radians([*PLACES.values()]).T
    square = np.sin((to_lat - lat) / 2) ** 2 + np.cos(lat) * np.cos(to_lat) * np.sin((to_lon - lon) / 2) ** 2
    return np.asarray(2 * 6371.0088 * np.arcsin(np.sqrt(np.clip(square, 0, 1))))


def lbcore_orders(database: Path, numbers: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Give the same of a Balancer that has measured nothing."""
    prefixes = PrefixMap.from_mmdb(database, key="record")
    lb = Balancer([Region(name, lat=lat, lon=lon) for name, (lat, lon) in PLACES.items()], prefixes, prior="distance")
    groups, where = np.unique(prefixes.lookup_many(numbers), return_inverse=True)
    slots = [lb.slot(name) for name in PLACES]
    return np.argsort(slots)[np.array([lb.table.rank(group) for group in groups.tolist()], np.intp)][where]


def same_but_for_ties(away: NDArray[np.float64], ours: NDArray[np.intp], theirs: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Tell of each address whether both orders name regions of the same distance at every place, give or take TIE_KM."""
    apart = np.take_along_axis(away, ours, axis=1) - np.take_along_axis(away, theirs, axis=1)
    return np.asarray((np.abs(apart) <= TIE_KM).all(axis=1))


def compare(database: Path, count: int, folder: Path) -> None:
    numbers = addresses(count)
    theirs, places = gdnsd_orders(database, numbers, folder), located(database, numbers)
    known = ~np.isnan(places).any(axis=1)
    assert known.mean() > 0.02  # or nothing was compared; the others lbcore places by their country, where the database names one
    away = kilometres(places[known])
    by_hand = np.argsort(away, axis=1, kind="stable")
    assert same_but_for_ties(away, by_hand, theirs[known]).all()
    ours = lbcore_orders(database, numbers)
    wrong = ~same_but_for_ties(away, ours[known], theirs[known])
    cases = zip(numbers[known][wrong].tolist(), ours[known][wrong], theirs[known][wrong], strict=True)
    assert not wrong.any(), [(text(number), *orders) for number, *orders in cases][:5]


def test_same_order_as_gdnsd_on_a_synthetic_database(tmp_path: Path) -> None:
    compare(synthetic(tmp_path), 50_000, tmp_path)


@pytest.mark.heavy
@pytest.mark.real
@pytest.mark.skipif(not CITIES, reason="LBCORE_GEO names no folder with a City database")
def test_same_order_as_gdnsd_for_a_million_addresses(tmp_path: Path) -> None:
    compare(CITIES[0], 1_000_000, tmp_path)
