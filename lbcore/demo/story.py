"""The story of the demo, told from outside: what clients and the operator see of a service whose regions come, fail, return and go.

Each chapter says what is promised, does it, and says what was seen; what did not come true is a problem, and the demo ends 0 only without
problems. Where everybody should be is told by the published round trips alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx

from lbcore.demo.places import CLOSE, LIKELY, PRIMARY, REGIONS, Client
from lbcore.demo.world import NotStartedError, World

__all__ = ["KILLED", "PROMISE", "REMOVED", "BrokenError", "Chapter", "Story"]

KILLED, REMOVED = "westeurope", "australiaeast"
WITHIN = 120.0  # seconds, until what happens within a few on a machine that has nothing else to do is not believed in any more
PAUSE = 1.5
PROMISE = "italic"  # how a promise is to look
UNDER_WAY = 0.5  # seconds that a call to anywhere takes


class BrokenError(Exception):
    """Say why the story cannot go on."""


@dataclass
class Chapter:
    """What was promised and what was seen. began: seconds since the story did; sent, lost: calls meanwhile"""

    title: str
    promised: str
    began: float
    seconds: float = 0.0
    sent: int = 0
    lost: int = 0
    seen: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Story:
    """Play the chapters in a world; `say` is told every line, and how it is to look."""

    def __init__(self, world: World, say: Callable[[str, str], object]) -> None:
        self.world, self.traffic, self.say = world, world.traffic, say
        self.chapters: list[Chapter] = []
        self.revision = ""
        self._edition = 0
        self._started = time.monotonic()
        self._returns: dict[str, asyncio.Task[None]] = {}  # region -> its clients return

    @property
    def now(self) -> float:
        """Give the seconds since the story began."""
        return time.monotonic() - self._started

    @property
    def problems(self) -> list[str]:
        """Give what came out wrong, in all chapters."""
        return [f"{chapter.title}: {problem}" for chapter in self.chapters for problem in chapter.problems]

    @asynccontextmanager
    async def playing(self) -> AsyncIterator[None]:
        """Create the service, let everybody come, and let them go at the end of the block, which plays `rest`."""
        await self.beginning()
        async with self.traffic:
            try:
                yield
            finally:
                for task in self._returns.values():
                    task.cancel()
                await asyncio.gather(*self._returns.values(), return_exceptions=True)

    async def rest(self) -> None:
        """Play everything after the beginning."""
        await self.regions_come()
        await self.gateway_dies()
        await self.publication()
        await self.outage()
        await self.edge_restarts()
        await self.primary_returns()
        await self.region_goes()
        await self.ending()

    # ---- chapters

    async def beginning(self) -> None:
        """Start the primary and the edge, publish an API."""
        world = self.world
        promised = f"It has one unit in one region, its primary {PRIMARY}; the portal is there; an API can be published"
        async with self._chapter("The service is created", promised) as chapter:
            await asyncio.gather(world.primary.start(), world.edge.start())
            listed = await self._until(self._is_up)
            if not self._check(listed and [*world.locations] == [PRIMARY], f"the regions are {', '.join(world.locations) or 'none'}"):
                raise BrokenError(self.problems[-1])
            self._see(f"{PRIMARY} serves at {world.locations[PRIMARY]['publicIPAddresses'][0]}, after {self.now - chapter.began:.1f} s")
            for path in ("/portal/login", "/developer"):
                self._check((status := await world.operator.status_of(path)) == 200, f"{path} answers with {status}")
            await self._publish()
            await self._arrived([PRIMARY])  # before that, it has nothing to answer with

    async def _is_up(self) -> bool:
        return await self.world.refresh() and PRIMARY in self.world.serving

    async def regions_come(self) -> None:
        """Add regions by one Save."""
        world, traffic = self.world, self.traffic
        promised = "Each enters rotation only when it is configured and probed; everybody then goes to the closest"
        async with self._chapter(f"{len(REGIONS) - 1} regions are added by one Save", promised) as chapter:
            await self._settle([PRIMARY])
            entered: dict[str, dict[str, Any]] = {}
            watching = asyncio.create_task(self._watch_entries(entered))
            operation = await world.operator.save(REGIONS[1:], "the demo adds regions")
            await world.refresh()
            self._check(operation["status"] == "Succeeded", f"the Save ended {operation['status']}: {operation}")
            self._see(f"one operation, {operation['status']} after {self.now - chapter.began:.1f} s")
            await self._settle(REGIONS)
            watching.cancel()
            self._see(f"everybody is at the closest after {self.now - chapter.began:.1f} s:")
            self._see(_counted(traffic.clients))
            for region in REGIONS[1:]:
                look = entered.get(region, {})
                ready = look.get("status") == "serving" and look.get("revision") == self.revision
                self._check(ready, f"{region} was in DNS when its gateway said {look or 'nothing'}")
            self._see(f"DNS named each region only when its gateway served revision {self.revision}")
            self._lossless(chapter)

    async def _watch_entries(self, entered: dict[str, dict[str, Any]]) -> None:
        """Look at each region's gateway when DNS names it for the first time."""
        while True:
            for region in [region for region in self.traffic.last_named if region not in entered]:
                entered[region] = await self.world.look(region)
            await asyncio.sleep(0.02)

    async def gateway_dies(self) -> None:
        """Kill a region's gateway and start it again; its clients return while the next chapters play."""
        promised = "Its clients go to their next closest at once; when it is back, ever more of them return"
        async with self._chapter(f"The gateway of {KILLED} is killed", promised) as chapter:
            await self._fail([KILLED], chapter)
            self._lossless(chapter)
            await self.world.revive_gateways()
            self._see("it is started again; its clients return while the story goes on")
            self._return(KILLED, chapter)

    async def publication(self) -> None:
        """Publish a new revision."""
        async with self._chapter("A new revision is published", "Every region takes the new configuration, without a lost call") as chapter:
            await self._publish()
            await self._arrived(self.world.serving)
            await self._seen()
            self._lossless(chapter)

    async def outage(self) -> None:
        """Kill the primary: management plane, portal and its region's gateway."""
        world, traffic = self.world, self.traffic
        promised = "Management plane and portal are gone; the other regions and the edge go on with the last configuration"
        async with self._chapter("The primary's machine dies", promised) as chapter:
            await self._fail([PRIMARY], chapter, also=world.primary.kill)
            for path in ("/portal/login", "/developer", "/services"):
                self._check((status := await world.operator.status_of(path)) is None, f"{path} answers with {status}")
            self._see("portal, developer portal and API: connection refused")
            await self._refused()
            queries, unanswered = traffic.queries, traffic.unanswered
            await asyncio.gather(asyncio.sleep(PAUSE), *self._returns.values())  # a restart of the edge would end the ramp
            old = {client.revision for client in traffic.clients} - {self.revision}
            self._check(not old, f"somebody is served by revision {', '.join(old)}")
            self._check(traffic.unanswered == unanswered, "DNS does not answer everybody")
            self._see(f"everybody is served by revision {self.revision}, {traffic.queries - queries} DNS queries were answered meanwhile")
            self._lossless(chapter)

    async def _refused(self) -> None:
        try:
            await self.world.operator.publish(self.world.document(0), "cannot be")
        except httpx.TransportError:
            self._see("nothing can be published")
        else:
            self._check(False, "something could be published")

    async def edge_restarts(self) -> None:
        """Kill the only edge, and start it while the primary is away."""
        world, traffic = self.world, self.traffic
        promised = "An edge that starts while the primary is away serves by what it kept"
        async with self._chapter("The edge is killed and starts without the primary", promised) as chapter:
            async with traffic.waiting():
                at = time.monotonic()
                await world.edge.kill()
                await world.edge.start()
                self._see(f"it serves again {time.monotonic() - at:.1f} s after it was killed; there is but one, so its clients waited")
            await self._settle(world.serving)
            self._see("everybody is at the closest of the regions that are left:")
            self._see(_counted(traffic.clients))
            self._lossless(chapter)

    async def primary_returns(self) -> None:
        """Start the primary again, and publish."""
        world = self.world
        before = {name: row["publicIPAddresses"] for name, row in world.locations.items()}
        promised = "It is as it was; a new revision reaches every region; its clients return"
        async with self._chapter("The primary's machine returns", promised) as chapter:
            await asyncio.gather(world.primary.start(), world.revive_gateways())
            self._check(await self._until(world.refresh), "the API does not answer")
            after = {name: row["publicIPAddresses"] for name, row in world.locations.items()}
            self._check(before == after, f"regions and addresses were {before}, and are {after}")
            self._see(f"API and portal answer after {self.now - chapter.began:.1f} s, with the same regions and addresses")
            await self._publish()
            await self._arrived(world.serving)
            await self._seen()
            self._lossless(chapter)
            self._return(PRIMARY, chapter)

    async def region_goes(self) -> None:
        """Remove a region by a Save."""
        world, traffic = self.world, self.traffic
        promised = "It drains, leaves DNS and ends; its clients go to their next closest; no other region's address changes"
        async with self._chapter(f"{REMOVED} is removed by one Save", promised) as chapter:
            left = [region for region in world.locations if region != REMOVED]
            addresses = {region: world.locations[region]["publicIPAddresses"] for region in left}
            clients, states = self._at(REMOVED), list[str]()
            self._check(bool(clients), f"nobody is at {REMOVED}")
            wanted = [region for region in left if region != PRIMARY]
            operation = await world.operator.save(wanted, "the demo removes a region", lambda now: _note(now, REMOVED, states))
            ended = time.monotonic()
            await world.refresh()
            self._check(operation["status"] == "Succeeded", f"the Save ended {operation['status']}: {operation}")
            self._see(f"{', '.join(states)}, after {self.now - chapter.began:.1f} s")
            self._check("Draining" in states, f"it did not drain: {', '.join(states)}")
            self._moved(clients, [REMOVED])
            self._check(traffic.last_named[REMOVED] < ended, "DNS named it when it had ended")
            self._check(not world.runs(REMOVED), "its process runs still")
            self._see("DNS names it no more, its process has ended")
            now = {region: row["publicIPAddresses"] for region, row in world.locations.items()}
            self._check(now == addresses, f"addresses were {addresses}, and are {now}")
            self._lossless(chapter)

    async def ending(self) -> None:
        """Wait until everybody has returned."""
        promised = "Everybody is at the closest region again; no call and no DNS query was lost on the way"
        async with self._chapter("Everybody returns", promised):
            await asyncio.gather(*self._returns.values())
            await self._settle(self.world.serving)
            self._see(_counted(self.traffic.clients))
            self._check(self.traffic.unanswered == 0, f"{self.traffic.unanswered} DNS queries got no answer")

    # ---- what happens

    async def _publish(self) -> None:
        self._edition += 1
        self.revision = await self.world.operator.publish(self.world.document(self._edition), f"edition {self._edition} of the demo")
        self._see(f"revision {self.revision} is published")

    async def _arrived(self, regions: Collection[str]) -> None:
        """Wait until every region's gateway serves by the newest revision."""
        at = time.monotonic()

        async def everywhere() -> bool:
            looks = await asyncio.gather(*map(self.world.look, regions))
            return all(look.get("revision") == self.revision for look in looks)

        if self._check(await self._until(everywhere), f"revision {self.revision} does not reach every region"):
            self._see(f"it serves in {', '.join(regions)}, {time.monotonic() - at:.1f} s later")

    async def _seen(self) -> None:
        """Wait until everybody is served by the newest revision."""
        seen = await self._until(lambda: all(client.revision == self.revision for client in self.traffic.clients))
        self._check(seen, f"somebody is not served by revision {self.revision}")

    async def _fail(self, regions: Sequence[str], chapter: Chapter, also: Callable[[], Awaitable[object]] | None = None) -> None:
        """Kill gateways; everybody there must be at the next closest region at once."""
        clients = [client for region in regions for client in self._at(region)]
        self._check(bool(clients), f"nobody is at {', '.join(regions)}")
        self._see(f"there: {', '.join(client.city for client in clients)}")
        at = time.monotonic()
        await asyncio.gather(*map(self.world.kill_gateway, regions), *([also()] if also else []))
        dead = time.monotonic()
        gone = await self._until(lambda: not any({client.by_dns, client.by_http} & {*regions} for client in clients))
        if self._check(gone, f"{', '.join(client.city for client in clients if client.by_dns in regions)} are sent there still"):
            self._see(f"all its clients are elsewhere in DNS and HTTP {time.monotonic() - at:.1f} s later")
        late = [one for one in self.traffic.outcomes if one.region in regions and one.at > dead + UNDER_WAY]
        self._check(not late, f"{len(late)} calls were answered by a gateway that was killed")
        self._moved(clients, regions)

    def _moved(self, clients: Sequence[Client], without: Collection[str]) -> None:
        """See that clients went to their next closest region, in DNS and in HTTP."""
        for client in clients:
            for way, region in (("DNS", client.by_dns), ("HTTP", client.by_http)):
                right = self._is_right(client, region, self.world.serving, LIKELY)
                self._check(right, f"{client.city} went to {region} ({way}), not {client.rank(self.world.serving)[0]}")
        self._see(f"they went to {_counted(clients)}")

    def _return(self, region: str, chapter: Chapter) -> None:
        self._returns[region] = asyncio.create_task(self._returned(region, chapter))

    async def _returned(self, region: str, chapter: Chapter) -> None:
        """Wait until everybody whose closest region this is has returned."""
        at, home = time.monotonic(), [client for client in self.traffic.clients if client.rank(self.world.locations)[0] == region]
        if await self._until(lambda: any(client.by_dns == region for client in home)):
            chapter.seen.append(f"the first of its clients is back after {time.monotonic() - at:.1f} s")
        if await self._until(lambda: all(client.by_dns == client.by_http == region for client in home)):
            chapter.seen.append(f"all {len(home)} are back after {time.monotonic() - at:.1f} s")
            self.say(f"  {region} has all its clients back, {time.monotonic() - at:.1f} s after it was started", "")
        else:
            away = [client.city for client in home if client.by_dns != region or client.by_http != region]
            self._check(False, f"{', '.join(away)} did not return to {region}", chapter)

    # ---- how it is seen and told

    @asynccontextmanager
    async def _chapter(self, title: str, promised: str) -> AsyncIterator[Chapter]:
        chapter = Chapter(title, promised, self.now)
        self.chapters.append(chapter)
        self.say(title, "bold")
        self.say(promised, PROMISE)
        at = time.monotonic()
        try:
            yield chapter
        except (httpx.HTTPError, NotStartedError) as error:
            self._check(False, str(error) or type(error).__name__)
            raise BrokenError(self.problems[-1]) from error
        finally:
            chapter.seconds = self.now - chapter.began
            chapter.sent, lost = self.traffic.since(at)
            chapter.lost = len(lost)

    def _see(self, text: str) -> None:
        self.chapters[-1].seen.append(text)
        self.say(f"  {text}", "")

    def _check(self, right: bool, problem: str, chapter: Chapter | None = None) -> bool:
        if not right:
            (chapter or self.chapters[-1]).problems.append(problem)
            self.say(f"  WRONG: {problem}", "red")
        return right

    def _lossless(self, chapter: Chapter) -> None:
        sent, lost = self.traffic.since(self._started + chapter.began)
        for one in lost:
            self._check(False, f"a call of {one.client.city} was lost: {one.lost}")
        self._see(f"{len(lost)} of {sent} calls lost")

    def _is_right(self, client: Client, region: str, regions: Collection[str], within: float = CLOSE) -> bool:
        """Say whether a region is the closest of these, or of those that are not still taking their clients back."""
        settled = [name for name in regions if name not in self._returns or self._returns[name].done()]
        return any(client.is_close(region, some, within) for some in (regions, settled) if some)

    def _at(self, region: str) -> list[Client]:
        return [client for client in self.traffic.clients if client.by_http == region]

    async def _settle(self, regions: Collection[str]) -> None:
        """Wait until everybody is at the closest of these regions, in DNS and in HTTP."""
        for client in self.traffic.clients:
            client.by_dns = client.by_http = ""
        wrong = [*self.traffic.clients]

        def settled() -> bool:
            wrong[:] = [one for one in wrong if not all(self._is_right(one, region, regions) for region in (one.by_dns, one.by_http))]
            return not wrong

        await self._until(settled)
        for client in wrong:
            self._check(False, f"{client.city} is at {client.by_dns} (DNS), {client.by_http} (HTTP), not at {client.rank(regions)[0]}")

    async def _until(self, true: Callable[[], bool | Awaitable[bool]]) -> bool:
        """Wait until something holds, for as long as that may take; say whether it does."""
        deadline = time.monotonic() + WITHIN
        while True:
            holds = true()
            if not isinstance(holds, bool):
                holds = await holds
            if holds or time.monotonic() >= deadline:
                return holds
            await asyncio.sleep(0.02)

    def summary(self) -> dict[str, Any]:
        """Give the story as plain JSON types."""
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "seconds": round(self.now, 1),
            "requests": self.traffic.calls,
            "lost": self.traffic.lost,
            "dns_queries": self.traffic.queries,
            "unanswered": self.traffic.unanswered,
            "clients": {
                client.city: {"address": client.address, "dns": client.by_dns, "http": client.by_http, "ms": round(client.ms, 1)}
                for client in self.traffic.clients
            },
            "chapters": [_rounded(asdict(chapter)) for chapter in self.chapters],
        }  # fmt: skip


def _counted(clients: Sequence[Client]) -> str:
    return ", ".join(f"{region or 'nowhere'} {count}" for region, count in Counter(client.by_http for client in clients).most_common())


def _note(operation: dict[str, Any], region: str, states: list[str]) -> None:
    """Note the state of a region in an operation, when it is another one than before."""
    state = operation["locations"].get(region, {}).get("status")
    if state and state not in states[-1:]:
        states.append(state)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in values.items()}
