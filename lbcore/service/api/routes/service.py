"""The service, its locations and its operations."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import JSONResponse, Response

from lbcore.errors import ServiceError
from lbcore.region import canonical
from lbcore.service.api import models
from lbcore.service.api.calls import OPERATE, OWN, READ, Book, Call, accepted, conditional, member, quoted, when
from lbcore.service.body import MEASURED, location_body, rows
from lbcore.service.facts import skus
from lbcore.service.journal import Operation
from lbcore.service.plan import Plan
from lbcore.service.plane import Saved
from lbcore.service.standby import EPOCH

__all__ = ["book", "operation_body"]

book = Book("service")
SERVICE = "/services/{name}"
LOCATION = f"{SERVICE}/locations/{{location}}"
SWITCHES = ("If-Match", "X-Lbcore-Why")
NETWORK = f"{SERVICE}/applynetworkconfigurationupdates"
SAVED = {200: models.Saved, 202: models.Saved}
Body = dict[str, Any]
Limit = Annotated[int, Query(ge=1, le=1000)]
Acknowledge = Annotated[bool, Query(description="VIP changes are known of (V13)")]
Force = Annotated[bool, Query(description="also what loses capacity (V12)")]


@book("GET", "/services", READ, {200: models.Services})
async def list_services(call: Call) -> Response:
    """List the service of this management plane."""
    try:
        state = await call.plane.state()
    except ServiceError as error:
        if error.code != "ResourceNotFound":
            raise
        return JSONResponse({"value": []})
    return JSONResponse({"value": [{"id": f"/services/{state.service.name}", "name": state.service.name}]})


@book("GET", SERVICE, READ, {200: models.Service, 304: None}, headers=("If-None-Match",))
async def get_service(name: str, call: Call) -> Response:
    """Give the service with its locations and what runs of them."""
    call.named(name)
    body, etag = await call.plane.body()
    response = conditional(call, body, etag)
    response.headers[EPOCH] = str(await call.read(lambda store: store.revisions.epoch))
    return response


@book("PUT", SERVICE, OPERATE, SAVED | {201: models.Saved}, body=models.ServiceWish, headers=(*SWITCHES, "If-None-Match"))
async def put_service(name: str, call: Call, acknowledgeVipChange: Acknowledge = False, force: Force = False) -> Response:
    """Create the service, or make it as the body says. What GET shows may be sent back: that changes nothing."""
    call.named(name)
    await _refuse_when_there(call)
    saved = await call.plane.put(name, call.wish(), if_match=call.if_match, **_switches(call, acknowledgeVipChange, force))
    return _saved(call, saved, call.plane.shown(saved.state))


@book("PATCH", SERVICE, OPERATE, SAVED, body=models.ServiceWish, headers=SWITCHES)
async def patch_service(name: str, call: Call, acknowledgeVipChange: Acknowledge = False, force: Force = False) -> Response:
    """Change what the body says of the service: JSON Merge Patch, lists are replaced as a whole."""
    call.named(name)
    saved = await call.plane.patch(call.wish(), if_match=call.if_match, **_switches(call, acknowledgeVipChange, force))
    return _saved(call, saved, call.plane.shown(saved.state))


@book("DELETE", SERVICE, OWN, {202: models.Operation, 204: None}, headers=SWITCHES)
async def delete_service(name: str, call: Call) -> Response:
    """Remove the service with all its regions; 204 when there is none."""
    call.named(name)
    operation = await call.plane.delete(who=call.who, why=call.why, if_match=call.if_match)
    return Response(status_code=204) if operation is None else accepted(call, operation, operation_body(operation))


@book("POST", f"{SERVICE}/plan", READ, {200: models.Plan}, body=models.ServiceWish)
async def plan_service(name: str, call: Call, force: Force = False) -> Response:
    """Give what a PATCH with this body would do: regions, VIPs, warnings, failover times. Nothing changes."""
    call.named(name)
    planned, etag = await call.plane.plan(call.wish(), force=force or call.flag("force"))
    return JSONResponse(planned.as_dict() | {"empty": planned.empty, "etag": etag}, headers={"ETag": quoted(etag)})


# ===== locations


@book("GET", f"{SERVICE}/locations", READ, {200: models.Locations, 304: None}, headers=("If-None-Match",))
async def list_locations(name: str, call: Call) -> Response:
    """Give the Locations table: every location, the primary's first."""
    call.named(name)
    state = await call.plane.state()
    return conditional(call, {"value": [_measured(call, row) for row in rows(state)]}, state.etag)


