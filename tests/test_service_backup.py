"""Backup and restore: one file, and the service is back as it was; V25, R47, R50."""

from __future__ import annotations

import json
import os
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from service_worlds import Ledger, carry_out, contoso, running

from lbcore.errors import ServiceError
from lbcore.service.backup import LIFETIME, backup, inspect, restore
from lbcore.service.codes import status_of
from lbcore.service.model import ServiceState, new_service
from lbcore.service.plan import plan
from lbcore.service.revisions import Number
from lbcore.service.store import Store

SECRET = b"\x5a\xa5" * 16


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite", clock=clock) as opened:
        opened.save(running(contoso("eastasia")), who="ann", what="save", why="begin")
        for number in range(1, 6):
            opened.revisions.put(b"%d" % number, who="ann")
        opened.put("trafficManager", {"ttl": 60}, who="ann")
        opened.tokens.add("t1", "laptop", "owner", SECRET, who="root")
        yield opened


@pytest.fixture
def file(store: Store, tmp_path: Path) -> Path:
    backup(store, tmp_path / "contoso.zip")
    return tmp_path / "contoso.zip"


def back(store: Store, file: Path, **options: Any) -> Any:
    return restore(store, file, **{"name": "contoso", "tier": "Premium", "who": "bob"} | options)


def current(store: Store) -> ServiceState:
    state = store.state()
    assert state is not None
    return state


def test_a_backup_says_what_it_is_of(store: Store, file: Path, clock: Clock) -> None:
    manifest = inspect(file)
    assert (manifest.service, manifest.tier, manifest.epoch, manifest.sequence) == ("contoso", "Premium", 1, 5)
    assert (manifest.created, manifest.expires) == (clock.now, clock.now + 30 * 86_400)
    assert file.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in file.parent.iterdir() if not path.name.startswith("store")) == ["contoso.zip"]


