"""Differential fuzzing end to end: hostile bytes from clients and upstreams, with h11 as the second opinion on all that is passed on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from zlib import crc32

import h11
import pytest
from hostile import EVIL, STREAM, pieces
from hypothesis import given
from hypothesis import strategies as st
from proxying import QUICK, Answer, Heard, Origin, Reader, To, Writer, answers, forwarding, origin, talk

from lbcore.http.forward import Timeouts
from lbcore.http.gateway import Gateway, Units

# ===== clients


def heard_in(data: bytes) -> tuple[list[Heard], bool]:
    """Read requests with h11 as far as it goes; whether it refused the rest."""
    connection, heard = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20), list[Heard]()
    connection.receive_data(data)
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                latest = Heard(event.method, event.target, [*event.headers])
            elif isinstance(event, h11.Data):
                latest.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                latest.trailers = [*event.headers]
                heard.append(latest)
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return heard, False
                connection.start_next_cycle()
            else:
                return heard, False
    except h11.RemoteProtocolError:
        return heard, True


def echo(method: bytes, target: bytes, body: bytes) -> bytes:
    return b"%b %b %08x" % (method, target, crc32(body))


async def echoing(reader: Reader, writer: Writer) -> None:
    """Answer every request with what was understood of it, by h11."""
    with suppress(h11.RemoteProtocolError):  # a client's body ended early
        await _echo(reader, writer)


async def _echo(reader: Reader, writer: Writer) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    method = target = body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                writer.write(connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            method, target, body = event.method, event.target, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            text = echo(method, target, body)
            framing = (b"content-length", b"%d" % len(text)) if len(body) % 2 else (b"transfer-encoding", b"chunked")
            parts: list[h11.Event] = [h11.Response(status_code=200, headers=[framing, (b"x-echo", text)]), h11.EndOfMessage()]
            if method != b"HEAD":
                parts.insert(1, h11.Data(data=text))
            writer.write(b"".join(connection.send(part) or b"" for part in parts))
            if connection.our_state is not h11.DONE:
                return
            connection.start_next_cycle()
        else:
            return


HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"transfer-encoding", b"host", b"x-nominated",
}  # fmt: skip
OURS = {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"via", b"x-request-id", b"content-length", b"expect"}


def end_to_end(request: Heard) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in request.fields if name not in HOP_BY_HOP | OURS]


def same(sent: Heard, got: Heard) -> None:
    """Hold what arrived against what h11 reads in the client's bytes."""
    target = re.sub(rb"(?i)^https?://[^/?]*(?=[/?]|$)", b"", sent.target) if sent.target[:1] not in b"/*" else sent.target
    assert (got.method, got.target) == (sent.method, target if target[:1] in b"/*" and target else b"/" + target)
    assert got.body == sent.body
    assert end_to_end(got) == end_to_end(sent)


@dataclass
class Rig:
    """One engine and one upstream for many examples."""

    port: int
    there: Origin
    handler: To = field(default_factory=To)


@asynccontextmanager
async def rig(script: object, timeouts: Timeouts = QUICK) -> AsyncIterator[Rig]:
    async with origin(script) as there:  # type: ignore[arg-type]
        handler = To(there.url)
        async with forwarding(handler, timeouts) as port:
            yield Rig(port, there, handler)


@contextmanager
def running(script: object) -> Iterator[tuple[asyncio.Runner, Rig]]:
    with asyncio.Runner() as runner:
        context = rig(script)
        made = runner.run(context.__aenter__())
        try:
            yield runner, made
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.mark.slow
def test_what_clients_send_has_one_meaning() -> None:
    """Whatever arrives upstream is HTTP to h11, is what h11 reads in the client's bytes, and every answer is the one to its request."""
    with running(echoing) as (runner, made):

        @given(pieces(STREAM))
        def check(parts: list[bytes]) -> None:
            runner.run(_one_meaning(made, parts))

        check()


async def _one_meaning(made: Rig, parts: list[bytes]) -> None:
    upstream = made.handler.engine.upstreams.values()
    for each in upstream:
        each.close_idle()
    made.there.got.clear()
    made.handler.calls.clear()
    answer = await talk(made.port, *parts, end=True)
    got = list[Heard]()
    for data in made.there.got:
        found, refused = heard_in(bytes(data))
        assert not refused, bytes(data)
        got += found
    sent, _ = heard_in(b"".join(parts))
    for ours, theirs in zip(sent, got, strict=False):
        same(ours, theirs)
    extra = got[len(sent) :]
    assert not any(b"smuggled" in each.target for each in extra), (sent, got)
    answered = _answers_to(answer, got)
    assert len(answered) <= len(got)
    for reply, request in zip(answered, got, strict=False):
        assert reply.field(b"x-echo") == echo(request.method, request.target, request.body)


def _answers_to(data: bytes, got: list[Heard]) -> list[Answer]:
    """Read what the client got: answers to the requests in their order, then at most one refusal, and nothing after it."""
    methods = [request.method.decode() for request in got]
    found = answers(data, [*methods, "GET"])
    if found and not found[-1].complete:
        found = answers(data, [*methods, "HEAD"])  # the one that was refused
    assert all(each.complete for each in found[:-1])
    for each in found[:-1]:
        assert each.status == 200
    if found and found[-1].status != 200:
        assert found[-1].status in (400, 408, 413, 414, 417, 431, 501, 505, 508) and found[-1].complete
        return found[:-1]
    return found


