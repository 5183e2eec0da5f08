"""What the Responder promises: which answer for which name, type, family and client, with dnspython on the other side."""

from __future__ import annotations

import struct
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest
from conftest import Clock
from dns.rcode import BADVERS, FORMERR, NOERROR, NOTAUTH, NOTIMP, NXDOMAIN, REFUSED
from resolving import NETWORKS, OWNER, PROFILE, REGIONS, ZONE, answers, ask, balancer, client_of, is_denial, scope_of, subnet

from lbcore import ConfigError, Region
from lbcore.dns import Profile, Responder, Zone

TYPES = ("A", "AAAA", "CNAME", "ANY", "SOA", "NS", "TXT", "MX", "SRV", "CAA", "HTTPS", "SVCB", "DS", "DNSKEY", "TYPE65280", "TYPE0")
ADDRESSES = {
    "dual": {"A": {"192.0.2.1", "192.0.2.2", "192.0.2.3"}, "AAAA": {"2001:db8::1", "2001:db8::2"}},
    "four": {"A": {"192.0.2.4"}},
    "six": {"AAAA": {"2001:db8::6"}},
    "literal": {"A": {"127.0.0.9"}},
}


@pytest.fixture
def responder(clock: Clock) -> Responder:
    return Responder(balancer(clock), ZONE)


# ===== who gets what


@pytest.mark.parametrize("rdtype", TYPES)
@pytest.mark.parametrize("region", ADDRESSES)
def test_a_region_with_addresses(responder: Responder, region: str, rdtype: str) -> None:
    response = ask(responder, OWNER, rdtype, client_of(region))
    wanted = next(iter(ADDRESSES[region])) if rdtype == "ANY" else rdtype  # RFC 8482: one record set, A before AAAA
    families = {wanted: ADDRESSES[region].get(wanted, set())}
    assert response.rcode() == NOERROR
    assert response.flags & dns.flags.AA
    for family, expected in families.items():
        assert set(answers(response, family)) == expected
    assert sum(len(rrset) for rrset in response.answer) == sum(map(len, families.values()))
    assert all(rrset.ttl == PROFILE.ttl for rrset in response.answer)
    assert is_denial(response) != any(families.values())


@pytest.mark.parametrize("rdtype", TYPES)
def test_a_region_with_a_host_name_is_an_alias_for_every_type(responder: Responder, rdtype: str) -> None:
    response = ask(responder, OWNER, rdtype, client_of("alias"))
    assert (response.rcode(), bool(response.flags & dns.flags.AA)) == (NOERROR, True)
    assert answers(response, "CNAME") == ["weu.gateway.example."]
    assert len(response.answer) == 1


@pytest.mark.parametrize("rdtype", TYPES)
@pytest.mark.parametrize("name", [OWNER, "example.com", "eu.example.com", "ns1.example.com"])
def test_an_existing_name_is_never_an_error(responder: Responder, name: str, rdtype: str) -> None:
    for client in map(client_of, NETWORKS):
        response = ask(responder, name, rdtype, client)
        assert response.rcode() == NOERROR
        assert response.flags & dns.flags.AA
        assert response.answer or is_denial(response)


def test_a_region_that_dns_cannot_name_is_stood_in_for_by_the_next(clock: Clock) -> None:
    lb = balancer(clock)
    assert lb.pick(client_of("mute")).name == "mute"
    named = next(region.name for region in lb.rank(client_of("mute")) if region.name != "mute")
    assert set(answers(ask(Responder(lb, PROFILE), OWNER, "A", client_of("mute")), "A")) == ADDRESSES[named]["A"]


def test_all_addresses_are_given_and_each_comes_first_in_turn(responder: Responder) -> None:
    seen = [answers(ask(responder, OWNER, "A", client_of("dual"), id=turn), "A") for turn in (0, 1, 2, 3)]
    assert [set(order) for order in seen] == [ADDRESSES["dual"]["A"]] * 4
    assert len({order[0] for order in seen}) == 3
    assert seen[0] == seen[3] != seen[1]


