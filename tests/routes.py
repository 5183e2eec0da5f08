"""A brute-force reading of what profiles mean, and random ones to try it on. Nothing here shares code with `lbcore.dns._route`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lbcore import LatencyTable, PrefixMap, Region
from lbcore.dns.profile import Endpoint, Profile

NAMES = ("one", "two", "three", "four", "five", "six")
NODATA, NXDOMAIN, SERVFAIL, REFUSED, SEVERAL = -1, -2, -3, -4, -5
CUTS = {0: "", 0x0A000000: "DE", 0x0A400000: "FR", 0x0A480000: "US/California", 0x0A481300: "US/Texas", 0x0B000000: "JP", 0x80000000: "DE"}
SIXES = {0: "", 0x20010DB8_00000000: "FR", 0x20010DB8_00010000: "JP", 0x2A00000000000000: "US/Texas", 0x2A00000100000000: ""}
KEYS = ["", "DE", "FR", "US/California", "US/Texas", "JP"]
SUBNETS = ("10.0.0.0/10", "10.64.0.0-10.72.18.255", "10.72.19.0/24", "128.0.0.0/1", "2001:db8::/32", "2a00:0:0:8000::/49", "11.0.0.7")
PLACES = ("WORLD", "GEO-EU", "GEO-NA", "DE", "US", "US-CA", "JP")
UP, DOWN, OFF = "up", "down", "off"


def world_map() -> PrefixMap:
    """Give a small map in two families, cut at odd places."""
    number = {key: index for index, key in enumerate(KEYS)}
    flat = np.zeros(len(KEYS), np.float32)
    four, six = ([number[key] for key in cuts.values()] for cuts in (CUTS, SIXES))
    return PrefixMap.from_ranges(np.array([*CUTS], np.uint32), four, np.array([*SIXES], np.uint64), six, KEYS, flat, flat)


@dataclass
class World:
    """A table with regions in some state of health, as a Balancer has them."""

    table: LatencyTable
    map: PrefixMap
    objects: tuple[Region | None, ...]
    wanted: list[bool] = field(default_factory=list)

    @classmethod
    def of(cls, ms: list[list[int]], tiers: list[int], wanted: list[bool], ticked: bool) -> World:
        """Build it: ms[group][region]; homes are chosen when `ticked` before the regions go down."""
        table = LatencyTable(len(KEYS), len(NAMES))
        table.seed_many(np.array(ms, np.float32), np.ones((len(KEYS), len(NAMES)), np.float32))
        if ticked:
            table.tick(0.0)
        for slot, (tier, on) in enumerate(zip(tiers, wanted, strict=True)):
            table.set_enabled(slot, on)
            table.set_tier(slot, tier, 1.0 + slot % 2)
        return cls(table, world_map(), tuple(Region(name, lat=0, lon=0) for name in NAMES), wanted)

    def eligible(self, slot: int) -> bool:
        """Say whether the operator wants the region and it is up."""
        return self.wanted[slot] and self.table.tier(slot) == 0

    def best(self, group: int, slots: set[int]) -> int:
        """Give the home if it is among the slots, else the one of the lowest score; -1 of none."""
        if (home := self.table.home(group)) in slots:
            return home
        scores = self.table.scores(group)
        return min(slots, key=lambda slot: (scores[slot], slot), default=-1)

    def likeliest(self, group: int, slots: set[int]) -> int:
        """Give who is up, else DESIGN §3's order: the lowest tier, of tier 3 who answered last, then by score (not by home)."""
        slots = {slot for slot in slots if self.wanted[slot]}
        if up := {slot for slot in slots if self.eligible(slot)}:
            return self.best(group, up)
        scores, table = self.table.scores(group), self.table
        return min(slots, key=lambda s: (table.tier(s), -table.answered(s) if table.tier(s) == 3 else 0, scores[s], s), default=-1)


