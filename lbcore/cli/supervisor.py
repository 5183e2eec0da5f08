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
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbcore.cli import listening
from lbcore.cli.checking import check
from lbcore.cli.generation import SHORT, Crew, Generation, Tell
from lbcore.cli.listening import Place
from lbcore.cli.management import Keeper
from lbcore.cli.sharing import Table, databases
from lbcore.cli.systemd import notify, raise_limit
from lbcore.cli.view import View
from lbcore.config import Settings, load, split_listen
from lbcore.config.roles import ROLES
from lbcore.config.serving import Served
from lbcore.errors import LbcoreError, ServiceError
from lbcore.http.metrics import Book
from lbcore.learned import Learned
from lbcore.metrics import MetricsPage, Reloads
from lbcore.region import Region

if TYPE_CHECKING:
    from lbcore.cli.following import Edge
    from lbcore.config.following import Following
    from lbcore.http._limits import Limits
    from lbcore.http.gateway.revision import Revision
    from lbcore.http.regional import Documents
    from lbcore.service.rotation_document import Rotation

__all__ = ["Supervisor"]

logger = logging.getLogger(__name__)

MANAGEMENT = "management"
NOBODY = Region("nowhere", 0.0, 0.0, enabled=False)  # of a node that only manages: a table has one region at least


