"""V1-V27 of the requirements over HTTP: each with its status and code, and nothing changed by it: no ETag, no rotation, no gateway."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock
from desks import APIS, Desk, M, codes, managed
from service_worlds import public_ip, subnet

from lbcore.service.facts import Facts, Live

ANY = {"if-match": "*"}
Row = tuple[str, str, str, Any, int, set[str]]


async def everything(desk: Desk) -> tuple[Any, ...]:
    """Give all that a refused request must leave as it is."""
    rotation = desk.plane.rotation()
    tags = [(await desk.ask("GET", path)).headers.get("etag") for path in ("", "trafficManager", "gatewayConfiguration")]
    operations = [(each.id, each.status) for each in desk.store.operations.newest()]
    return *tags, rotation and rotation.tag, operations, len(desk.store.history()), dict(desk.fleet.addresses)


async def check(desk: Desk, rows: Sequence[Row]) -> None:
    """Send each row's request and hold that it is refused as it says, and that nothing has changed."""
    before = await everything(desk)
    for v, method, path, body, status, expected in rows:
        response = await desk.ask(method, path, "operator", json=body, headers=ANY)
        assert (v, response.status_code, codes(response)) == (v, status, expected), response.text
        assert await everything(desk) == before, v


def locations(*rows: Any, **properties: Any) -> dict[str, Any]:
    return {"properties": {"additionalLocations": [{"location": each} if isinstance(each, str) else each for each in rows], **properties}}


def at(name: str, **more: Any) -> dict[str, Any]:
    return {"location": name, **more}


def network(id: str, **more: Any) -> dict[str, Any]:
    return {"virtualNetworkConfiguration": {"subnetResourceId": id, **more}}


SPREAD = at("westeurope", zones=["1", "2", "3"], sku={"capacity": 3})
UNITS = [0, -1, 32, 1.5, "2", True, 10**40]
PREMIUM: list[Row] = [
    ("V1", "PATCH", "", locations(SPREAD, "West Europe"), 400, {"DuplicateLocation"}),
    ("V1", "PATCH", "", locations(SPREAD, "WestUS2"), 400, {"DuplicateLocation"}),
    ("V2", "PATCH", "", locations(SPREAD, "westeurop"), 400, {"LocationNotAvailable"}),
    ("V2", "PUT", "locations/mars", at("mars"), 400, {"LocationNotAvailable"}),
    ("V3", "PATCH", "", {"location": "eastus"}, 400, {"PropertyChangeNotAllowed"}),
    ("V3", "DELETE", "locations/westus2", None, 400, {"CannotRemovePrimary"}),
    *(("V4", "PATCH", "", {"sku": {"capacity": units}}, 400, {"InvalidSkuCapacity"}) for units in UNITS),
    ("V4", "PUT", "locations/westeurope", SPREAD | {"sku": {"capacity": 33}}, 400, {"InvalidSkuCapacity"}),
    ("V7", "PATCH", "", locations(SPREAD, virtualNetworkType="External"), 400, {"SubnetRequired"}),
    ("V7", "PATCH", "", {"properties": network(subnet("westus2"))}, 400, {"SubnetNotAllowed"}),
    ("V11", "PATCH", "", {"zones": ["1", "2"]}, 400, {"UnitsNotMultipleOfZones"}),
    ("V11", "PATCH", "", {"zones": ["4"]}, 400, {"InvalidZone"}),
    ("V11", "PATCH", "", {"zones": ["1", "1"], "sku": {"capacity": 2}}, 400, {"InvalidZone"}),
    ("V11", "PATCH", "", locations(SPREAD, at("canadaeast", zones=["1"])), 400, {"NotSupported"}),
    ("V13", "PATCH", "", {"zones": ["1"]}, 409, {"VipChangeNotAcknowledged"}),
    ("V13", "PUT", "locations/westeurope", at("westeurope", zones=[], sku={"capacity": 3}), 409, {"VipChangeNotAcknowledged"}),
    ("V14", "PATCH", "", locations(SPREAD | {"disableGateway": True}, disableGateway=True), 409, {"CannotDisableAllGateways"}),
    ("V26", "PATCH", "", {"properties": {"publicIPAddresses": ["203.0.113.77"]}}, 400, {"ReadOnlyProperty"}),
    ("V26", "PATCH", "", {"properties": {"gatewayRegionalUrl": "https://evil.example"}}, 400, {"ReadOnlyProperty"}),
    ("V26", "PATCH", "", {"properties": {"provisioningState": "Failed"}}, 400, {"ReadOnlyProperty"}),
    ("V26", "PATCH", "", {"etag": "1-0"}, 400, {"ReadOnlyProperty"}),
    ("all at once", "PATCH", "", locations("mars", "westus2", at("eastasia", sku={"capacity": 99})) | {"zones": ["9"]}, 400,
     {"LocationNotAvailable", "DuplicateLocation", "InvalidSkuCapacity", "InvalidZone"}),
]  # fmt: skip


