"""Rotation documents and reports: both ends, and whatever else may come over a network."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_worlds import contoso, running

from lbcore.errors import ServiceError
from lbcore.service import traffic_manager as profiles
from lbcore.service.model import Service, ServiceState, location
from lbcore.service.notices import KINDS, Notices
from lbcore.service.reports import MOST_EDGES, STATUSES, EdgeReport, Edges, read_report
from lbcore.service.revisions import Number
from lbcore.service.rotation import listed
from lbcore.service.rotation_document import MOST_BYTES, document, narrowed, read
from lbcore.service.statuses import endpoint_status, profile_status

NAMES = ("westus2", "westeurope", "eastasia", "uksouth")
ENDED = ("Succeeded", "Updating", "Failed", "Draining", "Terminating", "Activating", "Warming", "TerminationFailed")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4), max_leaves=20,
)  # fmt: skip


# ===== rotation documents


@st.composite
def states(draw: st.DrawFn) -> ServiceState:
    state = running(contoso(*draw(st.lists(st.sampled_from(NAMES[1:]), unique=True))))
    for name in state.states:
        state = state.having(name, replace(state.of(name), provisioning_state=draw(st.sampled_from(ENDED))))
    return replace(state, sequence=draw(st.integers(0, 9)))


@st.composite
def bodies(draw: st.DrawFn, service: Service) -> dict[str, Any]:
    """Profiles that fit a service: with endpoints or without, nested, with a backup."""
    names = [each.name for each in service.locations]
    regions = st.lists(st.sampled_from(names), unique=True)
    nested = draw(st.booleans())
    endpoints = [{"region": name} for name in draw(regions)] + ([{"profile": "inner"}] if nested else [])
    properties: dict[str, Any] = {"endpoints": endpoints}
    if nested:
        properties["profiles"] = [{"name": "inner", "endpoints": [{"region": name} for name in draw(regions)] or [{"region": names[0]}]}]
    if draw(st.booleans()):
        properties |= {"failOpen": "serve_backup", "backup": draw(st.lists(st.sampled_from(names), unique=True, min_size=1))}
    return {"properties": properties}


@given(st.data(), states())
def test_whatever_is_listed_can_be_read_by_who_knows_nothing_else(data: st.DataObject, state: ServiceState) -> None:
    manager = profiles.read(data.draw(bodies(state.service)), state.service)
    shown = profiles.traffic_manager_body(manager, state.service)
    made = document(state, shown, service="contoso", domain="test", epoch=1, sequence=7)
    assert {one.name: one.draining for one in made.regions} == {name: one.draining for name, one in listed(state).items()}
    assert read(made.document) == made and made.number == Number(1, 7)
    assert all(one.region.name == one.name and one.addresses for one in made.regions)
    if (service := made.as_service()) is not None:
        there = profiles.read(made.traffic_manager, service)
        assert (there.ttl, there.monitor) == (manager.ttl, manager.monitor)
        served = {one.region for one in there.settings.document.traffic_manager.endpoints if one.endpoint_status == "Enabled"}
        assert bool(served) or not made.traffic_manager["properties"]["endpoints"] or not (
            {one["region"] for one in shown["properties"]["endpoints"] if one["region"]} & {one.name for one in made.regions}
        )  # fmt: skip


def test_a_profile_whose_regions_have_all_gone_serves_nobody() -> None:
    body = {"properties": {"endpoints": [{"region": "eastasia"}], "failOpen": "serve_backup", "backup": ["eastasia"]}}
    found = narrowed(body, {"westus2"})["properties"]
    assert found["endpoints"] == [{"region": "westus2", "endpointStatus": "Disabled"}]
    assert (found["backup"], found["failOpen"]) == ([], "nodata")
    assert narrowed({"properties": {"endpoints": []}}, {"westus2"})["properties"]["endpoints"] == []


def test_nothing_is_listed_of_a_service_that_is_not_there() -> None:
    made = document(None, {}, service="contoso", domain="test", epoch=2, sequence=3)
    assert made.regions == () and made.as_service() is None and made.get("westus2") is None


@given(json_values)
def test_no_other_json_is_taken_for_a_document(value: Any) -> None:
    with pytest.raises(ValueError, match="rotation document"):
        read(json.dumps(value).encode())


@given(st.data())
def test_a_document_with_one_value_changed_is_read_or_refused_in_words(data: st.DataObject) -> None:
    body = json.loads(document(running(contoso("westeurope")), {}, service="contoso", domain="test", epoch=1, sequence=7).document)
    where = data.draw(st.sampled_from([body, body["regions"][0]]))
    where[data.draw(st.sampled_from([*where]))] = data.draw(json_values)
    try:
        found = read(json.dumps(body).encode())
    except ValueError as error:
        assert "rotation document" in str(error)
    else:
        assert all(-90 <= one.lat <= 90 and one.units >= 1 for one in found.regions)


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[" * 100_000, b"{}", b'{"regions": []}', b" " * (MOST_BYTES + 1)], ids=lambda content: str(len(content))
)
def test_bytes_that_are_no_document_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="rotation document"):
        read(content)


def test_a_region_stands_in_a_document_once() -> None:
    body = json.loads(document(running(contoso()), {}, service="contoso", domain="test", epoch=1, sequence=7).document)
    body["regions"] *= 2
    with pytest.raises(ValueError, match="westus2 more than once"):
        read(json.dumps(body).encode())


# ===== reports

GOOD: dict[str, Any] = {
    "edge": "edge-1", "at": 1.5, "rotation": "1.7", "regions": {"West US 2": {"status": "up", "calls": 3, "failures": 1, "inflight": 2}},
    "learned": base64.b64encode(b"abc").decode(), "idle": ["West Europe"],
    "events": [{"at": 1, "kind": "RegionStatusChanged", "region": "westus2", "before": "up", "after": "down", "cause": "\x1b[0mx"}],
}  # fmt: skip


def test_a_report_is_what_was_sent_with_names_folded_and_texts_cleaned() -> None:
    found = read_report("edge-1", GOOD, 9.0)
    assert (found.edge, found.rotation, found.learned, found.idle) == ("edge-1", Number(1, 7), b"abc", {"westeurope"})
    assert found.regions["westus2"].calls == 3 and found.received == 9.0 and "\x1b" not in found.events[0].cause
    assert json.dumps(found.as_dict(11.0)) and found.as_dict(11.0)["age"] == 2.0
    assert read_report("", {"edge": "e", "at": 0}, 0.0).regions == {}


WRONG: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda body: body.update(edge=""), "edge"), (lambda body: body.update(edge="other"), "edge"), (lambda body: body.pop("at"), "at"),
    (lambda body: body.update(at=float("nan")), "at"), (lambda body: body.update(rotation="01.2"), "rotation"),
    (lambda body: body.update(rotation="1." + "9" * 16), "rotation"), (lambda body: body.update(regions=[]), "regions"),
    (lambda body: body["regions"].update(x={"status": "fine"}), "regions.x.status"),
    (lambda body: body["regions"].update(x={"status": "up", "calls": -1}), "regions.x.calls"),
    (lambda body: body["regions"].update(x={"status": "up", "calls": True}), "regions.x.calls"),
    (lambda body: body.update(learned="not base64"), "learned"), (lambda body: body.update(learned="A" * (2 << 20)), "learned"),
    (lambda body: body.update(idle=["x" * 300]), "idle[0]"), (lambda body: body.update(events=[{}] * 101), "events"),
    (lambda body: body["events"][0].update(cause="x" * 300), "events[0].cause"), (lambda body: body.update(secret=1), "secret"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "target"), WRONG, ids=[f"{index} {target}" for index, (_, target) in enumerate(WRONG)])
def test_what_is_wrong_with_a_report_is_told_by_its_place(spoil: Callable[[dict[str, Any]], object], target: str) -> None:
    body = json.loads(json.dumps(GOOD))
    spoil(body)
    with pytest.raises(ServiceError) as caught:
        read_report("edge-1", body, 0.0)
    assert caught.value.target == target


def test_everything_wrong_with_a_report_is_told_at_once() -> None:
    with pytest.raises(ServiceError) as caught:
        read_report("", {"edge": 1, "at": "x", "rotation": [], "regions": {"a": 1}, "learned": 1, "idle": 1, "events": {}}, 0.0)
    assert {each.target for each in caught.value.details} == {
        "edge", "at", "rotation", "regions.a", "regions.a.status", "learned", "idle", "events"
    }  # fmt: skip


@given(json_values, st.sampled_from(["", *GOOD]))
def test_no_report_does_anything_but_be_read_or_be_refused(value: Any, key: str) -> None:
    body = {**GOOD, key: value} if key else value
    try:
        found = read_report("", body, 0.0)
    except ServiceError as error:
        assert all(each.target is None or each.target.isprintable() for each in (error, *error.details))
    else:
        assert found.edge and all(one.status in STATUSES for one in found.regions.values())
        json.dumps(found.as_dict(1.0))


# ===== who said what


def said(edge: str, number: Number | None, received: float, idle: tuple[str, ...] = (), **regions: str) -> EdgeReport:
    body = {"edge": edge, "at": 0, "rotation": str(number) if number else None, "idle": [*idle],
            "regions": {name: {"status": status} for name, status in regions.items()}}  # fmt: skip
    return read_report("", body, received)


def test_edges_follow_when_all_that_are_heard_of_do() -> None:
    now = [0.0]
    edges = Edges(lambda: now[0])
    edges.listen()
    assert not edges.follow(Number(1, 5))  # who could not be heard yet may be there
    now[0] = 5.0
    assert edges.follow(Number(1, 5)) and not edges.idle("westus2", Number(1, 5)) and edges.status("westus2") is None
    edges.note(said("a", Number(1, 5), 0.0, ("westus2",)))
    edges.note(said("b", None, 0.0))
    now[0] = 6.0
    assert not edges.follow(Number(1, 5)) and not edges.idle("westus2", Number(1, 5))
    edges.note(said("b", Number(2, 1), 5.0, ("westus2",)))
    assert edges.follow(Number(1, 5)) and edges.idle("westus2", Number(1, 5)) and not edges.follow(Number(1, 6))
    assert not edges.idle("westus2", Number(1, 6))  # that was said of an earlier rotation
    now[0] = 11.0  # a is not heard of any more
    assert edges.follow(Number(2, 1)) and [one.edge for one in edges.fresh] == ["b"]


@pytest.mark.parametrize(("words", "word"), [
    (["up"], "up"), (["up", "down"], "down"), (["up", "up", "down"], "up"), (["degraded", "up", "up"], "up"),
    (["ejected", "down", "up"], "ejected"),
    (["checking", "up"], "up"),
])  # fmt: skip
def test_what_most_edges_say_counts_and_in_doubt_the_worse(words: list[str], word: str) -> None:
    edges = Edges(lambda: 0.0)
    for number, each in reversed([*enumerate(words)]):
        edges.note(said(f"e{number}", None, 0.0, westus2=each))
    assert edges.status("westus2") == word


def test_edges_without_end_are_forgotten_in_turn() -> None:
    edges = Edges(lambda: 0.0)
    for number in range(MOST_EDGES + 5):
        edges.note(said(f"e{number}", None, 0.0))
    assert len(edges.all) == MOST_EDGES and edges.all[-1].edge == "e5"


# ===== statuses and notices


@given(st.sampled_from([*STATUSES, None]), st.sampled_from(ENDED), st.booleans(), st.sampled_from(["Enabled", "Disabled"]))
def test_every_endpoint_has_a_word_of_the_monitor(seen: str | None, stage: str, off: bool, profile: str) -> None:
    state = running(contoso())
    each, runs = location("westus2", disable_gateway=off), replace(state.of("westus2"), provisioning_state=stage)
    word = endpoint_status(each, runs, {"profileStatus": profile}, seen)
    assert word in ("Online", "Degraded", "CheckingEndpoint", "Disabled", "Inactive", "Stopped", "Unmonitored")
    assert (word == "Inactive") == (profile == "Disabled")
    assert word != "Online" or (seen in ("up", "degraded") and stage in ("Succeeded", "Updating", "Failed"))
    whole = profile_status({"profileStatus": profile}, [word])
    assert whole in ("Disabled", "Degraded", "Online", "CheckingEndpoints", "Inactive")


async def test_notices_wait_once_a_kind_for_everybody() -> None:
    notices = Notices()
    async with notices.subscribe() as one, notices.subscribe() as other:
        notices.tell("state", "rotation", "state")
        assert [await one.get(), await one.get()] == ["state", "rotation"]
        notices.tell(*KINDS)
        assert [await other.get() for _ in KINDS] == ["state", "rotation", *(kind for kind in KINDS if kind not in ("state", "rotation"))]
    notices.tell("state")
