"""Operations: a Save is carried out as its plan said, whatever the provisioner does and whenever the primary is killed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from service_operating import FAULTS, TIMES, Caller, World, finished, runner
from service_worlds import PLAIN, ZONED, contoso, services
from virtual import VirtualLoop, run

from lbcore.errors import ServiceError
from lbcore.service.model import MOVING, Service, ServiceState, location
from lbcore.service.operations import DELETE, NETWORK, Times
from lbcore.service.plan import Plan, plan, refresh, removal
from lbcore.service.rotation import listed, serving
from lbcore.service.store import Store


def go(work: Coroutine[Any, Any, Any], now: float = 0.0) -> Any:
    async def to_the_end() -> Any:
        result = await work
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)  # provisioners that do not let themselves be cancelled
        return result

    return run(VirtualLoop(now=now), to_the_end())


@contextmanager
def opened(published: int = 1) -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "store.sqlite", clock=Clock()) as store:
        for _ in range(published):
            store.revisions.put(b"{}", who="ann")
        yield store


@pytest.fixture
def store() -> Iterator[Store]:
    with opened() as one:
        yield one


async def saved(store: Store, world: World, wanted: Service, **options: Any) -> str:
    """Save to the end; give the status."""
    one = runner(store, world, **options)
    await one.start()
    now = store.state()
    operation = await one.save(plan(now, wanted), now, who="ann")
    status = (await one.wait(operation.id)).status
    await one.close()
    return status


def states(store: Store) -> dict[str, str]:
    state = store.state()
    assert state is not None
    return {name: one.provisioning_state for name, one in state.states.items()}


def results(store: Store) -> dict[str, str]:
    return {name: result["status"] for name, result in store.operations.newest(limit=1)[0].results.items()}


# ===== what a Save comes to


def test_a_new_region_is_in_rotation_only_once_it_is_configured_and_probed(store: Store) -> None:
    world = World(store)
    assert go(saved(store, world, contoso("westeurope"))) == "Succeeded"
    assert states(store) == {"westus2": "Succeeded", "westeurope": "Succeeded"}
    assert world.shown.keys() == {"westus2", "westeurope"}
    [operation] = store.operations.newest()
    phases = [line.entry for line in store.operations.journal(operation.id) if line.region == "westeurope"]
    assert phases == ["Activating", "SyncingConfig", "Warming", "Succeeded"]
    assert operation.percent == 100


def test_a_gateway_without_the_revision_of_the_save_never_enters(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso()))
    store.revisions.put(b"{ }", who="ann")
    world.faults = {"eastasia": ["old"]}
    world.sites["westus2"].revision = store.revisions.newest()[0].number
    assert go(saved(store, world, contoso("eastasia"))) == "Failed"
    state = store.state()
    assert state is not None
    assert "1.2 is needed" in state.of("eastasia").reason
    assert world.shown.keys() == {"westus2"}


def test_a_region_leaves_the_rotation_first_then_dns_then_it_is_stopped(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso("westeurope")))
    world.under_way, world.seen = 1, []

    async def scene() -> None:
        one = runner(store, world)
        await one.start()
        operation = await one.save(plan(store.state(), contoso()), store.state(), who="ann")
        await asyncio.sleep(5.0)
        assert world.shown["westeurope"].draining
        world.under_way = 0
        await one.wait(operation.id)
        assert asyncio.get_running_loop().time() < TIMES.drain + 3.0
        await one.close()

    go(scene())
    assert world.seen[0] == ("westeurope", "westus2")
    assert set(world.seen[1:]) == {("westus2",)}
    assert world.orders[-1] == ("delete", "westeurope")
    assert world.broken == []
    assert states(store) == {"westus2": "Succeeded"}


def test_a_drain_ends_after_its_time_whatever_is_under_way(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso("westeurope")))
    world.under_way = 1
    assert go(saved(store, world, contoso())) == "Succeeded"


def test_clients_that_remember_dns_answers_have_their_time_also_when_nothing_is_under_way(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso("westeurope")))

    async def scene() -> None:
        one = runner(store, world)
        await one.save(plan(store.state(), contoso()), store.state(), who="ann")
        await asyncio.sleep(TIMES.remembered - 0.1)
        assert world.shown["westeurope"].draining
        await asyncio.sleep(1.0)
        assert "westeurope" not in world.shown
        await one.close()

    go(scene())


def test_a_region_that_is_said_to_be_gone_and_answers_is_not_gone(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso("westeurope")))
    world.faults = {"westeurope": ["not there"]}
    assert go(saved(store, world, contoso())) == "Failed"
    assert states(store)["westeurope"] == "TerminationFailed"
    assert "answers still" in store.operations.newest()[0].error


def test_addresses_are_judged_before_anybody_uses_them(store: Store) -> None:
    world = World(store, {"eastasia": ["no address"]})
    go(saved(store, world, contoso("eastasia")))
    [operation] = store.operations.newest()
    phases = [line.entry for line in store.operations.journal(operation.id) if line.region == "eastasia"]
    assert phases == ["Activating", "Failed"]


def test_a_region_wanted_again_after_it_was_half_removed_is_not_listed_before_it_runs(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso("westeurope")))
    world.faults = {"westeurope": ["half", "refuse"]}
    assert go(saved(store, world, contoso())) == "Failed"
    assert go(saved(store, world, contoso("westeurope"))) == "Failed"
    assert world.shown.keys() == {"westus2"}
    assert go(saved(store, world, contoso("westeurope"), times=TIMES)) == "Succeeded"
    assert world.shown.keys() == {"westus2", "westeurope"}
    assert world.broken == []


def test_a_region_that_dns_does_not_let_go_of_is_not_stopped(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso("westeurope")))
    world.blind = True
    assert go(saved(store, world, contoso())) == "Failed"
    assert states(store)["westeurope"] == "TerminationFailed"
    assert ("delete", "westeurope") not in world.orders


def test_failed_regions_do_not_undo_the_others_and_are_tried_again(store: Store) -> None:
    world = World(store, {"eastasia": ["refuse"]})
    assert go(saved(store, world, contoso("westeurope", "eastasia"))) == "PartiallySucceeded"
    assert results(store) == {"westus2": "Succeeded", "westeurope": "Succeeded", "eastasia": "Failed"}
    assert store.operations.newest()[0].error == "eastasia: quota exceeded"

    async def again() -> None:
        one = runner(store, world)
        operation = await one.retry(who="ann")
        assert operation is not None
        assert (await one.wait(operation.id)).status == "Succeeded"
        assert await one.retry(who="ann") is None
        await one.close()

    go(again())
    assert world.shown.keys() == {"westus2", "westeurope", "eastasia"}


def test_the_last_region_that_serves_stays_when_those_to_come_failed(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso("westeurope")))
    dark = location("westus2", disable_gateway=True)
    go(saved(store, world, contoso("westeurope").put(dark)))
    assert world.switched == [("westus2", True)]
    world.faults = {"eastasia": ["refuse"]}
    assert go(saved(store, world, contoso("eastasia").put(dark))) == "Failed"
    assert "last region that serves" in store.operations.newest()[0].results["westeurope"]["message"]
    assert "westeurope" in world.shown


def test_the_last_region_that_serves_is_not_switched_off_when_those_to_come_failed(store: Store) -> None:
    world = World(store, {"eastasia": ["refuse"]})
    go(saved(store, world, contoso()))
    assert go(saved(store, world, contoso("eastasia").put(location("westus2", disable_gateway=True)))) == "Failed"
    assert world.shown["westus2"].serves


def test_a_region_is_switched_on_before_another_one_is_switched_off(store: Store) -> None:
    world = World(store)
    on, off = (location("westeurope", disable_gateway=each) for each in (False, True))
    go(saved(store, world, contoso().put(off)))
    world.seen = []
    assert go(saved(store, world, contoso().put(on).put(location("westus2", disable_gateway=True)))) == "Succeeded"
    assert all(world.seen)
    assert world.seen[-1] == ("westeurope",)


def test_what_a_crashing_provisioner_says_is_not_repeated(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    world = World(store, {"eastasia": ["crash"]})
    go(saved(store, world, contoso("eastasia")))
    assert "secret" not in caplog.text + store.operations.newest()[0].error


# ===== the whole service, and the network


def test_a_service_is_removed_the_primary_last(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso("westeurope")))

    async def scene() -> None:
        one = runner(store, world)
        state = store.state()
        assert state is not None
        await one.wait((await one.save(removal(state), state, who="ann", kind=DELETE)).id)
        await one.close()

    go(scene())
    assert world.orders[-2:] == [("delete", "westeurope"), ("delete", "westus2")]
    assert store.state() is None
    assert world.shown == {}


def test_a_refresh_takes_one_region_after_another(store: Store) -> None:
    world, most = World(store), []
    go(saved(store, world, contoso("westeurope", "eastasia")))

    def count(state: ServiceState | None) -> None:
        assert state is not None
        most.append([one.provisioning_state for one in state.states.values()].count("Updating"))

    async def scene() -> None:
        one = runner(store, world, on_change=count)
        state = store.state()
        assert state is not None
        operation = await one.save(refresh(state), state, who="ann", kind=NETWORK)
        assert (await one.wait(operation.id)).status == "Succeeded"
        await one.close()

    go(scene())
    assert max(most) == 1


# ===== cancel


def test_a_save_is_cancelled_before_its_first_step_and_not_after(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso()))
    before = store.state()

    async def scene() -> None:
        one = runner(store, world, times=Times(hold=60.0))
        await one.start()
        operation = await one.save(plan(before, contoso("eastasia")), before, who="ann")
        assert (await one.cancel(operation.id)).status == "Canceled"
        late = await one.save(plan(store.state(), contoso("eastasia")), store.state(), who="ann")
        await asyncio.sleep(60.5)
        with pytest.raises(ServiceError, match="OperationInProgress"):
            await one.cancel(late.id)
        assert (await one.wait(late.id)).status == "Succeeded"
        assert (await one.cancel(late.id)).status == "Succeeded"
        await one.close()

    go(scene())
    assert world.orders.count(("create", "eastasia")) == 1


def test_an_operation_that_was_begun_goes_on_after_a_kill_and_does_not_repeat_what_failed(store: Store) -> None:
    world = World(store, {"eastasia": ["refuse"], "westus2": ["hang"]})

    async def scene() -> str:
        one = runner(store, world)
        operation = await one.save(plan(None, contoso("eastasia")), None, who="ann")
        await asyncio.sleep(1.2)  # one has failed, the other one hangs
        await one.close()
        store.operations.cancel(operation.id)  # too late
        two = runner(store, world)
        await two.start()
        await two.wait(operation.id)
        await two.close()
        return operation.id

    found = store.operations.get(go(scene()))
    assert found is not None
    assert found.status == "PartiallySucceeded"
    assert world.orders.count(("create", "eastasia")) == 1


def test_cancelling_gives_back_what_was_wanted_before(store: Store) -> None:
    world = World(store, {"eastasia": ["refuse"]})
    go(saved(store, world, contoso("eastasia")))
    before = store.state()
    assert before is not None

    async def scene() -> None:
        one = runner(store, world, times=Times(hold=60.0))
        operation = await one.save(plan(before, contoso("eastasia", "ukwest")), before, who="ann")
        await one.close()  # the primary is killed between the word and the deed
        store.operations.cancel(operation.id)
        two = runner(store, world)
        await two.start()
        assert (await two.wait(operation.id)).status == "Canceled"
        await two.close()

    go(scene())
    after = store.state()
    assert after is not None
    assert (after.service, after.states) == (before.service, before.states)


def test_a_cancelled_creation_leaves_no_service(store: Store) -> None:
    async def scene() -> None:
        one = runner(store, World(store), times=Times(hold=60.0))
        operation = await one.save(plan(None, contoso()), None, who="ann")
        assert (await one.cancel(operation.id)).status == "Canceled"
        await one.close()

    go(scene())
    assert store.state() is None


# ===== many at once


def test_of_fifty_saves_at_once_one_is_accepted(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso()))

    async def scene() -> None:
        one, now = runner(store, world), store.state()
        assert now is not None
        wishes = [one.save(plan(now, contoso(name)), now, who="ann", if_match=now.etag) for name in ((*ZONED[1:], *PLAIN[1:]) * 9)[:50]]
        found = await asyncio.gather(*wishes, return_exceptions=True)
        accepted = [each for each in found if not isinstance(each, BaseException)]
        assert len(found) == 50
        assert len(accepted) == 1
        assert {each.code for each in found if isinstance(each, ServiceError)} <= {"PreconditionFailed", "OperationInProgress"}
        assert (await one.wait(accepted[0].id)).status == "Succeeded"
        await one.close()

    go(scene())
    state = store.state()
    assert state is not None
    assert len(state.states) == 2


# ===== VIPs given up


def test_a_vip_given_up_is_released_when_its_overlap_is_over(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso()))
    [old] = world.sites["westus2"].public
    go(saved(store, world, contoso().put(location("westus2", units=2, zones=["1", "2"]))))
    state, clock = store.state(), store.clock
    assert state is not None
    assert isinstance(clock, Clock)
    assert state.of("westus2").previous_public_ips == (old,)
    one = runner(store, world)
    go(one.upkeep())
    assert world.released == []
    clock.advance(TIMES.overlap)
    go(one.upkeep())
    assert world.released == [("westus2", (old,))]
    state = store.state()
    assert state is not None
    assert state.of("westus2").previous_public_ips == ()


# ===== a store in trouble


def test_an_operation_waits_for_a_store_that_is_full(store: Store) -> None:
    class Full(Caller):
        failures = 5

        async def __call__(self, what: Any, *arguments: Any) -> Any:
            if getattr(what, "func", None) == store.operations.advance and self.failures:
                self.failures -= 1
                raise ServiceError("StoreFull", "no space left")
            return await super().__call__(what, *arguments)

    assert go(saved(store, World(store), contoso("westeurope"), call=Full())) == "Succeeded"


def test_a_fenced_primary_stops(store: Store) -> None:
    world = World(store)
    go(saved(store, world, contoso()))

    async def scene() -> None:
        one = runner(store, world)
        operation = await one.save(plan(store.state(), contoso("eastasia")), store.state(), who="ann")
        await asyncio.sleep(0.5)
        store.fence(2, who="bob")
        assert (await one.wait(operation.id)).status == "InProgress"
        await one.close()

    go(scene())
    assert "eastasia" not in world.shown


# ===== anything at any moment

Faults = st.dictionaries(st.sampled_from(["westus2", *ZONED[1:], *PLAIN]), st.lists(st.sampled_from(FAULTS), max_size=3))
Deaths = st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=4)


def check(store: Store, world: World, planned: Plan, before: ServiceState | None) -> None:
    """Hold the outcome to the plan."""
    after, operation = store.state(), store.operations.newest(limit=1)[0]
    assert after is not None
    assert operation.status in ("Succeeded", "PartiallySucceeded", "Failed")
    assert not {one.provisioning_state for one in after.states.values()} & MOVING
    assert after.service == planned.wanted
    found = {name: result["status"] for name, result in operation.results.items()}
    assert found.keys() == {step.name for step in planned.steps}
    bad = {name for name, status in found.items() if status in ("Failed", "TerminationFailed")}
    assert {step.name for step in plan(after, after.service).steps} == bad
    assert (operation.status == "Succeeded") == (not bad)
    for name, old in before.states.items() if before else ():
        if name not in found:
            assert after.of(name) == old  # R55
        elif name in after.states and planned.vip_change(name) is None and old.deployed is not None:
            assert after.of(name).public_ips == old.public_ips
    assert world.broken == []
    assert world.shown.keys() == listed(after).keys()
    for name in listed(after):
        assert world.sites[name].says == name
    if before is not None and serving(before):
        assert serving(after)
        assert all(world.seen)


@settings(max_examples=30)
@given(services(), services(), Faults, Faults, Deaths, Deaths)
def test_whatever_happens_the_state_is_one_that_the_plan_said(
    first: Service, second: Service, early: dict[str, list[str]], late: dict[str, list[str]], some: list[Any], more: list[Any]
) -> None:
    with opened() as store:
        world = World(store)
        for wanted, faults, deaths in ((first, early, some), (second, late, more)):
            before = store.state()
            planned = plan(before, wanted)
            if planned.empty:
                continue
            world.faults, world.seen = {name: [*each] for name, each in faults.items()}, []
            go(finished(store, world, planned, deaths))
            check(store, world, planned, before)
