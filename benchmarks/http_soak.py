"""A front door and gateways under seeded chaos for a bounded number of requests: is anything lost, stuck, mixed up or leaked?

    python benchmarks/http_soak.py                                  100,000 requests, three gateways
    python benchmarks/http_soak.py --requests 1000000 --seed 7 --clients 128
    python benchmarks/http_soak.py --requests 3000 --json           the last line is JSON; exit code 1 when a promise is broken
    python benchmarks/http_soak.py --workers 2                      through `lbcore run` with so many workers, counted by its metrics

Every gateway (with its backend) and the front door are processes of their own on loopback. Gateways are killed and started again, stopped
by SIGSTOP, ended by SIGTERM, slowed, made to answer 503 and made to break off. Clients read, write, stream, open upgraded connections,
leave in the middle and send what is no HTTP. Each answer carries what its request said, so that none can be another's; what the clients
saw is compared with what the front door counted, number by number; memory, descriptors, tasks and connections are compared with those
after the first tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

NAMES = ("westeurope", "eastus", "japaneast")
HERE = str(Path(__file__))
BIG = 300_000
STUCK = 45.0  # seconds after which a request counts as stuck
GROWTH_MB = 8.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


# ===== processes: what they hold, and what they are told by their standard input


def holdings(engine: Any, **more: object) -> dict[str, Any]:
    """Give what this process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "MB": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks()),
        "connections": len(engine.inbounds) + len(engine.relays),
        "upstreams": sum(len(upstream.open) for upstream in engine.upstreams.values()),
    } | more


async def obey(commands: dict[str, Callable[[], object]]) -> None:
    """Answer each line of the standard input with a line of JSON, until it ends."""
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        print(json.dumps(commands[line]()), flush=True)


