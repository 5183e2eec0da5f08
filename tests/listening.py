"""Servers on loopback that can be killed and started again on the same port, with every connection that they have."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Self

__all__ = ["Listening", "accepted"]


class Listening:
    """A server that talks as `_talk` of its subclass does; `port` 0 = any, kept from the first start on."""

    def __init__(self) -> None:
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def kill(self) -> None:
        """Stop listening and drop every connection."""
        assert self._server is not None
        await accepted()
        self._server.close()
        for writer in [*self._open]:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._talk(reader, writer)
        self._open.discard(writer)
        writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


async def accepted() -> None:
    """Wait until no connection is half accepted. Those of a server that is closed then stay open: garbage in another test."""
    while any("_accept_connection" in repr(task) for task in asyncio.all_tasks()):
        await asyncio.sleep(0)
