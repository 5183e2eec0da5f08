"""Plane: what operators wish for, in which order it is refused, what comes of it; on virtual time."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planes import FAST, TIMES, Place, done, living, running, wanted, with_regions
from service_worlds import contoso
from syncing import in_virtual_time

from lbcore.errors import ServiceError
from lbcore.service.backup import backup
from lbcore.service.model import location, new_service
from lbcore.service.plane import Plane
from lbcore.service.provisioning import Manual
from lbcore.service.store import Store


async def refused(work: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await work
    return caught.value


# ===== a service begins, changes, ends


def test_the_service_of_the_file_is_created_once_and_then_the_store_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        place = Place(tmp_path, {"founding": wanted("westeurope")})
        async with running(place) as plane:
            assert await done(plane) == "Succeeded"
            assert {*plane.statuses()} == {"westus2", "westeurope"}
            assert (await plane.operations())[0].who == "lbcore.toml"
            saved = await plane.remove_location("West Europe", who="ann", if_match="*")
            assert await done(plane, saved) == "Succeeded"
            before = await plane.state()
        async with running(place) as plane:
            assert await plane.state() == before
            assert "lbcore.toml differs in westeurope" in caplog.text
            operation = await plane.delete(who="ann", if_match="*")
            assert operation is not None and (await plane.runner.wait(operation.id)).status == "Succeeded"
        async with running(place) as plane:  # deleted is deleted
            assert (await refused(plane.state())).code == "ResourceNotFound"
            assert await plane.delete(who="ann") is None and plane.rotation() is None

    in_virtual_time(main())


def test_a_start_says_that_another_location_was_promoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        place = Place(tmp_path, {"founding": wanted()})
        async with running(place) as plane:
            assert await done(plane) == "Succeeded"
        place.store.fence(7, who="other")
        async with running(place):
            assert "read-only: another location was promoted, with epoch 7" in caplog.text

    in_virtual_time(main())


def test_put_creates_changes_and_reads_back(tmp_path: Path) -> None:
    async def main() -> None:
        place = Place(tmp_path, {"founding": None})
        async with running(place) as plane:
            assert (await refused(plane.body())).code == "ResourceNotFound"
            assert (await refused(plane.put("other", {"location": "westus2"}, who="ann"))).code == "ResourceNotFound"
            assert (await refused(plane.put("contoso", {"location": "westus2"}, who="ann", if_match='"x"'))).code == "PreconditionFailed"
            saved = await plane.put("Contoso", {"location": "West US 2"}, who="ann")
            assert saved.created and await done(plane, saved) == "Succeeded"
            body, etag = await plane.body()
            assert body["sku"] == {"name": "Premium", "capacity": 1} and body["properties"]["portalUrl"] == "http://127.0.0.1:9180/portal/"
            again = await plane.put("contoso", body, who="bob", if_match=f'"{etag}"')
            assert again.plan.empty and again.operation is None and not again.created and (await plane.state()).etag == etag
            body["sku"]["capacity"] = 3
            changed = await plane.put("contoso", body, who="bob", if_match=etag)
            assert not changed.created and await done(plane, changed) == "Succeeded"
            assert (await plane.state()).service.primary.units == 3

    in_virtual_time(main())


def test_what_needs_nothing_deployed_is_written_at_once(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        before = await plane.state()
        saved = await plane.patch({"sku": {"name": "Standard"}}, who="ann", if_match=before.etag)
        assert saved.operation is None and not saved.plan.empty and saved.state.etag != before.etag
        assert (await plane.state()).service.tier == "Standard" and len(await plane.operations()) == 1

        async def meanwhile(*arguments: Any) -> Any:
            """Let somebody else write between the plan and the write."""
            if not changed:
                changed.append(place.store.save(place.store.state(), who="bob", what="other"))  # type: ignore[arg-type]
            return arguments[0](*arguments[1:])

        changed: list[Any] = []
        call = plane.stored.call
        plane.stored.call = lambda what, *rest: (
            meanwhile(what, *rest) if getattr(what, "func", None) == place.store.update else call(what, *rest)
        )
        assert (await refused(plane.patch({"sku": {"name": "Basic"}}, who="ann", if_match="*"))).code == "PreconditionFailed"
        plane.stored.call = call
        assert (await plane.state()).service.tier == "Standard"

    living(work, tmp_path)


def test_locations_come_and_go_one_by_one(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        added = await plane.save_location("westeurope", {"sku": {"capacity": 2}}, who="ann", if_match="*")
        assert await done(plane, added) == "Succeeded" and (await plane.state()).service.get("westeurope").units == 2
        other = await plane.save_location("West Europe", {"location": "westeurope", "sku": {"capacity": 4}}, who="ann", if_match="*")
        assert await done(plane, other) == "Succeeded" and len((await plane.state()).service.locations) == 2
        own = await plane.save_location("westus2", {"sku": {"capacity": 5}}, who="ann", if_match="*")
        assert await done(plane, own) == "Succeeded" and (await plane.state()).service.primary.units == 5
        state = await plane.state()
        for name, row, code in (
            ("westus2", {"location": "eastasia"}, "PropertyChangeNotAllowed"), ("nowhere", {}, "LocationNotAvailable"),
            ("eastasia", [], "InvalidProperty"), ("eastasia", {"sku": {"capacity": 0}}, "InvalidSkuCapacity"),
        ):  # fmt: skip
            assert (await refused(plane.save_location(name, row, who="ann", if_match="*"))).code == code
        assert (await refused(plane.remove_location("West US 2", who="ann", if_match="*"))).code == "CannotRemovePrimary"
        absent = await plane.remove_location("eastasia", who="ann", if_match="*")
        assert absent.plan.empty and (await plane.state()).etag == state.etag
        gone = await plane.remove_location("westeurope", who="ann", if_match=state.etag)
        assert await done(plane, gone) == "Succeeded" and [*place.world.sites] == ["westus2"]

    living(work, tmp_path)


def test_a_location_as_it_is_shown_is_no_change(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        await with_regions(plane, "westeurope")
        body, etag = await plane.body()
        row = body["properties"]["additionalLocations"][0]
        assert (await plane.save_location("westeurope", row, who="ann", if_match=etag)).plan.empty
        row["publicIPAddresses"] = ["192.0.2.99"]
        assert (await refused(plane.save_location("westeurope", row, who="ann", if_match=etag))).code == "ReadOnlyProperty"

    living(work, tmp_path)


# ===== refusals


def test_refusals_come_in_their_order(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        bad = {"sku": {"capacity": 99}, "properties": {"additionalLocations": [{"location": "westus2"}]}}
        state = await plane.state()
        assert (await refused(plane.patch(bad, who="ann"))).code == "PreconditionRequired"
        assert (await refused(plane.patch(bad, who="ann", if_match='"old"'))).code == "PreconditionFailed"
        running = await plane.patch({"sku": {"capacity": 2}}, who="ann", if_match=state.etag)
        locked = await refused(plane.patch(bad, who="bob", if_match="*"))
        assert running.operation is not None and (locked.code, locked.target) == ("OperationInProgress", running.operation.id)
        assert (await refused(plane.patch(bad, who="bob", if_match='"old"'))).code == "PreconditionFailed"  # before the lock
        assert (await plane.plan({"sku": {"capacity": 3}}))[0].steps  # looking is free
        await done(plane, running)
        error = await refused(plane.patch(bad, who="ann", if_match="*"))
        assert {each.code for each in error.details} == {"InvalidSkuCapacity", "DuplicateLocation"}
        place.store.fence(7, who="other")
        assert (await refused(plane.patch(bad, who="ann", if_match='"old"'))).code == "Fenced"
        assert (await refused(plane.set_traffic_manager({}, who="ann", if_match='"old"'))).code == "Fenced"

    living(work, tmp_path)


def test_vip_changes_are_acknowledged_or_nothing_happens(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        state = await plane.state()
        patch = {"zones": ["1"]}
        assert (await refused(plane.patch(patch, who="ann", if_match="*"))).code == "VipChangeNotAcknowledged"
        assert await plane.state() == state
        saved = await plane.patch(patch, who="ann", if_match="*", acknowledged=True)
        assert await done(plane, saved) == "Succeeded"
        assert (await plane.state()).of("westus2").public_ips != state.of("westus2").public_ips

    living(work, tmp_path)


def test_of_parallel_saves_with_one_etag_one_is_accepted(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        etag = (await plane.state()).etag
        saves = (plane.patch({"sku": {"capacity": number + 2}}, who=f"w{number}", if_match=etag) for number in range(20))
        found = await asyncio.gather(*saves, return_exceptions=True)
        accepted = [one for one in found if not isinstance(one, BaseException)]
        assert len(accepted) == 1
        assert {one.code for one in found if isinstance(one, ServiceError)} <= {"PreconditionFailed", "OperationInProgress"}
        await done(plane)

    living(work, tmp_path)


def test_a_cancelled_save_leaves_the_wish_as_it_was(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        before = (await plane.state()).service
        saved = await plane.patch({"sku": {"capacity": 4}}, who="ann", if_match="*")
        assert saved.operation is not None
        ended = await plane.cancel(saved.operation.id, who="bob")
        assert ended.status == "Canceled" and (await plane.state()).service == before
        assert "OperationCanceled" in [event.kind for event in place.store.events.since(0)]
        assert (await refused(plane.cancel("nonsense", who="bob"))).code == "ResourceNotFound"

    living(work, tmp_path, times=replace(TIMES, hold=5.0))


# ===== the profile


def test_the_profile_is_patched_stored_and_obeyed_while_everything_runs(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        body, etag = await plane.traffic_manager()
        assert body["properties"]["monitorConfig"]["intervalInSeconds"] == 1.0
        assert (await refused(plane.set_traffic_manager({}, who="ann"))).code == "PreconditionRequired"
        assert (await refused(plane.set_traffic_manager({}, who="ann", if_match='"0"'))).code == "PreconditionFailed"
        same, kept = await plane.set_traffic_manager({"properties": {"dnsConfig": {"ttl": 3}}}, who="ann", if_match=etag)
        assert (same, kept) == (body, etag)
        wrong = {"properties": {"dnsConfig": {"ttl": -1}, "monitorConfig": {"timeoutInSeconds": 9}}}
        error = await refused(plane.set_traffic_manager(wrong, who="ann", if_match=etag))
        assert {each.code for each in error.details} == {"InvalidEndpoint", "InvalidMonitorConfig"}
        await asyncio.sleep(3)
        before, number = plane.lb, plane.rotation().number  # type: ignore[union-attr]
        times = await plane.failover_times({"properties": {"monitorConfig": {"intervalInSeconds": 10}}})
        assert times.detect_refused.longest == 30.0 and (await plane.failover_times()).detect_refused.longest == 3.0
        _, etag = await plane.set_traffic_manager({"properties": {"monitorConfig": {"intervalInSeconds": 4}}}, who="ann", if_match=etag)
        assert plane.rotation().number > number and plane.lb is not before  # type: ignore[union-attr]
        assert plane.statuses() == {"westus2": "Online"}  # nobody forgets what was known
        number = plane.rotation().number  # type: ignore[union-attr]
        await plane.set_traffic_manager({"properties": {"dnsConfig": {"ttl": 4}}}, who="ann", if_match="*")
        assert plane.rotation().number > number  # type: ignore[union-attr]
        place.probed.clear()
        await asyncio.sleep(40)
        assert 8 <= len(place.probed) <= 11
        assert plane.statuses() == {"westus2": "Online"}
        assert (await plane.state()).etag == (await plane.body())[1]

    living(work, tmp_path)


def test_a_region_that_the_profile_names_cannot_be_removed_under_it(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        await with_regions(plane, "westeurope")
        endpoints = [{"region": "westeurope"}, {"region": "westus2"}]
        await plane.set_traffic_manager({"properties": {"endpoints": endpoints}}, who="ann", if_match="*")
        error = await refused(plane.remove_location("westeurope", who="ann", if_match="*"))
        assert error.code == "InvalidEndpoint" and "westeurope" in str(error)

    living(work, tmp_path)


# ===== restore, and what others write


def test_a_restore_is_followed_by_a_save(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        manifest = await plane.backup(tmp_path / "b.zip", who="ann")
        assert manifest.service == "contoso"
        await with_regions(plane, "westeurope")
        epoch = plane.rotation().number.epoch  # type: ignore[union-attr]
        restored = await plane.restore(tmp_path / "b.zip", who="ann")
        assert restored.epoch > epoch and plane.rotation().number.epoch == restored.epoch  # type: ignore[union-attr]
        assert [one.name for one in plane.rotation().regions] == ["westus2", "westeurope"]  # type: ignore[union-attr]
        operation = await plane.runner.retry(who="ann")
        assert operation is not None and (await plane.runner.wait(operation.id)).status == "Succeeded"
        assert [one.name for one in plane.rotation().regions] == ["westus2"]  # type: ignore[union-attr]

    living(work, tmp_path)


def test_what_another_process_writes_is_seen(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        with Store(place.folder / "store") as beside:
            backup(beside, tmp_path / "b.zip")
            beside.revisions.begin_epoch(who="bob", why="win")
            async with plane.subscribe() as notices:
                while await notices.get() != "rotation":
                    pass
            assert plane.rotation().number.epoch == 2  # type: ignore[union-attr]
            beside.fence(9, who="bob")
        assert (await refused(plane.patch({}, who="ann", if_match="*"))).code == "Fenced"

    living(work, tmp_path)


def test_one_plane_a_store(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        with Store(place.folder / "store") as again:
            place.store, kept = again, place.store
            with pytest.raises(ServiceError, match="StoreLocked"):
                async with running(place):
                    pass
            place.store = kept

    living(work, tmp_path)


def test_a_file_whose_service_is_unsound_is_refused_at_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        place = Place(tmp_path, {"founding": new_service("contoso", location("westus2", units=99)), "traffic_manager": FAST})
        with pytest.raises(ServiceError, match="InvalidSkuCapacity"):
            async with running(place):
                pass
        async with running(place, founding=contoso()) as plane:  # and nothing is left locked
            assert await done(plane) == "Succeeded"

    in_virtual_time(main())


def test_a_person_may_be_the_provisioner(tmp_path: Path) -> None:
    async def main() -> None:
        place = Place(tmp_path, {"times": replace(TIMES, sync=5.0)})
        manual = Manual()
        plane = place.plane()
        plane.provisioner = plane.runner._provisioner = manual
        async with plane:
            while not plane.orders():
                await asyncio.sleep(1)
            (order,) = plane.orders()
            assert (order["work"], order["name"], order["units"], order["newPublicIP"]) == ("create", "westus2", 1, True)
            for body in ([], {"publicIPAddresses": "x"}, {"gateway": 1}, {"color": 1}):
                with pytest.raises(ServiceError, match="InvalidProperty|UnknownProperty"):
                    plane.answer_order("westus2", order["id"], body)
            with pytest.raises(ServiceError, match="ResourceNotFound"):
                plane.answer_order("westus2", 99, {})
            plane.answer_order("westus2", order["id"], {"refusal": "no quota"})
            assert await done(plane) == "Failed" and (await plane.state()).of("westus2").reason == "no quota"

    in_virtual_time(main())


# ===== configurations


def test_a_document_is_tried_by_a_gateway_before_it_is_published(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        good = {"backends": [{"name": "b", "urls": ["http://127.0.0.1:1"]}], "apis": [{"name": "a", "path": "/a", "backend": "b"}]}
        tag = await plane.configuration.put(good, who="ann")
        assert str(tag.number) == "1.1"
        bad = json.loads(json.dumps(good))
        bad["apis"][0]["policies"] = [{"kind": "no-such-policy"}]
        assert (await refused(plane.configuration.put(bad, who="ann"))).code == "InvalidConfiguration"
        elsewhere = json.loads(json.dumps(good))
        elsewhere["backends"][0]["regions"] = {"eastasia": ["http://127.0.0.1:2"]}
        assert (await refused(plane.configuration.put(elsewhere, who="ann"))).code == "InvalidConfiguration"

    living(work, tmp_path)