class Supervisor:
    """Run what a configuration asks for.

    file, settings: the configuration, and what was read from it; only: which of its roles, () = all that it has at the time
    workers: in place of the configuration's
    tell: is told events, by name and keywords
    """

    def __init__(self, file: Path, settings: Settings, only: Sequence[str], workers: int | None, tell: Tell) -> None:
        self._file, self._settings, self._only, self._workers, self._tell = file, settings, only, workers, tell
        self._books = {role: Book("api" if role == "gateway" else "region") for role in ROLES if role != MANAGEMENT}
        self._names = {role: f"lbcore-{os.urandom(4).hex()}" for role in self._books}
        self._management: Keeper | None = None
        self._reloads, self._reloading = Reloads(), asyncio.Lock()
        self._reload_waits = False
        self._current: Generation
        self._limits: Limits | None = None
        self._limits_fd = -1
        self._edge: Edge | None = None
        self._view = View(self._books)
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
                await self._open_management(stack, settings)
                self._edge = self._follow()
                if not await self._start():
                    return
                stack.push_async_callback(self._finish)
                page = await self._show_metrics(stack, settings)
                await self._current.accept()
                self._ready(page)
                if self._edge is not None:
                    await stack.enter_async_context(self._edge)
            await self._end.wait()
            notify("STOPPING=1")
        self._tell_left()
        if self._broken:
            raise self._broken

    async def _open_management(self, stack: AsyncExitStack, settings: Settings) -> None:
        """Have the management plane run before anybody follows it, and until nobody does any more."""
        if not self._manages(settings):
            return
        spare = await asyncio.to_thread(_kept, self._followed_by(settings))
        try:
            await asyncio.to_thread(check, settings, [MANAGEMENT])
        except ServiceError as error:  # of the store
            if not spare:
                raise
            logger.error("the management plane cannot be started: %s", error)
        keeper = Keeper(self._tell)
        await keeper.open(settings, spare)
        self._management = keeper
        stack.push_async_callback(keeper.close)

    def _tell_left(self) -> None:
        """Tell which gateways go on without this primary."""
        if self._management is None:
            return
        from lbcore.service.founding import left_running

        if left := left_running(self._settings):
            self._tell("left", gateways=left)

    def _manages(self, settings: Settings) -> bool:
        return MANAGEMENT in settings.roles and MANAGEMENT in (self._only or settings.roles)

    async def _start(self) -> bool:
        """Make the first generation, unless told to end before that is ready."""
        beginning, ending = asyncio.create_task(self._first()), asyncio.create_task(self._end.wait())
        await asyncio.wait([beginning, ending], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not beginning.done():
            beginning.cancel()
            await asyncio.wait([beginning])
        if beginning.cancelled():
            return False
        self._current = beginning.result()
        return True

    async def _first(self) -> Generation:
        if self._edge is None:
            return await self._begin(self._settings, {})
        return await self._edge.first(self._begin_by)

    # ---- follow

    def _follow(self) -> Edge | None:
        """Give what follows the primary of `[sync]`, None without one."""
        following = self._followed_by(self._settings)
        if following is None:
            return None
        from lbcore.cli.following import Edge

        return Edge(following, self._settings, self, "gateway" in self._roles(self._settings), self._tell)

    def _followed_by(self, settings: Settings) -> Following | None:
        return settings.following if self._roles(settings) else None  # who only manages has nobody to follow

    async def _begin_by(self, rotation: Rotation | None) -> Generation:
        from lbcore.service.edge import settings_of

        return await self._begin(await asyncio.to_thread(settings_of, self._settings, rotation), {})

    async def switch(self, rotation: Rotation) -> bool:
        """Switch regions as a rotation says, bits that change at once; says whether it differs in more, which takes new workers."""
        async with self._reloading:
            return not self._same_workers(await self._switched(rotation))

    async def _switched(self, rotation: Rotation) -> Settings:
        from lbcore.service.edge import settings_of

        settings = await asyncio.to_thread(settings_of, self._settings, rotation)
        for each in (self._current, *self._leaving):
            each.switch(settings)
        return settings

    async def rotate(self, rotation: Rotation) -> None:
        """Serve by a rotation; errors as `_begin`."""
        async with self._reloading:
            began = time.monotonic()
            settings = await self._switched(rotation)
            try:
                how = await self._replace(settings)
            except LbcoreError:  # it will not be used; any other error may be gone at the next look
                self._current.switch(self._current.settings)
                raise
        took = round(time.monotonic() - began, 3)
        self._tell("rotation", rotation=str(rotation.number), how=how, seconds=took, serving=self._current.pids)

    async def _replace(self, settings: Settings) -> str:
        """Serve by other settings, in the running workers where these differ in switches alone; says how."""
        if self._same_workers(settings):
            self._current.settings = settings
            return "in the running workers"
        await self._renew(settings)
        return "with new workers"

    def _same_workers(self, settings: Settings) -> bool:
        from lbcore.service.edge import apart_from_switches

        before = self._current.settings
        shut = [_own_region_shut(each) for each in (before, settings)] if "gateway" in self._current.crews else [False] * 2
        return apart_from_switches(settings) == apart_from_switches(before) and shut[0] == shut[1]

    @property
    def revision(self) -> Revision | None:
        """Give what the gateway serves by."""
        documents = self._gateways_documents()
        return documents.revision if documents is not None else None

    async def update(self, document: object) -> Revision:
        """Have the gateway serve by a configuration; errors as Gateway.update."""
        async with self._reloading:
            documents = self._gateways_documents()
            if documents is None:
                raise OSError("this node has no gateway any more")
            revision = await documents.take(document)
            leaving = asyncio.gather(*(each.serve(documents) for each in self._leaving), return_exceptions=True)
            await self._current.serve(documents)
            await asyncio.wait([leaving], timeout=SHORT)  # or who is still connected there would be answered by an older revision
        self._tell("configuration", revision=revision.name)
        return revision

    def _gateways_documents(self) -> Documents | None:
        crew = self._current.crews.get("gateway")
        return crew.documents if crew is not None else None

    async def look(self) -> dict[str, Any]:
        """Give what this node sees of the regions, for the primary."""
        assert self._edge is not None
        held = self._edge.rotation.held
        return await self._view.report(self._current, [*self._leaving], str(held.number) if held else None)

    def reported(self, body: Mapping[str, Any]) -> None:
        """Know that the primary has taken a report."""
        self._view.reported(body)

    # ---- generations

    def _roles(self, settings: Settings) -> list[str]:
        return [role for role in settings.roles if role in (self._only or settings.roles) and role != MANAGEMENT]

    async def _begin(
        self, settings: Settings, before: Mapping[str, Crew], learned: Learned | None = None
    ) -> Generation:
        """Make a generation that is ready to accept; whatever goes wrong leaves nothing behind."""
        roles = self._roles(settings)
        if not roles:
            settings = replace(settings, regions=settings.regions or (NOBODY,))
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
            made = Generation(settings, table, crews, self._tell_of, self._fail, self._deaths)
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

    def _tell_of(self, event: str, **facts: Any) -> None:
        if event == "change":
            self._view.note(facts)
        self._tell(event, **facts)

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
        more = self._edge.metrics if self._edge is not None else tuple
        collector = RunCollector(self._books, lambda: [self._current, *self._leaving], self._reloads, more)
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
        if self._management is not None:
            managing = {"addresses": [_shown(address) for address in self._management.addresses], "workers": self._management.pids}
            serving = {MANAGEMENT: managing} | serving
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
        read = await asyncio.to_thread(load, self._file)
        settings, follow = await self._followed(read)
        await self._reload_management(read)
        how = await self._take(settings)
        self._settings = read
        follow()
        return how

    async def _take(self, settings: Settings) -> str:
        before = self._current
        if settings.document == before.settings.document and databases(settings) == before.table.databases:
            await asyncio.to_thread(check, settings, self._roles(settings))
            await before.publish()
            await before.reload()
            before.settings = settings
            return "in the running workers"
        if not (self._roles(settings) or self._manages(settings)):
            raise ValueError(f"{self._file}: nothing left to serve; to end, send TERM")
        await self._renew(settings)
        if settings.document.run.metrics != before.settings.document.run.metrics:
            logger.warning("reload: run.metrics: in effect from the next start")
        return "with new workers"

    async def _followed(self, read: Settings) -> tuple[Settings, Callable[[], object]]:
        """Give a file's settings with the rotation in use, and what follows by them; whom may change, whether takes a start."""
        following = self._followed_by(read)
        if (following is None) != (self._edge is None):
            raise ValueError(f"{self._file}: [sync] comes or goes with a start alone")
        if self._edge is None or following is None:
            return read, lambda: None
        from lbcore.service.edge import settings_of

        return await asyncio.to_thread(settings_of, read, self._edge.rotation.rotation), self._edge.prepare(following)

    async def _renew(self, settings: Settings) -> None:
        """Serve by other settings with new workers, which go on from what was learned; the old ones answer what they have."""
        before = self._current
        learned = await before.learned()
        made = await self._begin(settings, before.crews, learned)
        learned.catch_up(before.lb, made.lb)
        self._current = made
        self._leaving.add(before)
        await self._current.accept()
        left = asyncio.create_task(before.leave())
        await asyncio.wait([left], timeout=SHORT)  # whoever is told that this is done expects no answer by what was before
        self._spawn(self._leave(before, left, settings.document.run.drain))

    async def _reload_management(self, settings: Settings) -> None:
        if self._manages(settings) != (self._management is not None):
            raise ValueError(f"{self._file}: [management] comes or goes with a start alone")
        if self._management is not None:
            await asyncio.to_thread(check, settings, [MANAGEMENT, *self._roles(settings)])
            await self._management.reload(settings)

    async def _leave(self, before: Generation, left: asyncio.Task[None], drain: float) -> None:
        """Let the last generation's workers answer what they have; sockets that nobody needs any more are closed."""
        await left
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
                if self._management is not None:
                    self._management.kill()
                for one in (self._current, *self._leaving):
                    one.kill()
                break
        hurry.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


def _kept(following: Following | None) -> bool:
    """Say whether there is a rotation to serve by without a primary."""
    if following is None or following.keep is None:
        return False
    from lbcore.service.edge import kept_rotations

    return any(True for _ in kept_rotations(following.keep).read())


def _own_region_shut(settings: Settings) -> bool:
    section = settings.document.gateway
    return section is not None and not settings.region(section.region).enabled


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
