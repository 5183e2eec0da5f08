"""Route: profiles as the steps that a query walks through.

    Profile --compile_routes--> Program (`_route`): one step per profile, whose kids are regions by slot and further steps

Only what health and the operator cannot change is decided here; the walk reads the rest from the table's bits, so a Program is made
anew when profiles, regions, the table or the map are others, never for a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lbcore.dns._route import Choice, Horizon, Program
from lbcore.dns.geography import kids_by_place
from lbcore.dns.networks import map_of
from lbcore.dns.profile import Endpoint, Profile
from lbcore.region import canonical

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lbcore._fast import LatencyTable
    from lbcore._prefix import PrefixMap
    from lbcore.dns.answers import Root
    from lbcore.region import Region

__all__ = ["Choice", "Horizon", "Kid", "Program", "Routing", "Step", "compile_routes", "foresee"]

Families = Callable[["Region", bool], tuple[bool, bool]]

NODATA, NXDOMAIN = -1, -2
A, AAAA = 1, 28
KINDS = {"performance": "pick", "priority": "first", "weighted": "draw", "geographic": "map", "subnet": "map", "multivalue": "several"}


class Routing(Protocol):
    """What routes need of a Balancer."""

    @property
    def table(self) -> LatencyTable:
        """Give the latency table."""

    @property
    def map(self) -> PrefixMap:
        """Give the prefix map."""

    @property
    def objects(self) -> tuple[Region | None, ...]:
        """Give the region in each slot."""


class Kid(NamedTuple):
    """What a step may lead to: a region's slot, or (slot -1) a further step.

    least: how many kids of that step must be up, of all, with IPv4, with IPv6 addresses
    families: whether it has IPv4 and IPv6 addresses
    """

    slot: int
    step: int = 0
    weight: int = 1
    always: bool = False
    least: tuple[int, int, int] = (1, 0, 0)
    families: tuple[bool, bool] = (True, True)


class Step(NamedTuple):
    """One profile. value: an outcome; what an unmapped client gets; how many regions. leaves: all regions below, by slot.

    networks, of_group, fallback: of a map: whose groups (None = the Balancer's own map's), the kid of each, -1 = none; the kid for the rest
    """

    kind: str
    kids: tuple[Kid, ...] = ()
    leaves: tuple[int, ...] = ()
    policy: str = "serve_all"
    backup: tuple[int, ...] = ()
    value: int = NODATA
    networks: PrefixMap | None = None
    of_group: Sequence[int] | NDArray[np.int32] = ()
    fallback: int = -1


def both_families(region: Region, direct: bool) -> tuple[bool, bool]:
    """Take every region for one that has addresses of both families."""
    return True, True


def compile_routes(
    roots: Sequence[Root], lb: Routing, *, families: Families = both_families, horizon: Horizon | None = None
) -> Program:  # fmt: skip
    """Give the Program in which root i is `roots[i]`.

    families: whether a region can be answered with in IPv4, in IPv6, given whether the name cannot be a CNAME (`Root.direct`); one
        that can be in neither is left out everywhere, one that lacks the root's family is where the profile says family = "any"
    horizon: for the TTL of profiles with a `ttl_min`; without one their TTL is fixed
    A region that the Balancer does not have counts as taken out.
    """
    return _Compiler(lb, families).program(roots, horizon)


class Foreseeing(Routing, Protocol):
    """What a Horizon needs of a Balancer."""

    def until_change(self, region: Region, /) -> float | None:
        """Give the seconds for which probes cannot change whether a region is up."""


def foresee(program: Program, lb: Foreseeing) -> None:
    """Write down for every region how many whole seconds an answer that names it may live. With every tick, where TTLs follow health."""
    horizon = program.horizon
    if horizon is None:
        return
    for slot, region in enumerate(lb.objects[: len(horizon)]):
        seconds = None if region is None else lb.until_change(region)
        horizon[slot] = Horizon.NEVER if seconds is None else min(int(seconds), Horizon.NEVER)


class _Compiler:
    def __init__(self, lb: Routing, families: Families) -> None:
        self._table, self._map = lb.table, lb.map
        self._regions = [(slot, region) for slot, region in enumerate(lb.objects) if region is not None]
        self._asked = families
        self._families: dict[int, tuple[bool, bool]] = {}  # by slot, of the root at hand
        self._slots = {region.name: slot for slot, region in enumerate(lb.objects) if region is not None}
        self._steps = [Step("outcome", value=NODATA), Step("outcome", value=NXDOMAIN)]

    def program(self, roots: Sequence[Root], horizon: Horizon | None) -> Program:
        """Compile every root and put the steps together."""
        starts = []
        for root in roots:
            self._families = {slot: self._asked(region, root.direct) for slot, region in self._regions}
            start = _Tree(self, root.family if root.profile.family == "any" else 0).step(root.profile)
            starts.append((start, root.profile.ttl, root.profile.ttl_min))
        return Program(self._table, self._map, self._steps, starts, horizon)

    def add(self, step: Step) -> int:
        """Append a step and give its number."""
        self._steps.append(step)
        return len(self._steps) - 1

    def slot(self, name: str, family: int) -> int | None:
        """Give the slot of a region that there is and that can be answered with, in a family unless 0."""
        slot = self._slots.get(name, self._slots.get(canonical(name)))
        if slot is None:
            return None
        four, six = self._families[slot]
        return slot if (four if family == A else six if family == AAAA else four or six) else None

    def families(self, slot: int) -> tuple[bool, bool]:
        """Say whether a region can be answered with in IPv4, in IPv6."""
        return self._families[slot]

    def leaves(self, kids: Sequence[Kid]) -> tuple[int, ...]:
        """Give the slots of all regions at or below these kids."""
        return tuple(sorted({slot for kid in kids for slot in ((kid.slot,) if kid.slot >= 0 else self._steps[kid.step].leaves)}))

    @property
    def names(self) -> tuple[str, ...]:
        """Give every region's name."""
        return tuple(self._slots)

    @property
    def map(self) -> PrefixMap:
        """Give the Balancer's map."""
        return self._map


