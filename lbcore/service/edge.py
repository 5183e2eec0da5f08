"""Edge: a node whose front door and DNS follow a primary's rotation: who is listed, and how clients are routed.

    primary --rotation--> Follower --checked--> use: settings_of(its own file, the rotation) --> front door, DNS
       ^                      '--kept on disk: what serves while the primary is away, and after a restart
       '------reports------ Reporter, every 2 s

Nothing that comes from there is believed before it was checked; the last good one is used on whatever happens. Of two rotations the one
of the later epoch wins, then the one of the higher sequence.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import time
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from lbcore.config import Settings, parse
from lbcore.dns.place import place_of
from lbcore.errors import ConfigError, ServiceError, Violation
from lbcore.http.gateway.kept import KeptDocuments
from lbcore.region import canonical, catalogue
from lbcore.service import traffic_manager
from lbcore.service.configuration import SourceRefusedError, SourceUnreachableError, Tag, read_tags
from lbcore.service.logbook import clean
from lbcore.service.remote import Link
from lbcore.service.rotation_document import MOST_BYTES, Place, Rotation
from lbcore.service.rotation_document import read as read_rotation
from lbcore.service.rules import REGION_NAME
from lbcore.service.sync import Pulling, Source, check_hash

__all__ = ["Follower", "Reporter", "apart_from_switches", "kept_rotations", "read_rotation", "settings_of"]

logger = logging.getLogger(__name__)

WAIT, MOST_WAITS = 0.5, 5  # seconds for a further rotation, and how often
REPORT_EVERY = 2.0  # seconds
MOST_REPORT = 1_000_000  # bytes
LOCAL = ("ca", "client_certificate", "anchors", "max_concurrency")  # of the monitor: files and limits of the node's own

Use = Callable[[Rotation], Awaitable[object]]
Soon = Callable[[Rotation], Awaitable[bool]]


# ===== settings


def settings_of(settings: Settings, rotation: Rotation | None) -> Settings:
    """Give what a node's file and a rotation say together: regions, their switches and `[traffic_manager]` are the rotation's.

    settings: as read from the file, also when it stands in for another rotation. None: of a gateway's node that has no rotation yet
    The node's own gateway serves also while its region is not listed: only one that serves can be. Nobody is sent there meanwhile.
    ConfigError with everything that cannot be so.
    """
    own = tomllib.loads(settings.content.decode())
    if rotation is None:
        listed: list[dict[str, Any]] = []
        service, name = settings.document.service, settings.name
        data = own | {"service": {"name": service.name, "domain": service.domain}}
    else:
        name = f"rotation {rotation.number}"
        _check(rotation, settings, name)
        listed, manager = [*map(_entry, rotation.regions)], _traffic_manager(rotation, own.get("traffic_manager", {}), name)
        data = own | {"service": {"name": rotation.service, "domain": rotation.domain}, "traffic_manager": manager}
    alone = _own_region(settings, {canonical(each["name"]) for each in listed})
    data["service"]["regions"] = listed + alone
    made = parse(data, name, settings.folder, founding=False)
    places = rotation.regions if rotation is not None else ()
    draining = frozenset([*(one.name for one in places if one.draining), *(canonical(each["name"]) for each in alone)])
    hosts = _hosts(rotation) if rotation is not None and rotation.network_mode != "Internal" else {}
    document = rotation.document if rotation is not None else b""
    return replace(made, name=settings.name, content=settings.content, rotation=document, draining=draining, hosts=hosts)


def _own_region(settings: Settings, listed: Collection[str]) -> list[dict[str, Any]]:
    """Give the region of the node's gateway where it is not listed, by what the node's file says of it."""
    section = settings.document.gateway
    if section is None or canonical(section.region) in listed:
        return []
    service = settings.document.service
    said = [*([service.primary] if service.primary else []), *service.regions]
    units = next((entry.units for entry in said if canonical(entry.name) == canonical(section.region)), 1)
    place = {} if canonical(section.region) in catalogue() else {"lat": 0.0, "lon": 0.0}
    return [{"name": section.region, "units": units} | place]


def _check(rotation: Rotation, settings: Settings, name: str) -> None:
    """Look at what reading a file does not."""
    violations = []
    if rotation.service.lower() != settings.document.service.name.lower():
        violations.append(Violation(f"{name}: service", rotation.service, f"service.name of this node, {settings.document.service.name}"))
    if not rotation.regions:
        violations.append(Violation(f"{name}: regions", None, "at least one region"))
    for at, one in enumerate(rotation.regions):
        if not REGION_NAME.fullmatch(one.name):
            violations.append(Violation(f"{name}: regions[{at}].name", one.name, "a region's name of letters, digits and hyphens"))
        if clean(one.display_name) != one.display_name:
            violations.append(Violation(f"{name}: regions[{at}].displayName", one.display_name, "printable text"))
    if violations:
        raise ConfigError(violations)


def _entry(place: Place) -> dict[str, Any]:
    """Give a region as a file has it."""
    return {
        "name": place.display_name if canonical(place.display_name) == place.name else place.name, "lat": place.lat, "lon": place.lon,
        "gateway": place.gateway, "addresses": [*place.addresses], "units": place.units, "enabled": place.enabled,
    }  # fmt: skip


def _traffic_manager(rotation: Rotation, own: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Give `[traffic_manager]`. In a network of the service's own nobody is listed in public DNS (R51)."""
    service = rotation.as_service()
    assert service is not None
    try:
        table = dict(traffic_manager.read(rotation.traffic_manager, service).table)
    except ServiceError as error:
        found = error.details or [error]
        raise ConfigError(Violation(f"{name}: trafficManager.{each.target}", *_words(each)) for each in found) from error
    if rotation.network_mode == "Internal":
        out = [{"region": one.name, "endpoint_status": "Disabled"} for one in rotation.regions]
        kept = {key: table[key] for key in ("ttl", "monitor", "profile_status") if key in table}
        table = kept | {"endpoints": out, "fail_open": "nodata"}
    monitor = own.get("monitor", {})
    return table | {"monitor": dict(table.get("monitor", {})) | {key: monitor[key] for key in LOCAL if key in monitor}}


