"""The world of the demo: a primary, an edge, every region's gateway and the API behind them, all processes of their own on loopback.

Made up are the round trips alone: the API answers as late as the published matrix says for the client and the region by which it came.
`guard` ends the processes and removes their folder, however the demo ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from lbcore.demo import backend, guard
from lbcore.demo.backend import REGION
from lbcore.demo.management import Body, Operator
from lbcore.demo.places import PRIMARY, round_trips
from lbcore.demo.traffic import Traffic
from lbcore.sense.monitor import STATUS_PATH
from lbcore.service.local import Local
from lbcore.service.store import Store
from lbcore.service.tokens import issue

__all__ = ["API", "DOMAIN", "SERVICE", "Node", "NotStartedError", "World"]

SERVICE, DOMAIN = "contoso", "example.test"
API = "/orders"
START = 120.0  # seconds in which a process must be ready, on a machine that is busy with other things
USUAL = {"management": 9180, "http": 8080, "dns": 5353, "metrics": 9190}
_STATUS = re.compile(r'^lbcore_region_status\{region="([^"]+)",status="([^"]+)"\} 1(?:\.0)?$', re.MULTILINE)

PRIMARY_FILE = """
[service]
name = "{service}"
domain = "{domain}"

[service.primary]
name = "{primary}"

[traffic_manager]
ttl = 2

[traffic_manager.monitor]
interval_in_seconds = 1.0
timeout_in_seconds = 0.8

[management]
listen = "127.0.0.1:{management}"
store = "store/lbcore.db"
provisioner = {{ kind = "local", folder = "{folder}/regions", port = 0, interval = 1.0, grace = 1.0 }}
drain = 5.0
hold = 1.0
"""
EDGE_FILE = """
[service]
name = "{service}"
domain = "{domain}"

[http]
listen = "127.0.0.1:{http}"
trusted = ["127.0.0.0/8"]

[dns]
listen = "127.0.0.1:{dns}"

[sync]
primary = "http://127.0.0.1:{management}"
token = "edge.token"
keep = "kept"
name = "edge"
interval = 1.0

[detector]
hold_down_seconds = 0.0

[run]
metrics = "127.0.0.1:{metrics}"
"""


class NotStartedError(Exception):
    """Say which process did not start, with the last of what it said."""


class Node:
    """`lbcore run` with one file: it can be killed, with all its workers, and started again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it and wait until it says that it serves."""
        with self.file.with_suffix(".log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "lbcore", "run", str(self.file), "--json", stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True,  # Ctrl-C is for the demo, which ends it
            )  # fmt: skip
        output = self._process.stdout
        assert output
        try:
            async with asyncio.timeout(START):
                while '"event": "ready"' not in (line := (await output.readline()).decode()):
                    if not line:
                        raise NotStartedError(f"lbcore run {self.file.name} ended: {self._last_words()}")
        except TimeoutError:
            raise NotStartedError(f"lbcore run {self.file.name} is not ready after {START:g} s: {self._last_words()}") from None
        self._reading = asyncio.create_task(_drained(output))

    async def kill(self) -> None:
        """Kill it with all its workers, as when a machine loses power."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self.ended()

    async def ended(self) -> None:
        """Wait until it has ended."""
        if self._process is not None:
            await self._process.wait()
        if self._reading is not None:
            await self._reading

    def _last_words(self) -> str:
        return "\n".join(self.file.with_suffix(".log").read_text(errors="replace").splitlines()[-8:])


