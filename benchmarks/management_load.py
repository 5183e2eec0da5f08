"""Does the management plane slow the data plane? A whole service on loopback, with and without management requests, in alternating rounds.

    python benchmarks/management_load.py                    12 rounds of each of 4 s, 100 management requests a second
    python benchmarks/management_load.py --apart            the same, with the primary on one core and everything else on the others
    python benchmarks/management_load.py --rate 0           what differs when nothing does
    python benchmarks/management_load.py --rounds 4 --seconds 2 --rate 300 --json

A primary with two regions' gateways, an edge with front door and DNS. Every round asks the front door one request after the other on each
of its connections, and DNS likewise, at fixed rates well below what this machine can; what is measured is the latency, and the CPU time
that the edge's processes and the gateways use per request. Management requests are GETs of the service, the rotation and an explanation,
and one PATCH in twenty that changes nothing. What counts is the ratio with : without, its median over pairs of rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dns.message
import httpx
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from deployment import DOMAIN, SERVICE, Lab, service
from nodes import members

REQUESTS, QUERIES = 300.0, 500.0  # a second
CONNECTIONS = 4
SAME = '{"properties": {"virtualNetworkType": "None"}}'  # changes nothing
PATHS = ("", "/rotation", "/explain?client=8.8.8.8", "/locations", "/trafficManager/endpoints")


def cpu(pids: list[int]) -> float:
    """Give the CPU seconds that processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / 100.0


def keep_to(pids: list[int], cores: set[int]) -> None:
    """Have processes run on these cores only, every thread of them."""
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), cores)