class Backend:
    """What the gateway's API is made of. mood: ok, slow, fail, cut."""

    def __init__(self, seed: int) -> None:
        self.mood, self._random = "ok", random.Random(seed)

    def set(self, mood: str) -> str:
        """Change the mood."""
        self.mood = mood
        return mood

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        with contextlib.suppress(OSError, EOFError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                if not await self._answer(head.decode("latin-1"), reader, writer):
                    break
        writer.close()

    async def _answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        kind, _, number = head.split(" ", 2)[1].strip("/").partition("/")
        body = await reader.readexactly(int((head.partition("Content-Length: ")[2] or "0").partition("\r\n")[0]))
        if self.mood == "slow":
            await asyncio.sleep(self._random.uniform(0.05, 0.4))
        if kind == "ws":
            return await self._echo(reader, writer)
        text = f"{number} {len(body)} ".encode().ljust(BIG if kind in ("big", "leave") else 64, b".")
        status = b"503 X" if self.mood == "fail" else b"200 OK"
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(text)))
        writer.write(text[: len(text) // 2] if self.mood == "cut" else text)
        await writer.drain()
        return self.mood != "cut"

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        return False


async def serve_gateway(name: str, port: int) -> None:
    """Serve one gateway and its backend."""
    from lbcore.http.gateway import Gateway, Units

    backend = Backend(port)
    server = await asyncio.start_server(backend, "127.0.0.1", 0, limit=1 << 22)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    document = {
        "epoch": 1, "sequence": 1, "backends": [{"name": "site", "urls": [url]}],
        "apis": [{"name": "site", "path": "/", "backend": "site"}],
    }  # fmt: skip
    async with Gateway(name, units=Units(8), trusted=["127.0.0.1"]) as gateway:
        gateway.apply(document)
        _, port = await gateway.listen("127.0.0.1", port)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        print(port, flush=True)
        moods: dict[str, Callable[[], object]] = {mood: partial(backend.set, mood) for mood in ("ok", "slow", "fail", "cut")}
        task = asyncio.create_task(obey(moods | {"look": lambda: holdings(gateway.engine, counters=gateway.counters)}))
        end = asyncio.create_task(ended.wait())
        await asyncio.wait((task, end), return_when=asyncio.FIRST_COMPLETED)
        await gateway.close(1.0)


async def serve_front(ports: list[int]) -> None:
    """Serve the front door, with a prober beside it; counts how every call ended."""
    import lbcore
    from lbcore.http.front import FrontDoor
    from lbcore.sense.monitor import Monitor
    from lbcore.sense.probe import Prober

    ended: Counter[str] = Counter()

    class Counting(FrontDoor):
        def done(self, call: Any, /) -> None:
            super().done(call)
            leaver = "leaver " if call.request.target.startswith(b"/leave") else ""
            ended[leaver + ("left" if call.aborted else f"cut {call.cause}" if call.cut else str(call.status))] += 1
            ended[f"{leaver}because {call.cause or 'answered'}"] += 1

    lb = lbcore.Balancer([lbcore.Region(name, gateway=f"http://127.0.0.1:{port}") for name, port in zip(NAMES, ports, strict=False)])
    for group in range(lb.table.groups):
        for index in range(len(ports)):
            lb.table.seed(group, index, 5.0 + 20 * index, 2.0)
    lb.tick()
    prober = Prober(lb, monitor=Monitor(path="/status-0123456789abcdef", interval=1.0, timeout=0.5))
    async with Counting(lb, trusted=["127.0.0.1"], patience=0.5) as door:
        _, port = await door.listen("127.0.0.1", 0)
        print(port, flush=True)
        probing = asyncio.create_task(prober.run())
        try:
            await obey({"look": lambda: holdings(door.engine, counters=door.counters, ended=ended)})
        finally:
            probing.cancel()


class Process:
    """One of the processes."""

    def __init__(self, *arguments: str) -> None:
        self._arguments, self.port = arguments, 0
        self._process: asyncio.subprocess.Process
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Start it, on its port if it had one."""
        pipe = asyncio.subprocess.PIPE
        arguments = [HERE, *self._arguments, *(["--port", str(self.port)] if self.port else [])]
        self._process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=pipe, stdout=pipe)
        self.port = int(await self._read())

    async def _read(self) -> str:
        assert self._process.stdout is not None
        return (await asyncio.wait_for(self._process.stdout.readline(), 30)).decode()

    async def look(self) -> dict[str, Any]:
        """Give what it holds and has counted."""
        return cast(dict[str, Any], await self.tell("look"))

    async def tell(self, command: str) -> Any:
        """Send a command and give the answer."""
        async with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{command}\n".encode())
            return json.loads(await self._read())

    def send(self, number: int) -> None:
        """Send a signal, if it lives."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def end(self, number: int = signal.SIGKILL) -> None:
        """End it and wait."""
        self.send(number)
        await self._process.wait()


_REST = """
[traffic_manager.monitor]
path = "/status-0123456789abcdef"
interval_in_seconds = 1
timeout_in_seconds = 0.5
[http]
listen = "127.0.0.1:0"
workers = {}
trusted = ["127.0.0.1/32"]
patience = 0.5
[run]
metrics = "127.0.0.1:0"
"""


class Run(Process):
    """`lbcore run` with a front door: a supervisor and its workers, whose metrics say what was counted."""

    def __init__(self, ports: list[int], workers: int, folder: Path) -> None:
        self._file = folder / "lbcore.toml"
        named = zip(NAMES, ports, strict=True)
        regions = (f'[[service.regions]]\nname = "{name}"\ngateway = "http://127.0.0.1:{port}"\n' for name, port in named)
        self._file.write_text("".join(regions) + _REST.format(workers))

    async def start(self) -> None:
        """Start it and wait until it serves."""
        pipe, command = asyncio.subprocess.PIPE, [sys.executable, "-m", "lbcore", "run", str(self._file), "--json"]
        self._process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
        assert (output := self._process.stdout) is not None
        while (event := json.loads(await asyncio.wait_for(output.readline(), 60)))["event"] != "ready":
            pass
        self._reading = asyncio.create_task(output.read())  # or its pipe is full one day
        self.port = int(event["serving"]["front-door"]["addresses"][0].rpartition(":")[2])
        self._metrics = f"http://{event['metrics']}/metrics"

    async def look(self) -> dict[str, Any]:
        """Give what the processes hold together, and what they have counted, in the words of `serve_front`."""
        await asyncio.sleep(1.0)  # workers tell the supervisor a little later
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(self._metrics)).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        counters, ended = Counter[str](), Counter[str]()
        for sample in samples:
            _, own, name = sample.name.removesuffix("_total").rpartition("lbcore_http_")
            if own and "seconds" not in name and sample.labels.get("state") != "idle":
                counters[name] += int(sample.value)
            if own and name in ("answered", "failed", "aborted", "lost"):
                ended[sample.labels.get("status", name)] += int(sample.value)
        every = [self._process.pid, *_children(self._process.pid)]
        return {
            "MB": sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in every) * os.sysconf("SC_PAGE_SIZE") / 1e6,
            "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in every), "tasks": len(every),
            "connections": counters["connections"] + counters["relays"] + counters["under_way"],
            "upstreams": counters["upstream_connections"], "counters": counters | {"requests": counters["begun"]}, "ended": ended,
        }  # fmt: skip


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ===== chaos


