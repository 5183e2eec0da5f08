"""kill -9 of the primary at seeded moments of Saves and publishes over REST: what it had said stays true, and nothing is half-listed.

LBCORE_KILLS: how often the heavy test kills, instead of 10
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployment import HELLO, Lab, row, service
from nodes import until

from lbcore.service.journal import Operation
from lbcore.service.model import MOVING, ServiceState
from lbcore.service.plan import plan
from lbcore.service.revisions import Number
from lbcore.service.rotation import listed, serving
from lbcore.service.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="other systems have only 127.0.0.1")]
SECONDARIES = ("westeurope", "eastasia", "uksouth")
Wish = frozenset[tuple[str, int]]


class Ending(Exception):
    """The supervisor is gone, and the management plane answers that it is about to."""


def there(answer: httpx.Response) -> httpx.Response:
    """Give an answer, unless it is the one that nobody is there any more."""
    if answer.status_code == 503 and answer.json()["error"]["code"] == "ManagementPlaneUnavailable":
        raise Ending
    return answer


class Operator:
    """Saves and publishes one after the other, and remembers what it wished for and what it was promised."""

    def __init__(self, lab: Lab, chance: random.Random) -> None:
        self.lab, self.chance = lab, chance
        self.wishes: set[Wish] = {frozenset({("westus2", 1)})}
        self.operations: list[str] = []
        self.revisions: list[str] = []
        self.asked = 0

    async def work(self) -> None:
        """Ask until the primary is gone."""
        with suppress(httpx.TransportError, Ending):
            while True:
                await (self.save() if self.chance.random() < 0.5 else self.publish())

    async def save(self) -> None:
        wanted = {name: self.chance.randrange(1, 4) for name in self.chance.sample(SECONDARIES, self.chance.randrange(3))}
        first = self.chance.randrange(1, 4)
        self.wishes.add(frozenset({("westus2", first), *wanted.items()}))
        rows = [row(name, units) for name, units in wanted.items()]
        body = {"sku": {"capacity": first}, "properties": {"additionalLocations": rows}}
        etag = there(await self.lab.api.ask("GET")).headers["etag"]
        answer = there(await self.lab.api.patch(body, etag))
        assert answer.status_code in (200, 202, 409, 412), answer.text
        if answer.status_code == 202:
            self.operations.append(answer.headers["location"].rpartition("/")[2])
        else:
            await asyncio.sleep(self.chance.random() * 0.2)

    async def publish(self) -> None:
        self.asked += 1
        now = there(await self.lab.api.ask("GET", "/gatewayConfiguration"))
        assert now.status_code == 200, (now.status_code, now.text)
        api = HELLO["apis"][0] | {"display_name": f"number {self.asked}"}
        document, headers = HELLO | {"apis": [api]}, {"If-Match": now.headers["etag"]}
        answer = there(await self.lab.api.ask("PUT", "/gatewayConfiguration", json=document, headers=headers))
        assert answer.status_code == 200, answer.text
        self.revisions.append(answer.headers["etag"].strip('"').partition("-")[0])


def wish_of(state: ServiceState) -> Wish:
    return frozenset((each.name, each.units) for each in state.service.locations)


def left(lab: Lab) -> tuple[ServiceState, Operation | None]:
    """Read what the killed primary left."""
    with Store(lab.folder / "store") as store:
        state = store.state()
        assert state is not None
        return state, store.operations.running()


def judge(lab: Lab, operator: Operator) -> bool:
    """Hold what the killed primary left to what was planned; say whether an operation was interrupted."""
    state, operation = left(lab)
    assert wish_of(state) in operator.wishes
    assert all(lab.process(name) for name in listed(state)), "a region is listed and does not run"
    rest = {step.name for step in plan(state, state.service).steps}
    planned = {step["name"] for key in ("creates", "updates", "deletes") for step in operation.plan[key]} if operation else set()
    assert rest <= planned
    with Store(lab.folder / "store") as store:
        for text in operator.revisions:
            assert store.revisions.body(Number(*map(int, text.split(".")))) is not None, f"{text} was acknowledged and is lost"
        for id in operator.operations:
            assert store.operations.get(id) is not None
    return operation is not None


async def agrees(lab: Lab) -> bool:
    """Say whether the rotation that edges get is that of the stored state, which may change meanwhile."""
    before, _ = left(lab)
    answer = await lab.api.ask("GET", "/rotation")
    if answer.status_code != 200:  # of one that is about to end
        return False
    after, _ = left(lab)
    wanted = {name: (one.public_ips, one.draining) for name, one in listed(after).items()}
    found = {one["name"]: (tuple(one["addresses"]), one["draining"]) for one in answer.json()["regions"]}
    return before.etag == after.etag and found == wanted


async def kill_again_and_again(lab: Lab, seed: int, kills: int) -> dict[str, Any]:
    chance = random.Random(seed)
    operator, interrupted = Operator(lab, chance), 0
    for number in range(kills):
        if chance.random() < 0.3:  # not always in the middle of what the last one left
            await until(lambda: left(lab)[1] is None, "what was interrupted is over")
        work = asyncio.ensure_future(operator.work())
        await asyncio.sleep(chance.random() * 2.5)  # the moment, seeded: not a wait for anything
        if work.done():
            work.result()
        lab.primary.kill(group=number % 2 == 1)  # its workers have to notice by themselves, or die with it
        await work
        interrupted += judge(lab, operator)
        await lab.primary.start()
        await until(lambda: agrees(lab), "the rotation is that of the state")
    for id in operator.operations:
        await until(lambda id=id: over(lab, id), f"operation {id} is over")
    state, operation = left(lab)
    assert operation is None and plan(state, state.service).empty
    assert serving(state) == {each.name for each in state.service.locations}
    assert not {one.provisioning_state for one in state.states.values()} & MOVING
    assert {path.stem for path in (lab.folder / "regions").glob("*.json")} == {each.name for each in state.service.locations}
    ends = [(await lab.api.operation(id))["status"] for id in operator.operations]
    assert {*ends} <= {"Succeeded"}, ends
    last = operator.revisions[-1]
    for one in listed(state).values():
        await until(lambda one=one: has(lab, one.gateway, last), f"{one.location.name} has at least {last}")
    return {"kills": kills, "interrupted": interrupted, "operations": len(ends), "revisions": len(operator.revisions)}


async def over(lab: Lab, id: str) -> bool:
    return (await lab.api.operation(id))["status"] != "InProgress"


async def has(lab: Lab, gateway: str, revision: str) -> bool:
    with suppress(httpx.TransportError):
        found = (await lab.web.get(f"{gateway}/hello")).headers.get("x-lbcore-revision", "0.0")
        return tuple(map(int, found.split("."))) >= tuple(map(int, revision.split(".")))
    return False


async def test_a_primary_killed_at_any_moment_keeps_its_word(tmp_path: Path) -> None:
    async with service(tmp_path, "westus2", edges=()) as lab:
        print(await kill_again_and_again(lab, 1, 2))


@pytest.mark.heavy
async def test_a_primary_killed_again_and_again_keeps_its_word(tmp_path: Path) -> None:
    async with service(tmp_path, "westus2", edges=()) as lab:
        found = await kill_again_and_again(lab, 5, int(os.environ.get("LBCORE_KILLS", "10")))
        print(found)
        assert found["interrupted"] > found["kills"] // 5
