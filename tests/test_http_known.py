"""Methods that nobody knows, and the clients that trusted proxies name."""

from __future__ import annotations

import pytest
from proxying import To, answering, answers, forwarding, origin, request, talk

from lbcore.http.forward import Call, Target


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"BREW /pot HTTP/1.1", 501), (b"x-own_1 / HTTP/1.1", 501), (b"G@T / HTTP/1.1", 400), (b"\x16\x03\x01\x02\x00", 400),
        (b" GET / HTTP/1.1", 400),
    ],
)  # fmt: skip
async def test_methods_that_nobody_knows(line: bytes, status: int) -> None:
    async with origin(answering()) as there, forwarding(To(there.url)) as port:
        [answer] = answers(await talk(port, line + b"\r\nHost: a\r\n\r\n"))
        assert answer.status == status and not there.got


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        (["Forwarded: for=203.0.113.7"], "203.0.113.7"),
        (['Forwarded: for=6.6.6.6, by=x;For="203.0.113.7:1234";proto=http , for=127.0.0.2'], "203.0.113.7"),
        (['Forwarded: for="[2001:db8::1]:4711"'], "2001:db8::1"),
        (['Forwarded: for="6.6.6.6', "Forwarded: for=203.0.113.7"], "203.0.113.7"),
        (["Forwarded: for=203.0.113.7, for=_hidden"], "127.0.0.1"), (["Forwarded: proto=https"], "127.0.0.1"),
        (["Forwarded: for=6.6.6.6", "X-Forwarded-For: 203.0.113.7"], "203.0.113.7"),
        (["X-Forwarded-For: 203.0.113.7:5555"], "203.0.113.7"), (["X-Forwarded-For: [2001:db8::1]"], "2001:db8::1"),
    ],
)  # fmt: skip
async def test_the_client_that_a_trusted_proxy_names(fields: list[str], client: str) -> None:
    class Seeing(To):
        def begin(self, call: Call, /) -> Target:
            self.seen.append(call.client)
            return self.target(0)

        seen: list[str] = []

    async with origin(answering()) as there:
        for trusted, expected in ((["127.0.0.0/8"], client), ([], "127.0.0.1")):
            handler = Seeing(there.url)
            handler.seen = []
            async with forwarding(handler, trusted=trusted) as port:
                await talk(port, request("GET", "/", b"", *fields))
            assert handler.seen == [expected]
