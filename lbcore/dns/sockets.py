"""Sockets that DNS is served on: made, taken over from another process, and taken out of service without losing what waits in them."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["Address", "Endpoint", "adopt", "open_endpoint", "retire", "room_for"]

Address = tuple[str, int]

BACKLOG = 1024
RESERVED = 256  # open files for everything that is no TCP connection
RECEIVE_BUFFER = 4 << 20  # bytes; the kernel's limit holds where it is lower
# Not in the socket module. Never fragment, never ask for the path's MTU: answers are short, and forged messages about it change
# nothing (RFC 9715 §3). The compiled loop sets the same.
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_SO_RCVBUFFORCE = 33
_LINUX = sys.platform == "linux"
_TRIES = 20  # for a port that is free for both UDP and TCP


@dataclass(slots=True)
class Endpoint:
    """What listens on one address: any number of UDP sockets (the kernel spreads clients over them) and one for TCP."""

    address: Address
    udp: list[socket.socket] = field(default_factory=list)
    tcp: socket.socket | None = None

    @property
    def sockets(self) -> list[socket.socket]:
        """Give all of them."""
        return [*self.udp, *([self.tcp] if self.tcp else [])]

    def close(self) -> None:
        """Close all of them, and have none."""
        for each in self.sockets:
            each.close()
        self.udp, self.tcp = [], None


def open_endpoint(host: str, port: int, threads: int = 1) -> Endpoint:
    """Bind an address for UDP, `threads` times, and for TCP; port 0 = any that is free for both. Raises OSError.

    TCP comes first and is bound once: whoever listens there already is noticed, which SO_REUSEPORT would hide.
    """
    for _ in range(_TRIES - 1):
        try:
            return _bind(host, port, threads)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                raise
    return _bind(host, port, threads)


def _bind(host: str, port: int, threads: int) -> Endpoint:
    made = Endpoint((host, port))
    try:
        made.tcp = _open(host, port, socket.SOCK_STREAM)
        made.tcp.listen(BACKLOG)
        made.address = made.tcp.getsockname()[:2]
        made.udp += [_open(host, made.address[1], socket.SOCK_DGRAM) for _ in range(threads)]
    except OSError:
        made.close()
        raise
    return made


def _open(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """Make a bound socket. One for UDP waits when it is read, as the compiled loop wants it: that is shared by all who hold it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            _tune(made, family)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise OSError(error.errno, error.strerror, f"{host} port {port}") from error
    return made


def _tune(made: socket.socket, family: socket.AddressFamily) -> None:
    if hasattr(socket, "SO_REUSEPORT"):
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    for option in (socket.SO_RCVBUF, *((_SO_RCVBUFFORCE,) if _LINUX else ())):  # the latter is root's
        with contextlib.suppress(OSError):
            made.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER)
    if _LINUX:
        four = family == socket.AF_INET
        level, option = (socket.IPPROTO_IP, _IP_MTU_DISCOVER) if four else (socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER)
        with contextlib.suppress(OSError):
            made.setsockopt(level, option, _PMTUDISC_PROBE)


def adopt(
    listen: Sequence[Address], threads: int, inherited: Iterable[socket.socket]
) -> tuple[list[Endpoint], list[socket.socket]]:
    """Make the endpoints for `listen` out of sockets that another process had, binding what is missing.

    Gives the endpoints and the sockets that none of them needs. Raises OSError with every socket closed that was bound here.
    """
    pool: dict[tuple[int, Address], list[socket.socket]] = {}
    for each in inherited:
        pool.setdefault((each.type, each.getsockname()[:2]), []).append(each)
    made: list[Endpoint] = []
    bound: list[socket.socket] = []
    try:
        for host, port in listen:
            endpoint = _from_pool(pool, (host, port), threads, bound)
            made.append(endpoint)
    except OSError:
        for each in bound:
            each.close()
        raise
    return made, [each for rest in pool.values() for each in rest]


def _from_pool(
    pool: dict[tuple[int, Address], list[socket.socket]], address: Address, threads: int, bound: list[socket.socket]
) -> Endpoint:
    if not address[1]:  # any port will do: the one it had
        address = next((at for kind, at in pool if kind == socket.SOCK_STREAM and at[0] == address[0]), address)
    tcp, udp = pool.get((socket.SOCK_STREAM, address), []), pool.get((socket.SOCK_DGRAM, address), [])
    if not tcp:
        fresh = open_endpoint(*address, threads=max(0, threads - len(udp)))
        bound += fresh.sockets
        fresh.udp += [udp.pop(0) for _ in range(min(threads, len(udp)))]
        return fresh
    made = Endpoint(address, [udp.pop(0) for _ in range(min(threads, len(udp)))], tcp.pop(0))
    for _ in range(threads - len(made.udp)):
        made.udp.append(_open(*address, socket.SOCK_DGRAM))
        bound.append(made.udp[-1])
    return made


def room_for(connections: int) -> int:
    """Give how many connections the limit of open files leaves room for, at most those wanted: beyond it, accepting would fail."""
    return min(connections, max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED))


def retire(udp: socket.socket) -> None:
    """Let the kernel bring nothing new to a UDP socket, so that it can be read empty and closed.

    Connected, to itself, it is no longer among those that the kernel spreads clients over (Linux, net/core/sock_reuseport.c). Does
    nothing elsewhere. Sockets that another process reads as well must not be retired: it is the kernel's socket that changes.
    """
    if _LINUX:
        with contextlib.suppress(OSError):
            udp.connect(udp.getsockname())
