"""RequestReader: bytes in, requests out. Strict: what two parsers might read differently is refused (RFC 9112 §11.2).

llhttp refuses bare CR and LF, obs-fold, white space around names and in chunk sizes, both lengths or one twice; here is what it lets
through or leaves to its user. No I/O.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from httptools import HttpParserCallbackError, HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser

from lbcore.http.message import (
    ORDINARY,
    SPECIAL_OF_REQUEST,
    UPGRADES,
    Field,
    Refusal,
    Request,
    check_authority,
    check_target,
    join,
    tokens,
    without_nominated,
)

__all__ = ["Limits", "RequestReader"]

_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ ")  # RFC 9110 §9.1; llhttp knows those of the registry and some more
_REMEMBERED = 4096  # bytes of a head, on each connection


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one connection may make the engine hold or do.

    head: bytes of a head, and of a trailer section; fields: in it; body: bytes of a request's, None = any number
    held: bytes of a body that are held for one side while the other is not ready; replay: bytes of a body kept to send it again
    """

    head: int = 32_768
    fields: int = 128
    body: int | None = None
    held: int = 65_536
    replay: int = 65_536


class RequestReader:
    """Read one client's requests.

    `ready` gets every request when its head is complete; its body and trailers follow in place. Raises Refusal; nothing may be fed
    after that. `rest`: what came after a request that asks to upgrade; `go_on` reads it as the next request.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser = HttpRequestParser(self)
        self._last = b""  # what was fed last, if it was one whole request without a body
        self._like: Request | None = None  # and that, if it came twice
        self._host: bytes | None = None  # the last that was found to be in order
        self._primed = False  # the parser is being told of a head that was read before
        self.ready: deque[Request] = deque()
        self.reading: Request | None = None  # its head is there, its body not yet
        self.switch: Request | None = None  # asked to upgrade: nothing is read until `go_on`
        self.rest = b""
        self.begun = False  # in the middle of a head
        self._unread = 0
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._fields: list[Field] = []
        self._special: dict[bytes, bytes] = {}
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        if self.switch is not None:
            self.rest += data
            return
        between = not self.begun and self.reading is None
        if between and self._like is not None and data == self._last:
            self.ready.append(self._again(self._like))
            return
        before, whole = len(self.ready), data
        while data:
            data = self._read(data)
        if self.begun:
            self._count_unfinished(len(whole))
        else:
            self._unread = 0
            if between and len(self.ready) == before + 1:
                self._remember(whole, self.ready[-1])

    # ---- clients that send the same head again and again

    def _remember(self, data: bytes, request: Request) -> None:
        """Remember what was fed between two requests and was one whole request; when it comes twice, what was read of it, too."""
        self._like = None
        if self.reading is None and self.switch is None and request.length is None and not request.chunked and request.keep_alive:
            if data == self._last:
                self._like = Request(request.method, request.target, [*request.fields], {**request.special}, True, request.old)
            self._last = data if len(data) <= _REMEMBERED else b""

    def _again(self, like: Request) -> Request:
        """Give the request that the parser would read from the same bytes; that leaves the parser as it is, between two requests."""
        request = Request(like.method, like.target, [*like.fields], {**like.special}, True, like.old)
        request.complete = True
        return request

    def _read(self, data: bytes) -> bytes:
        """Give what is still to be read, by another parser: what follows an upgrade that is not made."""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            offset = upgrade.args[0]
        except HttpParserInvalidMethodError as error:
            raise Refusal(501, "unknown method") if _METHOD.match(data) else refusal_of(error) from None
        except HttpParserError as error:
            raise refusal_of(error) from None
        else:
            return b""
        return self._upgraded(data[offset:])

    def go_on(self) -> None:
        """Read what followed a request whose upgrade came to nothing."""
        self.switch, rest, self.rest = None, self.rest, b""
        self._parser = HttpRequestParser(self)
        self.feed(rest)

    def _count_unfinished(self, size: int) -> None:
        self._unread += size  # in the first part there may be whole requests before it
        if self._unread > self._limits.head and self._unread > size:
            raise Refusal(431, "head too long")

    # ---- llhttp's callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        self.begun = not self._primed

    def on_url(self, url: bytes) -> None:
        """Take a part of the target."""
        self._target += url
        if len(self._target) > self._limits.head:
            raise Refusal(414, "target too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field."""
        if value and value[-1] <= 0x20:
            value = value.rstrip(b" \t")
        self._size += len(name) + len(value)
        if self.reading is not None:
            self._add_trailer(name, value)
            return
        key = name.lower()
        if key in SPECIAL_OF_REQUEST:
            if key in self._special:
                join(self._special, key, value)
            else:
                self._special[key] = value
        elif b"_" not in key or key.replace(b"_", b"-") not in SPECIAL_OF_REQUEST:  # CGI and WSGI cannot tell "_" from "-"
            self._fields.append((name, value))

    def _add_trailer(self, name: bytes, value: bytes) -> None:
        assert self.reading is not None
        self.reading.trailers = [*self.reading.trailers, (name, value)]
        if self._size > self._limits.head or len(self.reading.trailers) > self._limits.fields:
            raise Refusal(431, "too many trailer fields")

    def on_headers_complete(self) -> None:
        """Take the end of a head."""
        if self._primed:
            return
        parser, special = self._parser, self._special
        if self._size > self._limits.head or len(self._fields) > self._limits.fields:
            raise Refusal(431, "too many fields")
        keep_alive = parser.should_keep_alive()
        old = False
        if not keep_alive or b"connection" in special:  # else it can only be 1.1
            version = parser.get_http_version()
            if version != "1.1" and version != "1.0":
                raise Refusal(505, "only HTTP/1.1 and 1.0")
            old = version == "1.0"
        request = Request(parser.get_method(), self._target, self._fields, special, keep_alive, old)
        self._check(request)
        self._reset()
        self.begun = False
        self.reading = request
        self.ready.append(request)
        if b"upgrade" in special and parser.should_upgrade():
            self.switch = request

    def _check(self, request: Request) -> None:
        special = request.special
        if request.method == b"CONNECT":
            raise Refusal(501, "no tunnels")
        host = special.get(b"host")
        if host is not None:
            if host != self._host:
                check_authority(host)
                self._host = host
        elif request.old:
            special[b"host"] = b""
        else:
            raise Refusal(400, "no Host")
        check_target(request)
        if len(special) > 1:
            self._check_special(request)

    def _check_special(self, request: Request) -> None:
        special = request.special
        if b"content-length" in special:
            request.length = int(special[b"content-length"])
            if self._limits.body is not None and request.length > self._limits.body:
                raise Refusal(413, "body too long")
        if b"transfer-encoding" in special:
            if request.old:
                raise Refusal(400, "Transfer-Encoding in HTTP/1.0")  # RFC 9112 §6.1
            if special[b"transfer-encoding"].lower() != b"chunked":
                raise Refusal(501, "only the transfer coding chunked")
            request.chunked = True
        if special.get(b"expect", b"100-continue").lower() != b"100-continue":
            raise Refusal(417, "unknown expectation")
        if special.get(b"connection", b"close").lower() not in ORDINARY:
            request.fields = without_nominated(request.fields, special)
            if b"upgrade" in tokens(special[b"connection"]) and special.get(b"upgrade", b"").lower() in UPGRADES:
                request.upgrade = special[b"upgrade"].lower()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        request = self.reading
        assert request is not None
        request.received += len(body)
        if self._limits.body is not None and request.received > self._limits.body:
            raise Refusal(413, "body too long")
        request.parts.append(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        request = self.reading
        if self.switch is not None and request is not None and (request.length or request.chunked):
            return  # llhttp takes the body for the other protocol
        if request is not None:
            request.complete = True
        self.reading = None
        self._reset()

    # ---- upgrades

    def _upgraded(self, rest: bytes) -> bytes:
        """Wait for what becomes of the upgrade; other protocols, and bodies, are read on without (RFC 9110 §7.8: it may be ignored)."""
        request = self.switch
        assert request is not None
        if request.complete and request.upgrade:
            self.rest = rest
            return b""
        self.switch, request.upgrade = None, b""
        self._parser = HttpRequestParser(self)
        if not request.complete:
            self._prime(request)
        return rest

    def _prime(self, request: Request) -> None:
        """Tell the parser of a request's head, so that it reads its body."""
        framing = b"Transfer-Encoding: chunked" if request.chunked else b"Content-Length: %d" % (request.length or 0)
        close = b"" if request.keep_alive else b"\r\nConnection: close"
        self._primed, self.reading = True, None
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + close + b"\r\n\r\n")
        self._reset()
        self._primed, self.reading = False, request


def refusal_of(error: HttpParserError) -> Refusal:
    """Give what a callback raised, or else say what llhttp did not like."""
    if isinstance(error, HttpParserCallbackError) and error.__context__ is not None:
        if isinstance(error.__context__, Refusal):
            return error.__context__
        raise error.__context__
    return Refusal(400, str(error).lower().replace("`", ""))
