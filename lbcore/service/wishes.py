"""Wishes: what an operator wants, from a body through rules and plan to an operation, or to a refusal with every violation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lbcore.errors import ServiceError
from lbcore.region import canonical
from lbcore.service.body import accepted, patched
from lbcore.service.codes import Violation, refusal
from lbcore.service.facts import AT, TOP, Facts
from lbcore.service.journal import Operation
from lbcore.service.model import Service, ServiceState
from lbcore.service.operations import DELETE, NETWORK, Runner
from lbcore.service.plan import Plan, admit, plan, refresh, removal
from lbcore.service.profile import Profile
from lbcore.service.rules import validate
from lbcore.service.stored import Stored

__all__ = ["Saved", "Wishes"]

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Saved:
    """What came of a wish. operation: None = there was nothing to deploy;  created: whether there was no service before"""

    state: ServiceState
    plan: Plan
    operation: Operation | None
    created: bool = False


class Wishes:
    """Take what is wanted.

    facts: what the rules know of the world;  shown: gives what GET shows of a state
    moved: is told the state that was written where nothing had to be deployed
    """

    def __init__(
        self, stored: Stored, profile: Profile, runner: Runner, *, facts: Facts, shown: Callable[[ServiceState], Body],
        moved: Callable[[ServiceState], object],
    ) -> None:  # fmt: skip
        self._stored, self._profile, self._runner = stored, profile, runner
        self._facts, self._shown, self._moved = facts, shown, moved

    async def put(
        self, name: str, body: object, *, who: str, why: str = "", if_match: str | None = None, force: bool = False,
        acknowledged: bool = False,
    ) -> Saved:  # fmt: skip
        """Make the service as a body says, also when there is none yet; ServiceError with every violation, nothing has happened then.

        if_match: the If-Match header;  force: also what loses capacity (V12);  acknowledged: VIP changes are known of (V13)
        Refusals in order: 404, fenced, 428, 412, 409 while an operation runs, what is wrong with the body, what it would do.
        """
        self._stored.named(name)
        state = await self._stored.found()
        await self._admit(state, if_match)
        wanted = accepted(body, self._stored.name, state, self._facts, shown_now=self._shown(state) if state else None, force=force)
        return await self.save(state, wanted, who, why, if_match, acknowledged)

    async def patch(
        self, body: object, *, who: str, why: str = "", if_match: str | None = None, force: bool = False, acknowledged: bool = False
    ) -> Saved:
        """Change what a body says and leave the rest; lists are replaced as a whole. Refusals as `put`."""
        state = await self._stored.state()
        await self._admit(state, if_match)
        return await self.save(state, self._patched(state, body, force), who, why, if_match, acknowledged)

    async def plan(self, body: object, *, force: bool = False) -> tuple[Plan, str]:
        """Give what a PATCH would do, and the ETag of the state it starts from; nothing changes. Also while an operation runs."""
        state = await self._stored.state()
        return await self._planned(state, self._patched(state, body, force)), state.etag

    async def save_location(
        self, name: str, row: object, *, who: str, why: str = "", if_match: str | None = None, force: bool = False,
        acknowledged: bool = False,
    ) -> Saved:  # fmt: skip
        """Make one location as its row says, in the place of the one of its name or as another one. Refusals as `put`."""
        state = await self._stored.state()
        await self._admit(state, if_match)
        body = _with_row(self._shown(state), state.service, name, row)
        wanted = accepted(body, self._stored.name, state, self._facts, shown_now=self._shown(state), force=force)
        return await self.save(state, wanted, who, why, if_match, acknowledged)

    async def remove_location(
        self, name: str, *, who: str, why: str = "", if_match: str | None = None, force: bool = False, acknowledged: bool = False
    ) -> Saved:
        """Remove a location; of one that is not there the plan is empty (V19). Refusals as `put`, CannotRemovePrimary."""
        state = await self._stored.state()
        await self._admit(state, if_match)
        wanted = state.service.without(name)
        found = [*validate(wanted, state.service, self._facts, force=force)]
        if found:
            raise refusal(found)
        return await self.save(state, wanted, who, why, if_match, acknowledged)

    async def disable_gateway(
        self, name: str, disabled: bool, *, who: str, why: str = "", if_match: str | None = None, force: bool = False
    ) -> Saved:
        """Take a region's gateway out of rotation, or let it back in (R38). Refusals as `put`."""
        state = await self._stored.state()
        await self._admit(state, if_match)
        wanted = state.service.put(replace(state.service.get(name), disable_gateway=disabled))
        found = [*validate(wanted, state.service, self._facts, force=force)]
        if found:
            raise refusal(found)
        return await self.save(state, wanted, who, why, if_match, True)

    async def apply_network(self, name: str | None = None, *, who: str, why: str = "", if_match: str | None = None) -> Operation:
        """Take up changes made outside, in the network, in one region or in all one after another (R60)."""
        state = await self._stored.state()
        await self._admit(state, if_match, writes=False)
        return await self._runner.save(refresh(state, name), state, who=who, why=why, kind=NETWORK, if_match=if_match)

    async def delete(self, *, who: str, why: str = "", if_match: str | None = None) -> Operation | None:
        """Remove the service with all its regions; None when there is none."""
        state = await self._stored.found()
        await self._admit(state, if_match)
        if state is None:
            return None
        return await self._runner.save(removal(state), state, who=who, why=why, kind=DELETE, if_match=if_match)

    async def _admit(self, state: ServiceState | None, if_match: str | None, *, writes: bool = True) -> None:
        await self._stored.refuse_fenced()
        self._stored.refuse_unseen(state.etag if state else "", if_match, writes=writes)
        await self._stored.refuse_busy()

    def _patched(self, state: ServiceState, body: object, force: bool) -> Service:
        if not isinstance(body, Mapping):
            raise refusal([Violation("InvalidProperty", "expected an object", "")])
        now = self._shown(state)
        return accepted(patched(now, body), self._stored.name, state, self._facts, shown_now=now, force=force)

    async def _planned(self, state: ServiceState | None, wanted: Service) -> Plan:
        manager = await self._profile.of(wanted, fresh=state is None)
        return plan(state, wanted, monitor=manager.monitor, ttl=manager.ttl)

    async def save(
        self, state: ServiceState | None, wanted: Service, who: str, why: str, if_match: str | None, acknowledged: bool
    ) -> Saved:
        """Write what is wanted, or begin to deploy it. state: the one that it was made from; refusals of what it would do, as `admit`."""
        planned = await self._planned(state, wanted)
        if state is not None and planned.empty:
            return Saved(state, planned, None)
        admit(planned, acknowledged=acknowledged)
        if state is not None and not planned.steps:
            change = partial(_rewished, before=state, wanted=wanted)
            written: ServiceState = await self._stored.call(
                partial(self._stored.store.update, change, who=who, what="save", why=why, if_match=if_match)
            )  # fmt: skip
            self._moved(written)
            return Saved(written, planned, None)
        operation = await self._runner.save(planned, state, who=who, why=why, if_match=if_match)
        return Saved(await self._stored.state(), planned, operation, state is None)


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


def _rewished(now: ServiceState, before: ServiceState, wanted: Service) -> ServiceState:
    if now.etag != before.etag:
        raise ServiceError("PreconditionFailed", "the service was changed while this was planned; read it and plan anew", "etag")
    return replace(now, service=wanted)
