"""App: the management API as one ASGI application, and what a node answers that is not the primary.

    application(plane, verifier)    everything under /services, /metrics, /healthz, /openapi.json; the portal mounts itself beside
    secondary(primary, reachable)   421 with the primary's URL, or 503 while it is down; 404 for pages
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from lbcore.errors import ConfigError, NoRegionError, NotPrimaryError, ServiceError
from lbcore.service.api.audit import Audit, logged
from lbcore.service.api.calls import Book, Route, Waiting, bound
from lbcore.service.api.document import openapi_of
from lbcore.service.api.guard import Guard, loopback_name
from lbcore.service.api.metrics import Requests
from lbcore.service.api.refusing import as_service_error, refused
from lbcore.service.api.routes import configuration, owner, public, service, steering
from lbcore.service.codes import Violation, refusal
from lbcore.service.facts import shown
from lbcore.service.tokens import Verifier

if TYPE_CHECKING:
    from lbcore.service.plane import Plane

__all__ = ["BOOKS", "Failure", "application", "secondary"]

BOOKS: tuple[Book, ...] = (service.book, configuration.book, steering.book, owner.book, public.book)
PAGES = ("/portal", "/developer")
Failure = Callable[[Request, ServiceError], Response | Awaitable[Response]]
Allowed = Callable[[str], bool]


def application(
    plane: Plane, verifier: Verifier | None = None, *, allowed: Allowed | None = loopback_name, audit: Audit = logged
) -> FastAPI:  # fmt: skip
    """Give the management API of a plane that runs.

    verifier: of tokens, None = one over the plane's store;  allowed: whether a Host header is served, None = any, for a listener with TLS
    audit: takes a table for every write and everybody who is turned away
    Pages beside it: routes added to the application; `app.state.failure = …` (a Failure) answers errors below /portal and /developer.
    """
    app = _bare()
    app.state.plane, app.state.verifier = plane, verifier or Verifier(plane.store)
    app.state.waiting, app.state.requests, app.state.failure = Waiting(), Requests(), None
    routes = [route for book in BOOKS for route in book.routes]
    for route in routes:
        app.add_api_route(route.path, bound(route), methods=[route.method], response_model=None, include_in_schema=True)
    _describe(app, routes)
    app.add_middleware(Guard, allowed=allowed, audit=audit, count=app.state.requests.note)
    return app


def secondary(
    primary: str | None, reachable: Callable[[], bool] = lambda: True, *, allowed: Allowed | None = loopback_name, audit: Audit = logged
) -> FastAPI:  # fmt: skip
    """Give what the listener of a node serves that is not the primary.

    primary: URL of its management plane, None = not known;  reachable: says whether it can be reached now
    """
    app = _bare()
    app.state.failure = None

    async def elsewhere(request: Request) -> Response:
        if not reachable():
            down = f"the primary at {primary or 'an unknown address'} cannot be reached; regions serve on meanwhile"
            raise ServiceError("ManagementPlaneUnavailable", down, primary)
        raise NotPrimaryError(primary)

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "secondary"})

    methods = ["GET", "HEAD", "PUT", "PATCH", "POST", "DELETE", "OPTIONS"]
    app.add_route("/healthz", healthz, methods=["GET"])
    for path in ("/services", "/services/{rest:path}", "/metrics"):
        app.add_route(path, elsewhere, methods=methods)
    app.add_middleware(Guard, allowed=allowed, audit=audit)
    return app


def _bare() -> FastAPI:
    """Give an application whose every error is in the one shape."""
    app = FastAPI(title="lbcore", openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(ServiceError, _on_error)
    app.add_exception_handler(NoRegionError, _on_error)
    app.add_exception_handler(ConfigError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    return app


def _describe(app: FastAPI, routes: Iterable[Route]) -> None:
    listed, made = [*routes], list[JSONResponse]()

    async def openapi(request: Request) -> Response:
        if not made:
            made.append(JSONResponse(openapi_of(app, listed), headers={"Cache-Control": "no-cache"}))
        return made[0]

    app.openapi = lambda: openapi_of(app, listed)  # type: ignore[method-assign]
    app.add_route("/openapi.json", openapi, methods=["GET"])


# ===== errors


async def _on_error(request: Request, error: Exception) -> Response:
    told = as_service_error(error, request.state.request_id)
    return await _answer(request, told)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """Say what is wrong with path and query, which FastAPI judges."""
    assert isinstance(error, RequestValidationError)
    found = [Violation("InvalidProperty", f"{one['msg']}, got {shown(one.get('input'))}", str(one["loc"][-1])) for one in error.errors()]
    return await _answer(request, refusal(found))


async def _on_http(request: Request, error: Exception) -> Response:
    """Say that there is no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allow = ", ".join(sorted(_methods(request)))
        refusal_ = ServiceError("MethodNotAllowed", f"{shown(request.method)} is not for {shown(path)}, but {allow}", "method")
        return await _answer(request, refusal_, {"Allow": allow})
    return await _answer(request, ServiceError("ResourceNotFound", f"there is nothing at {shown(path)}", path))


async def _answer(request: Request, error: ServiceError, headers: dict[str, str] | None = None) -> Response:
    request.state.known["code"] = error.code
    failure: Failure | None = request.app.state.failure
    if failure is not None and request.url.path.startswith(PAGES):
        page = failure(request, error)
        return await page if inspect.isawaitable(page) else page
    return refused(error, service=request.path_params.get("name", ""), headers=headers)


def _methods(request: Request) -> set[str]:
    """Give the methods that a path has: of several routes the framework names but one's."""
    found: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            found |= set(getattr(route, "methods", None) or ())
    return found
