"""Steered names: what each region, each pair of regions, and several regions together are answered with."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from dns.rdatatype import AAAA, CNAME, HTTPS, SVCB, A

from lbcore.dns.answers import Forms
from lbcore.dns.names import key_of
from lbcore.dns.place import Place
from lbcore.dns.writing import ASKED, RRset, wire

if TYPE_CHECKING:
    from lbcore.dns.fixed import Part

__all__ = ["MAX_PAIRS", "MAX_ROTATIONS", "STEERED", "Steered"]

STEERED = (A, AAAA, HTTPS, SVCB)
MAX_ROTATIONS = 16
MAX_PAIRS = 132  # of 12 regions; more are written when they are asked for
MAX_HINTS = 8
_ALPN, _PORT, _IPV4HINT, _IPV6HINT = 1, 3, 4, 6
_PARAMETER = struct.Struct("!HH")


@dataclass(slots=True)
class Steered:
    """What may be said of one steered name.

    places: what regions can be answered with, by slot
    direct: the name cannot be a CNAME: it is the zone itself, an alias, or has records of its own
    """

    part: Part
    key: bytes
    ttl: int
    places: Sequence[Place]
    direct: bool

    def several(self, rdtype: int, slots: Sequence[int]) -> Forms:
        """Give the records of regions together, in that order; a region that is a CNAME is answered alone or left out.

        rdtype: A, AAAA, HTTPS or SVCB; 0 = any other
        One region's addresses rotate. A region without such records has the denial of the type.
        """
        alias = self._alias(slots[0])
        if alias is not None:
            return self.part.forms(self.key, [self._records(CNAME, (alias,))])
        rdatas = self._services(slots) if rdtype in (HTTPS, SVCB) else self._addresses(rdtype, slots)
        if not rdatas:
            return self.nodata(rdtype)
        rotations = min(len(rdatas), MAX_ROTATIONS) if rdtype in (A, AAAA) and len(slots) == 1 else 1
        return self.part.forms(self.key, [self._records(rdtype, rdatas)], rotations=rotations)

    def nodata(self, rdtype: int) -> Forms:
        """Give the denial of a type. rdtype 0 = any that the name has no records of."""
        proof = [rrset.shortened(self.ttl) for rrset in self.part.proof(self.key, rdtype)]
        return self.part.forms(self.key, authority=[self.part.writer.soa(self.ttl)], proof=proof)

    def nxdomain(self) -> Forms:
        """Give the denial of the name while its profile is disabled, in a zone that is not signed: there its NSEC says that it exists."""
        return self.part.forms(self.key, authority=[self.part.writer.soa(self.ttl)], rcode=3)

    def _records(self, rdtype: int, rdatas: Sequence[bytes]) -> RRset:
        return RRset(self.key, ASKED, rdtype, self.ttl, rdatas, patched=True)

    def _alias(self, slot: int) -> bytes | None:
        alias = self.places[slot].alias
        target = alias and key_of(alias)
        return None if self.direct or alias is None or target == self.key else wire(alias)

    def _addresses(self, rdtype: int, slots: Iterable[int]) -> Sequence[bytes]:
        """Give the regions' addresses in turns, the first of each first; once each."""
        turns = zip_longest(*(self.places[slot].addresses(rdtype) for slot in slots))
        return [*dict.fromkeys(address for address in chain.from_iterable(turns) if address is not None)]

    def _services(self, slots: Sequence[int]) -> Sequence[bytes]:
        """Give an HTTPS record for each region that HTTPS leads to; none when it does not lead to the first."""
        if not self.part.zone.alpn or not self.places[slots[0]].https:
            return []
        made = (_service(number, self.places[slot], self.part.zone.alpn) for number, slot in enumerate(slots, 1))
        return [rdata for rdata in made if rdata is not None]


def _service(priority: int, place: Place, alpn: Iterable[str]) -> bytes | None:
    """Give the data of one HTTPS or SVCB record, None where HTTPS does not lead.

    The first region is the name's own address: target ".". The next ones are reached by their gateway's host, as the name's
    addresses are the first region's and a client prefers those to hints; where there is none, the hints must do.
    Source: RFC 9460 §2.2, §7.
    """
    if not place.https or not (place.ipv4 or place.ipv6 or place.host):
        return None
    own = priority == 1 and (place.ipv4 or place.ipv6)
    target = b"\0" if own or place.host is None else wire(place.host)
    parameters = b"".join(_PARAMETER.pack(key, len(value)) + value for key, value in _parameters(place, alpn))
    return struct.pack("!H", priority) + target + parameters


def _parameters(place: Place, alpn: Iterable[str]) -> Iterator[tuple[int, bytes]]:
    protocols = [name.encode() for name in alpn]
    yield _ALPN, b"".join(bytes((len(name),)) + name for name in protocols)
    if place.port is not None:
        yield _PORT, struct.pack("!H", place.port)
    for key, addresses in ((_IPV4HINT, place.ipv4), (_IPV6HINT, place.ipv6)):
        if addresses:
            yield key, b"".join(addresses[:MAX_HINTS])
