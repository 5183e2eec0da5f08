"""The server on loopback: UDP and TCP, `dig` and dnspython as clients, and clients that want to hold on to it."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

import dns.asyncquery
import dns.message
import dns.rcode
import pytest
from conftest import Clock
from resolving import NETWORKS, OWNER, PROFILE, answers, balancer, client_of, subnet

from lbcore import Region
from lbcore.dns import Responder
from lbcore.dns.server import Server

pytestmark = pytest.mark.slow

MANY = (Region("many", 0, 0, addresses=tuple(f"192.0.2.{n}" for n in range(1, 201))),)
WAIT = 20  # seconds until a test gives up; nothing waits that long when all is well


@pytest.fixture
def responder(clock: Clock) -> Responder:
    return Responder(balancer(clock), PROFILE)


def framed(id_: int, rdtype: str = "A") -> bytes:
    return dns.message.make_query(OWNER, rdtype, id=id_).to_wire(prepend_length=True)


async def receive(reader: asyncio.StreamReader) -> dns.message.Message:
    async with asyncio.timeout(WAIT):
        return dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2))))


async def closed(reader: asyncio.StreamReader) -> bool:
    """Wait for the server to close; False if it sends anything instead."""
    async with asyncio.timeout(WAIT):
        with suppress(ConnectionResetError):
            return await reader.read(1) == b""
        return True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("ask", [dns.asyncquery.udp, dns.asyncquery.tcp])
async def test_both_transports_answer(responder: Responder, host: str, ask: Callable[..., object]) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("no IPv6 on loopback here")
    async with Server(responder, host, 0) as server:
        address, port = server.address
        query = dns.message.make_query(OWNER, "A", **subnet(NETWORKS["four"]))
        response = await ask(query, address, port=port, timeout=WAIT)  # type: ignore[misc]
    assert answers(response, "A") == ["192.0.2.4"]
    assert responder.counters["udp"] + responder.counters["tcp"] == 1


def has_ipv6() -> bool:
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


async def dig(program: str, server: Server, *words: str) -> str:
    host, port = server.address
    done = await asyncio.create_subprocess_exec(
        program, f"@{host}", "-p", str(port), "+tries=1", "+norecurse", *words, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(done.communicate(), WAIT)
    assert done.returncode == 0, out.decode()
    return out.decode()


async def test_dig(responder: Responder, program: Callable[[str], str]) -> None:
    async with Server(responder, port=0) as server:
        text = await dig(program("dig"), server, OWNER, "A", f"+subnet={NETWORKS['four']}")
        assert re.search(rf"^{re.escape(OWNER)}\.\s+30\s+IN\s+A\s+192\.0\.2\.4$", text, re.MULTILINE)
        assert "CLIENT-SUBNET: 81.2.2.0/24/24" in text
        assert "flags: qr aa;" in text
        assert "WARNING" not in text.replace("recursion requested", "")
        assert "CLIENT-SUBNET: 0.0.0.0/0/0" in await dig(program("dig"), server, OWNER, "A", "+subnet=0")
        assert "status: NXDOMAIN" in await dig(program("dig"), server, "nope.example.com", "A", "+tcp")
        assert "status: REFUSED" in await dig(program("dig"), server, "example.com", "AXFR", "+comments") or responder.counters["refused"]
        assert "status: NOTIMP" in await dig(program("dig"), server, OWNER, "+opcode=notify")
        assert "status: BADVERS" in await dig(program("dig"), server, OWNER, "+edns=1", "+noednsnegotiation")


async def test_dig_comes_back_over_tcp_for_what_was_too_long(clock: Clock, program: Callable[[str], str]) -> None:
    responder = Responder(balancer(clock, MANY), PROFILE)
    async with Server(responder, port=0) as server:
        text = await dig(program("dig"), server, OWNER, "A")
    assert "Truncated, retrying in TCP mode" in text
    assert "ANSWER: 200" in text
    assert (responder.counters["truncated"], responder.counters["udp"], responder.counters["tcp"]) == (1, 1, 1)


# ===== TCP


async def test_pipelined_queries_are_answered_in_order_even_after_a_half_close(responder: Responder) -> None:
    async with Server(responder, port=0) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"".join(map(framed, range(1, 101))))
        writer.write_eof()
        assert [(await receive(reader)).id for _ in range(100)] == [*range(1, 101)]
        assert await closed(reader)
        writer.close()


async def test_a_query_may_come_in_pieces(responder: Responder) -> None:
    async with Server(responder, port=0) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in framed(1) + framed(2)[:-1]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await receive(reader)).id == 1
        writer.write(framed(2)[-1:])
        assert (await receive(reader)).id == 2
        writer.close()


@pytest.mark.parametrize("start", [b"", b"\0", b"\0\x30", framed(1)[:-1]])
async def test_a_client_that_keeps_the_server_waiting_is_closed(responder: Responder, start: bytes) -> None:
    async with Server(responder, port=0, idle=0.1) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(start)
        assert await closed(reader)
        writer.close()
    assert responder.counters["tcp_timeouts"] == 1


async def test_a_byte_now_and_then_does_not_buy_more_time(responder: Responder) -> None:
    async with Server(responder, port=0, idle=0.3) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        waiting = asyncio.ensure_future(closed(reader))
        while not waiting.done():
            with suppress(ConnectionError):
                writer.write(b"\0")  # one byte after another of a query that never ends
                await writer.drain()
            await asyncio.wait([waiting], timeout=0.02)
        assert waiting.result()
        writer.close()
    assert responder.counters["queries"] < 5  # b"\0\0" frames an empty query, which is dropped with its connection


async def test_a_client_that_does_not_read_is_closed(responder: Responder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responder, "answer", lambda *_, **__: bytes(60_000))  # fills the kernel's buffers soon
    async with Server(responder, port=0, idle=0.2) as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, server.address)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                async with asyncio.timeout(WAIT):
                    while True:
                        await loop.sock_sendall(client, framed(1) * 100)
    assert responder.counters["tcp_timeouts"] == 1


async def test_one_connection_too_many_closes_the_one_that_has_waited_longest(responder: Responder) -> None:
    async with Server(responder, port=0, connections=3) as server:
        streams = []
        for number in (1, 2, 3, 1):  # the first asks again: the second has now waited longest
            if number > len(streams):
                streams.append(await asyncio.open_connection(*server.address))
            streams[number - 1][1].write(framed(number))
            assert (await receive(streams[number - 1][0])).id == number
        newest = await asyncio.open_connection(*server.address)
        newest[1].write(framed(4))
        assert (await receive(newest[0])).id == 4
        assert await closed(streams[1][0])
        for number in (0, 2):
            streams[number][1].write(framed(number))
            assert (await receive(streams[number][0])).id == number
        for _, writer in (*streams, newest):
            writer.close()
    assert responder.counters["tcp_evicted"] == 1


@pytest.mark.parametrize("nonsense", [b"\0\0", b"\0\x03abc", struct.pack("!H", 12) + b"\0\1\x80" + bytes(9)])
async def test_what_gets_no_answer_ends_the_connection(responder: Responder, nonsense: bytes) -> None:
    async with Server(responder, port=0) as server:
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(nonsense)
        assert await closed(reader)
        writer.close()
    assert responder.counters["dropped"] == 1


# ===== the server itself


async def test_serve_answers_ticks_and_closes(responder: Responder, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    ticked, ready = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(responder, "tick", ticked.set)
    port = free_port()
    serving = asyncio.create_task(responder.serve("127.0.0.1", port, ready=ready))
    await asyncio.wait_for(ready.wait(), WAIT)
    await asyncio.wait_for(ticked.wait(), WAIT)
    ticked.clear()
    await asyncio.wait_for(ticked.wait(), WAIT)  # and again
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(framed(1))
    assert (await receive(reader)).id == 1
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(serving, WAIT)
    assert await closed(reader)
    writer.close()
    async with Server(responder, "127.0.0.1", port):
        pass  # both sockets were given back


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_an_address_in_use_is_an_error(responder: Responder) -> None:
    async with Server(responder, port=0) as server:
        with pytest.raises(OSError, match="in use"):
            await responder.serve(*server.address)


async def test_an_error_in_the_answering_is_logged_and_told(
    responder: Responder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(responder, "_reply", broken)
    monkeypatch.setattr(responder, "tick", broken)
    async with Server(responder, port=0) as server:
        host, port = server.address
        for ask in (dns.asyncquery.udp, dns.asyncquery.tcp):
            response = await ask(dns.message.make_query(OWNER, "A"), host, port=port, timeout=WAIT)
            assert response.rcode() == dns.rcode.SERVFAIL
    assert "bug" in caplog.text
    assert responder.counters["servfail"] == 2


async def test_a_region_down_is_gone_from_the_next_answer(clock: Clock) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE)
    async with Server(responder, port=0) as server:
        host, port = server.address
        query = dns.message.make_query(OWNER, "A", **subnet(NETWORKS["four"]))
        assert answers(await dns.asyncquery.udp(query, host, port=port, timeout=WAIT), "A") == ["192.0.2.4"]
        for _ in range(3):
            lb.report("four", False, cause="refused", source="probe")
        assert lb.pick(client_of("four")).name != "four"
        assert answers(await dns.asyncquery.udp(query, host, port=port, timeout=WAIT), "A") != ["192.0.2.4"]