class World:
    """Everything that runs, while this is open. The primary and the edge wait for `start_primary` and `start_edge`.

    usual: take the ports that everybody knows where they are free
    """

    def __init__(self, usual: bool = False) -> None:
        self.ports = {name: _free(port if usual else 0) for name, port in USUAL.items()}
        self.portal = f"{self._at('management')}/portal/"
        self.developer = f"{self._at('management')}/developer"
        self.url = f"{self._at('http')}{API}/7"
        self.dig = f"dig @127.0.0.1 -p {self.ports['dns']} {SERVICE}.{DOMAIN} +short +subnet=128.250.0.0/16"
        self.locations: dict[str, Body] = {}  # region -> row of the Locations table, as it was shown last
        self.down: set[str] = set()  # regions whose gateway the demo has killed
        self.token = ""
        self._addresses: dict[str, str] = {}
        self._gateways: dict[str, str] = {}
        self._stack = AsyncExitStack()

    def _at(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    # ---- begin and end

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def _open(self, stack: AsyncExitStack) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lbcore-demo-"))
        stack.push_async_callback(self._end, await self._started(guard.__file__, str(self.folder)))
        os.environ[guard.MARK] = str(self.folder)
        stack.callback(os.environ.pop, guard.MARK)
        self._write_files()
        self.primary, self.edge = Node(self.folder / "primary.toml"), Node(self.folder / "edge.toml")
        self._regions = Local(self.folder / "regions")
        self._backend = await self._started(backend.__file__)
        assert self._backend.stdin and self._backend.stdout
        self._backend.stdin.write(json.dumps(round_trips()).encode() + b"\n")
        self._api = f"http://127.0.0.1:{int(await self._backend.stdout.readline())}"
        self._http = await stack.enter_async_context(httpx.AsyncClient(timeout=2.0, trust_env=False))
        self.token = await asyncio.to_thread(self._issue_tokens)
        self.operator = Operator(self._at("management"), SERVICE, self.token)
        stack.push_async_callback(self.operator.close)
        server = ("127.0.0.1", self.ports["dns"])
        self.traffic = Traffic(self.url, server, f"{SERVICE}.{DOMAIN}", self._region_of)

    async def _started(self, script: str, *arguments: str) -> asyncio.subprocess.Process:
        """Start a script that ends when its stdin does."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-E", script, *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip

    async def _end(self, guarding: asyncio.subprocess.Process) -> None:
        """Let the guard end what runs, and see that it did."""
        assert guarding.stdin
        guarding.stdin.close()
        left = await guarding.wait()
        for node in (self.primary, self.edge):
            await node.ended()
        await self._backend.wait()
        assert left == 0 and not self.folder.exists(), f"something is left: {[*guard.marked(str(self.folder))]}"

    def _write_files(self) -> None:
        values = {**self.ports, "service": SERVICE, "domain": DOMAIN, "primary": PRIMARY, "folder": self.folder}
        for name, text in (("primary", PRIMARY_FILE), ("edge", EDGE_FILE)):
            (self.folder / f"{name}.toml").write_text(text.format(**values))

    def _issue_tokens(self) -> str:
        """Make the edge's token and the owner's, which is given, as `lbcore token` does on the primary's machine."""
        store = self.folder / "store" / "lbcore.db"
        store.parent.mkdir(mode=0o700)
        with Store(store) as opened:
            token = self.folder / "edge.token"
            token.touch(mode=0o600)
            token.write_text(issue(opened, "node", "edge", who="lbcore demo"))
            return issue(opened, "owner", "lbcore demo", who="lbcore demo")

    # ---- what runs

    async def kill_gateway(self, region: str) -> None:
        """Kill the process of a region's gateway."""
        process = self._regions.process(region)
        assert process is not None, f"the gateway of {region} does not run"
        os.kill(process, signal.SIGKILL)
        self.down.add(region)
        while self._regions.process(region) is not None:
            await asyncio.sleep(0.01)

    async def revive_gateways(self) -> None:
        """Start the gateways that do not run, with the addresses and configurations that they had."""
        await self._regions.revive()
        self.down.clear()

    def runs(self, region: str) -> bool:
        """Say whether there is a process of a region's gateway."""
        return self._regions.process(region) is not None

    def document(self, edition: int) -> Body:
        """Give what is published: one API of the backend, which is told by which region a call came."""
        stamp = {"policy": "set-header", "name": "x-edition", "value": str(edition)}
        return {
            "backends": [{"name": "orders", "urls": [self._api]}],
            "apis": [
                {"name": "orders", "display_name": "Orders", "path": API, "backend": "orders", "operations": [
                    {"name": "get", "method": "GET", "path": "/{id}"},
                ]},
            ],
            "policies": {
                "inbound": [{"policy": "set-header", "name": REGION, "expression": "deployment.region"}], "outbound": [stamp],
            },
        }  # fmt: skip

    # ---- looking at it

    @property
    def serving(self) -> list[str]:
        """Give the regions that can serve, as far as the demo knows: in the table, deployed, their gateway not killed."""
        found = [name for name, row in self.locations.items() if row["provisioningState"] == "Succeeded" and not row["disableGateway"]]
        return [name for name in found if name not in self.down]

    async def refresh(self) -> bool:
        """Take over the Locations table as it is now; say whether the primary showed it."""
        try:
            self.locations = await self.operator.locations()
        except httpx.HTTPError:
            return False
        for name, row in self.locations.items():
            self._addresses |= dict.fromkeys(row["publicIPAddresses"], name)
            self._gateways[name] = row["gatewayAddress"] or ""
        return True

    async def _region_of(self, address: str) -> str:
        if address not in self._addresses:
            await self.refresh()
        return self._addresses.get(address, "")

    async def look(self, region: str) -> Body:
        """Give what a region's gateway says of itself on its status path; nothing when it does not answer."""
        try:
            found: Body = (await self._http.get(self._gateways.get(region, "") + STATUS_PATH)).json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return {}
        return found

    async def statuses(self) -> dict[str, str]:
        """Give what the edge's metrics say of the regions' health; nothing when it does not answer."""
        try:
            page = (await self._http.get(f"{self._at('metrics')}/metrics")).text
        except httpx.HTTPError:
            return {}
        return dict(_STATUS.findall(page))


async def _drained(output: asyncio.StreamReader) -> None:
    while await output.readline():
        pass


def _free(port: int = 0) -> int:
    """Give a port that is free for TCP and UDP: this one, where it is, else one that no client is given meanwhile."""
    while True:
        port = port or random.randrange(10_000, 32_000)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("127.0.0.1", port))
            except OSError:
                port = 0
            else:
                return port