class Chaos:
    """Do something bad to one gateway after the other, at most all but one at a time."""

    def __init__(self, gateways: list[Process], seed: int, pace: float) -> None:
        self._gateways, self._random, self._pace = gateways, random.Random(seed), pace
        self.done: Counter[str] = Counter()
        self._busy: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(self._random.expovariate(1.0) * self._pace)
            index, what = self._random.randrange(len(self._gateways)), self._random.choice(("kill", "end", "stop", "slow", "fail", "cut"))
            lasts = self._random.uniform(0.2, 3.0) * self._pace
            if index not in self._busy and len(self._busy) < len(self._gateways) - 1:
                self.done[what] += 1
                task = asyncio.create_task(self._do(index, what, lasts))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _do(self, index: int, what: str, lasts: float) -> None:
        self._busy.add(index)
        gateway = self._gateways[index]
        if what in ("kill", "end"):
            await gateway.end(signal.SIGKILL if what == "kill" else signal.SIGTERM)
            await asyncio.sleep(lasts)
            await gateway.start()
        elif what == "stop":
            gateway.send(signal.SIGSTOP)
            await asyncio.sleep(lasts)
            gateway.send(signal.SIGCONT)
        else:
            await gateway.tell(what)
            await asyncio.sleep(lasts)
            await gateway.tell("ok")
        self._busy.discard(index)

    async def settle(self) -> None:
        """Let what was begun come to its end."""
        await asyncio.gather(*self._tasks)


# ===== clients


class Mixed(Exception):
    """An answer that is not to the request."""


@dataclass
class Seen:
    """What the clients saw, in the front door's words: status, cut or left; of those who leave, only how many."""

    sent: int = 0
    leavers: int = 0
    nonsense: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0


