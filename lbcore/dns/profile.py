"""Profile: how one name is routed, and the endpoints it is routed to, checked as a whole.

    Profile "api"   method priority        name, ttl, what happens when nothing is up
      Endpoint      region westeurope
      Endpoint      profile Profile "rest" method weighted, at most 10 deep
        Endpoint    region eastus, weight 3
        Endpoint    region japaneast, weight 1

Frozen, without any state: what holds of it now is asked of `status`, how queries walk it is compiled by `route`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from lbcore.errors import ConfigError, Violation

if TYPE_CHECKING:
    from lbcore._prefix import PrefixMap

__all__ = ["FAIL_OPEN", "FAMILIES", "MAX_DEPTH", "MAX_SIZE", "MAX_TTL", "METHODS", "Endpoint", "Profile"]

METHODS = ("performance", "priority", "weighted", "geographic", "multivalue", "subnet")
FAIL_OPEN = ("serve_all", "serve_last_good", "serve_backup", "nodata", "servfail", "refuse")
FAMILIES = ("client", "any")
MAX_TTL = 2**31 - 1  # RFC 2181 §8
MAX_DEPTH = 10
MAX_SIZE = 10_000  # of a tree: eight levels that share six profiles each would be two million


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
    Raises ConfigError with every violation.
    Source: Azure Traffic Manager's routing methods (REQUIREMENTS R27-R29, R36); gdnsd for the TTL that follows health; DNS.md §7.
    """

    name: str = ""
    zone: str = ""
    ttl: int = 30
    method: str = "performance"
    ttl_min: int | None = None
    endpoints: tuple[Endpoint, ...] = ()
    fail_open: str = "serve_all"
    backup: tuple[str, ...] = ()
    family: str = "client"
    max_return: int = 2
    enabled: bool = True
    geography: PrefixMap | None = None
    depth: int = field(init=False, repr=False, compare=False, default=1)  # profiles on the longest way down, itself included
    size: int = field(init=False, repr=False, compare=False, default=1)  # profiles and endpoints, each as often as it is reached

    def __post_init__(self) -> None:
        from lbcore.dns.rules import violations_of

        set_field = object.__setattr__
        set_field(self, "backup", _strings(self.backup))
        endpoints, violations = _made(self.endpoints)
        set_field(self, "endpoints", endpoints)
        nested = [endpoint.profile for endpoint in endpoints if endpoint.profile is not None]
        set_field(self, "depth", 1 + max((profile.depth for profile in nested), default=0))
        set_field(self, "size", 1 + len(endpoints) + sum(profile.size for profile in nested))
        violations += violations_of(self)
        if violations:
            raise ConfigError(violations)

    def by_priority(self) -> list[tuple[int, Endpoint]]:
        """Give the endpoints with their priorities, in the order in which they serve; one without comes after the one before it."""
        found, last = [], 0
        for endpoint in self.endpoints:
            last = last + 1 if endpoint.priority is None else endpoint.priority
            found.append((last, endpoint))
        return sorted(found, key=lambda pair: pair[0])


def _made(given: Iterable[Endpoint | Mapping[str, Any]]) -> tuple[tuple[Endpoint, ...], list[Violation]]:
    """Make Endpoints of mappings; what is wrong with a nested profile is told, and another stands in for it."""
    endpoints, violations = [], []
    for at, item in enumerate(given):
        try:
            endpoints.append(item if isinstance(item, Endpoint) else _endpoint(item))
        except ConfigError as error:
            where = f"dns.endpoints[{at}].profile."
            endpoints.append(_endpoint({**cast("Mapping[str, Any]", item), "profile": Profile()}))
            violations += [replace(found, where=where + found.where.removeprefix("dns.")) for found in error.violations]
    return tuple(endpoints), violations


def _endpoint(settings: Mapping[str, Any]) -> Endpoint:
    nested = settings.get("profile")
    return Endpoint(**{**settings, "profile": Profile(**nested) if isinstance(nested, Mapping) else nested})


def _strings(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
