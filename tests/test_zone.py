"""Zone: names, SOA, NS and glue; zone files read or refused as a whole, with every violation and the line it stands on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dns.exception
import dns.name
import dns.rdatatype
import dns.zone
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbcore import ConfigError, Region
from lbcore.dns import Profile
from lbcore.dns.names import ancestors, from_key, key_of, labels, order, parent, within
from lbcore.dns.place import MUTE, place_of
from lbcore.dns.zone import Zone

PROFILE = Profile("api", "example.com")


def violations(records: str | Path | None = None, **options: Any) -> list[tuple[str, object]]:
    with pytest.raises(ConfigError) as caught:
        Zone(**{"origin": "example.com", "records": records, **options})
    assert all(violation.expected for violation in caught.value.violations)
    return [(violation.where, violation.value) for violation in caught.value.violations]


def held(zone: Zone, name: str, rdtype: str) -> list[str]:
    """Give a zone's records of a name and type, as text."""
    types = zone.content.get(key_of(dns.name.from_text(name)), {})
    records = types.get(dns.rdatatype.from_text(rdtype))
    return [rdata.to_text() for rdata in records.rdatas] if records else []


# ===== what the zone says of itself


def test_soa_and_name_servers_are_made() -> None:
    zone = Zone("Example.com", nameservers=("ns1", "ns2.example.net"), glue={"ns1": ("192.0.2.53", "2001:db8::53")}, serial=7)
    assert held(zone, "example.com", "SOA") == ["ns1.Example.com. hostmaster.Example.com. 7 3600 600 604800 30"]
    assert held(zone, "example.com", "NS") == ["ns1.Example.com.", "ns2.example.net."]
    assert (held(zone, "ns1.example.com", "A"), held(zone, "ns1.example.com", "AAAA")) == (["192.0.2.53"], ["2001:db8::53"])
    assert zone.denial_ttl == 30


def test_soa_and_name_servers_of_the_file_are_taken_as_they_are() -> None:
    zone = Zone("example.com", records="@ 500 SOA a.x. b.x. 1 2 3 4 50\n@ 600 NS ns.example.net.\n", mname="other", rname="x@y.z")
    assert held(zone, "example.com", "SOA") == ["a.x. b.x. 1 2 3 4 50"]
    assert held(zone, "example.com", "NS") == ["ns.example.net."]
    assert zone.denial_ttl == 50
    named = Zone("example.com", records="@ NS ns.example.net.")
    assert held(named, "example.com", "SOA")[0].startswith("ns.example.net. ")


def test_hosts_have_their_addresses_unless_something_else_has_the_name() -> None:
    hosts = {
        "contoso-westus2-01.regional.example.com": ("192.0.2.1", "2001:db8::1"), "www": ("192.0.2.9",), "api": ("192.0.2.9",),
        "nowhere": (),
    }  # fmt: skip
    zone = Zone("example.com", {"api": PROFILE}, records="www A 192.0.2.7\n", hosts=hosts, hosts_ttl=11)
    name = "contoso-westus2-01.regional.example.com"
    assert (held(zone, name, "A"), held(zone, name, "AAAA")) == (["192.0.2.1"], ["2001:db8::1"])
    assert zone.content[key_of(dns.name.from_text(name))][dns.rdatatype.A].ttl == 11
    assert held(zone, "www.example.com", "A") == ["192.0.2.7"] and not held(zone, "api.example.com", "A")
    assert key_of(dns.name.from_text("nowhere.example.com")) not in zone.content
    assert not zone.same(Zone("example.com", {"api": PROFILE}, records="www A 192.0.2.7\n"))
    assert violations(hosts={"a.example.net.": ("192.0.2.1",), "*": ("x",)}, hosts_ttl=-1) == [
        ("dns.hosts_ttl", -1), ("dns.hosts.a.example.net.", "a.example.net."), ("dns.hosts.*", "*"), ("dns.hosts.*", "x"),
    ]  # fmt: skip


