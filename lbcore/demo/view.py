"""What the demo shows: where everything is, tables of regions and of who goes where, and what was promised and seen in each chapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lbcore.demo.story import Story
from lbcore.demo.world import World

__all__ = ["chapters", "clients", "counts", "doors", "live", "regions"]

EVENTS = 9
COLOURS = {"up": "green", "ejected": "yellow", "degraded": "yellow", "draining": "yellow", "down": "red", "killed": "red"}


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False, expand=False)
    for heading in headings:
        table.add_column(heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left", no_wrap=True)
    return table


def doors(world: World) -> Table:
    """Give where one can go in, and with which token."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, where in (
        ("portal", world.portal), ("owner's token", world.token), ("developer portal", world.developer),
        ("front door", f"curl -i -H 'X-Forwarded-For: 128.250.1.1' {world.url}"), ("DNS", world.dig), ("files", str(world.folder)),
    ):  # fmt: skip
        table.add_row(Text(name, "dim"), Text(where, overflow="fold"))
    return table


def regions(world: World, statuses: Mapping[str, str]) -> Table:
    """Give the regions: what the management plane says of them, what the edge does, and how many clients they have."""
    table = _table("Regions", "region", "deployed", "at the edge", "gateway", "address", ">clients")
    at = Counter(client.by_http for client in world.traffic.clients)
    for name, row in world.locations.items():
        status = "killed" if name in world.down else statuses.get(name, "")
        table.add_row(
            name + (" (primary)" if row["primary"] else ""), row["provisioningState"], Text(status, COLOURS.get(status, "")),
            row["gatewayAddress"] or "", ", ".join(row["publicIPAddresses"]), str(at[name]),
        )  # fmt: skip
    return table


def clients(world: World) -> Table:
    """Give who goes where: answers of DNS and of the API, how long it took, and what is published."""
    table = _table("Clients, and where they go", "client", "subnet", "DNS", "HTTP", ">ms", ">published", "revision", "next closest")
    for client in world.traffic.clients:
        others = [name for name in client.rank(world.serving) if name != client.by_http][:1]
        agrees = Text("✓", "green") if client.by_http == client.by_dns != "" else Text(client.by_http or "…", "yellow")
        table.add_row(
            client.city, str(client.subnet), client.by_dns, agrees, f"{client.ms:.0f}",
            f"{client.published(client.by_http):.0f}" if client.by_http else "", client.revision,
            "".join(f"{name} {client.published(name):.0f} ms" for name in others),
        )  # fmt: skip
    return table


def chapters(story: Story) -> Table:
    """Give which promises were kept."""
    table = _table("What happened", "", ">seconds", ">calls", ">lost", "as promised")
    for one in story.chapters:
        kept = Text(f"no: {len(one.problems)} things", "red") if one.problems else Text("yes", "green")
        table.add_row(one.title, f"{one.seconds:.1f}", str(one.sent), str(one.lost), kept)
    return table


def counts(story: Story) -> str:
    """Give how much was asked, and how much of it was not answered."""
    traffic = story.traffic
    return f"{traffic.calls:,} calls, {traffic.lost} lost; {traffic.queries:,} DNS queries, {traffic.unanswered} unanswered"


def live(story: Story, events: Sequence[str], statuses: Mapping[str, str]) -> RenderableType:
    """Give the whole screen; a terminal that is too low cuts off the clients."""
    world, told = story.world, Text(f"{counts(story)}; Ctrl-C ends it", "dim")
    panel = Panel(Text("\n".join(events[-EVENTS:])), title="Events", title_align="left", height=EVENTS + 2)
    return Group(doors(world), Text(), regions(world, statuses), told, Text(), panel, clients(world))
