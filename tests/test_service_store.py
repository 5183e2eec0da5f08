"""The store: what was written is there, by ETag, in order, with who wrote it and why."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import Clock
from hypothesis import given
from hypothesis import strategies as st
from service_worlds import Ledger, carry_out, contoso, running, services

from lbcore.errors import ServiceError
from lbcore.service.model import LocationState, Service, ServiceState, location
from lbcore.service.plan import plan
from lbcore.service.progress import Granted, begin, done
from lbcore.service.record import from_record, matches, to_record
from lbcore.service.revisions import LARGEST
from lbcore.service.store import Store


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite", clock=clock) as opened:
        yield opened


def saved(store: Store, state: ServiceState | None = None, **options: Any) -> ServiceState:
    return store.save(state or running(contoso()), **{"who": "ann", "what": "save"} | options)


# ===== the service and its ETag


@given(services(), services())
def test_a_state_comes_back_as_it_was(before: Service, wanted: Service) -> None:
    def check(state: ServiceState) -> None:
        assert from_record(to_record(state), "", 0) == state

    ledger = Ledger()
    carry_out(running(before, ledger), wanted, ledger, check)


def test_nothing_is_there_before_it_is_written(store: Store) -> None:
    assert store.state() is None
    assert (store.history(), store.operations.running(), store.revisions.latest()) == ([], None, None)
    assert not store.delete(who="ann")


def test_a_written_state_survives_closing(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with Store(path) as store:
        written = saved(store)
    with Store(path) as store:
        assert store.state() == written
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_write_has_an_etag_of_its_own(store: Store) -> None:
    seen = [saved(store).etag for _ in range(3)]
    store.delete(who="ann")
    seen.append(saved(store).etag)  # a service created anew is another one
    assert len(set(seen)) == 4
    assert [int(etag.partition("-")[0]) for etag in seen] == [1, 2, 3, 4]


def test_a_write_that_has_not_seen_the_last_one_is_refused(store: Store) -> None:
    first = saved(store)
    second = saved(store, if_match=f'"{first.etag}"')
    before = store.history()
    with pytest.raises(ServiceError, match="PreconditionFailed"):
        saved(store, if_match=f'"{first.etag}"')
    assert store.state() == second
    assert store.history() == before


@pytest.mark.parametrize(
    ("header", "etag", "holds"),
    [
        (None, "", True), (None, "1-a", True), ("*", "1-a", True), ("*", "", False), ('"1-a"', "1-a", True), ("1-a", "1-a", True),
        ('"x", "1-a"', "1-a", True), ('W/"1-a"', "1-a", False), ('"1-A"', "1-a", False), ("", "1-a", False), ('""', "", False),
    ],
)  # fmt: skip
def test_if_match_is_compared_strongly(header: str | None, etag: str, holds: bool) -> None:
    assert matches(header, etag) == holds


def test_a_write_that_changes_its_mind_leaves_nothing(store: Store) -> None:
    kept = saved(store)
    with pytest.raises(ZeroDivisionError), store.database.writing() as connection:
        connection.execute("DELETE FROM service")
        raise ZeroDivisionError
    assert store.state() == kept


def test_what_an_operation_writes_is_not_lost_by_an_update_beside_it(store: Store) -> None:
    with pytest.raises(ServiceError, match="ResourceNotFound"):
        store.update(lambda now: now, who="ann", what="nothing")
    state = saved(store)
    stale = state
    operation, _ = store.operations.begin(plan(state, contoso("eastasia")), state, who="ann")
    after = store.update(lambda now: now.having("westus2", LocationState(reason="noted")), who="clock", what="note")
    assert [each.name for each in after.service.locations] == ["westus2", "eastasia"]
    assert store.update(lambda now: now, who="clock", what="nothing").etag == after.etag
    with pytest.raises(ServiceError, match="PreconditionFailed"):
        store.update(lambda now: stale, who="bob", what="save", if_match=stale.etag)
    assert [entry.what for entry in store.history()] == ["note", "save", "save"]
    assert store.operations.running() == operation


def test_further_resources_have_etags_of_their_own(store: Store) -> None:
    assert store.document("trafficManager") is None
    first = store.put("trafficManager", {"ttl": 60}, who="ann")
    assert store.document("trafficManager") == first
    second = store.put("trafficManager", {"ttl": 30}, who="ann", if_match=first.etag)
    with pytest.raises(ServiceError, match="PreconditionFailed"):
        store.put("trafficManager", {}, who="bob", if_match=first.etag)
    with pytest.raises(ServiceError, match="PreconditionFailed"):
        store.put("other", {}, who="bob", if_match="*")
    assert store.document("trafficManager") == second
    assert second.body == {"ttl": 30}


# ===== history


def test_history_says_who_what_and_why_in_order_though_the_clock_jumps(store: Store, clock: Clock) -> None:
    for jump in (0.0, -1e6, 5e6, -4e6):
        clock.advance(jump)
        saved(store, why=f"{jump}")
    assert [entry.why for entry in store.history()] == ["-4000000.0", "5000000.0", "-1000000.0", "0.0"]
    newest = store.history(limit=1)[0]
    state = store.state()
    assert state is not None
    assert (newest.who, newest.what, newest.etag) == ("ann", "save", state.etag)
    assert from_record(newest.record, newest.etag, state.sequence) == state
    assert [entry.id for entry in store.history(limit=2, before=newest.id)] == [3, 2]


def test_history_is_never_rewritten(store: Store) -> None:
    saved(store)
    for statement in ("UPDATE history SET who = 'bob'", "DELETE FROM history"):
        with pytest.raises(ServiceError, match="history stays"), store.database.writing() as connection:
            connection.execute(statement)
    assert [entry.who for entry in store.history()] == ["ann"]


hostile = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    ["'); DROP TABLE service; --", "<script>alert(1)</script>", "../../../etc/passwd", "a\x00b", "\ud800", "\x1b[2J", "x" * 5000]
)  # fmt: skip


def test_whatever_people_write_is_kept_as_text(store: Store) -> None:
    @given(hostile, hostile)
    def check(who: str, why: str) -> None:
        state = saved(store, who=who, what=why or "save", why=why)
        entry = store.history(limit=1)[0]
        assert store.state() == state
        assert entry.who.isprintable()
        assert len(entry.why) <= 1000
        assert entry.why == why or not why.isprintable() or len(why) > 1000

    check()


def test_no_text_in_a_state_can_break_the_store(store: Store) -> None:
    @given(hostile)
    def check(text: str) -> None:
        odd = running(contoso()).having("eastasia", LocationState(reason=text, gateway=text))
        saved(store, odd)
        found = store.state()
        assert found is not None
        assert found.of("eastasia").reason == text
        store.events.add(text, text, detail=text)
        assert store.events.since(limit=1)[0].detail == {"detail": text}
        store.put("notes", {text: text}, who="ann")
        assert (store.document("notes") or pytest.fail()).body == {text: text}
        assert store.operations.get(text.encode("utf-8", "ignore").decode()) is None

    check()


# ===== operations


def test_an_operation_and_what_it_leads_to_are_written_together(store: Store, clock: Clock) -> None:
    wanted, ledger = contoso("eastasia"), Ledger()
    planned = plan(None, wanted)
    operation, state = store.operations.begin(planned, None, who="ann", why="growth")
    assert (operation.status, operation.plan["creates"][0]["name"], store.operations.running()) == ("InProgress", "westus2", operation)
    assert store.state() == state
    for number, step in enumerate(planned.steps):
        clock.advance(1.0)
        granted = ledger.grant(step, planned)
        store.operations.advance(operation.id, lambda now, step=step: begin(now, step), region=step.name, entry="begun")  # type: ignore[misc]
        state = store.operations.advance(
            operation.id, lambda now, step=step, granted=granted: done(now, step, planned, granted, 0.0),  # type: ignore[misc]
            region=step.name, entry="done", percent=50 * (number + 1), result={"status": "Succeeded"},
        )  # fmt: skip
        assert store.state() == state
    late = store.operations.advance(operation.id, lambda now: now, region="", entry="late", percent=10)
    assert late.etag == state.etag  # nothing changed
    assert (store.operations.running() or operation).percent == 100
    final = store.operations.finish(operation.id, "Succeeded")
    ended = store.operations.get(operation.id)
    assert ended is not None
    assert (ended.status, ended.percent, ended.results) == (
        "Succeeded", 100, {"westus2": {"status": "Succeeded"}, "eastasia": {"status": "Succeeded"}},
    )  # fmt: skip
    assert plan(final, wanted).empty
    assert store.operations.running() is None
    assert [line.entry for line in store.operations.journal(operation.id)] == ["begun", "done"] * 2 + ["late", "Succeeded"]
    assert [entry.what for entry in store.history()] == [f"operation {operation.id}: Succeeded", "save"]


def test_one_operation_at_a_time(store: Store, clock: Clock) -> None:
    first, state = store.operations.begin(plan(None, contoso()), None, who="ann")
    clock.advance(-3600.0)
    with pytest.raises(ServiceError, match="OperationInProgress") as caught:
        store.operations.begin(plan(state, contoso("eastasia")), state, who="bob")
    assert (caught.value.target, "begun by ann 0 s ago" in str(caught.value)) == (first.id, True)
    with pytest.raises(ServiceError, match="OperationInProgress"):
        store.delete(who="bob")
    with pytest.raises(ServiceError, match="PreconditionFailed"):  # what the client has not seen comes before the lock
        store.operations.begin(plan(state, contoso("eastasia")), state, who="bob", if_match='"0-x"')
    assert store.operations.cancel(first.id)
    assert (store.operations.running() or first).cancel
    store.operations.finish(first.id, "Canceled", error="ann asked")
    assert not store.operations.cancel(first.id)
    store.operations.begin(plan(store.state(), contoso("eastasia")), store.state(), who="bob")
    assert [operation.who for operation in store.operations.newest()] == ["bob", "ann"]


def test_a_plan_of_what_there_was_before_is_void(store: Store) -> None:
    old = saved(store)
    planned = plan(old, contoso("eastasia"))
    saved(store)
    for based_on in (old, None):
        with pytest.raises(ServiceError, match="plan anew"):
            store.operations.begin(planned, based_on, who="ann")
    assert store.operations.newest() == []


def test_a_step_that_raises_has_not_happened(store: Store) -> None:
    planned = plan(None, contoso())
    operation, state = store.operations.begin(planned, None, who="ann")
    [step] = planned.steps
    with pytest.raises(ServiceError, match="UnplannedChange"):
        store.operations.advance(operation.id, lambda now: done(now, step, planned, Granted(), 0.0), region=step.name, entry="done")
    assert store.state() == state
    assert store.operations.journal(operation.id) == []
    with pytest.raises(ValueError):
        store.operations.finish(operation.id, "Done")
    store.operations.finish(operation.id, "Failed", error="no address")
    for again in (operation.id, "nonsense"):
        with pytest.raises(ServiceError, match="ResourceNotFound"):
            store.operations.advance(again, lambda now: now, region="", entry="late")


def test_of_fifty_saves_with_one_etag_one_is_accepted(tmp_path: Path) -> None:
    stores = [Store(tmp_path / "store.sqlite", timeout=30.0) for _ in range(5)]  # as many processes would have
    state = saved(stores[0])
    codes: list[str] = []
    start = threading.Barrier(50)

    def save(number: int) -> None:
        planned = plan(state, contoso().put(location("westus2", units=number % 30 + 2)))
        start.wait()
        try:
            stores[number % 5].operations.begin(planned, state, who=f"{number}", if_match=state.etag)
            codes.append("accepted")
        except ServiceError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["PreconditionFailed"] * 49 + ["accepted"]
    assert len(stores[0].operations.newest()) == 1
    for store in stores:
        store.close()


# ===== a primary that was replaced


def test_a_fenced_primary_reads_and_writes_nothing_more(store: Store) -> None:
    state = saved(store)
    operation, accepted = store.operations.begin(plan(state, contoso("eastasia")), state, who="ann")
    store.fence(7, who="bob", why="promoted eastasia")
    assert store.fenced == 7
    for write in (
        lambda: saved(store), lambda: store.put("x", 1, who="ann"), lambda: store.delete(who="ann"),
        lambda: store.revisions.put(b"", who="ann"), lambda: store.operations.begin(plan(None, contoso()), None, who="ann"),
        lambda: store.operations.advance(operation.id, lambda now: now, region="", entry=""),
    ):  # fmt: skip
        with pytest.raises(ServiceError, match="Fenced"):
            write()
    assert store.state() == accepted
    store.fence(3, who="bob")  # an earlier one changes nothing
    assert store.fenced == 7
    store.unfence(who="bob")
    saved(store)


# ===== tokens and events


def test_tokens_are_kept_by_their_hash(store: Store, clock: Clock, tmp_path: Path) -> None:
    made = store.tokens.add("t1", "ann's <b>laptop</b>", "operator", b"\x01" * 32, who="root", expires=2000.0)
    assert store.tokens.find("t1") == (made, b"\x01" * 32)
    assert store.tokens.find("t2") is None
    for id, role, digest in (("t1", "reader", b"x"), ("t2", "reader", b"\x01" * 32), ("t3", "root", b"y")):
        with pytest.raises(ServiceError, match="InvalidProperty"):
            store.tokens.add(id, "n", role, digest, who="root")
    clock.advance(5.0)
    store.tokens.used("t1")
    assert store.tokens.revoke("t1", who="root")
    assert not store.tokens.revoke("t1", who="root")
    [row] = store.tokens.all()
    assert (row.used, row.revoked, row.expires) == (1005.0, 1005.0, 2000.0)
    assert [entry.what for entry in store.history()] == ["revoke token t1", "create token t1"]


def test_events_are_kept_in_order_and_not_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbcore.service.logbook.KEPT", 3)
    numbers = [store.events.add("region down", "eastasia", cause=f"probe timeout x{count}") for count in range(5)]
    kept = store.events.since()
    assert [event.id for event in kept] == numbers[2:]
    assert kept[-1].detail == {"cause": "probe timeout x4"}
    assert [event.id for event in store.events.since(numbers[3])] == numbers[4:]


# ===== revisions


def test_revisions_are_numbered_and_never_change(store: Store) -> None:
    first = store.revisions.put(b"one", who="ann", if_revision=(0, 0))  # type: ignore[arg-type]
    second = store.revisions.put(b"two", who="bob", why="policy", if_revision=first.number)
    assert (str(first.number), str(second.number)) == ("1.1", "1.2")
    for stale in ((0, 0), (1, 1), (2, 2)):
        with pytest.raises(ServiceError, match="RevisionConflict") as caught:
            store.revisions.put(b"three", who="ann", if_revision=stale)  # type: ignore[arg-type]
        assert caught.value.target == "1.2"
    assert store.revisions.latest() == second
    assert [store.revisions.body(number) for number in ((1, 1), (1, 2), (1, 3))] == [b"one", b"two", None]
    assert store.revisions.newest() == [second, first]
    assert len(store.revisions.body(store.revisions.put(bytes(LARGEST), who="ann").number) or b"") == LARGEST
    with pytest.raises(ServiceError, match="InvalidConfiguration"):
        store.revisions.put(bytes(LARGEST + 1), who="ann")
    assert store.revisions.prune(0) == 2  # the latest stays
    assert [str(one.number) for one in store.revisions.newest()] == ["1.3"]


def test_a_later_epoch_wins_with_the_same_content(store: Store) -> None:
    store.revisions.put(b"one", who="ann")
    assert store.revisions.begin_epoch(why="a gateway knew epoch 4", who="sync", at_least=5) == 5
    latest = store.revisions.latest()
    assert latest is not None
    assert (latest.number, store.revisions.body(latest.number)) == ((5, 1), b"one")
    assert store.revisions.put(b"two", who="ann").number == (5, 2)
    assert store.revisions.epoch == 5


def test_what_rotted_on_the_disk_is_not_taken_for_what_was_written(store: Store) -> None:
    saved(store)
    number = store.revisions.put(b"one", who="ann").number
    store.put("trafficManager", {"ttl": 60}, who="ann")
    with store.database.writing() as connection:
        connection.execute("UPDATE service SET record = replace(record, 'contoso', 'c0ntoso')")
        connection.execute("UPDATE revision SET body = x'6f6e66'")
        connection.execute("UPDATE document SET body = replace(body, '60', '61')")
    for read in (store.state, lambda: store.revisions.body(number), lambda: store.document("trafficManager")):
        with pytest.raises(ServiceError, match=r"StoreCorrupt.*restore a backup"):
            read()


def test_readers_do_not_wait_for_a_writer(store: Store) -> None:
    state = saved(store)
    with store.database.writing() as connection:
        connection.execute("DELETE FROM service")
        assert store.state() == state
    assert store.state() is None


def test_the_database_is_as_durable_as_it_can_be(store: Store) -> None:
    with store.database.writing() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
    with closing(sqlite3.connect(store.database.path)) as other:
        tables = other.execute("SELECT name, strict FROM pragma_table_list WHERE schema = 'main'").fetchall()
    assert {strict for name, strict in tables if not name.startswith("sqlite_")} == {1}
