"""The shape of lbcore.toml as pydantic models: a field's description is what a violation says was expected.

Keys that need a look at other keys, or at rules some other module owns, are checked by the package itself.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from lbcore.config.fields import Address, HostName, Listens, MaybeListen, Network, OneOrMore, Section, split_listen
from lbcore.config.following import Sync
from lbcore.config.management import Management, NetworkMode, VirtualNetwork
from lbcore.config.serving import Gateway, Http, Run
from lbcore.sense.monitor import URL_FORM, Monitor, Target

__all__ = ["Document", "RegionEntry", "split_listen"]


def _gateway(text: str) -> str:
    if text:
        Target.parse("", text, Monitor())
    return text


class RegionEntry(Section):
    """One of `[[service.regions]]`, or `[service.primary]`."""

    name: str = Field(min_length=1, max_length=100, pattern=r"\S", description="a region's name, such as westeurope")
    lat: float | None = Field(default=None, ge=-90, le=90, description="degrees within -90..90, together with lon")
    lon: float | None = Field(default=None, ge=-180, le=180, description="degrees within -180..180, together with lat")
    gateway: Annotated[str, AfterValidator(_gateway)] = Field(default="", description=URL_FORM)
    addresses: list[Address] = Field(default=[], description="a list of IPv4 and IPv6 addresses")
    units: int = Field(default=1, ge=1, le=1_000_000, description="a whole number of units, at least 1")
    enabled: bool = Field(default=True, description="true or false")
    always_serve: bool = Field(default=False, description="true or false")
    zones: list[str] = Field(default=[], max_length=16, description='a list of zones such as ["1", "2"], [] for automatic ones')
    virtual_network: VirtualNetwork | None = Field(default=None, description="a table")


class Service(Section):
    """`[service]`: what it is called and where it runs."""

    name: str = Field(
        default="lbcore", pattern=r"^[a-zA-Z]([a-zA-Z0-9-]{0,48}[a-zA-Z0-9])?$",
        description="1..50 letters, digits and hyphens, the first a letter, the last no hyphen",
    )  # fmt: skip
    domain: HostName = Field(default="test", description="a DNS name")
    tier: Literal["Developer", "Basic", "Standard", "Premium", "Consumption"] = Field(
        default="Premium", description='"Developer", "Basic", "Standard", "Premium" or "Consumption"'
    )  # fmt: skip
    virtual_network_type: NetworkMode = Field(default="None", description='"None", "External" or "Internal"')
    primary: RegionEntry | None = Field(default=None, description="a table like those of [[service.regions]]")
    regions: list[RegionEntry] = Field(default=[], description="tables [[service.regions]], one for each region")


class StatusRange(Section):
    """One range of HTTP status codes that count as success."""

    min: int = Field(description="a status code 100..999")
    max: int = Field(description="a status code 100..999")


class Header(Section):
    """One header sent along with probes."""

    name: str = Field(description="a header's name")
    value: str = Field(description="a header's value")


class MonitorSection(Section):
    """`[traffic_manager.monitor]`: values are checked by `Monitor`, whose own defaults apply."""

    protocol: Any = None
    port: Any = None
    path: Any = None
    interval_in_seconds: Any = None
    timeout_in_seconds: Any = None
    tolerated_number_of_failures: Any = None
    rise: Any = None
    expected_status_code_ranges: list[StatusRange] = Field(default=[], description="at most 8 tables { min = 200, max = 299 }")
    custom_headers: list[Header] = Field(default=[], description='at most 8 tables { name = "…", value = "…" }')
    host: Any = None
    verify: Any = None
    ca: Any = None
    client_certificate: Any = None
    jitter: Any = None
    max_concurrency: Any = None
    strict_azure: bool = Field(default=False, description="true or false")
    anchors: list[Annotated[str, AfterValidator(_gateway)]] = Field(default=[], description=f"a list of URLs, each {URL_FORM}")


Status = Literal["Enabled", "Disabled"]
Method = Literal["Performance", "Priority", "Weighted", "Geographic", "MultiValue", "Subnet"]
Policy = Literal["serve_all", "serve_last_good", "serve_backup", "nodata", "servfail", "refuse"]
STATUS = '"Enabled" or "Disabled"'
METHOD = '"Performance", "Priority", "Weighted", "Geographic", "MultiValue" or "Subnet"'
POLICY = '"serve_all", "serve_last_good", "serve_backup", "nodata", "servfail" or "refuse"'
UP_TO_1000 = "a whole number, 1..1000"


class EndpointEntry(Section):
    """One of `[[traffic_manager.endpoints]]` or of a nested profile's: a region or a nested profile, by name."""

    region: str | None = Field(default=None, description="a region's name")
    profile: str | None = Field(default=None, description="the name of one of [[traffic_manager.profiles]]")
    weight: int = Field(default=1, ge=1, le=1000, description=UP_TO_1000)
    priority: int | None = Field(default=None, ge=1, le=1000, description=UP_TO_1000)
    endpoint_status: Status = Field(default="Enabled", description=STATUS)
    always_serve: bool = Field(default=False, description="true or false")
    geo_mapping: list[str] = Field(default=[], description='a list such as ["GEO-EU", "DE", "US-CA", "WORLD"]')
    subnets: list[str] = Field(default=[], description='a list such as ["10.0.0.0/8", "1.2.3.4-1.2.3.9"]')
    min_child_endpoints: int = Field(default=1, ge=1, le=1000, description=UP_TO_1000)
    min_child_endpoints_ipv4: int | None = Field(default=None, ge=0, le=1000, description="a whole number, 0..1000")
    min_child_endpoints_ipv6: int | None = Field(default=None, ge=0, le=1000, description="a whole number, 0..1000")


