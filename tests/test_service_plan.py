"""The plan of a wish: a pure function, and nothing happens that it did not say."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_worlds import Ledger, carry_out, contoso, places, public_ip, running, services, subnet

from lbcore.errors import ServiceError
from lbcore.sense.monitor import Monitor
from lbcore.service.model import Location, LocationState, NetworkMode, ResourceId, Service, ServiceState, location, new_service
from lbcore.service.plan import Plan, admit, plan, refresh, removal, sla
from lbcore.service.progress import Granted, accept, begin, done, failed, forget_previous
from lbcore.service.timing import Span, failover, passive


def vips(state: ServiceState) -> Mapping[str, tuple[object, ...]]:
    return {name: (one.public_ips, one.private_ips) for name, one in state.states.items()}


# ===== nothing happens that plan did not say


@given(services(), services())
def test_carrying_out_a_plan_gives_what_was_wanted_and_changes_only_what_it_said(before: Service, wanted: Service) -> None:
    ledger = Ledger()
    old = running(before, ledger)
    kept = copy.deepcopy(old)
    planned = plan(old, wanted)
    new = carry_out(old, wanted, ledger)
    assert old == kept
    assert {name: one.deployed for name, one in new.states.items()} == {each.name: each for each in wanted.locations}
    assert {one.network_mode for one in new.states.values()} == {wanted.network_mode}
    assert plan(new, wanted).empty

    touched = {step.name for step in planned.steps}
    assert all(new.states[name] == old.states[name] for name in new.states.keys() - touched)
    assert {step.name for step in planned.creates} == new.states.keys() - old.states.keys()
    assert {step.name for step in planned.deletes} == old.states.keys() - new.states.keys()
    stay = old.states.keys() & new.states.keys()
    assert {name for name in stay if vips(old)[name] != vips(new)[name]} == {change.name for change in planned.vip_changes}
    for change in planned.vip_changes:
        one, then = old.states[change.name], new.states[change.name]
        assert (change.public, change.private) == (one.public_ips != then.public_ips, one.private_ips != then.private_ips)
        assert (change.public_ips, change.private_ips) == (one.public_ips, one.private_ips)
        assert set(one.public_ips) <= {*then.previous_public_ips, *then.public_ips}


@given(services(), services())
def test_a_plan_says_only_what_differs(before: Service, wanted: Service) -> None:
    planned = plan(running(before), wanted)
    old = {each.name: each for each in before.locations}
    new = {each.name: each for each in wanted.locations}
    assert {step.name for step in planned.creates} == new.keys() - old.keys()
    assert {step.name for step in planned.deletes} == old.keys() - new.keys()
    turned = before.network_mode != wanted.network_mode
    assert {step.name for step in planned.updates} == {name for name in old.keys() & new.keys() if turned or old[name] != new[name]}
    assert planned.empty == (before == wanted)
    json.dumps(planned.as_dict(), allow_nan=False)


@given(services(), st.sampled_from(["japaneast", "ukwest"]), st.data())
def test_a_secondary_comes_and_goes_without_touching_another_regions_vip(service: Service, name: str, data: st.DataObject) -> None:
    ledger = Ledger()
    bare = service.without(name)
    alone = running(bare, ledger)
    both = carry_out(alone, bare.put(data.draw(places(name, service.network_mode))), ledger)
    assert plan(alone, both.service).vip_changes == ()
    assert {key: one for key, one in both.states.items() if key != name} == alone.states
    assert carry_out(both, bare, ledger) == replace(both, service=bare, states=alone.states)
    again = carry_out(carry_out(both, bare, ledger), both.service, ledger)
    assert set(again.of(name).public_ips).isdisjoint(both.of(name).public_ips)  # vacated and reinstated: a new VIP


@given(services(), services(), st.randoms(use_true_random=False))
def test_wherever_a_plan_is_interrupted_planning_again_leads_to_the_same_end(before: Service, wanted: Service, random: Any) -> None:
    ledger, passed = Ledger(), list[ServiceState]()
    old = running(before, ledger)
    planned = plan(old, wanted)
    end = carry_out(old, wanted, ledger, passed.append)
    fewest = min(len(before.locations), len(wanted.locations))
    assert all(sum(one.deployed is not None for one in state.states.values()) >= fewest for state in passed)
    stopped = random.choice(passed)
    rest = plan(stopped, wanted)
    assert {step.name for step in rest.steps} <= {step.name for step in planned.steps}
    assert {change.name for change in rest.vip_changes} <= {change.name for change in planned.vip_changes}
    resumed = carry_out(stopped, wanted, ledger)
    assert {name: one.deployed for name, one in resumed.states.items()} == {name: one.deployed for name, one in end.states.items()}
    assert plan(resumed, wanted).empty


# ===== the VIP rules


def in_mode(mode: NetworkMode, **settings: Any) -> Service:
    """Give three zoned regions in a network mode; settings of West US 2."""

    def one(name: str, **settings: Any) -> Location:
        inside = ResourceId.subnet(subnet(name)) if mode != "None" else None
        return location(name, **{"units": 2, "subnet": inside, "subnet_location": name} | settings)

    return new_service("contoso", one("westus2", **settings), additional_locations=(one("westeurope"), one("eastasia")), network_mode=mode)


EVERY = ("westus2", "westeurope", "eastasia")
OWN = ResourceId.public_ip(public_ip("one"))
ELSEWHERE = ResourceId.subnet(subnet("westus2", "other"))
TABLE: list[tuple[str, Service, Service, tuple[str, ...], bool, bool]] = [
    # what changes, before, after, whose VIPs, public, private
    ("zones", in_mode("Internal"), in_mode("Internal", zones=["1", "2"]), ("westus2",), True, True),
    ("zones, no private VIP", in_mode("External", zones=["1"]), in_mode("External", zones=["2"]), ("westus2",), True, False),
    ("subnet", in_mode("Internal"), in_mode("Internal", subnet=ELSEWHERE), ("westus2",), True, True),
    ("subnet, no private VIP", in_mode("External"), in_mode("External", subnet=ELSEWHERE), ("westus2",), True, False),
    ("None to External", in_mode("None"), in_mode("External"), EVERY, True, False),
    ("None to Internal", in_mode("None"), in_mode("Internal"), EVERY, True, True),
    ("External to None", in_mode("External"), in_mode("None"), EVERY, True, False),
    ("Internal to None", in_mode("Internal"), in_mode("None"), EVERY, True, True),
    ("External to Internal", in_mode("External"), in_mode("Internal"), EVERY, True, True),
    ("Internal to External", in_mode("Internal"), in_mode("External"), EVERY, True, True),
    ("public address", in_mode("Internal"), in_mode("Internal", public_ip=OWN), ("westus2",), True, False),
    ("units", in_mode("Internal"), in_mode("Internal", units=4), (), False, False),
    ("the switch", in_mode("External"), in_mode("External", disable_gateway=True), (), False, False),
    ("order of zones", in_mode("None", zones=["1", "2"]), in_mode("None", zones=["2", "1"]), (), False, False),
    ("a region more", in_mode("None").without("eastasia"), in_mode("None"), (), False, False),
    ("a region less", in_mode("Internal"), in_mode("Internal").without("eastasia"), (), False, False),
]


@pytest.mark.parametrize(("before", "after", "whose", "public", "private"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_which_change_moves_which_vip(before: Service, after: Service, whose: tuple[str, ...], public: bool, private: bool) -> None:
    ledger = Ledger()
    old = running(before, ledger)
    planned = plan(old, after)
    assert tuple(change.name for change in planned.vip_changes) == whose
    assert {(change.public, change.private) for change in planned.vip_changes} <= {(public, private)}
    new = carry_out(old, after, ledger)
    for name in old.states.keys() & new.states.keys():
        changed = name in whose
        assert (new.states[name].public_ips != old.states[name].public_ips) == (changed and public)
        assert (new.states[name].private_ips != old.states[name].private_ips) == (changed and private)
        assert new.states[name].previous_public_ips == (old.states[name].public_ips if changed else ())


def test_a_region_whose_removal_failed_may_have_lost_its_vip() -> None:
    state = running(contoso("eastasia"))
    [step] = plan(state, contoso()).deletes
    half_gone = failed(begin(replace(state, service=contoso()), step), step, "stuck")
    back = plan(half_gone, contoso("eastasia"))
    assert [(change.reasons, change.public, change.private) for change in back.vip_changes] == [(("reinstated",), True, False)]
    assert [step.changes for step in back.updates] == [("retry",)]


def test_a_region_reinstated_may_have_lost_its_private_vip_too() -> None:
    state = running(in_mode("Internal"))
    [step] = plan(state, in_mode("Internal").without("eastasia")).deletes
    [change] = plan(failed(begin(state, step), step, "stuck"), in_mode("Internal")).vip_changes
    assert (change.name, change.public, change.private) == ("eastasia", True, True)


def test_vip_changes_must_be_acknowledged() -> None:
    state = running(in_mode("None"))
    planned = plan(state, in_mode("None", zones=["1", "2"]))
    admit(planned, acknowledged=True)
    admit(plan(state, in_mode("None", units=5)), acknowledged=False)
    with pytest.raises(ServiceError, match="VipChangeNotAcknowledged") as caught:
        admit(planned, acknowledged=False)
    assert state.of("westus2").public_ips[0] in str(caught.value)
    with pytest.raises(ServiceError) as caught:
        admit(plan(running(in_mode("External")), in_mode("Internal")), acknowledged=False)
    assert [detail.target for detail in caught.value.details] == [*EVERY]


# ===== what a provisioner gives


def change_of_zones() -> tuple[ServiceState, Plan]:
    state = running(in_mode("None"))
    planned = plan(state, in_mode("None", zones=["1", "2"]).put(location("westeurope", units=4, subnet_location="westeurope")))
    return accept(state, planned), planned


@pytest.mark.parametrize(
    "granted",
    [
        Granted(), Granted(("203.0.9.9",), ("10.0.9.9",)), Granted(("nowhere",)), Granted(("",)), Granted(("203.0.0.3",)),
        Granted(("203.0.9.9 ",)), Granted(("'; --",)), Granted(("\x00",)),
    ],
)  # fmt: skip
def test_addresses_that_no_plan_said_or_no_region_can_have_are_refused(granted: Granted) -> None:
    state, planned = change_of_zones()
    with pytest.raises(ServiceError, match="UnplannedChange"):
        done(state, planned.updates[0], planned, granted, 0.0)


def test_a_vip_that_was_to_stay_stays_or_the_provisioner_is_told_off() -> None:
    state, planned = change_of_zones()
    step = planned.updates[1]
    assert step.name == "westeurope"
    old = state.of("westeurope").public_ips
    for granted in (Granted(), Granted(old)):
        assert done(state, step, planned, granted, 0.0).of("westeurope").public_ips == old
    with pytest.raises(ServiceError, match="was to stay"):
        done(state, step, planned, Granted(("203.0.9.9",)), 0.0)


def test_the_gateway_is_where_the_operator_says_or_the_provisioner_or_where_it_was() -> None:
    def gateway(wanted: str, granted: str) -> str:
        state = running(contoso("eastasia"))
        planned = plan(state, contoso("eastasia").put(location("eastasia", units=2, gateway=wanted)))
        return done(state, planned.updates[0], planned, Granted(gateway=granted), 0.0).of("eastasia").gateway

    assert gateway("http://a.test", "http://b.test") == "http://a.test"
    assert gateway("", "http://b.test") == "http://b.test"
    assert gateway("", "") == "http://eastasia.test"


def test_a_vip_given_up_is_remembered_for_a_while() -> None:
    state, planned = change_of_zones()
    [old] = state.of("westus2").public_ips
    after = done(state, planned.updates[0], planned, Granted(("203.0.9.9",)), now=1000.0, overlap=60.0)
    assert (after.of("westus2").public_ips, after.of("westus2").previous_public_ips) == (("203.0.9.9",), (old,))
    later = done(after, planned.updates[1], planned, Granted(), now=1030.0)
    wider = plan(later, later.service.put(location("westus2", units=4, zones=["1", "2"])))
    kept = done(later, wider.updates[0], wider, Granted(), now=1030.0)
    assert (kept.of("westus2").previous_public_ips, kept.of("westus2").previous_until) == ((old,), 1060.0)
    assert forget_previous(after, 1059.0) is after
    assert forget_previous(after, -1e9) is after  # the clock was set back
    assert forget_previous(after, 1060.0).of("westus2").previous_public_ips == ()


# ===== failure and retry


def test_a_creation_that_failed_is_tried_again_by_the_same_save() -> None:
    wanted = contoso("eastasia", "westeurope")
    state = running(contoso())
    planned = plan(state, wanted)
    first, second = planned.creates
    state = failed(begin(accept(state, planned), first), first, "no room")
    state = done(state, second, planned, Granted(("203.0.9.9",)), 0.0)
    assert (state.provisioning_state, state.of("eastasia").reason) == ("Failed", "no room")
    again = plan(state, wanted)
    assert [(step.name, step.changes) for step in again.creates] == [("eastasia", ("retry",))]
    assert accept(state, again).of("eastasia") == LocationState()
    assert not again.empty
    assert plan(state, contoso("westeurope")).deletes[0].name == "eastasia"  # or given up


def test_an_update_that_failed_leaves_what_ran_and_is_tried_again() -> None:
    state = running(contoso("eastasia"))
    wanted = contoso("eastasia").put(location("eastasia", units=3))
    planned = plan(state, wanted)
    [step] = planned.updates
    broken = failed(begin(accept(state, planned), step), step, "quota")
    assert broken.of("eastasia").deployed == location("eastasia")
    assert broken.of("eastasia").public_ips == state.of("eastasia").public_ips
    assert plan(broken, wanted).updates[0].changes == ("units", "retry")
    back = plan(broken, contoso("eastasia"))
    assert not back.empty
    assert back.updates[0].changes == ("retry",)


def test_a_wish_taken_back_before_anything_was_done_is_still_written_down() -> None:
    state = running(contoso("eastasia"))
    accepted = accept(state, plan(state, contoso("eastasia").put(location("eastasia", units=3))))
    back = plan(accepted, contoso("eastasia"))
    assert (back.steps, back.empty) == ((), False)


def test_one_word_for_the_whole() -> None:
    state = running(contoso("eastasia"))
    assert state.provisioning_state == "Succeeded"
    assert ServiceState(service=contoso()).provisioning_state == "Created"
    assert state.having("eastasia", LocationState(provisioning_state="Warming")).provisioning_state == "Updating"
    assert state.having("ukwest", LocationState(provisioning_state="TerminationFailed")).provisioning_state == "Failed"


@given(services())
def test_a_service_goes_region_by_region_the_primary_last(service: Service) -> None:
    state = running(service)
    planned = removal(state)
    assert {step.action for step in planned.steps} == {"delete"}
    assert planned.steps[-1].name == "westus2"
    for step in planned.steps:
        state = done(begin(state, step), step, planned, Granted(), 0.0)
    assert state.states == {}


@given(services())
def test_a_refresh_changes_nothing_that_can_be_seen(service: Service) -> None:
    state = running(service)
    planned = refresh(state)
    assert [step.name for step in planned.steps] == [each.name for each in service.locations]
    assert all(step.provisions for step in planned.steps)
    after = accept(state, planned)
    for step in planned.steps:
        after = done(begin(after, step), step, planned, Granted(), 0.0)
    assert after == state
    assert [step.name for step in refresh(state, "West US 2").steps] == ["westus2"]
    with pytest.raises(ServiceError, match="ResourceNotFound"):
        refresh(state, "westeurop")
    assert refresh(ServiceState(service=service)).steps == ()


# ===== what an operator should know


def warned(service: Service) -> set[str]:
    return {warning.code for warning in plan(None, service).warnings}


def test_warnings_name_what_a_layout_lacks() -> None:
    assert warned(contoso()) == {"OneRegionServes"}
    assert warned(contoso("eastasia")) == set()
    assert warned(contoso("eastasia").put(location("eastasia", units=3))) == {"ThinReserve"}
    assert warned(in_mode("Internal")) == {"NotRoutedPublicly"}
    assert warned(new_service("contoso", "westus2", tier="Developer")) == {"OneRegionServes", "TierWithoutSla"}
    assert "SubnetShared" in warned(in_mode("External", subnet=ResourceId.subnet(subnet("eastasia"))))


def test_the_level_of_availability_follows_the_layout() -> None:
    assert sla(contoso("eastasia")) == 99.99
    assert sla(contoso()) == 99.95
    assert sla(contoso().put(location("westus2", units=2, zones=["1", "2"]))) == 99.99
    assert sla(contoso().put(location("westus2", units=2, zones=["1"]))) == 99.95
    assert sla(contoso().put(location("westus2", units=2))) == 99.99  # automatic: spread over the region's zones
    assert sla(contoso("eastasia").put(location("eastasia", disable_gateway=True))) == 99.95
    assert sla(new_service("contoso", "westus2", tier="Developer")) is None
    assert sla(new_service("contoso", "westus2", tier="Consumption")) == 99.95


ARITHMETIC = [  # REQUIREMENTS §2.4: interval, timeout, tolerated, TTL; silent, end to start, refused; worst of the first two
    (30, 10, 3, 60, (100, 130), (130, 160), (90, 120), 190, 220),
    (30, 10, 3, 30, (100, 130), (130, 160), (90, 120), 160, 190),
    (10, 9, 3, 60, (39, 49), (66, 76), (30, 40), 109, 136),
    (10, 5, 3, 10, (35, 45), (50, 60), (30, 40), 55, 70),
    (10, 5, 0, 0, (5, 15), (5, 15), (0, 10), 15, 15),
]


@pytest.mark.parametrize(("interval", "timeout", "tolerated", "ttl", "silent", "paced", "refused", "worst", "worst_paced"), ARITHMETIC)
def test_failover_times_are_those_of_the_table(
    interval: int, timeout: int, tolerated: int, ttl: int, silent: tuple[int, int], paced: tuple[int, int], refused: tuple[int, int],
    worst: int, worst_paced: int,
) -> None:  # fmt: skip
    monitor = Monitor.azure(interval=interval, timeout=timeout, tolerated=tolerated)
    times = plan(None, contoso(), monitor=monitor, ttl=ttl).failover
    assert (times.detect_silent, times.end_to_start, times.detect_refused) == (Span(*silent), Span(*paced), Span(*refused))
    assert (times.worst, times.worst_end_to_start, times.worst_refused) == (worst, worst_paced, refused[1] + ttl)
    assert times.recover == Span(0, interval)
    assert times.as_dict()["detectSilent"] == [*silent]


@given(
    st.floats(0.05, 100.0), st.floats(0.01, 1.0), st.integers(0, 9), st.integers(1, 5), st.floats(0.0, 1.0, exclude_max=True), st.booleans()
)
def test_failover_times_bound_a_simulated_outage(
    interval: float, share: float, tolerated: int, rise: int, phase: float, refuses: bool
) -> None:
    timeout = max(0.001, share * interval * 0.99)
    monitor = Monitor(interval=interval, timeout=timeout, tolerated=tolerated, rise=rise)
    times, waited, failures = failover(monitor, 30.0), phase * interval, 0
    while (failures := failures + 1) <= tolerated:
        waited += interval
    found = waited if refuses else waited + timeout
    span = times.detect_refused if refuses else times.detect_silent
    assert span.shortest - 1e-6 <= found <= span.longest + 1e-6
    assert times.recover.shortest <= phase * interval + (rise - 1) * interval + 1e-6 <= times.recover.longest + 2e-6


def test_requests_find_out_sooner_the_more_there_are() -> None:
    assert [round(passive(rate, 5, 1.0), 3) for rate in (1, 100, 1000)] == [6.0, 1.05, 1.005]
    with pytest.raises(ValueError):
        passive(0.0)
