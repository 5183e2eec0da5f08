"""Body: a service as the REST API takes and shows it, camelCase, and back.

`as_body` gives what GET shows; `from_body` reads what PUT sends: wrong types, unknown keys and read-only values are violations, the rest is
left to `rules`. `patched` is what PATCH makes of the one for the other. Paths of a location's settings are `facts.AT`, for both ways.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lbcore.errors import ServiceError, nearest
from lbcore.region import canonical
from lbcore.service.codes import Violation, refusal
from lbcore.service.facts import AT, TOP, Facts, shown
from lbcore.service.model import TIERS, Location, LocationState, ResourceId, Service, ServiceState, location
from lbcore.service.rules import validate

__all__ = ["MEASURED", "accepted", "as_body", "from_body", "location_body", "patched", "rows"]

Body = dict[str, Any]
Path = tuple[str, ...]

READ_ONLY_LOCATION = (
    "name", "displayName", "primary", "provisioningState", "reason", "publicIPAddresses", "privateIPAddresses", "previousPublicIPAddresses",
    "gatewayRegionalUrl", "gatewayAddress", "platformVersion",
)  # fmt: skip
READ_ONLY_TOP = ("id", "type", "etag")
READ_ONLY_SERVICE = (
    "provisioningState", "targetProvisioningState", "gatewayUrl", "managementApiUrl", "portalUrl", "developerPortalUrl", "statusPath",
)  # fmt: skip
MEASURED = "capacity"  # of a row of GET …/locations: it moves all the time, so whatever of it is sent back is passed over
IN_ROWS = ("name", "displayName", "primary", "provisioningState", "reason")  # for the primary they stand elsewhere, or go without saying
PLATFORM = "lbcore"
MAX_DEPTH = 16
NOWHERE = location("")
TYPE = "lbcore/service"


# ===== out


def as_body(state: ServiceState) -> Body:
    """Give what GET of the service shows."""
    service, primary = state.service, state.service.primary
    settings, first = _settings(primary, service), _observed(service, primary, state.of(primary.name))
    properties = {key: value for key, value in settings.items() if key not in TOP}
    properties |= {key: value for key, value in first.items() if key not in IN_ROWS}
    return {
        "id": f"/services/{service.name}", "type": TYPE, "name": service.name, "etag": state.etag,
        **{key: settings[key] for key in TOP},
        "properties": {
            "provisioningState": state.provisioning_state, "domain": service.domain, "virtualNetworkType": service.network_mode,
            **properties, "gatewayUrl": service.gateway_url,
            "additionalLocations": [location_body(state, each) for each in service.additional_locations],
        },
    }  # fmt: skip


def location_body(state: ServiceState, each: Location) -> Body:
    """Give one row of the Locations table, the primary's too: what is wanted and what runs."""
    return _settings(each, state.service) | _observed(state.service, each, state.of(each.name))


def rows(state: ServiceState) -> list[Body]:
    """Give the rows of the Locations table: every location that is wanted, then those that are still going."""
    service = state.service
    names = {each.name for each in service.locations}
    leaving = [one.deployed for name, one in state.states.items() if name not in names and one.deployed is not None]
    return [location_body(state, each) for each in (*service.locations, *leaving)]


def _settings(each: Location, service: Service) -> Body:
    body: Body = {"location": each.spelling, "sku": {"name": service.tier, "capacity": each.units}, "zones": [*each.zones]}
    body["disableGateway"] = each.disable_gateway
    body["virtualNetworkConfiguration"] = _given(subnetResourceId=each.subnet and each.subnet.text, location=each.subnet_location) or None
    body["publicIpAddressId"] = each.public_ip and each.public_ip.text
    return body | {"geo": _given(lat=each.lat, lon=each.lon) or None, "gateway": each.gateway or None}


def _given(**values: object) -> Body:
    return {key: value for key, value in values.items() if value not in (None, "")}


def _observed(service: Service, each: Location, state: LocationState) -> Body:
    return {
        "name": each.name, "displayName": each.display_name, "primary": each.name == service.primary.name,
        "provisioningState": state.provisioning_state, "reason": state.reason or None,
        "publicIPAddresses": [*state.public_ips], "privateIPAddresses": [*state.private_ips],
        "previousPublicIPAddresses": [*state.previous_public_ips],
        "gatewayRegionalUrl": service.regional_url(each.name), "gatewayAddress": state.gateway or None, "platformVersion": PLATFORM,
    }  # fmt: skip


# ===== in


def from_body(body: object, name: str, shown_now: Mapping[str, Any] | None = None) -> tuple[Service | None, list[Violation]]:
    """Read what PUT sends of the service `name`; None when it is no object.

    shown_now: what GET shows now, None when the service is new: read-only values that equal it are ignored, others are violations (V26)
    Whatever is of the wrong type has a stand-in in the service, so that the rules can judge the rest.
    """
    if not isinstance(body, Mapping):
        return None, [Violation("InvalidProperty", f"expected an object, got {shown(body)}", "")]
    reader = _Reader(shown_now or {})
    service = reader.service(body, name)
    return service, reader.violations


