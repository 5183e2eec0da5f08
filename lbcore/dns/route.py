"""Route: profiles as the steps that a query walks through.

    Profile --compile_routes--> Program (`_route`): one step per nested profile, its kids are regions by slot and further steps

Only what health and the operator cannot change is decided here; the walk reads the rest from the table's bits, so a Program is made
anew when profiles, regions, the table or the map are others, never for a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lbcore.dns._route import Choice, Horizon, Program
from lbcore.dns.profile import Endpoint, Profile

if TYPE_CHECKING:
    from lbcore._fast import LatencyTable
    from lbcore._prefix import PrefixMap
    from lbcore.dns.answers import Root
    from lbcore.region import Region

__all__ = ["Choice", "Horizon", "Kid", "Program", "Routing", "Step", "compile_routes"]

NODATA, NXDOMAIN = -1, -2
KINDS = {
    "performance": "pick", "priority": "first", "weighted": "draw", "geographic": "map", "subnet": "map", "multivalue": "several",
}  # fmt: skip

Families = Callable[["Region", bool], tuple[bool, bool]]


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
    of_group: Sequence[int] = ()
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
    """
    return _Compiler(lb, families).program(roots, horizon)


class _Compiler:
    def __init__(self, lb: Routing, families: Families) -> None:
        self._table, self._map = lb.table, lb.map
        self._regions = [(slot, region) for slot, region in enumerate(lb.objects) if region is not None]
        self._asked = families
        self._families: dict[int, tuple[bool, bool]] = {}  # by slot, of the root at hand
        self._slots = {region.name: slot for slot, region in enumerate(lb.objects) if region is not None}
        self._steps: list[Step] = []

    def program(self, roots: Sequence[Root], horizon: Horizon | None) -> Program:
        """Compile every root and put the steps together."""
        starts = []
        for root in roots:
            self._families = {slot: self._asked(region, root.direct) for slot, region in self._regions}
            family = root.family if root.profile.family == "any" else 0
            starts.append((self._step(root.profile, family), root.profile.ttl, root.profile.ttl_min))
        return Program(self._table, self._map, self._steps, starts, horizon)

    def _step(self, profile: Profile, family: int) -> int:
        if not profile.enabled:
            return self._add(Step("outcome", value=NXDOMAIN))
        kids = tuple(kid for endpoint in self._endpoints(profile) if (kid := self._kid(endpoint, family)) is not None)
        leaves = tuple(sorted({slot for kid in kids for slot in self._leaves(kid)}))
        backup = tuple(self._slots[name] for name in profile.backup if name in self._slots)
        return self._add(Step(KINDS[profile.method], kids, leaves, profile.fail_open, backup))

    def _endpoints(self, profile: Profile) -> Sequence[Endpoint]:
        return profile.endpoints or tuple(Endpoint(name) for name in self._slots)

    def _kid(self, endpoint: Endpoint, family: int) -> Kid | None:
        if not endpoint.enabled:
            return None
        slot = self._slots.get(endpoint.region)
        if slot is None or not _has(self._families[slot], family):
            return None
        return Kid(slot, families=self._families[slot])

    def _leaves(self, kid: Kid) -> tuple[int, ...]:
        return (kid.slot,) if kid.slot >= 0 else self._steps[kid.step].leaves

    def _add(self, step: Step) -> int:
        self._steps.append(step)
        return len(self._steps) - 1


def _has(families: tuple[bool, bool], family: int) -> bool:
    return families[0] if family == 1 else families[1] if family == 28 else any(families)
