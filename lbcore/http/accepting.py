"""Acceptor: one listening socket that a server takes connections from, until it leaves it to others or drains it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any, cast

from lbcore.http.forward import Forwarder
from lbcore.http.inbound import Inbound
from lbcore.http.proxy_protocol import accept_behind_proxy, welcome

__all__ = ["Acceptor"]

BACKLOG = 1024


class Acceptor:
    """Accept for an engine on a listening socket, which becomes its own: another process that has it may go on.

    tls, proxy_protocol: as Forwarder.listen
    """

    def __init__(
        self, engine: Forwarder, listening: socket.socket, *, tls: ssl.SSLContext | None = None, proxy_protocol: bool = False
    ) -> None:
        self._engine, self._socket, self._tls, self._proxied = engine, listening, tls, proxy_protocol
        self._limit: dict[str, Any] = {"ssl_handshake_timeout": engine.timeouts.head} if tls else {}
        self._task: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None

    def _inbound(self) -> asyncio.Protocol:
        return cast(asyncio.Protocol, Inbound(self._engine))

    async def open(self) -> None:
        """Begin."""
        if self._proxied:
            self._task = self._engine.loop.create_task(accept_behind_proxy(self._engine, self._socket.dup(), self._tls))
        else:
            self._server = await self._engine.loop.create_server(
                self._inbound, sock=self._socket.dup(), ssl=self._tls, backlog=BACKLOG, **self._limit
            )

    async def close(self) -> None:
        """Leave the socket to others."""
        await self._stop()
        self._socket.close()

    async def drain(self) -> None:
        """Take what has come so far, where nobody else has the socket, and let the kernel refuse the rest."""
        await self._stop()
        self._socket.setblocking(False)
        waiting: list[socket.socket] = []
        with contextlib.suppress(OSError):
            self._socket.listen(0)
            while len(waiting) <= BACKLOG:
                waiting.append(self._socket.accept()[0])
        self._socket.close()
        for accepted in waiting:
            await self._take(accepted)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._server = self._task = None

    async def _take(self, accepted: socket.socket) -> None:
        if self._proxied:
            self._engine.keep(self._engine.loop.create_task(welcome(self._engine, accepted, self._tls)))
            return
        accepted.setblocking(False)
        with contextlib.suppress(OSError):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._engine.loop.connect_accepted_socket(self._inbound, accepted, ssl=self._tls, **self._limit)
