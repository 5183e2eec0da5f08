"""Synchronisation on virtual time: how soon, what during an outage, what after a restart, and what is not believed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gatewaying import document
from syncing import INTERVAL, Source, World, body, in_virtual_time, latest, loop_of_now

from lbcore.http.gateway import Gateway
from lbcore.service.configuration import Latest, SourceRefusedError, SourceUnreachableError, Tag
from lbcore.service.revisions import Number
from lbcore.service.sync import State, Sync

SLACK = 1.0


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_without_hints_a_revision_is_in_use_after_one_interval_and_its_jitter(draw: float) -> None:
    async def main() -> None:
        source = Source(latest((1, 1)), hints=False)
        async with World(source, loop_of_now(), draw=draw) as world:
            await asyncio.sleep(0.1)
            assert world.number == (1, 1) and world.sync.state is State.IN_SYNC
            for sequence in range(2, 30):
                await asyncio.sleep(0.37 * sequence)  # at any phase of the interval
                source.publish(latest((1, sequence)))
                await asyncio.sleep(INTERVAL * 1.2 + SLACK)
                assert world.number == (1, sequence) and world.sync.state is State.IN_SYNC

    in_virtual_time(main())


def test_with_a_hint_a_revision_is_in_use_at_once() -> None:
    async def main() -> None:
        source = Source(latest((1, 1)))
        async with World(source, loop_of_now()) as world:
            for sequence in range(2, 20):
                await asyncio.sleep(3.3)
                source.publish(latest((1, sequence)))
                await asyncio.sleep(SLACK)
                assert world.number == (1, sequence)

    in_virtual_time(main())


def test_looks_are_an_interval_apart_with_twenty_percent_of_jitter() -> None:
    async def main() -> list[float]:
        source, loop = Source(latest((1, 1)), hints=False), loop_of_now()
        draws = iter([n / 100 for n in range(100)] * 2)
        world = World(source, loop)
        world.sync._draw = lambda: next(draws)
        async with world:
            await asyncio.sleep(1500)
        return source.asked

    asked = in_virtual_time(main())
    gaps = [round(b - a, 6) for a, b in zip(asked, asked[1:], strict=False)]
    assert len(gaps) > 140 and min(gaps) == 8.0 and 11.9 < max(gaps) <= 12.0


@pytest.mark.parametrize("mode", ["refuse", "hang"])
def test_an_hour_without_the_primary_changes_nothing_but_the_state(mode: str) -> None:
    async def main() -> None:
        source, loop = Source(latest((1, 7))), loop_of_now()
        async with World(source, loop) as world:
            await asyncio.sleep(30)
            source.mode = mode
            source.publish(latest((1, 8)))
            began = loop.time()
            while loop.time() < began + 3600:
                await asyncio.sleep(5)
                assert world.number == (1, 7) and world.gateway.shut is None and world.gateway.status()[0] == 200
            assert world.sync.state is State.ORPHANED and 3590 < world.sync.lag < 3615
            assert len(world.states()) <= 4 and world.states()[-1] == "Orphaned"
            source.mode = "up"
            await asyncio.sleep(INTERVAL * 1.2 + 10 + SLACK)  # a look that hangs ends after its timeout
            assert world.number == (1, 8) and world.sync.state is State.IN_SYNC and world.sync.lag < 12
            assert source.told[-1].state in ("Orphaned", "InSync") and source.told[-1].region == "westeurope"

    in_virtual_time(main())


def test_one_look_that_fails_is_no_outage() -> None:
    async def main() -> None:
        source = Source(latest((1, 1)), hints=False)
        async with World(source, loop_of_now()) as world:
            await asyncio.sleep(INTERVAL * 2.5)
            source.mode = "refuse"
            await asyncio.sleep(INTERVAL)
            assert world.sync.state is State.IN_SYNC and world.sync.counters["unreachable"] == 1
            source.mode = "up"
            await asyncio.sleep(INTERVAL * 5)
            assert world.states() == ["Syncing", "InSync"]

    in_virtual_time(main())


def test_a_restart_during_the_outage_serves_what_was_kept(tmp_path: Path) -> None:
    async def main() -> None:
        source, loop = Source(latest((1, 1))), loop_of_now()
        async with World(source, loop, gateway=Gateway("westeurope", keep=tmp_path)):
            await asyncio.sleep(1)
            source.publish(latest((1, 2)))
            await asyncio.sleep(5)
        source.mode = "hang"
        async with World(source, loop, gateway=Gateway("westeurope", keep=tmp_path)) as world:
            assert world.number == (1, 2) and world.gateway.shut is None and world.sync.state is State.SYNCING
            await asyncio.sleep(100)
            assert world.number == (1, 2) and world.sync.state is State.ORPHANED
        newest = max(tmp_path.glob("revision-*.json"))
        newest.write_bytes(newest.read_bytes()[:-20])
        async with World(source, loop, gateway=Gateway("westeurope", keep=tmp_path)) as world:
            assert world.number == (1, 1)
            source.mode = "up"
            await asyncio.sleep(30)
            assert world.number == (1, 2) and world.sync.state is State.IN_SYNC
        source.mode = "refuse"
        async with World(source, loop, gateway=Gateway("westeurope")) as world:  # nothing is kept: nothing is served
            await asyncio.sleep(100)
            assert world.sync.state is State.EMPTY and world.gateway.status()[0] == 503

    in_virtual_time(main())


def test_a_primary_that_was_rolled_back_wins_by_its_epoch_and_says_what_was_lost() -> None:
    async def main() -> None:
        source = Source(latest((1, 9)))
        async with World(source, loop_of_now()) as world:
            await asyncio.sleep(1)
            source.publish(latest((2, 5), "b", lost=tuple(Number(1, n) for n in range(6, 10))))
            await asyncio.sleep(12 + SLACK)
            assert world.number == (2, 5) and world.sync.state is State.IN_SYNC
            [told] = world.of("ConfigRolledBack")
            assert told == {"region": "westeurope", "held": "1.9", "to": "2.5", "lost": ["1.6", "1.7", "1.8", "1.9"]}

    in_virtual_time(main())


def _lies() -> dict[str, Latest | None]:
    sound = latest((1, 8), "b")
    assert sound.body is not None
    spaced = json.dumps(json.loads(sound.body)).encode()
    wrong = json.dumps({**document(), "epoch": 1, "sequence": 8, "zzz": 1}).encode()
    named = {
        "hash": replace(sound, body=sound.body + b" "), "hash of nothing": replace(sound, body=b""),
        "number": replace(latest((1, 9), "b"), tag=Tag(Number(1, 8), latest((1, 9), "b").tag.sha256)),
        "no body": replace(sound, body=None), "older": latest((1, 6)), "older epoch": latest((0, 99)),
        "same number": latest((1, 7), "other"), "not canonical": Latest(Tag(Number(1, 8), _sha(spaced)), spaced),
        "invalid": Latest(Tag(Number(1, 8), _sha(wrong)), wrong), "nothing": None,
    }  # fmt: skip
    for name, garbage in {"zeros": b"\0" * 100, "deep": b"[" * 100_000, "no table": b"[]", "huge": b" " * (5 << 20)}.items():
        named[name] = Latest(Tag(Number(1, 8), _sha(garbage)), garbage)
    return named


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", [*_lies()])
def test_a_source_that_lies_is_refused_and_reported(name: str) -> None:
    async def main() -> None:
        source = Source(latest((1, 7)))
        async with World(source, loop_of_now()) as world:
            await asyncio.sleep(1)
            source.publish(_lies()[name])
            await asyncio.sleep(1000)
            assert world.number == (1, 7) and world.gateway.status()[0] == 200
            assert world.sync.state is State.STALE and 980 < world.sync.lag <= 1001
            assert source.told[-1].refused == world.sync.refused != "" and source.told[-1].state == "Stale"
            assert len(world.of("ConfigRefused")) == 1 and len(source.asked) < 220  # said once, and no storm
            assert len(world.states()) <= 6
            source.publish(latest((1, 10)))
            await asyncio.sleep(12 + SLACK)
            assert world.number == (1, 10) and world.sync.state is State.IN_SYNC and world.sync.refused == ""

    in_virtual_time(main())


def test_a_revision_that_cannot_be_used_is_fetched_once() -> None:
    async def main() -> None:
        source = Source(latest((1, 7)))
        async with World(source, loop_of_now()) as world:
            await asyncio.sleep(1)
            source.publish(_lies()["invalid"])
            await asyncio.sleep(500)
            assert source.bodies == 2 and "zzz" in world.sync.refused

    in_virtual_time(main())


class Broken(Source):
    """A source that raises anything."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def latest(self, known: Any = (), report: Any = None) -> Latest | None:
        self.asked.append(asyncio.get_running_loop().time())
        raise self.error

    async def watch(self, known: Any = ()) -> bool:
        raise self.error


