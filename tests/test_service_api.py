"""The management API: what each route does, for who may."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from desks import APIS, Desk, M, codes, managed

from lbcore.service.configuration import Number, Report, Tag
from lbcore.service.remote import report_text


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with managed(tmp_path) as desk:
        yield desk


# ===== the service


async def test_a_service_is_created_changed_and_deleted(tmp_path: Path) -> None:
    async with managed(tmp_path, service=False) as desk:
        assert (await desk.ask("GET", "/services")).json() == {"value": []}
        assert codes(await desk.ask("GET", "")) == {"ResourceNotFound"}
        made = await desk.ask("PUT", "", json={"location": "West US 2"}, headers={"if-none-match": "*"})
        assert (made.status_code, made.headers["location"]) == (201, M)
        assert (await desk.done(made))["status"] == "Succeeded"
        body = (await desk.ask("GET", "")).json()
        assert (body["location"], body["sku"]) == ("West US 2", {"name": "Premium", "capacity": 1})
        assert body["properties"]["additionalLocations"] == []
        assert (await desk.ask("PUT", "", json={"location": "westus2"}, headers={"if-none-match": "*"})).status_code == 412
        assert (await desk.ask("GET", "/services")).json() == {"value": [{"id": M, "name": "contoso"}]}
        assert (await desk.ask("GET", "", headers={"if-none-match": await desk.etag()})).status_code == 304
        gone = await desk.ask("DELETE", "", headers={"if-match": await desk.etag(), "x-lbcore-why": "it is over"})
        assert (gone.status_code, (await desk.done(gone))["why"]) == (202, "it is over")
        async with asyncio.timeout(10):
            while (await desk.ask("GET", "")).status_code != 404:
                await asyncio.sleep(0.01)
        assert (await desk.ask("DELETE", "")).status_code == 204
        assert (await desk.ask("GET", "rotation", "node")).status_code == 204


async def test_another_service_is_not_here(desk: Desk) -> None:
    for method, path in (("GET", ""), ("PUT", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/rotation"), ("GET", "/gatewayConfiguration")):
        response = await desk.ask(method, f"/services/other{path}", json={"location": "westus2"})
        assert (response.status_code, codes(response)) == (404, {"ResourceNotFound"})
    assert (await desk.ask("GET", "/services/CONTOSO")).json()["name"] == "contoso"


async def test_a_save_is_one_operation_over_the_whole_list(desk: Desk) -> None:
    rows = [{"location": "West Europe", "sku": {"capacity": 3}}, {"location": "eastasia"}]
    headers = {"if-match": await desk.etag(), "x-lbcore-why": "més a prop"}
    response = await desk.ask("PATCH", "", "operator", json={"properties": {"additionalLocations": rows}}, headers=headers)
    assert response.status_code == 202
    assert response.headers["location"] == response.headers["operation-location"] == f"{M}/operations/{response.json()['operation']['id']}"
    assert [step["name"] for step in response.json()["plan"]["creates"]] == ["westeurope", "eastasia"]
    operation = await desk.done(response)
    assert (operation["status"], operation["percentComplete"], operation["why"]) == ("Succeeded", 100, "més a prop")
    assert {name: one["status"] for name, one in operation["locations"].items()} == {"westeurope": "Succeeded", "eastasia": "Succeeded"}
    table = (await desk.ask("GET", "locations")).json()["value"]
    assert [(row["name"], row["primary"], row["sku"]["capacity"]) for row in table] == [
        ("westus2", True, 1), ("westeurope", False, 3), ("eastasia", False, 1),
    ]  # fmt: skip
    assert (await desk.ask("GET", "locations/East Asia")).json()["name"] == "eastasia"
    [first, *_] = (await desk.ask("GET", "operations", params={"limit": 1})).json()["value"]
    assert first == operation
    assert {one["name"] for one in (await desk.ask("GET", "networkstatus")).json()["value"]} == {"westus2", "westeurope", "eastasia"}
    assert (await desk.ask("GET", "locations/eastasia/networkstatus")).json()["name"] == "eastasia"


async def test_a_plan_changes_nothing(desk: Desk) -> None:
    etag = await desk.etag()
    plan = await desk.ask("POST", "plan", "reader", json={"properties": {"additionalLocations": [{"location": "eastasia"}]}})
    assert ([step["name"] for step in plan.json()["creates"]], plan.headers["etag"], plan.json()["empty"]) == (["eastasia"], etag, False)
    assert (await desk.ask("POST", "plan", json={})).json()["empty"]
    assert (await desk.etag(), len((await desk.ask("GET", "operations")).json()["value"])) == (etag, 1)


async def test_one_row_is_saved_switched_and_removed(desk: Desk) -> None:
    async def sent(method: str, path: str, **more: Any) -> Any:
        response = await desk.ask(method, path, "operator", headers={"if-match": await desk.etag()}, **more)
        return response.status_code if response.status_code != 202 else (await desk.done(response))["status"]

    assert await sent("PUT", "locations/eastasia", json={"location": "East Asia", "sku": {"capacity": 2}}) == "Succeeded"
    assert (await desk.ask("GET", "locations/eastasia")).json()["sku"]["capacity"] == 2
    assert await sent("PUT", "locations/eastasia", json={"location": "East Asia", "sku": {"capacity": 2}}) == 200
    assert await sent("POST", "locations/westus2/disableGateway", json={"disabled": True}) == "Succeeded"
    assert (await desk.ask("GET", "locations/westus2")).json()["disableGateway"] is True
    assert await sent("POST", "locations/westus2/disableGateway", json={"disabled": True}) == 200
    assert await sent("POST", "locations/westus2/disableGateway", json={"disabled": False}) == "Succeeded"
    assert await sent("POST", "applynetworkconfigurationupdates") == "Succeeded"
    assert await sent("POST", "applynetworkconfigurationupdates", json={"location": "eastasia"}) == "Succeeded"
    assert await sent("DELETE", "locations/eastasia") == "Succeeded"
    assert await sent("DELETE", "locations/eastasia") == 204
    assert (await desk.ask("GET", "locations/eastasia")).status_code == 404


async def test_an_operation_is_taken_back_before_anything_was_begun(tmp_path: Path) -> None:
    from lbcore.service.operations import Times

    async with managed(tmp_path, service=False, times=Times(hold=30.0)) as desk:
        begun = await desk.ask("PUT", "", json={"location": "westus2"})
        url = begun.headers["operation-location"]
        running = await desk.ask("GET", url, "reader")
        assert (running.status_code, running.headers["retry-after"], running.json()["status"]) == (202, "1", "InProgress")
        taken = await desk.ask("POST", f"{url}/cancel", "operator")
        assert (taken.status_code, taken.json()["status"]) == (200, "Canceled")
        assert (await desk.ask("POST", f"{url}/cancel", "operator")).json()["status"] == "Canceled"
    assert (await desk_codes(tmp_path, f"{M}/operations/nobody")) == {"ResourceNotFound"}


async def desk_codes(tmp_path: Path, path: str) -> set[str]:
    async with managed(tmp_path, service=False) as desk:
        return codes(await desk.ask("GET", path))


async def test_an_operation_that_has_begun_is_not_taken_back(desk: Desk) -> None:
    desk.fleet.hold.clear()
    begun = await desk.ask("PUT", "locations/eastasia", json={"location": "eastasia"}, headers={"if-match": "*"})
    async with asyncio.timeout(10):
        while (response := await desk.ask("POST", f"{begun.headers['location']}/cancel")).status_code == 200:
            await asyncio.sleep(0.01)
    assert (response.status_code, codes(response)) == (409, {"OperationInProgress"})
    desk.fleet.hold.set()
    assert (await desk.done(begun))["status"] == "Succeeded"


# ===== configuration


async def test_a_configuration_is_published_compared_and_rolled_back(desk: Desk) -> None:
    assert (await desk.ask("GET", "gatewayConfiguration")).status_code == 204
    first = await desk.ask("PUT", "gatewayConfiguration", "operator", json=APIS, headers={"if-none-match": "*", "x-lbcore-why": "begin"})
    assert (first.status_code, first.json()["revision"], first.headers["etag"]) == (200, "1.1", first.json()["etag"])
    got = await desk.ask("GET", "gatewayConfiguration", "reader")
    assert (got.json()["apis"][0]["name"], got.json()["sequence"], got.headers["etag"]) == ("orders", 1, first.headers["etag"])
    changed = APIS | {"apis": [APIS["apis"][0] | {"path": "/o"}]}
    for wrong, status in (({}, 428), ({"if-match": '"1.0"'}, 409), ({"if-none-match": "*"}, 409), ({"if-match": "nonsense"}, 400)):
        assert (await desk.ask("PUT", "gatewayConfiguration", json=changed, headers=wrong)).status_code == status
    second = await desk.ask("PUT", "gatewayConfiguration", json=changed, headers={"if-match": first.headers["etag"]})
    assert second.json()["revision"] == "1.2"
    listed = (await desk.ask("GET", "gatewayConfiguration/revisions")).json()["value"]
    assert [(each["revision"], each["why"]) for each in listed] == [("1.2", ""), ("1.1", "begin")]
    assert (await desk.ask("GET", "gatewayConfiguration/revisions/1.1")).json()["apis"][0]["path"] == "/orders"
    [change] = (await desk.ask("GET", "gatewayConfiguration/revisions/1.1/diff/1.2")).json()["changes"]
    assert (change["action"], change["before"], change["after"]) == ("changed", "/orders", "/o")
    back = await desk.ask("POST", "gatewayConfiguration/rollback", json={"revision": "1.1"}, headers={"if-match": "*"})
    assert (back.status_code, back.json()["revision"]) == (200, "1.3")
    for missing in ("1.9", "7.1", "nonsense", "1.1%2F..", "1.1/diff/1.9"):
        assert (await desk.ask("GET", f"gatewayConfiguration/revisions/{missing}")).status_code == 404
    won = await desk.ask("POST", "gatewayConfiguration/win", json={"why": "it is the true one"})
    assert won.json()["revision"] == "2.3"


async def test_a_configuration_is_published_while_an_operation_runs(desk: Desk) -> None:
    desk.fleet.hold.clear()
    begun = await desk.ask("PUT", "locations/eastasia", json={"location": "eastasia"}, headers={"if-match": "*"})
    assert (await desk.ask("PUT", "gatewayConfiguration", json=APIS)).status_code == 200
    busy = await desk.ask("PATCH", "", json={}, headers={"if-match": "*"})
    assert (busy.status_code, busy.headers["operation-location"]) == (409, begun.headers["location"])
    assert int(busy.headers["retry-after"]) > 0
    desk.fleet.hold.set()
    assert (await desk.done(begun))["status"] == "Succeeded"


async def test_who_waits_for_a_configuration_is_told(desk: Desk) -> None:
    first = await desk.ask("PUT", "gatewayConfiguration", json=APIS)
    headers = {"if-none-match": first.headers["etag"], "prefer": "wait=20"}
    assert (await desk.ask("GET", "gatewayConfiguration", "node", headers={"if-none-match": first.headers["etag"]})).status_code == 304
    waiting = asyncio.create_task(desk.ask("HEAD", "gatewayConfiguration", "node", headers=headers))
    while not desk.app.state.waiting._counts:
        await asyncio.sleep(0)
    second = await desk.ask("PUT", "gatewayConfiguration", json=APIS | {"apis": []}, headers={"if-match": "*"})
    async with asyncio.timeout(10):
        told = await waiting
    assert (told.status_code, told.headers["etag"], told.content) == (200, second.headers["etag"], b"")
    assert not desk.app.state.waiting._counts


async def test_only_so_many_may_wait(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbcore.service.api.calls.MOST_WAITING", 2)
    headers = {"prefer": "wait=30", "if-none-match": desk.plane.rotation().tag}  # type: ignore[union-attr]
    waiting = [asyncio.create_task(desk.ask("HEAD", "rotation", "node", headers=headers)) for _ in range(2)]
    while desk.app.state.waiting._counts.total() < 2:
        await asyncio.sleep(0)
    refused = await desk.ask("GET", "rotation", "node", headers=headers)
    assert (refused.status_code, refused.headers["retry-after"], codes(refused)) == (429, "1", {"TooManyRequests"})
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert not desk.app.state.waiting._counts


async def test_only_a_region_s_own_token_reports_for_it(desk: Desk) -> None:
    await desk.ask("PUT", "gatewayConfiguration", json=APIS)
    said = {"x-lbcore-sync": report_text(Report("eastasia", "InSync", Tag(Number(1, 1), "0" * 64), 1.5))}
    await desk.ask("GET", "gatewayConfiguration", "owner", headers=said)
    assert (await desk.ask("GET", "reports")).json()["configuration"] == {}
    await desk.ask("GET", "gatewayConfiguration", "node", headers=said)
    [(region, report)] = (await desk.ask("GET", "reports")).json()["configuration"].items()
    assert (region, report["lag"], report["held"], report["latest"]) == ("an-node", 1.5, "1.1", False)  # whatever it says it is


# ===== steering


async def test_the_profile_is_shown_and_changed(desk: Desk) -> None:
    got = await desk.ask("GET", "trafficManager", "reader")
    assert (got.status_code, got.headers["etag"]) == (200, f'"{got.json()["etag"]}"')
    patch = {"properties": {"dnsConfig": {"ttl": 7}, "monitorConfig": {"intervalInSeconds": 10, "timeoutInSeconds": 5}}}
    what_if = (await desk.ask("POST", "trafficManager/failover", "reader", json=patch)).json()["failover"]
    assert what_if != (await desk.ask("POST", "trafficManager/failover", "reader")).json()["failover"]
    assert (await desk.ask("PATCH", "trafficManager", json=patch)).status_code == 428
    done = await desk.ask("PATCH", "trafficManager", "operator", json=patch, headers={"if-match": got.headers["etag"]})
    assert (done.status_code, done.json()["properties"]["dnsConfig"]["ttl"], done.json()["properties"]["failover"]) == (200, 7, what_if)
    assert (await desk.ask("PATCH", "trafficManager", json=patch, headers={"if-match": got.headers["etag"]})).status_code == 412
    back = await desk.ask("PATCH", "trafficManager", json=done.json(), headers={"if-match": "*"})
    assert (back.status_code, back.headers["etag"]) == (200, done.headers["etag"])  # what was shown may be sent back
    endpoints = (await desk.ask("GET", "trafficManager/endpoints")).json()
    assert [(one["name"], one["target"]) for one in endpoints["value"]] == [("westus2", "contoso-westus2-01.regional.test")]


async def test_decisions_are_told(desk: Desk) -> None:
    await desk.save("westeurope", "eastasia")
    for path in ("route", "rank", "explain"):
        assert (await desk.ask("GET", path, "reader")).status_code == 200
        wrong = await desk.ask("GET", path, params={"client": "<script>"})
        assert (wrong.status_code, codes(wrong)) == (400, {"InvalidProperty"})
    async with asyncio.timeout(20):  # clients move within a few ticks of the Balancer
        while (chosen := (await desk.ask("GET", "route", params={"client": "81.2.69.1"})).json())["region"] != "westeurope":
            await asyncio.sleep(0.05)
    ranked = (await desk.ask("GET", "rank", params={"client": "81.2.69.1"})).json()["value"]
    explained = (await desk.ask("GET", "explain", params={"client": "81.2.69.1"})).json()
    assert chosen["region"] == ranked[0]["region"] == explained["region"] == "westeurope"
    assert {one["region"] for one in ranked} == {"westus2", "westeurope", "eastasia"}


async def test_without_a_region_there_is_no_decision(tmp_path: Path) -> None:
    async with managed(tmp_path, service=False) as desk:
        desk.fleet.hold.clear()
        await desk.ask("PUT", "", json={"location": "westus2"})
        for path in ("route", "rank", "explain"):
            response = await desk.ask("GET", path)
            assert (response.status_code, codes(response)) == (503, {"NoRegionAvailable"})
            assert "retry-after" in response.headers


async def test_edges_follow_the_rotation_and_report(desk: Desk) -> None:
    got = await desk.ask("GET", "rotation", "node")
    assert [one["name"] for one in got.json()["regions"]] == ["westus2"]
    known = {"if-none-match": got.headers["etag"]}
    assert (await desk.ask("GET", "rotation", "reader", headers=known)).status_code == 304
    number = f"{got.json()['epoch']}.{got.json()['sequence']}"
    learned = base64.b64encode(b"nonsense").decode()
    report = {"edge": "an-node", "at": 1.0, "rotation": number, "regions": {"westus2": {"status": "down"}}, "learned": learned}
    assert (await desk.ask("POST", "reports", "node", json=report)).status_code == 204
    assert desk.plane.statuses() == {"westus2": "Degraded"}
    [shown] = (await desk.ask("GET", "reports", "reader")).json()["value"]
    assert (shown["edge"], shown["rotation"]) == ("an-node", number)
    other = await desk.ask("POST", "reports", "node", json=report | {"edge": "somebody", "regions": {"westus2": {"status": "fine"}}})
    assert (other.status_code, len(other.json()["error"]["details"])) == (400, 2)
    waiting = asyncio.create_task(desk.ask("HEAD", "rotation", "node", headers=known | {"prefer": "wait=20"}))
    await desk.save("eastasia")
    async with asyncio.timeout(10):
        assert (await waiting).headers["etag"] != got.headers["etag"]


# ===== owner


async def test_tokens_are_made_listed_and_revoked(desk: Desk) -> None:
    made = await desk.ask("POST", "tokens", json={"role": "reader", "name": "<b>ann</b>", "expiresInSeconds": 60})
    assert made.status_code == 201
    text, id = made.json()["token"], made.json()["id"]
    desk.tokens["ann"] = text
    assert (await desk.ask("GET", "", "ann")).status_code == 200
    listed = (await desk.ask("GET", "tokens")).text
    assert id in listed and text.split("_", 2)[2] not in listed
    assert (await desk.ask("DELETE", made.headers["location"])).status_code == 204
    assert (await desk.ask("GET", "", "ann")).status_code == 401
    assert (await desk.ask("DELETE", "tokens/nobody")).status_code == 404
    x = {"role": "reader", "name": "x"}
    wrong = (
        x | {"role": "root"}, {"role": "reader"}, x | {"expires": 1}, {"role": "node", "name": "../x"}, x | {"expiresInSeconds": -1},
        x | {"expiresInSeconds": True}, [], 7,
    )  # fmt: skip
    for body in wrong:
        assert (await desk.ask("POST", "tokens", json=body)).status_code == 400


async def test_backups_are_taken_and_restored(desk: Desk) -> None:
    await desk.ask("PUT", "gatewayConfiguration", json=APIS)
    taken = await desk.ask("POST", "backup", json={"name": "before"})
    assert (taken.status_code, taken.json()["name"], taken.json()["revision"]) == (201, "before", "1.1")
    await desk.ask("PUT", "gatewayConfiguration", json=APIS | {"apis": []}, headers={"if-match": "*"})
    assert [one["name"] for one in (await desk.ask("GET", "backups")).json()["value"]] == ["before"]
    restored = await desk.ask("POST", "restore", json={"name": "before"}, headers={"x-lbcore-why": "it was better"})
    assert (restored.status_code, restored.json()["epoch"], restored.json()["lost"]) == (200, 2, ["1.2"])
    assert (await desk.ask("GET", "gatewayConfiguration")).json()["apis"]
    assert (await desk.ask("POST", "restore", json={"name": "another"})).status_code == 404
    for name in ("../store", "/etc/passwd", "a/b", "..", "", "a\0b", "store.db/", "x" * 300):
        assert (await desk.ask("POST", "restore", json={"name": name})).status_code == 400
        if name:
            assert (await desk.ask("POST", "backup", json={"name": name})).status_code == 400


async def test_the_primary_hands_over(desk: Desk) -> None:
    await desk.save("eastasia")
    epoch = (await desk.ask("POST", "promote", json={"location": "East Asia"})).json()["epoch"]
    assert epoch == 2
    refused = await desk.ask("PATCH", "", json={}, headers={"if-match": "*"})
    assert (refused.status_code, codes(refused)) == (409, {"Fenced"})
    assert (await desk.ask("GET", "")).status_code == 200


async def test_what_happened_is_told(desk: Desk) -> None:
    await desk.save("eastasia")
    patch = {"properties": {"dnsConfig": {"ttl": 9}}}
    await desk.ask("PATCH", "trafficManager", json=patch, headers={"if-match": "*", "x-lbcore-why": "why?"})
    first, *_ = whole = (await desk.ask("GET", "history", "reader")).json()["value"]
    assert (first["what"], first["why"], first["who"].split(" (")[0]) == ("put trafficManager", "why?", "an-owner")
    page = (await desk.ask("GET", "history", params={"limit": 2})).json()
    rest = (await desk.ask("GET", page["nextLink"])).json()
    assert page["value"] + rest["value"] == whole[:4]
    events = (await desk.ask("GET", "events", "reader")).json()["value"]
    assert "LocationSucceeded" in {each["kind"] for each in events}
    assert (await desk.ask("GET", "events", params={"after": events[-1]["id"]})).json()["value"] == []


async def test_metrics_tell_of_regions_operations_and_requests(desk: Desk) -> None:
    await desk.save("eastasia")
    await desk.ask("PUT", "gatewayConfiguration", json=APIS)
    said = {"x-lbcore-sync": report_text(Report("x", "Stale", None, 42.0, "no room"))}
    await desk.ask("GET", "gatewayConfiguration", "node", headers=said)
    page = (await desk.ask("GET", "/metrics", "reader")).text.splitlines()
    for line in (
        'lbcore_config_lag_seconds{region="an-node"} 42.0', 'lbcore_config_refused{region="an-node"} 1.0',
        'lbcore_config_revision{part="sequence"} 1.0', 'lbcore_operations{kind="save",status="Succeeded"} 2.0', "lbcore_fail_open 0.0",
        "lbcore_operation_in_progress 0.0", 'lbcore_endpoint_monitor_status{region="eastasia",status="Stopped"} 0.0',
    ):  # fmt: skip
        assert line in page
    assert any(line.startswith('lbcore_management_requests_total{method="PUT",status="200"}') for line in page)


async def test_the_document_names_every_route(desk: Desk) -> None:
    document = (await desk.ask("GET", "/openapi.json", "")).json()
    there = {(method.upper(), path) for path, one in document["paths"].items() for method in one}
    assert {("PATCH", "/services/{name}"), ("GET", "/services/{name}/explain"), ("HEAD", "/services/{name}/rotation")} <= there
    assert json.dumps(document).count("#/components/schemas/ErrorAnswer") > 100
    assert document == desk.app.openapi()
