"""Debian's unbound believes what we sign: it is told the DS records, asks our server on loopback, and says AD or SERVFAIL."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dns.dnssec
import dns.message
import dns.rcode
import dns.rdatatype
import pytest
from conftest import Clock
from dns.dnssectypes import Algorithm
from dns.message import Message
from dns.rdatatype import AAAA, CNAME, RRSIG, TXT, A
from typer.testing import CliRunner
from validating import Unbound, bogus, secure, unbound

from lbcore import Balancer, PrefixMap, Region
from lbcore.cli.app import app
from lbcore.dns import Profile, Responder
from lbcore.dns.dnssec import Signer
from lbcore.dns.keys import Key, Timing
from lbcore.dns.names import from_key
from lbcore.dns.server import Server
from lbcore.dns.zone import Zone

pytestmark = pytest.mark.slow

Program = Callable[[str], str]
HOUR = 3600
REGIONS = (
    Region("dual", 0, 0, gateway="https://dual.example.net", addresses=("192.0.2.1", "192.0.2.2", "2001:db8::1")),
    Region("four", 0, 1, gateway="https://four.example.net", addresses=("192.0.2.4",)),
    Region("alias", 0, 2, gateway="https://gw.cdn.example.net"),
)
SOURCES = {region.name: f"127.0.{number}.1" for number, region in enumerate(REGIONS, 1)}  # where a region's clients ask from
RECORDS = """
@        MX 10 mail
mail     A 192.0.2.25
www      CNAME api
*.s      TXT whichever
a.b.deep TXT deep
sub      NS ns.sub
ns.sub   A 127.0.0.1
"""
PROFILE = Profile("api", "example.com", ttl=20)
ANYWHERE = {  # what every client is told
    "www.example.com MX": "secure NOERROR 0",
    "mail.example.com A": "secure NOERROR 192.0.2.25",
    "mail.example.com AAAA": "secure NOERROR -",
    "api.example.com TXT": "secure NOERROR -",
    "example.com SOA": "secure NOERROR 1",
    "example.com NS": "secure NOERROR 1",
    "example.com MX": "secure NOERROR 1",
    "example.com DNSKEY": "secure NOERROR 1",
    "example.com CDS": "secure NOERROR 1",
    "example.com TXT": "secure NOERROR -",
    "nope.example.com A": "secure NXDOMAIN -",
    "x.y.nope.example.com AAAA": "secure NXDOMAIN -",
    "zzzz.example.com A": "secure NXDOMAIN -",
    "deep.example.com A": "secure NOERROR -",
    "b.deep.example.com TXT": "secure NOERROR -",
    "a.b.deep.example.com TXT": 'secure NOERROR "deep"',
    "x.deep.example.com TXT": "secure NXDOMAIN -",
    "one.s.example.com TXT": 'secure NOERROR "whichever"',
    "two.one.s.example.com TXT": 'secure NOERROR "whichever"',
    "one.s.example.com A": "secure NOERROR -",
    "s.example.com TXT": "secure NOERROR -",
    "one.w.example.com TXT": "secure NOERROR -",
    "sub.example.com DS": "secure NOERROR 0",
    "sub.example.com TXT": 'insecure NOERROR "unsigned"',
    "nope.sub.example.com A": "insecure NXDOMAIN -",
}
STEERED = ("api.example.com", "www.example.com", "one.w.example.com", "example.com", "alias.example.net")


def balancer(clock: Callable[[], float]) -> Balancer:
    networks = [(source.removesuffix("1") + "0/24", group) for group, source in enumerate(SOURCES.values(), 1)]
    lb = Balancer(REGIONS, PrefixMap.from_prefixes(networks), clock=clock)
    for group, name in enumerate(SOURCES, 1):
        for slot, region in enumerate(REGIONS):
            lb.table.seed(group, slot, 10.0 if region.name == name else 50.0 + slot, 1.0)
    lb.tick()
    return lb


def signer(zone: str, **options: Any) -> Signer:
    timing = Timing(activate=time.time() - 2 * HOUR, sync_publish=time.time() - HOUR)
    return Signer(zone, [Key.generate(zone, timing=timing, **options)])


def zones(**keys: Signer) -> list[Zone]:
    steered = {"api": PROFILE, "*.w": PROFILE}
    return [
        Zone("example.com", steered, RECORDS, {"@": "api"}, keys=keys.get("com")),
        Zone("example.net", records="gw.cdn A 198.51.100.1\ngw.cdn TXT gateway\nalias CNAME api.example.com.", keys=keys.get("net")),
        Zone("sub.example.com", records="@ TXT unsigned"),
    ]


def anchors(*signers: Signer) -> list[str]:
    return [f"{key.zone} DS {key.ds.to_text()}" for signer in signers for key in signer.keys if key.sep]


def outcome(question: str, response: Message) -> str:
    """Give what an application learns: how far to trust it, the code, the records in order or their number."""
    rdtype = dns.rdatatype.from_text(question.split()[1])
    found = sorted(rdata.to_text() for rrset in response.answer if rrset.rdtype == rdtype for rdata in rrset)
    trust = "bogus" if bogus(response) else "secure" if secure(response) else "insecure"
    told = " ".join(found) or "-" if rdtype in (A, AAAA, TXT) else len(found)
    return f"{trust} {dns.rcode.to_text(response.rcode())} {told}"


async def outcomes(resolver: Unbound, questions: Iterable[str]) -> dict[str, str]:
    return {question: outcome(question, await resolver.ask(*question.split())) for question in questions}


@contextlib.asynccontextmanager
async def serving(responder: Responder, compiled: bool = False) -> AsyncIterator[int]:
    async with Server(responder, "127.0.0.1", 0) if compiled else Server(responder, "127.0.0.1", 0, wire=None) as server:
        yield server.address[1]


def ports(port: int) -> dict[str, int]:
    return dict.fromkeys(("example.com", "example.net", "sub.example.com"), port)


def told(a: str, aaaa: str, https: int) -> dict[str, str]:
    """Give what a client is told of all names that are steered alike."""
    said = {"A": a, "AAAA": aaaa, "HTTPS": https}
    return {f"{name} {rdtype}": f"secure NOERROR {data}" for name in STEERED for rdtype, data in said.items()}


# A zone's own name cannot be a CNAME: there the next region stands in for the one that has a host name only.
APEX = {key: said for key, said in told("192.0.2.1 192.0.2.2", "2001:db8::1", 2).items() if key.startswith("example.com ")}
ALIASED = told("198.51.100.1", "-", 0) | APEX


# ===== every kind of answer


@pytest.mark.parametrize("compiled", [False, True], ids=["responder", "compiled"])
@pytest.mark.parametrize("algorithm", [Algorithm.ECDSAP256SHA256, Algorithm.ED25519])
async def test_every_kind_of_answer_validates(
    tmp_path: Path, program: Program, clock: Clock, algorithm: Algorithm, compiled: bool
) -> None:  # fmt: skip
    com, net = signer("example.com", algorithm=algorithm), signer("example.net", algorithm=algorithm)
    async with (
        serving(Responder(balancer(clock), zones(com=com, net=net)), compiled) as port,
        unbound(program("unbound"), tmp_path / "unbound", ports(port), anchors(com, net), source=SOURCES["dual"]) as resolver,
    ):
        expected = ANYWHERE | told("192.0.2.1 192.0.2.2", "2001:db8::1", 2)
        assert await outcomes(resolver, expected) == expected


@pytest.mark.parametrize("compiled", [False, True], ids=["responder", "compiled"])
@pytest.mark.parametrize(
    ("region", "expected"),
    [("four", told("192.0.2.4", "-", 2)), ("alias", ALIASED)],
)
async def test_what_a_region_lacks_is_denied_to_its_clients(
    tmp_path: Path, program: Program, clock: Clock, region: str, expected: dict[str, str], compiled: bool
) -> None:  # fmt: skip
    com, net = signer("example.com"), signer("example.net")
    async with (
        serving(Responder(balancer(clock), zones(com=com, net=net)), compiled) as port,
        unbound(program("unbound"), tmp_path / "unbound", ports(port), anchors(com, net), source=SOURCES[region]) as resolver,
    ):
        assert await outcomes(resolver, expected) == expected


async def test_a_denial_made_from_nsec_is_one_that_we_would_give(tmp_path: Path, program: Program, clock: Clock) -> None:
    """RFC 8198: unbound makes answers itself from what it has; in any order, they are those that it would have got."""
    com, net = signer("example.com"), signer("example.net")
    expected = ANYWHERE | told("192.0.2.4", "-", 2)
    responder = Responder(balancer(clock), zones(com=com, net=net))
    async with serving(responder) as port:
        for number, order in enumerate((sorted(expected), sorted(expected, reverse=True))):
            async with unbound(
                program("unbound"), tmp_path / str(number), ports(port), anchors(com, net), source=SOURCES["four"], aggressive=True
            ) as resolver:
                assert await outcomes(resolver, order) == expected
                asked = responder.counters["queries"]
                assert outcome("q.nope.example.com A", await resolver.ask("q.nope.example.com", "A")) == "secure NXDOMAIN -"
                assert responder.counters["queries"] == asked  # so it was made from NSEC


async def test_a_denial_for_one_region_is_never_made_for_the_next_names_cname(tmp_path: Path, program: Program, clock: Clock) -> None:
    """The NSEC that denies `api0` is that of `api`, where this client gets a CNAME whatever the type."""
    com, net = signer("example.com"), signer("example.net")
    async with (
        serving(Responder(balancer(clock), zones(com=com, net=net))) as port,
        unbound(
            program("unbound"), tmp_path / "unbound", ports(port), anchors(com, net), source=SOURCES["alias"], aggressive=True
        ) as resolver,
    ):
        expected = {"api0.example.com A": "secure NXDOMAIN -", "api.example.com TXT": 'secure NOERROR "gateway"'}
        assert await outcomes(resolver, expected) == expected


async def test_without_https_anywhere_its_records_are_denied(tmp_path: Path, program: Program, clock: Clock) -> None:
    com, net = signer("example.com"), signer("example.net")
    lb = balancer(clock)
    lb.set_regions([replace(region, gateway=region.gateway.replace("https", "http")) for region in lb.regions])
    async with (
        serving(Responder(lb, zones(com=com, net=net))) as port,
        unbound(program("unbound"), tmp_path / "unbound", ports(port), anchors(com, net), source=SOURCES["dual"]) as resolver,
    ):
        expected = {f"{name} {rdtype}": "secure NOERROR 0" for name in STEERED for rdtype in ("HTTPS", "SVCB")}
        assert await outcomes(resolver, expected) == expected


LABELS = ("a", "b", "z", "aa", "-0", "*")
KINDS = ("steered", "steered", "steered", "A", "TXT", "CNAME", "CNAME api", "NS", "DS", "alias")
CUT = "cut."  # begins the names of delegated zones, so that none lies in another
ASKED = ("A", "AAAA", "TXT", "MX", "HTTPS", "SVCB", "CNAME", "NS", "DS", "SOA", "TYPE65280")


def some_name(draw: random.Random) -> str:
    """Give a name of few labels, so that names are each other's parents, neighbours and wildcards."""
    return ".".join([draw.choice(LABELS), *draw.choices(LABELS[:-1], k=draw.randrange(3))])


