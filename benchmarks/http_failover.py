"""What clients see of a gateway that dies: requests at a fixed rate through a front door, and one of its gateways killed or stopped.

    python benchmarks/http_failover.py                       killed (refuses), then stopped (swallows)
    python benchmarks/http_failover.py --rate 1000 --patience 0.5
    python benchmarks/http_failover.py --workers 2           front doors that share one table and one port, and a process that judges

Three gateways, the front door and the clients are processes of their own on loopback. Clients speak for 200 networks (a trusted
X-Forwarded-For), 80 % GET and 20 % POST, each request at its time whether or not the others are answered. After eight seconds the
nearest gateway gets SIGKILL or SIGSTOP; four seconds later it comes back; the run goes on until everybody is home again. Printed:
failures by method, the slowest answers, when the region was out, how its share came back, and each change as every process told it.
"Evidence": the tenth refused connection in a row, over all workers, with no success in between. A call that is never answered fails
after the first-byte timeout.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop

import lbcore
from lbcore import LatencyTable
from lbcore.balancer import LOOK_INTERVAL
from lbcore.http.forward import Timeouts
from lbcore.http.front import FrontDoor
from lbcore.sense.geo import GeoIP
from lbcore.sense.monitor import Monitor
from lbcore.sense.probe import Prober

NAMES = ("westeurope", "eastus", "japaneast")
MS = (1.0, 30.0, 60.0)  # until they answer, and what is believed before
PORT = 18_950
HERE = str(Path(__file__))
BROKEN, BACK = 8.0, 12.0


class Gateway(asyncio.Protocol):
    """Answer every request with the gateway's name, after a while. Heads come whole on loopback."""

    name, delay = b"", 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(self.name), self.name)
        asyncio.get_running_loop().call_later(self.delay, self.write, answer * data.count(b"HTTP/1.1\r\n"))

    def write(self, answers: bytes) -> None:
        """Answer, if anybody is still there."""
        if not self.transport.is_closing():
            self.transport.write(answers)


async def serve_gateway(index: int) -> None:
    """Serve one gateway."""
    Gateway.name, Gateway.delay = NAMES[index].encode(), MS[index] / 1e3
    server = await asyncio.get_running_loop().create_server(Gateway, "127.0.0.1", PORT + 1 + index, reuse_port=True, backlog=1024)
    await server.serve_forever()


def balancer(buffer: mmap.mmap | None = None) -> lbcore.Balancer:
    """Give a Balancer for which the gateways are near in their order, everywhere."""
    regions = [lbcore.Region(name, gateway=f"http://127.0.0.1:{PORT + 1 + index}") for index, name in enumerate(NAMES)]
    lb = lbcore.Balancer(regions, buffer=buffer)
    ms = np.tile(np.array(MS, np.float32), (lb.table.groups, 1))
    lb.table.seed_many(ms, np.full_like(ms, 2.0))
    lb.tick()
    return lb


class Told:
    """What this process met and was told, printed when it ends."""

    def __init__(self, lb: lbcore.Balancer, who: str) -> None:
        self.who, self.report, self.answered = who, lb.report, lb.answered
        self.met: list[tuple[float, str]] = []  # by the nearest
        self.changes: list[tuple[float, str]] = []
        # In place of the methods, so that the Balancer's own calls come here, too.
        lb.report = self.note  # type: ignore[method-assign]
        lb.answered = self.note_answer  # type: ignore[method-assign]
        lb.on_change(lambda change: self.changes.append((time.monotonic(), f"{change.region} {change.after}: {change.cause}")))

    def note(self, region: str | lbcore.Region, ok: bool, *rest: Any, **more: Any) -> None:
        """Report, and remember when."""
        if region == NAMES[0] and more.get("source") != "probe":
            self.met.append((time.monotonic(), "ok" if ok else str(more["cause"])))
        self.report(region, ok, *rest, **more)

    def note_answer(self, region: str | lbcore.Region, *rest: Any, **more: Any) -> None:
        """Likewise, of an answer."""
        if region == NAMES[0]:
            self.met.append((time.monotonic(), "ok"))
        self.answered(region, *rest, **more)

    def show(self, counters: dict[str, int]) -> None:
        """Print."""
        print(json.dumps({"who": self.who, "met": self.met, "changes": self.changes, "counters": counters}), flush=True)


async def serve_front(options: argparse.Namespace) -> None:
    """Serve the front door; with --block as one of several processes, else with a prober beside it."""
    memory = mmap.mmap(options.block, 0) if options.block else None
    lb = balancer(memory)
    told = Told(lb, options.front)
    tasks = [] if memory else [asyncio.create_task(Prober(lb, monitor=Monitor(interval=1.0, timeout=0.5)).run())]
    timeouts = Timeouts(first_byte=options.first_byte)
    async with FrontDoor(lb, trusted=["127.0.0.1"], patience=options.patience, timeouts=timeouts) as door:
        await door.listen("127.0.0.1", PORT, reuse_port=True)
        try:
            await ended()
        finally:
            [task.cancel() for task in tasks]
            told.show(door.counters)


async def supervise(options: argparse.Namespace) -> None:
    """Own a table in shared memory: probe, tick, judge at every look; the workers serve."""
    block = os.memfd_create("table")
    os.truncate(block, LatencyTable.nbytes_for(GeoIP(None).map.groups, 8))
    lb = balancer(mmap.mmap(block, 0))
    told = Told(lb, "owner")
    prober = asyncio.create_task(Prober(lb, monitor=Monitor(interval=1.0, timeout=0.5)).run())
    common = ["--patience", str(options.patience), "--first-byte", str(options.first_byte), "--block", str(block)]
    workers = [start("--front", f"worker {number + 1}", *common, keep=[block]) for number in range(options.workers)]
    looks = asyncio.create_task(look(lb))
    try:
        await ended()
    finally:
        looks.cancel()
        prober.cancel()
        told.show({})
        for worker in workers:
            worker.send_signal(signal.SIGINT)
            print(worker.communicate(timeout=10)[0], end="", flush=True)


