"""Services for the tests of lbcore.service: ready-made ones, Hypothesis strategies, and a provisioner that is only arithmetic."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from lbcore.service.model import NETWORK_MODES, Location, ResourceId, Service, ServiceState, location, new_service
from lbcore.service.plan import Plan, Step, plan
from lbcore.service.progress import Granted, accept, begin, done

ZONED = ("westus2", "westeurope", "eastasia", "uksouth", "japaneast")
PLAIN = ("westus", "canadaeast", "ukwest")
FOLDER = "/subscriptions/s/resourceGroups/r/providers/Microsoft.Network"


def subnet(region: str, name: str = "n") -> str:
    return f"{FOLDER}/virtualNetworks/{region}/subnets/{name}"


def public_ip(name: str) -> str:
    return f"{FOLDER}/publicIPAddresses/{name}"


def contoso(*others: str, **settings: Any) -> Service:
    """Give a service in West US 2 and other regions, one unit each."""
    return new_service("contoso", location("West US 2"), additional_locations=tuple(map(location, others)), **settings)


class Ledger:
    """A provisioner that gives out each address once."""

    def __init__(self, first: int = 1) -> None:
        self._numbers = itertools.count(first)

    def grant(self, step: Step, planned: Plan) -> Granted:
        """Give a region what the plan says that it needs: new VIPs where they change, else none."""
        change = planned.vip_change(step.name)
        public = step.action == "create" or (change is not None and change.public)
        private = step.network_mode == "Internal" and (step.action == "create" or (change is not None and change.private))
        return Granted((self._next("203.0.0.0"),) if public else (), (self._next("10.0.0.0"),) if private else (), f"http://{step.name}.test")

    def _next(self, base: str) -> str:
        return str(ipaddress.ip_address(base) + next(self._numbers))


def carry_out(
    state: ServiceState | None, wanted: Service, ledger: Ledger, each: Callable[[ServiceState], object] = lambda state: None
) -> ServiceState:
    """Do all that the plan for a wish says; `each` sees every state on the way."""
    planned = plan(state, wanted)
    after = accept(state, planned)
    each(after)
    for step in planned.steps:
        after = begin(after, step)
        each(after)
        after = done(after, step, planned, ledger.grant(step, planned), now=0.0)
        each(after)
    return after


def running(wanted: Service, ledger: Ledger | None = None) -> ServiceState:
    """Give a service that runs as it is wanted."""
    return carry_out(None, wanted, ledger or Ledger())


# ===== strategies: only sound services


@st.composite
def places(draw: st.DrawFn, name: str, mode: str) -> Location:
    zones = draw(st.sets(st.sampled_from(["1", "2", "3"]))) if name in ZONED else set()
    units = draw(st.integers(1, 3)) * max(1, len(zones))
    inside = ResourceId.subnet(subnet(name, draw(st.sampled_from("ab")))) if mode != "None" else None
    own = draw(st.sampled_from([None, "one", "two"]))
    return location(
        name, units=units, zones=[*zones], disable_gateway=mode != "Internal" and draw(st.booleans()), subnet=inside,
        subnet_location=name if inside else "", public_ip=ResourceId.public_ip(public_ip(own)) if own else None,
        gateway=draw(st.sampled_from(["", "http://127.0.0.1:8081"])),
    )  # fmt: skip


@st.composite
def services(draw: st.DrawFn) -> Service:
    mode = draw(st.sampled_from(NETWORK_MODES))
    others = draw(st.lists(st.sampled_from([*ZONED[1:], *PLAIN]), unique=True, max_size=5))
    primary = replace(draw(places("westus2", mode)), disable_gateway=False)
    additional = tuple(draw(places(name, mode)) for name in others)
    return new_service("contoso", primary, additional_locations=additional, network_mode=mode)
