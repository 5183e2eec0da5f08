"""The servers that are fuzzed, each in another state, and how an input names one of them, a client and a packet.

    input      world, client (below 64: one of CLIENTS, else 4 or 16 bytes of its own follow), transport, packet
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from lbcore import Balancer, PrefixMap, Region
from lbcore.dns import Responder
from lbcore.dns._cookies import Cookies
from lbcore.dns._rrl import RateLimiter
from lbcore.dns._wire import Wire
from lbcore.dns.dnssec import Signer
from lbcore.dns.keys import Key, Timing
from lbcore.dns.profile import Endpoint, Profile
from lbcore.dns.zone import Zone

NOW = 1_800_000_000  # the wall clock stands still: cookies among the seeds stay valid
FAILING = b"\3geo"  # the names whose profile says SERVFAIL when nothing is up
SECRET = bytes(range(16))
NSID = b"fuzzed"
REGIONS = (
    Region("dual", 0, 0, gateway="https://dual.example", addresses=("192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2")),
    Region("four", 0, 1, gateway="https://four.gw.example:8443", addresses=("192.0.2.4",)),
    Region("six", 0, 2, gateway="https://six.gw.example", addresses=("2001:db8::6",)),
    Region("alias", 0, 3, gateway="https://weu.gateway.example/base"),
    Region("crowd", 0, 4, addresses=tuple(f"198.51.100.{n}" for n in range(1, 61))),
    Region("mute", 0, 5),
)
NETWORKS = [(f"81.2.{number}.0/24", number) for number in range(1, 7)] + [(f"2001:200:{number}::/48", number) for number in range(1, 7)]
CLIENTS = tuple(
    ipaddress.ip_address(text).packed
    for text in (
        *(f"81.2.{number}.77" for number in range(1, 7)), *(f"2001:200:{number}::77" for number in range(1, 7)),
        "0.0.0.0", "255.255.255.255", "::", "::ffff:81.2.1.77", "127.0.0.1", "8.8.8.8", "ff02::1",
    )
)  # fmt: skip
GEOGRAPHY = PrefixMap.from_ranges(
    [0, 0x51020000, 0x51030000], [0, 1, 0], [0, 0x20010200 << 32, 0x20010201 << 32], [0, 2, 0], ["", "GB", "JP"], [0.0] * 3, [0.0] * 3
)
MAPPED = bytes(10) + b"\xff\xff"
DEEP = ".".join(["d" * 63, "e" * 63, "f" * 61])  # with ".deep.example.com." 210 octets: labels below it reach 255
RECORDS = f"""
www 300 IN A 192.0.2.80
www 300 IN AAAA 2001:db8::80
web 300 IN CNAME api
out 300 IN CNAME elsewhere.example.net.
mail 300 IN MX 10 www
long 60 IN TXT {" ".join(f'"{n:0>200}"' for n in range(4))}
huge 60 IN TXT {" ".join(f'"{n:0>250}"' for n in range(8))}
a.b.c 60 IN TXT "under empty names"
*.wild 60 IN TXT "wildcard"
*.wild 60 IN A 192.0.2.81
sub 600 IN NS ns.sub
ns.sub 600 IN A 192.0.2.82
{DEEP}.deep 60 IN TXT "deep"
"""


class Case(NamedTuple):
    """What an input says. client: packed."""

    world: int
    client: bytes
    tcp: bool
    packet: bytes


def decode(data: bytes) -> Case:
    """Read an input; every byte string is one."""
    world, client, transport = data[:3].ljust(3, b"\0")
    size = 0 if client < 64 else 4 if client & 1 else 16
    address = data[3 : 3 + size].ljust(size, b"\0") if size else CLIENTS[client % len(CLIENTS)]
    if address.startswith(MAPPED) and len(address) == 16:
        address = address[12:]  # as the threads of a Wire have it
    return Case(world % len(WORLDS), address, transport & 1 == 1, data[3 + size :])


def encode(packet: bytes, world: int = 0, client: int = 0, *, tcp: bool = False) -> bytes:
    """Give the input for a packet."""
    return bytes((world, client, tcp)) + packet


def profiles() -> dict[str, Profile]:
    """Give the steered names, by method and policy."""
    three = tuple(Endpoint(name, weight=weight) for weight, name in enumerate(("four", "dual", "six"), 1))
    inner = Profile("inner", method="weighted", endpoints=three)
    nested = (Endpoint(profile=inner, min_children=2), Endpoint("alias"))
    places = (Endpoint("four", geo=("GEO-EU",)), Endpoint("six", geo=("JP",)), Endpoint("crowd", geo=("WORLD",)))
    subnets = (Endpoint("four", subnets=("81.2.0.0/16",)), Endpoint("six", subnets=("2001:200::/32", "8.8.8.0-8.8.9.255")))
    found = {
        "api": Profile(ttl=30, ttl_min=5),
        "any": Profile(family="any"),
        "@": Profile(ttl=60),
        "*.steer": Profile(ttl=5),
        "off": Profile(enabled=False),
        "none": Profile(endpoints=(Endpoint("mute"),)),
        "first": Profile(method="priority", endpoints=three, fail_open="serve_backup", backup=("crowd",)),
        "drawn": Profile(method="weighted", endpoints=three, fail_open="serve_last_good"),
        "several": Profile(method="multivalue", endpoints=three, max_return=3),
        "geo": Profile(method="geographic", endpoints=places, fail_open="servfail", geography=GEOGRAPHY),
        "nets": Profile(method="subnet", endpoints=subnets, fail_open="refuse"),
        "nested": Profile(method="priority", endpoints=nested),
        "few": Profile(ttl=0, endpoints=three, fail_open="nodata"),
    }
    return found


def zones() -> list[Zone]:
    """Give the zones: one with everything, one below it, and the first again under another name, signed."""
    signer = Signer("example.org", [Key.generate("example.org", timing=Timing(activate=NOW - 9))], clock=lambda: NOW)
    return [
        Zone("example.com", profiles(), records=RECORDS, aliases={"twin": "api"}),
        Zone("eu.example.com", {"api": Profile(ttl=7)}),
        Zone("example.org", profiles(), records=RECORDS, keys=signer),
    ]


class Suspecting(Responder):
    """A Responder whose vantage is suspect."""

    suspect = True  # type: ignore[assignment]


@dataclass
class World:
    """One server on both paths, which share nothing but what is prepared. shake: what its Balancer goes through before the first query.

    now_ms: the time by which both limit rates
    """

    name: str
    shake: Callable[[Balancer], object] = lambda lb: None
    suspect: bool = False
    cookies: bool = True
    nsid: bytes = NSID
    rate: int = 0
    slip: int = 2
    now_ms: int = 1_000_000
    wire: Wire = field(init=False)
    responder: Responder = field(init=False)
    unlimited: Responder = field(init=False)

    def __post_init__(self) -> None:
        lb = Balancer(REGIONS, PrefixMap.from_prefixes(NETWORKS), clock=lambda: 1000.0)
        for group in range(1, len(REGIONS) + 1):
            for slot in range(len(REGIONS)):
                lb.table.seed(group, slot, 10.0 if slot + 1 == group else 100.0, 1.0)
        lb.tick()
        self.shake(lb)
        cookies = Cookies(SECRET) if self.cookies else None
        self.wire = Wire(cookies=cookies, rrl=self._limiter(), nsid=self.nsid)
        self.wire.suspect(self.suspect)
        self.unlimited, self.responder = (
            (Suspecting if self.suspect else Responder)(
                lb, ZONES, nsid=self.nsid, version="1.0", cookies=cookies, rrl=limiter, clock=lambda: NOW, monotonic=self._monotonic
            )
            for limiter in (None, self._limiter())
        )  # fmt: skip
        self.unlimited.on_prepared(lambda answers, program: self.wire.publish(self.unlimited.answers, program))

    def _limiter(self) -> RateLimiter | None:
        return RateLimiter(self.rate, self.slip, ()) if self.rate else None

    def _monotonic(self) -> float:
        return self.now_ms / 1000


def down(*names: str) -> Callable[[Balancer], None]:
    """Take these regions down; without names all."""

    def shake(lb: Balancer) -> None:
        for region in REGIONS:
            if not names or region.name in names:
                lb.table.set_tier(lb.slot(region.name), 3, 1000.0)

    return shake


def disabled(lb: Balancer) -> None:
    """Let the operator take all regions out."""
    for region in REGIONS:
        lb.disable(region.name)


ZONES = zones()
WORLDS = (
    World("calm"),
    World("fail open", down(), suspect=True),
    World("four is down", down("four", "dual"), cookies=False, nsid=b""),
    World("nothing is enabled", disabled),
    World("limited", rate=2),
    World("limited, fail open", down(), suspect=True, rate=1, slip=1, cookies=False),
)
