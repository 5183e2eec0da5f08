"""Units: concurrency, rate, the bounded queue, the gauge; and overload as clients see it."""

from __future__ import annotations

import asyncio

import pytest
from gatewaying import document, serving, until
from hypothesis import given
from hypothesis import strategies as st
from proxying import OK, Reader, Writer, answering, origin, read_request, resetting

from lbcore.http._limits import Limits, Slots
from lbcore.http.gateway import SharedUnits, Units


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_concurrency_is_bounded() -> None:
    units = Units(2, concurrency=3, queue=0)
    assert [units.enter(1.0) for _ in range(7)] == [True] * 6 + [False]
    units.leave()
    assert units.enter(1.0) and not units.enter(1.0)


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=200), st.integers(1, 3))
def test_the_rate_holds_over_any_time(gaps: list[float], count: int) -> None:
    rate = 20.0
    units, now, entered = Units(count, rate=rate, concurrency=10_000, queue=0), 5.0, list[float]()
    for gap in gaps:
        now += gap
        for _ in range(3):
            if units.enter(now):
                entered.append(now)
    for first, at in enumerate(entered):
        for last in range(first, len(entered)):  # 0.25 s of it may come at once, and one more
            assert last - first + 1 <= (entered[last] - at + 0.25) * rate * count + 2.001


def test_a_steady_load_below_the_rate_is_never_refused() -> None:
    units = Units(rate=100.0)
    for number in range(1000):
        assert units.enter(number / 99.0)
        units.leave()


async def test_who_waits_is_let_in_in_order() -> None:
    clock = Clock()
    units = Units(concurrency=1, queue=2, clock=clock)
    assert units.enter(clock.now)
    first, second = units.wait(clock.now), units.wait(clock.now)
    assert isinstance(first, asyncio.Future) and isinstance(second, asyncio.Future)
    assert units.wait(clock.now) == 1.0 and units.refused == 1
    assert not units.enter(clock.now)
    units.leave()
    assert await first and not second.done() and units.under_way == 1
    units.leave()
    assert await second and units.under_way == 1 and units.waiting == 0


async def test_who_gave_up_is_passed_over() -> None:
    clock = Clock()
    units = Units(concurrency=1, queue=2, clock=clock)
    assert units.enter(clock.now)
    first, second = units.wait(clock.now), units.wait(clock.now)
    assert isinstance(first, asyncio.Future) and isinstance(second, asyncio.Future)
    first.cancel()
    units.leave()
    assert await second and units.under_way == 1


async def test_patience_ends_even_if_no_call_does() -> None:
    units = Units(concurrency=1, queue=5, patience=0.05)
    loop = asyncio.get_running_loop()
    assert units.enter(loop.time())
    waiting = units.wait(loop.time())
    assert isinstance(waiting, asyncio.Future)
    assert await asyncio.wait_for(waiting, 5) is False
    assert units.refused == 1 and units.waiting == 0 and units.under_way == 1


async def test_the_rate_lets_in_who_waits_without_any_calls_end() -> None:
    units = Units(rate=100.0, queue=50, patience=5.0)
    loop = asyncio.get_running_loop()
    while units.enter(loop.time()):
        pass
    waiting = [units.wait(loop.time()) for _ in range(10)]
    results = [await asyncio.wait_for(each, 5) for each in waiting if isinstance(each, asyncio.Future)]
    assert results == [True] * 10


async def test_who_would_wait_too_long_is_refused_at_once() -> None:
    clock = Clock()
    units = Units(rate=1.0, queue=50, patience=2.5, clock=clock)
    assert units.enter(clock.now)
    assert [isinstance(units.wait(clock.now), asyncio.Future) for _ in range(5)] == [True, True, False, False, False]
    assert units.wait(clock.now) == 3.0


def test_the_gauge_tells_average_most_and_what_to_do() -> None:
    units, now = Units(2, concurrency=5), 0.0
    assert (units.load.average, units.load.most, units.scale_advice) == (0.0, 0.0, 0)
    for under_way in [4] * 300 + [8] * 300:
        units.under_way = under_way
        units.tick(now)
        now += 0.1
    assert units.load.average == pytest.approx(60, abs=1) and units.load.most == 80.0 and units.scale_advice == 1
    for _ in range(600):
        units.tick(now)
        now += 0.1
    assert units.load.average == pytest.approx(80) and units.scale_advice == 2
    units.under_way = 0
    for _ in range(601):
        units.tick(now)
        now += 0.1
    assert units.load.most == 0.0 and units.scale_advice == 0


def test_the_rate_fills_the_gauge_as_well_and_refusals_do_in_any_case() -> None:
    units = Units(rate=100.0, queue=0)
    units.tick(0.0)
    for number in range(5):
        assert units.enter(number / 50)
        units.leave()
    units.tick(0.1)
    assert units.load.most == pytest.approx(50.0) and units.scale_advice == 1  # of one unit, 40 % is much
    units.wait(0.1)
    units.tick(0.2)
    assert units.load.most == 100.0


