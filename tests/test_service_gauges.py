"""How busy each region is: gathered from gateways that may be slow, gone or lying, and shown by REST, metrics and commands (R61)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from desks import Desk, codes
from desks import managed as desk_of
from gatewaying import document, serving
from managing import given_json, managed, ok
from planes import Place, done, running, with_regions
from proxying import OK, Reader, Writer, origin, read_request
from regions import Regions
from syncing import in_virtual_time

from lbcore.http.forward import Timeouts
from lbcore.http.gateway import Units
from lbcore.service import gauges
from lbcore.service.capacity import Gauge
from lbcore.service.facts import Facts
from lbcore.service.gauges import EVERY, FRESH, Capacity
from lbcore.service.plane import Plane
from lbcore.service.rotation import Look, StatusPages

IDLE = {"average": 5.0, "maximum": 30.0}
BUSY = {"average": 72.5, "maximum": 98.0}
LIES = [
    None, 7, "70 %", [], {}, {"average": 5.0}, {"average": None, "maximum": None}, {"average": "5", "maximum": "9"},
    {"average": True, "maximum": True}, {"average": float("nan"), "maximum": 9.0}, {"average": 5.0, "maximum": float("inf")},
    {"average": -0.1, "maximum": 9.0}, {"average": 5.0, "maximum": 100.1},
    {"average": 10**400, "maximum": 10**400}, {"average": {}, "maximum": []},
]  # fmt: skip


class Gateways:
    """Status pages of a world's regions, over HTTP and on virtual time. says: of their capacity;  hung: those that never answer"""

    def __init__(self) -> None:
        self.place: Place | None = None
        self.says, self.hung, self.asked = dict[str, object](), set[str](), list[tuple[str, float]]()
        self.pages = StatusPages(client=httpx.AsyncClient(transport=httpx.MockTransport(self._answer)))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host.removesuffix(".test")
        self.asked.append((name, asyncio.get_running_loop().time()))
        if name in self.hung:
            await asyncio.sleep(1e6)
        assert self.place is not None
        site = self.place.world.sites[name]
        revision = str(site.revision) if site.revision else None
        page = {"status": "serving" if revision else "not ready", "region": site.says, "revision": revision}
        content = json.dumps(page | {"capacity": self.says.get(name, IDLE)}).encode()
        return httpx.Response(200, stream=httpx.ByteStream(content))


def watched(folder: Path, work: Callable[[Gateways, Plane], Coroutine[Any, Any, None]]) -> None:
    """Do something with a plane of two regions, whose gateways say of their capacity what the test wants."""

    async def main() -> None:
        gateways = Gateways()
        gateways.place = Place(folder, pages=gateways.pages)
        async with running(gateways.place) as plane:
            await done(plane)
            await with_regions(plane, "westeurope")
            await plane.refresh()
            await asyncio.sleep(EVERY)
            await work(gateways, plane)
        gateways.place.store.close()

    in_virtual_time(main())


# ===== gathered


def test_every_region_is_asked_and_what_it_says_is_shown_with_what_to_do(tmp_path: Path) -> None:
    async def work(gateways: Gateways, plane: Plane) -> None:
        assert plane.capacities() == dict.fromkeys(("westus2", "westeurope"), Capacity(Gauge(5.0, 30.0), 1))
        gateways.says["westeurope"] = BUSY
        await asyncio.sleep(EVERY)
        assert plane.capacities() == {"westus2": Capacity(Gauge(5.0, 30.0), 1), "westeurope": Capacity(Gauge(72.5, 98.0), 2)}

    watched(tmp_path, work)


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: str(lie)[:40])
def test_what_can_be_no_percentage_counts_as_not_said(tmp_path: Path, lie: object) -> None:
    async def work(gateways: Gateways, plane: Plane) -> None:
        gateways.says["westeurope"] = lie
        await asyncio.sleep(FRESH + EVERY)
        assert plane.capacities() == {"westus2": Capacity(Gauge(5.0, 30.0), 1)}
        assert (await plane.network_status("westeurope"))[0]["networkStatus"]["connectivityStatus"][0]["status"] == "success"
        gateways.says["westeurope"] = {"average": 0, "maximum": 100}  # the ends are percentages
        await asyncio.sleep(EVERY)
        assert plane.capacities()["westeurope"].gauge == Gauge(0.0, 100.0)

    watched(tmp_path, work)


def test_a_gateway_that_calls_itself_another_is_not_believed(tmp_path: Path) -> None:
    async def work(gateways: Gateways, plane: Plane) -> None:
        assert gateways.place is not None
        gateways.place.world.sites["westeurope"].says, gateways.says["westeurope"] = "westus2", BUSY
        await asyncio.sleep(FRESH + EVERY)
        assert plane.capacities() == {"westus2": Capacity(Gauge(5.0, 30.0), 1)}

    watched(tmp_path, work)


