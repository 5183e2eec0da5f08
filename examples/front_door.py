"""A front door inside somebody's own asyncio program: its clients go to the closest healthy gateway, its own work goes on beside.

    python examples/front_door.py examples/five-regions.toml 8080
    curl -i http://127.0.0.1:8080/

The front door serves while the block runs, and shares one balancer with whatever else the program does with it: here, a prober and a
line every ten seconds. `curl -i -H 'X-Lbcore-Explain: 1'` from this machine is told the reasons.
"""

from __future__ import annotations

import asyncio
import sys

import lbcore
from lbcore.http.front import FrontDoor
from lbcore.sense.probe import Prober


async def own_work(lb: lbcore.Balancer, door: FrontDoor) -> None:
    """Stand for what the program is there for."""
    while True:
        await asyncio.sleep(10)
        print(f"this machine would use {lb.pick(None).name}; {door.counters}", flush=True)


async def main(config: str, port: int) -> None:
    lb = lbcore.Balancer.from_toml(config)
    lb.on_change(lambda change: print(f"{change.region}: {change.before} -> {change.after} ({change.cause})", flush=True))
    async with FrontDoor(lb, explain_to=["127.0.0.0/8"]) as door, asyncio.TaskGroup() as tasks:
        host, port = await door.listen("127.0.0.1", port)
        print(f"serving on http://{host}:{port}", flush=True)
        tasks.create_task(Prober(lb).run())
        tasks.create_task(own_work(lb, door))


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        run = asyncio.run  # works the same, at more processor time a request
    else:
        run = uvloop.run
    run(main(sys.argv[1], int(sys.argv[2])))
