"""Call: one request on its way to an upstream and its response on the way back.

    begin -> Response: answered here
          \\-> Target: send -> attach -> (request) ... received -> (head, body) ... finish -> done
                        ^       |
                        |     failed -> handler.retry -> another Target, or 502/503/504
                        \\-------/
Only what was not sent at all, or may be sent twice, is sent again, and only before any byte of a response was passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

from lbcore.http.message import Field, Request, Response, status_line, trailers_to_pass
from lbcore.http.target import Target

if TYPE_CHECKING:
    from lbcore.http.inbound import Inbound
    from lbcore.http.response import ResponseReader
    from lbcore.http.upstream import Outbound, Upstream

__all__ = ["Call"]

STATUS_OF_CAUSE = {"timeout": 504, None: 503}


class Call:
    """One request, its attempts and its response.

    client: its address, after the trust list; target: where it goes or went last, None before; attempts: how many were begun
    begun_at, wanted_at, sent_at, head_at: seconds on the engine's clock, of the request's head, of beginning to wait for a connection,
    of the last byte sent in this attempt, of the response's head; 0.0 = not yet
    size: bytes of the response's body, once the call has ended
    status: of the response, 0 = none yet; cause: why it failed, None = it did not; cut: the failure came in the middle of the response
    state: the handler's own; extra: lines that the handler adds to the response's head
    """

    def __init__(self, inbound: Inbound, request: Request, now: float) -> None:
        self.inbound, self.request, self.client = inbound, request, inbound.client
        self.begun_at = now
        self.wanted_at = self.sent_at = self.head_at = 0.0
        self.target: Target | None = None
        self.connection: Outbound | None = None
        self.attempts = self.status = self.size = 0
        self.cause: str | None = None
        self.state: Any = None
        self.extra = self.request_id = b""
        self.started = False  # a byte of this request went out in this attempt
        self.sent_all = request.length is None and not request.chunked
        self.finished = self.aborted = self.cut = self.chunk_response = False
        self._stale_retry = False
        self._replayable = True
        self._kept: Sequence[bytes] = ()  # parts of the body that were sent, to send them again

    # ---- decide

    def begin(self) -> None:
        """Ask the handler where to."""
        engine = self.inbound.engine
        try:
            if self.request.special.get(b"via") is not None and engine.heads.loops(self):
                decision: Target | Response | Awaitable[Target | Response] = Response(508)
            else:
                decision = engine.handler.begin(self)
        except Exception:
            engine.unexpected("a handler's decision")
            decision = Response(500)
        if isinstance(decision, (Target, Response)):
            self._decided(decision)
        else:
            engine.keep(asyncio.ensure_future(self._decide(decision)))

    async def _decide(self, decision: Awaitable[Target | Response]) -> None:
        try:
            found = await decision
            if not isinstance(found, (Target, Response)):
                raise TypeError(f"a decision is a Target or a Response, not {found!r}")
        except Exception:
            self.inbound.engine.unexpected("a handler's decision")
            found = Response(500)
        if not self.finished:
            self._decided(found)

    def _decided(self, decision: Target | Response) -> None:
        if isinstance(decision, Response):
            self.reply(decision)
        else:
            self.send(decision)

    # ---- send

    def send(self, target: Target) -> None:
        """Begin an attempt."""
        self.target = target
        self.attempts += 1
        self.started = False
        connection = target.upstream.take()
        if connection is not None:
            self.attach(connection)
        else:
            self.sent_at, self.wanted_at = 0.0, self.inbound.engine.clock()
            target.upstream.want(self)

    def wants(self, upstream: Upstream) -> bool:
        """Say whether the call still waits for a connection to that upstream."""
        return not self.finished and self.connection is None and self.target is not None and self.target.upstream is upstream

    def attach(self, connection: Outbound) -> None:
        """Send the request, as far as it is there."""
        request = self.request
        assert self.target is not None
        try:
            head = self.inbound.engine.heads.request(self, self.target)
        except Exception:  # a handler or a policy put something into the fields that are no bytes
            self.inbound.engine.unexpected("writing a request")
            self.reply(Response(500))
            connection.upstream.give(connection)
            return
        self.connection, connection.call = connection, self
        connection.reader.begin(request.method == b"HEAD")
        self.started = True
        self.sent_at = self.inbound.engine.clock()
        connection.transport.write(head)
        if not self.sent_all:
            self.more()
            self.inbound.regulate()

    def more(self) -> None:
        """Send on what has been read of the request's body."""
        connection, request = self.connection, self.request
        if connection is None or connection.closed or self.sent_all:
            return
        if parts := request.parts:
            request.parts = []
            self._keep(parts)
            connection.transport.write(_chunks(parts) if request.chunked else b"".join(parts))
            self.sent_at = self.inbound.engine.clock()
        if request.complete:
            if request.chunked:
                connection.transport.write(_last_chunk(request.trailers))
            self.sent_all = True
            self.sent_at = self.inbound.engine.clock()

    def _keep(self, parts: list[bytes]) -> None:
        """Keep what is sent to send it again, as long as it is not too much."""
        if self.request.received > self.inbound.engine.limits.replay or not self.request.idempotent:
            self._replayable = False
            self._kept = ()
        if self._replayable:
            self._kept = [*self._kept, *parts]

    # ---- failures

    @property
    def repeatable(self) -> bool:
        """Say whether the request may be sent once more: none of the response was passed on, and either nothing of the request was
        sent or sending it twice does no harm (RFC 9110 §9.2.2).
        """
        if self.status or self.finished:
            return False
        return not self.started or (self._replayable and self.request.idempotent)

    def failed(self, cause: str | None) -> None:
        """End an attempt. cause: of the upstream's failure, None = the fault is here."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop()
        if self.status:
            self.size = connection.reader.received if connection is not None else 0
            self._cut_off(cause)
            return
        following = self._next(cause, stale=connection is not None and not connection.fresh and cause == "reset")
        if following is not None:
            self._rewind()
            self.send(following)
            return
        self._answer_failure(cause)

    def _next(self, cause: str | None, stale: bool) -> Target | None:
        if stale and self.repeatable and not self._stale_retry and self.target is not None:
            self._stale_retry = True  # it was closed between two calls, which says nothing of the upstream
            return self.target
        following = self._failure(cause)
        return following if self.repeatable else None

    def _failure(self, cause: str | None) -> Target | None:
        try:
            following = self.inbound.engine.handler.retry(self, cause)
            return following if isinstance(following, Target) else None
        except Exception:
            self.inbound.engine.unexpected("a handler's retry")
            return None

    def _answer_failure(self, cause: str | None) -> None:
        """Answer a call that has no response: as the handler says."""
        self.cause = cause or "overload"
        response = Response(STATUS_OF_CAUSE.get(cause, 502))
        try:
            response = self.inbound.engine.handler.failed(self, response)
        except Exception:
            self.inbound.engine.unexpected("a handler's failed")
        self.reply(response)

    def _rewind(self) -> None:
        self.sent_at = 0.0
        self.request.parts[:0] = self._kept
        self._kept = ()
        self.sent_all = self.request.length is None and not self.request.chunked

    def broken(self, why: str) -> None:
        """Take an answer that is no HTTP, or not the kind that can be passed on."""
        self.inbound.engine.counters["broken_responses"] += 1
        self.failed("status")

    def ended(self, reader: ResponseReader) -> None:
        """Take the end of the upstream's connection."""
        if self.connection is None:
            return
        if reader.end():
            self.received(reader)
        else:
            self.failed("reset")

    def _cut_off(self, cause: str | None) -> None:
        """The response breaks off in its body: so must the client's connection, or it would look complete (RFC 9112 §8)."""
        self.cause, self.cut = cause, True
        inbound = self.inbound
        self._done()
        inbound.abort(reset=self.request.old)  # for HTTP/1.0 the end of the connection is the end of the body

    def abort(self) -> None:
        """The client is gone."""
        if self.finished:
            return
        self.aborted = True
        connection, self.connection = self.connection, None
        if connection is not None:
            self.size = connection.reader.received
            connection.drop()
        self._done()

    def expire(self) -> None:
        """The whole call took too long."""
        if self.finished:
            return
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop()
        if self.status:
            self._cut_off("timeout")
            return
        self.started, self._replayable = True, False  # there is no time left to try again
        if self.target is not None:
            self._failure("timeout")
        self._answer_failure("timeout")

    def relayed(self) -> None:
        """Take the end of the other protocol."""
        self.inbound.call = None
        if not self.finished:
            self._done()

    # ---- the response

    def received(self, reader: ResponseReader) -> None:
        """Pass on what has come of the response."""
        if reader.interim:
            self._pass_interim(reader)
        parts: list[bytes] = []
        if not self.status:
            if not reader.status or not self._accept(reader):
                return
            try:
                parts.append(self.inbound.engine.heads.response(self, reader))
            except Exception:
                self.inbound.engine.unexpected("writing a response")
                self._replace(reader, Response(500))
                return
        self._pass_body(reader, parts)
        if reader.complete:
            self._finish()

    def _accept(self, reader: ResponseReader) -> bool:
        """Take a response's head; False = something else has been done about it than to pass it on."""
        self.head_at = self.inbound.engine.clock()
        if reader.switched and not self.request.upgrade:
            self.broken("101 to a request that did not ask for it")
            return False
        following = None
        try:
            following = self.inbound.engine.handler.answered(self, reader)
        except Exception:
            self.inbound.engine.unexpected("a handler's answered")
        if isinstance(following, Response):
            self._replace(reader, following)
            return False
        if isinstance(following, Target) and self.repeatable:
            self.redirect(following)
            return False
        self.status = reader.status
        if reader.switched:
            self.inbound.switch(self, reader)
        return not reader.switched

    def redirect(self, target: Target) -> None:
        """Give up the attempt and send the call elsewhere; it must be `repeatable`."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop()
        self._rewind()
        self.send(target)

    def _pass_body(self, reader: ResponseReader, parts: list[bytes]) -> None:
        if reader.parts:
            if self.chunk_response:
                parts.append(_chunks(reader.parts))
            else:
                parts += reader.parts
            reader.parts = []
        if reader.complete and self.chunk_response:
            parts.append(_last_chunk(reader.trailers))
        if parts:
            self.inbound.write(b"".join(parts) if len(parts) > 1 else parts[0])

    def _pass_interim(self, reader: ResponseReader) -> None:
        interim, reader.interim = reader.interim, []
        if self.request.old or self.status:
            return
        for status, fields in interim:
            self.inbound.write(b"".join([status_line(status), *(b"%b: %b\r\n" % field for field in fields), b"\r\n"]))

    def _replace(self, reader: ResponseReader, response: Response) -> None:
        """Answer from here although the upstream did."""
        self._let_go(reader.complete and not reader.switched)
        self.reply(response)

    def _let_go(self, complete: bool) -> None:
        """Part from the connection. complete: the response is; if the request is, too, another call may use it."""
        connection, self.connection = self.connection, None
        if connection is not None:
            self.size = connection.reader.received
            if complete and self.request.complete:
                connection.release()
            else:
                connection.drop()

    def _finish(self) -> None:
        self._let_go(True)
        inbound = self.inbound
        self._done()
        inbound.answered(self)

    def reply(self, response: Response) -> None:
        """Answer from here."""
        try:
            data = self.inbound.engine.heads.own(self, response)
        except Exception:
            self.inbound.engine.unexpected("writing a response")
            response = Response(500)
            data = self.inbound.engine.heads.own(self, response)
        self.status, self.size = response.status, len(response.body)
        self.inbound.write(data)
        inbound = self.inbound
        self._done()
        inbound.answered(self)

    def _done(self) -> None:
        self.finished = True
        try:
            self.inbound.engine.handler.done(self)
        except Exception:
            self.inbound.engine.unexpected("a handler's done")


def _chunks(parts: list[bytes]) -> bytes:
    """Write one chunk (RFC 9112 §7.1)."""
    body = b"".join(parts)
    return b"%x\r\n%b\r\n" % (len(body), body) if body else b""


def _last_chunk(trailers: Sequence[Field]) -> bytes:
    if not trailers:
        return b"0\r\n\r\n"
    return b"".join([b"0\r\n", *(b"%b: %b\r\n" % field for field in trailers_to_pass(trailers)), b"\r\n"])
