"""Reports: what edges say of the regions, as far as it can be believed: bounded, checked, and forgotten when it gets old.

    {"edge", "at", "rotation": "1.7", "regions": {name: {"status", "calls", "failures", "inflight"}},
     "learned": base64 of what Balancer.save writes, "idle": [names], "events": [{"at", "kind", "region", "before", "after", "cause"}]}

calls, failures: since the edge's start; inflight: now. A status is a word of `Balancer.status`, or "checking" before the first probe.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lbcore.region import canonical
from lbcore.service.codes import Violation, refusal
from lbcore.service.configuration import LARGEST_NUMBER, number_of
from lbcore.service.facts import shown
from lbcore.service.logbook import clean
from lbcore.service.revisions import Number

__all__ = ["FRESH", "STATUSES", "EdgeEvent", "EdgeReport", "Edges", "Seen", "read_report"]

FRESH = 10.0  # seconds for which a report holds
HEARD = 5.0  # seconds after a start of the primary in which every edge that lives has reported
EVENTS_AT_ONCE, EVENTS_A_SECOND = 20.0, 0.5
STATUSES = ("checking", "up", "degraded", "ejected", "down", "disabled", "draining")
MOST_REGIONS, MOST_EVENTS, MOST_EDGES = 10_000, 100, 1000
MOST_LEARNED = 1 << 20  # bytes, in base64
_EDGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
KEYS = ("edge", "at", "rotation", "regions", "learned", "idle", "events")


@dataclass(frozen=True, slots=True)
class Seen:
    """What an edge sees of a region. calls, failures: since its start; inflight: calls under way now"""

    status: str
    calls: int = 0
    failures: int = 0
    inflight: int = 0


@dataclass(frozen=True, slots=True)
class EdgeEvent:
    """Something that happened to a region as an edge saw it, most often another status. at: wall-clock seconds of the edge"""

    at: float
    kind: str
    region: str
    before: str
    after: str
    cause: str


@dataclass(frozen=True, slots=True)
class EdgeReport:
    """What one edge said last.

    at: its wall-clock seconds;  received: when it came, monotonic seconds;  rotation: the one it follows, None = none yet
    idle: draining regions with nothing under way;  learned: what `Balancer.save` wrote, b"" = not sent
    """

    edge: str
    at: float
    rotation: Number | None
    regions: Mapping[str, Seen]
    learned: bytes = field(default=b"", repr=False)
    idle: frozenset[str] = frozenset()
    events: tuple[EdgeEvent, ...] = ()
    received: float = 0.0

    def as_dict(self, now: float) -> dict[str, Any]:
        """Give it for JSON, with its age at `now`, monotonic seconds."""
        return {
            "edge": self.edge, "age": round(max(0.0, now - self.received), 3), "rotation": str(self.rotation) if self.rotation else None,
            "regions": {
                name: {"status": one.status, "calls": one.calls, "failures": one.failures, "inflight": one.inflight}
                for name, one in self.regions.items()
            },
            "idle": sorted(self.idle),
        }  # fmt: skip


# ===== in


def read_report(edge: str, body: object, received: float) -> EdgeReport:
    """Read what an edge sent; ServiceError with every violation. edge: whose token came with it, "" = any: the body's own name then."""
    reader = _Reader()
    report = reader.report(edge, body, received)
    if reader.violations:
        raise refusal(reader.violations[:100])
    return report


