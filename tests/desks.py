"""A management plane for tests, over regions that are only arithmetic: its application, tokens of every role, and a client for them."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from lbcore.sense.checks import ProbeResult
from lbcore.service.api import application
from lbcore.service.operations import Times
from lbcore.service.plane import Plane, PlaneOptions
from lbcore.service.progress import Granted
from lbcore.service.provisioning import Order
from lbcore.service.rotation import Look, StatusPages
from lbcore.service.store import Store
from lbcore.service.tokens import Attempts, Verifier, issue

M = "/services/contoso"
BASE = "http://127.0.0.1:9180"
TIMES = Times(pause=0.01, drain=0.05)
APIS: dict[str, Any] = {
    "apis": [{
        "name": "orders", "path": "/orders", "backend": "orders", "operations": [{"name": "list", "method": "GET", "path": "/"}],
    }],
    "backends": [{"name": "orders", "urls": ["http://127.0.0.1:9"]}],
}  # fmt: skip


class Fleet(StatusPages):
    """A provisioner whose regions run at once, and the pages that they show. hold: cleared, orders wait"""

    limit = 30.0

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store, self.hold, self._numbers = store, asyncio.Event(), itertools.count(1)
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.private: dict[str, tuple[str, ...]] = {}
        self.hold.set()

    async def carry_out(self, order: Order) -> Granted:
        await self.hold.wait()
        if order.work == "delete":
            self.addresses.pop(order.name, None)
            return Granted()
        if order.new_public or order.name not in self.addresses:
            self.addresses[order.name] = (self._next("203.0.113.0"),)
        if order.network_mode == "Internal" and (order.new_private or order.name not in self.private):
            self.private[order.name] = (self._next("10.0.0.0"),)
        private = self.private.get(order.name, ()) if order.network_mode == "Internal" else ()
        return Granted(self.addresses[order.name], private, f"http://{order.name}.test")

    def _next(self, base: str) -> str:
        return str(ipaddress.ip_address(base) + next(self._numbers))

    async def switch(self, name: str, disabled: bool) -> None: ...

    async def release(self, name: str, public_ips: tuple[str, ...]) -> None: ...

    async def look(self, name: str, gateway: str) -> Look:
        if name not in self.addresses:
            return Look(cause="it is gone")
        newest = self.store.revisions.newest(limit=1)
        return Look("serving" if newest else "not ready", name, newest[0].number if newest else None)

    async def probe(self, target: Any, clock: Callable[[], float]) -> ProbeResult:
        return ProbeResult(target.name, True, None, 1.0, 2.0, 200, None, clock())


@dataclass
class Desk:
    """A plane that runs, and who may speak to it."""

    store: Store
    plane: Plane
    fleet: Fleet
    app: FastAPI
    tokens: dict[str, str]
    client: httpx.AsyncClient
    audit: list[dict[str, Any]] = field(default_factory=list)

    async def ask(
        self, method: str, path: str, role: str = "owner", *, headers: dict[str, str] | None = None, **more: Any
    ) -> httpx.Response:  # fmt: skip
        """Send a request; path: after /services/contoso unless it begins there or at the root"""
        url = path if path.startswith("/") and not path.startswith("//") else f"{M}/{path}".rstrip("/")
        given = {"authorization": f"Bearer {self.tokens[role]}"} if role else {}
        encoded = {name: value.encode() for name, value in (given | (headers or {})).items()}
        return await self.client.request(method, url, headers=encoded, **more)

    async def done(self, response: httpx.Response) -> dict[str, Any]:
        """Wait for the operation that an answer speaks of, and give it."""
        assert response.status_code in (201, 202), response.text
        async with asyncio.timeout(20):
            while (found := await self.ask("GET", response.headers["operation-location"])).status_code == 202:
                await asyncio.sleep(0.005)
        return dict(found.json())

    async def save(self, *additional: Any, **properties: Any) -> dict[str, Any]:
        """Save with these additional locations, and give the service afterwards."""
        rows = [{"location": each} if isinstance(each, str) else each for each in additional]
        body = {"properties": {"additionalLocations": rows, **properties}}
        response = await self.ask("PATCH", "", json=body, headers={"if-match": "*"}, params={"acknowledgeVipChange": "true"})
        if response.status_code == 202:
            assert (await self.done(response))["status"] == "Succeeded"
        else:
            assert response.status_code == 200, response.text
        return dict((await self.ask("GET", "")).json())

    async def etag(self) -> str:
        """Give the service's ETag, with quotes."""
        return str((await self.ask("GET", "")).headers["etag"])


@asynccontextmanager
async def managed(
    tmp_path: Path, *, service: bool = True, clock: Callable[[], float] = time.time, patience: float = 5.0, **options: Any
) -> AsyncIterator[Desk]:  # fmt: skip
    """Run a plane with a service in West US 2, unless `service` is False. patience: of the store; options: of PlaneOptions"""
    with Store(tmp_path / "store.db", clock=clock, timeout=patience) as store:
        tokens = {role: issue(store, role, f"an-{role}", who="test") for role in ("node", "reader", "operator", "owner")}
        fleet, audit = Fleet(store), list[dict[str, Any]]()
        chosen = PlaneOptions(**{"times": TIMES} | options)
        plane = Plane(store, fleet, name="contoso", options=chosen, probe=fleet.probe, pages=fleet)
        async with plane:
            app = application(plane, Verifier(store, Attempts(most=1000)), audit=audit.append)
            transport = httpx.ASGITransport(app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
                desk = Desk(store, plane, fleet, app, tokens, client, audit)
                if service:
                    assert (await desk.done(await desk.ask("PUT", "", json={"location": "westus2"})))["status"] == "Succeeded"
                yield desk


def codes(response: httpx.Response) -> set[str]:
    """Give every code of an error, whose shape is what it must be."""
    error = response.json()["error"]
    assert response.json().keys() == {"error"} and error.keys() == {"code", "message", "target", "details"}
    assert error["details"] and all(each.keys() == {"code", "message", "target"} for each in error["details"])
    return {each["code"] for each in error["details"]}


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """Serve an application on a real socket, and give its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", server_header=False, ws="none", http="h11",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(config)
        server.capture_signals = nullcontext  # type: ignore[assignment,method-assign]  # those of the test's process
        serving = asyncio.create_task(server.serve([listener]))
        try:
            while not server.started:
                await asyncio.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
