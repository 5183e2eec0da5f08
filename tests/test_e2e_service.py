"""Scenarios 1, 5 and 8 against real processes on loopback: a primary with its gateways, and an edge with front door and DNS."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from deployment import HELLO, Lab, additional, lbcore, service
from nodes import until
from running import Load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have only 127.0.0.1"),
]
US, UK, HK = "8.8.8.0/24", "81.2.69.0/24", "1.64.0.0/24"  # the closest: westus2, westeurope, eastasia


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    async with service(tmp_path_factory.mktemp("service"), "westus2") as one:
        yield one


async def nearest(lab: Lab, **expected: str) -> None:
    """Wait until DNS sends these networks to these regions.

    It goes by where they are as long as nobody measures their ways: on loopback a front door finds every region equally close, so that
    each of these tests has its own clients for that.
    """
    vips = await lab.addresses()
    for network, region in expected.items():
        asked = globals()[network]
        await until(lambda asked=asked, region=region: _is(lab, asked, vips[region]), f"{network} is answered with {region}")


async def _is(lab: Lab, network: str, addresses: tuple[str, ...]) -> bool:
    return await lab.dns(network) == tuple(sorted(addresses))


async def test_1_regions_are_added_and_saved_and_the_nearest_answers_until_it_is_removed(lab: Lab) -> None:
    await nearest(lab, US="westus2", UK="westus2", HK="westus2")
    before = await lab.addresses()
    body, etag = await lab.api.body()
    assert body["sku"] == {"name": "Premium", "capacity": 1} and body["properties"]["additionalLocations"] == []  # R3
    planned = await lab.api.ask("POST", "/plan", json=additional("westeurope", "eastasia"))
    assert planned.status_code == 200 and (await lab.api.body())[1] == etag  # R12: no effect
    answer = await lab.api.patch(additional("West Europe", "eastasia"))
    assert answer.status_code == 202 and answer.headers["retry-after"] and "/operations/" in answer.headers["location"]  # R13
    operation = await lab.api.finished(answer)
    assert operation["status"] == "Succeeded"
    rows = (await lab.api.get("/locations"))["value"]
    assert [(row["name"], row["provisioningState"]) for row in rows] == [
        ("westus2", "Succeeded"), ("westeurope", "Succeeded"), ("eastasia", "Succeeded"),
    ]  # fmt: skip
    assert all(re.match(rf"https://contoso-{row['name']}-01\.regional\.", row["gatewayRegionalUrl"]) for row in rows)  # R16
    after = await lab.addresses()
    assert after["westus2"] == before["westus2"] and len({address for each in after.values() for address in each}) == 3  # R55
    await nearest(lab, US="westus2", UK="westeurope", HK="eastasia")
    assert await lab.region(headers={"X-Forwarded-For": "81.2.69.9"}) == "westeurope"

    assert (await lab.save("westeurope"))["status"] == "Succeeded"
    await nearest(lab, US="westus2", UK="westeurope")
    assert await lab.dns(HK) in ((*after["westus2"],), (*after["westeurope"],))
    assert lab.process("eastasia") is None and {name: after[name] for name in ("westus2", "westeurope")} == await lab.addresses()
    assert (await lab.api.ask("DELETE", "/locations/eastasia", headers={"If-Match": (await lab.api.body())[1]})).status_code == 204  # V19


@pytest.mark.heavy
async def test_15_a_region_is_removed_under_load_and_no_request_fails(lab: Lab) -> None:
    await lab.wants("westeurope", "eastasia")
    await nearest(lab, HK="eastasia")
    async with Load((lab.host, lab.ports["edge"][0]), clients=8, gap=0.03, fields="X-Forwarded-For: 1.64.0.9\r\n") as load:
        await load.more(200)
        saved = asyncio.ensure_future(lab.save("westeurope"))
        await until(saved.done, "the region is removed")
        assert saved.result()["status"] == "Succeeded"
        await load.more(200)
    assert load.lost == 0 and load.unconnected == 0 and load.statuses.keys() == {200}
    assert lab.process("eastasia") is None


@pytest.mark.heavy
async def test_5_a_drill_takes_the_primarys_gateway_out_and_the_management_plane_stays(lab: Lab) -> None:
    await lab.wants("westeurope")
    vips = await lab.addresses()
    answer = await lab.api.ask("POST", "/locations/westus2/disableGateway", json={"disabled": True}, headers=await tag(lab))
    assert answer.status_code in (200, 202), answer.text
    await nearest(lab, US="westeurope")
    assert (await lab.api.body())[0]["properties"]["disableGateway"] is True
    await until(lambda: _disabled(lab), "its gateway refuses who comes still")
    await lab.settled()
    await lab.api.publish(HELLO | {"policies": {"outbound": []}})  # writes go on
    last = await lab.api.ask("POST", "/locations/westeurope/disableGateway", json={"disabled": True}, headers=await tag(lab))
    assert (last.status_code, last.json()["error"]["code"]) == (409, "CannotDisableAllGateways")  # V14
    answer = await lab.api.ask("POST", "/locations/westus2/disableGateway", json={"disabled": False}, headers=await tag(lab))
    assert answer.status_code in (200, 202), answer.text
    await until(lambda: _any(lab, vips["westus2"]), "westus2 gets its first clients back")


async def _disabled(lab: Lab) -> bool:
    answer = await lab.web.get(f"{await gateway(lab, 'westus2')}/hello")
    return (answer.status_code, answer.headers.get("x-lbcore-gateway")) == (503, "disabled")


async def _any(lab: Lab, addresses: tuple[str, ...]) -> bool:
    return any([await _is(lab, f"8.{number}.8.0/24", addresses) for number in range(0, 250, 10)])


async def tag(lab: Lab) -> dict[str, str]:
    return {"If-Match": (await lab.api.body())[1]}


async def gateway(lab: Lab, region: str) -> str:
    row: dict[str, Any] = await lab.api.get(f"/locations/{region}")
    return str(row["gatewayAddress"])


# ===== 8: races


async def test_8_of_fifty_saves_with_one_etag_one_is_accepted(lab: Lab) -> None:
    await lab.settled()
    _, etag = await lab.api.body()
    wishes = [additional("westeurope", ("eastasia", "uksouth", "japaneast")[number % 3]) for number in range(50)]
    answers = await asyncio.gather(*(lab.api.patch(wish, etag) for wish in wishes))
    found = Counter(answer.status_code for answer in answers)
    assert found[202] == 1 and found[202] + found[409] + found[412] == 50, found
    place = next(number for number, answer in enumerate(answers) if answer.status_code == 202)
    assert (await lab.api.finished(answers[place]))["status"] == "Succeeded"
    body, _ = await lab.api.body()
    wanted = {row["location"] for row in wishes[place]["properties"]["additionalLocations"]}
    assert {row["name"] for row in body["properties"]["additionalLocations"]} == wanted
    assert {path.stem for path in (lab.folder / "regions").glob("*.json")} == {"westus2", *wanted}  # nobody else was begun


@pytest.mark.heavy
async def test_8_configurations_are_published_while_a_save_runs_and_a_second_save_is_told_of_the_first(lab: Lab) -> None:
    answer = await lab.api.patch(additional("westeurope", "koreacentral"))
    assert answer.status_code == 202, answer.text
    published = [await lab.api.publish(HELLO | {"apis": [HELLO["apis"][0] | {"display_name": str(n)}]}) for n in range(10)]
    second = await lab.api.patch(additional("westeurope"))
    error = second.json()["error"]
    assert (second.status_code, error["code"]) == (409, "OperationInProgress") and second.headers["retry-after"]
    assert answer.headers["location"].rpartition("/")[2] in error["target"] + error["message"]
    assert len({*published}) == 10
    assert (await lab.api.finished(answer))["status"] == "Succeeded"
    for region in ("westus2", "westeurope", "koreacentral"):
        await until(lambda region=region: _revision(lab, region, published[-1]), f"{region} has revision {published[-1]}")


async def _revision(lab: Lab, region: str, wanted: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        answer = await lab.web.get(f"{await gateway(lab, region)}/hello")
        return answer.headers.get("x-lbcore-revision") == wanted
    return False


# ===== 1 again, by the command line


@pytest.mark.heavy
async def test_1_the_command_line_does_what_the_portal_does(lab: Lab) -> None:
    token = lab.folder / "owner.token"
    token.touch(mode=0o600)
    token.write_text(lab.tokens["owner"])

    async def regions(*words: str) -> Any:
        return await asyncio.to_thread(lbcore, "regions", *words, "--url", lab.url, "--token-file", str(token))

    await lab.wants("westeurope")
    added = await regions("add", "uksouth", "--units", "2")
    assert added.returncode == 0, added.stderr + added.stdout
    await lab.settled()
    listed = await regions("list", "--json")
    assert listed.returncode == 0 and "uksouth" in listed.stdout
    refused = await regions("remove", "uksouth")
    assert refused.returncode == 2, refused.stdout + refused.stderr  # R14: it wants --yes
    assert "uksouth" in await lab.addresses()
    removed = await regions("remove", "uksouth", "--yes")
    assert removed.returncode == 0, removed.stderr + removed.stdout
    await lab.settled()
    assert {*await lab.addresses()} == {"westus2", "westeurope"}