def test_the_family_asked_for_does_not_change_the_region(responder: Responder) -> None:
    assert is_denial(ask(responder, OWNER, "AAAA", client_of("four")))  # though "six" and "dual" would have one
    assert is_denial(ask(responder, OWNER, "A", client_of("six")))


def test_a_region_that_goes_down_is_in_no_further_answer(clock: Clock) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE)
    client = client_of("four")
    lb.disable("four")
    second = next(region for region in lb.rank(client) if region.name in ADDRESSES)
    assert set(answers(ask(responder, OWNER, "A", client), "A")) == ADDRESSES[second.name]["A"]


def test_everything_down_still_answers_and_everything_disabled_is_no_data(clock: Clock) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE)
    for region in lb.regions:
        lb.table.set_tier(lb.slot(region), 3, clock())
    lb.tick()
    assert ask(responder, OWNER, "ANY", client_of("four")).answer
    assert responder.counters["fail_open"] == 1
    for region in lb.regions:
        lb.disable(region)
    response = ask(responder, OWNER, "A", client_of("four"))
    assert (response.rcode(), is_denial(response), responder.counters["no_region"]) == (NOERROR, True, 1)


@pytest.mark.parametrize("gateway", ["", "not a url", "http://[::1", "https://" + "a" * 64 + ".example", f"https://{OWNER}/"])
def test_a_gateway_that_names_nothing_to_point_at_is_no_alias(clock: Clock, gateway: str) -> None:
    responder = Responder(balancer(clock, (Region("only", 0, 0, gateway=gateway),)), PROFILE)
    assert is_denial(ask(responder, OWNER, "A"))


def test_ttl_zero_and_the_longest(clock: Clock) -> None:
    for ttl in (0, 2**31 - 1):
        responder = Responder(balancer(clock), Profile("api", "example.com", ttl=ttl))
        response = ask(responder, "api.example.com", "A", client_of("four"))
        assert [rrset.ttl for rrset in response.answer] == [ttl]
        denial = ask(responder, "api.example.com", "TXT", client_of("four"))
        assert denial.authority[0].ttl <= ttl


# ===== the zone


def test_soa_and_name_servers(responder: Responder) -> None:
    assert answers(ask(responder, "example.com", "SOA"), "SOA") == ["ns1.example.com. hostmaster.example.com. 1 3600 600 604800 30"]
    response = ask(responder, "example.com", "NS")
    assert set(answers(response, "NS")) == {"ns1.example.com.", "ns2.example.net."}
    assert {(rrset.name.to_text(), rdata.to_text()) for rrset in response.additional for rdata in rrset} == {
        ("ns1.example.com.", "192.0.2.53"),
        ("ns1.example.com.", "2001:db8::53"),
    }
    assert answers(ask(responder, "ns1.example.com", "AAAA"), "AAAA") == ["2001:db8::53"]


@pytest.mark.parametrize("name", ["nope.example.com", "x.api.eu.example.com", "a.b.c.example.com", "x.ns1.example.com"])
def test_a_name_that_does_not_exist(responder: Responder, name: str) -> None:
    for rdtype in ("A", "ANY", "SOA"):
        response = ask(responder, name, rdtype)
        assert (response.rcode(), is_denial(response)) == (NXDOMAIN, True)
        assert response.flags & dns.flags.AA


def test_an_empty_non_terminal_exists(responder: Responder) -> None:
    response = ask(responder, "eu.example.com", "A")
    assert (response.rcode(), is_denial(response)) == (NOERROR, True)


@pytest.mark.parametrize("name", ["com", ".", "example.net", "aexample.com", "example.com.net"])
def test_foreign_names_are_refused(responder: Responder, name: str) -> None:
    response = ask(responder, name, "A", **subnet("81.2.1.0/24"))
    assert (response.rcode(), response.flags & dns.flags.AA, scope_of(response)) == (REFUSED, 0, 0)