class Routed(Section):
    """What a profile has wherever it stands."""

    profile_status: Status = Field(default="Enabled", description=STATUS)
    traffic_routing_method: Method = Field(default="Performance", description=METHOD)
    max_return: int = Field(default=2, ge=1, le=10, description="a whole number, 1..10")
    fail_open: Policy = Field(default="serve_all", description=POLICY)
    backup: list[str] = Field(default=[], description="a list of regions' names, for fail_open serve_backup")
    family: Literal["client", "any"] = Field(default="client", description='"client" or "any"')
    ttl: int | None = Field(default=None, ge=0, le=2**31 - 1, description="seconds 0..2147483647")
    ttl_min: int | None = Field(default=None, ge=0, le=2**31 - 1, description="seconds 0..ttl")
    endpoints: list[EndpointEntry] = Field(default=[], description="tables, one for each endpoint; none = every region")


class NestedProfile(Routed):
    """One of `[[traffic_manager.profiles]]`."""

    name: str = Field(min_length=1, max_length=100, description="a name, for the endpoints that lead to it")


class TrafficManager(Routed):
    """`[traffic_manager]`: how answers are routed, for how long they hold, and how gateways are watched."""

    profiles: list[NestedProfile] = Field(default=[], description="tables [[traffic_manager.profiles]], one for each nested profile")
    monitor: MonitorSection = Field(default_factory=MonitorSection, description="a table")


class NetworkEntry(Section):
    """Networks of the user's own, which override the database."""

    network: Network = Field(description="a network such as 10.20.0.0/16 or 2001:db8::/32")
    group: str = Field(min_length=1, description='a group key as `lbcore geo lookup` shows it, such as "DE" or "US/California"')


class Latency(Section):
    """`[latency]`: where clients are, and how samples become an estimate."""

    database: OneOrMore = Field(default=[], description="the path of an mmdb file, or a list of them")
    networks: list[NetworkEntry] = Field(default=[], description="tables [[latency.networks]] with network and group")
    prior: Literal["round_trip", "distance"] = Field(default="round_trip", description='"round_trip" or "distance"')
    estimator: Literal["prior_ewma", "ewma"] = Field(default="prior_ewma", description='"prior_ewma" or "ewma"')
    ewma_tau_seconds: float = Field(default=10.0, gt=0, le=1e6, description="seconds above 0, the time constant of estimator ewma")


class Detector(Section):
    """`[detector]`: who judges, with which settings."""

    kind: str = Field(default="default", description="a detector's name")
    settings: dict[str, Any] = Field(default={}, description="a table of the detector's keyword arguments")
    hold_down_seconds: float = Field(default=30.0, ge=0, le=480, description="seconds 0..480 of the first hold of a flapping region")


