"""Routes: the portal's pages over HTTP. What a request asks for is asked of the Plane; what it may do is decided here, never in the page.

    every request   its session, by cookie; without one the page to sign in, and 401 for what htmx and event streams ask
    POST            from the portal's own pages, with the session's token against forgery; operator or owner
    refusal         a page, or a part where htmx asked; with the status that the REST API would give
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from lbcore.errors import LbcoreError, ServiceError
from lbcore.http.gateway.configuration import Configuration
from lbcore.service.api.reading import PATIENCE
from lbcore.service.codes import status_of
from lbcore.service.configuration import Tag
from lbcore.service.journal import Operation
from lbcore.service.model import Service, ServiceState
from lbcore.service.portal import HEADERS, destination, event, files, fill, form, part, render, views
from lbcore.service.portal.developing import developer
from lbcore.service.portal.live import HEARTBEAT, Live
from lbcore.service.portal.sessions import Session, Sessions, from_here
from lbcore.service.tokens import Principal, TooManyAttemptsError, Verifier

if TYPE_CHECKING:
    from lbcore.service.notices import Subscription
    from lbcore.service.plane import Plane

__all__ = ["Portal", "mount"]

logger = logging.getLogger(__name__)

LARGEST = 4 << 20  # bytes of a form
MOST_FIELDS = 1100
STREAMS, STREAMS_OF_ONE = 100, 4  # of events, at once; browsers open six connections, and pages need some
STILL = 5.0  # seconds for which it is believed that a token has not been revoked
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
SIGN_IN = "lbcore_sign_in"
UP = ("up", "degraded")  # what edges say of a region that serves
SHOWN_AS_OVER = 900.0  # seconds for which the outcome of the last operation stays on the page

Handler = Callable[["Asked"], Awaitable[Response]]


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


class Portal:
    """The portal of one management plane.

    secure: whether browsers reach it over TLS, so that cookies never travel without
    """

    def __init__(self, plane: Plane, tokens: Verifier, *, secure: bool = False, sessions: Sessions | None = None) -> None:
        self.plane, self.tokens, self.sessions = plane, tokens, sessions or Sessions()
        self.live = Live(plane)
        self._secure = secure
        self._cookie = "__Host-lbcore_session" if secure else "lbcore_session"
        self._still: dict[str, float] = {}  # by token's id: until when it need not be asked again
        self._streams = 0
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
        get, post = self._get, self._post
        return [
            Route("/portal", lambda _: RedirectResponse("/portal/", 308)),
            Route("/portal/static/{name}", self.static),
            get("/portal/login", self.login, public=True),
            Route("/portal/login", self._guarded(self.sign_in, public=True, forged=True), methods=["POST"]),
            post("/portal/logout", self.sign_out, role="reader"),
            get("/portal/", self.overview),
            get("/portal/events", self.events),
            get("/portal/scale-and-pricing", self.scale_and_pricing),
            get("/portal/locations", self.scale_and_pricing),
            get("/portal/scale-and-pricing/locations", self.locations),
            post("/portal/plan", self.plan),
            post("/portal/save", self.save),
            get("/portal/operations/{id}/events", self.operation_events),
            post("/portal/operations/{id}/cancel", self.cancel),
            get("/portal/explain", self.explain),
            get("/portal/traffic-manager", self.traffic_manager),
            post("/portal/traffic-manager", self.set_traffic_manager),
            post("/portal/traffic-manager/timing", self.timing),
            get("/developer", self.developer, public=True),
            Route("/portal/{rest:path}", self._guarded(self.missing, public=True, forged=True), methods=METHODS),
        ]  # fmt: skip

    def _get(self, path: str, handler: Handler, *, public: bool = False) -> Route:
        return Route(path, self._guarded(handler, public=public), methods=["GET"])

    def _post(self, path: str, handler: Handler, *, role: str = "operator") -> Route:
        return Route(path, self._guarded(handler, role=role), methods=["POST"])

    # ===== who asks, and may they

    def _guarded(
        self, handler: Handler, *, role: str = "reader", public: bool = False, forged: bool = False
    ) -> Callable[[Request], Awaitable[Response]]:
        """Give a handler as an endpoint. forged: it looks after forgery itself, there being no session yet."""

        async def endpoint(request: Request) -> Response:
            asked = Asked(request, None, [])
            try:
                asked.session = await self._session(request)
                if asked.session is None and not public:
                    return self._to_sign_in(asked)
                if request.method not in ("GET", "HEAD"):
                    asked.fields = await _fields(request)
                    if not from_here(request.headers, request.url.scheme):
                        raise Forbidden("Forbidden", "this request does not come from the portal's own pages")
                    if not forged and asked.session is not None:
                        self._check(asked, role)
                return _dressed(await handler(asked))
            except ClientDisconnect:
                raise
            except Exception as error:
                return await self._failed(asked, error)

        return endpoint

    async def _session(self, request: Request) -> Session | None:
        session = self.sessions.find(request.cookies.get(self._cookie))
        if session is None or not await self._holds(session):
            return None
        if (known := request.scope.get("state", {}).get("known")) is not None:  # the audit log's
            known |= {"who": session.principal.who, "role": session.principal.role}
        return session

    async def _holds(self, session: Session) -> bool:
        """Say whether a session's token has not ended; of a store that cannot be read now, what was so a moment ago holds."""
        if not self.sessions.alive(session):
            return False
        id, now = session.principal.id, time.monotonic()
        if now < self._still.get(id, 0.0):
            return True
        try:
            found = await asyncio.to_thread(self.tokens.still, id)
        except ServiceError as error:
            if error.code == "AuthenticationFailed":
                self.sessions.revoke(session)
                self._still.pop(id, None)
                return False
            raise
        session.principal = found
        self._still[id] = now + STILL
        return True

    def _check(self, asked: Asked, role: str) -> None:
        given = asked.request.headers.get("x-csrf-token") or asked.form.get("csrf", "")
        if not asked.user.genuine(given):
            raise Forbidden("Forbidden", "this page is of another session; load it again", "csrf")
        if not asked.user.principal.may(role):
            raise Forbidden("Forbidden", f"your role is {asked.user.principal.role}; this needs {role}")

    def _to_sign_in(self, asked: Asked) -> Response:
        request = asked.request
        place = destination(request.url.path + (f"?{request.url.query}" if request.url.query else ""))
        where = f"/portal/login?next={quote(place, safe='/')}"
        if asked.partial:
            here = destination(request.headers.get("hx-current-url", "").partition("://")[2].partition("/")[2].join(("/", "")))
            return _dressed(Response(status_code=401, headers={"HX-Redirect": f"/portal/login?next={quote(here, safe='/')}"}))
        if "text/event-stream" in request.headers.get("accept", "") or request.method != "GET":
            return _dressed(Response(status_code=401))
        return _dressed(RedirectResponse(where, 303))

    async def login(self, asked: Asked) -> Response:
        """Show the page that asks for a token."""
        return self._login(asked, views.Login(next=destination(asked.request.query_params.get("next", ""))))

    def _login(self, asked: Asked, view: views.Login, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """The form's token stands in a cookie, too: another site can send neither."""
        token = asked.request.cookies.get(self._sign_in_cookie) or secrets.token_urlsafe(32)
        answer = _html(render(views.Page(self.plane.name, "", csrf=token), view), status, headers)
        answer.set_cookie(self._sign_in_cookie, token, max_age=3600, path="/", secure=self._secure, httponly=True, samesite="strict")
        return answer

    @property
    def _sign_in_cookie(self) -> str:
        return f"__Host-{SIGN_IN}" if self._secure else SIGN_IN

    async def sign_in(self, asked: Asked) -> Response:
        """Make a session of a token."""
        given, there = asked.form.get("csrf", ""), asked.request.cookies.get(self._sign_in_cookie, "")
        place = destination(asked.form.get("next", ""))
        if not there or not hmac.compare_digest(given.encode("utf-8", "replace"), there.encode("utf-8", "replace")):
            return self._login(asked, views.Login("This page was too old. Please enter the token again.", place), 403)
        address = asked.request.client.host if asked.request.client else ""
        try:
            principal = await asyncio.to_thread(self.tokens.authenticate, asked.form.get("token", "").strip(), address)
        except TooManyAttemptsError as error:
            retry = {"Retry-After": str(max(1, round(error.retry_after)))}
            return self._login(asked, views.Login("Too many wrong tokens came from this address. Please wait.", place), 429, retry)
        except ServiceError as error:
            if error.code != "AuthenticationFailed":
                raise
            return self._login(asked, views.Login("That token is not known, was revoked or has expired.", place), 401)
        if not principal.may("reader"):
            return self._login(asked, views.Login("That is the token of a node. People sign in with one of their own.", place), 403)
        self.sessions.close(asked.request.cookies.get(self._cookie))  # never the id that was there before
        return self._welcome(asked, principal, place)

    def _welcome(self, asked: Asked, principal: Principal, place: str) -> Response:
        if (known := asked.request.scope.get("state", {}).get("known")) is not None:
            known |= {"who": principal.who, "role": principal.role}
        id, _ = self.sessions.open(principal)
        logger.info("%s signed in to the portal", principal.who)
        answer = RedirectResponse(place, 303)
        answer.set_cookie(self._cookie, id, path="/", secure=self._secure, httponly=True, samesite="strict")
        answer.delete_cookie(self._sign_in_cookie, path="/", secure=self._secure, httponly=True, samesite="strict")
        return answer

    async def sign_out(self, asked: Asked) -> Response:
        """End the session."""
        self.sessions.close(asked.request.cookies.get(self._cookie))
        answer = RedirectResponse("/portal/login", 303)
        answer.delete_cookie(self._cookie, path="/", secure=self._secure, httponly=True, samesite="strict")
        return answer

    # ===== pages

    async def static(self, request: Request) -> Response:
        """Give one of the files that pages load."""
        asset = files().get(request.path_params["name"])
        if asset is None:
            return _dressed(_html("", 404))
        kept = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(asset.body, headers={**HEADERS, **kept, "Content-Type": asset.type})

    async def overview(self, asked: Asked) -> Response:
        """Show the service as it is now."""
        return await self._shown(asked, await self.live.take())

    async def scale_and_pricing(self, asked: Asked) -> Response:
        """Show the Locations table."""
        return await self._shown(asked, await self._locations())

    async def locations(self, asked: Asked) -> Response:
        """Give the Locations table as it is after an operation."""
        page = await self._framed(asked, "/portal/scale-and-pricing")
        return _html(part("locations", await self._locations(), page))

    async def _locations(self) -> views.ScaleAndPricing:
        plane = self.plane
        state = await plane.state()
        newest = await plane.operations(1)
        now = time.time()
        fresh = [one for one in newest if one.status == "InProgress" or now - one.updated < SHOWN_AS_OVER]
        progress = fill.progress(fresh[0], state, now) if fresh else None
        return fill.scale_and_pricing(state, plane.facts, statuses=plane.statuses(), operation=progress)

    async def plan(self, asked: Asked) -> Response:
        """Show what Save would do."""
        body, etag = _wish(asked)
        planned, now = await self.plane.plan(body)
        if now != etag:
            raise ServiceError("PreconditionFailed", "the service was changed meanwhile; load the page again", "etag")
        return _html(part("plan", fill.plan(planned, etag)))

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
            page = await self._framed(asked, "/portal/scale-and-pricing")
            return _html(part("locations", await self._locations(), page), 200, {"HX-Retarget": "#locations"})
        return _html(part("progress", fill.progress(saved.operation, saved.state, time.time())), 202)

    async def cancel(self, asked: Asked) -> Response:
        """End an operation that has not begun."""
        id = asked.request.path_params["id"]
        operation = await self.plane.cancel(id, who=asked.user.principal.who)
        return _html(part("steps", fill.progress(operation, await self._state(), time.time())))

    async def explain(self, asked: Asked) -> Response:
        """Show the decision for an address."""
        client = asked.request.query_params.get("client", "").strip()
        if not client:
            return await self._shown(asked, views.Explain())
        state = await self.plane.state()
        names = {each.name: each.display_name for each in state.service.locations}
        try:
            return await self._shown(asked, views.Explain(client, self.plane.explain(client), names))
        except ServiceError as error:
            if error.code != "InvalidProperty":
                raise
            return await self._shown(asked, views.Explain(client[:100], error=f"{client[:100]!r} is no IPv4 or IPv6 address"), 400)

    async def developer(self, asked: Asked) -> Response:
        """Show the published APIs; to anybody."""
        state = await self.plane.state()
        latest = await self.plane.configuration.latest()
        if latest is None or latest.body is None:
            return await self._shown(asked, views.DeveloperPortal(""))
        if self._developer is None or self._developer[:2] != (latest.tag, state.service):  # anybody may ask, as often as they like
            configuration = await asyncio.to_thread(Configuration.from_json, latest.body)
            revision = await asyncio.to_thread(self.plane.store.revisions.latest)
            published = datetime.fromtimestamp(revision.at, UTC) if revision and revision.number == latest.tag.number else None
            self._developer = latest.tag, state.service, developer(configuration, state.service, published)
        return await self._shown(asked, self._developer[2])

    async def missing(self, asked: Asked) -> Response:
        """Refuse any other path."""
        raise ServiceError("ResourceNotFound", f"there is no page {asked.request.url.path[:200]}")

    # ===== traffic manager

    async def traffic_manager(self, asked: Asked) -> Response:
        """Show the profile."""
        return await self._shown(asked, await self._profile())

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
            return await self._shown(asked, view, status_of(error))
        return await self._shown(asked, replace(await self._profile(), saved=True))

    async def timing(self, asked: Asked) -> Response:
        """Show what settings imply that are not saved."""
        found = await self.plane.failover_times(fill.monitor_patch(asked.form))
        return _html(part("timing", fill.timing(found)))

    # ===== streams

    async def events(self, asked: Asked) -> Response:
        """Stream the Overview's parts as they change."""
        board = self.live.board

        async def stream() -> AsyncIterator[bytes]:
            async with board.watching(self.live.overview):
                async for data in board.stream(asked.request.headers.get("last-event-id", ""), lambda: self._holds(asked.user)):
                    yield data

        return self._streaming(asked.user, stream)

    async def operation_events(self, asked: Asked) -> Response:
        """Stream how far an operation is, until it has ended."""
        operation = await self.plane.operation(asked.request.path_params["id"])
        return self._streaming(asked.user, lambda: self._steps(operation, asked.user))

    async def _steps(self, operation: Operation, session: Session) -> AsyncIterator[bytes]:
        shown, said = None, 0.0
        yield b"retry: 1000\n\n"
        async with self.plane.subscribe() as changes:
            while await self._holds(session):
                now = time.monotonic()
                view = fill.progress(operation, await self._state(), time.time())
                if replace(view, elapsed=0.0) != shown or now - said >= HEARTBEAT:  # a second alone is nothing to announce
                    shown, said = replace(view, elapsed=0.0), now
                    yield event("steps", part("steps", view))
                if not view.running:
                    yield event("done", "")
                    return
                await _news(changes, 1.0)
                operation = await self.plane.operation(operation.id)

    def _streaming(self, session: Session, stream: Callable[[], AsyncIterator[bytes]]) -> Response:
        if self._streams >= STREAMS or session.streams >= STREAMS_OF_ONE:
            return _html("", 503, {"Retry-After": "30"})

        async def counted() -> AsyncIterator[bytes]:
            self._streams += 1
            session.streams += 1
            try:
                async for data in stream():
                    yield data
            finally:
                self._streams -= 1
                session.streams -= 1

        return StreamingResponse(counted(), headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})

    # ===== what surrounds

    async def _state(self) -> ServiceState | None:
        return await asyncio.to_thread(self.plane.store.state)

    def _page(self, asked: Asked, path: str = "", region: str = "") -> views.Page:
        session = asked.session
        path = "/portal/scale-and-pricing" if path == "/portal/locations" else path
        if session is None:
            return views.Page(self.plane.name, region, path)
        return views.Page(self.plane.name, region, path, session.principal.name, session.principal.role, session.csrf)

    async def _framed(self, asked: Asked, path: str) -> views.Page:
        state = await self._state()
        return self._page(asked, path, state.service.primary.display_name if state else "")

    async def _shown(self, asked: Asked, view: views.View, status: int = 200) -> Response:
        return _html(render(await self._framed(asked, asked.request.url.path), view), status)

    async def failure(self, request: Request, error: ServiceError) -> Response:
        """Give the answer for what was refused before a route was reached."""
        return await self._failed(Asked(request, self.sessions.find(request.cookies.get(self._cookie)), []), error)

    async def _failed(self, asked: Asked, error: Exception) -> Response:
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
            return _dressed(_html(part("problem", problem), status, headers))
        try:
            page = await self._framed(asked, "")
        except ServiceError:  # the store cannot be read: that is what the page tells
            page = self._page(asked)
        return _dressed(_html(render(page, views.Failure(status, problem, request if status >= 500 else "")), status, headers))