@dataclass
class Reading:
    """One client's way through a profile."""

    world: World
    client: str | None
    turn: int
    family: int = 0
    without: int = -1
    numbers: dict[int, int] = field(default_factory=dict)
    last: Profile | None = None
    asserted: bool = False

    @property
    def group(self) -> int:
        """Give the client's row."""
        return self.world.map.lookup(self.client)

    def endpoints(self, profile: Profile) -> list[Endpoint]:
        """Give a profile's endpoints in their order of service."""
        listed = list(profile.endpoints) or [Endpoint(name) for name in NAMES]
        if profile.method != "priority":
            return listed
        last, keyed = 0, []
        for endpoint in listed:
            last = endpoint.priority or last + 1
            keyed.append((last, endpoint))
        return [endpoint for _, endpoint in sorted(keyed, key=lambda pair: pair[0])]

    def number(self, profile: Profile) -> None:
        """Number profiles as draws know them: children first, from 2."""
        if profile.enabled:
            for endpoint in self.endpoints(profile):
                if endpoint.profile is not None and endpoint.enabled:
                    self.number(endpoint.profile)
            self.numbers[id(profile)] = len(self.numbers) + 2

    def state(self, endpoint: Endpoint, spare: int = -1) -> str:
        """Give what an endpoint is; with `spare`, up only if there is another region up below it."""
        if not endpoint.enabled:
            return OFF
        if endpoint.profile is None:
            slot = NAMES.index(endpoint.region)
            if not self.world.wanted[slot]:
                return OFF
            up = endpoint.always_serve or self.world.eligible(slot)
            return OFF if up and slot == spare else UP if up else DOWN
        if not endpoint.profile.enabled:
            return OFF
        states = [self.state(child) for child in self.endpoints(endpoint.profile)]
        if states.count(UP) >= endpoint.min_children:
            return UP if spare < 0 or UP in [self.state(child, spare) for child in self.endpoints(endpoint.profile)] else OFF
        return DOWN if {UP, DOWN} & {*states} else OFF

    def below(self, profile: Profile) -> set[int]:
        """Give all regions at or below a profile."""
        found: set[int] = set()
        for endpoint in self.endpoints(profile) if profile.enabled else []:
            if endpoint.enabled and endpoint.profile is not None:
                found |= self.below(endpoint.profile)
            elif endpoint.enabled:
                found.add(NAMES.index(endpoint.region))
        return found

    def reach(self, endpoint: Endpoint) -> set[int]:
        """Give the regions that an endpoint may answer with as things stand."""
        if endpoint.profile is None:
            return {NAMES.index(endpoint.region)}
        states = [(self.state(child, self.without), child) for child in self.endpoints(endpoint.profile)]
        serving = [child for state, child in states if state == UP] or [child for state, child in states if state == DOWN]
        if endpoint.profile.method == "priority":
            serving = serving[:1]
        return set().union(*(self.reach(child) for child in serving))

    def walk(self, profile: Profile) -> int:
        """Give the region's slot, or what is said instead."""
        if not profile.enabled:
            return NXDOMAIN
        if profile.method in ("geographic", "subnet"):
            return self.mapped(profile)
        serving = [child for child in self.endpoints(profile) if self.state(child, self.without) == UP]
        return self.go(profile, serving, UP) if serving else self.fallen(profile)

    def go(self, profile: Profile, serving: list[Endpoint], state: str) -> int:
        """Choose among endpoints by the method."""
        if profile.method == "multivalue":
            self.last = profile
            return SEVERAL
        if profile.method == "priority":
            return self.enter(serving[0])
        if profile.method == "weighted":
            return self.enter(self.drawn(profile, serving))
        slots = set().union(*(self.reach(child) for child in serving)) - {self.without}
        slot = self.world.best(self.group, slots) if state == UP else self.world.likeliest(self.group, slots)
        return next((self.enter(child) for child in serving if slot in self.reach(child)), NODATA)

    def drawn(self, profile: Profile, serving: list[Endpoint]) -> Endpoint:
        """Draw one by weight: MurmurHash3's finaliser of id and number, scaled."""
        mask = 0xFFFFFFFF
        h = (self.turn * 0x9E3779B1 & mask) ^ (self.numbers[id(profile)] * 0x85EBCA6B & mask)
        h = (h ^ h >> 16) * 0x85EBCA6B & mask
        h = (h ^ h >> 13) * 0xC2B2AE35 & mask
        h ^= h >> 16
        lot = [endpoint for endpoint in serving for _ in range(endpoint.weight)]
        return lot[h * len(lot) >> 32]

    def enter(self, endpoint: Endpoint) -> int:
        """Go where an endpoint leads."""
        if endpoint.profile is not None:
            return self.walk(endpoint.profile)
        slot = NAMES.index(endpoint.region)
        self.asserted = endpoint.always_serve
        return NODATA if slot == self.without or not self.world.wanted[slot] else slot

    def fallen(self, profile: Profile) -> int:
        """Do what is wanted when nothing is up."""
        said = {"nodata": NODATA, "servfail": SERVFAIL, "refuse": REFUSED}
        if self.without >= 0:
            return NODATA
        if profile.fail_open in said:
            return said[profile.fail_open]
        if profile.fail_open == "serve_backup":
            wanted = [slot for name in profile.backup if self.world.wanted[slot := NAMES.index(name)]]
            if wanted:
                return next((slot for slot in wanted if self.world.eligible(slot)), wanted[0])
        if profile.fail_open == "serve_last_good":
            return self.world.likeliest(self.group, self.below(profile))
        down = [child for child in self.endpoints(profile) if self.state(child) == DOWN]
        return self.go(profile, down, DOWN) if down else NODATA

    def mapped(self, profile: Profile) -> int:
        """Find the endpoint of the client's network."""
        found = self.by_place(profile) if profile.method == "geographic" else self.by_subnet(profile)
        rest = next((child for child in profile.endpoints if not child.subnets), None) if profile.method == "subnet" else None
        state = OFF if found is None else self.state(found)
        if state == UP:
            assert found is not None
            return self.enter(found)
        if rest is not None and (state == OFF or self.state(rest) == UP):
            found, state = rest, self.state(rest)
        if found is None or state == OFF:
            return NODATA if profile.method == "geographic" else NXDOMAIN
        backed = any(self.world.wanted[NAMES.index(name)] for name in profile.backup)
        if state == DOWN and (profile.fail_open in ("nodata", "servfail", "refuse") or backed):
            return self.fallen(profile)
        return self.enter(found)

    def by_place(self, profile: Profile) -> Endpoint | None:
        """Find by the most specific of the client's places."""
        key = KEYS[self.group]
        country = key.split("/")[0]
        places = {"US/California": ["US-CA"], "US/Texas": ["US-TX"]}.get(key, [])
        places += [country] if country else []
        places += {"DE": ["GEO-EU"], "FR": ["GEO-EU"], "US": ["GEO-NA"], "JP": ["GEO-AS"]}.get(country, [])
        for place in (*places, "WORLD"):
            for endpoint in profile.endpoints:
                if place in endpoint.geo:
                    return endpoint
        return None

    def by_subnet(self, profile: Profile) -> Endpoint | None:
        """Find by asking every subnet."""
        if self.client is None:
            return None
        address = _carried(ipaddress.ip_address(self.client))
        return next((e for e in profile.endpoints for text in e.subnets if _holds(text, address)), None)


