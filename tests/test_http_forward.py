"""The forwarding engine: what gets through, in what form and order, on both event loops."""

from __future__ import annotations

import asyncio
import ssl
import struct

import pytest
from proxying import OK, Origin, To, answering, answers, forwarding, on_both_loops, origin, read_request, request, talk, understand

from lbcore.http.forward import Call, Limits, Response
from lbcore.http.response import ResponseReader


async def through(*parts: bytes, response: bytes = OK, pause: float = 0.0, **options: object) -> tuple[bytes, Origin, To]:
    """Send bytes through an engine to an origin that answers the same to all."""
    async with origin(answering(response)) as there:
        handler = To(there.url)
        async with forwarding(handler, **options) as port:  # type: ignore[arg-type]
            return await talk(port, *parts, pause=pause), there, handler


@on_both_loops
async def test_a_request_is_written_anew() -> None:
    sent = request("GET", "/a?b=c", b"", "X-Mine:  1 ", "Accept: */*", "Connection: X-Hop, close", "X-Hop: 1", "TE: gzip", close=False)
    data, there, _ = await through(sent)
    [heard] = understand(bytes(there.got[0]))
    assert (heard.method, heard.target) == (b"GET", b"/a?b=c")
    assert heard.field(b"host") == f"127.0.0.1:{there.port}".encode()
    assert heard.field(b"x-mine") == b"1"
    assert heard.field(b"x-forwarded-for") == b"127.0.0.1"
    assert heard.field(b"x-forwarded-host") == b"api.example"
    assert heard.field(b"forwarded") == b'for=127.0.0.1;proto=http;host="api.example"'
    assert not {b"x-hop", b"te", b"connection", b"transfer-encoding"} & {name for name, _ in heard.fields}
    [answer] = answers(data)
    assert (answer.status, answer.body, answer.complete) == (200, b"ok", True)
    assert answer.field(b"x-request-id") == heard.field(b"x-request-id")


@on_both_loops
@pytest.mark.parametrize("pause", [0.0, 0.01])
async def test_bodies_arrive_whole(pause: float) -> None:
    body = bytes(range(256)) * 400
    for fields, payload in (
        ((f"Content-Length: {len(body)}",), [body[:1000], body[1000:]]),
        (("Transfer-Encoding: chunked",), [b"%x\r\n%b\r\n" % (len(body), body), b"5;x=y\r\nhello\r\n", b"0\r\n\r\n"]),
    ):
        head = request("POST", "/", b"", *fields)
        data, there, handler = await through(head, *payload, pause=pause)
        [heard] = understand(bytes(there.got[0]))
        assert heard.body == (body if len(payload) == 2 else body + b"hello")
        assert answers(data, ["POST"])[0].body == b"ok"
        assert [call.cause for call in handler.calls] == [None]


@on_both_loops
async def test_trailers_pass_unless_they_change_the_message() -> None:
    chunked = b"2\r\nab\r\n0\r\nX-Sum: 7\r\nHost: b\r\nAuthorization: x\r\n\r\n"
    head = request("POST", "/", b"", "Transfer-Encoding: chunked", "Trailer: X-Sum")
    async with origin(_chunked_trailer) as there:
        async with forwarding(To(there.url)) as port:
            data = await talk(port, head + chunked)
    [heard] = understand(bytes(there.got[0]))
    assert heard.trailers == [(b"x-sum", b"7")]
    [answer] = answers(data, ["POST"])
    assert answer.body == b"abc" and answer.trailers == [(b"x-t", b"1")]


async def _chunked_trailer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"0\r\nX-Sum: 7\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\nSet-Cookie: a=b\r\n\r\n")
    await reader.read()


@on_both_loops
async def test_pipelined_requests_are_answered_in_order() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path = (await read_request(reader)).split(b" ")[1]
            await asyncio.sleep(0.05 if path == b"/0" else 0)  # the first is the slowest
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    async with origin(script) as there, forwarding(To(there.url)) as port:
        sent = [request("GET", f"/{n}", close=n == 299) for n in range(300)]
        data = await talk(port, b"".join(sent))
    assert [answer.body for answer in answers(data, ["GET"] * 300)] == [b"/%d" % n for n in range(300)]


@on_both_loops
async def test_connections_to_the_upstream_are_kept() -> None:
    async with origin(answering()) as there, forwarding(To(there.url)) as port:
        for _ in range(5):
            await talk(port, request())
        assert len(there.got) == 1
        assert len(understand(bytes(there.got[0]))) == 5


