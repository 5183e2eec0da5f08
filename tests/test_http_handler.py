"""What a handler may decide when a response has come, and when none has."""

from __future__ import annotations

import dataclasses

import pytest
from proxying import OK, QUICK, Reader, To, Writer, answering, answers, forwarding, origin, read_request, request, resetting, talk

from lbcore.http.forward import Call, Response
from lbcore.http.response import ResponseReader


class Own(To):
    """Answers in place of upstreams: when they did (`instead`), and when they did not."""

    instead = Response(418, b"teapot", [(b"X-Own", b"1")])

    def answered(self, call: Call, head: ResponseReader, /) -> Response | None:
        return self.instead if head.status != 200 or call.request.target == b"/own" else None

    def failed(self, call: Call, response: Response, /) -> Response:
        cause = (call.cause or "").encode()
        return Response(599, b"%d %b" % (response.status, cause))


async def reset_after_request(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    resetting(writer)


async def silent(reader: Reader, writer: Writer) -> None:
    await reader.read()


@pytest.mark.parametrize("head", [b"", b"Transfer-Encoding: chunked\r\n"])
async def test_a_response_in_place_of_the_upstreams(head: bytes) -> None:
    theirs = b"HTTP/1.1 200 OK\r\n" + (head + b"\r\n2\r\nok\r\n0\r\n\r\n" if head else b"Content-Length: 2\r\n\r\nok")
    async with origin(answering(theirs)) as there:
        handler = Own(there.url)
        async with forwarding(handler) as port:
            data = await talk(port, request("GET", "/own", close=False) + request("HEAD", "/own", close=False) + request())
        first, second, third = answers(data, ["GET", "HEAD", "GET"])
        assert (first.status, first.body, first.field(b"x-own")) == (418, b"teapot", b"1")
        assert (second.status, second.body, third.body) == (418, b"", b"ok")
    assert [call.status for call in handler.calls] == [418, 418, 200] and not any(call.cause for call in handler.calls)


async def test_a_connection_whose_response_was_replaced_in_mid_body_is_not_used_again() -> None:
    async def slow(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 200\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        await reader.read()

    async with origin(slow) as there:
        async with forwarding(Own(there.url)) as port:
            data = await talk(port, request(close=False) + request())
        assert [answer.body for answer in answers(data, ["GET", "GET"])] == [b"teapot", b"teapot"]
        assert len(there.got) == 2


async def test_a_switch_of_protocols_may_be_refused() -> None:
    switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with origin(answering(switching)) as there:
        async with forwarding(Own(there.url)) as port:
            upgrade = request("GET", "/", b"", "Connection: Upgrade", "Upgrade: websocket", close=False)
            first, second = answers(await talk(port, upgrade + request()), ["GET", "GET"])
        assert (first.status, second.status, len(there.got)) == (418, 599, 2)  # the second did not ask to switch


@pytest.mark.parametrize(
    ("script", "limit", "said"),
    [
        (reset_after_request, None, b"502 reset"), (silent, None, b"504 timeout"), (silent, 0.2, b"504 timeout"),
        (answering(b"bad\r\n\r\n"), None, b"502 status"),
    ],
)  # fmt: skip
async def test_a_handler_words_a_failure(script: object, limit: float | None, said: bytes) -> None:
    async with origin(script) as there:  # type: ignore[arg-type]
        handler = Own(there.url)
        async with forwarding(handler, dataclasses.replace(QUICK, total=limit, first_byte=10.0 if limit else 0.3)) as port:
            [answer] = answers(await talk(port, request()))
    assert (answer.status, answer.body) == (599, said)
    assert len(handler.failures) == len(handler.calls) == 1


async def test_a_bug_in_wording_a_failure_keeps_the_engines_answer() -> None:
    class Buggy(To):
        def failed(self, call: Call, response: Response, /) -> Response:
            raise RuntimeError("failed")

    async with origin(reset_after_request) as there:
        handler = Buggy(there.url)
        async with forwarding(handler) as port:
            [answer] = answers(await talk(port, request()))
    assert answer.status == 502 and handler.engine.counters["exceptions"] == 1


async def test_a_failure_is_worded_once_and_only_when_nothing_else_helps() -> None:
    worded: list[str | None] = []

    class Counting(To):
        def failed(self, call: Call, response: Response, /) -> Response:
            worded.append(call.cause)
            return response

    async with origin(reset_after_request) as bad, origin(answering(OK)) as good:
        async with forwarding(Counting(bad.url, good.url)) as port:
            assert answers(await talk(port, request()))[0].status == 200
            assert not worded
            assert answers(await talk(port, request("POST", "/", b"x")), ["POST"])[0].status == 502
    assert worded == ["reset"]
