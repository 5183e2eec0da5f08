"""ResponseReader: bytes in, responses out, as strictly as requests are read: an answer must not split in two either. No I/O."""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from lbcore.http.message import HOP_BY_HOP, ORDINARY, SPECIAL_OF_RESPONSE, Field, Refusal, join, without_nominated
from lbcore.http.reading import Limits, refusal_of

__all__ = ["ResponseReader"]


class ResponseReader:
    """Read one upstream's responses, one after the other.

    `interim` gets (status, fields) of each 1xx; `status` is 0 until the final head is there. length: as Content-Length says, None
    without; sized: the end of the body is known from the message and not from the connection's. Raises Refusal with status 502.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser = HttpResponseParser(self)
        self.interim: list[tuple[int, list[Field]]] = []
        self.parts: list[bytes] = []
        self.trailers: list[Field] = []
        self.begin(False)

    def begin(self, headless: bool) -> None:
        """Expect the response to the next request; headless: to a HEAD request, no body follows whatever the head says."""
        self.headless = headless
        self.status = 0
        self.fields: list[Field] = []
        self._special: dict[bytes, bytes] = {}
        self._unread = 0
        if self.interim or self.parts or self.trailers:
            self.interim, self.parts, self.trailers = [], [], []
        self.received = 0
        self.length: int | None = None
        self.chunked = self.sized = self.complete = self.keep_alive = self.switched = self.surplus = False
        self.rest = b""

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self.rest = data[upgrade.args[0] :]
        except HttpParserError as error:
            raise self._fault(error) from None
        if not self.status:
            self._unread += len(data)
            if self._unread > self._limits.head:
                raise Refusal(502, "head too long")

    def _fault(self, error: HttpParserError) -> Refusal:
        return Refusal(502, str(refusal_of(error)))

    def restart(self) -> None:
        """Forget what llhttp expects of a message whose body does not come (HEAD)."""
        self._parser = HttpResponseParser(self)

    def end(self) -> bool:
        """Say whether the connection's end is a proper end of the response."""
        if self.status and not self.sized and not self.complete:
            self.complete = True
        return self.complete

    # ---- llhttp's callbacks

    def on_message_begin(self) -> None:
        """A response begins; when the last one is not taken yet, nobody asked for it."""
        if self.status:
            self.surplus = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field."""
        if value and value[-1] <= 0x20:
            value = value.rstrip(b" \t")
        if self.status:
            self._add_trailer(name, value)
            return
        key = name.lower()
        if key not in SPECIAL_OF_RESPONSE:
            self.fields.append((name, value))
        elif key in self._special and key != b"x-request-id":
            join(self._special, key, value)
        else:
            self._special[key] = value

    def _add_trailer(self, name: bytes, value: bytes) -> None:
        if self.surplus:
            return
        self.trailers.append((name, value))
        if len(self.trailers) > self._limits.fields:
            raise Refusal(502, "too many trailer fields")

    def on_headers_complete(self) -> None:
        """Take the end of a head."""
        parser = self._parser
        status = parser.get_status_code()
        if self.status:
            raise Refusal(502, "more than one response")
        if len(self.fields) > self._limits.fields:
            raise Refusal(502, "too many fields")
        if status < 200 and status != 101:
            self._interim(status)
            return
        self.status = status
        special = self._special
        self.keep_alive = parser.should_keep_alive()
        if status == 101:
            self.switched = True
            if b"upgrade" in special:
                self.fields = [*self.fields, (b"upgrade", special[b"upgrade"])]
        elif status > 599:
            raise Refusal(502, "status out of range")
        if special.get(b"connection", b"close").lower() not in ORDINARY:
            self.fields = without_nominated(self.fields, special)
        self._frame(special)

    def _frame(self, special: dict[bytes, bytes]) -> None:
        if b"transfer-encoding" in special:
            if special[b"transfer-encoding"].lower() != b"chunked" or self._parser.get_http_version() != "1.1":
                raise Refusal(502, "only the transfer coding chunked")
            self.chunked = True
        elif b"content-length" in special:
            self.length = int(special[b"content-length"])
        bodiless = self.headless or self.status in (101, 204, 304)
        self.sized = bodiless or self.chunked or self.length is not None
        if bodiless:
            self.complete = True

    def _interim(self, status: int) -> None:
        if status < 100 or len(self.interim) > 16:
            raise Refusal(502, "status out of range")
        self.interim.append((status, [field for field in self.fields if field[0].lower() not in HOP_BY_HOP]))
        self.fields, self._special, self._unread = [], {}, 0

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        if self.headless or not self.status:
            self.surplus = True
            return
        self.received += len(body)
        self.parts.append(body)

    def on_message_complete(self) -> None:
        """Take the end of a response."""
        if self.status:
            self.complete = True
