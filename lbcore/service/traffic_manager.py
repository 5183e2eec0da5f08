"""Traffic Manager: the service's profile as the REST API takes and shows it. Its rules are those of lbcore.toml and of dns.Profile.

The body's names are those of `[traffic_manager]` in camel case, grouped as Azure does: dnsConfig has the TTLs, monitorConfig the probes.
Paths of files on the primary (certificates) cannot be set from afar: whoever probes takes them from its own configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lbcore.errors import ConfigError, nearest
from lbcore.sense.monitor import Monitor
from lbcore.service.codes import Violation, refusal
from lbcore.service.facts import shown
from lbcore.service.model import Service
from lbcore.service.timing import failover

try:
    from lbcore import config
    from lbcore.dns.configured import profiles_of
except ImportError as error:
    raise ImportError("the service needs pydantic and dnspython: pip install 'lbcore[cli,dns]'", name=error.name) from error

__all__ = ["TrafficManager", "read", "traffic_manager_body"]

Body = dict[str, Any]

DNS = {"ttl": "ttl", "ttlMin": "ttl_min"}
MONITOR = {
    "protocol": "protocol", "port": "port", "path": "path", "intervalInSeconds": "interval_in_seconds",
    "timeoutInSeconds": "timeout_in_seconds", "toleratedNumberOfFailures": "tolerated_number_of_failures", "rise": "rise",
    "expectedStatusCodeRanges": "expected_status_code_ranges", "customHeaders": "custom_headers", "host": "host", "verify": "verify",
    "jitter": "jitter", "strictAzure": "strict_azure",
}  # fmt: skip
ENDPOINT = {
    "region": "region", "profile": "profile", "endpointStatus": "endpoint_status", "weight": "weight", "priority": "priority",
    "alwaysServe": "always_serve", "geoMapping": "geo_mapping", "subnets": "subnets", "minChildEndpoints": "min_child_endpoints",
    "minChildEndpointsIPv4": "min_child_endpoints_ipv4", "minChildEndpointsIPv6": "min_child_endpoints_ipv6",
}  # fmt: skip
ROUTED = {
    "profileStatus": "profile_status", "trafficRoutingMethod": "traffic_routing_method", "maxReturn": "max_return",
    "failOpen": "fail_open", "backup": "backup", "family": "family",
}  # fmt: skip
NAMES = {
    snake: camel for table in (DNS, MONITOR, ENDPOINT, ROUTED) for camel, snake in table.items()
} | {"monitor": "monitorConfig", "endpoints": "endpoints", "profiles": "profiles", "name": "name"}  # fmt: skip
OBSERVED = ("profileMonitorStatus", "endpointMonitorStatus", "target", "fqdn", "relativeName", "failover")  # ignored when sent back
MAX_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class TrafficManager:
    """A sound profile. table: `[traffic_manager]` as lbcore.toml would have it; settings: what the library makes of it and the service"""

    table: Mapping[str, Any]
    settings: config.Settings

    @property
    def monitor(self) -> Monitor:
        """Give how gateways are probed."""
        return self.settings.monitor

    @property
    def ttl(self) -> int:
        """Give the seconds that an answer may be kept."""
        return self.settings.ttl


def read(body: object, service: Service) -> TrafficManager:
    """Read a body for the regions of a service; ServiceError with every violation (V20-V23) in `details`."""
    reader = _Reader()
    table = reader.profile(body)
    found = [*reader.violations, *_judged(table, service)]
    if found:
        raise refusal(list(dict.fromkeys(found)))
    return TrafficManager(table, config.parse(_document(table, service)))


def traffic_manager_body(manager: TrafficManager, service: Service) -> Body:
    """Give what GET of the profile shows: every setting with its default, and the failover times they give."""
    section, monitor, name = manager.settings.document.traffic_manager, manager.monitor, service.name.lower()
    properties = _shown_profile(section.model_dump(), manager.ttl)
    properties["dnsConfig"] |= {"relativeName": name, "fqdn": f"{name}.{service.domain}"}
    properties["monitorConfig"] = {
        "protocol": monitor.protocol and monitor.protocol.upper(), "port": monitor.port, "path": monitor.path,
        "intervalInSeconds": monitor.interval, "timeoutInSeconds": monitor.timeout, "toleratedNumberOfFailures": monitor.tolerated,
        "rise": monitor.rise, "expectedStatusCodeRanges": [{"min": low, "max": high} for low, high in monitor.expected],
        "customHeaders": [{"name": key, "value": value} for key, value in monitor.headers], "host": monitor.host, "verify": monitor.verify,
        "jitter": monitor.jitter, "strictAzure": monitor.strict_azure,
    }  # fmt: skip
    properties["profiles"] = [{"name": one.name, **_shown_profile(one.model_dump(), manager.ttl)} for one in section.profiles]
    return {"name": service.name, "type": "lbcore/trafficManager",
            "properties": properties | {"failover": failover(monitor, manager.ttl).as_dict()}}  # fmt: skip


def _shown_profile(section: Mapping[str, Any], ttl: int) -> Body:
    body: Body = {camel: section[snake] for camel, snake in ROUTED.items()}
    body["dnsConfig"] = {"ttl": ttl if section["ttl"] is None else section["ttl"], "ttlMin": section["ttl_min"]}
    body["endpoints"] = [{camel: one[snake] for camel, snake in ENDPOINT.items()} for one in section["endpoints"]]
    for endpoint in body["endpoints"]:
        endpoint["alwaysServe"] = "Enabled" if endpoint["alwaysServe"] else "Disabled"
    return body


class _Reader:
    """Turns a body into the table that lbcore.toml would have; what cannot be turned is a violation."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def profile(self, body: object) -> Body:
        outer = self._table(body, "", {"properties"} | {"name", "type", "id", "etag"})
        inner = outer.get("properties")
        known = {*ROUTED, "dnsConfig", "monitorConfig", "endpoints", "profiles"}
        properties = self._table({} if inner is None else inner, "properties", known)
        table = self._routed(properties, "properties")
        table["monitor"] = self._pick(properties.get("monitorConfig"), "properties.monitorConfig", MONITOR)
        table["profiles"] = self._each(properties.get("profiles"), "properties.profiles", self._nested)
        return table

    def _nested(self, row: object, where: str) -> Body:
        known = {"name", *ROUTED, "dnsConfig", "endpoints"}
        properties = self._table(row, where, known)
        return ({"name": properties["name"]} if "name" in properties else {}) | self._routed(properties, where)

    def _routed(self, properties: Mapping[str, Any], where: str) -> Body:
        table = {snake: properties[camel] for camel, snake in ROUTED.items() if properties.get(camel) is not None}
        table |= self._pick(properties.get("dnsConfig"), f"{where}.dnsConfig", DNS)
        return table | {"endpoints": self._each(properties.get("endpoints"), f"{where}.endpoints", self._endpoint)}

    def _endpoint(self, row: object, where: str) -> Body:
        table = self._pick(row, where, ENDPOINT)
        if table.get("always_serve") in ("Enabled", "Disabled"):
            table["always_serve"] = table["always_serve"] == "Enabled"
        if isinstance(table.get("subnets"), list):
            table["subnets"] = [_subnet(one) for one in table["subnets"]]
        return table

    def _pick(self, value: object, where: str, known: Mapping[str, str]) -> Body:
        table = self._table({} if value is None else value, where, set(known))
        return {snake: table[camel] for camel, snake in known.items() if table.get(camel) is not None}

    def _each(self, value: object, where: str, read_one: Callable[[object, str], Body]) -> list[Body]:
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > MAX_ENTRIES:
            self.violations.append(Violation("InvalidProperty", f"expected a list of at most {MAX_ENTRIES}, got {shown(value)}", where))
            return []
        return [read_one(one, f"{where}[{index}]") for index, one in enumerate(value)]

    def _table(self, value: object, where: str, known: set[str]) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self.violations.append(Violation("InvalidProperty", f"expected an object, got {shown(value)}", where))
            return {}
        for key in value:
            if key not in known and key not in OBSERVED:
                close = nearest(key, {name.lower(): name for name in known}) if len(key) < 100 else ()
                hint = f"; did you mean {next(name for name in known if name.lower() == close[0])!r}?" if close else ""
                target = ".".join(filter(None, (where, shown(key)[1:-1])))
                self.violations.append(Violation("UnknownProperty", f"no such property: {shown(key)}{hint}", target))
        return value


