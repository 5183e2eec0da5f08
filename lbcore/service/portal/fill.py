"""Fill: views of what the service has stored. Pure; what only a running process knows (health, latency, shares) is given beside it.

    ServiceState, Facts     -> ScaleAndPricing      Plan             -> views.Plan, with a digest of exactly this plan
    Operation               -> Progress             ServiceError     -> Problem, every violation
    TrafficManager          -> views.TrafficManager, and the form that comes back -> the body of a PATCH
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lbcore.errors import ServiceError
from lbcore.region import canonical, catalogue
from lbcore.service import model
from lbcore.service import plan as plans
from lbcore.service import traffic_manager as profiles
from lbcore.service.facts import Facts
from lbcore.service.gauges import Capacity
from lbcore.service.journal import Operation
from lbcore.service.portal import views
from lbcore.service.portal.form import Draft
from lbcore.service.timing import Failover

__all__ = ["digest", "monitor_patch", "plan", "problem", "profile", "progress", "scale_and_pricing", "timing", "wrong_fields"]

ENDED = frozenset({"Succeeded", "Deleted", "Failed", "TerminationFailed", "Canceled"})
AUTOMATIC = "Automatic"  # the protocol that the gateway's URL names
FIELDS = {
    "profileStatus": "status", "trafficRoutingMethod": "method", "ttl": "ttl", "protocol": "protocol", "port": "port", "path": "path",
    "intervalInSeconds": "interval", "timeoutInSeconds": "timeout", "toleratedNumberOfFailures": "tolerated", "rise": "rise",
    "expectedStatusCodeRanges": "codes",
}  # fmt: skip


# ===== scale and pricing


def scale_and_pricing(
    state: model.ServiceState, facts: Facts | None = None, *, statuses: Mapping[str, str] | None = None,
    capacities: Mapping[str, Capacity] | None = None, operation: views.Progress | None = None, notices: Sequence[views.Notice] = (),
) -> views.ScaleAndPricing:  # fmt: skip
    """Give the page of a service. statuses: of the endpoints' monitors, by region's name;  capacities: likewise, of their gateways"""
    service, seen, busy = state.service, statuses or {}, capacities or {}
    wanted = {each.name for each in service.locations}
    rows = [_row(state, each, seen.get(each.name, "")) for each in service.locations]
    rows += [
        _row(state, one.deployed, seen.get(name, ""), leaving=True)
        for name, one in state.states.items()
        if name not in wanted and one.deployed is not None
    ]
    used = wanted | set(state.states)
    return views.ScaleAndPricing(
        etag=state.etag, tier=service.tier, tiers=_tiers(facts or Facts()), network_mode=service.network_mode,
        rows=tuple(_busy(row, busy.get(canonical(row.draft.name))) for row in rows),
        offers=tuple(
            views.Offer(one.name, one.display_name, one.provider, one.zones) for one in catalogue().values() if one.name not in used
        ),
        network_modes=model.NETWORK_MODES, operation=operation, notices=tuple(notices),
    )  # fmt: skip


def _tiers(facts: Facts) -> tuple[views.TierOffer, ...]:
    return tuple(
        views.TierOffer(tier.name, tier.minimum, facts.most_units(tier), tier.multi_region, tier.zones) for tier in model.TIERS.values()
    )


def _row(state: model.ServiceState, each: model.Location, status: str, *, leaving: bool = False) -> views.LocationRow:
    known, runs = catalogue().get(each.name), state.of(each.name)
    return views.LocationRow(
        draft=Draft(
            each.spelling, "draft-delete" if leaving else "kept", each.units, each.zones, each.disable_gateway,
            each.subnet.text if each.subnet else "", each.public_ip.text if each.public_ip else "", _carried(each),
        ),
        display_name=each.display_name, primary=each.name == state.service.primary.name, leaving=leaving,
        provisioning_state=runs.provisioning_state, status=status, reason=runs.reason, url=state.service.regional_url(each.name),
        zones_available=known.zones if known else 1, public_ips=runs.public_ips, private_ips=runs.private_ips,
        previous_public_ips=runs.previous_public_ips,
    )  # fmt: skip


def _busy(row: views.LocationRow, known: Capacity | None) -> views.LocationRow:
    """Add how busy a region is, and what to do about it where that is something."""
    if known is None:
        return row
    return replace(row, capacity=known.gauge, advised=known.advised if known.advised != row.draft.units else None)


def _carried(each: model.Location) -> dict[str, Any]:
    """Give the settings that the page does not show, so that they come back as they were."""
    place = {key: value for key, value in (("lat", each.lat), ("lon", each.lon)) if value is not None}
    carried: dict[str, Any] = {"geo": place} if place else {}
    if each.gateway:
        carried["gateway"] = each.gateway
    if each.subnet_location:
        carried["virtualNetworkConfiguration"] = {"location": each.subnet_location}
    return carried


def digest(planned: plans.Plan, etag: str) -> str:
    """Give what identifies a plan and the state that it starts from: when Save makes another one, nobody has seen that."""
    text = json.dumps([etag, planned.as_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def plan(planned: plans.Plan, etag: str) -> views.Plan:
    """Give what Save would do. etag: of the state that was planned from."""
    return views.Plan(
        digest=digest(planned, etag), etag=etag, steps=tuple(_step(step) for step in planned.steps),
        settings=tuple(views.Setting(name, before, after) for name, (before, after) in planned.settings.items()),
        vip_changes=tuple(_vip_change(change) for change in planned.vip_changes),
        warnings=tuple(views.Problem(code, message, target or "") for code, message, target in planned.warnings),
        timing=timing(planned.failover), sla=planned.sla, accepts=planned.accepts,
    )  # fmt: skip


def _step(step: plans.Step) -> views.PlanStep:
    before, after = (each.units if each else 0 for each in (step.before, step.after))
    return views.PlanStep(step.action, step.display_name, before, after, step.changes)


def _vip_change(change: plans.VipChange) -> views.VipChange:
    kinds = tuple(kind for kind, changes in (("public", change.public), ("private", change.private)) if changes)
    return views.VipChange(change.display_name, kinds, (*change.public_ips, *change.private_ips), change.reasons)


def timing(found: Failover) -> views.Timing:
    """Give the times that monitor settings imply."""
    spans = (found.detect_silent, found.detect_refused, found.recover)
    silent, refused, recover = ((span.shortest, span.longest) for span in spans)
    return views.Timing(silent, refused, found.worst, found.worst_refused, recover, found.full_share)


def problem(error: ServiceError) -> views.Problem:
    """Give a refusal with every violation in it."""
    message = str(error).removeprefix(f"{error.code}: ")
    return views.Problem(error.code, message, error.target or "", tuple(problem(each) for each in error.details))


def progress(operation: Operation, state: model.ServiceState | None, now: float) -> views.Progress:
    """Give how far an operation is. state: as stored now, for regions that have no result yet;  now: wall-clock seconds."""
    running = operation.status == "InProgress"
    regions = tuple(
        _region(each, operation, state) for key in ("creates", "updates", "deletes") for each in operation.plan.get(key, ())
    )  # fmt: skip
    failed = views.Problem(operation.status, operation.error) if operation.error else None
    elapsed = max(0.0, (now if running else operation.updated) - operation.created)
    cancelable = running and not operation.cancel and not operation.results  # until the first region was begun
    return views.Progress(operation.id, operation.status, operation.percent, regions, elapsed, cancelable, failed)


def _region(step: Mapping[str, Any], operation: Operation, state: model.ServiceState | None) -> views.RegionProgress:
    """Show one step: its result where there is one, else its region's state; before its turn it waits."""
    result = operation.results.get(step["name"], {})
    runs = state.states.get(step["name"]) if state else None
    reached = str(result.get("status") or result.get("provisioningState") or "")
    now = reached or (runs.provisioning_state if runs and runs.provisioning_state in model.MOVING else "Waiting")
    if step["action"] == "delete" and runs is None and state is not None:
        now = "Deleted"
    percent = int(result.get("percent", 100 if now in ENDED else 0))
    text = str(result.get("message") or result.get("reason") or (runs.reason if runs else ""))
    return views.RegionProgress(step["location"], step["action"], now, percent, text)


