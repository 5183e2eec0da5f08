"""Writing records into Bodies, plain and signed."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dns.name import Name
from dns.rdata import Rdata
from dns.rdataclass import IN
from dns.rdatatype import RRSIG, SOA

from lbcore.dns.answers import Body, Forms
from lbcore.dns.profile import MAX_TTL
from lbcore.dns.zone import Zone

if TYPE_CHECKING:
    from lbcore.dns.dnssec import Signer

__all__ = ["ASKED", "ORIGIN", "RRset", "Writer", "spelled_out", "wire", "wires"]

ASKED = b"\xc0\x0c"  # the name asked for, at byte 12
ORIGIN = b"\xc0\x00"  # the zone's name within it, where that is known only when asked: see Body.origins
_FIXED = struct.Struct("!HHIH")


class RRset(NamedTuple):
    """Records of one type under one name, as they go into a response.

    owner: the name that they are signed under; shown: how the response writes it: ASKED, ORIGIN, or the name itself
    patched: the route decides their TTL, `ttl` is the most that it may be
    signed: at a zone cut only DS and NSEC are
    longest: the TTL that their signature is for, when it is not `ttl`
    """

    owner: bytes
    shown: bytes
    rdtype: int
    ttl: int
    rdatas: Sequence[bytes]
    patched: bool = False
    signed: bool = True
    longest: int | None = None

    def shortened(self, most: int) -> RRset:
        """Give the records for a denial that stands in for answers of at most `most` seconds, which it must not outlive."""
        longest = self.ttl if self.longest is None else self.longest
        return self._replace(ttl=min(self.ttl, most), patched=True, longest=longest)


@dataclass(slots=True)
class Writer:
    """Writes the answers of one zone. signing: None = it is not signed, and `Forms.signed` stays empty."""

    zone: Zone
    signing: Signer | None = None

    def forms(
        self, answer: Sequence[RRset] = (), authority: Sequence[RRset] = (), additional: Sequence[RRset] = (), *,
        proof: Sequence[RRset] = (), rotations: int = 1, rcode: int = 0, authoritative: bool = True,
    ) -> Forms:  # fmt: skip
        """Give one response, plain and signed.

        proof: further authority records, in the signed form alone
        rotations: as many Bodies, in each the first answer's records begin one further on
        """
        turns = range(rotations)
        extra = [(rrset, ()) for rrset in additional]
        plain = [[(rrset, ()) for rrset in section] for section in (answer, authority)]
        forms = Forms(tuple(_body([*plain, extra], turn, rcode, authoritative) for turn in turns))
        if self.signing is None:
            return forms
        signed = [[(rrset, self._signatures(rrset)) for rrset in section] for section in (answer, [*authority, *proof])]
        return Forms(forms.plain, tuple(_body([*signed, extra], turn, rcode, authoritative) for turn in turns))

    def soa(self, most: int | None = None) -> RRset:
        """Give the SOA of a denial. most: the TTL of the answers that the denial stands in for, which it does not outlive."""
        longest, rdatas = self.zone.content[self.zone.key][SOA]
        soa = RRset(self.zone.key, ORIGIN, SOA, self.zone.denial_ttl, wires(rdatas), longest=longest)
        return soa if most is None else soa.shortened(most)

    def _signatures(self, rrset: RRset) -> Sequence[bytes]:
        if self.signing is None or not rrset.signed:
            return ()
        ttl = rrset.ttl if rrset.longest is None else rrset.longest
        return self.signing.sign_wire(rrset.owner, rrset.rdtype, ttl, rrset.rdatas)


def wire(data: Name | Rdata) -> bytes:
    """Give a name or a record's data as it goes into a response, uncompressed."""
    written = data.to_wire()
    assert written is not None  # it is only when writing into a file
    return written


def wires(rdatas: Iterable[Rdata]) -> tuple[bytes, ...]:
    """Give records' data as it goes into a response, uncompressed."""
    return tuple(map(wire, rdatas))


def _body(sections: Sequence[Sequence[tuple[RRset, Sequence[bytes]]]], turn: int, rcode: int, authoritative: bool) -> Body:
    data, ttls, origins, most = bytearray(), list[int](), list[int](), MAX_TTL
    counts = [0, 0, 0]
    for number, section in enumerate(sections):
        for rrset, rdtype, rdata in _records(section, turn):
            if rrset.shown is ORIGIN:
                origins.append(len(data))
            data += rrset.shown
            if rrset.patched:
                ttls.append(len(data) + 4)
                most = min(most, rrset.ttl)
            data += _FIXED.pack(rdtype, IN, rrset.ttl, len(rdata)) + rdata
            counts[number] += 1
        turn = 0  # only answers rotate
    return Body(bytes(data), counts[0], counts[1], counts[2], rcode, authoritative, tuple(ttls), tuple(origins), most)


def _records(section: Sequence[tuple[RRset, Sequence[bytes]]], turn: int) -> Iterator[tuple[RRset, int, bytes]]:
    for rrset, signatures in section:
        rotated = [*rrset.rdatas[turn:], *rrset.rdatas[:turn]] if turn else rrset.rdatas
        yield from ((rrset, rrset.rdtype, rdata) for rdata in rotated)
        yield from ((rrset, RRSIG, rdata) for rdata in signatures)


def spelled_out(forms: Forms, origin: bytes) -> Forms:
    """Give an answer with its zone's name written where pointers to it would stand: for a question in another zone."""
    plain, signed = ([_spelled(body, origin) for body in bodies or ()] for bodies in (forms.plain, forms.signed))
    return Forms(tuple(plain), tuple(signed) or None)


def _spelled(body: Body, origin: bytes) -> Body:
    data = bytearray(body.data)
    for at in sorted(body.origins, reverse=True):
        data[at : at + 2] = origin
    return body._replace(data=bytes(data), origins=())  # denials of fixed names have no TTLs that the route decides
