"""Locating clients: the embedded geography, a user's database, and the tool that builds the embedded one."""

from __future__ import annotations

import ipaddress
import json
import math
import os
import random
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from lbcore._prefix import PrefixMap
from lbcore.region import Region
from lbcore.sense import geo
from lbcore.sense.geo import GEOGRAPHY, GeoIP, Location, Precision, embedded_map, places, priors, unpack
from lbcore.sense.geo_build import V4_BITS, V6_BITS, build
from lbcore.sense.prior import great_circle_km

# ===== the embedded table


@pytest.mark.parametrize(
    ("client", "country", "lat", "lon"),
    [
        ("133.1.1.1", "JP", 34.8, 135.5),  # Osaka University
        ("168.126.63.1", "KR", 37.5, 127.0),  # KT
        ("196.25.1.1", "ZA", -26.0, 28.1),  # Telkom
        ("200.160.2.3", "BR", -23.5, -46.6),  # NIC.br
        ("122.160.1.1", "IN", 28.6, 77.2),  # Airtel, Delhi
        ("212.58.244.1", "GB", 51.5, -0.1),  # BBC
        ("128.2.1.1", "US", 40.4, -79.9),  # Carnegie Mellon, Pittsburgh
        ("128.97.1.1", "US", 34.1, -118.4),  # UCLA
        ("2001:200::1", "JP", 35.6, 139.7),  # WIDE
        ("2003::1", "DE", 50.7, 7.1),  # Deutsche Telekom
        ("240e::1", "CN", 39.9, 116.4),  # China Telecom
        ("2804:14c::1", "BR", -23.5, -46.6),  # Claro
    ],
)
def test_the_embedded_table_knows_the_country_and_in_large_ones_the_part(client: str, country: str, lat: float, lon: float) -> None:
    found = GeoIP().locate(client)
    assert found is not None and found.country == country
    assert found.precision is Precision.REGION
    assert float(great_circle_km(found.lat, found.lon, lat, lon)[0, 0]) < 900


def test_addresses_of_all_kinds_are_one_client() -> None:
    geoip = GeoIP()
    address = ipaddress.ip_address("133.1.1.1")
    spellings = ["133.1.1.1", address, address.packed, "::ffff:133.1.1.1", "2002:8501:101::1"]
    assert len({geoip.locate(client) for client in spellings} - {None}) == 1


@pytest.mark.parametrize(
    "client",
    ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", "169.254.1.1", "192.0.0.1", "192.0.2.1", "198.51.100.1",
     "203.0.113.7", "198.18.0.1",
     "0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "ff02::1", "2001:db8::1", "::ffff:10.0.0.1", None],
)  # fmt: skip
def test_private_and_reserved_addresses_have_no_place(client: str | None) -> None:
    assert GeoIP().locate(client) is None


@pytest.mark.parametrize("client", ["", "here", "1.2.3", "1.2.3.256", "1::2::3", b"123"])
def test_what_is_no_address_is_a_bug_of_the_caller(client: str | bytes) -> None:
    with pytest.raises(ValueError):
        GeoIP().locate(client)


def test_the_embedded_table_is_small_and_well_formed() -> None:
    assert GEOGRAPHY.stat().st_size < 600_000
    ranges, centres = unpack(GEOGRAPHY)
    for family in ("v4", "v6"):
        starts, groups = ranges[f"{family}_starts"], ranges[f"{family}_groups"]
        assert starts[0] == 0 and (np.diff(starts.astype(object)[:1000]) > 0).all() and (starts[1:] > starts[:-1]).all()
        assert (groups[1:] != groups[:-1]).all() and groups[-1] == 0
        assert groups.max() < len(ranges["keys"]) and len(set(groups.tolist())) > 0.8 * len(ranges["keys"])
    assert len(ranges["keys"]) == len(ranges["lat"]) == len(ranges["lon"]) == len(ranges["precision"])
    assert len(centres) > 200 and centres["NL"] == pytest.approx((52.2, 5.0), abs=0.5)


def test_most_of_the_routable_internet_has_a_place() -> None:
    rng = np.random.default_rng(3)
    clients = rng.integers(1 << 24, 224 << 24, 20_000).astype(np.uint32)
    assert (embedded_map().lookup_many(clients) > 0).mean() > 0.9


def test_the_embedded_table_is_read_once() -> None:
    assert embedded_map() is embedded_map() is GeoIP().map
    assert GeoIP().reload() is False