@book("GET", LOCATION, READ, {200: models.Location, 304: None}, headers=("If-None-Match",))
async def get_location(name: str, location: str, call: Call) -> Response:
    """Give one row of the Locations table."""
    call.named(name)
    state = await call.plane.state()
    there = {row["name"]: row for row in rows(state)}
    row = there.get(canonical(location))
    if row is None:
        row = location_body(state, state.service.get(location))  # which says what is near
    return conditional(call, _measured(call, row), state.etag)


@book("PUT", LOCATION, OPERATE, SAVED, body=models.LocationWish, headers=SWITCHES)
async def put_location(
    name: str, location: str, call: Call, acknowledgeVipChange: Acknowledge = False, force: Force = False
) -> Response:  # fmt: skip
    """Save with this row alone added, or in the place of the one that is there."""
    call.named(name)
    switches = _switches(call, acknowledgeVipChange, force)
    saved = await call.plane.save_location(location, call.wish(), if_match=call.if_match, **switches)
    return _saved(call, saved, call.plane.shown(saved.state))


@book("DELETE", LOCATION, OPERATE, SAVED | {204: None}, headers=SWITCHES)
async def delete_location(
    name: str, location: str, call: Call, acknowledgeVipChange: Acknowledge = False, force: Force = False
) -> Response:  # fmt: skip
    """Save without this row; 204 when there is none."""
    call.named(name)
    switches = _switches(call, acknowledgeVipChange, force)
    saved = await call.plane.remove_location(location, if_match=call.if_match, **switches)
    if saved.operation is None and saved.plan.empty:
        return Response(status_code=204, headers={"ETag": quoted(saved.state.etag)})
    return _saved(call, saved, call.plane.shown(saved.state))


@book("POST", f"{LOCATION}/disableGateway", OPERATE, SAVED, body=models.Disable, headers=SWITCHES)
async def disable_gateway(name: str, location: str, call: Call, force: Force = False) -> Response:
    """Take a region's gateway out of rotation, or let it back in; the region keeps its configuration and its VIPs."""
    call.named(name)
    disabled = member(call.body, "disabled", bool)
    saved = await call.plane.disable_gateway(
        location, disabled, who=call.who, why=call.why, if_match=call.if_match, force=force
    )  # fmt: skip
    return _saved(call, saved, call.plane.shown(saved.state))


@book("POST", NETWORK, OPERATE, {202: models.Operation}, body=models.Network, optional=True, headers=SWITCHES)
async def apply_network(name: str, call: Call) -> Response:
    """Take up changes of the network, in one location or in all, one after another."""
    call.named(name)
    location = member({} if call.body is None else call.body, "location", str, None)
    operation = await call.plane.apply_network(location, who=call.who, why=call.why, if_match=call.if_match)
    return accepted(call, operation, operation_body(operation))


@book("GET", f"{SERVICE}/skus", READ, {200: models.Skus})
async def list_skus(name: str, call: Call) -> Response:
    """List the tiers with the units that they allow."""
    call.named(name)
    await call.plane.state()
    return JSONResponse({"value": skus(call.plane.facts)})


@book("GET", f"{SERVICE}/networkstatus", READ, {200: models.NetworkStatus})
async def list_network_status(name: str, call: Call) -> Response:
    """Say of every location what is reached from the primary."""
    call.named(name)
    return JSONResponse({"value": await call.plane.network_status()})


@book("GET", f"{LOCATION}/networkstatus", READ, {200: models.NetworkOne})
async def get_network_status(name: str, location: str, call: Call) -> Response:
    """Say of one location what is reached from the primary."""
    call.named(name)
    (found,) = await call.plane.network_status(location)
    return JSONResponse(found)


# ===== operations


