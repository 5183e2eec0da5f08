"""Answers: views as responses, in what surrounds them, to whoever asked; and what went wrong."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from lbcore.errors import LbcoreError, ServiceError
from lbcore.service.codes import status_of
from lbcore.service.model import ServiceState
from lbcore.service.portal import HEADERS, fill, part, render, views
from lbcore.service.portal.sessions import Session

if TYPE_CHECKING:
    from lbcore.service.plane import Plane

__all__ = ["Answers", "Asked", "Forbidden", "dressed", "html"]

logger = logging.getLogger(__name__)


class Forbidden(ServiceError):
    """Refuse what a session's role, or where a request comes from, does not allow."""


@dataclass(slots=True)
class Asked:
    """A request with whose it is. session: None where none is needed"""

    request: Request
    session: Session | None
    fields: list[tuple[str, str]]

    @property
    def user(self) -> Session:
        """Give the session of a route that needs one."""
        assert self.session is not None
        return self.session

    @property
    def form(self) -> dict[str, str]:
        """Give the form's fields; of several of one name the last."""
        return dict(self.fields)

    @property
    def partial(self) -> bool:
        """Say whether htmx asked, and puts a part into the page."""
        return self.request.headers.get("hx-request") == "true"


class Answers:
    """Answer with pages of one service."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    async def state(self) -> ServiceState | None:
        """Give the service as it is stored; None when there is none."""
        return await asyncio.to_thread(self._plane.store.state)

    def _page(self, asked: Asked, path: str = "", region: str = "") -> views.Page:
        session = asked.session
        path = "/portal/scale-and-pricing" if path == "/portal/locations" else path
        if session is None:
            return views.Page(self._plane.name, region, path)
        return views.Page(self._plane.name, region, path, session.principal.name, session.principal.role, session.csrf)

    async def framed(self, asked: Asked, path: str) -> views.Page:
        """Give what surrounds a view. path: of the page in the menu"""
        state = await self.state()
        return self._page(asked, path, state.service.primary.display_name if state else "")

    async def shown(self, asked: Asked, view: views.View, status: int = 200) -> Response:
        """Give the page of a view."""
        return html(render(await self.framed(asked, asked.request.url.path), view), status)

    async def failed(self, asked: Asked, error: Exception) -> Response:
        """Show what went wrong: of a refusal its reasons, of a fault of ours an id alone."""
        request, headers = asked.request.scope.get("state", {}).get("request_id") or secrets.token_hex(4), dict[str, str]()
        if isinstance(error, ServiceError):
            status, problem = _status(error), fill.problem(error)
            headers = {"Retry-After": "5"} if status == 503 else {}
        elif isinstance(error, LbcoreError | ValueError) and asked.request.method == "POST":
            status, problem = 400, views.Problem("InvalidProperty", str(error)[:500])
        else:
            status, problem = 500, views.Problem("InternalError", "the portal failed; its log says more")
        if status >= 500:
            logger.error("request %s of the portal failed", request, exc_info=error)
        if asked.partial:
            return dressed(html(part("problem", problem), status, headers))
        try:
            page = await self.framed(asked, "")
        except ServiceError:  # the store cannot be read: that is what the page tells
            page = self._page(asked)
        return dressed(html(render(page, views.Failure(status, problem, request if status >= 500 else "")), status, headers))


def _status(error: ServiceError) -> int:
    if isinstance(error, Forbidden):
        return 403
    return {"AuthenticationFailed": 401, "TooManyAttempts": 429, "NoRegionAvailable": 503}.get(error.code) or status_of(error)


def html(body: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Give a response of a text in HTML."""
    return Response(body, status, headers, "text/html")


def dressed(response: Response) -> Response:
    """Add the headers of every page."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response
