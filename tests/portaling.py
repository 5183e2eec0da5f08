"""A portal for tests: a real Plane over a real store, with regions that run at once and answer every probe; and who visits it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import markup
import pytest
import uvicorn
from regions import Regions

from lbcore.service.api import application
from lbcore.service.model import location, new_service
from lbcore.service.operations import Times
from lbcore.service.plane import Plane, PlaneOptions
from lbcore.service.portal.routes import Portal, mount
from lbcore.service.store import Store
from lbcore.service.tokens import Attempts, issue

DOCUMENT = {
    "apis": [
        {"name": "orders", "version": "v1", "display_name": "Orders", "path": "/orders", "backend": "orders",
         "operations": [{"name": "get", "method": "GET", "path": "/{id}"}, {"name": "create", "method": "POST", "path": "/"}]},
        {"name": "hello", "path": "/hello", "policies": {"inbound": [{"policy": "return-response", "status": 200, "body": "hello"}]}},
        {"name": "stock", "version": "2", "versioning": {"by": "header", "name": "Api-Version"}, "hosts": ["stock.contoso.test"],
         "backend": "orders"},
    ],
    "backends": [{"name": "orders", "urls": ["http://127.0.0.1:9001"]}],
}  # fmt: skip
QUICK = {"properties": {"monitorConfig": {"intervalInSeconds": 0.2, "timeoutInSeconds": 0.1, "jitter": 0.0}}}
TIMES = Times(sync=5.0, probe=5.0, drain=0.2, pause=0.02, hold=0.0)


class Service:
    """A running Plane with its portal and tokens of every role."""

    def __init__(self, store: Store, regions: Regions, plane: Plane, app: Any, portal: Portal) -> None:
        self.store, self.regions, self.plane, self.app, self.portal = store, regions, plane, app, portal
        self.visitors: list[Visitor] = []
        self.tokens = {role: issue(store, role, f"a {role}", who="test") for role in ("reader", "operator", "owner")}
        self.tokens["node"] = issue(store, "node", "westus2", who="test")

    async def settled(self) -> None:
        """Wait until no operation runs."""
        async with asyncio.timeout(30):
            while self.store.operations.running() is not None:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def service(folder: Path, *others: str, **settings: Any) -> AsyncIterator[Service]:
    """Run a service in West US 2 and other regions, with revision 1.1 published."""
    with Store(folder / "store.db") as store:
        regions = Regions(store)
        first = new_service("contoso", location("West US 2"), additional_locations=tuple(map(location, others)), **settings)
        options = PlaneOptions(founding=first, times=TIMES, traffic_manager=QUICK)
        plane = Plane(store, regions, name="contoso", options=options, probe=regions.probe, pages=regions)  # type: ignore[arg-type]
        async with plane:
            await plane.configuration.put(DOCUMENT, who="test", why="the first APIs")
            app = application(plane)
            made = Service(store, regions, plane, app, mount(app, plane, app.state.verifier))
            await made.settled()
            yield made
            for visitor in made.visitors:
                await visitor.client.aclose()


class Visitor:
    """Somebody with cookies, as a browser would send them."""

    def __init__(self, app: Any, base: str = "http://127.0.0.1:9180") -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False) if app is not None else None
        self.client = httpx.AsyncClient(transport=transport, base_url=base, trust_env=False)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.client.get(path, **options)

    async def post(self, path: str, fields: Any = None, *, csrf: str | None = None, hx: bool = True, **headers: str) -> httpx.Response:
        sent = {"HX-Request": "true", "X-CSRF-Token": self.csrf if csrf is None else csrf} if hx else {}
        return await self.client.post(path, data=fields or {}, headers=sent | headers)

    async def sign_in(self, token: str, next: str = "/portal/") -> httpx.Response:
        page = await self.get("/portal/login")
        fields = {"token": token, "next": next, "csrf": field(page.text, "csrf")}
        answer = await self.client.post("/portal/login", data=fields)
        if answer.status_code == 303:
            self.csrf = field((await self.get("/portal/scale-and-pricing")).text, "csrf")
        return answer


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """Serve an application on loopback, on this loop; gives its URL."""
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_config=None, lifespan="on", timeout_graceful_shutdown=2))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


# ===== stories

Story = Callable[[Service], Awaitable[None]]
Shared = Callable[[Story], None]


def play(folder: Path, story: Story, *others: str, **settings: Any) -> None:
    """Have a story told with a service of its own."""

    async def played() -> None:
        async with service(folder, *others, **settings) as made:
            await story(made)

    asyncio.run(played())


def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """One service in three regions for all stories that change nothing: `shared = pytest.fixture(scope="module")(sharing)`."""
    with asyncio.Runner() as runner:
        running = service(tmp_path_factory.mktemp("shared"), "westeurope", "eastasia")
        made = runner.run(running.__aenter__())
        yield lambda story: runner.run(_told(story, made))
        runner.run(running.__aexit__(None, None, None))


async def _told(story: Story, made: Service) -> None:
    made.portal.tokens.attempts = Attempts()  # others' mistakes are not this one's
    await story(made)


async def operator(made: Service, role: str = "operator", base: str = "") -> Visitor:
    """Somebody who has signed in. base: URL of a server, "" = without one"""
    visitor = Visitor(None, base) if base else Visitor(made.app)
    made.visitors.append(visitor)
    assert (await visitor.sign_in(made.tokens[role])).status_code == 303
    return visitor


# ===== forms


def field(html: str, name: str) -> str:
    """Give the value of a form's field."""
    found = re.search(rf'name="{name}" value="([^"]*)"', html)
    assert found, f"no field {name}"
    return found[1]


async def rows(visitor: Visitor) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The Locations form as the page has it: its fields, and its rows."""
    html = (await visitor.get("/portal/scale-and-pricing")).text
    tree, _ = markup.parsed(html)
    found = [json.loads(each.attrib["value"]) for each in tree.iter() if each.attrib.get("name") == "row" and each.attrib["value"]]
    return {"etag": field(html, "etag"), "tier": "Premium", "network_mode": "None"}, [row for row in found if row["name"]]


def sent(fields: dict[str, Any], wanted: list[dict[str, Any]], **more: str) -> dict[str, Any]:
    """The form with these rows."""
    return fields | {"row": [json.dumps(row) for row in wanted]} | more


def added(name: str, units: int = 1, **more: Any) -> dict[str, Any]:
    """A row that somebody added."""
    draft = {"name": name, "state": "draft-add", "units": units, "zones": [], "disableGateway": False, "subnet": "", "publicIp": ""}
    return draft | {"carried": {}} | more


async def profile(visitor: Visitor) -> dict[str, str]:
    """The profile's form as the page has it."""
    tree, _ = markup.parsed((await visitor.get("/portal/traffic-manager")).text)
    fields = {}
    for each in tree.iter():
        if each.attrib.get("name") and each.attrib.get("type") != "checkbox" and "value" in each.attrib:
            fields[each.attrib["name"]] = each.attrib["value"]
        if markup.tag(each) == "select":
            chosen = [option for option in each if "selected" in option.attrib]
            fields[each.attrib["name"]] = "".join(chosen[0].itertext())
    return fields
