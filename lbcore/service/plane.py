"""Plane: the management plane of one service. API, portal and commands stand on it; there is no HTTP in it.

    Wishes     put, patch, save_location, …  -> rules -> plan -> Runner -> store    what an operator wants, and what comes of it
    Profile    traffic_manager, …                                                   the Traffic Manager's document
    Rotations  store -> rotation, wait_rotation                                     who is listed, for edges
    Sight      report, edges, statuses, explain, …                                  what edges and the primary's own probes see
    Gauges     capacities                                                           how busy gateways say that they are

The store is read for every answer, so that what another process writes beside it (restore, promote, a token) holds at once. All of it is
for one event loop; what blocks runs in threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from lbcore.balancer import Balancer
from lbcore.detect import Detector
from lbcore.errors import ServiceError
from lbcore.http.gateway import Gateway
from lbcore.http.gateway.configuration import Configuration
from lbcore.sense.checks import Check, check
from lbcore.sense.monitor import STATUS_PATH, Monitor
from lbcore.service import orders
from lbcore.service.backup import Manifest, Restored, backup, inspect, restore
from lbcore.service.body import as_body
from lbcore.service.codes import refusal
from lbcore.service.configuration import Tag
from lbcore.service.facts import Facts
from lbcore.service.gauges import Gauges
from lbcore.service.journal import Operation
from lbcore.service.model import Service, ServiceState
from lbcore.service.notices import Subscription
from lbcore.service.operations import Runner, Times
from lbcore.service.primary import Primary
from lbcore.service.profile import TRAFFIC_MANAGER, Profile
from lbcore.service.provisioning import Provisioner
from lbcore.service.reports import Edges
from lbcore.service.rotation import StatusPages
from lbcore.service.rotations import DataPlane, Rotations
from lbcore.service.rules import validate
from lbcore.service.sight import Sight
from lbcore.service.store import Store
from lbcore.service.stored import Stored
from lbcore.service.watching import Watching, detector_of
from lbcore.service.wishes import Saved, Wishes

__all__ = ["TRAFFIC_MANAGER", "Plane", "PlaneOptions", "Saved"]

logger = logging.getLogger(__name__)

LOOK_AROUND = 1.0  # seconds between two looks for what another process wrote
TEND = 2.0  # seconds between two looks of a provisioner after what it runs
FIRST_TEND = 15.0  # seconds that the first may take before the others go on: a region that does not start must not be in the way
JUDGE = 0.25  # seconds between two looks at statuses
Body = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneOptions:
    """What lbcore.toml says of a management plane.

    file: name of the file that says it, for people;  url: where others reach it
    require_if_match: whether a write must say which state it has seen (V17)
    facts, times: as rules and Runner have them; Times.remembered follows the profile's TTL
    traffic_manager: the profile of a new service, as PATCH takes it
    founding: the service that a store without any begins with, None = none
    monitor_files: settings of `Monitor` that only the primary's own file has: ca, client_certificate, max_concurrency
    locate, detector, anchors: as `Watching` has them;  fresh: seconds for which an edge's report holds
    """

    file: str = "lbcore.toml"
    url: str = "http://127.0.0.1:9180"
    require_if_match: bool = True
    facts: Facts = field(default_factory=Facts)
    times: Times = field(default_factory=Times)
    traffic_manager: Mapping[str, Any] = field(default_factory=dict)
    founding: Service | None = None
    monitor_files: Mapping[str, Any] = field(default_factory=dict)
    locate: Any = None
    detector: Callable[[Monitor], Detector] = detector_of
    anchors: Sequence[str] = ()
    fresh: float = 10.0


class Plane:
    """Manage one service: its own life, and what its parts (`Wishes`, `Profile`, `Rotations`, `Sight`, `Gauges`) offer, under one name.

    store: opened, and closed by whoever opened it;  provisioner: makes regions run
    name, domain: of the service, also while there is none
    clock: wall-clock seconds, for people;  monotonic: seconds
    probe: does one probe of a gateway;  pages: looks at gateways' status pages
    Raises ServiceError StoreLocked at the start when another primary runs on the store.
    """

    def __init__(
        self, store: Store, provisioner: Provisioner, *, name: str, domain: str = "test", options: PlaneOptions | None = None,
        clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic, probe: Check = check,
        pages: StatusPages | None = None, call: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    ) -> None:  # fmt: skip
        self.store, self.provisioner, self.name, self.domain = store, provisioner, name, domain
        self.options = options = options or PlaneOptions()
        self._monotonic, self._pages = monotonic, pages or StatusPages()
        self.stored = stored = Stored(store, name, require_if_match=options.require_if_match, call=call)
        self.changes = stored.changes
        self.configuration = Primary(store, regions=self._names, check=self._tried)
        self._edges = edges = Edges(monotonic, options.fresh)
        self._watching = watching = Watching(
            clock=monotonic, locate=options.locate, detector=options.detector, anchors=options.anchors, probe=probe
        )
        self._profile = profile = Profile(stored, options.traffic_manager, changed=lambda: rotations.refresh())
        self._rotations = rotations = Rotations(
            stored, profile, edges, watching, domain=domain, monitor_files=options.monitor_files,
            remember=lambda ttl: self.runner.remember(ttl),
        )  # fmt: skip
        self.runner = Runner(
            store, provisioner, DataPlane(rotations, self._pages), times=options.times, call=call, clock=clock, on_change=self._moved
        )
        self._wishes = Wishes(stored, profile, self.runner, facts=options.facts, shown=self.shown, moved=self._moved)
        self._sight = Sight(
            stored, rotations, edges, watching, pages=self._pages, configuration=self.configuration, clock=clock, monotonic=monotonic
        )
        self._gauges = Gauges(rotations, self._pages, options.facts, monotonic)
        self._offer()
        self._judged: dict[str, str] = {}
        self._marks: object = None
        self._published: tuple[Tag, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()

    def _offer(self) -> None:
        """Offer what the parts do, as they say it, as the plane's own."""
        wishes, profile, rotations, sight = self._wishes, self._profile, self._rotations, self._sight
        self.put, self.patch, self.plan, self.delete = wishes.put, wishes.patch, wishes.plan, wishes.delete
        self.save_location, self.remove_location = wishes.save_location, wishes.remove_location
        self.disable_gateway, self.apply_network = wishes.disable_gateway, wishes.apply_network
        self.traffic_manager, self.set_traffic_manager = profile.traffic_manager, profile.set_traffic_manager
        self.profile, self.failover_times = profile.current, profile.failover_times
        self.rotations, self.rotation, self.wait_rotation, self.refresh = rotations, rotations.rotation, rotations.wait, rotations.refresh
        self.report, self.edges, self.network_status = sight.report, sight.edges, sight.network_status
        self.statuses, self.cause, self.endpoints, self.profile_status = sight.statuses, sight.cause, sight.endpoints, sight.profile_status
        self.explain, self.rank, self.route = sight.explain, sight.rank, sight.route
        self.capacities = self._gauges.capacities

    # ===== run

    async def __aenter__(self) -> Self:
        """Take the store's lease, go on with what was interrupted, begin with the first service, and watch."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self.store.lease())
            stack.push_async_callback(self._pages.close)
            await self._profile.begin(self.options.file)
            await self.refresh()
            self._watching.start()
            stack.push_async_callback(self._watching.close)
            tending = asyncio.create_task(self._tend())
            stack.push_async_callback(_ended, tending)
            await asyncio.wait({tending}, timeout=FIRST_TEND)
            await self.runner.start()
            self._edges.listen()
            self._rotations.heard = True  # before what was interrupted takes its first step
            stack.push_async_callback(self.runner.close)
            await self._found()
            for pause, work in (
                (LOOK_AROUND, self._look_around), (JUDGE, self._judge), (0.0, self._publish), (TEND, self._tend),
                (0.0, self._gauges.look),
            ):  # fmt: skip
                task = asyncio.create_task(self._for_ever(pause, work))
                stack.push_async_callback(_ended, task)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; an operation under way goes on at the next start, and regions serve on meanwhile."""
        self._rotations.heard = False
        await self._stack.aclose()

    async def _found(self) -> None:
        """Begin with the service of lbcore.toml, once in a store's life; afterwards the store wins."""
        wanted, state = self.options.founding, self._rotations.known.state
        if (epoch := await self.stored.fence()) is not None:
            logger.warning("read-only: another location was promoted, with epoch %d; regions serve on, changes are made there", epoch)
            return
        if wanted is None:
            return
        if state is not None:
            _tell_differences(wanted, state.service, self.options.file)
        elif not await self.stored.call(partial(self.store.operations.newest, limit=1)):
            found = [*validate(wanted, None, self.facts)]
            if found:
                raise refusal(found)
            await self._wishes.save(None, wanted, self.options.file, "first start", None, True)

    async def _for_ever(self, pause: float, work: Callable[[], Awaitable[object]]) -> None:
        """Do something again and again, whatever comes of it: what fails is said, and tried the next time."""
        while True:
            await asyncio.sleep(pause)
            try:
                await work()
            except ServiceError as error:
                logger.warning("the store: %s", error)
                await asyncio.sleep(LOOK_AROUND)
            except Exception:
                logger.exception("the management plane: what failed is tried again")
                await asyncio.sleep(LOOK_AROUND)

    async def _look_around(self) -> None:
        """See what other processes write to the store: restore, promote, fence."""
        if (marks := await self.stored.call(self.store.marks)) != self._marks:
            await self.refresh()
            self._marks = marks

    async def _tend(self) -> None:
        """Let a provisioner that runs regions itself look after them, unless they are another primary's now."""
        tend = getattr(self.provisioner, "tend", None)
        if tend is not None and await self.stored.fence() is None:
            try:
                await tend()
            except Exception as error:  # of somebody else's code
                logger.error("the provisioner cannot look after its regions: %s: %s", type(error).__name__, error)

    async def _judge(self) -> None:
        """Tell which statuses have changed, and write one event for each."""
        now, before = dict(self.statuses()), self._judged
        if now == before:
            return
        self._judged = now
        self.changes.tell("statuses")
        for name in now.keys() & before.keys():
            if now[name] != before[name]:
                detail = {"before": before[name], "after": now[name], "cause": self.cause(name)}
                await self.stored.event("EndpointStatusChanged", name, **detail)

    async def _publish(self) -> None:
        """Wait for another configuration, and tell of it."""
        await self.configuration.watch(self._published)
        latest = await self.configuration.latest(self._published)
        self._published = (latest.tag,) if latest else ()
        self.changes.tell("configuration")

    # ===== what there is

    @property
    def facts(self) -> Facts:
        """Give what the rules know of the world."""
        return self.options.facts

    @property
    def lb(self) -> Balancer:
        """Give the primary's own Balancer; another one after the monitor's settings have changed. Do not keep it."""
        return self._watching.lb

    @property
    def now(self) -> float:
        """Give monotonic seconds, as `EdgeReport.received` has them."""
        return self._monotonic()

    async def state(self) -> ServiceState:
        """Give the service with what runs of it; ServiceError ResourceNotFound when there is none."""
        return await self.stored.state()

    async def body(self) -> tuple[Body, str]:
        """Give what GET of the service shows, and its ETag, without quotes."""
        state = await self.state()
        return self.shown(state), state.etag

    def shown(self, state: ServiceState) -> Body:
        """Give what GET of the service shows of a state: `as_body`, and where the primary is reached."""
        body, url = as_body(state), self.options.url
        body["properties"] |= {
            "managementApiUrl": url, "portalUrl": f"{url}/portal/", "developerPortalUrl": f"{url}/developer", "statusPath": STATUS_PATH,
        }  # fmt: skip
        return body

    def named(self, name: str) -> None:
        """Refuse another service's name: ServiceError ResourceNotFound."""
        self.stored.named(name)

    # ===== operations

    async def operation(self, id: str) -> Operation:
        """Give an operation; ServiceError ResourceNotFound for an unknown one."""
        found: Operation | None = await self.stored.call(self.store.operations.get, id)
        if found is None:
            raise ServiceError("ResourceNotFound", f"there is no operation {ascii(id)[:80]}", id)
        return found

    async def operations(self, limit: int = 100) -> list[Operation]:
        """Give the operations, the newest first."""
        found: list[Operation] = await self.stored.call(partial(self.store.operations.newest, limit=limit))
        return found

    async def cancel(self, id: str, *, who: str) -> Operation:
        """Take an operation back; refusals as `Runner.cancel`."""
        found = await self.runner.cancel(id)
        await self.stored.event("OperationCanceled" if found.status == "Canceled" else "OperationNotCanceled", operation=id, who=who)
        return found

    def orders(self) -> list[Body]:
        """Give what waits for a person's word, where the provisioner is `manual`; nothing where it is another one."""
        return orders.waiting(self.provisioner)

    def answer_order(self, name: str, id: int, body: object) -> None:
        """Say what came of an order: {"publicIPAddresses", "privateIPAddresses", "gateway"}, or {"refusal": why it cannot be done}.

        Raises ServiceError ResourceNotFound when nobody waits for this, InvalidProperty for what cannot be read.
        """
        orders.answer(self.provisioner, name, id, body)

    # ===== backup

    async def backup(self, path: str | os.PathLike[str], *, who: str) -> Manifest:
        """Write all that is stored to a file (R50)."""
        manifest: Manifest = await self.stored.call(backup, self.store, path)
        await self.stored.event("BackedUp", who=who, path=os.fspath(path))
        return manifest

    async def restore(self, path: str | os.PathLike[str], *, who: str, why: str = "", allow_expired: bool = False) -> Restored:
        """Take what is wanted, and the configurations, from a backup (R47, R50); refusals as `backup.restore`. A Save deploys it then."""
        state = await self.stored.found()
        tier = state.service.tier if state else (await self.stored.call(inspect, path)).tier
        take = partial(restore, self.store, path, name=self.name, tier=tier, who=who, why=why, allow_expired=allow_expired)
        restored: Restored = await self.stored.call(take)
        await self.refresh()
        self.changes.tell("state", "configuration")
        return restored

    # ===== for others

    def subscribe(self) -> AbstractAsyncContextManager[Subscription]:
        """Be told what changed: `async with plane.subscribe() as notices: kind = await notices.get()`."""
        return self.changes.subscribe()

    def _moved(self, state: ServiceState | None) -> None:
        self.changes.tell("state", "operation")
        if state is None:  # the service is gone: nothing else brings the rotation in line
            task = asyncio.get_running_loop().create_task(self.refresh())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _names(self) -> Collection[str]:
        state = self._rotations.known.state
        return [each.name for each in state.service.locations] if state else []

    def _tried(self, configuration: Configuration) -> None:
        """Try a configuration as a region's gateway would: ConfigError for what it could not use."""
        Gateway(next(iter(self._names()), "primary"), service=self.name).apply(configuration)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _tell_differences(wanted: Service, service: Service, file: str) -> None:
    """Say once where a file and the store differ: the store wins."""
    ours, stored = {each.name: each for each in wanted.locations}, {each.name: each for each in service.locations}
    different = sorted(name for name in ours.keys() | stored.keys() if ours.get(name) != stored.get(name))
    other = [key for key in ("name", "domain", "tier", "network_mode") if getattr(wanted, key) != getattr(service, key)]
    if different or other:
        both = ", ".join([*other, *different])
        logger.warning("%s differs in %s from the stored service, which counts: the file's was for the first start alone", file, both)
