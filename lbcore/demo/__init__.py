"""`lbcore demo`: a whole service on loopback, in processes of its own: primary with portal, regions' gateways, front door and DNS, clients.

    places   regions, clients, published round trips       backend   the API behind the gateways, as late as those say
    world    what runs, and how it is killed               traffic   what clients do and see
    management  what the operator does, by REST            story     what happens, what is promised, what is seen
    guard    ends it all                                   view      what is shown
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lbcore.demo import view
from lbcore.demo.story import PROMISE, BrokenError, Story
from lbcore.demo.world import World

__all__ = ["BrokenError", "play_once", "watch"]

FRAMES = 4  # per second
LOOK_EVERY = 1.0  # seconds between two looks at regions and their health
OPENING = (
    "A whole service on loopback, in processes of its own: a primary with portal and REST API, every region's gateway, an\n"
    "edge with front door and DNS; and clients on six continents. The API behind the gateways answers each client as late\n"
    "as the published round trips say. Nothing else is made up."
)
YOURS = "The story is over, the service is yours: add and remove regions in the portal, kill a gateway, see who goes where"


async def play_once(console: Console) -> dict[str, Any]:
    """Play the story and print it; give its summary, whose "ok" says whether it came out right."""
    console.print(OPENING + "\n")
    async with World() as world:
        if not console.record:  # a picture is for others
            console.print(view.doors(world), "", sep="\n")
        story = Story(world, lambda line, style: console.print(_line(story, line, style)))
        with contextlib.suppress(BrokenError):
            async with story.playing():
                await story.rest()
        tables = view.regions(world, await world.statuses()), view.clients(world), view.chapters(story)
        console.print("", tables[0], "", tables[1], "", tables[2], "", sep="\n")
    summary = story.summary()
    verdict = "The story came out right" if summary["ok"] else f"The story went WRONG in {len(summary['problems'])} things"
    console.print(f"{verdict}: {view.counts(story)}; {summary['seconds']} s.")
    return summary


async def watch(console: Console) -> None:
    """Show the world until cancelled: first the story, then what the user makes of it; plain lines where there is no terminal."""
    events: list[str] = []
    statuses: dict[str, str] = {}
    async with World(usual=True) as world:

        def tell(line: str, style: str) -> None:
            events.append(_line(story, line, style).plain)
            if not console.is_terminal:
                console.print(events[-1])

        if not console.is_terminal:
            console.print(view.doors(world))
        story = Story(world, tell)
        works = [asyncio.create_task(_play(story)), asyncio.create_task(_look(world, statuses))]
        try:
            with Live(view.live(story, events, statuses), console=console, screen=console.is_terminal, auto_refresh=False) as screen:
                while not any(work.done() for work in works):
                    screen.update(view.live(story, events, statuses), refresh=console.is_terminal)
                    await asyncio.sleep(1 / FRAMES)
            await asyncio.gather(*works)
        finally:
            for work in works:
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(works)


async def _play(story: Story) -> None:
    async with story.playing():
        await story.rest()
        story.say(YOURS, "bold")
        await asyncio.Event().wait()


async def _look(world: World, statuses: dict[str, str]) -> None:
    """Follow what the management plane and the edge say."""
    while True:
        await world.refresh()
        found = await world.statuses()
        statuses.clear()
        statuses.update(found)
        await asyncio.sleep(LOOK_EVERY)


def _line(story: Story, text: str, style: str) -> Text:
    return Text(f"{' ' * 10 if style == PROMISE else f'{story.now:6.1f} s  '}{text}", style)
