"""Plan: what a wish changes, before anything changes. A pure function of what runs and what is wanted.

    create  a region that does not run yet, or whose creation failed
    update  a region that runs otherwise than it is wanted: units, zones, subnet, network mode, public address, gateway, the switch
    delete  a region that runs, wholly or in part, and is not wanted

A region's VIPs change when its own zones, subnet or network mode change, and for no other reason; whatever happens to another region
never touches them. The public one also changes with its own public IP resource. Order: create, update one after another, delete.
Source: REQUIREMENTS R54-R56; API Management, "Changes to the IP addresses".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lbcore.region import catalogue
from lbcore.sense.monitor import Monitor
from lbcore.service.codes import Violation, refusal
from lbcore.service.model import TIERS, Location, LocationState, NetworkMode, Service, ServiceState
from lbcore.service.timing import Failover, failover

__all__ = ["NETWORK", "Plan", "Step", "VipChange", "admit", "plan", "refresh", "removal", "sla"]

Action = Literal["create", "update", "delete"]

# What a change of a location's attribute is called in a plan, and whether its (public, private) VIP changes with it.
CHANGES: Mapping[str, tuple[str, bool, bool]] = {
    "units": ("units", False, False),
    "zones": ("zones", True, True),
    "disable_gateway": ("disableGateway", False, False),
    "subnet": ("subnet", True, True),
    "public_ip": ("publicIpAddressId", True, False),
    "lat": ("geo", False, False),
    "lon": ("geo", False, False),
    "gateway": ("gateway", False, False),
    "display_name": ("displayName", False, False),
    "subnet_location": ("virtualNetworkConfiguration.location", False, False),
}
MODE = "virtualNetworkType"
RETRY = "retry"
REINSTATED = "reinstated"
NETWORK = "networkConfiguration"
WORDS = frozenset({"disableGateway", "geo", "displayName", "virtualNetworkConfiguration.location"})  # what runs stays as it is
LEAVING = frozenset({"Draining", "Terminating", "TerminationFailed"})


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to one region.

    before: what it was deployed with, None if it never ran;  after: what it is wanted to be, None for delete
    network_mode: the one wanted;  changes: of an update, as the REST API calls them; "retry" where the last try failed
    """

    action: Action
    name: str
    before: Location | None
    after: Location | None
    network_mode: NetworkMode
    changes: tuple[str, ...] = ()

    @property
    def provisions(self) -> bool:
        """Say whether a provisioner has work to do; else only the region's place in the rotation changes."""
        return self.action != "update" or not set(self.changes) <= WORDS

    @property
    def display_name(self) -> str:
        """Give the region's name for people."""
        known = self.after or self.before
        return known.display_name if known else self.name

    def as_dict(self) -> dict[str, Any]:
        """Give it for JSON."""
        units = {"unitsBefore": self.before.units if self.before else 0, "unitsAfter": self.after.units if self.after else 0}
        return {"action": self.action, "location": self.display_name, "name": self.name, "changes": [*self.changes], **units}