def some_zone(draw: random.Random, keys: Signer | None = None) -> Zone:
    steered, lines, aliases = {"api": PROFILE}, [], {"@": "api"} if draw.random() < 0.5 else {}
    for name in sorted({some_name(draw) for _ in range(draw.randrange(2, 10))}):
        kind = draw.choice(KINDS)
        if kind == "steered":
            method = draw.choice(("performance", "multivalue"))
            steered[name] = Profile(ttl=draw.choice((5, 300)), enabled=draw.random() < 0.8, method=method)
        elif kind == "alias":
            aliases[name] = "api"
        elif kind in ("NS", "DS") and "*" not in name:
            lines += [f"{CUT}{name} NS ns.example.org.", f"{CUT}{name} DS 1 13 2 {'00' * 32}"][: 1 + (kind == "DS")]
        elif kind not in ("NS", "DS"):
            data = {"A": "A 192.0.2.9", "TXT": "TXT static", "CNAME": "CNAME gw.cdn.example.net.", "CNAME api": "CNAME api"}
            lines.append(f"{name} {data[kind]}")
    return Zone("example.com", steered, "".join(f"{line}\n" for line in lines), aliases, keys=keys, negative_ttl=draw.choice((30, 300)))


def some_questions(draw: random.Random, zone: Zone) -> list[tuple[str, str]]:
    """Give questions about names that exist and others, but for those that only the zone above or below can answer."""
    exist = {from_key(key).to_text(True) for key in (*zone.content, *zone.steered, *zone.stands_for)}
    # A name that only begins like a wildcard validates by RFC 4035 §5.3.2, where unbound 1.17 removes one label too few.
    others = {name for _ in range(12) if "*" not in (name := f"{some_name(draw)}.example.com")}
    questions = [(name, "DS" if name.startswith(CUT) else rdtype) for name in sorted(exist | others) for rdtype in draw.sample(ASKED, 5)]
    draw.shuffle(questions)
    return [question for question in questions if question != ("example.com", "DS")]


