"""What the demo shows: tables of regions, of who goes where and why, and of what became of each chapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lbcore.demo.story import Story
from lbcore.demo.world import Client, World

__all__ = ["chapters", "clients", "live", "regions"]

EVENTS = 9
COLOURS = {"up": "green", "ejected": "yellow", "degraded": "yellow", "down": "red"}


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False, expand=False)
    for heading in headings:
        table.add_column(heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left", no_wrap=True)
    return table


def regions(world: World) -> Table:
    """Give the regions: gateway, status, what was done to them, what the probes measure, and how many clients they have."""
    table = _table("Regions", "region", "gateway", "status", "trouble", ">probe ms", ">clients")
    at = [world.at(client) for client in world.clients]
    for name, gateway in world.gateways.items():
        status = world.lb.status(name)
        text = Text(status, COLOURS.get(status, ""))
        table.add_row(name, f"127.0.0.1:{gateway.port}", text, Text(gateway.trouble, "red"), _probed(world, name), str(at.count(name)))
    return table


def _probed(world: World, region: str) -> str:
    result = world.prober.results.get(region)
    if result is None or result.first_byte_ms is None:
        return result.cause or "" if result else ""
    return f"{result.first_byte_ms:.0f}" if result.ok else str(result.cause)


def clients(world: World) -> Table:
    """Give who goes where and why: pick, DNS answer and last request, and the measured times that decided."""
    headings = ("client", "subnet", "located", "pick", "DNS", "HTTP", ">ms", ">published", "why")
    table = _table("Clients, and where they go", *headings)
    for client in world.clients:
        region, place = world.at(client), world.lb.explain(client.address).key
        followed = [_followed(seen, region) for seen in (client.by_dns, client.by_http)]
        table.add_row(
            client.city, str(client.subnet), place, region, *followed, f"{client.ms:.0f}", f"{client.published(region):.0f}",
            _why(world, client),
        )  # fmt: skip
    return table


def _followed(seen: str, region: str) -> Text:
    return Text("✓", "green") if seen == region else Text(seen or "…", "yellow")


def _why(world: World, client: Client) -> str:
    decision = world.lb.explain(client.address)
    first, *rest = decision.candidates
    others = [other for other in rest if other.eligible]
    down = [other.region for other in rest if not other.eligible and other.score_ms < first.score_ms]
    text = f"{first.estimate_ms:.0f} ms" + (f", next {others[0].region} {others[0].estimate_ms:.0f}" if others else "")
    if down:
        return f"{text}; {', '.join(down)} is {world.lb.status(down[0])}"
    return text + ("; about to move" if decision.pending else "")


def chapters(story: Story) -> Table:
    """Give what became of each trouble."""
    table = _table("What happened", "trouble", ">noticed", ">all gone", ">lost", "its clients went", ">up again", ">all back")
    for chapter in story.chapters:
        went = Counter(chapter.moved.values())
        table.add_row(
            chapter.title, _seconds(chapter.noticed), _seconds(chapter.all_left), f"{chapter.lost} of {chapter.sent}",
            ", ".join(f"{count} to {region}" for region, count in went.items()), _seconds(chapter.up_again), _seconds(chapter.all_back),
        )  # fmt: skip
    return table


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.1f} s"


def live(world: World, events: Sequence[str]) -> RenderableType:
    """Give the whole screen; a terminal that is too low cuts off the clients."""
    counts = f"{world.sent_since(0.0):,} requests, {world.lost_since(0.0)} lost; {world.queries:,} DNS queries; Ctrl-C ends it"
    story = Panel("\n".join(events[-EVENTS:]), title="Events", title_align="left", height=EVENTS + 2)
    return Group(regions(world), Text(counts, "dim"), Text(), story, clients(world))
