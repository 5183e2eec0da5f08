"""A Save with real gateway processes: regions come up, are configured and probed, move, and go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from regions import processes
from service_worlds import contoso

from lbcore.service.local import Local
from lbcore.service.model import Service, ServiceState, location
from lbcore.service.operations import Runner, Times
from lbcore.service.plan import plan
from lbcore.service.primary import Primary
from lbcore.service.remote import answer
from lbcore.service.rotation import Listed, StatusPages
from lbcore.service.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="other systems have only 127.0.0.1")]

TIMES = Times(sync=20.0, probe=20.0, drain=0.2, pause=0.05)


class Shown(StatusPages):
    """A data plane that only remembers what it is shown."""

    def __init__(self) -> None:
        super().__init__(timeout=5.0)
        self.now: dict[str, Listed] = {}

    async def show(self, listed: Mapping[str, Listed]) -> None:
        self.now = dict(listed)

    async def idle(self, name: str) -> bool:
        return True


local = pytest.fixture(processes)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as one:
        one.revisions.put(b"{}", who="ann")
        yield one


def now(store: Store) -> ServiceState:
    state = store.state()
    assert state is not None
    return state


async def saved(one: Runner, store: Store, wanted: Service) -> str:
    async with asyncio.timeout(60):
        operation = await one.save(plan(store.state(), wanted), store.state(), who="ann")
        return (await one.wait(operation.id)).status


async def test_regions_come_and_move_and_go_while_the_others_stay(local: Local, store: Store) -> None:
    shown = Shown()
    one = Runner(store, local, shown, times=TIMES)
    await one.start()
    assert await saved(one, store, contoso("westeurope")) == "Succeeded"
    before = now(store)
    assert {name: (await shown.look(name, each.gateway)).status for name, each in shown.now.items()} == {
        "westus2": "serving", "westeurope": "serving",
    }  # fmt: skip

    moved = contoso("westeurope").put(location("westeurope", units=2, zones=["1", "2"]))
    assert await saved(one, store, moved) == "Succeeded"
    after = now(store)
    assert after.of("westus2") == before.of("westus2")
    assert after.of("westeurope").previous_public_ips == before.of("westeurope").public_ips
    assert (await shown.look("westeurope", before.of("westeurope").gateway)).status == "serving"
    assert (await shown.look("westeurope", after.of("westeurope").gateway)).status == "serving"

    assert await saved(one, store, contoso()) == "Succeeded"
    assert shown.now.keys() == {"westus2"}
    assert local.process("westeurope") is None
    assert now(store).of("westus2") == before.of("westus2")
    await one.close()
    await shown.close()


async def test_regions_are_started_again_with_their_addresses(local: Local, store: Store) -> None:
    shown = Shown()
    one = Runner(store, local, shown, times=TIMES)
    assert await saved(one, store, contoso()) == "Succeeded"
    process, gateway = local.process("westus2"), now(store).of("westus2").gateway
    assert process is not None
    os.kill(process, signal.SIGKILL)
    local._children[0].wait(10)
    assert (await shown.look("westus2", gateway)).status == ""
    assert await local.revive() == ("westus2",)
    assert (await shown.look("westus2", gateway)).status == "serving"  # by the configuration that it kept
    assert await local.revive() == ()
    await one.close()
    await shown.close()


async def test_what_died_is_started_again_after_a_restart_of_the_machine_or_where_that_is_wanted(
    local: Local, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    shown = Shown()
    one = Runner(store, local, shown, times=TIMES)
    assert await saved(one, store, contoso()) == "Succeeded"
    folder, gateway = local._folder, now(store).of("westus2").gateway

    async def killed() -> Local:
        process = local.process("westus2")
        assert process is not None
        os.kill(process, signal.SIGKILL)
        local._gone("westus2", 10.0)
        return Local(folder, source=str(folder.parent / "document.json"), port=0, grace=0.3, interval=0.05)

    await local.tend()
    later = await killed()
    for _ in range(2):  # a drill: it stays dead
        await later.tend()
        assert later.process("westus2") is None
    assert caplog.text.count("`lbcore regions refresh westus2` starts it again") == 1
    assert json.loads((folder / "westus2.json").read_text())["grace"] == 0.3  # and yet it will start as all are to be now
    (folder / "boot").write_text("another one")
    after = Local(folder, source=str(folder.parent / "document.json"), port=0, grace=0.3, interval=0.05)
    await after.tend()
    assert (await shown.look("westus2", gateway)).status == "serving" and (folder / "boot").read_text() != "another one"
    await killed()
    reviving = Local(folder, source=str(folder.parent / "document.json"), port=0, grace=0.3, interval=0.05, revive=True)
    await reviving.tend()
    assert (await shown.look("westus2", gateway)).status == "serving"
    await killed()
    await reviving.tend()
    assert (await shown.look("westus2", gateway)).status == "serving"
    await one.close()
    await shown.close()
    await killed()
    for made in (after, reviving):
        for child in made._children:
            child.wait(10)


@asynccontextmanager
async def configurations(store: Store) -> AsyncIterator[str]:
    """Serve a store's configurations as the management API does."""
    source = Primary(store)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields if field)}
        status, told, content = 401, dict[str, str](), b""
        if line.startswith("HEAD"):
            status = 503  # no hints
        elif headers.get("authorization") == "Bearer hunter2":
            status, told, content = await answer(source, "GET", headers, "westus2")
        lines = [f"HTTP/1.1 {status} -", "connection: close", f"content-length: {len(content)}", *(f"{key}: {told[key]}" for key in told)]
        writer.write("\r\n".join([*lines, "", ""]).encode() + content)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def test_gateways_follow_the_primary_and_serve_on_without_it(local: Local, store: Store, tmp_path: Path) -> None:
    token, shown = tmp_path / "token", Shown()
    token.write_text("hunter2\n")
    await Primary(store).put({}, who="ann")
    async with configurations(store) as url:
        following = Local(tmp_path / "regions", primary=url, token_file=str(token), port=0, grace=0.2, interval=0.2)
        one = Runner(store, following, shown, times=TIMES)
        assert await saved(one, store, contoso()) == "Succeeded"
        await one.close()
    gateway = now(store).of("westus2").gateway
    newest = store.revisions.newest()[0].number
    assert (await shown.look("westus2", gateway)).revision == newest
    assert not any(b"hunter2" in path.read_bytes() for path in (tmp_path / "regions").rglob("*") if path.is_file())
    os.kill(local.process("westus2") or 0, signal.SIGKILL)
    following._children[0].wait(10)
    assert await following.revive() == ("westus2",)
    found = await shown.look("westus2", gateway)
    assert (found.status, found.revision) == ("serving", newest)
    os.kill(local.process("westus2") or 0, signal.SIGKILL)
    following._children[-1].wait(10)
    await shown.close()
