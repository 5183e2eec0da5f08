"""Operations: what carries an accepted Save out, region by region, and goes on with it after kill -9.

    save --> hold --> creates, all at once --> updates, one after another --> deletes, all at once --> finish
              '--> cancel: nothing was begun, the wish is taken back

    create  Activating: provisioned --> SyncingConfig: has the revision of the Save --> Warming: probed --> Succeeded, in rotation
    update  Updating, with what ran before in rotation --> Succeeded | Failed
    delete  Draining: nobody new --> Terminating: out of DNS and front door, then stopped --> gone

Each arrow is written to the store before what follows it is begun. After a crash, what leads from the stored state to what is wanted is
the rest of the operation. Source: REQUIREMENTS R13, R15, §2.1.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from lbcore.errors import ServiceError
from lbcore.service.journal import FINAL, Operation
from lbcore.service.logbook import clean
from lbcore.service.model import LocationState, Service, ServiceState
from lbcore.service.plan import REINSTATED, Plan, Step, plan, refresh, removal
from lbcore.service.progress import VIP_OVERLAP, Granted, begin, done, failed, forget_previous
from lbcore.service.provisioning import Order, Provisioner, ProvisionError
from lbcore.service.revisions import Number
from lbcore.service.rotation import Regions, listed, serving, wrong
from lbcore.service.store import Store

__all__ = ["DELETE", "NETWORK", "SAVE", "Runner", "Times"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Change = Callable[[ServiceState], ServiceState]

SAVE, DELETE, NETWORK = "save", "delete", "network"  # kinds: of locations, of the service as a whole, and R60
ENDED = frozenset({"Succeeded", "Deleted", "Failed", "TerminationFailed"})
_PASSING = frozenset({"StoreLocked", "StoreFull", "StoreReadOnly", "StoreUnavailable"})
_PATIENCE = 2.0  # seconds for tasks to end when the primary does
_PERCENT = {"Activating": 10, "SyncingConfig": 50, "Warming": 75, "Updating": 10, "Draining": 10, "Terminating": 50}


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long things may take, in seconds.

    hold: between acceptance and the first step, in which a Save can be cancelled
    sync, probe: until a new region has its configuration, and until it answers probes, before it has failed
    drain: at most, for what is under way in a region that leaves;  remembered: at least, for clients keep DNS answers: their TTL
    show: until DNS and front door have taken a change;  pause: between two looks;  overlap: for which a VIP given up answers
    upkeep: between two looks for VIPs whose overlap is over
    """

    hold: float = 0.0
    sync: float = 120.0
    probe: float = 60.0
    drain: float = 30.0
    remembered: float = 0.0
    show: float = 30.0
    pause: float = 0.5
    overlap: float = VIP_OVERLAP
    upkeep: float = 30.0


class StepError(Exception):
    """Say why a step failed, in words for the operator."""


class _Kept(StepError):
    """Say why a step was not begun: its region goes on as it was."""


@dataclass(frozen=True, slots=True)
class _Job:
    """An operation that runs. planned: what is left of it;  steps: how many it had;  needed: the newest revision when it was accepted"""

    operation: Operation
    planned: Plan
    steps: int
    needed: Number | None


