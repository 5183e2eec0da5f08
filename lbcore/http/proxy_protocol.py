"""PROXY protocol: the address of the client, said by a TCP load balancer in front before anything else.

The header is peeked at and taken from the socket alone, so that a TLS handshake may follow it.
Source: haproxy's proxy-protocol.txt, versions 1 and 2.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import struct
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from lbcore.http.forward import Forwarder

__all__ = ["accept_behind_proxy", "parse", "welcome"]

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_LONGEST_V1 = 107
_LONGEST = 4096
_TIME = 5.0  # seconds for the header


def parse(data: bytes) -> tuple[int, str | None] | None:
    """Give (bytes of the header, client's address) or None when more is needed; address None = the proxy speaks for itself.

    Raises ValueError for what is no PROXY header.
    """
    if data[:12] == _SIGNATURE[: len(data)]:
        return _parse_v2(data)
    if data[:6] == b"PROXY "[: len(data)]:
        return _parse_v1(data)
    raise ValueError("no PROXY header")


def _parse_v1(data: bytes) -> tuple[int, str | None] | None:
    line, end, _ = data[:_LONGEST_V1].partition(b"\r\n")
    if not end:
        if len(data) >= _LONGEST_V1:
            raise ValueError("PROXY line too long")
        return None
    words = line.decode("ascii", "replace").split(" ")
    if words[1] == "UNKNOWN":
        return len(line) + 2, None
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise ValueError("malformed PROXY line")
    client, _ = ipaddress.ip_address(words[2]), ipaddress.ip_address(words[3])
    if client.version != int(words[1][3]) or not all(port.isascii() and port.isdigit() and int(port) < 65536 for port in words[4:]):
        raise ValueError("malformed PROXY line")
    return len(line) + 2, str(client)


def _parse_v2(data: bytes) -> tuple[int, str | None] | None:
    if len(data) < 16:
        return None
    version, family, length = struct.unpack_from("!BBH", data, 12)
    if version not in (0x20, 0x21) or 16 + length > _LONGEST:
        raise ValueError("malformed PROXY header")
    if len(data) < 16 + length:
        return None
    if version == 0x20:
        return 16 + length, None  # LOCAL: a health check
    size = {0x1: 4, 0x2: 16}.get(family >> 4, 0)
    if not size:
        return 16 + length, None
    if length < 2 * size + 4:
        raise ValueError("malformed PROXY header")
    return 16 + length, str(ipaddress.ip_address(data[16 : 16 + size]))


async def accept_behind_proxy(engine: Forwarder, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Accept connections that begin with a PROXY header, until cancelled."""
    listening.setblocking(False)
    with listening:
        while not engine.draining:
            try:
                accepted, _ = await engine.loop.sock_accept(listening)
            except OSError:
                await asyncio.sleep(0.05)  # out of descriptors: as asyncio's own servers do, wait for better times
                continue
            engine.keep(engine.loop.create_task(welcome(engine, accepted, tls)))


async def welcome(engine: Forwarder, accepted: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Take one connection, once its header is there."""
    from lbcore.http.inbound import Inbound

    try:
        async with asyncio.timeout(_TIME):
            client = await _read(engine.loop, accepted)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        limit = {"ssl_handshake_timeout": engine.timeouts.head} if tls is not None else {}
        await engine.loop.connect_accepted_socket(lambda: cast(asyncio.Protocol, Inbound(engine, client)), accepted, ssl=tls, **limit)
    except (OSError, ValueError, TimeoutError):
        engine.counters["bad_proxy_headers"] += 1
        accepted.close()


async def _read(loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> str | None:
    """Take the header from the socket and nothing after it."""
    accepted.setblocking(False)
    await _readable(loop, accepted)
    while True:
        data = accepted.recv(_LONGEST, socket.MSG_PEEK)
        if not data:
            raise ValueError("no PROXY header")
        if (found := parse(data)) is not None:
            accepted.recv(found[0])
            return found[1]
        await asyncio.sleep(0.005)  # rare, a header in two parts; what was peeked at keeps the socket readable


async def _readable(loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
    ready = asyncio.Event()
    loop.add_reader(accepted, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(accepted)
