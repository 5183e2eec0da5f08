"""A Save with real gateway processes: regions come up, are configured and probed, move, and go."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from service_worlds import contoso

from lbcore.service.local import Local
from lbcore.service.model import Service, ServiceState, location
from lbcore.service.operations import Runner, Times
from lbcore.service.plan import plan
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


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    source = tmp_path / "document.json"
    source.write_text(json.dumps({"epoch": 1, "sequence": 1}))
    one = Local(tmp_path / "regions", source=str(source), port=0, grace=0.2, interval=0.05)
    yield one
    for path in (tmp_path / "regions").glob("*.lock"):
        if (process := one.process(path.stem)) is not None:
            os.kill(process, signal.SIGKILL)
    for child in one._children:
        child.wait(10)


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
