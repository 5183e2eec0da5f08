"""Reading one packet: the question, EDNS and its options, or what is wrong with them.

Record data that nobody asked for is stepped over, never interpreted, and names in it are never followed: a pointer ends a name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dns.rcode import BADVERS, FORMERR, NOERROR, NOTAUTH, NOTIMP
from dns.rdatatype import OPT, TSIG

__all__ = ["Query", "Subnet", "parse"]

HEADER = struct.Struct("!HHHHHH")
_TYPE_CLASS = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_ECS_FIXED = struct.Struct("!HBB")
QR, OPCODE, RD = 0x8000, 0x7800, 0x0100
_DO = 0x8000
_NSID, _ECS, _COOKIE, _KEEPALIVE = 3, 8, 10, 11
_WIDTH = {1: 32, 2: 128}  # bits of an address, by ECS family
_MAX_NAME = 255


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
        return _ECS_FIXED.pack(self.family, self.source, scope) + self.address


@dataclass(slots=True)
class Query:
    """What a packet asks. `fault` is 0, or the response code that its form deserves.

    question: name, type and class as they were asked; empty when there is no (whole) question
    name: the name alone, in wire form and lower case
    payload: the largest UDP answer the client takes, bytes; None = it does not speak EDNS
    cookie: the data of the COOKIE option; None = there is none
    """

    id: int
    flags: int
    fault: int = NOERROR
    question: bytes = b""
    name: bytes = b""
    rdtype: int = 0
    rdclass: int = 0
    payload: int | None = None
    dnssec_ok: bool = False
    subnet: Subnet | None = None
    cookie: bytes | None = None
    nsid: bool = False
    keepalive: bool = False


class _Fault(Exception):
    """What is wrong with a packet, as a response code."""

    def __init__(self, code: int = FORMERR) -> None:
        self.code = code


def parse(wire: bytes) -> Query | None:
    """Read a packet; None when it must not be answered: no whole header, or itself a response.

    Source: RFC 1035 §4.1, RFC 6891 §6.1 and §7 (EDNS), RFC 7871 §6 and §7 (ECS), RFC 7873 §5.2 and §5.4 (cookies), RFC 8945 §5.2
    (TSIG), RFC 9619 (one question).
    """
    if len(wire) < HEADER.size:
        return None
    id_, flags, questions, *counts = HEADER.unpack_from(wire)
    if flags & QR:
        return None
    query = Query(id_, flags)
    try:
        _read(query, wire, questions, counts)
    except struct.error:  # cut short
        query.fault = FORMERR
    except _Fault as fault:
        query.fault = fault.code
    if flags & OPCODE:  # read all the same, as NOTIFY and UPDATE look like a query: what has OPT gets OPT (RFC 6891 §6.1.1)
        query.fault = NOTIMP
    return query


def _read(query: Query, wire: bytes, questions: int, counts: list[int]) -> None:
    if questions > 1:
        raise _Fault
    at = _read_question(query, wire) if questions else HEADER.size
    options = None
    for section, count in enumerate(counts):
        for _ in range(count):
            at, found = _read_record(query, wire, at, section == 2)
            if found is not None and options is not None:
                raise _Fault
            options = found if options is None else options
    if at != len(wire):
        raise _Fault
    if options:
        _read_options(query, options)
    if not questions and query.cookie is None:  # a question is not needed to ask for a cookie
        raise _Fault


def _read_question(query: Query, wire: bytes) -> int:
    end = _name_end(wire, HEADER.size, pointers=False)  # nothing stands before the first name that it could point to
    query.rdtype, query.rdclass = _TYPE_CLASS.unpack_from(wire, end)
    query.question = wire[HEADER.size : end + _TYPE_CLASS.size]
    query.name = wire[HEADER.size : end].lower()
    return end + _TYPE_CLASS.size


def _name_end(wire: bytes, at: int, *, pointers: bool = True) -> int:
    """Give where a name ends that starts at `at`: behind the root's label, or behind a pointer, which is not followed."""
    longest = at + _MAX_NAME
    try:
        while size := wire[at]:
            if size >= 0xC0 and pointers:
                return at + 2
            at += 1 + size
            if size > 63 or at >= longest:
                raise _Fault
    except IndexError:
        raise _Fault from None
    return at + 1


def _read_record(query: Query, wire: bytes, at: int, additional: bool) -> tuple[int, bytes | None]:
    """Step over a record; of OPT take the fields. Gives where the next begins, and the options."""
    end = _name_end(wire, at)
    rdtype, rdclass, ttl, length = _RECORD.unpack_from(wire, end)
    start = end + _RECORD.size
    if start + length > len(wire):
        raise _Fault
    if rdtype == TSIG and additional:
        raise _Fault(NOTAUTH)
    if rdtype != OPT:
        return start + length, None
    if not additional or end != at + 1:
        raise _Fault
    query.payload = rdclass
    query.dnssec_ok = bool(ttl & _DO)
    if ttl >> 16 & 0xFF:
        raise _Fault(BADVERS)
    return start + length, wire[start : start + length]


def _read_options(query: Query, data: bytes) -> None:
    at = 0
    while at < len(data):
        code, length = _TYPE_CLASS.unpack_from(data, at)
        at += _TYPE_CLASS.size
        if at + length > len(data):
            raise _Fault
        _read_option(query, code, data[at : at + length])
        at += length


def _read_option(query: Query, code: int, data: bytes) -> None:
    if code == _ECS:
        if query.subnet is not None:
            raise _Fault
        query.subnet = _read_subnet(data)
    elif code == _COOKIE and query.cookie is None:  # of several the first counts
        if len(data) != 8 and not 16 <= len(data) <= 40:
            raise _Fault
        query.cookie = data
    elif code == _NSID:
        query.nsid = True
    elif code == _KEEPALIVE:
        query.keepalive = True


def _read_subnet(data: bytes) -> Subnet:
    family, source, scope = _ECS_FIXED.unpack_from(data)
    address = data[4:]
    # Family 0 with nothing in it is how `dig +subnet=0` withholds the address (RFC 7871 §7.1.2 asks for source 0 and no more).
    width = 0 if family == 0 else _WIDTH.get(family, -1)
    unused = -source % 8
    if scope or source > width or len(address) != (source + 7) // 8 or (unused and address[-1] & ((1 << unused) - 1)):
        raise _Fault
    return Subnet(family, source, address)
