"""The story of the demo: everybody goes to the closest region; one becomes slow, one is killed, one answers 503; all come back.

Each chapter says what it expects and checks it; what did not come true is a problem, and the demo ends 0 only without problems.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lbcore.demo.world import Client, World

__all__ = ["RAMP", "Chapter", "Story"]

LEARNING = 3.0  # until the first samples have replaced the priors
RAMP = 30.0  # seconds in which a recovering region takes its groups back
NOTICED_WITHIN = 6.0  # probes every second, two failures tolerated
RETURNED_WITHIN = 45.0  # the ramp, or the switch rule after enough samples
LEFT_WITHIN = 25.0  # the switch rule's ten seconds, and time to learn
SETTLED_WITHIN = 4.0  # every client asks DNS once a second
PAUSE = 2.5
EXTRA_MS = 150.0
CLOSE_ENOUGH = 1.1  # of the lowest published round trip, besides 5 ms: loopback has its own


@dataclass
class Chapter:
    """What became of one region's trouble; seconds since the trouble, or since its end for what follows that."""

    title: str
    region: str
    noticed: float | None = None
    all_left: float | None = None
    cause: str = ""
    status: str = ""
    moved: dict[str, str] = field(default_factory=dict)  # city -> region
    sent: int = 0
    lost: int = 0
    up_again: float | None = None
    all_back: float | None = None


