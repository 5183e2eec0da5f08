"""The world of the demo: gateways in seven regions, clients on six continents, and everything real in between.

Injected are the round trips alone: a gateway answers a client as late as the published matrix says for the cloud region where that client
lives. Probes, DNS queries over UDP with the client's subnet, requests through the transport and the clients' beacons are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import random
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dns.asyncquery
import dns.edns
import dns.exception
import dns.message
import httpx

from lbcore.balancer import Balancer, Change
from lbcore.config import Settings, parse
from lbcore.demo import gateway
from lbcore.demo.gateway import ORIGIN
from lbcore.dns import Responder
from lbcore.dns.configured import zones_of
from lbcore.dns.server import Server
from lbcore.http.transport import AsyncBalancedTransport
from lbcore.region import Region
from lbcore.sense.geo import published_ms
from lbcore.sense.probe import Prober

__all__ = ["CLIENTS", "REGIONS", "Client", "GatewayProcess", "Outcome", "World"]

REGIONS = ("westus2", "eastus", "brazilsouth", "westeurope", "southeastasia", "japaneast", "australiaeast")
VANTAGE = "northeurope"  # where the probes come from
SAME_METRO_MS = 2.0  # nobody publishes the round trip within a region
REQUEST_EVERY, BEACON_EVERY, QUERY_EVERY = 0.4, 0.35, 1.0
BEACON_CHOICES = 3
MONITOR = {"interval_in_seconds": 1.0, "timeout_in_seconds": 0.8, "custom_headers": [{"name": ORIGIN, "value": VANTAGE}]}


@dataclass(eq=False, slots=True)
class Client:
    """Somebody with a public address, the cloud region whose published round trips are theirs, and what they last saw."""

    city: str
    address: str
    origin: str
    by_dns: str = ""  # region
    by_http: str = ""
    ms: float = 0.0  # of the last request
    nearby: deque[Region] = field(default_factory=deque)  # what its beacon measures in turn
    closest: str = ""

    @property
    def subnet(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        """Give what a resolver would send along: /24 or /56."""
        return ipaddress.ip_network((self.address, 24 if "." in self.address else 56), strict=False)

    def published(self, region: str) -> float:
        """Give the published round trip to a region, ms."""
        return round_trip(self.origin, region)


def round_trip(origin: str, region: str) -> float:
    """Give the published round trip between two places, ms."""
    ms = SAME_METRO_MS if origin == region else published_ms(origin, region)
    assert ms is not None, f"nothing is published for {origin} to {region}"
    return ms


# Addresses of universities: they stay where they are.
CLIENTS = (
    ("Stanford", "171.64.1.1", "westus"),
    ("Seattle", "128.95.1.1", "westus2"),
    ("Boulder", "128.138.1.1", "westcentralus"),
    ("Toronto", "128.100.1.1", "canadacentral"),
    ("Mexico City", "132.248.1.1", "mexicocentral"),
    ("São Paulo", "143.107.1.1", "brazilsouth"),
    ("Cambridge", "131.111.8.1", "uksouth"),
    ("Paris", "2001:660::1", "francecentral"),
    ("Warsaw", "193.0.96.1", "polandcentral"),
    ("Tel Aviv", "192.114.1.1", "israelcentral"),
    ("Cape Town", "137.158.1.1", "southafricawest"),
    ("Dubai", "94.200.1.1", "uaenorth"),
    ("Mumbai", "103.21.124.1", "westindia"),
    ("Kuala Lumpur", "202.185.1.1", "malaysiawest"),
    ("Jakarta", "152.118.1.1", "indonesiacentral"),
    ("Seoul", "147.46.1.1", "koreacentral"),
    ("Osaka", "2001:200::1", "japanwest"),
    ("Melbourne", "128.250.1.1", "australiasoutheast"),
    ("Auckland", "130.216.1.1", "newzealandnorth"),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one request went: when it ended, whose, which region answered ("" = none), and whether it is lost."""

    at: float
    client: Client
    region: str
    lost: bool