@dataclass(frozen=True, slots=True)
class VipChange:
    """A region whose VIPs change, and why. The new ones are known when its provisioner gives them.

    public, private: which change;  private_after: whether it has a private one afterwards
    public_ips, private_ips: those it has now
    """

    name: str
    display_name: str
    reasons: tuple[str, ...]
    public: bool
    private: bool
    private_after: bool
    public_ips: tuple[str, ...] = ()
    private_ips: tuple[str, ...] = ()

    def __str__(self) -> str:
        kinds = [kind for kind, changes in (("public", self.public), ("private", self.private)) if changes]
        given = ", ".join((*self.public_ips, *self.private_ips)) or "no address yet"
        return f"{self.display_name}: {' and '.join(kinds)} VIP changes (now {given}), because of {', '.join(self.reasons)}"

    def as_dict(self) -> dict[str, Any]:
        """Give it for JSON."""
        return {
            "location": self.display_name, "name": self.name, "reasons": [*self.reasons], "public": self.public, "private": self.private,
            "publicIPAddresses": [*self.public_ips], "privateIPAddresses": [*self.private_ips],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What a wish changes; nothing else happens.

    accepts: whether the wish differs from the one before, even where nothing has to be done for it
    settings: of the service as a whole, name -> (before, after)
    sla: the availability in percent that this layout is good for, None = none
    """

    wanted: Service
    accepts: bool
    creates: tuple[Step, ...]
    updates: tuple[Step, ...]
    deletes: tuple[Step, ...]
    settings: Mapping[str, tuple[str, str]]
    vip_changes: tuple[VipChange, ...]
    warnings: tuple[Violation, ...]
    failover: Failover
    sla: float | None

    @property
    def steps(self) -> tuple[Step, ...]:
        """Give what to do, in order: regions come before regions go, so that capacity is never missing."""
        return self.creates + self.updates + self.deletes

    @property
    def empty(self) -> bool:
        """Say whether the wish is what there is: no operation, same ETag (V27)."""
        return not (self.steps or self.accepts)

    def vip_change(self, name: str) -> VipChange | None:
        """Give how a region's VIPs change, None when they stay."""
        return next((change for change in self.vip_changes if change.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """Give it for JSON, as POST …/plan answers."""
        return {
            "creates": [step.as_dict() for step in self.creates], "updates": [step.as_dict() for step in self.updates],
            "deletes": [step.as_dict() for step in self.deletes],
            "settings": {name: {"before": before, "after": after} for name, (before, after) in self.settings.items()},
            "vipChanges": [change.as_dict() for change in self.vip_changes],
            "warnings": [{"code": code, "message": message, "target": target} for code, message, target in self.warnings],
            "failover": self.failover.as_dict(), "sla": self.sla, "empty": self.empty,
        }  # fmt: skip


def plan(current: ServiceState | None, wanted: Service, *, monitor: Monitor | None = None, ttl: float = 30.0) -> Plan:
    """Give what leads from what runs to what is wanted. `wanted` is sound: `rules.validate` found nothing.

    monitor, ttl: of the service's endpoints, for the failover times they give
    """
    states = current.states if current else {}
    names = {each.name for each in wanted.locations}
    steps = [step for each in wanted.locations if (step := _step(each, states.get(each.name), wanted.network_mode)) is not None]
    return Plan(
        wanted,
        current is None or wanted != current.service,
        tuple(step for step in steps if step.action == "create"),
        tuple(step for step in steps if step.action == "update"),
        tuple(_delete(name, state, wanted) for name, state in states.items() if name not in names),
        _settings(current.service, wanted) if current else {},
        tuple(change for step in steps if (change := _vip_change(step, states.get(step.name))) is not None),
        tuple(_warnings(wanted)),
        failover(monitor or Monitor(), ttl),
        sla(wanted),
    )


def removal(current: ServiceState) -> Plan:
    """Give what leads to nothing running any more: the secondaries go first, the primary last."""
    service = current.service
    names = [*(name for name in current.states if name != service.primary.name), service.primary.name]
    deletes = tuple(_delete(name, current.states[name], service) for name in names if name in current.states)
    return Plan(service, True, (), (), deletes, {}, (), (), failover(Monitor(), 0.0), None)


def refresh(current: ServiceState, name: str | None = None) -> Plan:
    """Give what takes up changes made outside, in the network, in one region or all, one after another (R60). No VIP changes.

    Raises ServiceError ResourceNotFound for a region that the service has not. Regions that do not run are left out.
    """
    service = current.service
    chosen = service.locations if name is None else (service.get(name),)
    ran = [(each, deployed) for each in chosen if (deployed := current.of(each.name).deployed) is not None]
    updates = tuple(Step("update", one.name, one, one, current.of(each.name).network_mode, (NETWORK,)) for each, one in ran)
    return Plan(service, False, (), updates, (), {}, (), (), failover(Monitor(), 0.0), sla(service))


def admit(planned: Plan, *, acknowledged: bool) -> None:
    """Refuse a plan that changes VIPs which nobody has acknowledged: ServiceError VipChangeNotAcknowledged, one detail for each (V13)."""
    if planned.vip_changes and not acknowledged:
        raise refusal([Violation("VipChangeNotAcknowledged", str(change), change.name) for change in planned.vip_changes])


def sla(service: Service) -> float | None:
    """Give the availability in percent that a layout is good for; None = the tier promises none.

    99.99 with a unit in at least two zones or regions that serve, else the tier's own.
    Source: API Management's service level agreement, "high availability" (R9; values unverified).
    """
    tier = TIERS[service.tier]
    serving = [each for each in service.locations if not each.disable_gateway and each.units > 0]
    zoned = any(_zones_used(each) >= 2 for each in serving)
    return 99.99 if tier.multi_region and (len(serving) >= 2 or zoned) else tier.sla


def _zones_used(each: Location) -> int:
    """Give over how many zones a location's units are spread; automatic ones over all the region has."""
    known = catalogue().get(each.name)
    return min(each.units, len(each.zones) or (known.zones if known else 1))


# ===== regions


def _step(wanted: Location, state: LocationState | None, mode: NetworkMode) -> Step | None:
    if state is None or state.deployed is None:
        return Step("create", wanted.name, None, wanted, mode, (RETRY,) if state and state.provisioning_state == "Failed" else ())
    changes = [*dict.fromkeys(CHANGES[key][0] for key in _changed(state.deployed, wanted))]
    if mode != state.network_mode:
        changes.append(MODE)
    if state.provisioning_state != "Succeeded":  # it failed, or was interrupted: what it came to is not known
        changes.append(RETRY)
    return Step("update", wanted.name, state.deployed, wanted, mode, tuple(changes)) if changes else None


def _changed(before: Location, after: Location) -> list[str]:
    return [key for key in CHANGES if getattr(before, key) != getattr(after, key)]


def _delete(name: str, state: LocationState, wanted: Service) -> Step:
    again = (RETRY,) if state.provisioning_state == "TerminationFailed" else ()
    return Step("delete", name, state.deployed, None, wanted.network_mode, again)


def _vip_change(step: Step, state: LocationState | None) -> VipChange | None:
    if step.action != "update" or step.before is None or step.after is None or state is None:
        return None
    turned = step.network_mode != state.network_mode
    moved = [CHANGES[key] for key in _changed(step.before, step.after) if CHANGES[key][1]]
    back = state.provisioning_state in LEAVING
    reasons = (*(name for name, *_ in moved), *((MODE,) if turned else ()), *((REINSTATED,) if back else ()))
    had, has = state.network_mode == "Internal", step.network_mode == "Internal"
    private = (had or has) and (turned or back or any(private for *_, private in moved))
    if not reasons:
        return None
    return VipChange(step.name, step.display_name, reasons, True, private, has, state.public_ips, state.private_ips)


def _settings(before: Service, after: Service) -> dict[str, tuple[str, str]]:
    pairs = {"tier": (before.tier, after.tier), MODE: (before.network_mode, after.network_mode)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# ===== what an operator should know


def _warnings(wanted: Service) -> Iterator[Violation]:
    serving = [each for each in wanted.locations if not each.disable_gateway]
    if len(serving) == 1:
        message = f"when {serving[0].display_name} is lost, no region is left to go to"
        yield Violation("OneRegionServes", message, "properties.additionalLocations")
    if wanted.network_mode == "Internal":
        message = "Internal mode: public names have no endpoints and are not probed; only rank answers, and routing is up to you"
        yield Violation("NotRoutedPublicly", message, "properties.virtualNetworkType")
    if TIERS[wanted.tier].sla is None:
        yield Violation("TierWithoutSla", f"tier {wanted.tier} promises no availability", "sku.name")
    yield from _thin(serving)
    yield from _shared(wanted)


def _thin(serving: list[Location]) -> Iterator[Violation]:
    """Tell when the other regions could not carry the largest one's clients (R24: whoever fails over wants capacity kept ready)."""
    units = sum(each.units for each in serving)
    largest = max(serving, key=lambda each: each.units, default=None)
    if largest is not None and len(serving) > 1 and largest.units > units - largest.units:
        message = f"when {largest.display_name} is lost, {units - largest.units} of {units} units are left for all clients"
        yield Violation("ThinReserve", message, "properties.additionalLocations")


def _shared(wanted: Service) -> Iterator[Violation]:
    seen: dict[str, str] = {}
    for each in wanted.locations:
        if each.subnet is not None and (other := seen.setdefault(each.subnet.key, each.display_name)) != each.display_name:
            yield Violation("SubnetShared", f"{each.display_name} and {other} share the subnet {each.subnet.text}", None)