def patched(shown_now: object, patch: object, depth: int = MAX_DEPTH) -> Any:
    """Give the body that PATCH means: what GET shows now with the patch merged in, lists replaced as a whole.

    Raises ServiceError for objects nested deeper than any body is.
    Source: JSON Merge Patch, RFC 7396.
    """
    if not isinstance(patch, Mapping):
        return patch
    if depth == 0:
        raise ServiceError("InvalidProperty", f"expected objects nested at most {MAX_DEPTH} deep", "")
    merged = dict(shown_now) if isinstance(shown_now, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = patched(merged.get(key), value, depth - 1)
    return merged


class _Reader:
    """Reads one body and gathers what is wrong with it."""

    def __init__(self, shown_now: Mapping[str, Any]) -> None:
        self.violations: list[Violation] = []
        self._shown = shown_now
        properties = shown_now.get("properties", {})
        self._rows = {row["name"]: row for row in properties.get("additionalLocations", ())}

    def service(self, body: Mapping[str, Any], name: str) -> Service:
        properties = self._table(body, ("properties",))
        self._same(body, self._shown, READ_ONLY_TOP, "")
        self._same(properties, self._shown.get("properties", {}), (*READ_ONLY_SERVICE, *READ_ONLY_LOCATION), "properties.")
        known = (*READ_ONLY_TOP, *TOP, "name", "properties")
        self._known(body, known, "")
        here = [path[0] for path in AT.values() if path[0] not in TOP]
        own = ("domain", "virtualNetworkType", "additionalLocations")
        self._known(properties, (*here, *own, MEASURED, *READ_ONLY_SERVICE, *READ_ONLY_LOCATION), "properties.")
        self._measured(properties, "properties.")
        self._name(body, name)
        tier = self._text(self._table(body, ("sku",)), "name", "sku.", "Premium")
        return Service(
            name=name, primary=self._location({**properties, **{key: body.get(key) for key in TOP}}, "", tier),
            additional_locations=self._others(properties, tier), tier=tier,
            domain=self._text(properties, "domain", "properties.", "test").lower(),
            network_mode=self._text(properties, "virtualNetworkType", "properties.", "None"),  # type: ignore[arg-type]
        )  # fmt: skip

    def _name(self, body: Mapping[str, Any], name: str) -> None:
        given = body.get("name")
        if given is not None and (not isinstance(given, str) or given.lower() != name.lower()):
            self._wrong("PropertyChangeNotAllowed", f"expected {shown(name)}, as the address says, got {shown(given)}", "name")

    def _others(self, properties: Mapping[str, Any], tier: str) -> tuple[Location, ...]:
        rows = properties.get("additionalLocations")
        where = "properties.additionalLocations"
        if rows is None:
            return ()
        if not isinstance(rows, list):
            self._wrong("InvalidProperty", f"expected a list, got {shown(rows)}", where)
            return ()
        found = []
        for index, row in enumerate(rows):
            prefix = f"{where}[{index}]."
            if isinstance(row, Mapping):
                self._known(row, (*(path[0] for path in AT.values()), MEASURED, *READ_ONLY_LOCATION), prefix)
                self._measured(row, prefix)
                self._same(row, self._row(row), READ_ONLY_LOCATION, prefix)
                found.append(self._location(row, prefix, tier))
            else:
                self._wrong("InvalidProperty", f"expected an object, got {shown(row)}", prefix[:-1])
                found.append(NOWHERE)
        return tuple(found)

    def _row(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give what is shown now of the location that a row names."""
        name = row.get("location")
        return self._rows.get(canonical(name), {}) if isinstance(name, str) else {}

    def _location(self, row: Mapping[str, Any], prefix: str, tier: str) -> Location:
        name = row.get("location")
        if not isinstance(name, str) or not name.strip() or len(name) > 1000:
            self._wrong("LocationNotAvailable", f"expected a region's name, got {shown(name)}", f"{prefix}location")
            name = ""
        sku = self._table(row, ("sku",), prefix)
        self._known(sku, ("name", "capacity"), f"{prefix}sku.")
        shown_tier = self._row(row).get("sku", {}).get("name")  # read back, or left by a PATCH: no wish
        if prefix and sku.get("name") not in (None, tier, shown_tier):
            message = f"every location has the tier of the service, {shown(tier)}; got {shown(sku['name'])}"
            self._wrong("InvalidSku", message, f"{prefix}sku.name")
        settings: dict[str, Any] = {"units": TIERS[tier].default if tier in TIERS else 1}
        for key, read in READERS.items():
            value = self._at(row, AT[key], prefix)
            if value is not None:
                settings |= self._read(key, read, value, prefix)
        for key, inner in (("virtualNetworkConfiguration", ("subnetResourceId", "location")), ("geo", ("lat", "lon"))):
            self._known(self._table(row, (key,), prefix), inner, f"{_within(prefix, key)}.")
        return location(name, **settings)

    def _read(self, key: str, read: Callable[[Any], Any], value: Any, prefix: str) -> Body:
        try:
            return {key: read(value)}
        except _Wrong as wrong:
            self._wrong(wrong.code, f"expected {wrong.expected}, got {shown(value)}", _within(prefix, ".".join(AT[key])))
            return {}

    def _at(self, row: Mapping[str, Any], path: Path, prefix: str) -> Any:
        return self._table(row, path[:-1], prefix).get(path[-1])

    def _table(self, body: Mapping[str, Any], path: Path, prefix: str = "") -> Mapping[str, Any]:
        for key in path:
            value = body.get(key)
            if value is not None and not isinstance(value, Mapping):
                where = key if key == "properties" else _within(prefix, key)
                self._wrong("InvalidProperty", f"expected an object, got {shown(value)}", where)
            body = value if isinstance(value, Mapping) else {}
        return body

    def _text(self, body: Mapping[str, Any], key: str, prefix: str, default: str) -> str:
        value = body.get(key)
        if value is None or isinstance(value, str):
            return value or default
        self._wrong("InvalidProperty", f"expected a text, got {shown(value)}", prefix + key)
        return default

    def _known(self, body: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
        for key in body:
            if key not in known:
                by_fold = {name.lower(): name for name in known}
                close = nearest(key, by_fold) if isinstance(key, str) and len(key) < 100 else ()
                hint = f"; did you mean {by_fold[close[0]]!r}?" if close else ""
                self._wrong("UnknownProperty", f"no such property: {shown(key)}{hint}", prefix + shown(key)[1:-1])

    def _same(self, body: Mapping[str, Any], now: Mapping[str, Any], keys: tuple[str, ...], prefix: str) -> None:
        for key in keys:
            value = body.get(key)
            if value not in (None, "", [], now.get(key)):
                was = "it is not set yet" if key not in now else f"it is {shown(now[key])}"
                self._wrong("ReadOnlyProperty", f"{key} is read-only: {was}, got {shown(value)}", prefix + key)

    def _measured(self, body: Mapping[str, Any], prefix: str) -> None:
        """Refuse what looks like a number of units in the wrong place."""
        value = body.get(MEASURED)
        if value is not None and not isinstance(value, Mapping):
            self._wrong("ReadOnlyProperty", f"{MEASURED} is measured, units are sku.capacity; got {shown(value)}", prefix + MEASURED)

    def _wrong(self, code: str, message: str, target: str) -> None:
        violation = Violation(code, message, target)
        if violation not in self.violations:
            self.violations.append(violation)


class _Wrong(Exception):
    def __init__(self, expected: str, code: str = "InvalidProperty") -> None:
        self.expected, self.code = expected, code


def _at_or_below(target: str, spoilt: set[str]) -> bool:
    """Say whether a place could not be read: what stands there is a stand-in, which the rules know nothing of."""
    return any(target == place or target.startswith((f"{place}.", f"{place}[")) for place in spoilt)


def _within(prefix: str, path: str) -> str:
    """Give the full path of a location's setting; without a prefix it is the primary's."""
    return prefix + path if prefix or path.split(".")[0] in TOP else f"properties.{path}"


def _number(value: Any) -> Any:
    return value  # what a number may be is for the rules to say


def _zones(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(zone, str) for zone in value):
        raise _Wrong('a list of texts such as ["1", "2"]', "InvalidZone")
    return tuple(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("true or false")
    return value


def _words(value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong("a text")
    return value


def _region(value: Any) -> str:
    return canonical(_words(value))


def _subnet(value: Any) -> ResourceId:
    try:
        return ResourceId.subnet(_words(value))
    except ValueError:
        form = "/subscriptions/ID/resourceGroups/NAME/providers/Microsoft.Network/virtualNetworks/NAME/subnets/NAME"
        raise _Wrong(form, "InvalidResourceId") from None


def _public_ip(value: Any) -> ResourceId:
    try:
        return ResourceId.public_ip(_words(value))
    except ValueError:
        form = "/subscriptions/ID/resourceGroups/NAME/providers/Microsoft.Network/publicIPAddresses/NAME"
        raise _Wrong(form, "InvalidResourceId") from None


READERS: Mapping[str, Callable[[Any], Any]] = {
    "units": _number, "zones": _zones, "disable_gateway": _flag, "subnet": _subnet, "subnet_location": _region, "public_ip": _public_ip,
    "lat": _number, "lon": _number, "gateway": _words,
}  # fmt: skip


def accepted(
    body: object, name: str, current: ServiceState | None, facts: Facts | None = None, *, shown_now: Body | None = None, force: bool = False
) -> Service:
    """Give the service that a body wishes for; ServiceError with every violation in `details`.

    shown_now: what GET shows now, where that is more than `as_body` says; facts, force: as `rules.validate` has them
    """
    known = current.service.name if current and current.service.name.lower() == name.lower() else name
    wanted, found = from_body(body, known, shown_now or (as_body(current) if current else None))
    if wanted is not None:
        before, spoilt = current.service if current else None, {each.target or "" for each in found}
        found += [each for each in validate(wanted, before, facts, force=force) if not _at_or_below(each.target or "", spoilt)]
    if found or wanted is None:
        raise refusal(found)
    return wanted
