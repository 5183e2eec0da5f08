"""What the Overview is made of: figures over time, shares of calls, where clients go, words for events, and streams of what changes."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from typing import Any

import pytest
import showing

from lbcore import Balancer, Region
from lbcore.service.logbook import Entry, Event
from lbcore.service.portal import live
from lbcore.service.portal.clients import Clients
from lbcore.service.portal.live import HEARTBEAT, NAMES, Board, Calls, Ring
from lbcore.service.portal.timeline import KINDS, timeline, told
from lbcore.service.portal.words import TONES
from lbcore.service.reports import EdgeReport, Seen

REGIONS = ("westus2", "westeurope", "eastasia")

# ===== over time


def test_a_chart_shows_the_least_span_that_holds_what_there_is() -> None:
    ring = Ring(step=5.0, span=3600.0)
    spans = []
    for second in range(0, 4000, 5):
        ring.add({"a": float(second), "b": None if second < 3990 else 1.0})
        spans.append(ring.span)
    assert (spans[0], spans[60], spans[61], spans[180], spans[181], spans[-1]) == (300, 300, 900, 900, 3600, 3600)
    assert len(ring.of("a", 300.0)) == 61
    assert (ring.of("a", 3600.0)[0], ring.of("a", 3600.0)[-1]) == (395.0, 3995.0)
    assert ring.of("b", 300.0)[-3:] == (None, 1.0, 1.0)
    assert set(ring.of("gone", 300.0)) == {None}


def test_what_was_not_known_yet_is_a_gap() -> None:
    ring = Ring(step=5.0, span=60.0)
    assert not ring
    ring.add({"a": None})
    assert not ring
    ring.add({"a": 7.0})
    assert ring
    assert ring.of("a", 20.0) == (None, None, None, None, 7.0)


def report(edge: str, **calls: int) -> EdgeReport:
    return EdgeReport(edge, 0.0, None, {region: Seen("up", count) for region, count in calls.items()})


def test_shares_are_of_the_calls_that_came_lately() -> None:
    calls = Calls(over=30.0)
    assert calls.take([report("front", a=1000, b=1000)], 0.0) == {}  # since when is not known
    assert calls.take([report("front", a=1030, b=1010)], 2.0) == {"a": 0.75, "b": 0.25}
    assert calls.take([report("front", a=1030, b=1010)], 4.0) == {"a": 0.75, "b": 0.25}
    assert calls.take([report("front", a=1030, b=1050), report("other", a=99)], 6.0) == {"a": 0.375, "b": 0.625}
    assert calls.take([report("front", a=1030, b=1050), report("other", a=119)], 33.0) == {"a": 20 / 60, "b": 40 / 60}
    assert calls.take([], 100.0) == {}


def test_an_edge_that_starts_anew_counts_from_nothing() -> None:
    calls = Calls()
    calls.take([report("front", a=1000, b=10)], 0.0)
    assert calls.take([report("front", a=30, b=10)], 2.0) == {"a": 1.0, "b": 0.0}


# ===== where clients go


def test_the_largest_groups_come_first_and_measured_ones_before_them() -> None:
    lb = Balancer([Region(name) for name in REGIONS], clock=lambda: 100.0)
    clients = Clients()
    before = clients.look(lb, 100.0)
    assert [group.size for group in before.groups] == sorted((group.size for group in before.groups), reverse=True)
    assert sum(before.sizes.values()) == pytest.approx(1.0)
    assert not any(group.measured or group.away for group in before.groups)
    lb.observe("westeurope", 33.0, "196.200.0.1")
    after = Clients().look(lb, 100.0)
    first = after.groups[0]
    assert first.measured
    assert first.key == lb.explain("196.200.0.1").key
    assert {group.key for group in before.groups[:20]} < {group.key for group in after.groups}


def test_it_says_where_each_would_go() -> None:
    lb = Balancer([Region(name) for name in REGIONS])
    lb.disable("eastasia")
    for group in Clients().look(lb, lb.clock()).groups:
        assert group.region in REGIONS[:2]
        slot = lb.slot(group.region)
        number = lb.map.keys.index(group.key)
        assert lb.table.pick(number) == slot
        assert group.ms == pytest.approx(lb.table.estimates(number)[slot])


def test_those_who_lost_their_region_are_away() -> None:
    lb = Balancer([Region(name) for name in REGIONS])
    japan = next(group for group in Clients().look(lb, lb.clock()).groups if group.key == "JP")
    assert (japan.region, japan.away) == ("eastasia", False)
    lb.disable("eastasia")
    japan = next(group for group in Clients().look(lb, lb.clock()).groups if group.key == "JP")
    assert (japan.region, japan.away) == ("westus2", True)


def test_without_a_region_they_go_nowhere() -> None:
    lb = Balancer([Region("westus2", enabled=False)])
    found = Clients().look(lb, lb.clock())
    assert {(group.region, group.reason) for group in found.groups} == {("", "none")}
    assert found.ms == {}
    assert all(math.isnan(group.ms) for group in found.groups)


# ===== in words


def happened(kind: str, region: str = "eastasia", at: float = 1e9, **detail: Any) -> Event:
    return Event(1, at, kind, region, detail)


@pytest.mark.parametrize(
    ("event", "status", "text"),
    [
        (happened("LocationFailed", operation="o", action="create", message="quota"), "Failed", "added failed: quota"),
        (happened("LocationDeleted", operation="o", action="delete"), "Deleted", "drained and removed"),
        (happened("OperationPartiallySucceeded", "", message=""), "PartiallySucceeded", "deployed in part"),
        (happened("ConfigRolledBack", held="1.9", to="2.7", lost=["1.8", "1.9"]), "Warning", "went back from 1.9 to 2.7; lost: 1.8, 1.9"),
        (happened("EndpointStatusChanged", before="up", after="down", cause="timeout"), "Degraded", "is Degraded, was Online: timeout"),
        (happened("SomethingNew", count=3, id="x"), "Info", "something new: count 3"),
        (happened("SyncStateChanged"), "Info", "configuration is "),
    ],
)  # fmt: skip
def test_events_are_told(event: Event, status: str, text: str) -> None:
    found = told(event, {"eastasia": "East Asia"})
    assert (found.status, found.text.strip()) == (status, text.strip() if event.kind != "SyncStateChanged" else "")
    assert found.subject == ("East Asia" if event.region else "Service")


def test_every_kind_has_a_tone() -> None:
    assert {status for status, _ in KINDS.values() if not status.startswith("{")} <= set(TONES)


def test_events_and_changes_stand_together_newest_first() -> None:
    history = [
        Entry(3, 30.0, "ana (0123456789ab)", "save", "more of Asia", "contoso", "e", ""),
        Entry(5, 31.0, "ana (0123456789ab)", "create token 77", "", "node", "", ""),
        Entry(2, 20.0, "operation", "operation 7: Succeeded", "", "", "", ""),
        Entry(1, 10.0, "ana (0a)", "publish 1.1", "", "1.1", "e", ""), Entry(0, 5.0, "", "", "", "", "", ""),
    ]  # fmt: skip
    found = timeline([happened("ConfigAhead", at=15.0, held="1.9"), happened("RegionStatusChanged", at=40.0, after="up")], history)
    assert [(each.at.timestamp(), each.text) for each in found] == [
        (40.0, "is Online"), (30.0, "saved by ana: more of Asia"),
        (15.0, "reports revision 1.9, newer than any that was published here"), (10.0, "revision 1.1 published by ana (0a)"),
    ]  # fmt: skip
    assert len(timeline([happened("X", at=at) for at in range(500)])) == 60


def test_a_clock_that_says_nonsense_is_no_fault() -> None:
    assert [told(happened("X", at=at), {}).at.year for at in (-1e18, 1e18)] == [1970, 9999]


# ===== streams


class Reading:
    """One who reads a Board's stream."""

    def __init__(self, board: Board, last: str = "") -> None:
        self.signed_in = True
        self.stream = board.stream(last, self.alive)

    async def alive(self) -> bool:
        return self.signed_in

    async def next(self) -> list[str]:
        """Names of the events of the next piece; a comment is ''."""
        piece = (await anext(self.stream)).decode()
        self.id = piece.rpartition("id: ")[2].partition("\n")[0] if "id: " in piece else ""
        return [line.partition(": ")[2] for line in piece.splitlines() if line.startswith("event: ")] or [piece.partition(" ")[0]]


