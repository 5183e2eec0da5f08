"""Document: the OpenAPI description of the routes, from what they say of themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, TypeGuard

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import lbcore
from lbcore.service.api.calls import API_VERSION, Route
from lbcore.service.api.models import ErrorAnswer

__all__ = ["openapi_of"]

Table = dict[str, Any]

ERRORS = {
    400: "The request makes no sense, or not here: every reason is in `details`.",
    401: "No token, or one that is not known or has ended.",
    403: "A token whose role may not, or an address that is not served.",
    404: "There is no such thing.",
    409: "It goes against what there is, or what is under way.",
    412: "If-Match does not hold: somebody else was faster.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    421: "This is not the primary; `target` is.",
    428: "If-Match is needed.",
    429: "Too many wrong tokens, or too many requests that wait.",
    500: "A bug of lbcore.",
    503: "The store, or every region, is not there now.",
    507: "The store's disk is full.",
}
READING = (400, 401, 403, 404, 421, 429, 500, 503)
WRITING = (*READING, 409, 412, 413, 415, 428, 507)
OPEN = (403, 421, 500, 503)
HEADERS = {
    "If-Match": "The ETag of the state that this change is meant for, or *.",
    "If-None-Match": "ETags that are known already.",
    "Prefer": "wait=25: hold the answer for so many seconds until there is news (RFC 7240).",
    "X-Lbcore-Why": "Why, for the history.",
    "X-Lbcore-Sync": "What a region's gateway says of its configuration.",
}
TOLD = {
    "ETag": "Which state this is.",
    "Location": "The operation, or what was made.",
    "Operation-Location": "The operation.",
    "Retry-After": "Seconds after which to look again.",
}


def openapi_of(app: FastAPI, routes: Iterable[Route]) -> Table:
    """Give the document."""
    routes = [*routes]
    named = {model.__name__: model for route in routes for model in (*route.answers.values(), route.body, ErrorAnswer) if _is_model(model)}
    wanted: list[tuple[type[BaseModel], Literal["validation"]]] = [(named[name], "validation") for name in sorted(named)]
    _, schemas = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    paths: dict[str, Table] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, app)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lbcore management API", "version": lbcore.__version__,
            "description": "One service over many regions. Every error has the shape of ErrorAnswer, with all violations in details.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "lbcore_<id>_<secret>: lbcore token create"}},
        },
    }  # fmt: skip


def _operation(route: Route, app: FastAPI) -> Table:
    summary, _, rest = (route.endpoint.__doc__ or "").strip().partition(". ")
    made: Table = {
        "operationId": route.endpoint.__name__, "summary": summary.rstrip("."), "tags": [route.tag], "x-roles": [*route.roles],
        "parameters": [*_parameters(route, app)], "responses": dict(_responses(route)), "security": [{"token": []}] if route.roles else [],
    }  # fmt: skip
    if rest:
        made["description"] = " ".join(rest.split())
    if route.body is not None:
        made["requestBody"] = {"required": not route.optional, "content": {"application/json": {"schema": _schema(route.body)}}}
    return made


def _parameters(route: Route, app: FastAPI) -> Iterator[Table]:
    for name in re.findall(r"\{(\w+)\}", route.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    if route.roles:
        yield {"name": "api-version", "in": "query", "required": False, "schema": {"const": API_VERSION}}
    yield from _query(route, app)
    for name in route.headers:
        yield {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": HEADERS[name]}


def _query(route: Route, app: FastAPI) -> Iterator[Table]:
    """Take over what FastAPI knows of the query."""
    mine = [each for each in app.routes if isinstance(each, APIRoute) and each.path == route.path and each.methods == {route.method}]
    found = get_openapi(title="", version="", routes=mine)["paths"][route.path][route.method.lower()].get("parameters", ())
    yield from (each for each in found if each["in"] == "query")


def _responses(route: Route) -> Iterator[tuple[str, Table]]:
    told = {name: {"schema": {"type": "string"}, "description": text} for name, text in TOLD.items()}
    for status, model in sorted(route.answers.items()):
        made: Table = {"description": (model.__doc__ or "").strip() if _is_model(model) else "No body.", "headers": told}
        if _is_model(model):
            made["content"] = {"application/json": {"schema": _schema(model)}}
        elif model is not None:
            made |= {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
        yield str(status), made
    for status in WRITING if route.method not in ("GET", "HEAD") else READING if route.roles else OPEN:
        content = {} if route.method == "HEAD" else {"content": {"application/json": {"schema": _schema(ErrorAnswer)}}}
        yield str(status), {"description": ERRORS[status], **content}


def _schema(model: Any) -> Table:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _is_model(model: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(model, type) and issubclass(model, BaseModel)