class Runner:
    """Run the operations of a store, one at a time.

    regions: the data plane;  call: runs what blocks, as asyncio.to_thread does;  clock: wall-clock seconds, for what people read
    on_change: called after each step that was written, with the state
    Nothing but the store is remembered: another Runner on it goes on where this one was killed. One Runner a store: see Store.lease.
    """

    def __init__(
        self, store: Store, provisioner: Provisioner, regions: Regions, *, times: Times | None = None,
        call: Callable[..., Awaitable[Any]] = asyncio.to_thread, clock: Callable[[], float] = time.time,
        on_change: Callable[[ServiceState | None], object] | None = None,
    ) -> None:  # fmt: skip
        self._store, self._provisioner, self._regions, self._times = store, provisioner, regions, times or Times()
        self._call, self._clock, self._on_change = call, clock, on_change
        self._beginning, self._showing = asyncio.Lock(), asyncio.Lock()
        self._cancelled = asyncio.Event()
        self._begun = ""  # id of the operation that has begun with a region
        self._task: asyncio.Task[None] | None = None
        self._upkeep: asyncio.Task[None] | None = None
        self._accepting: set[asyncio.Task[Operation]] = set()
        self._abandoned: set[asyncio.Task[Any]] = set()

    # ---- for whoever manages

    async def start(self) -> None:
        """Put into rotation what runs, go on with the operation that was interrupted, and look after VIPs given up."""
        state = await self._call(self._store.state)
        await self._shown(state)
        operation = await self._call(self._store.operations.running)
        if operation is not None and state is not None:
            self._spawn(await self._rest(operation, state))
        elif state is not None:
            await self._forget_service(state)
        self._upkeep = asyncio.create_task(self._keeping_up())

    async def close(self) -> None:
        """Stop; an operation under way goes on at the next start."""
        await _ended(task for task in (*self._accepting, self._task, self._upkeep) if task is not None)
        await _ended(self._abandoned)
        self._task = self._upkeep = None
        await self._provisioner.close()

    async def save(
        self, planned: Plan, based_on: ServiceState | None, *, who: str, why: str = "", kind: str = SAVE, if_match: str | None = None
    ) -> Operation:
        """Accept a plan and carry it out from now on; give the operation. kind: DELETE and NETWORK for `removal` and `refresh`.

        Raises ServiceError as the journal's `begin`: nothing has happened then.
        """
        made = partial(self._store.operations.begin, planned, based_on, who=who, why=why, kind=kind, if_match=if_match)
        accepting = asyncio.create_task(self._accept(planned, made))
        self._accepting.add(accepting)
        accepting.add_done_callback(self._accepting.discard)
        return await asyncio.shield(accepting)  # what was accepted is carried out, also when whoever asked has gone

    async def _accept(self, planned: Plan, made: Callable[[], tuple[Operation, ServiceState]]) -> Operation:
        accepted: tuple[Operation, ServiceState] = await self._call(made)
        operation, state = accepted
        self._spawn(_Job(operation, planned, len(planned.steps), await self._newest()))
        self._tell(state)
        return operation

    def remember(self, ttl: float) -> None:
        """Let a region that leaves stay, draining, for as long as clients keep its address: `ttl` seconds, and not beyond `Times.drain`."""
        self._times = replace(self._times, remembered=min(ttl, self._times.drain))

    async def retry(self, *, who: str, why: str = "", if_match: str | None = None) -> Operation | None:
        """Try again what failed; None when nothing did. Raises ServiceError as `save`."""
        state = await self._call(self._store.state)
        planned = plan(state, state.service) if state else None
        return None if planned is None or planned.empty else await self.save(planned, state, who=who, why=why, if_match=if_match)

    async def cancel(self, id: str) -> Operation:
        """Take an operation back and give it as it stands then; one that is over stays as it is.

        Raises ServiceError ResourceNotFound for an unknown one, OperationInProgress for one that has begun with a region.
        """
        async with self._beginning:
            operation = await self._operation(id)
            if operation.status in FINAL:
                return operation
            if self._begun == id:
                raise ServiceError("OperationInProgress", "it has begun with the first region, so it cannot be cancelled any more", id)
            await self._call(self._store.operations.cancel, id)
            self._cancelled.set()
        return await self.wait(id)

    async def wait(self, id: str) -> Operation:
        """Wait until an operation is over, or this runner cannot go on with it, and give it."""
        if self._task is not None:
            await asyncio.wait({self._task})
        return await self._operation(id)

    async def _operation(self, id: str) -> Operation:
        found: Operation | None = await self._written(partial(self._store.operations.get, id))
        if found is None:
            raise ServiceError("ResourceNotFound", f"there is no operation {ascii(id)[:80]}", id)
        return found

    # ---- an operation

    def _spawn(self, job: _Job) -> None:
        self._cancelled.clear()
        self._task = asyncio.create_task(self._run(job, self._task))

    async def _rest(self, operation: Operation, state: ServiceState) -> _Job:
        """Give what is left of an operation that was interrupted."""
        over = {name for name, result in operation.results.items() if result.get("status") in ENDED}
        count = sum(len(operation.plan.get(key, ())) for key in ("creates", "updates", "deletes"))
        names = {each["name"] for key in ("creates", "updates", "deletes") for each in operation.plan.get(key, ())} - over
        made = {DELETE: removal, NETWORK: refresh}.get(operation.kind)
        rest = made(state) if made else plan(state, state.service)
        left = {key: tuple(step for step in getattr(rest, key) if step.name in names) for key in ("creates", "updates", "deletes")}
        return _Job(operation, replace(rest, **left), count, await self._newest())  # type: ignore[arg-type]

    async def _run(self, job: _Job, former: asyncio.Task[None] | None) -> None:
        if former is not None:
            await asyncio.wait({former})  # it may have its last words to write
        try:
            if await self._may_begin(job):
                await self._all(job, job.planned.creates, self._create)
                for step in sorted(job.planned.updates, key=_disables):  # a region is switched on before another one is switched off
                    await self._one(job, step, self._update)
                await self._remove(job)
                await self._finish(job)
        except ServiceError as error:  # of the store: fenced, corrupt
            logger.error("operation %s stops here and goes on at the next start: %s", job.operation.id, error)
        except Exception:
            logger.exception("operation %s stops here and goes on at the next start", job.operation.id)

    async def _may_begin(self, job: _Job) -> bool:
        """Wait in case somebody cancels; take the wish back if so, and say whether to go on."""
        id = job.operation.id
        if self._times.hold > 0 and not job.operation.results:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._cancelled.wait(), self._times.hold)
        async with self._beginning:
            now = await self._operation(id)
            if not now.cancel or now.results:
                self._begun = id
                return True
            before = await self._call(self._store.operations.before, id)
            finish = partial(self._store.operations.finish, id, "Canceled", change=partial(_taken_back, before), who=now.who)
            state = await self._written(finish)
            if before is None:
                await self._call(partial(self._store.delete, who=now.who, why="its creation was cancelled", if_match=state.etag))
            self._tell(state if before else None)
            return False

    async def _remove(self, job: _Job) -> None:
        """Do the deletes; the primary, when the service goes, after the others."""
        primary = job.planned.wanted.primary.name
        await self._all(job, [step for step in job.planned.deletes if step.name != primary], self._delete)
        await self._all(job, [step for step in job.planned.deletes if step.name == primary], self._delete)

    async def _finish(self, job: _Job) -> None:
        results = (await self._operation(job.operation.id)).results
        bad = sorted(name for name, result in results.items() if result["status"] not in ("Succeeded", "Deleted"))
        status = "Succeeded" if not bad else "Failed" if len(bad) == job.steps else "PartiallySucceeded"
        error = "; ".join(f"{name}: {results[name].get('message', '')}" for name in bad)
        state = await self._written(partial(self._store.operations.finish, job.operation.id, status, error=error))
        await self._event(f"Operation{status}", "", operation=job.operation.id, work=job.operation.kind, message=error)
        forgotten = job.operation.kind == DELETE and await self._forget_service(state)
        self._tell(None if forgotten else state)

    async def _forget_service(self, state: ServiceState) -> bool:
        """Forget a service of which nothing runs any more, once its removal has succeeded; say whether."""
        newest = await self._call(partial(self._store.operations.newest, limit=1))
        if state.states or not newest or (newest[0].kind, newest[0].status) != (DELETE, "Succeeded"):
            return False
        with suppress(ServiceError):  # somebody has saved it anew in this very moment
            return bool(await self._call(partial(self._store.delete, who=newest[0].who, why=newest[0].why, if_match=state.etag)))
        return False

    # ---- a step

    async def _all(self, job: _Job, steps: tuple[Step, ...] | list[Step], do: Callable[[_Job, Step], Coroutine[Any, Any, None]]) -> None:
        """Do steps at the same time."""
        tasks = [asyncio.create_task(self._one(job, step, do)) for step in steps]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, job: _Job, step: Step, do: Callable[[_Job, Step], Coroutine[Any, Any, None]]) -> None:
        """Do a step; a failure is the region's own."""
        try:
            await do(job, step)
        except (StepError, ProvisionError) as error:
            await self._fail(job, step, clean(str(error))[:500], begun=not isinstance(error, _Kept))

    async def _create(self, job: _Job, step: Step) -> None:
        await self._mark(job, step, "Activating")
        await self._made(job, step)

    async def _made(self, job: _Job, step: Step) -> None:
        """Provision a region that does not run, and put it into rotation once it is configured and probed."""
        granted = await self._provision(job, step)
        await self._mark(job, step, "SyncingConfig", granted)
        await self._ready(job, step, granted, self._times.sync, configured=True)
        await self._mark(job, step, "Warming")
        await self._ready(job, step, granted, self._times.probe)
        await self._done(job, step, granted)

    async def _update(self, job: _Job, step: Step) -> None:
        if _reinstates(job, step):
            await self._change(job, step, partial(_vacated, step=step, until=self._clock() + self._times.overlap), "Activating")
            await self._made(job, step)
            return
        if step.provisions:
            await self._mark(job, step, "Updating")
            granted = await self._provision(job, step)
            await self._mark(job, step, "Updating", granted)
            await self._ready(job, step, granted, self._times.sync)
            await self._done(job, step, granted)
        else:
            await self._done(job, step, Granted())
        if "disableGateway" in step.changes:
            await self._switch(step)

    async def _delete(self, job: _Job, step: Step) -> None:
        before = await self._state()
        if step.name in listed(before):
            await self._mark(job, step, "Draining")
            await self._drained(step)
        state = await self._mark(job, step, "Terminating")
        if not await self._shown(state):
            raise StepError("DNS or front door did not let go of it, so it was not stopped")
        await self._provision(job, step)
        await self._silent(step, before.of(step.name).gateway)
        await self._done(job, step, Granted())

    async def _provision(self, job: _Job, step: Step) -> Granted:
        state, limit = await self._state(), self._provisioner.limit
        try:
            granted = await self._limited(self._provisioner.carry_out(_order(job.planned, step, state)), limit)
        except TimeoutError:
            raise StepError(f"its provisioner took longer than {limit:g} s") from None
        except ProvisionError:
            raise
        except Exception as error:  # of somebody else's code: the message may hold anything
            logger.error("the provisioner failed at %s: %s", step.name, type(error).__name__)
            raise StepError(f"its provisioner failed: {type(error).__name__}") from None
        if not isinstance(granted, Granted):
            raise StepError("its provisioner did not say what it gave")
        return granted

    async def _limited(self, work: Coroutine[Any, Any, T], limit: float) -> T:
        """Wait for work; TimeoutError after `limit` seconds, whether or not it lets itself be cancelled."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task}, timeout=None if limit == float("inf") else limit)
            if not task.done():
                raise TimeoutError
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                self._abandoned.add(task)
                task.add_done_callback(self._forget_task)

    def _forget_task(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.info("what was given up has failed meanwhile: %s", type(error).__name__)

    async def _ready(self, job: _Job, step: Step, granted: Granted, limit: float, configured: bool = False) -> None:
        """Wait until a region's gateway is configured or, what is more, may enter rotation; StepError after `limit` seconds."""
        assert step.after is not None
        gateway = step.after.gateway or granted.gateway or (await self._state()).of(step.name).gateway
        disabled, started = step.after.disable_gateway, asyncio.get_running_loop().time()
        while True:
            look = await self._regions.look(step.name, gateway)
            cause, has = wrong(look, step.name, job.needed, await self._newest(), disabled)
            if not cause or (configured and has):
                return
            if asyncio.get_running_loop().time() - started >= limit:
                raise StepError(f"{cause}, after {limit:g} s")
            await asyncio.sleep(self._times.pause)

    async def _drained(self, step: Step) -> None:
        """Wait until nobody comes any more: for as long as clients remember DNS answers, and until calls under way have ended."""
        loop, times = asyncio.get_running_loop(), self._times
        started = loop.time()
        while (since := loop.time() - started) < times.drain:
            if since >= times.remembered and await self._regions.idle(step.name):
                return
            await asyncio.sleep(min(times.pause, times.drain - since))

    async def _silent(self, step: Step, gateway: str) -> None:
        """Make sure that a region which is said to be gone does not answer any more."""
        if not gateway or (step.before is not None and step.before.gateway):  # an operator's own URL may lead elsewhere by now
            return
        started = asyncio.get_running_loop().time()
        while (await self._regions.look(step.name, gateway)).region == step.name:
            if asyncio.get_running_loop().time() - started >= self._times.probe:
                raise StepError("its provisioner says that it is gone, and it answers still")
            await asyncio.sleep(self._times.pause)

    async def _switch(self, step: Step) -> None:
        """Tell the gateway that it is switched on or off. The rotation knows already: a gateway that cannot be told is no failure."""
        assert step.after is not None
        try:
            await self._limited(self._provisioner.switch(step.name, step.after.disable_gateway), self._times.show)
        except Exception as error:
            logger.warning("%s could not be told that it is switched: %s", step.name, type(error).__name__)

    # ---- what is written

    async def _mark(self, job: _Job, step: Step, phase: str, granted: Granted | None = None) -> ServiceState:
        """Write that a step has reached a phase. granted: what its provisioner gave, which is judged before anybody uses it."""
        return await self._change(job, step, partial(self._marked, job, step, phase, granted), phase)

    def _marked(self, job: _Job, step: Step, phase: str, granted: Granted | None, now: ServiceState) -> ServiceState:
        if granted is not None:
            done(now, step, job.planned, granted, self._clock())
        _keep_one(job, step, now)
        return begin(now, step, phase)

    async def _done(self, job: _Job, step: Step, granted: Granted) -> None:
        def change(state: ServiceState) -> ServiceState:
            _keep_one(job, step, state)
            return done(state, step, job.planned, granted, self._clock(), self._times.overlap)

        status = "Succeeded" if step.after else "Deleted"
        await self._change(job, step, change, status, 100)
        await self._event(f"Location{status}", step.name, operation=job.operation.id, action=step.action)

    async def _fail(self, job: _Job, step: Step, reason: str, begun: bool) -> None:
        status = "Failed" if step.after else "TerminationFailed"
        change = partial(failed, step=step, reason=reason) if begun else partial(_explained, step=step, reason=reason)
        await self._change(job, step, change, status, 100, reason)
        await self._event(f"Location{status}", step.name, operation=job.operation.id, action=step.action, message=reason)

    async def _change(
        self, job: _Job, step: Step, change: Change, status: str, percent: int | None = None, message: str = ""
    ) -> ServiceState:  # fmt: skip
        """Write one step of the operation and let the data plane follow; StepError for what the provisioner must not give."""
        share = percent if percent is not None else _PERCENT.get(status, 0)
        result = {"status": status, "percent": share, "message": message}
        whole = await self._percent(job, step.name, share)
        advance = partial(
            self._store.operations.advance, job.operation.id, change, region=step.name, entry=status, detail=message, percent=whole,
            result=result,
        )  # fmt: skip
        try:
            state: ServiceState = await self._written(advance)
        except ServiceError as error:
            if error.code == "UnplannedChange":
                raise StepError(str(error).partition(": ")[2]) from None
            raise
        await self._shown(state)
        self._tell(state)
        return state

    async def _percent(self, job: _Job, name: str, share: int) -> int:
        results = (await self._operation(job.operation.id)).results
        others: int = sum(result["percent"] for other, result in results.items() if other != name)
        return min(99, (others + share) // max(1, job.steps))

    async def _state(self) -> ServiceState:
        state: ServiceState | None = await self._written(self._store.state)
        if state is None:
            raise ServiceError("ResourceNotFound", "the service is gone while an operation runs on it")
        return state

    async def _written(self, write: Callable[[], T]) -> T:
        """Use the store, again and again for as long as it is locked or full: what is not written must not be done."""
        pause = 0.1
        while True:
            try:
                found: T = await self._call(write)
                return found
            except ServiceError as error:
                if error.code not in _PASSING:
                    raise
                logger.warning("the operation waits for the store: %s", error)
            await asyncio.sleep(pause)
            pause = min(5.0, 2 * pause)

    async def _event(self, kind: str, region: str, **detail: str) -> None:
        try:
            await self._call(partial(self._store.events.add, kind, region, **detail))
        except ServiceError as error:
            logger.warning("event %s was not written: %s", kind, error)

    async def _newest(self) -> Number | None:
        found = await self._written(partial(self._store.revisions.newest, limit=1))
        return found[0].number if found else None

    def _tell(self, state: ServiceState | None) -> None:
        if self._on_change is not None:
            try:
                self._on_change(state)
            except Exception:
                logger.exception("whoever is told of changes failed")

    async def _shown(self, state: ServiceState | None) -> bool:
        """Let DNS and front door follow the state, and say whether they do; else they follow with the next change or at the next upkeep."""
        async with self._showing:  # the latest state wins, in whatever order steps get here
            now = listed(await self._call(self._store.state)) if state is not None else {}
            try:
                await self._limited(self._regions.show(now), self._times.show)
            except Exception as error:
                logger.error("DNS or front door did not follow: %s: %s", type(error).__name__, error)
                return False
        return True

    # ---- VIPs given up

    async def _keeping_up(self) -> None:
        while True:
            await asyncio.sleep(self._times.upkeep)
            try:
                await self.upkeep()
            except Exception as error:
                logger.warning("VIPs given up are looked after later: %s", error)

    async def upkeep(self) -> None:
        """Let go of VIPs whose overlap is over, and let the data plane follow the state once more."""
        state = await self._call(self._store.state)
        if state is None:
            return
        await self._shown(state)
        now = self._clock()
        due = {name: one.previous_public_ips for name, one in state.states.items() if one.previous_public_ips and one.previous_until <= now}
        for name, given_up in due.items():
            await self._released(name, given_up)
        if due:
            change = partial(forget_previous, now=now)
            await self._call(partial(self._store.update, change, who="service", what="previous VIPs released"))

    async def _released(self, name: str, public_ips: tuple[str, ...]) -> None:
        """Let go of VIPs; their time is over also when the provisioner cannot."""
        try:
            await self._limited(self._provisioner.release(name, public_ips), self._times.show)
        except Exception as error:
            logger.warning("%s may answer on %s still: %s", name, ", ".join(public_ips), type(error).__name__)


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and wait for those that let themselves be cancelled."""
    if waiting := [*tasks]:
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=_PATIENCE)


def _explained(state: ServiceState, step: Step, reason: str) -> ServiceState:
    """Give the state with a reason beside a region that goes on as it was."""
    return state.having(step.name, replace(state.of(step.name), reason=reason))


def _keep_one(job: _Job, step: Step, state: ServiceState) -> None:
    """Refuse what would leave no region to send clients to, because others failed (R15)."""
    leaves = step.after is None or step.after.disable_gateway
    if leaves and job.operation.kind != DELETE and serving(state) == {step.name}:
        raise _Kept("it is the last region that serves, for others failed; save again once they run")


def _disables(step: Step) -> bool:
    return step.after is not None and step.after.disable_gateway


def _reinstates(job: _Job, step: Step) -> bool:
    """Say whether a region that was leaving is wanted again: it may not run any more."""
    change = job.planned.vip_change(step.name)
    return change is not None and REINSTATED in change.reasons


def _vacated(state: ServiceState, step: Step, until: float) -> ServiceState:
    """Give the state in which a region that was leaving begins anew: nothing of it can be relied on."""
    old = state.of(step.name)
    given_up = {"previous_public_ips": old.public_ips, "previous_until": until} if old.public_ips else {}
    return state.having(step.name, LocationState(provisioning_state="Activating", **given_up))  # type: ignore[arg-type]


def _taken_back(before: ServiceState | None, state: ServiceState) -> ServiceState:
    """Give the state as it was before a wish that nobody has begun with; what `progress.accept` made new goes."""
    wanted: Service = before.service if before else state.service
    kept = {name: one for name, one in state.states.items() if one.provisioning_state != "Created"}
    returned = {name: one for name, one in before.states.items() if name not in kept and name in state.states} if before else {}
    return replace(state, service=wanted, states=kept | returned)


def _order(planned: Plan, step: Step, state: ServiceState) -> Order:
    change, one, fresh = planned.vip_change(step.name), state.of(step.name), step.action == "create"
    return Order(
        work="create" if step.after is not None and one.deployed is None else step.action, service=planned.wanted.name, name=step.name,
        location=step.after or step.before, network_mode=step.network_mode,
        new_public=fresh or (change is not None and change.public), new_private=fresh or (change is not None and change.private),
        public_ips=one.public_ips, private_ips=one.private_ips,
    )  # fmt: skip