def test_a_country_without_part_is_wide_where_it_is_wide() -> None:
    prefixes = embedded_map()
    ms, sd = priors(*places(prefixes), [Region("eastus")])
    precision = dict(zip(prefixes.keys, prefixes.precision.tolist(), strict=True))
    assert precision["VN"] == Precision.WIDE
    assert precision["US/California"] == precision["NL"] == Precision.REGION
    assert precision[""] == Precision.NONE
    assert Precision.POINT not in precision.values(), "a coarse table must not claim points"
    share = dict(zip(prefixes.keys, (sd / ms)[:, 0].tolist(), strict=True))
    assert share["VN"] > share["VN/Hanoi"]


def test_own_networks_win_over_the_table() -> None:
    geoip = GeoIP(overrides=[("133.1.0.0/16", "US/California"), ("10.0.0.0/8", "NL"), ("203.0.113.0/24", "FR")])
    for client, country in (("133.1.1.1", "US"), ("133.2.1.1", "JP"), ("10.1.2.3", "NL"), ("203.0.113.7", "FR")):
        found = geoip.locate(client)
        assert found is not None and found.country == country


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "shape"])
def test_a_damaged_geography_file_is_named(damage: str, tmp_path: Path) -> None:
    good = GEOGRAPHY.read_bytes()
    middle = len(good) // 2
    header = json.dumps({"v4": {"bits": 22, "ranges": 9}, "v6": {"bits": 36, "ranges": 9}, "keys": [""]}).encode()
    bad = {
        "empty": b"", "cut": good[:middle], "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "text": b"no such thing", "shape": zlib.compress(header + b"\n" + b"short"),
    }  # fmt: skip
    path = tmp_path / "geography.z"
    path.write_bytes(bad[damage])
    with pytest.raises(ValueError, match=r"geography\.z: no usable geography"):
        unpack(path)


# ===== a user's database


def database(path: Path, records: dict[str, dict[str, object]], version: int = 4) -> Path:
    writer = MMDBWriter(version, ipv4_compatible=version == 6, database_type="Test-City", float_type="f64")
    for network, record in records.items():
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path))
    return path


def city(country: str, lat: float, lon: float, name: str = "Somewhere") -> dict[str, object]:
    return {"country": {"iso_code": country}, "location": {"latitude": lat, "longitude": lon}, "city": {"names": {"en": name}}}


def test_a_city_database_gives_points_and_a_default_point_is_wide(tmp_path: Path) -> None:
    vague = {"country": {"iso_code": "US"}, "location": {"latitude": 37.751, "longitude": -97.822}}
    geoip = GeoIP(database(tmp_path / "city.mmdb", {"192.88.0.0/24": city("FR", 48.9, 2.3), "192.88.1.0/24": vague}))
    assert geoip.locate("192.88.0.9") == Location(pytest.approx(48.9, abs=1), pytest.approx(2.3, abs=1), "FR", Precision.POINT)
    found = geoip.locate("192.88.1.9")
    assert found is not None and found.country == "US" and found.precision is Precision.WIDE
    assert geoip.locate("192.88.2.9") is None
    assert geoip.locate("10.0.0.1") is None


def test_a_country_database_places_clients_at_the_countrys_centre(tmp_path: Path) -> None:
    records: dict[str, dict[str, object]] = {f"192.88.{i}.0/24": {"country": {"iso_code": code}} for i, code in enumerate(("NL", "QQ"))}
    geoip = GeoIP(database(tmp_path / "country.mmdb", records))
    assert geoip.locate("192.88.0.9") == Location(pytest.approx(52.2, abs=0.5), pytest.approx(5.0, abs=0.5), "NL", Precision.WIDE)
    assert geoip.locate("192.88.1.9") is None, "a country nobody can place"
    lat, lon, precision = places(geoip.map)
    ms, _ = priors(lat, lon, precision, [Region("westeurope")])
    assert ms[geoip.map.lookup("192.88.0.9"), 0] < 20
    assert ms[geoip.map.lookup("192.88.1.9"), 0] == 80


def bad_databases(good: bytes) -> dict[str, bytes]:
    rng = random.Random(4)
    marker = good.rindex(b"\xab\xcd\xefMaxMind.com")
    return {
        "empty": b"",
        "text": b"this is no database\n" * 100,
        "cut in the tree": good[:20],
        "without metadata": good[:marker],
        "metadata of noise": good[: marker + 14] + rng.randbytes(200),
        "tree cut out": good[marker:],
    }