def _words(error: ServiceError) -> tuple[str, str]:
    """Give code and words of one reason, which say what was expected."""
    return error.code, str(error).removeprefix(f"{error.code}: ").removeprefix("expected ")


def _hosts(rotation: Rotation) -> dict[str, tuple[str, ...]]:
    """Give the name of every region's own gateway, and its addresses (R16)."""
    service = rotation.as_service()
    assert service is not None
    found = {}
    for one in rotation.regions:
        place = place_of(one.region)
        texts = tuple(str(ipaddress.ip_address(packed)) for packed in (*place.ipv4, *place.ipv6))
        found[f"{service.regional_label(one.name)}.regional.{rotation.domain}".lower()] = texts
    return found


def apart_from_switches(settings: Settings) -> object:
    """Give what can be compared, of settings that a rotation is in: what differs in nothing but regions' switches is equal."""
    document = settings.document
    regions = [entry.model_copy(update={"enabled": True}) for entry in document.service.regions]
    service = document.service.model_copy(update={"regions": regions})
    return document.model_copy(update={"service": service}), dict(settings.hosts)


# ===== follow


def kept_rotations(folder: str | os.PathLike[str]) -> KeptDocuments[Rotation]:
    """Give the rotations that are kept in a folder: whole, or not at all."""
    return KeptDocuments(folder, "rotation", "rotation", read_rotation, most=MOST_BYTES)


