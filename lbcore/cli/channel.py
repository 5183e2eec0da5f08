"""Channel: how the supervisor tells a worker what to do, over a pair of sockets: one JSON object a line, each request with one answer."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from lbcore.errors import LbcoreError

__all__ = ["Asker", "Gone", "Refused", "answer"]

logger = logging.getLogger(__name__)

LONGEST = 1 << 26  # bytes of a line: a configuration and a gateway's document, escaped

Doing = Callable[[Mapping[str, Any]], Awaitable[Any]]


class Gone(ConnectionError):
    """The other side has ended."""


class Refused(Exception):
    """The other side could not do it; the message is its error's."""


class Asker:
    """The supervisor's end. When it is closed, a worker that lives takes it for the supervisor's end."""

    def __init__(self, own: socket.socket) -> None:
        self._socket = own
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Begin to listen to the worker."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._socket, limit=LONGEST)
        self._reading = asyncio.create_task(self._read(reader))

    async def ask(self, what: str, **arguments: Any) -> Any:
        """Have something done and give what came of it; Gone when the worker ends before, Refused when it cannot."""
        if self._writer is None or self._reading is None or self._reading.done():
            raise Gone(what)
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps({"id": number, "do": what} | arguments).encode() + b"\n")
        try:
            return await self._waiting[number]
        finally:
            self._waiting.pop(number, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                told = json.loads(line)
                future = self._waiting.get(told["id"])
                if future is not None and not future.done():
                    if "error" in told:
                        future.set_exception(Refused(told["error"]))
                    else:
                        future.set_result(told["value"])
        except (OSError, ValueError) as error:
            logger.debug("a worker's channel: %s", error)
        finally:
            self._end()

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Gone("the worker has ended"))


async def answer(other: socket.socket, do: Mapping[str, Doing]) -> None:
    """Do what is asked, one thing after the other, until the asker is gone."""
    reader, writer = await asyncio.open_unix_connection(sock=other, limit=LONGEST)
    try:
        while line := await reader.readline():
            asked = json.loads(line)
            writer.write(json.dumps({"id": asked["id"]} | await _done(do, asked)).encode() + b"\n")
    except (OSError, ValueError) as error:
        logger.debug("the supervisor's channel: %s", error)
    finally:
        writer.close()


async def _done(do: Mapping[str, Doing], asked: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"value": await do[asked["do"]](asked)}
    except Exception as error:
        unexpected = not isinstance(error, (OSError, ValueError, LbcoreError))
        logger.log(logging.ERROR if unexpected else logging.INFO, "%s: %s", asked["do"], error, exc_info=unexpected)
        return {"error": str(error) or type(error).__name__}
