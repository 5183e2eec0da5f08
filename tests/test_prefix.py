"""PrefixMap: which group an address has, from networks, ranges and MaxMind databases."""

from __future__ import annotations

import ipaddress
import math
import random
from pathlib import Path
from typing import Any

import maxminddb
import numpy as np
import pytest
from mmdb_writer import MmdbF32, MMDBWriter
from netaddr import IPSet
from prefix_model import key_of

from lbcore._prefix import PrefixMap

KINDS = ("grid", "country", "subdivision", "city", "record")


def nested(country: str | None = None, region: str | None = None, city: str | None = None, **location: float) -> dict[str, Any]:
    """Give a GeoIP2 record."""
    record: dict[str, Any] = {"continent": {"code": "EU", "names": {"en": "Europe", "de": "Europa"}}}
    if country:
        record["country"] = {"geoname_id": 1, "iso_code": country, "names": {"en": "Somewhere"}}
        record["registered_country"] = {"iso_code": "XX"}
    if region:
        record["subdivisions"] = [{"iso_code": region, "names": {"en": region}}, {"iso_code": "ZZZ"}]
    if city:
        record["city"] = {"geoname_id": 2988507, "names": {"de": "nicht " + city, "en": city}}
    if location:
        record["location"] = {"time_zone": "Europe/Paris", **location}
    return record


def flat(country: str = "", state: str = "", city: str = "", lat: float | None = None, lon: float | None = None) -> dict[str, Any]:
    """Give a record of the ip-location-db kind: absent texts are empty, coordinates single precision."""
    record: dict[str, Any] = {"country_code": country, "state1": state, "state2": "", "city": city, "postcode": "", "timezone": ""}
    if lat is not None and lon is not None:
        record |= {"latitude": MmdbF32(lat), "longitude": MmdbF32(lon)}
    return record


def write(path: Path, networks: dict[str, Any], ip_version: int = 6, bits: int = 28) -> Path:
    writer = MMDBWriter(ip_version, ipv4_compatible=ip_version == 6, database_type="Test-City", float_type="f64")
    for network, record in networks.items():
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path))
    return path


PLACES = {
    "5.1.0.0/16": nested("FR", "IDF", "Paris", latitude=48.8566, longitude=2.3522, accuracy_radius=5),
    "5.1.64.0/18": nested("FR", latitude=46.0, longitude=2.0, accuracy_radius=1000),
    "5.2.0.0/15": nested("FR", "ARA", latitude=45.5, longitude=4.5),
    "6.0.0.0/8": nested("US", latitude=37.751, longitude=-97.822),
    "7.7.7.7/32": nested("NZ", "AUK", "Auckland", latitude=-36.85, longitude=174.76),
    "8.0.0.0/8": nested(latitude=10.0, longitude=-10.0),
    "9.0.0.0/8": nested("DE", "BE", "Berlin"),
    "11.0.0.0/8": nested(),
    "2a01::/32": nested("FR", "IDF", "Paris", latitude=48.8566, longitude=2.3522),
    "2a02:1:2:3::/66": nested("JP", latitude=35.0, longitude=139.0),
    "2a02:1:2:3:3000::/68": nested("BR", "SP", "Sao Paulo", latitude=-23.55, longitude=-46.63),
}


@pytest.fixture(scope="module")
def city_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("mmdb") / "City.mmdb", PLACES)


# ===== what counts as an address =====

