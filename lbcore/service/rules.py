"""The rules of a service: everything that is wrong with a wish, each with code, message and place, all at once.

Field rules look at one location, service rules at all of them; those that look at what there was before are in `changes`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from lbcore.errors import nearest
from lbcore.region import CataloguedRegion, canonical, catalogue
from lbcore.sense.monitor import URL_FORM, Monitor, Target
from lbcore.service.changes import capacity_kept, changed
from lbcore.service.codes import Violation
from lbcore.service.facts import Facts, at, called, shown
from lbcore.service.model import NETWORK_MODES, TIERS, Location, Service

__all__ = ["validate"]

SERVICE_NAME = re.compile(r"[a-zA-Z](?:[a-zA-Z0-9-]{0,48}[a-zA-Z0-9])?", re.ASCII)
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DOMAIN = re.compile(rf"{LABEL}(?:\.{LABEL})*", re.ASCII)
REGION_NAME = re.compile(r"[a-z](?:[a-z0-9-]{0,38}[a-z0-9])?", re.ASCII)
MAX_LABEL, MAX_NAME = 63, 253  # RFC 1035 §2.3.4


def validate(wanted: Service, current: Service | None = None, facts: Facts | None = None, *, force: bool = False) -> list[Violation]:
    """Give every violation of a wish, in the order of the body; [] when it may be planned.

    current: what was wanted until now, None when the service is new
    force: lose the only live capacity, if that is what is wanted (V12)
    """
    facts = facts or Facts()
    found = [*_service(wanted)]
    for each in wanted.locations:
        found += [*_place(wanted, each), *_size(wanted, each, facts), *_zones(wanted, each), *_network(wanted, each, facts)]
    found += [*_together(wanted), *_tier(wanted, current)]
    if current is not None:
        found += changed(wanted, current, facts)
        if not force:
            found += capacity_kept(wanted, current, facts.live)
    return list(dict.fromkeys(found))


# ===== the service


def _service(wanted: Service) -> Iterator[Violation]:
    if not _matches(SERVICE_NAME, wanted.name):
        message = f"a service's name is 1..50 letters, digits and hyphens, the first a letter, the last no hyphen; got {shown(wanted.name)}"
        yield Violation("InvalidServiceName", message, "name")
    if not _matches(DOMAIN, wanted.domain) or len(wanted.domain) > MAX_NAME:
        yield Violation("InvalidDomain", f"expected a DNS name such as example.com, got {shown(wanted.domain)}", "properties.domain")
    if wanted.tier not in TIERS:
        message = f"expected one of {', '.join(TIERS)}, got {shown(wanted.tier)}{_near(wanted.tier, TIERS)}"
        yield Violation("InvalidSku", message, "sku.name")
    if wanted.network_mode not in NETWORK_MODES:
        message = f"expected None, External or Internal, got {shown(wanted.network_mode)}{_near(wanted.network_mode, NETWORK_MODES)}"
        yield Violation("InvalidNetworkType", message, "properties.virtualNetworkType")


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _near(value: object, known: Mapping[str, object] | tuple[str, ...]) -> str:
    by_fold = {name.lower(): name for name in known}
    close = nearest(value, by_fold) if isinstance(value, str) and len(value) < 200 else ()
    return f"; did you mean {by_fold[close[0]]!r}?" if close else ""


# ===== one location


def _place(wanted: Service, each: Location) -> Iterator[Violation]:
    target = at(wanted, each, "name")
    placed = each.lat is not None and each.lon is not None
    if each.name not in catalogue() and not (placed and _matches(REGION_NAME, each.name)):
        why = "a name of letters, digits and hyphens" if placed else "a known region, or its coordinates in geo"
        yield Violation("LocationNotAvailable", f"expected {why}, got {shown(each.display_name)}{_near(each.name, catalogue())}", target)
    elif each.name not in catalogue() and (not each.display_name.isascii() or len(each.display_name) > 2 * MAX_LABEL):
        yield Violation("LocationNotAvailable", f"expected plain letters, digits and hyphens, got {shown(each.display_name)}", target)
    elif _matches(SERVICE_NAME, wanted.name) and len(wanted.regional_label(each.name)) > MAX_LABEL:
        message = f"{wanted.regional_label(each.name)} would be a host name's part of over {MAX_LABEL} letters: shorten the service's name"
        yield Violation("HostNameTooLong", message, target)
    yield from _coordinates(wanted, each)
    try:
        if each.gateway:
            Target.parse(each.name, each.gateway, Monitor())
    except (ValueError, AttributeError):
        yield Violation("InvalidGateway", f"expected {URL_FORM}, got {shown(each.gateway)}", at(wanted, each, "gateway"))
    if each.disable_gateway and wanted.network_mode == "Internal":
        message = "a gateway cannot be disabled in Internal mode, where nobody but its users routes around it"
        yield Violation("NotSupportedInInternalMode", message, at(wanted, each, "disable_gateway"))


def _coordinates(wanted: Service, each: Location) -> Iterator[Violation]:
    for key, value, most in (("lat", each.lat, 90), ("lon", each.lon, 180)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and abs(value) <= most and math.isfinite(value)):
            yield Violation("InvalidGeo", f"expected degrees within -{most}..{most}, got {shown(value)}", at(wanted, each, key))
    if (each.lat is None) != (each.lon is None):
        missing = "lat" if each.lat is None else "lon"
        yield Violation("InvalidGeo", "lat and lon go together", at(wanted, each, missing))


def _size(wanted: Service, each: Location, facts: Facts) -> Iterator[Violation]:
    tier = TIERS.get(wanted.tier) if isinstance(wanted.tier, str) else None
    most = facts.most_units(tier) if tier else max(facts.most_units(one) for one in TIERS.values())
    least = tier.minimum if tier else 0
    units: object = each.units
    if not isinstance(units, int) or isinstance(units, bool) or not least <= units <= most:
        allowed = f"{least}..{most}" if most > least else f"exactly {most}"
        message = f"{called(each)}: a location of tier {shown(wanted.tier)} has {allowed} units, a whole number; got {shown(units)}"
        yield Violation("InvalidSkuCapacity", message, at(wanted, each, "units"))


def _zones(wanted: Service, each: Location) -> Iterator[Violation]:
    zones, target = each.zones, at(wanted, each, "zones")
    if not isinstance(zones, tuple) or not all(isinstance(zone, str) for zone in zones):
        yield Violation("InvalidZone", f'expected a list such as ["1", "2"], got {shown(zones)}', target)
        return
    known = _zones_of(catalogue().get(each.name))
    if zones and each.name in catalogue() and not known:
        provider = catalogue()[each.name].provider
        having = ", ".join(sorted(one.name for one in catalogue().values() if one.zones > 1 and one.provider == provider))
        yield Violation("NotSupported", f"{called(each)} has no availability zones; these have: {having}", target)
        return
    for zone, count in Counter(zones).items():
        if known and zone not in known:
            yield Violation("InvalidZone", f"{called(each)} has the zones {', '.join(known)}; got {shown(zone)}", target)
        elif not re.fullmatch(r"[1-9][0-9]?", zone, re.ASCII):
            yield Violation("InvalidZone", f"a zone is a number such as 1, got {shown(zone)}", target)
        elif count > 1:
            yield Violation("InvalidZone", f"{called(each)}: zone {zone} is named {count} times", target)
    units, spread = each.units, len(set(zones))
    if spread and isinstance(units, int) and units % spread:
        message = f"{called(each)}: {shown(units)} units cannot be spread evenly over {spread} zones; take a multiple of {spread}"
        yield Violation("UnitsNotMultipleOfZones", message, at(wanted, each, "units"))


def _zones_of(region: CataloguedRegion | None) -> tuple[str, ...]:
    """Give the names of a region's zones, () when it is not zoned or not known."""
    return tuple(str(zone + 1) for zone in range(region.zones)) if region and region.zones > 1 else ()


