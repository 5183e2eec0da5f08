"""Routes: the portal's pages over HTTP. What a request asks for is asked of the Plane; what it may do is decided here, never in the page.

    every request   its session, by cookie; without one the page to sign in, and 401 for what htmx and event streams ask      Entrance
    POST            from the portal's own pages, with the session's token against forgery; operator or owner                  Entrance
    refusal         a page, or a part where htmx asked; with the status that the REST API would give                          Answers
    event streams   parts of a page as they change                                                                            Streams
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from lbcore.errors import ServiceError
from lbcore.http.gateway.configuration import Configuration
from lbcore.service.codes import status_of
from lbcore.service.configuration import Tag
from lbcore.service.model import Service
from lbcore.service.portal import HEADERS, files, fill, form, part, views
from lbcore.service.portal.answers import Answers, Asked, dressed, html
from lbcore.service.portal.developing import developer
from lbcore.service.portal.entrance import Entrance, Handler
from lbcore.service.portal.live import Live
from lbcore.service.portal.sessions import Sessions
from lbcore.service.portal.streams import Streams
from lbcore.service.tokens import Verifier

if TYPE_CHECKING:
    from lbcore.service.plane import Plane

__all__ = ["Portal", "mount"]

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
UP = ("up", "degraded")  # what edges say of a region that serves
SHOWN_AS_OVER = 900.0  # seconds for which the outcome of the last operation stays on the page


class Portal:
    """The portal of one management plane.

    secure: whether browsers reach it over TLS, so that cookies never travel without
    """

    def __init__(self, plane: Plane, tokens: Verifier, *, secure: bool = False, sessions: Sessions | None = None) -> None:
        self.plane, self.tokens = plane, tokens
        self.live = Live(plane)
        self._answers = Answers(plane)
        self.entrance = Entrance(self._answers, tokens, sessions or Sessions(), name=plane.name, secure=secure)
        self.streams = Streams(plane, self.live, self._answers, self.entrance.holds)
        self._developer: tuple[Tag, Service, views.DeveloperPortal] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Gather what the Overview shows for the time of an `async with`, and end every stream after it."""
        task = asyncio.create_task(self.live.run(), name="portal")
        try:
            yield
        finally:
            self.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def close(self) -> None:
        """End every stream, so that the server can end."""
        self.live.board.close()

    def routes(self) -> list[Route]:
        """Give every route, the most telling path first."""
        get, post, door = self._get, self._post, self.entrance
        return [
            Route("/portal", lambda _: RedirectResponse("/portal/", 308)),
            Route("/portal/static/{name}", self.static),
            get("/portal/login", door.login, public=True),
            Route("/portal/login", door.guarded(door.sign_in, public=True, forged=True), methods=["POST"]),
            post("/portal/logout", door.sign_out, role="reader"),
            get("/portal/", self.overview),
            get("/portal/events", self.streams.overview),
            get("/portal/scale-and-pricing", self.scale_and_pricing),
            get("/portal/locations", self.scale_and_pricing),
            get("/portal/scale-and-pricing/locations", self.locations),
            post("/portal/plan", self.plan),
            post("/portal/save", self.save),
            get("/portal/operations/{id}/events", self.streams.operation),
            post("/portal/operations/{id}/cancel", self.cancel),
            get("/portal/explain", self.explain),
            get("/portal/traffic-manager", self.traffic_manager),
            post("/portal/traffic-manager", self.set_traffic_manager),
            post("/portal/traffic-manager/timing", self.timing),
            get("/developer", self.developer, public=True),
            Route("/portal/{rest:path}", door.guarded(self.missing, public=True, forged=True), methods=METHODS),
        ]  # fmt: skip

    def _get(self, path: str, handler: Handler, *, public: bool = False) -> Route:
        return Route(path, self.entrance.guarded(handler, public=public), methods=["GET"])

    def _post(self, path: str, handler: Handler, *, role: str = "operator") -> Route:
        return Route(path, self.entrance.guarded(handler, role=role), methods=["POST"])

    # ===== pages

    async def static(self, request: Request) -> Response:
        """Give one of the files that pages load."""
        asset = files().get(request.path_params["name"])
        if asset is None:
            return dressed(html("", 404))
        kept = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(asset.body, headers={**HEADERS, **kept, "Content-Type": asset.type})

    async def overview(self, asked: Asked) -> Response:
        """Show the service as it is now."""
        return await self._answers.shown(asked, await self.live.take())

    async def scale_and_pricing(self, asked: Asked) -> Response:
        """Show the Locations table."""
        return await self._answers.shown(asked, await self._locations())

    async def locations(self, asked: Asked) -> Response:
        """Give the Locations table as it is after an operation."""
        page = await self._answers.framed(asked, "/portal/scale-and-pricing")
        return html(part("locations", await self._locations(), page))

    async def _locations(self) -> views.ScaleAndPricing:
        plane = self.plane
        state = await plane.state()
        newest = await plane.operations(1)
        now = time.time()
        fresh = [one for one in newest if one.status == "InProgress" or now - one.updated < SHOWN_AS_OVER]
        progress = fill.progress(fresh[0], state, now) if fresh else None
        return fill.scale_and_pricing(
            state, plane.facts, statuses=plane.statuses(), capacities=plane.capacities(), operation=progress
        )  # fmt: skip

    async def plan(self, asked: Asked) -> Response:
        """Show what Save would do."""
        body, etag = _wish(asked)
        planned, now = await self.plane.plan(body)
        if now != etag:
            raise ServiceError("PreconditionFailed", "the service was changed meanwhile; load the page again", "etag")
        return html(part("plan", fill.plan(planned, etag)))

    async def save(self, asked: Asked) -> Response:
        """Have exactly the plan carried out that was shown."""
        body, etag = _wish(asked)
        planned, _ = await self.plane.plan(body)
        if not hmac.compare_digest(fill.digest(planned, etag), asked.form.get("digest", "")):
            raise ServiceError("PreconditionFailed", "this is not the plan that was shown; press Save to see the present one", "digest")
        saved = await self.plane.patch(
            body, who=asked.user.principal.who, why=asked.form.get("why", ""), if_match=f'"{etag}"',
            acknowledged=asked.form.get("acknowledge") == "true",
        )  # fmt: skip
        if saved.operation is None:
            page = await self._answers.framed(asked, "/portal/scale-and-pricing")
            return html(part("locations", await self._locations(), page), 200, {"HX-Retarget": "#locations"})
        return html(part("progress", fill.progress(saved.operation, saved.state, time.time())), 202)

    async def cancel(self, asked: Asked) -> Response:
        """End an operation that has not begun."""
        id = asked.request.path_params["id"]
        operation = await self.plane.cancel(id, who=asked.user.principal.who)
        return html(part("steps", fill.progress(operation, await self._answers.state(), time.time())))

    async def explain(self, asked: Asked) -> Response:
        """Show the decision for an address."""
        client = asked.request.query_params.get("client", "").strip()
        if not client:
            return await self._answers.shown(asked, views.Explain())
        state = await self.plane.state()
        names = {each.name: each.display_name for each in state.service.locations}
        try:
            return await self._answers.shown(asked, views.Explain(client, self.plane.explain(client), names))
        except ServiceError as error:
            if error.code != "InvalidProperty":
                raise
            return await self._answers.shown(asked, views.Explain(client[:100], error=f"{client[:100]!r} is no IPv4 or IPv6 address"), 400)

    async def developer(self, asked: Asked) -> Response:
        """Show the published APIs; to anybody."""
        state = await self.plane.state()
        latest = await self.plane.configuration.latest()
        if latest is None or latest.body is None:
            return await self._answers.shown(asked, views.DeveloperPortal(""))
        if self._developer is None or self._developer[:2] != (latest.tag, state.service):  # anybody may ask, as often as they like
            configuration = await asyncio.to_thread(Configuration.from_json, latest.body)
            revision = await asyncio.to_thread(self.plane.store.revisions.latest)
            published = datetime.fromtimestamp(revision.at, UTC) if revision and revision.number == latest.tag.number else None
            self._developer = latest.tag, state.service, developer(configuration, state.service, published)
        return await self._answers.shown(asked, self._developer[2])

    async def missing(self, asked: Asked) -> Response:
        """Refuse any other path."""
        raise ServiceError("ResourceNotFound", f"there is no page {asked.request.url.path[:200]}")

    # ===== traffic manager

    async def traffic_manager(self, asked: Asked) -> Response:
        """Show the profile."""
        return await self._answers.shown(asked, await self._profile())

    async def _profile(self) -> views.TrafficManager:
        plane = self.plane
        state, manager, (_, etag) = await plane.state(), await plane.profile(), await plane.traffic_manager()
        endpoints = [self._endpoint(one) for one in plane.endpoints()]
        out = bool(endpoints) and plane.lb.fail_open and all(one.monitor_status != "Online" for one in endpoints)
        return fill.profile(
            manager, state.service, etag, await plane.failover_times(), endpoints, monitor_status=plane.profile_status(), fail_open=out
        )

    def _endpoint(self, one: Mapping[str, Any]) -> views.Endpoint:
        seen, status = self.live.seen.get(one["name"]), one["endpointMonitorStatus"]
        said = [report.regions[one["name"]].status for report in self.plane.edges() if one["name"] in report.regions]
        probed = self._probed(one["name"])
        since = datetime.fromtimestamp(seen.since, UTC) if seen and seen.since is not None and status == "Degraded" else None
        return views.Endpoint(
            one["displayName"], one["target"], one["endpointStatus"], status, one["cause"], since, one["weight"], one["priority"] or 1,
            one["alwaysServe"] == "Enabled", probed, (sum(word in UP for word in said), len(said)),
        )  # fmt: skip

    def _probed(self, name: str) -> float | None:
        """Give what the primary's own probes of a region take, ms; None when none was answered."""
        lb = self.plane.lb
        if all(region.name != name for region in lb.regions):
            return None
        slot = lb.slot(name)
        known = math.isfinite(lb.table.ages(0, self.plane.now)[slot]) and lb.status(name) in UP
        return float(lb.table.estimates(0)[slot]) if known else None

    async def set_traffic_manager(self, asked: Asked) -> Response:
        """Take the profile's form."""
        patch = fill.monitor_patch(asked.form)
        try:
            await self.plane.set_traffic_manager(
                patch, who=asked.user.principal.who, if_match=f'"{asked.form.get("etag", "")}"'
            )  # fmt: skip
        except ServiceError as error:
            view = replace(_typed(await self._profile(), asked.form), errors=fill.wrong_fields(error))
            return await self._answers.shown(asked, view, status_of(error))
        return await self._answers.shown(asked, replace(await self._profile(), saved=True))

    async def timing(self, asked: Asked) -> Response:
        """Show what settings imply that are not saved."""
        found = await self.plane.failover_times(fill.monitor_patch(asked.form))
        return html(part("timing", fill.timing(found)))