@book("GET", f"{SERVICE}/operations", READ, {200: models.Operations})
async def list_operations(name: str, call: Call, limit: Limit = 100) -> Response:
    """List the operations, the newest first."""
    call.named(name)
    return JSONResponse({"value": [operation_body(each) for each in await call.plane.operations(limit)]})


@book("GET", f"{SERVICE}/operations/{{id}}", READ, {200: models.Operation, 202: models.Operation})
async def get_operation(name: str, id: str, call: Call) -> Response:
    """Give an operation: 202 while it runs, 200 when it has ended."""
    call.named(name)
    operation = await call.plane.operation(id)
    if operation.status == "InProgress":
        return JSONResponse(operation_body(operation), 202, {"Retry-After": "1"})
    return JSONResponse(operation_body(operation))


@book("POST", f"{SERVICE}/operations/{{id}}/cancel", OPERATE, {200: models.Operation})
async def cancel_operation(name: str, id: str, call: Call) -> Response:
    """Take an operation back, as long as no region was begun; 409 afterwards. One that has ended is given as it is."""
    call.named(name)
    call.note(operation=id)
    return JSONResponse(operation_body(await call.plane.cancel(id, who=call.who)))


@book("GET", f"{SERVICE}/orders", READ, {200: models.Orders})
async def list_orders(name: str, call: Call) -> Response:
    """List what waits for somebody's word, where regions are made by people (provisioner `manual`)."""
    call.named(name)
    return JSONResponse({"value": call.plane.orders()})


@book("POST", f"{SERVICE}/orders/{{location}}/{{id}}", OPERATE, {204: None}, body=models.OrderAnswer)
async def answer_order(name: str, location: str, id: int, call: Call) -> Response:
    """Say what came of an order."""
    call.named(name)
    call.plane.answer_order(location, id, call.body)
    return Response(status_code=204)


def operation_body(operation: Operation) -> Body:
    """Give an operation as REST shows it."""
    error = {"code": "OperationFailed", "message": operation.error} if operation.error else None
    return {
        "id": operation.id, "name": operation.id, "kind": operation.kind, "status": operation.status,
        "percentComplete": operation.percent, "startTime": when(operation.created) or "", "lastUpdateTime": when(operation.updated),
        "who": operation.who, "why": operation.why, "cancelRequested": operation.cancel, "plan": dict(operation.plan),
        "locations": dict(operation.results), "error": error,
    }  # fmt: skip


# ===== how


def _switches(call: Call, acknowledged: bool, force: bool) -> Body:
    """Give who saves, why and what they know of: switches of the query, or members of the body."""
    return {
        "who": call.who, "why": call.why, "force": force or call.flag("force"),
        "acknowledged": acknowledged or call.flag("acknowledgeVipChange"),
    }  # fmt: skip


def _measured(call: Call, row: Body) -> Body:
    """Give a row with how busy its gateway is: no part of what is wanted, nor of the ETag."""
    one = call.plane.capacities().get(row["name"])
    if one is None:
        return row | {MEASURED: None}
    said = {"averagePercent": one.gauge.average, "maximumPercent": one.gauge.maximum, "advisedUnits": one.advised}
    return row | {MEASURED: said}


def _saved(call: Call, saved: Saved, body: Body) -> Response:
    """Answer a Save: 201 new, 202 something is to be done, 200 nothing is."""
    shown = body | {"plan": _planned(saved.plan), "operation": saved.operation and operation_body(saved.operation)}
    if saved.operation is None:
        return JSONResponse(shown, headers={"ETag": quoted(saved.state.etag)})
    made = f"/services/{saved.state.service.name}" if saved.created else ""
    return accepted(call, saved.operation, shown, saved.state.etag, made)


def _planned(planned: Plan) -> Body:
    return planned.as_dict() | {"empty": planned.empty}


async def _refuse_when_there(call: Call) -> None:
    """Heed If-None-Match: *, by which a client says that it wants to create."""
    if (call.header("if-none-match") or "").strip() != "*":
        return
    if await call.read(lambda store: store.state()) is not None:
        raise ServiceError("PreconditionFailed", "If-None-Match does not hold: there is a service", "If-None-Match")
