"""A front door in a process of its own, so that a test sees what it holds: `async with apart(url) as door: door.holds()`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Door:
    """The other process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process, self.port = process, port

    async def holds(self) -> dict[str, Any]:
        """Give its connections, tasks and counters."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"\n")
        found: dict[str, Any] = json.loads(await asyncio.wait_for(self._process.stdout.readline(), 30))
        return found

    def kilobytes(self, which: str = "VmRSS") -> int:
        """Give its memory: VmRSS now, VmHWM at most so far."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(text.partition(f"{which}:")[2].split()[0])


@asynccontextmanager
async def apart(url: str, **options: Any) -> AsyncIterator[Door]:
    """Start a front door with one gateway. options: timeouts (of lbcore.http.forward.Timeouts)."""
    pipe = asyncio.subprocess.PIPE
    arguments = [sys.executable, str(Path(__file__)), url, json.dumps(options)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(*arguments, stdin=pipe, stdout=pipe, env=environment, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield Door(process, int(await asyncio.wait_for(process.stdout.readline(), 30)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def main(url: str, options: dict[str, Any]) -> None:
    """Serve, and answer each line of the standard input."""
    import lbcore
    from lbcore.http.forward import Timeouts
    from lbcore.http.front import FrontDoor

    resource.setrlimit(resource.RLIMIT_NOFILE, (hard := resource.getrlimit(resource.RLIMIT_NOFILE)[1], hard))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    lb = lbcore.Balancer([lbcore.Region("westeurope", gateway=url)])
    async with FrontDoor(lb, timeouts=Timeouts(**options.get("timeouts", {}))) as door:
        print((await door.listen("127.0.0.1", 0, backlog=4096))[1], flush=True)
        while await reader.readline():
            gc.collect()
            upstreams = sum(len(upstream.open) for upstream in door.engine.upstreams.values())
            held = {"inbounds": len(door.engine.inbounds), "relays": len(door.engine.relays), "upstreams": upstreams}
            print(json.dumps(held | {"tasks": len(asyncio.all_tasks()), "counters": door.counters}), flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(sys.argv[1], json.loads(sys.argv[2])))