@on_both_loops
async def test_head_has_no_body_and_the_connection_serves_on() -> None:
    head_response = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await read_request(reader)).startswith(b"HEAD")
            writer.write(head_response if head else head_response + b"hello")

    async with origin(script) as there, forwarding(To(there.url)) as port:
        data = await talk(port, request("HEAD", close=False) + request("GET"))
        assert len(there.got) == 1
    first, second = answers(data, ["HEAD", "GET"])
    assert first.field(b"content-length") == b"5" and first.body == b""
    assert second.body == b"hello"


@on_both_loops
@pytest.mark.parametrize("status", [204, 304])
async def test_responses_without_body(status: int) -> None:
    data, there, _ = await through(request(close=False) + request(), response=b"HTTP/1.1 %d X\r\nETag: x\r\n\r\n" % status)
    assert [answer.status for answer in answers(data, ["GET", "GET"])] == [status, status]
    assert len(there.got) == 1


@on_both_loops
async def test_a_body_until_the_connection_ends_becomes_chunked_or_ends_ours() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        await writer.drain()
        writer.close()

    async with origin(script) as there, forwarding(To(there.url)) as port:
        new = await talk(port, request())
        old = await talk(port, b"GET / HTTP/1.0\r\n\r\n")
    assert answers(new)[0].body == b"until the end" and b"Transfer-Encoding: chunked" in new
    assert old.endswith(b"\r\n\r\nuntil the end") and b"chunked" not in old


@on_both_loops
async def test_100_continue_and_early_hints_pass() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await reader.readexactly(5)
        writer.write(OK)
        await reader.read()

    async with origin(script) as there, forwarding(To(there.url)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("PUT", "/", b"", "Content-Length: 5", "Expect: 100-continue"))
        interim = await reader.readuntil(b"\r\n\r\n") + await reader.readuntil(b"\r\n\r\n")
        writer.write(b"12345")
        data = interim + await reader.read(-1)
        writer.close()
    [answer] = answers(data, ["PUT"])
    assert answer.interim == [100, 103] and answer.status == 200
    assert b"Link: </a>" in interim


@on_both_loops
async def test_own_answers_and_slow_decisions() -> None:
    class Slow(To):
        async def begin(self, call):  # type: ignore[no-untyped-def,override]
            await asyncio.sleep(0.01)
            if call.request.target == b"/boom":
                raise RuntimeError("a handler's bug")
            return Response(403, b"no", [(b"X-Why", b"because")])

    handler = Slow()
    async with forwarding(handler) as port:
        data = await talk(port, request(path="/", close=False) + request(path="/boom"))
    first, second = answers(data, ["GET", "GET"])
    assert (first.status, first.body, first.field(b"x-why")) == (403, b"no", b"because")
    assert second.status == 500 and handler.engine.counters["exceptions"] == 1


@on_both_loops
async def test_client_behind_trusted_proxies() -> None:
    fields = ("X-Forwarded-For: 6.6.6.6, 203.0.113.7, 127.0.0.2", "X-Forwarded-Proto: https", "X-Request-Id: abc", "Via: 1.1 cdn")
    data, there, handler = await through(request("GET", "/", b"", *fields), trusted=["127.0.0.0/8"])
    assert handler.calls[0].client == "203.0.113.7"
    [heard] = understand(bytes(there.got[0]))
    assert heard.field(b"x-forwarded-for") == b"6.6.6.6, 203.0.113.7, 127.0.0.2, 127.0.0.1"
    assert heard.field(b"x-forwarded-proto") == b"https"
    assert heard.field(b"x-request-id") == b"abc" == answers(data)[0].field(b"x-request-id")
    assert (heard.field(b"via") or b"").startswith(b"1.1 cdn, 1.1 lbcore-")

    _, there, handler = await through(request("GET", "/", b"", *fields))
    assert handler.calls[0].client == "127.0.0.1"
    [heard] = understand(bytes(there.got[0]))
    assert heard.field(b"x-forwarded-for") == b"127.0.0.1" and heard.field(b"x-forwarded-proto") == b"http"
    assert heard.field(b"x-request-id") != b"abc"


@on_both_loops
async def test_trace_context_passes_and_loops_end() -> None:
    trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    data, there, _ = await through(request("GET", "/", b"", trace, "tracestate: a=b", "Via: 1.1 other"), name="here")
    [heard] = understand(bytes(there.got[0]))
    assert heard.field(b"traceparent") == trace.split(": ")[1].encode() and heard.field(b"tracestate") == b"a=b"
    data, there, _ = await through(request("GET", "/", b"", "Via: 1.1 other, 1.1 here"), name="here")
    assert answers(data)[0].status == 508 and there.got == []