async def watched(board: Board, last: str = "") -> Reading:
    reading = Reading(board, last)
    assert await reading.next() == ["retry:"]
    return reading


def test_a_page_gets_everything_then_what_changed() -> None:
    async def story() -> None:
        board, view = Board(), showing.overview()
        async with board.watching(view):
            reading = await watched(board)
            assert sorted(await reading.next()) == sorted(NAMES)
            waiting = asyncio.ensure_future(reading.next())
            board.show(view)  # nothing new
            await asyncio.sleep(0)
            assert not waiting.done()
            board.show(dataclasses.replace(view, events=view.events[1:]))
            assert await waiting == ["events"]
            # whoever comes back names what he has seen last
            again = await watched(board, reading.id)
            board.show(view)
            assert await again.next() == ["events"]
            other = await watched(board, "of-another-process.3")
            assert sorted(await other.next()) == sorted(NAMES)
        assert board.watched == 0

    asyncio.run(story())


def test_a_stream_says_that_it_lives_and_ends_with_its_session() -> None:
    async def story() -> None:
        now = 0.0
        board = Board(clock=lambda: now)
        async with board.watching(showing.overview()):
            reading = await watched(board)
            await reading.next()
            waiting = asyncio.ensure_future(reading.next())
            now = HEARTBEAT
            board.show(showing.overview())
            assert await waiting == [":"]
            waiting = asyncio.ensure_future(reading.next())
            await asyncio.sleep(0)
            reading.signed_in = False
            board.show(showing.overview())
            assert await waiting == ["notices"]
            with pytest.raises(StopAsyncIteration):
                await reading.next()

    asyncio.run(story())


def test_streams_end_with_the_portal() -> None:
    async def story() -> None:
        board = Board()
        async with board.watching(showing.overview()):
            reading = await watched(board)
            await reading.next()
            waiting = asyncio.ensure_future(reading.next())
            await asyncio.sleep(0)
            board.close()
            with pytest.raises(StopAsyncIteration):
                await waiting

    asyncio.run(story())


def test_parts_are_the_same_for_everybody_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = live.part
    monkeypatch.setattr(live, "part", lambda name, view: (made.append(name), real(name, view))[1])

    async def story() -> None:
        board = Board()
        async with board.watching(showing.overview()), board.watching(showing.overview()):
            readings = [await watched(board) for _ in range(5)]
            for reading in readings:
                await reading.next()
        assert sorted(made) == sorted(NAMES)

    asyncio.run(story())
