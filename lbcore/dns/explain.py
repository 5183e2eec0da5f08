"""Explain: why a name is answered as it is for a client's network, in words and in plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lbcore.dns.answers import Root
from lbcore.dns.names import key_of
from lbcore.dns.place import place_of
from lbcore.dns.prepare import build
from lbcore.dns.route import Choice, compile_routes
from lbcore.dns.status import endpoint_status, endpoints_of, profile_status
from lbcore.errors import UnknownRegionError

if TYPE_CHECKING:
    from dns.name import Name

    from lbcore.balancer import Balancer
    from lbcore.dns.profile import Endpoint, Profile
    from lbcore.dns.zone import Zone
    from lbcore.region import Region

__all__ = ["Explanation", "Hop", "explain", "steering"]

SAID = {-1: "NODATA", -2: "NXDOMAIN", -3: "SERVFAIL", -4: "REFUSED", -5: "several regions"}
SERVING = ("Online", "Unmonitored", "CheckingEndpoint")


@dataclass(frozen=True, slots=True)
class Hop:
    """One profile on the way to the answer. endpoints: (name, status) of each; chosen: the endpoint it went on by, "" = none."""

    profile: str
    method: str
    status: str
    endpoints: Sequence[tuple[str, str]]
    chosen: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a name is answered with. regions: the first is the one that A and AAAA are of; scope: bits; ttl: seconds."""

    name: str
    zone: str
    client: str | None
    answer: str
    regions: Sequence[str]
    scope: int
    ttl: int
    fail_open: bool
    hops: Sequence[Hop]

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain JSON types."""
        return dataclasses.asdict(self)

    def text(self) -> str:
        """Tell it in a few plain sentences."""
        lines = [f"{self.name} in zone {self.zone}, asked for {self.client or 'a client that nobody knows'}: {self.answer}."]
        for hop in self.hops:
            lines.append(f"Profile {hop.profile or 'of the name'} ({hop.method}, {hop.status}): {hop.why}")
            lines += [f"  {name:<20} {status}" for name, status in hop.endpoints]
        whom = f"the client's /{self.scope}" if self.scope else "everybody" if self.client else "whoever cannot be located"
        lines.append(f"The answer holds for {whom}, for {self.ttl} s." + (" It fails open: nothing is up." if self.fail_open else ""))
        return "\n".join(lines)


def steering(zones: Iterable[Zone], name: Name) -> tuple[Zone, Profile, bool] | None:
    """Give the zone and the profile that steer a name, and whether it cannot be a CNAME; None when none does."""
    zones = [*zones]
    found = build(zones, (), signers=dict.fromkeys(zone.apex for zone in zones)).find(key_of(name))  # what answers look names up in
    node = found.node if found is not None else None
    if node is None or node.profile is None or node.steered is None:
        return None
    return node.zone, node.profile, node.steered.direct


def explain(lb: Balancer, zones: Iterable[Zone], name: Name, client: str | None) -> Explanation | None:
    """Give why a client (an address, None = unknown) gets what it gets for a name; None when no profile steers it.

    Weighted draws differ from query to query: one of them is shown.
    """
    found = steering(zones, name)
    if found is None:
        return None
    zone, profile, direct = found
    program = compile_routes([Root(profile, 1, direct)], lb, families=_families)
    choice = program.choose(0, client)
    slots = program.several(0, client) or [choice.region]
    regions = [region.name for slot in slots if slot >= 0 and (region := lb.objects[slot]) is not None]
    answer = ", ".join(regions) or SAID[choice.region]
    origin = zone.apex.to_text()
    hops = tuple(_hops(lb, profile, choice, regions))
    return Explanation(name.to_text(), origin, client, answer, regions, choice.scope, choice.ttl, choice.fail_open, hops)


def _families(region: Region, direct: bool) -> tuple[bool, bool]:
    return place_of(region).families(direct)


def _hops(lb: Balancer, profile: Profile, choice: Choice, regions: Sequence[str]) -> Iterator[Hop]:
    endpoints = endpoints_of(lb, profile)
    statuses = [(endpoint.name, endpoint_status(lb, profile, endpoint)) for endpoint in endpoints]
    leading = [at for at, endpoint in enumerate(endpoints) if regions and regions[0] in _below(lb, endpoint)]
    leading.sort(key=lambda at: statuses[at][1] not in SERVING)
    chosen = endpoints[leading[0]] if leading else None
    why = _why(profile, chosen, statuses[leading[0]][1] if leading else "", choice, regions)
    yield Hop(profile.name, profile.method, profile_status(lb, profile), statuses, chosen.name if chosen else "", why)
    if chosen is not None and chosen.profile is not None:
        yield from _hops(lb, chosen.profile, choice, regions)


def _below(lb: Balancer, endpoint: Endpoint) -> set[str]:
    if endpoint.profile is None:
        try:
            return {lb.region(endpoint.region).name}
        except UnknownRegionError:
            return set()
    return {name for one in endpoints_of(lb, endpoint.profile) for name in _below(lb, one)}


def _why(profile: Profile, chosen: Endpoint | None, status: str, choice: Choice, regions: Sequence[str]) -> str:
    if not profile.enabled:
        return "it is disabled, so the name does not exist."
    if chosen is None:
        missing = "nothing is mapped to the client" if profile.method in ("geographic", "subnet") else "nothing is up"
        return f"{missing}, or wanted: {SAID.get(choice.region, 'a backup serves')} ({profile.fail_open})."
    if status not in SERVING:
        return f"nothing better is up, and fail_open is {profile.fail_open}: {chosen.name}."
    match profile.method:
        case "priority":
            return f"{chosen.name} is the first by priority that is up."
        case "weighted":
            return f"{chosen.name} was drawn, of weight {chosen.weight}; another query may draw another."
        case "geographic":
            return f"the client's place is mapped to {chosen.name} ({', '.join(chosen.geo)})."
        case "subnet":
            return f"{chosen.name} has the client's network ({', '.join(chosen.subnets) or 'the rest'})."
        case "multivalue":
            return f"the closest that are up: {', '.join(regions)}."
    return f"{chosen.name} is the closest that is up."
