"""Views of what the service has stored: what goes out in a form and comes back unchanged asks for nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("pydantic")

from markup import faults
from showing import PAGE

from lbcore.errors import ServiceError
from lbcore.service.body import accepted, as_body, patched
from lbcore.service.capacity import Gauge
from lbcore.service.facts import Facts
from lbcore.service.gauges import Capacity
from lbcore.service.journal import Operation
from lbcore.service.model import Location, LocationState, ResourceId, ServiceState, location, new_service
from lbcore.service.plan import plan as plan_of
from lbcore.service.portal import fill, part, render
from lbcore.service.portal.form import Draft, read, wish
from lbcore.service.timing import failover
from lbcore.service.traffic_manager import read as read_profile
from lbcore.service.traffic_manager import traffic_manager_body

SUBNET = "/subscriptions/s/resourceGroups/r/providers/Microsoft.Network/virtualNetworks/{}/subnets/n"


def running(*others: Location, mode: str = "None") -> ServiceState:
    subnet = ResourceId.subnet(SUBNET.format("w")) if mode != "None" else None
    primary = location("West US 2", units=2, subnet=subnet, subnet_location="westus2" if subnet else "")
    service = new_service("contoso", primary, additional_locations=others, network_mode=mode)
    states = {
        each.name: LocationState(
            provisioning_state="Succeeded", deployed=each, network_mode=service.network_mode, public_ips=(f"192.0.2.{n}",)
        )
        for n, each in enumerate(service.locations)
    }
    return ServiceState(service=service, states=states, etag='"7-1"', sequence=7)


def networked() -> ServiceState:
    subnet = ResourceId.subnet(SUBNET.format("e"))
    europe = location("West Europe", units=3, zones=("1", "2", "3"), subnet=subnet, subnet_location="westeurope")
    return running(europe, mode="External")


def test_a_row_says_how_busy_its_region_is_and_what_to_do_where_that_is_something() -> None:
    busy = {"westus2": Capacity(Gauge(72.4, 88.0), 3), "westeurope": Capacity(Gauge(42.0, 70.1), 3)}
    view = fill.scale_and_pricing(running(location("West Europe", units=3), location("East Asia")), capacities=busy)
    assert [(row.capacity, row.advised) for row in view.rows] == [(Gauge(72.4, 88.0), 3), (Gauge(42.0, 70.1), None), (None, None)]
    shown = render(PAGE, view)
    assert faults(shown) == []
    words = re.findall(r'<span class="busy[^>]*>(.*?)</span>', shown)
    assert words == ["72 % busy (most 88 %)", "3 units advised", "42 % busy (most 70 %)"]


def sent(state: ServiceState, change: Any = lambda rows: rows) -> ServiceState:
    """Give what the page's rows, changed, make of the service."""
    view = fill.scale_and_pricing(state)
    rows = read(row.draft.as_json() for row in change([*view.rows]))
    body = patched(as_body(state), wish(rows, view.tier, view.network_mode))
    return replace(state, service=accepted(body, "contoso", state))


@pytest.mark.parametrize(
    "state",
    [
        running(), networked(),
        running(location("West Europe", zones=("1",)), location("My cellar", lat=48.0, lon=9.0, gateway="http://127.0.0.1:1")),
    ],
    ids=["alone", "networked", "places of our own"],
)  # fmt: skip
def test_a_form_sent_back_unchanged_asks_for_nothing(state: ServiceState) -> None:
    assert sent(state).service == state.service
    assert plan_of(state, sent(state).service).empty
    assert faults(render(PAGE, fill.scale_and_pricing(state, statuses={"westus2": "Online"}))) == []


def test_drafts_become_a_plan() -> None:
    state = running(location("West Europe"), location("East Asia"))

    def change(rows: list[Any]) -> list[Any]:
        europe = replace(rows[1], draft=replace(rows[1].draft, state="draft-change", zones=("1",)))
        asia = replace(rows[2], draft=replace(rows[2].draft, state="draft-delete"))
        japan = replace(rows[0], draft=Draft("japaneast", "draft-add", 4))
        return [rows[0], europe, asia, japan]

    planned = plan_of(state, sent(state, change).service)
    view = fill.plan(planned, state.etag)
    assert [(step.action, step.display_name, step.units_before, step.units_after) for step in view.steps] == [
        ("create", "Japan East", 0, 4), ("update", "West Europe", 1, 1), ("delete", "East Asia", 1, 0),
    ]  # fmt: skip
    (vip,) = view.vip_changes
    assert (vip.display_name, vip.kinds, vip.addresses, vip.reasons) == ("West Europe", ("public",), ("192.0.2.1",), ("zones",))
    assert faults(part("plan", view)) == []
    assert view.digest == fill.digest(planned, state.etag) != fill.digest(planned, '"8-1"')


def test_what_is_wanted_already_is_no_plan() -> None:
    state = running(location("West Europe"))
    assert fill.plan(plan_of(state, sent(state).service), state.etag).empty