def test_a_backup_has_no_tokens(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        content = archive.read("store.sqlite")
    assert SECRET not in content
    assert b"laptop" not in content.replace(b"create token t1", b"").replace(b"laptop", b"", 1)  # history alone names it


def test_a_machine_that_was_lost_is_made_anew(file: Path, tmp_path: Path, store: Store, clock: Clock) -> None:
    with Store(tmp_path / "new.sqlite", clock=clock) as new:
        done = back(new, file)
        assert (current(new).service, current(new).states) == (current(store).service, current(store).states)
        assert current(new).sequence > current(store).sequence  # an ETag of the lost machine holds no more
        assert (done.epoch, done.lost, done.revision.number) == (2, (), (2, 5))
        assert new.revisions.body((2, 5)) == b"5"
        assert (new.document("trafficManager") or pytest.fail()).body == {"ttl": 60}
        assert new.tokens.all() == []
        assert new.history(limit=1)[0].who == "bob"
        assert plan(current(new), current(new).service).empty
        assert new.revisions.put(b"6", who="ann").number == (2, 6)


def test_a_primary_that_goes_back_wins_by_its_epoch_and_says_what_is_lost(store: Store, file: Path, clock: Clock) -> None:
    for number in range(6, 10):
        store.revisions.put(b"%d" % number, who="ann")
    etag = current(store).etag
    done = back(store, file, why="bad policy")
    assert [str(number) for number in done.lost] == ["1.6", "1.7", "1.8", "1.9"]
    assert (done.epoch, str(done.revision.number), done.revision.sha256) == (2, "2.5", inspect_sha(store, (2, 5)))
    assert (store.revisions.body((2, 5)), store.revisions.body((1, 9))) == (b"5", None)
    assert [str(number) for number in store.revisions.lost((1, 9))] == ["1.6", "1.7", "1.8", "1.9"]  # what a gateway still holds
    assert store.revisions.lost((1, 5)) == store.revisions.lost((2, 5)) == []
    assert current(store).etag != etag
    with pytest.raises(ServiceError, match="PreconditionFailed"):
        store.save(current(store), who="ann", what="save", if_match=etag)


def inspect_sha(store: Store, number: tuple[int, int]) -> str:
    return next(one.sha256 for one in store.revisions.newest() if one.number == number)


def test_what_runs_is_not_forgotten_by_a_restore_and_planning_tells_what_to_do(store: Store, file: Path) -> None:
    ledger = Ledger(100)
    store.save(carry_out(current(store), contoso("eastasia", "uksouth"), ledger), who="ann", what="save")
    store.save(carry_out(current(store), contoso("uksouth"), ledger), who="ann", what="save")
    back(store, file)
    planned = plan(current(store), current(store).service)
    assert {step.name: step.action for step in planned.steps} == {"eastasia": "create", "uksouth": "delete"}


def test_tokens_and_history_stay_as_they_are(store: Store, file: Path) -> None:
    store.tokens.revoke("t1", who="root")
    before = store.history()
    back(store, file)
    assert [token.revoked for token in store.tokens.all()] == [store.clock()]
    assert store.history()[-len(before) :] == before


@pytest.mark.parametrize(
    ("options", "code"),
    [({"name": "fabrikam"}, "NameMismatch"), ({"tier": "Standard"}, "SkuMismatch"), ({"name": "'; --"}, "NameMismatch")],
)
def test_a_backup_of_another_service_or_tier_is_refused(store: Store, file: Path, options: dict[str, str], code: str) -> None:
    before = store.state(), store.history(), store.revisions.newest()
    with pytest.raises(ServiceError) as caught:
        back(store, file, **options)
    assert (caught.value.code, status_of(caught.value)) == (code, 409)
    assert (store.state(), store.history(), store.revisions.newest()) == before


def test_a_backup_expires_after_thirty_days_unless_one_insists(store: Store, file: Path, clock: Clock) -> None:
    clock.advance(LIFETIME)
    back(store, file)
    clock.advance(1.0)
    with pytest.raises(ServiceError, match="BackupExpired.*30 days old"):
        back(store, file)
    back(store, file, allow_expired=True)
    clock.advance(-2 * LIFETIME)  # the clock was set back: the backup seems to come from the future
    back(store, file)


def test_no_restore_during_an_operation_or_after_a_promotion(store: Store, file: Path) -> None:
    operation, _ = store.operations.begin(plan(current(store), contoso()), current(store), who="ann")
    with pytest.raises(ServiceError, match="OperationInProgress"):
        back(store, file)
    store.operations.finish(operation.id, "Failed")
    store.fence(9, who="bob")
    with pytest.raises(ServiceError, match="Fenced"):
        back(store, file)


def test_a_backup_taken_during_an_operation_can_be_restored(store: Store, tmp_path: Path) -> None:
    store.operations.begin(plan(current(store), contoso()), current(store), who="ann")
    backup(store, tmp_path / "during.zip")
    with Store(tmp_path / "new.sqlite") as new:
        back(new, tmp_path / "during.zip", allow_expired=True)
        assert new.operations.running() is None
        assert [step.action for step in plan(current(new), current(new).service).steps] == ["delete"]


def test_without_a_service_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    with Store(tmp_path / "empty.sqlite") as empty, pytest.raises(ServiceError, match="ResourceNotFound"):
        backup(empty, tmp_path / "nothing.zip")
    assert [path.name for path in tmp_path.iterdir() if "nothing" in path.name] == []


@pytest.mark.parametrize("place", ["missing/contoso.zip", "."])
def test_a_place_that_cannot_be_written_is_told(store: Store, tmp_path: Path, place: str) -> None:
    with pytest.raises(ServiceError, match="cannot be written"):
        backup(store, tmp_path / place)


# ===== files that are no backup


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def replaced(manifest: Callable[[dict[str, Any]], object] = lambda data: data, **members: bytes | None) -> Callable[[Path], None]:
    """Give what writes a backup anew with another manifest, or other members, None = without."""

    def change(file: Path) -> None:
        with zipfile.ZipFile(file) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        content["manifest.json"] = json.dumps(manifest(json.loads(content["manifest.json"]))).encode()
        content |= {name.replace("__", "."): data for name, data in members.items()}  # type: ignore[dict-item]
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in content.items():
                if data is not None:
                    archive.writestr(name, data)

    return change


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink, "empty": lambda file: file.write_bytes(b""), "garbage": lambda file: file.write_bytes(b"garbage" * 1000),
    "cut": cut, "flipped": flip, "no manifest": replaced(manifest__json=None), "no content": replaced(store__sqlite=None),
    "manifest of nonsense": replaced(manifest__json=b"\xff{"), "a list": replaced(lambda data: [data]),
    "no size": replaced(lambda data: {**data, "size": 0}), "another format": replaced(lambda data: {**data, "format": "1"}),
    "another size": replaced(lambda data: {**data, "size": data["size"] - 1}), "too small": replaced(lambda data: {**data, "size": 10}),
    "huge": replaced(lambda data: {**data, "size": 10**15}), "another sum": replaced(lambda data: {**data, "sha256": "0" * 64}),
    "a key more": replaced(lambda data: {**data, "colour": "red"}), "words": replaced(lambda data: {**data, "created": "yesterday"}),
    "a long manifest": replaced(manifest__json=b" " * 2_000_000), "other content": replaced(store__sqlite=b"SQLite format 3\x00"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_is_not_what_was_written_is_refused(store: Store, file: Path, name: str) -> None:
    DAMAGE[name](file)
    before = store.state(), store.history(), store.revisions.newest()
    with pytest.raises(ServiceError) as caught:
        back(store, file)
    assert caught.value.code == "InvalidBackup"
    with pytest.raises(ServiceError, match="InvalidBackup"):
        inspect(file)
    assert (store.state(), store.history(), store.revisions.newest()) == before


@pytest.mark.parametrize("key", ["format", "schema"])
def test_a_backup_from_the_future_is_refused(store: Store, file: Path, key: str) -> None:
    replaced(lambda data: {**data, key: data[key] + 1})(file)
    with pytest.raises(ServiceError, match="StoreFromTheFuture.*newer lbcore"):
        back(store, file)


def test_names_inside_a_backup_lead_nowhere(store: Store, file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("../../evil", b"x")
        archive.writestr(f"{tmp_path}/evil", b"x")
    back(store, file)
    assert not (tmp_path.parent / "evil").exists()
    assert not (tmp_path / "evil").exists()


def test_a_backup_whose_tables_are_others_is_refused_as_a_whole(store: Store, file: Path, tmp_path: Path) -> None:
    """Someone edited the database inside and wrote the right checksum beside it."""
    import hashlib

    with zipfile.ZipFile(file) as archive:
        archive.extract("store.sqlite", tmp_path / "x")
    inner = tmp_path / "x" / "store.sqlite"
    with closing(sqlite3.connect(inner)) as connection:
        connection.execute("DROP TABLE document")
        connection.commit()
    content = inner.read_bytes()
    replaced(lambda data: {**data, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}, store__sqlite=content)(file)
    before = store.state(), store.history(), store.revisions.newest()
    with pytest.raises(ServiceError):
        back(store, file)
    assert (store.state(), store.history(), store.revisions.newest()) == before


def test_another_tier_in_the_backup_than_in_its_manifest_does_not_matter_to_the_store(store: Store, tmp_path: Path) -> None:
    other = new_service("contoso", "westus2", tier="Standard")
    store.save(ServiceState(service=other), who="ann", what="save")
    assert backup(store, tmp_path / "standard.zip").tier == "Standard"
    with pytest.raises(ServiceError, match="SkuMismatch"):
        back(store, tmp_path / "standard.zip")
    assert back(store, tmp_path / "standard.zip", tier="Standard").state.service == other


# ===== what is lost, against a model


def test_a_restore_to_before_the_first_revision_loses_them_all(tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite") as store:
        store.save(running(contoso()), who="ann", what="save")
        backup(store, tmp_path / "early.zip")
        store.revisions.put(b"one", who="ann")
        store.revisions.begin_epoch(why="test", who="ann")
        assert [str(number) for number in back(store, tmp_path / "early.zip").lost] == ["1.1"]
        assert [str(number) for number in store.revisions.lost((1, 1))] == ["1.1"]
        assert store.revisions.put(b"another one", who="ann").number == (3, 1)


@settings(max_examples=settings.default.max_examples // 8 if settings.default else 12)
@given(st.lists(st.sampled_from(["publish", "publish", "backup", "restore", "epoch"]), max_size=25), st.randoms(use_true_random=False))
def test_what_a_gateway_holds_beyond_the_latest_is_what_lost_names(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str], random: Any
) -> None:
    """Every revision remembers what it was built upon; lost is what a gateway's has in its past and the latest has not."""
    folder = tmp_path_factory.mktemp("lost")
    past: dict[Number, tuple[int, ...]] = {}
    kept: list[tuple[Path, tuple[int, ...]]] = []
    ancestry: tuple[int, ...] = ()
    contents = iter(range(10_000))
    with Store(folder / "store.sqlite") as store:
        store.save(running(contoso()), who="ann", what="save")
        for turn, action in enumerate(actions):
            if action == "publish":
                ancestry = (*ancestry, next(contents))
                store.revisions.put(b"%d" % ancestry[-1], who="ann")
            elif action == "backup":
                backup(store, folder / f"{turn}.zip")
                kept.append((folder / f"{turn}.zip", ancestry))
            elif action == "epoch":
                store.revisions.begin_epoch(why="test", who="ann")
            elif kept:
                path, ancestry = random.choice(kept)
                back(store, path)
            latest = store.revisions.latest()
            if latest is not None:
                assert past.setdefault(latest.number, ancestry) == ancestry  # a number never stands for two things
                assert latest.number == max(past)
                assert store.revisions.body(latest.number) == b"%d" % ancestry[-1]
        for number, had in past.items():
            gone = [sequence + 1 for sequence, content in enumerate(had) if content not in ancestry]
            assert [one.sequence for one in store.revisions.lost(number)] == gone