@pytest.mark.parametrize(
    "error", [SourceUnreachableError("x"), SourceRefusedError("size", "x"), OSError("x"), TimeoutError(), KeyError("x")]
)
def test_no_error_of_a_source_ends_it(error: Exception) -> None:
    async def main() -> None:
        source = Broken(error)
        async with World(source, loop_of_now()) as world:
            await asyncio.sleep(100)
            assert world.task is not None and not world.task.done()
            assert 8 <= len(source.asked) <= 14 and world.sync.state is State.EMPTY

    in_virtual_time(main())


def test_hints_without_end_cost_little() -> None:
    class Noisy(Source):
        async def watch(self, known: Any = ()) -> bool:
            return True

    async def main() -> None:
        source = Noisy(latest((1, 1)))
        async with World(source, loop_of_now()):
            await asyncio.sleep(100)
        assert len(source.asked) < 120

    in_virtual_time(main())


def test_a_disk_that_is_full_keeps_the_old_revision_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        source, gateway = Source(latest((1, 1))), Gateway("westeurope", keep=tmp_path)
        async with World(source, loop_of_now(), gateway=gateway) as world:
            await asyncio.sleep(1)
            with monkeypatch.context() as patch:
                patch.setattr("lbcore.state.write", _full)
                source.publish(latest((1, 2)))
                await asyncio.sleep(100)
                assert world.number == (1, 1) and world.sync.state is State.STALE and "No space" in world.sync.refused
            await asyncio.sleep(12 + SLACK)
            assert world.number == (1, 2) and world.sync.state is State.IN_SYNC

    in_virtual_time(main())


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_on_event_may_fail() -> None:
    async def main() -> None:
        gateway = Gateway("westeurope")
        sync = Sync(gateway, Source(latest((1, 1))), on_event=lambda kind, detail: 1 / 0)
        assert await sync.pull() is State.IN_SYNC
        assert json.loads(json.dumps(sync.as_dict()))["revision"] == "1.1"

    in_virtual_time(main())


@pytest.mark.parametrize("options", [{"interval": 0.0}, {"interval": float("nan")}, {"timeout": -1.0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="over 0"):
            Sync(Gateway("westeurope"), Source(), **options)

    in_virtual_time(main())


def test_the_documents_of_the_tests_differ() -> None:
    assert body("a") != body("b") and latest((1, 1)).tag != latest((1, 1), "b").tag