@pytest.mark.slow
def test_a_gateway_passes_on_nothing_ambiguous_either(caplog: pytest.LogCaptureFixture) -> None:
    """Here many requests are answered at once and on the spot: no path, no such method, a limit."""
    apis = [{"name": "site", "path": "/", "backend": "site", "operations": [{"name": "get", "method": "GET", "path": "/"}]}]
    with asyncio.Runner() as runner:
        context = origin(echoing)
        there = runner.run(context.__aenter__())
        gateway = Gateway("westeurope", units=Units(4), timeouts=QUICK)
        runner.run(gateway.__aenter__())
        gateway.apply({"epoch": 1, "sequence": 1, "backends": [{"name": "site", "urls": [there.url]}], "apis": apis})
        _, port = runner.run(gateway.listen("127.0.0.1", 0))

        async def visit(parts: list[bytes]) -> None:
            there.got.clear()
            await talk(port, *parts, end=True)
            for data in there.got:
                found, refused = heard_in(bytes(data))
                assert not refused and not any(b"smuggled" in each.target for each in found)

        @given(pieces(STREAM))
        def check(parts: list[bytes]) -> None:
            runner.run(visit(parts))

        try:
            check()
            assert gateway.units.under_way == 0 and not gateway.counters.get("exceptions")
        finally:
            runner.run(gateway.close())
            runner.run(context.__aexit__(None, None, None))
    assert not caplog.records


# ===== upstreams


class Hostile:
    """An upstream that answers /evil with the bytes it was given and everything else with OK and the request's number."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.split(b" ", 2)[1] != b"/evil":
                number = head.split(b" ", 2)[1]
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Echo: %b\r\n\r\n%b" % (len(number), number, number))
                continue
            for part in self.parts:
                writer.write(part)
                await asyncio.sleep(0)
            if not self.stays:
                return

    stays = False


@pytest.mark.slow
def test_what_upstreams_send_has_one_meaning() -> None:
    """A hostile answer is passed on as h11 reads it, or is a 502, or breaks off visibly; the calls around it get their own answers."""
    hostile = Hostile()
    with running(hostile) as (runner, made):

        @given(pieces(EVIL), st.sampled_from(["GET", "HEAD"]), st.booleans())
        def check(parts: list[bytes], method: str, stays: bool) -> None:
            hostile.parts, hostile.stays = parts, stays
            runner.run(_own_answers(made, b"".join(parts), method, stays))

        check()


async def _own_answers(made: Rig, evil: bytes, method: str, stays: bool) -> None:
    for each in made.handler.engine.upstreams.values():
        each.close_idle()
    made.handler.calls.clear()
    asked = (("GET", "/1"), (method, "/evil"), ("GET", "/3"))
    data = await talk(made.port, "".join(f"{verb} {path} HTTP/1.1\r\nHost: a\r\n\r\n" for verb, path in asked).encode(), end=True)
    found, heard = answers(data, ["GET", method, "GET"]), _heard_by_client(evil, method, not stays)
    assert found[0].field(b"x-echo") == b"/1" and found[0].complete
    assert len(found) > 1 or made.handler.calls[1].cut
    if len(found) > 1:
        _as_h11_reads(heard, found[1])
    if len(found) > 2 and heard is not None and not heard.surplus:  # else what comes late may meet the next call on that connection
        assert (found[2].field(b"x-echo"), found[2].body, found[2].complete) == (b"/3", b"/3", True)
    assert data.count(b"X-Echo: /3\r\n") <= 1
    assert all(call.finished for call in made.handler.calls)


@dataclass
class FromUpstream(Answer):
    surplus: bytes = b""


def _as_h11_reads(theirs: FromUpstream | None, passed: Answer) -> None:
    if passed.status in (502, 504):
        return
    if theirs is None:
        assert not passed.complete, "passed on what h11 refuses"
        return
    assert passed.status == theirs.status
    assert theirs.complete or not passed.complete
    assert passed.body == theirs.body if passed.complete else theirs.body.startswith(passed.body)
    assert _end_to_end(passed) == _end_to_end(theirs)


def _end_to_end(answer: Answer) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in answer.fields if name not in HOP_BY_HOP | OURS]


def _heard_by_client(data: bytes, method: str, ended: bool) -> FromUpstream | None:
    """Read an upstream's bytes with h11; None when it refuses them."""
    connection, heard = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20), FromUpstream(0, [])
    connection.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    try:
        while not heard.complete:
            event = connection.next_event()
            if isinstance(event, h11.Response):
                heard.status, heard.fields = event.status_code, [*event.headers]
            elif isinstance(event, h11.Data):
                heard.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                heard.complete = True
            elif event is h11.NEED_DATA and ended:
                connection.receive_data(b"")
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.RemoteProtocolError:
        return heard if heard.status and not heard.complete and ended else None
    heard.surplus = connection.trailing_data[0]
    return heard if heard.status else None
