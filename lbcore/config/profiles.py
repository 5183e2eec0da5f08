"""The profile of `[traffic_manager]` and the nested ones: names become regions and profiles, and dns.Profile judges the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lbcore.config.schema import Document, EndpointEntry, NestedProfile, Routed, TrafficManager
from lbcore.errors import nearest
from lbcore.region import canonical

if TYPE_CHECKING:
    from lbcore._prefix import PrefixMap

__all__ = ["Problem", "options", "problems"]

Where = tuple[str | int, ...]
Problem = tuple[Where, object, str, str | None]

HERE = ("traffic_manager",)
MAX_DEPTH, MAX_SIZE = 10, 10_000  # dns.Profile's: known here too, for a tree beyond them is not even written out


def options(section: TrafficManager, ttl: int, geography: PrefixMap | None = None) -> dict[str, dict[str, Any]]:
    """Give the keyword arguments for dns.Profile of every profile of a sound section, by name, "" = its own.

    Endpoints and nested profiles are mappings. ttl: of profiles that have none of their own; geography: for those that go by place
    """
    nested = {entry.name: entry for entry in section.profiles}
    every = (("", section), *nested.items())
    return {name: {"name": name} | _options(entry, nested, geography) | _answers(entry, ttl) for name, entry in every}


def _answers(entry: Routed, ttl: int) -> dict[str, Any]:
    """Give what only counts where a name is steered by the profile itself."""
    return {"family": entry.family, "ttl": ttl if entry.ttl is None else entry.ttl, "ttl_min": entry.ttl_min}


def _options(entry: Routed, nested: Mapping[str, NestedProfile], geography: PrefixMap | None) -> dict[str, Any]:
    method = entry.traffic_routing_method.lower()
    return {
        "method": method, "enabled": entry.profile_status == "Enabled", "fail_open": entry.fail_open, "backup": tuple(entry.backup),
        "max_return": entry.max_return, "endpoints": tuple(_endpoint(one, nested, geography) for one in entry.endpoints),
        "geography": geography if method == "geographic" else None,
    }  # fmt: skip


def _endpoint(one: EndpointEntry, nested: Mapping[str, NestedProfile], geography: PrefixMap | None) -> dict[str, Any]:
    profile = None if one.profile is None else {"name": one.profile} | _options(nested[one.profile], nested, geography)
    return {
        "region": one.region or "", "profile": profile, "weight": one.weight, "priority": one.priority,
        "enabled": one.endpoint_status == "Enabled", "always_serve": one.always_serve, "geo": tuple(one.geo_mapping),
        "subnets": tuple(one.subnets), "min_children": one.min_child_endpoints,
        "min_children_ipv4": one.min_child_endpoints_ipv4, "min_children_ipv6": one.min_child_endpoints_ipv6,
    }  # fmt: skip


def problems(document: Document) -> list[Problem]:
    """Give what is wrong with names and nesting; the rest dns.Profile judges."""
    section = document.traffic_manager
    places: list[tuple[Where, Routed]] = [(HERE, section)]
    places += [((*HERE, "profiles", at), entry) for at, entry in enumerate(section.profiles)]
    wrong = [*_names(document, places), *_repeated(section), *_loops(section)]
    return wrong or [*_too_deep(section)] or [*_too_large(section)]


def _names(document: Document, places: list[tuple[Where, Routed]]) -> Iterator[Problem]:
    service = document.service
    entries = [*([service.primary] if service.primary else []), *service.regions]
    regions = [canonical(entry.name) for entry in entries]
    known = [entry.name for entry in document.traffic_manager.profiles]
    for where, entry in places:
        for at, name in enumerate(entry.backup):
            if canonical(name) not in regions:
                yield (*where, "backup", at), name, "a configured region", _near(canonical(name), regions)
        for at, one in enumerate(entry.endpoints):
            here = (*where, "endpoints", at)
            if (one.region is None) == (one.profile is None):
                yield here, one.region, "either region or profile", None
            elif one.region is not None and canonical(one.region) not in regions:
                yield (*here, "region"), one.region, "a configured region", _near(canonical(one.region), regions)
            elif one.profile is not None and one.profile not in known:
                yield (*here, "profile"), one.profile, "the name of one of [[traffic_manager.profiles]]", _near(one.profile, known)


def _near(name: str, known: list[str]) -> str | None:
    return next(iter(nearest(name, known)), None)


def _repeated(section: TrafficManager) -> Iterator[Problem]:
    names = [entry.name for entry in section.profiles]
    for at, name in enumerate(names):
        if name in names[:at]:
            yield (*HERE, "profiles", at, "name"), name, "a name used once", None


def _below(section: TrafficManager) -> dict[str, list[str]]:
    return {entry.name: [one.profile for one in entry.endpoints if one.profile is not None] for entry in section.profiles}


def _loops(section: TrafficManager) -> Iterator[Problem]:
    below = _below(section)
    for at, entry in enumerate(section.profiles):
        seen: set[str] = set()
        waiting = [*below[entry.name]]
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += below.get(name, [])
        if entry.name in seen:
            yield (*HERE, "profiles", at, "name"), entry.name, "a profile that does not lead back to itself", None


def _too_deep(section: TrafficManager) -> Iterator[Problem]:
    below = _below(section)
    level = set(below)
    for _ in range(MAX_DEPTH):
        level = {child for name in level for child in below[name]}
    if level:
        yield (*HERE, "profiles"), f"more than {MAX_DEPTH} profiles deep", f"nesting of at most {MAX_DEPTH} profiles", None


def _too_large(section: TrafficManager) -> Iterator[Problem]:
    """Tell trees of profiles that are too large; names are known, nesting is not deep."""
    nested, sizes = {entry.name: entry for entry in section.profiles}, dict[str, int]()

    def size(entry: Routed) -> int:
        return 1 + len(entry.endpoints) + sum(named(one.profile) for one in entry.endpoints if one.profile is not None)

    def named(name: str) -> int:
        if name not in sizes:
            sizes[name] = size(nested[name])
        return sizes[name]

    if (found := size(section)) > MAX_SIZE or max(map(named, nested), default=0) > MAX_SIZE:
        expected = f"at most {MAX_SIZE:,} endpoints below a profile, counting a nested one as often as it is reached"
        yield (*HERE, "profiles"), f"{max(found, *sizes.values()):,} endpoints", expected, None