@pytest.mark.parametrize("kind", list(bad_databases(b"\xab\xcd\xefMaxMind.com")))
def test_a_bad_database_is_named(kind: str, tmp_path: Path) -> None:
    good = database(tmp_path / "good.mmdb", {"192.88.0.0/24": city("FR", 48.9, 2.3)}).read_bytes()
    path = tmp_path / "mine.mmdb"
    path.write_bytes(bad_databases(good)[kind])
    with pytest.raises(ValueError, match=r"mine\.mmdb"):
        GeoIP(path)


def test_a_missing_database_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mmdb"):
        GeoIP(tmp_path / "none.mmdb")


# ===== reload while serving


def replace(path: Path, content: bytes) -> None:
    """Put a new file in the place of the old one, as an updater does."""
    path.with_suffix(".new").write_bytes(content)
    os.replace(path.with_suffix(".new"), path)


def test_reload_reads_a_file_that_changed_and_keeps_the_old_one_when_it_is_bad(tmp_path: Path) -> None:
    path = database(tmp_path / "city.mmdb", {"192.88.0.0/24": city("FR", 48.9, 2.3)})
    geoip = GeoIP(path)
    first = geoip.map
    assert geoip.reload() is False and geoip.map is first

    replace(path, b"half a download")
    with pytest.raises(ValueError, match=r"city\.mmdb"):
        geoip.reload()
    found = geoip.locate("192.88.0.9")
    assert geoip.map is first and found is not None and found.country == "FR"
    assert geoip.reload() is False, "one report per bad file"

    replace(path, database(tmp_path / "next.mmdb", {"192.88.0.0/24": city("JP", 35.7, 139.7)}).read_bytes())
    assert geoip.reload() is True
    found = geoip.locate("192.88.0.9")
    assert geoip.map is not first and found is not None and found.country == "JP"

    path.unlink()
    with pytest.raises(FileNotFoundError):
        geoip.reload()
    assert geoip.locate("192.88.0.9") == found


# ===== the tool


def flat(country: str, part: str, lat: float, lon: float) -> dict[str, object]:
    return {"country_code": country, "state1": part, "state2": "", "city": "", "latitude": lat, "longitude": lon}


EAST, WEST, VAGUE = flat("US", "East", 40.0, -75.0), flat("US", "West", 40.0, -120.0), flat("US", "", 38.0, -97.0)
SMALL = flat("NL", "Holland", 52.0, 5.0)


def sources(folder: Path) -> tuple[Path, Path]:
    """Two small databases; 20.0.0.0/22 is East by two /24 to one West, 30.0.0.0/8 is whole, 40.0.0.0/24 stands alone."""
    v4 = {"20.0.0.0/24": EAST, "20.0.1.0/24": WEST, "20.0.2.0/24": EAST, "30.0.0.0/8": WEST, "35.0.0.0/8": EAST, "40.0.0.0/24": SMALL}
    v4["50.0.0.0/16"] = VAGUE
    v6 = {"2600::/24": WEST, "2a00::/48": SMALL, "2a00:0:1::/48": SMALL, "2a00:0:2::/48": EAST, "2000::/16": SMALL}
    return database(folder / "v4.mmdb", v4), database(folder / "v6.mmdb", v6, version=6)


def test_the_tool_gives_each_block_to_whoever_holds_most_of_it(tmp_path: Path) -> None:
    out = tmp_path / "geography.z"
    report = build(*sources(tmp_path), out)
    assert report.split == ("US",) and report.nbytes == out.stat().st_size
    ranges, centres = unpack(out)
    prefixes = PrefixMap.from_ranges(**ranges)
    assert prefixes.keys == ("", "US/East", "US/West", "NL", "US") and report.groups == 5, "by falling number of networks, then name"
    expected = {
        "20.0.0.1": "US/East", "20.0.1.1": "US/East", "20.0.3.255": "US/East", "20.0.4.0": "", "30.255.255.255": "US/West", "31.0.0.0": "",
        "40.0.0.1": "NL", "40.0.4.1": "", "50.0.9.9": "US", "1.1.1.1": "", "2600:ff::1": "US/West", "2a00::1": "NL", "2a00:0:2::1": "NL",
        "2a00:0:2000::1": "", "2000::1": "",
    }  # fmt: skip
    assert {client: prefixes.keys[prefixes.lookup(client)] for client in expected} == expected
    assert centres["NL"] == (52.0, 5.0)
    assert prefixes.precision.tolist() == [Precision.NONE, Precision.REGION, Precision.REGION, Precision.REGION, Precision.WIDE]
    lat, lon = prefixes.locations
    assert math.isnan(lat[0]) and (lat[2], lon[2]) == (40.0, -120.0)