def test_the_zone_itself_can_be_balanced_but_is_no_alias(clock: Clock) -> None:
    lb = balancer(clock)
    responder = Responder(lb, Profile("@", "example.com"))
    assert answers(ask(responder, "example.com", "A", client_of("four")), "A") == ["192.0.2.4"]
    assert answers(ask(responder, "example.com", "NS", client_of("four")), "NS") == ["ns.example.com."]
    assert answers(ask(responder, "example.com", "SOA", client_of("alias")), "SOA")
    response = ask(responder, "example.com", "ANY", client_of("alias"))
    assert response.answer and not answers(response, "CNAME")


# ===== what is not a plain question


@pytest.mark.parametrize("rdtype", ["AXFR", "IXFR"])
def test_zone_transfer_is_refused(responder: Responder, rdtype: str) -> None:
    assert ask(responder, "example.com", rdtype, tcp=True).rcode() == REFUSED


@pytest.mark.parametrize("rdclass", ["CH", "HS", "ANY", "NONE"])
def test_other_classes_are_refused(responder: Responder, rdclass: str) -> None:
    assert ask(responder, OWNER, "TXT", rdclass=rdclass).rcode() == REFUSED


@pytest.mark.parametrize("opcode", range(1, 16))
def test_other_opcodes_are_not_implemented(responder: Responder, opcode: int) -> None:
    wire = bytearray(dns.message.make_query(OWNER, "A", id=7).to_wire())
    wire[2] |= opcode << 3
    answer = responder.answer(bytes(wire), "127.0.0.1")
    assert answer is not None
    id_, flags, *counts = struct.unpack_from("!HHHHHH", answer)
    assert (id_, flags & 0x8000, flags >> 11 & 15, flags & 15, counts) == (7, 0x8000, opcode, NOTIMP, [1, 0, 0, 0])
    assert responder.answer(bytes(wire[:12]), "127.0.0.1") == answer[:4] + bytes(8)  # what follows may look like nothing that we know


def test_edns_is_answered_with_edns_whatever_the_opcode(responder: Responder) -> None:
    notify = dns.message.make_query(OWNER, "SOA", use_edns=0)
    notify.set_opcode(dns.opcode.NOTIFY)
    wire = responder.answer(notify.to_wire(), "127.0.0.1")
    assert wire is not None
    response = dns.message.from_wire(wire)
    assert (response.rcode(), response.edns, response.question) == (NOTIMP, 0, notify.question)


def test_a_response_is_never_answered(responder: Responder) -> None:
    query = dns.message.make_query(OWNER, "A")
    assert responder.answer(dns.message.make_response(query).to_wire(), "127.0.0.1") is None
    query.flags |= dns.flags.QR
    assert responder.answer(query.to_wire(), "127.0.0.1") is None
    assert responder.counters["dropped"] == 2


def wire(name: str = OWNER, *, header: bytes = b"", end: bytes = b"", counts: tuple[int, ...] = (1, 0, 0, 0), copies: int = 1) -> bytes:
    question = (dns.name.from_text(name).to_wire() or b"") + b"\0\x01\0\x01"
    return (header or b"\x12\x34\0\0" + struct.pack("!HHHH", *counts)) + question * copies + end


OPT = b"\0\0\x29\x10\0\0\0\0\0\0\0"


def option(data: bytes, code: int = 8) -> bytes:
    rdata = struct.pack("!HH", code, len(data)) + data
    return OPT[:-2] + struct.pack("!H", len(rdata)) + rdata


MALFORMED = {
    "no question": wire(copies=0, counts=(0, 0, 0, 0)),
    "two questions": wire(copies=2, counts=(2, 0, 0, 0)),
    "a question is missing": wire(copies=0),
    "the name is cut short": wire()[:20],
    "the class is missing": wire()[:-2],
    "a label of a reserved kind": b"\x12\x34\0\0\0\x01\0\0\0\0\0\0\x80abc\0\0\x01\0\x01",
    "a name that points at itself": b"\x12\x34\0\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01",
    "bytes left over": wire(end=b"x"),
    "a record is missing": wire(counts=(1, 0, 0, 1)),
    "two OPT": wire(end=OPT * 2, counts=(1, 0, 0, 2)),
    "OPT among the answers": wire(end=OPT, counts=(1, 1, 0, 0)),
    "OPT under a name": wire(end=b"\x01a" + OPT, counts=(1, 0, 0, 1)),
    "OPT promises more than there is": wire(end=OPT[:-1] + b"\x09", counts=(1, 0, 0, 1)),
    "an option is cut short": wire(end=option(b"")[:-2] + b"\0\x04", counts=(1, 0, 0, 1)),
}


