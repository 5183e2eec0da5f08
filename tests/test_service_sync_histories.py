"""Random histories of publishing, rolling back, restoring, outages, lies and restarts: forwards only, never a mix, and all end alike."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Collection
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from service_worlds import contoso, running
from syncing import INTERVAL, World, body, in_virtual_time, loop_of_now

from lbcore.http.gateway import Gateway
from lbcore.service.backup import backup, restore
from lbcore.service.configuration import Latest, Report, SourceUnreachableError, Tag
from lbcore.service.primary import Primary
from lbcore.service.revisions import Number
from lbcore.service.store import Store
from lbcore.service.sync import Source, State

REGIONS = 2
ACTIONS = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from("abcd")),
    st.tuples(st.just("rollback"), st.integers(0, 3)),
    st.tuples(st.sampled_from(["backup", "restore", "primary restarts", "win"]), st.just(0)),
    st.tuples(st.sampled_from(["refuse", "hang", "lie", "up", "up"]), st.integers(0, REGIONS - 1)),
    st.tuples(st.just("gateway restarts"), st.integers(0, REGIONS - 1)),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.6, 3.0, 11.0, 45.0, 100.0])),
)


class Way:
    """The way of one region to the primary: "up", "refuse", "hang" or "lie"."""

    def __init__(self, history: History) -> None:
        self.history, self.mode = history, "up"

    async def latest(self, known: Collection[Tag] = (), report: Report | None = None) -> Latest | None:
        await self._pass()
        if self.mode == "lie":
            return Latest(Tag(Number(10**9, 1), "0" * 64), b"{}")
        return await self.history.primary.latest(known, report)

    async def watch(self, known: Collection[Tag] = ()) -> bool:
        await self._pass()
        async with asyncio.timeout(25.0):  # not wait_for, which before Python 3.12 may lose a cancellation
            return await self.history.primary.watch(known)

    async def _pass(self) -> None:
        if self.mode == "hang":
            await asyncio.sleep(1e9)
        if self.mode == "refuse":
            raise SourceUnreachableError("connection refused")


class History:
    """A primary, its regions, and what must be true of them at every moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store.sqlite")
        self.store.save(running(contoso()), who="x", what="create")
        self.primary = Primary(self.store)
        self.published: dict[Tag, bytes] = {}
        self.ways: list[Way] = [Way(self) for _ in range(REGIONS)]
        self.worlds: list[World] = []
        self.stacks: list[AsyncExitStack] = []
        self.seen: list[Number] = [Number(0, 0)] * REGIONS

    async def start(self, region: int) -> None:
        """Start a region's gateway from what it kept."""
        loop = loop_of_now()
        gateway = Gateway("westeurope", keep=self.folder / f"kept{region}", clock=loop.time)
        source: Source = self.ways[region]
        world, stack = World(source, loop, gateway=gateway, draw=0.3 + region / 10), AsyncExitStack()  # type: ignore[arg-type]
        self.worlds[region : region + 1], self.stacks[region : region + 1] = [world], [stack]
        held = world.sync.held
        assert (held.number if held else Number(0, 0)) == self.seen[region]  # what was applied is what was kept
        await stack.enter_async_context(world)

    async def act(self, action: str, about: Any) -> None:
        if action == "publish":
            await self.primary.put(body(about), who="x")
        elif action == "rollback":
            if newest := self.store.revisions.newest():
                await self.primary.rollback(newest[about % len(newest)].number, who="x")
        elif action == "backup":
            (self.folder / "backup.zip").unlink(missing_ok=True)
            backup(self.store, self.folder / "backup.zip")
        elif action == "restore":
            if (self.folder / "backup.zip").exists():
                restore(self.store, self.folder / "backup.zip", name="contoso", tier="Premium", who="x")
        elif action == "primary restarts":
            self.primary = Primary(self.store)
        elif action == "win":
            await self.primary.win(who="x", why="y")
        elif action == "gateway restarts":
            await self.stacks[about].aclose()
            await self.start(about)
        elif action == "wait":
            await asyncio.sleep(about)
        else:
            self.ways[about].mode = action
        if (offered := await self.primary.latest()) is not None and offered.body is not None:
            assert self.published.setdefault(offered.tag, offered.body) == offered.body

    def check(self) -> None:
        for region, world in enumerate(self.worlds):
            revision = world.gateway.revision
            if revision is None:
                assert self.seen[region] == (0, 0) and world.sync.state in (State.EMPTY, State.SYNCING)
                continue
            held = world.sync.held
            assert held is not None and held.number >= self.seen[region]
            assert revision.configuration.canonical == self.published[held]
            assert world.gateway.status()[0] == 200
            self.seen[region] = held.number

    async def end(self) -> None:
        """All is well again: after an interval, its jitter and the end of a look that hung, every region has the latest revision."""
        for way in self.ways:
            way.mode = "up"
        await asyncio.sleep(INTERVAL * 1.2 + 10.0 + 1.0)
        offered = await self.primary.latest()
        for world in self.worlds:
            assert world.sync.held == (offered and offered.tag)
            assert world.sync.state is (State.IN_SYNC if offered else State.EMPTY)


@settings(max_examples=max(1, settings().max_examples // 4))
@given(st.lists(ACTIONS, max_size=25))
def test_forwards_only_never_a_mix_and_all_end_alike(actions: list[tuple[str, Any]]) -> None:
    async def main(folder: Path) -> None:
        history = History(folder)
        try:
            for region in range(REGIONS):
                await history.start(region)
            for action, about in actions:
                await history.act(action, about)
                history.check()
            await history.end()
            history.check()
        finally:
            for stack in history.stacks:
                await stack.aclose()
            await asyncio.sleep(0)
            history.store.close()

    with tempfile.TemporaryDirectory() as folder:
        in_virtual_time(main(Path(folder)))
