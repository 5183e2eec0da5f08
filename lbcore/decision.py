"""Decision: why this region for this client, in words and in JSON that anybody can replay.

Made by `Balancer.explain`. Nothing here looks at a live table: what is not in a Decision did not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lbcore.sense.geo import Client, Precision

if TYPE_CHECKING:
    from lbcore._fast import LatencyTable
    from lbcore._prefix import PrefixMap

__all__ = ["Candidate", "Decision", "decide"]

Places = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What was known of one region when a group's region was chosen; latencies are milliseconds."""

    region: str
    slot: int  # index in the table; decides ties
    score_ms: float  # what regions are ordered by: estimate + penalty
    estimate_ms: float
    deviation_ms: float
    penalty_ms: float
    sample_age: float | None  # seconds since the last sample or ageing; None = never measured, the estimate is the prior
    status: str  # up, degraded, ejected, down, disabled, draining
    tier: int
    answered: float  # when it left the reachable tiers; orders regions that are probed down
    eligible: bool
    admissible: bool  # the operator wants it: may serve when nothing is eligible
    excluded: bool  # the path from this group is broken


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a client gets its region: `.region` (None when nothing is enabled) and all that led to it."""

    client: str | None
    group: int
    key: str  # the group's name in the prefix map; "" = group 0
    place: Mapping[str, Any] | None  # lat, lon, country, precision of the group
    region: str | None
    home: str | None
    reason: str  # home | failover | fail_open | first | none
    forced: bool
    pending: bool
    fail_open: bool
    at: float  # the Balancer's clock
    candidates: Sequence[Candidate]  # in the order in which they would serve; those that may not come last

    def as_dict(self) -> dict[str, Any]:
        """Give the decision as plain JSON types; `Decision.replay` of it gives the same region."""
        return dataclasses.asdict(self) | {"candidates": [dataclasses.asdict(c) for c in self.candidates]}

    @staticmethod
    def replay(data: Mapping[str, Any]) -> str | None:
        """Choose again from `as_dict()`'s content alone: home when eligible, else the lowest score, else fail open."""
        candidates = data["candidates"]
        eligible = [c for c in candidates if c["eligible"]]
        if any(c["region"] == data["home"] for c in eligible):
            return str(data["home"])
        if not eligible:
            eligible = _last_resort([c for c in candidates if c["admissible"]])
        best = min(eligible, key=lambda c: (c["excluded"], c["score_ms"], c["slot"]), default=None)
        return None if best is None else str(best["region"])

    def text(self) -> str:
        """Tell the decision in a few plain sentences."""
        return "\n".join([self._who(), self._why(), *map(_describe, self.candidates)])

    def _who(self) -> str:
        who = self.client or "this process"
        if self.group == 0:
            return f"{who} cannot be located, so it belongs to group 0, this process's own vantage."
        place = self.place or {}
        where = "at an unknown place" if place.get("lat") is None else f"near {place['lat']:.1f}, {place['lon']:.1f}"
        return f"{who} belongs to group {self.group} ({self.key}), {where}, precise to the {place.get('precision', 'planet')}."

    def _why(self) -> str:
        match self.reason:
            case "home":
                moved = " It moved there because its former home became ineligible, and returns when that recovers." if self.forced else ""
                wait = " Another region has become better; the group moves if that lasts 10 s." if self.pending else ""
                return f"It goes to {self.region}, its home: the lowest latency by belief, with hysteresis.{moved}{wait}"
            case "failover":
                return f"Its home {self.home} is not eligible, so it goes to the next closest that is: {self.region}."
            case "first":
                return f"It has no home yet (no tick so far), so it goes to the lowest estimate: {self.region}."
            case "fail_open":
                return f"No region is up, so it fails open to {self.region}, the likeliest to answer of those that are enabled."
        return "No region is enabled, synced and not draining, so there is none to give."


def _last_resort(admissible: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    lowest = min((c["tier"] for c in admissible), default=0)
    rest = [c for c in admissible if c["tier"] == lowest]
    latest = max((c["answered"] for c in rest), default=0.0)
    return [c for c in rest if lowest < 3 or c["answered"] == latest]


def _describe(c: Candidate) -> str:
    source = "prior only" if c.sample_age is None else f"measured, touched {c.sample_age:.0f} s ago"
    penalty = f" + {c.penalty_ms:.1f} ms penalty" if c.penalty_ms else ""
    excluded = ", path excluded for this group" if c.excluded else ""
    return f"  {c.region:<20} {c.estimate_ms:7.1f} ms ± {c.deviation_ms:.1f}{penalty}  {c.status}{excluded}  ({source})"


def decide(
    table: LatencyTable, prefixes: PrefixMap, places: Places, statuses: Mapping[int, tuple[str, str]], client: Client, now: float
) -> Decision:
    """Gather why a client gets the region it gets; `statuses` gives each slot's region name and status, `places` is of the groups."""
    group = prefixes.lookup(client)
    order, home = table.rank(group).tolist(), table.home(group)
    shown = [*order, *(slot for slot in statuses if slot not in order)]
    return Decision(
        client=None if client is None else str(client),
        group=group,
        key=prefixes.keys[group],
        place=_place(prefixes, places, group),
        region=statuses[order[0]][0] if order else None,
        home=statuses[home][0] if home >= 0 else None,
        reason=_reason(order[0] if order else -1, home, table.fail_open),
        forced=table.forced(group),
        pending=table.pending(group),
        fail_open=table.fail_open,
        at=now,
        candidates=_candidates(table, group, [(slot, *statuses[slot]) for slot in shown], set(order), now),
    )


def _reason(picked: int, home: int, fail_open: bool) -> str:
    if picked < 0:
        return "none"
    if fail_open:
        return "fail_open"
    return "first" if home < 0 else "home" if picked == home else "failover"


def _place(prefixes: PrefixMap, places: Places, group: int) -> dict[str, Any] | None:
    if group == 0:
        return None
    lat, lon, precision = (column[group] for column in places)
    known = not np.isnan(lat)
    return {
        "lat": round(float(lat), 2) if known else None,
        "lon": round(float(lon), 2) if known else None,
        "country": prefixes.countries[group],
        "precision": Precision(int(precision)).name.lower(),
    }


def _candidates(
    table: LatencyTable, group: int, slots: Sequence[tuple[int, str, str]], admissible: set[int], now: float
) -> list[Candidate]:
    estimates, deviations, ages = table.estimates(group), table.deviations(group), table.ages(group, now)
    scores, eligible = table.scores(group), table.eligible()
    return [
        Candidate(
            region=name,
            slot=slot,
            score_ms=float(scores[slot]),
            estimate_ms=float(estimates[slot]),
            deviation_ms=float(deviations[slot]),
            penalty_ms=table.penalty(slot),
            sample_age=None if np.isnan(ages[slot]) else float(ages[slot]),
            status=status,
            tier=table.tier(slot),
            answered=table.answered(slot),
            eligible=bool(eligible[slot]),
            admissible=slot in admissible,
            excluded=table.excluded(group, slot),
        )
        for slot, name, status in slots
    ]