def _carried(address: Any) -> Any:
    """Give the IPv4 address that an IPv6 one carries: mapped, compatible, NAT64, 6to4, Teredo."""
    if address.version == 4:
        return address
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    forms = (ipaddress.ip_network(form) for form in ("::/96", "::ffff:0:0/96", "64:ff9b::/96"))
    return low if any(address in form for form in forms) else address.sixtofour or (address.teredo or (None, None))[1] or address


def _holds(text: str, address: Any) -> bool:
    if "-" not in text:
        return address in ipaddress.ip_network(text)
    first, last = map(ipaddress.ip_address, text.split("-"))
    return address.version == first.version and first <= address <= last


# ===== random profiles, worlds and clients


@st.composite
def profiles(draw: st.DrawFn, depth: int = 2, methods: tuple[str, ...] = ()) -> Profile:
    """Give a random valid profile."""
    known = ("performance", "priority", "weighted", "geographic", "subnet", "multivalue")
    method = draw(st.sampled_from(methods or known))
    kids = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1 if method in ("geographic", "subnet") else 0, max_size=4))
    places = draw(st.permutations(PLACES if method == "geographic" else SUBNETS))
    endpoints = []
    for at, name in enumerate(kids):
        nested = method != "multivalue" and depth and draw(st.integers(0, 3)) == 0
        child = draw(profiles(depth - 1, tuple(m for m in methods if m != "multivalue"))) if nested else None
        settings: dict[str, Any] = {"enabled": draw(st.integers(0, 7)) > 0, "weight": draw(st.integers(1, 4))}
        if child is None:
            settings |= {"region": name, "always_serve": draw(st.integers(0, 7)) == 0}
        else:
            settings |= {"profile": child, "min_children": draw(st.integers(1, max(1, len(child.endpoints))))}
        if method == "geographic":
            settings["geo"] = (places[at], *places[4 + at : 5 + at])
        elif method == "subnet" and (at or draw(st.booleans())):
            settings["subnets"] = tuple(places[at : at + 1])
        elif method == "priority":
            settings["priority"] = draw(st.sampled_from((None, 100 - at)))
        endpoints.append(Endpoint(**settings))
    return Profile(method=method, endpoints=tuple(_distinct(endpoints)), **draw(_options()))


