"""The server on loopback: UDP and TCP, `dig` and dnspython as clients, and clients that want to hold on to it."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import dns.asyncquery
import dns.message
import dns.rcode
import pytest
from conftest import Clock
from resolving import NETWORKS, OWNER, PROFILE, answers, balancer, client_of, subnet

from lbcore import Region
from lbcore.dns import Responder
from lbcore.dns.loops import compiled
from lbcore.dns.server import MakeWire, Server

pytestmark = pytest.mark.slow

MANY = (Region("many", 0, 0, addresses=tuple(f"192.0.2.{n}" for n in range(1, 201))),)
WAIT = 20  # seconds until a test gives up; nothing waits that long when all is well


@pytest.fixture
def responder(clock: Clock) -> Responder:
    return Responder(balancer(clock), PROFILE)


@pytest.fixture(params=[compiled, None], ids=["compiled", "event loop"])
def wire(request: pytest.FixtureRequest) -> MakeWire | None:
    """Both ways of UDP."""
    return cast("MakeWire | None", request.param)


def packets(server: Server) -> dict[str, int]:
    """Give how many packets it has answered, whichever way."""
    fast = server.fast()
    return {"udp": server.counters["udp"] + fast.get("queries", 0) - fast.get("slow", 0), "tcp": server.counters["tcp"]}


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
async def test_both_transports_answer(
    responder: Responder, host: str, ask: Callable[..., object], wire: MakeWire | None
) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("no IPv6 on loopback here")
    async with Server(responder, host, 0, wire=wire) as server:
        address, port = server.address
        query = dns.message.make_query(OWNER, "A", **subnet(NETWORKS["four"]))
        response = await ask(query, address, port=port, timeout=WAIT)  # type: ignore[misc]
    assert answers(response, "A") == ["192.0.2.4"]
    assert sum(packets(server).values()) == 1


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


async def test_dig(responder: Responder, program: Callable[[str], str], wire: MakeWire | None) -> None:
    async with Server(responder, port=0, wire=wire) as server:
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
    assert (responder.counters["truncated"], server.counters["udp"], server.counters["tcp"]) == (1, 1, 1)


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
    assert server.counters["tcp_timeouts"] == 1


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
    assert server.counters["tcp_timeouts"] == 1


async def test_one_connection_too_many_closes_the_one_that_has_waited_longest(responder: Responder) -> None:
    async with Server(responder, port=0, connections=3) as server:
        streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
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
    assert server.counters["tcp_evicted"] == 1


@pytest.mark.heavy
async def test_ten_thousand_idle_connections_leave_room_for_queries(responder: Responder) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, (before[1] - 500) // 2) if before[1] != resource.RLIM_INFINITY else 10_000
    if count < 9_000:
        pytest.skip(f"needs 20,000 descriptors, the limit is {before[1]}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] if before[1] > 0 else before[0], before[1]))
    async with Server(responder, port=0, connections=count, idle=600) as server:
        host, port = server.address
        idle = []
        memory = resident()
        for number in range(count):
            client = socket.socket()
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, server.address)
            client.send(b"\0" if number % 2 else framed(1))  # half of them in the middle of a query
            idle.append(client)
        while server.connections < count:
            await asyncio.sleep(0.01)
        assert (resident() - memory) / count < 20_000  # bytes each; both ends are this process's
        query = dns.message.make_query(OWNER, "A")
        began = time.perf_counter()
        for ask in (dns.asyncquery.udp, dns.asyncquery.tcp):
            for _ in range(20):
                assert (await ask(query, host, port=port, timeout=WAIT)).rcode() == dns.rcode.NOERROR
        assert time.perf_counter() - began < 5
        for client in idle:
            client.close()


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def test_a_lack_of_descriptors_neither_spins_nor_ends_it(responder: Responder) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # asyncio tells it there
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Server(responder, port=0) as server:
        with socket.socket() as client:
            client.setblocking(False)
            with open(os.devnull) as lowest_free:
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free.fileno(), before[1]))
            try:
                await loop.sock_connect(client, server.address)  # by the kernel; accept fails
                await loop.sock_sendall(client, framed(1))
                began = time.process_time()
                query = dns.message.make_query(OWNER, "A", id=5).to_wire()
                with pytest.raises(OSError, match="Too many open files"):
                    socket.socket().close()
                await asyncio.sleep(0.5)
                assert time.process_time() - began < 0.2
                assert server.reply(query, "127.0.0.1", False)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            async with asyncio.timeout(WAIT):
                assert len(await loop.sock_recv(client, 2)) == 2  # accepted when there is room again


async def test_the_limit_of_open_files_bounds_connections(responder: Responder) -> None:
    """Whoever comes then pushes out who has waited longest, as at the cap, instead of being kept out."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
    try:
        async with Server(responder, port=0) as server:
            streams = [await asyncio.open_connection(*server.address) for _ in range(60)]
            streams[-1][1].write(framed(1))
            assert (await receive(streams[-1][0])).id == 1
            assert (server.connections, server.counters["tcp_evicted"]) == (44, 16)
            for _, writer in streams:
                writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_one_client_with_many_queries_does_not_keep_others_waiting(responder: Responder) -> None:
    async with Server(responder, port=0) as server:
        greedy, polite = [await asyncio.open_connection(*server.address) for _ in range(2)]
        greedy[1].write(b"".join(map(framed, range(1, 1001))))
        polite[1].write(framed(7))
        await receive(greedy[0])
        before = responder.counters["queries"]
        assert (await receive(polite[0])).id == 7
        assert responder.counters["queries"] - before < 200
        assert [(await receive(greedy[0])).id for _ in range(999)] == [*range(2, 1001)]
        for _, writer in (greedy, polite):
            writer.close()


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


