"""One region's gateway, a process of its own that the demo can kill: HTTP/1.1 on loopback, every answer as late as its round trip.

Started as a script, so it imports nothing but the standard library. Its first line on stdin is the JSON of what it is, its first on stdout
the port it got; further lines on stdin change it. It ends when stdin does, so it never outlives the demo.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import Any

__all__ = ["ORIGIN", "Gateway"]

ORIGIN = "x-demo-origin"  # the header that says where a request comes from


class Gateway:
    """Answer every request after the round trip of its origin and `extra_ms`, with `status`."""

    def __init__(self, region: str, round_trips: dict[str, float], port: int = 0) -> None:
        self.region, self.round_trips, self.port = region, round_trips, port
        self.status, self.extra_ms = 200, 0.0

    def change(self, **settings: Any) -> None:
        """Set `status` or `extra_ms`."""
        for name, value in settings.items():
            setattr(self, name, value)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            while True:
                headers = _headers(await reader.readuntil(b"\r\n\r\n"))
                await asyncio.sleep((self.round_trips.get(headers.get(ORIGIN, ""), 0.0) + self.extra_ms) / 1000)
                body = json.dumps({"region": self.region}).encode()
                head = f"HTTP/1.1 {self.status} -\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                close = headers.get("connection") == "close"
                writer.write(head.encode() + (b"connection: close\r\n" if close else b"") + b"\r\n" + body)
                await writer.drain()
                if close:
                    break
        writer.close()


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


async def _main() -> None:
    gateway = Gateway(**json.loads(sys.stdin.readline()))
    server = await asyncio.start_server(gateway.serve, "127.0.0.1", gateway.port)
    print(server.sockets[0].getsockname()[1], flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        gateway.change(**json.loads(line))


if __name__ == "__main__":
    asyncio.run(_main())
