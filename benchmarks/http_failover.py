"""What clients see of a gateway that dies: requests at a fixed rate through a front door, and one of its gateways killed or stopped.

    python benchmarks/http_failover.py                       killed (refuses), then stopped (swallows)
    python benchmarks/http_failover.py --rate 1000 --patience 0.5

Three gateways, one front door and the clients are processes of their own on loopback. Clients speak for 200 networks (a trusted
X-Forwarded-For), 80 % GET and 20 % POST, each request at its time whether or not the others are answered. After two seconds the
nearest gateway gets SIGKILL or SIGSTOP; four seconds later it comes back. Printed: failures by method, the slowest answers, when the
region was out after the first sign, how its share came back, and how often it changed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

NAMES = ("westeurope", "eastus", "japaneast")
PORT = 18_950
HERE = str(Path(__file__))
BROKEN, BACK = 2.0, 6.0


class Gateway(asyncio.Protocol):
    """Answer every request with the gateway's name. Heads come whole on loopback."""

    name = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(self.name), self.name)
        self.transport.write(answer * data.count(b"HTTP/1.1\r\n"))  # type: ignore[attr-defined]


async def serve_gateway(index: int) -> None:
    """Serve one gateway."""
    Gateway.name = NAMES[index].encode()
    server = await asyncio.get_running_loop().create_server(Gateway, "127.0.0.1", PORT + 1 + index, reuse_port=True)
    await server.serve_forever()


async def serve_front(patience: float) -> None:
    """Serve the front door, with a prober beside it; prints every change and when it was."""
    import lbcore
    from lbcore.http.front import FrontDoor
    from lbcore.sense.monitor import Monitor
    from lbcore.sense.probe import Prober

    lb = lbcore.Balancer([lbcore.Region(name, gateway=f"http://127.0.0.1:{PORT + 1 + index}") for index, name in enumerate(NAMES)])
    for group in range(lb.table.groups):
        for index in range(len(NAMES)):
            lb.table.seed(group, index, 5.0 + 20 * index, 2.0)
    lb.tick()
    lb.on_change(lambda change: print(time.monotonic(), change.region, change.after, change.cause, flush=True))
    prober = Prober(lb, monitor=Monitor(interval=1.0, timeout=0.5))
    async with FrontDoor(lb, trusted=["127.0.0.1"], patience=patience) as door:
        await door.listen("127.0.0.1", PORT)
        task = asyncio.create_task(prober.run())
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            task.cancel()
            print("counters", door.counters, flush=True)


@dataclass(slots=True)
class Seen:
    """What the clients saw: (due, answered, method, body or status)."""

    answers: list[tuple[float, float, str, str]] = field(default_factory=list)


class Client:
    """Requests at a fixed rate over as many connections as they need."""

    def __init__(self, rate: float, seconds: float) -> None:
        self.rate, self.seconds, self.seen = rate, seconds, Seen()
        self._free: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self._random = random.Random(4)

    async def run(self) -> None:
        """Send everything and wait for all answers."""
        start, tasks = time.monotonic(), set[asyncio.Task[None]]()
        for number in range(int(self.rate * self.seconds)):
            due = start + number / self.rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._one(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def _one(self, due: float) -> None:
        method = "GET" if self._random.random() < 0.8 else "POST"
        client = f"{self._random.randrange(1, 200)}.{self._random.randrange(256)}.1.1"
        request = f"{method} / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\nContent-Length: 0\r\n\r\n".encode()
        try:
            found = await asyncio.wait_for(self._exchange(request), 60)
        except (OSError, EOFError, TimeoutError) as error:
            found = type(error).__name__
        self.seen.answers.append((due, time.monotonic(), method, found))

    async def _exchange(self, request: bytes) -> str:
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", PORT)
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        body = await reader.readexactly(int(head.partition("Content-Length: ")[2].split("\r\n")[0]))
        if "Connection: close" in head:
            writer.close()
        else:
            self._free.append((reader, writer))
        return body.decode() if head.startswith("HTTP/1.1 200") else head[9:12]


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start this file in another role."""
    return subprocess.Popen([sys.executable, HERE, *arguments], stdout=subprocess.PIPE, text=True)


async def scenario(how: str, rate: float, patience: float) -> None:
    """Run one scenario and print what was seen."""
    gateways = [start("--gateway", str(index)) for index in range(len(NAMES))]
    front = start("--front", "--patience", str(patience))
    await asyncio.sleep(3)
    client = Client(rate, 12.0)
    began = time.monotonic()
    running = asyncio.create_task(client.run())
    await asyncio.sleep(BROKEN)
    broken = time.monotonic()
    os.kill(gateways[0].pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    await asyncio.sleep(BACK - BROKEN)
    if how == "killed":
        gateways[0] = start("--gateway", "0")
    else:
        os.kill(gateways[0].pid, signal.SIGCONT)
    await running
    front.send_signal(signal.SIGINT)
    told = front.communicate(timeout=10)[0].splitlines()
    for gateway in gateways:
        gateway.kill()
    show(how, client.seen, told, began, broken)


def show(how: str, seen: Seen, told: list[str], began: float, broken: float) -> None:
    """Print one scenario."""
    failed = Counter(f"{method} {found}" for _, _, method, found in seen.answers if found not in NAMES)
    slow = sorted(answered - due for due, answered, _, _ in seen.answers)
    print(f"\n== nearest gateway {how}: {len(seen.answers)} requests")
    slowest, median = [round(each * 1e3) for each in slow[-3:]], slow[len(slow) // 2] * 1e3
    print(f"failed: {dict(failed) or 'none'}; slowest answers, ms: {slowest}, median {median:.1f}")
    for line in told:
        at, _, rest = line.partition(" ")
        print(f"  {(float(at) - broken) * 1e3:+8.0f} ms  {rest}" if at[0].isdigit() else f"  {line}")
    shares = []
    for second in range(12):
        within = [found for due, _, _, found in seen.answers if second <= due - began < second + 1]
        shares.append(f"{100 * within.count(NAMES[0]) // max(1, len(within))}")
    print(f"share of the nearest by second, %: {' '.join(shares)}")


def main() -> None:
    """Parse arguments and run the scenarios, or one of the processes in them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--patience", type=float, default=0.5)
    parser.add_argument("--gateway", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--front", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.gateway is not None:
            uvloop.run(serve_gateway(options.gateway))
        elif options.front:
            uvloop.run(serve_front(options.patience))
        else:
            for how in ("killed", "stopped"):
                uvloop.run(scenario(how, options.rate, options.patience))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
