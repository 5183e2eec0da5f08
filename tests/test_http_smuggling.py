"""Request smuggling: what two parsers could read differently is refused, and an independent parser agrees with what was forwarded.

The corpus follows RFC 9112 (section numbers beside the cases) and RFC 9110 §5.5. h11 is the other parser: it must find in the bytes
that the upstream got exactly the requests that the engine meant to send, and in the client's bytes, where it accepts them, the same.
"""

from __future__ import annotations

import asyncio
import re

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxying import Heard, To, answering, answers, forwarding, on_both_loops, origin, talk, understand

from lbcore.http.message import Refusal, Request
from lbcore.http.reading import Limits, RequestReader

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"

REFUSED = {
    # §2.2 lines and white space
    "bare LF after the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "bare LF after a field": b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    "bare CR in a value": GET + b"X: a\rTransfer-Encoding: chunked\r\n\r\n",
    "space before the first field": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    # §3 request line
    "no version": b"GET /\r\n\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "lower case http": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "space after the version": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "unknown method": b"GETT / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tab in the target": b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "8 bit target": b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "relative target": b"GET a HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk with GET": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
    "other scheme": b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "user information": b"GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
    # §3.2 Host
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": GET + b"Host: b\r\n\r\n",
    "the same Host twice": GET + b"Host: a\r\n\r\n",
    "Host is a list": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "Host with a path": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "Host with user information": b"GET / HTTP/1.1\r\nHost: b@a\r\n\r\n",
    "Host is not the target's": b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    # §5 fields
    "space before the colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "tab before the colon": POST + b"Content-Length\t: 3\r\n\r\nabc",
    "obs-fold": GET + b"X: a\r\n b\r\n\r\n",
    "obs-fold of a coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "no name": GET + b": x\r\n\r\n",
    "no colon": GET + b"foo\r\n\r\n",
    "NUL in a value": GET + b"X: a\x00b\r\n\r\n",
    "control in a value": GET + b"X: a\x01b\r\n\r\n",
    "8 bit name": GET + b"X\xff: a\r\n\r\n",
    "parenthesis in a name": GET + b"X(: a\r\n\r\n",
    # §6.1 Transfer-Encoding
    "both lengths": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, other order": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "another coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "not chunked": POST + b"Transfer-Encoding: identity\r\n\r\n",
    "almost chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, chunked": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked is not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "vertical tab before chunked": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "quoted": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    # §6.2 Content-Length
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "the same length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "plus": POST + b"Content-Length: +3\r\n\r\nabc",
    "minus": POST + b"Content-Length: -3\r\n\r\nabc",
    "hexadecimal": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "underscore": POST + b"Content-Length: 1_0\r\n\r\nabc",
    "empty": POST + b"Content-Length:\r\n\r\nabc",
    "inner space": POST + b"Content-Length: 1 2\r\n\r\nabc",
    "more than 64 bits": POST + b"Content-Length: 18446744073709551619\r\n\r\nabc",
    # §7.1 chunks
    "chunk size with LF": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "space after a chunk size": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "0x before a chunk size": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "negative chunk": CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "no chunk size": CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "huge chunk": CHUNKED + b"FFFFFFFFFFFFFFFFF\r\nabc",
    "chunk too long": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "chunk ends with LF": CHUNKED + b"3\r\nabc\n0\r\n\r\n",
    "LF in a chunk extension": CHUNKED + b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "LF in trailers": CHUNKED + b"0\r\nA: b\nC: d\r\n\r\n",
    "obs-fold in trailers": CHUNKED + b"0\r\nA: b\r\n c\r\n\r\n",
    "unknown expectation": POST + b"Expect: 200-maybe\r\nContent-Length: 0\r\n\r\n",
}

