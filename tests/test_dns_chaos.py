"""What goes wrong while DNS is served: reloads, bad configurations, errors in the answering, full buffers, `kill -9`."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.rcode
import httpx
import pytest
from conftest import Clock
from resolving import OWNER, PROFILE, balancer
from serving import ROOT, WAIT, Load, Process, Start, asked_name, questions, start

from lbcore.dns import Responder
from lbcore.dns._cookies import Cookies
from lbcore.dns.handover import take_over
from lbcore.dns.loops import FRAME
from lbcore.dns.querylog import QueryLog
from lbcore.dns.server import Server

__all__ = ["start"]  # a fixture

pytestmark = pytest.mark.slow

# ===== reload


def hup(process: Process) -> None:
    process.child.send_signal(signal.SIGHUP)


async def addresses(process: Process, name: str = "api.example.com") -> list[str]:
    host, port = process.address
    response = await dns.asyncquery.udp(dns.message.make_query(name, "A"), host, port=port, timeout=WAIT)
    return [rdata.to_text() for rrset in response.answer for rdata in rrset] or [dns.rcode.to_text(response.rcode())]


async def test_a_reload_a_moment_loses_no_query(start: Start) -> None:
    current = await start()
    async with Load(current.address, 500, questions()) as load:
        for number in range(1, 11):
            hup(current)
            await current.says("reloaded", times=number)
            await load.more(50)
        assert (await load.lost(), load.wrong) == (0, 0)


async def test_a_reload_changes_names_and_regions(start: Start) -> None:
    current = await start()
    file = current.output.parent / "lbcore.toml"
    text = file.read_text()
    assert await addresses(current) != ["NXDOMAIN"]
    file.write_text(text.replace('name = "api"', 'name = "shop"'))
    hup(current)
    await current.says("reloaded")
    assert await addresses(current) == ["NXDOMAIN"]
    file.write_text(text.replace("192.0.2.1", "198.51.100.1"))
    hup(current)
    await current.says("reloaded", times=2)
    assert (await addresses(current))[0].startswith("198.51.100.1")
    only = '[[service.regions]]\nname = "eastus"\naddresses = ["203.0.113.9"]\n[dns]'
    file.write_text(re.sub(r"\[\[service\.regions\]\].*\[dns\]", only, text, flags=re.DOTALL))
    hup(current)
    await current.says("reloaded", times=3)
    assert await addresses(current) == ["203.0.113.9"]


async def test_a_bad_configuration_changes_nothing_and_all_of_it_is_told(start: Start) -> None:
    current = await start()
    file = current.output.parent / "lbcore.toml"
    text, before = file.read_text(), await addresses(current)
    file.write_text(text.replace("192.0.2.11", "nonsense").replace('domain = "example.com"', 'domain = "-"') + "colour = 1\n")
    hup(current)
    await current.says("reload failed")
    said = current.output.read_text()
    assert all(word in said for word in ("service.regions[0].addresses[0]", "service.domain", "dns.colour"))
    (file.parent / "x.mmdb").write_bytes(b"no database")
    moved = text.replace("192.0.2.1", "198.51.100.1") + '[latency]\ndatabase = "x.mmdb"\n'
    for times, broken in enumerate(("[[service", moved, None), 2):
        file.write_text(broken) if broken else file.unlink()
        hup(current)
        await current.says("reload failed", times=times)
    assert await addresses(current) == before
    file.write_text(text)
    hup(current)
    await current.says("reloaded")


async def test_what_a_reload_cannot_change_is_named(start: Start) -> None:
    current = await start()
    file = current.output.parent / "lbcore.toml"
    text = file.read_text().replace("threads = 2", "threads = 3")
    file.write_text(text + '[latency]\nestimator = "ewma"\n[detector]\nhold_down_seconds = 1\n')
    hup(current)
    await current.says("reloaded")
    line = await current.says("in effect from the next start")
    assert all(key in line for key in ("dns.threads", "latency.estimator", "detector"))
    assert "dns.listen" not in line


CLIENT_COOKIE = b"lbcore--"


async def cookie(address: tuple[str, int], shown: bytes = b"") -> tuple[bytes, int]:
    """Give the server cookie that comes, and the response code, for one that is shown."""
    asked = dns.message.make_query("api.example.com", "A", use_edns=0, options=[dns.edns.CookieOption(CLIENT_COOKIE, shown)])
    response = await dns.asyncquery.udp(asked, address[0], port=address[1], timeout=WAIT)
    (option,) = response.options
    assert isinstance(option, dns.edns.CookieOption)
    return option.server, response.rcode()


def secret_of(server_cookie: bytes, secrets: list[bytes]) -> bytes:
    """Give the secret that made a cookie, for 127.0.0.1."""
    for secret in secrets:
        made = Cookies(secret).answer(CLIENT_COOKIE + server_cookie, bytes([127, 0, 0, 1]), int.from_bytes(server_cookie[4:8]))
        if made is not None and made[0]:
            return secret
    raise AssertionError("none of them")


async def test_cookies_outlive_take_overs_and_follow_the_configuration(start: Start) -> None:
    current = await start()
    drawn, _ = await cookie(current.address)
    successor = await start("--take-over")
    assert await current.ended() == 0
    handed = await take_over(successor.output.parent / "dns.sock")
    assert handed is not None
    secrets = [bytes.fromhex(secret) for secret in handed.offer.secrets]
    handed.close()
    assert secret_of(drawn, secrets) == secret_of((await cookie(successor.address))[0], secrets)  # the first process drew it
    file = current.output.parent / "lbcore.toml"
    file.with_name("secret").write_text("ab" * 16 + "  # of all servers\n")
    file.write_text(file.read_text() + 'cookie_secret = "secret"\n')
    hup(successor)
    await successor.says("reloaded")
    assert secret_of((await cookie(successor.address))[0], [bytes.fromhex("ab" * 16)])


async def test_the_server_is_named_limited_and_versioned_as_configured(start: Start) -> None:
    current = await start(more='nsid = "ams1"\nversion = "1.0"\nrate_limit = { rate = 5, exempt = [] }\ncookies = false\n')
    host, port = current.address
    asked = dns.message.make_query("version.bind", "TXT", "CH", use_edns=0, options=[dns.edns.GenericOption(dns.edns.NSID, b"")])
    response = await dns.asyncquery.udp(asked, host, port=port, timeout=WAIT)
    assert response.answer[0][0].to_text() == '"1.0"'
    assert [option.to_wire() for option in response.options] == [b"ams1"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(current.address)
        client.settimeout(1)
        answers = []
        for id_ in range(40):
            client.send(dns.message.make_query("api.example.com", "A", id=id_).to_wire())
        with pytest.raises(TimeoutError):
            while True:
                answers.append(dns.message.from_wire(await asyncio.to_thread(client.recv, 4096), raise_on_truncation=False))
    assert 5 <= sum(bool(answer.answer) for answer in answers) <= 10
    assert any(answer.flags & dns.flags.TC for answer in answers)
    assert len(answers) < 40


async def test_metrics_and_query_log_of_a_process(start: Start) -> None:
    current = await start(more='query_log = "queries.log"\nquery_log_sample = 1\n')
    log, moved = current.output.parent / "queries.log", current.output.parent / "queries.log.1"
    await addresses(current)
    async with asyncio.timeout(WAIT):
        while not log.read_text():
            await asyncio.sleep(0.01)
    log.rename(moved)
    hup(current)
    await current.says("reloaded")
    await addresses(current)
    url = (await current.says("metrics at")).split()[-1]
    async with httpx.AsyncClient() as client:
        page = (await client.get(url)).text
    assert 'lbcore_dns_reloads_total{result="ok"} 1.0' in page
    current.child.send_signal(signal.SIGTERM)
    assert await current.ended() == 0
    assert (moved.read_text().count("\n"), log.read_text().count("\n")) == (1, 1)


async def test_sigterm_answers_what_was_asked(start: Start) -> None:
    current = await start()
    async with Load(current.address, 2000, questions()) as load:
        await load.more(500)
        load.pause()
        current.child.send_signal(signal.SIGTERM)
        assert await load.lost() == 0
    assert await current.ended() == 0
    assert not (current.output.parent / "dns.sock").exists()


async def test_metrics_that_cannot_be_shown_do_not_keep_dns_from_serving(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        current = await start(metrics=f"127.0.0.1:{taken.getsockname()[1]}")
        assert await asked_name(current.address)
        await current.says("no metrics at")


async def test_the_command_line_has_the_last_word(start: Start) -> None:
    current = await start("--listen", "127.0.0.1:0", "--listen", "127.0.0.2:0", "--threads", "3", threads=1)
    said = await current.says("answering")
    ports = [int(port) for port in re.findall(r"127\.0\.0\.[12] port (\d+)", said)]
    for host, port in zip(("127.0.0.1", "127.0.0.2"), ports, strict=True):
        assert await asked_name((host, port))
    bound = Path("/proc/net/udp").read_text()
    assert [bound.count(f":{port:04X} 00000000:0000") for port in ports] == [3, 3]


async def test_a_successor_that_cannot_start_changes_nothing(start: Start) -> None:
    current = await start()
    (current.output.parent / "lbcore.toml").write_text("colour = 1\n")
    current.child.send_signal(signal.SIGUSR2)
    await current.says("ended with exit code 2; this one goes on")
    assert await asked_name(current.address)


# ===== the compiled loop, and what it hands over


class StandIn:
    """A loop like the compiled one: queries with an even id it answers by itself, by the bytes they came with, the rest it hands over."""

    def __init__(self, *, fail: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._fail = fail

    def serve(self, udp: int, slow: int) -> None:
        receiving = socket.socket(fileno=udp)
        handing = socket.socket(fileno=slow)
        try:
            if self._fail:
                raise OSError("a bug")
            while not self._stopping.is_set():
                self._serve_one(udp, receiving, handing)
        finally:
            receiving.detach()
            handing.detach()

    def _serve_one(self, udp: int, receiving: socket.socket, handing: socket.socket) -> None:
        receiving.settimeout(0.02)
        try:
            query, source = receiving.recvfrom(4096)
        except TimeoutError:
            return
        self.counts["queries"] += 1
        four = ":" not in source[0]
        if query[1] % 2 == 0:
            receiving.sendto(query, source)
            if query[1] % 20 == 0:
                self._hand_over(handing, udp, 1, four, source, query)
            return
        self._hand_over(handing, udp, 0, four, source, query)

    def _hand_over(self, handing: socket.socket, udp: int, kind: int, four: bool, source: Any, packet: bytes) -> None:
        address = socket.inet_pton(socket.AF_INET if four else socket.AF_INET6, source[0])
        scope = 0 if four else source[3]
        try:
            handing.send(FRAME.pack(udp, kind, 4 if four else 6, source[1], address, scope) + packet, socket.MSG_DONTWAIT)
            self.counts["slow"] += 1
        except BlockingIOError:
            self.counts["lost"] += kind == 0

    def stop(self) -> None:
        self._stopping.set()

    def suspect(self, on: bool) -> None:
        pass

    def counters(self) -> dict[str, int]:
        return dict(self.counts)


@pytest.fixture
def responder(clock: Clock) -> Responder:
    return Responder(balancer(clock), PROFILE)


@pytest.fixture
def client() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(WAIT)
        yield made


def query(id_: int) -> bytes:
    return dns.message.make_query(OWNER, "A", id=id_).to_wire()


async def received(client: socket.socket, count: int) -> dict[int, bytes]:
    def take() -> dict[int, bytes]:
        answers = (client.recv(4096) for _ in range(count))
        return {int.from_bytes(answer[:2]): answer for answer in answers}

    return await asyncio.to_thread(take)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_what_the_loop_hands_over_is_answered_by_the_responder(responder: Responder, host: str, tmp_path: Path) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with QueryLog(tmp_path / "log") as log, socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(WAIT)
        async with Server(responder, host, 0, threads=2, wire=lambda *_: StandIn(), log=log) as server:
            for id_ in range(100):
                client.sendto(query(id_), server.address)
            answers = await received(client, 100)
            assert server.fast()["queries"] == 100
        assert server.counters["udp"] == 50
        for id_, answer in answers.items():
            assert (answer == query(id_)) == (id_ % 2 == 0)
            assert id_ % 2 == 0 or dns.message.from_wire(answer).answer
    assert log.written == 50 + 5


async def test_what_was_taken_is_answered_when_the_server_ends(responder: Responder, client: socket.socket) -> None:
    async with Server(responder, port=0, threads=2, wire=lambda *_: StandIn()) as server:
        for id_ in range(1, 400, 2):
            client.sendto(query(id_), server.address)
    assert len(await received(client, 200)) == 200


async def test_a_loop_that_breaks_is_replaced_by_the_event_loop(
    responder: Responder, client: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async with Server(responder, port=0, wire=lambda *_: StandIn(fail=True)) as server:
        for id_ in range(20):
            client.sendto(query(id_), server.address)
        answers = await received(client, 20)
    assert all(dns.message.from_wire(answer).answer for answer in answers.values())
    assert server.counters["loops_lost"] == 1
    assert "a bug" in caplog.text


async def test_an_error_is_told_to_the_client_counted_and_logged_once_a_second(
    responder: Responder, client: socket.socket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(responder, "answer", broken)
    async with Server(responder, port=0, wire=lambda *_: StandIn()) as server:
        for id_ in range(1, 200, 2):
            client.sendto(query(id_), server.address)
        answers = await received(client, 100)
        client.sendto(query(2), server.address)  # the loop never noticed
        assert await received(client, 1)
        monkeypatch.setattr(responder, "failure", broken)  # even telling fails: no answer, and the server lives on
        client.sendto(query(1), server.address)
        while not server.counters["mute"]:
            await asyncio.sleep(0.001)
    assert {dns.message.from_wire(answer).rcode() for answer in answers.values()} == {dns.rcode.SERVFAIL}
    assert server.counters["failures"] == 101
    assert 1 <= sum(record.levelno == logging.ERROR for record in caplog.records) <= 10


async def test_a_responder_that_lags_makes_the_loop_drop_not_wait(
    responder: Responder, client: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the event loop stuck, what the compiled loop can answer is answered still; what it cannot is dropped once a buffer is full."""
    monkeypatch.setattr("lbcore.dns.loops.BUFFER", 20_000)
    wire = StandIn()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as even:
        even.settimeout(WAIT)
        async with Server(responder, port=0, wire=lambda *_: wire) as server:
            for id_ in range(1, 2000, 2):  # nobody awaits: the event loop answers nothing meanwhile
                client.sendto(query(id_), server.address)
                even.sendto(query(id_ - 1), server.address)
                assert even.recv(4096) == query(id_ - 1)
            assert wire.counts["lost"] > 500
            answered = await received(client, 1000 - wire.counts["lost"])
            client.sendto(query(1), server.address)
            assert await received(client, 1)
    assert len(answered) + wire.counts["lost"] == 1000