def _wish(asked: Asked) -> tuple[dict[str, Any], str]:
    """Give the body of the PATCH that the Locations form asks for, and the ETag of what it was made from."""
    rows = form.read([value for name, value in asked.fields if name == "row"])
    fields = asked.form
    return form.wish(rows, fields.get("tier", ""), fields.get("network_mode", "")), fields.get("etag", "")


def _typed(view: views.TrafficManager, given: Mapping[str, str]) -> views.TrafficManager:
    """Give the page with what was typed into its form, as far as its fields can hold it."""

    def number(name: str, before: float) -> float:
        try:
            value = float(given.get(name, ""))
        except ValueError:
            return before
        return value if abs(value) < 1e12 else before

    was = view.monitor
    monitor = views.Monitor(
        given.get("protocol", was.protocol), int(number("port", was.port)), given.get("path", was.path), number("interval", was.interval),
        number("timeout", was.timeout), int(number("tolerated", was.tolerated)), int(number("rise", was.rise)),
        given.get("codes", was.codes), given.get("strict") == "true",
    )  # fmt: skip
    return replace(
        view, status=given.get("status", view.status), method=given.get("method", view.method), ttl=int(number("ttl", view.ttl)),
        monitor=monitor,
    )  # fmt: skip


def mount(app: Starlette, plane: Plane, tokens: Verifier, *, secure: bool = False) -> Portal:
    """Add the portal to an application; its figures are gathered for as long as that runs. secure: browsers come over TLS."""
    portal = Portal(plane, tokens, secure=secure)
    app.router.routes.extend(portal.routes())
    app.state.failure = portal.entrance.failure
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with inner(app) as state, portal.running():
            yield state

    app.router.lifespan_context = lifespan
    return portal
