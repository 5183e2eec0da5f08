"""The gateways' configuration: what is published, what was, and what changed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from fastapi.responses import JSONResponse, Response

from lbcore.errors import ServiceError
from lbcore.service.api import models
from lbcore.service.api.calls import FOLLOW, OPERATE, OWN, READ, Book, Call, member, polled, when
from lbcore.service.configuration import NOTHING, Tag, if_revision_of, read_number
from lbcore.service.difference import difference
from lbcore.service.revisions import Number, Revision

__all__ = ["book"]

book = Book("gatewayConfiguration")
CONFIGURATION = "/services/{name}/gatewayConfiguration"
POLLED = ("If-None-Match", "Prefer", "X-Lbcore-Sync")
CONDITIONS = ("If-Match", "If-None-Match", "X-Lbcore-Why")
Limit = Annotated[int, Query(ge=1, le=1000)]


@book("GET", CONFIGURATION, FOLLOW, {200: models.Configuration, 204: None, 304: None}, headers=POLLED)
async def get_configuration(name: str, call: Call) -> Response:
    """Give the latest revision; 204 before the first. A region's own token takes its report along (X-Lbcore-Sync)."""
    call.named(name)
    return await polled(call, call.plane.configuration, call.principal.bound)


@book("HEAD", CONFIGURATION, FOLLOW, {200: None, 204: None, 304: None}, headers=POLLED)
async def watch_configuration(name: str, call: Call) -> Response:
    """Wait for another revision than those of If-None-Match, for as long as `Prefer: wait=25` says."""
    call.named(name)
    return await polled(call, call.plane.configuration, call.principal.bound)


@book("PUT", CONFIGURATION, OPERATE, {200: models.Published}, body=models.Configuration, headers=CONDITIONS)
async def put_configuration(name: str, call: Call) -> Response:
    """Publish a configuration as the next revision, also while an operation runs. The content of the latest one makes no other."""
    call.named(name)
    expected = await _expected(call)
    return _published(await call.plane.configuration.put(call.body, who=call.who, why=call.why, if_revision=expected))


@book("GET", f"{CONFIGURATION}/revisions", READ, {200: models.Revisions})
async def list_revisions(name: str, call: Call, limit: Limit = 100) -> Response:
    """List the revisions that are kept, the newest first."""
    call.named(name)
    found = await call.read(lambda store: store.revisions.newest(limit=limit))
    return JSONResponse({"value": [_revision(each) for each in found]})


@book("GET", f"{CONFIGURATION}/revisions/{{revision}}", READ, {200: models.Configuration})
async def get_revision(name: str, revision: str, call: Call) -> Response:
    """Give the document of a revision such as 1.7."""
    call.named(name)
    return JSONResponse(await call.plane.configuration.document(_number(revision)))


@book("GET", f"{CONFIGURATION}/revisions/{{revision}}/diff/{{other}}", READ, {200: models.RevisionDiff})
async def compare_revisions(name: str, revision: str, other: str, call: Call) -> Response:
    """Say what changes from one revision to another."""
    call.named(name)
    before, after = [await call.plane.configuration.document(_number(each)) for each in (revision, other)]
    changes = [dict[str, Any](each._asdict()) for each in difference(before, after)]
    return JSONResponse({"before": str(_number(revision)), "after": str(_number(other)), "changes": changes})


@book("POST", f"{CONFIGURATION}/rollback", OPERATE, {200: models.Published}, body=models.Rollback, headers=CONDITIONS)
async def roll_back(name: str, call: Call) -> Response:
    """Publish the content of an older revision as the next one."""
    call.named(name)
    expected = await _expected(call)
    to = read_number(member(call.body, "revision", str))
    return _published(await call.plane.configuration.rollback(to, who=call.who, why=call.why, if_revision=expected))


@book("POST", f"{CONFIGURATION}/win", OWN, {200: models.Published, 204: None}, body=models.Reason, optional=True, headers=CONDITIONS[2:])
async def win(name: str, call: Call) -> Response:
    """Begin an epoch beyond all that regions report, so that they follow this primary; 204 before the first revision."""
    call.named(name)
    why = member({} if call.body is None else call.body, "why", str, "") or call.why
    tag = await call.plane.configuration.win(who=call.who, why=why)
    return Response(status_code=204) if tag is None else _published(tag)


async def _expected(call: Call) -> Number | None:
    """Give which revision must be the latest still: 428 when that is not said though it must be, 409 when another one is."""
    await call.plane.state()
    expected = if_revision_of(call.if_match, call.header("if-none-match"))
    latest = await call.read(lambda store: store.revisions.latest())
    there = latest.number if latest else NOTHING
    if expected is None and call.if_match is None and latest is not None and call.plane.options.require_if_match:
        raise ServiceError("PreconditionRequired", f'say which revision you have seen: If-Match: "{there}", or *', "If-Match")
    if expected is not None and expected != there:
        raise ServiceError("RevisionConflict", f"the latest revision is {there}, not {expected}", str(there))
    return expected


def _number(text: str) -> Number:
    """Read a revision's number in a path: what is none is not found."""
    try:
        return read_number(text)
    except ServiceError as error:
        raise ServiceError("ResourceNotFound", str(error).partition(": ")[2], "revision") from None


def _published(tag: Tag) -> Response:
    return JSONResponse({"revision": str(tag.number), "sha256": tag.sha256, "etag": str(tag)}, headers={"ETag": str(tag)})


def _revision(each: Revision) -> dict[str, Any]:
    return {"revision": str(each.number), "sha256": each.sha256, "at": when(each.at) or "", "who": each.who, "why": each.why}
