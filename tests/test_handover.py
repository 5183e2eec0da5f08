"""Taking over a running server: no query is lost, whoever dies when."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import dns.asyncquery
import dns.edns
import dns.message
import dns.rcode
import pytest
from conftest import Clock
from resolving import OWNER, PROFILE, balancer
from serving import CONFIG, ROOT, WAIT, Load, Start, asked_name, questions, start

from lbcore import Balancer
from lbcore.cli.serving import Serving
from lbcore.config import Settings, load
from lbcore.dns import Responder, handover
from lbcore.dns.handover import Control, HandoverError, Offer, take_over
from lbcore.dns.server import Server

__all__ = ["start"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs SOCK_SEQPACKET and /proc")]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ===== the protocol


class Running:
    """A process that may be taken over, within this one."""

    def __init__(self, path: Path, server: Server, state: bytes = b"learned") -> None:
        self.server, self.state, self.finished = server, state, False
        self.control = Control(path, self.offer, self.finish)

    async def offer(self) -> Offer:
        return Offer(self.server.sockets, None, self.state, {"four": "refused"})

    async def finish(self) -> None:
        self.server.handed_over = self.finished = True
        await self.server.stop_reading()


@pytest.fixture
async def running(tmp_path: Path, clock: Clock) -> AsyncIterator[Running]:
    async with Server(Responder(balancer(clock), PROFILE), port=0, threads=3) as server:
        running = Running(tmp_path / "dns.sock", server)
        async with running.control:
            yield running


async def asked(server: Server | tuple[str, int]) -> bool:
    host, port = server.address if isinstance(server, Server) else server
    for ask in (*[dns.asyncquery.udp] * 16, dns.asyncquery.tcp):  # from many ports: every UDP socket has its turn
        response = await ask(dns.message.make_query(OWNER, "A"), host, port=port, timeout=WAIT)
        assert response.rcode() == dns.rcode.NOERROR
    return True


async def test_what_is_offered_arrives(running: Running, tmp_path: Path) -> None:
    running.state = os.urandom(1 << 20)
    predecessor = await take_over(tmp_path / "dns.sock")
    assert predecessor is not None
    assert predecessor.pid == os.getpid()
    assert (predecessor.offer.state, predecessor.offer.down) == (running.state, {"four": "refused"})
    assert [s.getsockname() for s in predecessor.offer.dns] == [s.getsockname() for s in running.server.sockets]
    assert [s.type for s in predecessor.offer.dns] == [s.type for s in running.server.sockets]
    predecessor.close()


async def test_the_new_one_goes_on_with_the_same_sockets(running: Running, tmp_path: Path, clock: Clock) -> None:
    address = running.server.address
    predecessor = await take_over(tmp_path / "dns.sock")
    assert predecessor is not None
    async with Server(Responder(balancer(clock), PROFILE), *address, threads=3, inherited=predecessor.offer.dns) as server:
        assert await asked(address)  # either of them answers
        await predecessor.finish()
        server.release()
        assert running.finished
        before = server.fast()["queries"], server.counters["tcp"]
        assert await asked(address)
        assert (server.fast()["queries"], server.counters["tcp"]) == (before[0] + 16, before[1] + 1)


@pytest.mark.parametrize("serving", [False, True])
async def test_a_new_process_that_dies_half_way_changes_nothing(running: Running, tmp_path: Path, clock: Clock, serving: bool) -> None:
    for _ in range(3):
        predecessor = await take_over(tmp_path / "dns.sock")
        assert predecessor is not None
        if serving:  # with fewer sockets, and then something else goes wrong
            async with Server(Responder(balancer(clock), PROFILE), *running.server.address, inherited=predecessor.offer.dns):
                pass
        predecessor.close()
        while running.control.busy:
            await asyncio.sleep(0.001)
        assert not running.finished
        assert await asked(running.server)


async def test_an_old_process_that_dies_half_way_ends_nothing(running: Running, tmp_path: Path, clock: Clock) -> None:
    address = running.server.address
    predecessor = await take_over(tmp_path / "dns.sock")
    assert predecessor is not None
    running.server.handed_over = True
    await running.server.stop_reading()
    await running.control.__aexit__(None, None, None)
    async with Server(Responder(balancer(clock), PROFILE), *address, inherited=predecessor.offer.dns) as server:
        await predecessor.finish()
        server.release()
        assert await asked(address)
    running.control._listening = socket.socket()  # for the fixture to close


async def test_without_a_running_process_there_is_nothing_to_take(tmp_path: Path) -> None:
    path = tmp_path / "dns.sock"
    assert await take_over(path) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left_over:  # as `kill -9` leaves it
        left_over.bind(str(path))
    assert await take_over(path) is None
    async with Control(path, Running.offer, Running.finish):  # type: ignore[arg-type]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()
    path.write_text("no socket")
    assert await take_over(path) is None


async def test_only_one_takes_over_at_a_time(running: Running, tmp_path: Path) -> None:
    first = await take_over(tmp_path / "dns.sock")
    assert first is not None
    with pytest.raises(HandoverError, match="somebody else is taking over"):
        await take_over(tmp_path / "dns.sock")
    first.close()


@pytest.mark.parametrize(
    "message", [b"", b"{}", b"nonsense", b"[]", b'{"do": "take over", "version": 2}', b'{"do": "finish"}', b"\xff" * 1000]
)
async def test_whatever_is_said_to_it_it_goes_on(running: Running, tmp_path: Path, message: bytes) -> None:
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.connect(str(tmp_path / "dns.sock"))
        if message:
            with open(os.devnull) as gift:
                socket.send_fds(peer, [message], [gift.fileno()])
        peer.shutdown(socket.SHUT_WR)
        peer.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            while answer := await asyncio.get_running_loop().sock_recv(peer, 1 << 16):
                assert json.loads(answer)["do"] == "refuse"
    assert await asked(running.server)
    assert not running.finished
    async with asyncio.timeout(WAIT):
        while open_descriptors() > before:  # the connections of `asked` end a moment later
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "messages",
    [
        [b"nonsense"], [b'{"do": "sockets", "uses": ["dns"]}'], [b'{"do": "offer"}'], [b'{"do": "go"}', b"{}"],
        [b'{"do": "offer", "pid": 1, "down": {}}'], [],
    ],
)  # fmt: skip
async def test_a_server_that_talks_nonsense_is_told_apart_from_none(
    tmp_path: Path, messages: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "PATIENCE", 0.2)
    before = open_descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as strange:
        strange.bind(str(tmp_path / "dns.sock"))
        strange.listen()
        asking = asyncio.create_task(take_over(tmp_path / "dns.sock"))
        peer = await asyncio.to_thread(strange.accept)
        for message in messages:
            peer[0].send(message)
        if messages[:1] == [b'{"do": "go"}']:
            found = await asking
            assert found is not None
            found.close()
        else:
            with pytest.raises(HandoverError):
                await asking
        peer[0].close()
    assert open_descriptors() == before


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (4, 2)])
async def test_fewer_or_more_threads_lose_nothing(clock: Clock, before: int, after: int) -> None:
    """What waits in a socket that the new server does not need is answered before it is closed."""
    async with Server(Responder(balancer(clock), PROFILE), port=0, threads=before) as old:
        address = old.address
        async with Load(address, rate=2000) as load:
            copies = [each.dup() for each in old.sockets]
            async with Server(Responder(balancer(clock), PROFILE), *address, threads=after, inherited=copies) as new:
                await load.more(200)
                old.handed_over = True
                await old.stop_reading()
                await load.more(200)
                new.release()
                await load.more(400)
                assert len(new.sockets) == after + 1
                assert await load.lost() == 0


async def test_who_is_taken_over_while_taking_over_leaves_the_sockets_alone(clock: Clock) -> None:
    """Three processes in a row: the second hears that the first is gone while it gives its sockets to the third."""
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Server(Responder(balancer(clock), PROFILE), port=0))
        second, third = [
            await stack.enter_async_context(
                Server(Responder(balancer(clock), PROFILE), *first.address, inherited=[each.dup() for each in first.sockets])
            )
            for _ in range(2)
        ]
        second.handed_over = True
        ending = asyncio.create_task(second.stop_reading())
        await asyncio.sleep(0)
        second.release()
        await ending
        first.handed_over = True
        await first.stop_reading()
        third.release()
        assert await asked(third)


async def test_other_addresses_are_bound_or_closed(clock: Clock) -> None:
    async with Server(Responder(balancer(clock), PROFILE), listen=[("127.0.0.1", 0), ("127.0.0.2", 0)]) as old:
        first, second = old.addresses
        copies = [each.dup() for each in old.sockets]
        wanted = [second, ("127.0.0.3", 0)]
        async with Server(Responder(balancer(clock), PROFILE), listen=wanted, inherited=copies) as new:
            old.handed_over = True
            await old.stop_reading()
            assert await asked(first)  # until it is known that the other is gone
            new.release()
            for address in new.addresses:
                assert await asked(address)
            assert new.addresses[0] == second
            with socket.socket() as client, pytest.raises(ConnectionRefusedError):
                client.connect(first)


# ===== what was learned


def serving_of(tmp_path: Path) -> tuple[Balancer, Serving]:
    file = tmp_path / "lbcore.toml"
    file.write_text(CONFIG.format(listen='"127.0.0.1:0"', threads=1, metrics=""))
    settings = load(file)
    lb = Balancer(**settings.balancer_options())
    return lb, Serving(file, settings, lb, [("127.0.0.1", 0)], probe=False)


async def test_what_was_learned_and_who_is_down_is_inherited(tmp_path: Path) -> None:
    (old, handing), (new, taking) = serving_of(tmp_path), serving_of(tmp_path)
    client = "81.2.69.160"
    assert new.pick(client).name == "westeurope"
    for _ in range(50):
        old.observe("westeurope", 900.0, client)
        old.observe("eastasia", 1.0, client)
    old.tick()
    while old.status("westus2") == "up":
        old.report("westus2", False, cause="tls", source="probe")
    handing._server = Server(handing._responder, port=0)
    handing._page = None
    taking._inherit(await handing._offer())
    assert old.pick(client).name == new.pick(client).name == "eastasia"
    assert [new.status(name) for name in ("westus2", "westeurope", "eastasia")] == ["down", "up", "up"]
    for _ in range(5):
        new.report("westus2", True, source="probe")  # its own probes decide from here on
    assert new.status("westus2") == "up"


async def test_a_state_that_cannot_be_used_is_learned_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lb, serving = serving_of(tmp_path)
    serving._inherit(Offer(state=b"nonsense", down={"atlantis": "refused"}))
    assert lb.pick("81.2.69.160").name == "westeurope"
    assert "cannot be used" in caplog.text


# ===== signals


async def test_however_often_a_reload_is_asked_for_one_waits_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, serving = serving_of(tmp_path)
    begun, go_on = [], asyncio.Event()

    async def apply(settings: Settings) -> None:
        begun.append(settings)
        await go_on.wait()

    monkeypatch.setattr(serving, "_apply", apply)
    for _ in range(20):
        serving.reload_soon()
        await asyncio.sleep(0)
    async with asyncio.timeout(WAIT):
        while not begun:
            await asyncio.sleep(0.001)
        for _ in range(20):  # what is on disk by now may be other than what is being applied
            serving.reload_soon()
        go_on.set()
        await asyncio.gather(*serving._tasks)
    assert len(begun) == 2


async def test_one_successor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    _, serving = serving_of(tmp_path)
    begun: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(_: list[str]) -> subprocess.Popen[bytes]:
        begun.append(popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    for _ in range(3):
        serving._start_successor()
    assert len(begun) == 1
    assert f"process {begun[0].pid} is about to take over already" in caplog.text
    begun[0].communicate(b"\n", timeout=WAIT)  # it ends, so another may try
    serving._start_successor()
    assert len(begun) == 2
    begun[1].communicate(b"\n", timeout=WAIT)
    await asyncio.gather(*serving._tasks)


# ===== processes


async def test_three_take_overs_under_load_lose_no_query(start: Start) -> None:
    current = await start()
    address = current.address
    async with Load(address, 1000, questions()) as load:
        await load.more(500)
        for threads in (2, 1, 3):
            successor = await start("--take-over", threads=threads)
            assert successor.address == address
            assert await current.ended() == 0
            await load.more(500)
            current = successor
        assert (await load.lost(), load.wrong) == (0, 0)
    current.child.send_signal(signal.SIGTERM)
    assert await current.ended() == 0
    print(f"{load.sent} queries, none lost")


async def test_a_signal_starts_the_successor(start: Start, tmp_path: Path) -> None:
    current = await start()
    async with Load(current.address, 300, questions()) as load:
        await load.more(100)
        current.child.send_signal(signal.SIGUSR2)
        await current.says("answering", times=2)  # the new one, into the same file
        assert await current.ended() == 0
        await load.more(100)
        assert (await load.lost(), load.wrong) == (0, 0)
    successor = await take_over(tmp_path / "dns.sock")
    assert successor is not None
    assert successor.pid != current.child.pid
    successor.close()
    os.kill(successor.pid, signal.SIGTERM)


async def test_a_new_process_killed_on_its_way_leaves_the_old_one_serving(start: Start, tmp_path: Path) -> None:
    current = await start()
    async with Load(current.address, 500, questions()) as load:
        await load.more(100)
        for _ in range(3):
            predecessor = await take_over(tmp_path / "dns.sock")  # this process has the sockets, reads nothing, and goes
            assert predecessor is not None
            await load.more(100)
            predecessor.close()
        await load.more(100)
        assert (await load.lost(), load.wrong) == (0, 0)
    assert current.child.returncode is None


async def test_tcp_connections_are_served_to_their_end(start: Start) -> None:
    current = await start()
    streams = [await asyncio.open_connection(*current.address) for _ in range(5)]
    framed = dns.message.make_query("api.example.com", "A").to_wire(prepend_length=True)
    for _, writer in streams:
        writer.write(framed[:5])  # half a query; the rest comes when the new process serves
    successor = await start("--take-over")
    for _, writer in streams:
        writer.write(framed[5:])
    for reader, writer in streams:
        async with asyncio.timeout(WAIT):
            answer = dns.message.from_wire(await reader.readexactly(int.from_bytes(await reader.readexactly(2))))
        assert answer.answer
        writer.close()
    assert await current.ended() == 0
    assert await asked_name(successor.address)


async def test_kill_9_takes_what_it_had_and_a_new_one_starts(start: Start) -> None:
    """What the kernel held for it is lost; nothing keeps the next start from the same address and control socket."""
    current = await start(listen='"127.0.0.1:0"')
    current.child.kill()
    await current.ended()
    host, port = current.address
    again = await start("--take-over", listen=f'"{host}:{port}"')
    assert again.address == current.address
    assert await asked_name(again.address)


async def test_a_second_process_does_not_push_the_first_aside(start: Start, tmp_path: Path) -> None:
    current = await start()
    command = [sys.executable, "-m", "lbcore", "dns", "serve", "-c", str(tmp_path / "lbcore.toml")]
    other = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT)
    assert (other.returncode, "--take-over" in other.stderr) == (3, True)
    assert await asked_name(current.address)
