"""Child: one worker process, as the supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lbcore.cli.channel import Asker, Gone
from lbcore.cli.listening import Place

__all__ = ["Child"]


class Child:
    """A worker of `role`, the `number`-th of its kind. `pid` is 0 before it was started; `since` is monotonic seconds."""

    def __init__(self, role: str, number: int) -> None:
        self.role, self.number, self.pid = role, number, 0
        self.since = time.monotonic()
        self._process: asyncio.subprocess.Process | None = None
        self._asker: Asker | None = None
        self._passing: socket.socket | None = None
        self._given: set[int] = set()

    async def start(self, fds: Sequence[int], options: Callable[[], Mapping[str, Any]]) -> None:
        """Start it and wait until it is ready; Gone or Refused when it does not get that far.

        fds: what it inherits; options: gives what it is told, as it is the moment before: what changes after that, `ask` tells
        """
        own, other = socket.socketpair()
        self._passing, taking = socket.socketpair()
        with other, taking:
            ends = other.fileno(), taking.fileno()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "lbcore.cli.worker", self.role, *map(str, ends),
                pass_fds=[*fds, *ends], stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        self.pid = self._process.pid
        own.setblocking(False)
        self._passing.setblocking(False)
        self._asker = Asker(own)
        await self._asker.open()
        await self.ask("open", **options())

    async def ask(self, what: str, **arguments: Any) -> Any:
        """Have something done; Gone when it has ended or ends before, Refused when it cannot."""
        if self._asker is None:
            raise Gone(what)
        return await self._asker.ask(what, **arguments)

    async def accept(self, places: Mapping[int, Place]) -> None:
        """Have it serve on these sockets, by number, and on no others. It holds no others: what dies with it is the kernel's to keep.

        Errors as ask; one that takes no sockets is killed.
        """
        new = sorted(places.keys() - self._given)
        try:
            self._pass([places[number].socket for number in new])
        except OSError as error:
            self.kill()
            raise Gone(str(error)) from error
        self._given = {*places}
        given = [(number, places[number].tls, places[number].proxy_protocol) for number in new]
        await self.ask("accept", places=[*places], given=given)

    def _pass(self, sockets: Sequence[socket.socket]) -> None:
        if self._passing is not None:
            for each in sockets:
                socket.send_fds(self._passing, [b"."], [each.fileno()])

    async def ended(self) -> int:
        """Wait until the process is gone; gives its exit code, negative = the signal that ended it."""
        code = await self._process.wait() if self._process is not None else 0
        if self._passing is not None:
            self._passing.close()
        return code

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its number may be another one's
                self._process.kill()

    @property
    def words(self) -> str:
        """Say who it is."""
        return f"{self.role} worker {self.number + 1} (process {self.pid})"
