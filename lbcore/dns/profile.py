"""Profile: how one name is routed, and the endpoints it is routed to, checked as a whole.

    Profile "api"   method priority        name, ttl, what happens when nothing is up
      Endpoint      region westeurope
      Endpoint      profile Profile "rest" method weighted, at most 10 deep
        Endpoint    region eastus, weight 3
        Endpoint    region japaneast, weight 1

Frozen, without any state: what holds of it now is asked of `status`, how queries walk it is compiled by `route`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import dns.exception
import dns.name

from lbcore.errors import ConfigError, Violation

if TYPE_CHECKING:
    from lbcore._prefix import PrefixMap

__all__ = ["FAIL_OPEN", "FAMILIES", "MAX_DEPTH", "MAX_TTL", "METHODS", "Endpoint", "Profile"]

METHODS = ("performance", "priority", "weighted", "geographic", "multivalue", "subnet")
FAIL_OPEN = ("serve_all", "serve_last_good", "serve_backup", "nodata", "servfail", "refuse")
FAMILIES = ("client", "any")
MAX_TTL = 2**31 - 1  # RFC 2181 §8
MAX_DEPTH = 10
_SECONDS = ("zone_ttl", "refresh", "retry", "expire")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One choice of a profile: a region by name, or a nested profile. The Profile that it is given to checks it.

    weight: 1..1000, its share under method weighted
    priority: 1..1000, each used once, the lowest serves first; None = after the endpoint before it
    enabled: False = never in an answer, and not probed for this profile's sake
    always_serve: taken for up whatever its health says, as long as the operator has not taken the region out
    geo: what is mapped to it under method geographic: "WORLD", "GEO-EU", "DE", "US-CA"; the most specific mapping wins
    subnets: the clients it serves under method subnet: "10.0.0.0/8", "1.2.3.4-1.2.3.9"; one endpoint without any takes the rest
    min_children: endpoints of the nested profile that must be up, or this one is Degraded
    min_children_ipv4, min_children_ipv6: so many of them with addresses of the family; None = any number
    Source: Azure Traffic Manager's endpoints (REQUIREMENTS R27, R28, R35, R36).
    """

    region: str = ""
    profile: Profile | None = None
    weight: int = 1
    priority: int | None = None
    enabled: bool = True
    always_serve: bool = False
    geo: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    min_children: int = 1
    min_children_ipv4: int | None = None
    min_children_ipv6: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "geo", _strings(self.geo))
        object.__setattr__(self, "subnets", _strings(self.subnets))

    @property
    def name(self) -> str:
        """Give the name of the region or of the nested profile."""
        return self.region if self.profile is None else self.profile.name


