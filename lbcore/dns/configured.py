"""Zones and profiles as lbcore.toml has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.name

from lbcore.dns.names import key_of
from lbcore.dns.prepare import check_zones
from lbcore.dns.profile import Profile
from lbcore.dns.zone import Zone
from lbcore.errors import ConfigError, Violation, nearest

if TYPE_CHECKING:
    from lbcore.config import Settings
    from lbcore.dns.dnssec import Signer

__all__ = ["profiles_of", "zones_of"]

_KEY = re.compile(r"(dns|traffic_manager)\b(?!.*:\d+$)")

KEYS = {
    "method": "traffic_routing_method", "geo": "geo_mapping", "min_children": "min_child_endpoints",
    "min_children_ipv4": "min_child_endpoints_ipv4", "min_children_ipv6": "min_child_endpoints_ipv6",
}  # fmt: skip


def profiles_of(settings: Settings) -> dict[str, Profile]:
    """Give the profiles by name, "" is that of `[traffic_manager]`; ConfigError tells everything that is wrong with all of them."""
    profiles: dict[str, Profile] = {}
    violations: list[Violation] = []
    for number, (name, options) in enumerate(settings.profile_options().items()):
        where = f"traffic_manager.profiles[{number - 1}]" if name else "traffic_manager"
        try:
            profiles[name] = Profile(**options)
        except ConfigError as error:
            # what is wrong with a nested profile is told where that stands
            violations += [_in_the_file(found, where) for found in error.violations if not _of_nested(found)]
    if violations:
        raise ConfigError(violations)
    return profiles


def _of_nested(violation: Violation) -> bool:
    return re.match(r"dns\.endpoints\[\d+\]\.profile\.", violation.where) is not None


def _in_the_file(violation: Violation, where: str) -> Violation:
    """Say it in the file's keys: "dns.endpoints[0].geo" is endpoints[0].geo_mapping of the table at `where`."""
    head, dot, key = violation.where.removeprefix("dns").rpartition(".")
    return replace(violation, where=f"{where}{head}{dot}{KEYS.get(key, key)}")


def zones_of(settings: Settings, before: Iterable[Zone] = ()) -> list[Zone]:
    """Give the zones of a configuration; ConfigError tells everything that is wrong with all of them.

    before: zones in use, which are given again where nothing about them has changed: what was prepared for them then still holds
    """
    try:
        return _zones_of(settings, before)
    except ConfigError as error:
        raise ConfigError([_located(violation, settings.name) for violation in error.violations]) from None


def _zones_of(settings: Settings, before: Iterable[Zone]) -> list[Zone]:
    profiles, old = profiles_of(settings), {zone.key: zone for zone in before}
    zones: list[Zone] = []
    violations: list[Violation] = []
    for number, options in enumerate(settings.zone_options()):
        where = f"dns.zones[{number}]" if settings.document.dns.zones else "dns"
        try:
            zones.append(_zone(options, profiles, old))
        except ConfigError as error:
            violations += [_renamed(violation, where) for violation in error.violations]
    if violations:
        raise ConfigError(violations)
    check_zones(zones)
    return zones


def _zone(options: Mapping[str, Any], profiles: Mapping[str, Profile], old: Mapping[bytes, Zone]) -> Zone:
    fields = {key: value for key, value in options.items() if key not in ("names", "keys")}
    names: Mapping[str, str] = options["names"]
    steered = {name: profiles.get(profile, profiles[""]) for name, profile in names.items()}
    wrong = [_unknown(name, profile, profiles) for name, profile in names.items() if profile not in profiles]
    last = old.get(key_of(dns.name.from_text(options["origin"])))
    signer = None
    try:
        signer = _signer(options["origin"], options["keys"], last) if options["keys"] is not None else None
    except ConfigError as error:
        wrong += error.violations
    try:
        zone = Zone(profiles=steered, keys=signer, **fields)
    except OSError as error:
        wrong.append(Violation("dns.records", str(error.filename), f"a file that can be read ({error.strerror})"))
    except ConfigError as error:
        wrong += error.violations
    if wrong:
        raise ConfigError(wrong)
    return last if last is not None and last.same(zone) else zone


def _signer(origin: str, folder: Path, last: Zone | None) -> Signer:
    """Give what signs a zone, the same as before where it reads the same folder: it knows the signatures that it has made."""
    from lbcore.dns.dnssec import Signer  # needs cryptography, which unsigned zones do not

    if last is not None and isinstance(last.keys, Signer) and last.keys.directory == folder:
        return last.keys
    return Signer(origin, folder)


def _unknown(name: str, profile: str, profiles: Iterable[str]) -> Violation:
    near = next(iter(nearest(profile, profiles)), None)
    return Violation(f"dns.names.{name}", profile, 'the name of a profile, or "" for the service\'s', near)


def _located(violation: Violation, file: str) -> Violation:
    """Name the file, but where a line of a zone file is named."""
    return replace(violation, where=f"{file}: {violation.where}") if _KEY.match(violation.where) else violation


def _renamed(violation: Violation, where: str) -> Violation:
    """Say where in the file it stands; lines of zone files stay as they are."""
    return replace(violation, where=where + violation.where[3:]) if violation.where.startswith("dns.") else violation
