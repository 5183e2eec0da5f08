"""Rotation document: who is listed, as the primary tells its edges. Immutable and numbered; an edge never goes back to a lower number.

    {"service", "domain", "epoch", "sequence", "networkType",
     "regions": [{"name", "displayName", "lat", "lon", "gateway", "addresses", "units", "enabled", "draining"}, …],
     "trafficManager": as GET …/trafficManager shows it, without endpoints that are not listed}

Both ends are here: `document` writes one from the stored state alone, so that a primary that was killed tells the same; `read` takes one
that came over a network, or from a disk, and believes nothing of it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lbcore.region import Region, canonical, catalogue
from lbcore.service.configuration import LARGEST_NUMBER, Tag, canonical_bytes
from lbcore.service.model import NETWORK_MODES, Location, NetworkMode, Service, ServiceState, location
from lbcore.service.revisions import Number
from lbcore.service.rotation import Listed, listed

__all__ = ["MOST_BYTES", "MOST_REGIONS", "Place", "Rotation", "document", "narrowed", "read"]

MOST_BYTES = 4 << 20
MOST_REGIONS = 10_000
LONGEST = 2000  # characters of a text
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """A region that is listed.

    lat, lon: decimal degrees;  gateway: base URL;  addresses: public ones, for DNS;  units: >= 1
    enabled: what the operator wants of its gateway;  draining: whoever comes still is served, nobody new is sent there
    """

    name: str
    display_name: str
    lat: float
    lon: float
    gateway: str
    addresses: tuple[str, ...]
    units: int
    enabled: bool = True
    draining: bool = False

    @property
    def region(self) -> Region:
        """Give it as a Balancer has it; draining is not a region's but a Balancer's to know."""
        return Region(self.name, self.lat, self.lon, self.gateway, self.addresses, self.units, self.enabled, display_name=self.display_name)

    def as_dict(self) -> Body:
        """Give it for JSON."""
        return {
            "name": self.name, "displayName": self.display_name, "lat": self.lat, "lon": self.lon, "gateway": self.gateway,
            "addresses": [*self.addresses], "units": self.units, "enabled": self.enabled, "draining": self.draining,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rotation:
    """One rotation document. number: (epoch, sequence);  regions: the primary first where it is listed

    traffic_manager: for `traffic_manager.read`, with `as_service`;  document: the bytes;  tag: its ETag, quotes and all
    """

    service: str
    domain: str
    number: Number
    network_mode: NetworkMode
    regions: tuple[Place, ...]
    traffic_manager: Mapping[str, Any]
    document: bytes = field(repr=False, compare=False, default=b"")
    tag: str = field(repr=False, default="")

    def get(self, name: str) -> Place | None:
        """Give a region that is listed, None when it is not."""
        return next((one for one in self.regions if one.name == name), None)

    def as_service(self) -> Service | None:
        """Give a service of exactly these regions, for those who read `traffic_manager`; None when nothing is listed."""
        places = [location(one.name, lat=one.lat, lon=one.lon) for one in self.regions]
        return Service(name=self.service, domain=self.domain, primary=places[0], additional_locations=tuple(places[1:])) if places else None


# ===== out


def document(
    state: ServiceState | None, traffic_manager: Mapping[str, Any], *, service: str, domain: str, epoch: int, sequence: int
) -> Rotation:
    """Write the document of a state. traffic_manager: as GET shows it

    service, domain: of a service that is not there, of which nothing is listed
    """
    there = listed(state)
    names = [each.name for each in state.service.locations] if state else []
    ordered = [*(name for name in names if name in there), *(name for name in there if name not in names)]
    body: Body = {
        "service": state.service.name if state else service, "domain": state.service.domain if state else domain,
        "epoch": epoch, "sequence": sequence, "networkType": state.service.network_mode if state else "None",
        "regions": [_place(name, there[name]).as_dict() for name in ordered],
        "trafficManager": narrowed(traffic_manager, there),
    }  # fmt: skip
    return read(canonical_bytes(body))


def _place(name: str, one: Listed) -> Place:
    lat, lon = _coordinates(one.location)
    return Place(
        name, one.location.display_name, lat, lon, one.gateway, one.public_ips, max(1, one.location.units),
        not one.location.disable_gateway, one.draining,
    )  # fmt: skip


def _coordinates(each: Location) -> tuple[float, float]:
    if each.lat is not None and each.lon is not None:
        return float(each.lat), float(each.lon)
    known = catalogue().get(each.name)  # the rules refuse a place that is in no catalogue and has no coordinates
    return (known.lat, known.lon) if known else (0.0, 0.0)


def narrowed(body: Mapping[str, Any], names: Collection[str]) -> Body:
    """Give a profile without what leads to regions that are not among `names`, so that a node that knows only these can read it.

    Nested profiles that lead nowhere then are left out, too. A profile whose every endpoint is left out serves nobody still, rather than
    everybody, which is what no endpoints mean.
    """
    properties = {key: value for key, value in body.get("properties", {}).items() if key != "failover"}
    nested = {one["name"]: dict(one) for one in properties.get("profiles", ())}
    while empty := {name for name, one in nested.items() if _pruned(one, names, nested) and not one["endpoints"]}:
        nested = {name: one for name, one in nested.items() if name not in empty}
    top = dict(properties)
    if _pruned(top, names, nested) and not top["endpoints"] and names:
        top["endpoints"] = [{"region": sorted(names)[0], "endpointStatus": "Disabled"}]
    if top.get("profiles"):
        top["profiles"] = [*nested.values()]
    return {key: value for key, value in body.items() if key not in ("properties", "etag")} | {"properties": top}


def _pruned(profile: Body, names: Collection[str], nested: Collection[str]) -> bool:
    """Leave out of a profile what leads nowhere; say whether there was anything."""
    before = profile.get("endpoints") or []
    profile["endpoints"] = [
        one for one in before
        if (canonical(one["region"]) in names if one.get("region") is not None else one.get("profile") in nested)
    ]  # fmt: skip
    backup = profile.get("backup") or []
    profile["backup"] = [name for name in backup if canonical(name) in names]
    if backup and not profile["backup"]:
        profile["failOpen"] = "nodata"
    return len(profile["endpoints"]) < len(before) or (bool(before) and not profile["endpoints"])


# ===== in


def read(content: bytes) -> Rotation:
    """Read a document; ValueError, in words for a log, for anything that is none."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"a rotation document of {len(content):,} bytes; {MOST_BYTES:,} are the most")
    try:
        body = json.loads(content)
        if not isinstance(body, dict):
            raise ValueError("an object was expected")
        regions = _list(body["regions"], MOST_REGIONS)
        rotation = Rotation(
            _text(body["service"]), _text(body["domain"]), Number(_number(body["epoch"]), _number(body["sequence"])),
            _mode(body["networkType"]), tuple(map(_read_place, regions)), _object(body["trafficManager"]),
            content, _tag(body, content),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"no rotation document: {type(error).__name__}: {str(error)[:200]}") from None
    twice = [*_repeated(one.name for one in rotation.regions)]
    if twice:
        raise ValueError(f"no rotation document: {', '.join(twice[:3])} more than once")
    return rotation