def _status(error: ServiceError) -> int:
    if isinstance(error, Forbidden):
        return 403
    return {"AuthenticationFailed": 401, "TooManyAttempts": 429, "NoRegionAvailable": 503}.get(error.code) or status_of(error)


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


async def _fields(request: Request) -> list[tuple[str, str]]:
    """Read a form; ServiceError for one that is too long or none."""
    body = b""
    try:
        async with asyncio.timeout(PATIENCE):
            async for piece in request.stream():
                body += piece
                if len(body) > LARGEST:
                    raise ServiceError("InvalidProperty", f"a form of over {LARGEST:,} bytes is not read")
    except TimeoutError:
        raise ServiceError("InvalidRequest", f"the form did not come within {PATIENCE:g} s", "body") from None
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise ServiceError("InvalidProperty", "what was sent is no form") from None


async def _news(changes: Subscription, longest: float) -> None:
    try:
        async with asyncio.timeout(longest):
            await changes.get()
    except TimeoutError:
        pass


def _html(body: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(body, status, headers, "text/html")


def _dressed(response: Response) -> Response:
    """Add the headers of every page."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def mount(app: Starlette, plane: Plane, tokens: Verifier, *, secure: bool = False) -> Portal:
    """Add the portal to an application; its figures are gathered for as long as that runs. secure: browsers come over TLS."""
    portal = Portal(plane, tokens, secure=secure)
    app.router.routes.extend(portal.routes())
    app.state.failure = portal.failure
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with inner(app) as state, portal.running():
            yield state

    app.router.lifespan_context = lifespan
    return portal
