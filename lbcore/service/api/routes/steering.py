"""Steering: the Traffic Manager's profile, who is listed, what edges see, and why a client goes where it goes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import JSONResponse, Response

from lbcore.region import Region
from lbcore.service.api import models
from lbcore.service.api.calls import FOLLOW, NODE, OPERATE, READ, Book, Call, conditional, polled, quoted

__all__ = ["book"]

book = Book("steering")
SERVICE = "/services/{name}"
PROFILE = f"{SERVICE}/trafficManager"
POLLED = ("If-None-Match", "Prefer")
Client = Annotated[str, Query(description="an IP address; left out: the primary itself", max_length=100)]


@book("GET", PROFILE, READ, {200: models.TrafficManager, 304: None}, headers=("If-None-Match",))
async def get_traffic_manager(name: str, call: Call) -> Response:
    """Give the profile: every setting with its default, its status, and the failover times that the settings imply."""
    call.named(name)
    body, etag = await call.plane.traffic_manager()
    return conditional(call, _profile(call, body, etag), etag)


@book("PATCH", PROFILE, OPERATE, {200: models.TrafficManager}, body=models.TrafficManagerWish, headers=("If-Match", "X-Lbcore-Why"))
async def patch_traffic_manager(name: str, call: Call) -> Response:
    """Change what the body says of the profile: JSON Merge Patch. Nothing is deployed, so an operation is no hindrance."""
    call.named(name)
    body, etag = await call.plane.set_traffic_manager(call.body, who=call.who, why=call.why, if_match=call.if_match)
    return JSONResponse(_profile(call, body, etag), headers={"ETag": quoted(etag)})


@book("POST", f"{PROFILE}/failover", READ, {200: models.Failover}, body=models.TrafficManagerWish, optional=True)
async def get_failover(name: str, call: Call) -> Response:
    """Give the failover times that the profile would have with this patch. Nothing changes."""
    call.named(name)
    return JSONResponse({"failover": (await call.plane.failover_times(call.body)).as_dict()})


@book("GET", f"{PROFILE}/endpoints", READ, {200: models.Endpoints})
async def list_endpoints(name: str, call: Call) -> Response:
    """List the endpoints with their monitor status; none in network mode Internal."""
    call.named(name)
    await call.plane.state()
    plane = call.plane
    shown = {"profileMonitorStatus": plane.profile_status(), "failOpen": plane.lb.fail_open, "value": plane.endpoints()}
    return JSONResponse(shown)


def _profile(call: Call, body: dict[str, Any], etag: str) -> dict[str, Any]:
    properties = body["properties"] | {"profileMonitorStatus": call.plane.profile_status()}
    return body | {"etag": etag, "properties": properties}


# ===== decisions


@book("GET", f"{SERVICE}/route", READ, {200: models.Routed})
async def route(name: str, call: Call, client: Client = "") -> Response:
    """Say where a client would be sent now."""
    call.named(name)
    await call.plane.state()
    return JSONResponse(_region(call.plane.route(client or None)))


@book("GET", f"{SERVICE}/rank", READ, {200: models.Ranked})
async def rank(name: str, call: Call, client: Client = "") -> Response:
    """Give the regions that may serve a client, the closest first."""
    call.named(name)
    await call.plane.state()
    return JSONResponse({"value": [_region(each) for each in call.plane.rank(client or None)]})


@book("GET", f"{SERVICE}/explain", READ, {200: models.Explanation})
async def explain(name: str, call: Call, client: Client = "") -> Response:
    """Say why a client would be sent where it would be: estimates, where they are from, what is up."""
    call.named(name)
    await call.plane.state()
    return JSONResponse(call.plane.explain(client or None).as_dict())


def _region(each: Region) -> dict[str, Any]:
    return {
        "region": each.name, "displayName": each.display_name, "gateway": each.gateway, "addresses": [*each.addresses], "units": each.units,
    }  # fmt: skip


# ===== edges


@book("GET", f"{SERVICE}/rotation", FOLLOW, {200: models.Rotation, 204: None, 304: None}, headers=POLLED)
async def get_rotation(name: str, call: Call) -> Response:
    """Give who is listed, for edges; 204 without a service. Held with `Prefer: wait=25` while it is one of If-None-Match."""
    call.named(name)
    return await polled(call, call.plane.rotations)


@book("HEAD", f"{SERVICE}/rotation", FOLLOW, {200: None, 204: None, 304: None}, headers=POLLED)
async def watch_rotation(name: str, call: Call) -> Response:
    """Wait for another rotation than those of If-None-Match, for as long as `Prefer: wait=25` says."""
    call.named(name)
    return await polled(call, call.plane.rotations)


@book("POST", f"{SERVICE}/reports", NODE, {204: None}, body=models.Report)
async def post_report(name: str, call: Call) -> Response:
    """Take what an edge sees of the regions; its token says which edge it is."""
    call.named(name)
    await call.plane.report(call.principal.bound, call.body)
    return Response(status_code=204)


@book("GET", f"{SERVICE}/reports", READ, {200: models.Reports})
async def list_reports(name: str, call: Call) -> Response:
    """Give the last report of each edge, and what each region says of its configuration."""
    call.named(name)
    plane = call.plane
    reports = plane.configuration.reports
    synced = await plane.configuration.in_sync(reports)
    sync = {
        region: {
            "state": one.state, "lag": one.lag, "held": str(one.held.number) if one.held else None, "refused": one.refused or None,
            "latest": synced[region],
        }
        for region, one in reports.items()
    }  # fmt: skip
    return JSONResponse({"value": [each.as_dict(plane.now) for each in plane.edges()], "configuration": sync})
