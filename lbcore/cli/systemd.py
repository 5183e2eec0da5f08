"""What a service has to do with the system: telling systemd how things stand, and how many files may be open."""

from __future__ import annotations

import contextlib
import os
import resource
import socket

__all__ = ["notify", "raise_limit"]

MOST_FILES = 1 << 16


def notify(state: str) -> None:
    """Tell systemd how things stand, where it asked for that; lines such as READY=1.

    Source: sd_notify(3), one datagram to the socket named by NOTIFY_SOCKET.
    """
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto(state.encode(), "\0" + where[1:] if where.startswith("@") else where)


def raise_limit() -> None:
    """Allow as many open files as this process may, within reason: one for each connection."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (MOST_FILES if most == resource.RLIM_INFINITY else min(most, MOST_FILES), most))
