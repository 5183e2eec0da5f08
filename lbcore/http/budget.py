"""RetryBudget: how many retries a client may add to the load of a service that already has trouble."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

__all__ = ["RetryBudget"]

_SLOTS = 10


class RetryBudget:
    """Allow retries of up to `ratio` of the requests of the last `window` seconds, and `minimum` per second on top.

    ratio: retries per request, >= 0. minimum: retries per second for those who send little, >= 0. window: seconds, > 0
    clock: monotonic seconds
    Thread-safe. Raises ValueError for values out of range.
    Source: Finagle's RetryBudget (20 % of requests, 10 per second, credits expire after 10 s); Envoy's retry_budget and tower's
    Budget follow the same idea: a fixed number of retries per request multiplies an outage, a share of the traffic does not.
    """

    def __init__(self, clock: Callable[[], float], *, ratio: float = 0.2, minimum: float = 10.0, window: float = 10.0) -> None:
        for name, value in (("ratio", ratio), ("minimum", minimum), ("window", window)):
            if not (math.isfinite(value) and value >= 0) or (name == "window" and value == 0):
                raise ValueError(f"{name} must be a finite number >= 0 (window: > 0), got {value!r}")
        self._clock, self._ratio, self._reserve, self._width = clock, ratio, minimum * window, window / _SLOTS
        self._lock = threading.Lock()
        self._slots = [0.0] * _SLOTS
        self._now = 0
        self._advance()

    @property
    def balance(self) -> float:
        """Give how many retries are left at this moment."""
        with self._lock:
            self._advance()
            return self._reserve + sum(self._slots)

    def deposit(self, count: int = 1) -> None:
        """Count first attempts."""
        with self._lock:
            self._advance()
            self._slots[self._now % _SLOTS] += self._ratio * count

    def withdraw(self) -> bool:
        """Take the credit for one retry; False when there is none."""
        with self._lock:
            self._advance()
            if self._reserve + sum(self._slots) < 1 - 1e-9:  # five fifths are one
                return False
            self._slots[self._now % _SLOTS] -= 1
            return True

    def _advance(self) -> None:
        """Forget the slots that are older than the window; a clock set back forgets nothing."""
        now = int(self._clock() / self._width)
        for slot in range(max(self._now + 1, now - _SLOTS + 1), now + 1):
            self._slots[slot % _SLOTS] = 0.0
        self._now = max(self._now, now)
