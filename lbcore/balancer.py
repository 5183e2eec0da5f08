"""Balancer: names and addresses outside, indices inside. One table, one prefix map, one detector.

The only writer of tiers and bits. `report` judges under one lock; `pick` and `observe` take none. It owns no thread: whoever
serves (Prober, DNS, HTTP) calls `tick` every 100 ms, `report` and `observe` do when the last tick is over a second old, and
`start()` gives a daemon thread to those who only pick. Processes that share a table also `look` every few milliseconds.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lbcore import state
from lbcore._fast import LatencyTable, Picker
from lbcore._tally import Steady, Tally
from lbcore.decision import Decision, decide
from lbcore.detect import Detector, Guard, VantageSuspect, Verdict, default_detector, limit_ejections
from lbcore.errors import CAUSES, NoRegionError, UnknownRegionError, cause_of
from lbcore.layout import Layout
from lbcore.region import Region
from lbcore.sense.geo import Client, GeoIP
from lbcore.sense.prior import PRIORS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lbcore._prefix import PrefixMap

__all__ = ["Attempt", "Balancer", "Change"]

logger = logging.getLogger("lbcore")

TICK_INTERVAL = 0.1  # seconds, for those who serve
LOOK_INTERVAL = 0.005  # seconds, for those who share a table
STALE_TICK = 1.0  # seconds after which a report or sample ticks by itself
WAITING = 1.0  # seconds for which holds what was said of waiting requests
LATELY = 10.0  # seconds for which a group counts as a user of a region
INHERITED = 60.0  # seconds for which the last owner's verdict on a region holds that the new one hears nothing of
LOCAL = "local"
_REFUSED = 2 + CAUSES.index("refused")  # its column in the table's outcomes: successes, failures without a cause, then by CAUSES


@dataclass(frozen=True, slots=True)
class Change:
    """A region's status changed: before and after are of up, degraded, ejected, down, disabled, draining."""

    region: str
    before: str
    after: str
    cause: str
    at: float  # the Balancer's clock


class Attempt:
    """One request under way: use `.region`; leaving the block measures it and reports how it went."""

    __slots__ = ("region", "gen", "since")

    def __init__(self, region: Region, gen: int, since: float) -> None:
        self.region, self.gen, self.since = region, gen, since


