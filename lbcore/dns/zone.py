"""Zone: what this process is authoritative for: SOA, NS and glue, static records, and which names are steered by which profile.

                               answered
    static records             the same for everybody
    hosts                      their addresses, the same for everybody
    steered names              by their profile: A, AAAA, HTTPS, SVCB, or a CNAME where the region has a host name alone
    aliases                    as the steered name they stand for, but never with a CNAME: at the apex, or beside other records
    a CNAME to a steered name  the CNAME alone: the resolver asks again, so that its scope and lifetime stay its own (RFC 7871 §7.2.1)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import dns.exception
import dns.name
import dns.rdata
from dns.name import Name
from dns.rdata import Rdata
from dns.rdataclass import IN
from dns.rdatatype import AAAA, NS, SOA, A, RdataType
from dns.rdtypes.ANY.SOA import SOA as SoaData

from lbcore.dns.names import from_key, key_of
from lbcore.dns.zonefile import Content, Records, check, read
from lbcore.errors import ConfigError, Violation

if TYPE_CHECKING:
    from lbcore.dns.profile import Profile

__all__ = ["Zone"]

MAX_TTL = 2**31 - 1  # RFC 2181 §8
_SECONDS = ("zone_ttl", "hosts_ttl", "refresh", "retry", "expire", "negative_ttl")


@dataclass(frozen=True, eq=False)
class Zone:
    """A zone: its own records and its steered names.

    origin: the zone's name
    profiles: steered names and their profiles; "api" and "api.eu" are relative to the zone, "@" is the zone itself, "*" and "*.eu"
        stand for every name that does not exist there (RFC 4592)
    records: static records: text in the form of a zone file, or the Path of one; $ORIGIN and $TTL work, $INCLUDE and $GENERATE do not
    aliases: names that answer as a steered name of this process does, in this zone or another: {"@": "api"}
    nameservers: NS of the zone, in full or one label relative to it; not when `records` has them. Default "ns"
    glue: addresses of name servers that lie in the zone. A public delegation needs them; without, their names answer NODATA
    mname, rname, serial, refresh, retry, expire, negative_ttl: the SOA, unless `records` has it; mname = the first name server,
        rname as "hostmaster" or "hostmaster@example.com", negative_ttl (seconds) is its MINIMUM
    hosts: addresses of host names in the zone, such as those of regions' own gateways; static records of the same name come first
    zone_ttl: seconds, of SOA, NS and glue, and of static records that give none; hosts_ttl: seconds, of hosts
    alpn: protocols that HTTPS and SVCB records of steered names promise beside HTTP/1.1; () = no such records
    keys: signs the zone; None = it is not signed
    Raises ConfigError with every violation, OSError when a file cannot be read.
    Source: RFC 1035 §3.3.13 and §5, RFC 1034 §3.6.2, RFC 2308 §5, RFC 2181 §8, RFC 4592, RFC 9460.
    """

    origin: str
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    records: str | Path | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    nameservers: tuple[str, ...] = ()
    glue: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mname: str = ""
    rname: str = "hostmaster"
    serial: int = 1
    refresh: int = 3600
    retry: int = 600
    expire: int = 604_800
    negative_ttl: int = 30
    zone_ttl: int = 3600
    hosts_ttl: int = 30
    alpn: tuple[str, ...] = ("h2",)
    keys: Any = None
    apex: Name = field(init=False)
    key: bytes = field(init=False)  # the zone's name, as names.py has it; so have the next three
    content: Content = field(init=False)
    steered: Mapping[bytes, Profile] = field(init=False)
    stands_for: Mapping[bytes, bytes] = field(init=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        for given in ("nameservers", "alpn"):
            set_field(self, given, _strings(getattr(self, given)))
        for given in ("glue", "hosts"):
            set_field(self, given, {name: _strings(addresses) for name, addresses in getattr(self, given).items()})
        apex = _name(self.origin, dns.name.root)
        if apex is None or len(apex) < 2 or apex.is_wild():
            raise ConfigError([Violation("dns.zone", self.origin, "a domain name such as example.com")])
        set_field(self, "apex", apex)
        set_field(self, "key", key_of(apex))
        violations = [*self._wrong_numbers(), *self._wrong_names(), *self._wrong_glue(), *self._wrong_hosts()]
        set_field(self, "steered", {key_of(name): profile for text, profile in self.profiles.items() if (name := self._inner(text))})
        aliases = {name: self.absolute(target) for text, target in self.aliases.items() if (name := self._inner(text))}
        set_field(self, "stands_for", {key_of(name): key_of(target) for name, target in aliases.items() if target})
        if not violations:
            set_field(self, "content", self._content(violations))
        if violations:
            raise ConfigError(violations)

    @classmethod
    def of(cls, profile: Profile) -> Zone:
        """Give the zone that a profile with a name and a zone asks for by itself, with one name server, `ns`, that has no address."""
        return cls(profile.zone, {profile.name: profile})

    def absolute(self, text: str) -> Name | None:
        """Give a name in full: what ends in a dot or lies in the zone is already, else it is relative to it. None for what is no name."""
        if text == "@":
            return self.apex
        full = _name(text, dns.name.root)
        return full if full is None or text.endswith(".") or full.is_subdomain(self.apex) else _name(text, self.apex)

    def host(self, text: str) -> Name | None:
        """Give a server's name in full: one label is relative to the zone, more are a full name with or without the last dot."""
        return _name(text, self.apex if "." not in text else dns.name.root)

    def same(self, other: Zone) -> bool:
        """Say whether another zone would be answered for just alike, so that what was prepared for it holds."""
        return all(getattr(self, name) == getattr(other, name) for name in ("key", "content", "steered", "stands_for", "alpn", "keys"))

    @property
    def steered_names(self) -> list[Name]:
        """Give the steered names in full, aliases last."""
        return [from_key(key) for key in (*self.steered, *self.stands_for)]

    @property
    def soa(self) -> Rdata:
        """Give the SOA's data."""
        return self.content[self.key][SOA].rdatas[0]

    @property
    def denial_ttl(self) -> int:
        """Give the seconds that a denial lives: the lesser of the SOA's TTL and its MINIMUM (RFC 2308 §3)."""
        return min(self.content[self.key][SOA].ttl, cast(SoaData, self.soa).minimum)

    # ---- records

    def _content(self, violations: list[Violation]) -> Content:
        content, lines = read(self.records, self.apex, self.zone_ttl, violations)
        apex = content.setdefault(self.key, {})
        if SOA not in apex:
            apex[SOA] = Records(self.zone_ttl, (self._made_soa(apex),))
        if NS not in apex:
            servers = [self.host(text) for text in self.nameservers or ("ns",)]
            apex[NS] = Records(self.zone_ttl, tuple(_rdata(NS, str(name)) for name in servers))
            for name in servers:
                if name is not None and name.is_subdomain(self.apex) and key_of(name) not in self.steered:
                    content.setdefault(key_of(name), {})
        elif self.nameservers:
            violations.append(Violation("dns.nameservers", self.nameservers, "none: `records` has the zone's NS"))
        for text, addresses in self.glue.items():
            _add(content.setdefault(key_of(self.host(text) or self.apex), {}), addresses, self.zone_ttl)
        for key, addresses in self._hosts.items():
            if key not in content:
                _add(content.setdefault(key, {}), addresses, self.hosts_ttl)
        violations += check(content, lines, self)
        return content

    def _made_soa(self, apex: Mapping[int, Records]) -> Rdata:
        first = self.host(self.mname or (*self.nameservers, "ns")[0])
        if not self.mname and NS in apex:
            first = apex[NS].servers()[0]
        times = f"{self.refresh} {self.retry} {self.expire} {self.negative_ttl}"
        return _rdata(SOA, f"{first} {self._mailbox()} {self.serial} {times}")

    @property
    def _hosts(self) -> dict[bytes, tuple[str, ...]]:
        """Give the addresses of hosts whose names are not steered."""
        keys = {key_of(name): addresses for text, addresses in self.hosts.items() if addresses and (name := self._inner(text))}
        return {key: addresses for key, addresses in keys.items() if key not in self.steered and key not in self.stands_for}

    def _mailbox(self) -> Name | None:
        """Give `rname` as a domain name; dots of the local part stay in its first label (RFC 1035 §8)."""
        local, at, domain = self.rname.partition("@")
        if not at:
            return self.absolute(self.rname)
        try:
            return dns.name.Name((local.encode("ascii"), *dns.name.from_text(domain).labels))
        except (dns.exception.DNSException, UnicodeError, ValueError):
            return None

    # ---- checks

    def _inner(self, text: str) -> Name | None:
        name = self.absolute(text) if text else None
        return name if name is not None and name.is_subdomain(self.apex) else None

    def _wrong_numbers(self) -> Iterator[Violation]:
        for key in _SECONDS:
            if not _within(getattr(self, key), MAX_TTL):
                yield Violation(f"dns.{key}", getattr(self, key), f"whole seconds, 0..{MAX_TTL}")
        if not _within(self.serial, 2**32 - 1):
            yield Violation("dns.serial", self.serial, "a whole number, 0..4294967295")
        for protocol in self.alpn:
            if not 0 < len(protocol.encode()) < 256:
                yield Violation("dns.alpn", protocol, "the name of a protocol, such as h2")

    def _wrong_names(self) -> Iterator[Violation]:
        for key, texts in (("name", [*self.profiles]), ("aliases", [*self.aliases])):
            seen: dict[Name, str] = {}
            for text in texts:
                if (name := self._inner(text)) is None:
                    yield Violation(f"dns.{key}", text, f"a name in {self.origin}, or @ for the zone itself")
                elif seen.setdefault(name, text) != text:
                    yield Violation(f"dns.{key}", text, f"a name given once; {seen[name]!r} is the same")
        for target in self.aliases.values():
            if self.absolute(target) is None:
                yield Violation("dns.aliases", target, "a steered name")
        if not self.rname or self._mailbox() is None:
            yield Violation("dns.rname", self.rname, "a mailbox such as hostmaster@example.com")
        for key, text in (*(("nameservers", text) for text in self.nameservers), ("mname", self.mname or "ns")):
            if self.host(text) is None:
                yield Violation(f"dns.{key}", text, "a domain name")

    def _wrong_glue(self) -> Iterator[Violation]:
        servers = {self.host(text) for text in self.nameservers or ("ns",)}
        for text, addresses in self.glue.items():
            name = self.host(text)
            if name is None or name not in servers or not name.is_subdomain(self.apex):
                yield Violation(f"dns.glue.{text}", text, f"a name server of the zone that lies in {self.origin}")
            for address in addresses:
                if not _is_address(address):
                    yield Violation(f"dns.glue.{text}", address, "an IPv4 or IPv6 address")

    def _wrong_hosts(self) -> Iterator[Violation]:
        for text, addresses in self.hosts.items():
            if (name := self._inner(text)) is None or name.is_wild():
                yield Violation(f"dns.hosts.{text}", text, f"a name in {self.origin}")
            for address in addresses:
                if not _is_address(address):
                    yield Violation(f"dns.hosts.{text}", address, "an IPv4 or IPv6 address")


def _add(node: dict[int, Records], addresses: Iterable[str], ttl: int) -> None:
    for text in addresses:
        rdata = _rdata(A if ipaddress.ip_address(text).version == 4 else AAAA, text)
        before = node.get(rdata.rdtype, Records(ttl, ()))
        if rdata not in before.rdatas:
            node[rdata.rdtype] = Records(before.ttl, (*before.rdatas, rdata))


def _strings(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _within(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _rdata(rdtype: int, text: str) -> Rdata:
    return dns.rdata.from_text(IN, RdataType.make(rdtype), text)


def _name(text: str, origin: Name) -> Name | None:
    try:
        name = dns.name.from_text(text, origin) if text else None
    except (dns.exception.DNSException, UnicodeError, ValueError):
        return None
    return None if name == dns.name.root else name


def _is_address(text: str) -> bool:
    try:
        return "%" not in str(ipaddress.ip_address(text))
    except ValueError:
        return False
