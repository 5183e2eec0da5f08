"""PrefixMap against its models and against bytes made to break it.

LBCORE_GEO   a folder of *.mmdb files, each compared with maxminddb on a million addresses (marked `heavy` and `real`)
LBCORE_DATA  geoip/maxmind_test/test-data: MaxMind's own test databases
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import maxminddb
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prefix_model import FORMS, IPAddress, IPNetwork, Model, carried, key_of

from lbcore._prefix import PrefixMap

KINDS = ("grid", "country", "subdivision", "city", "record")
MARKER = b"\xab\xcd\xefMaxMind.com"

# ===== networks against the model =====

PLACES = ["10.0.0.0", "10.255.0.0", "0.0.0.0", "255.255.255.255", "192.0.2.64"]
PLACES += ["::", "2001:db8::", "2001:db8::ffff:0:0:0", "2001::", "2002::", "64:ff9b::", "::ffff:0:0"]
PLACES += ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]


@st.composite
def addresses(draw: st.DrawFn) -> IPAddress:
    """Give an address near one of a few places, so that networks and addresses meet often."""
    base = ipaddress.ip_address(draw(st.sampled_from(PLACES)))
    shift = draw(st.integers(0, base.max_prefixlen - 4))
    return type(base)(int(base) ^ draw(st.integers(0, 15)) << shift)


@st.composite
def networks(draw: st.DrawFn) -> str:
    address = draw(addresses())
    return str(ipaddress.ip_network((address, draw(st.integers(0, address.max_prefixlen))), strict=False))


def is_inside_form(network: IPNetwork) -> bool:
    return any(network != form and network.version == 6 and network.subnet_of(form) for form in FORMS)


prefix_lists = st.lists(st.tuples(networks(), st.integers(0, 3)), max_size=8)


@given(prefix_lists, st.lists(addresses(), min_size=1, max_size=4))
@example([("::/0", 1), ("0.0.0.0/0", 1)], [ipaddress.ip_address("2002::")])
@example([("2001:db8:0:0:ffff::/80", 1), ("2001:db8:0:1::/64", 2)], [ipaddress.ip_address("2001:db8:0:1::")])
@example([("::ffff:10.0.0.0/104", 1), ("2001:0:ffff::/48", 2)], [ipaddress.ip_address("2001:0:ffff::")])
def test_prefixes_equal_the_model(prefixes: list[tuple[str, int]], asked: list[IPAddress]) -> None:
    map, model = PrefixMap.from_prefixes(prefixes), Model(prefixes)
    for address in [*asked, *(ipaddress.ip_network(network)[-1] for network, _ in prefixes)]:
        group, length = map.match(address)
        assert map.lookup(str(address)) == group == model.lookup(address), address
        if any(is_inside_form(network) for network in model.groups):
            assert length >= model.scope(address), address
        else:
            assert length == model.scope(address), address


@given(prefix_lists, prefix_lists)
def test_user_networks_lie_over_ranges(under: list[tuple[str, int]], over: list[tuple[str, int]]) -> None:
    """Any network of the user beats any range below; where there is none the range shows."""
    under = [(network, group) for network, group in under if ":" not in network]
    keys = ["", "1", "2", "3"]
    starts = sorted({0} | {int(edge) for network, _ in under for edge in edges(ipaddress.ip_network(network)) if int(edge) < 1 << 32})
    base = Model(under)
    groups = [base.lookup(ipaddress.IPv4Address(start)) for start in starts]
    nowhere = np.full(4, np.nan)
    map = PrefixMap.from_ranges(starts, groups, [], [], keys, nowhere, nowhere, [(network, str(group or "")) for network, group in over])
    top = Model([(network, group + 1) for network, group in over])
    for address in map_points([*under, *over]):
        wanted = top.lookup(address)
        assert map.lookup(address) == (wanted - 1 if wanted else base.lookup(address))


def edges(network: IPNetwork) -> Iterator[int]:
    yield int(network[0])
    yield int(network[-1]) + 1


def map_points(prefixes: list[tuple[str, int]]) -> list[IPAddress]:
    found = [edge for network, _ in prefixes if "." in network and ":" not in network for edge in edges(ipaddress.ip_network(network))]
    return [ipaddress.IPv4Address(edge + step) for edge in found for step in (-1, 0) if 0 <= edge + step < 1 << 32]


# ===== text against ipaddress =====

pieces = st.sampled_from("1 0 00 255 256 ffff 12345 g . : :: % / 1.2.3.4 é -1 %eth0".split() + [" ", "\0"])


@given(st.lists(pieces, max_size=17).map("".join) | st.ip_addresses().map(str) | st.text("0123456789abcdefABCDEF:.%/ ", max_size=46))
def test_text_is_judged_as_ipaddress_does(text: str) -> None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        with pytest.raises(ValueError):
            PrefixMap().lookup(text)
        return
    network = ipaddress.ip_network(int(address) if address.version == 6 and int(address) >> 32 else address.packed)
    assert PrefixMap.from_prefixes([(str(network), 1)]).lookup(text) == 1


# ===== files made by hand =====


class Raw(bytes):
    """Bytes that stand in the data section as they are."""


def head(kind: int, size: int) -> bytes:
    """Give the control bytes of a value. Source: MaxMind DB File Format Specification 2.0."""
    extra = b"" if size < 29 else bytes([size - 29]) if size < 285 else struct.pack(">H", size - 285) if size < 65821 else None
    extra = struct.pack(">I", size - 65821)[1:] if extra is None else extra
    bits = size if size < 29 else 28 + len(extra)
    return (bytes([kind << 5 | bits]) if kind < 8 else bytes([bits, kind - 7])) + extra


def encode(value: Any) -> bytes:
    match value:
        case Raw():
            return value
        case dict():
            return head(7, len(value)) + b"".join(encode(part) for pair in value.items() for part in pair)
        case list():
            return head(11, len(value)) + b"".join(map(encode, value))
        case str():
            return head(2, len(value.encode())) + value.encode()
        case float():
            return head(3, 8) + struct.pack(">d", value)
        case int():
            return head(6, 4) + struct.pack(">I", value)
    raise TypeError(value)


def pointer(target: int) -> Raw:
    return Raw(b"\x38" + struct.pack(">I", target))


def short(number: int) -> Raw:
    return Raw(head(5, 2) + struct.pack(">H", number))


def tree(nodes: list[tuple[int, int]], bits: int) -> bytes:
    if bits == 28:
        return b"".join(
            struct.pack(">I", left)[1:] + bytes([left >> 24 << 4 | right >> 24]) + struct.pack(">I", right)[1:] for left, right in nodes
        )
    return b"".join(struct.pack(">I", record)[4 - bits // 8 :] for node in nodes for record in node)


def database(data: Any, nodes: list[tuple[int, int]] | None = None, bits: int = 24, **meta: Any) -> bytes:
    """Give a file whose first bit of the address chooses between the record at 0 and nothing, or with a tree of its own."""
    nodes = nodes or [(1 + 16, 1)]
    facts: dict[str, Any] = {"binary_format_major_version": short(2), "binary_format_minor_version": short(0)}
    facts |= {"build_epoch": Raw(head(9, 1) + b"\1"), "database_type": "Test", "description": {"en": "x"}, "languages": ["en"]}
    facts |= {"node_count": len(nodes), "record_size": short(bits), "ip_version": short(4)} | meta
    return tree(nodes, bits) + bytes(16) + encode(data) + MARKER + encode({name: fact for name, fact in facts.items() if fact is not None})


def overlapping(child: int) -> int:
    """Give the tree entry of a child in a full tree of 4095 nodes, each leaf a map inside the leaf before."""
    return child if child < 4095 else 4095 + 16 + 3 * (child - 4095)


PARIS = {
    "city": {"geoname_id": 2988507, "names": {"de": "x", "en": "Paris"}},
    "country": {"iso_code": "FR", "names": {"en": "France"}},
    "location": {"accuracy_radius": 20, "latitude": 48.8566, "longitude": 2.3522},
    "registered_country": {"iso_code": "RE"},
    "subdivisions": [{"iso_code": "IDF"}, {"iso_code": "75"}],
}
SINGLE = Raw(head(15, 4) + struct.pack(">f", 13.4))
NESTED = Raw(b"\xe1\x41a" * 20_000 + b"\x41b")


@pytest.mark.parametrize("bits", [24, 28, 32])
def test_every_record_size(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "a.mmdb"
    path.write_bytes(database(PARIS, [(1, 2), (3, 3 + 16), (3 + 16, 3)], bits))
    map = PrefixMap.from_mmdb(path, "record")
    with maxminddb.open_database(path) as reader:
        for address in ("1.0.0.0", "65.0.0.0", "129.0.0.0", "193.0.0.0"):
            assert map.keys[map.lookup(address)] == key_of(reader.get(address), "record")
    assert map.keys == ("", "FR/IDF/Paris/48.8566/2.3522")


FAULTY = {
    "empty": (b"", "no metadata marker"),
    "noise": (random.Random(1).randbytes(5000), "no metadata marker"),
    "marker alone": (MARKER, "metadata: a value reaches past the end"),
    "metadata no map": (bytes(100) + MARKER + encode("x"), "metadata: no map"),
    "metadata of 16 million pairs": (bytes(100) + MARKER + head(7, 16_000_000), "metadata: a value reaches past the end"),
    "no node count": (database(PARIS, node_count=None), "node_count"),
    "node count of text": (database(PARIS, node_count="1"), "node_count"),
    "node count 0": (database(PARIS, node_count=0), "node_count 0 does not fit"),
    "node count too high": (database(PARIS, node_count=4_000_000_000), "node_count 4000000000 does not fit"),
    "node count a little too high": (database(PARIS, node_count=30), "a value|a search tree|a map key|a number|no record"),
    "record size": (database(PARIS, record_size=20), "record_size 20"),
    "ip version": (database(PARIS, ip_version=5), "ip_version 5"),
    "format 3": (database(PARIS, binary_format_major_version=3), "binary_format_major_version"),
    "record outside": (database(PARIS, [(1 + 16 + 100_000, 1)]), "leaf that points outside"),
    "record in the separator": (database(PARIS, [(1 + 5, 1)]), "leaf that points outside"),
    "tree in circles": (database(PARIS, [(0, 0)]), "search tree"),
    "tree of one long circle": (database(PARIS, [(1, 17), (2, 17), (0, 17)]), "deeper than an address"),
    "tree with too many paths": (database(PARIS, [(i + 1, i + 1) for i in range(31)] + [(48, 32)]), "runs in circles"),
    "pointer to itself": (database(pointer(0)), "pointer to a pointer"),
    "pointers in a ring": (database(Raw(pointer(5) + pointer(0))), "pointer to a pointer"),
    "country points to itself": (database({"country": pointer(9)}), "pointer to a pointer"),
    "pointer outside": (database({"country": pointer(1 << 31)}), "reaches past the end"),
    "map without end": (database(Raw(head(7, 1000) + encode("a") + encode("b"))), "reaches past the end"),
    "array of 16 million": (database({"x": Raw(head(11, 16_000_000)), "country": "FR"}), "reaches past the end"),
    "text past the end": (database({"country": Raw(head(2, 65_000) + b"FR")}), "reaches past the end"),
    "key that is a number": (database(Raw(head(7, 1) + encode(5) + encode(5))), "map key"),
    "double of 4 bytes": (database({"location": {"latitude": Raw(head(3, 4) + bytes(4))}}), "number of impossible size"),
    "no such type": (database({"x": Raw(b"\x00\x20"), "country": "FR"}), "no known type"),
    "a name of 300 bytes": (database({"city": "x" * 300}), "more than 255"),
    "a name not in UTF-8": (database({"country_code": Raw(head(2, 2) + b"\xff\xfe"), "city": "x"}), "UTF-8"),
    "records one inside the other": (
        database(NESTED, [(overlapping(2 * i + 1), overlapping(2 * i + 2)) for i in range(4095)]),
        "overlap without end",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_files_are_refused_by_name_and_soon(tmp_path: Path, name: str) -> None:
    content, fault = FAULTY[name]
    path = tmp_path / "faulty.mmdb"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(ValueError, match=fault) as caught:
        PrefixMap.from_mmdb(path, "record")
    assert str(path) in str(caught.value)
    assert time.process_time() - start < 5, "bounded work, whatever the file says"


def test_deep_nesting_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep.mmdb"
    path.write_bytes(database({"x": NESTED, "country_code": "FR"}))
    assert PrefixMap.from_mmdb(path).keys == ("", "FR/wide")


@pytest.fixture(scope="module")
def honest() -> bytes:
    """Give a database with IPv6, shared maps behind pointers, and every field that is read."""
    names = encode({"de": "Frankreich", "en": "France"})
    country = encode({"iso_code": "FR", "names": pointer(0)})
    flat = encode({"country_code": "DE", "state1": "Berlin", "city": "", "latitude": 52.5, "longitude": SINGLE})
    shared = PARIS | {"country": pointer(len(names))}
    start = len(names) + len(country)
    nodes = [(i + 1, 100) for i in range(96)] + [(97, 98), (100 + 16 + start, 100), (99, 100), (100, 100 + 16 + start + len(flat))]
    return database(Raw(names + country + flat + encode(shared)), nodes, 28, ip_version=short(6))


NASTY = [b"\xff", b"\x00", b"\x38\0\0\0\0", b"\x3f\xff\xff\xff\xff", b"\xff\xff\xff\xff", b"\x1f\x04\xff\xff\xff"]


@given(st.data())
def test_mutated_files_never_crash(honest: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(honest)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4) | st.sampled_from(NASTY))
    path = tmp_path_factory.getbasetemp() / "mutated.mmdb"
    path.write_bytes(content[: data.draw(st.integers(0, len(content))) if data.draw(st.booleans()) else None])
    try:
        map = PrefixMap.from_mmdb(path, data.draw(st.sampled_from(KINDS)))
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
        return
    for address in ("5.0.0.1", "200.0.0.1", "2a00::", "::ffff:0:0"):
        group, length = map.match(address)
        assert group == map.lookup(address) < map.groups and 0 <= length <= 128


# ===== maxminddb as the judge =====

FOLDERS = [(os.environ.get("LBCORE_GEO"), "*.mmdb"), (os.environ.get("LBCORE_DATA"), "geoip/maxmind_test/test-data/*.mmdb")]
FILES = sorted(path for folder, pattern in FOLDERS if folder for path in Path(folder).glob(pattern))
BROKEN = {"GeoIP2-City-Test-Broken-Double-Format.mmdb", "GeoIP2-City-Test-Invalid-Node-Count.mmdb"}
BROKEN |= {"MaxMind-DB-test-broken-pointers-24.mmdb", "MaxMind-DB-test-broken-search-tree-24.mmdb"}


def routable(draw: random.Random, version: int, networks: list[IPNetwork]) -> IPAddress:
    """Give a random address: anywhere, or near a network that the database has."""
    bits = 32 if version == 4 else 128
    all_ones = (1 << bits) - 1
    base = draw.choice(networks) if networks and draw.random() < 0.5 else None
    if base is not None and base.version == version:
        return base[0] + draw.getrandbits(bits - base.prefixlen) if draw.random() < 0.9 else type(base[0])(int(base[-1]) + 1 & all_ones)
    if version == 4:
        return ipaddress.IPv4Address(draw.getrandbits(32))
    return ipaddress.IPv6Address(0b001 << 125 | draw.getrandbits(125) if draw.random() < 0.9 else draw.getrandbits(128))


def judged(reader: maxminddb.Reader, address: IPAddress) -> Any:
    """Give the record of an address as it is defined: the forms that carry IPv4 are that IPv4 address."""
    inner = carried(address) if isinstance(address, ipaddress.IPv6Address) else None
    address = inner[0] if inner else address
    return None if address.version == 6 and reader.metadata().ip_version == 4 else reader.get(address)


def agrees(path: Path, kind: str, count: int) -> None:
    map = PrefixMap.from_mmdb(path, kind)
    draw = random.Random(7)
    with maxminddb.open_database(path) as reader:
        known = [] if "no-ipv4" in path.name else [ipaddress.ip_network(row[0]) for row in itertools.islice(reader, 1000)]
        for turn in range(count):
            address = routable(draw, 4 if turn % 2 else 6, known)
            assert map.keys[map.lookup(address)] == key_of(judged(reader, address), kind), address


@pytest.mark.real
@pytest.mark.skipif(not FILES, reason="neither LBCORE_GEO nor LBCORE_DATA names a folder with databases")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_agrees_with_maxminddb(path: Path) -> None:
    if path.name in BROKEN:
        with pytest.raises(ValueError, match=path.name):
            PrefixMap.from_mmdb(path)
        return
    for kind in KINDS:
        agrees(path, kind, 2000 if path.stat().st_size < 1e6 else 500)


@pytest.mark.heavy
@pytest.mark.real
@pytest.mark.skipif(not FILES, reason="neither LBCORE_GEO nor LBCORE_DATA names a folder with databases")
@pytest.mark.parametrize("path", [path for path in FILES if path.name not in BROKEN], ids=lambda path: path.stem)
def test_agrees_with_maxminddb_on_a_million_addresses(path: Path) -> None:
    agrees(path, "grid", 50_000 if os.environ.get("LBCORE_PROFILE") == "ci" else 1_000_000)