async def test_a_premium_service(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk:
        await desk.save(SPREAD)
        await check(desk, PREMIUM)
        at_once = await desk.ask("PATCH", "", json=PREMIUM[-1][3], headers=ANY)
        assert len(at_once.json()["error"]["details"]) == 4
        assert all(each["target"] for each in at_once.json()["error"]["details"])
        await desk.save("eastasia")
        await check(desk, [("V6", "PATCH", "", {"sku": {"name": "Standard"}}, 409, {"LocationsPresent"})])


async def test_a_service_of_a_lower_tier(tmp_path: Path) -> None:
    async with managed(tmp_path, service=False) as desk:
        await desk.done(await desk.ask("PUT", "", json={"location": "westus2", "sku": {"name": "Standard"}}))
        await check(desk, [
            ("V5", "PATCH", "", locations("westeurope"), 400, {"FeatureNotSupportedBySku"}),
            ("V5", "PUT", "locations/westeurope", at("westeurope"), 400, {"FeatureNotSupportedBySku"}),
            ("V5", "PATCH", "", {"zones": ["1"]}, 400, {"FeatureNotSupportedBySku"}),
            ("V4", "PATCH", "", {"sku": {"capacity": 5}}, 400, {"InvalidSkuCapacity"}),
            ("V14", "POST", "locations/westus2/disableGateway", {"disabled": True}, 409, {"CannotDisableAllGateways"}),
        ])  # fmt: skip


def placed(name: str, network_of: str = "", **more: Any) -> dict[str, Any]:
    return at(name) | network(subnet(network_of or name), location=network_of or name) | more


async def test_a_service_in_networks(tmp_path: Path) -> None:
    facts = Facts(strict_azure=True)
    async with managed(tmp_path, service=False, facts=facts) as desk:
        ours = network(subnet("westus2"), location="westus2") | {"virtualNetworkType": "Internal", "publicIpAddressId": public_ip("one")}
        await desk.done(await desk.ask("PUT", "", json={"location": "westus2", "properties": ours}))
        elsewhere = subnet("eastasia").replace("/subscriptions/s/", "/subscriptions/other/")
        moved = network(subnet("westus2", "other"), location="westus2")
        other_place = at("eastasia") | network(elsewhere, location="eastasia")
        await check(desk, [
            ("V8", "PATCH", "", locations(placed("eastasia", "westus2")), 400, {"SubnetLocationMismatch"}),
            ("V8", "PATCH", "", locations(other_place), 400, {"SubnetSubscriptionMismatch"}),
            ("V8", "PATCH", "", locations(at("eastasia") | network(subnet("unheard-of"))), 400, {"SubnetLocationUnknown"}),
            ("V9", "PATCH", "", locations(at("eastasia") | network("../../subnets/x", location="eastasia")), 400, {"InvalidResourceId"}),
            ("V9", "PATCH", "", {"properties": {"publicIpAddressId": "203.0.113.1"}}, 400, {"InvalidResourceId"}),
            ("V10", "PATCH", "", {"properties": moved}, 400, {"PublicIpMustChange"}),
            ("V15", "POST", "locations/westus2/disableGateway", {"disabled": True}, 400,
             {"NotSupportedInInternalMode", "CannotDisableAllGateways"}),
        ])  # fmt: skip
        assert (await desk.ask("GET", "trafficManager/endpoints")).json()["value"] == []  # R51: DNS has nothing to say, rank has
        assert (await desk.ask("GET", "rank")).status_code == 200


async def test_a_region_that_has_lost_a_zone(tmp_path: Path) -> None:
    facts = Facts(live={"westeurope": Live(units=1, zones_down=frozenset({"2", "3"}))})
    async with managed(tmp_path, facts=facts) as desk:
        await desk.save(SPREAD)
        fewer = SPREAD | {"zones": ["2", "3"], "sku": {"capacity": 2}}
        await check(desk, [("V12", "PUT", "locations/westeurope", fewer, 409, {"WouldLoseCapacity"})])
        forced = await desk.ask(
            "PUT", "locations/westeurope", json=fewer, headers=ANY, params={"force": "true", "acknowledgeVipChange": "true"}
        )
        assert (await desk.done(forced))["status"] == "Succeeded"


async def test_what_is_acknowledged_is_done(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk:
        before = (await desk.ask("GET", "")).json()["properties"]["publicIPAddresses"]
        wish = {"zones": ["1"], "acknowledgeVipChange": True}
        for wrong in ("yes", 1, []):
            assert (await desk.ask("PATCH", "", json=wish | {"acknowledgeVipChange": wrong}, headers=ANY)).status_code == 400
        assert (await desk.done(await desk.ask("PATCH", "", json=wish, headers=ANY)))["status"] == "Succeeded"
        after = (await desk.ask("GET", "")).json()["properties"]
        assert after["publicIPAddresses"] != before == after["previousPublicIPAddresses"]


async def test_one_operation_at_a_time(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk:
        desk.fleet.hold.clear()
        begun = await desk.ask("PUT", "locations/eastasia", json=at("eastasia"), headers=ANY)
        for method, path, body in (
            ("PATCH", "", {"sku": {"capacity": "wrong, but looked at later"}}), ("PUT", "", {"location": "westus2"}),
            ("DELETE", "locations/eastasia", None), ("PUT", "locations/uksouth", at("uksouth")),
            ("POST", "locations/westus2/disableGateway", {"disabled": True}), ("POST", "applynetworkconfigurationupdates", None),
        ):  # fmt: skip
            response = await desk.ask(method, path, "operator", json=body, headers=ANY)
            assert (response.status_code, codes(response)) == (409, {"OperationInProgress"})
            assert response.headers["operation-location"] == begun.headers["location"]
            error = response.json()["error"]
            assert error["target"] in begun.headers["location"] and "an-owner" in error["message"] and " s ago" in error["message"]
        assert len(desk.store.operations.newest()) == 2
        desk.fleet.hold.set()
        assert (await desk.done(begun))["status"] == "Succeeded"


WRITES = (
    ("PUT", "", {"location": "westus2", "sku": {"capacity": 2}}), ("PATCH", "", {"sku": {"capacity": 2}}), ("DELETE", "", None),
    ("PUT", "locations/eastasia", at("eastasia")), ("DELETE", "locations/eastasia", None),
    ("POST", "locations/westus2/disableGateway", {"disabled": True}),
    ("PATCH", "trafficManager", {"properties": {"dnsConfig": {"ttl": 3}}}), ("PUT", "gatewayConfiguration", {"apis": []}),
    ("POST", "gatewayConfiguration/rollback", {"revision": "1.1"}),
)  # fmt: skip


@pytest.mark.parametrize("required", [True, False])
async def test_writes_say_which_state_they_have_seen(tmp_path: Path, required: bool) -> None:
    async with managed(tmp_path, require_if_match=required) as desk:
        await desk.ask("PUT", "gatewayConfiguration", json=APIS)
        before = await everything(desk)
        for method, path, body in WRITES:
            if required:
                response = await desk.ask(method, path, json=body)
                assert (path, response.status_code, codes(response)) == (path, 428, {"PreconditionRequired"})
            stale = '"1.0"' if path.startswith("gatewayConfiguration") else '"1-0123", W/"x"'
            response = await desk.ask(method, path, json=body, headers={"if-match": stale})
            expected = (409, {"RevisionConflict"}) if path.startswith("gatewayConfiguration") else (412, {"PreconditionFailed"})
            assert (path, response.status_code, codes(response)) == (path, *expected)
            assert await everything(desk) == before
        if not required:
            assert (await desk.ask("PATCH", "", json={"sku": {"capacity": 2}})).status_code == 202


async def test_of_two_who_have_seen_the_same_the_second_is_refused(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk:
        seen = {"if-match": await desk.etag()}
        first = await desk.ask("PATCH", "", json={"sku": {"capacity": 2}}, headers=seen)
        await desk.done(first)
        assert (await desk.ask("PATCH", "", json={"sku": {"capacity": 3}}, headers=seen)).status_code == 412
        assert (await desk.ask("GET", "")).json()["sku"]["capacity"] == 2


async def test_a_fenced_primary_is_read_only(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk:
        await desk.ask("PUT", "gatewayConfiguration", json=APIS)
        desk.store.fence(9, who="test")
        before = await everything(desk)
        for method, path, body in WRITES:
            response = await desk.ask(method, path, json=body, headers=ANY)
            assert (path, response.status_code, codes(response)) == (path, 409, {"Fenced"})
        assert await everything(desk) == before


async def test_what_is_gone_may_be_deleted_again(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk:
        before = await everything(desk)
        for name in ("eastasia", "mars", "<b>", "..%2Fx"):
            assert (await desk.ask("DELETE", f"locations/{name}", headers=ANY)).status_code in (204, 404), name
        assert (await desk.ask("DELETE", "locations/eastasia", headers=ANY)).status_code == 204
        assert await everything(desk) == before


def monitor(**settings: Any) -> dict[str, Any]:
    return {"properties": {"monitorConfig": settings}}


def profile(**settings: Any) -> dict[str, Any]:
    return {"properties": settings}


E, W, LOOP = {"region": "eastasia"}, {"region": "westus2"}, {"profile": "a"}
PROFILES: list[Row] = [
    *(("V20", "PATCH", "trafficManager", monitor(**one), 400, {"InvalidMonitorConfig"}) for one in (
        {"intervalInSeconds": 0}, {"intervalInSeconds": 10, "timeoutInSeconds": 10}, {"toleratedNumberOfFailures": -1},
        {"strictAzure": True, "intervalInSeconds": 20}, {"expectedStatusCodeRanges": [{"min": 200, "max": 200}] * 9},
        {"customHeaders": [{"name": "a", "value": "b"}] * 9}, {"expectedStatusCodeRanges": [{"min": 300, "max": 200}]},
        {"protocol": "TCP", "path": "/up"}, {"host": "*.contoso.test"}, {"intervalInSeconds": "5"},
    )),
    *(("V21", "PATCH", "trafficManager", profile(**one), 400, {"InvalidEndpoint"}) for one in (
        {"dnsConfig": {"ttl": 2**31}}, {"dnsConfig": {"ttl": -1}}, {"maxReturn": 11}, {"endpoints": [E | {"weight": 0}]},
        {"endpoints": [E | {"priority": 1001}]}, {"endpoints": [E, {"region": "East Asia"}]}, {"endpoints": [{"region": "mars"}]},
        {"trafficRoutingMethod": "Fastest"}, {"profileStatus": "On"},
    )),
    ("V22", "PATCH", "trafficManager", profile(trafficRoutingMethod="Geographic", endpoints=[E | {"geoMapping": ["WORLD"]}, W]), 400,
     {"InvalidMapping"}),
    ("V22", "PATCH", "trafficManager", profile(trafficRoutingMethod="Subnet", endpoints=[E | {"subnets": ["10.0.0.1/8"]}]), 400,
     {"InvalidMapping"}),
    ("V23", "PATCH", "trafficManager", profile(endpoints=[LOOP], profiles=[{"name": "a", "endpoints": [LOOP]}]), 400, {"InvalidNesting"}),
]  # fmt: skip


async def test_profiles(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk:
        await desk.save("eastasia")
        await check(desk, PROFILES)


async def test_configurations(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk:
        await desk.ask("PUT", "gatewayConfiguration", json=APIS)
        policy = APIS | {"policies": {"inbound": [{"name": "no-such-policy"}]}}
        await check(desk, [
            ("V24", "PUT", "gatewayConfiguration", APIS | {"apis": 7}, 400, {"InvalidConfiguration"}),
            ("V24", "PUT", "gatewayConfiguration", policy, 400, {"InvalidConfiguration"}),
            ("V24", "PUT", "gatewayConfiguration", [], 400, {"InvalidConfiguration"}),
            ("V24", "PUT", "gatewayConfiguration", APIS | {"apis": [APIS["apis"][0] | {"display_name": "x" * 4_500_000}]}, 400,
             {"InvalidConfiguration"}),
            ("V24", "PUT", "gatewayConfiguration", {"x": "x" * 6_000_000}, 413, {"RequestTooLarge"}),
            ("V24", "POST", "gatewayConfiguration/rollback", {"revision": "1.7"}, 404, {"ResourceNotFound"}),
            ("V24", "POST", "gatewayConfiguration/rollback", {"revision": 7}, 400, {"InvalidProperty"}),
        ])  # fmt: skip
        before = await everything(desk)
        response = await desk.ask("PUT", "gatewayConfiguration", json=APIS | {"apis": []}, headers={"if-match": '"1.6"'})
        assert (response.status_code, codes(response), response.json()["error"]["target"]) == (409, {"RevisionConflict"}, "1.1")
        assert await everything(desk) == before


async def test_backups(tmp_path: Path) -> None:
    clock = Clock(1_700_000_000.0)
    async with managed(tmp_path, clock=clock) as desk:
        await desk.ask("POST", "backup", json={"name": "good"})
        folder = tmp_path / "backups"
        for name, change in (("other", {"service": "fabrikam"}), ("lower", {"tier": "Standard"})):
            renamed(folder / "good.zip", folder / f"{name}.zip", change)
        (folder / "broken.zip").write_bytes(b"PK\x03\x04 no more")
        before = await everything(desk)
        for name, status, code in (("other", 409, "NameMismatch"), ("lower", 409, "SkuMismatch"), ("broken", 400, "InvalidBackup")):
            response = await desk.ask("POST", "restore", json={"name": name})
            assert (name, response.status_code, codes(response)) == (name, status, {code})
        clock.advance(31 * 86_400.0)
        response = await desk.ask("POST", "restore", json={"name": "good"})
        assert (response.status_code, codes(response)) == (409, {"BackupExpired"})
        assert await everything(desk) == before
        assert (await desk.ask("POST", "restore", json={"name": "good", "allowExpired": True})).status_code == 200


def renamed(source: Path, target: Path, change: dict[str, Any]) -> None:
    """Write a backup whose manifest says something else."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, json.dumps(json.loads(content) | change) if name == "manifest.json" else content)


async def test_what_was_read_may_be_written_back(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk:
        await desk.save(SPREAD, "eastasia")
        before = await everything(desk)
        body = (await desk.ask("GET", "")).json()
        for method in ("PUT", "PATCH"):
            back = await desk.ask(method, "", "operator", json=body, headers={"if-match": f'"{body["etag"]}"'})
            assert (back.status_code, back.json()["operation"], back.headers["etag"]) == (200, None, f'"{body["etag"]}"')
            assert {key: back.json()[key] for key in body} == body
        for row in (await desk.ask("GET", "locations")).json()["value"]:
            back = await desk.ask("PUT", f"locations/{row['name']}", json=row, headers=ANY)
            assert (back.status_code, back.json()["operation"]) == (200, None), back.text
        shown = (await desk.ask("GET", "gatewayConfiguration")).status_code
        assert (shown, await everything(desk)) == (204, before)


async def test_the_order_of_refusals(tmp_path: Path) -> None:
    """Syntax, whose token, what it may, what there is, what was seen, what is under way, what is wrong."""
    async with managed(tmp_path) as desk:
        json_type = {"content-type": "application/json"}
        wrong = b'{"sku": {"capacity": 0}'
        assert (await desk.ask("PATCH", "", "", content=wrong, headers=json_type)).status_code == 400
        wrong += b"}"
        assert (await desk.ask("PATCH", f"{M}x", "", content=wrong, headers=json_type)).status_code == 401
        assert (await desk.ask("PATCH", f"{M}x", "reader", content=wrong, headers=json_type)).status_code == 403
        assert (await desk.ask("PATCH", f"{M}x", "operator", content=wrong, headers=json_type)).status_code == 404
        desk.fleet.hold.clear()
        begun = await desk.ask("PUT", "locations/eastasia", json=at("eastasia"), headers=ANY)
        assert (await desk.ask("PATCH", "", "operator", content=wrong, headers=json_type)).status_code == 428
        assert (await desk.ask("PATCH", "", "operator", content=wrong, headers=json_type | {"if-match": '"x"'})).status_code == 412
        assert (await desk.ask("PATCH", "", "operator", content=wrong, headers=json_type | ANY)).status_code == 409
        desk.fleet.hold.set()
        await desk.done(begun)
        assert (await desk.ask("PATCH", "", "operator", content=wrong, headers=json_type | ANY)).status_code == 400
