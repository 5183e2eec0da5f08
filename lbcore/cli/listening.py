"""The sockets that HTTP is served on, which the supervisor holds: none that a worker was to accept on is lost with it.

One socket for every worker on every address (SO_REUSEPORT): the kernel spreads connections over them by hash, evenly even when they all
come at once; on one socket for all, whoever wakes first takes most of a burst. When a worker dies its sockets go to the others at once.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Place", "adopt", "adopt_dns", "spread"]

BACKLOG = 1024
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Place:
    """One listening socket. wanted: the address as the configuration has it, port 0 = any; tls, proxy_protocol: what is spoken there."""

    wanted: Address
    socket: socket.socket
    tls: bool
    proxy_protocol: bool

    @property
    def address(self) -> Address:
        """Give where it listens."""
        found = self.socket.getsockname()
        return found[0], found[1]


def adopt(wanted: Sequence[tuple[Address, bool, bool]], each: int, before: Iterable[Place]) -> list[Place]:
    """Give `each` sockets for every (address, tls, proxy_protocol), those that are there already among them; OSError closes what was new.

    An address keeps its sockets when it needs fewer: what waits in them would be lost.
    """
    there = _by_address(before)
    found, made = list[Place](), list[socket.socket]()
    try:
        for address, tls, proxied in wanted:
            kept = there.get(address, [])
            same = next((one for one in kept if one[0] == tls or address[1]), None)  # port 0 may be wanted with TLS and without
            sockets = kept.pop(kept.index(same))[1] if same is not None else []
            while len(sockets) < each:
                made.append(_open(address, sockets[0].getsockname()[:2] if sockets else None))
                sockets.append(made[-1])
            found += [Place(address, one, tls, proxied) for one in sockets]
    except OSError:
        for one in made:
            one.close()
        raise
    return found


def _by_address(places: Iterable[Place]) -> dict[Address, list[tuple[bool, list[socket.socket]]]]:
    """Give for every address that was wanted where that led to: whether to TLS, and the sockets; port 0 may lead to several."""
    found: dict[Address, dict[Address, tuple[bool, list[socket.socket]]]] = {}
    for place in places:
        found.setdefault(place.wanted, {}).setdefault(place.address, (place.tls, []))[1].append(place.socket)
    return {wanted: [*each.values()] for wanted, each in found.items()}


def adopt_dns(wanted: Sequence[Address], threads: int, before: Sequence[Place]) -> list[Place]:
    """Give the sockets of DNS: for every address one for TCP and `threads` for UDP, those that are there already among them."""
    from lbcore.dns import sockets

    endpoints, _ = sockets.adopt(wanted, threads, [place.socket for place in before])
    pairs = zip(wanted, endpoints, strict=True)
    return [Place(address, one, False, False) for address, endpoint in pairs for one in endpoint.sockets]


def _open(address: Address, beside: Address | None) -> socket.socket:
    """Open a socket. beside: where one of ours listens already; without, nobody else may: SO_REUSEPORT would share it silently."""
    host, port = beside or address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if beside is None and port:
            with _made(family) as trial:
                trial.bind((host, port))
        made = _made(family)
        try:
            with contextlib.suppress(AttributeError):  # not on every system; there the workers share one socket
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made.bind((host, port))
            made.listen(BACKLOG)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{host} port {port}") from error
    return made


def _made(family: socket.AddressFamily) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def spread(places: int, workers: Sequence[int], all_workers: int) -> dict[int, list[int]]:
    """Give the places of each living worker, by its number of `all_workers`: its own, and in turn those of whoever is missing."""
    found: dict[int, list[int]] = {worker: [] for worker in workers}
    for place in range(places):
        own = place % all_workers
        found[own if own in found else workers[place % len(workers)]].append(place) if workers else None
    return found
