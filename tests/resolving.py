"""What the DNS tests share: a Balancer whose every network has a region of its own, and dnspython as the client."""

from __future__ import annotations

from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
from conftest import Clock

from lbcore import Balancer, PrefixMap, Region
from lbcore.dns import Profile, Responder, Zone

REGIONS = (
    Region("dual", 0, 0, addresses=("192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2")),
    Region("four", 0, 1, addresses=("192.0.2.4",)),
    Region("six", 0, 2, addresses=("2001:db8::6",)),
    Region("alias", 0, 3, gateway="https://weu.gateway.example:8443/base"),
    Region("literal", 0, 4, gateway="http://127.0.0.9:8081"),
    Region("mute", 0, 5),
)
NETWORKS = {region.name: f"81.2.{number}.0/24" for number, region in enumerate(REGIONS, 1)}
PROFILE = Profile("api.eu", "example.com")
ZONE = Zone(
    "example.com", {"api.eu": PROFILE}, nameservers=("ns1", "ns2.example.net"), glue={"ns1": ("192.0.2.53", "2001:db8::53")}
)  # fmt: skip
OWNER = "api.eu.example.com"


def balancer(clock: Clock, regions: tuple[Region, ...] = REGIONS) -> Balancer:
    lb = Balancer(regions, PrefixMap.from_prefixes([(network, group) for group, network in enumerate(NETWORKS.values(), 1)]), clock=clock)
    for group, name in enumerate(NETWORKS, 1):
        for slot, region in enumerate(regions):
            lb.table.seed(group, slot, 10.0 if region.name == name else 100.0, 1.0)
    lb.tick()
    return lb


def client_of(name: str) -> str:
    """Give an address whose closest region is the one named."""
    return NETWORKS[name].replace("0/24", "77")


def ask(
    responder: Responder, name: str, rdtype: str, client: str = "127.0.0.1", *, tcp: bool = False, **options: Any
) -> dns.message.Message:
    """Ask as a resolver at `client` would; the response must be one to this very question, spelled the same."""
    query = dns.message.make_query(name, rdtype, **options)
    wire = responder.answer(query.to_wire(), client, tcp=tcp)
    assert wire is not None
    response = dns.message.from_wire(wire)
    assert query.is_response(response)
    assert not response.flags & dns.flags.RA
    assert response.flags & dns.flags.RD == query.flags & dns.flags.RD
    if response.question:
        assert response.question[0].name.labels == query.question[0].name.labels
    return response


def subnet(network: str) -> dict[str, Any]:
    address, length = network.split("/")
    return {"use_edns": 0, "options": [dns.edns.ECSOption(address, int(length))]}


def scope_of(response: dns.message.Message) -> int | None:
    return next((option.scopelen for option in response.options if isinstance(option, dns.edns.ECSOption)), None)


def answers(response: dns.message.Message, rdtype: str) -> list[str]:
    """Give the answer section's records of a type, in their order."""
    wanted = dns.rdatatype.from_text(rdtype)
    return [rdata.to_text() for rrset in response.answer for rdata in rrset if rrset.rdtype == wanted]


def is_denial(response: dns.message.Message) -> bool:
    """Say whether a response says "there is none" the way RFC 2308 wants it."""
    return not response.answer and [rrset.rdtype for rrset in response.authority] == [dns.rdatatype.SOA]
