"""Scenario 6 against real processes: which change moves which VIP, and what stays byte for byte."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from deployment import Lab, additional, row, service
from nodes import until
from service_worlds import subnet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have only 127.0.0.1"),
]
BOTH = ("westus2", "westeurope")


def inside(region: str, name: str = "n") -> dict[str, Any]:
    return {"virtualNetworkConfiguration": {"subnetResourceId": subnet(region, name), "location": region}}


def mode(kind: str, first: str = "n", second: str = "n") -> dict[str, Any]:
    """Give the PATCH that wants a network mode, with each region in a subnet of its own."""
    away = {"virtualNetworkConfiguration": None}
    one, two = (inside("westus2", first), inside("westeurope", second)) if kind != "None" else (away, {})
    return {"properties": {"virtualNetworkType": kind, **one, "additionalLocations": [row("westeurope", 2) | two]}}


# what is wanted next, whose VIPs move (public), and whether they have private ones then
CHANGES: list[tuple[str, dict[str, Any], tuple[str, ...], bool]] = [
    ("zones of a secondary", additional(row("westeurope", 2, zones=["1", "2"])), ("westeurope",), False),
    ("zones of the primary", {"sku": {"capacity": 2}, "zones": ["1", "2"]}, ("westus2",), False),
    ("units only", {"sku": {"capacity": 4}}, (), False),
    ("zones back", {"zones": []} | additional(row("westeurope", 2)), BOTH, False),
    ("None to External", mode("External"), BOTH, False),
    ("another subnet", mode("External", second="m"), ("westeurope",), False),
    ("External to Internal", mode("Internal", second="m"), BOTH, True),
    ("Internal to External", mode("External", second="m"), BOTH, False),
    ("External to None", mode("None"), BOTH, False),
]


async def test_6_vips_move_as_the_plan_says_after_an_acknowledgement_and_no_others(tmp_path: Path) -> None:
    async with service(tmp_path, "westus2") as lab:
        assert (await lab.save(row("westeurope", 2)))["status"] == "Succeeded"
        for what, wish, whose, private in CHANGES:
            await change(lab, what, wish, whose, private)
        before, shown = await lab.addresses(), await rows(lab)
        with_more = {"properties": {"additionalLocations": [row("westeurope", 2), row("uksouth")]}}
        for wish in (with_more, additional(row("westeurope", 2))):
            assert (await lab.api.finished(await lab.api.patch(wish)))["status"] == "Succeeded"
            now = await lab.addresses()
            assert {name: now[name] for name in BOTH} == before  # R55
        assert await rows(lab) == shown
        reinstated = additional()
        assert (await lab.api.finished(await lab.api.patch(reinstated)))["status"] == "Succeeded"
        assert (await lab.save(row("westeurope", 2)))["status"] == "Succeeded"
        assert (await lab.addresses())["westus2"] == before["westus2"]


async def rows(lab: Lab) -> list[dict[str, Any]]:
    """Give the Locations table, without what time alone changes."""
    found = (await lab.api.get("/locations"))["value"]
    return [{key: value for key, value in one.items() if key not in ("previousPublicIPAddresses", "capacity")} for one in found]


async def change(lab: Lab, what: str, wish: dict[str, Any], whose: tuple[str, ...], private: bool) -> None:
    before = await lab.addresses()
    planned = (await lab.api.ask("POST", "/plan", json=wish)).json()
    assert {one["name"] for one in planned["vipChanges"]} == {*whose}, what
    if whose:
        _, etag = await lab.api.body()
        refused = await lab.api.patch(wish)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "VipChangeNotAcknowledged"), (what, refused.text)
        assert all(address in refused.text for name in whose for address in before[name])  # R56
        assert (await lab.api.body())[1] == etag
    answer = await lab.api.patch(wish | {"acknowledgeVipChange": True})
    assert (await lab.api.finished(answer))["status"] == "Succeeded", what
    after = await lab.addresses()
    assert {name for name in before if before[name] != after[name]} == {*whose}, what
    body, _ = await lab.api.body()
    found = {one["name"]: one for one in (await lab.api.get("/locations"))["value"]}
    for name, one in found.items():
        assert bool(one["privateIPAddresses"]) is private, (what, name)
        assert name not in whose or {*before[name]} <= {*one["previousPublicIPAddresses"]}, what
    if body["properties"]["virtualNetworkType"] == "Internal":
        await until(lambda: _dns_is(lab, ()), "DNS lists nothing in Internal mode")  # R51
    else:
        await until(lambda: _dns_is(lab, after["westus2"]), f"DNS has the VIP after: {what}")


async def _dns_is(lab: Lab, addresses: tuple[str, ...]) -> bool:
    answer = await lab.ask("8.8.8.0/24")
    return tuple(sorted(rdata.to_text() for rrset in answer.answer for rdata in rrset)) == addresses
