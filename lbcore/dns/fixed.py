"""Fixed: what a zone answers everybody alike: static records, referrals, denials, and in a signed zone the proofs that go with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dns.rrset
from dns.rdatatype import AAAA, CNAME, DS, NS, NSEC, A

from lbcore.dns.answers import Body, Entry, Forms, Node
from lbcore.dns.names import WILD, ancestors, from_key, key_of, parent
from lbcore.dns.steered import STEERED
from lbcore.dns.writing import ASKED, RRset, Writer, wires
from lbcore.dns.zone import Zone
from lbcore.dns.zonefile import Content, Records, below_cut, cuts

if TYPE_CHECKING:
    from lbcore.dns.dnssec import Chain, Signer

__all__ = ["Part", "prepare_part"]


@dataclass(slots=True)
class Part:
    """One zone without its regions.

    nodes: by name; steered names, aliases and empty non-terminals without any types
    signer: signs the zone as long as it has an active key
    build: the signer's, in which the zone was signed
    below: the names of more specific zones of this process
    parents: names that others lie below
    wildcards: names that begin with `*`, the longest first
    types: of every name that has records, those that it has for anybody; empty in a zone that is not signed
    chain: of a signed zone: proves what does not exist
    """

    writer: Writer
    signer: Signer | None = None
    below: tuple[bytes, ...] = ()
    build: int = 0
    nodes: dict[bytes, Node] = field(default_factory=dict)
    parents: frozenset[bytes] = frozenset()
    wildcards: tuple[bytes, ...] = ()
    types: Mapping[bytes, frozenset[int]] = field(default_factory=dict)
    chain: Chain | None = None

    @property
    def zone(self) -> Zone:
        """Give the zone."""
        return self.writer.zone

    @property
    def due(self) -> bool:
        """Say whether to sign anew: in time, or as it was done already for Answers that came to nothing."""
        return self.signer is not None and (self.build != self.signer.builds or self.signer.due())

    def forms(self, key: bytes, answer: Sequence[RRset] = (), **others: Any) -> Forms:
        """Give a response of one of the zone's names; of a wildcard, what is signed is `unproven`."""
        forms = self.writer.forms(answer, **others)
        return Forms(forms.plain, None, forms.signed) if key.startswith(WILD) else forms

    def proof(self, key: bytes, missing: int = 0) -> Sequence[RRset]:
        """Give the proof that an existing name lacks a type, even one that others get; 0 = any that nobody gets."""
        if self.chain is None:
            return ()
        name, types = from_key(key), self.types.get(key)
        return [_written(self.chain.nodata(name) if types is None else self.chain.at(name, types - {missing, CNAME}), key)]

    def denial(self, name: bytes, encloser: bytes) -> Forms:
        """Give NXDOMAIN for a name, with its proof when the zone is signed. encloser: the closest name that exists."""
        proof = [_written(rrset) for rrset in self.chain.nxdomain(from_key(name), from_key(encloser))] if self.chain else []
        return self.writer.forms(authority=[self.writer.soa()], proof=proof, rcode=3)

    def proven(self, name: bytes, wildcard: bytes, body: Body) -> Body:
        """Give a wildcard's `unproven` answer with the proof that the name asked for does not exist by itself.

        Source: RFC 4035 §3.1.3.3 and §3.1.3.4.
        """
        assert self.chain is not None
        if not (body.answers or body.authorities):
            return body  # an error says nothing that could be proven
        proof = _written(self.chain.covering(from_key(name)))
        if not body.answers and proof.owner == wildcard:
            return body  # one NSEC denies both the type and the name
        (added,) = self.writer.forms(proof=[proof]).signed or ()
        return body._replace(data=body.data + added.data, authorities=body.authorities + added.authorities)


def prepare_part(zone: Zone, signer: Signer | None, below: tuple[bytes, ...] = ()) -> Part:
    """Prepare what does not depend on regions. below: the names of more specific zones of this process."""
    active = signer if signer is not None and signer.signing else None
    content = _visible(zone, active)
    part = Part(Writer(zone, active), signer, below, signer.builds if signer is not None else 0)
    if active is not None:
        _link(part, content)
    _place_nodes(part, (*content, *zone.steered, *zone.stands_for, *below))
    for key, types in content.items():
        _fill(part, part.nodes[key], types)
    for key in part.types:
        node = part.nodes[key]
        if part.chain and not (node.referral or key.startswith(WILD)):  # what a wildcard proves is never said of the names it stands for
            node.types[NSEC] = Entry(part.forms(key, [_written(part.chain.at(from_key(key)), key)]))
    part.parents = frozenset(parent(key) for key in part.nodes if key != zone.key)
    part.wildcards = tuple(sorted((key for key in part.nodes if key.startswith(WILD) and key != zone.key), key=len, reverse=True))
    return part