@dataclass(frozen=True, slots=True)
class Profile:
    """How one name is routed.

    name, zone: where a Responder that is given no Zone answers for it: relative to the zone ("api", "@" = the zone itself) or in full.
        A nested profile needs neither; its name is for people
    ttl: seconds 0..2147483647, of the answers
    ttl_min: None = always `ttl`; else an answer lives no longer than the time until health could next change it, within ttl_min..ttl
    method: performance (the closest), priority, weighted, geographic, multivalue (the closest `max_return`), subnet
    endpoints: what it chooses among, as Endpoints or mappings of their settings; () = every region of the Balancer
    fail_open: what is said when no endpoint is up. serve_all: as if those that are down were up. serve_last_good: the likeliest to answer
        of all its regions, whatever the method. serve_backup: the first of the `backup` regions that is up. nodata, servfail, refuse: that.
        A client of a geographic endpoint that is down is still sent there, it never goes to another place's
    family: client = the region is picked once whatever the client asks for; any = among the regions that have addresses of that family
    max_return: 1..10, of multivalue
    enabled: False = NXDOMAIN
    geography: where clients are, for method geographic: a PrefixMap by country and subdivision; None = the Balancer's own map
    nameservers, glue, mname, rname, serial, refresh, retry, expire, negative_ttl, zone_ttl: of the zone that holds it alone
    Raises ConfigError with every violation.
    Source: Azure Traffic Manager's routing methods (REQUIREMENTS R27-R29, R36); gdnsd for the TTL that follows health; DNS.md §7.
    """

    name: str = ""
    zone: str = ""
    ttl: int = 30
    nameservers: tuple[str, ...] = ("ns",)
    glue: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mname: str = ""
    rname: str = "hostmaster"
    serial: int = 1
    refresh: int = 3600
    retry: int = 600
    expire: int = 604_800
    negative_ttl: int | None = None
    zone_ttl: int = 3600
    method: str = "performance"
    ttl_min: int | None = None
    endpoints: tuple[Endpoint, ...] = ()
    fail_open: str = "serve_all"
    backup: tuple[str, ...] = ()
    family: str = "client"
    max_return: int = 2
    enabled: bool = True
    geography: PrefixMap | None = None

    def __post_init__(self) -> None:
        from lbcore.dns.rules import violations_of

        set_field = object.__setattr__
        set_field(self, "nameservers", _strings(self.nameservers))
        set_field(self, "backup", _strings(self.backup))
        endpoints, violations = _made(self.endpoints)
        set_field(self, "endpoints", endpoints)
        set_field(self, "glue", {name: _strings(addresses) for name, addresses in self.glue.items()})
        violations += [*violations_of(self), *self._wrong_numbers(), *self._wrong_names(), *self._wrong_glue()]
        if violations:
            raise ConfigError(violations)

    @property
    def depth(self) -> int:
        """Give how many profiles lie on the longest way down, itself included."""
        return 1 + max((endpoint.profile.depth for endpoint in self.endpoints if endpoint.profile is not None), default=0)

    def by_priority(self) -> list[tuple[int, Endpoint]]:
        """Give the endpoints with their priorities, in the order in which they serve; one without comes after the one before it."""
        found, last = [], 0
        for endpoint in self.endpoints:
            last = last + 1 if endpoint.priority is None else endpoint.priority
            found.append((last, endpoint))
        return sorted(found, key=lambda pair: pair[0])

    @property
    def origin(self) -> dns.name.Name:
        """Give the zone's name, absolute."""
        return dns.name.from_text(self.zone)

    @property
    def owner(self) -> dns.name.Name:
        """Give the balanced name, absolute."""
        return self.absolute(self.name)

    @property
    def minimum(self) -> int:
        """Give the seconds for which a denial may be cached."""
        return min(self.ttl, 30) if self.negative_ttl is None else self.negative_ttl

    @property
    def mailbox(self) -> dns.name.Name:
        """Give `rname` as a domain name; dots of the local part stay in its first label (RFC 1035 §8)."""
        local, at, domain = self.rname.partition("@")
        if not at:
            return self.absolute(self.rname)
        return dns.name.Name((local.encode("ascii"), *dns.name.from_text(domain).labels))

    def absolute(self, name: str) -> dns.name.Name:
        """Give a name of the profile in full: what ends in a dot or lies in the zone already is, everything else is relative to it."""
        origin = self.origin
        full = dns.name.from_text(name, origin=None) if name != "@" else dns.name.empty
        if full.is_absolute():
            return full
        rooted = full.concatenate(dns.name.root)
        return rooted if rooted.is_subdomain(origin) else full.concatenate(origin)

    def host(self, name: str) -> dns.name.Name:
        """Give a server's name in full: one label is relative to the zone, more are a full name with or without the last dot."""
        labels = dns.name.from_text(name, origin=None)
        return labels.derelativize(self.origin if len(labels) == 1 else dns.name.root)

    def _wrong_numbers(self) -> Iterator[Violation]:
        for key in (*_SECONDS, *(("negative_ttl",) if self.negative_ttl is not None else ())):
            if not _within(getattr(self, key), MAX_TTL):
                yield Violation(f"dns.{key}", getattr(self, key), f"whole seconds, 0..{MAX_TTL}")
        if not _within(self.serial, 2**32 - 1):
            yield Violation("dns.serial", self.serial, "a whole number, 0..4294967295")

    def _wrong_names(self) -> Iterator[Violation]:
        if not self.zone and self.name != "@" and "." not in self.name:
            return  # a nested profile, or one whose Zone says where it is
        if not _is_name(self, "zone"):
            yield Violation("dns.zone", self.zone, "a domain name such as example.com")
            return  # nothing can be judged relative to it
        if not _is_name(self, "owner") or not self.name or not self.owner.is_subdomain(self.origin) or self.owner.is_wild():
            yield Violation("dns.name", self.name, f"a name in {self.zone} without a wildcard, or @ for the zone itself")
        if not _is_name(self, "mailbox") or not self.rname:
            yield Violation("dns.rname", self.rname, "a mailbox such as hostmaster@example.com")
        if not self.nameservers:
            yield Violation("dns.nameservers", self.nameservers, "at least one name server")
        for key, name in (*(("nameservers", name) for name in self.nameservers), ("mname", self.mname or "ns")):
            if not _is_host(self, name):
                yield Violation(f"dns.{key}", name, "a domain name")

    def _wrong_glue(self) -> Iterator[Violation]:
        if not _is_name(self, "zone"):
            return
        servers = {self.host(name) for name in self.nameservers if _is_host(self, name)}
        for name, addresses in self.glue.items():
            if not _is_host(self, name) or self.host(name) not in servers or not self.host(name).is_subdomain(self.origin):
                yield Violation(f"dns.glue.{name}", name, f"a name server of the profile that lies in {self.zone}")
            for address in addresses:
                if not _is_address(address):
                    yield Violation(f"dns.glue.{name}", address, "an IPv4 or IPv6 address")


def _made(given: Iterable[Endpoint | Mapping[str, Any]]) -> tuple[tuple[Endpoint, ...], list[Violation]]:
    """Make Endpoints of mappings; what is wrong with a nested profile is told, and another stands in for it."""
    endpoints, violations = [], []
    for at, item in enumerate(given):
        try:
            endpoints.append(item if isinstance(item, Endpoint) else _endpoint(item))
        except ConfigError as error:
            where = f"dns.endpoints[{at}].profile."
            endpoints.append(_endpoint({**item, "profile": Profile()}))  # type: ignore[dict-item]
            violations += [replace(found, where=where + found.where.removeprefix("dns.")) for found in error.violations]
    return tuple(endpoints), violations


def _endpoint(settings: Mapping[str, Any]) -> Endpoint:
    nested = settings.get("profile")
    return Endpoint(**{**settings, "profile": Profile(**nested) if isinstance(nested, Mapping) else nested})


def _strings(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _within(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_name(profile: Profile, key: str) -> bool:
    try:
        name = profile.origin if key == "zone" else getattr(profile, key)
    except (dns.exception.DNSException, AttributeError, UnicodeError, ValueError):
        return False
    return key != "zone" or (bool(profile.zone.strip(".")) and len(name.labels) > 1)


def _is_host(profile: Profile, name: str) -> bool:
    try:
        return bool(name) and len(profile.host(name)) > 1
    except (dns.exception.DNSException, UnicodeError, ValueError):
        return False


def _is_address(text: str) -> bool:
    try:
        return "%" not in str(ipaddress.ip_address(text))
    except ValueError:
        return False
