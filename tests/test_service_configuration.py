"""The primary's configurations: published, watched, rolled back, diffed; what regions report is noted and not believed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gatewaying import document, until
from service_worlds import contoso, running
from syncing import body, latest

from lbcore.errors import ConfigError, ServiceError, Violation
from lbcore.http.gateway import Configuration, Gateway
from lbcore.service.backup import backup, restore
from lbcore.service.configuration import NOTHING, Report, Tag, if_revision_of, read_number, read_tags, tag_of, validated
from lbcore.service.primary import Primary
from lbcore.service.revisions import Number
from lbcore.service.store import Store
from lbcore.service.sync import State, Sync


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite") as made:
        yield made


def refused(caught: pytest.ExceptionInfo[ServiceError]) -> str:
    return caught.value.code


async def published(primary: Primary, *markers: str) -> list[Tag]:
    return [await primary.put(body(marker), who="ann") for marker in markers]


async def test_what_is_given_is_the_very_document_that_a_gateway_serves_by(store: Store) -> None:
    primary = Primary(store)
    assert await primary.latest() is None
    tags = await published(primary, "é", "b")
    assert [str(tag.number) for tag in tags] == ["1.1", "1.2"]
    offered = await primary.latest()
    assert offered is not None and offered.tag == tags[1] and offered.body is not None
    assert hashlib.sha256(offered.body).hexdigest() == offered.tag.sha256
    read = Configuration.from_json(offered.body)
    assert tag_of(read) == offered.tag and read.canonical == offered.body
    assert await primary.latest([tags[1]]) == type(offered)(tags[1])
    assert (await primary.latest([tags[0]])) == offered


async def test_a_gateway_that_follows_comes_to_it(store: Store, tmp_path: Path) -> None:
    primary, gateway = Primary(store), Gateway("westeurope", keep=tmp_path / "kept")
    sync = Sync(gateway, primary, region="westeurope", interval=60.0)
    assert await sync.pull() is State.EMPTY
    following = asyncio.create_task(sync.run())
    for marker in "abc":
        [tag] = await published(primary, marker)
        await until(lambda tag=tag: sync.held == tag)
    await sync.pull()
    assert primary.reports["westeurope"].held == tag
    assert await primary.in_sync(["westeurope", "uksouth"]) == {"westeurope": True, "uksouth": False}
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_whoever_publishes_last_must_have_seen_what_there_is(store: Store) -> None:
    primary = Primary(store)
    first = await primary.put(body("a"), who="ann", if_revision=NOTHING)
    for wrong in (NOTHING, Number(1, 2), Number(2, 1)):
        with pytest.raises(ServiceError) as caught:
            await primary.put(body("b"), who="bob", if_revision=wrong)
        assert refused(caught) == "RevisionConflict" and caught.value.target == "1.1"
    results = await asyncio.gather(
        *(primary.put(body(str(n)), who="x", if_revision=first.number) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(result, Tag) for result in results) == 1
    assert [str(each.number) for each in store.revisions.newest()] == ["1.2", "1.1"]


async def test_the_same_content_again_is_no_new_revision_but_for_one_who_was_not_up_to_date(store: Store) -> None:
    primary = Primary(store)
    [first] = await published(primary, "a")
    assert await primary.put({**body("a"), "epoch": 9, "sequence": 9}, who="bob") == first
    assert await primary.put(dict(reversed(body("a").items())), who="bob", if_revision=first.number) == first
    with pytest.raises(ServiceError) as caught:
        await primary.put(body("a"), who="bob", if_revision=NOTHING)
    assert refused(caught) == "RevisionConflict"
    store.fence(2, who="carol")
    with pytest.raises(ServiceError) as caught:
        await primary.put(body("a"), who="bob")
    assert refused(caught) == "Fenced"


async def test_everything_wrong_with_a_document_is_said_and_nothing_is_published(store: Store) -> None:
    wrong = {"zzz": 1, "apis": [{"name": "a", "path": "x", "backend": "order"}], "backends": [{"name": "orders", "urls": ["ftp://x"]}]}
    with pytest.raises(ServiceError) as caught:
        await Primary(store).put(wrong, who="ann")
    assert {detail.target for detail in caught.value.details} == {"zzz", "apis[0].path", "apis[0].backend", "backends[0].urls[0]"}
    assert {detail.code for detail in caught.value.details} == {"InvalidConfiguration"}
    elsewhere = {**body(), "backends": [{"name": "orders", "regions": {"mars": ["http://a"], "westeurope": ["http://b"]}}]}
    with pytest.raises(ServiceError, match="mars"):
        await Primary(store, regions=lambda: ["westeurope"]).put(elsewhere, who="ann")
    assert store.revisions.latest() is None


@pytest.mark.parametrize("wrong", [None, [], "x", 5, {"apis": float("nan")}, {1: 2}, {"epoch": {}, "apis": 5}, {"apis": ["\ud800"]}])
def test_anything_that_is_no_document_is_refused(wrong: Any) -> None:
    with pytest.raises(ServiceError) as caught:
        validated(wrong)
    assert refused(caught) == "InvalidConfiguration"


def test_a_further_look_may_refuse() -> None:
    def check(configuration: Configuration) -> None:
        raise ConfigError([Violation("apis[0]", 1, "something else")])

    with pytest.raises(ServiceError, match="something else") as caught:
        validated(body(), check=check)
    assert caught.value.target == "apis[0]"


def test_a_document_that_just_fits_fits_under_every_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbcore.http.gateway.configuration.MOST_BYTES", 350)
    fits = [length for length in range(300) if _fits(body("x" * length))]
    assert fits == [*range(len(fits))] and 0 < len(fits) < 300
    whole = json.loads(validated(body("x" * fits[-1]))) | {"epoch": 2**53 - 1, "sequence": 2**53 - 1}
    assert len(Configuration.from_mapping(whole).canonical) == 350


def _fits(made: dict[str, Any]) -> bool:
    try:
        return bool(validated(made))
    except ServiceError:
        return False


async def test_a_rollback_is_a_new_revision_with_an_old_content(store: Store) -> None:
    primary = Primary(store)
    first, second = await published(primary, "a", "b")
    back = await primary.rollback(first.number, who="ann", if_revision=second.number)
    assert back.number == (1, 3) and back.sha256 != first.sha256
    assert {**await primary.document(back.number), "sequence": 1} == await primary.document(first.number)
    newest = store.revisions.newest()
    assert newest[0].sha256 == newest[2].sha256 and newest[0].why == "rollback to 1.1"  # of the content: the same
    for number in (Number(1, 9), Number(9, 1)):
        with pytest.raises(ServiceError) as caught:
            await primary.rollback(number, who="ann")
        assert refused(caught) == "ResourceNotFound"


async def test_a_rollback_to_what_would_be_refused_today_is_refused(store: Store) -> None:
    regions = ["westeurope", "uksouth"]
    primary = Primary(store, regions=lambda: regions)
    elsewhere = {"name": "orders", "urls": ["http://a"], "regions": {"uksouth": ["http://b"]}}
    first = await primary.put({**body(), "backends": [elsewhere]}, who="ann")
    await published(primary, "b")
    regions.remove("uksouth")
    with pytest.raises(ServiceError, match="uksouth"):
        await primary.rollback(first.number, who="ann")


# ===== watching


async def test_who_watches_is_woken_whichever_process_publishes(store: Store, tmp_path: Path) -> None:
    primary = Primary(store)
    waiting = [asyncio.create_task(primary.watch()) for _ in range(50)]
    await asyncio.sleep(0)
    [first] = await published(primary, "a")
    assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [True] * 50
    again = asyncio.create_task(primary.watch([first]))
    with Store(tmp_path / "store.sqlite") as other:
        await Primary(other).put(body("b"), who="bob")
    assert await asyncio.wait_for(again, 5) is True
    assert await primary.watch([first]) is True
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(primary.watch([(await primary.latest()).tag]), 0.05)  # type: ignore[union-attr]
    assert primary._watcher is None and primary._watching == 0


# ===== what regions say


def reported(region: str = "westeurope", number: tuple[int, int] = (1, 1), marker: str = "a", **more: Any) -> Report:
    return Report(region, "InSync", latest(number, marker).tag, 1.0, **more)


async def test_after_a_restore_every_region_follows_and_the_lost_ones_are_named(store: Store, tmp_path: Path) -> None:
    store.save(running(contoso()), who="ann", what="create")
    primary = Primary(store)
    await published(primary, *"abcde")
    backup(store, tmp_path / "five.zip")
    await published(primary, *"fghi")
    before = await primary.latest()
    assert before is not None and before.tag.number == (1, 9)
    restore(store, tmp_path / "five.zip", name="contoso", tier="Premium", who="ann")
    primary = Primary(store)  # the primary has been down
    offered = await primary.latest([before.tag], Report("westeurope", "Orphaned", before.tag, 99.0))
    assert offered is not None and offered.tag.number == (2, 5) and [*map(str, offered.lost)] == ["1.6", "1.7", "1.8", "1.9"]
    await primary.latest([before.tag], Report("westeurope", "Orphaned", before.tag, 109.0))
    [event] = [event for event in store.events.since() if event.kind == "ConfigRolledBack"]
    assert event.region == "westeurope" and event.detail == {"held": "1.9", "to": "2.5", "lost": ["1.6", "1.7", "1.8", "1.9"]}


async def test_a_region_that_lies_about_its_revision_changes_nothing_and_is_named(store: Store) -> None:
    primary = Primary(store)
    [first] = await published(primary, "a")
    for number in [(1, 2), (7, 1), (2**53, 2**53), (0, 10**15), (1, 10**15)]:
        offered = await primary.latest([], Report("westeurope", "InSync", Tag(Number(*number), "0" * 64), 0.0))
        assert offered is not None and offered.tag == first and len(offered.lost) <= 1000
        assert await primary.in_sync(["westeurope"]) == {"westeurope": False}
    await primary.latest([], Report("westeurope", "InSync", Tag(first.number, "0" * 64), 0.0))
    assert await primary.in_sync(["westeurope"]) == {"westeurope": False}
    kinds = [event.kind for event in store.events.since()]
    assert "ConfigAhead" in kinds and "ConfigMismatch" in kinds and store.revisions.epoch == 1
    await primary.win(who="ann", why="x")
    offered = await primary.latest([], Report("westeurope", "InSync", Tag(Number(1, 10**15), "0" * 64), 0.0))
    assert offered is not None and offered.lost == tuple(Number(1, n) for n in range(2, 1002))


async def test_lies_without_end_fill_neither_memory_nor_log(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    primary = Primary(store)
    await published(primary, "a")
    monkeypatch.setattr("lbcore.service.primary._MOST_REGIONS", 5)
    for n in range(50):
        await primary.latest([], reported("westeurope", (2, n)))
        await primary.latest([], reported(f"r{n}" * 100))
    assert len(primary.reports) == 5 and all(len(name) <= 100 for name in primary.reports)
    assert len([event for event in store.events.since() if event.kind == "ConfigAhead"]) <= 3


async def test_what_a_region_refuses_is_an_event(store: Store) -> None:
    primary = Primary(store)
    await published(primary, "a")
    await primary.latest([], reported(refused="revision 1.1\x1b[31m cannot be used"))
    [event] = store.events.since()
    assert event.kind == "ConfigRefused" and "\x1b" not in event.detail["reason"] and event.detail["latest"] == "1.1"


async def test_only_when_told_to_does_a_primary_win_over_a_later_epoch(store: Store) -> None:
    primary = Primary(store)
    assert await primary.win(who="ann", why="no revision yet") is None
    await published(primary, "a")
    epoch = store.revisions.epoch
    await primary.latest([], reported(number=(epoch + 5, 3)))
    assert store.revisions.epoch == epoch
    won = await primary.win(who="ann", why="restored twice")
    assert won is not None and won.number == (epoch + 6, 1)
    await primary.latest([], Report("x", "InSync", Tag(Number(2**53, 1), "0" * 64), 0.0))
    with pytest.raises(ServiceError, match="none is beyond"):
        await primary.win(who="ann", why="a lie")


async def test_a_revision_that_was_damaged_is_not_given(store: Store) -> None:
    primary = Primary(store)
    await published(primary, "a")
    with store.database.writing() as connection:
        connection.execute("UPDATE revision SET body = ?", (b"{}",))
    with pytest.raises(ServiceError) as caught:
        await primary.latest()
    assert refused(caught) == "StoreCorrupt"


# ===== text


def test_tags_are_read_as_they_are_written() -> None:
    tags = latest((1, 7)).tag, latest((2**52, 0), "b").tag
    assert read_tags(", ".join(map(str, tags))) == tags and read_tags(f"W/{tags[0]}") == tags[:1]
    text = str(tags[0])
    for wrong in (None, "", "*", '"1.7"', text[:-2], text.upper(), text.replace("1.7", "01.7"), text.replace("1.7", "\u0661.7")):
        assert read_tags(wrong) == ()
    assert len(read_tags(", ".join([str(tags[0])] * 100_000))) <= 10


@pytest.mark.parametrize(("headers", "expected"), [
    ((None, None), None), (("*", None), None), (('"1.7"', None), Number(1, 7)), ((str(latest((1, 7)).tag), None), Number(1, 7)),
    ((None, "*"), NOTHING), (('"1.7"', "*"), NOTHING), ((" 3.0 ", None), Number(3, 0)),
])  # fmt: skip
def test_if_revision_comes_from_the_headers(headers: tuple[str | None, str | None], expected: Number | None) -> None:
    assert if_revision_of(*headers) == expected


@pytest.mark.parametrize("text", [
    "", "1", "1.", ".7", "1.7.0", "-1.7", "1e1.7", "9" * 40 + ".1", "9999999999999999.1", "1.7\n1", "\u0661.7", '"1.7',
])  # fmt: skip
def test_what_is_no_revision_is_refused(text: str) -> None:
    with pytest.raises(ServiceError) as caught:
        read_number(text)
    assert refused(caught) == "InvalidProperty"


def test_numbers_in_a_document_do_not_count() -> None:
    assert validated(document(sequence=5, epoch=3)) == validated(document(sequence=8)) == validated(document() | {"epoch": "x"})
