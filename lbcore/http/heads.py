"""Heads: what is written to upstreams and clients, and whom to believe about where a request came from.

    untrusted peer      what it says in Forwarded, X-Forwarded-*, X-Real-IP and X-Request-Id is dropped; the client is the peer
    trusted peer        its X-Forwarded-For (without one: its Forwarded) is read from the right, the first address that is not trusted
                        is the client; the peer is added
No I/O.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from itertools import count
from typing import TYPE_CHECKING

from lbcore.http.message import Field, Response, own_response, plain_address, status_line, tokens

if TYPE_CHECKING:
    from lbcore.http.call import Call
    from lbcore.http.inbound import Inbound
    from lbcore.http.response import ResponseReader
    from lbcore.http.target import Target

__all__ = ["Heads", "Trusted"]

# What a proxy says of those before it; Via as well goes into the lines that tell the upstream.
_SAID = (
    b"x-forwarded-for", b"forwarded", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id", b"x-forwarded-port", b"x-real-ip",
)  # fmt: skip
_SAYING = frozenset(_SAID)
_ABOUT_CLIENT = _SAYING | {b"via"}
_LONGEST = 64  # characters of an address that is remembered
_HOPS = 32  # entries of X-Forwarded-For that are looked at


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Trusted:
    """Networks whose word is believed. networks: CIDR notation or single addresses; ValueError for what is neither."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [_plain_network(ipaddress.ip_network(network)) for network in networks]
        self._known: dict[str, bool] = {}

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return False
        if (known := self._known.get(address)) is None:
            if len(self._known) > 4096:
                self._known.clear()
            known = self._find(address)
            if len(address) <= _LONGEST:  # conditions ask for whatever a client wrote
                self._known[address] = known
        return known

    def _find(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(plain_address(text.partition("%")[0]))
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _plain_network(network: _Network) -> _Network:
    if network.version == 6 and network.prefixlen >= 96 and (first := network.network_address.ipv4_mapped) is not None:
        return ipaddress.IPv4Network((first, network.prefixlen - 96))
    return network


class Heads:
    """Write heads.

    trusted: peers that are believed about the client; name: of this proxy in Via
    Source: RFC 9110 §7.6 (what a proxy passes on), RFC 7239 (Forwarded), RFC 9112 §6 (framing).
    """

    def __init__(self, trusted: Sequence[str], name: str | None) -> None:
        self.trusted = Trusted(trusted)
        self.lines = b""  # of responses that no handler is asked about
        self.name = (name or f"lbcore-{os.urandom(4).hex()}").encode("ascii")
        self._via = b"Via: 1.1 " + self.name + b"\r\n"
        self._prefix = os.urandom(8).hex().encode()
        self._numbers = count()

    # ---- where it came from

    def identify(self, call: Call) -> None:
        """Set the call's client and request id by what a trusted peer says of them."""
        special, inbound = call.request.special, call.inbound
        if _SAYING.isdisjoint(special):
            return
        if inbound.peer not in self.trusted:
            for name in _SAID:
                special.pop(name, None)
            return
        if (chain := special.get(b"x-forwarded-for")) is not None:
            call.client = self._client(chain.decode("latin-1").split(","), inbound.client)
        elif (forwarded := special.get(b"forwarded")) is not None:
            call.client = self._client(_nodes(forwarded.decode("latin-1")), inbound.client)
        if (given := special.get(b"x-request-id")) is not None and 0 < len(given) <= 128 and b'"' not in given:
            call.request_id = given

    def identifier(self, call: Call) -> bytes:
        """Give a call an id, when no trusted peer did."""
        call.request_id = b"%b-%08x" % (self._prefix, next(self._numbers))
        return call.request_id

    def _client(self, chain: list[str], peer: str) -> str:
        """Read from the right: whoever is not trusted may have invented everything to the left of it."""
        client = peer
        for hop in reversed(chain[-_HOPS:]):
            try:
                client = _address(hop.strip(' \t"'))
            except ValueError:
                return client
            if client not in self.trusted:
                return client
        return client

    def loops(self, call: Call) -> bool:
        """Say whether the request has been here before (RFC 9110 §7.6.3)."""
        via = call.request.special.get(b"via")
        return via is not None and any(self.name.lower() in hop.split() for hop in tokens(via))

    # ---- to the upstream

    def request(self, call: Call, target: Target) -> bytes:
        """Write a request's head."""
        request = call.request
        identifier = call.request_id or self.identifier(call)
        path = request.target
        if target.prefix and path[0] == 0x2F:
            path = target.prefix + path
        host = target.host or request.special.get(b"host", b"")
        lines = [request.method, b" ", path, b" HTTP/1.1\r\nHost: ", host, b"\r\n"]
        for name, value in request.fields:
            lines.append(name)
            lines.append(b": ")
            lines.append(value)
            lines.append(b"\r\n")
        lines += (self._about_client(call), b"X-Request-Id: ", identifier, b"\r\n")
        if len(request.special) > 1:
            self._add_special(call, lines)
        lines.append(b"\r\n")
        return b"".join(lines)

    def _about_client(self, call: Call) -> bytes:
        inbound, special = call.inbound, call.request.special
        host = special.get(b"host", b"")
        if len(special) > 1 and not _ABOUT_CLIENT.isdisjoint(special):
            return self._client_lines(inbound, special, host)
        if inbound.lines_for != host:
            inbound.lines_for, inbound.lines = host, self._client_lines(inbound, special, host)
        return inbound.lines

    def _client_lines(self, inbound: Inbound, special: dict[bytes, bytes], host: bytes) -> bytes:
        peer = inbound.client.partition("%")[0]
        proto = b"https" if inbound.secure else b"http"
        node = b'"[%b]"' % peer.encode() if ":" in peer else peer.encode() or b"unknown"
        chain = _append(special.get(b"x-forwarded-for"), peer.encode() or b"unknown")
        named = b';host="%b"' % host if host else b""
        forwarded = _append(special.get(b"forwarded"), b"for=%b;proto=%b%b" % (node, proto, named))
        said = special.get(b"x-forwarded-proto", proto), special.get(b"x-forwarded-host", host)
        text = b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\nForwarded: %b\r\n" % (chain, *said, forwarded)
        via = special.get(b"via")
        return text + (b"Via: %b, 1.1 %b\r\n" % (via, self.name) if via is not None else self._via)

    def _add_special(self, call: Call, lines: list[bytes]) -> None:
        request, special = call.request, call.request.special
        if request.chunked:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif request.length is not None:
            lines.append(b"Content-Length: %d\r\n" % request.length)
        if b"expect" in special and not request.complete:
            lines.append(b"Expect: 100-continue\r\n")
        if b"trailer" in special and request.chunked:
            lines.append(b"Trailer: %b\r\n" % special[b"trailer"])
        if b"te" in special and b"trailers" in tokens(special[b"te"]):
            lines.append(b"TE: trailers\r\nConnection: TE%b\r\n" % (b", Upgrade" if request.upgrade else b""))
        elif request.upgrade:
            lines.append(b"Connection: Upgrade\r\n")
        if request.upgrade:
            lines.append(b"Upgrade: %b\r\n" % request.upgrade)

    # ---- to the client

    def response(self, call: Call, reader: ResponseReader) -> bytes:
        """Write a response's head; decides how its body is delimited."""
        request, status = call.request, reader.status
        lines = [status_line(status)]
        for name, value in reader.fields:
            lines.append(name)
            lines.append(b": ")
            lines.append(value)
            lines.append(b"\r\n")
        lines += (self._via, b"X-Request-Id: ", call.request_id, b"\r\n")
        if call.extra:
            lines.append(call.extra)
        closes = call.inbound.closes(call)
        if status not in (204, 304) and reader.length is None and not reader.headless:
            call.chunk_response = not request.old
            closes = closes or request.old  # its end is the connection's
            if call.chunk_response:
                lines.append(b"Transfer-Encoding: chunked\r\n")
        elif reader.length is not None and status != 204:
            lines.append(b"Content-Length: %d\r\n" % reader.length)
        lines.append(b"Connection: close\r\n\r\n" if closes else b"\r\n")
        return b"".join(lines)

    def _tail(self, call: Call) -> bytes:
        return b"%bX-Request-Id: %b\r\n" % (self._via, call.request_id)

    def switching(self, call: Call, reader: ResponseReader) -> bytes:
        """Write 101 Switching Protocols."""
        fields: list[Field] = [field for field in reader.fields if field[0].lower() != b"upgrade"]
        lines = [status_line(101), *(b"%b: %b\r\n" % field for field in fields), self._tail(call), call.extra]
        return b"".join([*lines, b"Connection: Upgrade\r\nUpgrade: %b\r\n\r\n" % call.request.upgrade])

    def own(self, call: Call, response: Response) -> bytes:
        """Write a response that is made here."""
        if not call.request_id:
            self.identifier(call)
        lines = self._tail(call) + call.extra
        return own_response(response, lines, call.inbound.closes(call), call.request.method == b"HEAD")

    def refusal(self, response: Response) -> bytes:
        """Write the response to what is no request, with `lines`; the connection ends after it."""
        lines = b"%bX-Request-Id: %b-%08x\r\n%b" % (self._via, self._prefix, next(self._numbers), self.lines)
        return own_response(response, lines, True, False)


def _nodes(forwarded: str) -> list[str]:
    """Give for whom each hop of a Forwarded field speaks, "" = it does not say.

    Commas in quoted strings divide, too: what a client invented may not hide what a proxy added to the right of it.
    """
    return [
        next((pair[4:] for part in hop.split(";") if (pair := part.strip(" \t"))[:4].lower() == "for="), "") for hop in forwarded.split(",")
    ]


def _address(node: str) -> str:
    """Give a node's address without its port; ValueError for what has none. Source: RFC 7239 §6."""
    if node.startswith("["):
        node = node[1:].partition("]")[0]
    elif node.count(":") == 1:
        node = node.partition(":")[0]
    return plain_address(str(ipaddress.ip_address(node)))


def _append(chain: bytes | None, last: bytes) -> bytes:
    return last if chain is None else chain + b", " + last
