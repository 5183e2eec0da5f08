"""Pooled: the recent share of failures over all groups, so that a region nobody would miss alone is missed at once.

Exact counts in a ring of short buckets; nothing decays. A success costs one dictionary entry, a failure reads the ring once for its
group. Memory: per region 12 buckets, each with the groups that used the region in that quarter of a second.

Two things do not wait for a share: connections that are refused one after the other while nobody succeeds, and calls that wait
while nobody succeeds. Both are tested against luck: how likely is it with the failures, or at the pace, of the window before?
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from math import floor
from typing import TypeVar

from lbcore.detect.ejection import Backoff, Ejection
from lbcore.detect.protocol import Verdict, check_region

__all__ = ["Pooled"]

_NOBODY: frozenset[int] = frozenset()
_FRESH = 1.0  # seconds that a `waiting` count holds; the edges renew theirs at every tick of 100 ms
_LUCK = 2e-10  # less likely than this is no luck, though tested a thousand times a second
_PAUSE = 1e-6  # likewise, for what is tested only while calls wait
_USUAL = 0.1  # share of failures that a run is tested against at least: 10 in a row are the fewest
K = TypeVar("K", bound=Hashable)


class _Window:
    """Outcomes of the last `buckets` slots of one region, per group."""

    __slots__ = ("at", "failed", "fails", "groups", "now_tries", "total", "tries", "vantages")

    def __init__(self, buckets: int, slot: int) -> None:
        self.tries: list[Counter[int]] = [Counter() for _ in range(buckets)]
        self.fails: list[dict[int, int]] = [{} for _ in range(buckets)]
        self.total = self.failed = 0
        self.groups: list[tuple[int, int]] = []  # the last distinct groups that failed, latest first: (group, slot)
        self.vantages: list[tuple[str, int]] = []
        self.at = slot
        self.now_tries = self.tries[slot % buckets]

    def advance(self, slot: int) -> None:
        """Move on to `slot` and forget what falls out of the window."""
        buckets = len(self.tries)
        if self.total:
            for passed in range(max(self.at + 1, slot - buckets + 1), slot + 1):
                self._drop(passed % buckets)
        self.at = slot
        self.now_tries = self.tries[slot % buckets]

    def fail(self, group: int, vantage: str, keep: int) -> None:
        """Count a failure that is already among the tries."""
        fails = self.fails[self.at % len(self.fails)]
        fails[group] = fails.get(group, 0) + 1
        self.failed += 1
        _touch(self.groups, group, self.at, keep)
        _touch(self.vantages, vantage, self.at, keep)

    def of(self, group: int) -> tuple[int, int]:
        """Give one group's (failures, tries)."""
        return sum(bucket.get(group, 0) for bucket in self.fails), sum(bucket.get(group, 0) for bucket in self.tries)

    def recent(self, seen: list[tuple[K, int]], slots: int) -> set[K]:
        """Give the keys of `seen` that failed within the last `slots`."""
        return {key for key, slot in seen if slot > self.at - slots}

    def latest(self, shortest: int) -> Iterator[tuple[int, int, int]]:
        """Give (slots, failures, tries) of the last `shortest` slots and of every longer part that is not yet the whole window."""
        failed = total = 0
        for slots in range(1, len(self.tries)):
            index = (self.at - slots + 1) % len(self.tries)
            failed, total = failed + sum(self.fails[index].values()), total + sum(self.tries[index].values())
            if slots >= shortest:
                yield slots, failed, total

    def clear(self) -> None:
        """Forget every outcome."""
        for index in range(len(self.tries)):
            self._drop(index)
        self.groups.clear()
        self.vantages.clear()

    def _drop(self, index: int) -> None:
        tries, fails = self.tries[index], self.fails[index]
        if tries:
            self.total -= sum(tries.values())
            tries.clear()
        if fails:
            self.failed -= sum(fails.values())
            fails.clear()


