"""Server-sent events of the portal over a real server: the Overview's parts, an operation's steps, how many there may be, when they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from portaling import Service, Visitor, added, field, listening, operator, play, rows, sent

from lbcore.service.portal.live import NAMES
from lbcore.service.portal.streams import STREAMS_OF_ONE

pytestmark = pytest.mark.slow
LIMIT = 30.0  # seconds


class Events:
    """An open stream: what has come so far, by name."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.text = ""
        self.ended = asyncio.Event()
        self._more = asyncio.Event()

    async def read(self, lines: AsyncIterator[str]) -> None:
        async for line in lines:
            if line.startswith("event: "):
                self.names.append(line.removeprefix("event: "))
            self.text += f"{line}\n"
            self._more.set()
        self.ended.set()

    async def has(self, text: str) -> None:
        async with asyncio.timeout(LIMIT):
            while text not in self.text:
                self._more.clear()
                await self._more.wait()


@asynccontextmanager
async def opened(visitor: Visitor, path: str = "/portal/events", **headers: str) -> AsyncIterator[Events]:
    async with visitor.client.stream("GET", path, headers={"Accept": "text/event-stream"} | headers, timeout=LIMIT) as answer:
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
        events = Events()
        reading = asyncio.create_task(events.read(answer.aiter_lines()))
        try:
            yield events
        finally:
            reading.cancel()
            await asyncio.wait({reading})


def test_the_overview_is_live(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        async with listening(made.app) as url:
            visitor = await operator(made, base=url)
            async with opened(visitor) as one, opened(visitor) as two:
                await one.has("West Europe: Online")
                assert sorted(set(one.names)) == sorted(NAMES)
                made.regions.down.add("westeurope")
                for events in (one, two):
                    await events.has("West Europe is out of rotation")
                    await events.has("West Europe: Degraded")
                made.store.events.add("SomethingNew", "westeurope", count=3)
                await one.has("something new: count 3")

    play(tmp_path, story, "westeurope")


def test_an_operation_is_followed_to_its_end(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        async with listening(made.app) as url:
            visitor = await operator(made, base=url)
            made.regions.slow = 0.3
            made.regions.broken.add("eastasia")
            fields, there = await rows(visitor)
            wanted = sent(fields, [*there, added("westeurope"), added("eastasia")])
            shown = await visitor.post("/portal/plan", wanted)
            saved = await visitor.post("/portal/save", wanted | {"digest": field(shown.text, "digest")})
            path = saved.text.partition('sse-connect="')[2].partition('"')[0]
            async with opened(visitor, path) as events:
                async with asyncio.timeout(LIMIT):
                    await events.ended.wait()
            assert events.names[-2:] == ["steps", "done"]
            for text in ("Activating", "PartiallySucceeded", "quota exceeded"):
                assert text in events.text
            async with opened(visitor, path) as again:  # it is over already
                async with asyncio.timeout(LIMIT):
                    await again.ended.wait()
            assert again.names == ["steps", "done"]
            assert "quota exceeded" in (await visitor.get("/portal/scale-and-pricing/locations")).text

    play(tmp_path, story)


def test_streams_end_with_the_session_and_with_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbcore.service.portal.entrance.STILL", 0.1)

    async def story(made: Service) -> None:
        async with listening(made.app) as url:
            ana, ben = await operator(made, base=url), await operator(made, "reader", base=url)
            async with opened(ana) as of_ana, opened(ben) as of_ben:
                await of_ana.has("Online")
                await of_ben.has("Online")
                await ana.post("/portal/logout", {"csrf": ana.csrf}, hx=False)
                made.store.tokens.revoke(made.tokens["reader"].split("_")[1], who="test")
                for events in (of_ana, of_ben):
                    async with asyncio.timeout(LIMIT):
                        await events.ended.wait()
                    assert "You have been signed out" in events.text

    play(tmp_path, story)


def test_one_session_has_only_so_many_streams(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        async with listening(made.app) as url:
            visitor = await operator(made, base=url)
            for _ in range(3):  # again and again: those that went away are not counted
                streams = [opened(visitor) for _ in range(STREAMS_OF_ONE)]
                for each in streams:
                    await (await each.__aenter__()).has("Online")
                refused = await visitor.get("/portal/events", headers={"Accept": "text/event-stream"})
                assert (refused.status_code, int(refused.headers["retry-after"])) == (503, 30)
                for each in streams:
                    await each.__aexit__(None, None, None)
                async with asyncio.timeout(LIMIT):
                    while made.portal.live.board.watched:
                        await asyncio.sleep(0.01)

    play(tmp_path, story)


def test_the_server_ends_though_pages_are_open(tmp_path: Path) -> None:
    async def story(made: Service) -> None:
        async with listening(made.app) as url:
            visitor = await operator(made, base=url)
            streaming = opened(visitor)
            events = await streaming.__aenter__()
            await events.has("Online")
            made.portal.close()  # what whoever ends the server does
        async with asyncio.timeout(LIMIT):
            await events.ended.wait()
        await streaming.__aexit__(None, None, None)

    play(tmp_path, story)
