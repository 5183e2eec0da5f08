"""What must not happen to a primary, whoever wishes it ill: epochs of two primaries, rotations that go back, changes that are lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from planes import FAST, Place, done, living, running
from running import eventually
from service_worlds import contoso
from service_worlds import running as state_of
from syncing import in_virtual_time

from lbcore.cli import deployment
from lbcore.errors import ServiceError
from lbcore.service import progress
from lbcore.service.api.audit import AuditLog
from lbcore.service.api.routes import owner
from lbcore.service.backup import backup, restore
from lbcore.service.edge import Follower
from lbcore.service.founding import NodeTokens
from lbcore.service.local import Local
from lbcore.service.plan import plan
from lbcore.service.plane import TRAFFIC_MANAGER, Plane
from lbcore.service.progress import Granted
from lbcore.service.promotion import hand_over
from lbcore.service.provisioning import ProvisionError
from lbcore.service.remote import Remote
from lbcore.service.rotation_document import Rotation
from lbcore.service.standby import EPOCH, Standby
from lbcore.service.store import Store
from lbcore.service.tokens import Verifier

# ===== two primaries


def test_an_epoch_is_given_to_one_location_alone(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        store.save(state_of(contoso("West Europe", "East Asia")), who="ann", what="save")
        assert hand_over(store, "westeurope", who="ann") == hand_over(store, "West Europe", who="ann") == 2
        with pytest.raises(ServiceError, match="Fenced: epoch 2 is for westeurope.*--location westus2 --force"):
            hand_over(store, "eastasia", who="ann")
        store.unfence(who="ann")
        assert hand_over(store, "eastasia", who="ann") == 2, "it was taken back before"


def test_the_epoch_of_whoever_has_taken_over_is_handed_to_nobody(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        store.save(state_of(contoso("West Europe")), who="ann", what="save")
        store.fence(17, who="standby", why="another one is the primary")
        with pytest.raises(ServiceError, match="Fenced"):
            hand_over(store, "westeurope", who="ann")


# ===== rotations


def test_a_restore_in_the_middle_of_a_look_gives_no_number_that_is_taken_back(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        store = place.store
        backup(store, tmp_path / "one.zip")
        for ttl in range(10, 20):
            await plane.set_traffic_manager({"properties": {"dnsConfig": {"ttl": ttl}}}, who="ann", if_match="*")
        before, told = store.document_of, list[Rotation]()

        def interrupted(*given: Any) -> Any:
            found = before(*given)
            if len(told) == 0 and given[-1] == TRAFFIC_MANAGER:
                told.append(now(plane))
                with Store(store.database.path, clock=store.clock) as other:
                    restore(other, tmp_path / "one.zip", name="contoso", tier="Premium", who="bob")
            return found

        store.document_of = interrupted  # type: ignore[method-assign]
        for _ in range(3):
            plane._marks = None
            await plane.refresh()
            told.append(now(plane))
        assert told[0].number.epoch < told[-1].number.epoch
        assert [one.number for one in told] == sorted(one.number for one in told)

    living(work, tmp_path)


def now(plane: Plane) -> Rotation:
    rotation = plane.rotation()
    assert rotation is not None
    return rotation


def test_what_once_failed_to_become_a_rotation_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        place = Place(tmp_path)
        async with running(place) as plane:
            await done(plane)
            turn, before = plane.rotations._turn, now(plane).number
            monkeypatch.setattr(plane.rotations, "_turn", lambda known: (_ for _ in ()).throw(ValueError("once")))
            with pytest.raises(ValueError, match="once"):
                await plane.set_traffic_manager({"properties": {"dnsConfig": {"ttl": 7}}}, who="ann", if_match="*")
            monkeypatch.setattr(plane.rotations, "_turn", turn)
            await plane.refresh()
            assert now(plane).number > before

    in_virtual_time(main())


# ===== the profile


def test_of_two_changes_of_the_profile_at_once_none_is_lost(tmp_path: Path) -> None:
    async def work(place: Place, plane: Plane) -> None:
        put = place.store.put

        def late(kind: str, body: Any, **options: Any) -> Any:
            if options["who"] == "ann":  # bob is faster
                text = {"properties": FAST["properties"] | {"dnsConfig": {"ttl": 9}}}
                put(kind, text, who="bob")
            return put(kind, body, **options)

        place.store.put = late  # type: ignore[method-assign]
        with pytest.raises(ServiceError, match="PreconditionFailed"):
            await plane.set_traffic_manager({"properties": {"monitorConfig": {"intervalInSeconds": 2}}}, who="ann", if_match="*")
        assert (await plane.traffic_manager())[0]["properties"]["dnsConfig"]["ttl"] == 9

    living(work, tmp_path)


# ===== tokens


@pytest.mark.parametrize("text", ["lbcore_0123456789ab_secret\nlbcore_0123456789ab_secret", "# mine: lbcore_0123456789ab_secr\xe9t"])
async def test_a_file_that_is_no_token_is_not_told_to_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    file = tmp_path / "edge.token"
    file.write_text(text, "latin-1")
    remote = Remote("http://127.0.0.1:9/services/contoso/rotation", token=file)
    follower = Follower(remote, _nothing, timeout=1.0)
    await follower.pull()
    await remote.close()
    assert "secr" not in caplog.text + follower.error + follower.refused
    assert f"{file}: no token" in follower.refused


async def _nothing(rotation: object) -> None: ...


def test_a_token_of_another_name_is_replaced(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        made = NodeTokens(store, tmp_path)
        before = Path(made.file("edge", bound="old-host")).read_text()
        assert Path(made.file("edge", bound="OLD-host")).read_text() == before
        after = Path(made.file("edge", bound="new-host")).read_text()
        assert Verifier(store).authenticate(after.strip()).bound == "new-host"


# ===== what must not end in silence


async def test_a_primary_goes_on_asking_whether_another_one_has_taken_over(tmp_path: Path) -> None:
    asked = 0

    def handle(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise RuntimeError("of whatever kind")
        return httpx.Response(200, headers={EPOCH: "17"})

    with Store(tmp_path / "store") as store:
        transport = httpx.MockTransport(handle)
        task = asyncio.create_task(Standby(store, "contoso", ["http://other.test"], interval=0.01, transport=transport).run())
        await eventually(lambda: store.fenced == 17)
        task.cancel()


# ===== regions on this machine


async def test_one_region_that_does_not_start_keeps_no_other_one_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[str]()
    local = Local(tmp_path)
    for name in ("eastasia", "westeurope", "westus2"):
        (tmp_path / f"{name}.json").write_text("{}" if name != "westeurope" else "{")
    (tmp_path / "boot").write_text("before the restart")

    def start(name: str) -> None:
        if name == "eastasia" and name not in started:
            started.append(name)
            raise ProvisionError("its gateway ended at once")
        started.append(name)

    monkeypatch.setattr(local, "_start", start)
    await local.tend()
    assert started == ["eastasia", "westus2"]
    assert (tmp_path / "boot").read_text() == "before the restart", "a primary that is killed now has left something to do"
    (tmp_path / "westeurope.json").write_text("{}")
    await local.tend()
    assert started == ["eastasia", "westus2", "eastasia", "westeurope"]
    assert (tmp_path / "boot").read_text() != "before the restart"


@pytest.mark.slow
def test_a_gateway_that_is_just_starting_survives_what_it_is_told(tmp_path: Path) -> None:
    """As a primary tells it that comes back after kill -9 and finds it holding its lock."""
    code = """