class Paced:
    """Do something so many times a second, late ones at once; remembers how long each took, from when it was due."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.took: list[float] = []
        self.failed = 0

    async def run(self, ask: Any, until: float) -> None:
        due = time.perf_counter()
        while due < until:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            began = time.perf_counter()
            try:
                await ask()
            except (OSError, TimeoutError, ValueError):
                self.failed += 1
            self.took.append(time.perf_counter() - began)
            due += 1.0 / self.rate


class Door:
    """One kept connection to the front door."""

    def __init__(self, lab: Lab) -> None:
        self._address = lab.host, lab.ports["edge"][0]
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> None:
        await self._talk(b"GET /hello HTTP/1.1\r\nHost: test\r\n\r\n")

    async def _talk(self, request: bytes) -> None:
        reader, writer = self._streams = self._streams or await asyncio.open_connection(*self._address)
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))
        if b" 200 " not in head[:16]:
            raise ValueError(head)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


class Resolver(asyncio.DatagramProtocol):
    """One socket that asks DNS, one query at a time."""

    def __init__(self) -> None:
        self.wire = dns.message.make_query(f"{SERVICE}.{DOMAIN}", "A").to_wire()
        self.answered: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, _: Any) -> None:
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(data)

    async def ask(self) -> None:
        self.answered = asyncio.get_running_loop().create_future()
        self.transport.sendto(self.wire)
        async with asyncio.timeout(2.0):
            await self.answered


class Manager(Door):
    """One kept connection to the management plane, whose requests go round."""

    def __init__(self, url: httpx.URL, token: str, etag: str) -> None:
        self._address, self._streams = (url.host, url.port or 80), None
        head = f"Host: {url.netloc.decode()}\r\nAuthorization: Bearer {token}\r\n"
        asked = [f"GET /services/{SERVICE}{path} HTTP/1.1\r\n{head}\r\n" for path in PATHS * 4]
        fields = f"If-Match: {etag}\r\nContent-Type: application/json\r\nContent-Length: {len(SAME)}"
        asked[-1] = f"PATCH /services/{SERVICE} HTTP/1.1\r\n{head}{fields}\r\n\r\n{SAME}"
        self._asked = itertools.cycle(each.encode() for each in asked)

    async def ask(self) -> None:
        await self._talk(next(self._asked))


async def manage(url: str, token: str, etag: str, rate: float, seconds: float) -> float:
    """Ask the management plane, from when it has said so; gives how often it answered in a second."""
    managers = [Manager(httpx.URL(url), token, etag) for _ in range(CONNECTIONS)]
    asked = [Paced(rate / CONNECTIONS) for _ in managers]
    print(flush=True)
    until = time.perf_counter() + seconds
    await asyncio.gather(*(one.run(manager.ask, until) for one, manager in zip(asked, managers, strict=True)))
    for manager in managers:
        manager.close()
    return sum(len(one.took) - one.failed for one in asked) / seconds


async def managing(lab: Lab, rate: float, seconds: float) -> asyncio.subprocess.Process | None:
    """Have a process of its own ask the management plane from now on."""
    if not rate:
        return None
    arguments = [lab.url, lab.tokens["owner"], (await lab.api.body())[1], str(rate), str(seconds)]
    command = [sys.executable, __file__, "--ask", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def answered(process: asyncio.subprocess.Process | None) -> float:
    """Give how often the management plane answered in a second."""
    return float((await process.communicate())[0]) if process is not None else 0.0


async def one_round(lab: Lab, seconds: float, rate: float, apart: bool) -> dict[str, float]:
    """Measure for so many seconds, with so many management requests a second. apart: whether the primary has a core of its own"""
    edge, primary = lab.edges["edge"].child, lab.primary.child
    assert edge is not None and primary is not None
    pids = [*members(edge.pid), *(pid for name in lab.regions if (pid := lab.process(name)))]
    doors, loop = [Door(lab) for _ in range(CONNECTIONS)], asyncio.get_running_loop()
    transport, resolver = await loop.create_datagram_endpoint(Resolver, remote_addr=(lab.host, lab.ports["edge"][1]))
    http, query = Paced(REQUESTS / CONNECTIONS), Paced(QUERIES)
    plane, asking = members(primary.pid), await managing(lab, rate, seconds)
    if apart:
        first, *others = sorted(os.sched_getaffinity(primary.pid) | os.sched_getaffinity(0))
        keep_to([*plane, *([asking.pid] if asking else [])], {first})
        keep_to([*pids, os.getpid()], {*others})
    before, planned = cpu(pids), cpu(plane)
    until = time.perf_counter() + seconds
    await asyncio.gather(query.run(resolver.ask, until), *(http.run(door.ask, until) for door in doors))
    used, managed = cpu(pids) - before, cpu(plane) - planned
    transport.close()
    for door in doors:
        door.close()
    return {
        "http median us": statistics.median(http.took) * 1e6, "http p99 us": statistics.quantiles(http.took, n=100)[98] * 1e6,
        "dns median us": statistics.median(query.took) * 1e6, "dns p99 us": statistics.quantiles(query.took, n=100)[98] * 1e6,
        "cpu us a request": used / (len(http.took) + len(query.took)) * 1e6, "failed": http.failed + query.failed,
        "management a second": await answered(asking), "its cpu, ms a second": managed / seconds * 1e3,
    }  # fmt: skip


async def measure(rounds: int, seconds: float, rate: float, apart: bool) -> dict[str, Any]:
    """Give each figure without and with management requests, and the median ratio."""
    with tempfile.TemporaryDirectory() as folder:
        async with service(Path(folder), "westus2", "westeurope") as lab:
            await one_round(lab, 1.0, rate, apart)
            pairs = []
            for number in range(rounds):
                order = (0, 1) if number % 2 == 0 else (1, 0)
                found = {arm: await one_round(lab, seconds, (0.0, rate)[arm], apart) for arm in order}
                pairs.append((found[0], found[1]))
    rows = {}
    for name in pairs[0][0]:
        without, with_it = ([pair[arm][name] for pair in pairs] for arm in (0, 1))
        ratios = [b / a for a, b in zip(without, with_it, strict=True) if a]
        rows[name] = {
            "without": statistics.median(without), "with": statistics.median(with_it),
            "ratio": statistics.median(ratios) if ratios else None, "least": min(ratios, default=None), "most": max(ratios, default=None),
        }  # fmt: skip
    return {"rounds": rounds, "seconds": seconds, "rate": rate, "apart": apart, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rate", type=float, default=100.0, help="management requests a second")
    parser.add_argument("--apart", action="store_true", help="the primary has a core of its own (Linux, two cores or more)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ask", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        url, token, etag, rate, seconds = options.ask
        print(asyncio.run(manage(url, token, etag, float(rate), float(seconds))))
        return
    found = asyncio.run(measure(options.rounds, options.seconds, options.rate, options.apart))
    if options.json:
        print(json.dumps(found))
        return
    table = Table("", "without", f"with {options.rate:g} management requests/s", "ratio", "least", "most")
    for name, one in found["rows"].items():
        table.add_row(name, *("-" if one[key] is None else f"{one[key]:.2f}" for key in ("without", "with", "ratio", "least", "most")))
    Console().print(table)


if __name__ == "__main__":
    main()