# ===== traffic manager


def profile(
    manager: profiles.TrafficManager, service: model.Service, etag: str, found: Failover, endpoints: Sequence[views.Endpoint] = (), *,
    monitor_status: str = "CheckingEndpoints", fail_open: bool = False,
) -> views.TrafficManager:  # fmt: skip
    """Give the page of the profile. found: by `timing.failover`;  endpoints, monitor_status, fail_open: as they are seen now."""
    properties = profiles.traffic_manager_body(manager, service)["properties"]
    monitor = manager.monitor
    return views.TrafficManager(
        etag=etag, dns_name=properties["dnsConfig"]["fqdn"], status=properties["profileStatus"], monitor_status=monitor_status,
        method=properties["trafficRoutingMethod"], ttl=properties["dnsConfig"]["ttl"],
        monitor=views.Monitor(
            monitor.protocol.upper() if monitor.protocol else AUTOMATIC, monitor.port, monitor.path, monitor.interval,
            monitor.timeout, monitor.tolerated, monitor.rise, _codes(monitor.expected), monitor.strict_azure,
        ),
        timing=timing(found), endpoints=tuple(endpoints), protocols=(AUTOMATIC, "HTTP", "HTTPS", "TCP"), fail_open=fail_open,
    )  # fmt: skip


def _codes(ranges: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in ranges)


