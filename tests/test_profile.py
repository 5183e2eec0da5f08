"""Profiles: Traffic Manager's limits, every violation at once; statuses as REQUIREMENTS §2.2 has them; subnets and places."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from conftest import Clock
from hypothesis import given
from hypothesis import strategies as st

from lbcore import Balancer, ConfigError, Region
from lbcore.detect import VantageSuspect
from lbcore.dns.geography import GROUPS, canonical_place
from lbcore.dns.networks import map_of, overlaps, span_of
from lbcore.dns.profile import Endpoint, Profile
from lbcore.dns.status import endpoint_status, profile_status

A, B, C = Endpoint("westeurope"), Endpoint("eastus"), Endpoint("japaneast")
CHILD = Profile(endpoints=(A, B))


def wrong(**settings: Any) -> dict[str, str | None]:
    """Give what is wrong with a Profile, by place, with the nearest valid choice."""
    with pytest.raises(ConfigError) as caught:
        Profile(**settings)
    return {violation.where: violation.nearest for violation in caught.value.violations}


def geo(*places: str) -> dict[str, Any]:
    """Give the settings of a geographic profile with one place for each endpoint."""
    return {"method": "geographic", "endpoints": tuple(Endpoint(f"r{at}", geo=place) for at, place in enumerate(places))}


def nets(*subnets: str) -> dict[str, Any]:
    """Give the settings of a subnet profile with one network for each endpoint."""
    return {"method": "subnet", "endpoints": tuple(Endpoint(f"r{at}", subnets=text) for at, text in enumerate(subnets))}


# ===== limits


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ttl": -1}, {"dns.ttl": "0"}),
        ({"ttl": 2**31}, {"dns.ttl": "2147483647"}),
        ({"ttl": True}, {"dns.ttl": "1"}),
        ({"ttl": 30, "ttl_min": 31}, {"dns.ttl_min": "30"}),
        ({"max_return": 0}, {"dns.max_return": "1"}),
        ({"max_return": 11}, {"dns.max_return": "10"}),
        ({"method": "Weighted"}, {"dns.method": "weighted"}),
        ({"method": "round_robin"}, {"dns.method": "performance"}),
        ({"fail_open": "serve_last"}, {"dns.fail_open": "serve_last_good"}),
        ({"fail_open": "serve_backup"}, {"dns.backup": None}),
        ({"backup": "eastus"}, {"dns.fail_open": "serve_backup"}),
        ({"family": "ipv4"}, {"dns.family": "client"}),
        ({"endpoints": (Endpoint("eastus", weight=0),)}, {"dns.endpoints[0].weight": "1"}),
        ({"endpoints": (A, Endpoint("eastus", weight=1001))}, {"dns.endpoints[1].weight": "1000"}),
        ({"endpoints": (Endpoint("eastus", priority=0),)}, {"dns.endpoints[0].priority": "1"}),
        ({"endpoints": (Endpoint("eastus"), Endpoint("East US"))}, {"dns.endpoints[0].region": None, "dns.endpoints[1].region": None}),
        ({"endpoints": (Endpoint(),)}, {"dns.endpoints[0]": None}),
        ({"endpoints": (Endpoint("eastus", profile=CHILD),)}, {"dns.endpoints[0]": None}),
        ({"endpoints": (Endpoint(profile=CHILD, min_children=3),)}, {"dns.endpoints[0].min_children": "2"}),
        ({"endpoints": (Endpoint(profile=CHILD, min_children=0),)}, {"dns.endpoints[0].min_children": "1"}),
        ({"endpoints": (Endpoint(profile=CHILD, min_children_ipv4=-1),)}, {"dns.endpoints[0].min_children_ipv4": "0"}),
        ({"endpoints": (Endpoint(profile=CHILD, always_serve=True),)}, {"dns.endpoints[0].always_serve": None}),
        ({"method": "multivalue", "endpoints": (Endpoint(profile=CHILD),)}, {"dns.endpoints[0].profile": None}),
        ({"method": "geographic"}, {"dns.endpoints": None}),
        ({"method": "geographic", "endpoints": (A,)}, {"dns.endpoints[0].geo": "WORLD"}),
        (geo("GEO-EUR"), {"dns.endpoints[0].geo": "GEO-EU"}),
        (geo("UK", "GB"), {"dns.endpoints[1].geo": None}),
        ({"method": "subnet"}, {"dns.endpoints": None}),
        ({"method": "subnet", "endpoints": (A, B)}, {"dns.endpoints[1].subnets": None}),
        (nets("10.0.0.1/8"), {"dns.endpoints[0].subnets": "10.0.0.0/8"}),
        (nets("1.2.3.9-1.2.3.4"), {"dns.endpoints[0].subnets": "1.2.3.4-1.2.3.9"}),
        (nets("1.2.3.4-::1"), {"dns.endpoints[0].subnets": None}),
        (nets("10.0.0.0/8", "10.9.0.0-10.9.0.9"), {"dns.endpoints[1].subnets": None}),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_the_nearest_right_one(settings: dict[str, Any], expected: dict[str, str | None]) -> None:
    assert wrong(**settings) == expected


def test_every_violation_comes_at_once() -> None:
    endpoints = (Endpoint("eastus", weight=0), Endpoint("westeurope", priority=2000), Endpoint("japaneast", geo="XX"))
    found = wrong(ttl=-1, max_return=99, method="geographic", family="six", endpoints=endpoints)
    assert [*found] == [
        "dns.ttl", "dns.max_return", "dns.family", "dns.endpoints[0].weight", "dns.endpoints[1].priority", "dns.endpoints[0].geo",
        "dns.endpoints[1].geo", "dns.endpoints[2].geo",
    ]  # fmt: skip


def test_priorities_are_used_once_and_follow_the_list_where_not_given() -> None:
    profile = Profile(method="priority", endpoints=(A, Endpoint("eastus", priority=10), C, Endpoint("uksouth", priority=5)))
    assert [(number, endpoint.region) for number, endpoint in profile.by_priority()] == [
        (1, "westeurope"), (5, "uksouth"), (10, "eastus"), (11, "japaneast"),
    ]  # fmt: skip
    assert wrong(method="priority", endpoints=(A, Endpoint("eastus", priority=1))) == {
        "dns.endpoints[0].priority": "2", "dns.endpoints[1].priority": "2",
    }  # fmt: skip
    assert [*wrong(method="priority", endpoints=(Endpoint("eastus", priority=1000), A))] == ["dns.endpoints[1].priority"]


def test_ten_profiles_deep_and_no_deeper() -> None:
    profile = CHILD
    for _ in range(9):
        profile = Profile(endpoints=(Endpoint(profile=profile),))
    assert profile.depth == 10
    assert [*wrong(endpoints=(Endpoint(profile=profile),))] == ["dns.endpoints"]


# ===== places and subnets


def test_every_country_is_in_one_group() -> None:
    countries = [country for group in GROUPS.values() for country in group]
    assert len(countries) == len({*countries}) == 249 + 1  # ISO 3166-1, and Kosovo


@pytest.mark.parametrize(
    ("text", "place"),
    [("de", "DE"), ("uk", "GB"), ("geo-eu", "GEO-EU"), ("World", "WORLD"), ("US/New York", "US-NY"), ("us-ny", "US-NY"),
     ("UK-England", "GB-ENG"), ("DE-BY", "DE-BY"), ("XX", None), ("US-", None), ("", None), ("GEO-XX", None)],
)  # fmt: skip
def test_a_place_has_one_spelling_in_the_end(text: str, place: str | None) -> None:
    assert canonical_place(text) == place


SPANS = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**10)).map(lambda pair: (pair[0], min(2**32 - 1, sum(pair))))


@given(st.lists(SPANS, max_size=6))
def test_overlaps_are_found_and_only_those(pairs: list[tuple[int, int]]) -> None:
    texts = [f"{ipaddress.IPv4Address(first)}-{ipaddress.IPv4Address(last)}" for first, last in pairs]
    found = [*overlaps((span_of(text), number) for number, text in enumerate(texts))]
    clash = any(a[0] <= b[1] and b[0] <= a[1] for at, a in enumerate(pairs) for b in pairs[:at])
    assert bool(found) == clash
    for one, other in found:
        assert pairs[one][0] <= pairs[other][1]
        assert pairs[other][0] <= pairs[one][1]


@given(SPANS)
def test_a_range_is_mapped_to_its_edges(pair: tuple[int, int]) -> None:
    first, last = map(ipaddress.IPv4Address, pair)
    prefixes = map_of([[f"{first}-{last}"]])
    assert [prefixes.lookup(address) for address in (first, last)] == [1, 1]
    assert [prefixes.lookup(edge) for edge in _beside(*pair)] == [0] * len(_beside(*pair))


def _beside(first: int, last: int) -> list[ipaddress.IPv4Address]:
    return [ipaddress.IPv4Address(number) for number in (first - 1, last + 1) if 0 <= number < 2**32]


# ===== statuses (§2.2)


@pytest.fixture
def lb(clock: Clock) -> Balancer:
    west, east = Region("westeurope", addresses=["192.0.2.1"]), Region("eastus", addresses=["2001:db8::1"])
    return Balancer([west, east, Region("japaneast", always_serve=True)], clock=clock)


def probed(lb: Balancer, name: str, ok: bool) -> None:
    for _ in range(3):
        lb.report(name, ok, source="probe", cause=None if ok else "timeout")


@pytest.mark.parametrize(
    ("profile", "endpoint", "always", "signal", "status"),
    [
        (False, True, False, "up", "Inactive"),
        (False, True, True, "up", "Inactive"),
        (False, False, False, "up", "Disabled"),
        (True, False, False, "up", "Disabled"),
        (True, False, True, "up", "Disabled"),
        (True, True, False, "disabled", "Disabled"),
        (True, True, True, "disabled", "Disabled"),
        (True, True, True, "down", "Unmonitored"),
        (True, True, True, "", "Unmonitored"),
        (True, True, False, "", "CheckingEndpoint"),
        (True, True, False, "up", "Online"),
        (True, True, False, "down", "Degraded"),
        (True, True, False, "draining", "Stopped"),
        (True, True, False, "removed", "Stopped"),
        (False, True, False, "removed", "Inactive"),
    ],
)
def test_an_endpoint_has_the_status_of_the_table(
    lb: Balancer, profile: bool, endpoint: bool, always: bool, signal: str, status: str
) -> None:
    one = Endpoint("westeurope", enabled=endpoint, always_serve=always)
    match signal:
        case "up" | "down":
            probed(lb, "westeurope", signal == "up")
        case "disabled":
            lb.disable("westeurope")
        case "draining":
            lb.drain("westeurope")
        case "removed":
            lb.set_regions(lb.regions[1:])
    assert endpoint_status(lb, Profile(endpoints=(one,), enabled=profile), one) == status


def test_a_profile_has_its_worst_endpoints_status(lb: Balancer) -> None:
    lb.guard = type(lb.guard)(lb.guard.detector, suspect=lambda: VantageSuspect(interval=30))
    two = Profile(endpoints=(A, B))
    assert profile_status(lb, Profile(enabled=False)) == "Disabled"
    assert profile_status(lb, Profile()) == "Online"  # japaneast is always served
    assert profile_status(lb, two) == "CheckingEndpoints"
    probed(lb, "westeurope", True)
    assert profile_status(lb, two) == "Online"
    probed(lb, "eastus", False)
    assert profile_status(lb, two) == "Degraded"
    lb.disable("westeurope")
    assert profile_status(lb, two) == "Degraded"
    lb.disable("eastus")
    assert profile_status(lb, two) == "Inactive"
    assert profile_status(lb, Profile(endpoints=(Endpoint("eastus", enabled=False),))) == "Inactive"


def test_a_nested_profile_is_online_with_enough_endpoints_up(lb: Balancer) -> None:
    def status(**settings: int) -> str:
        nested = Endpoint(profile=CHILD, **settings)  # type: ignore[arg-type]
        return endpoint_status(lb, Profile(endpoints=(nested,)), nested)

    assert status(min_children=2) == "CheckingEndpoint"
    probed(lb, "westeurope", True)
    assert [status(min_children=least) for least in (1, 2)] == ["Online", "CheckingEndpoint"]
    probed(lb, "eastus", False)
    assert [status(min_children=least) for least in (1, 2)] == ["Online", "Degraded"]
    assert [status(min_children_ipv4=1), status(min_children_ipv6=1)] == ["Online", "Degraded"]
    lb.disable("westeurope")
    lb.disable("eastus")
    assert status() == "Stopped"
    for child in (Profile(enabled=False), Profile(endpoints=(Endpoint("eastus", enabled=False),))):
        nested = Endpoint(profile=child)
        assert endpoint_status(lb, Profile(endpoints=(nested,)), nested) == "Stopped"
        assert endpoint_status(lb, Profile(endpoints=(nested,), enabled=False), nested) == "Inactive"


def test_a_tree_that_shares_profiles_may_not_grow_without_bounds() -> None:
    profile = Profile(endpoints=(Endpoint("westeurope"),))
    with pytest.raises(ConfigError) as caught:
        for _ in range(8):
            profile = Profile(endpoints=tuple(Endpoint(profile=profile) for _ in range(6)))
    assert [violation.expected for violation in caught.value.violations] == [
        "at most 10,000, counting a profile as often as it is reached"
    ]
