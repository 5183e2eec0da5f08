"""A resolver that caches by the book (RFC 7871 §7.3.1) never gives anybody an answer that asking directly would not have given.

What it keeps is found by name, type and network: an answer is for every client within its scope; one whose scope exceeds its source
is for clients of that source alone; scope 0 of a withheld network is for those who withhold theirs. Denials are kept the same way.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import dns.flags
import pytest
from conftest import Clock
from hypothesis import example, given
from hypothesis import strategies as st
from resolving import ask, is_denial, scope_of, subnet

from lbcore import Balancer, PrefixMap, Region
from lbcore.dns import Profile, Responder, Zone
from lbcore.dns.profile import Endpoint

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Question = tuple[str, str]

REGIONS = tuple(Region(f"r{n}", 0, n, addresses=(f"192.0.2.{n + 1}",), gateway=f"https://r{n}.example") for n in range(4)) + (
    Region("only6", 0, 5, addresses=("2001:db8::1",)),  # its A is a denial
    Region("alias", 0, 6, gateway="https://gw.example.net"),
)
QUESTIONS: tuple[Question, ...] = (
    ("api.example.com", "A"), ("api.example.com", "AAAA"), ("api.example.com", "HTTPS"), ("api.example.com", "TXT"),
    ("api.example.com", "ANY"), ("any.example.com", "A"), ("any.example.com", "AAAA"), ("x.wild.example.com", "A"),
    ("static.example.com", "A"), ("static.example.com", "AAAA"), ("nope.example.com", "A"), ("example.com", "A"),
)  # fmt: skip


@dataclass(frozen=True)
class Response:
    """What a resolver reads from an answer. records: of the answer section, or the code of a denial."""

    records: frozenset[str]
    scope: int
    ttl: int


@dataclass(frozen=True)
class Entry:
    """What a resolver keeps: for which network, by which source, until when, and what."""

    question: Question
    network: Network
    scope: int
    source: int
    until: float
    records: frozenset[str]

    def serves(self, question: Question, client: Network, now: float) -> bool:
        """Say whether the entry answers for a client's network without asking again."""
        if question != self.question or now >= self.until or client.version != self.network.version:
            return False
        if not client.subnet_of(self.network):  # type: ignore[arg-type]
            return False
        return client.prefixlen == self.source if self.scope > self.source or self.source == 0 else True


Direct = Callable[[Question, Network], Response]


class Resolver:
    """Sends as many bits as each client wants it to, and keeps what it gets."""

    def __init__(self, direct: Direct, clock: Clock) -> None:
        self._direct, self._clock = direct, clock
        self.cache: list[Entry] = []
        self.hits = 0

    def resolve(self, question: Question, client: Network) -> frozenset[str]:
        for entry in self.cache:
            if entry.serves(question, client, self._clock()):
                self.hits += 1
                return entry.records
        found = self._direct(question, client)
        network = client.supernet(new_prefix=min(found.scope, client.prefixlen))
        self.cache.append(Entry(question, network, found.scope, client.prefixlen, self._clock() + found.ttl, found.records))
        return found.records


def asking(responder: Responder) -> Direct:
    def direct(question: Question, client: Network) -> Response:
        response = ask(responder, *question, "192.0.2.250", id=1, **subnet(str(client)))
        assert response.answer or is_denial(response)
        assert response.flags & dns.flags.AA
        scope = scope_of(response)
        assert scope is not None
        records = {f"{rrset.rdtype} {rdata}" for rrset in response.answer for rdata in rrset} or {str(response.rcode())}
        return Response(frozenset(records), scope, min(rrset.ttl for rrset in response.answer or response.authority))

    return direct


# ===== worlds


@dataclass(frozen=True)
class World:
    """Networks and their groups, where group g belongs to region g modulo their number, and what is wrong with the regions."""

    prefixes: tuple[tuple[Network, int], ...]
    profile: Profile = Profile("api", "example.com", ttl=20)
    down: frozenset[int] = frozenset()
    disabled: frozenset[int] = frozenset()

    def responder(self, clock: Clock) -> Responder:
        lb = Balancer(REGIONS, PrefixMap.from_prefixes([*self.prefixes]), clock=clock)
        for group in range(lb.table.groups):
            for slot in range(len(REGIONS)):
                lb.table.seed(group, slot, 10.0 + 100 * ((slot - group) % len(REGIONS)), 1.0)
        lb.tick()
        for slot in self.down:
            lb.table.set_tier(slot, 3, clock())
        for slot in self.disabled:
            lb.disable(REGIONS[slot])
        return Responder(lb, self.zone())

    def zone(self) -> Zone:
        other = replace(self.profile, family="any")
        names = {"api": self.profile, "any": other, "*.wild": self.profile}
        return Zone("example.com", names, records="static A 192.0.2.99\n", negative_ttl=10)


