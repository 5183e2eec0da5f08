"""Records: the static ones around one profile, for the Responder until it answers from prepared bytes (`prepare`)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import dns.name
import dns.rdata
import dns.rdatatype
import dns.rrset
from dns.name import Name
from dns.rdata import Rdata
from dns.rdataclass import IN
from dns.rdatatype import AAAA, CNAME, NS, SOA, A, RdataType

from lbcore.dns.profile import Profile

__all__ = ["Zone", "address_rdata", "cname_rdata", "rrset"]


def address_rdata(text: str) -> Rdata:
    """Give an A or AAAA record's data for an address."""
    return dns.rdata.from_text(IN, A if ipaddress.ip_address(text).version == 4 else AAAA, text)


def cname_rdata(target: Name) -> Rdata:
    """Give a CNAME record's data."""
    return dns.rdata.from_text(IN, CNAME, target.to_text())


def rrset(name: Name, ttl: int, rdatas: Iterable[Rdata]) -> dns.rrset.RRset:
    """Give records of one type under one name, in the order given."""
    return dns.rrset.from_rdata_list(name, ttl, [*rdatas])


class Zone:
    """The static records of a profile's zone."""

    def __init__(self, profile: Profile) -> None:
        self.origin, self.ttl = profile.origin, profile.zone_ttl
        servers = [profile.host(name) for name in profile.nameservers]
        primary = profile.host(profile.mname) if profile.mname else servers[0]
        times = f"{profile.refresh} {profile.retry} {profile.expire} {profile.minimum}"
        soa = dns.rdata.from_text(IN, SOA, f"{primary} {profile.mailbox} {profile.serial} {times}")
        self._nodes: dict[Name, dict[RdataType, list[Rdata]]] = {
            self.origin: {SOA: [soa], NS: [dns.rdata.from_text(IN, NS, name.to_text()) for name in servers]}
        }
        for name in servers:
            self._add(name, ())
        for text, addresses in profile.glue.items():
            self._add(profile.host(text), addresses)
        self._names = _with_ancestors([*self._nodes, profile.owner], self.origin)
        # RFC 2308 §3: a denial lives as long as the lesser of the SOA's own TTL and its MINIMUM.
        self.denial = rrset(self.origin, min(profile.zone_ttl, profile.minimum), [soa])
        self.glue = [found for name in servers if name.is_subdomain(self.origin) for found in self.find(name, name, (A, AAAA))]

    def exists(self, name: Name) -> bool:
        """Say whether a name exists, with records or only as the parent of one that has (RFC 8020)."""
        return name in self._names

    def find(self, name: Name, spelled: Name, types: Iterable[RdataType]) -> list[dns.rrset.RRset]:
        """Give the static records of a name and types, under the spelling that was asked for."""
        node = self._nodes.get(name, {})
        return [rrset(spelled, self.ttl, node[rdtype]) for rdtype in types if node.get(rdtype)]

    def types(self, name: Name) -> list[RdataType]:
        """Give the types of which a name has static records."""
        return [*self._nodes.get(name, ())]

    def _add(self, name: Name, addresses: Iterable[str]) -> None:
        if name.is_subdomain(self.origin):
            node = self._nodes.setdefault(name, {})
            for text in addresses:
                rdata = address_rdata(text)
                node.setdefault(rdata.rdtype, []).append(rdata)


def _with_ancestors(names: Iterable[Name], origin: Name) -> set[Name]:
    found = {origin}
    for name in names:
        while name != origin:
            found.add(name)
            name = name.parent()
    return found
