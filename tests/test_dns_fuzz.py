"""Packets of chance and of malice, and a resolver that caches by the book: nothing raises, nothing outgrows, no answer goes astray."""

from __future__ import annotations

import ipaddress
import random
import struct
from dataclasses import dataclass

import dns.edns
import dns.message
import dns.rcode
import pytest
from conftest import Clock
from hypothesis import given
from hypothesis import strategies as st
from resolving import OWNER, PROFILE, ask, balancer, is_denial, scope_of, subnet

from lbcore import Balancer, PrefixMap, Region
from lbcore.dns import Responder

RESPONDER = Responder(balancer(Clock()), PROFILE)
OUTCOMES = ("dropped", "noerror", "nodata", "nxdomain", "refused", "formerr", "notimp", "badvers", "notauth", "servfail")
CODES = {"NOERROR", "NXDOMAIN", "REFUSED", "FORMERR", "NOTIMP", "BADVERS", "NOTAUTH"}


def check(packet: bytes, tcp: bool) -> None:
    """Whatever comes in: no answer, or one that dnspython reads, is of the same id and opcode, and fits."""
    before = RESPONDER.counters["queries"]
    answer = RESPONDER.answer(packet, "81.2.2.1", tcp=tcp)
    assert RESPONDER.counters["queries"] == before + 1 == sum(RESPONDER.counters[name] for name in OUTCOMES)
    assert (answer is None) == (len(packet) < 12 or bool(packet[2] & 0x80))
    if answer is None:
        return
    assert len(answer) <= (65_535 if tcp else 1232)
    assert answer[:2] == packet[:2]
    assert (answer[2] & 0xF9) == (packet[2] & 0x79 | 0x80)  # QR set, opcode and RD kept; AA and TC are the server's
    assert not answer[3] & 0xF0  # RA, Z, AD, CD
    response = dns.message.from_wire(answer) if not packet[2] & 0x78 else None
    assert response is None or dns.rcode.to_text(response.rcode()) in CODES


def queries() -> list[bytes]:
    """Some good queries to spoil."""
    found = []
    for name in (OWNER, "example.com", "nope.example.com", "example.net"):
        for rdtype in ("A", "ANY", "NS"):
            found.append(dns.message.make_query(name, rdtype).to_wire())
            found.append(dns.message.make_query(name, rdtype, **subnet("81.2.2.0/24")).to_wire())
            found.append(dns.message.make_query(name, rdtype, **subnet("2001:db8::/56"), payload=4096).to_wire())
    return found


@given(st.binary(max_size=600), st.booleans())
def test_any_bytes(packet: bytes, tcp: bool) -> None:
    check(packet, tcp)


@given(st.binary(max_size=300), st.tuples(*[st.integers(0, 2)] * 4), st.booleans())
def test_any_bytes_behind_a_plausible_header(body: bytes, counts: tuple[int, ...], tcp: bool) -> None:
    check(b"\x55\xaa\x01\0" + struct.pack("!4H", *counts) + body, tcp)


def test_mutated_queries() -> None:
    rng = random.Random(7871)
    good = queries()
    for _ in range(4000):
        packet = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            spoil(packet, rng)
        check(bytes(packet), rng.random() < 0.2)
    assert all(RESPONDER.counters[name] for name in ("noerror", "nxdomain", "refused", "formerr", "notimp", "badvers", "dropped"))
    assert not RESPONDER.counters["servfail"]


def spoil(packet: bytearray, rng: random.Random) -> None:
    """Change, insert, remove or repeat a few bytes, or cut the end off."""
    at = rng.randrange(len(packet) + 1)
    kind = rng.randrange(6)
    if kind <= 1 and at < len(packet):
        packet[at] = rng.choice((0, 1, 0xC0, 0xFF, rng.randrange(256)))
    elif kind == 2:
        packet[at:at] = rng.randbytes(rng.randint(1, 8))
    elif kind == 3:
        del packet[at : at + rng.randint(1, 8)]
    elif kind == 4:
        packet[at:at] = packet[max(0, at - rng.randint(1, 40)) : at]
    else:
        del packet[max(at, 3) :]