def _distinct(endpoints: list[Endpoint]) -> Iterator[Endpoint]:
    """Leave out what would share a priority."""
    last, used = 0, set()
    for endpoint in endpoints:
        number = endpoint.priority or last + 1
        if number not in used:
            used.add(number)
            last = number
            yield endpoint


def _options() -> st.SearchStrategy[dict[str, Any]]:
    policies = ("serve_all", "serve_last_good", "serve_backup", "nodata", "servfail", "refuse")

    def made(policy: str, backup: list[str], enabled: int, max_return: int) -> dict[str, Any]:
        return {
            "fail_open": policy, "backup": tuple(backup) if policy == "serve_backup" else (), "enabled": enabled > 0,
            "max_return": max_return, "ttl": 60, "ttl_min": 5,
        }  # fmt: skip

    names = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True)
    return st.builds(made, st.sampled_from(policies), names, st.integers(0, 15), st.integers(1, 4))


def worlds() -> st.SearchStrategy[World]:
    """Give random latencies and health."""
    ms = st.lists(st.lists(st.integers(1, 8), min_size=len(NAMES), max_size=len(NAMES)), min_size=len(KEYS), max_size=len(KEYS))
    tiers = st.lists(st.sampled_from((0, 0, 0, 1, 2, 3, 3)), min_size=len(NAMES), max_size=len(NAMES))
    dark = st.lists(st.sampled_from((1, 2, 3)), min_size=len(NAMES), max_size=len(NAMES))
    wanted = st.lists(st.sampled_from((True, True, True, False)), min_size=len(NAMES), max_size=len(NAMES))
    return st.builds(World.of, ms, st.one_of(tiers, dark), wanted, st.booleans())


def clients() -> st.SearchStrategy[str | None]:
    """Give addresses at and around the map's and the subnets' edges, and anywhere."""
    edges = [*CUTS, *(int(ipaddress.IPv4Address(text)) for text in ("10.72.19.0", "10.72.20.0", "11.0.0.7", "10.128.0.0"))]
    near4 = st.builds(lambda edge, off: str(ipaddress.IPv4Address(max(0, edge + off))), st.sampled_from(edges), st.integers(-2, 2))
    starts = [edge << 64 for edge in SIXES]
    near6 = st.builds(lambda edge, off: str(ipaddress.IPv6Address(max(0, edge + off))), st.sampled_from(starts), st.integers(-2, 2))
    anywhere = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
    return st.one_of(near4, near6, anywhere, st.none())