def _network(wanted: Service, each: Location, facts: Facts) -> Iterator[Violation]:
    target = at(wanted, each, "subnet")
    if wanted.network_mode not in NETWORK_MODES:
        return
    if wanted.network_mode == "None":
        if each.subnet is not None:
            yield Violation("SubnetNotAllowed", f"{called(each)}: a subnet needs the network type External or Internal", target)
    elif each.subnet is None:
        yield Violation("SubnetRequired", f"{called(each)}: network type {wanted.network_mode} needs a subnet in that region", target)
    else:
        yield from _subnet_place(wanted, each, facts)
    yield from _subscription(wanted, each)


def _subnet_place(wanted: Service, each: Location, facts: Facts) -> Iterator[Violation]:
    assert each.subnet is not None
    said = each.subnet_location if isinstance(each.subnet_location, str) else ""
    place = canonical(facts.networks.get(each.subnet.network, "") or said)
    if not place:
        message = f"nobody knows in which region {shown(each.subnet.network)} is; say so in virtualNetworkConfiguration.location"
        yield Violation("SubnetLocationUnknown", message, at(wanted, each, "subnet"))
    elif place != each.name:
        message = f"{called(each)} needs a subnet of its own region; {shown(each.subnet.network)} is in {shown(place)}"
        yield Violation("SubnetLocationMismatch", message, at(wanted, each, "subnet"))


