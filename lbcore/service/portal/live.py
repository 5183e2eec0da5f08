"""Live: the service as it is now and as it was over the last hour, gathered once a second for all who look at the Overview.

    Plane: state, statuses, reports, events, the Balancer's table --> take --> Overview --> its parts, rendered once --> every open page

Figures over time are in memory alone, one value every 5 s; a primary that starts anew begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lbcore.errors import LbcoreError
from lbcore.region import catalogue
from lbcore.service.capacity import units_live
from lbcore.service.configuration import Report
from lbcore.service.logbook import Entry
from lbcore.service.logbook import Event as Written
from lbcore.service.model import Location, ServiceState
from lbcore.service.portal import views
from lbcore.service.portal.charts import Series
from lbcore.service.portal.clients import Clients, Standing
from lbcore.service.portal.map import Flow, Site
from lbcore.service.portal.pages import event, part
from lbcore.service.portal.timeline import timeline
from lbcore.service.portal.words import percent, tone

if TYPE_CHECKING:
    from lbcore.service.plane import Plane
    from lbcore.service.reports import EdgeReport

__all__ = ["NAMES", "Board", "Live", "Ring"]

logger = logging.getLogger(__name__)

TICK = 1.0  # seconds between two looks at the service
STEP = 5.0  # seconds between two values of a series
SPANS = (300.0, 900.0, 3600.0)  # seconds that charts show: the least that holds what there is
CALLS = 30.0  # seconds over which calls are shared out among regions
HEARTBEAT = 15.0  # seconds without news after which a stream says that it lives
EVENTS = 200  # that are looked at, of which the newest are shown
NAMES = ("notices", "map", "regions", "groups", "charts", "edges", "events")
SYNC = {"Stale": "is behind", "Orphaned": "cannot reach the primary", "Empty": "has no configuration"}
_OUT = frozenset({"Degraded", "Stopped", "Inactive"})


class Ring:
    """Values of each region at even distances in time, for at most as long as the longest span."""

    def __init__(self, step: float = STEP, span: float = SPANS[-1]) -> None:
        self.step, self._rows = step, deque[Mapping[str, float | None]](maxlen=round(span / step) + 1)

    def add(self, row: Mapping[str, float | None]) -> None:
        """Add the values of one moment, by region."""
        self._rows.append(dict(row))

    @property
    def span(self) -> float:
        """Give the seconds that a chart of this shows."""
        held = (len(self._rows) - 1) * self.step
        return next((span for span in SPANS if held <= span), SPANS[-1])

    def of(self, region: str, span: float) -> tuple[float | None, ...]:
        """Give a region's values over the last `span` seconds, oldest first; None where none is known."""
        length = round(span / self.step) + 1
        known = [row.get(region) for row in self._rows][-length:]
        return (*((None,) * (length - len(known))), *known)

    def names(self, span: float) -> set[str]:
        """Give the regions of which something is known in the last `span` seconds."""
        rows = [*self._rows][-round(span / self.step) - 1 :]
        return {region for row in rows for region, value in row.items() if value is not None}

    def __bool__(self) -> bool:
        return any(value is not None for row in self._rows for value in row.values())


class Calls:
    """Which regions answer calls, from the counts that edges report."""

    def __init__(self, over: float = CALLS) -> None:
        self._over = over
        self._before: dict[tuple[str, str], int] = {}
        self._taken: deque[tuple[float, Mapping[str, int]]] = deque()

    def take(self, reports: Sequence[EdgeReport], now: float) -> Mapping[str, float]:
        """Take what edges report now; give each region's share of the calls of the last seconds, nothing when there were none."""
        fresh: dict[str, int] = {}
        for report in reports:
            for region, seen in report.regions.items():
                before = self._before.get((report.edge, region))
                self._before[report.edge, region] = seen.calls
                if before is not None:  # an edge that starts anew counts from 0
                    fresh[region] = fresh.get(region, 0) + (seen.calls - before if seen.calls >= before else seen.calls)
        known = {report.edge for report in reports}
        self._before = {key: count for key, count in self._before.items() if key[0] in known}
        self._taken.append((now, fresh))
        while now - self._taken[0][0] > self._over:
            self._taken.popleft()
        total: dict[str, int] = {}
        for _, row in self._taken:
            for region, count in row.items():
                total[region] = total.get(region, 0) + count
        whole = sum(total.values())
        return {region: count / whole for region, count in total.items()} if whole else {}


