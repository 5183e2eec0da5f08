"""What the tests of running servers share: processes of `lbcore dns serve`, and a load of queries that counts what is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import dns.asyncquery
import dns.edns
import dns.message
import pytest
from resolving import OWNER

ROOT = Path(__file__).parent.parent
WAIT = 30
SEED = 3
CONFIG = """
[service]
name = "api"
domain = "example.com"
[[service.regions]]
name = "westus2"
addresses = ["192.0.2.11"]
[[service.regions]]
name = "westeurope"
addresses = ["192.0.2.12"]
[[service.regions]]
name = "eastasia"
addresses = ["192.0.2.13"]
[dns]
listen = {listen}
threads = {threads}
control = "dns.sock"
metrics = "{metrics}"
"""
NETWORKS = ("8.8.8.0", "81.2.69.0", "1.208.0.0", "133.11.0.0")


# ===== load


class Load:
    """Queries with unique ids from several resolvers, seeded; each is asked once and must be answered as in quiet times."""

    def __init__(self, address: tuple[str, int], rate: float, questions: list[bytes] | None = None) -> None:
        self._address, self._gap = address, 1.0 / rate
        self._questions = questions or [dns.message.make_query(OWNER, "A").to_wire()[2:]]
        self._expected: dict[bytes, bytes] = {}
        self._open: dict[tuple[int, int], bytes] = {}
        self._random = random.Random(SEED)
        self.answered = self.wrong = self.sent = 0

    async def __aenter__(self) -> Load:
        self._loop = asyncio.get_running_loop()
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(16)]
        for number, each in enumerate(self._sockets):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            each.connect(self._address)
            self._loop.add_reader(each, self._receive, number, each)
        self._sending = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sending.cancel()
        for each in self._sockets:
            self._loop.remove_reader(each)
            each.close()

    async def _send(self) -> None:
        start = self._loop.time()
        while True:
            while self.sent * self._gap <= self._loop.time() - start:
                number, id_ = self.sent % len(self._sockets), self.sent // len(self._sockets) % 65_536
                question = self._random.choice(self._questions)
                assert (number, id_) not in self._open
                self._open[number, id_] = question
                self._sockets[number].send(id_.to_bytes(2) + question)
                self.sent += 1
            await asyncio.sleep(0.001)

    def _receive(self, number: int, each: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                answer = each.recv(4096)
                question = self._open.pop((number, int.from_bytes(answer[:2])))
                self.answered += 1
                self.wrong += self._expected.setdefault(question, answer[2:]) != answer[2:]

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        async with asyncio.timeout(WAIT):
            goal = self.answered + count
            while self.answered < goal:
                await asyncio.sleep(0.005)

    def pause(self) -> None:
        """Ask no more."""
        self._sending.cancel()

    async def lost(self) -> int:
        """Stop asking and give the number of queries that nobody answers."""
        self.pause()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while self._open:
                    await asyncio.sleep(0.01)
        return len(self._open)


# ===== processes


class Process:
    """A `lbcore dns serve` of its own; what it and its successors print goes to a file."""

    def __init__(self, child: subprocess.Popen[bytes], output: Path) -> None:
        self.child, self.output = child, output
        self.address = ("", 0)

    async def says(self, words: str, times: int = 1) -> str:
        """Wait until it has printed lines with these words so many times; give the last."""
        async with asyncio.timeout(WAIT):
            while len(found := [line for line in self.output.read_text().splitlines() if words in line]) < times:
                assert self.child.poll() is None, self.output.read_text()
                await asyncio.sleep(0.02)
        return found[-1]

    async def ended(self) -> int:
        """Give its exit code once it ends."""
        async with asyncio.timeout(WAIT):
            while (code := self.child.poll()) is None:
                await asyncio.sleep(0.02)
        return code


class Start(Protocol):
    """Start a process with a configuration, and wait until it serves."""

    async def __call__(self, *words: str, listen: str = ..., threads: int = ..., metrics: str = ..., more: str = ...) -> Process: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    file, processes = tmp_path / "lbcore.toml", list[Process]()

    async def begin(*words: str, listen: str = '"127.0.0.1:0"', threads: int = 2, metrics: str = "127.0.0.1:0", more: str = "") -> Process:
        file.write_text(CONFIG.format(listen=listen, threads=threads, metrics=metrics) + more)
        output = tmp_path / f"output-{len(processes)}"
        with output.open("wb") as out:
            command = [sys.executable, "-m", "lbcore", "dns", "serve", "-c", str(file), *words]
            processes.append(Process(subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out), output))
        said = (await processes[-1].says("answering")).split()
        processes[-1].address = said[said.index("on") + 1], int(said[said.index("port") + 1].rstrip(","))
        return processes[-1]

    yield begin
    end_successor(tmp_path / "dns.sock")
    for process in processes:
        if process.child.poll() is None:
            process.child.kill()
            process.child.wait()


def end_successor(control: Path) -> None:
    """End whoever serves at a control socket: a process that another one started."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer, contextlib.suppress(OSError):
        peer.connect(str(control))
        pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        os.kill(pid, signal.SIGKILL)


def questions() -> list[bytes]:
    """Give what the compiled loop answers and what it leaves to the Responder, as bytes without the id."""
    made = []
    for network in NETWORKS:
        subnet: list[dns.edns.Option] = [dns.edns.ECSOption(network, 24)]
        for name, rdtype in (("api.example.com", "A"), ("api.example.com", "ANY"), ("example.com", "SOA"), ("nope.example.com", "A")):
            made.append(dns.message.make_query(name, rdtype, use_edns=0, options=subnet).to_wire()[2:])
    return made


async def asked_name(address: tuple[str, int]) -> bool:
    response = await dns.asyncquery.tcp(dns.message.make_query("api.example.com", "A"), address[0], port=address[1], timeout=WAIT)
    return bool(response.answer)
