"""Guard: what holds for every request, the portal's too, before any route sees it.

Whose name it asks for (Host), how large it may be, which number it has; that its answer says nothing to other sites, and that a bug becomes
an answer. What is worth it goes to the audit log.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from lbcore.errors import ServiceError
from lbcore.service.api.audit import Audit, line, worth
from lbcore.service.api.refusing import as_service_error, refused
from lbcore.service.revisions import LARGEST

__all__ = ["Guard", "loopback_name"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST = 1 << 20  # bytes of a body
_CONFIGURATION = re.compile(r"/services/[^/]+/gatewayConfiguration/?")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOOPBACK = re.compile(r"(localhost|([a-z0-9-]+\.)*localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)  # those that an answer does not give itself
STRICT = (b"strict-transport-security", b"max-age=31536000")


def loopback_name(host: str) -> bool:
    """Say whether a Host header names this machine: a page of another site, whose name leads here by DNS, does not."""
    return _LOOPBACK.fullmatch(host) is not None


class Guard:
    """ASGI middleware around everything.

    allowed: says of a Host header whether it may be, None = any (TLS says whom a client speaks to)
    audit: takes lines;  count: takes method and status of every answer
    """

    def __init__(
        self, app: App, *, allowed: Callable[[str], bool] | None, audit: Audit,
        count: Callable[[str, int], None] = lambda method, status: None,
    ) -> None:  # fmt: skip
        self._app, self._allowed, self._audit, self._count = app, allowed, audit, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's event: HTTP under guard, nothing else but the lifespan."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _named(scope["headers"])
        id = _id(headers)
        began, known = time.monotonic(), dict[str, Any]()
        scope.setdefault("state", {}).update(request_id=id, known=known)
        answer = _Answer(send, id, scope.get("scheme") == "https")
        try:
            self._refuse(headers)
            await self._app(scope, _bounded(receive, scope["path"], headers), answer)
        except Exception as error:
            told = as_service_error(error, id)
            known["code"] = told.code
            if answer.status:  # half of an answer is out: the connection ends, and the client sees that it is half
                raise
            await refused(told)(scope, receive, answer)
        finally:
            status = answer.status or 499
            self._count(scope["method"], status)
            if worth(scope["method"], status):
                client = scope["client"][0] if scope.get("client") else ""
                self._audit(line(
                    request=id, client=client, method=scope["method"], path=scope["path"], status=status, code=known.get("code", ""),
                    known=known, seconds=time.monotonic() - began,
                ))  # fmt: skip

    def _refuse(self, headers: dict[bytes, list[bytes]]) -> None:
        hosts = headers.get(b"host", [])
        if len(hosts) != 1:
            raise ServiceError("InvalidRequest", "a request has one Host header", "Host")
        if self._allowed is not None and not self._allowed(hosts[0].decode("latin-1")):
            raise ServiceError("HostNotAllowed", "this host name is not served here: use the one that the service was set up with", "Host")


class _Answer:
    """Passes an answer on, with the headers that every answer has."""

    def __init__(self, send: Send, id: str, encrypted: bool) -> None:
        self._send, self.status = send, 0
        self._own = [*HEADERS, (b"x-request-id", id.encode()), *([STRICT] if encrypted else [])]

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name.lower() for name, _ in message.get("headers", ())}
            message["headers"] = [*message.get("headers", ()), *(each for each in self._own if each[0] not in given)]
        await self._send(message)


def _bounded(receive: Receive, path: str, headers: dict[bytes, list[bytes]]) -> Receive:
    """Give what reads a body that is not too large."""
    most = LARGEST + LARGEST // 4 if _CONFIGURATION.fullmatch(path) else MOST  # spaces between what counts
    length = b"".join(headers.get(b"content-length", []))
    if length.isdigit() and int(length[:20]) > most:
        raise _too_large(most)
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > most:
            raise _too_large(most)
        return message

    return bounded


def _too_large(most: int) -> ServiceError:
    return ServiceError("RequestTooLarge", f"a body has at most {most:,} bytes here", "body")


def _named(headers: list[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    return found


def _id(headers: dict[bytes, list[bytes]]) -> str:
    """Give the number of a request: the client's, where that can stand in a log."""
    given = headers.get(b"x-request-id", [b""])[0].decode("latin-1")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex
