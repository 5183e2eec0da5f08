"""`lbcore run` that follows a primary: processes, a primary that dies and comes back, an edge that dies meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from edging import SERVICE, Primary, Rotations, body, offer, region
from running import Load, Run, Start, gateways, start

__all__ = ["start"]
pytestmark = pytest.mark.slow


def edge(primary: Primary, more: str = "") -> str:
    """Give an edge's file."""
    return f"""
[service]
name = "{SERVICE}"
[http]
listen = "127.0.0.1:0"
workers = 2
[dns]
listen = "127.0.0.1:0"
[sync]
primary = "{primary.url}"
token = "token"
interval = 1.0
name = "edge-1"
{more}
"""


def at(number: int, *regions: Mapping[str, Any], **more: Any) -> Any:
    return offer(body((1, number), *regions, **more))


async def begun(start: Start, text: str, **options: Any) -> Run:
    run = await start(text, serves=False, files={"token": "s3cret\n"}, **options)
    run.file("token").chmod(0o600)
    return run


async def test_x(start: Start) -> None:
    async with gateways("westeurope", "eastus") as (first, second):
        a, b = (region(one.name, f"http://127.0.0.1:{one.port}", [f"192.0.2.{at}"]) for at, one in enumerate((first, second), 1))
        primary = await Primary(Rotations(at(1, a, b))).start()
        run = await begun(start, edge(primary))
        run.ready = await run.says("ready")
        async with Load(run.address()) as load:
            await load.more(200)
            primary.rotations.publish(at(2, a | {"enabled": False}, b))
            found = await run.says("rotation")
            print(found)
            await load.more(200)
            primary.rotations.publish(at(3, a, b, region("westus2", a["gateway"])))
            print(await run.says("rotation", 2))
            await load.more(200)
        print(load.lost, load.unconnected, load.statuses, load.bodies)
        print(primary.rotations.reports[-1] if primary.rotations.reports else None)
        print(*run.lines, sep="\n")
        await primary.kill()