class _Reader:
    """Reads one report and gathers what is wrong with it."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def report(self, edge: str, body: object, received: float) -> EdgeReport:
        table = self._table(body, "")
        for key in table:
            if key not in KEYS:
                self._wrong(f"one of {', '.join(KEYS)}", key, shown(key)[1:-1], "UnknownProperty")
        return EdgeReport(
            self._edge(edge, table.get("edge")), self._real(table.get("at"), "at"), self._rotation(table.get("rotation")),
            dict(self._regions(table.get("regions"))), self._learned(table.get("learned")),
            frozenset(self._idle(table.get("idle"))), tuple(self._events(table.get("events"))), received,
        )  # fmt: skip

    def _edge(self, bound: str, given: object) -> str:
        if not isinstance(given, str) or not _EDGE.fullmatch(given):
            self._wrong("1..63 letters, digits, dots, hyphens and underscores", given, "edge")
        elif bound and canonical(given) != canonical(bound):
            self._wrong(f"{shown(bound)}, for which the token is", given, "edge")
        return canonical(str(given)[:100])

    def _rotation(self, given: object) -> Number | None:
        if given in (None, ""):
            return None
        number = number_of(given) if isinstance(given, str) else None
        if number is None:
            self._wrong('a number such as "1.7"', given, "rotation")
        return number

    def _regions(self, given: object) -> Iterator[tuple[str, Seen]]:
        table = self._table({} if given is None else given, "regions")
        if len(table) > MOST_REGIONS:
            self._wrong(f"at most {MOST_REGIONS} regions", table, "regions")
            return
        for name, row in table.items():
            where = f"regions.{shown(name)[1:-1]}"
            one = self._table(row, where)
            status = one.get("status")
            if status not in STATUSES:
                self._wrong(f"one of {', '.join(STATUSES)}", status, f"{where}.status")
            counts = [self._whole(one.get(key, 0), f"{where}.{key}") for key in ("calls", "failures", "inflight")]
            if isinstance(status, str):
                yield canonical(name[:200]), Seen(status, *counts)

    def _learned(self, given: object) -> bytes:
        if given in (None, ""):
            return b""
        if isinstance(given, str) and len(given) <= MOST_LEARNED:
            try:
                return base64.b64decode(given, validate=True)
            except (binascii.Error, ValueError):
                pass
        self._wrong(f"base64 of at most {MOST_LEARNED} characters", given, "learned")
        return b""

    def _idle(self, given: object) -> Iterator[str]:
        for index, name in enumerate(self._list(given, MOST_REGIONS, "idle")):
            if isinstance(name, str) and len(name) <= 200:
                yield canonical(name)
            else:
                self._wrong("a region's name", name, f"idle[{index}]")

    def _events(self, given: object) -> Iterator[EdgeEvent]:
        for index, row in enumerate(self._list(given, MOST_EVENTS, "events")):
            where = f"events[{index}]"
            one = self._table(row, where)
            texts = [self._text(one.get(key) or "", f"{where}.{key}") for key in ("kind", "region", "before", "after", "cause")]
            kind, region, *words = texts
            yield EdgeEvent(self._real(one.get("at", 0.0), f"{where}.at"), kind or "RegionStatusChanged", canonical(region), *words)

    # ---- values

    def _table(self, value: object, where: str) -> Mapping[str, Any]:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return value
        self._wrong("an object", value, where)
        return {}

    def _list(self, value: object, most: int, where: str) -> list[Any]:
        if value is None:
            return []
        if isinstance(value, list) and len(value) <= most:
            return value
        self._wrong(f"a list of at most {most}", value, where)
        return []

    def _text(self, value: object, where: str) -> str:
        if isinstance(value, str) and len(value) <= 200:
            return clean(value)
        self._wrong("a text of at most 200 characters", value, where)
        return ""

    def _real(self, value: object, where: str) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12 and math.isfinite(value):
            return float(value)
        self._wrong("wall-clock seconds", value, where)
        return 0.0

    def _whole(self, value: object, where: str) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_NUMBER:
            return value
        self._wrong("a whole number, at least 0", value, where)
        return 0

    def _wrong(self, expected: str, value: object, where: str, code: str = "InvalidProperty") -> None:
        self.violations.append(Violation(code, f"expected {expected}, got {shown(value)}", where))


# ===== who said what


class Edges:
    """The last report of each edge. clock: monotonic seconds; fresh: seconds for which a report holds"""

    def __init__(self, clock: Callable[[], float], fresh: float = FRESH) -> None:
        self._clock, self._fresh, self._since = clock, fresh, float("inf")
        self._reports: dict[str, EdgeReport] = {}
        self._events: dict[str, tuple[float, float]] = {}  # of each edge: how many more it may tell, as of when

    def listen(self) -> None:
        """Begin: from now on reports can come."""
        self._since = self._clock()

    def note(self, report: EdgeReport) -> EdgeReport | None:
        """Take a report and give the one before; of too many edges the one not heard of for the longest time is forgotten."""
        before = self._reports.pop(report.edge, None)
        self._reports[report.edge] = report  # last: they stand in the order in which they came
        if len(self._reports) > MOST_EDGES:
            gone = next(iter(self._reports))
            del self._reports[gone]
            self._events.pop(gone, None)
        return before

    def may_tell(self, edge: str, events: int) -> int:
        """Give how many of its events an edge may tell now: some at once, then a few a second; each is written to the disk."""
        now = self._clock()
        left, at = self._events.get(edge, (EVENTS_AT_ONCE, now))
        left = min(EVENTS_AT_ONCE, left + (now - at) * EVENTS_A_SECOND)
        granted = min(events, int(left))
        self._events[edge] = left - granted, now
        return granted

    @property
    def all(self) -> list[EdgeReport]:
        """Give the last report of every edge, the newest first."""
        return [*reversed(self._reports.values())]

    @property
    def fresh(self) -> list[EdgeReport]:
        """Give the reports that hold, the newest first."""
        now = self._clock()
        return [one for one in self.all if now - one.received < self._fresh]

    def follow(self, number: Number) -> bool:
        """Say whether every edge that is heard of follows this rotation, or a later one; nobody knows before they could be heard."""
        return self._clock() - self._since >= HEARD and all(one.rotation is not None and one.rotation >= number for one in self.fresh)

    def idle(self, name: str, since: Number) -> bool:
        """Say whether every edge has nothing under way in a region that drains since this rotation; False when there is none to say so."""
        reports = self.fresh
        return bool(reports) and all(one.rotation is not None and one.rotation >= since and name in one.idle for one in reports)

    def status(self, name: str) -> str | None:
        """Give what most fresh reports say of a region, in doubt the worse; None when none speaks of it."""
        said = [one.regions[name].status for one in self.fresh if name in one.regions]
        return _majority(said) if said else None


_BAD = frozenset({"ejected", "down"})


def _majority(said: Collection[str]) -> str:
    bad = [each for each in said if each in _BAD]
    if 2 * len(bad) >= len(said):
        return bad[0]
    good = [each for each in said if each not in _BAD]
    return max(good, key=lambda each: (good.count(each), STATUSES.index(each)))
