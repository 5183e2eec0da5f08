"""lbcore.toml -> Settings; everything that is wrong with a file is reported at once, each with file, key and what was expected.

Pydantic checks the shape (`schema`); what it cannot say (regions named twice, the monitor's grid, a detector's settings) is asked of
the modules that own those rules, so that no rule stands twice. Keys of what is still to come (`[fleet]`) are refused by name, and so are
those that mean nothing without a table beside them: a setting that is accepted and does nothing would be a lie.
"""

from __future__ import annotations

import os
import platform
import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from lbcore import detect
from lbcore._prefix import PrefixMap
from lbcore.errors import ConfigError, Violation, nearest, shown
from lbcore.region import Region, canonical, catalogue
from lbcore.sense.geo import GeoIP
from lbcore.sense.monitor import Monitor

try:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo
except ImportError as error:
    raise ImportError("lbcore.toml needs pydantic, which is not installed: pip install 'lbcore[cli]'", name="pydantic") from error

from lbcore.config import following, management, profiles, roles
from lbcore.config.following import Following
from lbcore.config.schema import Document, RegionEntry, ZoneSection, split_listen

__all__ = ["Document", "Settings", "load", "parse", "read", "split_listen"]

Where = tuple[str | int, ...]
Problem = tuple[Where, object, str, str | None]  # key path, value, what was expected, nearest valid choice

LONGEST = 8 << 20  # bytes: reading text of any length would keep a process that serves from its work
MONITOR = ("traffic_manager", "monitor")
ALIKE = ("protocol", "port", "path", "rise", "host", "verify", "ca", "client_certificate", "jitter", "max_concurrency", "strict_azure")
MONITOR_SETTINGS = {
    "interval_in_seconds": "interval", "timeout_in_seconds": "timeout", "tolerated_number_of_failures": "tolerated",
    "expected_status_code_ranges": "expected", "custom_headers": "headers",
} | {name: name for name in ALIKE}  # fmt: skip
MONITOR_KEYS = {setting: key for key, setting in MONITOR_SETTINGS.items()}
NOT_YET = {
    (): ("fleet",),
    ("traffic_manager",): ("relative_name", "admission", "traffic_view_enrollment_status"),
    MONITOR: ("vantages", "quorum"),
}  # fmt: skip
MOVED: dict[tuple[str, ...], str] = {("service", "max_units_per_location"): "management.max_units_per_location"}
RENAMED = {"location": "name", "additional_locations": "regions", "disable_gateway": "enabled", "geo": "lat", "tls_verify": "verify"}


