"""A whole service of real processes on loopback, for end-to-end tests: a primary, the gateways that it starts, and edges.

    async with service(tmp_path, "westus2", "westeurope") as lab:   # the primary first
        await lab.save("westeurope", "eastasia")                # these secondaries, over REST, to the end of the operation
        lab.primary.kill()                                      # kill -9 of `lbcore run`, its workers with it
        lab.kill("westus2")                                     # kill -9 of that region's gateway
        assert await lab.dns() == […]; assert (await lab.get("/hello")).status_code == 200

Everything is waited for by conditions with a deadline. Nothing runs any more when the block ends: what does is an error of the test.
Each deployment has loopback addresses of its own, so that ports are the same after a restart and nobody else's.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.edns
import dns.message
import dns.rcode
import httpx
from nodes import ROOT, WAIT, Node, members, naming, until

from lbcore.service.local import process_of
from lbcore.service.store import Store
from lbcore.service.tokens import issue

SERVICE, DOMAIN = "contoso", "test"
ROLES = ("reader", "operator", "owner")
MONITOR = {"interval_in_seconds": 0.5, "timeout_in_seconds": 0.4, "tolerated_number_of_failures": 2, "rise": 2, "jitter": 0.0}
HELLO = {
    "apis": [{"name": "hello", "path": "/", "policies": {"inbound": [{"policy": "return-response", "status": 200, "body": "hello"}]}}]
}  # fmt: skip

_numbers = itertools.count()


# ===== the management API


class Api:
    """The management API as one token has it. Paths are below the service's."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.client = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {token}"} if token else {}, timeout=WAIT, trust_env=False,
            limits=httpx.Limits(max_connections=200),
        )  # fmt: skip

    async def ask(self, method: str, path: str = "", **options: Any) -> httpx.Response:
        return await self.client.request(method, f"/services/{SERVICE}{path}", **options)

    async def get(self, path: str = "", **params: Any) -> Any:
        answer = await self.ask("GET", path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def body(self) -> tuple[dict[str, Any], str]:
        """Give the service and its ETag."""
        answer = await self.ask("GET")
        assert answer.status_code == 200, answer.text
        return answer.json(), answer.headers["etag"]

    async def patch(self, body: Any, etag: str | None = None, **options: Any) -> httpx.Response:
        return await self.ask("PATCH", json=body, headers={"If-Match": (await self.body())[1] if etag is None else etag}, **options)

    async def operation(self, id: str) -> dict[str, Any]:
        answer = await self.ask("GET", f"/operations/{id}")
        assert answer.status_code in (200, 202), answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def finished(self, answer: httpx.Response, limit: float = WAIT) -> dict[str, Any]:
        """Wait for the end of the operation that an answer tells of; the primary may come and go meanwhile."""
        assert answer.status_code in (201, 202), answer.text
        where = httpx.URL(answer.headers["location"]).path

        async def over() -> dict[str, Any] | None:
            try:
                found = (await self.client.get(where)).json()
            except httpx.TransportError:
                return None
            return found if found.get("status") != "InProgress" else None

        found: dict[str, Any] = await until(over, f"{where} ends", limit, 0.05)
        return found

    async def publish(self, document: Mapping[str, Any], etag: str | None = None) -> str:
        """Publish a configuration; gives its revision, such as "1.7"."""
        if etag is None:
            now = await self.ask("GET", "/gatewayConfiguration")
            etag = now.headers.get("etag", "") if now.status_code == 200 else ""
        headers = {"If-Match": etag} if etag else {"If-None-Match": "*"}
        answer = await self.ask("PUT", "/gatewayConfiguration", json=document, headers=headers)
        assert answer.status_code == 200, answer.text
        return revision_of(answer.headers["etag"])

    async def close(self) -> None:
        await self.client.aclose()


def revision_of(etag: str) -> str:
    """Give the revision that an ETag of a configuration names."""
    return etag.strip('"').partition("-")[0]


def row(region: str, units: int = 1, **more: Any) -> dict[str, Any]:
    """Give a row of additionalLocations."""
    return {"location": region, "sku": {"name": "Premium", "capacity": units}} | more


def additional(*regions: str | Mapping[str, Any]) -> dict[str, Any]:
    """Give the PATCH that wants exactly these secondaries."""
    return {"properties": {"additionalLocations": [row(one) if isinstance(one, str) else one for one in regions]}}


# ===== the deployment


def toml(value: Any) -> str:
    """Write a value as TOML has it."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def tables(document: Mapping[str, Any]) -> str:
    """Write tables, a list as an array of tables."""
    text = ""
    for name, content in document.items():
        for one in content if isinstance(content, list) else [content]:
            head = f"[[{name}]]" if isinstance(content, list) else f"[{name}]"
            text += "\n".join([head, *(f"{key} = {toml(value)}" for key, value in one.items() if value is not None), "", ""])
    return text


class Lab:
    """One deployment. regions: the primary first; more: further keys by table, for primary.toml ("primary") and the edges'"""

    def __init__(self, folder: Path, regions: Sequence[str], edges: Sequence[str] = ("edge",), **more: Mapping[str, Any]) -> None:
        number = next(_numbers)
        self.host = f"127.{10 + os.getpid() // 250 % 100}.{os.getpid() % 250 + 1}.{number % 250 + 1}"
        self.folder, self.regions = folder, regions
        self.url = f"http://{self.host}:9180"
        self.tokens: dict[str, str] = {}
        self.restarted: list[subprocess.Popen[bytes]] = []
        self.primary = self._write("primary", self._primary(more.get("primary", {})))
        self.ports = {name: (8080 + place, 5300 + place) for place, name in enumerate(edges)}
        self.edges = {name: self._write(name, self._edge(name, more.get(name, more.get("edge", {})))) for name in edges}
        self._apis: dict[str, Api] = {}
        self._web: httpx.AsyncClient | None = None

    def _write(self, name: str, document: Mapping[str, Any]) -> Node:
        file = self.folder / f"{name}.toml"
        file.write_text(tables(document))
        return Node(file)

    def _common(self, more: Mapping[str, Any]) -> dict[str, Any]:
        tm = {"ttl": 1} | more.get("traffic_manager", {})
        return {
            "service": {"name": SERVICE, "domain": DOMAIN} | more.get("service", {}),
            "traffic_manager": tm,
            "traffic_manager.monitor": MONITOR | more.get("monitor", {}),
            "run": {"metrics": "", "grace": 1.0, "drain": 5.0} | more.get("run", {}),
        }  # fmt: skip

    def _primary(self, more: Mapping[str, Any]) -> dict[str, Any]:
        local = {"kind": "local", "folder": "regions", "port": 0, "grace": 0.5, "interval": 2.0}
        management = {"listen": f"{self.host}:9180", "store": "store", "provisioner": local, "drain": 1.0, "hold": 0.0}
        return self._common(more) | {
            "service.primary": {"name": self.regions[0]},
            "service.regions": [{"name": name} for name in self.regions[1:]],
            "management": management | more.get("management", {}),
        } | {key: more[key] for key in more if key in ("http", "dns", "sync")}  # fmt: skip

    def _edge(self, name: str, more: Mapping[str, Any]) -> dict[str, Any]:
        http, dns_port = self.ports[name]
        management = {"listen": f"{self.host}:{9190 + http - 8080}", "primary": self.url} | more.get("management", {})
        sync = {"primary": self.url, "token": f"{name}.token", "keep": f"{name}-kept", "name": name, "interval": 2.0}
        return self._common(more) | {
            "http": {"listen": f"{self.host}:{http}", "trusted": ["127.0.0.0/8"], "explain_to": ["127.0.0.0/8"]} | more.get("http", {}),
            "dns": {"listen": f"{self.host}:{dns_port}", "metrics": None} | more.get("dns", {}),
            "sync": sync | more.get("sync", {}),
            **({"management": management} if "management" in more else {}),
        } | {key: more[key] for key in more if key in ("latency", "detector")}  # fmt: skip

    # ---- life

    def issue(self) -> None:
        """Issue a token of each role, and one for each edge."""
        for role in ROLES:
            self.tokens[role] = issued(self.folder / "store", role, role)
        for name in self.edges:
            file = self.folder / f"{name}.token"
            file.touch(mode=0o600)
            file.write_text(issued(self.folder / "store", "node", name) + "\n")

    async def start(self, document: Mapping[str, Any] | None = HELLO) -> None:
        """Start the primary, publish a configuration, wait until its regions are there; then start the edges."""
        self.issue()
        await self.primary.start()
        if document is not None:
            await self.api.publish(document)
        await self.settled()
        for edge in self.edges.values():
            edge.begin()
        for edge in self.edges.values():
            await edge.ready()

    async def close(self) -> None:
        for api in self._apis.values():
            await api.close()
        if self._web is not None:
            await self._web.aclose()
        self.end()

    def end(self) -> None:
        """Kill whatever this deployment has started, frozen or not, and hold the machine to having none of it left."""
        for node in (self.primary, *self.edges.values()):
            if node.child is not None:
                node.signal(signal.SIGKILL)
                node.child.kill()
                node.child.wait()
        deadline = time.monotonic() + 10
        sessions = [node.child.pid for node in (self.primary, *self.edges.values()) if node.child is not None]
        while left := naming(str(self.folder)) + [pid for session in sessions for pid in members(session)]:
            assert time.monotonic() < deadline, f"processes {left} do not end"
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        for child in self.restarted:
            child.wait()

    # ---- management

    @property
    def api(self) -> Api:
        return self.as_role("owner")

    def as_role(self, role: str) -> Api:
        if role not in self._apis:
            self._apis[role] = Api(self.url, self.tokens.get(role, ""))
        return self._apis[role]

    def node(self, name: str) -> Api:
        """Give the API as a new node of this name has it."""
        if name not in self.tokens:
            self.tokens[name] = issued(self.folder / "store", "node", name)
        return self.as_role(name)

    async def reachable(self) -> bool:
        """Say whether the management plane answers."""
        try:
            return (await self.api.ask("GET")).status_code == 200
        except httpx.TransportError:
            return False

    async def settled(self) -> dict[str, Any]:
        """Wait until no operation runs; gives the service."""

        async def found() -> dict[str, Any] | None:
            answer = await self.api.ask("GET")
            if answer.status_code != 200:
                return None
            body: dict[str, Any] = answer.json()
            rows = [body["properties"], *body["properties"]["additionalLocations"]]
            return body if all(one["provisioningState"] in ("Succeeded", "Failed") for one in rows) else None

        body: dict[str, Any] = await until(found, "no operation is under way", pause=0.05)
        return body

    async def save(self, *regions: str | Mapping[str, Any], **options: Any) -> dict[str, Any]:
        """Save: the primary and exactly these secondaries; gives the operation when it is over."""
        return await self.api.finished(await self.api.patch(additional(*regions), **options))

    async def wants(self, *regions: str) -> None:
        """Make the service have exactly these secondaries, which it may have already."""
        await self.settled()
        answer = await self.api.patch(additional(*regions))
        if answer.status_code == 202:
            assert (await self.api.finished(answer))["status"] == "Succeeded"

    async def addresses(self) -> dict[str, tuple[str, ...]]:
        """Give the public VIPs of every location, by its name."""
        body, _ = await self.api.body()
        rows = [body["properties"] | {"name": self.regions[0]}, *body["properties"]["additionalLocations"]]
        return {one["name"]: tuple(one["publicIPAddresses"]) for one in rows}

    def secondary(self, edge: str = "edge") -> str:
        """Give where an edge that has [management] answers for the primary."""
        return f"http://{self.host}:{9190 + self.ports[edge][0] - 8080}"

    # ---- regions

    def process(self, region: str) -> int | None:
        """Give the process of a region's gateway."""
        return process_of(self.folder / "regions" / f"{region}.lock")

    def tell(self, region: str, number: signal.Signals) -> int:
        """Send a region's gateway a signal."""
        pid = self.process(region)
        assert pid is not None, f"no gateway runs in {region}"
        os.kill(pid, number)
        return pid

    def kill(self, region: str) -> None:
        """kill -9 of a region's gateway: who connects is refused."""
        self.tell(region, signal.SIGKILL)

    def freeze(self, region: str) -> None:
        """Make a region's gateway a black hole: who connects hears nothing."""
        self.tell(region, signal.SIGSTOP)

    def thaw(self, region: str) -> None:
        self.tell(region, signal.SIGCONT)

    def restart(self, region: str) -> None:
        """Kill a region's gateway if it runs, and start it again, as the machine that it runs on would."""
        if self.process(region) is not None:
            self.kill(region)
        command = [sys.executable, "-m", "lbcore.service.local_gateway", str(self.folder / "regions" / f"{region}.json")]
        with (self.folder / "regions" / f"{region}.log").open("ab") as log:
            self.restarted.append(
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            )

    # ---- clients

    async def ask(
        self, subnet: str = "", edge: str = "edge", name: str = f"{SERVICE}.{DOMAIN}", rdtype: str = "A", tcp: bool = False
    ) -> dns.message.Message:
        """Ask an edge's DNS, on behalf of a network if one is given."""
        options = [dns.edns.ECSOption(subnet.split("/")[0], int(subnet.split("/")[1]))] if subnet else []
        query = dns.message.make_query(name, rdtype, use_edns=0, options=options)
        asked = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
        return await asked(query, self.host, port=self.ports[edge][1], timeout=5.0)

    async def dns(self, subnet: str = "", edge: str = "edge") -> tuple[str, ...]:
        """Give the addresses that an edge's DNS answers with, () for none."""
        try:
            answer = await self.ask(subnet, edge)
        except (OSError, dns.exception.Timeout):
            return ()
        return tuple(sorted(rdata.to_text() for rrset in answer.answer for rdata in rrset))

    @property
    def web(self) -> httpx.AsyncClient:
        """A client of the edges: a connection for each request."""
        if self._web is None:
            limits = httpx.Limits(max_keepalive_connections=0)
            self._web = httpx.AsyncClient(timeout=WAIT, trust_env=False, limits=limits)
        return self._web

    async def get(self, path: str = "/hello", edge: str = "edge", **options: Any) -> httpx.Response:
        """Ask an edge's front door."""
        return await self.web.get(f"http://{self.host}:{self.ports[edge][0]}{path}", **options)

    async def region(self, edge: str = "edge", **options: Any) -> str:
        """Give the region that answers at an edge's front door, "" for none."""
        try:
            return (await self.get(edge=edge, **options)).headers.get("x-lbcore-region", "")
        except httpx.TransportError:
            return ""


def issued(store: Path, role: str, name: str) -> str:
    """Issue a token on the primary's machine; a node's name is the region or edge that it is."""
    with Store(store) as one:
        return issue(one, role, name, who="test")


@asynccontextmanager
async def service(
    folder: Path,
    *regions: str,
    edges: Sequence[str] = ("edge",),
    document: Mapping[str, Any] | None = HELLO,
    started: bool = True,
    **more: Mapping[str, Any],
) -> AsyncIterator[Lab]:
    """Run a deployment; whatever happens, nothing of it is left."""
    lab = Lab(folder, regions, edges, **more)
    try:
        if started:
            await lab.start(document)
        yield lab
    finally:
        await lab.close()


def lbcore(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run([sys.executable, "-m", "lbcore", *words], cwd=ROOT, capture_output=True, text=True, timeout=WAIT, **options)
