"""Guard: what stands between any detector's raw verdicts and the Balancer.

    reports --[late?]--> detector --verdict--> [vantage suspect?] --> [held down?] --> verdict --> Balancer --[limit_ejections]--> tiers
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy

from lbcore.detect.anyof import Watched
from lbcore.detect.holddown import HoldDown
from lbcore.detect.protocol import Detector, Verdict, check_region
from lbcore.detect.suspect import Suspicion, VantageSuspect

__all__ = ["Guard"]

logger = logging.getLogger("lbcore.detect")
_NOBODY: frozenset[int] = frozenset()
_UP, _DOWN = Verdict.UP, Verdict.DOWN


class _State:
    __slots__ = ("cause", "excluded", "failing", "gen", "hard", "hold", "settled", "verdict", "withheld")

    def __init__(self, gen: int, hold: HoldDown) -> None:
        self.gen = gen
        self.hold = hold
        self.verdict: Verdict | None = None  # what the Balancer is told
        self.settled = True  # it is also what the detector says: nothing is withheld or held down
        self.failing: bool | None = None  # the last outcome
        self.hard = False
        self.cause = ""
        self.excluded = _NOBODY
        self.withheld: float | None = None  # a DOWN verdict waits since then


class Guard:
    """Keep a detector's verdicts from being late, panicky or restless; itself a Detector.

    - Stale: reports with a `gen` older than the region's `generation` are dropped. A recovery (and a `reset`) begins a new generation,
      so a request that was sent before it and fails after it cannot eject the region again.
    - Vantage suspect: while most regions fail at once from here, no further region goes DOWN for at most 5 s; recoveries pass.
    - Hold-down: a region that went down and up again too often stays DOWN for a while after its detector has forgiven it.
    - A detector that raises is logged and keeps its last verdict.
    Regions whose verdict, hardness or exclusions changed are gathered in `changed`; whoever applies them empties it.

    hold_down: makes one region's hold-down; suspect: makes the suspicion, e.g. `lambda: VantageSuspect(interval=30)`; None = without
    on_suspect: called with the Suspicion when a freeze starts, under the Balancer's lock; what it raises is logged
    Source: DESIGN §5; reference ALGORITHMS §3.6 "stale-guard".
    """

    def __init__(
        self, detector: Detector, *, hold_down: Callable[[], HoldDown] | None = HoldDown,
        suspect: Callable[[], VantageSuspect] | None = VantageSuspect, on_suspect: Callable[[Suspicion], None] | None = None,
    ) -> None:  # fmt: skip
        self._inner = Watched(detector)
        self._report = detector.report
        self._hold_down = hold_down or (lambda: HoldDown(base=0.0, cap=0.0))
        self._suspect = suspect() if suspect else None
        self._on_suspect = on_suspect
        self._states: dict[int, _State] = {}
        self._generations: dict[int, int] = {}  # of regions that were reset
        self.changed: set[int] = set()

    @property
    def detector(self) -> Detector:
        """Give the detector that is guarded."""
        return self._inner.detector

    @property
    def suspicion(self) -> Suspicion | None:
        """Give the freeze that is on, or None."""
        return self._suspect.last if self._suspect and self._suspect.frozen else None

    def generation(self, region: int) -> int:
        """Give what a piece of work that begins now reports as its `gen` when it ends."""
        state = self._states.get(region)
        return state.gen if state else self._generations.get(region, 0)

    def control(self, ok: bool) -> None:
        """Take the outcome of a control target (an anchor, the own gateway)."""
        if self._suspect:
            self._suspect.control(ok)

    def report(
        self, region: int, ok: bool, *, cause: str | None, source: str, vantage: str, group: int, gen: int, now: float
    ) -> None:
        """Pass one outcome on, unless it is late, and settle the region's verdict."""
        state = self._states.get(region)
        if state is None:
            state = self._add(region)
        if gen < state.gen:
            return
        if not ok or state.failing is not False:
            self._note(state, region, ok, now)
        try:
            self._report(region, ok, cause=cause, source=source, vantage=vantage, group=group, gen=gen, now=now)
        except Exception:
            self._inner.failed("report", now)
        if ok and state.settled and state.verdict is _UP:
            return  # most calls end here; what a success may have changed is seen at the next sweep
        self._settle(region, state, now, source != "request")
        if not ok and state.verdict is not _DOWN:
            self._exclude(region, state)

    @property
    def resolution(self) -> float | None:
        """Give what the detector says of telling successes together; None: one by one."""
        return self._inner.resolution

    def calm(self, region: int) -> bool:
        """Say whether a success would change nothing but counts: the region is UP, nothing is withheld, and its last outcome was one."""
        state = self._states.get(region)
        return state is not None and state.settled and state.verdict is _UP and state.failing is False

    def successes(self, region: int, groups: Sequence[int], *, vantage: str, gen: int, now: float) -> None:
        """Pass successes of requests on together."""
        state = self._states.get(region) or self._add(region)
        if gen < state.gen or not groups:
            return
        if state.failing is not False:
            self._note(state, region, True, now)
        self._inner.successes(region, groups, vantage=vantage, gen=gen, now=now)
        if not (state.settled and state.verdict is _UP):
            self._settle(region, state, now, False)

    def waiting(self, region: int, count: int, *, vantage: str, group: int, gen: int, now: float) -> None:
        """Pass the gauge of waiting requests on, unless they began before the recovery."""
        state = self._states.get(region) or self._add(region)
        if gen >= state.gen:
            self._inner.waiting(region, count, vantage=vantage, group=group, gen=gen, now=now)
            self._settle(region, state, now, False)
            self._exclude(region, state)

    def sweep(self, now: float) -> None:
        """Let time pass for the detector, the freeze and the hold-downs."""
        self._inner.sweep(now)
        if self._suspect:
            self._suspect.refresh(now)
        for region, state in self._states.items():
            self._settle(region, state, now, True)
            self._exclude(region, state)

    def verdict(self, region: int) -> Verdict | None:
        """Give the guarded verdict."""
        state = self._states.get(region)
        return state.verdict if state else None

    def hard(self, region: int) -> bool:
        """Say whether the region is DOWN by probes at present; one that answers again but is held down is not."""
        state = self._states.get(region)
        return state is not None and state.hard

    def excluded(self, region: int) -> frozenset[int]:
        """Give the groups for which the region is excluded."""
        state = self._states.get(region)
        return state.excluded if state else _NOBODY

    def cause(self, region: int) -> str:
        """Say why the region went DOWN; "" unless it is."""
        state = self._states.get(region)
        return state.cause if state else ""

    def until_change(self, region: int, now: float, *, interval: float, slack: float) -> float | None:
        """Give the seconds for which neither probes nor a hold-down's end can change the verdict; None where the detector cannot tell.

        What a frozen vantage withholds may come at any moment.
        """
        seconds = self._inner.until_change(region, now, interval=interval, slack=slack)
        state = self._states.get(region)
        if state is None or state.verdict is not _DOWN:
            return 0.0 if state is not None and state.withheld is not None else seconds
        held = max(0.0, state.hold.until - now)
        if state.settled:
            return seconds if seconds is None else max(seconds, held)
        return held

    def held_until(self, region: int) -> float:
        """Give the time until which the region is held down, -inf if it never was."""
        state = self._states.get(region)
        return state.hold.until if state else float("-inf")

    def hold(self, region: int) -> HoldDown | None:
        """Give a copy of what is remembered of the region's changes, None when it was never heard of."""
        state = self._states.get(region)
        return deepcopy(state.hold) if state is not None else None

    def set_hold(self, region: int, hold: HoldDown) -> None:
        """Go on from what another Guard of the same clock remembered of the region's changes."""
        (self._states.get(region) or self._add(region)).hold = deepcopy(hold)

    def reset(self, region: int) -> None:
        """Forget the region; whatever is still under way for the old one will come too late."""
        self._generations[check_region(region)] = self.generation(region) + 1
        self._states.pop(region, None)
        self.changed.discard(region)
        self._inner.reset(region)
        if self._suspect:
            self._suspect.forget(region)

    def _add(self, region: int) -> _State:
        state = _State(self._generations.get(check_region(region), 0), self._hold_down())
        self._states[region] = state
        return state

    def _note(self, state: _State, region: int, ok: bool, now: float) -> None:
        state.failing = not ok
        if self._suspect and state.verdict is not _DOWN:
            self._suspect.report(region, ok, now)

    def _settle(self, region: int, state: _State, now: float, harden: bool) -> None:
        verdict = self._inner.verdict(region)
        if verdict is state.verdict and state.settled:
            if verdict is _DOWN and harden:
                self._harden(region, state)
            return
        self._decide(region, state, verdict, now)

    def _decide(self, region: int, state: _State, verdict: Verdict | None, now: float) -> None:
        if verdict is _DOWN and state.verdict is not _DOWN:
            if self._withheld(state, now):
                state.settled = False
                return
            state.cause = self._inner.cause(region)
        state.withheld = None
        if verdict is not _DOWN and state.verdict is _DOWN and state.hold.holds(now):
            state.settled = False
            self._harden(region, state)
            return
        state.settled = True
        if verdict is not state.verdict:
            self._change(region, state, verdict, now)
        self._harden(region, state)

    def _withheld(self, state: _State, now: float) -> bool:
        if self._suspect is None:
            return False
        before = self._suspect.last
        withheld = self._suspect.withhold(now)
        if self._suspect.last is not before and self._suspect.last is not None:
            self._raise_event(self._suspect.last)
        if withheld and state.withheld is None:
            state.withheld = now
        # suspicion may come and go, but no verdict waits for longer than one freeze
        return withheld and state.withheld is not None and now - state.withheld < self._suspect.freeze

    def _raise_event(self, suspicion: Suspicion) -> None:
        logger.warning("vantage suspect: %d of %d regions fail at once", len(suspicion.failing), suspicion.regions)
        if self._on_suspect:
            try:
                self._on_suspect(suspicion)
            except Exception:
                logger.exception("on_suspect callback %r raised", self._on_suspect)

    def _change(self, region: int, state: _State, verdict: Verdict | None, now: float) -> None:
        down, was_down = verdict is _DOWN, state.verdict is _DOWN
        state.verdict = verdict
        self.changed.add(region)
        self._exclude(region, state)
        if down != was_down:
            state.hold.changed(down, now)
            if self._suspect:
                self._suspect.went(region, down, now)
        if was_down:
            state.gen += 1
            state.cause = ""
            state.failing = None

    def _harden(self, region: int, state: _State) -> None:
        hard = state.verdict is _DOWN and self._inner.hard(region)
        if hard is not state.hard:
            state.hard = hard
            self.changed.add(region)

    def _exclude(self, region: int, state: _State) -> None:
        excluded = self._inner.excluded(region)
        if excluded != state.excluded:
            state.excluded = excluded
            self.changed.add(region)
