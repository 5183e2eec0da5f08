"""A small forwarding proxy: every connection goes to the closest healthy gateway, and teaches the balancer how that went.

    python examples/forwarding_proxy.py examples/five-regions.toml 8080

TCP in, TCP out: the bytes are not looked at. What it measures is the time to connect, which is one round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from urllib.parse import urlsplit

import lbcore
from lbcore.sense.probe import Prober

CONNECT_TIMEOUT = 1.0


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until the sender ends."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


async def connect(lb: lbcore.Balancer, client: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the client's region, or to the next closest when that fails; each try is measured and reported."""
    for _ in range(3):
        with contextlib.suppress(OSError, TimeoutError), lb.attempt(client) as attempt:
            url = urlsplit(attempt.region.gateway)
            port = url.port or (443 if url.scheme == "https" else 80)
            return await asyncio.wait_for(asyncio.open_connection(url.hostname, port), CONNECT_TIMEOUT)
    raise ConnectionError(f"no gateway answered for {client}")


async def serve(lb: lbcore.Balancer, inward: asyncio.StreamReader, outward: asyncio.StreamWriter) -> None:
    client = outward.get_extra_info("peername")[0]
    try:
        from_gateway, to_gateway = await connect(lb, client)
        try:
            await asyncio.gather(pump(inward, to_gateway), pump(from_gateway, outward))
        finally:
            to_gateway.close()
    except OSError as error:
        print(f"{client}: {error}", file=sys.stderr)
    finally:
        outward.close()


async def main(config: str, port: int) -> None:
    lb = lbcore.Balancer.from_toml(config)
    lb.on_change(lambda change: print(f"{change.region}: {change.before} -> {change.after} ({change.cause})", flush=True))
    prober = Prober(lb)
    await prober.first_round()
    server = await asyncio.start_server(functools.partial(serve, lb), "127.0.0.1", port)
    print(f"serving on {server.sockets[0].getsockname()}", flush=True)
    async with server, asyncio.TaskGroup() as tasks:
        tasks.create_task(prober.run())
        tasks.create_task(server.serve_forever())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
