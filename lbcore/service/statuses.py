"""Statuses: the words of the endpoints' monitor, from what is wanted, what runs and what is seen. Pure.

    profile Disabled         -> Inactive        the region does not run, fails to, or leaves   -> Stopped
    endpoint, gateway off    -> Disabled        it is being made, or nothing was seen of it    -> CheckingEndpoint
    always served            -> Unmonitored     seen up or slower than usual / down or ejected -> Online / Degraded

Source: Azure Traffic Manager's endpoint and profile monitor status (REQUIREMENTS §2.2).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lbcore.region import canonical
from lbcore.service.model import Location, LocationState, ServiceState

__all__ = ["SEEN", "all_regions", "always_served", "endpoint_status", "profile_status", "switched_off"]

SEEN: Mapping[str, str] = {
    "checking": "CheckingEndpoint", "up": "Online", "degraded": "Online", "ejected": "Degraded", "down": "Degraded", "disabled": "Disabled",
    "draining": "Stopped",
}  # fmt: skip
_COMING = frozenset({"Created", "Activating", "SyncingConfig", "Warming"})
_GOING = frozenset({"Draining", "Terminating", "TerminationFailed", "Deleted"})


def endpoint_status(each: Location, runs: LocationState, profile: Mapping[str, Any], seen: str | None) -> str:
    """Give the word for one region. profile: properties as GET shows them;  seen: word of `Balancer.status`, None = nobody has seen it"""
    if profile.get("profileStatus") == "Disabled":
        return "Inactive"
    if each.disable_gateway or each.name in switched_off(profile):
        return "Disabled"
    if runs.provisioning_state in _GOING or (runs.deployed is None and runs.provisioning_state not in _COMING):
        return "Stopped"
    if runs.provisioning_state in _COMING:
        return "CheckingEndpoint"
    if each.name in always_served(profile):
        return "Unmonitored"
    return SEEN.get(seen or "checking", "CheckingEndpoint")


def profile_status(profile: Mapping[str, Any], statuses: Collection[str]) -> str:
    """Give the word for the profile: the worst that its endpoints give it."""
    if profile.get("profileStatus") == "Disabled":
        return "Disabled"
    if "Degraded" in statuses:
        return "Degraded"
    if {"Online", "Unmonitored"} & set(statuses):
        return "Online"
    return "CheckingEndpoints" if "CheckingEndpoint" in statuses else "Inactive"


def switched_off(profile: Mapping[str, Any]) -> frozenset[str]:
    """Give the regions that no endpoint of the profile, or of one below it, may lead to: every one that names them is disabled."""
    named: dict[str, set[bool]] = {}
    for one in _endpoints(profile):
        named.setdefault(canonical(one["region"]), set()).add(one.get("endpointStatus") == "Disabled")
    return frozenset(name for name, off in named.items() if off == {True})


def always_served(profile: Mapping[str, Any]) -> frozenset[str]:
    """Give the regions that are served whatever their health."""
    return frozenset(canonical(one["region"]) for one in _endpoints(profile) if one.get("alwaysServe") == "Enabled")


def _endpoints(profile: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    tables = [profile, *profile.get("profiles", ())]
    return [one for table in tables for one in table.get("endpoints", ()) if one.get("region")]


def all_regions(state: ServiceState) -> dict[str, Location]:
    """Give every region that is wanted or not gone yet, by name."""
    found = {each.name: each for each in state.service.locations}
    return found | {name: one.deployed for name, one in state.states.items() if name not in found and one.deployed is not None}
