"""Answers: everything that a server may say, prepared as bytes before anybody asks.

    Answers             all zones: a name in wire form, lower case -> Node
      Node              one existing name: type -> Entry, and `other` for every type it has no records of
        Entry           one (name, type): fixed, or steered by a profile's route: by region, by pair of regions, or a denial
          Forms         without and with DNSSEC records
            Body        what follows the question in one response, one per record that may come first

Both paths read it: the compiled one copies it out (`_wire`), the Responder looks things up in it and adds what is not prepared.
Immutable once built; a reload, a change of regions or new signatures make another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lbcore.dns.profile import MAX_TTL

if TYPE_CHECKING:
    from lbcore.dns.fixed import Part
    from lbcore.dns.profile import Profile
    from lbcore.dns.steered import Steered
    from lbcore.dns.zone import Zone

__all__ = ["Answers", "Body", "Entry", "Forms", "Found", "Node", "Root", "Rotations"]


class Body(NamedTuple):
    """What follows the question in one response, without OPT.

    data: records of the answer, authority and additional sections; an owner that is the name asked for is the pointer C0 0C
    answers, authorities, additionals: records in each
    ttls: where in `data` the TTLs stand that the route decides when it answers; empty = they stay as written
    origins: where in `data` two-byte pointers stand that must point to the zone's name within the question; the question starts at
        byte 12, so each becomes C000 + 12 + (length of the name asked for - length of the zone's name), both in wire form
    most: seconds, of the TTLs that the route decides: a denial lives no longer than its SOA allows either (RFC 2308 §5)
    """

    data: bytes = b""
    answers: int = 0
    authorities: int = 0
    additionals: int = 0
    rcode: int = 0
    authoritative: bool = True
    ttls: tuple[int, ...] = ()
    origins: tuple[int, ...] = ()
    most: int = MAX_TTL


Rotations = tuple[Body, ...]  # never empty; a query takes the one at its id modulo their number


@dataclass(frozen=True, slots=True)
class Forms:
    """One answer without and with DNSSEC records.

    signed: None in a zone that is not signed, or where only the Responder can: at wildcards, and denials of names
    unproven: of a wildcard in a signed zone: signed, but for the proof that the name asked for does not exist: `Part.proven` adds it
    """

    plain: Rotations
    signed: Rotations | None = None
    unproven: Rotations | None = None


@dataclass(frozen=True, slots=True)
class Root:
    """Where a decision starts: a profile, and what DNS must be able to say of a region, as `Place.families` has it.

    family: the one that regions must have, 1 = A, 28 = AAAA, 0 = whichever
    direct: the name cannot be a CNAME, so regions without addresses do not count
    """

    profile: Profile
    family: int = 0
    direct: bool = False


@dataclass(slots=True)
class Entry:
    """What one type at one name is answered with.

    fixed: the same for everybody, scope 0; None when steered, then:
    root: index into `Answers.roots`
    regions: by slot of the latency table; a region without records of the type has its NODATA here
    pairs: by (first, second) slot, for HTTPS; a pair that is missing is the Responder's. Empty for other types
    nodata, nxdomain: when the route says so instead of naming a region
    """

    fixed: Forms | None = None
    root: int = -1
    regions: Mapping[int, Forms] = field(default_factory=dict)
    pairs: Mapping[tuple[int, int], Forms] = field(default_factory=dict)
    nodata: Forms | None = None
    nxdomain: Forms | None = None


@dataclass(slots=True)
class Node:
    """One existing name. `other` answers every type that is not in `types`, but ANY; None = only the Responder knows.

    wildcard: the node of `*` below it, when there is one
    referral: a zone cut: `other` refers to the servers of the zone below, for this name and all names below it; DS alone is ours
    profile: the profile that steers it; region names in metrics go with it
    steered: writes what is not prepared: pairs, and records of several regions
    """

    zone: Zone
    name: bytes
    types: dict[int, Entry] = field(default_factory=dict)
    other: Entry | None = None
    wildcard: Node | None = None
    referral: bool = False
    profile: Profile | None = None
    steered: Steered | None = None


class Found(NamedTuple):
    """Where a name leads.

    node: the name's own, or that of the wildcard that stands for it; None = there is no such name
    encloser: the closest existing name, itself or above: a referral when that is one
    wildcard: whether a wildcard stands for it
    """

    node: Node | None
    encloser: Node
    wildcard: bool = False

    @property
    def zone(self) -> Zone:
        """Give the zone that the name is in."""
        return self.encloser.zone


@dataclass(slots=True)
class Answers:
    """All that is prepared.

    nodes: by name in wire form, lower case, uncompressed; empty non-terminals have a Node as well, without types
    nxdomain: by the zone's name in wire form, lower case: the denial of a name in it (of a signed zone: its plain form only)
    roots: where decisions start; an Entry's `root` is an index into it
    regions: name of the region in each slot that `Entry.regions` speaks of, "" = free
    parts: what of each zone does not depend on regions; writes denials and proofs that are not prepared
    """

    nodes: dict[bytes, Node] = field(default_factory=dict)
    nxdomain: dict[bytes, Forms] = field(default_factory=dict)
    roots: tuple[Root, ...] = ()
    regions: tuple[str, ...] = ()
    parts: dict[Zone, Part] = field(default_factory=dict)

    def find(self, name: bytes) -> Found | None:
        """Give where a name in wire form, lower case, leads; None = to none of the zones.

        The rule, which the compiled look-up shares: take labels off the left until a name is in `nodes`; that is the closest
        encloser. None at all: foreign. Nothing taken off: it is the node. Else, when it has `referral`, that is the answer; when
        it has `wildcard`, that is the node; or else the name does not exist. Names that a more specific zone or a delegation
        hides are not in `nodes`, so the most specific zone wins by itself.
        Source: RFC 4592 §3.3.1, RFC 1034 §4.3.2.
        """
        at = name
        while (encloser := self.nodes.get(at)) is None:
            if not at[0]:
                return None
            at = at[1 + at[0] :]
        if at == name:
            return Found(encloser, encloser)
        return Found(None if encloser.referral else encloser.wildcard, encloser, not encloser.referral and encloser.wildcard is not None)
