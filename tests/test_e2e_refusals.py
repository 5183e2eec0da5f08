"""Scenario 7: V1-V27 over REST against real processes. Whatever is refused changes no ETag, no DNS answer and no gateway."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from deployment import HELLO, Api, Lab, additional, row, service
from nodes import until
from service_worlds import FOLDER, running, subnet

from lbcore.service.backup import backup
from lbcore.service.model import location, new_service
from lbcore.service.store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have only 127.0.0.1"),
]
OTHER = "westeurope"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    async with service(tmp_path_factory.mktemp("refusals"), "westus2", OTHER, edge={"management": {}}) as one:
        backups(one.folder / "backups")
        vips = await one.addresses()
        await until(lambda: _answered(one, vips[OTHER]), "DNS answers with the secondary")
        yield one


def backups(folder: Path) -> None:
    """Make backups that this service must refuse."""
    folder.mkdir()
    for name, made, age in (("old", "contoso", 31), ("standard", "contoso", 0), ("fabrikam", "fabrikam", 0)):
        tier = "Standard" if name == "standard" else "Premium"
        with Store(folder / f"{name}.store", clock=lambda age=age: time.time() - age * 86_400.0) as store:
            store.save(running(new_service(made, location("westus2"), tier=tier)), who="ann", what="create")
            backup(store, folder / f"{name}.zip")


async def _answered(lab: Lab, addresses: tuple[str, ...]) -> bool:
    return await lab.dns("81.2.69.0/24") == addresses


async def seen(lab: Lab) -> dict[str, Any]:
    """Give what no refusal may change."""
    body, etag = await lab.api.body()
    profile = await lab.api.ask("GET", "/trafficManager")
    configuration = await lab.api.ask("GET", "/gatewayConfiguration")
    rotation = await lab.api.ask("GET", "/rotation")
    hosts = {name: f"http://{place[0]}" for name, place in (await lab.addresses()).items()}
    return {
        "etag": etag, "body": body, "profile": (profile.headers["etag"], profile.json()), "configuration": configuration.headers["etag"],
        "rotation": rotation.text, "dns": [await lab.dns(network) for network in ("8.8.8.0/24", "81.2.69.0/24", "1.64.0.0/24")],
        "gateways": {name: lab.process(name) for name in hosts}, "operations": (await lab.api.ask("GET", "/operations")).text,
    }  # fmt: skip


def service_of(**properties: Any) -> dict[str, Any]:
    return {"properties": properties}


def in_subnet(id: str, where: str = OTHER) -> dict[str, Any]:
    return {"virtualNetworkConfiguration": {"subnetResourceId": id, "location": where}}


def external(*rows: Any, first: dict[str, Any] | None = None) -> dict[str, Any]:
    own = in_subnet(subnet("westus2"), "westus2") if first is None else first
    return service_of(virtualNetworkType="External", additionalLocations=[*rows], **own)


def profile(**properties: Any) -> dict[str, Any]:
    return {"properties": properties}


def monitor(**settings: Any) -> dict[str, Any]:
    return profile(monitorConfig=settings)


def endpoints(method: str, *each: dict[str, Any], **more: Any) -> dict[str, Any]:
    return profile(
        trafficRoutingMethod=method, endpoints=[{"region": OTHER if n else "westus2"} | one for n, one in enumerate(each)], **more
    )


def nested(**more: Any) -> dict[str, Any]:
    one = {"name": "a", "trafficRoutingMethod": "Performance", "endpoints": [{"profile": "b"}]}
    two = {"name": "b", "trafficRoutingMethod": "Performance", "endpoints": [{"profile": "a"}]}
    return profile(endpoints=[{"profile": "a"}], profiles=[one, two], **more)


ELSEWHERE = subnet(OTHER).replace("/subscriptions/s/", "/subscriptions/other/")
SAVES: list[tuple[str, Any, int, str]] = [
    ("V1 twice", additional(OTHER, "West Europe"), 400, "DuplicateLocation"),
    ("V1 the primary", additional(OTHER, "West US 2"), 400, "DuplicateLocation"),
    ("V2", additional(OTHER, "westeurpe"), 400, "LocationNotAvailable"),
    ("V3 another primary", {"location": "eastus"}, 400, "PropertyChangeNotAllowed"),
    ("V4 none", additional(row(OTHER, 0)), 400, "InvalidSkuCapacity"),
    ("V4 too many", additional(row(OTHER, 32)), 400, "InvalidSkuCapacity"),
    ("V4 no integer", additional(row(OTHER, 1.5)), 400, "InvalidSkuCapacity"),  # type: ignore[arg-type]
    ("V5 zones", {"sku": {"name": "Standard"}, "zones": ["1"]} | additional(), 400, "FeatureNotSupportedBySku"),
    ("V6", {"sku": {"name": "Standard"}}, 409, "LocationsPresent"),
    ("V7 absent", external(OTHER and row(OTHER)), 400, "SubnetRequired"),
    ("V7 given", additional(row(OTHER) | in_subnet(subnet(OTHER))), 400, "SubnetNotAllowed"),
    ("V8 region", external(row(OTHER) | in_subnet(subnet("westus2"), "westus2")), 400, "SubnetLocationMismatch"),
    ("V8 subscription", external(row(OTHER) | in_subnet(ELSEWHERE)), 400, "SubnetSubscriptionMismatch"),
    ("V9", external(row(OTHER) | in_subnet(f"{FOLDER}/../subnets/x")), 400, "InvalidResourceId"),
    ("V11 units", additional(row(OTHER, 4, zones=["1", "2", "3"])), 400, "UnitsNotMultipleOfZones"),
    ("V11 zone", additional(row(OTHER, 1, zones=["9"])), 400, "InvalidZone"),
    ("V11 none there", additional(row("canadaeast", 1, zones=["1"])), 400, "NotSupported"),
    ("V13", additional(row(OTHER, 1, zones=["1"])), 409, "VipChangeNotAcknowledged"),
    ("V14", service_of(disableGateway=True, additionalLocations=[row(OTHER, disableGateway=True)]), 409, "CannotDisableAllGateways"),
    ("V26", service_of(publicIPAddresses=["192.0.2.1"]), 400, "ReadOnlyProperty"),
    ("good and bad, R13", additional("uksouth", "nowhere"), 400, "LocationNotAvailable"),
    ("unknown key", service_of(additionalLocation=[]), 400, "UnknownProperty"),
    ("script", additional(row("<script>alert(1)</script>")), 400, "LocationNotAvailable"),
    ("SQL", additional(row("x'; DROP TABLE service; --")), 400, "LocationNotAvailable"),
    ("path", additional(row("../../etc/passwd")), 400, "LocationNotAvailable"),
]  # fmt: skip
PROFILES: list[tuple[str, Any, int, str]] = [
    ("V20 interval", monitor(intervalInSeconds=0), 400, "InvalidMonitorConfig"),
    ("V20 timeout", monitor(intervalInSeconds=5, timeoutInSeconds=5), 400, "InvalidMonitorConfig"),
    ("V20 azure", monitor(strictAzure=True, intervalInSeconds=20, timeoutInSeconds=5), 400, "InvalidMonitorConfig"),
    ("V20 ranges", monitor(expectedStatusCodeRanges=[{"min": 300, "max": 200}]), 400, "InvalidMonitorConfig"),
    ("V20 many", monitor(customHeaders=[{"name": f"x{n}", "value": "1"} for n in range(9)]), 400, "InvalidMonitorConfig"),
    ("V20 host", monitor(host="*.example.com"), 400, "InvalidMonitorConfig"),
    ("V21 ttl", profile(dnsConfig={"ttl": 2**31}), 400, "InvalidEndpoint"),
    ("V21 weight", endpoints("Weighted", {"weight": 0}, {}), 400, "InvalidEndpoint"),
    ("V21 priority", endpoints("Priority", {"priority": 1}, {"priority": 1}), 400, "InvalidEndpoint"),
    ("V21 maxReturn", endpoints("MultiValue", {}, {}, maxReturn=11), 400, "InvalidEndpoint"),
    ("V21 twice", profile(endpoints=[{"region": OTHER}, {"region": "West Europe"}]), 400, "InvalidEndpoint"),
    ("V22 no mapping", endpoints("Geographic", {"geoMapping": ["WORLD"]}, {}), 400, "InvalidMapping"),
    ("V22 twice", endpoints("Geographic", {"geoMapping": ["DE"]}, {"geoMapping": ["DE"]}), 400, "InvalidMapping"),
    ("V22 overlap", endpoints("Subnet", {"subnets": ["10.0.0.0/8"]}, {"subnets": ["10.1.0.0/16"]}), 400, "InvalidMapping"),
    ("V22 backwards", endpoints("Subnet", {"subnets": ["10.0.0.9-10.0.0.1"]}, {}), 400, "InvalidMapping"),
    ("V22 host bits", endpoints("Subnet", {"subnets": ["10.0.0.1/8"]}, {}), 400, "InvalidMapping"),
    ("V23 loop", nested(), 400, "InvalidNesting"),
]  # fmt: skip


def codes(answer: httpx.Response) -> set[str]:
    error = answer.json()["error"]
    assert error["message"] and "code" in error
    return {error["code"], *(each["code"] for each in error.get("details") or ())}


async def refused(api: Api, found: httpx.Response, status: int, code: str, what: str) -> None:
    assert found.status_code == status and code in codes(found), (what, found.status_code, found.text)


async def test_7_whatever_is_refused_changes_nothing(lab: Lab) -> None:
    before, api = await seen(lab), lab.api
    etag = before["etag"]
    for what, wish, status, code in SAVES:
        await refused(api, await api.patch(wish, etag), status, code, what)
    for what, wish, status, code in PROFILES:
        answer = await api.ask("PATCH", "/trafficManager", json=wish, headers={"If-Match": before["profile"][0]})
        await refused(api, answer, status, code, what)
    for what, (method, path, options), status, code in others(before):
        await refused(api, await api.ask(method, path, **options), status, code, what)
    assert await seen(lab) == before


Asked = tuple[str, str, dict[str, Any]]


def others(before: dict[str, Any]) -> list[tuple[str, Asked, int, str]]:
    """Give what is refused elsewhere than in the body of a Save."""
    now, stale = {"If-Match": before["etag"]}, {"If-Match": '"stale"'}
    published = {"If-Match": before["configuration"]}
    bad = HELLO | {"apis": [HELLO["apis"][0] | {"policies": {"inbound": [{"policy": "no-such-policy"}]}}]}
    return [
        ("V3 remove the primary", ("DELETE", "/locations/westus2", {"headers": now}), 400, "CannotRemovePrimary"),
        ("V4 one row", ("PUT", f"/locations/{OTHER}", {"json": row(OTHER, 0), "headers": now}), 400, "InvalidSkuCapacity"),
        ("V17 stale", ("PATCH", "", {"json": additional(), "headers": stale}), 412, "PreconditionFailed"),
        ("V17 missing", ("PATCH", "", {"json": additional()}), 428, "PreconditionRequired"),
        ("V17 profile", ("PATCH", "/trafficManager", {"json": profile(), "headers": stale}), 412, "PreconditionFailed"),
        ("V24 policy", ("PUT", "/gatewayConfiguration", {"json": bad, "headers": published}), 400, "InvalidConfiguration"),
        ("V24 conflict", ("PUT", "/gatewayConfiguration", {"json": HELLO, "headers": {"If-Match": '"1.999"'}}), 409, "RevisionConflict"),
        ("no such operation", ("GET", "/operations/nope", {}), 404, "ResourceNotFound"),
        ("no such location", ("GET", "/locations/mars", {}), 404, "ResourceNotFound"),
        ("no JSON", ("PATCH", "", {"content": b"{", "headers": now | {"Content-Type": "application/json"}}), 400, "InvalidRequest"),
        ("V25 expired", ("POST", "/restore", {"json": {"name": "old"}}), 409, "BackupExpired"),
        ("V25 tier", ("POST", "/restore", {"json": {"name": "standard"}}), 409, "SkuMismatch"),
        ("V25 name", ("POST", "/restore", {"json": {"name": "fabrikam"}}), 409, "NameMismatch"),
        ("no such backup", ("POST", "/restore", {"json": {"name": "nope"}}), 404, "ResourceNotFound"),
        ("path of a backup", ("POST", "/restore", {"json": {"name": "../store"}}), 400, "InvalidProperty"),
    ]  # fmt: skip


async def test_7_what_is_read_can_be_sent_back_and_no_operation_begins(lab: Lab) -> None:
    before = await seen(lab)
    answer = await lab.api.ask("PUT", "", json=before["body"], headers={"If-Match": before["etag"]})
    assert (answer.status_code, answer.headers["etag"]) == (200, before["etag"])  # V27
    assert await seen(lab) == before


async def test_18_a_secondary_sends_writers_to_the_primary_and_shows_no_portal(lab: Lab) -> None:
    before = await seen(lab)
    for method, path, status in (("GET", "", 421), ("PATCH", "", 421), ("PUT", "/gatewayConfiguration", 421), ("POST", "/promote", 421)):
        answer = await lab.web.request(method, f"{lab.secondary()}/services/contoso{path}", json={} if method != "GET" else None)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["target"]) == (status, "NotPrimary", lab.url), (method, path, answer.text)
    for path in ("/portal/", "/portal/scale-and-pricing", "/developer"):
        assert (await lab.web.get(f"{lab.secondary()}{path}")).status_code == 404, path  # R10, R39, R40
    assert await seen(lab) == before


async def test_who_may_not_write_changes_nothing(lab: Lab) -> None:
    before = await seen(lab)
    for role, status in (("", 401), ("reader", 403), (f"{OTHER}", 403)):
        api = lab.as_role(role) if role != OTHER else lab.node(OTHER)
        answer = await api.patch(additional(), before["etag"])
        assert answer.status_code == status, (role, answer.text)
    assert await seen(lab) == before


async def test_tokens_are_in_no_log_and_no_answer(lab: Lab) -> None:
    secrets = [token.rpartition("_")[2] for token in lab.tokens.values()]
    for path in lab.folder.rglob("*"):
        if path.is_file() and path.suffix != ".token":
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in secrets), path