@dataclass(frozen=True, slots=True)
class Settings:
    """A valid lbcore.toml: its tables as they stand in `.document`, and what the library makes of them."""

    document: Document
    name: str  # of the file, for what is found wrong later
    folder: Path  # relative paths in the file start here
    regions: tuple[Region, ...]  # the primary first, when there is one
    monitor: Monitor
    content: bytes = field(default=b"", repr=False)  # of the file, for processes that are to read the same
    rotation: bytes = field(default=b"", repr=False)  # the primary's document that regions and [traffic_manager] are of, for the same
    draining: frozenset[str] = frozenset()  # regions that get nobody new
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # names in full of regions' own hosts, and their addresses

    def region(self, name: str) -> Region:
        """Give a region by its name in any spelling; it must be one of them."""
        return next(region for region in self.regions if region.name == canonical(name))

    @property
    def primary(self) -> Region | None:
        """Give the region of `[service.primary]`, None without one."""
        return self.regions[0] if self.document.service.primary else None

    @property
    def ttl(self) -> int:
        """Give the seconds that a DNS answer may be kept: as set, else 30, or 60 with strict_azure."""
        ttl = self.document.traffic_manager.ttl
        return ttl if ttl is not None else 60 if self.monitor.strict_azure else 30

    def balancer_options(self) -> dict[str, Any]:
        """Give the keyword arguments for Balancer, a new detector among them; ValueError or OSError for a database that cannot be used."""
        if not self.regions:
            raise ConfigError([Violation(f"{self.name}: service.regions", None, "regions, which the primary of [sync] tells `lbcore run`")])
        latency = self.document.latency
        return {
            "regions": self.regions, "locate": self.locate(), "detector": self.detector(),
            "estimator": latency.estimator, "tau": latency.ewma_tau_seconds, "prior": latency.prior,
        }  # fmt: skip

    def prober_options(self) -> dict[str, Any]:
        """Give the keyword arguments for Prober, besides the Balancer."""
        return {"monitor": self.monitor, "anchors": tuple(self.document.traffic_manager.monitor.anchors)}

    def transport_options(self) -> dict[str, Any]:
        """Give the keyword arguments for the transports, besides the Balancer."""
        return self.document.http.model_dump(include={"retries", "keep_host"})

    @property
    def roles(self) -> tuple[str, ...]:
        """Give what the file asks this node to do: of front-door, gateway and dns, those whose table it has."""
        return roles.roles(self.document)

    @property
    def following(self) -> Following | None:
        """Give whom this node follows, None = nobody: the file says all there is."""
        return following.following(self.document, self.folder)

    def zone_options(self) -> list[dict[str, Any]]:
        """Give the keyword arguments for each dns.Zone, but `names`: steered names and the name of the profile of each, "" = the service's.

        `records` and `keys` are paths, None where there are none. `lbcore.dns.configured` makes the zones.
        """
        service, section = self.document.service, self.document.dns
        if section.zones:
            return [self._zone(entry, entry.zone, entry.names) for entry in section.zones]
        return [self._zone(section, section.zone or service.domain, [section.name or service.name.lower()])]

    def _zone(self, section: ZoneSection, origin: str, names: dict[str, str] | list[str]) -> dict[str, Any]:
        options = section.model_dump(include=set(ZoneSection.model_fields))
        files = {key: self.folder / options[key] if options[key] else None for key in ("records", "keys")}
        named = names if isinstance(names, dict) else dict.fromkeys(names, "")
        within = {name: addresses for name, addresses in self.hosts.items() if f".{name}".endswith(f".{origin.rstrip('.').lower()}")}
        hosts = {"hosts": within, "hosts_ttl": self.ttl}
        return options | files | hosts | {"origin": origin, "names": named, "nameservers": tuple(section.nameservers or ())}

    def profile_options(self) -> dict[str, dict[str, Any]]:
        """Give the keyword arguments for each dns.Profile by its name, "" = that of [traffic_manager]; names that lead to it are not said.

        Who is in which subdivision is read from the databases where a profile asks for it: OSError or ValueError for one it cannot use.
        """
        section, latency = self.document.traffic_manager, self.document.latency
        files, own = [str(self.folder / name) for name in latency.database], [(entry.network, entry.group) for entry in latency.networks]
        by_place = "Geographic" in (one.traffic_routing_method for one in (section, *section.profiles))
        geography = PrefixMap.from_mmdb(files, key="subdivision", overrides=own) if by_place and files else None
        return profiles.options(section, self.ttl, geography)

    @property
    def cookie_secret(self) -> Path | None:
        """Give the path of the file of cookie secrets, None where there is none."""
        return self.folder / self.document.dns.cookie_secret if self.document.dns.cookie_secret else None

    @property
    def dns_listen(self) -> list[tuple[str, int]]:
        """Give the addresses and ports that DNS listens on."""
        return [split_listen(each) for each in self.document.dns.listen]

    def detector(self) -> detect.Guard:
        """Give a new detector as `[detector]` describes it, guarded against flapping and a sick vantage."""
        section = self.document.detector
        inner = detect.load(section.kind, **_detector_settings(section.kind, section.settings, self.monitor))
        first = section.hold_down_seconds
        return detect.Guard(
            inner, suspect=lambda: detect.VantageSuspect(interval=self.monitor.interval),
            hold_down=(lambda: detect.HoldDown(base=first)) if first else None,
        )  # fmt: skip

    def locate(self) -> str | PrefixMap | None:
        """Give a path wherever that is enough: only a path is read again when the file changes."""
        latency = self.document.latency
        files = [str(self.folder / name) for name in latency.database]
        own = [(entry.network, entry.group) for entry in latency.networks]
        if not own and len(files) < 2:
            return files[0] if files else None
        if len(files) < 2:
            return GeoIP(files[0] if files else None, own).map
        return PrefixMap.from_mmdb(files, overrides=own)


def load(path: str | os.PathLike[str]) -> Settings:
    """Read a file; ConfigError lists everything that is wrong with it, OSError when it cannot be read."""
    file = Path(path)
    with file.open("rb") as opened:
        content = opened.read(LONGEST + 1)
    if len(content) > LONGEST:
        raise ConfigError([Violation(str(file), f"more than {LONGEST} bytes", "a file of at most 8 MiB")])
    return read(content, file)


def read(content: bytes, path: str | os.PathLike[str]) -> Settings:
    """Read what a file contained; errors as `load`."""
    file = Path(path)
    try:
        data = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError([Violation(f"{file}:{line}", content[error.start : error.end], "text in UTF-8")]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_violation(file, str(error), content.decode())]) from None
    return replace(parse(data, str(file), file.parent), content=content)