class Clients:
    """Send a number of requests over a number of connections, each one after the other."""

    def __init__(self, port: int, requests: int, options: argparse.Namespace, seed: int) -> None:
        self._port, self._left, self._clients = port, requests, options.clients
        self._random = random.Random(seed)
        self.seen = Seen()
        self._kinds: dict[str, tuple[int, Callable[[Streams, int], Awaitable[bool]]]] = {
            "get": (60, self._get), "post": (15, self._post), "big": (6, self._big), "ws": (4, self._upgraded),
            "leave": (0 if options.workers else 6, self._leave),  # metrics do not tell them from those that were cut off
            "pipelined": (6, self._pipelined), "nonsense": (3, self._nonsense),
        }  # fmt: skip

    async def run(self) -> None:
        """Send everything and wait for all answers."""
        await asyncio.gather(*(self._client() for _ in range(self._clients)))

    async def _client(self) -> None:
        streams: Streams | None = None
        weights = [weight for weight, _ in self._kinds.values()]
        while self._left > 0:
            self._left -= 1
            kind = self._random.choices([*self._kinds], weights)[0]
            streams = streams or await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
            begun = time.monotonic()
            try:
                async with asyncio.timeout(STUCK):
                    keep = await self._kinds[kind][1](streams, self._random.getrandbits(40))
            except TimeoutError:
                self.seen.wrong.append(f"stuck: {kind}")
                keep = False
            except Mixed as mixed:
                self.seen.wrong.append(f"mixed up: {kind} {mixed}")
                keep = False
            self.seen.slowest = max(self.seen.slowest, time.monotonic() - begun)
            if not keep:
                streams[1].transport.abort()
                streams = None
        if streams is not None:
            streams[1].close()

    def _head(self, method: str, path: str, *fields: str) -> bytes:
        self.seen.sent += 1
        client = f"{self._random.randrange(1, 200)}.{self._random.randrange(256)}.1.1"
        return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", f"X-Forwarded-For: {client}", *fields, "", ""]).encode()

    async def _read(self, reader: asyncio.StreamReader, expected: bytes, size: int) -> bool:
        """Read one answer and say whether the connection can be used again."""
        head = b""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        except (OSError, EOFError):
            self.seen.ended["cut" if head else "no answer"] += 1
            return False
        status = head[9:12].decode()
        self.seen.ended[status] += 1
        if status == "200" and (len(body) != size or not body.startswith(expected + b" ")):
            raise Mixed(f"expected {expected!r} in {size} bytes, got {body[:60]!r} in {len(body)}")
        return b"connection: close" not in head.lower()

    async def _get(self, streams: Streams, number: int) -> bool:
        streams[1].write(self._head("GET", f"/get/{number}"))
        return await self._read(streams[0], b"%d 0" % number, 64)

    async def _post(self, streams: Streams, number: int) -> bool:
        size = number % 100_000
        streams[1].write(self._head("POST", f"/post/{number}", f"Content-Length: {size}") + bytes(size))
        return await self._read(streams[0], b"%d %d" % (number, size), 64)

    async def _big(self, streams: Streams, number: int) -> bool:
        streams[1].write(self._head("GET", f"/big/{number}"))
        if number % 4 == 0:
            await asyncio.sleep(0.1)  # slow to take it
        return await self._read(streams[0], b"%d 0" % number, BIG)

    async def _pipelined(self, streams: Streams, number: int) -> bool:
        count = 2 + number % 8
        streams[1].write(b"".join(self._head("GET", f"/get/{number + each}") for each in range(count)))
        for each in range(count):
            if not await self._read(streams[0], b"%d 0" % (number + each), 64):
                self.seen.ended["unknown"] += count - each - 1  # behind one that was cut off: the front door may not have begun them
                return False
        return True

    async def _leave(self, streams: Streams, number: int) -> bool:
        streams[1].write(self._head("GET", f"/leave/{number}"))
        self.seen.leavers += 1
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(number % 100 / 1000):
                await streams[0].read(number % 100_000)
        return False

    async def _upgraded(self, streams: Streams, number: int) -> bool:
        reader, writer = streams
        writer.write(self._head("GET", f"/ws/{number}", "Connection: Upgrade", "Upgrade: websocket"))
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, EOFError):
            self.seen.ended["no answer"] += 1
            return False
        self.seen.ended[head[9:12].decode()] += 1
        if head[9:12] != b"101":
            return False
        with contextlib.suppress(OSError, EOFError):
            for _ in range(5):
                writer.write(part := os.urandom(1000))
                if await reader.readexactly(1000) != part:
                    raise Mixed("an upgraded connection's bytes")
        return False

    async def _nonsense(self, streams: Streams, number: int) -> bool:
        lines = (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", b"HELO\r\n\r\n")
        streams[1].write(lines[number % len(lines)] + b"\r\n\r\n")
        self.seen.nonsense += 1
        with contextlib.suppress(OSError):
            if not (await streams[0].read()).startswith(b"HTTP/1.1 4"):
                raise Mixed("nonsense was not refused")
        return False


# ===== the run


@contextlib.contextmanager
def _front(options: argparse.Namespace, ports: list[int]) -> Iterator[Process]:
    with tempfile.TemporaryDirectory() as folder:
        yield Run(ports, options.workers, Path(folder)) if options.workers else Process("--front", *map(str, ports))


async def soak(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run everything and give what was found."""
    gateways = [Process("--gateway", name) for name in NAMES]
    for gateway in gateways:
        await gateway.start()
    chaos = Chaos(gateways, options.seed, options.pace)
    with _front(options, [gateway.port for gateway in gateways]) as front:
        try:
            await front.start()
            await Clients(front.port, max(500, options.requests // 10), options, options.seed).run()
            before = await idle(front)
            clients = Clients(front.port, options.requests, options, options.seed + 1)
            causing, begun = asyncio.create_task(chaos.run()), time.monotonic()
            await clients.run()
            took = time.monotonic() - begun
            causing.cancel()
            await chaos.settle()
            after = await idle(front)
        finally:
            for process in (front, *gateways):
                process.send(signal.SIGCONT)
                await process.end(signal.SIGTERM if process is front and options.workers else signal.SIGKILL)
    found = judge(clients.seen, before, after, not options.workers)
    found |= {"seconds": round(took, 1), "chaos": dict(chaos.done), "slowest": round(clients.seen.slowest, 2)}
    show(clients.seen, before, after, found, console)
    return found


async def idle(front: Process) -> dict[str, Any]:
    """Wait until no connection is left, at most ten seconds; give what the front door holds."""
    deadline = time.monotonic() + 10
    while True:
        held = await front.look()
        if held["connections"] == 0 or time.monotonic() > deadline:
            return held
        await asyncio.sleep(0.1)


def judge(seen: Seen, before: dict[str, Any], after: dict[str, Any], alone: bool) -> dict[str, Any]:
    """Hold both sides' counts against each other; `broken` says which promises were. alone: the front door is one process of ours."""
    counted = {name: count - before["ended"].get(name, 0) for name, count in after["ended"].items()}
    counters = Counter({name: count - before["counters"].get(name, 0) for name, count in after["counters"].items()})
    checks = (_ours if alone else _theirs)(seen, counters, Counter(counted)) | {
        "refused": counters["refused"] == seen.nonsense,
        "no exception": not after["counters"].get("exceptions"),
        "connections": after["connections"] == 0,
        "tasks": after["tasks"] <= before["tasks"] + 3,
        "descriptors": after["descriptors"] - after["upstreams"] <= before["descriptors"] - before["upstreams"] + 3,
        "memory": after["MB"] - before["MB"] < GROWTH_MB,
    }
    broken = [*seen.wrong[:5], *(name for name, right in checks.items() if not right)]
    return {"broken": broken, "requests": counters["requests"], "sent": seen.sent, "counted": counted, "seen": dict(seen.ended)}


def _ours(seen: Seen, counters: Counter[str], counted: Counter[str]) -> dict[str, bool]:
    statuses = {name: count for name, count in counted.items() if name.isdigit() and count}
    cut = sum(count for name, count in counted.items() if name.startswith("cut "))
    leavers = sum(count for name, count in counted.items() if name.startswith("leaver ") and "because" not in name)
    causes = sum(count for name, count in counted.items() if "because" in name)
    unheard = seen.leavers - leavers  # gone before the front door had read their request
    return {
        "every request ended once": counters["requests"] == leavers + sum(statuses.values()) + cut + counted["left"] == causes,
        "requests sent were counted": seen.sent - unheard - seen.ended["unknown"] <= counters["requests"] <= seen.sent - unheard,
        "answers by status": {name: count for name, count in seen.ended.items() if name.isdigit()} == statuses,
        "answers cut off": seen.ended["cut"] + seen.ended["no answer"] == cut + counted["left"],
        "leavers": 0 <= unheard <= seen.leavers // 5,
    }


def _theirs(seen: Seen, counters: Counter[str], counted: Counter[str]) -> dict[str, bool]:
    """Metrics count a 502 of lbcore's own among what failed, as they do what was cut off."""
    answered = sum(count for name, count in seen.ended.items() if name.isdigit()) + seen.ended["cut"] + seen.ended["no answer"]
    return {
        "every request ended once": counters["requests"] == sum(counted.values()),
        "requests sent were counted": seen.sent - seen.ended["unknown"] <= counters["requests"] <= seen.sent,
        "answers": counters["requests"] == answered and counted["lost"] == 0,
        "answers by status": (seen.ended["101"], seen.ended["200"]) == (counted["1xx"], counted["2xx"]),
    }


def show(seen: Seen, before: dict[str, Any], after: dict[str, Any], found: dict[str, Any], console: Console) -> None:
    """Print one table and the verdict."""
    title = f"{seen.sent:,} requests in {found['seconds']:g} s, chaos: {found['chaos']}"
    table = Table("", "after the first tenth", "at the end", title=title)
    for name in ("MB", "descriptors", "tasks", "connections", "upstreams"):
        table.add_row(name, f"{before[name]:.1f}", f"{after[name]:.1f}")
    counters = {name: count - before["counters"].get(name, 0) for name, count in sorted(after["counters"].items())}
    for name, count in counters.items():
        table.add_row(name, "", f"{count:,}") if count else None
    console.print(table)
    others = f"{seen.leavers} left, {seen.nonsense} sent nonsense, slowest {found['slowest']} s"
    console.print(f"clients: {dict(sorted(seen.ended.items()))}, {others}")
    console.print(f"front door: {dict(sorted(found['counted'].items()))}")
    console.print("met" if not found["broken"] else f"BROKEN: {'; '.join(found['broken'])}")


def main() -> int:
    """Parse arguments and run the soak, or one of its processes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pace", type=float, default=1.0, help="mean seconds between two bad things")
    parser.add_argument("--workers", type=int, default=0, help="of `lbcore run`; without, the front door is one process of this file")
    parser.add_argument("--json", action="store_true", help="the last line is JSON")
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--gateway", help=argparse.SUPPRESS)
    parser.add_argument("--front", nargs="+", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.gateway:
        uvloop.run(serve_gateway(options.gateway, options.port))
    elif options.front:
        uvloop.run(serve_front(options.front))
    else:
        found = uvloop.run(soak(options, Console()))
        if options.json:
            print(json.dumps(found))
        return 1 if found["broken"] else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
