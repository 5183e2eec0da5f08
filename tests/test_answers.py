"""What is prepared: every Body, put behind a header and a question, as dnspython reads it: by name, type, region and family."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import dns.dnssec
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import dns.rrset
import pytest
from dns.name import Name
from dns.node import Node
from dns.rdataset import Rdataset
from dns.rdatatype import AAAA, HTTPS, NS, NSEC, RRSIG, SOA, A
from hypothesis import given
from hypothesis import strategies as st
from resolving import REGIONS

from lbcore import ConfigError, Region
from lbcore.dns import Profile
from lbcore.dns.answers import Answers, Body, Entry, Forms, Found
from lbcore.dns.dnssec import Signer
from lbcore.dns.keys import Key, Timing
from lbcore.dns.prepare import build
from lbcore.dns.zone import Zone

TYPES = ("A", "AAAA", "CNAME", "SOA", "NS", "TXT", "MX", "SRV", "CAA", "HTTPS", "SVCB", "DS", "DNSKEY", "TYPE65280", "TYPE0")
SECURE = Region("secure", 0, 6, gateway="https://sec.gateway.example", addresses=("192.0.2.7", "192.0.2.8", "2001:db8::7"))
ODD = Region("odd", 0, 7, gateway="https://odd.gateway.example:8443", addresses=("192.0.2.9",))
PLAIN = Region("plain", 0, 8, gateway="http://plain.gateway.example", addresses=("192.0.2.10",))
WORLD = (*REGIONS, SECURE, ODD, None, PLAIN)
SLOT = {region.name: slot for slot, region in enumerate(WORLD) if region}
ADDRESSES = {region.name: [*region.addresses] for region in WORLD if region} | {"literal": ["127.0.0.9"]}
PROFILE = Profile("api", "example.com", ttl=20)
STATIC = """
@        MX 10 mail
mail     A 192.0.2.25
www      CNAME api
a.b.c    TXT "deep"
sub      NS ns.sub
sub      NS ns2.example.net.
ns.sub   A 192.0.2.54
"""


def zone(**changes: Any) -> Zone:
    settings: dict[str, Any] = {
        "profiles": {"api": PROFILE, "*.w": PROFILE}, "records": STATIC, "aliases": {"@": "api"},
        "nameservers": ("ns1", "ns2.example.net"), "glue": {"ns1": ("192.0.2.53", "2001:db8::53")},
    }  # fmt: skip
    return Zone("example.com", **settings | changes)


ANSWERS = build([zone()], WORLD)

# ===== reading


def wire_name(text: str) -> bytes:
    return dns.name.from_text(text).to_wire() or b""


def found(answers: Answers, name: str) -> Found:
    it = answers.find(wire_name(name).lower())
    assert it is not None
    return it


def entry_of(it: Found, rdtype: int) -> Entry:
    assert it.node is not None
    entry = it.node.types.get(rdtype, it.node.other)
    assert entry is not None
    return entry


def assembled(name: str, rdtype: int, body: Body, origin: bytes, ttl: int | None = None) -> dns.message.Message:
    """Put a response together as the layout says, and let dnspython read it."""
    asked, data = wire_name(name), bytearray(body.data)
    for at in body.origins:
        struct.pack_into("!H", data, at, 0xC000 + 12 + len(asked) - len(origin))
    for at in body.ttls if ttl is not None else ():
        struct.pack_into("!I", data, at, ttl or 0)
    flags = 0x8000 | body.authoritative << 10 | body.rcode
    header = struct.pack("!HHHHHH", 7, flags, 1, body.answers, body.authorities, body.additionals)
    return dns.message.from_wire(header + asked + struct.pack("!HH", rdtype, 1) + data, one_rr_per_rrset=False)


def forms_of(answers: Answers, name: str, rdtype: int, slots: tuple[int, ...] = ()) -> Forms:
    """Give what is prepared, as the loop finds it."""
    it = found(answers, name)
    if it.encloser.referral:
        assert it.encloser.other is not None and it.encloser.other.fixed is not None
        entry = it.encloser.types[rdtype] if it.node is not None and rdtype in it.encloser.types else it.encloser.other
        assert entry.fixed is not None
        return entry.fixed
    if it.node is None:
        return answers.nxdomain[it.zone.key]
    entry = entry_of(it, rdtype)
    if entry.fixed is not None:
        return entry.fixed
    if len(slots) == 1:
        return entry.regions[slots[0]]
    assert it.node.steered is not None
    return entry.pairs.get((slots[0], slots[1])) or it.node.steered.several(rdtype, slots)


def ask(answers: Answers, name: str, rdtype: str, region: str = "", second: str = "", **how: Any) -> dns.message.Message:
    kind = dns.rdatatype.from_text(rdtype)
    slots = tuple(SLOT[one] for one in (region, second) if one)
    return assembled(name, kind, forms_of(answers, name, kind, slots).plain[0], found(answers, name).zone.key, **how)


def texts(section: list[dns.rrset.RRset], rdtype: str) -> list[str]:
    return [rdata.to_text() for rrset in section if rrset.rdtype == dns.rdatatype.from_text(rdtype) for rdata in rrset]


def outcome(response: dns.message.Message) -> str:
    """Give what kind of response it is, after checking what all of that kind have in common."""
    asked = response.question[0]
    assert all(rrset.name == asked.name for rrset in response.answer)
    if response.answer:
        assert not response.authority
        return "answer"
    if response.flags & dns.flags.AA:
        (soa,) = response.authority
        assert (soa.rdtype, soa.name.to_text().lower()) == (SOA, "example.com.")
        assert soa.ttl <= min(30, soa[0].minimum)
        return "nxdomain" if response.rcode() else "nodata"
    return "referral"


# ===== steered names


@pytest.mark.parametrize("name", ["api.example.com", "x.w.example.com", "example.com"])
@pytest.mark.parametrize("region", [name for name in ADDRESSES if name not in ("alias", "mute")])
@pytest.mark.parametrize("rdtype", TYPES)
def test_a_region_with_addresses(name: str, region: str, rdtype: str) -> None:
    if name == "example.com" and rdtype in ("SOA", "NS", "MX"):
        return
    response = ask(ANSWERS, name, rdtype, region)
    if rdtype in ("HTTPS", "SVCB"):
        assert outcome(response) == ("answer" if region in ("secure", "odd") else "nodata")
        return
    expected = {address for address in ADDRESSES[region] if rdtype == ("AAAA" if ":" in address else "A")}
    assert {*texts(response.answer, rdtype)} == expected
    assert outcome(response) == ("answer" if expected else "nodata")
    assert all(rrset.ttl == 20 for rrset in (*response.answer, *(response.authority if name != "example.com" else ())) if rrset.ttl != 30)


@pytest.mark.parametrize("rdtype", TYPES)
def test_a_region_with_a_host_name_is_an_alias_for_every_type_but_not_beside_other_records(rdtype: str) -> None:
    for name in ("api.example.com", "x.w.example.com"):
        response = ask(ANSWERS, name, rdtype, "alias")
        assert (outcome(response), texts(response.answer, "CNAME")) == ("answer", ["weu.gateway.example."])
        assert len(response.answer) == 1
    if rdtype not in ("SOA", "NS", "MX", "HTTPS", "SVCB"):  # an HTTPS record may name a host anywhere
        assert outcome(ask(ANSWERS, "example.com", rdtype, "alias")) == "nodata"


@pytest.mark.parametrize("rdtype", ["A", "TXT", "HTTPS"])
def test_mute_regions_and_free_slots_have_denials(rdtype: str) -> None:
    for name in ("api.example.com", "x.w.example.com"):
        assert outcome(ask(ANSWERS, name, rdtype, "mute")) == "nodata"
        entry = entry_of(found(ANSWERS, name), dns.rdatatype.from_text(rdtype))
        assert {*entry.regions} == {*range(len(WORLD))}
        assert entry.nodata == entry.regions[WORLD.index(None)]


def test_each_address_comes_first_in_turn_in_at_most_16_rotations() -> None:
    for count in (1, 2, 3, 16, 17, 40):
        addresses = tuple(f"192.0.2.{n}" for n in range(count))
        forms = forms_of(build([Zone.of(PROFILE)], [Region("many", 0, 0, addresses=addresses)]), "api.example.com", A, (0,))
        orders = [texts(assembled("api.example.com", A, body, b"").answer, "A") for body in forms.plain]
        assert [order[0] for order in orders] == [*addresses[:16]]
        assert all({*order} == {*addresses} for order in orders)


def test_the_route_decides_the_ttl_of_answers_and_their_denials_and_of_nothing_else() -> None:
    for rdtype in ("A", "AAAA", "HTTPS", "TXT"):
        for region in SLOT:
            before, after = (ask(ANSWERS, "api.example.com", rdtype, region, ttl=ttl) for ttl in (None, 3))
            for old, new in zip((*before.answer, *before.authority), (*after.answer, *after.authority), strict=True):
                assert (old.name, new.ttl) == (new.name, 3)
                assert [*old] == [*new]
    assert not entry_of(found(ANSWERS, "example.com"), SOA).fixed.plain[0].ttls  # type: ignore[union-attr]


def test_a_denial_lives_no_longer_than_an_answer_nor_than_the_zone_says() -> None:
    for ttl, negative, zone_ttl, expected in ((0, 30, 3600, 0), (60, 30, 3600, 30), (60, 90, 3600, 60), (60, 90, 40, 40)):
        made = Zone("example.com", {"api": Profile("api", "example.com", ttl=ttl)}, negative_ttl=negative, zone_ttl=zone_ttl)
        answers = build([made], [Region("four", 0, 0, addresses=("192.0.2.4",))])
        body = forms_of(answers, "api.example.com", AAAA, (0,)).plain[0]
        assert assembled("api.example.com", AAAA, body, made.key).authority[0].ttl == expected
        assert (len(body.ttls), body.most) == (1, expected)  # a shorter one of the route's counts, a longer one does not
        assert ask(answers, "nope.example.com", "A").authority[0].ttl == min(negative, zone_ttl)


def test_a_disabled_profile_hides_its_name_unless_something_else_is_there() -> None:
    def denied(answers: Answers, name: str) -> int:
        entry = entry_of(found(answers, name), A)
        assert entry.nxdomain is not None
        return entry.nxdomain.plain[0].rcode

    assert (denied(ANSWERS, "api.example.com"), denied(ANSWERS, "x.w.example.com"), denied(ANSWERS, "example.com")) == (3, 3, 0)
    for records in ("x.api TXT x", "api TXT x"):
        assert denied(build([zone(records=records)], WORLD), "api.example.com") == 0


def test_records_beside_a_steered_name() -> None:
    answers = build([zone(records='api TXT "beside"\napi HTTPS 1 own.example.')], WORLD)
    assert texts(ask(answers, "api.example.com", "TXT").answer, "TXT") == ['"beside"']
    assert texts(ask(answers, "api.example.com", "HTTPS").answer, "HTTPS") == ["1 own.example."]
    assert texts(ask(answers, "api.example.com", "A", "four").answer, "A") == ["192.0.2.4"]
    assert outcome(ask(answers, "api.example.com", "A", "alias")) == "nodata"
    assert [root.direct for root in answers.roots] == [True, False]  # the first is what api starts from


def test_a_gateway_at_the_steered_name_itself_is_no_alias() -> None:
    answers = build([zone(profiles={"api": PROFILE, "b": PROFILE})], [Region("own", 0, 0, gateway="https://API.example.com/")])
    assert outcome(assembled("api.example.com", A, forms_of(answers, "api.example.com", A, (0,)).plain[0], b"\7example\3com\0")) == "nodata"
    assert forms_of(answers, "b.example.com", A, (0,)).plain[0].answers == 1


def test_roots_are_one_for_each_profile_family_and_kind_of_name() -> None:
    any_family = Profile("b", "example.com", family="any")
    answers = build([zone(profiles={"api": PROFILE, "c": PROFILE, "b": any_family})], WORLD)
    assert [(root.profile.family, root.family, root.direct) for root in answers.roots] == [
        ("client", 0, False), ("any", 1, False), ("any", 28, False), ("any", 0, False), ("client", 0, True),
    ]  # fmt: skip
    for rdtype, family in ((A, 1), (AAAA, 28), (HTTPS, 0), (15, 0)):
        assert answers.roots[entry_of(found(answers, "b.example.com"), rdtype).root].family == family


# ===== HTTPS and SVCB


@pytest.mark.parametrize("rdtype", ["HTTPS", "SVCB"])
def test_the_picked_region_comes_first_the_next_one_second(rdtype: str) -> None:
    def services(*regions: str) -> list[str]:
        return texts(ask(ANSWERS, "api.example.com", rdtype, *regions).answer, rdtype)

    secure = '1 . alpn="h2" ipv4hint="192.0.2.7,192.0.2.8" ipv6hint="2001:db8::7"'
    assert services("secure") == [secure]
    assert services("secure", "odd") == [secure, '2 odd.gateway.example. alpn="h2" port="8443" ipv4hint="192.0.2.9"']
    assert services("odd", "secure") == [
        '1 . alpn="h2" port="8443" ipv4hint="192.0.2.9"',
        '2 sec.gateway.example. alpn="h2" ipv4hint="192.0.2.7,192.0.2.8" ipv6hint="2001:db8::7"',
    ]
    assert services("secure", "alias") == [secure, '2 weu.gateway.example. alpn="h2" port="8443"']
    for second in ("plain", "dual"):  # HTTPS does not lead there, or nobody said so
        assert services("secure", second) == [secure]
        assert outcome(ask(ANSWERS, "api.example.com", rdtype, second, "secure")) == "nodata"
    assert texts(ask(ANSWERS, "api.example.com", rdtype, "alias", "secure").answer, "CNAME") == ["weu.gateway.example."]


def test_every_pair_of_regions_that_dns_can_name_is_prepared_up_to_twelve() -> None:
    entry = entry_of(found(ANSWERS, "api.example.com"), HTTPS)
    named = {slot for name, slot in SLOT.items() if name != "mute"}
    assert {*entry.pairs} == {(a, b) for a in named for b in named if a != b}
    many = [dataclasses.replace(SECURE, name=f"r{n}") for n in range(13)]
    assert len(entry_of(found(build([zone()], many[:12]), "api.example.com"), HTTPS).pairs) == 132
    it = found(build([zone()], many), "api.example.com")
    assert not entry_of(it, HTTPS).pairs
    assert it.node is not None and it.node.steered is not None
    body = it.node.steered.several(HTTPS, (12, 3)).plain[0]
    assert len(texts(assembled("api.example.com", HTTPS, body, b"").answer, "HTTPS")) == 2


def test_protocols_are_the_zones_and_none_means_no_such_records() -> None:
    answers = build([zone(alpn=("h3", "h2"))], WORLD)
    assert texts(ask(answers, "api.example.com", "HTTPS", "odd").answer, "HTTPS") == ['1 . alpn="h3,h2" port="8443" ipv4hint="192.0.2.9"']
    for rdtype in ("HTTPS", "SVCB"):
        assert outcome(ask(build([zone(alpn=())], WORLD), "api.example.com", rdtype, "odd")) == "nodata"


def test_several_regions_together() -> None:
    node = found(ANSWERS, "api.example.com").node
    assert node is not None and node.steered is not None

    def several(rdtype: str, *regions: str) -> list[str]:
        kind = dns.rdatatype.from_text(rdtype)
        (body,) = node.steered.several(kind, [SLOT[region] for region in regions]).plain  # type: ignore[union-attr]
        response = assembled("api.example.com", kind, body, b"\7example\3com\0")
        return [rdata.to_text() for rrset in response.answer for rdata in rrset]

    assert several("A", "dual", "four") == ["192.0.2.1", "192.0.2.4", "192.0.2.2", "192.0.2.3"]
    assert several("AAAA", "four", "six", "dual") == ["2001:db8::6", "2001:db8::1", "2001:db8::2"]
    assert several("A", "four", "alias", "four") == ["192.0.2.4"]
    assert several("A", "alias", "four") == ["weu.gateway.example."]
    assert several("TXT", "four", "dual") == []


# ===== static names, wildcards, delegations


RFC4592 = """
@                 3600 SOA ns.example.com. admin.example.com. 1 2 3 4 5
@                 3600 NS ns.example.com.
@                 3600 NS ns.example.net.
*                 3600 TXT "this is a wildcard"
*                 3600 MX 10 host1.example.
sub.*             3600 TXT "this is not a wildcard"
host1             3600 A 192.0.2.1
_ssh._tcp.host1   3600 SRV 0 0 22 host1
_ssh._tcp.host2   3600 SRV 0 0 22 host1
subdel            3600 NS ns.example.com.
subdel            3600 NS ns.example.net.
ns                3600 A 192.0.2.2
"""
RFC4592_ANSWERS = [
    # RFC 4592 §2.2.1: synthesized from the wildcard
    ("host3", "MX", "10 host1.example."), ("host3", "A", "nodata"), ("foo.bar", "TXT", '"this is a wildcard"'),
    # not synthesized: the name exists, its parent does, or it is delegated
    ("host1", "MX", "nodata"), ("sub.*", "MX", "nodata"), ("sub.*", "TXT", '"this is not a wildcard"'),
    ("_telnet._tcp.host1", "SRV", "nxdomain"), ("host.subdel", "A", "referral"), ("ghost.*", "MX", "nxdomain"),
    # empty non-terminals, and the wildcard by its own name
    ("_tcp.host1", "TXT", "nodata"), ("host2", "TXT", "nodata"), ("_tcp.host2", "TXT", "nodata"), ("*", "TXT", '"this is a wildcard"'),
    ("*", "A", "nodata"), ("a.host1", "TXT", "nxdomain"), ("x.sub.*", "TXT", "nxdomain"), ("subdel", "NS", "referral"),
    ("subdel", "A", "referral"), ("subdel", "DS", "nodata"), ("host1", "A", "192.0.2.1"),
]  # fmt: skip
WILD = build([Zone("example.com", records=RFC4592)], [])


@pytest.mark.parametrize(("name", "rdtype", "expected"), RFC4592_ANSWERS)
def test_the_examples_of_rfc_4592(name: str, rdtype: str, expected: str) -> None:
    response = ask(WILD, f"{name}.example.com", rdtype)
    kind = outcome(response)
    assert (texts(response.answer, rdtype) if kind == "answer" else kind) == ([expected] if kind == "answer" else expected)


def test_a_steered_wildcard_stands_for_names_that_do_not_exist() -> None:
    answers = build([zone(profiles={"*": PROFILE, "api": PROFILE, "*.*.deep": PROFILE})], WORLD)
    for name in ("x.example.com", "x.y.example.com", "*.example.com", "q.*.deep.example.com"):
        assert texts(ask(answers, name, "A", "four").answer, "A") == ["192.0.2.4"]
    for name in ("x.mail.example.com", "x.api.example.com", "x.a.b.c.example.com"):
        assert outcome(ask(answers, name, "A")) == "nxdomain"
    for name in ("b.c.example.com", "deep.example.com", "*.deep.example.com", "q.deep.example.com"):  # RFC 4592 §4.9: `*.deep` is empty
        assert outcome(ask(answers, name, "A")) == "nodata"


def test_a_cname_to_a_steered_name_is_answered_alone() -> None:
    for rdtype in TYPES:
        response = ask(ANSWERS, "www.example.com", rdtype)
        assert (outcome(response), texts(response.answer, "CNAME"), len(response.answer)) == ("answer", ["api.example.com."], 1)


def test_a_delegation_refers_with_glue() -> None:
    for name, rdtype in (("sub.example.com", "A"), ("sub.example.com", "NS"), ("x.y.sub.example.com", "A"), ("ns.sub.example.com", "A")):
        response = ask(ANSWERS, name, rdtype)
        assert (outcome(response), response.rcode()) == ("referral", 0)
        assert {*texts(response.authority, "NS")} == {"ns.sub.example.com.", "ns2.example.net."}
        assert [rrset.name.to_text() for rrset in response.authority] == ["sub.example.com."]
        assert [(rrset.name.to_text(), texts([rrset], "A")) for rrset in response.additional] == [("ns.sub.example.com.", ["192.0.2.54"])]
    assert outcome(ask(ANSWERS, "sub.example.com", "DS")) == "nodata"
    signed = build([zone(records=STATIC + "sub DS 1 13 2 " + "ab" * 32)], WORLD)
    assert len(texts(ask(signed, "sub.example.com", "DS").answer, "DS")) == 1


def test_name_servers_come_with_glue() -> None:
    response = ask(ANSWERS, "example.com", "NS")
    assert {*texts(response.answer, "NS")} == {"ns1.example.com.", "ns2.example.net."}
    assert {*texts(response.additional, "A"), *texts(response.additional, "AAAA")} == {"192.0.2.53", "2001:db8::53"}


@pytest.mark.parametrize("name", ["com.", ".", "example.net", "xexample.com", "m.", "example.com.example.net"])
def test_foreign_names_lead_nowhere(name: str) -> None:
    assert ANSWERS.find(wire_name(name)) is None


# ===== many zones


def test_the_most_specific_zone_wins() -> None:
    inner = Zone("in.sub.example.com", {"@": PROFILE}, records="x A 192.0.2.99")
    other = Zone("example.net", {"api": PROFILE}, aliases={"@": "api.example.com."})
    for order in ([zone(), inner, other], [other, inner, zone()]):
        answers = build(order, WORLD)
        assert texts(ask(answers, "x.in.sub.example.com", "A").answer, "A") == ["192.0.2.99"]
        assert found(answers, "in.sub.example.com").zone is inner
        assert found(answers, "q.in.sub.example.com").zone is inner
        assert outcome(ask(answers, "y.sub.example.com", "A")) == "referral"
        assert texts(ask(answers, "example.net", "A", "four").answer, "A") == ["192.0.2.4"]


def test_ds_of_a_zone_is_answered_by_the_zone_above() -> None:
    inner = Zone("sub.example.com", {"@": PROFILE})
    response = ask(build([inner, zone()], WORLD), "sub.example.com", "DS")
    assert outcome(response) == "nodata"  # with the SOA of example.com, as `outcome` asserts
    digest = "1 13 2 " + "ab" * 32
    response = ask(build([zone(records=f"{STATIC}\nsub DS {digest}"), inner], WORLD), "sub.example.com", "DS")
    assert texts(response.answer, "DS") == [digest]
    undelegated = Zone("b.c.example.com")  # the zone above has data there, which is no longer seen
    answers = build([zone(), undelegated], WORLD)
    assert found(answers, "a.b.c.example.com").zone is undelegated and found(answers, "a.b.c.example.com").node is None
    assert outcome(ask(answers, "c.example.com", "A")) == "nodata"
    assert outcome(ask(answers, "b.c.example.com", "DS")) == "nodata"


def test_a_zone_in_a_signed_one_needs_a_delegation_or_validators_take_it_for_forged(signer: Signer) -> None:
    inner, without = Zone("x.in.example.com"), zone(records="y.in A 192.0.2.1", keys=signer)
    with pytest.raises(ConfigError, match=r"NS records of it in example\.com"):
        build([without, inner], WORLD)
    build([without, Zone("example.com.net")], WORLD)
    build([zone(records="x.in NS ns1", keys=signer), inner], WORLD)
    build([zone(records="in NS ns1", keys=signer), Zone("in.example.com"), inner], WORLD)  # the zone right above it counts


def test_addresses_that_no_message_can_hold_are_refused() -> None:
    many = Region("many", 0, 0, addresses=tuple(f"2001:db8::{number:x}" for number in range(2001)))
    with pytest.raises(ConfigError, match=r"regions\.many\.addresses = 2001: expected at most 2000"):
        build([zone()], [many])
    most = dataclasses.replace(many, addresses=many.addresses[:2000])
    assert all(len(body.data) < 60_000 for body in forms_of(build([zone()], [most]), "api.example.com", AAAA, (0,)).plain)


def test_zones_that_do_not_fit_together_are_refused_with_every_violation() -> None:
    with pytest.raises(ConfigError) as caught:
        build([zone(), Zone("EXAMPLE.com"), Zone("example.net", aliases={"@": "api.example.org.", "x": "mail.example.com."})], WORLD)
    assert [violation.value for violation in caught.value.violations] == ["EXAMPLE.com", "api.example.org.", "mail.example.com."]


# ===== pointers


LABELS = st.lists(st.text("abcXYZ-09", min_size=1, max_size=63), max_size=3)


@given(LABELS, st.sampled_from(["EXAMPLE.com", "x.W.exAmple.COM", "a.example.COM"]))
def test_the_pointer_to_the_zone_is_right_for_any_case_and_length(labels: list[str], base: str) -> None:
    name = ".".join([*labels, base])
    if len(wire_name(name)) > 255:
        return
    for rdtype in ("TXT", "AAAA"):
        it = found(ANSWERS, name)
        region = "four" if it.node is not None and entry_of(it, dns.rdatatype.from_text(rdtype)).fixed is None else ""
        response = ask(ANSWERS, name, rdtype, region)
        assert outcome(response) != "referral"
        for rrset in response.authority:
            assert rrset.name.to_text() == base[-11:] + "."


# ===== rebuilding


def test_a_change_of_regions_makes_only_steered_names_anew() -> None:
    made = zone()
    before = build([made], WORLD)
    after = build([made], [Region("four", 0, 0, addresses=("192.0.2.44",))], before=before)
    assert after.parts[made] is before.parts[made]
    same = {key for key, node in after.nodes.items() if node is before.nodes[key]}
    anew = ("api.example.com", "*.w.example.com", "w.example.com", "example.com")  # steered, and the parent of a steered wildcard
    assert {*after.nodes} - same == {wire_name(name) for name in anew}
    body = forms_of(after, "api.example.com", A, (0,)).plain[0]
    assert texts(assembled("api.example.com", A, body, made.key).answer, "A") == ["192.0.2.44"]
    assert build([zone()], WORLD, before=before).parts.keys() != before.parts.keys()


# ===== signed

NOW = 1_790_000_000.0
ORIGIN = dns.name.from_text("example.com")


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer(ORIGIN, [Key.generate(ORIGIN, timing=Timing(activate=NOW - 9))], clock=lambda: NOW)


@pytest.fixture(scope="module")
def signed(signer: Signer) -> Answers:
    more = f"*.v TXT wild\n*.v AAAA 2001:db8::5\nsafe NS ns2.example.net.\nsafe DS 1 13 2 {'ab' * 32}"
    return build([zone(keys=signer, records=f"{STATIC}\n{more}")], WORLD)


def ask_signed(answers: Answers, name: str, rdtype: str, regions: tuple[str, ...] = (), turn: int = 0) -> dns.message.Message:
    """Ask as a resolver does that wants signatures, by the prepared form or, where there is none, by what the Responder calls."""
    kind = dns.rdatatype.from_text(rdtype)
    it = found(answers, name)
    part = answers.parts[it.zone]
    forms = forms_of(answers, name, kind, tuple(SLOT[region] for region in regions))
    if forms.signed is None and it.node is None:
        forms = part.denial(wire_name(name).lower(), it.encloser.name)
    if forms.signed is not None:
        body = forms.signed[turn % len(forms.signed)]
    else:
        assert it.node is not None and forms.unproven is not None
        body = forms.unproven[turn % len(forms.unproven)]
        if it.wildcard:
            body = part.proven(wire_name(name).lower(), it.node.name, body)
    return assembled(name, kind, body, it.zone.key)


def check_signatures(response: dns.message.Message, signer: Signer) -> None:
    """Validate every RRset that a zone signs: all but NS and glue of a referral."""
    keys: dict[Name, Node | Rdataset] = {ORIGIN: signer.apex()[0]}
    for section in (response.answer, response.authority):
        for rrset in section:
            if rrset.rdtype not in (RRSIG, NS) or (rrset.rdtype == NS and rrset.name == ORIGIN):
                signatures = [one for one in section if (one.rdtype, one.covers, one.name) == (RRSIG, rrset.rdtype, rrset.name)]
                assert len(signatures) == 1 and len(signatures[0]) == 1
                assert rrset.ttl == signatures[0].ttl <= signatures[0][0].original_ttl
                dns.dnssec.validate(rrset, signatures[0], keys, now=NOW)


def proofs(response: dns.message.Message) -> list[tuple[Name, Name, set[str]]]:
    """Give owner, next name and types of every NSEC."""
    found = [(rrset.name, rdata) for rrset in response.authority if rrset.rdtype == NSEC for rdata in rrset]
    assert len({owner for owner, _ in found}) == len(found)
    return [(owner, rdata.next, set(rdata.to_text().split()[1:])) for owner, rdata in found]


def covers(owner: Name, following: Name, name: Name) -> bool:
    return bool(owner < name and (name < following or following == ORIGIN))


def check_proof(response: dns.message.Message, encloser: str) -> str:
    """Check by RFC 4035 §5.4 that the NSECs say what the response says; give what that is. encloser: the closest name that exists."""
    name, rdtype = response.question[0].name, dns.rdatatype.to_text(response.question[0].rdtype)
    closest = dns.name.from_text(encloser)
    wild, found = dns.name.Name((b"*", *closest.labels)), proofs(response)
    absent = any(covers(owner, following, name) and not following.is_subdomain(name) for owner, following, _ in found)
    if response.rcode():
        assert absent and any(covers(owner, following, wild) for owner, following, _ in found)
        return "nxdomain"
    if response.answer:
        assert absent == (name != closest)
        return "answer" if name == closest else "expanded"
    if not response.flags & dns.flags.AA:
        ((owner, _, types),) = found or [(closest, closest, {"NS"})]
        assert owner == closest and "NS" in types and not {"DS", "SOA"} & types
        assert bool(found) != bool(texts(response.authority, "DS"))
        return "referral"
    if name != closest:
        assert absent
        name = wild
    if any(owner < name and following.is_subdomain(name) and following != name for owner, following, _ in found):
        return "empty"  # a parent without records
    ((_, _, types),) = [one for one in found if one[0] == name]
    assert not {rdtype, "CNAME"} & types
    return "nodata" if name != wild else "expanded nodata"


@pytest.mark.parametrize("rdtype", ["A", "AAAA", "HTTPS", "SVCB", "TXT", "CNAME", "SOA", "NS", "DS", "DNSKEY", "NSEC", "TYPE65280"])
@pytest.mark.parametrize("name", ["api.example.com", "example.com"])
def test_every_variant_of_a_steered_name_validates(signed: Answers, signer: Signer, name: str, rdtype: str) -> None:
    entry = entry_of(found(signed, name), dns.rdatatype.from_text(rdtype))
    pairs = [(a, b) for a in SLOT for b in SLOT if (SLOT[a], SLOT[b]) in entry.pairs]
    for regions in [(region,) for region in SLOT] + pairs if entry.fixed is None else [()]:
        for turn in range(3):
            response, plain = ask_signed(signed, name, rdtype, regions, turn), ask(signed, name, rdtype, *regions)
            check_signatures(response, signer)
            assert check_proof(response, name) == ("answer" if plain.answer else "nodata")
            assert [{*rrset} for rrset in response.answer if rrset.rdtype != RRSIG] == [{*rrset} for rrset in plain.answer]


NAMES = [  # name, its closest encloser, the type, what is proven
    ("api.example.com", "api.example.com", "MX", "nodata"), ("mail.example.com", "mail.example.com", "A", "answer"),
    ("mail.example.com", "mail.example.com", "AAAA", "nodata"), ("b.c.example.com", "b.c.example.com", "A", "empty"),
    ("w.example.com", "w.example.com", "A", "empty"), ("nope.example.com", "example.com", "A", "nxdomain"),
    ("a.nope.example.com", "example.com", "A", "nxdomain"), ("zz.example.com", "example.com", "A", "nxdomain"),
    ("x.b.c.example.com", "b.c.example.com", "A", "nxdomain"), ("x.v.example.com", "v.example.com", "TXT", "expanded"),
    ("x.y.V.example.com", "v.example.com", "TXT", "expanded"), ("x.v.example.com", "v.example.com", "A", "expanded nodata"),
    ("*.v.example.com", "*.v.example.com", "TXT", "answer"), ("*.v.example.com", "*.v.example.com", "A", "nodata"),
    ("!.v.example.com", "v.example.com", "A", "expanded nodata"), ("x.w.example.com", "w.example.com", "MX", "expanded nodata"),
    ("sub.example.com", "sub.example.com", "A", "referral"), ("x.sub.example.com", "sub.example.com", "A", "referral"),
    ("sub.example.com", "sub.example.com", "DS", "nodata"), ("safe.example.com", "safe.example.com", "DS", "answer"),
    ("x.safe.example.com", "safe.example.com", "A", "referral"), ("example.com", "example.com", "DNSKEY", "answer"),
    ("www.example.com", "www.example.com", "A", "answer"), ("mail.example.com", "mail.example.com", "NSEC", "answer"),
    ("ns1.example.com", "ns1.example.com", "TXT", "nodata"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "encloser", "rdtype", "proven"), NAMES)
def test_answers_denials_wildcards_and_referrals_are_proven(
    signed: Answers, signer: Signer, name: str, encloser: str, rdtype: str, proven: str
) -> None:
    it = found(signed, name)
    steered = it.node is not None and entry_of(it, dns.rdatatype.from_text(rdtype)).fixed is None
    for regions in (("four",), ("secure",)) if steered else ((),):
        response = ask_signed(signed, name, rdtype, regions)
        check_signatures(response, signer)
        assert check_proof(response, encloser) == proven


@pytest.mark.parametrize("region", [name for name in SLOT if name != "mute"])
@pytest.mark.parametrize("rdtype", ["A", "AAAA", "HTTPS", "TXT"])
def test_a_steered_wildcard_is_proven(signed: Answers, signer: Signer, region: str, rdtype: str) -> None:
    for name in ("x.w.example.com", "!.w.example.com"):
        response = ask_signed(signed, name, rdtype, (region,))
        check_signatures(response, signer)
        assert check_proof(response, "w.example.com") == ("expanded" if response.answer else "expanded nodata")


def test_the_nsec_of_a_steered_name_names_all_types_that_anybody_gets_but_the_one_that_is_denied(signed: Answers) -> None:
    everybody = {"A", "AAAA", "HTTPS", "SVCB", "NSEC", "RRSIG"}
    for rdtype, region in (("AAAA", "four"), ("A", "six"), ("HTTPS", "four"), ("TXT", "four")):
        ((_, _, types),) = proofs(ask_signed(signed, "api.example.com", rdtype, (region,)))
        assert types == everybody - {rdtype}


def test_a_zone_without_an_active_key_is_served_unsigned_until_there_is_one() -> None:
    clock = [NOW]
    signer = Signer(ORIGIN, [Key.generate(ORIGIN, timing=Timing(activate=NOW + 60))], clock=lambda: clock[0])
    made = zone(keys=signer)
    before = build([made], WORLD)
    assert forms_of(before, "mail.example.com", A).signed is None
    assert build([made], WORLD, before=before).parts[made] is before.parts[made]
    clock[0] += 60
    after = build([made], WORLD, before=before)
    assert forms_of(after, "mail.example.com", A).signed is not None
    assert build([made], WORLD, before=after).parts[made] is after.parts[made]