def test_a_region_on_its_way_out_is_not_wanted_again() -> None:
    state = running(location("West Europe"))
    gone = replace(state.service, additional_locations=())
    leaving = replace(state, service=gone).having(
        "westeurope", replace(state.of("westeurope"), provisioning_state="TerminationFailed", reason="status 3")
    )
    row = fill.scale_and_pricing(leaving).rows[1]
    assert (row.leaving, row.draft.state, row.provisioning_state, row.reason) == (True, "draft-delete", "TerminationFailed", "status 3")
    assert sent(leaving).service == gone
    assert "westeurope" not in {offer.name for offer in fill.scale_and_pricing(leaving).offers}


def test_the_cap_is_that_of_the_facts() -> None:
    assert fill.scale_and_pricing(running(), Facts(max_units=12)).cap == 12


def test_every_violation_is_a_problem() -> None:
    def change(rows: list[Any]) -> list[Any]:
        return [*rows, *(replace(rows[0], draft=Draft(name, "draft-add", 99)) for name in ("West US 2", "Atlantis"))]

    with pytest.raises(ServiceError) as caught:
        sent(running(), change)
    view = fill.problem(caught.value)
    assert {"DuplicateLocation", "LocationNotAvailable", "InvalidSkuCapacity"} <= {each.code for each in view.details}
    assert faults(part("problem", view)) == []


def test_progress_of_each_region() -> None:
    state = running(location("West Europe"), location("East Asia"))
    rows = replace(state.service, additional_locations=(location("West Europe", units=2), location("Japan East")))
    planned = plan_of(state, rows).as_dict()
    busy = state.having("westeurope", replace(state.of("westeurope"), provisioning_state="Updating"))
    results = {"japaneast": {"status": "Failed", "message": "quota"}}
    operation = Operation("op", "save", "InProgress", 100.0, 105.0, "ana", "", 40, False, planned, results, "")
    view = fill.progress(operation, busy, 112.0)
    assert [(each.display_name, each.state, each.text) for each in view.regions] == [
        ("Japan East", "Failed", "quota"), ("West Europe", "Updating", ""), ("East Asia", "Waiting", ""),
    ]  # fmt: skip
    assert (view.elapsed, view.percent, view.cancelable, view.running) == (12.0, 40, False, True)
    ended = fill.progress(replace(operation, status="Failed", error="quota"), busy.having("eastasia", None), 500.0)
    assert (ended.elapsed, ended.cancelable, ended.regions[2].state) == (5.0, False, "Deleted")
    assert ended.problem is not None
    assert faults(part("progress", view)) == []


# ===== traffic manager

FORM = {
    "status": "Disabled", "method": "Weighted", "ttl": "60", "protocol": "HTTPS", "port": "8443", "path": "/up", "interval": "10",
    "timeout": "2.5", "tolerated": "3", "rise": "1", "codes": "200, 301-399",
}  # fmt: skip


def saved(form: dict[str, str]) -> Any:
    service = running().service
    shown = traffic_manager_body(read_profile({}, service), service)
    return read_profile(patched(shown, fill.monitor_patch(form)), service), service


def test_the_form_of_the_profile_is_what_is_saved_and_shown() -> None:
    manager, service = saved(FORM)
    view = fill.profile(manager, service, '"7"', failover(manager.monitor, manager.ttl))
    again = {
        "status": view.status, "method": view.method, "ttl": f"{view.ttl}", "protocol": view.monitor.protocol,
        "port": f"{view.monitor.port}", "path": view.monitor.path, "interval": f"{view.monitor.interval:g}",
        "timeout": f"{view.monitor.timeout:g}",
        "tolerated": f"{view.monitor.tolerated}", "rise": f"{view.monitor.rise}", "codes": view.monitor.codes,
    }  # fmt: skip
    assert again == FORM
    assert view.timing.worst == 3 * 10 + 10 + 2.5 + 60
    assert faults(render(PAGE, view)) == []


def test_the_protocol_may_be_the_gateways_own() -> None:
    manager, service = saved(FORM | {"protocol": "Automatic"})
    assert manager.monitor.protocol is None
    assert fill.profile(manager, service, "", failover(manager.monitor, manager.ttl)).monitor.protocol == "Automatic"


@pytest.mark.parametrize(
    ("field", "value"),
    [("ttl", "-1"), ("ttl", "soon"), ("interval", "0"), ("timeout", "20"), ("tolerated", "1.5"), ("rise", "0"), ("codes", "abc"),
     ("port", "70000"), ("path", "up"), ("method", "Magic"), ("status", "Perhaps"), ("interval", "1e309"), ("interval", "٣")],
)  # fmt: skip
def test_what_is_wrong_stands_at_its_field(field: str, value: str) -> None:
    with pytest.raises(ServiceError) as caught:
        saved(FORM | {field: value})
    assert field in fill.wrong_fields(caught.value)