@pytest.mark.parametrize("threads", [1, 3])
async def test_several_addresses(responder: Responder, threads: int, wire: MakeWire | None) -> None:
    listen = [("127.0.0.1", 0), ("127.0.0.2", 0), *([("::1", 0)] if has_ipv6() else [])]
    async with Server(responder, listen=listen, threads=threads, wire=wire) as server:
        assert [host for host, _ in server.addresses] == [host for host, _ in listen]
        assert [len(endpoint.udp) for endpoint in server.endpoints] == [threads] * len(listen)
        for host, port in server.addresses:
            for ask in (dns.asyncquery.udp, dns.asyncquery.tcp):
                for number in range(8):  # other source ports: the kernel spreads them over the sockets
                    response = await ask(dns.message.make_query(OWNER, "A", id=number), host, port=port, timeout=WAIT)
                    assert response.rcode() == dns.rcode.NOERROR
        assert packets(server) == {"udp": 8 * len(listen), "tcp": 8 * len(listen)}


async def test_one_address_that_cannot_be_bound_gives_back_the_others(responder: Responder) -> None:
    port = free_port()
    with pytest.raises(OSError, match="assign"):
        async with Server(responder, listen=[("127.0.0.1", port), ("192.0.2.1", port)]):
            raise AssertionError("192.0.2.1 is nobody's")
    async with Server(responder, "127.0.0.1", port) as server:
        assert server.address == ("127.0.0.1", port)


async def test_what_came_before_the_end_is_answered(responder: Responder, wire: MakeWire | None) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        async with Server(responder, port=0, threads=2, wire=wire) as server:
            for number in range(200):
                client.sendto(dns.message.make_query(OWNER, "A", id=number).to_wire(), server.address)
        async with asyncio.timeout(WAIT):
            answered = {int.from_bytes((await loop.sock_recv(client, 2000))[:2]) for _ in range(200)}
    assert answered == {*range(200)}


async def test_answers_fit_and_are_never_fragmented(responder: Responder) -> None:
    async with Server(responder, port=0) as server:
        (udp,) = server.endpoints[0].udp
        assert udp.getsockopt(socket.IPPROTO_IP, 10) == 3  # IP_MTU_DISCOVER: IP_PMTUDISC_PROBE
        assert udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 400_000  # the kernel tells twice what was set


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
    async with Server(responder, port=0, wire=None) as server:
        host, port = server.address
        for ask in (dns.asyncquery.udp, dns.asyncquery.tcp):
            response = await ask(dns.message.make_query(OWNER, "A"), host, port=port, timeout=WAIT)
            assert response.rcode() == dns.rcode.SERVFAIL
    assert "bug" in caplog.text
    assert responder.counters["servfail"] == 2


async def test_a_region_down_is_gone_from_the_next_answer(clock: Clock, wire: MakeWire | None) -> None:
    lb = balancer(clock)
    responder = Responder(lb, PROFILE)
    async with Server(responder, port=0, wire=wire) as server:
        host, port = server.address
        query = dns.message.make_query(OWNER, "A", **subnet(NETWORKS["four"]))
        assert answers(await dns.asyncquery.udp(query, host, port=port, timeout=WAIT), "A") == ["192.0.2.4"]
        for _ in range(3):
            lb.report("four", False, cause="refused", source="probe")
        assert lb.pick(client_of("four")).name != "four"
        assert answers(await dns.asyncquery.udp(query, host, port=port, timeout=WAIT), "A") != ["192.0.2.4"]