@dataclass(slots=True)
class Seen:
    """Since when a region has its status, and why. since: wall-clock seconds, None = since before this process began"""

    status: str
    since: float | None = None
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """What was read of the store for one look."""

    state: ServiceState | None
    revision: str
    events: Sequence[Written]
    history: Sequence[Entry]
    fenced: bool


@dataclass
class Live:
    """Gathers what the Overview shows. wall: wall-clock seconds"""

    plane: Plane
    wall: Callable[[], float] = time.time
    overview: views.Overview = field(init=False)

    def __post_init__(self) -> None:
        self.board = Board()
        self.overview = views.Overview(datetime.fromtimestamp(self.wall(), UTC), "", ())
        self._clients, self._calls = Clients(), Calls()
        self._latency, self._share, self._sizes = Ring(), Ring(), Ring()
        self._stepped = -math.inf
        self.seen: dict[str, Seen] = {}

    async def run(self) -> None:
        """Look every second until cancelled; what goes wrong is logged, and the next look tries again."""
        try:
            while True:
                try:
                    await self.take()
                    if self.board.watched:
                        self.board.show(self.overview)
                except LbcoreError as error:
                    logger.warning("the Overview was not renewed: %s", error)
                except Exception:
                    logger.exception("the Overview was not renewed")
                await asyncio.sleep(TICK)
        finally:
            self.board.close()

    async def take(self) -> views.Overview:
        """Look now, and give what there is to see."""
        stored = await asyncio.to_thread(self._read)
        now = self.plane.now
        statuses = dict(self.plane.statuses()) if stored.state else {}
        self._notice(statuses)
        edges = list(self.plane.edges())
        standing = self._clients.look(self.plane.lb, now) if statuses else Standing((), {}, {})
        calls = self._calls.take(edges, now)
        if now - self._stepped >= STEP:
            self._stepped = now if now - self._stepped > 2 * STEP else self._stepped + STEP
            self._latency.add(standing.ms)
            self._share.add(calls)
            self._sizes.add(standing.sizes)
        self.overview = self._overview(stored, statuses, standing, calls, edges, now)
        return self.overview

    def _read(self) -> Stored:
        store = self.plane.store
        latest = store.revisions.latest()
        return Stored(
            store.state(), str(latest.number) if latest else "", store.events.since(limit=EVENTS), store.history(limit=EVENTS),
            store.fenced is not None,
        )  # fmt: skip

    def _notice(self, statuses: Mapping[str, str]) -> None:
        """Note when a region's status changed, and why."""
        for region, status in statuses.items():
            before = self.seen.get(region)
            if before is None or before.status != status:
                self.seen[region] = Seen(status, None if before is None else self.wall())
            if status == "Degraded":
                self.seen[region].cause = self.plane.cause(region)
        self.seen = {region: seen for region, seen in self.seen.items() if region in statuses}

    # ---- what it looks like

    def _overview(
        self, stored: Stored, statuses: Mapping[str, str], standing: Standing, calls: Mapping[str, float], edges: Sequence[EdgeReport],
        now: float,
    ) -> views.Overview:  # fmt: skip
        at = datetime.fromtimestamp(self.wall(), UTC)
        if stored.state is None:
            return views.Overview(at, stored.revision, (), notices=(views.Notice("Info", "There is no service yet."),))
        state, span = stored.state, self._latency.span
        there = _there(state)
        shown = Names({each.name: each.display_name for each in there})
        counted = bool(self._share)
        shares, newest = (self._share, calls) if counted else (self._sizes, standing.sizes)
        regions = tuple(self._region(state, each, statuses, standing, newest, span) for each in there)
        return views.Overview(
            at=at, revision=stored.revision, regions=regions, notices=tuple(self._notices(stored, regions, standing)),
            sites=tuple(_site(each, view) for each, view in zip(there, regions, strict=True) if _place(each)),
            flows=tuple(_flows(standing, {each.name: each for each in there})),
            groups=tuple(
                views.GroupRow(one.key, shown[one.region] if one.region else "none", _finite(one.ms), one.size, one.measured, one.reason)
                for one in standing.groups
            ),
            events=timeline(stored.events, stored.history, shown),
            latency=tuple(_series(self._latency, shown, span)), share=tuple(_series(shares, shown, span)),
            span=span, share_of="calls" if counted else "addresses", edges=tuple(self._edge(one, now) for one in edges),
        )  # fmt: skip

    def _region(
        self, state: ServiceState, each: Location, statuses: Mapping[str, str], standing: Standing, shares: Mapping[str, float], span: float
    ) -> views.Region:
        runs, report, seen = state.of(each.name), self.plane.configuration.reports.get(each.name), self.seen.get(each.name)
        status = statuses.get(each.name, "Inactive")
        since = datetime.fromtimestamp(seen.since, UTC) if seen and seen.since is not None and tone(status) != "good" else None
        up = units_live(each, self.plane.facts.live.get(each.name)) if tone(status) == "good" else 0
        held, lag = _lag(report)
        return views.Region(
            each.name, each.display_name, status, each.name == state.service.primary.name, seen.cause if seen else "", since,
            runs.provisioning_state, each.units, up, shares.get(each.name, 0.0 if shares else None), standing.ms.get(each.name),
            self._latency.of(each.name, span), held, report.state if report else "Unknown", lag,
        )  # fmt: skip

    def _notices(self, stored: Stored, regions: Sequence[views.Region], standing: Standing) -> list[views.Notice]:
        found = []
        if stored.fenced:
            found.append(views.Notice("Error", "This primary is fenced: another one has been promoted. It changes nothing any more."))
        if self.plane.lb.fail_open and any(region.status in _OUT for region in regions):
            found.append(views.Notice("Error", "No region is up: clients are sent to whichever may still answer."))
        away = sum(group.size for group in standing.groups if group.away)
        for region in regions:
            if region.status in _OUT and region.provisioning_state in ("Succeeded", "Updating", "Failed"):
                why = f": {region.cause}" if region.cause else ""
                since = f" since {region.since:%H:%M:%S} UTC" if region.since else ""
                found.append(views.Notice("Error", f"{region.display_name} is out of rotation{since}{why}."))
            if (behind := SYNC.get(region.sync_state)) is not None:
                found.append(views.Notice("Warning", f"The gateway of {region.display_name} {behind}."))
            if region.provisioning_state in ("Failed", "TerminationFailed"):
                found.append(views.Notice("Error", f"{region.display_name}: the last change failed. Save tries again."))
        if away >= 0.005 and not self.plane.lb.fail_open:
            found.append(views.Notice("Warning", f"Groups with {percent(away)} of all addresses are away from their closest region."))
        if not stored.revision:
            found.append(views.Notice("Warning", "No configuration has been published: gateways have nothing to serve."))
        return found

    def _edge(self, report: EdgeReport, now: float) -> views.Edge:
        age = max(0.0, now - report.received)
        up = sum(seen.status in ("up", "degraded") for seen in report.regions.values())
        inflight = sum(seen.inflight for seen in report.regions.values())
        return views.Edge(report.edge, "Online" if age < 10.0 else "Warning", _rounded(age), str(report.rotation or ""), up,
                          len(report.regions), inflight)  # fmt: skip


