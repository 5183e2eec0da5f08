"""Another location becomes the primary: planned, forced, back again; and an old primary that comes back does not write (R49)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Clock
from service_worlds import contoso, running

from lbcore.errors import ServiceError
from lbcore.service.backup import backup, restore
from lbcore.service.configuration import LARGEST_NUMBER
from lbcore.service.model import Service, ServiceState
from lbcore.service.plan import plan
from lbcore.service.promotion import LEAP, Promoted, hand_over, take_over
from lbcore.service.revisions import Number
from lbcore.service.standby import EPOCH, Standby
from lbcore.service.store import Store


@pytest.fixture
def stores(tmp_path: Path, clock: Clock) -> Iterator[tuple[Store, Store]]:
    """Give the primary's store, with three regions and revisions 1.1 to 1.3, and a new machine's, which is empty."""
    with ExitStack() as stack:
        old, new = (stack.enter_context(Store(tmp_path / f"{name}.sqlite", clock=clock)) for name in ("old", "new"))
        old.save(running(contoso("westeurope", "eastasia")), who="ann", what="save")
        for number in range(1, 4):
            old.revisions.put(b'{"apis":[%d]}' % number, who="ann")
        yield old, new


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "contoso.zip"


def service(store: Store) -> Service:
    state = store.state()
    assert state is not None
    return state.service


def promoted(store: Store, file: Path | None, **options: Any) -> Promoted:
    return take_over(store, "westeurope", file=file, who="bob", **options)


def refused(code: str) -> Any:
    return pytest.raises(ServiceError, match=code)


def assert_read_only(store: Store) -> None:
    before = store.state()
    assert before is not None
    with refused("Fenced"):
        store.save(before, who="ann", what="save")
    with refused("Fenced"):
        store.revisions.put(b"{}", who="ann")
    with refused("Fenced"):
        store.operations.begin(plan(before, before.service.without("eastasia")), before, who="ann")
    with refused("Fenced"):
        store.put("trafficManager", {}, who="ann")
    assert store.state() == before
    assert store.revisions.latest() is not None


# ===== planned


def test_a_planned_hand_over(stores: tuple[Store, Store], file: Path) -> None:
    old, new = stores
    before = old.state()
    assert before is not None
    epoch = hand_over(old, "West Europe", who="ann")
    assert epoch == 2
    assert_read_only(old)
    backup(old, file)
    done = promoted(new, file, epoch=epoch)
    assert (done.epoch, done.revision, done.lost) == (2, Number(2, 3), ())
    assert [each.name for each in service(new).locations] == ["westeurope", "westus2", "eastasia"]
    assert done.state.states == before.states, "what runs goes on"
    assert plan(done.state, done.state.service).empty, "nothing has to be deployed for it"
    assert new.revisions.body(Number(2, 3)) == old.revisions.body(Number(1, 3))
    assert new.revisions.put(b"{}", who="bob").number == Number(2, 4)
    assert_read_only(old)


def test_it_can_be_asked_twice(stores: tuple[Store, Store]) -> None:
    old, _ = stores
    assert hand_over(old, "westeurope", who="ann") == hand_over(old, "westeurope", who="ann") == 2


@pytest.mark.parametrize(("location", "code"), [("westus2", "PropertyChangeNotAllowed"), ("mars", "ResourceNotFound")])
def test_whom_nothing_is_handed_to(stores: tuple[Store, Store], location: str, code: str) -> None:
    old, new = stores
    with refused(code):
        hand_over(old, location, who="ann")
    assert old.fenced is None
    with refused("ResourceNotFound"):
        hand_over(new, "westeurope", who="ann")


def test_nothing_is_handed_over_during_an_operation(stores: tuple[Store, Store]) -> None:
    old, _ = stores
    state = old.state()
    assert state is not None
    old.operations.begin(plan(state, state.service.without("eastasia")), state, who="ann")
    with refused("OperationInProgress"):
        hand_over(old, "westeurope", who="ann")
    assert old.fenced is None


def test_nobody_takes_over_a_store_that_somebody_runs_on(stores: tuple[Store, Store], file: Path) -> None:
    old, new = stores
    backup(old, file)
    with new.lease(), Store(new.database.path) as again, refused("StoreLocked"):
        promoted(again, file)
    assert new.state() is None


def test_a_location_that_the_service_has_not(stores: tuple[Store, Store], file: Path) -> None:
    old, new = stores
    backup(old, file)
    with refused("ResourceNotFound"):
        take_over(new, "northeurope", file=file, who="bob")
    assert new.state() is None
    assert new.revisions.latest() is None


# ===== forced, and back


def test_forced_it_leaps_beyond_what_the_old_primary_may_have_begun(stores: tuple[Store, Store], file: Path) -> None:
    old, new = stores
    backup(old, file)
    old.revisions.put(b"{}", who="ann")  # after the backup: lost
    old.revisions.begin_epoch(who="ann", why="a restore meanwhile")
    done = promoted(new, file)
    assert done.epoch == 1 + LEAP > old.revisions.epoch
    assert new.revisions.lost(Number(1, 4)) == [Number(1, 4)]


def test_back_on_the_old_machine(stores: tuple[Store, Store], file: Path) -> None:
    old, new = stores
    epoch = hand_over(old, "westeurope", who="ann")
    backup(old, file)
    promoted(new, file, epoch=epoch)
    new.revisions.put(b'{"apis":[9]}', who="bob")
    epoch = hand_over(new, "westus2", who="bob")
    backup(new, file)
    with refused("Fenced"):
        restore(old, file, name="contoso", tier="Premium", who="ann")  # no promotion
    done = take_over(old, "westus2", file=file, who="ann", epoch=epoch)
    assert (done.epoch, done.revision, old.fenced) == (3, Number(3, 4), None)
    assert service(old).primary.name == "westus2"
    assert_read_only(new)


def test_an_epoch_that_is_not_later_lifts_no_fence(stores: tuple[Store, Store], file: Path) -> None:
    old, _ = stores
    epoch = hand_over(old, "westeurope", who="ann")
    backup(old, file)
    for given in (None, file):
        with refused("Fenced"):
            take_over(old, "westus2", file=given, who="ann", epoch=epoch)
    assert_read_only(old)


def test_a_hand_over_is_taken_back(stores: tuple[Store, Store]) -> None:
    old, _ = stores
    epoch = hand_over(old, "westeurope", who="ann")
    done = take_over(old, "westus2", who="ann")
    assert done.epoch > epoch
    assert (done.revision, old.fenced) == (Number(done.epoch, 3), None)
    assert service(old).primary.name == "westus2"


def test_without_a_service_there_is_nothing_to_take_over(stores: tuple[Store, Store]) -> None:
    with refused("ResourceNotFound"):
        promoted(stores[1], None)


# ===== an old primary that comes back


class Plane(httpx.AsyncBaseTransport):
    """Answers as other management planes do, each by its host: a store = a primary, else status and epoch."""

    def __init__(self, **hosts: Any) -> None:
        self.hosts, self.asked = hosts, list[httpx.Request]()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        there = self.hosts[request.url.host]
        if isinstance(there, Exception):
            raise there
        if isinstance(there, Store):
            there = (200, str(there.revisions.epoch))
        status, epoch = there
        return httpx.Response(status, headers={EPOCH: epoch} if epoch else {}, content=b"{}")


def watcher(store: Store, plane: Plane, **options: Any) -> Standby:
    return Standby(store, "contoso", [f"http://{host}:9180/" for host in plane.hosts], transport=plane, **options)


def test_an_old_primary_that_comes_back_is_fenced(stores: tuple[Store, Store], file: Path, tmp_path: Path) -> None:
    old, new = stores
    backup(old, file)
    token = tmp_path / "token"
    token.write_text("lbcore_a_b\n")
    plane = Plane(new=new)
    assert asyncio.run(watcher(old, plane, token=token).look()) is None
    done = promoted(new, file)
    watch = watcher(old, plane, token=token)
    assert asyncio.run(watch.look()) == done.epoch
    assert watch.primary == "http://new:9180"
    assert_read_only(old)
    assert [event.kind for event in old.events.since()] == ["Fenced"]
    assert {str(request.url) for request in plane.asked} == {"http://new:9180/services/contoso"}
    assert {request.headers["authorization"] for request in plane.asked} == {"Bearer lbcore_a_b"}
    assert asyncio.run(watcher(new, Plane(old=old)).look()) is None, "who has the later epoch stays"
    assert asyncio.run(watcher(old, Plane(new=httpx.ConnectError("gone"))).look()) == done.epoch, "and a fence stays"


@pytest.mark.parametrize(
    "answer",
    [(421, "9"), (404, ""), (503, ""), (401, "9"), (500, "9"), (200, ""), (200, "-9"), (200, "9.5"), (200, "9" * 400),
     (200, str(LARGEST_NUMBER + 1)), (200, "1"), (302, "9"), httpx.ConnectError("refused"), httpx.ReadTimeout("slow"),
     OSError("no network")],
)  # fmt: skip
def test_what_fences_nobody(stores: tuple[Store, Store], answer: Any) -> None:
    old, _ = stores
    assert asyncio.run(watcher(old, Plane(one=answer)).look()) is None
    assert old.fenced is None


def test_of_several_the_latest_counts(stores: tuple[Store, Store]) -> None:
    old, _ = stores
    plane = Plane(one=(421, ""), two=(200, "7"), three=(200, "5"), four=httpx.ConnectError("gone"))
    assert asyncio.run(watcher(old, plane).look()) == 7


def test_it_goes_on_looking(stores: tuple[Store, Store]) -> None:
    old, _ = stores
    plane, seen = Plane(one=(421, "")), list[int]()

    async def story() -> None:
        fenced = asyncio.Event()
        watch = watcher(old, plane, interval=0.001, on_fenced=lambda epoch: (seen.append(epoch), fenced.set()))
        task = asyncio.create_task(watch.run())
        async with asyncio.timeout(30):
            while len(plane.asked) < 3:
                await asyncio.sleep(0.001)
            plane.hosts["one"] = (200, "4")
            await fenced.wait()
            count = len(plane.asked)
            while len(plane.asked) < count + 3:
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())
    assert seen == [4]


def test_without_others_there_is_nobody_to_ask(stores: tuple[Store, Store]) -> None:
    assert asyncio.run(Standby(stores[0], "contoso", []).look()) is None


def test_a_token_that_cannot_be_read_is_not_sent(stores: tuple[Store, Store], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plane = Plane(one=(200, "1"))
    (tmp_path / "bad").write_bytes(b"a\nb\xff")
    for path in (tmp_path / "none", tmp_path / "bad"):
        asyncio.run(watcher(stores[0], plane, token=path).look())
    assert all("authorization" not in request.headers for request in plane.asked)
    assert "token cannot be read" in caplog.text


def test_states_are_whole_after_each(stores: tuple[Store, Store]) -> None:
    state: ServiceState | None = stores[0].state()
    assert state is not None
    assert state.service.led_by("eastasia").led_by("westus2").primary == state.service.primary