def _touch(seen: list[tuple[K, int]], key: K, slot: int, keep: int) -> None:
    # `keep` distinct keys failed within the window exactly when the keep-th most recent of them did: no set needs to be kept
    if seen and seen[0][0] == key:
        seen[0] = (key, slot)
        return
    seen[:] = [(key, slot), *(entry for entry in seen if entry[0] != key)][:keep]


class _Run:
    """Refused connections of one region with no success in between."""

    __slots__ = ("groups", "length", "own", "usual", "vantages")

    def __init__(self, window: _Window) -> None:
        self.length = self.own = 0
        self.usual = max(_USUAL, (window.failed + 1) / (window.total + 1))  # share of failures before it, which is among the tries
        self.groups: set[int] = set()
        self.vantages: set[str] = set()

    def refused(self, group: int, vantage: str, own: bool, spread: int) -> None:
        """Count one more; of whom it came from as many are kept as are asked for."""
        self.length += 1
        self.own += own
        if len(self.groups) < spread:
            self.groups.add(group)
        if len(self.vantages) < spread:
            self.vantages.add(vantage)

    def convincing(self, spread: int) -> int:
        """Give how many there are that a region which fails as often as before would not refuse in a row; else 0."""
        if self._unlikely(self.own):
            return self.own
        wide = max(len(self.groups), len(self.vantages)) >= spread
        return self.length if wide and self._unlikely(self.length) else 0

    def _unlikely(self, length: int) -> bool:
        return bool(self.usual**length <= _LUCK)


class _State:
    __slots__ = ("answered", "cause", "ejection", "excluded", "paths", "run", "waits", "why", "window")

    def __init__(self, buckets: int, slot: int) -> None:
        self.window = _Window(buckets, slot)
        self.run: _Run | None = None
        self.ejection = Ejection()
        self.paths: dict[int, Ejection] = {}
        self.excluded = _NOBODY
        self.waits: dict[tuple[str, int], tuple[int, float]] = {}  # (vantage, group) -> (count, said at)
        self.answered = -math.inf  # when it last did
        self.cause: str | None = None
        self.why = ""


