"""Supervisor: everything that `lbcore run` serves on a node: sockets, generations of workers, metrics, reloads, the end.

SIGHUP reloads, SIGTERM and SIGINT end it gracefully, a second one at once. systemd is told how things stand where it asks for that.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbcore.cli import listening
from lbcore.cli.checking import check
from lbcore.cli.generation import Crew, Generation, Tell
from lbcore.cli.listening import Place
from lbcore.cli.sharing import Table, databases
from lbcore.cli.systemd import notify, raise_limit
from lbcore.config import Settings, load, split_listen
from lbcore.config.roles import ROLES
from lbcore.config.serving import Served
from lbcore.errors import LbcoreError
from lbcore.http.metrics import Book
from lbcore.learned import Learned
from lbcore.metrics import MetricsPage, Reloads

if TYPE_CHECKING:
    from lbcore.http._limits import Limits
    from lbcore.http.regional import Documents

__all__ = ["Supervisor"]

logger = logging.getLogger(__name__)


class Supervisor:
    """Run what a configuration asks for.

    file, settings: the configuration, and what was read from it; only: which of its roles, () = all that it has at the time
    workers: in place of the configuration's
    tell: is told events, by name and keywords
    """

    def __init__(self, file: Path, settings: Settings, only: Sequence[str], workers: int | None, tell: Tell) -> None:
        self._file, self._settings, self._only, self._workers, self._tell = file, settings, only, workers, tell
        self._books = {role: Book("api" if role == "gateway" else "region") for role in ROLES}
        self._names = {role: f"lbcore-{os.urandom(4).hex()}" for role in ROLES}
        self._reloads, self._reloading = Reloads(), asyncio.Lock()
        self._reload_waits = False
        self._current: Generation
        self._limits: Limits | None = None
        self._limits_fd = -1
        self._leaving: set[Generation] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._end = asyncio.Event()
        self._at_once = asyncio.Event()
        self._deaths: Counter[str] = Counter()
        self._broken: BaseException | None = None

    async def run(self) -> None:
        """Serve until told to end. OSError when an address cannot be bound, Gone or Refused when workers cannot start."""
        raise_limit()
        settings = self._settings
        async with AsyncExitStack() as stack:
            stack.enter_context(self._signals())
            async with self._reloading:  # what is asked for meanwhile comes after
                if not await self._start():
                    return
                stack.push_async_callback(self._finish)
                page = await self._show_metrics(stack, settings)
                await self._current.accept()
                self._ready(page)
            await self._end.wait()
            notify("STOPPING=1")
        if self._broken:
            raise self._broken

    async def _start(self) -> bool:
        """Make the first generation, unless told to end before that is ready."""
        beginning, ending = asyncio.create_task(self._begin(self._settings, {})), asyncio.create_task(self._end.wait())
        await asyncio.wait([beginning, ending], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not beginning.done():
            beginning.cancel()
            await asyncio.wait([beginning])
        if beginning.cancelled():
            return False
        self._current = beginning.result()
        return True

    # ---- generations

    def _roles(self, settings: Settings) -> list[str]:
        return [role for role in settings.roles if role in (self._only or settings.roles)]

    async def _begin(
        self, settings: Settings, before: Mapping[str, Crew], learned: Learned | None = None
    ) -> Generation:
        """Make a generation that is ready to accept; whatever goes wrong leaves nothing behind."""
        roles = self._roles(settings)
        await asyncio.to_thread(check, settings, roles)
        table = await asyncio.to_thread(Table, settings)
        if learned is not None:
            await asyncio.to_thread(learned.give, table.lb)
        with ExitStack() as undo:
            undo.callback(table.close)
            crews = {}
            for role in roles:
                crews[role] = self._crew(role, settings, before.get(role))
                undo.callback(_close, crews[role], before.get(role))
                if (shared := crews[role].shared) is not None:
                    undo.callback(shared.close)
            made = Generation(settings, table, crews, self._tell, self._fail, self._deaths)
            undo.pop_all()
        try:
            await made.open()
        except BaseException:
            await made.finish(0.0, False)
            for role, crew in crews.items():
                _close(crew, before.get(role))
            raise
        return made

    def _crew(self, role: str, settings: Settings, before: Crew | None) -> Crew:
        if role == "dns":
            places = listening.adopt_dns(settings.dns_listen, settings.document.dns.threads, before.places if before is not None else ())
            return Crew(1, places, self._books[role], self._names[role])
        section: Served = getattr(settings.document, ROLES[role])
        workers = self._workers or section.workers
        wanted = [(split_listen(each), tls, section.proxy_protocol) for key, tls in (("listen", False), ("listen_tls", True))
                  for each in getattr(section, key)]  # fmt: skip
        book, name, there = self._books[role], self._names[role], before.places if before is not None else ()
        if role != "gateway":
            book.name(region.name for region in settings.regions)
            return Crew(workers, listening.adopt(wanted, workers, there), book, name)
        from lbcore.http.regional import SharedCounts

        documents = self._documents(settings, before.documents if before is not None else None)
        book.name(documents.labels)
        return Crew(workers, listening.adopt(wanted, workers, there), book, name, documents, SharedCounts(self._limits_fd, workers))

    def _documents(self, settings: Settings, before: Documents | None) -> Documents:
        """Read the gateway's document. At the start one that cannot be used is not the end: what was kept serves, or nothing does yet."""
        from lbcore.http.regional import Documents, shared_limits

        if self._limits is None:
            self._limits, self._limits_fd = shared_limits()
        documents = Documents(settings, self._limits)
        if before is not None:
            documents.replaces(before)
        try:
            documents.read()
        except (LbcoreError, OSError) as error:
            if before is not None:
                raise
            for line in str(error).splitlines():
                logger.error("gateway.configuration: %s", line)
            found = documents.configuration
            logger.error("the gateway serves %s", f"revision {found.revision}, which was kept" if found else "nothing until there is one")
        return documents

    def _fail(self, error: BaseException) -> None:
        self._broken = error
        self._end.set()

    # ---- tell

    async def _show_metrics(self, stack: AsyncExitStack, settings: Settings) -> MetricsPage | None:
        """Show metrics; everything else goes on without them where the address is taken."""
        from lbcore.cli.collecting import RunCollector

        if not settings.document.run.metrics:
            return None
        host, port = split_listen(settings.document.run.metrics)
        collector = RunCollector(self._books, lambda: [self._current, *self._leaving], self._reloads)
        try:
            return await stack.enter_async_context(MetricsPage(collector, host, port, more=self._more))
        except OSError as error:
            logger.error("no metrics at %s: %s", settings.document.run.metrics, error.strerror or error)
            return None

    async def _more(self) -> bytes:
        return (await self._current.metrics()).encode()

    def _ready(self, page: MetricsPage | None) -> None:
        serving = {
            role: {"addresses": [_shown(address) for address in _addresses(crew.places)],
                   "workers": self._current.pids[role]}
            for role, crew in self._current.crews.items()
        }  # fmt: skip
        metrics = _shown(page.socket.getsockname()) if page is not None else ""
        self._tell("ready", pid=os.getpid(), metrics=metrics, serving=serving)
        notify(f"READY=1\nMAINPID={os.getpid()}")

    # ---- signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self._terminate, signal.SIGINT: self._terminate, signal.SIGHUP: self.reload_soon}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _terminate(self) -> None:
        (self._at_once if self._end.is_set() else self._end).set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- reload

    def reload_soon(self) -> None:
        """Reload, after the reload that is under way; however often it is asked for until then, once."""
        if not self._reload_waits:
            self._reload_waits = True
            self._spawn(self.reload())

    async def reload(self) -> None:
        """Read everything again; whatever is wrong is logged and changes nothing."""
        async with self._reloading:
            self._reload_waits = False
            began = time.monotonic()
            notify(f"RELOADING=1\nMONOTONIC_USEC={int(began * 1e6)}")
            try:
                how = await self._apply()
            except Exception as error:
                self._reloads.note(False, time.monotonic() - began)
                lines = (str(error) or type(error).__name__).splitlines()
                for line in lines:
                    logger.error("reload: %s", line)
                expected = isinstance(error, (LbcoreError, OSError, ValueError))
                logger.error("reload failed; everything stays as it was", exc_info=not expected)
                self._tell("reload-failed", errors=lines)
            else:
                self._reloads.note(True, time.monotonic() - began)
                self._tell("reloaded", how=how, seconds=round(time.monotonic() - began, 3), serving=self._current.pids)
            notify("READY=1")

    async def _apply(self) -> str:
        settings = await asyncio.to_thread(load, self._file)
        before = self._current
        if settings.document == before.settings.document and databases(settings) == before.table.databases:
            await asyncio.to_thread(check, settings, self._roles(settings))
            await before.publish()
            await before.reload()
            return "in the running workers"
        if not self._roles(settings):
            raise ValueError(f"{self._file}: nothing left to serve; to end, send TERM")
        learned = await asyncio.to_thread(Learned.of, before.lb)
        self._current = await self._begin(settings, before.crews, learned)
        self._leaving.add(before)
        await self._current.accept()
        self._spawn(self._leave(before, settings.document.run.drain))
        if settings.document.run.metrics != before.settings.document.run.metrics:
            logger.warning("reload: run.metrics: in effect from the next start")
        return "with new workers"

    async def _leave(self, before: Generation, drain: float) -> None:
        """Let the last generation's workers answer what they have; sockets that nobody needs any more are closed."""
        await before.leave()
        for role, crew in before.crews.items():
            _close(crew, self._current.crews.get(role))
        await before.finish(drain, False)
        self._leaving.discard(before)
        del before
        gc.collect()  # it is full of cycles, and holds memory that is mapped

    # ---- end

    async def _finish(self) -> None:
        """End all workers within the grace; the second signal does not wait."""
        grace = self._current.settings.document.run.grace
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for crew in self._current.crews.values():
            _close(crew, None)
        ending = [asyncio.create_task(one.finish(grace, one is self._current)) for one in (self._current, *self._leaving)]
        hurry = asyncio.create_task(self._at_once.wait())
        while any(not task.done() for task in ending):
            await asyncio.wait([hurry, *ending], return_when=asyncio.FIRST_COMPLETED)
            if self._at_once.is_set():
                for one in (self._current, *self._leaving):
                    one.kill()
                break
        hurry.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


def _close(crew: Crew, other: Crew | None) -> None:
    """Close the sockets that another crew does not have."""
    kept = {place.socket for place in other.places} if other is not None else set()
    for socket in {place.socket for place in crew.places} - kept:
        socket.close()


def _shown(address: Sequence[Any]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _addresses(places: Sequence[Place]) -> list[tuple[str, int]]:
    return [*dict.fromkeys(place.address for place in places)]