class Story:
    """Play the chapters in a world; `say` is told every line, `problems` gathers what came out wrong."""

    def __init__(self, world: World, say: Callable[[str], object]) -> None:
        self.world, self.say = world, say
        self.chapters: list[Chapter] = []
        self.problems: list[str] = []
        self.homes: dict[Client, str] = {}
        self.began = world.lb.clock()
        self._returns: list[asyncio.Task[None]] = []

    async def troubles(self) -> None:
        """Let one region after the other fail and recover; who was there returns while the next chapter plays."""
        await self.slowness(f"westeurope becomes {EXTRA_MS:.0f} ms slower", "westeurope")
        await self.outage("southeastasia is killed", "southeastasia", self._kill, lossless=True)
        await self.outage("westus2 answers 503", "westus2", self._fail)

    # ---- chapters

    async def opening(self) -> None:
        """Wait until everybody was served, and see that everybody is where the published round trips say."""
        clients = self.world.clients
        await asyncio.sleep(LEARNING)
        await self._until(lambda: all(self._served_where_picked(client) and self._is_close(client) for client in clients), 15.0)
        self.homes = {client: self.world.at(client) for client in clients}
        for client, home in self.homes.items():
            self._check(self._served_where_picked(client), f"{client.city} is given {home}, but is served elsewhere")
            self._check(self._is_close(client), f"{client.city} is at {home}, which is not the closest by the published round trips")

    async def outage(self, title: str, region: str, begin: Callable[[str], Any], *, lossless: bool = False) -> None:
        """Let a region fail: it must be noticed, everybody must be at the next closest at once, and come back afterwards."""
        chapter, clients = self._open(title, region)
        at = self.world.lb.clock()
        ranks: dict[Client, list[str]] = {}

        def is_noticed() -> bool:
            if self.world.lb.status(region) != "up":
                return True
            ranks.update({client: [r.name for r in self.world.lb.rank(client.address)] for client in clients})
            return False

        is_noticed()
        await begin(region)
        self._notice(chapter, clients, at, await self._until(is_noticed, NOTICED_WITHIN))
        for client in clients:
            right = self._next(ranks[client], region)
            self._check(chapter.moved[client.city] in right, f"{title}: {client.city} went to {chapter.moved[client.city]}, not {right[0]}")
        settled_at = self.world.lb.clock()
        await self._settle(clients)
        await asyncio.sleep(PAUSE)
        self._count(chapter, at)
        self._check(not lossless or chapter.lost == 0, f"{title}: {chapter.lost} requests were lost, none should be")
        late = self.world.lost_since(settled_at + 0.6)  # what was under way has ended by then
        self._check(late == 0, f"{title}: {late} requests were lost after it was noticed")
        self._close(chapter, self._restore)

    async def slowness(self, title: str, region: str) -> None:
        """Let a region become slow: it stays up, but those who are better off elsewhere leave, and return when it is fast again."""
        chapter, clients = self._open(title, region)
        at, leaving = self.world.lb.clock(), [client for client in clients if self.homes[client] == region]
        self.world.gateways[region].change(f"+{EXTRA_MS:.0f} ms", extra_ms=EXTRA_MS)
        await self._until(lambda: any(self.world.at(client) != region for client in leaving), LEFT_WITHIN)
        first = self.world.lb.clock() - at
        left = await self._until(lambda: not any(self.world.at(client) == region for client in leaving), LEFT_WITHIN)
        chapter.cause = "latency"
        self._notice(chapter, leaving, at, left, first)
        for client in leaving:
            there, slow = client.published(self.world.at(client)), client.published(region) + EXTRA_MS
            self._check(there < slow, f"{title}: {client.city} went to {self.world.at(client)}, which is no better")
        self._check(self.world.lb.status(region) == "up", f"{title}: slow is not down, but {region} is {self.world.lb.status(region)}")
        await self._settle(leaving)
        self._count(chapter, at)
        self._check(chapter.lost == 0, f"{title}: {chapter.lost} requests were lost, none should be")
        self._close(chapter, self._quicken)

    async def ending(self) -> None:
        """Wait until everybody is back where they were."""
        await asyncio.gather(*self._returns)
        self._returns.clear()
        await self._settle(self.world.clients)
        for client, home in self.homes.items():
            right = self.world.at(client) == home or self._is_close(client)
            self._check(right, f"{client.city} ended at {self.world.at(client)}, not at its home {home}")
        self._check(self.world.unanswered == 0, f"{self.world.unanswered} DNS queries got no answer")

    # ---- what happens to regions

    async def _kill(self, region: str) -> None:
        await self.world.gateways[region].kill()

    async def _fail(self, region: str) -> None:
        self.world.gateways[region].change("503", status=503)

    async def _restore(self, region: str) -> None:
        gateway = self.world.gateways[region]
        if gateway.trouble == "killed":
            await gateway.start()
        else:
            gateway.change("", status=200)

    async def _quicken(self, region: str) -> None:
        self.world.gateways[region].change("", extra_ms=0.0)

    # ---- how a chapter is told

    def _open(self, title: str, region: str) -> tuple[Chapter, list[Client]]:
        chapter = Chapter(title, region)
        self.chapters.append(chapter)
        clients = [client for client in self.world.clients if self.world.at(client) == region]
        self._check(bool(clients), f"{title}: nobody is there")
        self.say(f"{title}; there: {', '.join(client.city for client in clients)}")
        return chapter, clients

    def _notice(self, chapter: Chapter, clients: Sequence[Client], at: float, noticed: bool, first: float = 0.0) -> None:
        """Note when and by what it was noticed, and where everybody went with the very next pick; `first`: when the first one left."""
        region, lb = chapter.region, self.world.lb
        chapter.moved = {client.city: self.world.at(client) for client in clients}
        chapter.status = lb.status(region)
        if not self._check(noticed, f"{chapter.title}: not noticed"):
            return
        chapter.noticed, chapter.all_left = first, lb.clock() - at
        for change in [change for change in self.world.changes if change.region == region and change.at >= at][:1]:
            chapter.noticed, chapter.cause = change.at - at, change.cause
        self.say(f"  noticed after {chapter.noticed:.1f} s ({chapter.cause}), all gone after {chapter.all_left:.1f} s")
        for name in dict.fromkeys(chapter.moved.values()):
            self.say(f"  to {name}: {', '.join(city for city, region in chapter.moved.items() if region == name)}")

    def _next(self, rank: Sequence[str], without: str) -> list[str]:
        """Give where one may go: the next closest, and whatever follows while those before are still taking their groups back."""
        recovered = self.world.lb.clock() - RAMP
        right = []
        for name in rank:
            if name != without and self.world.lb.status(name) == "up":
                right.append(name)
                if not any(change.region == name and change.after == "up" and change.at > recovered for change in self.world.changes):
                    break
        return right

    def _count(self, chapter: Chapter, at: float) -> None:
        chapter.sent, chapter.lost = self.world.sent_since(at), self.world.lost_since(at)
        self.say(f"  {chapter.lost} of {chapter.sent} requests lost meanwhile")

    def _close(self, chapter: Chapter, end: Callable[[str], Any]) -> None:
        self._returns.append(asyncio.create_task(self._return(chapter, end)))

    async def _return(self, chapter: Chapter, end: Callable[[str], Any]) -> None:
        """End the trouble and wait until everybody whose home it is has returned."""
        at, clients = self.world.lb.clock(), [client for client, home in self.homes.items() if home == chapter.region]
        await end(chapter.region)
        self.say(f"{chapter.region} recovers")
        if self._check(await self._until(lambda: self.world.lb.status(chapter.region) == "up", 15.0), f"{chapter.region} does not come up"):
            chapter.up_again = self.world.lb.clock() - at if chapter.status != "up" else None
            back = await self._until(lambda: all(self.world.at(client) == chapter.region for client in clients), RETURNED_WITHIN)
            away = [client.city for client in clients if self.world.at(client) != chapter.region]
            if self._check(back, f"{', '.join(away)} did not return to {chapter.region}"):
                chapter.all_back = self.world.lb.clock() - at
                self.say(f"{chapter.region} has all its clients back, {chapter.all_back:.1f} s after it recovered")

    async def _settle(self, clients: Sequence[Client]) -> None:
        """Wait until DNS answers and requests have followed."""
        for client in clients:
            client.by_dns = client.by_http = ""
        followed = await self._until(lambda: all(map(self._served_where_picked, clients)), SETTLED_WITHIN)
        late = [client.city for client in clients if not self._served_where_picked(client)]
        self._check(followed, f"DNS or HTTP did not follow for {', '.join(late)}")

    def _served_where_picked(self, client: Client) -> bool:
        return client.by_dns == client.by_http == self.world.at(client)

    def _is_close(self, client: Client) -> bool:
        return client.published(self.world.at(client)) <= min(map(client.published, self.world.gateways)) * CLOSE_ENOUGH + 5.0

    def _check(self, right: bool, problem: str) -> bool:
        if not right:
            self.problems.append(problem)
            self.say(f"WRONG: {problem}")
        return right

    async def _until(self, true: Callable[[], bool], seconds: float) -> bool:
        """Wait until something holds, at most so long; say whether it does."""
        deadline = self.world.lb.clock() + seconds
        while not (holds := true()) and self.world.lb.clock() < deadline:
            await asyncio.sleep(0.02)
        return holds

    def summary(self) -> dict[str, Any]:
        """Give the story as plain JSON types."""
        world = self.world
        return {
            "ok": not self.problems,
            "problems": self.problems,
            "seconds": round(world.lb.clock() - self.began, 1),
            "requests": world.sent_since(0.0),
            "lost": world.lost_since(0.0),
            "dns_queries": world.queries,
            "clients": {
                client.city: {
                    "address": client.address, "group": world.lb.explain(client.address).key, "region": home,
                    "published_ms": client.published(home), "estimate_ms": round(world.estimate(client, home), 1),
                }
                for client, home in self.homes.items()
            },
            "chapters": [_rounded(asdict(chapter)) for chapter in self.chapters],
        }  # fmt: skip


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in values.items()}
