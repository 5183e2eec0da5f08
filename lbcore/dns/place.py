"""Place: what a region can be answered with in DNS: its addresses, or else the host of its gateway.

A region that has neither is *mute*: DNS cannot name it, so no route may end there.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import dns.exception
import dns.name
from dns.name import Name
from dns.rdatatype import AAAA, A

from lbcore.region import Region

__all__ = ["MUTE", "Place", "place_of"]


@dataclass(frozen=True, slots=True)
class Place:
    """What a region can be answered with.

    ipv4, ipv6: addresses in network order, as A and AAAA carry them
    alias: the gateway's host where there are no addresses: the target of a CNAME
    host: the gateway's host, whether there are addresses or not, None when it is an address itself
    https: whether the gateway's URL says so; only then may an HTTPS record promise it (RFC 9460 §9.5: clients then never use HTTP)
    port: the gateway's port when it is not that of its scheme
    """

    ipv4: tuple[bytes, ...] = ()
    ipv6: tuple[bytes, ...] = ()
    alias: Name | None = None
    host: Name | None = None
    https: bool = False
    port: int | None = None

    def __bool__(self) -> bool:
        return bool(self.ipv4 or self.ipv6 or self.alias)

    def addresses(self, family: int) -> tuple[bytes, ...]:
        """Give the addresses of a family, 1 = A or 28 = AAAA."""
        return self.ipv4 if family == A else self.ipv6 if family == AAAA else ()

    def families(self, direct: bool = False) -> tuple[bool, bool]:
        """Say whether the region can be answered with in IPv4, in IPv6: an alias in both, but not where the name cannot be a CNAME."""
        alias = self.alias is not None and not direct
        return bool(self.ipv4) or alias, bool(self.ipv6) or alias


MUTE = Place()


def place_of(region: Region | None) -> Place:
    """Give what a region can be answered with; `MUTE` for a free slot and for what DNS cannot name."""
    if region is None:
        return MUTE
    url = _split(region.gateway)
    texts, host = list(region.addresses), (url.hostname or "") if url else ""
    literal = _address(host)
    if not texts and literal:
        texts = [literal]
    packed = [ipaddress.ip_address(text).packed for text in texts]
    name = None if literal else _target(host)
    return Place(
        tuple(address for address in packed if len(address) == 4), tuple(address for address in packed if len(address) == 16),
        None if texts else name, name, bool(url and url.scheme == "https"), _port(url),
    )  # fmt: skip


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _port(url: SplitResult | None) -> int | None:
    try:
        port = url.port if url else None
    except ValueError:
        return None
    return None if url and port == {"https": 443, "http": 80}.get(url.scheme) else port


def _address(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""
    return "" if "%" in host else str(address)  # what holds on one link only is nobody else's


def _target(host: str) -> Name | None:
    try:
        name = dns.name.from_text(host) if host and ":" not in host else None
    except (dns.exception.DNSException, UnicodeError):
        return None
    return None if name == dns.name.root else name