async def look(lb: lbcore.Balancer) -> None:
    """Look at what the workers met."""
    while True:
        await asyncio.sleep(LOOK_INTERVAL)
        lb.look()


async def ended() -> None:
    """Wait for SIGINT."""
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, done.set)
    await done.wait()


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


def start(*arguments: str, keep: Sequence[int] = ()) -> subprocess.Popen[str]:
    """Start this file in another role. keep: descriptors that it inherits."""
    return subprocess.Popen([sys.executable, HERE, *arguments], stdout=subprocess.PIPE, text=True, pass_fds=keep)


async def scenario(how: str, options: argparse.Namespace) -> None:
    """Run one scenario and print what was seen."""
    gateways = [start("--gateway", str(index)) for index in range(len(NAMES))]
    common = ["--patience", str(options.patience), "--first-byte", str(options.first_byte)]
    front = start("--supervise", "--workers", str(options.workers), *common) if options.workers else start("--front", "door", *common)
    await serving(max(1, options.workers))
    client = Client(options.rate, options.seconds)
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
    told = [json.loads(line) for line in front.communicate(timeout=20)[0].splitlines()]
    for gateway in gateways:
        gateway.kill()
    show(how, client.seen, told, began, broken)


async def serving(doors: int) -> None:
    """Wait until so many front doors listen and the gateways answer."""
    listening: set[str] = set()
    while len(listening) < doors:
        await asyncio.sleep(0.2)
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        listening = {line.split()[9] for line in lines if line.split()[1].endswith(f":{PORT:04X}") and line.split()[3] == "0A"}
    check = Client(50, 1)
    while not check.seen.answers or {answer[3] for answer in check.seen.answers} != {NAMES[0]}:
        check = Client(50, 1)
        await check.run()


def evidence(told: list[dict[str, Any]], broken: float) -> tuple[float | None, float]:
    """Give when the tenth connection in a row was refused, and the last success before the region was out, ms after it broke."""
    out = min((at for one in told for at, what in one["changes"] if at > broken and f"{NAMES[0]} ejected" in what), default=broken + 1)
    run: list[float] = []
    last = broken
    for at, what in sorted(entry for one in told for entry in map(tuple, one["met"]) if entry[0] < out + 0.05):
        if what == "ok":
            run, last = [], at if at < out else last
        elif what == "refused":
            run.append(at)
        if len(run) == 10:
            return (at - broken) * 1e3, (last - broken) * 1e3
    return None, (last - broken) * 1e3


def show(how: str, seen: Seen, told: list[dict[str, Any]], began: float, broken: float) -> None:
    """Print one scenario."""
    failed = Counter(f"{method} {found}" for _, _, method, found in seen.answers if found not in NAMES)
    slow = sorted(answered - due for due, answered, _, _ in seen.answers)
    idempotent = sorted(answered - due for due, answered, method, _ in seen.answers if method == "GET")
    print(f"\n== nearest gateway {how}: {len(seen.answers)} requests")
    print(f"failed: {dict(failed) or 'none'}")
    print(f"answered after, median {slow[len(slow) // 2] * 1e3:.1f} ms, slowest {_ms(slow)}, slowest GETs {_ms(idempotent)}")
    enough, last = evidence(told, broken)
    print(f"  {last:+8.1f} ms  last success")
    if enough is not None:
        print(f"  {enough:+8.1f} ms  evidence: refused ten times in a row")
    for at, who, what in sorted((at, one["who"], what) for one in told for at, what in one["changes"]):
        print(f"  {(at - broken) * 1e3:+8.1f} ms  {who}: {what}")
    print(f"counters: {dict(sum((Counter(one['counters']) for one in told), Counter()))}")
    shares = []
    for second in range(int(seen.answers[-1][0] - began) + 1):
        within = [found for due, _, _, found in seen.answers if second <= due - began < second + 1]
        shares.append(f"{100 * within.count(NAMES[0]) // max(1, len(within))}")
    print(f"share of the nearest by second, %: {' '.join(shares)}")


def _ms(seconds: list[float]) -> str:
    return "/".join(f"{each * 1e3:.0f}" for each in seconds[-3:]) + " ms"


def main() -> None:
    """Parse arguments and run the scenarios, or one of the processes in them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=1000, help="requests a second")
    parser.add_argument("--seconds", type=float, default=50.0, help="of requests")
    parser.add_argument("--patience", type=float, default=0.5, help="seconds a call may wait before that is evidence")
    parser.add_argument("--first-byte", type=float, default=3.0, help="timeout, seconds")
    parser.add_argument("--workers", type=int, default=0, help="front doors that share a table; 0 = one door for itself")
    parser.add_argument("--only", choices=("killed", "stopped"))
    parser.add_argument("--gateway", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--front", help=argparse.SUPPRESS)
    parser.add_argument("--block", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--supervise", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        if options.gateway is not None:
            uvloop.run(serve_gateway(options.gateway))
        elif options.front:
            uvloop.run(serve_front(options))
        elif options.supervise:
            uvloop.run(supervise(options))
        else:
            for how in ("killed", "stopped"):
                if options.only in (None, how):
                    uvloop.run(scenario(how, options))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