def test_the_tool_is_reproducible(tmp_path: Path) -> None:
    first, second = tmp_path / "first.z", tmp_path / "second.z"
    build(*sources(tmp_path), first)
    build(*sources(tmp_path), second)
    assert first.read_bytes() == second.read_bytes()


def test_the_tool_refuses_another_schema_and_names_the_file(tmp_path: Path) -> None:
    _, v6 = sources(tmp_path)
    nested = database(tmp_path / "nested.mmdb", {"20.0.0.0/24": city("FR", 48.9, 2.3)})
    with pytest.raises(ValueError, match=r"nested\.mmdb: expected records with country_code"):
        build(nested, v6, tmp_path / "out.z")
    assert not (tmp_path / "out.z").exists()


def test_the_tool_wants_one_database_of_each_family(tmp_path: Path) -> None:
    v4, v6 = sources(tmp_path)
    for wrong, named in (((v6, v4), r"v6\.mmdb: expected an IPv4"), ((v4, v4), r"v4\.mmdb: expected an IPv6")):
        with pytest.raises(ValueError, match=named):
            build(*wrong, tmp_path / "out.z")


def test_the_tool_names_what_is_no_database(tmp_path: Path) -> None:
    v4, v6 = sources(tmp_path)
    v6.write_bytes(v6.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"v6\.mmdb"):
        build(v4, v6, tmp_path / "out.z")
    assert not (tmp_path / "out.z").exists()


@pytest.mark.parametrize("version", [4, 6])
def test_the_tool_agrees_with_counting_addresses(version: int, tmp_path: Path) -> None:
    """Random networks of all sizes around the grain against counting, block by block, who holds most."""
    rng = random.Random(version)
    grain, bits = (V4_BITS, 32) if version == 4 else (V6_BITS, 64)
    base = 20 << 24 if version == 4 else 0x2600 << 48
    records, owner = {}, {}
    kinds = [EAST, WEST, SMALL, VAGUE]
    position = base
    while position < base + (64 << (bits - grain)):
        length = rng.choice([grain - 2, grain, grain + 1, grain + 3, grain + 4])
        size = 1 << (bits - length)
        if position % size == 0:
            kind = rng.choice([*kinds, None])
            if kind is not None:
                network = ipaddress.ip_network((position << (128 - bits) if version == 6 else position, length))
                records[str(network)] = kind
            step = 1 << (bits - grain - 4)
            owner |= dict.fromkeys(range(position, position + size, step), kind)
            position += size
    blocks: dict[int, Counter[str]] = {}
    for unit, kind in owner.items():
        if kind is not None:
            key = "NL" if kind is SMALL else "/".join(filter(None, ("US", str(kind["state1"]))))
            blocks.setdefault(unit >> (bits - grain), Counter())[key] += 1
    v4, v6 = sources(tmp_path)
    mine = database(tmp_path / "random.mmdb", records, version)
    build(*((mine, v6) if version == 4 else (v4, mine)), tmp_path / "out.z")
    prefixes = PrefixMap.from_ranges(**unpack(tmp_path / "out.z")[0])
    for block, votes in blocks.items():
        address = ipaddress.ip_address((block << (bits - grain)) << (128 - bits if version == 6 else 0))
        most = max(votes.values())
        assert prefixes.keys[prefixes.lookup(address)] in {key for key, count in votes.items() if count == most}, str(address)


# ===== real databases


@pytest.mark.real
def test_maxminds_broken_databases_never_pass_silently(data: Path) -> None:
    """Each either loads, or is refused with its name: nothing crashes, hangs or leaks another exception."""
    folder = data / "geoip" / "maxmind_test" / "test-data"
    refused = set()
    for path in sorted(folder.glob("*.mmdb")):
        try:
            GeoIP(path).locate("81.2.69.142")
        except ValueError as error:
            assert path.name in str(error)
            refused.add(path.name)
    assert {name for name in refused if "City-Test.mmdb" in name or "Country-Test.mmdb" in name} == set()


@pytest.mark.real
def test_maxminds_city_database_places_london(data: Path) -> None:
    found = geo.GeoIP(data / "geoip/maxmind_test/test-data/GeoIP2-City-Test.mmdb").locate("81.2.69.142")
    assert found is not None and found.country == "GB"
    assert float(great_circle_km(found.lat, found.lon, 51.5, -0.1)[0, 0]) < 160