def test_glue_joins_what_the_file_has() -> None:
    zone = Zone("example.com", records="ns A 192.0.2.1\n", glue={"ns": ("192.0.2.1", "192.0.2.2")})
    assert held(zone, "ns.example.com", "A") == ["192.0.2.1", "192.0.2.2"]


def test_the_zone_of_a_profile_alone() -> None:
    zone = Zone.of(PROFILE)
    assert [*zone.steered] == [key_of(dns.name.from_text("api.example.com"))]
    assert held(zone, "example.com", "NS") == ["ns.example.com."]


@pytest.mark.parametrize("name", ["api", "api.example.com", "api.example.com.", "API.Example.COM"])
def test_names_may_be_relative_or_in_full(name: str) -> None:
    assert [*Zone("example.com", {name: PROFILE}).steered] == [b"\3api\7example\3com\0"]


def test_a_mailbox_with_a_dot_keeps_it() -> None:
    soa = Zone("example.com", rname="first.last@example.net").soa
    assert soa.rname.labels[0] == b"first.last"  # type: ignore[attr-defined]


WRONG: list[tuple[dict[str, Any], set[str]]] = [
    ({"origin": ""}, {"dns.zone"}),
    ({"origin": "."}, {"dns.zone"}),
    ({"origin": "a..b"}, {"dns.zone"}),
    ({"origin": "*.example.com"}, {"dns.zone"}),
    ({"zone_ttl": -1, "expire": 2**31, "retry": True, "refresh": 1.5}, {"dns.zone_ttl", "dns.expire", "dns.retry", "dns.refresh"}),
    ({"serial": 2**32, "negative_ttl": -1}, {"dns.serial", "dns.negative_ttl"}),
    ({"nameservers": ("a..b",)}, {"dns.nameservers"}),
    ({"mname": "a..b"}, {"dns.mname"}),
    ({"rname": ""}, {"dns.rname"}),
    ({"rname": "é@example.com"}, {"dns.rname"}),
    ({"glue": {"ns": ("192.0.2.300",), "other": ("192.0.2.3",)}}, {"dns.glue.ns", "dns.glue.other"}),
    ({"glue": {"ns": ("fe80::1%eth0",)}}, {"dns.glue.ns"}),
    ({"profiles": {"api.example.net.": PROFILE, "": PROFILE, "a" * 64: PROFILE}}, {"dns.name"}),
    ({"profiles": {"api": PROFILE, "API": PROFILE}}, {"dns.name"}),
    ({"profiles": {"api": PROFILE}, "aliases": {"x": "api", "x.example.com": "api"}}, {"dns.aliases"}),
    ({"aliases": {"x.example.net.": "api"}}, {"dns.aliases"}),
    ({"aliases": {"@": ""}}, {"dns.aliases"}),
    ({"aliases": {"@": "api"}}, {"dns.aliases"}),  # nothing steers it
    ({"aliases": {"api": "api"}, "profiles": {"api": PROFILE}}, {"dns.aliases"}),
    ({"alpn": ("", "h2")}, {"dns.alpn"}),
    ({"records": "@ NS ns.example.net.", "nameservers": "ns"}, {"dns.nameservers"}),
    ({"records": "api A 192.0.2.1\n", "profiles": {"api": PROFILE}}, {"records:1"}),
    ({"records": "api CNAME x\n", "aliases": {"api": "b"}, "profiles": {"b": PROFILE}}, {"records:1"}),
    ({"records": "sub NS ns.example.net.\n", "profiles": {"sub": PROFILE, "x.sub": PROFILE}}, {"dns.name"}),
    ({"records": "www 2147483648 A 192.0.2.1\n"}, {"records:1"}),
    ({"records": "ns CNAME x\n", "glue": {"ns": "192.0.2.1"}}, {"records:1"}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "where"), WRONG, ids=[str(options)[:60] for options, _ in WRONG])
def test_a_wrong_zone_names_every_violation(options: dict[str, Any], where: set[str]) -> None:
    assert {place for place, _ in violations(**options)} == where


