"""Progress: what one step of a plan makes of a service's state. Pure: operations do the work, here is what came of it.

    accept --> begin --> done      deployed with what the step said, VIPs as the plan said
                    '--> failed    what ran still runs as it did; the reason stands beside it
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lbcore.errors import ServiceError
from lbcore.sense.monitor import URL_FORM, Monitor, Target
from lbcore.service.model import LocationState, ServiceState
from lbcore.service.plan import Plan, Step

__all__ = ["VIP_OVERLAP", "Granted", "accept", "begin", "done", "failed", "forget_previous"]

VIP_OVERLAP = 3600.0  # seconds for which an address that was given up goes on answering
FAILED = {"create": "Failed", "update": "Failed", "delete": "TerminationFailed"}
FIRST = {"create": "Activating", "update": "Updating", "delete": "Draining"}


@dataclass(frozen=True, slots=True)
class Granted:
    """What a provisioner gave a region: its VIPs and the base URL where its gateway is reached."""

    public_ips: tuple[str, ...] = ()
    private_ips: tuple[str, ...] = ()
    gateway: str = ""


def accept(current: ServiceState | None, planned: Plan) -> ServiceState:
    """Give the state in which the wish is accepted and nothing has been done yet."""
    state = replace(current, service=planned.wanted) if current else ServiceState(service=planned.wanted)
    for step in planned.creates:
        state = state.having(step.name, LocationState())
    return state


def begin(state: ServiceState, step: Step, provisioning_state: str = "") -> ServiceState:
    """Give the state in which a step is under way: in the first of its provisioning states, or the one named."""
    return state.having(step.name, replace(state.of(step.name), provisioning_state=provisioning_state or FIRST[step.action], reason=""))


def done(state: ServiceState, step: Step, planned: Plan, granted: Granted, now: float, overlap: float = VIP_OVERLAP) -> ServiceState:
    """Give the state in which a step has succeeded. A region deleted is gone.

    granted: what the provisioner gave; of an update that changes no VIP, the ones there were, or nothing
    now: wall-clock seconds;  overlap: for how many seconds a VIP given up goes on answering
    Raises ServiceError UnplannedChange for VIPs that the plan did not say, or a VIP or gateway that no region can have: the provisioner
    errs, or lies.
    """
    if step.after is None:
        return state.having(step.name, None)
    old, change = state.of(step.name), planned.vip_change(step.name)
    fresh = step.action == "create"
    public = _vips(state, step, "public", old.public_ips, granted.public_ips, fresh or (change is not None and change.public))
    private = _vips(state, step, "private", old.private_ips, granted.private_ips, fresh or (change is not None and change.private))
    gateway = step.after.gateway or _url(step, granted.gateway) or old.gateway
    given_up = tuple(address for address in old.public_ips if address not in public)
    previous = (*given_up, *(address for address in old.previous_public_ips if address not in (*public, *given_up)))
    return state.having(step.name, LocationState(
        provisioning_state="Succeeded", deployed=step.after, network_mode=step.network_mode,
        gateway=gateway, public_ips=public, private_ips=private,
        previous_public_ips=previous, previous_until=now + overlap if given_up else old.previous_until,
    ))  # fmt: skip


def failed(state: ServiceState, step: Step, reason: str) -> ServiceState:
    """Give the state in which a step has failed, for a reason: whatever was deployed before still is."""
    return state.having(step.name, replace(state.of(step.name), provisioning_state=FAILED[step.action], reason=reason))


def forget_previous(state: ServiceState, now: float) -> ServiceState:
    """Give the state without the VIPs whose time is over, wall-clock seconds; the same object when there are none.

    A clock set back keeps them longer, never shorter.
    """
    for name, one in state.states.items():
        if one.previous_public_ips and one.previous_until <= now:
            state = state.having(name, replace(one, previous_public_ips=(), previous_until=0.0))
    return state


def _vips(state: ServiceState, step: Step, kind: str, old: tuple[str, ...], granted: tuple[str, ...], may_change: bool) -> tuple[str, ...]:
    """Give the VIPs of one kind after a step."""
    wanted = kind == "public" or step.network_mode == "Internal"
    found = _addresses(granted, step, kind)
    if not may_change:
        if found and set(found) != set(old):
            raise _unplanned(step, f"its {kind} VIP was to stay {_list(old)}, its provisioner gave {_list(found)}")
        return old
    if bool(found) != wanted:
        need = f"at least one {kind} VIP" if wanted else f"no {kind} VIP in network mode {step.network_mode}"
        raise _unplanned(step, f"it needs {need}, its provisioner gave {_list(found)}")
    for name, other in state.states.items():
        taken = {*other.public_ips, *other.private_ips}.intersection(found) if name != step.name else ()
        if taken:
            raise _unplanned(step, f"its provisioner gave {_list(taken)}, which {name} has")
    return found


def _addresses(given: Iterable[str], step: Step, kind: str) -> tuple[str, ...]:
    try:
        found = dict.fromkeys(ipaddress.ip_address(each) for each in given)
        if any(getattr(each, "scope_id", None) for each in found):
            raise ValueError("an address of one link alone")
        return tuple(map(str, found))
    except ValueError as error:
        raise _unplanned(step, f"its provisioner gave a {kind} VIP that is no address: {str(error)[:100]}") from None


def _url(step: Step, given: str) -> str:
    """Give the URL of a gateway, which must be one that edges take: they refuse a rotation as a whole."""
    try:
        if given:
            Target.parse(step.name, given, Monitor())
    except (ValueError, AttributeError):
        told = ascii(given.rpartition("@")[2])[:100]
        raise _unplanned(step, f"its provisioner gave a gateway that is not {URL_FORM}: {told}") from None
    return given


def _list(addresses: Iterable[str]) -> str:
    return ", ".join(addresses) or "none"


def _unplanned(step: Step, message: str) -> ServiceError:
    return ServiceError("UnplannedChange", f"{step.display_name}: {message}", step.name)
