"""What the tests of `lbcore run` share: the process with its workers, gateways on loopback, and a load that counts what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from listening import Listening
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parent.parent
WAIT = 40.0  # seconds until a test gives up; nothing takes that long when all is well
MONITOR = """
[traffic_manager.monitor]
path = "/status"
interval_in_seconds = 1
timeout_in_seconds = 0.9
"""


async def eventually(what: Callable[[], Any], why: str = "") -> Any:
    """Wait until something holds, and give it."""
    async with asyncio.timeout(WAIT):
        while not (found := what()):
            await asyncio.sleep(0.01)
    return found


# ===== gateways


class Gateway(Listening):
    """One region's gateway: answers every request with its name; `mode` "hang" never does, "drop" hangs up."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.mode, self.seen = name, "ok", 0
        self.paths: Counter[str] = Counter()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.paths[head.split()[1].decode()] += 1
            if self.mode == "drop":
                break
            await self._answer(writer)

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        while self.mode == "hang":
            await asyncio.sleep(0.05)
        body = self.name.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()


@asynccontextmanager
async def gateways(*names: str) -> AsyncIterator[list[Gateway]]:
    made = [Gateway(name) for name in names]
    for gateway in made:
        await gateway.start()
    try:
        yield made
    finally:
        for gateway in made:
            await gateway.kill()


def regions(made: list[Gateway]) -> str:
    return "".join(f'[[service.regions]]\nname = "{one.name}"\ngateway = "http://127.0.0.1:{one.port}"\n' for one in made) + MONITOR


# ===== load


class Load:
    """Clients that ask one request after the other, each on a connection that it keeps as long as it may.

    fields: further lines of each head. `answered` counts answers, `lost` requests that were sent and not answered, `unconnected`
    connections that were refused.
    """

    def __init__(self, address: tuple[str, int], clients: int = 8, gap: float = 0.002, method: str = "GET", fields: str = "") -> None:
        self._address, self._clients, self._gap = address, clients, gap
        self._head = f"{method} /load?x HTTP/1.1\r\nHost: test\r\n{fields}Content-Length: 0\r\n\r\n".encode()
        self.answered = self.lost = self.unconnected = self.connections = 0
        self.bodies: Counter[bytes] = Counter()
        self.statuses: Counter[int] = Counter()
        self._stopping = False

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Ask nothing new and wait for what was asked."""
        self._stopping = True
        async with asyncio.timeout(WAIT):
            await asyncio.gather(*self._tasks)

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        goal = self.answered + count
        await eventually(lambda: self.answered >= goal)

    async def _run(self) -> None:
        while not self._stopping:
            try:
                reader, writer = await asyncio.open_connection(*self._address)
            except OSError:
                self.unconnected += 1
                await asyncio.sleep(0.02)
                continue
            self.connections += 1
            try:
                while not self._stopping and await self._ask(reader, writer):
                    await asyncio.sleep(self._gap)
            finally:
                writer.transport.abort()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Ask once; says whether the connection may be used again."""
        if reader.at_eof():
            return False  # the server has closed it, between two requests
        try:
            writer.write(self._head)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            self.bodies[await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))] += 1
        except (OSError, asyncio.IncompleteReadError):
            self.lost += 1
            return False
        self.answered += 1
        self.statuses[int(head.split()[1])] += 1
        return b"connection: close" not in head


# ===== the process


class Run:
    """A `lbcore run --json` of its own: its events, its log, its metrics."""

    def __init__(self, child: subprocess.Popen[bytes], output: Path) -> None:
        self.child, self._output = child, output
        self.ready: dict[str, Any] = {}

    @property
    def lines(self) -> list[str]:
        return self._output.read_text().splitlines()

    def events(self, name: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.lines if line.startswith('{"event"') and line.endswith("}")]
        return [event for event in found if event["event"] == name]

    async def says(self, event: str, times: int = 1) -> dict[str, Any]:
        """Wait for the `times`-th event of its kind."""
        await eventually(lambda: len(self.events(event)) >= times or self.child.poll() is not None)
        assert len(self.events(event)) >= times, "\n".join(self.lines)
        return self.events(event)[times - 1]

    async def logs(self, words: str) -> str:
        """Wait for a line with these words."""
        found: list[str] = await eventually(lambda: [line for line in self.lines if words in line])
        return found[0]

    def address(self, role: str = "front-door", number: int = 0) -> tuple[str, int]:
        host, _, port = self.ready["serving"][role]["addresses"][number].rpartition(":")
        return host, int(port)

    def workers(self, role: str = "front-door") -> list[int]:
        pids: list[int] = self.ready["serving"][role]["workers"]
        return pids

    def file(self, name: str) -> Path:
        """Give a file beside the configuration."""
        return self._output.parent / name

    async def metrics(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Give every sample by its name and its labels' values, in the order of the labels' names."""
        async with httpx.AsyncClient(timeout=WAIT) as client:
            page = (await client.get(f"http://{self.ready['metrics']}/metrics")).text
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
        return found

    async def ended(self) -> int:
        await eventually(lambda: self.child.poll() is not None)
        return self.child.returncode

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)


class Start(Protocol):
    async def __call__(self, text: str, *words: str, serves: bool = True, files: Mapping[str, str] = {}) -> Run: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made = list[Run]()

    async def begin(text: str, *words: str, serves: bool = True, files: Mapping[str, str] = {}) -> Run:
        file, output = tmp_path / "lbcore.toml", tmp_path / f"output-{len(made)}"
        file.write_text(text if "[run]" in text else text + '\n[run]\nmetrics = "127.0.0.1:0"\ngrace = 5.0\ndrain = 5.0\n')
        for name, content in files.items():
            (tmp_path / name).write_text(content)
            (tmp_path / name).chmod(0o600)
        with output.open("wb") as out:
            command = [sys.executable, "-m", "lbcore", "run", str(file), "--json", *words]
            made.append(Run(subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True), output))
        if serves:
            made[-1].ready = await made[-1].says("ready")
        return made[-1]

    yield begin
    for run in made:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.child.pid, signal.SIGKILL)
        run.child.wait()


def alive(pid: int) -> bool:
    """Say whether a process runs, dead ones that nobody waited for apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
