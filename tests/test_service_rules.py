"""What a service may be: V1-V15 of the requirements, each with its code and its place, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_worlds import contoso, public_ip, services, subnet

from lbcore.errors import ServiceError
from lbcore.region import catalogue
from lbcore.service.codes import STATUS, exit_code_of, refusal, status_of
from lbcore.service.facts import Facts, Live, skus
from lbcore.service.model import TIERS, Location, ResourceId, Service, location, new_service
from lbcore.service.rules import validate

FIRST = "properties.additionalLocations[0]"


def codes(wanted: Service, current: Service | None = None, facts: Facts | None = None, **options: bool) -> dict[str, str | None]:
    return {each.code: each.target for each in validate(wanted, current, facts, **options)}


def networked(mode: str = "External", **of_primary: Any) -> Service:
    """Give a service of two regions, each in a subnet of its own."""
    places = [location(name, subnet=ResourceId.subnet(subnet(name)), subnet_location=name) for name in ("westus2", "westeurope")]
    return new_service("contoso", replace(places[0], **of_primary), additional_locations=(places[1],), network_mode=mode)


@given(services())
def test_sound_services_have_no_violation(service: Service) -> None:
    assert validate(service) == []
    assert validate(service, service) == []


def test_a_service_begins_with_one_unit_in_one_region() -> None:
    service = new_service("contoso", "West US 2")
    assert (service.primary.units, service.additional_locations) == (1, ())
    assert (service.primary.name, service.primary.display_name) == ("westus2", "West US 2")
    assert validate(service) == []


@pytest.mark.parametrize(("tier", "most"), [("Developer", 1), ("Basic", 2), ("Standard", 4), ("Premium", 31), ("Consumption", 0)])
def test_units_are_a_whole_number_within_the_tier(tier: str, most: int) -> None:
    for units in range(-1, 40):
        found = codes(new_service("contoso", location("westus2", units=units), tier=tier))
        assert ("InvalidSkuCapacity" in found) == (not min(most, 1) <= units <= most), units
    for units in (True, 1.0, "1", None, float("nan"), 10**5000, [1]):
        found = codes(new_service("contoso", location("westus2", units=units), tier=tier))
        assert found["InvalidSkuCapacity"] == "sku.capacity"


def test_the_most_units_of_premium_are_a_setting() -> None:
    wanted = new_service("contoso", location("westus2", units=40))
    assert "InvalidSkuCapacity" in codes(wanted)
    assert codes(wanted, facts=Facts(max_units=40)) == {}
    listed = {entry["sku"]["name"]: entry["capacity"] for entry in skus(Facts(max_units=40))}  # type: ignore[index]
    assert listed["Premium"] == {"minimum": 1, "maximum": 40, "default": 1, "scaleType": "automatic"}
    assert listed["Developer"] == {"minimum": 1, "maximum": 1, "default": 1, "scaleType": "none"}
    assert [*listed] == [*TIERS]


def test_a_region_is_named_once() -> None:
    assert codes(contoso("West Europe", "westeurope")) == {"DuplicateLocation": "properties.additionalLocations[1].location"}
    assert codes(contoso("WEST US2")) == {"DuplicateLocation": f"{FIRST}.location"}


def test_unknown_regions_are_told_with_the_nearest() -> None:
    [found] = validate(contoso("westeurop"))
    assert (found.code, found.target) == ("LocationNotAvailable", f"{FIRST}.location")
    assert "'westeurope'" in found.message


def test_a_place_of_ones_own_needs_coordinates_and_a_plain_name() -> None:
    def at(name: str, **settings: Any) -> dict[str, str | None]:
        return codes(new_service("contoso", "westus2", additional_locations=(location(name, **settings),)))

    assert at("edge-1", lat=52.0, lon=4.0) == {}
    assert at("Edge 1", lat=52.0, lon=4.0, zones=["7"]) == {}
    assert at("edge-1") == {"LocationNotAvailable": f"{FIRST}.location"}
    assert at("edge-1", lat=91.0, lon=4.0) == {"InvalidGeo": f"{FIRST}.geo.lat"}
    assert at("edge-1", lat=float("nan"), lon=float("inf")) == {"InvalidGeo": f"{FIRST}.geo.lon"}
    assert at("westeurope", lat=52.0) == {"InvalidGeo": f"{FIRST}.geo.lon"}
    odd = ("../etc/passwd", "a'; DROP TABLE service; --", "<script>", "ed\x00ge", "")
    for name in (*odd, "-edge", "edge-", "1edge", "édge", "\u212aedge", "e" * 41):
        assert at(name, lat=1.0, lon=1.0) == {"LocationNotAvailable": f"{FIRST}.location"}, name


@pytest.mark.parametrize("name", ["", "1a", "-a", "a-", "a" * 51, "a b", "a_b", "a.b", "../x", "ä", "a\n", "a'--", "<b>", 7, None])
def test_a_services_name_is_part_of_a_host_name(name: Any) -> None:
    assert codes(new_service(name, "westus2"))["InvalidServiceName"] == "name"


@pytest.mark.parametrize("domain", ["", ".", "a..b", "-a.b", "a b", "a/b", "x" * 64, ".".join(["a" * 60] * 5), "tëst", "a\n", 7])
def test_a_domain_is_a_dns_name(domain: Any) -> None:
    assert codes(contoso(domain=domain)) == {"InvalidDomain": "properties.domain"}


def test_the_host_names_of_regions_fit() -> None:
    long = new_service("a" * 50, "westus2", additional_locations=(location("southafricanorth"),))
    assert codes(long) == {"HostNameTooLong": f"{FIRST}.location"}


@pytest.mark.parametrize("url", ["ftp://x", "http://", "javascript:alert(1)", "http://a b", "http://u@h", "http://h:99999", "x\x00", 7])
def test_a_gateway_is_a_url(url: Any) -> None:
    assert codes(new_service("contoso", location("westus2", gateway=url))) == {"InvalidGateway": "properties.gateway"}


# ===== tiers


@pytest.mark.parametrize("tier", [name for name in TIERS if name != "Premium"])
def test_locations_and_zones_need_premium(tier: str) -> None:
    units = TIERS[tier].default
    places = tuple(location(name, units=units) for name in ("westus2", "westeurope"))
    wanted = new_service("contoso", replace(places[0], zones=("1",)), additional_locations=places[1:], tier=tier)
    found = [(each.code, each.target) for each in validate(wanted)]
    assert found == [("FeatureNotSupportedBySku", "properties.additionalLocations"), ("FeatureNotSupportedBySku", "zones")]


def test_a_lower_tier_needs_its_locations_removed_in_the_same_save() -> None:
    before = contoso("westeurope", "eastasia")
    [found] = validate(replace(before, tier="Standard"), before)
    assert (found.code, found.target, STATUS[found.code]) == ("LocationsPresent", "properties.additionalLocations", 409)
    assert "westeurope" in found.message
    assert "eastasia" in found.message
    assert validate(replace(before, tier="Standard", additional_locations=()), before) == []
    swapped = replace(contoso("eastasia", "uksouth"), tier="Standard")
    assert set(codes(swapped, before)) == {"LocationsPresent", "FeatureNotSupportedBySku"}


def test_an_unknown_tier_is_told_with_the_nearest() -> None:
    [found] = validate(contoso("westeurope", tier="premum"))
    assert (found.code, found.target) == ("InvalidSku", "sku.name")
    assert "'Premium'" in found.message


# ===== what never changes


def test_the_primary_stays_where_it_is() -> None:
    before = contoso("westeurope")
    moved = new_service("contoso", "westeurope", additional_locations=(location("westus2"),))
    assert codes(moved, before) == {"PropertyChangeNotAllowed": "location"}
    assert codes(replace(before, domain="example.com"), before) == {"PropertyChangeNotAllowed": "properties.domain"}
    with pytest.raises(ServiceError, match="CannotRemovePrimary"):
        before.without("West US 2")


def test_locations_are_put_and_taken_by_name() -> None:
    service = contoso("westeurope")
    assert service.without("eastasia") == service
    assert service.without("West Europe") == contoso()
    assert service.put(location("eastasia")) == contoso("westeurope", "eastasia")
    assert service.put(location("westeurope", units=3)).get("West Europe").units == 3
    assert service.put(location("westus2", units=3)).primary.units == 3
    with pytest.raises(ServiceError, match="did you mean 'westeurope'"):
        service.get("westeurop")


# ===== zones


def test_units_are_spread_evenly_over_zones() -> None:
    wanted = contoso().put(location("westus2", units=4, zones=["1", "2", "3"]))
    assert codes(wanted) == {"UnitsNotMultipleOfZones": "sku.capacity"}
    assert codes(contoso().put(location("westus2", units=6, zones=["3", "1", "2"]))) == {}


@pytest.mark.parametrize("zones", [("1", "1"), ("4",), ("0",), ("one",), ("1", 2), "12", ("\u0661",), ("1" * 50,)])
def test_zones_are_those_of_the_region(zones: Any) -> None:
    found = codes(contoso().put(replace(location("westus2", units=2), zones=zones)))
    assert found["InvalidZone"] == "zones"


def test_a_region_without_zones_says_which_have_some() -> None:
    [found] = validate(contoso("canadaeast").put(location("canadaeast", zones=["1"])))
    assert (found.code, found.target) == ("NotSupported", f"{FIRST}.zones")
    assert "canadacentral" in found.message


def test_the_catalogue_knows_zones() -> None:
    assert {region.zones for region in catalogue().values() if region.provider == "azure"} == {1, 3}
    assert catalogue()["canadaeast"].zones == 1


# ===== networks


def test_each_location_needs_a_subnet_when_there_is_a_network() -> None:
    assert codes(contoso(network_mode="External")) == {"SubnetRequired": "properties.virtualNetworkConfiguration.subnetResourceId"}
    assert codes(replace(networked(), network_mode="None"))["SubnetNotAllowed"] == f"{FIRST}.virtualNetworkConfiguration.subnetResourceId"
    assert codes(contoso(network_mode="Bridge")) == {"InvalidNetworkType": "properties.virtualNetworkType"}


def test_a_subnet_lies_in_the_locations_own_region() -> None:
    target = f"{FIRST}.virtualNetworkConfiguration.subnetResourceId"
    good = networked()
    assert codes(good) == {}
    second = good.additional_locations[0]
    assert codes(good.put(replace(second, subnet_location="westus2"))) == {"SubnetLocationMismatch": target}
    assert codes(good.put(replace(second, subnet_location=""))) == {"SubnetLocationUnknown": target}
    assert second.subnet is not None
    assert codes(good, facts=Facts(networks={second.subnet.network: "westus2"})) == {"SubnetLocationMismatch": target}
    assert codes(good.put(replace(second, subnet_location="")), facts=Facts(networks={second.subnet.network: "West Europe"})) == {}


def test_all_resources_are_of_one_subscription() -> None:
    good = networked()
    foreign = ResourceId.subnet(subnet("westeurope").replace("/s/", "/other/"))
    found = codes(good.put(replace(good.additional_locations[0], subnet=foreign)))
    assert found == {"SubnetSubscriptionMismatch": f"{FIRST}.virtualNetworkConfiguration.subnetResourceId"}


@pytest.mark.parametrize(
    "text",
    [
        "", "/", subnet("w") + "/", "/x" + subnet("w"), subnet("w") + "\n", subnet("../w"), subnet(".."), subnet("a/b"), subnet("w", ".."),
        subnet("w", ""), subnet("w", "'; DROP TABLE x;--"), subnet("w", "<script>"), subnet("w", "%2e%2e"), subnet("w", "\u0131"),
        subnet("w", "a" * 91), subnet("w", "a\x00"), public_ip("p"), subnet("w").replace("Microsoft.Network", "MicrosoftXNetwork"),
    ],
)  # fmt: skip
def test_resource_ids_have_a_form(text: str) -> None:
    with pytest.raises(ValueError):
        ResourceId.subnet(text)


def test_resource_ids_are_the_same_whatever_the_case() -> None:
    upper = ResourceId.subnet(subnet("Net").replace("subnets", "SUBNETS"))
    assert upper == ResourceId.subnet(subnet("net"))
    assert (upper.subscription, upper.network) == ("s", f"{subnet('net').lower().partition('/subnets')[0]}")


@pytest.mark.parametrize("change", [{"zones": ("1",)}, {"subnet": ResourceId.subnet(subnet("westus2", "other"))}])
def test_strict_azure_wants_another_address_where_the_vip_moves(change: Mapping[str, Any]) -> None:
    own = ResourceId.public_ip(public_ip("one"))
    before = networked(public_ip=own)
    after = before.put(replace(before.primary, **change))
    assert codes(after, before, Facts(strict_azure=True)) == {"PublicIpMustChange": "properties.publicIpAddressId"}
    assert codes(after, before) == {}
    without = (one.put(replace(one.primary, public_ip=None)) for one in (after, before))
    assert codes(*without, Facts(strict_azure=True)) == {}
    other = after.put(replace(after.primary, public_ip=ResourceId.public_ip(public_ip("two"))))
    assert codes(other, before, Facts(strict_azure=True)) == {}


# ===== gateways and what is live


def test_one_gateway_stays_enabled() -> None:
    off = {"disable_gateway": True}
    both = contoso("westeurope").put(location("westus2", **off)).put(location("westeurope", **off))
    assert codes(both) == {"CannotDisableAllGateways": "properties.disableGateway"}
    before = contoso("westeurope").put(location("westus2", **off))
    assert codes(before) == {}
    assert codes(before.without("westeurope"), before) == {"CannotDisableAllGateways": "properties.disableGateway"}


def test_a_gateway_cannot_be_disabled_in_internal_mode() -> None:
    assert codes(networked("Internal", disable_gateway=True)) == {"NotSupportedInInternalMode": "properties.disableGateway"}


def in_zones(*zones: str, units: int = 2) -> Service:
    return contoso("westeurope").put(location("westus2", zones=zones, units=units))


def test_the_only_live_zone_is_not_given_up() -> None:
    facts = Facts(live={"westus2": Live(zones_down=frozenset("1"))})
    assert codes(in_zones("1"), in_zones("1", "2"), facts) == {"WouldLoseCapacity": "zones"}
    assert codes(in_zones("1"), in_zones("1", "2"), facts, force=True) == {}
    assert codes(in_zones("2"), in_zones("1", "2"), facts) == {}
    assert codes(in_zones("1", "3"), in_zones("1", "2"), facts) == {}
    assert codes(in_zones("1"), in_zones("1", "2")) == {}


def test_the_only_live_units_are_not_given_up() -> None:
    facts = Facts(live={"westus2": Live(units=1)})
    for units in (1, 2):
        assert codes(in_zones(units=units), in_zones(units=3), facts) == {"WouldLoseCapacity": "sku.capacity"}
    assert codes(in_zones(units=2), in_zones(units=3), Facts(live={"westus2": Live(units=2)})) == {}
    assert codes(in_zones(units=5), in_zones(units=3), facts) == {}
    assert codes(in_zones(units=1), in_zones(units=3), Facts(live={"westus2": Live(units=3)})) == {}


def test_the_last_region_that_works_is_not_given_up() -> None:
    facts = Facts(live={"westus2": Live(units=0)})
    before = contoso("westeurope")
    off = location("westeurope", disable_gateway=True)
    assert codes(before.without("westeurope"), before, facts) == {"WouldLoseCapacity": "properties.additionalLocations"}
    assert codes(before.put(off), before, facts) == {"WouldLoseCapacity": "properties.additionalLocations"}
    assert codes(before.without("westeurope"), before, facts, force=True) == {}


# ===== all at once


def test_every_violation_comes_at_once() -> None:
    places: tuple[Location, ...] = (
        location("westeurop"), location("West US 2", units=0), location("canadaeast", zones=["1"], units=99),
        location("eastasia", zones=["1", "1"], disable_gateway=True), location("uksouth", gateway="nowhere", lat=1.0),
    )  # fmt: skip
    wanted = new_service("1", location("westus2", units=7), additional_locations=places, tier="Basic", domain="..", network_mode="Internal")
    found = validate(wanted)
    assert {each.code for each in found} >= {
        "InvalidServiceName", "InvalidDomain", "LocationNotAvailable", "DuplicateLocation", "InvalidSkuCapacity", "NotSupported",
        "InvalidZone", "NotSupportedInInternalMode", "InvalidGateway", "InvalidGeo", "SubnetRequired", "FeatureNotSupportedBySku",
    }  # fmt: skip
    assert len([each for each in found if each.code == "SubnetRequired"]) == 6
    error = refusal(found)
    assert {detail.code for detail in error.details} == {each.code for each in found}
    assert all(detail.target and len(str(detail)) < 1500 for detail in error.details)


def test_the_status_of_several_reasons_is_400_before_409() -> None:
    before = contoso("westeurope")
    found = validate(replace(before, tier="Standard", domain=".."), before)
    assert {STATUS[each.code] for each in found} == {400, 409}
    assert (status_of(refusal(found)), exit_code_of(refusal(found))) == (400, 2)
    conflict = refusal(validate(replace(before, tier="Standard"), before))
    assert (status_of(conflict), exit_code_of(conflict), conflict.details) == (409, 3, ())


hostile = st.text(st.characters(codec=None), max_size=60) | st.sampled_from(
    ["<script>alert(1)</script>", "'; DROP TABLE service; --", "../../etc/passwd", "\x00", "\ud800", "{{7*7}}", "\u202e"]
)  # fmt: skip


@given(hostile, hostile, hostile, hostile, hostile)
def test_whatever_a_text_says_it_becomes_a_violation_and_no_message_repeats_it_raw(a: str, b: str, c: str, d: str, e: str) -> None:
    place = replace(location(b), gateway=c, subnet_location=d, zones=(e,))
    wanted = Service(name=a, domain=e, tier=c, network_mode=d, primary=place)  # type: ignore[arg-type]
    for found in validate(wanted):
        assert found.message.isascii()
        assert found.message.isprintable()


def test_five_hundred_regions_are_judged_soon() -> None:
    many = tuple(location(f"edge-{number}", lat=1.0, lon=float(number % 180)) for number in range(499))
    assert validate(new_service("contoso", "westus2", additional_locations=many)) == []
