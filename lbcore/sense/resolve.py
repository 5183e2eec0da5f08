"""Names to addresses, without one dead name holding up the others.

asyncio resolves names in a handful of shared threads, and a look-up cannot be cancelled: a single name whose servers are gone fills them
within a few probes, and then every gateway seems to time out. Here each name has at most one look-up under way, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import threading
from concurrent.futures import Future

__all__ = ["resolve"]

_lock = threading.Lock()
_under_way: dict[str, Future[list[str]]] = {}


async def resolve(host: str) -> list[str]:
    """Give the addresses of a host, in the system's order of preference; of an address, itself.

    Raises OSError when there are none. Can be cancelled; the look-up then goes on, for whoever asks next.
    """
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    return await asyncio.shield(asyncio.wrap_future(_look_up(host)))


def _look_up(host: str) -> Future[list[str]]:
    with _lock:
        future = _under_way.get(host)
        if future is None:
            future = Future()
            threading.Thread(target=_ask, args=(host, future), name=f"lbcore-resolve {host}", daemon=True).start()
            _under_way[host] = future
    return future


def _ask(host: str, future: Future[list[str]]) -> None:
    addresses, failure = [], None
    try:
        addresses = list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)))
    except (OSError, UnicodeError) as error:
        failure = error if isinstance(error, OSError) else OSError(str(error))
    with _lock:
        _under_way.pop(host, None)
    with contextlib.suppress(RuntimeError):  # whoever asked has closed its event loop
        if failure is None:
            future.set_result(addresses)
        else:
            future.set_exception(failure)


def _forget() -> None:
    """Begin anew in a forked child, where the threads are gone."""
    global _lock
    _lock = threading.Lock()
    _under_way.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
