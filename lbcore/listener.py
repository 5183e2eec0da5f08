"""Listener: a listening socket that one process hands to another, and what is spoken there."""

from __future__ import annotations

import socket
from dataclasses import dataclass

__all__ = ["Listener"]


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound socket. tls: connections begin with a handshake; proxy_protocol: with a PROXY header."""

    socket: socket.socket
    tls: bool = False
    proxy_protocol: bool = False
