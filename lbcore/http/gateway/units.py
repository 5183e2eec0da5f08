"""Units: how many calls a gateway takes at once and a second, who waits for how long, and how full it is.

    enter -> under way ............................ leave -> whoever waits first
      \\-- full -- wait, in a bounded queue -- under way, or 503 with Retry-After
                \\-- the queue is full, or would take too long -- 503 at once
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lbcore.http._limits import MOST_CALLS, Limits, Slots

__all__ = ["Load", "SharedUnits", "Units"]

_BURST = 0.25  # seconds of the rate that may come at one instant
_WINDOW = 60.0  # seconds that the gauge looks back
_LOOK = 0.01  # seconds between looks at what other processes gave back
_RATE = b"units of this gateway"


@dataclass(frozen=True, slots=True)
class Load:
    """How full a gateway was in the last minute, 0..100 percent of its units: on average, and in the fullest tenth of a second."""

    average: float
    most: float


class Units:
    """A gateway's units: its concurrency and rate budget.

    count: units, >= 1; concurrency: calls under way a unit, >= 1, WebSockets among them; rate: calls a second and unit, > 0
    queue: calls that may wait a unit, >= 0; patience: seconds that one may wait, >= 0; clock: monotonic seconds
    The defaults are a quarter of one core: with three policies a short call takes about 45 us of processor time
    (benchmarks/http_peers.py), some 20,000 a second on one core. Measure with your own policies, bodies and TLS.
    Raises ValueError for values out of range.
    """

    def __init__(
        self, count: int = 1, *, concurrency: int = 512, rate: float = 5000.0, queue: int = 128, patience: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        if not (concurrency >= 1 and 0 < rate < math.inf and queue >= 0 and 0 <= patience < math.inf):
            got = f"{concurrency!r}, {rate!r}, {queue!r}, {patience!r}"
            raise ValueError(f"Units need concurrency >= 1, rate > 0, queue >= 0 and patience >= 0, got {got}")
        self._each = concurrency, rate, queue
        self._patience, self._clock = patience, clock
        self._waiting: deque[tuple[asyncio.Future[bool], float]] = deque()
        self._timer: tuple[float, asyncio.TimerHandle] | None = None
        self.under_way = self.refused = 0
        self._free_at = 0.0  # when the rate's budget is whole again (the theoretical arrival time of GCRA)
        self._entered = self._refused_before = 0
        self._looked_at: float | None = None
        self._samples: deque[tuple[float, float, float]] = deque()  # at, seconds, load
        self.resize(count)

    def resize(self, count: int) -> None:
        """Set the number of units; calls under way are not touched."""
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count!r}")
        concurrency, rate, queue = self._each
        self.count, self.concurrency, self.rate, self.queue = count, count * concurrency, count * rate, count * queue
        self._interval = 1.0 / self.rate

    @property
    def waiting(self) -> int:
        """Give how many calls wait."""
        return len(self._waiting)

    # ---- calls

    def enter(self, now: float) -> bool:
        """Begin a call, if there is room for it and nobody waits; `leave` ends it. now: monotonic seconds."""
        return not self._waiting and self._take(now)

    def _take(self, now: float) -> bool:
        """Source: GCRA, ITU-T I.371: one number instead of a bucket and the time it was last filled."""
        free_at = self._free_at
        if free_at < now:
            free_at = now
        if self.under_way >= self.concurrency or free_at - now > _BURST:
            return False
        self._free_at = free_at + self._interval
        self.under_way += 1
        self._entered += 1
        return True

    def leave(self) -> None:
        """End a call."""
        self.under_way -= 1
        if self._waiting:
            self._admit()

    def wait(self, now: float) -> asyncio.Future[bool] | float:
        """Wait for what `enter` refused: a Future of whether the call has entered, or the seconds after which to try again."""
        expected = max(0.0, self._free_at - _BURST - now) + len(self._waiting) * self._interval  # as far as the rate tells
        if len(self._waiting) >= self.queue or expected > self._patience:
            self.refused += 1
            return max(1.0, math.ceil(expected))
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, now + self._patience))
        self._admit()
        return future

    def _admit(self) -> None:
        """Let in whoever waits, in their order, as far as there is room."""
        waiting, now = self._waiting, self._clock()
        while waiting:
            future, deadline = waiting[0]
            if not future.done():
                if self._take(now):
                    future.set_result(True)
                elif deadline <= now:
                    self.refused += 1
                    future.set_result(False)
                else:
                    self._look_again(min(deadline, self._next_chance(now)), now)
                    return
            waiting.popleft()

    def _next_chance(self, now: float) -> float:
        """Give when there may be room although no call of this process ends."""
        return math.inf if self.under_way >= self.concurrency else self._free_at - _BURST + self._interval

    def _look_again(self, at: float, now: float) -> None:
        """Look at the queue when the rate allows one more, or when its first gives up: no call's end may tell."""
        if self._timer is not None:
            if self._timer[0] <= at:
                return
            self._timer[1].cancel()
        self._timer = at, asyncio.get_running_loop().call_later(max(0.0, at - now), self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._admit()

    # ---- how full it is

    def tick(self, now: float) -> None:
        """Look at how full it is. Every 100 ms."""
        if self._looked_at is not None and now > self._looked_at:
            passed = now - self._looked_at
            share = max(self._in_flight() / self.concurrency, self._entered / passed / self.rate)
            full = self.refused > self._refused_before or bool(self._waiting)
            self._samples.append((now, passed, 100.0 if full else min(100.0, 100.0 * share)))
        while self._samples and self._samples[0][0] <= now - _WINDOW:
            self._samples.popleft()
        self._looked_at, self._entered, self._refused_before = now, 0, self.refused

    def _in_flight(self) -> int:
        return self.under_way

    @property
    def load(self) -> Load:
        """Give how full the units were in the last minute."""
        passed = sum(seconds for _, seconds, _ in self._samples)
        if not passed:
            return Load(0.0, 0.0)
        return Load(sum(seconds * load for _, seconds, load in self._samples) / passed, max(load for _, _, load in self._samples))

    @property
    def scale_advice(self) -> int:
        """Give 2 when units should be added now (70 % on average), 1 when it is time to plan for it (60 %, of one unit 40 %), else 0.

        Source: Azure API Management, "Capacity of an API Management instance": 60 to 70 % is when to scale, 40 % with a single unit.
        """
        average = self.load.average
        if average >= 70.0:
            return 2
        return int(average >= (40.0 if self.count == 1 else 60.0))


class SharedUnits(Units):
    """Units that worker processes share: together they take what `count` units take.

    slots: calls in flight of all workers; worker: this one's number; limits: the counters that hold the rate, shared as well
    Others as Units. A call that waits looks every 10 ms whether another worker's call has ended.
    """

    def __init__(self, count: int = 1, *, slots: Slots, worker: int, limits: Limits, **options: Any) -> None:
        self._slots, self._worker, self._limits = slots, worker, limits
        super().__init__(count, **options)

    def resize(self, count: int) -> None:
        """Set the number of units, in this worker: every worker needs to be told."""
        super().resize(count)
        self._period = max(_BURST, self._interval)
        self._calls = min(MOST_CALLS, max(1, round(self.rate * self._period)))

    def _take(self, now: float) -> bool:
        fits = self._slots.begin(self._worker) <= self.concurrency
        if not fits or self._limits.allow(_RATE, self._calls, self._period, now) > 0.0:
            self._slots.end(self._worker)
            return False
        self.under_way += 1
        self._entered += 1
        return True

    def leave(self) -> None:
        """End a call."""
        self._slots.end(self._worker)
        Units.leave(self)  # super() is not for a method that Cython compiles as cpdef

    def _next_chance(self, now: float) -> float:
        return now + _LOOK

    def _in_flight(self) -> int:
        return self._slots.in_flight()