class _Tree:
    """The steps of one root: its profiles with the regions that its family leaves."""

    def __init__(self, compiler: _Compiler, family: int) -> None:
        self._compiler, self._family = compiler, family

    def step(self, profile: Profile) -> int:
        """Add the steps of a profile and all below it; give its own."""
        if not profile.enabled:
            return 1
        endpoints = self._endpoints(profile)
        kids = tuple(map(self._kid, endpoints))
        step = Step(KINDS[profile.method], kids, self._compiler.leaves(kids), profile.fail_open, self._backup(profile))
        return self._compiler.add(self._finished(step, profile, endpoints))

    def _endpoints(self, profile: Profile) -> Sequence[Endpoint]:
        if profile.method == "priority":
            return [endpoint for _, endpoint in profile.by_priority()] or self._all()
        return profile.endpoints or self._all()

    def _all(self) -> Sequence[Endpoint]:
        return [Endpoint(name) for name in self._compiler.names]

    def _kid(self, endpoint: Endpoint) -> Kid:
        """Give what an endpoint leads to; one that is out leads to a step without any kids."""
        if endpoint.enabled and endpoint.profile is not None:
            return self._nested(endpoint, endpoint.profile)
        slot = self._compiler.slot(endpoint.region, self._family) if endpoint.enabled else None
        if slot is None:
            return OUT
        return Kid(slot, 0, endpoint.weight, endpoint.always_serve, families=self._compiler.families(slot))

    def _nested(self, endpoint: Endpoint, profile: Profile) -> Kid:
        kid = Kid(-1, self.step(profile))
        families = [self._compiler.families(slot) for slot in self._compiler.leaves([kid])]
        least = (endpoint.min_children, endpoint.min_children_ipv4 or 0, endpoint.min_children_ipv6 or 0)
        return Kid(-1, kid.step, endpoint.weight, False, least, (any(four for four, _ in families), any(six for _, six in families)))

    def _backup(self, profile: Profile) -> tuple[int, ...]:
        slots = (self._compiler.slot(name, self._family) for name in profile.backup)
        return tuple(slot for slot in slots if slot is not None)

    def _finished(self, step: Step, profile: Profile, endpoints: Sequence[Endpoint]) -> Step:
        if profile.method == "multivalue":
            return step._replace(value=profile.max_return)
        if profile.method == "geographic":
            prefixes = self._compiler.map if profile.geography is None else profile.geography
            of_group = kids_by_place(prefixes, [endpoint.geo for endpoint in endpoints])
            return step._replace(networks=profile.geography, of_group=of_group)
        if profile.method == "subnet":
            return _by_subnet(step, endpoints)
        real = [kid for kid in step.kids if kid != OUT]
        if profile.method == "performance" and len(real) < 2:  # whoever asks, there is nothing to choose
            return step._replace(kind="first", kids=tuple(real), policy="serve_all" if step.policy == "serve_last_good" else step.policy)
        return step._replace(kids=tuple(real))


OUT = Kid(-1, 0, families=(False, False))


def _by_subnet(step: Step, endpoints: Sequence[Endpoint]) -> Step:
    named = [at for at, endpoint in enumerate(endpoints) if endpoint.subnets]
    rest = next((at for at, endpoint in enumerate(endpoints) if not endpoint.subnets), -1)
    networks = map_of(endpoints[at].subnets for at in named)
    return step._replace(networks=networks, of_group=[-1, *named], fallback=rest, value=NXDOMAIN)
