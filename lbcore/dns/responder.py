"""Responder: bytes in, bytes out. It picks a region for the client and says where its gateway is.

                     asked for                      answered
    not in the zone, another class, zone transfer   REFUSED
    a name that does not exist                      NXDOMAIN + SOA
    the balanced name: A, AAAA, ANY                 all addresses of the picked region, rotated; ANY gives both families (RFC 8482 §4.1)
      the region has a host name, no addresses      CNAME to its gateway's host, whatever the type (RFC 1034 §3.6.2), never chained
      no address of that family, other types        NODATA + SOA
      nothing is enabled anywhere                   NODATA + SOA
    the zone itself: SOA, NS                        the profile's, glue beside NS
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
from dns.name import Name
from dns.rcode import Rcode
from dns.rdata import Rdata
from dns.rdataclass import IN
from dns.rdatatype import ANY, AXFR, IXFR, NS, SOA, RdataType

from lbcore.dns.profile import Profile
from lbcore.dns.query import Query, parse
from lbcore.dns.records import Zone, address_rdata, cname_rdata, rrset
from lbcore.errors import NoRegionError
from lbcore.region import Region
from lbcore.sense.geo import Client

__all__ = ["MAX_UDP", "Balancing", "Responder"]

MAX_UDP = 1232  # bytes, never fragmented: DNS Flag Day 2020
MIN_UDP = 512
MAX_TCP = 65_535
_COUNTERS = (
    "queries", "dropped", "noerror", "nodata", "nxdomain", "refused", "formerr", "notimp", "badvers", "notauth", "servfail",
    "ecs", "fail_open", "no_region", "truncated", "udp", "tcp", "tcp_connections", "tcp_evicted", "tcp_timeouts",
)  # fmt: skip


class Balancing(Protocol):
    """What the Responder needs of a Balancer."""

    @property
    def fail_open(self) -> bool:
        """Say whether no region is up."""

    def pick(self, client: Client, /) -> Region:
        """Give the region for a client, or raise NoRegionError."""

    def rank(self, client: Client, /) -> list[Region]:
        """Give the regions for a client, best first."""

    def match(self, client: Client, /) -> tuple[int, int]:
        """Give a client's group and the length of the prefix that is all of that group."""

    def tick(self) -> object:
        """Do what is due."""


@dataclass(frozen=True, slots=True)
class _Place:
    """What a region can be answered with."""

    addresses: Mapping[RdataType, Sequence[Rdata]]
    host: Rdata | None = None

    def __bool__(self) -> bool:
        return bool(self.addresses) or self.host is not None


@dataclass(slots=True)
class _Reply:
    """A response before it is written. scope: bits of the client's network that it holds for."""

    rcode: Rcode = Rcode.NOERROR
    authoritative: bool = True
    answer: list[dns.rrset.RRset] = field(default_factory=list)
    authority: list[dns.rrset.RRset] = field(default_factory=list)
    additional: list[dns.rrset.RRset] = field(default_factory=list)
    scope: int = 0