GOOD = """0.0.0.0 255.255.255.255 1.2.3.4 :: ::1 1:: 1::8 1:2:3:4:5:6:7:8 1:2:3:4:5:6:7:: ::2:3:4:5:6:7:8 ::ffff:1.2.3.4 64:ff9b::1.2.3.4
1:2:3:4:5:6:1.2.3.4 ::6:1.2.3.4 FE80::AbCd fe80::1%eth0 fe80::1%0 0001:0002:0003:0004:0005:0006:255.255.255.255""".split()
BAD = """1.2.3 1.2.3.4.5 1.2.3.4. .1.2.3.4 1..3.4 256.1.1.1 01.2.3.4 1.2.3.00 1.2.3.1000 1.2.3.4% 1.2.3.4%eth0 1.2.3.4/32 -1.2.3.4 1.2.3.a
0x1.2.3.4 1.2.3.٤ : ::: 1::2::3 1:2:3:4:5:6:7 1:2:3:4:5:6:7:8:9 1:2:3:4:5:6:7:8:: ::1:2:3:4:5:6:7:8 1: :1 1:2:3:4:5:6:7: :1:2:3:4:5:6:7:8
12345:: g:: ::1.2.3 1:2:3:4:5:6:7:1.2.3.4 1.2.3.4:: ::1.2.3.4:5 fe80::1% fe80::1%a%b
fe80::1/64 fe80::1%a/64 %eth0 ::1%é/ [::1] localhost""".split()


@pytest.mark.parametrize("address", GOOD)
def test_accepts_what_ipaddress_accepts(address: str) -> None:
    plain = ipaddress.ip_address(address.partition("%")[0])
    network = f"{plain}/{plain.max_prefixlen}"
    assert PrefixMap.from_prefixes([(network, 7)]).lookup(address) == 7
    assert PrefixMap().lookup(address) == 0


@pytest.mark.parametrize("address", [*BAD, "", " 1.2.3.4", "1.2.3.4 ", "1.2.3.4\n", "1.2.3.4\0", "::1 ", b"", b"123", b"1.2.3.4.5"])
def test_refuses_what_ipaddress_refuses(address: str | bytes) -> None:
    with pytest.raises(ValueError):
        ipaddress.ip_address(address)
    for call in (PrefixMap().lookup, PrefixMap().match):
        with pytest.raises(ValueError, match="is not an IPv4 or IPv6 address"):
            call(address)


def test_scope_of_any_text_is_dropped() -> None:
    assert PrefixMap.from_prefixes([("fe80::/64", 3)]).lookup("fe80::1%é") == 3


@pytest.mark.parametrize("client", [1, 3.5, ["1.2.3.4"], bytearray(4), object()])
def test_refuses_other_types(client: Any) -> None:
    with pytest.raises(TypeError, match=type(client).__name__):
        PrefixMap().lookup(client)


def test_every_type_of_address_finds_the_same_group() -> None:
    map = PrefixMap.from_prefixes([("203.0.113.0/24", 1), ("2001:db8::/32", 2)])
    for text, group in (("203.0.113.7", 1), ("2001:db8::1", 2)):
        address = ipaddress.ip_address(text)
        assert [map.lookup(form) for form in (text, address, address.packed)] == [group] * 3
        assert map.match(text) == map.match(address) == map.match(address.packed)
    assert map.lookup(None) == 0
    assert map.match(None) == (0, 0)


# ===== networks =====


def test_longest_prefix_wins_whatever_the_order() -> None:
    prefixes = [("10.1.2.0/24", 3), ("0.0.0.0/0", 1), ("10.1.2.3", 4), ("10.0.0.0/8", 2), ("2001:db8::/32", 5), ("2001:db8::7/128", 6)]
    for order in (prefixes, prefixes[::-1]):
        map = PrefixMap.from_prefixes(order)
        found = [map.lookup(a) for a in ("11.0.0.0", "10.255.0.1", "10.1.2.4", "10.1.2.3", "2001:db8::6", "2001:db8::7", "2001:db9::")]
        assert found == [1, 2, 3, 4, 5, 6, 0]
    assert PrefixMap.from_prefixes([("10.0.0.0/8", 1), ("10.0.0.0/8", 2)]).lookup("10.0.0.1") == 2
    assert map.groups == 7
    assert map.keys == ("", "1", "2", "3", "4", "5", "6")


def test_networks_of_every_spelling() -> None:
    map = PrefixMap.from_prefixes([(ipaddress.ip_network("10.0.0.0/8"), 1), ("11.0.0.0/255.0.0.0", 2), ("::ffff:12.0.0.0/104", 3)])
    assert [map.lookup(a) for a in ("10.0.0.1", "11.0.0.1", "12.0.0.1", "::ffff:12.1.1.1", "13.0.0.0")] == [1, 2, 3, 3, 0]