def networks(address: st.SearchStrategy[int], lengths: st.SearchStrategy[int]) -> st.SearchStrategy[Network]:
    """IPv4 networks that crowd together below 80.0.0.0/6, IPv6 ones below 2600::/12, so that they nest and touch."""
    v4 = st.builds(lambda a, n: ipaddress.ip_network(((0x50 << 24) | a >> 6, n), strict=False), address, lengths.map(lambda n: min(n, 32)))
    v6 = st.builds(lambda a, n: ipaddress.ip_network(((0x2600 << 112) | a << 84, n), strict=False), address, lengths.map(lambda n: n * 2))
    return st.one_of(v4, v6)


def net(text: str) -> Network:
    return ipaddress.ip_network(text)


BITS = st.integers(0, 2**32 - 1) | st.sampled_from([0, 2**31, 2**32 - 1, 3 << 20])
PREFIXES = st.lists(st.tuples(networks(BITS, st.integers(3, 32)), st.integers(0, 8)), max_size=12).map(tuple)
SLOTS = st.frozensets(st.integers(0, len(REGIONS) - 1))
REGION_NAMES = st.lists(st.sampled_from([region.name for region in REGIONS]), unique=True, min_size=1)
ALL = tuple(Endpoint(region.name) for region in REGIONS)


def by_subnet(names: list[str], subnets: list[Network]) -> tuple[Endpoint, ...]:
    """Give one network, none within another, to each endpoint; one more takes the rest."""
    apart: list[Network] = []
    for network in subnets:
        if network.prefixlen and not any(network.version == other.version and network.overlaps(other) for other in apart):
            apart.append(network)
    mapped = tuple(Endpoint(name, subnets=(str(network),)) for name, network in zip(names, apart, strict=False))
    return (*mapped, Endpoint(profile=Profile("rest", endpoints=ALL[:3])))


def profile(method: str, names: list[str], subnets: list[Network], fail_open: str) -> Profile:
    """Give a profile of a method; weights are the id's draw, and every query of these tests has the same."""
    if method == "subnet":
        endpoints = by_subnet(names, subnets)
    elif method == "nested":
        inner = Profile("inner", endpoints=tuple(Endpoint(name) for name in names), fail_open=fail_open)
        return Profile(ttl=20, method="priority", endpoints=(Endpoint(profile=inner), *ALL[:2]), fail_open=fail_open)
    else:
        endpoints = tuple(Endpoint(name) for name in names)
    return Profile(ttl=20, method=method, endpoints=endpoints, fail_open=fail_open)


PROFILES = st.builds(
    profile, st.sampled_from(("performance", "priority", "weighted", "multivalue", "subnet", "nested")), REGION_NAMES,
    st.deferred(lambda: st.lists(networks(BITS, st.integers(3, 32)), min_size=1, max_size=4)), st.sampled_from(("serve_all", "nodata")),
)  # fmt: skip
WORLDS = st.builds(World, PREFIXES, PROFILES, SLOTS, SLOTS)
# A client: its network, a pause before it asks, and whether to ask near a network of the map instead.
CLIENTS = st.lists(st.tuples(st.sampled_from(QUESTIONS), networks(BITS, st.integers(0, 32)), st.floats(0, 12)), max_size=25)

def each(*texts: str, questions: tuple[Question, ...] = QUESTIONS[:1]) -> list[tuple[Question, Network, float]]:
    """Give the clients that ask the same from these networks, one at once after the other."""
    return [(question, net(text), 0.0) for question in questions for text in texts]


NESTED = World(((net("80.0.0.0/8"), 1), (net("80.1.2.0/24"), 2), (net("80.1.0.0/16"), 3)))
NESTED_ASKED = each("80.0.0.0/8", "80.1.2.0/24", "80.1.3.0/24", "80.2.0.0/16", "80.1.0.0/16")
DENIED = World(((net("80.0.0.0/8"), 1), (net("80.4.0.0/16"), 4)))  # group 4 belongs to only6
DENIED_ASKED = each("80.4.0.0/24", "80.5.0.0/24", "80.4.1.0/24", "0.0.0.0/0", "80.0.0.0/4")
WITHHELD = each("0.0.0.0/0", "80.1.2.0/24", "0.0.0.0/0", "::/0", "2600::/16", questions=QUESTIONS[:2])