class Responder:
    """Answer DNS queries for one profile with the regions of a Balancer.

    `counters` counts since the start: every query is one of dropped, noerror, nodata or an error code; the rest is what
    happened besides. One thread or event loop at a time.
    """

    def __init__(self, lb: Balancing, profile: Profile) -> None:
        self.profile = profile
        self.counters: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        self._lb = lb
        self._zone = Zone(profile)
        self._owner = profile.owner
        self._places: dict[Region, _Place] = {}
        self._turns = itertools.count()

    def answer(self, query: bytes, client: Client, *, tcp: bool = False) -> bytes | None:
        """Give the response to one packet; None when it must not get one: a response itself, or no whole header.

        client: the resolver's address (str, packed bytes, ipaddress object; None = unknown), used when the query carries no
        client subnet or withholds it. tcp: no size limit; else min(what the client takes, 1232) bytes, 512 without EDNS.
        Raises ValueError when client is no address.

        A client subnet longer than needed gets the scope of its group: the shortest prefix that is all of one group. One that
        is too short is answered for its first address and gets a scope longer than its source, which tells the resolver to keep
        the answer for queries of that source alone and to send more bits next time (RFC 7871 §7.2.1, §7.3.1).
        Source: RFC 1035, 2308, 6891, 7871, 8482; reference gdnsd's dnspacket.c for the strictness about ECS.
        """
        asked = parse(query)
        if asked is None:
            self._count("queries", "dropped")
            return None
        reply = self._reply(asked, client)
        wire = self._render(asked, reply, MAX_TCP if tcp else _udp_limit(asked))
        self._count("queries", _outcome(reply))
        return wire

    def failure(self, query: bytes) -> bytes | None:
        """Give SERVFAIL for a packet whose answer could not be made; for servers, after they logged why."""
        asked = parse(query)
        if asked is None:
            return None
        self._count("queries", "servfail")
        return self._render(asked, _Reply(Rcode.SERVFAIL, False), MIN_UDP)

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

    def tick(self) -> None:
        """Let the Balancer do what is due."""
        self._lb.tick()

    # ---- decide

    def _reply(self, asked: Query, client: Client) -> _Reply:
        if asked.fault:
            return _Reply(asked.fault, False)
        name = asked.name
        assert name is not None
        if asked.rdclass != IN or asked.rdtype in (AXFR, IXFR) or not name.is_subdomain(self._zone.origin):
            return _Reply(Rcode.REFUSED, False)
        if name == self._owner and not (name == self._zone.origin and asked.rdtype in (SOA, NS)):
            return self._tailored(asked, name, client)
        return self._static(name, asked.rdtype)

    def _static(self, name: Name, rdtype: int) -> _Reply:
        if not self._zone.exists(name):
            return _Reply(Rcode.NXDOMAIN, authority=[self._zone.denial])
        types = self._zone.types(name) if rdtype == ANY else [RdataType.make(rdtype)]
        answer = self._zone.find(name, name, types)
        additional = self._zone.glue if rdtype == NS and answer else []
        return _Reply(answer=answer, authority=[] if answer else [self._zone.denial], additional=additional)

    def _tailored(self, asked: Query, name: Name, client: Client) -> _Reply:
        scope = 0
        if asked.subnet is not None:
            self._count("ecs")
            if (base := asked.subnet.base) is not None:
                client = base
                scope = self._lb.match(client)[1]
        answer = self._records(name, asked.rdtype, self._place(client))
        # A denial is as tailored as an answer: at scope 0 it would hide the records from everybody.
        return _Reply(answer=answer, authority=[] if answer else [self._zone.denial], scope=scope)

    def _records(self, name: Name, rdtype: int, place: _Place | None) -> list[dns.rrset.RRset]:
        if place is None:
            return []
        if place.host is not None:
            return [rrset(name, self.profile.ttl, [place.host])]
        turn = next(self._turns)
        families = [family for family in place.addresses if rdtype in (family, ANY)]
        return [rrset(name, self.profile.ttl, _rotated(place.addresses[family], turn)) for family in families]

    def _place(self, client: Client) -> _Place | None:
        """Give what the client's region is answered with; of regions that DNS cannot name, the next in rank stands in."""
        try:
            region = self._lb.pick(client)
        except NoRegionError:
            self._count("no_region")
            return None
        if self._lb.fail_open:
            self._count("fail_open")
        if place := self._place_of(region):
            return place
        return next((place for other in self._lb.rank(client) if (place := self._place_of(other))), None)

    def _place_of(self, region: Region) -> _Place:
        place = self._places.get(region)
        if place is None:
            if len(self._places) > 4096:  # of regions long gone
                self._places.clear()
            place = self._places[region] = _place_of(region, self._owner, self._owner == self._zone.origin)
        return place

    # ---- write

    def _render(self, asked: Query, reply: _Reply, limit: int) -> bytes:
        """Write a response; what does not fit is left out whole: first the additional records, then all, with TC set."""
        message = _message(asked, reply)
        for drop in (None, message.additional, message.answer):
            if drop is not None:
                drop.clear()
            if drop is message.answer:
                message.authority.clear()
                message.flags |= dns.flags.TC
                self._count("truncated")
            try:
                return message.to_wire(max_size=limit, want_shuffle=False)
            except dns.exception.TooBig:
                continue
        raise AssertionError("a header, a question and OPT fit in 512 bytes")

    def _count(self, *names: str) -> None:
        for name in names:
            self.counters[name] += 1


def _message(asked: Query, reply: _Reply) -> dns.message.Message:
    message = dns.message.QueryMessage(id=asked.id)
    message.flags = dns.flags.Flag(dns.flags.QR | (asked.flags & 0x7800))
    if asked.recursion_desired:
        message.flags |= dns.flags.RD
    if reply.authoritative:
        message.flags |= dns.flags.AA
    if asked.name is not None:
        message.question.append(dns.rrset.RRset(asked.name, asked.rdclass, asked.rdtype))  # type: ignore[arg-type]
    message.answer, message.authority, message.additional = [*reply.answer], [*reply.authority], [*reply.additional]
    if asked.payload is not None:
        options: list[dns.edns.Option] = []
        if asked.subnet is not None:
            options.append(dns.edns.GenericOption(dns.edns.OptionType.ECS, asked.subnet.echo(reply.scope)))
        message.use_edns(0, dns.flags.DO if asked.dnssec_ok else 0, MAX_UDP, options=options)
    message.set_rcode(reply.rcode)
    return message


def _udp_limit(asked: Query) -> int:
    return MIN_UDP if asked.payload is None else max(MIN_UDP, min(asked.payload, MAX_UDP))


def _outcome(reply: _Reply) -> str:
    if reply.rcode == Rcode.NOERROR:
        return "noerror" if reply.answer else "nodata"
    return dns.rcode.to_text(reply.rcode).lower()


def _rotated(rdatas: Sequence[Rdata], turn: int) -> Sequence[Rdata]:
    at = turn % len(rdatas)
    return [*rdatas[at:], *rdatas[:at]]


def _place_of(region: Region, owner: Name, at_apex: bool) -> _Place:
    """Give a region's addresses, or else its gateway's host: an address, or a name other than the one asked for.

    The zone itself cannot be a CNAME (RFC 1034 §3.6.2: no other data beside it), nor a name its own alias.
    """
    texts, target = list(region.addresses), None
    if not texts:
        host = _host_of(region.gateway)
        try:
            texts = [str(ipaddress.ip_address(host))]
        except ValueError:
            target = None if at_apex else _target(host)
    addresses: dict[RdataType, list[Rdata]] = {}
    for text in texts:
        rdata = address_rdata(text)
        addresses.setdefault(rdata.rdtype, []).append(rdata)
    return _Place(addresses, cname_rdata(target) if target is not None and target != owner else None)


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _target(host: str) -> Name | None:
    try:
        return dns.name.from_text(host) if host else None
    except (dns.exception.DNSException, UnicodeError):
        return None
