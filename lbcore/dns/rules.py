"""The rules of routing: everything that is wrong with a profile's method, endpoints and numbers."""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lbcore.dns.geography import canonical_place, nearest_place
from lbcore.dns.networks import Span, overlaps, span_of
from lbcore.dns.profile import FAIL_OPEN, FAMILIES, MAX_DEPTH, MAX_SIZE, MAX_TTL, METHODS
from lbcore.errors import Violation, nearest
from lbcore.region import canonical

if TYPE_CHECKING:
    from lbcore.dns.profile import Endpoint, Profile

__all__ = ["violations_of"]

PLACE_FORM = 'WORLD, a group such as "GEO-EU", a country such as "DE" or a subdivision such as "US-CA"'
SUBNET_FORM = 'a network without host bits such as "10.0.0.0/8", an address, or a range "1.2.3.4-1.2.3.9"'


def violations_of(profile: Profile) -> Iterator[Violation]:
    """Give every violation of the routing rules; `where` begins with "dns."."""
    yield from _numbers(profile)
    for key, known in (("method", METHODS), ("fail_open", FAIL_OPEN), ("family", FAMILIES)):
        if (value := getattr(profile, key)) not in known:
            near = nearest(value, known) if isinstance(value, str) else ()
            yield Violation(f"dns.{key}", value, f"one of {', '.join(known)}", near[0] if near else known[0])
    if profile.fail_open == "serve_backup" and not profile.backup:
        yield Violation("dns.backup", profile.backup, "at least one region, for fail_open serve_backup")
    elif profile.fail_open != "serve_backup" and profile.backup:
        yield Violation("dns.fail_open", profile.fail_open, "serve_backup, for there is a backup", "serve_backup")
    for at, endpoint in enumerate(profile.endpoints):
        yield from _endpoint(endpoint, f"dns.endpoints[{at}]", profile)
    yield from _repeated(profile)
    yield from _by_method(profile)
    if profile.depth > MAX_DEPTH:
        yield Violation("dns.endpoints", f"{profile.depth} profiles deep", f"nesting of at most {MAX_DEPTH} profiles")
    if profile.size > MAX_SIZE:
        expected = f"at most {MAX_SIZE:,}, counting a profile as often as it is reached"
        yield Violation("dns.endpoints", f"{profile.size:,} endpoints below", expected)


def _numbers(profile: Profile) -> Iterator[Violation]:
    if not _within(profile.ttl, 0, MAX_TTL):
        yield Violation("dns.ttl", profile.ttl, f"whole seconds, 0..{MAX_TTL}", _clamped(profile.ttl, 0, MAX_TTL))
    elif profile.ttl_min is not None and not _within(profile.ttl_min, 0, profile.ttl):
        yield Violation("dns.ttl_min", profile.ttl_min, f"whole seconds, 0..{profile.ttl} (ttl)", _clamped(profile.ttl_min, 0, profile.ttl))
    if not _within(profile.max_return, 1, 10):
        yield Violation("dns.max_return", profile.max_return, "a whole number, 1..10", _clamped(profile.max_return, 1, 10))


def _endpoint(endpoint: Endpoint, where: str, profile: Profile) -> Iterator[Violation]:
    if bool(endpoint.region) == (endpoint.profile is not None):
        yield Violation(where, endpoint.name, "either a region or a nested profile")
    for key, least, most in (("weight", 1, 1000), ("priority", 1, 1000), ("min_children", 1, 1000)):
        value = getattr(endpoint, key)
        if not (_within(value, least, most) or (value is None and key == "priority")):
            yield Violation(f"{where}.{key}", value, f"a whole number, {least}..{most}", _clamped(value, least, most))
    for key in ("min_children_ipv4", "min_children_ipv6"):
        value = getattr(endpoint, key)
        if not (value is None or _within(value, 0, 1000)):
            yield Violation(f"{where}.{key}", value, "a whole number, 0..1000", _clamped(value, 0, 1000))
    if endpoint.profile is not None:
        yield from _nested(endpoint, where, profile)