class Pooled:
    """Eject a region when at least half of its recent requests failed, and not for one group alone.

    window: seconds looked back, in `buckets` steps: what is counted is the current step and the buckets - 1 before it, and each latest
        part of these by itself, down to a quarter: an outage need not outweigh the success before it
    failures: fewest failures that count; share: fewest failures / tries; spread: fewest distinct groups, or vantages, that failed
    A single group that fails so often, with too little spread, is excluded from the region (`excluded`) while others stay.
    own: vantage that is this process itself. Who is refused there is refused by the gateway, whoever the client was: no spread is asked
        of a run of refused connections; other vantages' runs need it. Who reports for others names them, then
    An ejection lasts as `backoff` says; successes of probes end it before (for a group: probes sent for that group).
    At once goes a region that refuses connections in a row, with no success in between, so often that it would be luck of one in
    10^10 with the share of failures before (with up to 10 %: ten in a row, with 30 %: nineteen).
    Requests still waiting count as failures, see `waiting`; and suffice when nobody succeeds meanwhile, for so long (a bucket at least)
    that it would be luck of one in a million at the pace before.
    sources: what is counted; probes are not by default, they have their own detector
    Raises ValueError for values out of range, IndexError for a region no table can have.
    Source: reference ALGORITHMS §3.6 no. 8 and §3.7 (own design: Envoy's outlier ejection with Lifeguard's independent confirmation).
    """

    def __init__(
        self, *, window: float = 3.0, failures: int = 5, share: float = 0.5, spread: int = 3, buckets: int = 12,
        sources: Iterable[str] = ("request",), backoff: Backoff | None = None, own: str = "local",
    ) -> None:  # fmt: skip
        if not (0 < window < float("inf") and failures >= 1 and 0 < share <= 1 and spread >= 1 and buckets >= 1):
            got = f"{window!r}, {failures!r}, {share!r}, {spread!r}, {buckets!r}"
            raise ValueError(f"Pooled needs window > 0, failures, spread and buckets >= 1 and share within 0..1, got {got}")
        self._counted = frozenset(sources)
        self.sources = self._counted | {"probe"}
        self._window, self._failures, self._share, self._spread = window, failures, share, spread
        self._buckets = buckets
        self.resolution = self._rate = buckets / window
        self._backoff = backoff or Backoff()
        self._own = own
        self._states: dict[int, _State] = {}

    def report(
        self, region: int, ok: bool, *, cause: str | None, source: str, vantage: str, group: int, gen: int, now: float
    ) -> None:
        """Count one request, or let a probe shorten an ejection."""
        state = self._states.get(region)
        if state is None:
            state = self._add(region, now)
        if source == "probe":
            self._probed(state, ok, group, now)
        if source not in self._counted or state.ejection.active:
            return  # an ejection ends with an empty window, so nothing need be counted until then
        window = state.window
        slot = floor(now * self._rate)
        if slot > window.at:
            window.advance(slot)
        tries = window.now_tries
        tries[group] = tries.get(group, 0) + 1
        window.total += 1
        if ok:
            state.answered, state.run = now, None
            return
        state.cause = cause
        if cause == "refused":
            self._refused(state, group, vantage)
        window.fail(group, vantage, self._spread)
        self._judge(state, now, group)

    def successes(self, region: int, groups: Sequence[int], *, vantage: str, gen: int, now: float) -> None:
        """Count a success of each of these groups, all within one bucket."""
        state = self._states.get(region) or self._add(region, now)
        if "request" in self._counted and not state.ejection.active and groups:
            self._advance(state.window, now)
            state.window.now_tries.update(groups)
            state.window.total += len(groups)
            state.answered, state.run = now, None

    def _refused(self, state: _State, group: int, vantage: str) -> None:
        if state.run is None:
            state.run = _Run(state.window)
        state.run.refused(group, vantage, vantage == self._own, self._spread)

    def waiting(self, region: int, count: int, *, vantage: str, group: int, gen: int, now: float) -> None:
        """Say how many requests are waiting for longer than an answer should take.

        They count as tries and failures for a second or until the next call for the same vantage and group; 0 takes them back.
        When they end, they are reported like any other request. Those that began before the region's last recovery (an older `gen`) do not
        belong into `count`.
        """
        state = self._states.get(region) or self._add(region, now)
        if state.ejection.active:
            return
        if count <= 0:
            state.waits.pop((vantage, group), None)
            return
        state.waits[vantage, group] = (count, now)
        self._advance(state.window, now)
        self._judge(state, now, group)

    def sweep(self, now: float) -> None:
        """End ejections and exclusions that are over, and judge again what has aged."""
        for state in self._states.values():
            self._advance(state.window, now)
            if state.waits:
                state.waits = {key: wait for key, wait in state.waits.items() if now - wait[1] < _FRESH}
            state.ejection.expire(now)
            if state.window.failed or state.waits:
                self._judge(state, now, None)
            if state.paths:
                self._sweep_paths(state, now)

    def verdict(self, region: int) -> Verdict | None:
        """Give DOWN while ejected, UP for a region that has answered a request, else None."""
        state = self._states.get(region)
        if state is None:
            return None
        if state.ejection.active:
            return Verdict.DOWN
        return Verdict.UP if state.answered > -math.inf else None

    def until_change(self, region: int, now: float, *, interval: float, slack: float) -> float | None:
        """Give the seconds until an ejection could end: by its time, or by probes that succeed from now on."""
        state = self._states.get(region)
        if state is None or not state.ejection.active:
            return None
        probed = (self._backoff.rise - state.ejection.oks - 1) * interval - slack
        return max(0.0, min(state.ejection.until - now, probed))

    def excluded(self, region: int) -> frozenset[int]:
        """Give the groups whose own path to the region is broken; empty while the region itself is DOWN."""
        state = self._states.get(region)
        return state.excluded if state else _NOBODY

    def cause(self, region: int) -> str:
        """Say how much failed, e.g. "6 of 8 requests failed within 3 s (timeout), 4 groups"; "" unless DOWN."""
        state = self._states.get(region)
        return state.why if state and state.ejection.active else ""

    def reset(self, region: int) -> None:
        """Forget the region's outcomes, ejections and exclusions."""
        self._states.pop(region, None)

    def _add(self, region: int, now: float) -> _State:
        state = self._states[check_region(region)] = _State(self._buckets, floor(now * self._rate))
        return state

    def _advance(self, window: _Window, now: float) -> None:
        slot = floor(now * self._rate)
        if slot > window.at:
            window.advance(slot)

    def _judge(self, state: _State, now: float, group: int | None) -> None:
        window, waits = state.window, state.waits
        waiting = sum(count for count, _ in waits.values()) if waits else 0
        failed, total = window.failed + waiting, window.total + waiting
        if failed < self._failures:
            return  # then no group has so many either
        silent = waiting > 0 and self._silent(state, now)
        if state.run and (refused := state.run.convincing(self._spread)):
            self._eject(state, now, f"refused {refused} times in a row")
        elif silent and self._spread_wide(state):
            self._eject(state, now, f"{waiting} requests wait, no answer for {now - state.answered:.2f} s")
        elif self._broken(failed, total) and self._spread_wide(state) or self._broken_lately(state):
            self._eject(state, now, f"{failed} of {total} requests failed within {self._window:g} s ({state.cause or 'waiting'})")
        elif group is not None:
            self._judge_path(state, now, group, silent)

    def _eject(self, state: _State, now: float, why: str) -> None:
        state.ejection.start(self._backoff, now)
        state.paths, state.excluded = {}, _NOBODY  # the region, then, and not the path
        state.why, state.run = why, None
        state.window.clear()
        state.waits.clear()

    def _silent(self, state: _State, now: float) -> bool:
        """Say whether nobody has succeeded for longer than would be luck at the pace of the window's successes."""
        silence = now - state.answered
        if not 1 <= silence * self._rate < self._buckets:
            return False  # after that the window is empty, or was
        succeeded = state.window.total - state.window.failed
        return math.exp(-succeeded * silence / (self._window - silence)) <= _PAUSE

    def _broken(self, failed: int, total: int) -> bool:
        return failed >= self._failures and failed >= self._share * total

    def _broken_lately(self, state: _State) -> bool:
        """Say whether the latest part of the window is broken by itself: else an outage would have to outweigh the success before it."""
        window = state.window
        return any(
            self._broken(failed, total)
            and max(len(window.recent(window.groups, slots)), len(window.recent(window.vantages, slots))) >= self._spread
            for slots, failed, total in window.latest(max(1, self._buckets // 4))
        )  # fmt: skip

    def _spread_wide(self, state: _State) -> bool:
        window = state.window
        groups, vantages = window.recent(window.groups, self._buckets), window.recent(window.vantages, self._buckets)
        for vantage, group in state.waits:
            groups.add(group)
            vantages.add(vantage)
        return max(len(groups), len(vantages)) >= self._spread

    def _judge_path(self, state: _State, now: float, group: int, silent: bool) -> None:
        if group in state.excluded:
            return
        waiting = sum(count for (_, waiter), (count, _) in state.waits.items() if waiter == group)
        failed, total = state.window.of(group)
        if self._broken(failed + waiting, total + waiting) or silent and waiting >= self._failures:
            state.paths.setdefault(group, Ejection()).start(self._backoff, now)
            state.excluded |= {group}

    def _probed(self, state: _State, ok: bool, group: int, now: float) -> None:
        state.ejection.probed(ok, self._backoff, now)
        path = state.paths.get(group)
        if path and path.probed(ok, self._backoff, now):
            state.excluded -= {group}

    def _sweep_paths(self, state: _State, now: float) -> None:
        ended = {group for group, path in state.paths.items() if path.expire(now)}
        if ended:
            state.excluded -= ended
        healed = [group for group, path in state.paths.items() if not path.active and not path.healed(self._backoff, now)]
        for group in healed:
            del state.paths[group]
