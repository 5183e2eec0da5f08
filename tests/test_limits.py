"""Limits and Slots: against a model that keeps every call, on a virtual clock; and processes that race for the last call."""

from __future__ import annotations

import itertools
import multiprocessing
import multiprocessing.synchronize
import os
import random
import signal
from collections import deque
from dataclasses import dataclass, field
from multiprocessing import shared_memory
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.http._limits import MOST_CALLS, Limits, Slots

SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Model:
    """One key's counter by the rule in Limits' docstring, from a list of calls instead of counts. Milliseconds."""

    limit: int
    period: int
    start: int | None = None
    calls: list[int] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    earlier: int = 0  # when the window before began

    @property
    def unit(self) -> int:
        exponent = self.period.bit_length() - 1
        return 1 << max(0, exponent - 6)

    def roll(self, now: int) -> None:
        if self.start is None or now - self.start >= 2 * self.period:
            self.before, self.calls, self.start = [], [], -(-now // self.unit) * self.unit
        elif now - self.start >= self.period:
            self.before, self.calls, self.earlier = self.calls, [], self.start
            self.start = -(-(self.start + self.period) // self.unit) * self.unit
            if self.used(now) == 0.0:
                self.start = None
                self.roll(now)

    def used(self, now: int) -> float:
        assert self.start is not None
        passed = max(0, now - self.start) / self.period
        last = max((self.slot(call, self.earlier) for call in self.before), default=0)
        return len(self.before) * max(0.0, 1.0 - passed * 64 / (last + 1)) + len(self.calls)

    def slot(self, call: int, start: int) -> int:
        return int(max(0, call - start) / self.period * 64)

    def allow(self, now: int) -> bool:
        if self.start is None or now - self.start >= self.period:
            known = self.start, self.calls, self.before, self.earlier
            self.roll(now)
            if self.used(now) + 1 > self.limit:  # a call that is refused changes nothing
                self.start, self.calls, self.before, self.earlier = known
                return False
        if self.used(now) + 1 > self.limit:
            return False
        self.calls.append(now)
        return True


@given(
    st.integers(1, 12), st.sampled_from([1, 7, 63, 64, 100, 1000, 60_000, 86_400_000]),
    st.lists(st.tuples(st.floats(0, 2.2), st.integers(1, 6)), max_size=60), st.integers(0, 10**9),
)  # fmt: skip
def test_is_what_the_model_says(limit: int, period: int, steps: list[tuple[float, int]], start: int) -> None:
    limits, model, now = Limits(64), Model(limit, period), start
    for pause, calls in steps:
        now += int(pause**3 * period)
        for _ in range(calls):
            wait = limits.allow(b"key", limit, period / 1000, now / 1000)
            assert (wait == 0.0) is model.allow(now)


@given(st.integers(1, 9), st.lists(st.floats(0, 0.4), min_size=1, max_size=40), st.sampled_from([50, 1000, 60_000]))
def test_whoever_waits_as_long_as_told_is_let_in(limit: int, pauses: list[float], period: int) -> None:
    limits, now = Limits(64), 5.0
    for pause in pauses:
        now += pause * period / 1000
        wait = limits.allow(b"key", limit, period / 1000, now)
        assert 0.0 <= wait <= 2.1 * period / 1000 + 0.01
        if wait:
            now += wait
            assert limits.remaining(b"key", limit, period / 1000, now) >= 1
            assert limits.allow(b"key", limit, period / 1000, now) == 0.0


@pytest.mark.parametrize("pace", [0.3, 1.0, 3.0])
def test_no_period_lets_twice_the_limit_in(pace: float) -> None:
    limits, rng, now, limit = Limits(64), random.Random(4), 100.0, 20
    allowed: deque[float] = deque()
    most = total = 0
    for _ in range(20_000):
        now += rng.expovariate(limit * pace) if rng.random() < 0.999 else 1.5
        if limits.allow(b"key", limit, 1.0, now) == 0.0:
            allowed.append(now)
            total += 1
        while allowed and allowed[0] <= now - 1.0:
            allowed.popleft()
        most = max(most, len(allowed))
    assert most < 1.5 * limit
    assert total > 0.9 * min(pace, 1.0) * limit * now * 0.9 - 100 * limit


def test_a_batch_each_period_is_let_in_whole() -> None:
    """What a counter that is blind to when calls came gets wrong: all of them were at the window's begin."""
    limits = Limits(64)
    for minute in range(20):
        now = 1000.0 + minute * 62.0
        assert [limits.allow(b"key", 4, 60.0, now) == 0.0 for _ in range(5)] == [True] * 4 + [False]


def test_two_gateways_count_by_themselves() -> None:
    """R43: nothing is synchronised, so a limit holds for each region."""
    regions = [Limits(64), Limits(64)]
    assert sum(limits.allow(b"key", 4, 60.0, 0.5 * n) == 0.0 for limits in regions for n in range(10)) == 8


def test_keys_and_periods_are_counted_apart() -> None:
    limits = Limits(1024)
    for key in (b"", b"a", b"b", b"a" * 1000):
        for period in (1.0, 1.001, 60.0):
            assert [limits.allow(key, 2, period, 50.0) == 0.0 for _ in range(3)] == [True, True, False]
            assert limits.remaining(key, 2, period, 50.0) == 0
            assert limits.remaining(key, 5, period, 50.0) == 3
    assert limits.overflows == 0


def test_a_clock_that_was_read_earlier_counts_in_the_same_window() -> None:
    limits = Limits(64)
    assert limits.allow(b"key", 2, 60.0, 100.0) == 0.0
    assert limits.allow(b"key", 2, 60.0, 99.9) == 0.0
    assert limits.allow(b"key", 2, 60.0, 99.8) > 0.0
    assert limits.allow(b"key", 2, 60.0, 100.1) > 0.0


@pytest.mark.parametrize("idle", [3.1**k for k in range(1, 14)])
def test_a_key_that_comes_back_after_long_is_new(idle: float) -> None:
    limits = Limits(64)
    for _ in range(3):
        limits.allow(b"key", 3, 0.1, 10.0)
    assert limits.remaining(b"key", 3, 0.1, 10.0 + idle + 0.0371) == 3


def test_what_is_past_makes_room_and_a_full_table_lets_in() -> None:
    limits = Limits(64)
    for n in range(2000):
        assert limits.allow(b"%d" % n, 1, 1.0, 10.0) == 0.0
    assert limits.overflows == 2000 - 64
    for n in range(30):  # all of them are past: there is room again, if not for each where its hash points
        limits.allow(b"new %d" % n, 1, 3600.0, 20.0)
    assert limits.overflows == 2000 - 64
    assert sum(limits.allow(b"new %d" % n, 1, 3600.0, 20.0) > 0.0 for n in range(30)) == 30


def test_an_entry_in_use_is_taken_from_nobody() -> None:
    limits = Limits(64)
    held = [key for n in range(64) if limits.allow(key := b"%d" % n, 1, 3600.0, 10.0) == 0.0 and limits.allow(key, 1, 3600.0, 10.0) > 0.0]
    for n in range(500):
        limits.allow(b"short %d" % n, 1, 0.01, 10.0 + n)
    assert len(held) > 50
    assert all(limits.allow(key, 1, 3600.0, 600.0) > 0.0 for key in held)


@pytest.mark.parametrize(
    ("limit", "period", "now"),
    [(0, 1.0, 1.0), (MOST_CALLS + 1, 1.0, 1.0), (-1, 1.0, 1.0), (1, 0.0, 1.0), (1, -1.0, 1.0), (1, 4e7, 1.0), (1, float("nan"), 1.0)]
    + [(1, float("inf"), 1.0), (1, 1.0, -1.0), (1, 1.0, float("nan")), (1, 1.0, float("inf"))],
)
def test_values_out_of_range_are_refused(limit: int, period: float, now: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        Limits(64).allow(b"key", limit, period, now)


@pytest.mark.parametrize("entries", [0, 63, 65, 100, 1 << 25, -64, 64.0])
def test_sizes_out_of_range_are_refused(entries: int) -> None:
    for give in (Limits, Limits.nbytes_for):
        with pytest.raises(ValueError, match="power of two"):
            give(entries)


# ===== shared memory


def test_views_of_one_buffer_count_together() -> None:
    block = bytearray(Limits.nbytes_for(256))
    one, other = Limits(256, buffer=block), Limits(256, buffer=memoryview(block))
    assert [limits.allow(b"key", 3, 60.0, 1.0) == 0.0 for limits in (one, other, one, other)] == [True, True, True, False]
    with pytest.raises(ValueError, match="holds something else"):
        Limits(128, buffer=block)
    with pytest.raises(ValueError, match="at least"):
        Limits(512, buffer=block)
    with pytest.raises(ValueError, match="holds something else"):
        Limits(256, buffer=bytearray(b"\1") * len(block))
    with pytest.raises(BufferError):
        Limits(256, buffer=bytes(len(block)))


def test_nobody_knows_where_a_key_is_counted() -> None:
    blocks = [bytearray(Limits.nbytes_for(4096)) for _ in range(2)]
    for block in blocks:
        Limits(4096, buffer=block).allow(b"key", 1, 60.0, 1.0)
    places = [{n // 16 for n, byte in enumerate(block[64:]) if byte} for block in blocks]
    assert places[0] != places[1] or blocks[0][64:] != blocks[1][64:]
    assert b"key" not in blocks[0]


def compete(name: str, entries: int, barrier: multiprocessing.synchronize.Barrier, rounds: int, keys: int, limit: int, out: str) -> None:
    """In each round, at one instant, call for every key more often than is allowed; write how often each was let in."""
    memory = shared_memory.SharedMemory(name)
    limits, allowed = Limits(entries, buffer=memory.buf), []
    for number in range(rounds):
        barrier.wait(60)
        now, tries = 10.0 + 1000.0 * number, [b"%d/%d" % (number, key) for key in range(keys) for _ in range(limit)]
        won = dict.fromkeys(tries, 0)
        for key in tries:
            won[key] += limits.allow(key, limit, 60.0, now) == 0.0
        allowed += won.values()
    Path(out).write_text(" ".join(map(str, allowed)))
    del limits
    memory.close()


@pytest.mark.slow
@pytest.mark.parametrize(("entries", "keys", "limit"), [(4096, 200, 3), (64, 24, 1)])
def test_processes_that_race_never_get_more_than_the_limit(entries: int, keys: int, limit: int, tmp_path: Path) -> None:
    """Every round's keys are new: they are claimed, and from the second round on what is past is taken back, by all at once."""
    rounds, workers = 60, 3
    memory = shared_memory.SharedMemory(create=True, size=Limits.nbytes_for(entries))
    try:
        limits: Limits | None = Limits(entries, buffer=memory.buf)
        barrier = SPAWN.Barrier(workers)
        files = [str(tmp_path / str(n)) for n in range(workers)]
        running = [SPAWN.Process(target=compete, args=(memory.name, entries, barrier, rounds, keys, limit, file)) for file in files]
        for process in running:
            process.start()
        for process in running:
            process.join(120)
        won = [[int(text) for text in Path(file).read_text().split()] for file in files]
        totals = [sum(each) for each in zip(*won, strict=True)]
        assert len(totals) == rounds * keys
        assert max(totals) == limit
        assert limits is not None and limits.overflows == 0
        assert min(totals) == limit
    finally:
        limits = None  # or what failed would be hidden by memory that cannot be closed
        memory.close()
        memory.unlink()


def hammer(name: str, under_way: multiprocessing.synchronize.Event) -> None:
    """Claim, count and give back entries without end."""
    memory = shared_memory.SharedMemory(name)
    limits, rng = Limits(64, buffer=memory.buf), random.Random(5)
    for number in itertools.count():
        limits.allow(b"%d" % rng.randrange(40), 5, 0.01, number / 10)
        if number == 1000:
            under_way.set()


@pytest.mark.slow
def test_a_process_that_is_killed_holds_up_nobody() -> None:
    memory = shared_memory.SharedMemory(create=True, size=Limits.nbytes_for(64))
    try:
        limits = Limits(64, buffer=memory.buf)
        for _ in range(3):
            under_way = SPAWN.Event()
            process = SPAWN.Process(target=hammer, args=(memory.name, under_way))
            process.start()
            assert under_way.wait(60)
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join(30)
        assert [limits.allow(b"after", 2, 60.0, 1e9) == 0.0 for _ in range(3)] == [True, True, False]
        del limits
    finally:
        memory.close()
        memory.unlink()


# ===== Slots


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["begin", "end", "clear"]), st.integers(0, 3)), max_size=60))
def test_slots_count_what_is_in_flight(steps: list[tuple[str, int]]) -> None:
    block = bytearray(Slots.nbytes_for(4))
    views, flying, begun = [Slots(4, buffer=block), Slots(4, buffer=block)], [0] * 4, [0] * 4
    for number, (step, worker) in enumerate(steps):
        slots = views[number % 2]
        if step == "begin":
            flying[worker] += 1
            begun[worker] += 1
            assert slots.begin(worker) == sum(flying)
        else:
            flying[worker] = max(0, flying[worker] - 1) if step == "end" else 0
            getattr(slots, step)(worker)
        assert [slots.in_flight(n) for n in range(4)] == flying
        assert [slots.calls(n) for n in range(4)] == begun
        assert (slots.in_flight(), slots.calls()) == (sum(flying), sum(begun))


def test_slots_refuse_what_is_none() -> None:
    for workers in (0, 4097, -1, 1.5):
        with pytest.raises(ValueError, match="1 to 4096"):
            Slots(workers)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="holds something else"):
        Slots(2, buffer=bytearray(b"\1" * Slots.nbytes_for(2)))
    for worker in (2, -1):
        with pytest.raises(IndexError, match="of 2"):
            Slots(2).begin(worker)
