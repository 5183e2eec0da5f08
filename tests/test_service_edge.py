"""Edges: which rotations are believed, what they make of a node's settings, what is kept, what is told to the primary."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from edging import MONITOR, SERVICE, Rotations, body, offer, region, rotation
from hypothesis import example, given, settings
from hypothesis import strategies as st
from syncing import in_virtual_time, loop_of_now

from lbcore.config import Settings, read
from lbcore.errors import ConfigError
from lbcore.service.configuration import Latest, SourceRefusedError, SourceUnreachableError
from lbcore.service.edge import Follower, Reporter, apart_from_switches, kept_rotations, settings_of
from lbcore.service.remote import Link
from lbcore.service.rotation_document import Rotation
from lbcore.service.sync import State

INTERVAL = 10.0
FILE = f"""
[service]
name = "{SERVICE}"
[http]
listen = "127.0.0.1:0"
[dns]
listen = "127.0.0.1:0"
[sync]
primary = "https://primary.example"
[latency]
prior = "distance"
[traffic_manager]
ttl = 7
[traffic_manager.monitor]
ca = "ca.pem"
max_concurrency = 9
interval_in_seconds = 99
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("edge")
    (folder / "ca.pem").write_text("")
    return read(FILE.encode(), folder / "edge.toml")


# ===== settings


def test_regions_and_routing_are_the_primarys_and_all_else_the_files(file: Settings) -> None:
    one = region("westeurope", "https://weu.example:8443", ["192.0.2.1", "2001:db8::1"], displayName="West Europe", units=3)
    two = region("southeastasia", "https://sea.example", [], enabled=False, draining=True)
    manager = {"properties": {
        "monitorConfig": MONITOR | {"path": "/health"}, "dnsConfig": {"ttl": 20}, "trafficRoutingMethod": "Priority",
        "endpoints": [{"region": "southeastasia", "priority": 2}, {"region": "West Europe", "priority": 1}],
    }}  # fmt: skip
    made = settings_of(file, rotation((3, 9), one, two, trafficManager=manager, domain="contoso.example"))
    first, second = made.regions
    assert (first.name, first.display_name, first.units, first.gateway) == ("westeurope", "West Europe", 3, "https://weu.example:8443")
    assert first.addresses == ("192.0.2.1", "2001:db8::1") and first.enabled and not second.enabled
    assert made.draining == {"southeastasia"} and made.ttl == 20 and made.document.service.domain == "contoso.example"
    assert made.document.traffic_manager.traffic_routing_method == "Priority"
    assert (made.monitor.path, made.monitor.interval, made.monitor.max_concurrency) == ("/health", 1, 9)
    assert made.monitor.ca == str(file.folder / "ca.pem"), "files are the node's own"
    assert made.document.latency.prior == "distance" and made.roles == file.roles and made.name == file.name
    assert settings_of(read(made.content, made.name), rotation((3, 9), one, two)).regions == made.regions


def test_what_differs_in_switches_alone_is_told_from_all_else(file: Settings) -> None:
    def made(*regions: Any, **more: Any) -> object:
        return apart_from_switches(settings_of(file, rotation((1, 1), *regions, **more)))

    plain = made(region(), region("eastus"))
    assert made(region(enabled=False), region("eastus", draining=True)) == plain
    for other in (
        made(region()), made(region(), region("westus2")), made(region("eastus"), region()), made(region(), region("eastus", units=2)),
        made(region(), region("eastus", addresses=["192.0.2.9"])), made(region(), region("eastus", gateway="http://x")),
        made(region(), region("eastus"), networkType="Internal"), made(region(), region("eastus"), domain="other.test"),
        made(region(), region("eastus"), trafficManager={"properties": {}}),
    ):  # fmt: skip
        assert other != plain


def test_every_region_has_a_host_name_of_its_own(file: Settings) -> None:
    made = settings_of(file, rotation((1, 1), region("westus2", "http://192.0.2.7:8081", []), region("eastus", "", ["192.0.2.8"])))
    assert made.hosts == {
        "contoso-westus2-01.regional.example.test": ("192.0.2.7",), "contoso-eastus-01.regional.example.test": ("192.0.2.8",)
    }  # fmt: skip
    assert settings_of(file, rotation((1, 1), networkType="Internal")).hosts == {}


