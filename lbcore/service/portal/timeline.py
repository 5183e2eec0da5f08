"""Timeline: what has happened, in words. The store's events and its history, newest first. Pure functions.

An event's kind has a tone and a sentence here; one that nobody thought of is shown as it is, rather than not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lbcore.region import catalogue
from lbcore.service.logbook import Entry
from lbcore.service.logbook import Event as Written
from lbcore.service.portal.views import Event
from lbcore.service.portal.words import seconds

__all__ = ["timeline", "told"]

MOST = 60
DETAIL = 200  # letters

# Kind -> (status, what happened). {name} is a detail of the event; what is missing leaves its clause out: clauses stand between bars.
KINDS: Mapping[str, tuple[str, str]] = {
    "OperationSucceeded": ("Succeeded", "deployed"),
    "OperationPartiallySucceeded": ("PartiallySucceeded", "deployed in part|: {message}"),
    "OperationFailed": ("Failed", "deployment failed|: {message}"),
    "OperationCanceled": ("Canceled", "deployment canceled"),
    "LocationSucceeded": ("Succeeded", "{action}|: done"),
    "LocationDeleted": ("Deleted", "drained and removed"),
    "LocationFailed": ("Failed", "{action}| failed|: {message}"),
    "LocationTerminationFailed": ("TerminationFailed", "could not be removed|: {message}"),
    "ConfigApplied": ("InSync", "serves configuration {revision}"),
    "ConfigRolledBack": ("Warning", "went back|  from {held}| to {to}|; lost: {lost}"),
    "ConfigAhead": ("Warning", "reports revision {held}, newer than any that was published here| ({latest})"),
    "ConfigMismatch": ("Error", "reports another content of revision {held}"),
    "ConfigRefused": ("Error", "refuses the configuration {latest}|: {reason}"),
    "SyncStateChanged": ("{after}", "configuration is {after}|, was {before}"),
    "EndpointStatusChanged": ("{after}", "is {after}|, was {before}|: {cause}"),
    "RegionStatusChanged": ("{after}", "is {after}| as {edge} sees it|: {cause}"),
    "BackedUp": ("Info", "backed up| by {who}"),
    "FailOpen": ("Error", "no region is up: clients are sent to whichever may still answer"),
    "EdgeSilent": ("Warning", "edge {edge} has not reported| for {seconds}"),
}
STATUSES: Mapping[str, str] = {"up": "Online", "down": "Degraded", "ejected": "Degraded", "disabled": "Disabled", "draining": "Draining"}
UNTOLD = ("operation ", "create token ", "revoke token ", "previous VIPs")  # told by events, or nobody's business here
CHANGES: tuple[tuple[str, str, str], ...] = (
    (r"publish ([0-9.]+)", "Configuration", r"revision \1 published"), (r"put trafficManager", "Traffic Manager", "settings changed"),
    (r"begin epoch ([0-9]+)", "Configuration", r"epoch \1 begun"), (r"save", "Service", "saved"),
)  # fmt: skip
ACTIONS: Mapping[str, str] = {"create": "added", "update": "changed", "delete": "removal"}


def timeline(
    events: Iterable[Written], history: Iterable[Entry] = (), names: Mapping[str, str] | None = None, *, most: int = MOST
) -> tuple[Event, ...]:
    """Give what happened, newest first. names: of regions, for people."""
    found = [told(each, names or {}) for each in events]
    found += [_changed(each) for each in history if each.what and not each.what.startswith(UNTOLD)]
    return tuple(sorted(found, key=lambda each: each.at, reverse=True)[:most])


def told(event: Written, names: Mapping[str, str]) -> Event:
    """Give one event in words."""
    status, sentence = KINDS.get(event.kind, ("Info", ""))
    detail = {key: _short(key, value) for key, value in event.detail.items()}
    text = _filled(sentence, detail) if sentence else _plain(event.kind, detail)
    word = _filled(status, detail) or "Info"
    return Event(_moment(event.at), STATUSES.get(word, word), _subject(event.region, names), text)


def _subject(region: str, names: Mapping[str, str]) -> str:
    return names[region] if region in names else (catalogue()[region].display_name if region in catalogue() else region) or "Service"


def _filled(sentence: str, detail: Mapping[str, str]) -> str:
    clauses = (clause for clause in sentence.split("|") if all(detail.get(name) for name in re.findall(r"{(\w+)}", clause)))
    return re.sub(r" {2,}", " ", "".join(re.sub(r"{(\w+)}", lambda found: detail[found[1]], clause) for clause in clauses))


def _plain(kind: str, detail: Mapping[str, str]) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind).lower()
    rest = ", ".join(f"{key} {value}" for key, value in detail.items() if value and key not in ("operation", "id"))
    return f"{words}: {rest}" if rest else words


def _short(key: str, value: Any) -> str:
    if key == "seconds" and isinstance(value, int | float):
        return seconds(value)
    if key == "action":
        return ACTIONS.get(str(value), str(value))
    if key in ("before", "after"):
        return STATUSES.get(str(value), str(value))
    text = ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else "" if value is None else str(value)
    return text if len(text) <= DETAIL else f"{text[: DETAIL - 1]}…"


def _changed(entry: Entry) -> Event:
    """Give a change of somebody's: who, what and why."""
    by = f" by {re.sub(r' [(][0-9a-f]{12}[)]$', '', entry.who)}" if entry.who else ""
    why = f": {entry.why}" if entry.why else ""
    for pattern, subject, words in CHANGES:
        if (found := re.fullmatch(pattern, entry.what)) is not None:
            return Event(_moment(entry.at), "Info", subject, f"{found.expand(words)}{by}{why}")
    return Event(_moment(entry.at), "Info", "Service", f"{entry.what}{by}{why}")


def _moment(at: float) -> datetime:
    """Give wall-clock seconds as a time; of a clock that was never set, or was set to nonsense, the nearest that there is."""
    return datetime.fromtimestamp(min(max(at, 0.0), 253_402_300_799.0), UTC)