def _subnet(value: Any) -> Any:
    """Give Azure's {first, last} and {first, scope} as one text."""
    if isinstance(value, Mapping) and {"first"} < value.keys() <= {"first", "last", "scope"} and len(value) == 2:
        return f"{value['first']}-{value['last']}" if "last" in value else f"{value['first']}/{value['scope']}"
    return value


# ===== what the rules of lbcore.toml say


def _document(table: Mapping[str, Any], service: Service) -> Body:
    regions = [{"name": each.name, **_place(each.lat, each.lon)} for each in service.locations]
    return {"service": {"name": service.name, "primary": regions[0], "regions": regions[1:]}, "traffic_manager": dict(table)}


def _place(lat: float | None, lon: float | None) -> Body:
    return {} if lat is None or lon is None else {"lat": lat, "lon": lon}


def _judged(table: Mapping[str, Any], service: Service) -> Iterator[Violation]:
    """Ask both: what stands in the monitor's way must not hide what is wrong with the endpoints."""
    found: list[Any] = []
    try:
        config.parse(_document(table, service))
    except ConfigError as error:
        found += error.violations
    try:
        profiles_of(config.parse(_document({**table, "monitor": {}}, service)))
    except ConfigError as error:
        found += error.violations
    for each in found:
        path = re.sub(r"^.*?traffic_manager\.?", "", each.where)
        hint = f"; did you mean {shown(each.nearest)}?" if each.nearest else ""
        yield Violation(_code(path, each.expected), f"expected {each.expected}, got {shown(each.value)}{hint}", _target(path))


def _code(path: str, expected: str) -> str:
    if path.startswith("monitor"):
        return "InvalidMonitorConfig"
    last = path.rpartition(".")[2]
    if last in ("geo_mapping", "subnets") or "mapped" in expected or "with their subnets" in expected:
        return "InvalidMapping"
    nested = path.startswith("profiles") and path.count(".") < 2 and last in ("name", path)
    if nested or last == "profile" or "min_child" in last or "nest" in expected or "deep" in expected or "nested" in expected:
        return "InvalidNesting"
    return "InvalidEndpoint"


def _target(path: str) -> str:
    """Give a path of lbcore.toml as one of the body."""
    parts = []
    for part in filter(None, path.split(".")):
        name, bracket, index = part.partition("[")
        parts += (["dnsConfig"] if name in DNS.values() else []) + [NAMES.get(name, name) + bracket + index]
    return ".".join(["properties", *parts])

