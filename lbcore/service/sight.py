"""Sight: what is seen of the regions: by edges, who report it, and by the primary's own probes; and what follows for a client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from lbcore.decision import Decision
from lbcore.errors import NoRegionError, ServiceError
from lbcore.region import Region, canonical
from lbcore.service.model import ServiceState
from lbcore.service.primary import Primary
from lbcore.service.reports import EdgeReport, Edges, read_report
from lbcore.service.rotation import Look, StatusPages
from lbcore.service.rotations import Rotations
from lbcore.service.statuses import all_regions, endpoint_status, profile_status, switched_off
from lbcore.service.stored import Stored
from lbcore.service.watching import Watching

__all__ = ["Sight"]

LEARN = 4.0  # seconds between two takings over of what edges learned
SEEN_BY_EDGE = "RegionStatusChanged"
Body = dict[str, Any]


class Sight:
    """Take reports, and say how regions are.

    rotations: what is listed;  edges: the reports;  watching: the primary's own look;  pages: looks at gateways' status pages
    configuration: what gateways follow;  clock: wall-clock seconds;  monotonic: seconds
    """

    def __init__(
        self, stored: Stored, rotations: Rotations, edges: Edges, watching: Watching, *, pages: StatusPages, configuration: Primary,
        clock: Callable[[], float], monotonic: Callable[[], float],
    ) -> None:  # fmt: skip
        self._stored, self._rotations, self._edges, self._watching = stored, rotations, edges, watching
        self._pages, self._configuration, self._clock, self._monotonic = pages, configuration, clock, monotonic
        self._learned_at = float("-inf")

    async def report(self, edge: str, body: object) -> None:
        """Take what an edge says. edge: to which its token is bound, "" = any; ServiceError with every violation."""
        report = read_report(edge, body, self._monotonic())
        known = set(self._rotations.names())
        report = replace(report, regions={name: one for name, one in report.regions.items() if name in known})
        before = self._edges.note(replace(report, learned=b"", events=()))
        for event in report.events[: self._edges.may_tell(report.edge, len(report.events))]:
            if event.region in known:
                detail: Body = {"edge": report.edge, "before": event.before, "after": event.after, "cause": event.cause, "seen": event.at}
                if event.kind != SEEN_BY_EDGE:  # no edge writes what operations and the primary itself do
                    detail["kind"] = event.kind
                await self._stored.event(SEEN_BY_EDGE if event.kind == SEEN_BY_EDGE else "EdgeEvent", event.region, **detail)
        await self._doubt(report, before)
        now = self._monotonic()
        if report.learned and now - self._learned_at >= LEARN:
            self._learned_at = now
            await self._stored.call(self._watching.learn, report.learned)

    async def _doubt(self, report: EdgeReport, before: EdgeReport | None) -> None:
        """Say that an edge follows a rotation which this primary has not made: another primary's, or a lie."""
        own = self._rotations.number
        if report.rotation is None or own is None or report.rotation <= own:
            return
        if before is None or before.rotation != report.rotation:
            await self._stored.event("EdgeAhead", edge=report.edge, rotation=str(report.rotation), own=str(own))

    def edges(self) -> list[EdgeReport]:
        """Give the last report of each edge, the newest first; `received` is `monotonic` seconds."""
        return self._edges.all

    def statuses(self) -> dict[str, str]:
        """Give the monitor status (§2.2) of every region that is wanted, or not gone yet, by name."""
        state = self._rotations.known.state
        if state is None:
            return {}
        profile = self._rotations.properties
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
        state, profile = self._rotations.known.state, self._rotations.properties
        if state is None or state.service.network_mode == "Internal":
            return []
        told = {canonical(one["region"]): one for one in profile.get("endpoints", ()) if one.get("region")}
        statuses, regions = self.statuses(), all_regions(state)
        names = [name for name in regions if not told or name in told or any(profile.get("profiles", ()))]
        return [self._endpoint(state, name, told.get(name, {}), statuses[name]) for name in names]

    def _endpoint(self, state: ServiceState, name: str, told: Mapping[str, Any], status: str) -> Body:
        each, runs = all_regions(state)[name], state.of(name)
        off = name in switched_off(self._rotations.properties)
        return {
            "name": name, "displayName": each.display_name, "target": f"{state.service.regional_label(name)}.regional."
            f"{state.service.domain}", "type": "AzureEndpoints", "endpointStatus": "Disabled" if off else "Enabled",
            "endpointMonitorStatus": status, "alwaysServe": told.get("alwaysServe") or "Disabled", "weight": told.get("weight", 1),
            "priority": told.get("priority"), "endpointLocation": each.display_name, "disableGateway": each.disable_gateway,
            "addresses": [*runs.public_ips], "units": each.units, "cause": self.cause(name) if status == "Degraded" else "",
        }  # fmt: skip

    def profile_status(self) -> str:
        """Give the profile's monitor status."""
        state = self._rotations.known.state
        if state is None or state.service.network_mode == "Internal":
            return "Inactive"
        return profile_status(self._rotations.properties, self.statuses().values())

    # ===== decisions

    def explain(self, client: str | None = None) -> Decision:
        """Give why a client would go where it would go; ServiceError NoRegionAvailable, InvalidProperty for what is no address."""
        decision: Decision = _asked(partial(self._watching.lb.explain, client))
        if decision.region is None:
            raise ServiceError("NoRegionAvailable", "no region is enabled and not draining", None)
        return decision

    def rank(self, client: str | None = None) -> list[Region]:
        """Give the regions that may serve a client, the closest first; refusals as `explain`."""
        found: list[Region] = _asked(partial(self._watching.lb.rank, client))
        if not found:
            raise ServiceError("NoRegionAvailable", "no region is enabled and not draining", None)
        return found

    def route(self, client: str | None = None) -> Region:
        """Give where a client would go; refusals as `explain`."""
        found: Region = _asked(partial(self._watching.lb.pick, client))
        return found

    # ===== gateways

    async def network_status(self, name: str | None = None) -> list[Body]:
        """Give what is reached from the primary, of one location or of all: gateways, and their configuration. ResourceNotFound."""
        state = await self._stored.state()
        wanted = [state.service.get(name)] if name is not None else [*state.service.locations]
        names = [each.name for each in wanted]
        looks = await asyncio.gather(*(self._looked(state, each) for each in names))
        synced, now = await self._configuration.in_sync(names), self._clock()
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


def _asked(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except NoRegionError:
        raise ServiceError("NoRegionAvailable", "no region is enabled and not draining", None) from None
    except (ValueError, TypeError) as error:
        raise ServiceError("InvalidProperty", f"expected an address of a client: {ascii(str(error))[:200]}", "client") from None


def _connectivity(kind: str, what: str, error: str, now: float) -> Body:
    return {
        "name": what, "resourceType": kind, "status": "failure" if error else "success", "error": error, "lastUpdated": now,
        "isOptional": kind != "gateway",
    }  # fmt: skip
