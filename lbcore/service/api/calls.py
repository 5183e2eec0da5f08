"""Calls: what a route gets when nothing is wrong with the request as such: who asks, and for what.

The order in which a request is refused: syntax 400, whose token 401, what it may 403, then what the route finds: 404, 428 or 412, 409,
then 400 of fields and of how they go together. Of a long body, whose token comes first.
"""

from __future__ import annotations

import asyncio
import datetime
import inspect
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast, get_type_hints

from fastapi import Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from lbcore.errors import ServiceError
from lbcore.linelog import stamp
from lbcore.service.api.reading import LONG, content_of, required_json
from lbcore.service.codes import Violation, refusal
from lbcore.service.configuration import Configurations
from lbcore.service.facts import shown
from lbcore.service.journal import Operation
from lbcore.service.logbook import LONGEST, clean
from lbcore.service.remote import answer
from lbcore.service.tokens import Principal, Verifier

if TYPE_CHECKING:
    from lbcore.service.plane import Plane
    from lbcore.service.store import Store

__all__ = [
    "FOLLOW", "NOBODY", "NODE", "OPERATE", "OWN", "READ", "Admit", "Book", "Call", "Route", "Waiting", "accepted", "admit", "bound",
    "conditional", "known", "member", "polled", "quoted", "when",
]  # fmt: skip

