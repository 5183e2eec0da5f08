"""A service as REST takes and shows it: what is read back changes nothing, what cannot be read is told with its place."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_worlds import contoso, running, services, subnet

from lbcore.errors import ServiceError
from lbcore.region import catalogue
from lbcore.service.body import accepted, as_body, from_body, patched, rows
from lbcore.service.codes import STATUS
from lbcore.service.facts import Facts
from lbcore.service.model import Service, ServiceState, location
from lbcore.service.plan import plan
from lbcore.service.progress import failed
from lbcore.service.rules import validate
from lbcore.service.traffic_manager import read

REGIONS = "properties.additionalLocations"


def refused(body: object, current: ServiceState | None = None, **options: Any) -> dict[str, str | None]:
    """Give codes and targets of all that is wrong with a body."""
    with pytest.raises(ServiceError) as caught:
        accepted(body, "contoso", current, **options)
    return {each.code: each.target for each in caught.value.details or (caught.value,)}


@given(services())
def test_what_was_read_back_is_no_operation(service: Service) -> None:
    state = running(service)
    body = json.loads(json.dumps(as_body(state)))
    wanted = accepted(body, "contoso", state)
    assert wanted == service
    assert plan(state, wanted).empty


@given(services(), services())
def test_a_patch_with_nothing_new_is_no_operation(service: Service, other: Service) -> None:
    state = running(service)
    assert accepted(patched(as_body(state), {}), "contoso", state) == service
    wish = {"properties": {REGIONS.partition(".")[2]: as_body(ServiceState(service=other))["properties"]["additionalLocations"]}}
    first, _ = from_body(patched(as_body(state), wish), "contoso")
    assert first is not None
    assert [each.name for each in first.additional_locations] == [each.name for each in other.additional_locations]


def test_a_patch_takes_back_what_it_calls_null() -> None:
    state = running(accepted({"location": "westus2", "zones": ["1"], "properties": {"gateway": "http://a.test"}}, "contoso", None))
    wanted = accepted(patched(as_body(state), {"zones": None, "properties": {"gateway": None}}), "contoso", state)
    assert (wanted.primary.zones, wanted.primary.gateway, wanted.primary.units) == ((), "", 1)


def test_a_services_name_is_the_same_in_any_case() -> None:
    state = running(contoso())
    assert plan(state, accepted(as_body(state) | {"name": "CONTOSO"}, "ConToso", state)).empty


def test_the_shortest_body_makes_one_unit_in_one_region() -> None:
    wanted = accepted({"location": "westus2"}, "contoso", None)
    body = as_body(ServiceState(service=wanted))
    assert (body["sku"], body["properties"]["additionalLocations"]) == ({"name": "Premium", "capacity": 1}, [])
    assert (body["location"], body["properties"]["provisioningState"]) == ("West US 2", "Created")
    assert body["properties"]["gatewayUrl"] == "https://contoso.test"


def test_every_location_has_a_regional_url_and_units_of_its_own() -> None:
    sent = {
        "location": "West US 2", "sku": {"name": "Premium", "capacity": 1}, "name": "Contoso",
        "properties": {"additionalLocations": [{"location": "eastasia", "sku": {"name": "Premium", "capacity": 5}, "zones": None}]},
    }  # fmt: skip
    state = running(accepted(sent, "contoso", None))
    body = as_body(state)
    [row] = body["properties"]["additionalLocations"]
    assert (body["sku"]["capacity"], row["sku"]["capacity"], row["location"], row["name"]) == (1, 5, "East Asia", "eastasia")
    assert body["properties"]["gatewayRegionalUrl"] == "https://contoso-westus2-01.regional.test"
    assert row["gatewayRegionalUrl"] == "https://contoso-eastasia-01.regional.test"
    assert [(each["location"], each["primary"]) for each in rows(state)] == [("West US 2", True), ("East Asia", False)]


def test_a_region_that_leaves_is_shown_until_it_is_gone() -> None:
    state = running(contoso("eastasia"))
    planned = plan(state, contoso())
    leaving = failed(ServiceState(service=contoso(), states=state.states), planned.deletes[0], "the cloud says no")
    assert [(each["name"], each["provisioningState"], each["reason"]) for each in rows(leaving)] == [
        ("westus2", "Succeeded", None), ("eastasia", "TerminationFailed", "the cloud says no"),
    ]  # fmt: skip


READ_ONLY = [
    (("etag",), "1-old"), (("id",), "/services/other"), (("type",), "x"), (("properties", "provisioningState"), "Created"),
    (("properties", "publicIPAddresses"), ["192.0.2.1"]), (("properties", "gatewayRegionalUrl"), "https://evil.test"),
    (("properties", "privateIPAddresses"), ["10.9.9.9"]), (("properties", "additionalLocations", 0, "publicIPAddresses"), ["192.0.2.1"]),
    (("properties", "additionalLocations", 0, "provisioningState"), "Failed"),
    (("properties", "additionalLocations", 0, "gatewayRegionalUrl"), "javascript:alert(1)"),
]  # fmt: skip


def put(body: Any, path: tuple[str | int, ...], value: object) -> Any:
    """Give a copy of a body with one value replaced."""
    changed = copy.deepcopy(body)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path).replace(".0", "[0]")


@pytest.mark.parametrize(("path", "value"), READ_ONLY, ids=lambda value: dotted(value) if isinstance(value, tuple) else None)
def test_what_is_read_only_may_come_back_as_it_is_but_not_otherwise(path: tuple[str | int, ...], value: object) -> None:
    state = running(contoso("eastasia"))
    shown = as_body(state)
    assert refused(put(shown, path, value), state) == {"ReadOnlyProperty": dotted(path)}
    assert plan(state, accepted(put(shown, path, None), "contoso", state)).empty


def test_a_new_service_brings_nothing_read_only() -> None:
    empty = {"location": "westus2", "etag": "", "properties": {"publicIPAddresses": [], "provisioningState": None}}
    assert accepted(empty, "contoso", None) == contoso()
    body = {"location": "westus2", "etag": "7-x", "properties": {"publicIPAddresses": ["192.0.2.1"]}}
    with pytest.raises(ServiceError) as caught:
        accepted(body, "contoso", None)
    assert [(each.code, each.target) for each in caught.value.details] == [
        ("ReadOnlyProperty", "etag"), ("ReadOnlyProperty", "properties.publicIPAddresses"),
    ]  # fmt: skip


WRONG: list[tuple[tuple[str | int, ...], object, str]] = [
    (("location",), 7, "LocationNotAvailable"), (("location",), None, "LocationNotAvailable"),
    (("location",), "  ", "LocationNotAvailable"), (("location",), "w" * 10_000, "LocationNotAvailable"),
    (("sku",), [], "InvalidProperty"), (("sku",), "Premium", "InvalidProperty"),
    (("properties",), [1], "InvalidProperty"), (("sku", "name"), 7, "InvalidProperty"), (("sku", "name"), "premium", "InvalidSku"),
    (("sku", "capacity"), "2", "InvalidSkuCapacity"), (("sku", "capacity"), 1.5, "InvalidSkuCapacity"),
    (("sku", "capacity"), True, "InvalidSkuCapacity"), (("sku", "capacity"), {}, "InvalidSkuCapacity"), (("zones",), "1", "InvalidZone"),
    (("zones",), [1], "InvalidZone"), (("zones",), [["1"]], "InvalidZone"), (("properties", "disableGateway"), "yes", "InvalidProperty"),
    (("properties", "disableGateway"), 1, "InvalidProperty"), (("properties", "domain"), 1, "InvalidProperty"),
    (("properties", "virtualNetworkType"), "internal", "InvalidNetworkType"), (("properties", "virtualNetworkType"), [], "InvalidProperty"),
    (("properties", "virtualNetworkConfiguration"), "x", "InvalidProperty"),
    (("properties", "virtualNetworkConfiguration"), {"subnetResourceId": "/x"}, "InvalidResourceId"),
    (("properties", "virtualNetworkConfiguration"), {"subnet": "/x"}, "UnknownProperty"),
    (("properties", "publicIpAddressId"), "192.0.2.1", "InvalidResourceId"), (("properties", "geo"), {"lat": "1", "lon": 2}, "InvalidGeo"),
    (("properties", "geo"), [1, 2], "InvalidProperty"), (("properties", "gateway"), {}, "InvalidProperty"),
    (("properties", "additionalLocations"), {}, "InvalidProperty"),
    (("properties", "additionalLocations"), ["eastasia"], "InvalidProperty"),
    (("properties", "additionalLocations", 0, "sku"), {"name": "Basic", "capacity": 1}, "InvalidSku"),
    (("properties", "additionalLocations", 0, "sku"), {"capacity": None, "units": 1}, "UnknownProperty"),
    (("properties", "additionalLocations", 0, "locaton"), "x", "UnknownProperty"),
    (("properties", "additionalLocation"), [], "UnknownProperty"),
    (("zone",), ["1"], "UnknownProperty"), (("name",), "other", "PropertyChangeNotAllowed"), (("name",), 7, "PropertyChangeNotAllowed"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "code"), WRONG, ids=lambda value: dotted(value) if isinstance(value, tuple) else None)
def test_each_wrong_value_is_told_where_it_stands(path: tuple[str | int, ...], value: object, code: str) -> None:
    body = {"location": "westus2", "sku": {"name": "Premium", "capacity": 1}, "zones": [], "properties": {
        "additionalLocations": [{"location": "eastasia", "sku": {"name": "Premium", "capacity": 1}}]}}  # fmt: skip
    assert accepted(body, "contoso", None) == contoso("eastasia")
    found = refused(put(body, path, value))
    assert code in found
    target = found[code] or ""
    assert target.startswith(dotted(path))


def test_everything_wrong_comes_at_once_and_places_that_could_not_be_read_are_not_judged_twice() -> None:
    body = {"location": "westus2", "sku": {"capacity": 0}, "colour": "red", "etag": "x", "properties": {
        "virtualNetworkType": "External", "virtualNetworkConfiguration": {"subnetResourceId": "/nowhere"},
        "additionalLocations": [{"location": "West US 2"}, 7, {"location": "westeurop"}]}}  # fmt: skip
    assert refused(body) == {
        "UnknownProperty": "colour", "ReadOnlyProperty": "etag", "InvalidSkuCapacity": "sku.capacity",
        "InvalidResourceId": "properties.virtualNetworkConfiguration.subnetResourceId", "InvalidProperty": f"{REGIONS}[1]",
        "DuplicateLocation": f"{REGIONS}[0].location", "LocationNotAvailable": f"{REGIONS}[2].location",
        "SubnetRequired": f"{REGIONS}[2].virtualNetworkConfiguration.subnetResourceId",
    }  # fmt: skip


def test_a_service_without_a_place_is_judged_all_the_same() -> None:
    body = {"location": 7, "sku": {"capacity": 99}, "properties": {"domain": "..", "additionalLocations": [7, {"location": "eastasi"}]}}
    assert refused(body) == {
        "LocationNotAvailable": f"{REGIONS}[1].location", "InvalidProperty": f"{REGIONS}[0]", "InvalidSkuCapacity": "sku.capacity",
        "InvalidDomain": "properties.domain",
    }  # fmt: skip


def test_networks_are_read_and_shown() -> None:
    def place(name: str) -> dict[str, object]:
        return {"virtualNetworkConfiguration": {"subnetResourceId": subnet(name), "location": "West Europe"}}

    body = {"location": "westeurope", "properties": {"virtualNetworkType": "Internal", **place("one")}}
    state = running(accepted(body, "contoso", None))
    shown = as_body(state)["properties"]
    assert shown["virtualNetworkConfiguration"] == {"subnetResourceId": subnet("one"), "location": "westeurope"}
    assert (len(shown["publicIPAddresses"]), len(shown["privateIPAddresses"])) == (1, 1)
    elsewhere = {f"{subnet('one').partition('/subnets')[0].lower()}": "eastasia"}
    target = "properties.virtualNetworkConfiguration.subnetResourceId"
    assert refused(body, facts=Facts(networks=elsewhere)) == {"SubnetLocationMismatch": target}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4), max_leaves=15,
)  # fmt: skip
keys = ["location", "sku", "zones", "name", "etag", "properties", "additionalLocations", "geo", "virtualNetworkConfiguration"]
bodies = st.recursive(json_values, lambda inner: st.dictionaries(st.sampled_from(keys), inner, max_size=6) | st.lists(inner, max_size=3))


@given(bodies)
def test_any_json_is_accepted_or_refused_in_order(body: Any) -> None:
    for current in (None, running(contoso("eastasia"))):
        try:
            assert isinstance(accepted(body, "contoso", current), Service)
        except ServiceError as error:
            for each in error.details or (error,):
                assert each.code in STATUS
                assert str(each).isascii()
                assert (each.target or "").isascii()


def test_nesting_without_end_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"properties": deep, "a": [deep]}
    with pytest.raises(ServiceError, match="nested at most"):
        patched(as_body(running(contoso())), deep)
    assert set(refused(deep)) >= {"UnknownProperty", "LocationNotAvailable"}


def test_a_place_of_ones_own_comes_back_as_it_was_spelled() -> None:
    body = {"location": "westus2", "properties": {"additionalLocations": [{"location": "My Edge", "geo": {"lat": 1, "lon": 2.5}}]}}
    wanted = accepted(body, "contoso", None)
    assert wanted.additional_locations == (location("My  Edge", lat=1, lon=2.5),)
    state = running(wanted)
    assert as_body(state)["properties"]["additionalLocations"][0]["location"] == "My Edge"
    respelled = put(as_body(state), ("properties", "additionalLocations", 0, "location"), "MyEdge")
    respelled["properties"]["additionalLocations"][0]["displayName"] = None
    planned = plan(state, accepted(respelled, "contoso", state))
    assert [step.changes for step in planned.updates] == [("displayName",)]
    assert not planned.updates[0].provisions


def test_another_tier_is_judged_by_what_it_forbids_not_by_the_rows_that_were_read_back() -> None:
    state = running(contoso("westeurope"))
    with pytest.raises(ServiceError) as found:
        accepted(patched(as_body(state), {"sku": {"name": "Standard"}}), "contoso", state)
    assert [each.code for each in found.value.details or (found.value,)] == ["LocationsPresent"]


@pytest.mark.parametrize("provider", ["azure", "aws", "gcp"])
def test_every_known_region_is_read_back_as_it_is_shown(provider: str) -> None:
    """Names for people are not always regions' names: "Africa (Cape Town)" is af-south-1 (V27)."""
    names = [one.name for one in catalogue().values() if one.provider == provider and one.name != "westus2"]
    assert len(names) > 20
    service = contoso(*names)
    assert [*validate(service, None, Facts())] == []
    state = ServiceState(service=service)
    assert accepted(as_body(state), "contoso", state, Facts()) == service
    read({}, service)
