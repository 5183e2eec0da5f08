"""The API that the demo publishes, a process of its own: it answers as late as a client and the region by which it came are apart.

Started as a script, so it imports nothing but the standard library. Its first line on stdin is the JSON of all round trips, by client's
address and region; its first on stdout the port it got. It ends when stdin does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

__all__ = ["REGION", "RoundTrips", "answer", "answer_to"]

REGION = "x-region"  # the header in which the published policy says by which region a call came
RoundTrips = dict[str, dict[str, float]]


async def answer(round_trips: RoundTrips, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the requests of one connection. round_trips: ms by client's address, then by region"""
    with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        while True:
            headers = _headers(await reader.readuntil(b"\r\n\r\n"))
            client, region = headers.get("x-forwarded-for", "").split(",")[0].strip(), headers.get(REGION, "")
            await asyncio.sleep(round_trips.get(client, {}).get(region, 0.0) / 1000)
            body = answer_to(client, region).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
    writer.close()


def answer_to(client: str, region: str) -> str:
    """Give what a client is answered that came by a region."""
    return json.dumps({"client": client, "region": region})


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


async def _main() -> None:
    round_trips: RoundTrips = json.loads(sys.stdin.readline())
    server = await asyncio.start_server(lambda reader, writer: answer(round_trips, reader, writer), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(ended), sys.stdin)
    await ended.read()


if __name__ == "__main__":
    asyncio.run(_main())
