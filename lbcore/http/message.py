"""Requests and responses as the engine sees them, and the rules about their fields. No I/O.

A request is taken apart when it is read and written anew when it is forwarded: nothing of its framing, of what was meant for this
connection alone (hop-by-hop), or of what only a proxy may say (`X-Forwarded-For` and the like) gets through by itself.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

__all__ = ["Field", "Refusal", "Request", "Response", "check_authority", "check_target", "status_line"]

Field = tuple[bytes, bytes]

IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))  # RFC 9110 §9.2.2

# RFC 9110 §7.6.1 and its registry; what a client says of itself to this proxy only
HOP_BY_HOP = frozenset((
    b"connection", b"http2-settings", b"keep-alive", b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization",
    b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
))  # fmt: skip
FORWARDED = frozenset((
    b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto", b"x-real-ip", b"x-request-id",
))  # fmt: skip
UPGRADES = frozenset((b"websocket",))  # h2c would open a connection that nobody looks into (RFC 9113 §3.1: obsolete)
ORDINARY = frozenset((b"close", b"keep-alive"))  # values of Connection that name no field
ONCE = frozenset((b"content-length", b"host", b"x-request-id"))
SPECIAL_OF_REQUEST = HOP_BY_HOP | FORWARDED | ONCE | {b"expect"}
# A response gets the request id from the outermost proxy that writes one, which is told to those behind it.
SPECIAL_OF_RESPONSE = (HOP_BY_HOP - {b"proxy-authenticate", b"proxy-authentication-info"}) | {b"content-length", b"x-request-id"}

# RFC 9110 §6.5.1: what would change the meaning of a message that was already acted upon
NOT_IN_TRAILERS = SPECIAL_OF_REQUEST | {
    b"age", b"authorization", b"cache-control", b"content-encoding", b"content-range", b"content-type", b"cookie", b"date", b"expires",
    b"idempotency-key", b"location", b"max-forwards", b"pragma", b"range", b"retry-after", b"set-cookie", b"traceparent",
    b"tracestate", b"vary", b"warning", b"www-authenticate",
}  # fmt: skip

_IN_TARGET = bytes({*range(0x21, 0x7F)} - {0x23})  # RFC 9112 §3.2 and what is sent in practice: visible ASCII without "#"
_AUTHORITY = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+;=-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE)


class Refusal(Exception):
    """A message that is answered with an error instead of being forwarded: `status`, and why in a few words."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Request:
    """One request's head, and as much of its body as was read and not yet sent on.

    fields: end-to-end fields in their order; special: the others by lower-case name, values of one name joined by a comma
    target: origin-form, or `*`; length: of the body, None = chunked or no body
    keep_alive: the client may send another; old: it speaks HTTP/1.0
    upgrade: the protocol it asks to change to, lower case, b"" = none
    parts, trailers: of the body; received: bytes of it so far; complete: all of it is there
    """

    def __init__(
        self, method: bytes, target: bytes, fields: list[Field], special: dict[bytes, bytes], keep_alive: bool, old: bool
    ) -> None:
        self.method, self.target, self.fields, self.special = method, target, fields, special
        self.keep_alive, self.old = keep_alive, old
        self.length: int | None = None
        self.chunked = self.complete = False
        self.received = 0
        self.parts: list[bytes] = []
        self.trailers: Sequence[Field] = ()
        self.upgrade = b""

    @property
    def host(self) -> bytes:
        """Give the authority that the request is for, b"" when an HTTP/1.0 client names none."""
        return self.special.get(b"host", b"")

    @property
    def idempotent(self) -> bool:
        """Say whether sending it twice has the effect of sending it once (RFC 9110 §9.2.2, or an Idempotency-Key)."""
        return self.method in IDEMPOTENT or self.field(b"idempotency-key") is not None

    def field(self, name: bytes) -> bytes | None:
        """Give the first value of an end-to-end field, by its lower-case name."""
        return next((value for key, value in self.fields if key.lower() == name), None)


