"""Reading one packet: the question, EDNS and the client's network, or what is wrong with them.

Wire parsing by dnspython's `Parser`, record by record: record data that nobody asked for is skipped, never interpreted.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

import dns.exception
import dns.name
import dns.rcode
import dns.wire
from dns.flags import QR, RD
from dns.rcode import Rcode
from dns.rdatatype import OPT, TSIG

__all__ = ["Query", "Subnet", "parse"]

HEADER = struct.Struct("!HHHHHH")
_ECS = 8
_DO = 0x8000
_WIDTH = {1: 32, 2: 128}  # bits of an address, by ECS family


class _Section(enum.IntEnum):
    ANSWER = 0
    AUTHORITY = 1
    ADDITIONAL = 2


@dataclass(frozen=True, slots=True)
class Subnet:
    """A client's network as ECS carries it: `address` has exactly the bytes that `source` bits need."""

    family: int
    source: int
    address: bytes

    @property
    def base(self) -> bytes | None:
        """Give the network's first address, packed; None when the client withheld it (source 0)."""
        return self.address.ljust(_WIDTH[self.family] // 8, b"\0") if self.source else None

    def echo(self, scope: int) -> bytes:
        """Give the option's data for an answer."""
        return struct.pack("!HBB", self.family, self.source, scope) + self.address


@dataclass(slots=True)
class Query:
    """What a packet asks. `fault` is NOERROR, or the response code that its form deserves.

    payload: the largest UDP answer the client takes, bytes; None = it does not speak EDNS
    """

    id: int
    flags: int
    fault: Rcode = Rcode.NOERROR
    name: dns.name.Name | None = None
    rdtype: int = 0
    rdclass: int = 0
    payload: int | None = None
    dnssec_ok: bool = False
    subnet: Subnet | None = None

    @property
    def recursion_desired(self) -> bool:
        """Give the bit that an answer repeats."""
        return bool(self.flags & RD)


class _BadVersion(Exception):
    pass


class _Signed(Exception):
    pass


def parse(wire: bytes) -> Query | None:
    """Read a packet; None when it must not be answered: no whole header, or itself a response.

    Source: RFC 1035 §4.1, RFC 6891 §6.1 and §7 (EDNS), RFC 7871 §6 and §7 (ECS), RFC 8945 §5.2 (TSIG), RFC 9619 (one question).
    """
    if len(wire) < HEADER.size:
        return None
    id_, flags, *counts = HEADER.unpack_from(wire)
    if flags & QR:
        return None
    query = Query(id_, flags)
    if flags & 0x7800:
        query.fault = Rcode.NOTIMP
        return query
    try:
        _read(query, dns.wire.Parser(wire, HEADER.size), counts)
    except dns.exception.FormError:
        query.fault = Rcode.FORMERR
    except _BadVersion:
        query.fault = Rcode.BADVERS
    except _Signed:
        query.fault = Rcode.NOTAUTH
    return query


def _read(query: Query, parser: dns.wire.Parser, counts: list[int]) -> None:
    if counts[0] != 1:
        raise dns.exception.FormError
    query.name = parser.get_name()
    query.rdtype, query.rdclass = parser.get_struct("!HH")
    options = None
    for section, count in zip(_Section, counts[1:], strict=True):
        for _ in range(count):
            found = _read_record(query, parser, section)
            if found is not None and options is not None:
                raise dns.exception.FormError
            options = found if options is None else options
    if parser.remaining():
        raise dns.exception.FormError
    if options is not None:
        _read_options(query, dns.wire.Parser(options))


def _read_record(query: Query, parser: dns.wire.Parser, section: _Section) -> bytes | None:
    """Step over a record; of OPT take the fields and give the options."""
    name = parser.get_name()
    rdtype, rdclass, ttl, length = parser.get_struct("!HHIH")
    data = parser.get_bytes(length)
    if rdtype == TSIG and section is _Section.ADDITIONAL:
        raise _Signed
    if rdtype != OPT:
        return None
    if section is not _Section.ADDITIONAL or name != dns.name.root:
        raise dns.exception.FormError
    query.payload = rdclass
    query.dnssec_ok = bool(ttl & _DO)
    if ttl >> 16 & 0xFF:
        raise _BadVersion
    return data


def _read_options(query: Query, parser: dns.wire.Parser) -> None:
    while parser.remaining():
        code, length = parser.get_struct("!HH")
        data = parser.get_bytes(length)
        if code == _ECS:
            if query.subnet is not None:
                raise dns.exception.FormError
            query.subnet = _read_subnet(data)


def _read_subnet(data: bytes) -> Subnet:
    if len(data) < 4:
        raise dns.exception.FormError
    family, source, scope = struct.unpack_from("!HBB", data)
    address = data[4:]
    # Family 0 with nothing in it is how `dig +subnet=0` withholds the address (RFC 7871 §7.1.2 asks for source 0 and no more).
    width = 0 if family == 0 else _WIDTH.get(family, -1)
    unused = -source % 8
    if scope or source > width or len(address) != (source + 7) // 8 or (unused and address[-1] & ((1 << unused) - 1)):
        raise dns.exception.FormError
    return Subnet(family, source, address)
