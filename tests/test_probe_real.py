"""Probes over real loopback sockets: HTTP, HTTPS, TCP, and servers that mean harm."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from listening import accepted

from lbcore.region import Region
from lbcore.sense.probe import Monitor, Prober, ProbeResult, Target, check

pytestmark = pytest.mark.slow

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
SHORT = {"interval": 1.0, "timeout": 0.3}


class Recorder:
    """Stand in for a Balancer."""

    def __init__(self, *regions: Region) -> None:
        self.regions, self.clock = regions, time.monotonic
        self.reports: list[tuple[str, bool, str | None]] = []
        self.samples: list[tuple[str, float]] = []
        self.ticks = 0

    def status(self, region: str, /) -> str:
        return "up"

    def observe(self, region: str, ms: float, /, *, vantage: str | None = None) -> None:
        self.samples.append((region, ms))

    def generation(self, region: str, /) -> int:
        return 7

    def report(
        self, region: str, ok: bool, /, *, cause: str | None = None, vantage: str | None = None, source: str = "", gen: int | None = None
    ) -> None:
        assert gen == 7
        self.reports.append((region, ok, cause))

    def tick(self) -> None:
        self.ticks += 1


@contextlib.asynccontextmanager
async def serve(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Serve on a free port of 127.0.0.1; at the end every connection is cut and every handler is gone."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handler(reader, writer)
        finally:
            tasks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        await accepted()
        server.close()
        for task in tasks:
            task.cancel()
        while tasks:
            await asyncio.sleep(0)


async def request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def answering(data: bytes) -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(data)
        await writer.drain()
        await reader.read()

    return handler


async def probe(url: str, **settings: Any) -> ProbeResult:
    """Probe once; hold the probe to its timeout and to leaving neither task nor socket behind."""
    target = Target.parse("r", url, Monitor(**{**SHORT, **settings}))
    before, started = asyncio.all_tasks(), time.monotonic()
    with connections() as opened:
        result = await check(target, time.monotonic)
        assert time.monotonic() - started < target.monitor.timeout + 0.5
        await asyncio.sleep(0)
        assert [each for each in opened if not each.is_closing()] == []
    servers = ("serve.<locals>", "_accept_connection")
    assert [task for task in asyncio.all_tasks() - before if not any(name in repr(task) for name in servers)] == []
    return result


@contextlib.contextmanager
def connections() -> Iterator[list[asyncio.Transport]]:
    """Gather every connection that clients open meanwhile."""
    opened: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()
    original = loop.create_connection

    async def create_connection(*args: Any, **kw: Any) -> Any:
        transport, protocol = await original(*args, **kw)
        opened.append(transport)
        return transport, protocol

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "create_connection", create_connection)
        yield opened


# ===== HTTP and TCP


async def test_a_gateway_that_answers_gives_both_times() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        await asyncio.sleep(0.05)
        writer.write(OK)

    async with serve(slow) as port:
        result = await probe(f"http://127.0.0.1:{port}")
    assert (result.ok, result.cause, result.status, result.certificate_days) == (True, None, 200, None)
    assert result.connect_ms is not None and 0 < result.connect_ms < 50
    assert result.first_byte_ms is not None and 50 <= result.first_byte_ms < 250
    assert result.sample == result.first_byte_ms


async def test_a_name_is_resolved_and_both_families_are_tried() -> None:
    async with serve(answering(OK)) as port:  # IPv4 only
        for url in (f"http://localhost:{port}", f"tcp://localhost:{port}"):
            assert (await probe(url)).ok


async def test_tcp_connects_and_sends_nothing() -> None:
    heard: list[bytes] = []
    done = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.append(await reader.read())
        finally:
            done.set()

    async with serve(listen) as port:
        result = await probe(f"tcp://127.0.0.1:{port}")
        await done.wait()
    assert result.ok and result.first_byte_ms is None and result.connect_ms is not None and result.sample == result.connect_ms
    assert b"".join(heard) == b""


@pytest.mark.parametrize("scheme", ["http", "https", "tcp"])
async def test_a_closed_port_is_refused(scheme: str) -> None:
    async with serve(answering(OK)) as port:
        pass
    result = await probe(f"{scheme}://127.0.0.1:{port}")
    assert (result.cause, result.connect_ms, result.sample) == ("refused", None, None)
    assert "refused" in result.detail.lower()


@pytest.mark.parametrize("scheme", ["http", "tcp"])
async def test_a_name_that_does_not_resolve_is_refused(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    result = await probe(f"{scheme}://gone.invalid:80")
    assert (result.cause, result.detail) == ("refused", "[Errno -2] Name or service not known")


async def test_a_name_whose_servers_are_gone_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, asked = threading.Event(), []
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kw: Any) -> Any:
        asked.append(host)
        if str(host).startswith("gone"):
            gone.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return original(host, *args, **kw)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        async with serve(answering(OK)) as port:
            dead = [check(Target.parse("d", f"http://gone{n % 40}.invalid", Monitor(**SHORT)), time.monotonic) for n in range(120)]
            results = asyncio.gather(*dead)
            assert (await probe(f"http://localhost:{port}", timeout=0.9)).ok
            assert {result.cause for result in await results} <= {"timeout"}
        assert len([host for host in asked if host.startswith("gone")]) == 40, "one look-up per name at a time"
    finally:
        gone.set()
        for thread in threading.enumerate():  # they end here, not in the midst of another test
            if thread.name.startswith("lbcore-resolve gone"):
                thread.join(5)


async def test_a_family_that_is_routed_into_nowhere_leaves_time_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [(socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    loop = asyncio.get_running_loop()
    original = loop.create_connection

    async def create_connection(factory: Any, host: Any = None, *args: Any, **kw: Any) -> Any:
        if host == "::1":
            await asyncio.sleep(60)
        return await original(factory, host, *args, **kw)

    monkeypatch.setattr(loop, "create_connection", create_connection)
    async with serve(answering(OK)) as port:
        for scheme in ("http", "tcp"):
            result = await probe(f"{scheme}://dual.example:{port}", timeout=0.6)
            assert result.ok and result.connect_ms is not None and result.connect_ms < 250, result


async def test_environment_proxies_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serve(answering(OK)) as port:
        assert (await probe(f"http://127.0.0.1:{port}")).ok


# ===== servers that mean harm


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def half_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write_eof()
    await reader.read()


async def drip_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in OK:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)


async def drip_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
    for _ in range(100):
        writer.write(b"x")
        await asyncio.sleep(0.05)


async def endless_continue(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0)


async def endless_headers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x-more: " + b"y" * 10_000 + b"\r\n")
        await writer.drain()


async def reset_in_the_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
    await writer.drain()
    cut(writer)


async def reset_in_the_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nx")
    await writer.drain()
    cut(writer)


async def closed_in_the_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")
    writer.close()


async def closed_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    writer.close()


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(range(256)) * 10)
    await reader.read()


async def smtp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example ESMTP\r\n\r\n")
    await reader.read()


def cut(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize(
    ("handler", "cause"),
    [
        (silent, "timeout"),
        (drip_head, "timeout"),
        (drip_body, "timeout"),
        (endless_continue, "timeout"),
        (endless_headers, "status"),
        (reset_in_the_head, "reset"),
        (reset_in_the_body, "reset"),
        (closed_in_the_head, "reset"),
        (closed_at_once, "reset"),
        (half_closed, "reset"),
        (garbage, "status"),
        (smtp, "status"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_hostile_server_is_a_failure_with_its_cause(handler: Handler, cause: str) -> None:
    async with serve(handler) as port:
        result = await probe(f"http://127.0.0.1:{port}", interval=2.0, timeout=1.0)  # a busy machine takes a while to connect
    assert (result.ok, result.cause, result.sample) == (False, cause, None)
    assert result.detail and len(result.detail) <= 200
    assert result.connect_ms is not None


async def test_a_redirect_loop_is_asked_once() -> None:
    asked: list[bytes] = []

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await request(reader))
        writer.write(b"HTTP/1.1 301 Moved\r\nlocation: /status-0123456789abcdef\r\ncontent-length: 0\r\n\r\n")

    async with serve(redirect) as port:
        result = await probe(f"http://127.0.0.1:{port}")
    assert (result.cause, result.status, len(asked)) == ("status", 301, 1)


@pytest.mark.parametrize("framing", [b"content-length: 10000000000", b"transfer-encoding: chunked"])
async def test_ten_gigabytes_are_not_read(framing: bytes) -> None:
    sent = [0]

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        piece = b"x" * 65536 if framing.startswith(b"c") else b"10000\r\n" + b"x" * 65536 + b"\r\n"
        while True:
            writer.write(piece)
            await writer.drain()
            sent[0] += len(piece)

    async with serve(flood) as port:
        await probe(f"http://127.0.0.1:{port}")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(10):
            result = await probe(f"http://127.0.0.1:{port}")
            assert result.ok and result.status == 200
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sent[0] < 200e6  # what fits into the sockets' buffers
    assert grown < 30_000  # KiB


# ===== TLS


class Authority:
    def __init__(self, folder: Path) -> None:
        self.ca, self.folder = trustme.CA(), folder
        self.path = str(folder / "ca.pem")
        self.ca.cert_pem.write_to_path(self.path)

    def server(self, *names: str, clients: bool = False, **kw: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names, **kw).configure_cert(context)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        return context

    def client(self, name: str = "probe@example.org") -> tuple[str, str]:
        leaf = self.ca.issue_cert(name)
        certificate, key = self.folder / "client.pem", self.folder / "client.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(key))
        return str(certificate), str(key)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


EXPIRED = {"not_before": datetime.datetime(2020, 1, 1), "not_after": datetime.datetime(2021, 1, 1)}
TLS_SHORT = {"interval": 2.0, "timeout": 1.0}


async def test_https_is_verified_and_tells_when_the_certificate_expires(authority: Authority) -> None:
    expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)
    for host, names in (("127.0.0.1", ("127.0.0.1",)), ("localhost", ("localhost",))):
        async with serve(answering(OK), authority.server(*names, not_after=expiry)) as port:
            result = await probe(f"https://{host}:{port}", ca=authority.path, **TLS_SHORT)
        assert result.ok and result.status == 200, result
        assert result.certificate_days == pytest.approx(30, abs=0.01)


@pytest.mark.parametrize(
    ("names", "issue", "words"),
    [(("other.example",), {}, "mismatch"), (("127.0.0.1",), EXPIRED, "expired")],
    ids=["wrong-host", "expired"],
)
async def test_a_certificate_that_does_not_hold_is_a_tls_failure(
    authority: Authority, names: tuple[str, ...], issue: dict[str, Any], words: str
) -> None:
    async with serve(answering(OK), authority.server(*names, **issue)) as port:
        refused = await probe(f"https://127.0.0.1:{port}", ca=authority.path, **TLS_SHORT)
        trusting = await probe(f"https://127.0.0.1:{port}", verify=False, **TLS_SHORT)
        assert (await probe(f"https://127.0.0.1:{port}", verify=False, ca=authority.path, **TLS_SHORT)).ok
    assert (refused.ok, refused.cause, refused.status) == (False, "tls", None)
    assert words in refused.detail and refused.connect_ms is not None
    assert trusting.ok and trusting.certificate_days is not None
    assert (trusting.certificate_days < -365) == bool(issue)


async def test_an_unknown_authority_is_a_tls_failure_by_default(authority: Authority) -> None:
    async with serve(answering(OK), authority.server("127.0.0.1")) as port:
        result = await probe(f"https://127.0.0.1:{port}", **TLS_SHORT)
    assert result.cause == "tls" and "verify failed" in result.detail


async def test_the_host_setting_is_sni_host_header_and_the_name_that_is_checked(authority: Authority) -> None:
    seen: list[Any] = []
    context = authority.server("gw.example")
    context.sni_callback = lambda _, name, __: seen.append(name)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(next(line for line in (await request(reader)).split(b"\r\n") if line.lower().startswith(b"host:")))
        writer.write(OK)

    async with serve(handler, context) as port:
        result = await probe(f"https://127.0.0.1:{port}", ca=authority.path, host="gw.example:8443", **TLS_SHORT)
        wrong = await probe(f"https://127.0.0.1:{port}", ca=authority.path, host="other.example", **TLS_SHORT)
    assert result.ok and wrong.cause == "tls"
    assert seen[:2] == ["gw.example", b"host: gw.example:8443"]


async def test_a_client_certificate_is_shown_where_it_is_asked_for(authority: Authority) -> None:
    shown: list[Any] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        shown.append(writer.get_extra_info("peercert")["subjectAltName"])
        writer.write(OK)

    async with serve(handler, authority.server("127.0.0.1", clients=True)) as port:
        url, settings = f"https://127.0.0.1:{port}", {"ca": authority.path, **TLS_SHORT}
        with_one = await probe(url, client_certificate=authority.client(), **settings)
        absent = await probe(url, client_certificate=("/nowhere/c.pem", "/nowhere/k.pem"), **settings)
    assert with_one.ok and shown == [(("email", "probe@example.org"),)]
    assert absent.cause == "local"


async def test_without_the_client_certificate_that_is_asked_for_it_is_a_tls_failure(authority: Authority) -> None:
    context = authority.server("127.0.0.1", clients=True)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # in 1.3 the refusal comes after the handshake and may be lost in a reset

    def accept(listener: socket.socket) -> None:  # not asyncio's server: it hangs up without sending the alert
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            context.wrap_socket(connection, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = asyncio.create_task(asyncio.to_thread(accept, listener))
        result = await probe(f"https://127.0.0.1:{listener.getsockname()[1]}", ca=authority.path, **TLS_SHORT)
        await server
    assert result.cause == "tls" and "alert" in result.detail


async def test_a_replaced_client_certificate_is_used_at_the_next_probe(authority: Authority) -> None:
    shown: list[str] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        shown.append(writer.get_extra_info("peercert")["subjectAltName"][0][1])
        writer.write(OK)

    async with serve(handler, authority.server("127.0.0.1", clients=True)) as port:
        for name in ("a@example.org", "b@example.org"):
            files = authority.client(name)
            await probe(f"https://127.0.0.1:{port}", client_certificate=files, ca=authority.path, **TLS_SHORT)
    assert shown == ["a@example.org", "b@example.org"]


async def hello_and_gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, whatever was read
    writer.transport.abort()


@pytest.mark.parametrize(("handler", "cause"), [(silent, "timeout"), (garbage, "tls"), (hello_and_gone, "reset")])
async def test_a_port_that_does_not_speak_tls(handler: Handler, cause: str) -> None:
    async with serve(handler) as port:
        assert (await probe(f"https://127.0.0.1:{port}")).cause == cause


# ===== the Prober


async def test_hundreds_of_targets_at_once_leave_neither_task_nor_socket() -> None:
    asked = [0]

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        asked[0] += 1
        writer.write(OK)

    before = asyncio.all_tasks()
    async with serve(handler) as port, serve(silent) as mute:
        regions = [Region(f"r{n}", gateway=f"http://127.0.0.1:{mute if n % 4 == 3 else port}") for n in range(400)]
        lb = Recorder(*regions)
        prober = Prober(lb, monitor=Monitor(interval=2.0, timeout=1.0, max_concurrency=100))
        with connections() as opened:
            results = await prober.first_round(deadline=10.0)
        assert len(results) == len(opened) == 400
        assert all(each.is_closing() for each in opened)
        assert {result.cause for name, result in results.items() if int(name[1:]) % 4 == 3} <= {"timeout", "local"}
        assert {result.cause for name, result in results.items() if int(name[1:]) % 4 != 3} == {None}
        samples = sorted(ms for _, ms in lb.samples)
        assert 200 < len(samples) <= 300  # a busy machine may cost some
        assert samples[len(samples) // 2] < 100, "the prober measures itself"
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_hundreds_of_probes_of_bad_targets_leave_neither_task_nor_socket() -> None:
    reported = asyncio.Event()

    class Counting(Recorder):
        def report(self, *args: Any, **kw: Any) -> None:
            super().report(*args, **kw)
            if len(self.reports) >= 500:
                reported.set()

    before = asyncio.all_tasks()
    async with serve(answering(OK)) as port, serve(silent) as mute, serve(reset_in_the_head) as cutting:
        lb = Counting(*[Region(f"r{n}", gateway=f"http://127.0.0.1:{(port, mute, cutting)[n % 3]}") for n in range(24)])
        with connections() as opened:
            task = asyncio.create_task(Prober(lb, monitor=Monitor(interval=0.1, timeout=0.06)).run())
            try:
                async with asyncio.timeout(30):
                    await reported.wait()
                assert len([each for each in opened if not each.is_closing()]) <= 24
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        assert len(opened) >= 500 and all(each.is_closing() for each in opened)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert lb.ticks > 10


def test_a_thread_probes_first_and_stops_when_told() -> None:
    ready, stop, ports = threading.Event(), threading.Event(), []

    async def server() -> None:
        async with serve(answering(OK)) as port:
            ports.append(port)
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(server(),))
    thread.start()
    assert ready.wait(10)
    lb = Recorder(Region("here", gateway=f"http://127.0.0.1:{ports[0]}"))
    prober = Prober(lb, monitor=Monitor(interval=0.1, timeout=0.09))
    prober.stop()
    for _ in range(2):
        seen = len(lb.reports)
        prober.start()
        assert len(lb.reports) > seen, "a first round before start returns"
        prober.start()
        assert sum(t.name == "lbcore-prober" for t in threading.enumerate()) == 1
        prober.stop()
        prober.stop()
        assert not any(t.name == "lbcore-prober" for t in threading.enumerate())
    assert prober.results["here"].ok

    ended = threading.Event()

    def tick() -> None:  # a callback that ends the Prober from within
        prober.stop()
        ended.set()

    lb.tick = tick  # type: ignore[method-assign]
    prober.start(first_round=False)
    assert ended.wait(10)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
