"""Notices: who wants to know is told what changed, not how: of several changes of one kind that nobody took yet, one is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, get_args

__all__ = ["KINDS", "Notice", "Notices", "Subscription"]

Notice = Literal["state", "operation", "statuses", "configuration", "rotation", "events"]
KINDS: tuple[Notice, ...] = get_args(Notice)


class Subscription:
    """What one of those who want to know has not taken yet; never longer than there are kinds."""

    def __init__(self) -> None:
        self._waiting: dict[Notice, None] = {}
        self._news = asyncio.Event()

    async def get(self) -> Notice:
        """Wait for the next notice."""
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        first = next(iter(self._waiting))
        del self._waiting[first]
        return first

    def put(self, kind: Notice) -> None:
        """Add a notice, unless one of its kind waits already."""
        self._waiting[kind] = None
        self._news.set()


class Notices:
    """Tell everybody who subscribed; on one event loop."""

    def __init__(self) -> None:
        self._all: set[Subscription] = set()

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[Subscription]:
        """Be told for the time of an `async with`."""
        mine = Subscription()
        self._all.add(mine)
        try:
            yield mine
        finally:
            self._all.discard(mine)

    def tell(self, *kinds: Notice) -> None:
        """Tell everybody."""
        for one in self._all:
            for kind in kinds:
                one.put(kind)