def test_resizing() -> None:
    units = Units(1, concurrency=1)
    assert units.enter(0.0) and not units.enter(0.0)
    units.resize(2)
    assert units.enter(0.0) and not units.enter(0.0)
    units.resize(1)
    units.leave()
    assert not units.enter(0.0)


def test_workers_share_concurrency_and_rate() -> None:
    slots, limits = Slots(2), Limits(1024)
    one, two = (SharedUnits(1, slots=slots, worker=worker, limits=limits, concurrency=3, rate=1000.0) for worker in range(2))
    assert [one.enter(1.0), two.enter(1.0), two.enter(1.0), one.enter(1.0), two.enter(1.0)] == [True, True, True, False, False]
    two.leave()
    assert one.enter(1.0) and not two.enter(1.0) and (one.under_way, two.under_way, slots.in_flight()) == (2, 1, 3)
    slots.clear(0)  # the first worker died: the supervisor gives back what it held
    assert two.enter(1.0) and two.enter(1.0)
    fast = [SharedUnits(1, slots=Slots(2), worker=worker, limits=limits, concurrency=10_000, rate=400.0) for worker in range(2)]
    assert sum(units.enter(2.0) for _ in range(200) for units in fast) == 100  # a quarter of a second of it at one instant


async def test_what_another_worker_gives_back_is_noticed() -> None:
    slots, limits = Slots(2), Limits(1024)
    one, two = (SharedUnits(1, slots=slots, worker=worker, limits=limits, concurrency=1, patience=5.0) for worker in range(2))
    loop = asyncio.get_running_loop()
    assert one.enter(loop.time())
    waiting = two.wait(loop.time())
    assert isinstance(waiting, asyncio.Future)
    one.leave()
    assert await asyncio.wait_for(waiting, 3) and slots.in_flight() == 1


@pytest.mark.parametrize("options", [
    {"count": 0}, {"concurrency": 0}, {"rate": 0}, {"rate": float("inf")}, {"queue": -1}, {"patience": -1}, {"patience": float("nan")},
])  # fmt: skip
def test_units_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        Units(**options)  # type: ignore[arg-type]


async def test_overload_is_answered_early_and_the_status_path_is_not_overloaded() -> None:
    release = asyncio.Event()

    async def slow(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await release.wait()
        writer.write(OK)

    async with origin(slow) as there, serving(document(there.url), units=Units(concurrency=2, queue=1, patience=5.0)) as here:
        calls = [asyncio.create_task(here.ask()) for _ in range(2)]
        await until(lambda: here.gateway.units.under_way == 2)
        calls.append(asyncio.create_task(here.ask()))
        await until(lambda: here.gateway.units.waiting == 1)
        answer = await here.ask()
        assert (answer.status, answer.body, answer.field(b"retry-after")) == (503, b"overloaded\n", b"1")
        assert answer.field(b"x-lbcore-region") == b"westeurope" and answer.field(b"x-lbcore-revision") == b"1.1"
        assert (await here.ask(path="/status-0123456789abcdef")).status == 200
        release.set()
        assert [answer.status for answer in await asyncio.gather(*calls)] == [200] * 3
        assert here.gateway.counters["overloaded"] == 1


async def test_a_client_that_leaves_while_it_waits_leaves_no_trace() -> None:
    release = asyncio.Event()

    async def slow(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await release.wait()
        writer.write(OK)

    async with origin(slow) as there, serving(document(there.url), units=Units(concurrency=1, queue=5, patience=30.0)) as here:
        first = asyncio.create_task(here.ask())
        await until(lambda: here.gateway.units.under_way == 1)
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"GET /orders/1 HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: here.gateway.units.waiting == 1)
        last = asyncio.create_task(here.ask())
        await until(lambda: here.gateway.units.waiting == 2)
        resetting(writer)
        await until(lambda: len(here.gateway.engine.inbounds) == 2)
        release.set()
        assert [(await first).status, (await last).status] == [200, 200]


async def test_who_waited_is_served_by_the_revision_of_that_moment() -> None:
    release = asyncio.Event()

    async def slow(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await release.wait()
        writer.write(OK)

    async with origin(slow) as there, origin(answering()) as other:
        async with serving(document(there.url), units=Units(concurrency=1, queue=5, patience=30.0)) as here:
            first = asyncio.create_task(here.ask())
            await until(lambda: here.gateway.units.under_way == 1)
            second = asyncio.create_task(here.ask())
            await until(lambda: here.gateway.units.waiting == 1)
            here.gateway.apply(document(other.url, sequence=2))
            release.set()
            assert [(await each).field(b"x-lbcore-revision") for each in (first, second)] == [b"1.1", b"1.2"]
