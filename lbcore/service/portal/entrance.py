"""Entrance: who asks the portal, and may they: sessions by cookie, of a token; forgery and roles, before a route is reached."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl, quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response

from lbcore.errors import ServiceError
from lbcore.service.api.reading import PATIENCE
from lbcore.service.portal import destination, render, views
from lbcore.service.portal.answers import Answers, Asked, Forbidden, dressed, html
from lbcore.service.portal.sessions import Session, Sessions, from_here
from lbcore.service.tokens import Principal, TooManyAttemptsError, Verifier

__all__ = ["Entrance", "Handler"]

logger = logging.getLogger(__name__)

LARGEST = 4 << 20  # bytes of a form
MOST_FIELDS = 1100
STILL = 5.0  # seconds for which it is believed that a token has not been revoked
SIGN_IN = "lbcore_sign_in"

Handler = Callable[[Asked], Awaitable[Response]]


class Entrance:
    """Let in whoever has a session, and make sessions of tokens.

    answers: what refusals are shown with;  name: of the service
    secure: whether browsers reach it over TLS, so that cookies never travel without
    """

    def __init__(self, answers: Answers, tokens: Verifier, sessions: Sessions, *, name: str, secure: bool = False) -> None:
        self._answers, self._tokens, self._sessions, self._name, self._secure = answers, tokens, sessions, name, secure
        self._cookie = "__Host-lbcore_session" if secure else "lbcore_session"
        self._still: dict[str, float] = {}  # by token's id: until when it need not be asked again

    def guarded(
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
                return dressed(await handler(asked))
            except ClientDisconnect:
                raise
            except Exception as error:
                return await self._answers.failed(asked, error)

        return endpoint

    async def _session(self, request: Request) -> Session | None:
        session = self._sessions.find(request.cookies.get(self._cookie))
        if session is None or not await self.holds(session):
            return None
        if (known := request.scope.get("state", {}).get("known")) is not None:  # the audit log's
            known |= {"who": session.principal.who, "role": session.principal.role}
        return session

    async def holds(self, session: Session) -> bool:
        """Say whether a session's token has not ended; of a store that cannot be read now, what was so a moment ago holds."""
        if not self._sessions.alive(session):
            return False
        id, now = session.principal.id, time.monotonic()
        if now < self._still.get(id, 0.0):
            return True
        try:
            found = await asyncio.to_thread(self._tokens.still, id)
        except ServiceError as error:
            if error.code == "AuthenticationFailed":
                self._sessions.revoke(session)
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
            return dressed(Response(status_code=401, headers={"HX-Redirect": f"/portal/login?next={quote(here, safe='/')}"}))
        if "text/event-stream" in request.headers.get("accept", "") or request.method != "GET":
            return dressed(Response(status_code=401))
        return dressed(RedirectResponse(where, 303))

    async def login(self, asked: Asked) -> Response:
        """Show the page that asks for a token."""
        return self._login(asked, views.Login(next=destination(asked.request.query_params.get("next", ""))))

    def _login(self, asked: Asked, view: views.Login, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        """The form's token stands in a cookie, too: another site can send neither."""
        token = asked.request.cookies.get(self._sign_in_cookie) or secrets.token_urlsafe(32)
        answer = html(render(views.Page(self._name, "", csrf=token), view), status, headers)
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
            principal = await asyncio.to_thread(self._tokens.authenticate, asked.form.get("token", "").strip(), address)
        except TooManyAttemptsError as error:
            retry = {"Retry-After": str(max(1, round(error.retry_after)))}
            return self._login(asked, views.Login("Too many wrong tokens came from this address. Please wait.", place), 429, retry)
        except ServiceError as error:
            if error.code != "AuthenticationFailed":
                raise
            return self._login(asked, views.Login("That token is not known, was revoked or has expired.", place), 401)
        if not principal.may("reader"):
            return self._login(asked, views.Login("That is the token of a node. People sign in with one of their own.", place), 403)
        self._sessions.close(asked.request.cookies.get(self._cookie))  # never the id that was there before
        return self._welcome(asked, principal, place)

    def _welcome(self, asked: Asked, principal: Principal, place: str) -> Response:
        if (known := asked.request.scope.get("state", {}).get("known")) is not None:
            known |= {"who": principal.who, "role": principal.role}
        id, _ = self._sessions.open(principal)
        logger.info("%s signed in to the portal", principal.who)
        answer = RedirectResponse(place, 303)
        answer.set_cookie(self._cookie, id, path="/", secure=self._secure, httponly=True, samesite="strict")
        answer.delete_cookie(self._sign_in_cookie, path="/", secure=self._secure, httponly=True, samesite="strict")
        return answer

    async def sign_out(self, asked: Asked) -> Response:
        """End the session."""
        self._sessions.close(asked.request.cookies.get(self._cookie))
        answer = RedirectResponse("/portal/login", 303)
        answer.delete_cookie(self._cookie, path="/", secure=self._secure, httponly=True, samesite="strict")
        return answer

    async def failure(self, request: Request, error: ServiceError) -> Response:
        """Give the answer for what was refused before a route was reached."""
        return await self._answers.failed(Asked(request, self._sessions.find(request.cookies.get(self._cookie)), []), error)


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
