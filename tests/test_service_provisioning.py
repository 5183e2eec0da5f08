"""Provisioners: real gateway processes, an operator's commands, an operator."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from regions import processes

from lbcore.errors import ServiceError
from lbcore.service.capacity import Gauge
from lbcore.service.external import External
from lbcore.service.local import Local
from lbcore.service.model import location
from lbcore.service.progress import Granted
from lbcore.service.provisioning import Manual, Order, ProvisionError, provisioner, provisioners
from lbcore.service.revisions import Number
from lbcore.service.rotation import Look, StatusPages, wrong

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have only 127.0.0.1")


def order(work: str = "create", name: str = "westeurope", **more: Any) -> Order:
    settings: dict[str, Any] = {"work": work, "service": "contoso", "name": name, "location": location(name), "network_mode": "None"}
    return Order(**settings | {"new_public": work == "create"} | more)


# ===== which there are


def test_provisioners_are_found_by_name(tmp_path: Path) -> None:
    assert {"local", "external", "manual"} <= set(provisioners())
    assert isinstance(provisioner("manual"), Manual)
    assert isinstance(provisioner("local", folder=tmp_path), Local)
    with pytest.raises(ServiceError, match="did you mean 'external'"):
        provisioner("externl")


# ===== manual


async def test_manual_waits_for_the_word_of_the_operator() -> None:
    manual = Manual()
    work = asyncio.create_task(manual.carry_out(order()))
    await asyncio.sleep(0)
    [request] = manual.requests
    with pytest.raises(ServiceError, match="ResourceNotFound"):
        manual.answer("westeurope", request.id + 1, Granted())
    manual.answer("westeurope", request.id, Granted(("203.0.113.1",)))
    assert await work == Granted(("203.0.113.1",))
    assert manual.requests == ()


async def test_manual_takes_a_refusal() -> None:
    manual = Manual()
    work = asyncio.create_task(manual.carry_out(order()))
    await asyncio.sleep(0)
    manual.answer("westeurope", manual.requests[0].id, refusal="no budget")
    with pytest.raises(ProvisionError, match="no budget"):
        await work


# ===== external


@pytest.fixture
def command(tmp_path: Path) -> Callable[[str], list[str]]:
    """Give a command that runs some lines of Python with the order in `order`."""

    def make(lines: str, name: str = "command.py") -> list[str]:
        path = tmp_path / name
        path.write_text(f"import json, sys, os, time\norder = json.load(sys.stdin)\n{lines}\n")
        return [sys.executable, "-S", "-E", str(path), "{work}", "{name}"]

    return make


Command = Callable[[str], list[str]]


async def carried_out(create: list[str], one: Order | None = None, **options: Any) -> Granted:
    return await External(**{"create": create, "delete": create, "pause": 0.01, "limit": 20.0} | options).carry_out(one or order())


async def test_external_gives_the_order_and_takes_the_addresses(command: Command) -> None:
    said = "print(json.dumps({'publicIPAddresses': [order['name'], sys.argv[1], sys.argv[2]], 'gateway': 'http://203.0.113.1'}))"
    assert await carried_out(command(said)) == Granted(("westeurope", "create", "westeurope"), (), "http://203.0.113.1")


async def test_external_asks_again_until_the_work_is_done(command: Any, tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("")
    lines = f"open({str(count)!r}, 'a').write('x')\n"
    lines += f"print(json.dumps({{'status': 'working' if len(open({str(count)!r}).read()) < 3 else 'done', 'publicIPAddresses': ['::1']}}))"
    wait = command(lines, "wait.py")
    assert (await carried_out(command("pass"), wait=wait)).public_ips == ("::1",)
    assert count.read_text() == "xxx"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("sys.exit(3)", "ended with 3$"),
        ("print(json.dumps({'message': 'quota'})); sys.exit(1)", "ended with 1: quota"),
        ("print(json.dumps({'status': 'failed', 'message': 'quota'}))", "failed: quota"),
        ("print('token=hunter2')", "did not answer in JSON$"),
        ("print('[]')", "not answer with an object"),
        ("print('[' * 50000)", "did not answer in JSON$"),
        ("print(json.dumps({'publicIPAddresses': 'hunter2'}))", "no list of texts"),
        ("print(json.dumps({'gateway': 'file:///etc/passwd'}))", r"no http\(s\) URL"),
        ("while True: sys.stdout.write('hunter2' * 100000)", "more than 65536 bytes"),
        ("print(json.dumps({'status': 'working'}))", "no wait command"),
    ],
)
async def test_external_says_what_went_wrong_and_nothing_secret(
    command: Command, lines: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ProvisionError, match=says) as raised:
        await carried_out(command(lines))
    assert "hunter2" not in str(raised.value) + caplog.text


async def test_external_ends_a_command_that_hangs_and_what_it_started(command: Command, tmp_path: Path) -> None:
    child = tmp_path / "child"
    lines = f"pid = os.fork()\nif pid: open({str(child)!r}, 'w').write(str(pid))\ntime.sleep(600)"
    with pytest.raises(ProvisionError, match=r"took longer than 1\.5 s"):
        await carried_out(command(lines), call_limit=1.5)
    deadline = time.monotonic() + 10
    while running(int(child.read_text())):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_external_does_not_wait_for_who_holds_a_commands_pipe(command: Command, tmp_path: Path) -> None:
    child = tmp_path / "child"
    lines = f"pid = os.fork()\nif pid: open({str(child)!r}, 'w').write(str(pid))\nelse: os.setsid()\ntime.sleep(600)"
    try:
        async with asyncio.timeout(15):
            with pytest.raises(ProvisionError, match=r"took longer than 1\.5 s"):
                await carried_out(command(lines), call_limit=1.5)
    finally:
        os.kill(int(child.read_text()), signal.SIGKILL)


def running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_external_shows_commands_only_the_variables_that_are_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.setenv("CLOUD", "one")
    said = "print(json.dumps({'publicIPAddresses': sorted(set(os.environ) & {'SECRET', 'CLOUD'})}))"
    assert (await carried_out(command(said), environment=["CLOUD"])).public_ips == ("CLOUD",)


async def test_external_needs_a_command_for_each_kind_of_work(command: Command) -> None:
    with pytest.raises(ProvisionError, match="no update command"):
        await carried_out(command("pass"), order("update"))
    with pytest.raises(ProvisionError, match="cannot be started"):
        await carried_out(["/no/such/program"])


@pytest.mark.parametrize("wrong", ["create {name}", [], ["{password}"], ["{"], ["{0}"]])
def test_external_refuses_what_is_no_command(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        External(create=wrong, delete=["true"])


# ===== what a gateway says of itself


def test_only_a_configured_and_probed_gateway_may_enter() -> None:
    one, two = Number(1, 1), Number(1, 2)
    fine = Look("serving", "westeurope", two)
    assert wrong(fine, "westeurope", two, two) == ("", True)
    assert wrong(fine, "eastasia", two, two)[1] is False
    assert "1.2 is needed" in wrong(Look("serving", "westeurope", one), "westeurope", two, two)[0]
    assert "never published" in wrong(Look("serving", "westeurope", Number(9, 9)), "westeurope", two, two)[0]
    assert wrong(Look("not ready", "westeurope"), "westeurope", None, None) == ("", True)
    assert wrong(Look("disabled", "westeurope", two), "westeurope", two, two) == ("its gateway is disabled", True)
    assert wrong(Look("disabled", "westeurope", two), "westeurope", two, two, disabled=True) == ("", True)
    assert wrong(Look(cause="refused"), "westeurope", None, None) == ("refused", False)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"status":1,"region":2,"revision":"x.y"}', b"x" * 100_000])
async def test_whatever_a_status_page_says_is_no_exception(body: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    pages = StatusPages(timeout=5.0)
    async with server:
        found = await pages.look("westeurope", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert found.status == ""
    assert found.cause
    assert (await pages.look("westeurope", "no url")).status == ""
    await pages.close()


# ===== local


local = pytest.fixture(processes)


async def says(gateway: str, status: str) -> Look:
    pages, deadline = StatusPages(), time.monotonic() + 20
    try:
        while (found := await pages.look("", gateway)).status != status:
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.02)
        return found
    finally:
        await pages.close()


@linux
@pytest.mark.slow
async def test_local_regions_outlive_the_primary_and_keep_their_vips(local: Local, tmp_path: Path) -> None:
    west = await local.carry_out(order())
    east = await local.carry_out(order(name="eastasia"))
    assert west.public_ips != east.public_ips
    assert await says(west.gateway, "serving") == Look("serving", "westeurope", Number(1, 1), capacity=Gauge(0.0, 0.0))
    again = Local(tmp_path / "regions", source=str(tmp_path / "document.json"), port=0, grace=0.2)
    assert again.process("westeurope") == local.process("westeurope")
    assert await again.carry_out(order()) == west
    wider = order("update", location=location("westeurope", units=3), public_ips=west.public_ips)
    assert await again.carry_out(wider) == west
    assert again.process("westeurope") == local.process("westeurope")
    os.kill(local.process("eastasia") or 0, signal.SIGKILL)
    [child] = [one for one in local._children if one.pid != local.process("westeurope")]
    child.wait(10)
    assert await again.carry_out(order(name="eastasia")) == east
    await says(east.gateway, "serving")
    for child in again._children:
        child.kill()
        child.wait(10)


@linux
@pytest.mark.slow
async def test_local_regions_change_their_vip_with_an_overlap_and_stop(local: Local) -> None:
    first = await local.carry_out(order())
    moved = order("update", new_public=True, public_ips=first.public_ips)
    second = await local.carry_out(moved)
    assert second.public_ips != first.public_ips
    assert await local.carry_out(moved) == second  # after a crash the order comes again
    await says(second.gateway, "serving")
    await says(first.gateway, "serving")
    await local.release("westeurope", first.public_ips)
    await says(first.gateway, "")
    await local.switch("westeurope", True)
    await says(second.gateway, "disabled")
    await local.carry_out(order("delete"))
    assert local.process("westeurope") is None
    await says(second.gateway, "")
    await local.carry_out(order("delete"))


@linux
@pytest.mark.slow
async def test_local_says_when_a_gateway_cannot_start(local: Local, tmp_path: Path) -> None:
    broken = Local(tmp_path / "other", port=0, options={"follow": "no.such.module:follow"})
    with pytest.raises(ProvisionError, match="ended at once"):
        await broken.carry_out(order())
