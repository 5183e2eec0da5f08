"""A Plane on virtual time: regions that are only arithmetic (service_operating.World), probes that look at them, edges that only report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from service_operating import Caller, World
from service_worlds import contoso
from syncing import in_virtual_time

from lbcore.sense.checks import ProbeResult
from lbcore.sense.monitor import Target
from lbcore.service.model import Service
from lbcore.service.operations import Times
from lbcore.service.plane import Plane, PlaneOptions, Saved
from lbcore.service.rotation import Look, StatusPages
from lbcore.service.store import Store

T = TypeVar("T")
TIMES = Times(sync=20.0, probe=10.0, drain=8.0, show=30.0, pause=0.5, overlap=60.0)
FAST = {"properties": {"monitorConfig": {"intervalInSeconds": 1, "timeoutInSeconds": 0.5, "jitter": 0}, "dnsConfig": {"ttl": 3}}}


@dataclass
class Place:
    """Where a test's primary lives: its store's folder and the world; the plane may die and come again."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)  # regions that do not answer
    probed: list[str] = field(default_factory=list)
    pages: StatusPages | None = None  # None: every gateway is as the world says
    world: World = field(init=False)
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "store", clock=lambda: 1000.0 + _now())
        self.world = World(self.store)

    def plane(self, **options: Any) -> Plane:
        given = {"times": TIMES, "founding": contoso(), "traffic_manager": FAST} | self.options | options
        return Plane(
            self.store, self.world, name="contoso", options=PlaneOptions(**given), clock=self.store.clock, monotonic=_now, probe=self.probe,
            pages=self.pages or _Pages(self), call=Caller(),
        )  # fmt: skip

    async def probe(self, target: Target, clock: Callable[[], float]) -> ProbeResult:
        self.probed.append(target.name)
        await asyncio.sleep(0.01)
        good = target.name in self.world.sites and target.name not in self.dead
        return ProbeResult(target.name, good, None if good else "refused", 5.0, 10.0, 200 if good else None, None, clock())


class _Pages(StatusPages):
    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    async def look(self, name: str, gateway: str) -> Look:
        return Look(cause="refused") if name in self._place.dead else await self._place.world.look(name, gateway)


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return 0.0


def living(work: Callable[[Place, Plane], Coroutine[Any, Any, T]], folder: Path, **options: Any) -> T:
    """Do something with a plane whose service runs in its primary."""

    async def main() -> T:
        place = Place(folder, options)
        async with running(place) as plane:
            await done(plane)
            found = await work(place, plane)
        place.store.close()
        return found

    return in_virtual_time(main())


def running(place: Place, **options: Any) -> AbstractAsyncContextManager[Plane]:
    return place.plane(**options)


async def done(plane: Plane, saved: Saved | None = None) -> str:
    """Wait for a Save, or the newest operation, and give how it ended."""
    operation = saved.operation if saved else (await plane.operations(1))[0]
    assert operation is not None
    return (await plane.runner.wait(operation.id)).status


async def with_regions(plane: Plane, *names: str) -> Saved:
    """Save the service with exactly these regions beside its primary."""
    rows = [{"location": name} for name in names]
    saved = await plane.patch({"properties": {"additionalLocations": rows}}, who="ann", if_match="*")
    assert await done(plane, saved) == "Succeeded"
    return saved


def report(edge: str, plane: Plane, **more: Any) -> dict[str, Any]:
    """Give what an edge that follows the plane says."""
    rotation = plane.rotation()
    number = str(rotation.number) if rotation else None
    return {"edge": edge, "at": 1.0, "rotation": number, "regions": {}} | more


def wanted(*names: str) -> Service:
    return contoso(*names)