@on_both_loops
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("GET", "/", b"", "X-Big: " + "a" * 5000), 431),
        (request("GET", "/", b"", *(f"X-{n}: 1" for n in range(50))), 431),
        (request("GET", "/" + "a" * 5000), 414),
        (request("POST", "/", b"a" * 3000), 413),
        (request("POST", "/", b"", "Transfer-Encoding: chunked") + b"800\r\n" + b"a" * 2048 + b"\r\n0\r\n\r\n", 413),
        (request("POST", "/", b"", "Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\n" + b"X: y\r\n" * 50 + b"\r\n", 431),
    ],
)
async def test_limits(sent: bytes, status: int) -> None:
    data, _, handler = await through(sent, limits=Limits(head=4000, fields=40, body=2000))
    assert answers(data, ["POST"])[0].status == status
    assert handler.engine.counters["refused"] == 1


@on_both_loops
async def test_a_head_that_never_ends_is_bounded() -> None:
    async with forwarding(To(), limits=Limits(head=4000)) as port:
        data = await talk(port, b"GET / HTTP/1.1\r\nX: ", *[b"a" * 3000] * 10, pause=0.01)
    assert answers(data)[0].status == 431


# ===== the PROXY protocol


V2 = b"\r\n\r\n\x00\r\nQUIT\n" + struct.pack("!BBH4s4sHH", 0x21, 0x11, 15, bytes([203, 0, 113, 7]), bytes(4), 1, 2) + b"\x04\x00\x00"


@on_both_loops
@pytest.mark.parametrize(
    ("header", "client"),
    [
        (b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\n", "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n", "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (V2, "203.0.113.7"),
        (b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", "127.0.0.1"),
    ],
)
async def test_proxy_protocol(header: bytes, client: str) -> None:
    data, _, handler = await through(header + request(), proxy_protocol=True)
    assert answers(data)[0].status == 200 and handler.calls[0].client == client
    data, _, handler = await through(header[:9], header[9:], request(), pause=0.02, proxy_protocol=True)
    assert answers(data)[0].status == 200 and handler.calls[0].client == client


BAD_PROXY = [b"", b"PROXY TCP4 x y 1 2\r\n", b"PROXY TCP4 ::1 ::1 1 2\r\n", b"PROXY " + b"a" * 200, V2.replace(b"\x21\x11", b"\x31\x11")]


@on_both_loops
@pytest.mark.parametrize("header", BAD_PROXY)
async def test_bad_proxy_headers_are_refused(header: bytes) -> None:
    try:
        data, there, handler = await through(header + request(), proxy_protocol=True)
    except ConnectionResetError:
        return
    assert data == b"" and there.got == [] and handler.calls == []


# ===== TLS


@on_both_loops
async def test_tls_both_sides_and_a_certificate_is_replaced_without_dropping_connections(tmp_path: object) -> None:
    trustme = pytest.importorskip("trustme")
    from lbcore.http.certificates import Certificates

    authority, files = trustme.CA(), []
    for serial in range(2):
        issued = authority.issue_cert("localhost", "127.0.0.1")
        files.append((f"{tmp_path}/{serial}.crt", f"{tmp_path}/{serial}.key"))
        issued.cert_chain_pems[0].write_to_path(files[-1][0])
        issued.private_key_pem.write_to_path(files[-1][1])
    live = f"{tmp_path}/live.crt", f"{tmp_path}/live.key"

    def install(serial: int) -> None:
        for source, target in zip(files[serial], live, strict=True):
            with open(source, "rb") as old, open(target, "wb") as new:
                new.write(old.read())

    install(0)
    certificates = Certificates(*live)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    server = await asyncio.start_server(answering(), "127.0.0.1", 0, ssl=certificates.context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    async with forwarding(To(url, tls=trusting), tls=certificates.context) as port:
        old_reader, old_writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname="localhost")
        before = old_writer.get_extra_info("ssl_object").getpeercert(True)
        install(1)
        assert certificates.reload() and not certificates.reload()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname="localhost")
        assert writer.get_extra_info("ssl_object").getpeercert(True) != before
        for each_reader, each_writer in ((old_reader, old_writer), (reader, writer)):
            each_writer.write(request())
            assert answers(await each_reader.read(-1))[0].body == b"ok"
            each_writer.close()
        with open(live[1], "w") as broken:
            broken.write("no key")
        with pytest.raises(ssl.SSLError):
            certificates.reload()
    server.close()


@on_both_loops
async def test_bugs_of_a_handler_do_not_lose_calls() -> None:
    class Buggy(To):
        def answered(self, call: Call, head: ResponseReader, /) -> None:
            raise RuntimeError("answered")

        def done(self, call: Call, /) -> None:
            raise RuntimeError("done")

    async with origin(answering()) as there:
        handler = Buggy(there.url)
        async with forwarding(handler) as port:
            data = await talk(port, request(close=False) + request())
    assert [answer.body for answer in answers(data, ["GET", "GET"])] == [b"ok", b"ok"]
    assert handler.engine.counters["exceptions"] == 4
