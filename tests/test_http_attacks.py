"""What attackers and careless handlers try with the engine: forged fields, messages for two readings, answers that are none."""

from __future__ import annotations

from typing import Any

import pytest
from proxying import OK, To, answering, answers, forwarding, on_both_loops, origin, request, talk, understand

from lbcore.http.forward import Call, Response, Target
from lbcore.http.heads import Trusted
from lbcore.http.response import ResponseReader

LOOPBACK = ["127.0.0.0/8"]


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        (b"203.0.113.7:51834", "203.0.113.7"), (b"[2001:db8::1]:443", "2001:db8::1"), (b'"[2001:db8::1]"', "2001:db8::1"),
        (b"::ffff:203.0.113.7", "203.0.113.7"), (b"2001:db8::1", "2001:db8::1"), (b"6.6.6.6, unknown", "127.0.0.1"),
    ],
)  # fmt: skip
async def test_clients_are_found_as_proxies_write_them(chain: bytes, client: str) -> None:
    async with origin(answering()) as there:
        handler = To(there.url)
        async with forwarding(handler, trusted=LOOPBACK) as port:
            await talk(port, request("GET", "/", b"", f"X-Forwarded-For: {chain.decode()}"))
    assert handler.calls[0].client == client


def test_networks_may_be_written_as_ipv6_has_them() -> None:
    made = Trusted(["::ffff:10.0.0.0/104", "::ffff:192.0.2.1"])
    asked = ("10.1.2.3", "::ffff:10.1.2.3", "::FFFF:192.0.2.1", "11.0.0.1", "::1")
    assert [address in made for address in asked] == [True] * 3 + [False] * 2


def test_only_what_may_be_an_address_is_remembered() -> None:
    made = Trusted(["10.0.0.0/8"])
    for number in range(100):
        assert f"{number}{'x' * 1000}" not in made
    assert "10.0.0.1" in made and [*made._known] == ["10.0.0.1"]


async def test_an_old_client_without_host_is_read_as_strictly_as_any_other() -> None:
    async with origin(answering()) as there:
        handler = To(there.url)
        async with forwarding(handler) as port:
            body = await talk(port, b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")
            forged = await talk(port, b"GET / HTTP/1.0\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n")
            chunked = await talk(port, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert [answers(data)[0].status for data in (body, forged, chunked)] == [200, 200, 400]
    first, second = understand(bytes(b"".join(there.got)))
    assert first.body == b"hello" and second.field(b"x-forwarded-for") == b"127.0.0.1"


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_what_has_no_body_gets_none(status: int) -> None:
    handler = To()
    handler.answer = Response(status, b"HTTP/1.1 200 OK\r\n\r\n" if status != 205 else b"")
    async with forwarding(handler) as port:
        data = await talk(port, request(close=False) + request())
    assert [answer.status for answer in answers(data, ["GET", "GET"])] == [status] * 2 and data.count(b"HTTP/1.1") == 2


class Careless(To):
    """Mistakes of handlers and policies: text where bytes belong, nothing where an answer belongs."""

    def begin(self, call: Call, /) -> Any:
        path = call.request.target
        if path == b"/text":
            return Response(200, "text")  # type: ignore[arg-type]
        if path == b"/field":
            call.request.fields = [("x", "y")]  # type: ignore[list-item]
        return self._later() if path == b"/nothing" else self.target(0)

    async def _later(self) -> None:
        return None

    def answered(self, call: Call, head: ResponseReader, /) -> Target | Response | None:
        if call.request.target == b"/answer":
            head.fields = [("x", "y")]  # type: ignore[list-item]
        return None


@on_both_loops
@pytest.mark.parametrize("path", ["/text", "/field", "/nothing", "/answer"])
async def test_mistakes_of_handlers_are_500_at_once_and_blame_nobody(path: str) -> None:
    async with origin(answering()) as there:
        handler = Careless(there.url)
        async with forwarding(handler) as port:
            data = await talk(port, request("GET", path, close=False) + request("GET", "/"))
    assert [answer.status for answer in answers(data, ["GET", "GET"])] == [500, 200]
    assert handler.failures == [] and handler.engine.counters["exceptions"] == 1
    assert len(handler.calls) == 2


@pytest.mark.parametrize("method", ["retry", "answered"])
async def test_where_to_is_a_target_or_nowhere(method: str) -> None:
    async with origin(answering(b"no HTTP\r\n\r\n" if method == "retry" else OK)) as there:
        handler = To(there.url)
        setattr(handler, method, lambda call, how: "elsewhere")
        async with forwarding(handler) as port:
            [answer] = answers(await talk(port, request()))
    assert answer.status == (502 if method == "retry" else 200) and len(handler.calls) == 1


async def test_a_call_that_ended_does_not_expire() -> None:
    class Keeping(To):
        def begin(self, call: Call, /) -> Target | Response:
            self.kept = call
            return super().begin(call)

    async with origin(answering()) as there:
        handler = Keeping(there.url)
        async with forwarding(handler) as port:
            data = await talk(port, request())
            handler.kept.expire()
    assert answers(data)[0].status == 200 and len(handler.calls) == 1 and handler.failures == []


@on_both_loops
@pytest.mark.parametrize("host", ["a..b", "a" * 70])
async def test_a_host_that_cannot_be_a_name_is_a_failure_like_any_other(host: str) -> None:
    handler = To(f"http://{host}")
    async with forwarding(handler) as port:
        [answer] = answers(await talk(port, request()))
    assert answer.status in (502, 503) and len(handler.failures) == 1