def _subscription(wanted: Service, each: Location) -> Iterator[Violation]:
    """Compare with the first one named in the service, the primary's where it has one."""
    ids = [one for place in wanted.locations for one in (place.subnet, place.public_ip) if one is not None]
    for name, value in (("subnet", each.subnet), ("public_ip", each.public_ip)):
        if value is not None and value.subscription != ids[0].subscription:
            message = f"expected subscription {ids[0].subscription}, that of the service's other resources; got {value.subscription}"
            yield Violation("SubnetSubscriptionMismatch", message, at(wanted, each, name))


# ===== all locations together


def _together(wanted: Service) -> Iterator[Violation]:
    seen: dict[str, Location] = {}
    for each in wanted.locations:
        if each.name in seen:
            primary = " (the primary)" if seen[each.name] is wanted.primary else ""
            message = f"{called(each)} is the same region as {called(seen[each.name])}{primary}; name it once"
            yield Violation("DuplicateLocation", message, at(wanted, each, "name"))
        seen.setdefault(each.name, each)
    if all(each.disable_gateway is True for each in wanted.locations):
        message = "at least one location's gateway must stay enabled; delete the service to end it"
        yield Violation("CannotDisableAllGateways", message, at(wanted, wanted.primary, "disable_gateway"))


def _tier(wanted: Service, current: Service | None) -> Iterator[Violation]:
    tier = TIERS.get(wanted.tier) if isinstance(wanted.tier, str) else None
    if tier is None:
        return
    if wanted.additional_locations and not tier.multi_region:
        yield from _locations_in_the_way(wanted, current)
    for each in wanted.locations:
        if each.zones and not tier.zones:
            message = f"availability zones need tier Premium, not {tier.name}"
            yield Violation("FeatureNotSupportedBySku", message, at(wanted, each, "zones"))


def _locations_in_the_way(wanted: Service, current: Service | None) -> Iterator[Violation]:
    old = {each.name for each in current.additional_locations} if current else set()
    names = [each.name for each in wanted.additional_locations if each.name in old]
    if names:
        message = f"tier {wanted.tier} has one location: remove {', '.join(names)} in the same Save"
        yield Violation("LocationsPresent", message, "properties.additionalLocations")
    if len(names) < len(wanted.additional_locations):
        message = f"more than one location needs tier Premium, not {wanted.tier}"
        yield Violation("FeatureNotSupportedBySku", message, "properties.additionalLocations")