@pytest.mark.parametrize("repeats", [200, 5000])
def test_a_packet_of_many_records_costs_no_more_than_its_bytes(repeats: int) -> None:
    head = b"\0\x01\0\0\0\x01" + struct.pack("!HHH", 0, 0, 65_535)
    check(head + b"\x01a\0\0\x01\0\x01" + b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\0" * repeats, True)


# ===== ECS: a caching resolver by RFC 7871 §7.3.1 never gives anybody another network's answer

ANSWERS = tuple(Region(f"r{n}", 0, n, addresses=(f"192.0.2.{n + 1}",)) for n in range(4)) + (
    Region("only6", 0, 5, addresses=("2001:db8::1",)),  # its A is a denial
    Region("alias", 0, 6, gateway="https://gw.example.net"),
)
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Entry:
    """What a resolver keeps: for which network, by which source, until when, and what."""

    network: Network
    scope: int
    source: int
    until: float
    records: frozenset[str]

    def serves(self, client: Network, now: float) -> bool:
        """Say whether the entry answers for a client's network without asking again.

        Scope within the source: for every network inside the scope. Scope beyond the source: the answer was for that source
        only. Scope 0 of a withheld network (source 0) is only for those who withhold it too.
        """
        if now >= self.until or client.version != self.network.version or not client.subnet_of(self.network):
            return False
        return client.prefixlen == self.source if self.scope > self.source or self.source == 0 else True


class Resolver:
    """A resolver that caches as RFC 7871 §7.3.1 says, and sends as many bits as each client wants it to."""

    def __init__(self, responder: Responder, clock: Clock) -> None:
        self._responder, self._clock = responder, clock
        self.cache: list[Entry] = []
        self.hits = 0

    def resolve(self, client: Network) -> frozenset[str]:
        for entry in self.cache:
            if entry.serves(client, self._clock()):
                self.hits += 1
                return entry.records
        response = ask(self._responder, OWNER, "A", "192.0.2.250", **subnet(str(client)))
        scope = scope_of(response)
        assert scope is not None
        records = records_of(response)
        ttl = min(rrset.ttl for rrset in response.answer or response.authority)
        network = client.supernet(new_prefix=min(scope, client.prefixlen))
        self.cache.append(Entry(network, scope, client.prefixlen, self._clock() + ttl, records))
        return records


def records_of(response: dns.message.Message) -> frozenset[str]:
    assert is_denial(response) or response.answer
    return frozenset(f"{rrset.rdtype} {rdata}" for rrset in response.answer for rdata in rrset)


def world(prefixes: list[tuple[Network, int]], clock: Clock) -> Balancer:
    """Give a Balancer where group g belongs to region g, modulo their number."""
    lb = Balancer(ANSWERS, PrefixMap.from_prefixes(prefixes), clock=clock)
    for group in range(lb.table.groups):
        for slot in range(len(ANSWERS)):
            lb.table.seed(group, slot, 10.0 if slot == group % len(ANSWERS) else 100.0, 1.0)
    lb.tick()
    return lb


def networks(address: st.SearchStrategy[int], lengths: st.SearchStrategy[int]) -> st.SearchStrategy[Network]:
    """IPv4 networks that crowd together below 80.0.0.0/6, IPv6 ones below 2600::/12, so that they nest and touch."""
    v4 = st.builds(lambda a, n: ipaddress.ip_network(((0x50 << 24) | a >> 6, n), strict=False), address, lengths.map(lambda n: min(n, 32)))
    v6 = st.builds(lambda a, n: ipaddress.ip_network(((0x2600 << 112) | a << 84, n), strict=False), address, lengths.map(lambda n: n * 2))
    return st.one_of(v4, v6)


BITS = st.integers(0, 2**32 - 1) | st.sampled_from([0, 2**31, 2**32 - 1, 3 << 20])
MAPS = st.lists(st.tuples(networks(BITS, st.integers(3, 32)), st.integers(0, 8)), max_size=12)


@given(MAPS, st.lists(st.tuples(networks(BITS, st.integers(1, 32)), st.floats(0, 20)), max_size=25), st.randoms(use_true_random=False))
def test_no_client_of_a_caching_resolver_gets_what_it_would_not_have_got_directly(
    prefixes: list[tuple[Network, int]], clients: list[tuple[Network, float]], rng: random.Random
) -> None:
    play(prefixes, clients, rng)


def play(prefixes: list[tuple[Network, int]], clients: list[tuple[Network, float]], rng: random.Random) -> Resolver:
    clock = Clock()
    responder = Responder(world(prefixes, clock), PROFILE)
    resolver = Resolver(responder, clock)
    asked: list[Network] = [network for network, _ in prefixes if network.prefixlen]
    for network, wait in clients:
        clock.advance(wait)
        client = nearby(rng.choice(asked), rng) if asked and rng.random() < 0.7 else network
        asked.append(client)
        direct = records_of(ask(responder, OWNER, "A", "192.0.2.250", **subnet(str(client))))
        assert resolver.resolve(client) == direct, f"{client} was served {resolver.cache}"
    return resolver


def nearby(network: Network, rng: random.Random) -> Network:
    """Give a network inside, around or beside another."""
    bits = network.max_prefixlen
    length = min(bits, max(1, network.prefixlen + rng.randint(-3, 6)))
    address = int(network.network_address) ^ (rng.getrandbits(bits - network.prefixlen) if network.prefixlen < bits else 0)
    kind = ipaddress.IPv4Network if network.version == 4 else ipaddress.IPv6Network
    return kind((address ^ (rng.getrandbits(1) << (bits - length)), length), strict=False)


def test_the_resolver_of_the_model_does_serve_from_its_cache() -> None:
    rng = random.Random(1)
    prefixes = [(ipaddress.ip_network(f"80.{n}.0.0/{16 + n % 8}"), n % 9) for n in range(30)]
    clients = [(ipaddress.ip_network(f"80.{rng.randrange(30)}.{rng.randrange(256)}.0/24"), 0.01) for _ in range(300)]
    assert play([*prefixes], [*clients], rng).hits > 100


@pytest.mark.parametrize("wrong", [lambda scope, source: 0, lambda scope, source: scope - 1, lambda scope, source: min(scope, source)])
def test_the_model_sees_a_wrong_scope(wrong: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scope 0, a bit too short, or cut off at the source: each poisons the cache of the model's resolver."""
    clock = Clock()
    prefixes = [(ipaddress.ip_network("80.0.0.0/8"), 1), (ipaddress.ip_network("80.1.0.0/16"), 2), (ipaddress.ip_network("80.0.0.0/16"), 3)]
    lb = world([*prefixes], clock)
    match = lb.match
    monkeypatch.setattr(lb, "match", lambda client: (0, wrong(match(client)[1], 12)))  # type: ignore[operator]
    responder = Responder(lb, PROFILE)
    resolver = Resolver(responder, clock)
    served = []
    for text in ("80.0.0.0/12", "80.0.5.0/24", "80.1.5.0/24", "80.2.5.0/24"):
        client = ipaddress.ip_network(text)
        served.append(resolver.resolve(client) == records_of(ask(responder, OWNER, "A", **subnet(text))))
    assert not all(served)