@pytest.mark.parametrize("packet", MALFORMED.values(), ids=MALFORMED)
def test_what_is_malformed_is_told_so(responder: Responder, packet: bytes) -> None:
    answer = responder.answer(packet, "127.0.0.1")
    assert answer is not None
    response = dns.message.from_wire(answer)
    assert (response.id, response.rcode(), response.flags & dns.flags.AA) == (0x1234, FORMERR, 0)


@pytest.mark.parametrize("size", range(12))
def test_without_a_whole_header_there_is_no_answer(responder: Responder, size: int) -> None:
    assert responder.answer(wire()[:size], "127.0.0.1") is None


def test_a_signed_query_is_told_that_its_key_is_unknown(responder: Responder) -> None:
    query = dns.message.make_query(OWNER, "A")
    query.use_tsig({dns.name.from_text("key."): b"secret" * 6})
    answer = responder.answer(query.to_wire(), "127.0.0.1")
    assert answer is not None
    assert dns.message.from_wire(answer).rcode() == NOTAUTH


# ===== EDNS


def test_without_edns_there_is_none_in_the_answer(responder: Responder) -> None:
    assert ask(responder, OWNER, "A").opt is None


@pytest.mark.parametrize("flags", [0, dns.flags.DO])
def test_edns_in_edns_out(responder: Responder, flags: int) -> None:
    response = ask(responder, OWNER, "A", use_edns=0, want_dnssec=bool(flags), payload=4096)
    assert (response.edns, response.payload, response.ednsflags & dns.flags.DO, response.options) == (0, 1232, flags, ())


@pytest.mark.parametrize("version", [1, 255])
def test_a_later_version_of_edns(responder: Responder, version: int) -> None:
    response = ask(responder, OWNER, "A", use_edns=version)
    assert (response.rcode(), response.edns, response.answer) == (BADVERS, 0, [])


MANY = Region("many", 0, 0, addresses=tuple(f"192.0.2.{n}" for n in range(1, 101)))  # 100 x 16 bytes


@pytest.mark.parametrize(("payload", "limit"), [(None, 512), (0, 512), (512, 512), (1000, 1000), (1232, 1232), (4096, 1232), (65535, 1232)])
def test_an_answer_that_does_not_fit_is_left_out_whole(clock: Clock, payload: int | None, limit: int) -> None:
    room = (limit - 12 - 24 - (11 if payload is not None else 0)) // 16  # header, question, OPT; 16 bytes a record
    for count, fits in ((room, True), (room + 1, False)):
        region = Region("many", 0, 0, addresses=MANY.addresses[:count])
        responder = Responder(balancer(clock, (region,)), PROFILE)
        query = dns.message.make_query(OWNER, "A")
        if payload is not None:
            query.use_edns(0, payload=payload)
        answer = responder.answer(query.to_wire(), None)
        assert answer is not None and len(answer) <= limit
        response = dns.message.from_wire(answer)
        assert (len(answers(response, "A")), bool(response.flags & dns.flags.TC)) == ((count, False) if fits else (0, True))
        assert (response.opt is not None) == (payload is not None)
        assert len(answers(ask(responder, OWNER, "A", tcp=True), "A")) == count


def test_glue_that_does_not_fit_is_no_reason_to_truncate(clock: Clock) -> None:
    zone = Zone("example.com", {"api": PROFILE}, nameservers=("ns1",), glue={"ns1": MANY.addresses})
    response = ask(Responder(balancer(clock), zone), "example.com", "NS")
    assert (answers(response, "NS"), response.additional, response.flags & dns.flags.TC) == (["ns1.example.com."], [], 0)