FORWARDED = {
    "empty lines before": (b"\r\n\r\n" + GET + b"\r\n", b"/", b""),
    "absolute-form": (b"GET http://a/x?y HTTP/1.1\r\nHost: a\r\n\r\n", b"/x?y", b""),
    "absolute-form without path": (b"GET HTTP://A HTTP/1.1\r\nHost: a\r\n\r\n", b"/", b""),
    "absolute-form with only a query": (b"GET http://a?x HTTP/1.1\r\nHost: a\r\n\r\n", b"/?x", b""),
    "asterisk-form": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"*", b""),
    "spaces around a length": (POST + b"Content-Length:  3 \r\n\r\nabc", b"/", b"abc"),
    "leading zeros": (POST + b"Content-Length: 003\r\n\r\nabc", b"/", b"abc"),
    "upper case coding": (POST + b"transfer-encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"/", b"abc"),
    "chunk extension": (CHUNKED + b'3;a="b"\r\nabc\r\n0\r\n\r\n', b"/", b"abc"),
    "leading zeros of a chunk": (CHUNKED + b"003\r\nabc\r\n000\r\n\r\n", b"/", b"abc"),
    "a whole request in a body": (POST + b"Content-Length: %d\r\n\r\n%b" % (len(NEXT), NEXT), b"/", NEXT),
    "GET with a body": (GET + b"Content-Length: 3\r\n\r\nabc", b"/", b"abc"),
    "h2c is not passed": (GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n", b"/", b""),
    "h2c with a body": (POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc", b"/", b"abc"),
    "h2c with chunks": (
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"/", b"abc",
    ),
}  # fmt: skip


async def sent_on(data: bytes) -> tuple[bytes, bytes]:
    """Give what the client gets and what the upstream got."""
    async with origin(answering()) as there, forwarding(To(there.url)) as port:
        answer = await talk(port, data)
        return answer, b"".join(map(bytes, there.got))


@on_both_loops
@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_ambiguous_is_refused(case: str) -> None:
    answer, got = await sent_on(REFUSED[case] + NEXT)
    [refused] = answers(answer)
    assert 400 <= refused.status < 600 and refused.status not in (408, 502, 504)
    assert refused.field(b"connection") == b"close"
    assert b"smuggled" not in got
    body_only = case in BODY_CASES  # the head was fine, and may have been sent on by then
    assert got == b"" or (body_only and not ended(got))


BODY_CASES = {case for case, data in REFUSED.items() if data.startswith(CHUNKED)}


def ended(data: bytes) -> bool:
    """Say whether an independent parser finds the end of a request."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    while not isinstance(event := connection.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            return False
    return True


@on_both_loops
@pytest.mark.parametrize("case", FORWARDED)
async def test_what_is_unusual_is_forwarded_in_one_meaning(case: str) -> None:
    sent, target, body = FORWARDED[case]
    answer, got = await sent_on(sent + request_close())
    first, second = understand(got)
    assert (first.target, first.body) == (target, body)
    assert second.target == b"/last"
    assert not {b"upgrade", b"http2-settings"} & {name for name, _ in first.fields}
    assert [each.status for each in answers(answer, ["GET", "GET"])] == [200, 200]


def request_close() -> bytes:
    return b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def test_names_that_cgi_confuses_are_dropped() -> None:
    fields = b"X_Forwarded_For: 6.6.6.6\r\nContent_Length: 5\r\nTransfer_Encoding: chunked\r\nX_Mine: 1\r\n"
    _, got = await sent_on(GET + fields + b"Connection: close\r\n\r\n")
    [heard] = understand(got)
    assert heard.field(b"x_mine") == b"1"
    assert {name for name, _ in heard.fields if b"_" in name} == {b"x_mine"}


async def test_what_a_client_nominates_does_not_remove_what_is_ours() -> None:
    nominated = b"Connection: close, X-Forwarded-For, Host, Content-Length, X-Request-Id, Via\r\n"
    _, got = await sent_on(POST + nominated + b"Content-Length: 3\r\n\r\nabc")
    [heard] = understand(got)
    assert heard.body == b"abc" and heard.field(b"x-forwarded-for") == b"127.0.0.1"
    assert heard.field(b"host") and heard.field(b"via") and heard.field(b"x-request-id")


# ===== an upstream's answer must not split either

SPLIT = {
    "both lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok",
    "obs-fold": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "101 unasked": b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "status 700": b"HTTP/1.1 700 X\r\nContent-Length: 2\r\n\r\nok",
    "status 42": b"HTTP/1.1 42 X\r\nContent-Length: 2\r\n\r\nok",
    "head bomb": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000,
    "field bomb": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1000 + b"Content-Length: 2\r\n\r\nok",
    "endless 1xx": b"HTTP/1.1 103 X\r\n\r\n" * 100,
}


@pytest.mark.parametrize("case", SPLIT)
async def test_an_answer_that_is_ambiguous_becomes_502(case: str) -> None:
    async with origin(answering(SPLIT[case])) as there:
        handler = To(there.url)
        async with forwarding(handler) as port:
            data = await talk(port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    [answer] = answers(data)
    assert answer.status == 502 and handler.failures == ["status"]


@pytest.mark.parametrize("surplus", [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", b"x", b"HTTP/1.1 2"])
async def test_what_an_upstream_sends_unasked_is_nobodys_answer(surplus: bytes) -> None:
    async with origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + surplus)) as there:
        async with forwarding(To(there.url)) as port:
            for _ in range(2):
                [answer] = answers(await talk(port, request_close()))
                assert answer.body == b"ok"
        assert len(there.got) == 2  # on another connection


# ===== against h11


def agree(data: bytes, cut: int) -> None:
    """Read in two pieces; whatever is accepted, h11 must read the same in it, where it accepts it at all."""
    reader, read = RequestReader(Limits()), list[Request]()
    try:
        for piece in (data[:cut], data[cut:]):
            reader.feed(piece)
            while reader.switch is not None and reader.switch.complete:
                reader.go_on()
    except Refusal:
        pass
    read += reader.ready
    heard = _heard_by_h11(data)
    for ours, theirs in zip(read, heard, strict=False):
        if not ours.complete:
            return
        assert ours.method == theirs.method
        assert b"".join(ours.parts) == theirs.body
        assert ours.host == (theirs.field(b"host") or b"")
        if theirs.target[:1] == b"/":
            assert ours.target == theirs.target


def _heard_by_h11(data: bytes) -> list[Heard]:
    try:
        return understand(data)
    except h11.RemoteProtocolError:
        return []


LINES = st.sampled_from([
    b"Content-Length: 3\r\n", b"Content-Length: 5\r\n", b"content-length : 3\r\n", b"Content-Length: 3\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding:chunked \r\n",
    b"Transfer-Encoding:\r\n chunked\r\n", b"X: y\r\n", b"X:\ty\t\r\n", b"Host: b\r\n", b"Connection: close\r\n",
    b"Connection: keep-alive\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b" X: y\r\n", b"X\x00: y\r\n", b"\r\n", b"\n",
    b"Expect: 100-continue\r\n",
])  # fmt: skip
STARTS = st.sampled_from([
    b"GET / HTTP/1.1\r\n", b"POST /p HTTP/1.1\r\n", b"POST /p HTTP/1.0\r\n", b"\r\nPUT /q HTTP/1.1\r\n", b"HEAD  / HTTP/1.1\r\n",
])  # fmt: skip
BODIES = st.sampled_from([
    b"", b"abc", b"abcde", b"3\r\nabc\r\n0\r\n\r\n", b"3;x\r\nabc\r\n0\r\nT: u\r\n\r\n", b"3\nabc\n0\n\n", b"0\r\n\r\n", NEXT,
])  # fmt: skip
HOST = st.sampled_from([b"Host: a\r\n", b"Host:a\r\n", b"host: a \r\n", b""])


def message(start: bytes, host: bytes, lines: list[bytes], body: bytes) -> bytes:
    return start + host + b"".join(lines) + b"\r\n" + body


MESSAGE = st.builds(message, STARTS, HOST, st.lists(LINES, max_size=3), BODIES)
STREAM = st.lists(MESSAGE, min_size=1, max_size=3).map(b"".join)


@given(STREAM, st.integers(0, 200))
def test_h11_reads_the_same(data: bytes, cut: int) -> None:
    agree(data, cut)


@given(STREAM, st.integers(0, 300), st.binary(max_size=3), st.integers(0, 3), st.integers(0, 200))
def test_h11_reads_the_same_in_damaged_streams(data: bytes, at: int, junk: bytes, skip: int, cut: int) -> None:
    agree(data[:at] + junk + data[at + skip :], cut)


@pytest.mark.slow
def test_what_the_upstream_gets_is_what_was_meant() -> None:
    """End to end: h11 must understand every byte that went upstream, and count as many whole requests as were answered with 200."""
    with asyncio.Runner() as runner:

        @given(STREAM, st.integers(0, 200))
        def check(data: bytes, cut: int) -> None:
            runner.run(_end_to_end(data, cut))

        check()


async def _end_to_end(data: bytes, cut: int) -> None:
    async with origin(_by_h11) as there, forwarding(To(there.url)) as port:
        got = await talk(port, data[:cut], data[cut:] + request_close(), end=True)
    heard = [request for each in there.got for request in understand(bytes(each))]
    assert all(re.fullmatch(rb"127\.0\.0\.1:\d+", request.field(b"host") or b"") for request in heard)
    assert got.count(b"HTTP/1.1 200 OK") <= len(heard)


async def _by_h11(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = h11.Connection(h11.SERVER)
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.EndOfMessage):
            reply = h11.Response(status_code=200, reason=b"OK", headers=[("content-length", "0")])
            for part in (reply, h11.EndOfMessage()):
                writer.write(connection.send(part) or b"")
            if connection.our_state is not h11.DONE:
                return
            connection.start_next_cycle()
        elif isinstance(event, h11.ConnectionClosed):
            return


async def test_a_thousand_upgrades_that_are_not_made() -> None:
    upgrade = GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    _, got = await sent_on(upgrade * 2000 + request_close())
    assert len(understand(got)) == 2001
