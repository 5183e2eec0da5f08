"""Replay: drive a Balancer over recorded events on their own clock."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lbcore.balancer import TICK_INTERVAL, Balancer
from lbcore.errors import ConfigError, NoRegionError, Violation

__all__ = ["Answer", "Event", "Outcome", "Query", "Sample", "VirtualClock", "read_events", "replay", "write_events"]


FAR = 3600.0  # seconds between the clock and the first event that are not waited for: the events bear another origin's times


class VirtualClock:
    """Monotonic seconds that stand still until `advance` moves them."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, to: float) -> None:
        """Go to the instant `to`; an earlier one changes nothing, as on a monotonic clock."""
        self.now = max(self.now, to)


@dataclass(frozen=True, slots=True)
class Sample:
    """At `at` seconds somebody measured `ms` from the client to the region."""

    at: float
    region: str
    ms: float
    client: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """At `at` seconds a probe or request of the region succeeded or failed."""

    at: float
    region: str
    ok: bool
    client: str | None = None
    cause: str | None = None
    source: str = "request"


@dataclass(frozen=True, slots=True)
class Query:
    """At `at` seconds a client needs a region: `replay` yields an Answer."""

    at: float
    client: str | None = None


Event = Sample | Outcome | Query
_KINDS: dict[str, type[Sample] | type[Outcome] | type[Query]] = {"sample": Sample, "outcome": Outcome, "query": Query}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the Balancer decided for a Query; region None = none was enabled."""

    at: float
    client: str | None
    region: str | None
    fail_open: bool


def replay(lb: Balancer, events: Iterable[Event], *, tick: float = TICK_INTERVAL) -> Iterator[Answer]:
    """Feed events in order of their time to `lb`, ticking every `tick` seconds of theirs, and yield an Answer per Query.

    The Balancer must have been built with `clock=VirtualClock()`. Events that are late by the clock happen at once.
    Time begins with the clock's, or with the first event's where that is over an hour later, as wall-clock times are.
    Same events, same Balancer settings: same answers. Raises TypeError for a Balancer on a real clock, ValueError for a time
    that is not finite or a tick that is not positive or lost in the times' rounding; whatever an event's own values raise
    passes through.
    """
    clock = lb.clock
    if not isinstance(clock, VirtualClock):
        raise TypeError(f"replay needs a Balancer built with clock=VirtualClock(), got {clock!r}")
    if not tick > 0:
        raise ValueError(f"tick must be positive seconds, got {tick!r}")
    due: float | None = None
    for event in events:
        if not math.isfinite(event.at):
            raise ValueError(f"an event's time must be finite seconds, got {event!r}")
        if due is None:
            due = event.at if event.at - clock.now > FAR else clock.now
        due = _tick_until(event.at, due, tick, lb, clock)
        clock.advance(event.at)
        if isinstance(event, Query):
            yield _answer(lb, event)
        elif isinstance(event, Sample):
            lb.observe(event.region, event.ms, event.client)
        else:
            lb.report(event.region, event.ok, event.client, cause=event.cause, source=event.source)


def _tick_until(at: float, due: float, tick: float, lb: Balancer, clock: VirtualClock) -> float:
    """Make the ticks that are due by the instant `at`; gives when the next one is."""
    while due <= at:
        if due + tick == due:
            raise ValueError(f"tick must be seconds enough to tell {due!r} from the next one, got {tick!r}")
        clock.advance(due)
        lb.tick()
        due += tick
    return due


def _answer(lb: Balancer, query: Query) -> Answer:
    try:
        region = lb.pick(query.client).name
    except NoRegionError:
        region = None
    return Answer(query.at, query.client, region, lb.fail_open)


def read_events(path: str | os.PathLike[str]) -> list[Event]:
    """Read events from JSON lines such as {"kind": "sample", "at": 1.5, "region": "eastus", "ms": 31.0, "client": "192.0.2.1"}.

    Raises ConfigError with every bad line, OSError when the file cannot be read.
    """
    events: list[Event] = []
    wrong: list[Violation] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            fields = json.loads(line)
            events.append(_KINDS[fields.pop("kind")](**fields))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            expected = f"a JSON object with kind {', '.join(_KINDS)} and that kind's fields ({error})"
            wrong.append(Violation(f"{path}:{number}", line[:80], expected))
    if wrong:
        raise ConfigError(wrong)
    return events


def write_events(path: str | os.PathLike[str], events: Iterable[Event]) -> None:
    """Write events as the JSON lines that `read_events` reads."""
    names = {kind: name for name, kind in _KINDS.items()}
    lines = (json.dumps({"kind": names[type(event)], **asdict(event)}) for event in events)
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