class Names(dict[str, str]):
    """Regions' names for people, also of those that are gone."""

    def __missing__(self, name: str) -> str:
        known = catalogue().get(name)
        return known.display_name if known else name


def _series(ring: Ring, shown: Names, span: float) -> list[Series]:
    """Give a line for each region that is there, and for each that was a while ago."""
    gone = sorted(ring.names(span) - shown.keys())
    return [Series(shown[name], ring.of(name, span)) for name in (*shown, *gone)]


def _there(state: ServiceState) -> list[Location]:
    """Give the regions that are wanted, and those that are leaving."""
    wanted = {each.name for each in state.service.locations}
    leaving = (one.deployed for name, one in state.states.items() if name not in wanted and one.deployed is not None)
    return [*state.service.locations, *leaving]


def _place(each: Location) -> tuple[float, float] | None:
    if each.lat is not None and each.lon is not None:
        return each.lat, each.lon
    known = catalogue().get(each.name)
    return (known.lat, known.lon) if known else None


def _site(each: Location, region: views.Region) -> Site:
    lat, lon = _place(each) or (0.0, 0.0)
    moving = region.provisioning_state not in ("Succeeded", "Failed")
    return Site(each.display_name, lat, lon, region.provisioning_state if moving else region.status, region.primary)


def _flows(standing: Standing, there: Mapping[str, Location]) -> list[Flow]:
    found = []
    for group in standing.groups:
        to = there.get(group.region)
        place = _place(to) if to else None
        if to is not None and place is not None and math.isfinite(group.lat) and math.isfinite(group.ms):
            found.append(Flow(group.key, group.lat, group.lon, to.display_name, *place, group.ms, group.size, group.away))
    return found


