"""rate-limit: how many calls one caller may make in a period. Each region's gateway counts by itself; nothing is synchronised."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, ValidationInfo

from lbcore.http._limits import MOST_CALLS
from lbcore.http.message import Response
from lbcore.http.policies.conditions import expression
from lbcore.http.policies.context import Context
from lbcore.http.policies.policy import Policy, Site, Step, of_region, section_of
from lbcore.http.policies.values import text

__all__ = ["RateLimit", "share_of"]

_CALLS = f"a whole number of calls, 1..{MOST_CALLS}"
_BY = 'by "client", "key", "all", or an expression such as \'claims["sub"]\''


def _by(given: str, info: ValidationInfo) -> str:
    if given not in ("client", "key", "all"):
        expression(given, section_of(info))
    return given


def share_of(calls: int, units: Mapping[str, int]) -> dict[str, int]:
    """Give each region's part of a limit that all of them are to hold together: by its units, at least 1 call, as `regions` takes it.

    Rounded down, and who has most gives to who would have nothing: the sum is `calls` at most, unless there are more regions than calls.
    """
    total = sum(units.values()) or 1
    shares = {region: max(1, calls * count // total) for region, count in units.items()}
    while sum(shares.values()) > max(calls, len(shares)):
        shares[max(shares, key=shares.__getitem__)] -= 1
    return shares


class RateLimit(Policy):
    """Let at most `calls` calls a `period` through for each caller; the others get 429 with Retry-After.

    calls, period: of a sliding window, seconds; regions: other numbers of calls for some regions
    by: who is counted: "client" (its address; of IPv6 its /64), "key" (as `validate-api-key` found it), "all" together, or an expression
    name: of the counter; limits of one scope with the same name, or none and the same numbers, count together
    headers: tell callers what is left, in RateLimit and RateLimit-Policy
    Every region's gateway counts by itself: with two regions a client that uses both gets twice the limit (`share_of` divides one).
    Workers of one gateway count together. A call that is refused does not count; when the table is full calls pass.
        { policy = "rate-limit", calls = 100, period = 60, by = 'request.header["x-tenant"]', regions = { westus2 = 300 } }
    Source: RFC 6585 §4 (429), draft-ietf-httpapi-ratelimit-headers-10.
    """

    kind: ClassVar[str] = "rate-limit"
    sections: ClassVar[frozenset[str]] = frozenset(("inbound", "backend"))

    calls: int = Field(ge=1, le=MOST_CALLS, description=_CALLS)
    period: float = Field(ge=0.1, le=31 * 86400, description="seconds, 0.1 to 31 days")
    by: Annotated[str, AfterValidator(_by)] = Field(default="client", description=_BY)
    regions: dict[str, Annotated[int, Field(ge=1, le=MOST_CALLS)]] = Field(default={}, description=f"a table of region = {_CALLS}")
    name: str = Field(default="", pattern=r"^[a-z0-9-]{0,40}$", description="at most 40 lower-case letters, digits and hyphens")
    headers: bool = Field(default=True, description="true or false")

    def prepare(self, site: Site) -> Step:
        if site.limits is None:
            raise ValueError("a gateway that has counters")
        calls, period, clock, limits = of_region(self.regions, site.region, self.calls), self.period, site.clock, site.limits
        caller, counter = _caller(self.by, site.section), self._counter(site)
        tell = self.headers
        name = self.name or "default"
        policy = f'RateLimit-Policy: "{name}";q={calls};w={math.ceil(period)}\r\nRateLimit: "{name}";r='.encode()

        def count(context: Context) -> Response | None:
            key, now = counter + caller(context).encode("utf-8", "replace"), clock()
            wait = limits.allow(key, calls, period, now)
            if wait == 0.0:
                if tell:
                    context.add(b"%b%d;t=%d\r\n" % (policy, limits.remaining(key, calls, period, now), math.ceil(period)))
                return None
            seconds = math.ceil(wait)
            if tell:
                context.add(b"%b0;t=%d\r\n" % (policy, seconds))
            return context.deny("rate-limit", 429, fields=[(b"Retry-After", b"%d" % seconds)])

        return count

    def _counter(self, site: Site) -> bytes:
        own = self.name or f"{self.calls}/{self.period}/{self.by}/{self.when}"
        return f"{site.scope}\0{own}\0".encode()


def _caller(by: str, section: str) -> Callable[[Context], str]:
    if by == "all":
        return lambda context: ""
    if by == "key":
        return lambda context: context.variables.get("key", "")
    if by == "client":
        return lambda context: network_of(context.client) if ":" in context.client else context.client
    value = expression(by, section)
    return lambda context: text(value(context))


_known: dict[str, str] = {}


def network_of(address: str) -> str:
    """Give the network that one caller has to itself: an IPv6 address's /64. Source: RFC 6177."""
    network = _known.get(address)
    if network is None:
        try:
            network = str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))
        except ValueError:
            network = address
        if len(_known) >= 4096:
            _known.clear()
        _known[address] = network
    return network