class GatewayProcess:
    """A gateway in a process of its own, which keeps its port over death and restart."""

    def __init__(self, region: str) -> None:
        self.region, self.port = region, 0
        self.trouble = ""  # what was done to it, for the view
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it listens."""
        origins = {origin: round_trip(origin, self.region) for origin in {VANTAGE, *(origin for _, _, origin in CLIENTS)}}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-E", str(Path(gateway.__file__)), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the demo, which ends it
        )  # fmt: skip
        self._send(region=self.region, port=self.port, round_trips=origins)
        assert self._process.stdout
        self.port = int(await self._process.stdout.readline())
        self.trouble = ""

    def change(self, trouble: str, **settings: Any) -> None:
        """Change its `status` or `extra_ms`."""
        self.trouble = trouble
        self._send(**settings)

    def _send(self, **content: Any) -> None:
        assert self._process and self._process.stdin
        self._process.stdin.write(json.dumps(content).encode() + b"\n")

    async def kill(self) -> None:
        """Kill it, and its connections with it."""
        self.trouble = "killed"
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@dataclass
class World:
    """Everything that runs; `async with` starts and ends it."""

    clients: list[Client] = field(default_factory=lambda: [Client(*row) for row in CLIENTS])
    gateways: dict[str, GatewayProcess] = field(default_factory=lambda: {name: GatewayProcess(name) for name in REGIONS})
    outcomes: deque[Outcome] = field(default_factory=lambda: deque(maxlen=100_000))
    changes: list[Change] = field(default_factory=list)
    queries: int = 0
    unanswered: int = 0
    hold_down_seconds: float = 30.0

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        async with self._stack:
            for process in self.gateways.values():
                self._stack.push_async_callback(process.kill)
            await asyncio.gather(*(process.start() for process in self.gateways.values()))
            self.settings = _settings(self.gateways, self.hold_down_seconds)
            self.lb = Balancer(**self.settings.balancer_options())
            self.lb.on_change(self.changes.append)
            self.prober = Prober(self.lb, **self.settings.prober_options())
            await self.prober.first_round()
            await self._start_traffic()
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def _start_traffic(self) -> None:
        enter = self._stack.enter_async_context
        transport = AsyncBalancedTransport(self.lb, **self.settings.transport_options())
        (zone,) = zones_of(self.settings)
        (self._name,) = zone.steered_names
        self._responder = Responder(self.lb, zone)
        self.dns = (await enter(Server(self._responder, "127.0.0.1", 0))).address
        self._balanced = await enter(httpx.AsyncClient(transport=transport, timeout=2.0))
        self._direct = await enter(httpx.AsyncClient(timeout=2.0))
        self._regions = {address: region.name for region in self.lb.regions for address in region.addresses}
        habits = ((REQUEST_EVERY, self._request), (BEACON_EVERY, self._beacon), (QUERY_EVERY, self._query))
        await enter(_running(self.prober.run(), *(_repeat(every, work, client) for client in self.clients for every, work in habits)))

    async def _request(self, client: Client) -> None:
        """Make one call to the service; its name is resolved by nobody, the transport knows the gateways."""
        began, region, lost = time.perf_counter(), "", True
        try:
            response = await self._balanced.get(
                "http://api.contoso.example/orders", headers={ORIGIN: client.origin}, extensions={"lbcore_client": client.address},
            )  # fmt: skip
            region, lost = str(response.extensions["lbcore_region"]), response.status_code >= 500
        except httpx.HTTPError:
            pass
        else:
            client.by_http, client.ms = region, (time.perf_counter() - began) * 1000
        self.outcomes.append(Outcome(self.lb.clock(), client, region, lost))

    async def _beacon(self, client: Client) -> None:
        """Measure a region nearby, as a page or an agent at the client's would: whoever never measures never returns.

        The closest has its turn each time while the client is sent elsewhere.
        """
        if not client.nearby:
            client.nearby.extend(self.lb.rank(client.address)[:BEACON_CHOICES])
            client.closest = client.nearby[0].name
        client.nearby.rotate(1)
        due = {client.nearby[0].name, client.closest} if self.at(client) != client.closest else {client.nearby[0].name}
        for region in map(self.lb.region, sorted(due)):
            began = time.perf_counter()
            with contextlib.suppress(httpx.HTTPError):
                response = await self._direct.get(region.gateway, headers={ORIGIN: client.origin})
                if response.status_code == 200:
                    self.lb.observe(region, (time.perf_counter() - began) * 1000, client.address)

    async def _query(self, client: Client) -> None:
        """Ask DNS the way the client's resolver would."""
        subnet = client.subnet
        option = dns.edns.ECSOption(str(subnet.network_address), subnet.prefixlen)
        query = dns.message.make_query(self._name, "A", use_edns=True, options=[option])
        self.queries += 1
        try:
            answer = await dns.asyncquery.udp(query, self.dns[0], timeout=2.0, port=self.dns[1])
            client.by_dns = self._regions[answer.answer[0][0].to_text()]
        except (dns.exception.DNSException, OSError, LookupError):
            self.unanswered += 1

    # ---- looking at it

    def at(self, client: Client) -> str:
        """Give the region that a client is given now."""
        region: Region = self.lb.pick(client.address)
        return region.name

    def estimate(self, client: Client, region: str) -> float:
        """Give what is believed of a client's round trip to a region, ms."""
        group = self.lb.match(client.address)[0]
        return float(self.lb.table.estimates(group)[self.lb.slot(region)])

    def lost_since(self, at: float) -> int:
        """Count the requests that got no answer, or an error, since a moment of the Balancer's clock."""
        return sum(outcome.lost for outcome in self.outcomes if outcome.at >= at)

    def sent_since(self, at: float) -> int:
        """Count the requests that ended since then."""
        return sum(outcome.at >= at for outcome in self.outcomes)


def _settings(gateways: dict[str, GatewayProcess], hold_down_seconds: float) -> Settings:
    """Make what would stand in lbcore.toml."""
    regions = [
        {"name": name, "gateway": f"http://127.0.0.1:{process.port}", "addresses": [f"192.0.2.{number}"]}
        for number, (name, process) in enumerate(gateways.items(), 11)
    ]
    service = {"name": "api", "domain": "contoso.example", "regions": regions}
    detector = {"hold_down_seconds": hold_down_seconds}
    return parse({"service": service, "traffic_manager": {"ttl": 5, "monitor": MONITOR}, "detector": detector}, "the demo")


async def _repeat(every: float, work: Callable[[Client], Coroutine[Any, Any, None]], client: Client) -> None:
    """Do something again and again, start to start, out of step with everybody else."""
    loop = asyncio.get_running_loop()
    due = loop.time() + random.Random(f"{work.__name__} {client.city}").random() * every
    while True:
        await asyncio.sleep(due - loop.time())
        await work(client)
        due = max(due + every, loop.time())


@asynccontextmanager
async def _running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run things in the background until the block ends."""
    tasks = {asyncio.create_task(work) for work in works}
    try:
        yield
    finally:
        while tasks:  # again: before Python 3.12, wait_for may swallow a cancellation
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=0.5)
