"""Profile: the name that is balanced and the zone around it, checked as a whole."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import dns.exception
import dns.name

from lbcore.errors import ConfigError, Violation

__all__ = ["METHODS", "Endpoint", "Profile"]

METHODS = ("performance",)
MAX_TTL = 2**31 - 1  # RFC 2181 §8
_SECONDS = ("ttl", "zone_ttl", "refresh", "retry", "expire")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of a profile's regions."""

    region: str = ""
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Profile:
    """One balanced name in its zone.

    name: relative to the zone ("api", "@" = the zone itself) or in full ("api.example.com", "api.example.com.")
    zone: the zone that this server is authoritative for
    ttl: seconds, 0..2147483647, of the balanced name's records
    nameservers: NS of the zone, in full or one label relative to it; the first is the SOA's MNAME unless `mname` is given
    glue: addresses of name servers that lie in the zone. A public delegation needs them; without, their names answer NODATA
    mname, rname, serial, refresh, retry, expire: the SOA; rname as "hostmaster" or "hostmaster@example.com"
    negative_ttl: the SOA's MINIMUM, seconds; None = `ttl`, at most 30, so that a denial never outlives an answer
    zone_ttl: seconds, of SOA, NS and glue
    method: performance, the closest healthy region
    Raises ConfigError with every violation.
    Source: RFC 1035 §3.3.13, RFC 2308 §5 (negative answers), RFC 2181 §8 (TTL).
    """

    name: str
    zone: str
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
    enabled: bool = True

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "nameservers", _strings(self.nameservers))
        set_field(self, "glue", {name: _strings(addresses) for name, addresses in self.glue.items()})
        violations = [*self._wrong_numbers(), *self._wrong_names(), *self._wrong_glue()]
        if self.method not in METHODS:
            violations.append(Violation("dns.method", self.method, f"one of {', '.join(METHODS)}", METHODS[0]))
        if violations:
            raise ConfigError(violations)

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
