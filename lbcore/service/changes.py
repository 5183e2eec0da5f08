"""Changes: the rules that look at what there was before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lbcore.service.codes import Violation
from lbcore.service.facts import Facts, Live, at, called, shown
from lbcore.service.model import Service

__all__ = ["capacity_kept", "changed"]


def changed(wanted: Service, current: Service, facts: Facts) -> Iterator[Violation]:
    """Give what may not change: name, domain and primary, and with strict_azure a VIP whose public IP address stays (V3, V10)."""
    for name, before, after, target in (
        ("name", current.name.lower(), wanted.name.lower() if isinstance(wanted.name, str) else "", "name"),
        ("domain", current.domain, wanted.domain, "properties.domain"),
        ("primary location", current.primary.name, wanted.primary.name, "location"),
    ):
        if before != after:
            message = f"the {name} of a service is set when it is created and stays {shown(before)}; got {shown(after)}"
            yield Violation("PropertyChangeNotAllowed", message, target)
    if facts.strict_azure:
        yield from _public_ips(wanted, current)


def _public_ips(wanted: Service, current: Service) -> Iterator[Violation]:
    """Ask for another public IP address where the network or the zones change (V10)."""
    old = {each.name: each for each in current.locations}
    for each in wanted.locations:
        before = old.get(each.name)
        if before is None or each.public_ip is None or each.public_ip != before.public_ip:
            continue
        reasons = {
            "the network type": wanted.network_mode != current.network_mode,
            "the subnet": each.subnet != before.subnet,
            "the zones": each.zones != before.zones,
        }
        if any(reasons.values()):
            changed = " and ".join(name for name, changes in reasons.items() if changes)
            message = f"{called(each)}: {changed} can only change together with the public IP address (strict_azure)"
            yield Violation("PublicIpMustChange", message, at(wanted, each, "public_ip"))


def capacity_kept(wanted: Service, current: Service, live: Mapping[str, Live]) -> Iterator[Violation]:
    """Refuse to give up what alone still works: units and zones of one location, or the last region that works (V12, R58)."""
    kept = {each.name: each for each in wanted.locations}
    for before in current.locations:
        each, now = kept.get(before.name), live.get(before.name, Live())
        if each is None:
            continue
        if each.zones and each.zones != before.zones and set(each.zones) <= now.zones_down:
            message = f"{called(each)}: of the zones wanted, {', '.join(each.zones)}, none works now"
            yield Violation("WouldLoseCapacity", message, at(wanted, each, "zones"))
        if now.units is not None and _loses(before.units, each.units, now.units):
            message = f"{called(each)}: {now.units} of {before.units} units work now; going to {shown(each.units)} may lose them all"
            yield Violation("WouldLoseCapacity", message, at(wanted, each, "units"))
    stays = any(not each.disable_gateway for each in wanted.locations)
    if stays and not _works(wanted, live) and _works(current, live):
        message = "no location that stays enabled works now: bring one up first"
        yield Violation("WouldLoseCapacity", message, "properties.additionalLocations")


def _loses(before: int, after: object, live: int) -> bool:
    """Say whether the units taken away may be all that work."""
    return isinstance(after, int) and 0 < live < before and before - after >= live


def _works(service: Service, live: Mapping[str, Live]) -> bool:
    return any(each.disable_gateway is False and live.get(each.name, Live()).units != 0 for each in service.locations)
