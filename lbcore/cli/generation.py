"""Generation: all workers that one reading of the configuration made, the latency table that they share, and its probes.

The table is the supervisor's: it probes, ticks and judges. A worker that dies is replaced, its sockets are the others' meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from lbcore.balancer import LOOK_INTERVAL, TICK_INTERVAL, Change
from lbcore.cli.channel import Gone, Refused
from lbcore.cli.child import Child
from lbcore.cli.listening import Place, spread
from lbcore.cli.sharing import Table
from lbcore.config import Settings
from lbcore.http.metrics import Book, Meter
from lbcore.learned import Learned
from lbcore.sense.probe import Prober

if TYPE_CHECKING:
    from lbcore.http.regional import Documents, SharedCounts

__all__ = ["Crew", "Generation"]

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds for an answer: a document of 100,000 operations takes its time
WATCH = 10.0  # seconds
SHORT = 2.0  # seconds in which metrics are told: a page that waits for one worker shows nothing of the others
START = 60.0  # seconds in which a worker must be ready
SETTLED = 10.0  # seconds after which a worker's end is no sign of trouble with its start
LONGEST_WAIT = 10.0  # seconds before another try
AFTER_GRACE = 5.0  # seconds to end after the grace
Tell = Callable[..., object]


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of one role: how many, on which sockets, what they count, and the role's name in Via.

    documents, shared: a gateway's; what its workers share
    """

    workers: int
    places: Sequence[Place]
    book: Book
    name: str
    documents: Documents | None = None
    shared: SharedCounts | None = None

    @property
    def fds(self) -> list[int]:
        """Give what workers inherit."""
        return [self.shared.limits, self.shared.slots] if self.shared is not None else []

    def options(self, number: int) -> dict[str, Any]:
        """Give what a new worker is told."""
        told = {"number": number, "workers": self.workers, "labels": self.book.names, "name": self.name}
        if self.documents is not None and self.shared is not None:
            told |= {"document": self.documents.text, "limits": self.shared.limits, "slots": self.shared.slots}
        return told


