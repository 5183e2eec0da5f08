"""Preparing Answers: zones and regions in, bytes for every answer out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import TYPE_CHECKING

from dns.name import Name
from dns.rdatatype import AAAA, DS, HTTPS, NSEC, SVCB, A

from lbcore.dns.answers import Answers, Entry, Forms, Node, Root
from lbcore.dns.fixed import Part, prepare_part
from lbcore.dns.names import ROOT, ancestors, key_of, parent, within
from lbcore.dns.place import Place, place_of
from lbcore.dns.profile import Profile
from lbcore.dns.steered import MAX_PAIRS, Steered
from lbcore.dns.writing import spelled_out
from lbcore.dns.zone import Zone
from lbcore.dns.zonefile import cuts
from lbcore.errors import ConfigError, Violation
from lbcore.region import Region

if TYPE_CHECKING:
    from lbcore.dns.dnssec import Signer

__all__ = ["build", "check_zones"]

MAX_ADDRESSES = 2000  # with the longest signature they go into a message over TCP


def build(
    zones: Iterable[Zone], objects: Sequence[Region | None], *,
    signers: Mapping[Name, Signer | None] | None = None, before: Answers | None = None,
) -> Answers:  # fmt: skip
    """Prepare everything that these zones may say.

    objects: the region in each slot of the latency table, as `Balancer.objects` has them
    signers: by the name of the zone, None = it is not signed; default: each zone's own `keys`
    before: earlier Answers, of which the zones are taken over that are the same objects and need no new signatures
    Raises ConfigError as `check_zones` does.
    """
    ordered = sorted(zones, key=lambda zone: len(zone.apex))
    check_zones(ordered)
    places = [place_of(region) for region in objects]
    _check_places(objects, places)
    building = _Building(ordered, places, hosts=frozenset(key_of(place.alias) for place in places if place.alias is not None))
    for zone in ordered:
        signer = (signers or {}).get(zone.apex, zone.keys)
        building.add(_part(zone, signer, before, building.below(zone)))
    answers = building.answers
    answers.regions = tuple(region.name if region else "" for region in objects)
    return answers


def check_zones(zones: Iterable[Zone]) -> None:
    """Check what only zones together can get wrong; ConfigError tells all.

    That is a zone that comes twice, aliases of names that none steers, and a zone in a signed one that denies it for lack of NS.
    """
    violations, seen, steered = [], dict[bytes, Zone](), set[bytes]()
    zones = [*zones]
    for zone in zones:
        if seen.setdefault(zone.key, zone) is not zone:
            violations.append(Violation("dns.zone", zone.origin, "a zone that is named once"))
        steered.update(zone.steered)
    for zone in zones:
        above = next((seen[key] for key in ancestors(parent(zone.key), ROOT) if key in seen), None)
        if above is not None and above.keys is not None and zone.key not in cuts(above.content, above.key):
            violations.append(Violation("dns.zone", zone.origin, f"NS records of it in {above.origin}, which is signed"))
        for text in zone.aliases.values():
            if (target := zone.absolute(text)) is None or key_of(target) not in steered:
                violations.append(Violation("dns.aliases", text, "a steered name"))
    if violations:
        raise ConfigError(violations)


def _check_places(objects: Sequence[Region | None], places: Sequence[Place]) -> None:
    """Refuse regions whose addresses no message can hold; ConfigError tells all."""
    expected = f"at most {MAX_ADDRESSES} of one family"
    violations = [
        Violation(f"regions.{region.name}.addresses", len(region.addresses), expected)
        for region, place in zip(objects, places, strict=True)
        if region is not None and max(len(place.ipv4), len(place.ipv6)) > MAX_ADDRESSES
    ]
    if violations:
        raise ConfigError(violations)


def _part(zone: Zone, signer: Signer | None, before: Answers | None, below: tuple[bytes, ...]) -> Part:
    known = before.parts.get(zone) if before is not None else None
    if known is not None and known.signer is signer and known.below == below and not known.due:
        return known
    if signer is not None:
        signer.begin()
    return prepare_part(zone, signer, below)


@dataclass(slots=True)
class _Building:
    zones: Sequence[Zone]
    places: Sequence[Place]
    answers: Answers = field(default_factory=Answers)
    roots: dict[tuple[int, int, bool], int] = field(default_factory=dict)
    hosts: frozenset[bytes] = frozenset()  # of gateways
    delegations: dict[bytes, Entry] = field(default_factory=dict)  # DS of zones of this process, by the zone above

    def below(self, zone: Zone) -> tuple[bytes, ...]:
        """Give the names of the zones that lie in another one."""
        return tuple(other.key for other in self.zones if other is not zone and within(other.key, zone.key))

    def add(self, part: Part) -> None:
        """Add a zone, after those that it lies in."""
        zone, nodes = part.zone, dict(part.nodes)
        self._steer(part, nodes)
        for key in part.wildcards:  # the deepest first: a wildcard may have one below itself
            nodes[parent(key)] = replace(nodes[parent(key)], wildcard=nodes[key])
        if part.below:
            self._hide(part, nodes)
        if (ds := self.delegations.get(zone.key)) is not None:
            nodes[zone.key] = replace(nodes[zone.key], types=nodes[zone.key].types | {DS: ds})
        self.answers.nodes.update(nodes)
        self.answers.nxdomain[zone.key] = Forms(part.writer.forms(authority=[part.writer.soa()], rcode=3).plain)
        self.answers.parts[zone] = part

    def _hide(self, part: Part, nodes: dict[bytes, Node]) -> None:
        """Leave out what belongs to more specific zones, and keep the one thing that is said of them here: DS (RFC 4035 §3.1.4.1)."""
        for key in part.below:
            node = nodes[key]
            entry = node.types.get(DS, node.other)
            if entry is not None and entry.fixed is not None and not (node.referral and entry is node.other):
                self.delegations[key] = Entry(spelled_out(entry.fixed, part.zone.key))
        hidden = frozenset(part.below)
        for key in [key for key in nodes if not hidden.isdisjoint(ancestors(key, part.zone.key))]:
            del nodes[key]

    # ---- steered names

    def _steer(self, part: Part, nodes: dict[bytes, Node]) -> None:
        profiles = {key: profile for zone in self.zones for key, profile in zone.steered.items()} if part.zone.stands_for else {}
        shared: dict[tuple[object, ...], tuple[dict[int, Entry], Entry]] = {}
        for key, profile in (*part.zone.steered.items(), *((key, profiles[target]) for key, target in part.zone.stands_for.items())):
            node, alias = nodes[key], key in part.zone.stands_for
            direct = alias or key == part.zone.key or bool(node.types.keys() - {NSEC})
            steered = Steered(part, key, profile.ttl, self.places, direct)
            # Names of one profile say the same, but for signatures, and where a region's gateway is the name itself.
            alike = part.chain is None and key not in self.hosts
            like = (id(profile), direct, key in part.parents) if alike else (key,)
            if like not in shared:
                shared[like] = self._entries(steered, profile)
            types, other = shared[like]
            nodes[key] = replace(node, types=types | node.types, other=node.other if alias else other, profile=profile, steered=steered)

    def _entries(self, steered: Steered, profile: Profile) -> tuple[dict[int, Entry], Entry]:
        served = steered.part.zone.alpn and (steered.part.chain or any(place.https for place in self.places))  # NSEC says that they may be
        types = (A, AAAA, HTTPS, SVCB) if served else (A, AAAA)
        return {rdtype: self._entry(steered, profile, rdtype) for rdtype in types}, self._entry(steered, profile, 0)

    def _entry(self, steered: Steered, profile: Profile, rdtype: int) -> Entry:
        nodata = steered.nodata(rdtype)
        regions = {slot: steered.several(rdtype, (slot,)) if place else nodata for slot, place in enumerate(self.places)}
        entry = Entry(None, self._root(profile, rdtype, steered.direct), regions, {}, nodata, nodata)
        if rdtype == HTTPS:  # nobody asks for SVCB where there is HTTPS: that is written, and signed, when somebody does
            named = [slot for slot, place in enumerate(self.places) if place]
            if len(named) * (len(named) - 1) <= MAX_PAIRS:
                entry.pairs = {pair: steered.several(rdtype, pair) for pair in permutations(named, 2)}
        if not (steered.direct or steered.key in steered.part.parents or steered.part.chain):
            entry.nxdomain = steered.nxdomain()
        return entry

    def _root(self, profile: Profile, rdtype: int, direct: bool) -> int:
        family = rdtype if rdtype in (A, AAAA) and profile.family == "any" else 0
        number = self.roots.setdefault((id(profile), family, direct), len(self.roots))
        if number == len(self.answers.roots):
            self.answers.roots = (*self.answers.roots, Root(profile, family, direct))
        return number