def test_a_gateway_serves_before_its_region_is_listed_and_gets_nobody(tmp_path: Path) -> None:
    text = 'sync = {primary = "https://x"}\nhttp = {}\ngateway = {region = "East US"}\n[service]\nname = "contoso"\n'
    own = read(text.encode(), tmp_path / "edge.toml")
    alone = settings_of(own, None)
    assert [one.name for one in alone.regions] == ["eastus"] and alone.draining == {"eastus"} and alone.region("East US").enabled
    beside = settings_of(own, rotation())
    assert [one.name for one in beside.regions] == ["westeurope", "eastus"] and beside.draining == {"eastus"}
    listed = settings_of(own, rotation((1, 2), region(), region("eastus", units=4, enabled=False)))
    assert listed.draining == set() and listed.region("eastus").units == 4 and not listed.region("eastus").enabled
    text = text.replace("East US", "Moon") + '[[service.regions]]\nname = "moon"\nunits = 7\nlat = 1\nlon = 1\n'
    assert settings_of(read(text.encode(), tmp_path / "edge.toml"), rotation()).region("moon").units == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"service": "fabrikam"}, "service.name of this node, contoso"),
        ({"domain": "no domain"}, "DNS name"),
        ({"regions": []}, "at least one region"),
        ({"regions": [region("west\x1b[31m")]}, "letters, digits and hyphens"),
        ({"regions": [region(displayName="a\x1b[2Jb")]}, "printable"),
        ({"regions": [region(gateway="ftp://example")]}, "gateway"),
        ({"regions": [region(gateway="http://a b")]}, "gateway"),
        ({"trafficManager": {"properties": {"monitorConfig": {"intervalInSeconds": -1}}}}, "intervalInSeconds"),
        ({"trafficManager": {"properties": {"endpoints": [{"region": "eastus"}]}}}, "endpoints"),
        ({"trafficManager": {"properties": {"profiles": [{"name": "a", "endpoints": [{"profile": "a"}]}]}}}, "profiles"),
        ({"trafficManager": {"surprise": 1}}, "surprise"),
    ],
)
def test_what_no_node_can_serve_by_is_refused_with_its_place(file: Settings, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        settings_of(file, rotation((4, 2), **changes))
    assert all(violation.where.startswith("rotation 4.2: ") for violation in caught.value.violations)


# ===== follow


class World:
    """A Follower on virtual time, and what it was told to use."""

    def __init__(self, rotations: Rotations, folder: Path | None = None, **options: Any) -> None:
        self.rotations = rotations
        self.used: list[str] = []
        self.refusing: Exception | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.follower = Follower(
            rotations, self._use, kept_rotations(folder) if folder is not None else None, region="edge-1", interval=INTERVAL,
            clock=loop_of_now().time, draw=lambda: 0.5, on_event=lambda kind, detail: self.events.append((kind, detail)), **options,
        )  # fmt: skip

    async def _use(self, found: Rotation) -> None:
        if self.refusing is not None:
            raise self.refusing
        self.used.append(str(found.number))

    async def __aenter__(self) -> World:
        self.task = asyncio.create_task(self.follower.run())
        await asyncio.sleep(0.001)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def virtual(main: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on virtual time."""

    def test(tmp_path: Path) -> None:
        in_virtual_time(main(tmp_path))

    test.__name__ = main.__name__
    return test


@virtual
async def test_the_latest_is_used_and_a_hint_is_enough(folder: Path) -> None:
    rotations = Rotations(offer(body((1, 1))))
    async with World(rotations, folder) as world:
        assert world.used == ["1.1"] and world.follower.state is State.IN_SYNC
        rotations.publish(offer(body((1, 2))))
        await asyncio.sleep(1.1)  # a hint's pause; without one it would be 12 s
        assert world.used == ["1.1", "1.2"]
        await asyncio.sleep(3600)
        assert world.used == ["1.1", "1.2"] and world.follower.state is State.IN_SYNC
        assert [kind for kind, _ in world.events].count("RotationApplied") == 2
    assert [str(found.number) for found in kept_rotations(folder).read()] == ["1.2", "1.1"]


@virtual
async def test_of_rotations_that_follow_one_another_the_last_is_used(folder: Path) -> None:
    """What takes new workers waits half a second for more, but not for ever; what can be done at once is done at once."""
    rotations, soon = Rotations(offer(body((1, 1)))), list[tuple[float, str]]()
    clock = loop_of_now().time

    async def at_once(found: Rotation) -> bool:
        soon.append((clock(), str(found.number)))
        return not found.regions[0].draining

    async with World(rotations, folder, soon=at_once) as world:
        await asyncio.sleep(5)
        assert world.used == ["1.1"]
        began = clock()
        for number in range(2, 8):
            rotations.publish(offer(body((1, number))))
            await asyncio.sleep(0.3)
        await asyncio.sleep(2)
        assert world.used[-1] == "1.7" and len(world.used) <= 4 and soon[1][0] == began
        rotations.publish(offer(body((1, 8), region(draining=True))))
        await asyncio.sleep(2.1)
        assert world.used[-1] == "1.8"
        await asyncio.sleep(2)
        rotations.publish(offer(body((1, 9))))
        await asyncio.sleep(0.1)
        rotations.publish(offer(b"nonsense", (1, 10)))
        await asyncio.sleep(5)
        assert world.used[-1] == "1.9" and world.follower.refused
    assert [str(found.number) for found in kept_rotations(folder).read()][0] == "1.9"


@virtual
async def test_an_outage_changes_nothing_but_the_state(folder: Path) -> None:
    rotations = Rotations(offer(body((1, 1))))
    for mode in ("refuse", "hang"):
        async with World(rotations, folder) as world:
            rotations.mode = mode
            await asyncio.sleep(3600)
            assert world.used == ["1.1"] and world.follower.state is State.ORPHANED and world.follower.lag > 3500
            rotations.mode = "up"
            rotations.publish(offer(body((1, 1))))
            await asyncio.sleep(2 * INTERVAL + 10)
            assert world.follower.state is State.IN_SYNC and world.used == ["1.1"]


@virtual
async def test_nothing_older_is_taken_also_after_a_restart(folder: Path) -> None:
    rotations = Rotations(offer(body((2, 5))))
    async with World(rotations, folder):
        pass
    for older in (body((2, 4)), body((1, 9)), body((2, 5), region("eastus"))):
        rotations.publish(offer(older))
        world = World(rotations, folder)
        world.follower.rotation = world.follower.kept()[0]
        async with world:
            await asyncio.sleep(60)
            assert world.used == [] and world.follower.counters["refused_stale"] and world.follower.state is State.STALE
            rotations.publish(offer(body((3, 0))))
            await asyncio.sleep(60)
            assert world.used == ["3.0"] and world.follower.state is State.IN_SYNC
        for path in folder.glob("rotation-3-*"):
            path.unlink()


@virtual
async def test_one_that_cannot_be_used_is_not_asked_for_again_and_the_next_one_is(folder: Path) -> None:
    rotations = Rotations(offer(body((1, 1))))
    async with World(rotations, folder) as world:
        world.refusing = ConfigError([])
        rotations.publish(offer(body((1, 2))))
        await asyncio.sleep(100)
        assert world.follower.rotation is not None and str(world.follower.rotation.number) == "1.1"
        assert [kind for kind, _ in world.events].count("RotationRefused") == 1
        world.refusing = OSError("no memory")  # what may be gone at the next look
        rotations.publish(offer(body((1, 3))))
        await asyncio.sleep(30)
        world.refusing = None
        await asyncio.sleep(2 * INTERVAL)
        assert world.used == ["1.1", "1.3"]
    assert [str(found.number) for found in kept_rotations(folder).read()] == ["1.3", "1.1"], "what was never used is not kept"


@virtual
async def test_a_disk_that_is_full_stops_nothing_and_is_tried_again(folder: Path) -> None:
    blocked = folder / "state"
    blocked.write_text("a file where a folder should be")
    rotations = Rotations(offer(body((1, 1))))
    async with World(rotations, blocked) as world:
        assert world.used == ["1.1"] and world.follower.unkept
        blocked.unlink()
        await asyncio.sleep(2 * INTERVAL)
        assert not world.follower.unkept
    assert [str(found.number) for found in kept_rotations(blocked).read()] == ["1.1"]


def test_killed_while_writing_what_was_kept_is_there(tmp_path: Path) -> None:
    """Whoever said that a rotation is kept has kept it, and nothing else is damaged, whenever he is killed."""
    rng, number = random.Random(7), 0
    documents = [rotation((1, at), region(units=at + 1)) for at in range(400)]
    for _ in range(30):
        told, telling = os.pipe()
        child = os.fork()
        if not child:  # it must not come back into pytest
            try:
                for found in documents[number + 1 :]:
                    kept_rotations(tmp_path).keep(*found.number, found.document)
                    os.write(telling, b"%d\n" % found.number.sequence)
            finally:
                os._exit(1)
        os.close(telling)
        with os.fdopen(told, "rb") as lines:
            first = lines.readline()
            time.sleep(rng.random() * 0.01)  # any moment will do
            os.kill(child, signal.SIGKILL)
            last = int([first, *lines][-1])
        os.waitpid(child, 0)
        found = [*kept_rotations(tmp_path).read()]
        number = found[0].number.sequence
        numbers = [each.number.sequence for each in found]
        assert number in (last, last + 1) and numbers == [*range(number, number - len(found), -1)]
        assert min(5, number) <= len(found) <= 6 and all(each.document == documents[each.number.sequence].document for each in found)


def test_a_damaged_file_gives_way_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = kept_rotations(tmp_path)
    for number in (1, 2, 3):
        found = rotation((1, number))
        kept.keep(*found.number, found.document)
    (tmp_path / "rotation-1-3.json").write_bytes((tmp_path / "rotation-1-3.json").read_bytes()[:-7])
    swapped = (tmp_path / "rotation-1-1.json").read_bytes()
    (tmp_path / "rotation-1-9.json").write_bytes(swapped.replace(b'"units":1', b'"units":2'))
    assert [str(found.number) for found in kept_rotations(tmp_path).read()] == ["1.2", "1.1"]
    assert "rotation-1-9.json cannot be used" in caplog.text and "rotation-1-3.json cannot be used" in caplog.text


# ===== what may be offered


texts = st.text(max_size=20)
plain = st.none() | st.booleans() | st.integers() | st.floats() | texts
junk = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner), max_leaves=12)


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """Give a document with something in the place of some of its values."""
    made = body((2, draw(st.integers(0, 5))), region(), region("eastus", "http://192.0.2.5", []))
    places = [made, made["regions"][0], made["trafficManager"]["properties"], made["trafficManager"]["properties"]["monitorConfig"]]
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(places))
        place[draw(st.sampled_from(sorted(place)) | texts)] = draw(junk)
    return made


@settings(max_examples=60)
@given(st.lists(documents() | junk, min_size=1, max_size=5), st.booleans())
@example([{"regions": [[]] * 3}, body((2, 9), trafficManager=[[[]]])], False)
def test_whatever_is_offered_the_last_good_one_stays(file: Settings, offers: list[Any], lies: bool) -> None:
    """A Follower never raises, never goes back, and uses only what settings can be made of."""

    async def main() -> None:
        used: list[Rotation] = []

        async def use(found: Rotation) -> None:
            settings_of(file, found)
            used.append(found)

        rotations = Rotations(offer(body((1, 1))))
        follower = Follower(rotations, use, interval=INTERVAL, clock=loop_of_now().time)
        await follower.pull()
        for content in offers:
            data = json.dumps(content).encode()
            told = content if isinstance(content, dict) else {}
            number = [told.get(key) for key in ("epoch", "sequence")]
            sound = all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**53 for each in number)
            rotations.offered = offer(data, (number[0], number[1] + lies) if sound else (7, 7))  # type: ignore[operator,arg-type]
            await follower.pull()
            assert follower.rotation is used[-1]
            assert follower.rotation.document == data or follower.refused or follower.error
        assert [found.number for found in used] == sorted({found.number for found in used})
        rotations.offered = offer(body((9, 1)))
        assert await follower.pull() is State.IN_SYNC and used[-1].number == (9, 1)

    in_virtual_time(main())


nests = st.sampled_from([b"[" * 100_000, b'{"regions":' * 3000])


@given(st.binary(max_size=200) | nests | junk.map(lambda each: json.dumps(each).encode()))
def test_bytes_that_are_no_rotation_are_refused(data: bytes) -> None:
    async def main() -> None:
        used: list[Rotation] = []

        async def use(found: Rotation) -> None:
            used.append(found)

        follower = Follower(Rotations(offer(data, (1, 1))), use, clock=loop_of_now().time)
        await follower.pull()
        assert not used and follower.state is State.EMPTY and follower.refused

    in_virtual_time(main())


def test_a_tag_that_does_not_fit_its_document_is_refused() -> None:
    async def main() -> None:
        world = World(Rotations())
        sound = offer(body((1, 2)))
        assert sound.body is not None
        for wrong in (offer(sound.body, (1, 3)), Latest(sound.tag, sound.body + b" "), Latest(sound.tag)):
            world.rotations.offered = wrong
            await world.follower.pull()
            assert world.used == [] and world.follower.refused

    in_virtual_time(main())


# ===== report


async def test_a_report_goes_to_the_primary_and_nothing_that_it_answers_matters() -> None:
    taken, sent = list[Any](), list[dict[str, Any]]()
    refusal = {"error": {"code": "Unauthorized", "message": "x"}}
    answers: list[Any] = [httpx.Response(204), httpx.Response(500), httpx.Response(401, json=refusal)]
    answers += [httpx.ConnectError("refused"), httpx.Response(200, text="[" * 1000), httpx.Response(302), httpx.Response(204)]

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.method == "POST" and request.headers["authorization"] == "Bearer t"
        sent.append(json.loads(request.content))
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, stream=httpx.ByteStream(answer.content))

    async def look() -> dict[str, Any]:
        return {"rotation": "1.1", "regions": {}, "learned": "x" * (2_000_000 if len(sent) == 5 else 10)}

    link = Link("http://primary.test/reports", token="t", transport=httpx.MockTransport(handle))
    reporter = Reporter(link, "edge-1", look, taken=taken.append, clock=lambda: 5.0)
    assert [await reporter.report() for _ in range(7)] == [True, False, False, False, True, False, True]
    assert reporter.counters == {"sent": 3, "unreachable": 2, "refused": 2} and len(taken) == 3
    assert sent[0] == {"edge": "edge-1", "at": 5.0, "rotation": "1.1", "regions": {}, "learned": "x" * 10}
    assert "learned" not in sent[5], "a report of more than 1 MB leaves out what was learned"
    await link.close()


async def test_tokens_are_read_for_every_request_and_never_shown(tmp_path: Path) -> None:
    shown: list[str | None] = []

    def handle(request: httpx.Request) -> httpx.Response:
        shown.append(request.headers.get("authorization"))
        return httpx.Response(204, stream=httpx.ByteStream(b""))

    file = tmp_path / "token"
    link = Link("http://primary.test", token=file, transport=httpx.MockTransport(handle))
    with pytest.raises(SourceUnreachableError):
        await link.post(b"{}")
    for text in ("first\n", "second", "", "s3cret\nsecond line", "s3cret\x1b", "s3crét"):
        file.write_text(text, "latin-1")
        if "s3cr" not in text:
            await link.post(b"{}")
            continue
        with pytest.raises(SourceRefusedError) as caught:
            await link.post(b"{}")
        assert "s3cr" not in str(caught.value)
    assert shown == ["Bearer first", "Bearer second", None]
    await link.close()


def test_reports_come_every_two_seconds_and_at_once_when_somebody_waits() -> None:
    async def main() -> None:
        times: list[float] = []
        clock = loop_of_now().time

        async def look() -> dict[str, Any]:
            times.append(clock())
            return {}

        link = Link("http://primary.test", transport=httpx.MockTransport(lambda request: httpx.Response(204, stream=httpx.ByteStream(b""))))
        reporter = Reporter(link, "edge-1", look, clock=clock)
        task = asyncio.create_task(reporter.run())
        await asyncio.sleep(4.5)
        reporter.hurry()
        await asyncio.sleep(3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await link.close()
        assert times == pytest.approx([0, 2, 4, 4.5, 6.5])

    in_virtual_time(main())
