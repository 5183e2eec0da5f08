"""Management: the process of the management plane, as the supervisor sees it: started first, again whenever it ends, ended last.

It is in no generation: its store has one user at a time, and most of what is reloaded does not concern it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from typing import Any

from lbcore.cli import listening
from lbcore.cli.channel import Gone, Refused
from lbcore.cli.child import Child
from lbcore.cli.listening import Place
from lbcore.config import Settings, split_listen

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)

ROLE = "management"
START = 60.0  # seconds in which it must be ready
SETTLED = 10.0  # seconds after which its end is no sign of trouble with its start
LONGEST_WAIT = 10.0  # seconds before another try
ANSWER = 30.0  # seconds for an answer
WATCH = 10.0  # seconds between two questions whether it still does anything
AFTER_GRACE = 10.0
TABLES = ("service", "traffic_manager", "latency", "detector", "management", "sync", "run")  # what concerns it


class Keeper:
    """Keep a management plane running. tell: is told events, by name and keywords"""

    def __init__(self, tell: Callable[..., object]) -> None:
        self._tell = tell
        self._settings: Settings
        self._places: list[Place] = []
        self._child: Child | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Give where it listens."""
        return [*dict.fromkeys(place.address for place in self._places)]

    @property
    def pids(self) -> list[int]:
        """Give its process, none while there is none."""
        return [self._child.pid] if self._child is not None else []

    async def open(self, settings: Settings, spare: bool = False) -> None:
        """Bind and have it ready; OSError, Gone, Refused or TimeoutError when that cannot be.

        spare: whether the node can serve without it, by what was kept: then one that cannot be started is tried again and again
        """
        self._settings = settings
        self._places = self._bound(settings)
        try:
            self._child = await self._start()
        except BaseException as error:
            if not (spare and isinstance(error, (Gone, Refused, TimeoutError))):
                self._close_places()
                raise
            logger.error("the management plane cannot be started; what was kept serves: %s", error or type(error).__name__)
        self._keeping = asyncio.create_task(self._keep(self._child))

    def _bound(self, settings: Settings) -> list[Place]:
        section = settings.document.management
        assert section is not None
        return listening.adopt([(split_listen(section.listen), bool(section.certificate), False)], 1, self._places)

    async def _start(self) -> Child:
        child = Child(ROLE, 0)
        try:
            async with asyncio.timeout(START):
                await child.start([], self._told)
                await child.accept(dict(enumerate(self._places)))
        except BaseException:
            child.kill()
            await child.ended()
            raise
        return child

    def _told(self) -> dict[str, Any]:
        return {"content": self._settings.content.decode(), "file": self._settings.name, "address": self.addresses[0]}

    async def _keep(self, child: Child | None) -> None:
        """Start another one whenever it ends, or when there is none."""
        tries = 0
        while True:
            if child is None:
                self._child = child = await self._replaced()
                self._tell("worker-started", role=ROLE, worker=0, pid=child.pid)
            code = await self._watched(child)
            tries = 0 if time.monotonic() - child.since > SETTLED else tries + 1
            how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            logger.error("%s: %s; another one is started", child.words, how)
            self._tell("worker-ended", role=ROLE, worker=0, pid=child.pid, code=code)
            self._child = child = None
            await asyncio.sleep(min(LONGEST_WAIT, 0.1 * 2**tries) if tries > 1 else 0)

    async def _watched(self, child: Child) -> int:
        """Wait until it ends; one that does nothing any more is killed."""
        ending = asyncio.ensure_future(child.ended())
        try:
            while not (await asyncio.wait({ending}, timeout=WATCH))[0]:
                try:
                    async with asyncio.timeout(ANSWER):
                        await child.ask("ping")
                except TimeoutError:
                    logger.error("%s does not answer; it is killed", child.words)
                    child.kill()
                except (Gone, Refused):
                    pass
            return ending.result()
        finally:
            ending.cancel()

    async def _replaced(self) -> Child:
        wait = 0.1
        while True:
            try:
                return await self._start()
            except (Gone, Refused, TimeoutError, OSError) as error:
                logger.error("the management plane cannot be started: %s", error or type(error).__name__)
                await asyncio.sleep(wait)
                wait = min(LONGEST_WAIT, wait * 2)

    async def reload(self, settings: Settings) -> None:
        """Go on by other settings: in the process that runs where nothing of them concerns it but certificates, else in another one.

        Clients wait in the socket meanwhile. OSError when an address cannot be bound, that and what `open` raises when it does not start by
        them: it goes on by those of before.
        """
        async with self._changing:
            before = self._settings
            if all(getattr(before.document, table) == getattr(settings.document, table) for table in TABLES):
                self._settings = settings
                if self._child is not None:
                    await self._child.ask("reload")
                return
            places, there = self._bound(settings), self._places
            await self._stop(0.0)
            self._places, self._settings = places, settings
            try:
                self._child = await self._start()
            except (Gone, Refused, TimeoutError, OSError):
                self._places, self._settings = there, before
                _close(places, there)
                raise
            else:
                _close(there, places)
            finally:
                self._keeping = asyncio.create_task(self._keep(self._child))

    async def close(self, grace: float = 0.0) -> None:
        """End it, within its own patience; an operation under way goes on at the next start."""
        async with self._changing:
            await self._stop(grace)
            self._close_places()

    def kill(self) -> None:
        """End it at once."""
        if self._child is not None:
            self._child.kill()

    async def _stop(self, grace: float) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        child, self._child = self._child, None
        if child is None:
            return
        try:
            async with asyncio.timeout(grace + AFTER_GRACE):
                await child.ask("finish", grace=grace, last=True)
                await child.ended()
        except (Gone, Refused):
            await child.ended()
        except TimeoutError:
            logger.error("%s did not end in time; it is killed", child.words)
            child.kill()
            await child.ended()

    def _close_places(self) -> None:
        _close(self._places, [])
        self._places = []


def _close(places: list[Place], kept: list[Place]) -> None:
    """Close sockets that are not among those kept."""
    for socket in {place.socket for place in places} - {place.socket for place in kept}:
        socket.close()