def parse(data: Mapping[str, Any], name: str = "settings", folder: Path = Path(), *, founding: bool = True) -> Settings:
    """Check settings that were read already. `name` opens every violation; relative paths start in `folder`.

    founding: beside `[management]`, the regions are those that a service is to be created with, not those that it has
    """
    problems, document = _shape(data)
    spoilt = {where for where, *_ in problems}
    regions, found = _regions(data, spoilt)
    problems += found
    monitor, found = _monitor(data, spoilt, folder)
    problems += found
    problems += [*_detector_problems(data, spoilt, monitor), *_database_problems(data, spoilt, folder), *_zone_problems(data)]
    if document is not None:
        problems += [*profiles.problems(document), *roles.problems(document, folder), *following.problems(document, folder)]
        problems += management.problems(document, folder, founding)
    if problems or document is None:
        problems.sort(key=lambda problem: _place_in(data, problem[0]))
        raise ConfigError(Violation(f"{name}: {_dotted(where)}", value, expected, near) for where, value, expected, near in problems)
    return Settings(document, name, folder, tuple(regions), monitor)


# ===== what pydantic says, in our words


def _fields(model: type[BaseModel], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, info in model.model_fields.items():
        yield (*at, name), info
        for inner in (info.annotation, *get_args(info.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _fields(inner, (*at, name))


EXPECTED = {at: info.description or "" for at, info in _fields(Document)}


def _shape(data: Mapping[str, Any]) -> tuple[list[Problem], Document | None]:
    try:
        return [], Document.model_validate(data)
    except ValidationError as error:
        return [_problem(tuple(found["loc"]), found["type"], found["input"]) for found in error.errors(include_url=False)], None


def _problem(where: Where, kind: str, value: object) -> Problem:
    at = tuple(part for part in where if isinstance(part, str))
    if kind == "missing":
        return where, None, EXPECTED[at], None
    if kind == "extra_forbidden":
        return _unknown(where, at, value)
    while at not in EXPECTED:  # inside a value, say a key of a table that may hold any
        at = at[:-1]
    return where, shown(value), EXPECTED[at], None


def _unknown(where: Where, at: tuple[str, ...], value: object) -> Problem:
    parent, key = at[:-1], at[-1]
    if key in NOT_YET.get(parent, ()):
        return where, shown(value), "no such key: it belongs to the multi-region service, which this version does not have", None
    if (moved := MOVED.get(at)) is not None:
        return where, shown(value), f"no such key here; it is {moved}", moved
    known = [path[-1] for path in EXPECTED if path[:-1] == parent]
    renamed = RENAMED.get(key)
    near = renamed if renamed in known else next(iter(nearest(key, known)), None)
    return where, shown(value), "a known key" if near else f"one of the keys {', '.join(sorted(known))}", near


def _place_in(data: Any, where: Where) -> list[int]:
    """Give what sorts problems as the file does; what is missing comes last in its table."""
    place = []
    for part in where:
        if isinstance(data, Mapping):
            place.append([*data].index(part) if part in data else len(data))
            data = data.get(part)
        else:
            place.append(part if isinstance(part, int) else 0)
            data = data[part] if isinstance(data, list) and isinstance(part, int) else None
    return place


def _dotted(where: Where) -> str:
    text = ""
    for part in where:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else repr(part))
    return text or "the file"


def _syntax_violation(file: Path, message: str, text: str) -> Violation:
    found = re.search(r" \(at line (\d+), column \d+\)$", message)
    number = int(found[1]) if found else text.count("\n") + 1
    lines = text.splitlines() or [""]
    reason = message[: found.start()] if found else message
    return Violation(f"{file}:{number}", lines[min(number, len(lines)) - 1].strip(), f"TOML ({reason})")


# ===== what needs a look at more than one key


def _at(data: object, *path: str) -> Any:
    for key in path:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _regions(data: Mapping[str, Any], spoilt: set[Where]) -> tuple[list[Region], list[Problem]]:
    """Make the regions, in every entry that is sound by itself; whatever else is wrong, names are compared."""
    entries: list[tuple[Where, Any]] = [(("service", "primary"), _at(data, "service", "primary"))]
    listed = _at(data, "service", "regions")
    entries += [(("service", "regions", i), entry) for i, entry in enumerate(listed if isinstance(listed, list) else ())]
    tables = [(where, entry) for where, entry in entries if isinstance(entry, Mapping)]
    problems: list[Problem] = []
    first: dict[str, Where] = {}
    regions = []
    for where, entry in tables:
        problems += _entry_problems(where, entry, first, spoilt)
        if not problems and not spoilt:
            regions.append(_region(RegionEntry(**entry)))
    followed = isinstance(_at(data, "sync"), Mapping) or isinstance(_at(data, "management"), Mapping)  # then they may come from elsewhere
    if not tables and not followed and ("service",) not in spoilt and ("service", "regions") not in spoilt:
        problems.append((("service", "regions"), listed, "at least one table [[service.regions]]", None))
    return regions, problems


def _region(entry: RegionEntry) -> Region:
    return Region(**entry.model_dump(exclude={"zones", "virtual_network"}) | {"addresses": tuple(entry.addresses)})


def _zone_problems(data: Mapping[str, Any]) -> Iterator[Problem]:
    section = _at(data, "dns")
    if isinstance(section, Mapping) and section.get("zones"):
        for key in section.keys() & {"zone", "name", *ZoneSection.model_fields}:
            yield ("dns", key), shown(section[key]), "no such key beside [[dns.zones]]: each zone has its own", None


def _entry_problems(where: Where, entry: Mapping[str, Any], first: dict[str, Where], spoilt: set[Where]) -> Iterator[Problem]:
    name = entry.get("name")
    if isinstance(name, str) and (*where, "name") not in spoilt:
        seen = first.setdefault(canonical(name), where)
        if seen != where:
            yield (*where, "name"), name, f"a name used once; {_dotted(seen)} has it already", None
        if not {"lat", "lon"} & entry.keys() and canonical(name) not in catalogue():
            near = nearest(canonical(name), catalogue())
            yield (*where, "name"), name, "a region of the catalogue, or lat and lon beside it", near[0] if near else None
    if len(alone := {"lat", "lon"} & entry.keys()) == 1:
        missing = "lon" if "lat" in alone else "lat"
        yield (*where, missing), None, f"{EXPECTED['service', 'regions', missing]}", None


def _monitor(data: Mapping[str, Any], spoilt: set[Where], folder: Path) -> tuple[Monitor, list[Problem]]:
    """Let Monitor judge every key of its table that is sound in shape, under the names of the file."""
    section = _at(data, *MONITOR)
    section = section if isinstance(section, Mapping) else {}
    bad = {where[2] for where in spoilt if where[:2] == MONITOR and len(where) > 2}
    settings = {MONITOR_SETTINGS[key]: value for key, value in section.items() if key in MONITOR_SETTINGS and key not in bad}
    settings |= _converted(settings, folder)
    make = Monitor.azure if settings.get("strict_azure") is True else Monitor
    try:
        return make(**settings), []
    except ConfigError as error:
        return Monitor(), [_monitor_problem(violation) for violation in error.violations]


def _converted(settings: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if name == "protocol" and isinstance(value, str):
            yield name, value.lower()
        elif name == "expected" and value:
            yield name, tuple((pair["min"], pair["max"]) for pair in value)
        elif name == "headers":
            yield name, tuple((header["name"], header["value"]) for header in value)
        elif name == "ca" and value and isinstance(value, str):
            yield name, str(folder / value)
        elif name == "client_certificate" and isinstance(value, list):
            yield name, tuple(str(folder / part) if isinstance(part, str) and part else part for part in value)


def _monitor_problem(violation: Violation) -> Problem:
    key = MONITOR_KEYS[violation.where.removeprefix("monitor.")]
    return (*MONITOR, key), shown(violation.value), violation.expected, violation.nearest


def _detector_settings(kind: str, settings: Mapping[str, Any], monitor: Monitor) -> dict[str, Any]:
    counted: dict[str, Any] = {"tolerated": monitor.tolerated, "rise": monitor.rise} if kind in ("default", "consecutive") else {}
    if kind == "default":  # every node its own jitter, or a fleet would take an ejected region back at one instant
        counted["rng"] = random.Random(platform.node())
    return counted | dict(settings)


def _detector_problems(data: Mapping[str, Any], spoilt: set[Where], monitor: Monitor) -> Iterator[Problem]:
    kind, settings = _at(data, "detector", "kind") or "default", _at(data, "detector", "settings") or {}
    if any(where[:1] == ("detector",) for where in spoilt):
        return
    if kind not in detect.available():
        near = nearest(kind, detect.available())
        yield ("detector", "kind"), kind, f"one of {', '.join(detect.available())}", near[0] if near else None
        return
    try:
        detect.load(kind, **_detector_settings(kind, settings, monitor))
    except Exception as error:  # a plug-in may raise anything
        yield ("detector", "settings"), shown(settings), f"settings that detector {kind!r} takes ({error})", None


def _database_problems(data: Mapping[str, Any], spoilt: set[Where], folder: Path) -> Iterator[Problem]:
    names, where = _at(data, "latency", "database"), ("latency", "database")
    files: list[tuple[Where, Any]] = [((*where, i), name) for i, name in enumerate(names)] if isinstance(names, list) else [(where, names)]
    for at, name in files:
        if isinstance(name, str) and at not in spoilt and not (folder / name).is_file():
            yield at, name, f"a file that exists (looked for {folder / name})", None
