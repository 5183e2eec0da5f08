"""A data plane and a provisioner that are only arithmetic, and err as they are told; and a store's caller that dies at a given call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lbcore.service.operations import Runner, Times
from lbcore.service.plan import Plan
from lbcore.service.progress import Granted
from lbcore.service.provisioning import Order, ProvisionError
from lbcore.service.revisions import Number
from lbcore.service.rotation import Listed, Look
from lbcore.service.store import Store

FAULTS = ("ok", "ok", "refuse", "crash", "hang", "deaf", "half", "same address", "no address", "not there", "other region", "moved", "old")
TIMES = Times(sync=20.0, probe=10.0, drain=8.0, remembered=3.0, show=5.0, pause=0.5, overlap=60.0)


@dataclass
class Site:
    """A region that really runs."""

    public: tuple[str, ...]
    private: tuple[str, ...]
    gateway: str
    says: str
    revision: Number | None


@dataclass
class World:
    """What really runs, and who sees it. faults: of each region's orders, in turn; then there are none"""

    store: Store
    faults: Mapping[str, list[str]] = field(default_factory=dict)
    limit: float = 30.0
    sites: dict[str, Site] = field(default_factory=dict)
    shown: dict[str, Listed] = field(default_factory=dict)
    orders: list[tuple[str, str]] = field(default_factory=list)
    seen: list[tuple[str, ...]] = field(default_factory=list)
    released: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    switched: list[tuple[str, bool]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # what must never be
    under_way: int = 0
    blind: bool = False
    _given: int = 0

    # ---- provisioner

    async def carry_out(self, order: Order) -> Granted:
        self.orders.append((order.work, order.name))
        if order.work == "delete" and order.name in self.shown:
            self.broken.append(f"{order.name} was stopped while it was listed")
        fault = self.faults[order.name].pop(0) if self.faults.get(order.name) else "ok"
        await asyncio.sleep(1.0)
        if fault == "refuse":
            raise ProvisionError("quota exceeded")
        if fault == "crash":
            raise KeyError("secret")
        if fault in ("hang", "deaf"):
            await self._hang(deaf=fault == "deaf")
        if order.work == "delete":
            return self._removed(order, fault)
        granted = self._made(order, fault)
        if fault == "half":
            raise ProvisionError("it broke half-way")
        return granted

    async def _hang(self, deaf: bool) -> None:
        for _ in range(500 if deaf else 1):
            try:
                await asyncio.sleep(100.0 if deaf else 10_000.0)
            except asyncio.CancelledError:
                if not deaf:
                    raise

    def _removed(self, order: Order, fault: str) -> Granted:
        if fault != "not there":  # it lies: the region goes on
            self.sites.pop(order.name, None)
        if fault == "half":
            raise ProvisionError("it broke half-way")
        return Granted()

    def _made(self, order: Order, fault: str) -> Granted:
        site, internal = self.sites.get(order.name), order.network_mode == "Internal"
        public = self._next() if site is None or order.new_public or fault == "moved" else site.public
        private = () if not internal else self._next() if site is None or order.new_private or not site.private else site.private
        if fault == "same address" and len(self.sites) > 1:
            public = next(other.public for name, other in self.sites.items() if name != order.name)
        if fault == "no address":
            public = ()
        gateway = f"http://{order.name}.test"
        newest = self.store.revisions.newest(limit=1)
        revision = newest[0].number if newest else None
        if fault == "old" and revision is not None:
            revision = Number(revision.epoch, revision.sequence - 1)
        says = "elsewhere" if fault == "other region" else order.name
        if fault != "not there" and (site is None or fault != "other region"):
            self.sites[order.name] = Site(public, private, gateway, says, revision if site is None else site.revision)
        return Granted(public, private, gateway)

    def _next(self) -> tuple[str, ...]:
        self._given += 1
        return (f"203.0.{self._given // 250}.{self._given % 250}",)

    async def switch(self, name: str, disabled: bool) -> None:
        self.switched.append((name, disabled))

    async def release(self, name: str, public_ips: tuple[str, ...]) -> None:
        self.released.append((name, public_ips))

    async def close(self) -> None: ...

    # ---- data plane

    async def show(self, listed: Mapping[str, Listed]) -> None:
        if self.blind:
            raise OSError("the front door is away")
        self.shown = dict(listed)
        self.seen.append(tuple(sorted(name for name, one in listed.items() if one.serves)))
        for name, one in listed.items():
            site = self.sites.get(name)
            if site is None or site.says != name or not one.public_ips:
                self.broken.append(f"{name} is listed and does not run")

    async def look(self, name: str, gateway: str) -> Look:
        site = self.sites.get(name)
        if site is None:
            return Look(cause="refused")
        return Look("serving" if site.revision else "not ready", site.says, site.revision)

    async def idle(self, name: str) -> bool:
        return self.under_way == 0


class Caller:
    """Call the store; at the call of a given number die, before or after it: nothing is done from then on."""

    def __init__(self, last: int | None = None, after: bool = False) -> None:
        self.left, self.after, self.died = last, after, asyncio.Event()

    async def __call__(self, what: Callable[..., Any], *arguments: Any) -> Any:
        await asyncio.sleep(0)
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                if self.left == 0 and self.after:
                    what(*arguments)
                self.died.set()
                await asyncio.sleep(1e9)
        return what(*arguments)


def runner(store: Store, world: World, caller: Caller | None = None, **options: Any) -> Runner:
    return Runner(store, world, world, **{"times": TIMES, "call": caller or Caller(), "clock": store.clock} | options)


async def kill(one: Runner) -> None:
    """End a runner's tasks; the caller is dead, so nothing of it reaches the store any more."""
    await one.close()


async def finished(store: Store, world: World, planned: Plan, deaths: Sequence[tuple[int, bool]] = (), **options: Any) -> None:
    """Carry a plan out, with a new primary after each death."""
    saved, known = False, len(store.operations.newest())
    for death in (*deaths, (None, False)):
        caller = Caller(*death)
        one = runner(store, world, caller, **options)
        work = asyncio.ensure_future(_primary(one, store, None if saved else planned))
        died = asyncio.ensure_future(caller.died.wait())
        await asyncio.wait({work, died}, return_when=asyncio.FIRST_COMPLETED)
        for task in (work, died):
            task.cancel()
        await asyncio.wait({work, died})
        await kill(one)
        if not work.cancelled():
            work.result()
        saved = saved or len(store.operations.newest()) > known


async def _primary(one: Runner, store: Store, planned: Plan | None) -> None:
    await one.start()
    running = store.operations.running()
    if running is not None:
        await one.wait(running.id)
    elif planned is not None:
        operation = await one.save(planned, store.state(), who="ann")
        await one.wait(operation.id)
