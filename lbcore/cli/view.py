"""View: what a node sees of the regions, as it tells its primary: health, calls, what is under way, what was learned, what happened."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lbcore.http.metrics import Book
from lbcore.learned import Learned
from lbcore.region import canonical

if TYPE_CHECKING:
    from lbcore.cli.generation import Generation

__all__ = ["View"]

LEARNED_EVERY = 5.0  # seconds
MOST_LEARNED = 700_000  # bytes: a report has room for so many in base64
MOST_EVENTS = 100


class View:
    """Gather reports. books: of calls, by role"""

    def __init__(self, books: Mapping[str, Book]) -> None:
        self._books = books
        self._events: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self._learned_at = 0.0

    def note(self, change: Mapping[str, Any]) -> None:
        """Take notice of a region's change."""
        kept = {key: str(change[key])[:200] for key in ("region", "before", "after", "cause")}
        self._events.append({"at": round(time.time(), 3)} | kept)

    async def report(self, current: Generation, leaving: Sequence[Generation], rotation: str | None) -> dict[str, Any]:
        """Give a report's body, but for the edge's name and time."""
        busy = await _busy(current, leaving)
        calls = self._books["front-door"].by_name()
        own = self._own(current)
        regions = {}
        for region in current.lb.regions:
            ended, failed = calls.get(region.name, (0, 0))
            under_way = (busy[region.name] if busy is not None else 0) + own.get(region.name, 0)
            regions[region.name] = {"status": current.lb.status(region), "calls": ended, "failures": failed, "inflight": under_way}
        idle = [name for name in regions if name in current.settings.draining and busy is not None and not regions[name]["inflight"]]
        body = {"rotation": rotation, "regions": regions, "idle": idle, "events": [*self._events]}
        return body | await self._learned(current)

    def reported(self, body: Mapping[str, Any]) -> None:
        """Forget what the primary knows now."""
        for event in body["events"]:
            if event in self._events:
                self._events.remove(event)
        if "learned" in body:
            self._learned_at = time.monotonic()

    def _own(self, current: Generation) -> dict[str, int]:
        """Give how many calls are under way in this node's own gateway, by its region."""
        section = current.settings.document.gateway if "gateway" in current.crews else None
        return {canonical(section.region): self._books["gateway"].totals()["under_way"]} if section is not None else {}

    async def _learned(self, current: Generation) -> dict[str, str]:
        if time.monotonic() - self._learned_at < LEARNED_EVERY:
            return {}
        state = (await asyncio.to_thread(Learned.of, current.lb)).state
        return {"learned": base64.b64encode(state).decode()} if 0 < len(state) <= MOST_LEARNED else {}


async def _busy(current: Generation, leaving: Sequence[Generation]) -> Counter[str] | None:
    """Give the calls under way to regions from all generations, None when one of them does not say."""
    found = Counter[str]()
    for each in (current, *leaving):
        told = await each.busy()
        if told is None:
            return None
        found += told
    return found