@dataclass(frozen=True, slots=True)
class Response:
    """A response that is made here. status: 200 to 599; its length and date are written by themselves."""

    status: int
    body: bytes = b""
    fields: Sequence[Field] = ()


def join(special: dict[bytes, bytes], name: bytes, value: bytes) -> None:
    """Take another value of a special field; Refusal where one value is all there may be."""
    if name in ONCE:
        raise Refusal(400, f"{name.decode()} more than once")
    special[name] = special[name] + b", " + value


def check_target(request: Request) -> None:
    """Bring the target into origin-form; Refusal for what is none.

    Source: RFC 9112 §3.2: the authority of an absolute-form goes before Host, and here they must not contradict each other.
    """
    target = request.target
    if not target or target.translate(None, _IN_TARGET):
        raise Refusal(400, "malformed target")
    if target[0] == 0x2F or (target == b"*" and request.method == b"OPTIONS"):
        return
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise Refusal(400, "malformed target")
    if request.host.lower() != absolute[1].lower():
        raise Refusal(400, "Host is not the target's")
    path = absolute[2] or b"/"
    request.target = path if path[0] == 0x2F else b"/" + path


def check_authority(value: bytes) -> None:
    """Raise Refusal for what cannot be the value of Host. Source: RFC 9112 §3.2, RFC 3986 §3.2.2."""
    if len(value) > 255 or not _AUTHORITY.fullmatch(value):
        raise Refusal(400, "malformed Host")


def plain_address(text: str) -> str:
    """Give an address; one of IPv4 that a socket for both wrote as IPv6 (::ffff:192.0.2.1) as IPv4. Source: RFC 4291 §2.5.5.2."""
    if text[:7].lower() != "::ffff:":
        return text
    try:
        return str(ipaddress.IPv6Address(text).ipv4_mapped or text)
    except ValueError:
        return text


def tokens(value: bytes) -> list[bytes]:
    """Give the members of a comma-separated list, lower case."""
    return [token for part in value.split(b",") if (token := part.strip(b" \t").lower())]


def without_nominated(fields: list[Field], special: dict[bytes, bytes]) -> list[Field]:
    """Leave out what the Connection field names: that was for this connection only."""
    named = {*tokens(special.get(b"connection", b""))} - ORDINARY
    return [field for field in fields if field[0].lower() not in named] if named else fields


def trailers_to_pass(trailers: Sequence[Field]) -> list[Field]:
    """Give the trailer fields that may be passed on."""
    return [field for field in trailers if field[0].lower() not in NOT_IN_TRAILERS and b"_" not in field[0]]


_BODILESS = (204, 205, 304)
_LINES = {status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}


def status_line(status: int) -> bytes:
    """Give the status line; the reason phrase is the registered one."""
    return _LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def reason(status: int) -> str:
    """Give a status in words."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return str(status)


def own_response(response: Response, lines: bytes, close: bool, bodiless: bool) -> bytes:
    """Write a response that is made here, with a body of a few words when it has none."""
    body = response.body or (b"" if response.status in _BODILESS else b"%d %b\n" % (response.status, reason(response.status).encode()))
    if response.status in (204, 304):
        body = b""  # a client takes it for the next response (RFC 9112 §6.3)
    head = [status_line(response.status), b"Date: ", formatdate(usegmt=True).encode(), b"\r\n", lines]
    head += (b"%b: %b\r\n" % field for field in response.fields)
    if body and not any(name.lower() == b"content-type" for name, _ in response.fields):
        head.append(b"Content-Type: text/plain; charset=utf-8\r\n")
    if response.status not in (204, 304):
        head.append(b"Content-Length: %d\r\n" % len(body))
    head.append(b"Connection: close\r\n\r\n" if close else b"\r\n")
    return b"".join(head) + (b"" if bodiless else body)
