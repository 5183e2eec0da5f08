"""Plane: the management plane of one service. API, portal and commands stand on it; there is no HTTP in it.

    put, patch, save_location, …  -> rules -> plan -> Runner -> store        what an operator wants, and what comes of it
    store -> rotation, wait_rotation                                       who is listed, for edges
    report, edges, statuses, explain                                       what edges and the primary's own probes see

The store is read for every answer, so that what another process writes beside it (restore, promote, a token) holds at once. All of it is
for one event loop; what blocks runs in threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

from lbcore.balancer import Balancer
from lbcore.decision import Decision
from lbcore.detect import Detector
from lbcore.errors import NoRegionError, ServiceError
from lbcore.http.gateway import Gateway
from lbcore.http.gateway.configuration import Configuration
from lbcore.region import Region, canonical
from lbcore.sense.checks import Check, check
from lbcore.sense.monitor import STATUS_PATH, Monitor
from lbcore.service import traffic_manager as profiles
from lbcore.service.backup import Manifest, Restored, backup, inspect, restore
from lbcore.service.body import accepted, as_body, patched
from lbcore.service.codes import Violation, refusal
from lbcore.service.configuration import Latest, Report, Tag, read_tags
from lbcore.service.facts import AT, TOP, Facts, shown
from lbcore.service.journal import Operation
from lbcore.service.model import Service, ServiceState
from lbcore.service.notices import Notices, Subscription
from lbcore.service.operations import DELETE, NETWORK, Runner, Times
from lbcore.service.plan import Plan, admit, plan, refresh, removal
from lbcore.service.primary import Primary
from lbcore.service.progress import Granted
from lbcore.service.provisioning import Manual, Provisioner, Request
from lbcore.service.record import matches
from lbcore.service.reports import EdgeReport, Edges, read_report
from lbcore.service.revisions import Number
from lbcore.service.rotation import Listed, Look, StatusPages
from lbcore.service.rotation_document import Rotation, document
from lbcore.service.rules import validate
from lbcore.service.statuses import all_regions, always_served, endpoint_status, profile_status, switched_off
from lbcore.service.store import Document, Store
from lbcore.service.timing import Failover, failover
from lbcore.service.watching import Watching, detector_of

__all__ = ["TRAFFIC_MANAGER", "Plane", "PlaneOptions", "Saved"]

logger = logging.getLogger(__name__)

LEAVING = ("Draining", "Terminating")
TRAFFIC_MANAGER = "trafficManager"  # the store's name of that document
LOOK_AROUND = 1.0  # seconds between two looks for what another process wrote
WAIT = 0.05  # seconds between two looks whether edges follow
TEND = 2.0  # seconds between two looks of a provisioner after what it runs
FIRST_TEND = 15.0  # seconds that the first may take before the others go on: a region that does not start must not be in the way
JUDGE = 0.25  # seconds between two looks at statuses
LEARN = 4.0  # seconds between two takings over of what edges learned
SEEN_BY_EDGE = "RegionStatusChanged"
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


@dataclass(frozen=True, slots=True)
class Saved:
    """What came of a wish. operation: None = there was nothing to deploy;  created: whether there was no service before"""

    state: ServiceState
    plan: Plan
    operation: Operation | None
    created: bool = False


@dataclass(frozen=True, slots=True)
class _Known:
    """One look at the store."""

    state: ServiceState | None
    manager: Document | None
    epoch: int
    sequence: int  # of the last state, also of a service that is gone


class Plane:
    """Manage one service.

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
        self.options = options or PlaneOptions()
        self._clock, self._monotonic, self._probe, self._call = clock, monotonic, probe, call
        self._pages = pages or StatusPages()
        self.configuration = Primary(store, regions=self._names, check=self._tried)
        self.runner = Runner(store, provisioner, _DataPlane(self), times=self.options.times, call=call, clock=clock, on_change=self._moved)
        self.changes = Notices()
        self._edges = Edges(self._monotonic, self.options.fresh)
        self._watching = Watching(
            clock=self._monotonic, locate=self.options.locate, detector=self.options.detector, anchors=self.options.anchors, probe=probe
        )
        self._known = _Known(None, None, 0, 0)
        self._properties: Body = {}  # of the profile in use, as GET shows them
        self._manager: tuple[str, Service, profiles.TrafficManager] | None = None
        self._rotation: Rotation | None = None
        self._awaited: Number | None = None  # the rotation in which a region has gone, or serves no longer
        self._turned = asyncio.Condition()
        self._refreshing = asyncio.Lock()
        self._draining_since: dict[str, Number] = {}
        self._judged: dict[str, str] = {}
        self._learned_at = float("-inf")
        self._marks: object = None
        self._started = False
        self._published: tuple[Tag, ...] = ()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stack = AsyncExitStack()

    # ===== run

    async def __aenter__(self) -> Self:
        """Take the store's lease, go on with what was interrupted, begin with the first service, and watch."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self.store.lease())
            stack.push_async_callback(self._pages.close)
            await self._first_profile()
            await self.refresh()
            self._watching.start()
            stack.push_async_callback(self._watching.close)
            tending = asyncio.create_task(self._tend())
            stack.push_async_callback(_ended, tending)
            await asyncio.wait({tending}, timeout=FIRST_TEND)
            await self.runner.start()
            self._edges.listen()
            self._started = True  # before what was interrupted takes its first step
            stack.push_async_callback(self.runner.close)
            await self._found()
            for pause, work in (
                (LOOK_AROUND, self._look_around), (JUDGE, self._judge), (0.0, self._publish), (TEND, self._tend),
            ):  # fmt: skip
                task = asyncio.create_task(self._for_ever(pause, work))
                stack.push_async_callback(_ended, task)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; an operation under way goes on at the next start, and regions serve on meanwhile."""
        self._started = False
        await self._stack.aclose()

    async def _first_profile(self) -> None:
        if await self._call(self.store.document, TRAFFIC_MANAGER) is None:
            with suppress(ServiceError):  # fenced: it is not ours to write
                put = partial(self.store.put, TRAFFIC_MANAGER, dict(self.options.traffic_manager), who=self.options.file, why="first start")
                await self._call(put)

    async def _found(self) -> None:
        """Begin with the service of lbcore.toml, once in a store's life; afterwards the store wins."""
        wanted, state = self.options.founding, self._known.state
        if wanted is None or await self._call(_fence_of, self.store) is not None:
            return
        if state is not None:
            _tell_differences(wanted, state.service, self.options.file)
        elif not await self._call(partial(self.store.operations.newest, limit=1)):
            found = [*validate(wanted, None, self.facts)]
            if found:
                raise refusal(found)
            await self._save(None, wanted, self.options.file, "first start", None, True)

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
        if (marks := await self._call(self.store.marks)) != self._marks:
            await self.refresh()
            self._marks = marks

    async def _tend(self) -> None:
        """Let a provisioner that runs regions itself look after them, unless they are another primary's now."""
        tend = getattr(self.provisioner, "tend", None)
        if tend is not None and await self._call(_fence_of, self.store) is None:
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
                await self._event("EndpointStatusChanged", name, **detail)

    async def _publish(self) -> None:
        """Wait for another configuration, and tell of it."""
        await self.configuration.watch(self._published)
        latest = await self.configuration.latest(self._published)
        self._published = (latest.tag,) if latest else ()
        self.changes.tell("configuration")

    async def _event(self, kind: str, region: str = "", /, **detail: Any) -> None:
        try:
            await self._call(partial(self.store.events.add, kind, region, **detail))
        except ServiceError as error:
            logger.warning("event %s was not written: %s", kind, error)
        self.changes.tell("events")

    # ===== what there is

    @property
    def facts(self) -> Facts:
        """Give what the rules know of the world."""
        return self.options.facts

    @property
    def lb(self) -> Balancer:
        """Give the primary's own Balancer; another one after the monitor's settings have changed. Do not keep it."""
        return self._watching.lb

    async def state(self) -> ServiceState:
        """Give the service with what runs of it; ServiceError ResourceNotFound when there is none."""
        found: ServiceState | None = await self._call(self.store.state)
        if found is None:
            raise ServiceError("ResourceNotFound", f"there is no service {self.name!r}", self.name)
        return found

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
        if name.lower() != self.name.lower():
            raise ServiceError("ResourceNotFound", f"there is no service {ascii(name)[:80]} here; this is {self.name!r}", name)

    # ===== what is wanted

    async def put(
        self, name: str, body: object, *, who: str, why: str = "", if_match: str | None = None, force: bool = False,
        acknowledged: bool = False,
    ) -> Saved:  # fmt: skip
        """Make the service as a body says, also when there is none yet; ServiceError with every violation, nothing has happened then.

        if_match: the If-Match header;  force: also what loses capacity (V12);  acknowledged: VIP changes are known of (V13)
        Refusals in order: 404, fenced, 428, 412, 409 while an operation runs, what is wrong with the body, what it would do.
        """
        self.named(name)
        state: ServiceState | None = await self._call(self.store.state)
        await self._admit(state, if_match)
        wanted = accepted(body, self.name, state, self.facts, shown_now=self.shown(state) if state else None, force=force)
        return await self._save(state, wanted, who, why, if_match, acknowledged)

    async def patch(
        self, body: object, *, who: str, why: str = "", if_match: str | None = None, force: bool = False, acknowledged: bool = False
    ) -> Saved:
        """Change what a body says and leave the rest; lists are replaced as a whole. Refusals as `put`."""
        state = await self.state()
        await self._admit(state, if_match)
        return await self._save(state, self._patched(state, body, force), who, why, if_match, acknowledged)

    async def plan(self, body: object, *, force: bool = False) -> tuple[Plan, str]:
        """Give what a PATCH would do, and the ETag of the state it starts from; nothing changes. Also while an operation runs."""
        state = await self.state()
        return await self._planned(state, self._patched(state, body, force)), state.etag

    async def save_location(
        self, name: str, row: object, *, who: str, why: str = "", if_match: str | None = None, force: bool = False,
        acknowledged: bool = False,
    ) -> Saved:  # fmt: skip
        """Make one location as its row says, in the place of the one of its name or as another one. Refusals as `put`."""
        state = await self.state()
        await self._admit(state, if_match)
        body = _with_row(self.shown(state), state.service, name, row)
        wanted = accepted(body, self.name, state, self.facts, shown_now=self.shown(state), force=force)
        return await self._save(state, wanted, who, why, if_match, acknowledged)

    async def remove_location(
        self, name: str, *, who: str, why: str = "", if_match: str | None = None, force: bool = False, acknowledged: bool = False
    ) -> Saved:
        """Remove a location; of one that is not there the plan is empty (V19). Refusals as `put`, CannotRemovePrimary."""
        state = await self.state()
        await self._admit(state, if_match)
        wanted = state.service.without(name)
        found = [*validate(wanted, state.service, self.facts, force=force)]
        if found:
            raise refusal(found)
        return await self._save(state, wanted, who, why, if_match, acknowledged)

    async def disable_gateway(
        self, name: str, disabled: bool, *, who: str, why: str = "", if_match: str | None = None, force: bool = False
    ) -> Saved:
        """Take a region's gateway out of rotation, or let it back in (R38). Refusals as `put`."""
        state = await self.state()
        await self._admit(state, if_match)
        wanted = state.service.put(replace(state.service.get(name), disable_gateway=disabled))
        found = [*validate(wanted, state.service, self.facts, force=force)]
        if found:
            raise refusal(found)
        return await self._save(state, wanted, who, why, if_match, True)

    async def apply_network(self, name: str | None = None, *, who: str, why: str = "", if_match: str | None = None) -> Operation:
        """Take up changes made outside, in the network, in one region or in all one after another (R60)."""
        state = await self.state()
        await self._admit(state, if_match, writes=False)
        return await self.runner.save(refresh(state, name), state, who=who, why=why, kind=NETWORK, if_match=if_match)

    async def delete(self, *, who: str, why: str = "", if_match: str | None = None) -> Operation | None:
        """Remove the service with all its regions; None when there is none."""
        state: ServiceState | None = await self._call(self.store.state)
        await self._admit(state, if_match)
        if state is None:
            return None
        return await self.runner.save(removal(state), state, who=who, why=why, kind=DELETE, if_match=if_match)

    async def _admit(self, state: ServiceState | None, if_match: str | None, *, writes: bool = True) -> None:
        """Refuse before the body is looked at; the journal asks again, in the transaction that counts."""
        if (epoch := await self._call(_fence_of, self.store)) is not None:
            raise ServiceError("Fenced", f"another primary has taken over with epoch {epoch}; this one is read-only")
        self._precondition(state.etag if state else "", if_match, writes)
        await self._call(_refuse_while_busy, self.store)

    def _precondition(self, etag: str, if_match: str | None, writes: bool = True) -> None:
        if writes and if_match is None and etag and self.options.require_if_match:
            raise ServiceError("PreconditionRequired", "say which state you have seen: If-Match with its ETag, or *", "If-Match")
        if not matches(if_match, etag):
            now = f"it is {etag} now" if etag else "there is nothing yet"
            raise ServiceError("PreconditionFailed", f"If-Match does not hold: {now}", "If-Match")

    def _patched(self, state: ServiceState, body: object, force: bool) -> Service:
        if not isinstance(body, Mapping):
            raise refusal([Violation("InvalidProperty", "expected an object", "")])
        now = self.shown(state)
        return accepted(patched(now, body), self.name, state, self.facts, shown_now=now, force=force)

    async def _planned(self, state: ServiceState | None, wanted: Service) -> Plan:
        manager = await self._profile(wanted, fresh=state is None)
        return plan(state, wanted, monitor=manager.monitor, ttl=manager.ttl)

    async def _save(
        self, state: ServiceState | None, wanted: Service, who: str, why: str, if_match: str | None, acknowledged: bool
    ) -> Saved:
        planned = await self._planned(state, wanted)
        if state is not None and planned.empty:
            return Saved(state, planned, None)
        admit(planned, acknowledged=acknowledged)
        if state is not None and not planned.steps:
            change = partial(_rewished, before=state, wanted=wanted)
            written: ServiceState = await self._call(
                partial(self.store.update, change, who=who, what="save", why=why, if_match=if_match)
            )  # fmt: skip
            self._moved(written)
            return Saved(written, planned, None)
        operation = await self.runner.save(planned, state, who=who, why=why, if_match=if_match)
        return Saved(await self.state(), planned, operation, state is None)

    # ===== operations

    async def operation(self, id: str) -> Operation:
        """Give an operation; ServiceError ResourceNotFound for an unknown one."""
        found: Operation | None = await self._call(self.store.operations.get, id)
        if found is None:
            raise ServiceError("ResourceNotFound", f"there is no operation {ascii(id)[:80]}", id)
        return found

    async def operations(self, limit: int = 100) -> list[Operation]:
        """Give the operations, the newest first."""
        found: list[Operation] = await self._call(partial(self.store.operations.newest, limit=limit))
        return found

    async def cancel(self, id: str, *, who: str) -> Operation:
        """Take an operation back; refusals as `Runner.cancel`."""
        found = await self.runner.cancel(id)
        await self._event("OperationCanceled" if found.status == "Canceled" else "OperationNotCanceled", operation=id, who=who)
        return found

    def orders(self) -> list[Body]:
        """Give what waits for a person's word, where the provisioner is `manual`; nothing where it is another one."""
        waiting = self.provisioner.requests if isinstance(self.provisioner, Manual) else ()
        return [_order(request) for request in waiting]

    def answer_order(self, name: str, id: int, body: object) -> None:
        """Say what came of an order: {"publicIPAddresses", "privateIPAddresses", "gateway"}, or {"refusal": why it cannot be done}.

        Raises ServiceError ResourceNotFound when nobody waits for this, InvalidProperty for what cannot be read.
        """
        if not isinstance(self.provisioner, Manual):
            raise ServiceError("ResourceNotFound", "no order waits for anybody: regions are provisioned by a program", name)
        granted, refusal_ = _granted(body)
        self.provisioner.answer(canonical(name), id, granted, refusal=refusal_)

    # ===== traffic manager

    async def traffic_manager(self) -> tuple[Body, str]:
        """Give what GET of the profile shows, and its ETag; ResourceNotFound without a service."""
        state = await self.state()
        manager = await self._profile(state.service)
        stored = await self._stored_profile()
        return profiles.traffic_manager_body(manager, state.service), stored.etag

    async def profile(self) -> profiles.TrafficManager:
        """Give the profile in use; ResourceNotFound without a service."""
        return await self._profile((await self.state()).service)

    async def set_traffic_manager(
        self, patch: object, *, who: str, why: str = "", if_match: str | None = None, merge: bool = True
    ) -> tuple[Body, str]:
        """Change the profile, and give it. merge: as PATCH; else the whole is replaced. Nothing is written when nothing changes.

        Refusals in order: 404, fenced, 428, 412, every violation (V20-V23). Not refused while an operation runs: nothing is deployed.
        """
        state = await self.state()
        before, stored = await self.traffic_manager()
        if (epoch := await self._call(_fence_of, self.store)) is not None:
            raise ServiceError("Fenced", f"another primary has taken over with epoch {epoch}; this one is read-only")
        self._precondition(stored, if_match)
        manager = profiles.read(patched(before, patch) if merge else patch, state.service)
        after = profiles.traffic_manager_body(manager, state.service)
        if after == before:
            return before, stored
        seen = f'"{stored}"' if stored else if_match  # If-Match: * does not mean that what others change meanwhile may be lost
        written = await self._call(partial(self.store.put, TRAFFIC_MANAGER, _storable(after), who=who, why=why, if_match=seen))
        await self.refresh()
        self.changes.tell("state")
        return after, written.etag

    async def failover_times(self, patch: object = None) -> Failover:
        """Give the times that the profile implies, or would with a patch; violations as `set_traffic_manager`."""
        state = await self.state()
        manager = await self._profile(state.service)
        if patch is not None:
            manager = profiles.read(patched(profiles.traffic_manager_body(manager, state.service), patch), state.service)
        return failover(manager.monitor, manager.ttl)

    async def _stored_profile(self) -> Document:
        found: Document | None = await self._call(self.store.document, TRAFFIC_MANAGER)
        return found or Document(dict(self.options.traffic_manager), "")

    async def _profile(self, service: Service, *, fresh: bool = False) -> profiles.TrafficManager:
        """Read the stored profile for a service, violations as `read`. fresh: for a new one, which it need not fit."""
        stored = await self._stored_profile()
        try:
            return self._read_profile(stored, service)
        except ServiceError:
            if not fresh:
                raise
        put = partial(self.store.put, TRAFFIC_MANAGER, dict(self.options.traffic_manager), who="service", why="of a new service")
        return self._read_profile(await self._call(put), service)

    def _read_profile(self, stored: Document, service: Service) -> profiles.TrafficManager:
        if self._manager is None or self._manager[:2] != (stored.etag, service):
            self._manager = stored.etag, service, profiles.read(stored.body, service)
        return self._manager[2]

    # ===== rotation

    async def refresh(self) -> None:
        """Bring the rotation in line with what is stored; it changes nothing when nothing has changed."""
        async with self._refreshing:
            known: _Known = await self._call(self._look)
            if known == self._known and self._rotation is not None:
                return
            self._turn(known)  # what raises is tried again with the next look
            before, self._known = self._known, known
        if before.state != known.state:
            self.changes.tell("state")
        async with self._turned:
            self._turned.notify_all()

    def _look(self) -> _Known:
        store = self.store
        with store.database.reading() as connection:  # of one moment: a profile from before a restore has a number that is too high
            manager, epoch = store.document_of(connection, TRAFFIC_MANAGER), store.revisions.epoch_of(connection)
            return _Known(store.read(connection), manager, epoch, store.sequence_of(connection))

    def _turn(self, known: _Known) -> None:
        """Make the rotation of a state, and let the own Balancer follow it."""
        manager, body = self._used_profile(known)
        turned = int(known.manager.etag.partition("-")[0]) if known.manager else 0  # a profile's change is another number, too
        made = document(known.state, body, service=self.name, domain=self.domain, epoch=known.epoch, sequence=known.sequence + turned)
        before = self._rotation
        if before is None or not _same(before, made):
            self._rotation = made
            if before is None or _loses(before, made):  # what the one before this primary waited for is not known
                self._awaited = made.number
            self.changes.tell("rotation")
        for name in [*self._draining_since]:
            if (place := made.get(name)) is None or not place.draining:
                del self._draining_since[name]
        for place in made.regions:
            if place.draining:
                self._draining_since.setdefault(place.name, made.number)
        self._properties = properties = body.get("properties", {})
        off = {place.name for place in made.regions} if properties.get("profileStatus") == "Disabled" else switched_off(properties)
        monitor = replace(manager.monitor, **self.options.monitor_files) if manager else self._watching.monitor
        if manager is not None:
            self.runner.remember(manager.ttl)
        self._watching.follow(made.regions, monitor, off, always_served(properties))

    def _used_profile(self, known: _Known) -> tuple[profiles.TrafficManager | None, Body]:
        if known.state is None:
            return None, {}
        service = known.state.service
        stored = known.manager or Document(dict(self.options.traffic_manager), "")
        try:
            manager = self._read_profile(stored, service)
        except ServiceError as error:
            logger.error("the profile that is stored does not fit the service; the usual one is used: %s", error)
            manager = profiles.read({}, service)
        return manager, profiles.traffic_manager_body(manager, service)

    def rotation(self) -> Rotation | None:
        """Give the rotation, None without a service. Its `tag` is its ETag, its `document` what edges get."""
        return self._rotation if self._known.state is not None else None

    async def wait_rotation(self, tag: str, timeout: float) -> Rotation | None:
        """Give the rotation as soon as its tag is another one than `tag`, at the latest after `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.rotations.watch(read_tags(tag))
        return self.rotation()

    @property
    def rotations(self) -> _Rotations:
        """Give the rotation as `remote.answer` takes it: GET, HEAD, If-None-Match and Prefer: wait as for gatewayConfiguration."""
        return _Rotations(self)

    async def show(self, listed: Mapping[str, Listed]) -> None:
        """Be the data plane's half for operations: tell edges, and wait for those that are heard of to follow when a region goes."""
        before = self._awaited
        await self.refresh()
        state = self._known.state
        if not self._started:  # nobody hears anything yet
            return
        leaving = state is not None and any(one.provisioning_state in LEAVING for one in state.states.values())
        while self._awaited is not None and (leaving or self._awaited != before) and not self._edges.follow(self._awaited):
            await asyncio.sleep(WAIT)

    # ===== what edges say

    async def report(self, edge: str, body: object) -> None:
        """Take what an edge says. edge: to which its token is bound, "" = any; ServiceError with every violation."""
        report = read_report(edge, body, self._monotonic())
        known = set(self._regions())
        report = replace(report, regions={name: one for name, one in report.regions.items() if name in known})
        before = self._edges.note(replace(report, learned=b"", events=()))
        for event in report.events[: self._edges.may_tell(report.edge, len(report.events))]:
            if event.region in known:
                detail: Body = {"edge": report.edge, "before": event.before, "after": event.after, "cause": event.cause, "seen": event.at}
                if event.kind != SEEN_BY_EDGE:  # no edge writes what operations and the primary itself do
                    detail["kind"] = event.kind
                await self._event(SEEN_BY_EDGE if event.kind == SEEN_BY_EDGE else "EdgeEvent", event.region, **detail)
        await self._doubt(report, before)
        now = self._monotonic()
        if report.learned and now - self._learned_at >= LEARN:
            self._learned_at = now
            await self._call(self._watching.learn, report.learned)

    async def _doubt(self, report: EdgeReport, before: EdgeReport | None) -> None:
        """Say that an edge follows a rotation which this primary has not made: another primary's, or a lie."""
        if report.rotation is None or self._rotation is None or report.rotation <= self._rotation.number:
            return
        if before is None or before.rotation != report.rotation:
            await self._event("EdgeAhead", edge=report.edge, rotation=str(report.rotation), own=str(self._rotation.number))

    def edges(self) -> list[EdgeReport]:
        """Give the last report of each edge, the newest first; `received` is `monotonic` seconds."""
        return self._edges.all

    @property
    def now(self) -> float:
        """Give monotonic seconds, as `EdgeReport.received` has them."""
        return self._monotonic()

    def statuses(self) -> dict[str, str]:
        """Give the monitor status (§2.2) of every region that is wanted, or not gone yet, by name."""
        state = self._known.state
        if state is None:
            return {}
        profile = self._properties
        return {
            name: endpoint_status(each, state.of(name), profile, self._edges.status(name) or self._watching.seen(name))
            for name, each in all_regions(state).items()
        }  # fmt: skip

    def cause(self, name: str) -> str:
        """Give why a region is down as the primary's own probes see it, else who says so; "" when nobody does."""
        bad = [one.edge for one in self._edges.fresh if name in one.regions and one.regions[name].status in ("down", "ejected")]
        return self._watching.cause(name) or (f"seen by {', '.join(sorted(bad)[:3])}" if bad else "")

    def endpoints(self) -> list[Body]:
        """Give the endpoints of the profile with their statuses; none in network mode Internal (R51)."""
        state, profile = self._known.state, self._properties
        if state is None or state.service.network_mode == "Internal":
            return []
        told = {canonical(one["region"]): one for one in profile.get("endpoints", ()) if one.get("region")}
        statuses, regions = self.statuses(), all_regions(state)
        names = [name for name in regions if not told or name in told or any(profile.get("profiles", ()))]
        return [self._endpoint(state, name, told.get(name, {}), statuses[name]) for name in names]

    def _endpoint(self, state: ServiceState, name: str, told: Mapping[str, Any], status: str) -> Body:
        each, runs = all_regions(state)[name], state.of(name)
        off = name in switched_off(self._properties)
        return {
            "name": name, "displayName": each.display_name, "target": f"{state.service.regional_label(name)}.regional."
            f"{state.service.domain}", "type": "AzureEndpoints", "endpointStatus": "Disabled" if off else "Enabled",
            "endpointMonitorStatus": status, "alwaysServe": told.get("alwaysServe") or "Disabled", "weight": told.get("weight", 1),
            "priority": told.get("priority"), "endpointLocation": each.display_name, "disableGateway": each.disable_gateway,
            "addresses": [*runs.public_ips], "units": each.units, "cause": self.cause(name) if status == "Degraded" else "",
        }  # fmt: skip

    def profile_status(self) -> str:
        """Give the profile's monitor status."""
        state = self._known.state
        if state is None or state.service.network_mode == "Internal":
            return "Inactive"
        return profile_status(self._properties, self.statuses().values())

    # ===== decisions

    def explain(self, client: str | None = None) -> Decision:
        """Give why a client would go where it would go; ServiceError NoRegionAvailable, InvalidProperty for what is no address."""
        decision: Decision = _asked(partial(self.lb.explain, client))
        if decision.region is None:
            raise ServiceError("NoRegionAvailable", "no region is enabled and not draining", None)
        return decision

    def rank(self, client: str | None = None) -> list[Region]:
        """Give the regions that may serve a client, the closest first; refusals as `explain`."""
        found: list[Region] = _asked(partial(self.lb.rank, client))
        if not found:
            raise ServiceError("NoRegionAvailable", "no region is enabled and not draining", None)
        return found

    def route(self, client: str | None = None) -> Region:
        """Give where a client would go; refusals as `explain`."""
        found: Region = _asked(partial(self.lb.pick, client))
        return found

    async def network_status(self, name: str | None = None) -> list[Body]:
        """Give what is reached from the primary, of one location or of all: gateways, and their configuration. ResourceNotFound."""
        state = await self.state()
        wanted = [state.service.get(name)] if name is not None else [*state.service.locations]
        names = [each.name for each in wanted]
        looks = await asyncio.gather(*(self._looked(state, each) for each in names))
        synced, now = await self.configuration.in_sync(names), self._clock()
        return [
            {"location": each.display_name, "name": each.name, "networkStatus": {"connectivityStatus": [
                _connectivity("gateway", state.of(each.name).gateway, look.cause or ("" if look.status else "it does not run"), now),
                _connectivity("configuration", str(look.revision or ""), "" if synced[each.name] else "not the latest revision", now),
            ]}}
            for each, look in zip(wanted, looks, strict=True)
        ]  # fmt: skip

    async def _looked(self, state: ServiceState, name: str) -> Look:
        gateway = state.of(name).gateway
        return await self._pages.look(name, gateway) if gateway else Look(cause="it does not run")

    async def look(self, name: str, gateway: str) -> Look:
        """Ask a region's gateway how it is."""
        return await self._pages.look(name, gateway)

    def idle(self, name: str) -> bool:
        """Say whether every edge that is heard of has nothing under way in a draining region; False when nobody says so."""
        since = self._draining_since.get(name)
        return since is not None and self._edges.idle(name, since)

    # ===== backup

    async def backup(self, path: str | os.PathLike[str], *, who: str) -> Manifest:
        """Write all that is stored to a file (R50)."""
        manifest: Manifest = await self._call(backup, self.store, path)
        await self._event("BackedUp", who=who, path=os.fspath(path))
        return manifest

    async def restore(self, path: str | os.PathLike[str], *, who: str, why: str = "", allow_expired: bool = False) -> Restored:
        """Take what is wanted, and the configurations, from a backup (R47, R50); refusals as `backup.restore`. A Save deploys it then."""
        state: ServiceState | None = await self._call(self.store.state)
        tier = state.service.tier if state else (await self._call(inspect, path)).tier
        take = partial(restore, self.store, path, name=self.name, tier=tier, who=who, why=why, allow_expired=allow_expired)
        restored: Restored = await self._call(take)
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

    def _regions(self) -> Collection[str]:
        return all_regions(self._known.state) if self._known.state else ()

    def _names(self) -> Collection[str]:
        state = self._known.state
        return [each.name for each in state.service.locations] if state else []

    def _tried(self, configuration: Configuration) -> None:
        """Try a configuration as a region's gateway would: ConfigError for what it could not use."""
        Gateway(next(iter(self._names()), "primary"), service=self.name).apply(configuration)