class Balancer:
    """Give the closest healthy region for a client, and learn from what became of it.

    regions: at least one; the order decides ties
    locate: city or country database (mmdb path), a PrefixMap, or None for the embedded coarse table
    detector: judges outcomes; None = probes by consecutive failures, requests by pooled share of failures
    clock: monotonic seconds; everything follows it
    prior: what a path that nobody measured is judged by: "round_trip", what is published of paths like it, or "distance" alone
    estimator, tau, buffer: as LatencyTable; a buffer is shared by worker processes that all pass the same regions
    Raises ValueError for no or repeated regions, another prior, and for a database that cannot be used.
    """

    def __init__(
        self, regions: Iterable[Region], locate: str | os.PathLike[str] | PrefixMap | None = None, detector: Detector | None = None,
        clock: Callable[[], float] = time.monotonic, *, estimator: str = "prior_ewma", tau: float = 10.0, buffer: Any = None,
        prior: str = "round_trip",
    ) -> None:  # fmt: skip
        if prior not in PRIORS:
            raise ValueError(f"prior must be one of {', '.join(PRIORS)}, got {prior!r}")
        self.clock = clock
        self._lock = threading.RLock()
        self._buffer = buffer
        self._callbacks: list[Callable[[Change], object]] = []
        self._followers: list[Callable[[], object]] = []
        self._changes: list[Change] = []
        self._telling = False
        self._samples = self._ticks = 0
        self._now = Steady(clock)
        self._waits: dict[tuple[int, int], tuple[int, float]] = {}  # by slot and group: what is told to whoever judges a shared table
        self._told: set[tuple[int, int]] = set()  # by slot and hash of the group: what was told last
        self._waited = False
        self._used: dict[tuple[int, int], float] = {}  # by slot and hash of the group: when a request last succeeded
        self._news = 0
        self._tally: Tally
        self._last_tick = self._now()
        self._pace: tuple[float, float] | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        chosen = detector if detector is not None else default_detector()
        self.guard = chosen if isinstance(chosen, Guard) else Guard(chosen, suspect=VantageSuspect)
        self._geo, prefixes = _open_map(locate)
        make_table = partial(LatencyTable, estimator=estimator, tau=tau, buffer=buffer)
        used = buffer is not None and any(memoryview(buffer).cast("B")[:8])
        self._judging = not used  # and not just about to take over from another process
        self._settle(Layout(prefixes, _distinct(regions), make_table, used=used, prior=prior))
        self._picker = Picker(self.table, self.map, self._layout.objects, NoRegionError)
        self.pick = self._picker.pick
        self.table.tick(self._now())
        _balancers.add(self)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], **overrides: Any) -> Balancer:
        """Build a Balancer from lbcore.toml; ConfigError lists everything that is wrong with it. Needs lbcore[cli]."""
        from lbcore.config import load

        return cls(**(load(path).balancer_options() | overrides))

    # ---- who there is

    @property
    def regions(self) -> tuple[Region, ...]:
        """Give the regions in the table's order."""
        return self._layout.regions

    @property
    def table(self) -> LatencyTable:
        """Give the latency table in use; another one after the regions outgrow it or the map is replaced."""
        return self._layout.table

    @property
    def map(self) -> PrefixMap:
        """Give the prefix map in use."""
        return self._layout.map

    @property
    def fail_open(self) -> bool:
        """Say whether no region is up, so that picks fall back on what the operator wants."""
        return self.table.fail_open

    def region(self, name: str | Region) -> Region:
        """Give a region by its name in any spelling; UnknownRegionError names the nearest ones."""
        return self._layout.at(self.slot(name))

    @property
    def objects(self) -> tuple[Region | None, ...]:
        """Give the region in each slot of the table, None for a free one."""
        return self._layout.objects

    def slot(self, region: str | Region) -> int:
        """Give a region's index in the table."""
        return self._layout.slot(region)

    def status(self, region: str | Region) -> str:
        """Give what holds of a region: disabled, draining, up, degraded, ejected or down."""
        return self._layout.status(self.slot(region))

    # ---- choose

    def rank(self, client: Client = None, exclude: Collection[str | Region] = ()) -> list[Region]:
        """Give the regions that may serve a client, the pick first, then each next closest; `exclude` is left out."""
        layout = self._layout
        without = {layout.slot(region) for region in exclude}
        order = layout.table.rank(layout.map.lookup(client)).tolist()
        objects = layout.objects  # after the order: a region that was removed since is None
        return [region for slot in order if slot not in without and (region := objects[slot]) is not None]

    def match(self, client: Client) -> tuple[int, int]:
        """Give a client's group and the length of the shortest prefix around it that is all of that group (ECS scope)."""
        return self.map.match(client)

    def explain(self, client: Client = None) -> Decision:
        """Give why a client gets the region it gets now; nothing changes by asking."""
        with self._lock:
            layout = self._layout
            statuses = {slot: (name, layout.status(slot)) for name, slot in layout.slots.items()}
            return decide(layout.table, layout.map, layout.places, statuses, client, self._now())

    # ---- learn

    def observe(self, region: str | Region, ms: float, client: Client = None, *, vantage: str | None = None, age: float = 0.0) -> None:
        """Take one measured round trip, milliseconds, `age` seconds old; client None = measured by this process.

        vantage: which node measured, for whoever reads logs; its own place is group 0. A timeout is no sample: `report` it.
        Raises ValueError for NaN, infinite or negative values and for what is no address.
        """
        now = self._now()
        if not 0 <= age < 1e7:
            raise ValueError(f"age must be seconds >= 0, got {age!r}")
        layout = self._layout
        group, slot = layout.map.lookup(client), layout.slot(region)
        try:
            layout.table.observe(group, slot, ms, now - age)
        except IndexError:  # removed since its slot was looked up
            raise UnknownRegionError(region if isinstance(region, str) else region.name, layout.slots) from None
        self._samples += 1
        if now - self._last_tick > STALE_TICK:
            self._tick_if_free()

    def report(
        self, region: str | Region, ok: bool, client: Client = None, *,
        cause: str | None = None, vantage: str | None = None, source: str = "request", gen: int | None = None,
    ) -> None:  # fmt: skip
        """Take one outcome; a verdict that it changes holds for the next pick.

        cause: refused, timeout, tls, status or reset, for a failure. gen: `generation(region)` when the work began: late
        failures from before a recovery are dropped. source: "probe", "request" or "external".
        vantage: who met it, None = this process. Whoever reports for others (beacons, agents) names them: their refused
        connections tell less of the region than one's own.
        Raises ValueError for another cause or source, or for what is no address.
        """
        if ok and cause is None and vantage is None and source == "request" and self._tally.success(region, client, gen):
            return
        if cause is not None and cause not in CAUSES:
            raise ValueError(f"cause must be one of {', '.join(CAUSES)} or None, got {cause!r}")
        if source not in ("probe", "request", "external"):
            raise ValueError(f"source must be probe, request or external, got {source!r}")
        now = self._now()
        with self._lock:  # slots and groups are found under it: they may mean something else a moment later
            slot, group = self.slot(region), self.map.lookup(client)
            if self._buffer is None:
                self._judge_outcome(slot, bool(ok), cause, source, vantage or LOCAL, group, gen, now)
            else:
                self._share_outcome(slot, bool(ok), cause, source, vantage or LOCAL, group, gen, now)
        self._notify()
        if now - self._last_tick > STALE_TICK:
            self._tick_if_free()

    def answered(self, region: str | Region, ms: float, client: Client = None, *, gen: int | None = None) -> None:
        """Take a request that succeeded, and how long it took: `observe` and `report` in one, at a third of their cost."""
        if self._tally.answered(region, ms, client, gen):
            self._samples += 1
        else:
            self.observe(region, ms, client)
            self.report(region, True, client, gen=gen)

    def waiting(
        self, region: str | Region, count: int, client: Client = None, *, vantage: str | None = None, gen: int | None = None
    ) -> None:
        """Say that `count` requests of a client's group wait for the region longer than an answer should take: evidence before
        any timeout. A gauge, forgotten after a second: repeat it with every tick, 0 ends it. gen as in `report`.
        """
        if count < 0:
            raise ValueError(f"count must be >= 0, got {count!r}")
        with self._lock:
            now, slot, group = self._now(), self.slot(region), self.map.lookup(client)
            if self._buffer is None:
                self._judge_waiting(slot, count, vantage or LOCAL, group, gen, now)
            elif gen is None or gen >= self.table.recoveries(slot):
                self._waits[slot, group] = (count, now)
        self._notify()

    def control(self, ok: bool) -> None:
        """Take the outcome of a control target (an anchor, the own gateway): it tells a sick vantage from sick regions."""
        with self._lock:
            self.guard.control(bool(ok))

    def expect_probes(self, interval: float, timeout: float) -> None:
        """Say how far apart, seconds, the probes of a region begin and how long each may take: what `until_change` counts in."""
        self._pace = interval, timeout

    def until_change(self, region: str | Region) -> float | None:
        """Give the seconds for which probes cannot change whether a region is up; None = it serves always, or nobody can tell.

        What requests tell and what the operator does may come at any moment. It needs to know of probes: see `expect_probes`.
        """
        with self._lock:
            slot = self.slot(region)
            if self._pace is None or self._layout.at(slot).always_serve or not self._judges():
                return None
            if (self.guard.verdict(slot) is Verdict.DOWN) != (self.table.tier(slot) > 0):
                return 0.0  # an ejection that waits for another one's end, or a tier that was inherited
            return self.guard.until_change(slot, self._now(), interval=self._pace[0], slack=self._pace[1])

    def generation(self, region: str | Region) -> int:
        """Give what work on a region that begins now passes to `report` as `gen`."""
        slot = self.slot(region)
        return self.guard.generation(slot) if self._buffer is None else self.table.recoveries(slot)

    @contextmanager
    def attempt(self, client: Client = None) -> Iterator[Attempt]:
        """Pick a region for one request, time the block, and report success or the exception's cause.

        Only exceptions that speak of the path (OSError, TimeoutError, httpx transport errors) count against the region.
        """
        region: Region = self.pick(client)
        gen = 0
        with suppress(UnknownRegionError):  # here and below: the region may be removed at any moment
            gen = self.generation(region)
        attempt = Attempt(region, gen, self._now())
        try:
            yield attempt
        except BaseException as error:
            if (cause := cause_of(error)) is not None:
                with suppress(UnknownRegionError):
                    self.report(region, False, client, cause=cause, gen=gen)
            raise
        with suppress(UnknownRegionError):
            self.answered(region, max(0.0, self._now() - attempt.since) * 1000.0, client, gen=gen)

    def _judge_outcome(
        self, slot: int, ok: bool, cause: str | None, source: str, vantage: str, group: int, gen: int | None, now: float
    ) -> None:
        self._tally.calm(slot, False)
        self._tell_successes(slot)
        gen = self.guard.generation(slot) if gen is None else gen
        self.guard.report(slot, ok, cause=cause, source=source, vantage=vantage, group=group, gen=gen, now=now)
        if self.guard.changed:
            self._apply_verdicts(now)
        if self.guard.calm(slot):
            self._tally.calm(slot, True, self.guard.generation(slot))

    def _judge_waiting(self, slot: int, count: int, vantage: str, group: int, gen: int | None, now: float) -> None:
        self._tell_successes(slot)
        gen = self.guard.generation(slot) if gen is None else gen
        self.guard.waiting(slot, count, vantage=vantage, group=group, gen=gen, now=now)
        if self.guard.changed:
            self._apply_verdicts(now)

    def _tell_successes(self, slot: int) -> None:
        """Hand on what was only noted of a region."""
        if (noted := self._tally.take(slot)) is not None:
            self.guard.successes(slot, noted[0], vantage=LOCAL, gen=self.guard.generation(slot), now=noted[1])

    def _share_outcome(
        self, slot: int, ok: bool, cause: str | None, source: str, vantage: str, group: int, gen: int | None, now: float
    ) -> None:
        """Count an outcome in the shared table, where the owner finds it; probes are judged where they are made, by the owner."""
        if gen is not None and gen < self.table.recoveries(slot):
            return
        if source == "request":
            if cause == "refused" and vantage != LOCAL:
                cause = None  # one's own alone make a run
            self.table.count(slot, ok, group, 0 if cause is None else 1 + CAUSES.index(cause))
        elif self._judges():
            self._judge_outcome(slot, ok, cause, source, vantage, group, None, now)

    def _apply_verdicts(self, now: float) -> None:
        """Bring tiers and exclusions in line with the detector's verdicts, then let the table move homes at once."""
        if not self._judging:
            self._take_over(now)
        self.guard.changed.clear()
        slots, serving = [*self._layout.slots.values()], self._layout.serving()
        down = [slot for slot in slots if self._is_down(slot, now) and not self._layout.at(slot).always_serve]
        hard = {slot for slot in down if self.guard.hard(slot)}
        ejected = {slot for slot in down if self.table.tier(slot) == 2}
        exempt = hard.union(slot for slot in down if slot not in serving)  # whom nobody uses takes no ejection from the others
        granted = limit_ejections(down, len(serving), hard=exempt, ejected=ejected)
        for slot in slots:
            if not self._inherits(slot, now):
                self._set_tier(slot, 0 if slot not in granted else 3 if slot in hard else 2, now)
            self._set_excluded(slot)
        self.table.tick(now)

    def _is_down(self, slot: int, now: float) -> bool:
        """Say whether the region is down for all; in a shared table also when everybody who used it lately has lost their path."""
        if self.guard.verdict(slot) is Verdict.DOWN:
            return True
        lost = self.guard.excluded(slot) if self._buffer is not None else frozenset()
        return bool(lost) and all(spread in lost or now - at > LATELY for (used, spread), at in self._used.items() if used == slot)

    def _take_over(self, now: float) -> None:
        """Go on from what the last owner of a shared table decided."""
        self._judging = True
        self._inherited.update({slot: now + INHERITED for slot in self._layout.slots.values() if self.table.tier(slot)})

    def _inherits(self, slot: int, now: float) -> bool:
        if slot in self._inherited and (self.guard.verdict(slot) is not None or now >= self._inherited[slot]):
            del self._inherited[slot]
        return slot in self._inherited

    def _set_tier(self, slot: int, tier: int, now: float) -> None:
        if self.table.tier(slot) != tier:
            cause = self.guard.cause(slot) or "fails for all who used it lately" if tier else "recovered"
            with self._change(slot, cause, now):
                self.table.set_tier(slot, tier, now)

    def _set_excluded(self, slot: int) -> None:
        before, groups = self._excluded.get(slot, frozenset()), self._groups_without(slot)
        for group in before - groups:
            self.table.exclude(group, slot, False)
        for group in groups:
            self.table.exclude(group, slot, True)
        self._excluded[slot] = groups

    def _groups_without(self, slot: int) -> frozenset[int]:
        """Give the groups whose path to the region is broken; of a shared table nobody knows, its counts are of many groups each.

        The detector goes on with the numbers that groups had when it excluded them, until it takes them back.
        """
        if self._buffer is not None or self._layout.at(slot).always_serve:
            return frozenset()
        groups = self.guard.excluded(slot)
        renumbered = self._renumbered.get(slot, {})
        for old in renumbered.keys() - groups:
            del renumbered[old]
        now = (renumbered.get(group, group) for group in groups)
        return frozenset(group for group in now if group < self.table.groups)

    # ---- time

    def tick(self) -> None:
        """Do what is due: end ejections, age estimates, move homes. Every 100 ms is right; oftener does no harm."""
        now = self._now()
        with self._lock:
            self._last_tick = now
            self._tally.deadline = now + STALE_TICK
            self._ticks += 1
            if self._buffer is not None:
                self._share_waiting(now)
            if self._judges():
                self._judge_shared(now)
                for slot in self._layout.slots.values():
                    self._tell_successes(slot)
                self.guard.sweep(now)
                excluded = any(self.guard.excluded(slot) for slot in self._layout.slots.values())
                if self.guard.changed or self._inherited or not self._judging or excluded or any(self._excluded.values()):
                    self._apply_verdicts(now)
            else:  # what others judged is no fresh evidence when this process takes over
                self._judging, self._counted = False, self.table.outcomes()
            self.table.tick(now)
            self._watch_others(now)
        self._notify()

    def look(self) -> None:
        """Take in what other processes that share the table met and decided, at once and not at the next tick.

        The owner judges; in the others `on_change` tells what it decided. Call it every 5 ms (`LOOK_INTERVAL`) in all of them: without
        news it is over in a fraction of a microsecond, and in a process of its own there never are any.
        """
        if self._buffer is None or self.table.news == self._news:
            return
        with self._lock:
            self._news, now = self.table.news, self._now()
            if self._judging and self._judges():
                self._judge_shared(now)
            self._watch_others(now)
        self._notify()

    @property
    def shared(self) -> bool:
        """Say whether other processes may share the table, so that there is something to `look` at."""
        return self._buffer is not None

    def _tick_if_free(self) -> None:
        if self._lock.acquire(blocking=False):
            self._lock.release()
            self.tick()

    def _judges(self) -> bool:
        return self._buffer is None or self.table.owner == os.getpid()

    def _judge_shared(self, now: float) -> None:
        """Feed to the detector what all processes met since the last time; slots of groups stand for groups."""
        if self._buffer is None:
            return
        slots = {*self._layout.slots.values()}
        runs = [self.table.refused(slot) if slot in slots else 0 for slot in range(self.table.regions)]
        outcomes = self.table.outcomes()
        fresh, self._counted = outcomes - self._counted, outcomes
        for slot in np.flatnonzero(fresh.any(axis=(1, 2))).tolist():
            if slot in slots:  # a run that a success ended meanwhile, or that goes on, is as long as it was before and after
                self._judge_fresh(slot, fresh[slot], min(runs[slot], self.table.refused(slot)), now)
        self._judge_told(slots, now)

    def _judge_fresh(self, slot: int, fresh: NDArray[np.uint64], run: int, now: float) -> None:
        """Feed one region's outcomes. What is known of their order: the last `run` refused came after the last success.

        The others are spread evenly, and begin and end with a success: so no run is longer than one must have been.
        """
        kinds: list[list[int]] = np.minimum(fresh, 1000).astype(int).tolist()
        self._used.update({(slot, spread): now for spread, row in enumerate(kinds) if row[0]})
        succeeded = [spread for spread, row in enumerate(kinds) for _ in range(row[0])]
        failed = [(spread, kind) for spread, row in enumerate(kinds) for kind in range(1, len(row)) for _ in range(row[kind])]
        failed.sort(key=lambda failure: failure[1] == _REFUSED)
        since = min(run, sum(kind == _REFUSED for _, kind in failed))
        before, after = failed[: len(failed) - since], failed[len(failed) - since :]
        if before and len(succeeded) > 1:
            self._feed_successes(slot, [succeeded.pop()], now)
        parts = max(1, min(len(before), len(succeeded)))
        for part in range(parts):
            self._feed(slot, before[part::parts], now)
            self._feed_successes(slot, succeeded[part::parts], now)
        self._feed(slot, after, now)
        if self.guard.changed:
            self._apply_verdicts(now)

    def _feed_successes(self, slot: int, groups: list[int], now: float) -> None:
        self.guard.successes(slot, groups, vantage=LOCAL, gen=self.guard.generation(slot), now=now)

    def _feed(self, slot: int, failed: list[tuple[int, int]], now: float) -> None:
        for spread, kind in failed:
            self._judge_outcome(slot, False, CAUSES[kind - 2] if kind > 1 else None, "request", LOCAL, spread, None, now)

    def _judge_told(self, slots: Collection[int], now: float) -> None:
        """Feed to the detector who waits, in all processes."""
        told = {(slot, spread): count for (slot, spread), count in np.ndenumerate(self.table.waiting(now)) if count}
        for slot, spread in told.keys() | self._told:
            if slot in slots:
                self._judge_waiting(slot, int(told.get((slot, spread), 0)), LOCAL, spread, None, now)
        self._told = {*told}

    def _share_waiting(self, now: float) -> None:
        """Tell the owner of a shared table who waits here."""
        self._waits = {key: told for key, told in self._waits.items() if told[0] and now - told[1] < WAITING}
        counts = np.zeros((self.table.regions, 8), np.int64)
        for (slot, group), (count, _) in self._waits.items():
            counts[slot, self.table.spread(group)] += count
        if self._waits or self._waited:
            self.table.tell_waiting(counts, now)
        self._waited = bool(self._waits)

    def _watch_others(self, now: float) -> None:
        """See what other processes decided or were told by the operator, so that callbacks run in every process."""
        if self._buffer is None:
            return
        for name, slot in self._layout.slots.items():
            before, after = self._seen.get(slot), self._layout.status(slot)
            self._seen[slot] = after
            if before not in (after, None):
                self._changes.append(Change(name, before, after, "decided by another process", now))

    def start(self) -> None:
        """Tick every 100 ms in a daemon thread, for those who only pick, and `look` when the table is shared.

        Again after a fork: threads do not survive it.
        """
        if self._thread is None or not self._thread.is_alive():
            self._stopping = threading.Event()  # a new one: a fork may have copied the old one's lock held
            self._thread = threading.Thread(target=self._run, args=(self._stopping,), name="lbcore-tick", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread of `start` and wait for it."""
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def _run(self, stopping: threading.Event) -> None:
        while not stopping.wait(LOOK_INTERVAL if self.shared else TICK_INTERVAL):
            try:
                if self.shared and self._now() - self._last_tick < TICK_INTERVAL:
                    self.look()
                else:
                    self.tick()
            except Exception:
                logger.exception("tick failed; the next one tries again")

    # ---- operate

    def enable(self, region: str | Region) -> None:
        """Let a region serve again; its groups come home over 30 s."""
        self._want(region, True)

    def disable(self, region: str | Region) -> None:
        """Take a region out at once, whatever its health; it stays out until enabled."""
        self._want(region, False)

    def drain(self, region: str | Region, on: bool = True) -> None:
        """Send a region nobody new; `on=False` ends it."""
        with self._lock:
            slot, now = self.slot(region), self._now()
            with self._change(slot, "drained" if on else "undrained", now):
                self.table.set_draining(slot, on)
            self._bring_in_line(now)
        self._notify()

    def _want(self, region: str | Region, on: bool) -> None:
        with self._lock:
            slot, now = self.slot(region), self._now()
            with self._change(slot, "enabled" if on else "disabled", now):
                self.table.set_enabled(slot, on)
            self._bring_in_line(now)
        self._notify()

    def _bring_in_line(self, now: float) -> None:
        """Judge anew after what the operator did: how many regions may be ejected, and which, may have changed."""
        if self._judges():
            self._apply_verdicts(now)
        else:
            self.table.tick(now)

    @contextmanager
    def _change(self, slot: int, cause: str, now: float) -> Iterator[None]:
        before = self._layout.status(slot)
        yield
        after = self._layout.status(slot)
        if after != before:
            self._seen[slot] = after
            self._changes.append(Change(self._layout.at(slot).name, before, after, cause, now))

    def on_change(self, callback: Callable[[Change], object]) -> Callable[[], None]:
        """Call `callback(Change)` after every change of a region's status, outside the lock; what it raises is logged.

        Gives a function that ends it; a change that another thread is telling at that moment may still come.
        """
        entry = [callback]

        def end() -> None:
            with self._lock:
                if entry:
                    kept = [*self._callbacks]
                    kept.remove(entry.pop())
                    self._callbacks = kept  # another list: the old one may be in use by `_tell`

        with self._lock:
            self._callbacks = [*self._callbacks, callback]
        return end

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Let no other thread replace the table, the map or the regions while the block runs. Reports wait meanwhile: keep it short."""
        with self._lock:
            yield

    def on_publish(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call `callback()` whenever `table`, `map` or `objects` are others, under the lock and before a new region may be picked.

        For edges that hold on to them: a table that was replaced learns nothing more. Gives a function that ends it.
        """
        with self._lock:
            self._followers = [*self._followers, callback]

        def end() -> None:
            with self._lock:
                self._followers = [follower for follower in self._followers if follower is not callback]

        return end

    def _notify(self) -> None:
        """Tell the changes, in their order: while one thread tells, others, and callbacks that change something, leave theirs to it."""
        if not self._changes:
            return
        with self._lock:
            if self._telling:
                return
            self._telling = True
        try:
            while changes := self._untold():
                for change in changes:
                    self._tell(change)
        except BaseException:
            self._telling = False
            raise

    def _untold(self) -> list[Change]:
        with self._lock:
            changes, self._changes = self._changes, []
            self._telling = bool(changes)
            return changes

    def _tell(self, change: Change) -> None:
        logger.info("%s: %s -> %s (%s)", change.region, change.before, change.after, change.cause)
        for callback in self._callbacks:
            try:
                callback(change)
            except Exception:
                logger.exception("on_change callback %r raised", callback)

    def set_regions(self, regions: Iterable[Region]) -> None:
        """Replace the list of regions while serving; those that stay keep their health and what was learned.

        ValueError, with nothing changed, for no or repeated regions, or when the table is shared with other processes.
        """
        wanted = _distinct(regions)
        with self._lock:
            if self._buffer is not None and [r.name for r in wanted] != [r.name for r in self.regions]:
                raise ValueError("a table shared by processes keeps its regions: restart the workers with the new list")
            now, before = self._now(), {name: self._layout.status(slot) for name, slot in self._layout.slots.items()}
            if self._layout.has_room(sum(region.name not in before for region in wanted)):
                self._update(wanted)  # first, so that there is no moment without any region
                self._remove(before.keys() - {region.name for region in wanted})
            else:
                self._move(self.map, wanted)
            for name, slot in self._layout.slots.items():
                self._seen[slot] = after = self._layout.status(slot)
                if after != before.get(name, after):
                    cause = "enabled" if self._layout.at(slot).enabled else "disabled"
                    self._changes.append(Change(name, before[name], after, cause, now))
            self._bring_in_line(now)
        self._notify()

    def _remove(self, names: Collection[str]) -> None:
        for name in names:
            self._forget(self._layout.remove(name))
        if names:  # once for all: those who follow prepare much
            self._publish()

    def _forget(self, slot: int) -> None:
        self._tally.calm(slot, False)
        self._tally.take(slot)
        self.guard.reset(slot)
        self._excluded.pop(slot, None)
        self._renumbered.pop(slot, None)

    def _update(self, wanted: Sequence[Region]) -> None:
        told = self._layout.update(wanted)
        self._publish()
        for slot in told:  # last: from here on a new one may be picked
            self.table.set_enabled(slot, self._layout.at(slot).enabled)

    def _publish(self) -> None:
        self._picker.replace(self.table, self.map, self._layout.objects)
        for follower in self._followers:
            try:
                follower()
            except Exception:
                logger.exception("on_publish callback %r raised", follower)

    # ---- tables

    def set_locate(self, locate: str | os.PathLike[str] | PrefixMap | None) -> None:
        """Swap the database while serving; what groups of the same key learned is kept. Errors as the constructor's."""
        geo, prefixes = _open_map(locate)
        with self._lock:
            self._move(prefixes, self.regions)
            self._bring_in_line(self._now())
            self._geo = geo

    def reload_locate(self) -> bool:
        """Read the database file again if it changed; True when it did. A bad new file raises and leaves the old in use."""
        geo = self._geo
        if geo is None or not geo.reload():
            return False
        with self._lock:
            if geo is self._geo:
                self._move(geo.map, self.regions)
                self._bring_in_line(self._now())
        return True

    def _settle(self, layout: Layout) -> None:
        self._layout = layout
        self._excluded: dict[int, frozenset[int]] = {}
        self._renumbered: dict[int, dict[int, int]] = {}  # by slot: groups that were excluded under another map's numbers
        self._inherited: dict[int, float] = {}  # by slot: until when the tier stays that another process set
        self._seen = {slot: layout.status(slot) for slot in layout.slots.values()}
        self._counted, self._news = layout.table.outcomes(), layout.table.news
        self._tally = Tally(layout.table, layout.map, layout.slots, self._now, self.guard.resolution, self._buffer is not None)
        self._tally.deadline = self._last_tick + STALE_TICK

    def _move(self, prefixes: PrefixMap, regions: Sequence[Region]) -> None:
        """Carry everything over to a new table, then swap the Picker's pointer; picks in between use the old one."""
        if self._buffer is not None:
            raise ValueError("a table shared by processes keeps its size: restart the workers with the new regions or database")
        for slot in self._layout.slots.values():
            self._tell_successes(slot)
        now, before, renumbered = self._now(), self._layout, self._renumber(prefixes)
        self._settle(before.moved(prefixes, regions, now))
        self._renumbered = renumbered
        for name, slot in before.slots.items():
            if name not in self._layout.slots:
                self._forget(slot)
        self.table.tick(now)
        self._publish()

    def _renumber(self, prefixes: PrefixMap) -> dict[int, dict[int, int]]:
        if prefixes is self.map:
            return self._renumbered
        to_group = state.index_keys(self.map.keys, prefixes.keys).tolist()
        return {slot: self._translate(slot, to_group) for slot in self._layout.slots.values() if self.guard.excluded(slot)}

    def _translate(self, slot: int, to_group: list[int]) -> dict[int, int]:
        renumbered = self._renumbered.get(slot, {})
        last = {group: renumbered.get(group, group) for group in self.guard.excluded(slot)}
        return {group: to_group[now] if now < len(to_group) else now for group, now in last.items()}

    # ---- remember and tell

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was learned, with wall-clock time, region names and group keys; whole or not at all (fsync, rename)."""
        with self._lock:
            names = [region.name if region else "" for region in self._layout.objects]
            data = state.pack(names, self.map.keys, self.table.snapshot(self._now()), time.time())
        state.write(Path(path), data)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over what `save` wrote, matched by region name and group key, aged by the wall-clock time since.

        Raises ValueError naming the file, with nothing changed, when it is damaged; OSError when it cannot be read.
        """
        saved = state.read(Path(path))
        with self._lock:
            to_region = np.array([self._layout.slots.get(name, 65535) for name in saved.regions], np.uint16)
            age = min(max(0.0, time.time() - saved.at), 9e6)
            try:
                self.table.restore(saved.snapshot, self._now(), age, state.index_keys(saved.keys, self.map.keys), to_region)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            self.table.tick(self._now())

    def stats(self) -> dict[str, Any]:
        """Give counters and the status of every region as plain JSON types."""
        with self._lock:
            homes = np.bincount(self.table.homes(), minlength=65536)
            return {
                "groups": self.table.groups,
                "fail_open": self.fail_open,
                "suspect": self.guard.suspicion is not None,
                "samples": self._samples,
                "ticks": self._ticks,
                "bytes": self.table.nbytes,
                "regions": {r.name: {"status": self.status(r), "home_groups": int(homes[self.slot(r)])} for r in self.regions},
            }


def _distinct(regions: Iterable[Region]) -> list[Region]:
    wanted = list(regions)
    names = [region.name for region in wanted]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"every region may be named once, got {', '.join(twice)} more often")
    if not wanted:
        raise ValueError("a Balancer needs at least one region, got none")
    return wanted


def _open_map(locate: str | os.PathLike[str] | PrefixMap | None) -> tuple[GeoIP | None, PrefixMap]:
    if locate is None or isinstance(locate, (str, os.PathLike)):
        geo = GeoIP(locate)
        return geo, geo.map
    return None, locate


_balancers: weakref.WeakSet[Balancer] = weakref.WeakSet()


def _after_fork() -> None:
    """A lock that another thread held at the fork would never be released in the child."""
    for balancer in _balancers:
        balancer._lock = threading.RLock()
        balancer._thread = None
        balancer._telling = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
