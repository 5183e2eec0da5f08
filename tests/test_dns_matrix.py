"""Every kind of name by every type, over UDP and TCP, read by dnspython, `dig` and `kdig`: what is asked for, or a proper denial.

The expectation is a table in plain words, made from the addresses of the regions and the zone's text, not by the code under test.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from conftest import Clock
from resolving import NETWORKS, balancer, client_of, scope_of, subnet

from lbcore import Region
from lbcore.dns import Profile, Responder, Zone
from lbcore.dns._wire import Wire
from lbcore.dns.server import Server

TYPES = (
    "A", "AAAA", "CNAME", "ANY", "SOA", "NS", "TXT", "MX", "HTTPS", "SVCB", "DS", "DNSKEY", "NSEC", "TYPE65280", "TYPE0", "TYPE253",
)  # fmt: skip
STATIC = """
static  300 A 192.0.2.80
static  300 TXT "plain"
mail        MX 10 static
both        A 192.0.2.81
both        AAAA 2001:db8::81
www         CNAME api
*.any       TXT "anything"
sub         NS ns.sub
ns.sub      A 192.0.2.54
a.b.deep    TXT "bottom"
"""
REGIONS = (
    Region("dual", 0, 0, addresses=("192.0.2.1", "192.0.2.2", "2001:db8::1"), gateway="https://dual.example"),
    Region("four", 0, 1, addresses=("192.0.2.4",), gateway="http://four.example"),
    Region("six", 0, 2, addresses=("2001:db8::6",), gateway="https://six.example:8443"),
    Region("alias", 0, 3, gateway="https://weu.gateway.example:8443/base"),
    Region("literal", 0, 4, gateway="http://127.0.0.9:8081"),
    Region("mute", 0, 5),
)
CLIENTS = ("dual", "four", "six", "alias", "literal")
ZONE = Zone(
    "example.com",
    {"api": Profile(), "fam": Profile(family="any"), "*.wild": Profile()},
    STATIC, {"@": "api"}, nameservers=("ns1", "ns2.example.net"), glue={"ns1": ("192.0.2.53", "2001:db8::53")}, negative_ttl=20,
)  # fmt: skip

# ===== what is right

Records = dict[str, set[str]]
ADDRESSES: dict[str, Records] = {
    "dual": {"A": {"192.0.2.1", "192.0.2.2"}, "AAAA": {"2001:db8::1"}}, "four": {"A": {"192.0.2.4"}},
    "six": {"AAAA": {"2001:db8::6"}}, "literal": {"A": {"127.0.0.9"}}, "alias": {},
}  # fmt: skip
SERVED = {"dual", "six"}  # HTTPS leads to them; so does it to alias, which is a CNAME for every type
FIXED: dict[str, Records] = {
    "static": {"A": {"192.0.2.80"}, "TXT": {'"plain"'}},
    "mail": {"MX": {"10 static.example.com."}},
    "both": {"A": {"192.0.2.81"}, "AAAA": {"2001:db8::81"}},
    "www": {"CNAME": {"api.example.com."}},
    "x.any": {"TXT": {'"anything"'}},
    "y.x.any": {"TXT": {'"anything"'}},
    "ns1": {"A": {"192.0.2.53"}, "AAAA": {"2001:db8::53"}},
    "b.deep": {}, "deep": {}, "wild": {}, "any": {},
    "a.b.deep": {"TXT": {'"bottom"'}},
}  # fmt: skip
APEX: Records = {
    "SOA": {"ns1.example.com. hostmaster.example.com. 1 3600 600 604800 20"}, "NS": {"ns1.example.com.", "ns2.example.net."},
}  # fmt: skip
STEERED = ("api", "fam", "@", "x.wild", "y.x.wild")
MISSING = ("nope", "x.static", "z.a.b.deep", "x.api", "w.www")
REFERRED = ("sub", "x.sub", "ns.sub")


@dataclass(frozen=True)
class Right:
    """records: by type, None = some, whatever they say. A denial has no records and the SOA."""

    rcode: str = "NOERROR"
    records: tuple[tuple[str, frozenset[str] | None], ...] = ()
    referral: bool = False


def some(records: Records) -> Right:
    return Right(records=tuple((rdtype, frozenset(found)) for rdtype, found in records.items() if found))


def right(name: str, rdtype: str, region: str) -> Right:
    """Give what a client of a region must be told."""
    if name in REFERRED:
        return Right() if (name, rdtype) == ("sub", "DS") else Right(referral=True)
    if name in MISSING:
        return Right("NXDOMAIN")
    if name in FIXED:
        return fixed(FIXED[name], rdtype)
    if name == "@" and rdtype in APEX:
        return fixed(APEX, rdtype)
    return steered(name, rdtype, region)


def fixed(records: Records, rdtype: str) -> Right:
    if "CNAME" in records:
        return some(records)
    if rdtype == "ANY":
        return some({found: records[found] for found in [*records][:1]})
    return some({rdtype: records.get(rdtype, set())})


def steered(name: str, rdtype: str, region: str) -> Right:
    if name == "@" and region == "alias":
        return right("@", rdtype, "nearest with addresses")
    if region == "alias":
        return some({"CNAME": {"weu.gateway.example."}})
    if rdtype in ("HTTPS", "SVCB"):
        return Right(records=((rdtype, None),)) if region in SERVED else Right()
    if name == "fam" and rdtype in ("A", "AAAA") and rdtype not in ADDRESSES[region]:
        return Right(records=((rdtype, None),))  # of the closest region that has the family
    if rdtype == "ANY":
        rdtype = "A" if "A" in ADDRESSES[region] or name == "fam" else "AAAA"
        return some({rdtype: ADDRESSES[region][rdtype]}) if rdtype in ADDRESSES[region] else Right(records=((rdtype, None),))
    return some({rdtype: ADDRESSES[region].get(rdtype, set())})


ADDRESSES["nearest with addresses"] = ADDRESSES["dual"]
SERVED.add("nearest with addresses")

NAMES = (*STEERED, *FIXED, *MISSING, *REFERRED)
CASES = [(name, rdtype, region) for name in NAMES for rdtype in TYPES for region in (CLIENTS if name in STEERED else CLIENTS[:1])]


def full(name: str) -> str:
    return "example.com" if name == "@" else f"{name}.example.com"


# ===== dnspython


def check(name: str, rdtype: str, region: str, response: dns.message.Message) -> None:
    """Compare a response with what is right."""
    expected = right(name, rdtype, region)
    context = f"{name} {rdtype} {region}: {response}"
    assert dns.rcode.to_text(response.rcode()) == expected.rcode, context
    assert bool(response.flags & dns.flags.AA) != expected.referral, context
    found = {dns.rdatatype.to_text(rrset.rdtype): frozenset(map(str, rrset)) for rrset in response.answer}
    wanted = dict(expected.records)
    assert found.keys() == wanted.keys(), context
    assert all(wanted[each] in (None, records) for each, records in found.items()), context
    authority = {rrset.rdtype for rrset in response.authority}
    assert authority == (set() if found else {dns.rdatatype.NS if expected.referral else dns.rdatatype.SOA}), context
    assert response.question[0].name.to_text() == f"{full(name)}."
    assert all(rrset.name == response.question[0].name for rrset in response.answer)


@pytest.fixture
def responder(clock: Clock) -> Responder:
    return Responder(balancer(clock, REGIONS), ZONE)


@pytest.mark.parametrize("options", [{}, {"use_edns": 0}, {"use_edns": 0, "want_dnssec": True, "payload": 512}])
def test_the_matrix(responder: Responder, options: dict[str, object]) -> None:
    for name, rdtype, region in CASES:
        query = dns.message.make_query(full(name), rdtype, **options)  # type: ignore[arg-type]
        answer = responder.answer(query.to_wire(), client_of(region))
        assert answer is not None
        check(name, rdtype, region, dns.message.from_wire(answer))
    assert not responder.counters["servfail"] + responder.counters["notimp"] + responder.counters["formerr"]


def test_scopes_of_the_matrix(responder: Responder) -> None:
    """Static data and what is not there: 0, for everybody; what is steered, denials included: the group's prefix."""
    for name, rdtype, region in CASES:
        query = dns.message.make_query(full(name), rdtype, **subnet(NETWORKS[region]))
        answer = responder.answer(query.to_wire(), "192.0.2.250")
        assert answer is not None
        tailored = name in STEERED and not (name == "@" and rdtype not in ("A", "AAAA", "HTTPS", "SVCB", "ANY"))
        assert scope_of(dns.message.from_wire(answer)) == (24 if tailored else 0), (name, rdtype)


