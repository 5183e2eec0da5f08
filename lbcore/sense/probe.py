"""The Prober: probes every region's gateway on a fixed grid of instants and tells the Balancer what it saw.

A probe starts at origin + k x interval, however long the ones before took: start to start, without drift. A probe ends before the next of
the same target begins, because its timeout is shorter than the interval. Results go to `lb.report` and, when ok, `lb.observe`; while it
runs, the Prober also ticks the Balancer ten times a second. `checks` does one probe, `monitor` says how.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from lbcore.errors import ConfigError, UnknownRegionError, Violation
from lbcore.region import Region, canonical
from lbcore.sense.checks import LOCAL, Check, ProbeResult, Streak, check
from lbcore.sense.monitor import STATUS_PATH, URL_FORM, Monitor, Target

__all__ = ["LOCAL", "STATUS_PATH", "Balancing", "Monitor", "ProbeResult", "Prober", "Target", "check"]

TICK = 0.1
LATE_MS = 50.0  # a sample taken while the event loop ran later than this, and than half the sample, measured the loop
FIRST_ROUND_SPACING = 0.002  # hundreds of connections opened at one instant would measure this process, not the paths

logger = logging.getLogger(__name__)


class Balancing(Protocol):
    """What the Prober needs of a Balancer."""

    @property
    def regions(self) -> Sequence[Region]:
        """Give the regions as they are now; another tuple when they change."""

    @property
    def clock(self) -> Callable[[], float]:
        """Give the function that tells monotonic seconds."""

    def status(self, region: str, /) -> str:
        """Give "disabled" for a region that is not to be probed, anything else for others."""

    def observe(self, region: str, ms: float, /, *, vantage: str | None = None) -> object:
        """Learn one sample, ms."""

    def generation(self, region: str, /) -> int:
        """Give what work that begins now reports as its `gen`."""

    def report(
        self, region: str, ok: bool, /, *, cause: str | None, vantage: str | None, source: str, gen: int | None
    ) -> object:
        """Take one outcome."""

    def tick(self) -> object:
        """Do what is due."""


class Prober:
    """Probe the gateways of a Balancer's regions, from one vantage.

    monitor: how; gives max_concurrency too.  monitors: another Monitor for some regions, by name
    targets: another URL than `Region.gateway` for some regions, by name
    vantage: name of this node in reports
    anchors: URLs probed only to know whether this vantage's own uplink works; any HTTP status will do
    on_anchors: called with `anchors_ok` after each anchor's probe; by default the Balancer's `control`, where it has one
    seed: of the jitter; the same seed and name give the same phase
    probe: does one probe; by default `checks.check`
    Regions that are disabled or `always_serve`, or have no URL, are not probed. Regions may come and go while it runs.
    Raises ConfigError for URLs that cannot be probed, all of them at once; of regions added later they are logged.
    """

    def __init__(
        self,
        lb: Balancing,
        *,
        monitor: Monitor | None = None,
        monitors: Mapping[str, Monitor] | None = None,
        targets: Mapping[str, str] | None = None,
        vantage: str = "local",
        anchors: Sequence[str] = (),
        seed: int = 0,
        on_anchors: Callable[[bool], object] | None = None,
        probe: Check = check,
    ) -> None:
        self._lb, self._probe = lb, probe
        self._on_anchors: Callable[[bool], object] = on_anchors or getattr(lb, "control", None) or (lambda ok: None)
        self.monitor = monitor or Monitor()
        self.vantage, self._seed = vantage, seed
        self._monitors = {canonical(name): each for name, each in (monitors or {}).items()}
        if (expect := getattr(lb, "expect_probes", None)) is not None:
            paces = [(each.interval, each.timeout) for each in (self.monitor, *self._monitors.values())]
            expect(min(interval for interval, _ in paces), max(timeout for _, timeout in paces))
        self._urls = {canonical(name): url for name, url in (targets or {}).items()}
        self._results: dict[str, ProbeResult] = {}
        self._streaks: dict[str, Streak] = {}
        self._anchor_results: dict[str, ProbeResult] = {}
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], object] = lambda: None
        self._running = self._tick_fails = False
        self._lateness = _Lateness()
        self._anchors = [*anchors]
        self._known: tuple[Region, ...] | None = None
        self._targets: list[Target] = []
        violations = self._refresh()
        if violations:
            raise ConfigError(violations)

    @property
    def results(self) -> Mapping[str, ProbeResult]:
        """Give the last result of each probed region, by name; a copy."""
        return dict(self._results)

    @property
    def streaks(self) -> Mapping[str, Streak]:
        """Give how the last probes of each region ended, by name; a copy."""
        return dict(self._streaks)

    @property
    def anchor_results(self) -> Mapping[str, ProbeResult]:
        """Give the last result of each anchor, by URL; a copy."""
        return dict(self._anchor_results)

    @property
    def anchors_ok(self) -> bool:
        """Say whether this vantage's uplink works: some anchor answered last time, or none was asked yet."""
        return not self._anchor_results or any(result.ok for result in self.anchor_results.values())

    async def first_round(self, deadline: float | None = None) -> Mapping[str, ProbeResult]:
        """Probe everything once and give the results, before serving.

        deadline: seconds, by default twice the timeout; what has not answered then has no result.
        """
        self._refresh_or_log()
        slots = asyncio.Semaphore(self.monitor.max_concurrency)
        beats = asyncio.create_task(self._beat(lambda: None))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * self.monitor.timeout if deadline is None else deadline), asyncio.TaskGroup() as group:
                    for target in self._targets:
                        group.create_task(self._probe_once(target, slots))
                        await asyncio.sleep(FIRST_ROUND_SPACING)  # slept here, and not by each task, it yields when the loop is behind
        finally:
            beats.cancel()
            await asyncio.wait([beats])
        self._tick()
        return self.results

    async def run(self) -> None:
        """Probe until cancelled; ticks the Balancer meanwhile. Raises RuntimeError when it runs already."""
        if self._running:
            raise RuntimeError("this Prober runs already")
        self._running = True
        tasks: dict[Target, asyncio.Task[None]] = {}
        slots = asyncio.Semaphore(self.monitor.max_concurrency)
        try:
            async with asyncio.TaskGroup() as group:
                await self._beat(lambda: self._follow(group, tasks, slots))
        finally:
            self._running = False

    async def _beat(self, follow: Callable[[], object]) -> None:
        grid = _Grid(TICK)
        self._lateness.watch(grid)
        while True:
            self._lateness.note(await grid.wait())
            self._refresh_or_log()
            follow()
            self._tick()

    def start(self, *, first_round: bool = True) -> None:
        """Run in a daemon thread; returns after the first round, unless told not to wait for one. Does nothing when started already."""
        if self._thread is not None and self._thread.is_alive():
            return
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run_thread, args=(first_round, ready), name="lbcore-prober", daemon=True)
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """End the thread of `start` and wait for it; probes under way are dropped without a report."""
        thread, self._thread = self._thread, None
        if thread is not None and thread.is_alive():
            self._stop()
            if thread is not threading.current_thread():  # a callback of the Balancer runs in it
                thread.join()

    def _run_thread(self, first_round: bool, ready: threading.Event) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            asyncio.run(self._run_until_stopped(first_round, ready))

    async def _run_until_stopped(self, first_round: bool, ready: threading.Event) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            if first_round:
                await self.first_round()
        finally:
            ready.set()
        await self.run()

    def _refresh(self) -> list[Violation]:
        """Bring the targets up to date with the Balancer's regions; gives what could not be made a target."""
        regions = tuple(self._lb.regions)
        if regions == self._known:
            return []
        violations: list[Violation] = []
        targets = [self._target(url, url, violations, anchor=True) for url in self._anchors]
        for region in regions:
            url = self._urls.get(region.name, region.gateway)
            if url and not region.always_serve:
                targets.append(self._target(region.name, url, violations))
        self._known, self._targets = regions, [target for target in targets if target is not None]
        probed = {target.name for target in self._targets}
        for name in self._results.keys() - probed:
            del self._results[name]
            self._streaks.pop(name, None)
        return violations

    def _refresh_or_log(self) -> None:
        for violation in self._refresh():
            logger.error("not probed: %s", violation)

    def _target(self, name: str, url: str, violations: list[Violation], *, anchor: bool = False) -> Target | None:
        try:
            return Target.parse(name, url, self._anchor_monitor() if anchor else self._monitors.get(name, self.monitor), anchor=anchor)
        except ValueError:
            violations.append(Violation("anchors" if anchor else f"{name}.gateway", url, URL_FORM))
            return None

    def _anchor_monitor(self) -> Monitor:
        monitor = self.monitor
        return Monitor(path="/", interval=monitor.interval, timeout=monitor.timeout, jitter=monitor.jitter, verify=False)

    def _follow(self, group: asyncio.TaskGroup, tasks: dict[Target, asyncio.Task[None]], slots: asyncio.Semaphore) -> None:
        wanted = {*self._targets}
        for gone in tasks.keys() - wanted:
            tasks.pop(gone).cancel()
        for target in self._targets:
            if target not in tasks:
                tasks[target] = group.create_task(self._probe_for_ever(target, slots), name=f"probe {target.name}")

    async def _probe_for_ever(self, target: Target, slots: asyncio.Semaphore) -> None:
        grid = _Grid(target.monitor.interval, self._phase(target))
        while True:
            await grid.wait()
            await self._probe_once(target, slots)

    async def _probe_once(self, target: Target, slots: asyncio.Semaphore) -> None:
        try:
            if not target.anchor and self._lb.status(target.name) == "disabled":
                return
            async with slots:
                started, gen = asyncio.get_running_loop().time(), 0 if target.anchor else self._lb.generation(target.name)
                result = await self._probe(target, self._lb.clock)
            self._deliver(target, result, gen, self._lateness.since(started))
        except UnknownRegionError:
            pass  # removed while the probe was under way
        except Exception:
            logger.exception("probe of %s", target.name)

    def _deliver(self, target: Target, result: ProbeResult, gen: int, late: float) -> None:
        if result.cause == "timeout" and late > target.monitor.timeout / 4:
            result = replace(result, cause=LOCAL, detail=f"this process ran {late:.3f} s late")
        if target.anchor:
            self._note_anchor(result)
            return
        self._results[target.name] = result
        if result.cause == LOCAL:
            return
        last = self._streaks.get(target.name)
        self._streaks[target.name] = Streak(result.ok, 1 + (last.times if last is not None and last.ok == result.ok else 0), result.cause)
        if result.sample is not None and late * 1e3 <= max(LATE_MS, result.sample / 2):
            self._lb.observe(target.name, result.sample, vantage=self.vantage)
        self._lb.report(target.name, result.ok, cause=result.cause, vantage=self.vantage, source="probe", gen=gen)

    def _note_anchor(self, result: ProbeResult) -> None:
        if result.cause != LOCAL:
            self._anchor_results[result.region] = result
            self._on_anchors(self.anchors_ok)

    def _tick(self) -> None:
        try:
            self._lb.tick()
            self._tick_fails = False
        except Exception:
            if not self._tick_fails:  # ten a second: the first of a row says it all
                logger.exception("tick")
            self._tick_fails = True

    def _phase(self, target: Target) -> float:
        digest = hashlib.blake2b(f"{self._seed} {target.name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64 * target.monitor.jitter * target.monitor.interval


class _Grid:
    """Wait for the instants origin + k x interval, each computed afresh so that no error adds up.

    An instant that passes while its user is busy is due at once; of several, only the last.
    """

    def __init__(self, interval: float, phase: float = 0.0) -> None:
        self.now = asyncio.get_running_loop().time
        self._interval, self._origin, self._count = interval, self.now() + phase, -1

    @property
    def due(self) -> float:
        """Give the instant that is waited for, or was last."""
        return self._origin + self._count * self._interval

    async def wait(self) -> float:
        """Wait for the next instant and give by how much it was missed, seconds."""
        self._count = max(self._count + 1, self._latest())
        await asyncio.sleep(self.due - self.now())
        late = self.now() - self.due
        self._count = max(self._count, self._latest())
        return late

    def _latest(self) -> int:
        return math.floor((self.now() - self._origin) / self._interval)


class _Lateness:
    """Remember how late the event loop ran what was due.

    A probe that this process starved (another thread held the interpreter, the machine was paused) says nothing of its target.
    Source: Lifeguard, arXiv 1707.00788 (a node that is slow itself should not accuse others).
    """

    def __init__(self) -> None:
        self._beats: deque[tuple[float, float]] = deque(maxlen=round(60 / TICK))
        self._grid: _Grid | None = None

    def watch(self, grid: _Grid) -> None:
        self._grid = grid

    def note(self, late: float) -> None:
        if self._grid is not None:
            self._beats.append((self._grid.now(), late))

    def since(self, start: float) -> float:
        """Give the longest delay since then, seconds, counting a beat that is overdue just now."""
        late = 0.0 if self._grid is None else self._grid.now() - self._grid.due
        for at, delay in reversed(self._beats):
            if at < start:
                break
            late = max(late, delay)
        return late