import asyncio, os, signal, sys
from lbcore.service import local_gateway
asyncio.run = lambda work: (os.kill(os.getpid(), signal.SIGHUP), work.close())
sys.exit(local_gateway.main(sys.argv[1]))
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "westus2.json"], timeout=60).returncode == 0


# ===== provisioners

UNUSABLE = ["http://user:secret@127.0.0.1:1", "ftp://127.0.0.1", "http://", "http://[::1", "http://127.0.0.1:99999", "http://a b/"]


GIVEN = [*(Granted(("203.0.113.1",), (), url) for url in UNUSABLE), Granted(("fe80::1%eth0",), (), "http://x.test")]


@pytest.mark.parametrize("given", GIVEN)
def test_a_region_that_no_edge_would_take_is_listed_for_none(given: Granted) -> None:
    planned = plan(None, contoso())
    with pytest.raises(ServiceError, match="UnplannedChange") as caught:
        progress.done(progress.accept(None, planned), planned.steps[0], planned, given, 0.0)
    assert "secret" not in str(caught.value)


# ===== backups


def test_the_newest_backups_are_shown_and_any_service_can_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "MOST_BACKUPS", 3)
    with Store(tmp_path / "store") as store:
        store.save(state_of(contoso()), who="ann", what="save")
        longest = owner._path(store, f"{'s' * 50}-2026-11-22T102030-123Z")
        longest.parent.mkdir()
        backup(store, longest)
        for day in range(1, 6):
            store.clock = lambda day=day: 86_400.0 * day  # type: ignore[misc]
            path = owner._path(store, f"day-{day}")
            backup(store, path)
            os.utime(path, (86_400.0 * day,) * 2)
        os.utime(longest, (0, 0))
        assert [each["name"] for each in owner._backups(store)] == ["day-5", "day-4", "day-3"]


def test_what_people_did_is_not_for_everybody_to_read(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.log", "audit log") as log:
        log.reopen()
        log.put({"who": "ann"})
    assert (tmp_path / "audit.log").stat().st_mode & 0o777 == 0o600


# ===== who follows an operation


class Answering:
    """A management plane that says one thing after the other."""

    def __init__(self, *answers: object) -> None:
        self._answers = [*answers]

    def get(self, path: str) -> Any:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(body={"id": "1", "status": answer})


def test_a_primary_that_is_started_again_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "PAUSE", 0.0)
    away = ServiceError("ManagementPlaneUnavailable", "about to be back")
    there: Any = Answering("InProgress", away, ServiceError("StoreLocked", "busy"), "InProgress", "Succeeded")
    assert deployment.follow(there, "/operations/1", quiet=True)["status"] == "Succeeded"
    gone: Any = Answering("InProgress", ServiceError("AuthenticationFailed", "this token was revoked"))
    with pytest.raises(ServiceError, match="AuthenticationFailed"):
        deployment.follow(gone, "/operations/1", quiet=True)