def test_a_gateway_that_hangs_delays_no_other_and_is_forgotten_in_a_minute(tmp_path: Path) -> None:
    async def work(gateways: Gateways, plane: Plane) -> None:
        gateways.hung.add("westeurope")
        gateways.asked.clear()
        await asyncio.sleep(FRESH - EVERY - 2.0)
        assert plane.capacities().keys() == {"westus2", "westeurope"}  # what it said still speaks of the last minute
        await asyncio.sleep(EVERY + 2.0)
        assert plane.capacities().keys() == {"westus2"}
        for name in ("westus2", "westeurope"):
            times = [at for each, at in gateways.asked if each == name]
            assert len(times) >= 5
            assert [later - at for at, later in zip(times, times[1:], strict=False)] == pytest.approx([EVERY] * (len(times) - 1))
        gateways.hung.clear()
        await asyncio.sleep(EVERY)
        assert plane.capacities().keys() == {"westus2", "westeurope"}

    watched(tmp_path, work)


def test_a_region_that_is_gone_is_asked_no_more_and_comes_back_unknown(tmp_path: Path) -> None:
    async def work(gateways: Gateways, plane: Plane) -> None:
        await with_regions(plane)
        await plane.refresh()
        assert plane.capacities().keys() == {"westus2"}
        await asyncio.sleep(EVERY)
        gateways.asked.clear()
        await asyncio.sleep(5 * EVERY)
        assert {name for name, _ in gateways.asked} == {"westus2"}
        gateways.says["westeurope"] = None
        await with_regions(plane, "westeurope")
        assert "westeurope" not in plane.capacities()

    watched(tmp_path, work)


def test_nothing_is_advised_while_another_number_of_units_is_deployed(tmp_path: Path) -> None:
    async def work(gateways: Gateways, plane: Plane) -> None:
        gateways.says["westus2"] = BUSY
        await asyncio.sleep(EVERY)
        assert plane.capacities()["westus2"].advised == 2
        saved = await plane.patch({"sku": {"capacity": 5}}, who="ann", if_match="*")
        await plane.refresh()
        assert plane.capacities()["westus2"] == Capacity(Gauge(72.5, 98.0), None)
        assert await done(plane, saved) == "Succeeded"
        await plane.refresh()
        assert plane.capacities()["westus2"].advised == 6

    watched(tmp_path, work)


def test_fewer_units_are_advised_after_a_minute_with_those_there_are(tmp_path: Path) -> None:
    async def work(gateways: Gateways, plane: Plane) -> None:
        saved = await plane.patch({"sku": {"capacity": 3}}, who="ann", if_match="*")
        assert await done(plane, saved) == "Succeeded"
        gateways.says["westus2"] = {"average": 1.0, "maximum": 2.0}
        await plane.refresh()
        await asyncio.sleep(EVERY)
        assert plane.capacities()["westus2"] == Capacity(Gauge(1.0, 2.0), 3)
        await asyncio.sleep(FRESH)
        assert plane.capacities()["westus2"] == Capacity(Gauge(1.0, 2.0), 2)

    watched(tmp_path, work)


@pytest.mark.parametrize(("most", "advised"), [(1, 1), (2, 2)])
def test_no_more_is_advised_than_the_tier_has(tmp_path: Path, most: int, advised: int) -> None:
    async def main() -> None:
        gateways = Gateways()
        gateways.place, gateways.says["westus2"] = Place(tmp_path, {"facts": Facts(max_units=most)}, pages=gateways.pages), BUSY
        async with running(gateways.place) as plane:
            await done(plane)
            await plane.refresh()
            await asyncio.sleep(EVERY)
            assert plane.capacities()["westus2"].advised == advised
        gateways.place.store.close()

    in_virtual_time(main())


# ===== shown


async def said(desk: Desk, text: str = "westus2") -> Any:
    """Give what REST says of a location's capacity."""
    return (await desk.ask("GET", f"locations/{text}", "reader")).json()["capacity"]


async def until(condition: Callable[[], Coroutine[Any, Any, object]], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.01)


def looking(desk: Desk, monkeypatch: pytest.MonkeyPatch, capacity: Gauge | None) -> None:
    """Have every gateway of a desk say this of its capacity, and be asked all the time."""

    async def look(name: str, gateway: str) -> Look:
        return Look("serving", name, capacity=capacity)

    monkeypatch.setattr(desk.fleet, "look", look)