class ZoneSection(Section):
    """What `[dns]` and `[[dns.zones]]` say of a zone; names and records are checked by `Zone`."""

    nameservers: Annotated[list[HostName], Field(min_length=1)] | None = Field(
        default=None, description="a list of DNS names, at least one"
    )  # fmt: skip
    glue: dict[str, list[Address]] = Field(default={}, description="a table of lists of addresses, for name servers within the zone")
    records: str = Field(default="", description='the path of a zone file, or ""')
    aliases: dict[str, str] = Field(default={}, description='a table such as { "@" = "api" }')
    alpn: list[str] = Field(default=["h2"], description='a list of protocols such as ["h2"], [] for no HTTPS records')
    keys: str = Field(default="", description='the path of the folder that has the keys of the zone, or ""')
    mname: HostName | Literal[""] = Field(default="", description='a DNS name, or "" for the first name server')
    rname: str = Field(default="hostmaster", min_length=1, max_length=254, description="a mailbox such as hostmaster@example.com")
    serial: int = Field(default=1, ge=0, le=2**32 - 1, description="a whole number 0..4294967295")
    refresh: int = Field(default=3600, ge=0, le=2**31 - 1, description="seconds 0..2147483647")
    retry: int = Field(default=600, ge=0, le=2**31 - 1, description="seconds 0..2147483647")
    expire: int = Field(default=604_800, ge=0, le=2**31 - 1, description="seconds 0..2147483647")
    negative_ttl: int = Field(default=30, ge=0, le=2**31 - 1, description="seconds 0..2147483647")
    zone_ttl: int = Field(default=3600, ge=0, le=2**31 - 1, description="seconds 0..2147483647")


class ZoneEntry(ZoneSection):
    """One of `[[dns.zones]]`."""

    zone: HostName = Field(description="a DNS name")
    names: dict[str, str] | list[str] = Field(default=[], description='a list of names in the zone, or a table { "api" = "profile" }')


class RateLimit(Section):
    """`[dns.rate_limit]`: how often a network is told the same over UDP."""

    rate: int = Field(default=200, ge=0, le=100_000, description="a whole number of responses a second, 0..100000; 0 = no limit")
    slip: int = Field(default=2, ge=0, le=15, description="a whole number 0..15")
    exempt: list[Network] = Field(
        default=["127.0.0.0/8", "::1/128"], description="a list of networks such as 192.0.2.0/24"
    )


class Dns(ZoneSection):
    """`[dns]`: the responder, and its zone when it is the only one."""

    listen: Listens = Field(
        default=["127.0.0.1:5353"], min_length=1,
        description='an address and port such as "127.0.0.1:5353" or "[::1]:53", or a list of different ones',
    )  # fmt: skip
    threads: int = Field(default=1, ge=1, le=256, description="a whole number of threads for each address, 1..256")
    control: str = Field(default="", description='the path of a socket, such as "/run/lbcore/dns.sock", or ""')
    metrics: MaybeListen = Field(
        default="127.0.0.1:9190", description='an address and port such as "127.0.0.1:9190", or ""'
    )
    query_log: str = Field(default="", description='the path of a file, or ""')
    query_log_sample: int = Field(default=100, ge=1, description="a whole number: one answer of so many is logged")
    nsid: str = Field(default="", pattern=r"^[ -~]{0,64}$", description="at most 64 printable ASCII characters")
    version: str = Field(default="", pattern=r"^[ -~]{0,255}$", description="at most 255 printable ASCII characters")
    cookies: bool = Field(default=True, description="true or false")
    cookie_secret: str = Field(default="", description='the path of a file of one or two secrets, or ""')
    rate_limit: RateLimit = Field(default_factory=RateLimit, description="a table")
    zone: HostName | None = Field(default=None, description="the DNS zone that is served; default service.domain")
    name: HostName | Literal["@"] | None = Field(default=None, description='a name in the zone or "@"; default service.name')
    zones: list[ZoneEntry] = Field(default=[], description="tables [[dns.zones]], in the place of what [dns] says of a single zone")


class Document(Section):
    """The whole file."""

    schema_version: Literal[1] = Field(default=1, description="1")
    service: Service = Field(default_factory=Service, description="a table")
    traffic_manager: TrafficManager = Field(default_factory=TrafficManager, description="a table")
    latency: Latency = Field(default_factory=Latency, description="a table")
    detector: Detector = Field(default_factory=Detector, description="a table")
    dns: Dns = Field(default_factory=Dns, description="a table")
    http: Http = Field(default_factory=Http, description="a table")
    gateway: Gateway | None = Field(default=None, description="a table")
    management: Management | None = Field(default=None, description="a table")
    sync: Sync | None = Field(default=None, description="a table")
    run: Run = Field(default_factory=Run, description="a table")
