"""Preparing Answers: zones and regions in, bytes for every answer out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

from dns.name import Name
from dns.rdatatype import AAAA, CNAME, HTTPS, NS, SVCB, A

from lbcore.dns.answers import Answers, Entry, Forms, Node, Root
from lbcore.dns.names import ancestors, key_of, parent
from lbcore.dns.place import Place, place_of
from lbcore.dns.profile import Profile
from lbcore.dns.steered import MAX_PAIRS, Steered
from lbcore.dns.writing import ASKED, RRset, Signing, Writer, wires
from lbcore.dns.zone import Zone
from lbcore.region import Region

__all__ = ["build"]

_WILD = b"\1*"


def build(zones: Iterable[Zone], objects: Sequence[Region | None], *, signers: Mapping[Name, Signing] | None = None) -> Answers:
    """Prepare everything that these zones may say.

    objects: the region in each slot of the latency table, as `Balancer.objects` has them
    signers: by the name of the zone; default: each zone's own `keys`
    """
    names = tuple(region.name if region else "" for region in objects)
    building = _Building([place_of(region) for region in objects], Answers(regions=names))
    for zone in sorted(zones, key=lambda zone: len(zone.apex)):
        building.add(zone, (signers or {}).get(zone.apex, zone.keys))
    building.answers.roots = tuple(building.roots.values())
    return building.answers


@dataclass(slots=True)
class _Building:
    places: Sequence[Place]
    answers: Answers
    roots: dict[tuple[int, int, bool], Root] = field(default_factory=dict)

    def add(self, zone: Zone, signing: Signing | None) -> None:
        writer = Writer(zone, signing)
        nodes = _static(writer)
        for key, profile in zone.steered.items():
            self._steer(writer, nodes, key, profile, bool(nodes[key].types))
        for key, node in nodes.items():
            if key.startswith(_WILD) and key != zone.key:
                nodes[parent(key)].wildcard = node
        self.answers.nodes.update(nodes)
        self.answers.nxdomain[zone.key] = Forms(writer.forms(authority=[writer.soa()], rcode=3).plain)

    def _steer(self, writer: Writer, nodes: dict[bytes, Node], key: bytes, profile: Profile, direct: bool) -> None:
        node = nodes[key]
        steered = Steered(writer, key, profile.ttl, self.places, direct)
        node.profile, node.steered = profile, steered
        for rdtype in self._types(writer.zone):
            node.types.setdefault(rdtype, self._entry(steered, profile, rdtype))
        node.other = self._entry(steered, profile, 0)

    def _types(self, zone: Zone) -> Sequence[int]:
        served = zone.alpn and any(place.https for place in self.places)
        return (A, AAAA, HTTPS, SVCB) if served else (A, AAAA)

    def _entry(self, steered: Steered, profile: Profile, rdtype: int) -> Entry:
        family = rdtype if rdtype in (A, AAAA) and getattr(profile, "family", "client") == "any" else 0
        slots = range(len(self.places))
        regions = {slot: steered.region(rdtype, slot) for slot in slots}
        entry = Entry(None, self._root(profile, family, steered.direct), regions, {}, steered.nodata(rdtype))
        pairs = [*permutations((slot for slot in slots if self.places[slot]), 2)] if rdtype in (HTTPS, SVCB) else []
        if len(pairs) <= MAX_PAIRS:
            entry.pairs = {pair: steered.several(rdtype, pair) for pair in pairs}
        entry.nxdomain = entry.nodata if steered.direct or steered.writer.signing else steered.nxdomain()
        return entry

    def _root(self, profile: Profile, family: int, direct: bool) -> int:
        key = (id(profile), family, direct)
        self.roots.setdefault(key, Root(profile, family, direct))
        return [*self.roots].index(key)


def _static(writer: Writer) -> dict[bytes, Node]:
    """Give the nodes of a zone with their static records, steered names and empty non-terminals without any."""
    zone = writer.zone
    other = Entry(writer.forms(authority=[writer.soa()]))
    nodes: dict[bytes, Node] = {}
    for key in (*zone.content, *zone.steered, *zone.stands_for):
        for name in ancestors(key, zone.key):
            if name in nodes:
                break
            nodes[name] = Node(zone, name, other=other)
    for key, types in zone.content.items():
        for rdtype, records in types.items():
            rrset = RRset(key, ASKED, rdtype, records.ttl, wires(records.rdatas))
            nodes[key].types[rdtype] = Entry(writer.forms([rrset], additional=_glue(zone, rrset) if rdtype == NS else ()))
        if CNAME in types:
            nodes[key].other = nodes[key].types[CNAME]
    return nodes


def _glue(zone: Zone, servers: RRset) -> list[RRset]:
    """Give the zone's own addresses of name servers."""
    found = []
    for record in zone.content[servers.owner][NS].rdatas:
        name = key_of(record.target)  # type: ignore[attr-defined]
        types = zone.content.get(name, {})
        found += [RRset(name, name, rdtype, types[rdtype].ttl, wires(types[rdtype].rdatas)) for rdtype in (A, AAAA) if rdtype in types]
    return found
