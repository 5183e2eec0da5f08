"""The forwarding engine when something is wrong: slow, silent, lying, resetting or vanishing clients and upstreams."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import resource
import socket
import time
from contextlib import suppress

import pytest
from conftest import Clock
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

from lbcore.http.forward import Call, Limits, Target

POST = request("POST", "/", b"body")


async def silent(reader: Reader, writer: Writer) -> None:
    await reader.read()


async def reset_after_request(reader: Reader, writer: Writer) -> None:
    await read_request(reader)
    resetting(writer)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


# ===== upstreams


async def test_refused_goes_elsewhere_whatever_the_method() -> None:
    async with origin(answering()) as there:
        handler = To(f"http://127.0.0.1:{free_port()}", there.url)
        async with forwarding(handler) as port:
            for method in ("GET", "POST"):
                [answer] = answers(await talk(port, request(method, "/", b"x")), [method])
                assert answer.body == b"ok"
    assert handler.failures == ["refused", "refused"] and [call.attempts for call in handler.calls] == [2, 2]


@pytest.mark.parametrize(
    ("method", "fields", "status"),
    [
        ("GET", (), 200), ("PUT", (), 200), ("DELETE", (), 200), ("POST", (), 502), ("PATCH", (), 502),
        ("POST", ("Idempotency-Key: 1",), 200),
    ],
)
async def test_what_was_sent_is_sent_again_only_if_idempotent(method: str, fields: tuple[str, ...], status: int) -> None:
    async with origin(reset_after_request) as bad, origin(answering()) as good:
        handler = To(bad.url, good.url)
        async with forwarding(handler) as port:
            [answer] = answers(await talk(port, request(method, "/", b"abc", *fields)), [method])
    assert answer.status == status and handler.failures == ["reset"]
    assert bytes(bad.got[0]).endswith(b"abc")
    assert [bytes(got).endswith(b"abc") for got in good.got] == ([True] if status == 200 else [])


async def test_a_body_too_long_to_keep_is_not_sent_again() -> None:
    async with origin(reset_after_request) as bad, origin(answering()) as good:
        handler = To(bad.url, good.url)
        async with forwarding(handler, limits=Limits(replay=1000)) as port:
            [answer] = answers(await talk(port, request("PUT", "/", b"a" * 2000)), ["PUT"])
    assert answer.status == 502 and good.got == []


async def test_a_connection_closed_between_two_calls_is_no_failure() -> None:
    async with origin(answering(close=True)) as there:
        handler = To(there.url)
        async with forwarding(handler) as port:
            for _ in range(20):
                assert answers(await talk(port, request()))[0].body == b"ok"
    assert handler.failures == []


async def test_a_kept_connection_that_resets_is_tried_anew_once() -> None:
    async def once(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(OK)
        await read_request(reader)
        resetting(writer)

    async with origin(once) as there:
        handler = To(there.url)
        async with forwarding(handler) as port:
            got = [answers(await talk(port, request()))[0].status for _ in range(3)]
    assert got == [200, 200, 200] and handler.failures == [] and len(there.got) == 3


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_no_first_byte_in_time(method: str) -> None:
    async with origin(silent) as bad, origin(answering()) as good:
        handler = To(bad.url, good.url)
        async with forwarding(handler) as port:
            [answer] = answers(await talk(port, request(method, "/", b"x")), [method])
    assert answer.status == (200 if method == "GET" else 504) and handler.failures == ["timeout"]


async def test_no_connection_in_time() -> None:
    with full_queue() as url:
        handler = To(url, connect=0.1)
        async with forwarding(handler) as port:
            [answer] = answers(await talk(port, request()))
    assert answer.status == 504 and handler.failures == ["timeout"]


@pytest.mark.parametrize("how", ["stall", "reset", "short"])
@pytest.mark.parametrize("framing", [b"Content-Length: 10", b"Transfer-Encoding: chunked"])
async def test_a_response_that_breaks_off_breaks_off_for_the_client(how: str, framing: bytes) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (framing, b"4\r\nhalf\r\n" if b"chunked" in framing else b"half"))
        await writer.drain()
        if how == "stall":
            await reader.read()
        elif how == "reset":
            await asyncio.sleep(0.02)  # a reset may overtake data
            resetting(writer)

    async with origin(script) as there:
        handler = To(there.url, there.url)
        async with forwarding(handler) as port:
            data = b""
            with suppress(ConnectionResetError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request())
                while part := await reader.read(4096):
                    data += part
            writer.close()
    assert data.startswith(b"HTTP/1.1 200") and b"half" in data
    [answer] = answers(data)
    assert not answer.complete
    [call] = handler.calls
    assert call.cut and call.cause == ("timeout" if how == "stall" else "reset") and handler.failures == []


async def test_a_response_that_breaks_off_is_reset_where_only_that_tells() -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await asyncio.sleep(0.05)

    async with origin(script) as there, forwarding(To(there.url)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        await reader.readuntil(b"half")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_what_comes_late_and_unasked_closes_the_connection() -> None:
    async def late(reader: Reader, writer: Writer) -> None:
        while True:
            await read_request(reader)
            writer.write(OK)
            await asyncio.sleep(0.03)
            writer.write(OK.replace(b"ok", b"no"))

    async with origin(late) as there, forwarding(To(there.url)) as port:
        for _ in range(2):
            assert answers(await talk(port, request()))[0].body == b"ok"
            await asyncio.sleep(0.08)
        assert len(there.got) == 2


async def test_more_body_than_was_said_reaches_nobody() -> None:
    async with origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more")) as there:
        async with forwarding(To(there.url)) as port:
            assert answers(await talk(port, request()))[0].body == b"ok"


async def test_an_answer_before_the_request_ends() -> None:
    async def early(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 X\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        await writer.drain()
        await asyncio.sleep(0.05)

    async with origin(early) as there, forwarding(To(there.url)) as port:
        head = request("POST", "/", b"", "Content-Length: 10000000", close=False)
        data = await talk(port, head, *[b"a" * 10_000] * 20, pause=0.005)
    [answer] = answers(data, ["POST"])
    assert (answer.status, answer.body) == (413, b"big") and answer.field(b"connection") == b"close"


async def test_the_whole_call_has_a_limit() -> None:
    async def drip(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"a")
            await asyncio.sleep(0.02)

    async with origin(drip) as there:
        handler = To(there.url)
        async with forwarding(handler, dataclasses.replace(QUICK, total=0.5)) as port:
            with suppress(ConnectionResetError):
                await talk(port, request())
    assert handler.calls[0].cut and handler.calls[0].cause == "timeout"


async def test_a_full_pool_makes_others_wait_and_then_says_so() -> None:
    async def slow(reader: Reader, writer: Writer) -> None:
        while True:
            path = (await read_request(reader)).split(b" ")[1]
            await asyncio.sleep(0.1 if path == b"/short" else 5)
            writer.write(OK)

    async with origin(slow) as there:
        handler = To(there.url, limit=1, patience=0.25)
        async with forwarding(handler, dataclasses.replace(QUICK, first_byte=1.0)) as port:
            both = await asyncio.gather(*(talk(port, request(path="/short")) for _ in range(2)))
            assert [answers(data)[0].status for data in both] == [200, 200] and len(there.got) == 1
            statuses = [answers(data)[0].status for data in await asyncio.gather(*(talk(port, request(path="/long")) for _ in range(2)))]
    assert sorted(statuses) == [503, 504] and None in handler.failures


# ===== clients


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"G", b"ET ", b"/", *[b"a"] * 100], 408),
        ([b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 100], 408),
        ([request("POST", "/", b"", "Content-Length: 100"), b"a"], 408),
        ([], 0),
        ([request(close=False)], 200),
    ],
)
async def test_slow_and_idle_clients_are_closed(parts: list[bytes], status: int) -> None:
    async with origin(answering()) as there, forwarding(To(there.url)) as port:
        since = time.monotonic()
        data = b""
        with suppress(ConnectionError):
            data = await talk(port, *parts, pause=0.02, wait=4)
    assert time.monotonic() - since < 3.5
    assert [answer.status for answer in answers(data)] == ([status] if status else [])


async def test_a_body_that_drips_ends_by_its_rate() -> None:
    async with origin(answering()) as there:
        async with forwarding(To(there.url), dataclasses.replace(QUICK, rate=1000.0)) as port:
            head = request("POST", "/", b"", "Content-Length: 1000")
            data = await talk(port, head, *[b"a"] * 50, pause=0.02)
    assert answers(data, ["POST"])[0].status == 408


async def test_a_client_that_takes_nothing_is_dropped_and_so_is_its_upstream() -> None:
    async def endless(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"a" * 65536)
            await writer.drain()

    async with origin(endless) as there:
        handler = To(there.url)
        async with forwarding(handler) as port:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", port))
                client.sendall(request())
                async with asyncio.timeout(5):
                    while not handler.calls:
                        await asyncio.sleep(0.02)
            assert handler.engine.counters["stalled_clients"] == 1 and handler.calls[0].aborted
            assert not handler.engine.upstream(there.url).open


async def test_a_client_that_goes_takes_its_call_along() -> None:
    async with origin(silent) as there:
        handler = To(there.url)
        async with forwarding(handler, dataclasses.replace(QUICK, first_byte=5.0)) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request())
            while not there.got or not there.got[0]:
                await asyncio.sleep(0.01)
            resetting(writer)
            async with asyncio.timeout(2):
                while not handler.calls:
                    await asyncio.sleep(0.01)
    assert handler.calls[0].aborted and handler.failures == []


async def test_a_client_may_end_its_side_first() -> None:
    async def slow(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await asyncio.sleep(0.1)
        writer.write(OK)
        await reader.read()

    async with origin(slow) as there, forwarding(To(there.url)) as port:
        assert answers(await talk(port, request(close=False), end=True))[0].body == b"ok"


# ===== much


@pytest.mark.slow
async def test_big_streams_both_ways_need_little_memory() -> None:
    """200 MB up to a slow reader, 200 MB down to another: what the engine holds is bounded by the buffers."""
    size, part = 200_000_000, bytes(1_000_000)
    received = 0

    async def big(reader: Reader, writer: Writer) -> None:
        nonlocal received
        head = await reader.readuntil(b"\r\n\r\n")
        while head.startswith(b"PUT") and received < size:
            received += len(await reader.read(1_000_000))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (0 if head.startswith(b"PUT") else size))
        for _ in range(0 if head.startswith(b"PUT") else size // len(part)):
            writer.write(part)
            await writer.drain()
        await reader.read(1)

    patient = dataclasses.replace(QUICK, stall=5, body=5, idle=5, first_byte=5)
    async with origin(big, record=False) as there, forwarding(To(there.url), patient) as port:
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("PUT", "/", b"", f"Content-Length: {size}", close=False))
        for _ in range(size // len(part)):
            writer.write(part)
            await writer.drain()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(request())
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.2)  # the reader is slow to begin
        down = 0
        while data := await reader.read(1_000_000):
            down += len(data)
        writer.close()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert received == size and down == size
    assert grown < 40_000, f"{grown} kB"  # of which the test's own buffers are most


async def flood(writer: Writer) -> int:
    """Write up to 40 MB while somebody takes them, for half a second; gives how many bytes were taken."""
    taken = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            for _ in range(400):
                writer.write(bytes(100_000))
                await writer.drain()
                taken += 100_000
    return taken


async def test_who_sends_waits_for_who_takes() -> None:
    """Neither a client nor an upstream can make the engine hold what the other side does not take."""
    taken: list[int] = []

    async def script(reader: Reader, writer: Writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 40000000\r\n\r\n")
            taken.append(await flood(writer))
        await asyncio.sleep(1)

    patient = dataclasses.replace(QUICK, stall=5, body=5, idle=5, first_byte=5)
    async with origin(script) as there, forwarding(To(there.url), patient) as port:
        for method in ("GET", "PUT"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
            writer.write(request(method, "/", b"", *(["Content-Length: 40000000"] if method == "PUT" else [])))
            if method == "PUT":
                taken.append(await flood(writer))
            else:
                await asyncio.sleep(0.7)
            writer.transport.abort()
    assert len(taken) == 2 and max(taken) < 25_000_000  # what the kernel's buffers hold


async def test_accounts_add_up_under_chaos() -> None:
    """Every request ends in exactly one `done`, answered or with a cause, whatever the upstream does."""
    turn = 0

    async def moody(reader: Reader, writer: Writer) -> None:
        nonlocal turn
        while True:
            await read_request(reader)
            turn += 1
            mood = turn * 7919 % 5
            if mood == 0:
                resetting(writer)
                return
            if mood == 1:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok")
                return
            writer.write(OK)

    begun: list[Call] = []

    class Counting(To):
        def begin(self, call: Call, /) -> Target:
            begun.append(call)
            return self.target(0)

    async with origin(moody) as there:
        handler = Counting(there.url, there.url)
        async with forwarding(handler) as port:

            async def one(number: int) -> None:
                with suppress(ConnectionError):
                    await talk(port, POST if number % 3 else request())

            for batch in range(10):
                await asyncio.gather(*(one(batch * 20 + number) for number in range(20)))
        assert len(begun) == 200 and {*map(id, begun)} == {*map(id, handler.calls)} and len(handler.calls) == 200
        assert all(call.finished and (call.status or call.aborted) for call in begun)
        assert all((call.status == 200 and not call.cause) or call.cause or call.aborted for call in begun)


# ===== the process itself


@on_both_loops
async def test_a_process_that_stood_still_blames_no_client_for_it() -> None:
    clock = Clock()
    async with origin(answering()) as there, forwarding(handler := To(there.url), clock=clock) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def advance(seconds: float) -> None:
            clock.advance(seconds)
            async with asyncio.timeout(10):
                while handler.engine.now != clock.now:
                    await asyncio.sleep(0.01)

        for _ in range(3):
            writer.write(request(close=False))
            assert await reader.readuntil(b"ok")
            await advance(60.0)
            await advance(0.1)
        for _ in range(4):  # QUICK.keep_alive in steps of an engine that runs
            await advance(0.1)
        assert await reader.read() == b""
        writer.close()
