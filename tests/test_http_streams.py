"""Long streams, slow peers and storms: what is under way is let to end, and nobody makes the engine hold more than its buffers."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trustme
from proxying import (
    OK,
    QUICK,
    Reader,
    To,
    Writer,
    answering,
    answers,
    forwarding,
    full_queue,
    on_both_loops,
    origin,
    read_request,
    request,
    resetting,
    talk,
)

from lbcore.http.forward import Limits, Response, Timeouts

PATIENT = Timeouts(first_byte=10.0, idle=10.0, stall=10.0)  # for tests of what is not about time


async def sip(reader: Reader, size: int, pause: float) -> int:
    """Take what comes in small parts, with a pause after each, until `size` bytes are there."""
    taken = 0
    while taken < size and (data := await reader.read(60_000)):
        taken += len(data)
        await asyncio.sleep(pause)
    return taken


# ===== what goes on is not cut off


@on_both_loops
async def test_an_upload_that_goes_on_outlasts_every_timeout() -> None:
    """An upstream that takes a body slowly but steadily is no upstream that stalls."""
    size, taken = 24_000_000, 0

    async def slow(reader: Reader, writer: Writer) -> None:
        nonlocal taken
        await reader.readuntil(b"\r\n\r\n")
        taken = await sip(reader, size, 0.003)
        writer.write(OK)
        await reader.read()

    patient = dataclasses.replace(QUICK, first_byte=5.0)  # what the kernel has taken counts as sent
    async with origin(slow, record=False) as there, forwarding(To(there.url), patient) as port:
        data = await talk(port, request("PUT", "/", b"", f"Content-Length: {size}"), *[bytes(size // 8)] * 8)
    assert answers(data, ["PUT"])[0].status == 200 and taken == size


@on_both_loops
async def test_a_download_that_goes_on_outlasts_every_timeout() -> None:
    size = 12_000_000

    async def big(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(12):
            writer.write(bytes(size // 12))
            await writer.drain()
        await reader.read()

    async with origin(big) as there, forwarding(To(there.url)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request())
        await reader.readuntil(b"\r\n\r\n")
        assert await sip(reader, size, 0.005) == size
        writer.close()


# ===== storms of pipelined requests


@on_both_loops
async def test_a_process_that_stood_still_blames_nobody_for_it() -> None:
    async def stopping(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        time.sleep(0.5)  # nobody runs meanwhile: origin and proxy share the loop
        for _ in range(5):
            await asyncio.sleep(0)
        writer.write(OK)

    async with origin(stopping) as there, forwarding(To(there.url)) as port:
        assert [answer.status for answer in answers(await talk(port, request()))] == [200]


async def test_pipelined_requests_are_answered_in_their_order() -> None:
    async def numbering(reader: Reader, writer: Writer) -> None:
        while True:
            number = (await read_request(reader)).split(b" ")[1]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(number), number))

    count = 3000
    async with origin(numbering) as there, forwarding(To(there.url), PATIENT) as port:
        storm = b"".join(request("GET", f"/{number}", close=number == count - 1) for number in range(count))
        parts = [storm[at : at + 7919] for at in range(0, len(storm), 7919)]
        found = answers(await talk(port, *parts), ["GET"] * count)
        assert len(there.got) <= 3
    assert [answer.body for answer in found] == [b"/%d" % number for number in range(count)]


async def test_who_takes_no_answers_gets_no_more_of_them() -> None:
    """A client that asks and asks and never reads: its requests wait, they are not answered into memory."""
    answered = 0

    async def script(reader: Reader, writer: Writer) -> None:
        nonlocal answered
        while True:
            await read_request(reader)
            answered += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + bytes(50_000))
            await writer.drain()

    async with origin(script, record=False) as there:
        handler = To(there.url)
        async with forwarding(handler, dataclasses.replace(QUICK, stall=1.0)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=10)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(request(close=False) * 5000)
            seen, held = -1, 0
            while seen != answered:
                seen = answered
                await asyncio.sleep(0.2)
                held = max([inbound.transport.get_write_buffer_size() for inbound in handler.engine.inbounds], default=0)
                assert held < 500_000, held
            assert answered < 1000
            writer.transport.abort()


async def test_answers_go_on_when_they_are_taken_again() -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + bytes(50_000))
            await writer.drain()

    async with origin(script, record=False) as there, forwarding(To(there.url), dataclasses.replace(QUICK, stall=5.0)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=10)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request(close=False) * 999 + request())
        await asyncio.sleep(0.5)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        size = 0
        while data := await reader.read(1 << 20):
            size += len(data)
        writer.close()
    assert size > 1000 * 50_000


async def test_an_end_between_two_pipelined_requests_loses_none() -> None:
    async with origin(answering()) as there, forwarding(To(there.url)) as port:
        for _ in range(50):
            data = await talk(port, request(close=False) * 20, end=True)
            assert len(answers(data, ["GET"] * 20)) == 20


@pytest.mark.parametrize("rest", [b"GET /2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2, b"what?\r\n\r\n", b""])
@pytest.mark.parametrize("here", [True, False])
async def test_what_follows_the_last_answer_is_not_looked_at(here: bool, rest: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Whether the answer is made here, at once, or comes from an upstream."""
    async with origin(answering()) as there:
        handler = To(there.url)
        handler.answer = Response(200, b"ok") if here else None
        async with forwarding(handler) as port:
            data = await talk(port, b"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + rest)
            assert len(handler.calls) == 1 and data.count(b"HTTP/1.1 ") == 1 and answers(data)[0].body == b"ok"
    assert not caplog.records


# ===== upstreams


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_answer_in_the_middle_of_an_upload_arrives(chunked: bool) -> None:
    """The upstream answers, does not read on, and resets: its answer is what the client gets."""

    async def early(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 X\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await asyncio.sleep(0.1)
        resetting(writer)

    framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 100000000"
    part = b"%x\r\n%b\r\n" % (50_000, bytes(50_000)) if chunked else bytes(50_000)
    async with origin(early) as there:
        handler = To(there.url)
        async with forwarding(handler) as port:
            data = await talk(port, request("POST", "/", b"", framing, close=False), *[part] * 100, pause=0.001)
    [answer] = answers(data, ["POST"])
    assert (answer.status, answer.body, answer.complete) == (403, b"no", True) and handler.failures == []


async def test_a_connection_that_is_accepted_and_closed_goes_elsewhere() -> None:
    async def closes(reader: Reader, writer: Writer) -> None:
        return

    async with origin(closes) as bad, origin(answering()) as good:
        handler = To(bad.url, good.url)
        async with forwarding(handler) as port:
            for _ in range(20):
                assert answers(await talk(port, request()))[0].body == b"ok"
    assert {*handler.failures} == {"reset"} and len(handler.failures) == 20


async def test_an_upstream_that_drips_its_head() -> None:
    """Bytes of a head do not stop the clock for the first byte of a response."""

    async def drip(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 1000:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.01)

    async with origin(drip) as bad, origin(answering()) as good:
        handler = To(bad.url, good.url)
        async with forwarding(handler) as port:
            assert answers(await talk(port, request(), wait=3))[0].body == b"ok"
    assert handler.failures == ["timeout"]


async def test_interim_answers_do_not_go_on_for_ever() -> None:
    async def hints(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        while True:
            writer.write(b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n")
            await asyncio.sleep(0.01)

    async with origin(hints) as bad:
        handler = To(bad.url)
        async with forwarding(handler) as port:
            [answer] = answers(await talk(port, request(), wait=3))
    assert answer.status == 504 and answer.interim and handler.failures == ["timeout"]


# ===== TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> Iterator[ssl.SSLContext]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    yield context


async def test_tls_that_ends_in_the_middle(tls: ssl.SSLContext, authority: trustme.CA) -> None:
    """In the handshake, in a request, in a body, in a response: by a reset or by an end without goodbye; the next client is served."""
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    steps = [b"\x16\x03\x01\x02\x00\x01", request()[:20], request("POST", "/", b"", "Content-Length: 100")[:-1], request("GET", "/big")]

    async def script(reader: Reader, writer: Writer) -> None:
        head = await read_request(reader)
        writer.write(OK if b"/big" not in head else b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + bytes(3_000_000))
        await reader.read()

    async with origin(script) as there:
        handler = To(there.url)
        async with forwarding(handler, tls=tls) as port:
            for rude in (True, False):
                for number, data in enumerate(steps):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=None if number == 0 else trusting)
                    writer.write(data)
                    await asyncio.sleep(0.02)
                    raw = writer.get_extra_info("socket")
                    if rude:
                        resetting(writer)
                    else:
                        with raw.dup() as copy:
                            copy.shutdown(socket.SHUT_WR)
                        with suppress(OSError):
                            async with asyncio.timeout(2):
                                await reader.read()
                        writer.transport.abort()
                    await asyncio.sleep(0.02)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
            writer.write(request())
            assert (await reader.read()).endswith(b"ok")
            writer.close()
            async with asyncio.timeout(5):
                while handler.engine.inbounds:
                    await asyncio.sleep(0.01)
    assert handler.engine.counters["exceptions"] == 0


async def test_a_handshake_that_never_ends_is_ended(tls: ssl.SSLContext) -> None:
    async with origin(answering()) as there, forwarding(To(there.url), tls=tls) as port:
        assert await talk(port, wait=5) == b""
        assert not (await talk(port, request(), wait=5)).startswith(b"HTTP")  # no TLS at all


# ===== heads


@pytest.mark.parametrize("shape", ["one field", "many fields", "target", "one name", "trailers"])
async def test_bombs_of_every_shape_are_refused_before_they_are_held(shape: str) -> None:
    chunked = request("POST", "/", b"", "Transfer-Encoding: chunked", close=False)
    start, part = {
        "one field": (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"a" * 9000),
        "many fields": (b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: y\r\n" * 1500),
        "target": (b"GET /", b"a" * 9000),
        "one name": (b"GET / HTTP/1.1\r\nHost: a\r\n", b"x" * 9000),
        "trailers": (chunked + b"0\r\n", b"X: y\r\n" * 1500),
    }[shape]
    async with origin(answering()) as there:
        handler = To(there.url)
        async with forwarding(handler, Timeouts(head=2.0, body=2.0)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(start)
            sent = 0
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(1):
                    while sent < 3_000_000:
                        writer.write(part)
                        sent += len(part)
                        await writer.drain()
                        await asyncio.sleep(0)
                        if not handler.engine.inbounds or any(inbound.lingering for inbound in handler.engine.inbounds):
                            break
            with suppress(ConnectionError):
                shown = await reader.read(1000)
            writer.transport.abort()
    assert shown.startswith((b"HTTP/1.1 431", b"HTTP/1.1 414", b"HTTP/1.1 400")) and sent < 600_000, (sent, shown)


async def test_limits_of_held_bytes_are_kept_while_an_upstream_is_away() -> None:
    """A body that comes while no connection is there yet waits in the kernel."""
    with full_queue() as url:
        handler = To(url, connect=0.8)
        async with forwarding(handler, limits=Limits(held=50_000)) as port:
            task = asyncio.create_task(talk(port, request("PUT", "/", b"", "Content-Length: 50000000"), *[bytes(1_000_000)] * 50))
            held = 0
            while not task.done():
                held = max([held, *(sum(map(len, inbound.call.request.parts)) for inbound in handler.engine.inbounds if inbound.call)])
                await asyncio.sleep(0.01)
    assert answers(task.result(), ["PUT"])[0].status == 504 and 0 < held < 50_000 + 300_000