class Generation:
    """Start workers, keep them alive, and end them.

    settings: with the content of their file, which workers read for themselves; tell: is told events, by name and keywords
    failed: is called with the error that ends the probes; deaths: of workers, counted by role
    """

    def __init__(
        self, settings: Settings, table: Table, crews: Mapping[str, Crew], tell: Tell,
        failed: Callable[[BaseException], object], deaths: Counter[str],
    ) -> None:  # fmt: skip
        self.settings, self.table, self.crews, self.lb = settings, table, crews, table.lb
        self.deaths = deaths
        self._tell, self._failed = tell, failed
        self._living: dict[str, dict[int, Child]] = {role: {} for role in crews}
        self._all: set[Child] = set()
        self._keeping: set[asyncio.Task[None]] = set()
        self._minding: set[asyncio.Task[None]] = set()
        self._accepting: set[str] = set()  # roles
        self._asked: dict[Child, asyncio.Task[Any]] = {}
        self._prober: Prober | None = None
        self._ending = False

    # ---- begin

    async def open(self) -> None:
        """Probe all regions once and have all workers ready; Gone, Refused or TimeoutError when one cannot start."""
        self.lb.on_change(self._changed)
        self._mind(_every(TICK_INTERVAL, self.lb.tick))
        self._mind(_every(LOOK_INTERVAL, self.lb.look))
        try:
            async with asyncio.timeout(START), asyncio.TaskGroup() as firsts:
                for role, crew in self.crews.items():
                    for number in range(crew.workers):
                        firsts.create_task(self._keep(role, number))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        self._mind(_every(WATCH, self._watch))
        await self._open("gateway")  # whose region may be probed in a moment
        await self._probe()

    async def accept(self) -> None:
        """Let the workers accept."""
        await asyncio.gather(*(self._open(role) for role in self.crews))

    async def _open(self, role: str) -> None:
        if role in self.crews:
            self._accepting.add(role)
            await self._spread(role)

    async def _probe(self) -> None:
        if {"front-door", "dns"} & self.crews.keys():
            self._prober = prober = Prober(self.lb, **self.settings.prober_options())
            await prober.first_round()
            self._mind(prober.run())

    def _mind(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._minding.add(task)
        task.add_done_callback(self._minded)

    def _minded(self, task: asyncio.Task[None]) -> None:
        """Health that nobody watches is worse than none."""
        if not task.cancelled() and (error := task.exception()):
            self._failed(error)

    def _changed(self, change: Change) -> None:
        if not self._ending:
            self._tell("change", region=change.region, before=change.before, after=change.after, cause=change.cause)

    # ---- workers

    async def _keep(self, role: str, number: int) -> None:
        """Start a worker; once it is ready somebody looks after it."""
        child = await self._start(role, number)
        task = asyncio.create_task(self._look_after(child))
        self._keeping.add(task)
        task.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._keeping.discard(task)
        self._minded(task)

    async def _start(self, role: str, number: int) -> Child:
        crew, child, meter = self.crews[role], Child(role, number), Meter.new()
        self._all.add(child)
        try:
            crew.book.open(child, meter)
            await child.start([self.table.fd, meter, *crew.fds], lambda: self._told_at_start(crew, number, meter))
        except BaseException:
            child.kill()
            await self._settle(child)
            raise
        finally:
            os.close(meter)
        self._living[role][number] = child
        await self._spread(role)
        return child

    def _told_at_start(self, crew: Crew, number: int, meter: int) -> dict[str, Any]:
        settings = self.settings
        file: dict[str, Any] = {"content": settings.content.decode(), "file": settings.name}
        file |= {"rotation": settings.rotation.decode(), "follows": settings.following is not None}
        return file | {"table": self.table.fd, "fingerprint": self.table.fingerprint, "meter": meter} | crew.options(number)

    async def _look_after(self, child: Child) -> None:
        """Replace a worker whenever it ends."""
        tries = 0
        while True:
            code = await child.ended()
            tries = 0 if time.monotonic() - child.since > SETTLED else tries + 1
            await self._settle(child)
            await self._spread(child.role)
            if self._ending:
                return
            self._mourn(child, code)
            await asyncio.sleep(min(LONGEST_WAIT, 0.1 * 2**tries) if tries > 1 else 0)
            child = await self._replace(child)

    def _mourn(self, child: Child, code: int) -> None:
        self.deaths[child.role] += 1
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        logger.error("%s: %s; another one is started", child.words, how)
        self._tell("worker-ended", role=child.role, worker=child.number, pid=child.pid, code=code)

    async def _replace(self, child: Child) -> Child:
        """Start another one in a worker's place, however often it takes."""
        wait = 0.1
        while True:
            try:
                async with asyncio.timeout(START):
                    new = await self._start(child.role, child.number)
            except (Gone, Refused, TimeoutError, OSError) as error:
                logger.error("%s worker %d cannot be started: %s", child.role, child.number + 1, error or type(error).__name__)
                await asyncio.sleep(wait)
                wait = min(LONGEST_WAIT, wait * 2)
            else:
                self._tell("worker-started", role=new.role, worker=new.number, pid=new.pid)
                return new

    async def _settle(self, child: Child) -> None:
        await child.ended()
        if self._living[child.role].get(child.number) is child:
            del self._living[child.role][child.number]
        self._all.discard(child)
        crew = self.crews[child.role]
        crew.book.settle(child)
        if crew.shared is not None and child.number not in self._living[child.role]:
            crew.shared.clear(child.number)

    async def _spread(self, role: str) -> None:
        """Say who accepts on which of the role's sockets."""
        if role not in self._accepting or self._ending:
            return
        crew, living = self.crews[role], {**self._living[role]}
        telling = []
        for number, places in spread(len(crew.places), [*living], crew.workers).items():
            child = living[number]
            telling.append(self._placed(child, {place: crew.places[place] for place in places}))
        await asyncio.gather(*telling)

    async def _placed(self, child: Child, places: Mapping[int, Place]) -> None:
        """Have a worker accept on these sockets; one that cannot would leave clients waiting there."""
        try:
            await self._told(child, child.accept(places))
        except Refused as error:
            logger.error("%s cannot accept: %s; it is killed", child.words, error)
            child.kill()

    async def _told(self, child: Child, telling: Awaitable[Any]) -> Any:
        """Wait for the answer of a worker that may end at any moment; one that does not answer is as good as dead."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await telling
        except Gone:
            return None
        except TimeoutError:
            logger.error("%s does not answer; it is killed", child.words)
            child.kill()

    def _watch(self) -> None:
        """Ask every worker whether it still does anything."""
        for child in [child for living in self._living.values() for child in living.values()]:
            if child not in self._asked:
                self._asked[child] = asyncio.create_task(self._told(child, child.ask("ping")))
                self._asked[child].add_done_callback(partial(self._answered, child))

    def _answered(self, child: Child, _: asyncio.Task[Any]) -> None:
        self._asked.pop(child, None)

    # ---- while it serves

    @property
    def pids(self) -> dict[str, list[int]]:
        """Give the processes of each role, by the worker's number."""
        return {role: [child.pid for _, child in sorted(living.items())] for role, living in self._living.items()}

    async def reload(self) -> None:
        """Have every worker take its files as they are now; Refused when one of them cannot."""
        await asyncio.gather(*(self._told(child, child.ask("reload")) for child in [*self._all]))

    async def metrics(self) -> str:
        """Give what workers tell of metrics that are in no shared memory; who does not answer soon is left out."""
        return "".join(await asyncio.gather(*(self._metrics_of(child) for child in [*self._all])))

    async def _metrics_of(self, child: Child) -> str:
        with contextlib.suppress(Gone, Refused, TimeoutError):
            async with asyncio.timeout(SHORT):
                return str(await child.ask("metrics"))
        return ""

    async def learned(self) -> Learned:
        """Give what the next generation goes on from."""
        return await asyncio.to_thread(Learned.of, self.lb, self._prober.streaks if self._prober is not None else {})

    async def busy(self) -> Counter[str] | None:
        """Give how many calls are under way to regions, by name; None when a worker does not say."""
        doors = [child for child in self._all if child.role == "front-door"]
        try:
            async with asyncio.timeout(SHORT):
                told = await asyncio.gather(*(child.ask("busy") for child in doors))
        except (Gone, Refused, TimeoutError):
            return None
        return sum(map(Counter[str], told), Counter[str]())

    def switch(self, settings: Settings) -> None:
        """Bring the switches of regions in line with other settings, at once: bits of the table that all workers share.

        Regions that those do not have are taken out as long as others serve: the next generation does without them anyway.
        """
        wanted = {region.name: region.enabled for region in settings.regions}
        names = [region.name for region in self.lb.regions]
        serving = [name for name in names if wanted.get(name) and name not in settings.draining]
        for name in serving:  # before others are taken out, so that there is no moment without any
            self._switch(name, True, False)
        serve = any(self.lb.status(name) in ("up", "degraded") for name in serving)
        for name in names:
            if name not in serving and (name in wanted or serve):
                self._switch(name, wanted.get(name, False), name in settings.draining)

    def _switch(self, name: str, enabled: bool, draining: bool) -> None:
        slot, table = self.lb.slot(name), self.lb.table
        if table.enabled(slot) and not enabled:  # first, so that there is no moment in which a drained one serves again
            self.lb.disable(name)
        if table.draining(slot) != draining:
            self.lb.drain(name, draining)
        if enabled and not table.enabled(slot):
            self.lb.enable(name)

    async def publish(self) -> None:
        """Read the gateway's document again and have its workers serve by it; errors as Documents.read, and nothing has changed."""
        crew = self.crews.get("gateway")
        if crew is not None and crew.documents is not None:
            await asyncio.to_thread(crew.documents.read)
            await self.serve(crew.documents)

    async def serve(self, documents: Documents) -> None:
        """Have the gateway's workers serve by a document."""
        crew = self.crews.get("gateway")
        if crew is not None and documents.text:
            text, labels = documents.text, crew.book.name(documents.labels)
            gateways = [child for child in self._all if child.role == "gateway"]
            await asyncio.gather(*(self._told(child, child.ask("document", document=text, labels=labels)) for child in gateways))

    async def leave(self) -> None:
        """Let no worker accept any more."""
        self._accepting.clear()
        await asyncio.gather(*(self._placed(child, {}) for child in [*self._all]))

    # ---- end

    async def finish(self, grace: float, last: bool) -> None:
        """End all workers, `grace` seconds for calls under way, and then the table. last: nobody accepts on the sockets after this."""
        self._ending = True
        await _cancel({*self._keeping})
        await asyncio.gather(*(self._finish_one(child, grace, last) for child in [*self._all]))
        await _cancel({*self._minding, *self._asked.values()})
        self.table.close()
        for crew in self.crews.values():
            if crew.shared is not None:
                crew.shared.close()

    def kill(self) -> None:
        """End all workers at once."""
        for child in self._all:
            child.kill()

    async def _finish_one(self, child: Child, grace: float, last: bool) -> None:
        try:
            async with asyncio.timeout(grace + AFTER_GRACE):
                await self._told(child, child.ask("finish", grace=grace, last=last))
                await child.ended()
        except TimeoutError:
            logger.error("%s did not end in time; it is killed", child.words)
            child.kill()
        await self._settle(child)


async def _every(seconds: float, work: Callable[[], object]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            work()
        except Exception:
            logger.exception("%s failed; the next one tries again", work.__name__)


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    found = [*tasks]
    for task in found:
        task.cancel()
    await asyncio.gather(*found, return_exceptions=True)