def test_spelling_is_kept(responder: Responder) -> None:
    name = "aPi.Eu.ExAmPlE.cOm"
    response = ask(responder, name, "A", client_of("four"))  # `ask` compares the question
    assert response.answer[0].name.to_text() == f"{name}."


# ===== client subnet


def test_the_client_s_network_decides_not_the_resolver_s(responder: Responder) -> None:
    for region, network in NETWORKS.items():
        if region in ADDRESSES:
            for client in map(client_of, NETWORKS):
                for rdtype, expected in ADDRESSES[region].items():
                    response = ask(responder, OWNER, rdtype, client, **subnet(network))
                    assert (set(answers(response, rdtype)), scope_of(response)) == (expected, 24)


def test_scope_is_the_shortest_prefix_of_one_group(clock: Clock) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE)
    for network in ("81.2.1.77/32", "81.2.1.0/24", "81.2.0.0/16", "9.9.9.0/24", "2001:470::/32"):
        assert scope_of(ask(responder, OWNER, "A", **subnet(network))) == lb.match(network.split("/")[0])[1]
    assert (scope_of(ask(responder, OWNER, "A", **subnet("81.2.0.0/16"))) or 0) > 16  # says: send more bits


def test_a_denial_is_as_tailored_as_an_answer(responder: Responder) -> None:
    response = ask(responder, OWNER, "AAAA", **subnet(NETWORKS["four"]))
    assert (is_denial(response), scope_of(response)) == (True, 24)


def test_what_is_the_same_for_everybody_has_scope_0(responder: Responder) -> None:
    for name, rdtype in (("example.com", "SOA"), ("example.com", "NS"), ("nope.example.com", "A"), ("eu.example.com", "A")):
        assert scope_of(ask(responder, name, rdtype, **subnet(NETWORKS["four"]))) == 0


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_a_withheld_network_means_the_resolver_s(responder: Responder, network: str) -> None:
    response = ask(responder, OWNER, "A", client_of("four"), **subnet(network))
    assert (answers(response, "A"), scope_of(response)) == (["192.0.2.4"], 0)


def test_address_of_dig_subnet_0(responder: Responder) -> None:
    answer = responder.answer(wire(end=option(b"\0\0\0\0"), counts=(1, 0, 0, 1)), client_of("four"))
    assert answer is not None and answer.endswith(b"\0\x08\0\x04\0\0\0\0")


def test_family_source_and_address_are_echoed(responder: Responder) -> None:
    for network in ("81.2.4.0/22", "81.2.1.128/25", "2001:db8:ff00::/40", "::ffff:81.2.1.0/120"):
        response = ask(responder, OWNER, "A", **subnet(network))
        echoed = next(o for o in response.options if isinstance(o, dns.edns.ECSOption))
        assert f"{echoed.address}/{echoed.srclen}" == network


def test_an_ipv4_client_in_ipv6_form_is_the_same_client(responder: Responder) -> None:
    response = ask(responder, OWNER, "A", **subnet("::ffff:81.2.2.0/120"))
    assert (answers(response, "A"), scope_of(response)) == (["192.0.2.4"], 96 + 24)


BAD_SUBNETS = {
    "too short": b"\0\x01\x18",
    "scope in a query": b"\0\x01\x18\x18\x51\x02\x01",
    "family 3": b"\0\x03\x18\0\x51\x02\x01",
    "family 0 with an address": b"\0\0\x08\0\x51",
    "family 3 without an address": b"\0\x03\0\0",
    "source 33": b"\0\x01\x21\0\x51\x02\x01\x01\0",
    "source 129": b"\0\x02\x81\0" + b"\x20" * 17,
    "address too short": b"\0\x01\x18\0\x51\x02",
    "address too long": b"\0\x01\x18\0\x51\x02\x01\0",
    "address with source 0": b"\0\x01\0\0\x51",
    "bits beyond the source": b"\0\x01\x17\0\x51\x02\x01",
}


@pytest.mark.parametrize("data", BAD_SUBNETS.values(), ids=BAD_SUBNETS)
def test_a_malformed_subnet_is_told_so(responder: Responder, data: bytes) -> None:
    answer = responder.answer(wire(end=option(data), counts=(1, 0, 0, 1)), "127.0.0.1")
    assert answer is not None
    response = dns.message.from_wire(answer)
    assert (response.rcode(), response.edns, response.options) == (FORMERR, 0, ())