def monitor_patch(form: Mapping[str, str]) -> dict[str, Any]:
    """Give the body of the PATCH that the form of the profile asks for. What is no number stays text, for the rules to refuse."""
    protocol = form.get("protocol", AUTOMATIC)
    return {"properties": {
        "profileStatus": form.get("status", ""), "trafficRoutingMethod": form.get("method", ""),
        "dnsConfig": {"ttl": _whole(form.get("ttl", ""))},
        "monitorConfig": {
            "protocol": None if protocol == AUTOMATIC else protocol, "port": _whole(form.get("port", "")), "path": form.get("path", ""),
            "intervalInSeconds": _number(form.get("interval", "")), "timeoutInSeconds": _number(form.get("timeout", "")),
            "toleratedNumberOfFailures": _whole(form.get("tolerated", "")), "rise": _whole(form.get("rise", "")),
            "expectedStatusCodeRanges": [_range(each) for each in re.split(r"[,\s]+", form.get("codes", "")) if each],
            "strictAzure": form.get("strict") == "true",
        },
    }}  # fmt: skip


def _whole(text: str) -> int | str:
    return int(text) if re.fullmatch(r"-?[0-9]{1,12}", text.strip(), re.ASCII) else text


def _number(text: str) -> float | str:
    return float(text) if re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", text.strip(), re.ASCII) else text


def _range(text: str) -> dict[str, int | str]:
    low, _, high = text.partition("-")
    return {"min": _whole(low), "max": _whole(high or low)}


def wrong_fields(error: ServiceError) -> dict[str, str]:
    """Give what is wrong with the profile's form by its field's name; what belongs to no field stands under ""."""
    found: dict[str, str] = {}
    for each in error.details or (error,):
        names = [part.partition("[")[0] for part in (each.target or "").split(".")]
        name = next((FIELDS[part] for part in reversed(names) if part in FIELDS), "")
        message = str(each).removeprefix(f"{each.code}: ")
        found[name] = f"{found[name]}; {message}" if name in found else message
    return found
