"""Plane: what edges are told, what they say, and what is made of it; on virtual time."""

from __future__ import annotations

import asyncio
import base64
import zlib
from pathlib import Path
from typing import Any

import pytest
from planes import Place, done, living, report, running, with_regions
from syncing import in_virtual_time

from lbcore import Balancer, Region
from lbcore.errors import ServiceError
from lbcore.service.configuration import read_tags
from lbcore.service.plane import Plane
from lbcore.service.remote import answer
from lbcore.service.rotation_document import Rotation


def now(plane: Plane) -> Rotation:
    rotation = plane.rotation()
    assert rotation is not None
    return rotation


def events(place: Place, kind: str) -> list[tuple[str, dict[str, Any]]]:
    return [(event.region, dict(event.detail)) for event in place.store.events.since(0) if event.kind == kind]


# ===== rotation


def test_who_waits_is_told_as_soon_as_a_region_is_listed(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        first = now(plane)
        assert [one.name for one in first.regions] == ["westus2"]
        assert await plane.wait_rotation(first.tag, 5.0) is first
        waiting = asyncio.create_task(plane.wait_rotation(first.tag, 100.0))
        saved = await plane.patch({"properties": {"additionalLocations": [{"location": "westeurope"}]}}, who="ann", if_match="*")
        second = await waiting
        assert second is not None and [one.name for one in second.regions] == ["westus2", "westeurope"]
        assert second.number > first.number and (await plane.wait_rotation(first.tag, 100.0)) is second
        await done(plane, saved)
        assert now(plane) is second  # what an operation writes of itself is no news to edges

    living(work, tmp_path)


def test_the_rotation_is_served_as_configurations_are(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        status, headers, content = await answer(plane.rotations, "GET", {})
        assert (status, headers["etag"], content) == (200, now(plane).tag, now(plane).document)
        assert (await answer(plane.rotations, "GET", {"if-none-match": now(plane).tag}))[0] == 304
        held = asyncio.create_task(answer(plane.rotations, "HEAD", {"if-none-match": now(plane).tag, "prefer": "wait=50"}))
        await asyncio.sleep(10)
        assert not held.done()
        await plane.set_traffic_manager({"properties": {"dnsConfig": {"ttl": 9}}}, who="ann", if_match="*")
        status, headers, _ = await held
        assert status == 200 and read_tags(headers["etag"])[0].number == now(plane).number
        with pytest.raises(ServiceError):
            await plane.rotations.put({}, who="ann")

    living(work, tmp_path)


def test_after_a_restart_the_same_is_told_with_no_lower_number(tmp_path: Path) -> None:
    async def main() -> None:
        place = Place(tmp_path)
        async with running(place) as plane:
            await done(plane)
            await with_regions(plane, "westeurope", "eastasia")
            before = now(plane)
        async with running(place) as plane:
            after = now(plane)
            assert after.regions == before.regions and after.number >= before.number

    in_virtual_time(main())


def test_a_region_leaves_when_every_edge_has_let_go_of_it(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        await with_regions(plane, "westeurope")
        listed = report("edge-1", plane, idle=[])
        saved = await plane.remove_location("westeurope", who="ann", if_match="*")
        for _ in range(8):  # it is heard of, and does not follow
            await asyncio.sleep(1.0)
            await plane.report("edge-1", listed)
        assert "westeurope" in place.world.sites
        assert [(one.name, one.draining) for one in now(plane).regions] == [("westus2", False), ("westeurope", True)]
        for _ in range(8):
            await plane.report("edge-1", report("edge-1", plane, idle=["westeurope"]))
            await asyncio.sleep(0.5)
        assert await done(plane, saved) == "Succeeded" and "westeurope" not in place.world.sites

    living(work, tmp_path)


def test_a_region_is_not_stopped_under_an_edge_that_does_not_let_go(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        await with_regions(plane, "westeurope")
        listed = report("edge-1", plane)

        async def deaf() -> None:
            while True:
                await plane.report("edge-1", listed)
                await asyncio.sleep(2.0)

        task = asyncio.create_task(deaf())
        saved = await plane.remove_location("westeurope", who="ann", if_match="*")
        assert await done(plane, saved) == "Failed"
        assert "westeurope" in place.world.sites and (await plane.state()).of("westeurope").provisioning_state == "TerminationFailed"
        task.cancel()
        await asyncio.sleep(11.0)  # it is not heard of any more
        again = await plane.runner.retry(who="ann")
        assert again is not None and (await plane.runner.wait(again.id)).status == "Succeeded"

    living(work, tmp_path)


def test_a_primary_that_has_just_started_waits_for_word_of_its_edges(tmp_path: Path) -> None:
    async def main() -> None:
        place = Place(tmp_path)
        async with running(place) as plane:
            await done(plane)
            await with_regions(plane, "westeurope")
            await plane.report("edge-1", report("edge-1", plane))
            await plane.remove_location("westeurope", who="ann", if_match="*")
            while [one.name for one in now(plane).regions] != ["westus2"]:
                await plane.report("edge-1", report("edge-1", plane))
                await asyncio.sleep(0.1)
            listed = report("edge-1", plane, rotation="1.1")  # it has not let go of the region when the primary dies
        assert "westeurope" in place.world.sites
        async with running(place) as plane:
            for _ in range(10):
                await asyncio.sleep(1.0)
                await plane.report("edge-1", listed)
            assert "westeurope" in place.world.sites
            while "westeurope" in place.world.sites:
                await plane.report("edge-1", report("edge-1", plane))
                await asyncio.sleep(0.5)
            assert await done(plane) == "Succeeded"

    in_virtual_time(main())


# ===== reports


def test_statuses_are_those_of_edges_while_they_are_fresh_else_the_primarys_own(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        await with_regions(plane, "westeurope")
        await asyncio.sleep(3)
        assert plane.statuses() == {"westus2": "Online", "westeurope": "Online"} and plane.profile_status() == "Online"
        seen = {"westus2": {"status": "up"}, "westeurope": {"status": "down", "calls": 5, "failures": 5}, "elsewhere": {"status": "up"}}
        await plane.report("edge-1", report("edge-1", plane, regions=seen))
        assert plane.statuses()["westeurope"] == "Degraded" and plane.cause("westeurope") == "seen by edge-1"
        assert plane.profile_status() == "Degraded" and "elsewhere" not in plane.edges()[0].regions
        for edge in ("edge-2", "edge-3"):
            await plane.report(edge, report(edge, plane, regions={"westeurope": {"status": "up"}}))
        assert plane.statuses()["westeurope"] == "Online"
        await asyncio.sleep(11)
        assert plane.statuses()["westeurope"] == "Online" and [one.edge for one in plane.edges()] == ["edge-3", "edge-2", "edge-1"]
        place.dead.add("westeurope")
        await asyncio.sleep(6)
        assert plane.statuses()["westeurope"] == "Degraded"
        ((region, detail),) = events(place, "EndpointStatusChanged")[-1:]
        assert (region, detail) == ("westeurope", {"before": "Online", "after": "Degraded", "cause": "probe refused x3"})

    living(work, tmp_path)


def test_every_word_of_an_endpoint(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        await with_regions(plane, "westeurope", "eastasia", "uksouth")
        await asyncio.sleep(3)
        place.dead |= {"eastasia", "uksouth"}
        endpoints = [
            {"region": "westus2"}, {"region": "westeurope", "endpointStatus": "Disabled"}, {"region": "eastasia"},
            {"region": "uksouth", "alwaysServe": "Enabled"},
        ]  # fmt: skip
        await plane.set_traffic_manager({"properties": {"endpoints": endpoints}}, who="ann", if_match="*")
        await asyncio.sleep(8)
        assert plane.statuses() == {"westus2": "Online", "westeurope": "Disabled", "eastasia": "Degraded", "uksouth": "Unmonitored"}
        assert [region.name for region in plane.rank("203.0.113.1")] and "westeurope" not in {one.name for one in plane.rank(None)}
        assert {one["name"]: one["endpointMonitorStatus"] for one in plane.endpoints()} == plane.statuses()
        assert [each.enabled for each in now(plane).regions] == [True] * 4  # the gateways are not switched off
        await done(plane, await plane.disable_gateway("westus2", True, who="ann", if_match="*"))
        assert plane.statuses()["westus2"] == "Disabled" and ("westus2", True) in place.world.switched
        assert now(plane).get("westus2").enabled is False  # type: ignore[union-attr]

    async def off(place: Place, plane: Plane) -> None:
        await plane.set_traffic_manager({"properties": {"profileStatus": "Disabled"}}, who="ann", if_match="*")
        assert plane.statuses() == {"westus2": "Inactive"} and plane.profile_status() == "Disabled"
        with pytest.raises(ServiceError, match="NoRegionAvailable"):
            plane.route("203.0.113.1")

    for name, each in (("a", work), ("b", off)):
        (tmp_path / name).mkdir()
        living(each, tmp_path / name)


def test_internal_services_have_no_endpoints_and_are_ranked_still(tmp_path: Path) -> None:
    from service_worlds import subnet

    async def work(place: Place, plane: Plane) -> None:
        patch = {"properties": {"virtualNetworkType": "Internal", "virtualNetworkConfiguration": {
            "subnetResourceId": subnet("westus2"), "location": "westus2"}}}  # fmt: skip
        assert await done(plane, await plane.patch(patch, who="ann", if_match="*", acknowledged=True)) == "Succeeded"
        assert plane.endpoints() == [] and plane.profile_status() == "Inactive" and now(plane).network_mode == "Internal"
        assert [one.name for one in plane.rank("203.0.113.1")] == ["westus2"]

    living(work, tmp_path)


def test_what_edges_learned_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(place: Place, plane: Plane) -> None:
        await with_regions(plane, "westeurope")
        client = "81.2.69.160"
        await asyncio.sleep(60)  # a region that is new gets its clients by and by
        assert plane.route(client).name == "westeurope"
        edge = Balancer([Region("westus2"), Region("westeurope")], clock=plane._monotonic)
        for _ in range(50):
            edge.observe("westeurope", 400.0, client)
            edge.observe("westus2", 20.0, client)
        edge.save(tmp_path / "learned")
        learned = base64.b64encode((tmp_path / "learned").read_bytes()).decode()
        await plane.report("edge-1", report("edge-1", plane, learned=learned))
        await asyncio.sleep(30)
        assert plane.route(client).name == "westus2"
        found = {one.region: one.estimate_ms for one in plane.explain(client).candidates}
        assert found["westeurope"] > 200
        bomb = zlib.compress(b"{}\n" + bytes(80 << 20), 9)
        for junk in (b"", b"LBSTATE1" + bytes(100), b"\x00" * 50, b"LBSTATE1" + zlib.crc32(bomb).to_bytes(4, "little") + bomb):
            await plane.report("edge-1", report("edge-1", plane, learned=base64.b64encode(junk).decode()))
            await asyncio.sleep(5)
        assert plane.route(client).name == "westus2" and "too much to be true" in caplog.text

    living(work, tmp_path)


def test_events_of_edges_are_kept_and_no_edge_writes_what_others_do(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        one = {"at": 5, "kind": "RegionStatusChanged", "region": "West US 2", "before": "up", "after": "down", "cause": "timeout"}
        forged = one | {"kind": "OperationSucceeded"}
        await plane.report("edge-1", report("edge-1", plane, events=[one, forged, one | {"region": "mars"}]))
        expected = {"edge": "edge-1", "before": "up", "after": "down", "cause": "timeout", "seen": 5.0}
        assert events(place, "RegionStatusChanged") == [("westus2", expected)]
        assert events(place, "EdgeEvent") == [("westus2", expected | {"kind": "OperationSucceeded"})]
        await plane.report("edge-1", report("edge-1", plane) | {"rotation": "9.1"})
        await plane.report("edge-1", report("edge-1", plane) | {"rotation": "9.1"})
        assert [detail["rotation"] for _, detail in events(place, "EdgeAhead")] == ["9.1"]
        for _ in range(10):  # an edge that talks without end fills no disk
            await plane.report("edge-1", report("edge-1", plane, events=[one] * 100))
        assert len(events(place, "RegionStatusChanged")) <= 20
        await asyncio.sleep(10)
        await plane.report("edge-1", report("edge-1", plane, events=[one] * 100))
        assert 20 <= len(events(place, "RegionStatusChanged")) <= 25

    living(work, tmp_path)


def test_a_token_speaks_for_its_own_edge_alone(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        with pytest.raises(ServiceError, match="edge-2"):
            await plane.report("edge-2", report("edge-1", plane))
        await plane.report("edge-1", report("Edge-1", plane))
        assert [one.edge for one in plane.edges()] == ["edge-1"]

    living(work, tmp_path)


def test_network_status_tells_who_is_reached(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        await with_regions(plane, "westeurope")
        place.dead.add("westeurope")
        found = {one["name"]: one["networkStatus"]["connectivityStatus"][0]["status"] for one in await plane.network_status()}
        assert found == {"westus2": "success", "westeurope": "failure"}
        assert len(await plane.network_status("West Europe")) == 1
        with pytest.raises(ServiceError, match="ResourceNotFound"):
            await plane.network_status("mars")

    living(work, tmp_path)


@pytest.mark.parametrize("client", ["", "nonsense", "300.1.1.1"])
def test_what_is_no_address_is_refused(tmp_path: Path, client: str) -> None:
    async def work(place: Place, plane: Plane) -> None:
        for ask in (plane.route, plane.rank, plane.explain):
            with pytest.raises(ServiceError, match="InvalidProperty"):
                ask(client)

    living(work, tmp_path)