class _DataPlane:
    """What operations need of the data plane, of a Plane."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def show(self, listed: Mapping[str, Listed]) -> None:
        await self._plane.show(listed)

    async def look(self, name: str, gateway: str) -> Look:
        return await self._plane.look(name, gateway)

    async def idle(self, name: str) -> bool:
        return self._plane.idle(name)


class _Rotations:
    """The rotation behind the protocol of configurations, for `remote.answer`."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def latest(self, known: Collection[Tag] = (), report: Report | None = None) -> Latest | None:
        """Give the rotation, without its bytes to who knows it; None without a service."""
        rotation = self._plane.rotation()
        if rotation is None:
            return None
        (tag,) = read_tags(rotation.tag)
        return Latest(tag, None if tag in known else rotation.document)

    async def watch(self, known: Collection[Tag] = ()) -> bool:
        """Wait until there is another one than those known. Stop it with a timeout."""
        plane = self._plane
        async with plane._turned:
            await plane._turned.wait_for(lambda: (now := plane.rotation()) is not None and read_tags(now.tag)[0] not in known)
        return True

    async def put(self, document: Mapping[str, Any], *, who: str, why: str = "", if_revision: Number | None = None) -> Tag:
        """Refuse: it follows from the state."""
        raise ServiceError("NotSupported", "the rotation follows from the service; it cannot be put")


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _asked(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except NoRegionError:
        raise ServiceError("NoRegionAvailable", "no region is enabled and not draining", None) from None
    except (ValueError, TypeError) as error:
        raise ServiceError("InvalidProperty", f"expected an address of a client: {ascii(str(error))[:200]}", "client") from None


def _fence_of(store: Store) -> int | None:
    return store.fenced


def _refuse_while_busy(store: Store) -> None:
    with store.database.reading() as connection:
        store.refuse_while_busy(connection)


def _rewished(now: ServiceState, before: ServiceState, wanted: Service) -> ServiceState:
    if now.etag != before.etag:
        raise ServiceError("PreconditionFailed", "the service was changed while this was planned; read it and plan anew", "etag")
    return replace(now, service=wanted)


def _storable(body: Body) -> Body:
    return {"properties": {key: value for key, value in body["properties"].items() if key != "failover"}}


def _order(request: Request) -> Body:
    order = request.order
    return {
        "id": request.id, "work": order.work, "name": order.name, "units": order.location.units if order.location else 0,
        "networkType": order.network_mode, "newPublicIP": order.new_public, "newPrivateIP": order.new_private,
        "publicIPAddresses": [*order.public_ips], "privateIPAddresses": [*order.private_ips],
    }  # fmt: skip


def _granted(body: object) -> tuple[Granted, str]:
    if not isinstance(body, Mapping):
        raise refusal([Violation("InvalidProperty", "expected an object", "")])
    lists = {key: body.get(key) or [] for key in ("publicIPAddresses", "privateIPAddresses")}
    texts = {key: body.get(key) or "" for key in ("gateway", "refusal")}
    wrong = [Violation("InvalidProperty", "expected a list of addresses", key) for key, value in lists.items()
             if not isinstance(value, list) or not all(isinstance(each, str) for each in value)]  # fmt: skip
    wrong += [Violation("InvalidProperty", "expected a text", key) for key, value in texts.items() if not isinstance(value, str)]
    wrong += [Violation("UnknownProperty", f"no such property: {shown(key)}", shown(key)[1:-1]) for key in body if key not in lists | texts]
    if wrong:
        raise refusal(wrong)
    return Granted(tuple(lists["publicIPAddresses"]), tuple(lists["privateIPAddresses"]), texts["gateway"]), texts["refusal"]


def _same(before: Rotation, after: Rotation) -> bool:
    """Say whether two documents tell the same, numbers aside; another epoch is told always."""
    return replace(before, number=after.number) == replace(after, tag=before.tag) and before.number.epoch == after.number.epoch


def _loses(before: Rotation, after: Rotation) -> bool:
    """Say whether a region may get no new clients any more, or none at all."""
    serving = [{one.name for one in each.regions if one.enabled and not one.draining} for each in (before, after)]
    there = [{one.name for one in each.regions} for each in (before, after)]
    return bool(serving[0] - serving[1] or there[0] - there[1])


def _connectivity(kind: str, what: str, error: str, now: float) -> Body:
    return {
        "name": what, "resourceType": kind, "status": "failure" if error else "success", "error": error, "lastUpdated": now,
        "isOptional": kind != "gateway",
    }  # fmt: skip


def _with_row(body: Body, service: Service, name: str, row: object) -> Body:
    """Give the body of the service with one location's row in its place."""
    if not isinstance(row, Mapping):
        raise refusal([Violation("InvalidProperty", "expected an object", "")])
    folded = canonical(name)
    said = row.get("location")
    if said is not None and (not isinstance(said, str) or canonical(said) != folded):
        raise refusal([Violation("PropertyChangeNotAllowed", "the location is the one that the address names", "location")])
    if folded == service.primary.name:
        return _with_primary(body, row)
    others = [one for one in body["properties"]["additionalLocations"] if one["name"] != folded]
    index = next((i for i, one in enumerate(body["properties"]["additionalLocations"]) if one["name"] == folded), len(others))
    others.insert(index, {"location": name} | dict(row))
    return body | {"properties": body["properties"] | {"additionalLocations": others}}


def _with_primary(body: Body, row: Mapping[str, Any]) -> Body:
    settings = {path[0] for path in AT.values()} - set(TOP)
    properties = {key: value for key, value in body["properties"].items() if key not in settings}
    properties |= {key: value for key, value in row.items() if key not in TOP and key not in ("name", "displayName", "primary", "reason")}
    top = {key: row[key] for key in ("sku", "zones") if key in row}
    sku = {"sku": {"name": body["sku"]["name"]} | dict(top["sku"])} if isinstance(top.get("sku"), Mapping) else {}
    return {**body, "zones": [], **top, **sku, "properties": properties}


def _tell_differences(wanted: Service, service: Service, file: str) -> None:
    """Say once where a file and the store differ: the store wins."""
    ours, stored = {each.name: each for each in wanted.locations}, {each.name: each for each in service.locations}
    different = sorted(name for name in ours.keys() | stored.keys() if ours.get(name) != stored.get(name))
    other = [key for key in ("name", "domain", "tier", "network_mode") if getattr(wanted, key) != getattr(service, key)]
    if different or other:
        logger.warning("the service is the one stored; %s differs in %s", file, ", ".join([*other, *different]))