def test_unknown_options_are_passed_over(responder: Responder) -> None:
    options = [dns.edns.GenericOption("65001", b"x" * 20), dns.edns.ECSOption("81.2.2.0", 24), dns.edns.GenericOption("10", b"12345678")]
    response = ask(responder, OWNER, "A", use_edns=0, options=options)
    assert (answers(response, "A"), len(response.options)) == (["192.0.2.4"], 1)


# ===== callers


def test_a_denial_is_foreseen_as_an_answer_is(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    lb = balancer(clock)
    responder = Responder(lb, Zone("example.com", {"api.eu": Profile(ttl=60, ttl_min=1)}, negative_ttl=30))
    for seconds, answer, denial in ((None, 60, 30), (40, 40, 30), (5, 5, 5), (0, 1, 1)):
        monkeypatch.setattr(lb, "until_change", lambda region, seconds=seconds: seconds)
        responder.tick()
        assert ask(responder, OWNER, "A", client_of("four")).answer[0].ttl == answer
        assert ask(responder, OWNER, "AAAA", client_of("four")).authority[0].ttl == denial


def test_a_client_that_is_no_address_is_the_caller_s_mistake(responder: Responder) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        responder.answer(dns.message.make_query(OWNER, "A").to_wire(), "nonsense")


def test_counters_account_for_every_query(responder: Responder) -> None:
    ask(responder, OWNER, "A", client_of("four"), **subnet(NETWORKS["four"]))
    ask(responder, OWNER, "TXT", client_of("four"))
    ask(responder, "nope.example.com", "A")
    ask(responder, "example.net", "A")
    responder.answer(b"", "127.0.0.1")
    counted = {name: value for name, value in responder.counters.items() if value}
    assert counted.pop("answers") == {
        ("example.com", OWNER, "A", "four", "noerror"): 1,
        ("example.com", OWNER, "other", "four", "nodata"): 1,
        ("example.com", "", "", "", "nxdomain"): 1,
        ("", "", "", "", "refused"): 1,
    }
    assert counted == {"queries": 5, "noerror": 1, "nodata": 1, "nxdomain": 1, "refused": 1, "dropped": 1, "ecs": 1}


def test_regions_may_be_replaced_while_serving(clock: Clock) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE)
    assert answers(ask(responder, OWNER, "A", client_of("four")), "A") == ["192.0.2.4"]
    lb.set_regions([Region("four", 0, 1, addresses=("192.0.2.44",)) if region.name == "four" else region for region in REGIONS])
    assert answers(ask(responder, OWNER, "A", client_of("four")), "A") == ["192.0.2.44"]


# ===== the profile


WRONG: list[tuple[dict[str, Any], set[str]]] = [
    ({"ttl": -1}, {"dns.ttl"}),
    ({"ttl": 2**31}, {"dns.ttl"}),
    ({"ttl": True}, {"dns.ttl"}),
    ({"ttl": 1.5}, {"dns.ttl"}),
    ({"method": "performence"}, {"dns.method"}),
    ({"ttl": -1, "method": "x", "family": "x"}, {"dns.ttl", "dns.method", "dns.family"}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "where"), WRONG, ids=[str(changes) for changes, _ in WRONG])
def test_a_wrong_profile_names_every_violation(changes: dict[str, Any], where: set[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Profile(**{"name": "api", "zone": "example.com", **changes})
    assert {violation.where for violation in caught.value.violations} == where


@pytest.mark.parametrize(
    ("name", "zone", "where"),
    [("", "example.com", "name"), ("api.example.net.", "example.com", "name"), ("a" * 64, "example.com", "name"), ("api", "", "zone")],
)
def test_a_profile_that_says_where_it_is_says_it_right(clock: Clock, name: str, zone: str, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Responder(balancer(clock), Profile(name, zone))
    assert [violation.where for violation in caught.value.violations] == [f"dns.{where}"]
