"""Networks of clients as a subnet endpoint names them: prefixes, single addresses and ranges."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lbcore._prefix import PrefixMap

__all__ = ["Span", "map_of", "overlaps", "span_of"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Span(NamedTuple):
    """A run of addresses of one family: version, first and last as numbers."""

    version: int
    first: int
    last: int

    def networks(self) -> Iterator[Network]:
        """Give the prefixes that make up the span."""
        make = ipaddress.IPv4Address if self.version == 4 else ipaddress.IPv6Address
        yield from ipaddress.summarize_address_range(make(self.first), make(self.last))


def span_of(text: str) -> Span:
    """Give the addresses of "10.0.0.0/8", "192.0.2.1" or "1.2.3.4-1.2.3.9"; ValueError says what is wrong, with what was meant where clear.

    Host bits below a prefix are refused, and so is a range that runs backwards or across families.
    """
    if "-" in text:
        first, last = (ipaddress.ip_address(part.strip()) for part in text.split("-", 1))
        if first.version != last.version or int(first) > int(last):
            raise ValueError("a range from a lower to a higher address of one family")
        return Span(first.version, int(first), int(last))
    network = ipaddress.ip_network(text.strip())
    return Span(network.version, int(network.network_address), int(network.broadcast_address))


def overlaps(spans: Iterable[tuple[Span, int]]) -> Iterator[tuple[int, int]]:
    """Give pairs of numbers whose spans share addresses: each span with the one before it that reaches the farthest."""
    farthest: dict[int, tuple[Span, int]] = {}
    for span, number in sorted(spans):
        before = farthest.get(span.version)
        if before is not None and span.first <= before[0].last:
            yield before[1], number
        if before is None or span.last > before[0].last:
            farthest[span.version] = span, number


def map_of(subnets: Iterable[Iterable[str]]) -> PrefixMap:
    """Give the map whose group is 1 + the index of the entry that has the client's network, 0 = nobody's."""
    return PrefixMap.from_prefixes(
        (network, at + 1) for at, texts in enumerate(subnets) for text in texts for network in span_of(text).networks()
    )
