"""Writing a response: header, the question as it was asked, a prepared Body, OPT last. The compiled path writes the same bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from lbcore.dns.answers import Body
from lbcore.dns.query import HEADER, OPCODE, QR, RD, Query
from lbcore.dns.route import Choice

__all__ = ["FAIL_OPEN", "MAX_UDP", "NOT_AUTHORITATIVE", "PROHIBITED", "SUSPECT", "Error", "Reply", "failed", "only", "size_limit", "write"]

MAX_UDP = 1232  # bytes, never fragmented: DNS Flag Day 2020
MIN_UDP = 512
MAX_TCP = 65_535
_AA, _TC = 0x0400, 0x0200
_OPT = struct.Struct("!BHHBBHH")
_OPTION = struct.Struct("!HH")
_ECS, _COOKIE, _NSID, _KEEPALIVE, _EDE = 8, 10, 3, 11, 15
_DO = 0x8000
_RECORD = struct.Struct("!HHIH")


class Error(NamedTuple):
    """An extended error: what a response code cannot say.

    Source: RFC 8914.
    """

    code: int
    text: str = ""


FAIL_OPEN = Error(0, "fail open: no region is up")
SUSPECT = Error(0, "vantage suspect: health is frozen")
PROHIBITED = Error(18)
NOT_AUTHORITATIVE = Error(20)


@dataclass(slots=True)
class Reply:
    """A response before it is written.

    body: of the prepared ones, or made for this query
    origin: the length of the zone's name, in wire form
    ttl: seconds, where the route decides
    scope: bits of the client's network that it holds for
    choice: where the route led, when one was asked
    labels: what it is counted under: zone, name, type, region, result
    topic: name and type that rate limiting counts together
    """

    body: Body
    origin: int = 1
    ttl: int = 0
    scope: int = 0
    errors: tuple[Error, ...] = ()
    choice: Choice | None = None
    labels: tuple[str, str, str, str, str] = ("", "", "", "", "")
    topic: tuple[bytes, int] = (b"", 0)
    cookie: bytes = b""
    nsid: bytes = b""
    keepalive: int = 0
    truncated: bool = False


def failed(rcode: int, *errors: Error) -> Reply:
    """Give a response that is nothing but its code."""
    return Reply(Body(rcode=rcode, authoritative=False), errors=errors)


def size_limit(asked: Query, tcp: bool) -> int:
    """Give how many bytes a response may have."""
    if tcp:
        return MAX_TCP
    return MIN_UDP if asked.payload is None else max(MIN_UDP, min(asked.payload, MAX_UDP))


def write(asked: Query, reply: Reply, limit: int) -> bytes:
    """Write a response of at most `limit` bytes.

    What does not fit is left out whole: additional records first, which a client can ask for, but not those that a referral is
    useless without (RFC 9471 §3); then all, with TC set.
    """
    opt = b"" if asked.payload is None else _opt(asked, reply)
    room = limit - HEADER.size - len(asked.question) - len(opt)
    body = reply.body
    if len(body.data) > room and body.additionals and body.authoritative:
        body = _without_additional(body)
    if len(body.data) > room:
        reply.truncated = True
    if reply.truncated:
        body = Body(rcode=body.rcode, authoritative=body.authoritative)
    flags = QR | asked.flags & (OPCODE | RD) | (_AA if body.authoritative else 0) | (_TC if reply.truncated else 0) | body.rcode & 15
    head = HEADER.pack(
        asked.id, flags, 1 if asked.question else 0, body.answers, body.authorities, body.additionals + (1 if opt else 0)
    )  # fmt: skip
    return b"".join((head, asked.question, _patched(asked, reply, body), opt))


def _patched(asked: Query, reply: Reply, body: Body) -> bytes:
    if not body.ttls and not body.origins:
        return body.data
    data, ttl = bytearray(body.data), min(reply.ttl, body.most).to_bytes(4)
    for at in body.ttls:
        data[at : at + 4] = ttl
    pointer = (0xC000 + HEADER.size + len(asked.name) - reply.origin).to_bytes(2)
    for at in body.origins:
        data[at : at + 2] = pointer
    return bytes(data)


def _opt(asked: Query, reply: Reply) -> bytes:
    options = []
    if reply.body.rcode not in _BARE:
        if asked.subnet is not None:
            options.append((_ECS, asked.subnet.echo(reply.scope)))
        options += [(_COOKIE, reply.cookie), (_NSID, reply.nsid), (_KEEPALIVE, reply.keepalive.to_bytes(2) if reply.keepalive else b"")]
        options += [(_EDE, error.code.to_bytes(2) + error.text.encode()) for error in reply.errors]
    data = b"".join(_OPTION.pack(code, len(value)) + value for code, value in options if value)
    return _OPT.pack(0, 41, MAX_UDP, reply.body.rcode >> 4, 0, _DO if asked.dnssec_ok else 0, len(data)) + data


_BARE = frozenset((1, 16))  # FORMERR and BADVERS: what the options said cannot be relied on


def _without_additional(body: Body) -> Body:
    end = 0
    for _ in range(body.answers + body.authorities):
        end = _record_end(body.data, end)
    return body._replace(
        data=body.data[:end], additionals=0,
        ttls=tuple(at for at in body.ttls if at < end), origins=tuple(at for at in body.origins if at < end),
    )  # fmt: skip


def only(rdtype: int, body: Body) -> Body:
    """Give an answer with its records of one type alone; a denial as it is. Its records are those of the name asked for."""
    if not body.answers:
        return body
    data, ttls, count, at = bytearray(), list[int](), 0, 0
    for _ in range(body.answers):
        start, at = at, _record_end(body.data, at)
        if _RECORD.unpack_from(body.data, start + 2)[0] == rdtype:
            ttls += [ttl - start + len(data) for ttl in body.ttls if start < ttl < at]
            data += body.data[start:at]
            count += 1
    return Body(bytes(data), count, rcode=body.rcode, ttls=tuple(ttls), most=body.most)


def _record_end(data: bytes, at: int) -> int:
    while (size := data[at]) and size < 0xC0:
        at += 1 + size
    at += 2 if size else 1
    length: int = _RECORD.unpack_from(data, at)[3]
    return at + _RECORD.size + length