def _lag(report: Report | None) -> tuple[str, float | None]:
    """Give the revision that a region says it serves, and how many seconds it is behind, None when it is not."""
    if report is None:
        return "", None
    held = str(report.held.number) if report.held else ""
    return held, _rounded(report.lag) if report.state != "InSync" else None


def _rounded(seconds: float) -> float:
    """Give seconds as they are shown: what moves every second would have the page sent every second."""
    return float(round(seconds)) if seconds < 15 else float(5 * round(seconds / 5))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Board:
    """The Overview's parts as they were rendered last, and those who wait for what changes. One loop.

    Each change has a number, which a browser that reconnects names as the last that it has.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._parts, self._number = clock, dict[str, tuple[int, bytes]](), 0
        self._run = f"{time.time_ns():x}"  # numbers of another process mean nothing here
        self._news = asyncio.Event()
        self._closed = False
        self.watched = 0

    def show(self, overview: views.Overview) -> None:
        """Render the parts, once for all, and wake those who wait for one that changed."""
        for name in NAMES:
            data = event(name, part(name, overview))
            if self._parts.get(name, (0, b""))[1] != data:
                self._number += 1
                self._parts[name] = self._number, data
        self._wake()

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    @asynccontextmanager
    async def watching(self, overview: views.Overview) -> AsyncIterator[None]:
        """Have the parts rendered for the time of an `async with`."""
        if not self.watched:
            self.show(overview)
        self.watched += 1
        try:
            yield
        finally:
            self.watched -= 1

    async def stream(self, last: str, alive: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
        """Give server-sent events: every part that is newer than `last`, then each as it changes, until `alive` says no."""
        number, said = self._after(last), self._clock()
        yield b"retry: 2000\n\n"
        while not self._closed and await alive():
            news = self._news
            fresh = sorted(each for each in self._parts.values() if each[0] > number)
            if fresh:
                number, said = fresh[-1][0], self._clock()
                yield b"".join(data for _, data in fresh[:-1]) + f"id: {self._run}.{number}\n".encode() + fresh[-1][1]
            elif self._clock() - said >= HEARTBEAT:
                said = self._clock()
                yield b": still here\n\n"
            with suppress(TimeoutError):
                async with asyncio.timeout(2 * TICK):
                    await news.wait()

        if not self._closed:
            ended = views.Notice("Warning", "You have been signed out, and the figures stand still. Load the page again to sign in.")
            yield event("notices", part("notices", views.Overview(datetime.now(UTC), "", (), notices=(ended,))))

    def _after(self, last: str) -> int:
        run, _, number = last.rpartition(".")
        return int(number) if run == self._run and number.isascii() and number.isdigit() and len(number) < 16 else 0