# ===== zone files

GOOD = """
$TTL 300
@        IN MX 10 mail
         TXT ( "one"
         "two" )
mail     600 A 192.0.2.25 ; a comment
         A 192.0.2.26
mail     A 192.0.2.26
$ORIGIN eu.example.com.
www      CNAME www.example.com.
*.w      AAAA 2001:db8::1
odd\\.dot TYPE65280 \\# 3 010203
sub      NS ns.sub
ns.sub   A 192.0.2.54
"""


def test_a_zone_file_is_read_as_dnspython_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "example.zone"
    file.write_text(GOOD)
    oracle = dns.zone.from_text(GOOD, "example.com.", relativize=False, check_origin=False)
    for zone in (Zone("example.com", records=GOOD), Zone("example.com", records=file)):
        for name, node in oracle.nodes.items():
            types = zone.content[key_of(name)]
            assert {int(rdataset.rdtype) for rdataset in node} == types.keys() - ({6, 2} if name == zone.apex else set())
            for rdataset in node:
                assert types[rdataset.rdtype].rdatas == (*rdataset,)
                assert types[rdataset.rdtype].ttl == rdataset.ttl
        assert {*zone.content} == {key_of(name) for name in oracle.nodes} | {b"\2ns" + zone.key}


BAD = """www A 192.0.2.1
www CNAME mail
one CNAME mail
one CNAME www
out.example.net. A 192.0.2.1
bad A 192.0.2.300
 A ( 192.0.2.1
   192.0.2.2 )
sub NS ns.sub
sub TXT x
hole.sub TXT "hidden"
ns.sub2 A 192.0.2.1
sub2 NS ns.sub2
*.wild NS ns.example.net.
ds DS 1 13 2 0000000000000000000000000000000000000000000000000000000000000000
name DNAME example.net.
$INCLUDE /etc/passwd
$GENERATE 1-4000000000 a$ A 192.0.2.1
below SOA a. b. 1 2 3 4 5
@ DNSKEY 257 3 13 AAAA
x NSEC y A
ch CH TXT x
 IN BLAH x
"""


def test_everything_wrong_with_a_zone_file_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.zone"
    file.write_text(BAD)
    lines = sorted(int(where.removeprefix(f"{file}:")) for where, _ in violations(file))
    assert lines == [2, 4, 5, 6, 7, 9, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]


def test_a_file_in_another_encoding_or_that_does_not_exist(tmp_path: Path) -> None:
    file = tmp_path / "latin.zone"
    file.write_bytes("a TXT x\nb TXT é\n".encode("latin-1"))
    assert violations(file) == [(f"{file}:2", b"\xe9")]
    with pytest.raises(FileNotFoundError):
        Zone("example.com", records=tmp_path / "none.zone")


def test_a_mark_of_the_byte_order_is_no_part_of_a_name() -> None:
    assert b"\3www" + Zone("example.com").key in Zone("example.com", records="\ufeffwww A 192.0.2.1").content


def test_records_too_long_for_any_message() -> None:
    text = "\n".join(f'big TXT "{n:0250}"' for n in range(250))
    assert violations(text) == [("records:250", "big.example.com. TXT")]