def test_the_compiled_path_says_the_same_bytes(responder: Responder) -> None:
    """Whatever the compiled path answers at all, by every client, with and without EDNS, ECS and DO, spelled any way."""
    wire = Wire()
    responder.on_prepared(wire.publish)
    rng = random.Random(20)
    answered = 0
    for name, rdtype, region in CASES:
        for options in ({}, {"use_edns": 0, "want_dnssec": True}, {"use_edns": 0, "payload": 700} | subnet(NETWORKS[region])):
            spelled = "".join(rng.choice((letter, letter.upper())) for letter in full(name))
            packet = dns.message.make_query(spelled, rdtype, **options).to_wire()
            fast = wire.answer(packet, client_of(region))
            answered += fast is not None
            assert fast in (None, responder.answer(packet, client_of(region))), (name, rdtype, region)
    assert answered > len(CASES) * 3 * 0.7


# ===== over sockets


@pytest.fixture
async def server(responder: Responder) -> AsyncIterator[Server]:
    async with Server(responder, port=0) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("tcp", [False, True])
async def test_the_matrix_over_sockets(server: Server, tcp: bool) -> None:
    from dns.query import tcp as over_tcp
    from dns.query import udp as over_udp

    host, port = server.address

    def run() -> None:
        for name, rdtype, region in CASES:
            query = dns.message.make_query(full(name), rdtype, **subnet(NETWORKS[region]))
            check(name, rdtype, region, (over_tcp if tcp else over_udp)(query, host, port=port, timeout=20))

    await asyncio.to_thread(run)