class Follower(Pulling):
    """Keep an edge at its primary's latest rotation. source: such as Remote; options as Pulling

    use: takes each up, or raises ConfigError for one that cannot be used, which is not asked for again; kept: None = nothing is kept
    soon: does at once what can be, and says whether the rest takes so long that further ones are waited for: a Save of several
        regions lists one after the other; None = nothing can be
    Kinds of events: RotationApplied, RotationRolledBack (to a later epoch), RotationRefused.
    A rotation that cannot be kept is used still, for a region that was taken out must get nobody: `unkept` says why.
    """

    KIND = "Rotation"
    ORDINARY = frozenset({"empty"})  # a new primary lists its first region once that serves

    def __init__(
        self, source: Source, use: Use, kept: KeptDocuments[Rotation] | None = None, soon: Soon | None = None, **options: Any
    ) -> None:  # fmt: skip
        self.use, self.soon, self._kept = use, soon, kept
        self.rotation: Rotation | None = None
        self.unkept = ""
        super().__init__(source, **options)

    @property
    def held(self) -> Tag | None:
        """Give the tag of the rotation in use."""
        return read_tags(self.rotation.tag)[0] if self.rotation is not None else None

    async def take_up(self, tag: Tag, body: bytes) -> Tag:
        """Use a rotation, or the last of those that follow it shortly, and keep it."""
        rotation = await asyncio.to_thread(_checked, tag, body)
        for _ in range(MOST_WAITS):
            if self.soon is None or not await self.soon(rotation):
                break
            await asyncio.sleep(WAIT)
            if (later := await self._later(tag)) is None:
                break
            tag, rotation = later
        await self.use(rotation)
        self.rotation = rotation
        await self.keep()
        return tag

    async def _later(self, tag: Tag) -> tuple[Tag, Rotation] | None:
        """Give a later rotation than this, None when there is none that is sound: the next look tells what is wrong with it."""
        try:
            async with asyncio.timeout(WAIT):
                latest = await self.source.latest([tag])
            if latest is None or latest.body is None or latest.tag.number <= tag.number:
                return None
            return latest.tag, await asyncio.to_thread(_checked, latest.tag, latest.body)
        except (SourceUnreachableError, SourceRefusedError, ServiceError, OSError, TimeoutError):
            return None

    async def keep(self) -> None:
        """Keep the rotation in use; what is in the way is logged when it is news."""
        if self._kept is None or self.rotation is None:
            return
        try:
            await asyncio.to_thread(self._kept.keep, *self.rotation.number, self.rotation.document)
        except OSError as error:
            if self.unkept != str(error):
                logger.error("rotation %s is used and cannot be kept: %s", self.rotation.number, error)
            self.unkept = str(error)
        else:
            self.unkept = ""

    async def pull(self, timeout: float | None = None) -> Any:
        """Look once, as Pulling does, and try again to keep what could not be kept."""
        state = await super().pull(timeout)
        if self.unkept:
            await self.keep()
        return state

    def kept(self) -> list[Rotation]:
        """Give the rotations that are kept, the newest first; those that are damaged are logged and left out."""
        return [*self._kept.read()] if self._kept is not None else []


def _checked(tag: Tag, body: bytes) -> Rotation:
    """Read a document that must be the very one that its tag says."""
    check_hash(tag, body)
    try:
        rotation = read_rotation(body)
    except ValueError as error:
        raise SourceRefusedError("invalid", str(error)) from None
    if rotation.number != tag.number:
        raise SourceRefusedError("number", f"what was sent as rotation {tag.number} says that it is {rotation.number}")
    if not rotation.regions:
        raise SourceRefusedError("empty", f"rotation {tag.number} lists no region")
    return rotation


# ===== report


class Reporter:
    """Tell the primary, every 2 s, what an edge sees.

    link: to its reports; name: the edge's; look: gives the body, but for edge and time; taken: is called with a body that was taken
    clock: wall-clock seconds. Errors are counted and change nothing: `counters` sent, unreachable, refused, failed.
    """

    def __init__(
        self, link: Link, name: str, look: Callable[[], Awaitable[Mapping[str, Any]]], *,
        taken: Callable[[Mapping[str, Any]], object] = lambda body: None, interval: float = REPORT_EVERY,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.link, self._name, self._look, self._taken, self._interval, self._clock = link, name, look, taken, interval, clock
        self.counters: Counter[str] = Counter()
        self._refused = ""
        self._news = asyncio.Event()

    def hurry(self) -> None:
        """Report at once: somebody waits for it."""
        self._news.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            self._news.clear()
            await self.report()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._news.wait()

    async def report(self) -> bool:
        """Report once; says whether it was taken."""
        try:
            body = {"edge": self._name, "at": round(self._clock(), 3), **await self._look()}
            await self.link.post(_fitting(body))
        except SourceUnreachableError as error:
            self.counters["unreachable"] += 1
            logger.debug("no report: %s", error)
        except (ServiceError, SourceRefusedError) as error:
            self.counters["refused"] += 1
            if str(error) != self._refused:
                logger.warning("the primary refuses reports: %s", error)
            self._refused = str(error)
        except Exception:
            self.counters["failed"] += 1
            logger.exception("a report failed")
        else:
            self.counters["sent"] += 1
            self._refused = ""
            self._taken(body)
            return True
        return False


def _fitting(body: Mapping[str, Any]) -> bytes:
    """Write a report; what was learned is left out where it would be too large."""
    content = json.dumps(body).encode()
    if len(content) > MOST_REPORT:
        content = json.dumps({key: value for key, value in body.items() if key != "learned"}).encode()
    return content
