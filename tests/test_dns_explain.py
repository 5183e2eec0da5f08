"""`explain` of a DNS name: the same decision as the answer, said in words and in JSON."""

from __future__ import annotations

import json
from typing import Any

import dns.name
import pytest

from lbcore import Balancer, Region
from lbcore.dns.explain import Explanation, explain
from lbcore.dns.profile import Endpoint, Profile
from lbcore.dns.zone import Zone

LONDON = "81.2.69.160"
NAMES = ("westeurope", "eastus", "japaneast")


@pytest.fixture
def lb() -> Balancer:
    return Balancer([Region(name, addresses=[f"192.0.2.{at}"]) for at, name in enumerate(NAMES, 1)])


def told(lb: Balancer, profile: Profile, name: str = "api.example.com", client: str | None = LONDON) -> Explanation:
    zones = [Zone("example.com", {"api": profile, "*.eu": profile}, aliases={"@": "api"}), Zone("sub.example.com")]
    found = explain(lb, zones, dns.name.from_text(name), client)
    assert found is not None
    json.dumps(found.as_dict())
    return found


def both(**settings: Any) -> tuple[Endpoint, ...]:
    return Endpoint("westeurope", **settings), Endpoint("eastus")


@pytest.mark.parametrize(
    ("profile", "answer", "words"),
    [
        (Profile(), "westeurope", "westeurope is the closest that is up"),
        (Profile(method="priority", endpoints=both(priority=9)), "westeurope", "westeurope is the first by priority that is up"),
        (Profile(method="weighted", endpoints=(Endpoint("eastus", weight=7),)), "eastus", "eastus was drawn, of weight 7"),
        (Profile(method="geographic", endpoints=(Endpoint("eastus", geo="GB"),)), "eastus", "the client's place is mapped to eastus (GB)"),
        (Profile(method="geographic", endpoints=(Endpoint("eastus", geo="JP"),)), "NODATA", "nothing is mapped to the client"),
        (Profile(method="subnet", endpoints=both(subnets="81.0.0.0/8")), "westeurope", "has the client's network (81.0.0.0/8)"),
        (Profile(method="subnet", endpoints=both(subnets="10.0.0.0/8")), "eastus", "eastus has the client's network (the rest)"),
        (Profile(method="multivalue"), "westeurope, eastus", "the closest that are up: westeurope, eastus"),
        (Profile(enabled=False), "NXDOMAIN", "it is disabled, so the name does not exist"),
        (Profile(endpoints=(Endpoint("eastus", enabled=False),)), "NODATA", "nothing is up, or wanted"),
    ],
)
def test_each_method_has_its_reason(lb: Balancer, profile: Profile, answer: str, words: str) -> None:
    found = told(lb, profile)
    assert found.answer == answer
    assert words in found.text()


def test_nested_profiles_are_gone_through_and_statuses_told(lb: Balancer) -> None:
    child = Profile("europe", method="priority", endpoints=(Endpoint("japaneast"), Endpoint("westeurope")))
    profile = Profile(endpoints=(Endpoint(profile=child), Endpoint("eastus", enabled=False)), ttl=77)
    for _ in range(3):
        lb.report("japaneast", False, cause="refused", source="probe")
        lb.report("westeurope", True, source="probe")
    found = told(lb, profile)
    assert [(hop.profile, hop.chosen, hop.status) for hop in found.hops] == [("", "europe", "Online"), ("europe", "westeurope", "Degraded")]
    assert [*found.hops[0].endpoints] == [("europe", "Online"), ("eastus", "Disabled")]
    assert (found.ttl, found.scope, found.fail_open) == (77, 0, False)
    assert "holds for everybody, for 77 s" in found.text()


def test_nothing_up_is_said(lb: Balancer) -> None:
    for _ in range(3):
        lb.report("eastus", False, cause="refused", source="probe")
    found = told(lb, Profile(endpoints=(Endpoint("eastus"),)))
    assert (found.answer, found.fail_open) == ("eastus", True)
    assert "nothing better is up, and fail_open is serve_all: eastus" in found.text()


@pytest.mark.parametrize("name", ["example.com", "API.example.com", "x.eu.example.com", "y.x.eu.example.com"])
def test_aliases_and_wildcards_are_steered(lb: Balancer, name: str) -> None:
    assert told(lb, Profile(), name).regions == ["westeurope"]
    assert told(lb, Profile(), name, None).scope == 0


@pytest.mark.parametrize("name", [
    "www.example.com", "eu.example.com", "x.sub.example.com", "example.org", "text.eu.example.com", "x.text.eu.example.com",
    "b.eu.example.com", "x.b.eu.example.com", "cut.eu.example.com", "x.cut.eu.example.com",
])  # fmt: skip
def test_other_names_are_not(lb: Balancer, name: str) -> None:
    records = "text.eu TXT x\na.b.eu TXT x\ncut.eu NS ns.example.net."
    zones = [Zone("example.com", {"api": Profile(), "*.eu": Profile()}, records=records), Zone("sub.example.com")]
    assert explain(lb, zones, dns.name.from_text(name), LONDON) is None


def test_an_alias_of_another_zones_name_and_one_beside_records_are_explained_as_they_are_answered() -> None:
    lb = Balancer([Region("westeurope", gateway="https://gw.example.net"), Region("eastus", addresses=["192.0.2.1"])])
    steered = Zone("example.com", {"api": Profile(), "mx": Profile()}, records="mx MX 1 mail")
    zones = [steered, Zone("example.org", aliases={"@": "api.example.com."})]
    answers = {name: explain(lb, zones, dns.name.from_text(name), LONDON) for name in ("api.example.com", "mx.example.com", "example.org")}
    assert [found and found.answer for found in answers.values()] == ["westeurope", "eastus", "eastus"]


def test_a_region_may_be_spelled_as_people_do() -> None:
    lb = Balancer([Region("West US 2", addresses=["192.0.2.1"])])
    assert "westus2 is the closest" in told(lb, Profile(endpoints=(Endpoint("West US 2"),))).text().replace("West US 2", "westus2")


def test_what_holds_for_a_client_that_cannot_be_located_is_not_said_of_everybody(lb: Balancer) -> None:
    assert "holds for whoever cannot be located" in told(lb, Profile(), client=None).text()