@dataclass(frozen=True)
class Seen:
    """What a program prints of one response."""

    status: str
    flags: frozenset[str]
    sections: tuple[frozenset[tuple[str, str]], ...]  # answer, authority: owner and type of the records
    subnet: str


HEADER = re.compile(r"status: (\w+)[,;]")
FLAGS = re.compile(r"^;; [fF]lags: ([a-z ]*);", re.MULTILINE)
SUBNET = re.compile(r"CLIENT-SUBNET: (\S+)")


def seen(text: str) -> list[Seen]:
    """Read the output of dig or kdig, response by response."""
    found = []
    for part in re.split(r"^(?=;; ->>HEADER<<-)", text, flags=re.MULTILINE)[1:]:
        by_section: dict[str, set[tuple[str, str]]] = {"ANSWER": set(), "AUTHORITY": set()}
        section = ""
        for line in part.splitlines():
            if title := re.match(r";; (\w+)(?: PSEUDO)? ?SECTION", line):
                section = title[1]
            elif line and not line.startswith(";") and section in by_section:
                owner, _, _, rdtype = line.split()[:4]
                by_section[section].add((owner.lower(), rdtype))
        status, flags, network = HEADER.search(part), FLAGS.search(part), SUBNET.search(part)
        assert status and flags and network, part
        sections = tuple(frozenset(records) for records in by_section.values())
        found.append(Seen(status[1], frozenset(flags[1].split()), sections, network[1]))
    return found


def expected_of(name: str, rdtype: str, region: str) -> Seen:
    expected = right(name, rdtype, region)
    answer = frozenset((f"{full(name)}.", found) for found, _ in expected.records)
    authority = {("sub.example.com.", "NS")} if expected.referral else {("example.com.", "SOA")}
    tailored = name in STEERED and not (name == "@" and rdtype not in ("A", "AAAA", "HTTPS", "SVCB", "ANY"))
    return Seen(
        expected.rcode, frozenset({"qr"} if expected.referral else {"qr", "aa"}),
        (answer, frozenset() if answer else frozenset(authority)), f"{NETWORKS[region]}/{24 if tailored else 0}",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
@pytest.mark.parametrize("reader", ["dig", "kdig"])
async def test_the_matrix_as_programs_read_it(server: Server, program: Callable[[str], str], reader: str, transport: str) -> None:
    host, port = server.address
    path = program(reader)
    for start in range(0, len(CASES), 50):
        cases = CASES[start : start + 50]
        # from an address of its own: dig shares ports, and where the kernel gives it the server's it would hear its own query
        words = ["-b", "127.0.0.2", f"@{host}", "-p", str(port), "+norecurse", "+noquestion", "+nostats", "+ignore", transport]
        for name, rdtype, region in cases:
            words += [*([] if reader == "kdig" else [f"@{host}", "-p", str(port)]), full(name), rdtype, f"+subnet={NETWORKS[region]}"]
        process = await asyncio.create_subprocess_exec(path, *words, stdout=asyncio.subprocess.PIPE)
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0
        for case, found in zip(cases, seen(out.decode()), strict=True):
            assert found == expected_of(*case), case
