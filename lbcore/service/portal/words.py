"""Words: how the pages say figures, times and states, and which tone a state has. Pure functions, no markup.

A tone is never shown by colour alone: each has a shape of its own beside the word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

__all__ = ["BANDS", "Tone", "ago", "band", "clock", "ms", "percent", "seconds", "stamp", "subnet", "tone"]

Tone = Literal["good", "warn", "bad", "off", "busy"]

# Every state that is shown: of an endpoint's monitor and of a profile, of the balancer's own status, of provisioning, of synchronising,
# of an operation. What is not known here is shown as a warning rather than as if all were well.
TONES: Mapping[str, Tone] = {
    "Online": "good", "Unmonitored": "good", "up": "good", "Succeeded": "good", "InSync": "good", "Enabled": "good", "Info": "good",
    "degraded": "warn", "ejected": "warn", "Stale": "warn", "Orphaned": "warn", "PartiallySucceeded": "warn", "Warning": "warn",
    "Degraded": "bad", "down": "bad", "Failed": "bad", "TerminationFailed": "bad", "Stopped": "bad", "Error": "bad", "Empty": "bad",
    "Disabled": "off", "Inactive": "off", "disabled": "off", "Deleted": "off", "Canceled": "off",
    "CheckingEndpoint": "busy", "CheckingEndpoints": "busy", "draining": "busy", "Created": "busy", "Activating": "busy",
    "SyncingConfig": "busy", "Warming": "busy", "Updating": "busy", "Draining": "busy", "Terminating": "busy", "Syncing": "busy",
    "InProgress": "busy", "Waiting": "busy", "Unknown": "off",
}  # fmt: skip

BANDS: tuple[tuple[str, float], ...] = (("near", 50.0), ("fair", 100.0), ("far", 200.0), ("poor", math.inf))  # name, below so many ms


def tone(status: str) -> Tone:
    """Give the tone of a state's word."""
    return TONES.get(status, "warn")


def band(latency: float) -> str:
    """Give the name of the band that a latency in ms lies in; of NaN, the worst."""
    return next((name for name, below in BANDS if latency < below), BANDS[-1][0])


def ms(latency: float | None) -> str:
    """Give a latency in ms: "0.4 ms", "12 ms", "—" for none."""
    if latency is None or not math.isfinite(latency):
        return "—"
    return f"{latency:.1f} ms" if 0 < abs(latency) < 9.95 else f"{latency:,.0f} ms"


def percent(share: float | None) -> str:
    """Give a share, 0 to 1, as a percentage: "0 %", "<0.1 %", "4.2 %", "100 %", "—" for none."""
    if share is None or not math.isfinite(share):
        return "—"
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1 %"
    return f"{value:.0f} %" if value == 0 or value >= 9.95 else f"{value:.1f} %"


def seconds(duration: float | None) -> str:
    """Give a duration in seconds: "0.4 s", "45 s", "3 min 10 s", "2 h 5 min", "3 d 4 h", "—" for none."""
    if duration is None or not math.isfinite(duration):
        return "—"
    if abs(duration) < 9.95 and duration != round(duration):
        return f"{duration:.1f} s"
    whole = round(duration)
    for size, unit, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit} {rest} {smaller}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def subnet(resource: str) -> str:
    """Give a subnet's id in short, as its network and its own name: "weu / apim"; another text as it is."""
    found = re.search(r"/virtualNetworks/([^/]+)/subnets/([^/]+)$", resource, re.IGNORECASE)
    return f"{found[1]} / {found[2]}" if found else resource


def clock(at: datetime) -> str:
    """Give the time of day, UTC: "03:12:45"."""
    return at.astimezone(UTC).strftime("%H:%M:%S")


def stamp(at: datetime) -> str:
    """Give date and time, UTC: "2026-11-22 03:12:45 UTC"."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(at: datetime, now: datetime) -> str:
    """Give how long ago something was: "12 s ago"; what lies ahead, as a clock set back has it, is "just now"."""
    past = (now - at).total_seconds()
    return f"{seconds(round(past))} ago" if past >= 1 else "just now"