def _nested(endpoint: Endpoint, where: str, profile: Profile) -> Iterator[Violation]:
    assert endpoint.profile is not None
    if profile.method == "multivalue":
        yield Violation(f"{where}.profile", endpoint.name, "a region: a multivalue profile has no nested ones")
    if endpoint.always_serve:
        yield Violation(f"{where}.always_serve", True, "regions only: set it on the nested profile's endpoints")
    children = len(endpoint.profile.endpoints)
    for key in ("min_children", "min_children_ipv4", "min_children_ipv6"):
        value = getattr(endpoint, key)
        if children and isinstance(value, int) and value > children:
            yield Violation(f"{where}.{key}", value, f"at most {children}, the endpoints of the nested profile", str(children))


def _repeated(profile: Profile) -> Iterator[Violation]:
    counts = Counter(canonical(endpoint.region) for endpoint in profile.endpoints if endpoint.region)
    for at, endpoint in enumerate(profile.endpoints):
        if endpoint.region and counts[canonical(endpoint.region)] > 1:
            yield Violation(f"dns.endpoints[{at}].region", endpoint.region, "a region named once in a profile")


def _by_method(profile: Profile) -> Iterator[Violation]:
    if profile.method == "priority":
        yield from _priorities(profile)
    elif profile.method == "geographic":
        yield from _places(profile)
    elif profile.method == "subnet":
        yield from _subnets(profile)


def _priorities(profile: Profile) -> Iterator[Violation]:
    numbers = profile.by_priority() if all(_within(e.priority, 1, 1000) or e.priority is None for e in profile.endpoints) else []
    used = Counter(number for number, _ in numbers)
    for number, endpoint in numbers:
        where = f"dns.endpoints[{profile.endpoints.index(endpoint)}].priority"
        if used[number] > 1:
            free = next(n for n in (*range(number, 1001), *range(1, 1001)) if n not in used)
            yield Violation(where, number, "a priority used once in a profile", str(free))
        elif number > 1000:
            yield Violation(where, number, "a whole number, 1..1000")


def _places(profile: Profile) -> Iterator[Violation]:
    first: dict[str, int] = {}
    if not profile.endpoints:
        yield Violation("dns.endpoints", (), "endpoints with places mapped to them, for method geographic")
    for at, endpoint in enumerate(profile.endpoints):
        if not endpoint.geo:
            yield Violation(f"dns.endpoints[{at}].geo", endpoint.geo, "at least one place, for method geographic", "WORLD")
        for text in endpoint.geo:
            place = canonical_place(text)
            if place is None:
                yield Violation(f"dns.endpoints[{at}].geo", text, PLACE_FORM, nearest_place(text))
            elif place in first:
                yield Violation(f"dns.endpoints[{at}].geo", text, f"a place mapped once; endpoints[{first[place]}] has it already")
            else:
                first[place] = at


def _subnets(profile: Profile) -> Iterator[Violation]:
    spans: list[tuple[Span, int]] = []
    named: list[tuple[str, str]] = []
    rest = [at for at, endpoint in enumerate(profile.endpoints) if not endpoint.subnets]
    if not profile.endpoints:
        yield Violation("dns.endpoints", (), "endpoints with their subnets, for method subnet")
    for at in rest[1:]:
        yield Violation(f"dns.endpoints[{at}].subnets", (), f"subnets; endpoints[{rest[0]}] takes the rest already")
    for at, endpoint in enumerate(profile.endpoints):
        for text in endpoint.subnets:
            where = f"dns.endpoints[{at}].subnets"
            try:
                spans.append((span_of(text), len(named)))
                named.append((where, text))
            except ValueError:
                yield Violation(where, text, SUBNET_FORM, _nearest_subnet(text))
    for before, number in overlaps(spans):
        (where, text), (other, there) = named[number], named[before]
        yield Violation(where, text, f"a network that no other one overlaps; {other.removeprefix('dns.')} has {there}")


def _nearest_subnet(text: str) -> str | None:
    """Give what a network with host bits or a backward range was meant to be."""
    try:
        if "-" not in text:
            return str(ipaddress.ip_network(text.strip(), strict=False))
        first, last = text.split("-", 1)
        span_of(f"{last}-{first}")
        return f"{last.strip()}-{first.strip()}"
    except ValueError:
        return None


def _within(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _clamped(value: object, least: int, most: int) -> str | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(min(max(round(value), least), most))
