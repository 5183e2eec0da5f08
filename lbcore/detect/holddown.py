"""Hold-down: a region that keeps changing stays out for a while, longer every time."""

from __future__ import annotations

from collections import deque

__all__ = ["HoldDown"]


class HoldDown:
    """Remember one region's visible changes and say until when it has to stay out.

    transitions: so many within `window` seconds, the one into DOWN included, start a hold
    base, cap: seconds of the first hold and of the longest; each hold doubles until `window` has seen fewer changes
    Raises ValueError for values out of range.
    Source: REQUIREMENTS §2.4 and scenario 9 (it is the hold-down, not `rise`, that stops flapping); in the spirit of BGP route flap damping
    (RFC 2439), without its punishment of single events.
    """

    __slots__ = ("_base", "_cap", "_changes", "_level", "_transitions", "_window", "until")

    def __init__(self, transitions: int = 3, window: float = 600.0, base: float = 30.0, cap: float = 480.0) -> None:
        if not (transitions >= 1 and window > 0 and 0 <= base <= cap):
            got = f"{transitions!r}, {window!r}, {base!r}, {cap!r}"
            raise ValueError(f"a hold-down needs transitions >= 1, window > 0 and 0 <= base <= cap, got {got}")
        self._transitions, self._window, self._base, self._cap = transitions, window, base, cap
        self._changes: deque[float] = deque(maxlen=transitions)
        self._level = 0
        self.until = float("-inf")

    def changed(self, down: bool, now: float) -> None:
        """Note that the region went DOWN (or came back) at `now`; going DOWN too often starts a hold."""
        self._changes.append(now)
        if not down:
            return
        if len(self._changes) < self._transitions or now - self._changes[0] > self._window:
            self._level = 0
            return
        self.until = now + min(self._cap, self._base * 2.0**self._level)
        self._level = min(self._level + 1, 64)

    def holds(self, now: float) -> bool:
        """Say whether the region has to stay out at `now`."""
        return now < self.until
