"""`lbcore demo`: a whole service on loopback with injected round trips, real probes, DNS and HTTP, and a scripted outage.

`world` is what runs, `story` what happens in it, `view` what is shown. Nothing but the round trips is made up.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lbcore.demo import view
from lbcore.demo.story import Story
from lbcore.demo.world import World

__all__ = ["play_once", "watch"]

FRAMES = 4  # per second
PAUSE = 6.0  # seconds between two performances
OPENING = (
    "Seven regions as HTTP gateways on loopback; each answers a client as late as the published matrix says for where that client lives.\n"
    "Real probes every second, DNS queries with client subnets over UDP, requests through the httpx transport, beacons at the clients'."
)


async def play_once(console: Console) -> dict[str, Any]:
    """Play the story and print it; give its summary, whose "ok" says whether it came out right."""
    console.print(OPENING + "\n")
    async with World() as world:
        story = Story(world, lambda line: console.print(_line(story, line)))
        await story.opening()
        console.print(view.regions(world), "", view.clients(world), "", sep="\n")
        await story.troubles()
        await story.ending()
        console.print("", view.chapters(story), "", view.clients(world), "", sep="\n")
    summary = story.summary()
    counts = f"{summary['requests']} requests, {summary['lost']} lost; {summary['dns_queries']} DNS queries; {summary['seconds']} s."
    verdict = "The story came out right" if summary["ok"] else f"The story went WRONG, {len(summary['problems'])} times"
    console.print(f"{verdict}: {counts}")
    return summary


async def watch(console: Console) -> None:
    """Show the world until cancelled, with the story played over and over; plain lines where there is no terminal."""
    events: list[str] = []
    async with World(hold_down_seconds=0.0) as world:  # who watches for minutes sees regions fail too often for it

        def tell(line: str) -> None:
            events.append(_line(story, line).plain)
            if not console.is_terminal:
                console.print(events[-1])

        story = Story(world, tell)
        playing = asyncio.create_task(_play_for_ever(story))
        try:
            with Live(view.live(world, events), console=console, screen=console.is_terminal, auto_refresh=False) as screen:
                while not playing.done():
                    screen.update(view.live(world, events), refresh=console.is_terminal)
                    await asyncio.sleep(1 / FRAMES)
            await playing
        finally:
            playing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await playing


async def _play_for_ever(story: Story) -> None:
    await story.opening()
    while True:
        await asyncio.sleep(PAUSE)
        await story.troubles()
        await story.ending()


def _line(story: Story, text: str) -> Text:
    return Text(f"{story.world.lb.clock() - story.began:6.1f} s  {text}", "red" if text.startswith("WRONG") else "")