@given(WORLDS, CLIENTS, st.randoms(use_true_random=False))
@example(NESTED, NESTED_ASKED, random.Random(1))
@example(DENIED, DENIED_ASKED, random.Random(1))
@example(DENIED, WITHHELD, random.Random(1))
@example(NESTED, WITHHELD, random.Random(1))
def test_no_client_of_a_caching_resolver_gets_what_it_would_not_have_got_directly(
    world: World, clients: list[tuple[Question, Network, float]], rng: random.Random
) -> None:
    assert play(world, clients, rng).wrong == []


@dataclass
class Played:
    """hits: answers from the cache. wrong: those that asking directly would not have given."""

    hits: int
    wrong: list[tuple[Question, Network]]


def play(
    world: World, clients: list[tuple[Question, Network, float]], rng: random.Random | None = None,
    *, spoil: Callable[[int, int], int] | None = None,
) -> Played:  # fmt: skip
    """Let clients ask a resolver, some of them near others. spoil: gives another scope for (scope, source)."""
    clock = Clock()
    direct = asking(world.responder(clock))

    def spoiled(question: Question, client: Network) -> Response:
        found = direct(question, client)
        return replace(found, scope=spoil(found.scope, client.prefixlen)) if spoil else found

    resolver = Resolver(spoiled, clock)
    asked = [network for network, _ in world.prefixes if network.prefixlen]
    wrong = []
    for question, network, wait in clients:
        clock.advance(wait)
        client = nearby(rng.choice(asked), rng) if rng and asked and rng.random() < 0.7 else network
        asked.append(client)
        if resolver.resolve(question, client) != direct(question, client).records:
            wrong.append((question, client))
    return Played(resolver.hits, wrong)


def nearby(network: Network, rng: random.Random) -> Network:
    """Give a network inside, around or beside another."""
    bits = network.max_prefixlen
    length = min(bits, max(1, network.prefixlen + rng.randint(-3, 6)))
    address = int(network.network_address) ^ (rng.getrandbits(bits - network.prefixlen) if network.prefixlen < bits else 0)
    kind = ipaddress.IPv4Network if network.version == 4 else ipaddress.IPv6Network
    return kind((address ^ (rng.getrandbits(1) << (bits - length)), length), strict=False)


# ===== the model itself


def test_the_resolver_of_the_model_does_serve_from_its_cache() -> None:
    rng = random.Random(1)
    world = World(tuple((net(f"80.{n}.0.0/{16 + n % 8}"), n % 9) for n in range(30)))
    clients = [(QUESTIONS[n % 3], net(f"80.{rng.randrange(30)}.{rng.randrange(256)}.0/24"), 0.01) for n in range(400)]
    played = play(world, clients)
    assert played.wrong == []
    assert played.hits > 100


SPOILED: dict[str, Callable[[int, int], int]] = {
    "copied from the source": lambda scope, source: source,
    "0": lambda scope, source: 0,
    "a bit too short": lambda scope, source: max(0, scope - 1),
    "cut off at the source": min,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_the_model_sees_a_wrong_scope(spoil: Callable[[int, int], int]) -> None:
    world = World(((net("80.0.0.0/8"), 1), (net("80.1.0.0/16"), 2), (net("80.0.0.0/16"), 3)))
    asked = each("80.0.0.0/12", "80.0.5.0/24", "80.1.5.0/24", "80.2.5.0/24")
    assert play(world, asked).wrong == []
    assert play(world, asked, spoil=spoil).wrong


def test_the_model_sees_a_denial_that_claims_to_be_everybody_s() -> None:
    assert play(DENIED, DENIED_ASKED[:2], spoil=lambda scope, source: 0).wrong == [DENIED_ASKED[1][:2]]


@pytest.mark.parametrize("question", QUESTIONS[8:])
def test_what_is_the_same_for_everybody_is_asked_once(question: Question) -> None:
    assert play(NESTED, each("80.1.2.0/24", "80.4.0.0/16", "9.9.9.0/24", questions=(question,))) == Played(2, [])