@pytest.mark.parametrize("seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.heavy) for seed in range(5, 45))])
async def test_no_answer_of_any_zone_is_bogus_and_each_says_what_the_unsigned_one_says(
    tmp_path: Path, program: Program, seed: int
) -> None:  # fmt: skip
    draw, source = random.Random(seed), [*SOURCES.values()][seed % len(SOURCES)]
    com, net = signer("example.com"), signer("example.net")
    zone, unsigned = some_zone(random.Random(seed), com), Responder(balancer(Clock()), [some_zone(random.Random(seed))])
    async with (
        serving(Responder(balancer(Clock()), [zone, zones(net=net)[1]]), draw.random() < 0.5) as port,  # nothing delegates sub
        unbound(
            program("unbound"), tmp_path / "unbound", ports(port), anchors(com, net), source=source, aggressive=seed % 2 == 0
        ) as resolver,
    ):
        for name, rdtype in some_questions(draw, zone):
            response = await resolver.ask(name, rdtype)
            assert secure(response), (name, rdtype)
            wire = unsigned.answer(dns.message.make_query(name, rdtype).to_wire(), source, tcp=True)
            expected = dns.message.from_wire(wire or b"").answer
            if not any(rrset.rdtype == CNAME for rrset in expected):  # which the resolver follows
                assert [{*rrset} for rrset in response.answer if rrset.rdtype != RRSIG] == [{*rrset} for rrset in expected], (name, rdtype)


# ===== the controls: what is wrong is refused


class Forger(Responder):
    """Answers with other addresses than were signed."""

    def answer(self, query: bytes, client: Any, *, tcp: bool = False) -> bytes | None:
        wire = super().answer(query, client, tcp=tcp)
        return wire and wire.replace(bytes((192, 0, 2)), bytes((192, 0, 3)))


class Stripper(Responder):
    """Answers as if no zone were signed, but for the keys."""

    def answer(self, query: bytes, client: Any, *, tcp: bool = False) -> bytes | None:
        asked = dns.message.from_wire(query)
        if asked.question[0].rdtype != dns.rdatatype.DNSKEY:
            asked.want_dnssec(False)
        return super().answer(asked.to_wire(), client, tcp=tcp)


@pytest.mark.parametrize(
    ("liar", "refused"),
    [(Forger, {"api.example.com A", "mail.example.com A", "one.w.example.com A"}), (Stripper, {*ANYWHERE, *told("", "", 0)})],
)
async def test_what_is_forged_or_stripped_is_refused(
    tmp_path: Path, program: Program, clock: Clock, liar: type[Responder], refused: set[str]
) -> None:  # fmt: skip
    com, net = signer("example.com"), signer("example.net")
    async with (
        serving(liar(balancer(clock), zones(com=com, net=net))) as port,
        unbound(program("unbound"), tmp_path / "unbound", ports(port), anchors(com, net), source=SOURCES["dual"]) as resolver,
    ):
        found = await outcomes(resolver, sorted(refused - {"example.com DNSKEY"}))
        assert {question for question, said in found.items() if not said.startswith("bogus SERVFAIL")} == set()


async def test_another_key_than_the_parents_is_refused(tmp_path: Path, program: Program, clock: Clock) -> None:
    com, other = signer("example.com"), signer("example.com")
    async with (
        serving(Responder(balancer(clock), zones(com=com))) as port,
        unbound(program("unbound"), tmp_path / "unbound", ports(port), anchors(other)) as resolver,
    ):
        assert bogus(await resolver.ask("api.example.com", "A"))


async def test_expired_signatures_are_refused_and_those_renewed_in_time_are_not(tmp_path: Path, program: Program) -> None:
    """A signer that stood still for 16 days, and one that was ticked; unbound's clock allows for a day."""
    started = time.time()
    wall = Clock(started)
    com = Signer("example.com", [Key.generate("example.com", timing=Timing(activate=started - HOUR))], clock=wall)
    responder = Responder(balancer(Clock()), zones(com=com))
    late = f"{datetime.fromtimestamp(started + 16 * 24 * HOUR, UTC):%Y%m%d%H%M%S}"
    async with (
        serving(responder) as port,
        unbound(program("unbound"), tmp_path / "unbound", ports(port), anchors(com), date=late) as resolver,
    ):
        assert bogus(await resolver.ask("api.example.com", "A"))
        wall.advance(16 * 24 * HOUR)
        responder.tick()
        await resolver.forget()
        assert secure(await resolver.ask("api.example.com", "A"))


# ===== across changes


@pytest.mark.parametrize("compiled", [False, True], ids=["responder", "compiled"])
async def test_answers_stay_secure_across_a_failover(tmp_path: Path, program: Program, clock: Clock, compiled: bool) -> None:
    com, net = signer("example.com"), signer("example.net")
    lb = balancer(clock)
    async with (
        serving(Responder(lb, zones(com=com, net=net)), compiled) as port,
        unbound(program("unbound"), tmp_path / "unbound", ports(port), anchors(com, net), source=SOURCES["dual"]) as resolver,
    ):
        for down, expected in (
            ((), ("192.0.2.1 192.0.2.2", "2001:db8::1", 2)),
            (("dual",), ("192.0.2.4", "-", 2)),
            (("dual", "four"), ("198.51.100.1", "-", 0)),
            ((), ("192.0.2.1 192.0.2.2", "2001:db8::1", 2)),
        ):
            for region in lb.regions:
                lb.table.set_tier(lb.slot(region), 3 if region.name in down else 0, clock())
            for _ in range(120):  # until all who had left are back
                clock.advance(1)
                lb.tick()
            await resolver.forget()
            questions = {question: said for question, said in told(*expected).items() if question.split()[0] != "example.com"}
            assert await outcomes(resolver, questions) == questions


class Rollover:
    """A zone whose key files change as `lbcore dns keygen --successor` says, under a wall clock that the test sets."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.wall = directory, Clock(time.time() - 12 * HOUR)
        monkeypatch.setattr("lbcore.cli.keys.time.time", self.wall)
        self.run("keygen", "example.com", "-d", str(directory))

    def run(self, *words: str) -> Any:
        done = CliRunner().invoke(app, ["dns", *words, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def successor(self, *options: str) -> Any:
        return self.run("keygen", "example.com", "-d", str(self.directory), "--successor", "--ttl", "3600", "--ds-ttl", "3600", *options)

    def serve(self) -> Responder:
        self.signer = Signer("example.com", self.directory, ttl=HOUR, clock=self.wall)
        self.responder = Responder(balancer(Clock()), zones(com=self.signer))
        return self.responder

    def until(self, at: str | None, after: int) -> None:
        now = datetime.fromisoformat(at).timestamp() if at else self.wall() + after
        self.wall.advance(now + 1 - self.wall())
        self.responder.tick()


QUESTIONS = {
    "api.example.com A": "secure NOERROR 192.0.2.1 192.0.2.2", "mail.example.com AAAA": "secure NOERROR -",
    "nope.example.com A": "secure NXDOMAIN -", "one.s.example.com TXT": 'secure NOERROR "whichever"',
}  # fmt: skip


async def test_answers_stay_secure_across_a_zsk_rollover(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """One unbound, which holds on to the DNSKEY set while answers come anew, and one that holds on to nothing."""
    rollover = Rollover(tmp_path / "keys", monkeypatch)
    rollover.run("keygen", "example.com", "-d", str(tmp_path / "keys"), "--zsk")
    rollover.wall.advance(3 * HOUR)
    responder = rollover.serve()
    trusted = anchors(rollover.signer)
    async with (
        serving(responder) as port,
        unbound(program("unbound"), tmp_path / "holding", ports(port), trusted, source=SOURCES["dual"]) as holding,
        unbound(program("unbound"), tmp_path / "forgetful", ports(port), trusted, source=SOURCES["dual"]) as forgetful,
    ):
        signed = set()
        for at, after in ((step["at"], step["after"]) for step in [{"at": None, "after": 0}, *rollover.successor("--zsk")["steps"]]):
            rollover.until(at, after)
            await forgetful.forget()
            for question in QUESTIONS:
                await holding.forget(question.split()[0], whole=False)
            assert (await outcomes(holding, QUESTIONS), await outcomes(forgetful, QUESTIONS)) == (QUESTIONS, QUESTIONS)
            answer = (await forgetful.ask("api.example.com", "A")).answer
            signed |= {rdata.key_tag for rrset in answer for rdata in rrset if rrset.rdtype == RRSIG}
    assert len(signed) == 2 and len(rollover.signer.apex()[0]) == 2


@pytest.mark.parametrize("options", [[], ["--algorithm", "ED25519"]], ids=["same", "algorithm"])
async def test_answers_stay_secure_across_the_rollover_of_a_csk(
    tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:  # fmt: skip
    """An unbound that trusts the old DS until the last step, and one that trusts the new DS from the step that gives it to the parent."""
    rollover = Rollover(tmp_path / "keys", monkeypatch)
    rollover.wall.advance(3 * HOUR)
    responder = rollover.serve()
    before = anchors(rollover.signer)
    made = rollover.successor(*options)
    async with (
        serving(responder) as port,
        unbound(program("unbound"), tmp_path / "old", ports(port), before, source=SOURCES["dual"]) as old,
        unbound(program("unbound"), tmp_path / "new", ports(port), [made["ds"].replace(" IN ", " ")], source=SOURCES["dual"]) as new,
    ):
        trusts = {"old": True, "new": False}
        for step in made["steps"]:
            rollover.until(step["at"], step["after"])
            trusts["new"] = trusts["new"] or "parent" in step["what"]
            if step["what"].startswith("lbcore dns "):
                await _still(old, trusts["old"])
                trusts["old"] = False
                rollover.run(*step["what"].split()[2:])
                rollover.until(None, 2)
            await _still(old, trusts["old"])
            await _still(new, trusts["new"])
        rollover.until(None, 3 * HOUR)
        await _still(new, True)
        await old.forget()
        assert bogus(await old.ask("mail.example.com", "A"))
    assert [dns.dnssec.key_id(key) for key in rollover.signer.apex()[0]] == [made["tag"]]


async def _still(resolver: Unbound, trusting: bool) -> None:
    if trusting:
        await resolver.forget()
        assert await outcomes(resolver, QUESTIONS) == QUESTIONS