def _tag(body: Body, content: bytes) -> str:
    return str(Tag(Number(body["epoch"], body["sequence"]), hashlib.sha256(content).hexdigest()))


def _read_place(row: Any) -> Place:
    name = _text(row["name"])
    if name != canonical(name) or not name:
        raise ValueError(f"{ascii(name)[:60]} is no region's canonical name")
    return Place(
        name, _text(row["displayName"]), _degrees(row["lat"], 90.0), _degrees(row["lon"], 180.0), _text(row["gateway"]),
        tuple(str(ipaddress.ip_address(_text(each))) for each in _list(row["addresses"], 1000)), _whole(row["units"], 1, 1_000_000),
        _flag(row["enabled"]), _flag(row["draining"]),
    )  # fmt: skip


def _repeated(names: Iterator[str] | Any) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield name
        seen.add(name)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"a text of at most {LONGEST} characters was expected")
    return value


def _whole(value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"a whole number {least}..{most} was expected")
    return value


def _number(value: Any) -> int:
    return _whole(value, 0, LARGEST_NUMBER)


def _degrees(value: Any, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or abs(value) > most:
        raise ValueError(f"degrees within ±{most:g} were expected")
    return float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false was expected")
    return value


def _list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"a list of at most {most} was expected")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object was expected")
    return value


def _mode(value: Any) -> NetworkMode:
    if value not in NETWORK_MODES:
        raise ValueError(f"one of {', '.join(NETWORK_MODES)} was expected")
    return value  # type: ignore[no-any-return]