PIECES = st.sampled_from([
    "a", "@", "*", "sub", "ns.sub", "example.net.", "$TTL", "$ORIGIN", "$INCLUDE", "$GENERATE", "$", "1-9", "IN", "CH", "A", "AAAA", "NS",
    "CNAME", "TXT", "MX", "DS", "SOA", "SRV", "CAA", "HTTPS", "TYPE65280", "OPT", "RRSIG", "NSEC", "192.0.2.1", "2001:db8::1", "300", "-1",
    "4294967296", "(", ")", '"', "\\", "\\#", "\\300", "\\\n", ";", "\n", "\n", " ", "\t", "é", "\x00", "\ud800", "x" * 64, "1", "alpn=h2",
])  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=40).map(" ".join), st.integers(0, len(GOOD)), st.integers(0, 20))
@example('a TXT "', 0, 0)
@example("( ( (", 30, 3)
def test_mutations_of_a_zone_file_are_read_whole_or_refused_whole(piece: str, at: int, cut: int) -> None:
    text = GOOD[:at] + piece + GOOD[at + cut :]
    try:
        zone = Zone("example.com", {"api": PROFILE}, records=text)
    except ConfigError as error:
        assert error.violations
        return
    oracle = dns.zone.from_text(f"$TTL 3600\n{text}", "example.com.", relativize=False, check_origin=False)
    read = {(key_of(name), int(rdataset.rdtype)): {*rdataset} for name, node in oracle.nodes.items() for rdataset in node}
    made = {(zone.key, 6), (zone.key, 2)}
    kept = {(key, rdtype): {*records.rdatas} for key, types in zone.content.items() for rdtype, records in types.items()}
    assert {where: kept[where] for where in kept.keys() - (made - read.keys())} == read


# ===== names


def test_names_sort_canonically() -> None:
    """RFC 4034 §6.1 has this very list."""
    names = [
        "example", "a.example", "yljkjljk.a.example", "Z.a.example", "zABC.a.EXAMPLE", "z.example", "\\001.z.example", "*.z.example",
        "\\200.z.example",
    ]  # fmt: skip
    keys = [key_of(dns.name.from_text(name)) for name in names]
    assert sorted({*keys}, key=order) == keys


def test_a_name_lies_within_another_by_whole_labels() -> None:
    key = key_of(dns.name.from_text("a.b.example.com"))
    assert [within(key, origin) for origin in (key, parent(key), b"\7example\3com\0", b"\0")] == [True] * 4
    assert not within(b"\1a" + b"\x08" + b"xexample\3com\0", b"\7example\3com\0")
    assert not within(b"\x0c\7example\3com\0", b"\7example\3com\0")  # one label whose bytes look like two
    assert [*ancestors(key, b"\3com\0")] == [key, parent(key), b"\7example\3com\0", b"\3com\0"]
    assert (labels(key)[0], from_key(key).to_text()) == (b"a", "a.b.example.com.")


# ===== places


PLACES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"addresses": ("192.0.2.1", "2001:db8::1")}, {"families": (True, True), "alias": None, "host": None}),
    ({"gateway": "https://h.example"}, {"families": (True, True), "alias": "h.example.", "host": "h.example.", "port": None}),
    ({"gateway": "https://h.example:81", "addresses": ("192.0.2.1",)}, {"families": (True, False), "alias": None, "host": "h.example."}),
    ({"gateway": "https://h.example:81", "addresses": ("2001:db8::1",)}, {"families": (False, True), "https": True, "port": 81}),
    ({"gateway": "http://h.example:80"}, {"https": False, "port": None}),
    ({"gateway": "https://[2001:db8::1]:443"}, {"families": (False, True), "alias": None, "host": None, "port": None}),
    ({"gateway": "https://192.0.2.9:444"}, {"families": (True, False), "port": 444}),
]  # fmt: skip


@pytest.mark.parametrize(("given_", "expected"), PLACES, ids=[str(given_) for given_, _ in PLACES])
def test_what_a_region_is_answered_with(given_: dict[str, Any], expected: dict[str, Any]) -> None:
    place = place_of(Region("x", 0, 0, **given_))
    found = {"families": place.families(), "alias": place.alias and str(place.alias), "host": place.host and str(place.host),
             "https": place.https, "port": place.port}  # fmt: skip
    assert found | expected == found
    if place.alias is not None:
        assert place.families(direct=True) == (False, False)


NOWHERE = ["", "not a url", "http://[::1", "https://" + "a" * 64 + ".example", "https://.", "https://[fe80::1%25eth0]/"]


@pytest.mark.parametrize("gateway", NOWHERE)
def test_what_names_nothing_is_mute(gateway: str) -> None:
    assert not place_of(Region("x", 0, 0, gateway=gateway))
    assert place_of(None) is MUTE