async def test_load_on_a_gateway_is_seen_at_the_primary_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls at once as its one unit takes: the gauge rises, and at 40 % a second unit is advised. Nobody calls: none is."""
    monkeypatch.setattr(gauges, "EVERY", 0.02)
    release = asyncio.Event()

    async def slow(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await release.wait()
        writer.write(OK)

    options = {"units": Units(concurrency=4), "timeouts": Timeouts()}
    # the plane is the first to end: it closes the connections over which it looks
    async with origin(slow) as there, serving(document(there.url), "westus2", **options) as served, desk_of(tmp_path) as desk:
        page = f"http://127.0.0.1:{served.port}"
        monkeypatch.setattr(desk.fleet, "look", lambda name, gateway: StatusPages.look(desk.fleet, name, page))
        await until(lambda: said(desk))
        idle = await said(desk)
        assert (idle["averagePercent"] < 40, idle["advisedUnits"]) == (True, 1)
        calls = [asyncio.create_task(served.ask()) for _ in range(4)]

        async def advised() -> bool:
            return bool((await said(desk))["advisedUnits"] == 2)

        await until(advised)
        busy = await said(desk)
        assert busy["averagePercent"] >= 40 and busy["maximumPercent"] == 100
        release.set()
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200] * 4


async def test_rest_and_metrics_show_it_and_no_etag_knows_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "EVERY", 0.02)
    async with desk_of(tmp_path) as desk:
        assert (await desk.ask("GET", "locations")).json()["value"][0]["capacity"] is None
        before = await desk.ask("GET", "locations/westus2")
        looking(desk, monkeypatch, Gauge(72.5, 98.0))
        await until(lambda: said(desk))
        shown = {"averagePercent": 72.5, "maximumPercent": 98.0, "advisedUnits": 2}
        assert (await desk.ask("GET", "locations")).json()["value"][0]["capacity"] == await said(desk) == shown
        assert (await desk.ask("GET", "locations/westus2")).headers["etag"] == before.headers["etag"]
        assert "averagePercent" not in (await desk.ask("GET", "")).text
        page = (await desk.ask("GET", "/metrics", "reader")).text.splitlines()
        for line in (
            'lbcore_location_capacity_percent{of="average",region="westus2"} 72.5',
            'lbcore_location_capacity_percent{of="maximum",region="westus2"} 98.0', 'lbcore_location_advised_units{region="westus2"} 2.0',
        ):  # fmt: skip
            assert line in page


async def test_a_row_that_was_read_may_be_sent_back_whatever_its_capacity_is_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "EVERY", 0.02)
    async with desk_of(tmp_path) as desk:
        await desk.save("eastasia")
        looking(desk, monkeypatch, Gauge(72.5, 98.0))
        await until(lambda: said(desk, "eastasia"))
        for name in ("westus2", "eastasia"):
            row, etag = (await desk.ask("GET", f"locations/{name}")).json(), await desk.etag()
            row["capacity"]["averagePercent"] = 1.0
            response = await desk.ask("PUT", f"locations/{name}", json=row, headers={"if-match": "*"})
            assert (response.status_code, response.headers["etag"]) == (200, etag)
            row["capacity"] = 3  # units in the wrong place
            refused = await desk.ask("PUT", f"locations/{name}", json=row, headers={"if-match": "*"})
            assert (refused.status_code, codes(refused)) == (400, {"ReadOnlyProperty"})
        rows = (await desk.ask("GET", "locations")).json()["value"][1:]
        patch = {"properties": {"additionalLocations": rows}}
        assert (await desk.ask("PATCH", "", json=patch, headers={"if-match": "*"})).status_code == 200


def test_the_list_of_regions_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(self: Regions, name: str, gateway: str) -> Look:
        found = await plain(self, name, gateway)
        return replace(found, capacity=Gauge(72.5, 98.0) if name == "westus2" else Gauge(5.0, 30.0)) if found.status else found

    plain = Regions.look
    monkeypatch.setattr(Regions, "look", look)
    monkeypatch.setattr(gauges, "EVERY", 0.05)
    with managed(tmp_path, "westeurope") as made:
        deadline = time.monotonic() + 30
        while not all(row["capacity"] for row in given_json(made, "regions", "list")["locations"]):
            assert time.monotonic() < deadline
        rows = given_json(made, "regions", "list")["locations"]
        assert [row["capacity"]["advisedUnits"] for row in rows] == [2, 1]
        _, first, second, advice = ok(made, "regions", "list").splitlines()
        assert "  1  72 %  automatic" in first and "  1   5 %  automatic" in second
        assert advice == "West US 2: 2 units advised: 72 % busy in the last minute, 98 % at most"
