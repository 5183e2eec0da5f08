"""kill -9 of the primary at any moment of an operation: whoever comes next ends it as its plan said, and lists nothing by half."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from service_worlds import contoso

from lbcore import state as files
from lbcore.service.model import MOVING, Service, location
from lbcore.service.operations import Runner, Times
from lbcore.service.plan import plan
from lbcore.service.progress import Granted
from lbcore.service.provisioning import Order
from lbcore.service.revisions import Number
from lbcore.service.rotation import Listed, Look, listed, serving
from lbcore.service.store import Store

FORK = multiprocessing.get_context("fork")
TIMES = Times(drain=0.01, pause=0.001)


class Folder:
    """A world whose regions are files, so that it outlives the primary."""

    limit = 10.0

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    def site(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        return found

    async def carry_out(self, order: Order) -> Granted:
        await asyncio.sleep(random.random() * 0.005)
        if order.work == "delete":
            (self.path / order.name).unlink(missing_ok=True)
            return Granted()
        site = self.site(order.name)
        if site is None or (order.new_public and site["public"] in order.public_ips):
            site = {"public": "10." + ".".join(str(part) for part in os.urandom(3))}
            files.write(self.path / order.name, json.dumps(site).encode())
        return Granted((site["public"],), (), f"http://{order.name}.test")

    async def look(self, name: str, gateway: str) -> Look:
        return Look("serving", name, Number(1, 1)) if self.site(name) else Look(cause="refused")

    async def show(self, found: Mapping[str, Listed]) -> None:
        assert all(self.site(name) for name in found), "a region is listed and does not run"

    async def idle(self, name: str) -> bool:
        return True

    async def switch(self, name: str, disabled: bool) -> None: ...
    async def release(self, name: str, public_ips: tuple[str, ...]) -> None: ...
    async def close(self) -> None: ...


def wish(chance: random.Random) -> Service:
    names = chance.sample(["westeurope", "eastasia", "uksouth", "japaneast"], chance.randrange(5))
    zones = chance.choice([[], ["1"], ["1", "2"]])
    return contoso(*names).put(location("westus2", units=2 * chance.randrange(1, 4), zones=zones))


async def work(path: Path, seed: int, rounds: int) -> None:
    """Be the primary: end what was begun, then save wish after wish."""
    chance, world = random.Random(seed), Folder(path / "regions")
    with Store(path / "store", timeout=30.0) as store:
        one = Runner(store, world, world, times=TIMES)
        await one.start()
        if (operation := store.operations.running()) is not None:
            await one.wait(operation.id)
        for _ in range(rounds):
            state, wanted = store.state(), wish(chance)
            planned = plan(state, wanted)
            if not planned.empty:
                await one.wait((await one.save(planned, state, who="ann")).id)
        await one.close()


def check(path: Path) -> bool:
    """Hold what the killed primary left to the plan; say whether an operation was interrupted."""
    world = Folder(path / "regions")
    with Store(path / "store", timeout=30.0) as store:
        state, operation = store.state(), store.operations.running()
        if state is None:
            return False
        assert all(world.site(name) for name in listed(state)), "a region is listed and does not run"
        for name, one in listed(state).items():
            site = world.site(name)
            changing = operation is not None and name in {each["name"] for each in operation.plan["vipChanges"]}
            assert changing or (site is not None and one.public_ips == (site["public"],))
        rest = {step.name for step in plan(state, state.service).steps}
        if operation is None:
            assert not rest
            return False
        assert rest <= {step["name"] for key in ("creates", "updates", "deletes") for step in operation.plan[key]}
        return True


def kill_again_and_again(path: Path, seed: int, kills: int) -> int:
    chance, interrupted = random.Random(seed), 0
    with Store(path / "store") as store:
        store.revisions.put(b"{}", who="ann")
    asyncio.run(work(path, seed, 1))
    for number in range(kills):
        primary = FORK.Process(target=lambda seed=seed * 1000 + number: asyncio.run(work(path, seed, 1000)))
        primary.start()
        time.sleep(0.02 + chance.random() * 0.1)
        assert primary.is_alive()
        assert primary.pid is not None
        os.kill(primary.pid, signal.SIGKILL)
        primary.join()
        interrupted += check(path)
    asyncio.run(work(path, seed, 0))
    with Store(path / "store") as store:
        state = store.state()
        assert state is not None
        assert store.operations.running() is None
        assert plan(state, state.service).empty
        assert serving(state) == {each.name for each in state.service.locations}
        assert not {one.provisioning_state for one in state.states.values()} & MOVING
        assert {operation.status for operation in store.operations.newest(limit=1000)} == {"Succeeded"}
    return interrupted


@pytest.mark.slow
def test_a_killed_primary_leaves_nothing_by_half(tmp_path: Path) -> None:
    assert kill_again_and_again(tmp_path, 1, 8) > 0


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(2, 6))
def test_a_primary_killed_a_hundred_times_leaves_nothing_by_half(tmp_path: Path, seed: int) -> None:
    assert kill_again_and_again(tmp_path, seed, 100) > 30