API_VERSION = "2026-11-01"
READ, OPERATE, OWN, NODE = ("reader",), ("operator",), ("owner",), ("node",)
FOLLOW = (*NODE, *READ)  # what a region needs to serve, people may see as well
NOBODY: tuple[str, ...] = ()  # needs no token
ANYBODY = Principal("", "", "")
MOST_WAITING = 32  # requests of one token that wait for news
RETRY = 2  # seconds after which an operation may have ended
Model = type[BaseModel] | type[str] | None  # of an answer: JSON, text, nothing
Admit = Callable[[Request], Awaitable["Call"]]
T = TypeVar("T")
Endpoint = Callable[..., Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is admitted. body: its JSON value, None = none came or none is read;  why: for the history"""

    request: Request = field(repr=False)
    plane: Plane = field(repr=False)
    principal: Principal
    body: Any = None
    why: str = ""

    @property
    def who(self) -> str:
        """Give what history calls them."""
        return self.principal.who

    def named(self, name: str) -> None:
        """Refuse a path that names another service than this one."""
        self.plane.named(name)

    @property
    def if_match(self) -> str | None:
        """Give the If-Match header."""
        return self.header("if-match")

    def header(self, name: str) -> str | None:
        """Give a header's value, of several all in one."""
        values = self.request.headers.getlist(name)
        return ", ".join(values) if values else None

    def flag(self, name: str) -> bool:
        """Give a switch that is a member of the body."""
        return isinstance(self.body, dict) and bool(member(self.body, name, bool, False, alone=False))

    async def read(self, look: Callable[[Store], T]) -> T:
        """Give what the store says."""
        return await asyncio.to_thread(look, self.plane.store)

    def wish(self) -> Any:
        """Give the body without the switches that are no property of a service."""
        return {key: value for key, value in self.body.items() if key not in SWITCHES} if isinstance(self.body, dict) else self.body

    def note(self, **known: object) -> None:
        """Say more for the audit log."""
        self.request.state.known.update(known)


SWITCHES = ("acknowledgeVipChange", "force")


class Waiting:
    """How many requests of each token wait for news."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @contextmanager
    def one(self, id: str) -> Iterator[None]:
        """Count one for the time of a `with`; ServiceError TooManyRequests when there are too many."""
        if self._counts[id] >= MOST_WAITING:
            raise ServiceError("TooManyRequests", f"{MOST_WAITING} requests with this token wait for news already")
        self._counts[id] += 1
        try:
            yield
        finally:
            self._counts[id] -= 1
            if not self._counts[id]:
                del self._counts[id]


# ===== routes


@dataclass(frozen=True, slots=True)
class Route:
    """One route before it is part of an application. roles: who may, NOBODY = everybody;  answers: status -> model, None = no body

    body: model of what is sent, None = nothing is;  optional: whether it may be left out;  headers: of the request, that it heeds
    """

    method: str
    path: str
    roles: tuple[str, ...]
    endpoint: Endpoint
    answers: Mapping[int, Model]
    body: type[BaseModel] | None = None
    optional: bool = False
    headers: tuple[str, ...] = ()
    tag: str = ""


class Book:
    """The routes of one subject: `@book("GET", "/services", READ, {200: Services})` adds one, with what documents it.

    The endpoint's `call` is the admitted Call; its other parameters are those of path and query.
    """

    def __init__(self, tag: str) -> None:
        self.tag, self.routes = tag, list[Route]()

    def __call__(
        self, method: str, path: str, roles: tuple[str, ...], answers: Mapping[int, Model], *,
        body: type[BaseModel] | None = None, optional: bool = False, headers: tuple[str, ...] = (),
    ) -> Callable[[Endpoint], Endpoint]:  # fmt: skip
        """Give the decorator that adds a route."""

        def add(endpoint: Endpoint) -> Endpoint:
            self.routes.append(Route(method, path, roles, endpoint, answers, body, optional, headers, self.tag))
            return endpoint

        return add


def bound(route: Route) -> Endpoint:
    """Give a route's endpoint as FastAPI wants it: its `call` comes from `admit`."""
    hints = get_type_hints(route.endpoint, include_extras=True)
    admitted = admit(route.roles, body=route.body is not None, optional=route.optional)
    hints["call"] = Annotated[Call, Depends(admitted)]
    signature = inspect.signature(route.endpoint)
    parameters = [each.replace(annotation=hints[each.name]) for each in signature.parameters.values()]

    async def endpoint(**given: Any) -> Response:
        return await route.endpoint(**given)

    endpoint.__name__, endpoint.__doc__ = route.endpoint.__name__, route.endpoint.__doc__
    endpoint.__signature__ = signature.replace(parameters=parameters, return_annotation=Response)  # type: ignore[attr-defined]
    return endpoint


def admit(roles: tuple[str, ...], *, body: bool = False, optional: bool = False) -> Admit:
    """Give the dependency that makes a Call of a request, or refuses it. body: whether one is read, and must be there unless `optional`"""

    async def admitted(request: Request) -> Call:
        why = clean(_text(request.headers.get("x-lbcore-why", "")))[:LONGEST]
        _refuse_version(request)
        early = await authenticated(request) if roles and body and _long(request) else None  # nobody unknown has us read much
        sent = None
        if body and not (optional and not await content_of(request)):
            sent = await required_json(request)
            if sent is None:
                raise ServiceError("InvalidRequest", "a body is no null", "body")
        if not roles:
            return Call(request, request.app.state.plane, ANYBODY)
        principal = early or await authenticated(request)
        request.state.known.update(who=principal.who, role=principal.role, why=why)
        if not any(principal.may(role) for role in roles):
            raise ServiceError("AuthorizationFailed", f"this needs a token of role {' or '.join(roles)}; yours is {principal.role}")
        return Call(request, request.app.state.plane, principal, sent, why)

    return admitted


async def authenticated(request: Request) -> Principal:
    """Give whose token came in Authorization; ServiceError AuthenticationFailed, TooManyAttempts."""
    given = request.headers.getlist("authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() != "bearer":
        raise ServiceError("AuthenticationFailed", "a token is needed: Authorization: Bearer lbcore_…; `lbcore token create` makes one")
    verifier = cast(Verifier, request.app.state.verifier)
    address = request.client.host if request.client else ""
    return await asyncio.to_thread(verifier.authenticate, token.strip(), address)


def _long(request: Request) -> bool:
    if "transfer-encoding" in request.headers:
        return True
    length = request.headers.get("content-length", "0")
    return not length.isdecimal() or int(length[:20]) > LONG


def _refuse_version(request: Request) -> None:
    given = request.query_params.getlist("api-version")
    if any(version != API_VERSION for version in given):
        raise ServiceError("InvalidRequest", f"api-version is {API_VERSION}, or left out; got {shown(given[0])}", "api-version")


def _text(header: str) -> str:
    """Read a header that may be UTF-8, which the server has read as Latin-1."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


_MISSING: Any = object()


def member(body: Any, name: str, kind: type[T], default: Any = _MISSING, *, alone: bool = True) -> T:
    """Give one member of a body; ServiceError InvalidProperty when it is missing or no `kind`, UnknownProperty for others beside it."""
    if not isinstance(body, dict):
        raise ServiceError("InvalidProperty", f"expected an object, got {shown(body)}", "")
    if alone:
        known(body, name)
    given = body.get(name)
    if given is None and default is not _MISSING:
        return cast(T, default)
    fits = (int, float) if kind is float else kind
    if not isinstance(given, fits) or kind is not bool and isinstance(given, bool):
        words = {bool: "true or false", str: "a text"}.get(kind, "a number")
        raise ServiceError("InvalidProperty", f"expected {words}, got {shown(given)}", name)
    return cast(T, given)


def known(body: Mapping[str, Any], *names: str) -> None:
    """Refuse members that are none of these; ServiceError UnknownProperty with all of them."""
    found = [Violation("UnknownProperty", f"no such property: {shown(key)}", clean(key)) for key in body if key not in names]
    if found:
        raise refusal(found)


# ===== answers


def quoted(etag: str) -> str:
    """Give an ETag as a header has it."""
    return f'"{etag}"'


def conditional(call: Call, body: Any, etag: str) -> Response:
    """Answer with a resource, or 304 to who has it."""
    known = call.header("if-none-match")
    tags = {re.sub(r"^W/", "", tag.strip()) for tag in (known or "").split(",")}
    headers = {"ETag": quoted(etag), "Cache-Control": "no-cache"}
    if known and (quoted(etag) in tags or "*" in tags):
        return Response(status_code=304, headers=headers)
    return JSONResponse(body, headers=headers)


async def polled(call: Call, source: Configurations, region: str = "") -> Response:
    """Answer who wants to know what is the latest, and may wait for it. region: that its token is bound to, "" = none"""
    headers = {name: call.header(name) or "" for name in call.request.headers}
    with ExitStack() as held:
        if "wait=" in headers.get("prefer", ""):
            held.enter_context(cast(Waiting, call.request.app.state.waiting).one(call.principal.id))
        status, told, content = await answer(source, call.request.method, headers, region)
    return Response(content, status, told)


def accepted(call: Call, operation: Operation, body: Any, etag: str = "", made: str = "") -> JSONResponse:
    """Answer that an operation was begun: where to follow it, and when to look. made: path of what is made by it, 201 instead of 202"""
    call.note(operation=operation.id)
    url = f"/services/{call.plane.name}/operations/{operation.id}"
    headers = {"Location": made or url, "Operation-Location": url, "Retry-After": str(RETRY)} | ({"ETag": quoted(etag)} if etag else {})
    return JSONResponse(body, 201 if made else 202, headers)


def when(seconds: float | None) -> str | None:
    """Give wall-clock seconds as RFC 3339, None for never."""
    if seconds is None:
        return None
    try:
        return stamp(datetime.datetime.fromtimestamp(seconds, datetime.UTC))
    except (ValueError, OverflowError, OSError):  # a clock that was set to nonsense
        return None
