"""Responder: bytes in, bytes out. It answers whatever a packet may be, from what is prepared and, where nothing is, on the spot.

                     asked for                      answered
    not in a zone, another class, zone transfer     REFUSED
    a name that does not exist                      NXDOMAIN + SOA
    a steered name: A, AAAA, HTTPS, SVCB            the picked region's records; of a region without addresses a CNAME to its host
      no such records, other types                  NODATA + SOA
      nothing is enabled anywhere                   NODATA + SOA
    static records                                  as they are
    ANY                                             one record set of the name (RFC 8482): A, else AAAA, else whichever there is
    below a zone cut                                a referral
    version.bind, hostname.bind, id.server in CH    what is configured, else REFUSED

The compiled loop (`_wire`) gives the same bytes for what is prepared, and leaves the rest to this.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dns.rcode import BADCOOKIE, FORMERR, NOERROR, REFUSED, SERVFAIL
from dns.rdataclass import CH, IN
from dns.rdatatype import ANY, TXT

from lbcore.dns._cookies import Cookies
from lbcore.dns._rrl import RateLimiter, hash_answer
from lbcore.dns.answers import Answers, Body
from lbcore.dns.current import Balancing, Current, Prepared
from lbcore.dns.lookup import Lookup, result_of
from lbcore.dns.profile import Profile
from lbcore.dns.query import Query, parse
from lbcore.dns.response import MAX_UDP, Reply, failed, size_limit, write
from lbcore.dns.route import NODATA, Program
from lbcore.dns.zone import Zone
from lbcore.sense.geo import Client

__all__ = ["MAX_UDP", "Responder"]

MAX_NSID = 64  # bytes; so that a header, the longest question and OPT always fit in 512
_SEND, _SLIP, _DROP = range(3)
_COUNTERS = (
    "queries", "dropped", "withheld", "noerror", "nodata", "nxdomain", "refused", "formerr", "notimp", "badvers", "badcookie", "notauth",
    "servfail", "referral", "ecs", "fail_open", "no_region", "truncated", "limited",
)  # fmt: skip
_MAPPED = bytes(10) + b"\xff\xff"
_CH_TXT = struct.Struct("!HHIHB")
_VERSION, _VERSION_SERVER = b"\7version\4bind\0", b"\7version\6server\0"
_HOST, _ID = b"\10hostname\4bind\0", b"\2id\6server\0"


class Responder:
    """Answer DNS queries for zones whose steered names lead to the regions of a Balancer.

    zones: one, several, or a Profile, which makes a zone by itself
    nsid: what identifies this server to those who ask (RFC 5001), and in CH TXT id.server and hostname.bind; at most 64 bytes
    version: what CH TXT version.bind says; "" = REFUSED
    cookies: makes and judges server cookies; None = none. rrl: limits responses over UDP; None = no limit
    idle: seconds that a TCP connection may be idle, told to those who ask (RFC 7828)
    clock: Unix seconds, for cookies. monotonic: seconds, for rate limiting
    `counters` counts since the start: every query is one of dropped (unanswerable), withheld (by rate limiting), noerror, nodata,
    referral or an error code; the rest is what happened besides. `answers` has all answers by (zone, name, type, region, result),
    where names that do not exist, and what is in no zone, are "".
    One thread or event loop at a time asks; reloads and changes of the Balancer may come from others.
    Raises ConfigError for zones that contradict each other, ValueError for a longer nsid.
    """

    def __init__(
        self, lb: Balancing, zones: Profile | Zone | Iterable[Zone], *, nsid: bytes = b"", version: str = "",
        cookies: Cookies | None = None, rrl: RateLimiter | None = None, idle: float = 10.0,
        clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        if len(nsid) > MAX_NSID:
            raise ValueError(f"nsid has {len(nsid)} bytes, at most {MAX_NSID} are sent")
        self.nsid, self.idle = nsid, idle
        self.counters: dict[str, Any] = dict.fromkeys(_COUNTERS, 0)
        self.counters["answers"] = self._answered = Counter[tuple[str, str, str, str, str]]()
        self._lb = lb
        self.cookies, self.rrl = cookies, rrl
        self._clock, self._monotonic = clock, monotonic
        self._chaos = {_HOST: nsid, _ID: nsid, _VERSION: version.encode(), _VERSION_SERVER: version.encode()}
        self._current = Current(lb, _zones(zones))
        self._lookup = Lookup(self._current.version)

    @property
    def answers(self) -> Answers:
        """Give what is prepared."""
        return self._current.version.answers

    @property
    def program(self) -> Program:
        """Give where queries go."""
        return self._current.version.program

    @property
    def zones(self) -> tuple[Zone, ...]:
        """Give the zones that are answered for."""
        return self._current.zones

    @property
    def not_prepared(self) -> int:
        """Give how often a change could not be prepared for, so that the old answers stayed."""
        return self._current.failures

    @property
    def suspect(self) -> bool:
        """Say whether this vantage is suspect, so that verdicts are frozen."""
        guard = getattr(self._lb, "guard", None)
        return guard is not None and guard.suspicion is not None

    def on_prepared(self, callback: Prepared) -> Callable[[], None]:
        """Call `callback(answers, program)` now and whenever they are others; gives a function that ends it."""
        return self._current.follow(callback)

    def reload(self, zones: Profile | Zone | Iterable[Zone]) -> None:
        """Answer for other zones from the next query on. Raises ConfigError when they contradict each other; then nothing changes."""
        self._current.reload(_zones(zones))

    def close(self) -> None:
        """Follow the Balancer no longer; for those who keep it and make another Responder."""
        self._current.close()

    def tick(self) -> None:
        """Let the Balancer do what is due, look ahead for TTLs that follow health, renew signatures. Every 100 ms is right."""
        self._lb.tick()
        self._current.tick()

    async def serve(self, host: str = "127.0.0.1", port: int = 5353, *, ready: asyncio.Event | None = None) -> None:
        """Answer over UDP and TCP and tick the Balancer every 100 ms until cancelled, then close gracefully.

        ready: set once both sockets listen. `lbcore.dns.server.Server` is the same as a context manager that knows its port.
        Raises OSError when the address cannot be bound.
        """
        from lbcore.dns.server import Server

        async with Server(self, host, port):
            if ready is not None:
                ready.set()
            await asyncio.get_running_loop().create_future()

    def answer(self, query: bytes, client: Client, *, tcp: bool = False) -> bytes | None:
        """Give the response to one packet; None when it must not get one: a response itself, no whole header, or over the rate.

        client: the resolver's address (str, packed bytes, ipaddress object; None = unknown), used when the query carries no
        client subnet or withholds it. tcp: no size limit; else min(what the client takes, 1232) bytes, 512 without EDNS.
        Raises ValueError when client is no address.

        A client subnet longer than needed gets the scope of its group: the shortest prefix that is all of one group. One that
        is too short is answered for its first address and gets a scope longer than its source, which tells the resolver to keep
        the answer for queries of that source alone and to send more bits next time (RFC 7871 §7.2.1, §7.3.1).
        Source: RFC 1035, 2308, 5001, 6891, 7828, 7871, 7873, 8482, 8914, 9018; gdnsd's dnspacket.c for the strictness about ECS.
        """
        self.counters["queries"] += 1
        asked = parse(query)
        source = _packed(client)
        if asked is None:
            self.counters["dropped"] += 1
            return None
        shown, cookie = self._judge(asked, source)
        if asked.question or asked.fault:
            reply = self._reply(asked, source)
        else:  # a cookie is all that is wanted (RFC 7873 §5.4)
            reply = failed(BADCOOKIE if shown is False else NOERROR)
        reply.cookie = cookie
        self._add_options(asked, reply, tcp)
        if not tcp and not shown and self.rrl is not None and source is not None and self._limited(self.rrl, reply, source):
            self.counters["withheld"] += 1
            return None
        wire = write(asked, reply, size_limit(asked, tcp))
        self._count(asked, reply)
        return wire

    def failure(self, query: bytes) -> bytes | None:
        """Give SERVFAIL for a packet whose answer could not be made; for servers, after they logged why."""
        asked = parse(query)
        if asked is None:
            return None
        reply = failed(SERVFAIL)
        answer = write(asked, reply, size_limit(asked, False))
        self._count(asked, reply)
        return answer

    # ---- decide

    def _reply(self, asked: Query, source: bytes | None) -> Reply:
        if asked.fault:
            return failed(asked.fault)
        if asked.rdclass != IN:
            return self._other_class(asked)
        if self._lookup.version is not self._current.version:
            self._lookup = Lookup(self._current.version)
        return self._lookup.reply(asked, source, self.suspect)

    def _other_class(self, asked: Query) -> Reply:
        text = self._chaos.get(asked.name) if asked.rdclass == CH and asked.rdtype in (TXT, ANY) else None
        if not text:
            return failed(REFUSED)
        data = b"\xc0\x0c" + _CH_TXT.pack(TXT, CH, 0, len(text) + 1, len(text)) + text
        return Reply(Body(data, 1))

    # ---- around it

    def _judge(self, asked: Query, source: bytes | None) -> tuple[bool | None, bytes]:
        """Give whether a server cookie was shown and valid (None: none was), and what the answer's option holds."""
        if self.cookies is None or asked.fault or asked.cookie is None:
            if not asked.question and not asked.fault:
                asked.fault = FORMERR  # without cookies there is nothing to ask for
            return None, b""
        judged = self.cookies.answer(asked.cookie, source or bytes(4), int(self._clock()) & 0xFFFFFFFF)
        assert judged is not None  # its size was checked
        valid, cookie = judged
        return (valid if len(asked.cookie) > 8 else None), cookie

    def _add_options(self, asked: Query, reply: Reply, tcp: bool) -> None:
        if asked.nsid:
            reply.nsid = self.nsid
        if asked.keepalive and tcp:
            reply.keepalive = min(int(self.idle * 10), 65_535)

    def _limited(self, rrl: RateLimiter, reply: Reply, source: bytes) -> bool:
        """Apply rate limiting; True when nothing is to be sent, else the answer may have become a truncated one."""
        name, rdtype = reply.topic
        verdict = rrl.verdict(source, hash_answer(name, rdtype), int(self._monotonic() * 1000))
        if verdict == _SEND:
            return False
        self.counters["limited"] += 1
        if verdict == _SLIP:  # it must not be worth a forger's while: no longer than its query, but for the cookie
            reply.truncated, reply.nsid, reply.errors = True, b"", ()
        return verdict == _DROP

    def _count(self, asked: Query, reply: Reply) -> None:
        result = result_of(reply.body)
        self.counters[result] += 1
        self.counters["truncated"] += reply.truncated
        self.counters["ecs"] += asked.subnet is not None
        self._answered[reply.labels if reply.labels[-1] else ("", "", "", "", result)] += 1
        if reply.choice is not None:
            self.counters["fail_open"] += reply.choice.fail_open
            self.counters["no_region"] += reply.choice.region == NODATA


def _zones(zones: Profile | Zone | Iterable[Zone]) -> Iterator[Zone]:
    if isinstance(zones, Profile):
        yield Zone.of(zones)
    elif isinstance(zones, Zone):
        yield zones
    else:
        yield from zones


def _packed(client: Client) -> bytes | None:
    """Give an address as bytes; that of an IPv4 client on a socket of both families in its own form."""
    if client is None:
        return None
    if isinstance(client, str):
        try:
            return socket.inet_pton(socket.AF_INET, client)
        except OSError:
            client = ipaddress.ip_address(client)
    packed = client if isinstance(client, bytes) else client.packed
    if len(packed) not in (4, 16):
        raise ValueError(f"{client!r} is not an IPv4 or IPv6 address")
    return packed[12:] if packed.startswith(_MAPPED) and len(packed) == 16 else packed
