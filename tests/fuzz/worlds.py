"""The servers that are fuzzed, each in another state, and how an input names one of them, a client and a packet.

    input      world, client (below 64: one of CLIENTS, else 4 or 16 bytes of its own follow), transport, packet
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from lbcore import Balancer, PrefixMap, Region
from lbcore.dns._cookies import Cookies
from lbcore.dns._rrl import RateLimiter
from lbcore.dns._wire import Wire
from lbcore.dns.dnssec import Signer
from lbcore.dns.keys import Key, Timing
from lbcore.dns.place import place_of
from lbcore.dns.prepare import build
from lbcore.dns.profile import Endpoint, Profile
from lbcore.dns.route import compile_routes
from lbcore.dns.zone import Zone

NOW = 1_800_000_000  # the wall clock stands still: cookies among the seeds stay valid
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
    if client < 64:
        return Case(world % len(WORLDS), CLIENTS[client % len(CLIENTS)], transport & 1 == 1, data[3:])
    size = 4 if client & 1 else 16
    return Case(world % len(WORLDS), data[3 : 3 + size].ljust(size, b"\0"), transport & 1 == 1, data[3 + size :])


def encode(packet: bytes, world: int = 0, client: int = 0, *, tcp: bool = False) -> bytes:
    """Give the input for a packet."""
    return bytes((world, client, tcp)) + packet


def profiles() -> dict[str, Profile]:
    """Give the steered names, by method and policy."""
    three = tuple(Endpoint(name) for name in ("four", "dual", "six"))
    return {
        "api": Profile("api", "example.com", ttl=30),
        "any": Profile("any", "example.com", family="any"),
        "@": Profile("@", "example.com", ttl=60),
        "*.steer": Profile("steer", "example.com", ttl=5),
        "off": Profile("off", "example.com", enabled=False),
        "few": Profile("few", "example.com", ttl=0, endpoints=three, fail_open="nodata"),
        "none": Profile("none", "example.com", endpoints=(Endpoint("mute"),)),
    }


def zones() -> list[Zone]:
    """Give the zones: one with everything, one below it, and the first again under another name, signed."""
    signer = Signer("example.org", [Key.generate("example.org", timing=Timing(activate=NOW - 9))], clock=lambda: NOW)
    return [
        Zone("example.com", profiles(), records=RECORDS, aliases={"twin": "api"}),
        Zone("eu.example.com", {"api": Profile("api", "eu.example.com", ttl=7)}),
        Zone("example.org", profiles(), records=RECORDS, keys=signer),
    ]


@dataclass
class World:
    """One server. shake: what its Balancer goes through before the first query."""

    name: str
    shake: Callable[[Balancer], object] = lambda lb: None
    suspect: bool = False
    cookies: bool = True
    nsid: bytes = NSID
    rate: int = 0
    slip: int = 2
    wire: Wire = field(init=False)
    lb: Balancer = field(init=False)

    def __post_init__(self) -> None:
        self.lb = Balancer(REGIONS, PrefixMap.from_prefixes(NETWORKS), clock=lambda: 1000.0)
        for group in range(1, len(REGIONS) + 1):
            for slot in range(len(REGIONS)):
                self.lb.table.seed(group, slot, 10.0 if slot + 1 == group else 100.0, 1.0)
        self.lb.tick()
        self.shake(self.lb)
        limiter = RateLimiter(self.rate, self.slip, ()) if self.rate else None
        self.wire = Wire(cookies=Cookies(SECRET) if self.cookies else None, rrl=limiter, nsid=self.nsid)
        answers = build(ZONES, self.lb.objects)
        families = lambda region, direct: place_of(region).families(direct)
        self.wire.publish(answers, compile_routes(answers.roots, self.lb, families=families))
        self.wire.suspect(self.suspect)


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