def _visible(zone: Zone, signer: Signer | None) -> Content:
    """Give the zone's own records: without glue, with those that signing adds."""
    delegated = cuts(zone.content, zone.key)
    content = {key: types for key, types in zone.content.items() if below_cut(key, zone.key, delegated) is None}
    for key in delegated & content.keys():
        content[key] = {rdtype: records for rdtype, records in content[key].items() if rdtype in (NS, DS)}
    if signer is not None:
        made = {int(rrset.rdtype): Records(rrset.ttl, (*rrset,)) for rrset in signer.apex()}
        content[zone.key] = content[zone.key] | made
    return content


def _link(part: Part, content: Content) -> None:
    from lbcore.dns.dnssec import Chain  # needs cryptography, which unsigned zones do not

    zone = part.zone
    types = {key: frozenset(map(int, found)) for key, found in content.items()}
    steered = frozenset(map(int, STEERED if zone.alpn else STEERED[:2]))
    for key in (*zone.steered, *zone.stands_for):
        # Where a client may get a CNAME, so that no resolver makes a denial of other types for it (RFC 8198, RFC 6840 §4.3).
        alone = key in zone.steered and key not in content
        types[key] = types.get(key, frozenset({int(CNAME)} if alone else ())) | steered
    part.types = types
    part.chain = Chain({from_key(key): found for key, found in types.items()}, zone.denial_ttl)


def _place_nodes(part: Part, keys: Iterable[bytes]) -> None:
    """Make the node of every name and of those above it, each with the denial of types that it has no records of."""
    zone, shared = part.zone, None
    for key in keys:
        for name in ancestors(key, zone.key):
            if name in part.nodes:
                break
            if shared is None or part.chain is not None:
                shared = Entry(part.forms(name, authority=[part.writer.soa()], proof=part.proof(name)))
            part.nodes[name] = Node(zone, name, other=shared)


def _fill(part: Part, node: Node, types: Mapping[int, Records]) -> None:
    delegated = NS in types and node.name != part.zone.key
    for rdtype, records in types.items():
        if not (delegated and rdtype == NS):
            rrset = RRset(node.name, ASKED, rdtype, records.ttl, wires(records.rdatas))
            node.types[rdtype] = Entry(part.forms(node.name, [rrset], additional=_glue(part.zone, records) if rdtype == NS else ()))
    if CNAME in types:
        node.other = node.types[CNAME]
    if delegated:
        node.types.setdefault(DS, node.other or Entry())
        node.other, node.referral = Entry(_referral(part, node.name, types)), True


def _referral(part: Part, key: bytes, types: Mapping[int, Records]) -> Forms:
    """Give what sends a resolver on: the servers below, their glue, and what says whether the zone there is signed."""
    servers = RRset(key, key, NS, types[NS].ttl, wires(types[NS].rdatas), signed=False)
    if DS in types:
        proof = [RRset(key, key, DS, types[DS].ttl, wires(types[DS].rdatas))]
    else:
        proof = [_written(part.chain.at(from_key(key)))] if part.chain else []
    return part.writer.forms(authority=[servers], additional=_glue(part.zone, types[NS]), proof=proof, authoritative=False)


def _glue(zone: Zone, servers: Records) -> list[RRset]:
    """Give the zone's own addresses of name servers."""
    found = []
    for server in servers.servers():
        name = key_of(server)
        types = zone.content.get(name, {})
        found += [RRset(name, name, rdtype, types[rdtype].ttl, wires(types[rdtype].rdatas)) for rdtype in (A, AAAA) if rdtype in types]
    return found


def _written(rrset: dns.rrset.RRset, asked: bytes | None = None) -> RRset:
    """Give records of the chain as they go into a response to a question for a name."""
    owner = key_of(rrset.name)
    return RRset(owner, ASKED if owner == asked and not owner.startswith(WILD) else owner, rrset.rdtype, rrset.ttl, wires(rrset))