class Full:
    """A socket whose buffer is full."""

    def sendto(self, *_: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")


async def test_an_answer_that_does_not_go_out_is_counted(responder: Responder) -> None:
    async with Server(responder, port=0) as server:
        server._send(Full(), b"answer", ("127.0.0.1", 1))  # type: ignore[arg-type]
        assert server.counters["unsent"] == 1


# ===== systemd


def test_the_unit_is_one_that_systemd_takes(program: Callable[[str], str], tmp_path: Path) -> None:
    unit = tmp_path / "lbcore-dns.service"
    unit.write_text((ROOT / "examples" / unit.name).read_text().replace("/usr/bin/lbcore", program("true")))
    done = subprocess.run([program("systemd-analyze"), "verify", str(unit)], capture_output=True, text=True, timeout=WAIT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("abstract", [False, True])
async def test_systemd_is_told(start: Start, tmp_path: Path, abstract: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        manager.settimeout(WAIT)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        current = await start()
        assert manager.recv(1000) == f"READY=1\nMAINPID={current.child.pid}".encode()
        hup(current)
        await current.says("reloaded")
        assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(1000) == b"READY=1"
        current.child.send_signal(signal.SIGTERM)
        assert await current.ended() == 0
        assert manager.recv(1000) == b"STOPPING=1"