@pytest.mark.parametrize("network", ["10.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "10/8", "10.0.0.0/", "", "fe80::%a/64", "x"])
def test_refuses_what_is_no_network(network: str) -> None:
    with pytest.raises(ValueError):
        PrefixMap.from_prefixes([(network, 1)])


@pytest.mark.parametrize(("pair", "error"), [((7, 1), TypeError), (("10.0.0.0/8", "x"), TypeError), (("10.0.0.0/8", -1), ValueError)])
def test_refuses_pairs_that_are_none(pair: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        PrefixMap.from_prefixes([pair])
    with pytest.raises(ValueError, match="not in 0"):
        PrefixMap.from_prefixes([("10.0.0.0/8", 1 << 24)])


def test_forms_that_carry_ipv4() -> None:
    map = PrefixMap.from_prefixes([("10.1.2.0/24", 1), ("2000::/3", 2), ("2001:0:5::/48", 3)])
    inside = ["::10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "2002:a01:203::1", "2001:0:1234::f5fe:fdfc"]
    assert [map.lookup(a) for a in inside] == [1] * 5
    assert [map.match(a) for a in inside] == [(1, 120), (1, 120), (1, 120), (1, 40), (1, 120)]
    assert map.lookup("2002:b01:203::1") == 0, "the carried address decides, not the IPv6 network around the form"
    assert map.lookup("2001:0:5::f5fe:fdfc") == 3, "a network inside the form holds for it"
    assert [map.lookup(a) for a in ("2001:1::", "2003::", "64:ff9c::")] == [2, 2, 0]


# ===== scopes =====


def test_scope_is_as_short_as_the_group_reaches() -> None:
    map = PrefixMap.from_prefixes([("10.0.0.0/9", 1), ("10.128.0.0/9", 1), ("192.0.2.1", 2), ("2001:db8::/33", 3), ("2001:db8::42/127", 4)])
    wanted = {"10.200.0.0": (1, 8), "192.0.2.1": (2, 32), "192.0.2.0": (0, 32), "192.0.2.2": (0, 31), "224.0.0.0": (0, 3)}
    wanted |= {"11.0.0.0": (0, 8), "2001:db8::": (3, 122), "2001:db8::43": (4, 127), "2001:db8::41": (3, 127)}
    wanted |= {"2001:db8:4000::": (3, 34), "8000::": (0, 1)}
    assert {address: map.match(address) for address in wanted} == wanted
    assert PrefixMap().match("1.2.3.4") == PrefixMap().match("2001:db8::") == (0, 0)
    assert PrefixMap.from_prefixes([("0.0.0.0/0", 5), ("::/0", 5)]).match("2002::") == (5, 0)


# ===== databases =====


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_a_nested_database(city_file: Path, kind: str) -> None:
    map = PrefixMap.from_mmdb(city_file, kind)
    for network, record in PLACES.items():
        address = str(ipaddress.ip_network(network)[0])
        assert map.keys[map.lookup(address)] == key_of(record, kind), address
    assert map.lookup("100.0.0.1") == map.lookup("2a03::") == map.lookup("127.0.0.1") == map.lookup("fe80::1") == 0


def test_grid_groups_tell_points_from_countries(city_file: Path) -> None:
    map = PrefixMap.from_mmdb(city_file)
    lat, lon = map.locations
    seen = {key: (map.countries[g], map.precision[g], float(lat[g]), float(lon[g])) for g, key in enumerate(map.keys)}
    assert seen["FR/48/2/point"] == ("FR", 3, pytest.approx(48.8566), pytest.approx(2.3522))
    assert seen["FR/wide"] == ("FR", 1, 46, 2)
    assert seen["FR/44/4/point"][:2] == ("FR", 2)
    assert seen["NZ/-38/174/point"][:2] == ("NZ", 3)
    assert seen["ZZ/10/-10/wide"][:2] == ("", 1)
    assert seen["DE/wide"][1] == 2 and math.isnan(seen["DE/wide"][2])
    assert seen[""][:2] == ("", 0) and math.isnan(seen[""][2])


def test_locations_are_weighted_by_addresses_and_cross_the_antimeridian(tmp_path: Path) -> None:
    places = {"5.0.0.0/24": nested("FJ", latitude=0.0, longitude=179.0), "6.0.0.0/24": nested("FJ", latitude=0.0, longitude=-179.0)}
    places |= {"7.0.0.0/24": nested("FR", latitude=40.0, longitude=0.0), "8.0.0.0/16": nested("FR", latitude=50.0, longitude=0.0)}
    map = PrefixMap.from_mmdb(write(tmp_path / "a.mmdb", places), "country")
    lat, lon = map.locations
    assert abs(lon[map.keys.index("FJ")]) == pytest.approx(180)
    assert 49.9 < lat[map.keys.index("FR")] < 50
    assert not lat.flags.writeable


@pytest.mark.parametrize("kind", KINDS)
def test_flat_databases_in_two_files(tmp_path: Path, kind: str) -> None:
    four = {"5.0.0.0/8": flat("FR", "IDF", "Paris", 48.8566, 2.3522), "6.0.0.0/8": flat("US", "", "", 37.751, -97.822)}
    six = {"2a01::/32": flat("FR", "IDF", "Paris", 48.8566, 2.3522), "2a02::/32": flat("DE", "Berlin")}
    paths = [write(tmp_path / "four.mmdb", four, 4), write(tmp_path / "six.mmdb", six)]
    map = PrefixMap.from_mmdb(paths, kind)
    for path, places in zip(paths, (four, six), strict=True):
        with maxminddb.open_database(path) as reader:
            for network in places:
                address = str(ipaddress.ip_network(network)[0])
                assert map.keys[map.lookup(address)] == key_of(reader.get(address), kind)
    assert map.lookup("5.1.1.1") == map.lookup("2a01::5") == map.lookup("2002:501:101::")
    assert map.lookup("7.0.0.0") == 0


def test_later_files_fill_holes_only(tmp_path: Path) -> None:
    first = write(tmp_path / "1.mmdb", {"5.0.0.0/9": nested("FR")})
    second = write(tmp_path / "2.mmdb", {"5.0.0.0/8": nested("DE"), "2a00::/16": nested("FR")})
    map = PrefixMap.from_mmdb([first, second], "country")
    assert [map.keys[map.lookup(a)] for a in ("5.0.0.1", "5.128.0.0", "2a00::1", "6.0.0.0")] == ["FR", "DE", "FR", ""]


def test_country_databases_and_those_without_any_place(tmp_path: Path) -> None:
    countries = write(tmp_path / "c.mmdb", {"5.0.0.0/8": nested("FR"), "6.0.0.0/8": {"registered_country": {"iso_code": "DE"}}})
    map = PrefixMap.from_mmdb(countries)
    assert map.keys == ("", "FR/wide", "DE/wide")
    assert list(map.precision) == [0, 1, 1]
    asn = write(tmp_path / "asn.mmdb", {"5.0.0.0/8": {"autonomous_system_number": 3215}, "6.0.0.0/8": "text", "7.0.0.0/8": [1]})
    assert PrefixMap.from_mmdb(asn).keys == ("",)


def test_networks_of_the_user_win_over_records(city_file: Path) -> None:
    overrides = [("5.0.0.0/8", "office"), ("5.1.64.0/24", "FR/wide"), ("10.0.0.0/8", "office"), ("2a01::/16", "lab"), ("::1/128", "lab")]
    map = PrefixMap.from_mmdb(city_file, overrides=overrides)
    found = [map.keys[map.lookup(a)] for a in ("5.1.0.1", "5.1.64.9", "5.1.65.0", "10.1.1.1", "2a01::5", "6.0.0.0", "::1", "::2")]
    assert found == ["office", "FR/wide", "office", "office", "lab", "US/wide", "lab", ""]
    office = map.keys.index("office")
    assert map.precision[office] == 0 and math.isnan(map.locations[0][office]) and map.countries[office] == ""
    with pytest.raises(TypeError, match="key"):
        PrefixMap.from_mmdb(city_file, overrides=[("10.0.0.0/8", 5)])  # type: ignore[list-item]


def test_file_may_go_after_building(tmp_path: Path) -> None:
    path = write(tmp_path / "gone.mmdb", PLACES)
    map = PrefixMap.from_mmdb(path)
    path.write_bytes(b"")
    path.unlink()
    assert map.keys[map.lookup("6.1.1.1")] == "US/wide"


def test_missing_files_and_unknown_kinds(tmp_path: Path, city_file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PrefixMap.from_mmdb(tmp_path / "none.mmdb")
    with pytest.raises(ValueError, match="'town' is none of grid, country"):
        PrefixMap.from_mmdb(city_file, "town")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no database"):
        PrefixMap.from_mmdb([])


# ===== ranges and batches =====


def ranges() -> dict[str, Any]:
    return {
        "v4_starts": np.array([0x05000000, 0x06000000, 0x07000000], np.uint32), "v4_groups": np.array([1, 0, 2], np.uint32),
        "v6_starts": np.array([0x20010DB8 << 32, 0x20010DB9 << 32], np.uint64), "v6_groups": np.array([2, 0], np.uint32),
        "keys": ["", "FR/48/2/point", "US/wide"], "lat": np.float32([math.nan, 48, 37]), "lon": np.float32([math.nan, 2, -97]),
    }  # fmt: skip


def test_ranges_reach_to_the_next_start() -> None:
    map = PrefixMap.from_ranges(**ranges(), overrides=[("5.5.0.0/16", "US/wide")])
    asked = ("4.255.255.255", "5.0.0.0", "5.5.5.5", "5.255.255.255", "6.1.1.1", "255.1.1.1", "2001:db8::", "2001:db9::")
    found = [map.lookup(a) for a in asked]
    assert found == [0, 1, 2, 1, 0, 2, 2, 0]
    assert list(map.precision) == [0, 3, 1]
    assert map.countries == ("", "FR", "US")
    assert PrefixMap.from_ranges(**ranges(), precision=[0, 2, 1]).precision[1] == 2


@pytest.mark.parametrize(
    "wrong",
    [{"v4_starts": [3, 2, 1]}, {"v4_starts": [1, 1, 2]}, {"v4_starts": [1, 2]}, {"v4_starts": [1, 2, 1 << 32]}, {"v4_starts": [-1, 2, 3]},
     {"v4_groups": [0, 1, 3]}, {"v6_groups": [0, -1]}, {"v4_starts": [1.5, 2.5, 3.5]}, {"keys": ["FR", "", "US"]}, {"keys": ["", "a", "a"]},
     {"keys": []}, {"lat": [1, 2]}, {"lon": [[1, 2, 3]]}, {"precision": [1]}],
)  # fmt: skip
def test_refuses_ranges_that_do_not_fit(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        PrefixMap.from_ranges(**ranges() | wrong)


def test_lookup_many_equals_lookup(city_file: Path) -> None:
    map = PrefixMap.from_mmdb(city_file)
    draw = random.Random(1)
    four = np.array([draw.choice([5, 6, 7, 8]) << 24 | draw.getrandbits(24) for _ in range(500)], np.uint32)
    assert list(map.lookup_many(four)) == [map.lookup(ipaddress.IPv4Address(int(a))) for a in four]
    six = np.frombuffer(b"".join(bytes.fromhex("2a02000100020003") + draw.randbytes(8) for _ in range(500)), np.uint8).reshape(-1, 16)
    out = np.empty(500, np.uint32)
    assert map.lookup_many(six, out) is out
    assert list(out) == [map.lookup(bytes(row)) for row in six] and len(set(out)) > 2


@pytest.mark.parametrize(
    ("addresses", "out"),
    [(np.zeros(3), None), (np.zeros((3, 4), np.uint8), None), (np.zeros(3, np.uint32), np.zeros(2, np.uint32)),
     (np.zeros(3, np.int64), None), (np.zeros(3, np.uint32), np.zeros(3, np.int32)), (np.zeros(3, np.uint32), np.zeros(6, np.uint32)[::2])],
)  # fmt: skip
def test_lookup_many_refuses_other_arrays(addresses: Any, out: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        PrefixMap().lookup_many(addresses, out)
