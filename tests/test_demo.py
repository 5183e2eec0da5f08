"""The demo: its numbers, the API behind its gateways, what ends it all, and its story, played in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from lbcore.demo import guard
from lbcore.demo.backend import REGION, answer
from lbcore.demo.places import CLIENTS, PRIMARY, REGIONS, SAME_METRO_MS, Client, round_trip, round_trips
from lbcore.demo.story import KILLED, REMOVED
from lbcore.demo.world import Node, NotStartedError
from lbcore.region import catalogue
from lbcore.sense.geo import GeoIP, published_ms

ROOT = Path(__file__).parent.parent
DEMO = [sys.executable, "-m", "lbcore", "demo"]
linux = pytest.mark.skipif(sys.platform != "linux", reason="every gateway needs a loopback address of its own")


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ===== places


def test_every_round_trip_is_published_or_within_a_metro() -> None:
    for _, _, origin in CLIENTS:
        for region in REGIONS:
            assert round_trip(origin, region) == (published_ms(origin, region) if origin != region else SAME_METRO_MS)


def test_clients_are_located_near_their_origin_on_six_continents() -> None:
    geo = GeoIP()
    found = {city: geo.locate(address) for city, address, _ in CLIENTS}
    countries = {place.country for place in found.values() if place}
    assert None not in found.values()
    assert {"US", "CA", "MX", "BR", "GB", "FR", "PL", "IL", "ZA", "AE", "IN", "MY", "ID", "KR", "JP", "AU", "NZ"} == countries
    assert len({geo.map.lookup(address) for _, address, _ in CLIENTS}) == len(CLIENTS)


def test_every_region_of_the_story_is_somebodys_closest() -> None:
    clients = [Client(*each) for each in CLIENTS]
    assert {client.rank(REGIONS)[0] for client in clients} == {*REGIONS}
    assert len({PRIMARY, KILLED, REMOVED}) == 3


def test_whatever_region_a_user_adds_is_as_far_from_everybody_as_it_should_be() -> None:
    trips = round_trips()
    assert trips.keys() == {address for _, address, _ in CLIENTS}
    assert all(row.keys() == catalogue().keys() and min(row.values()) > 0 for row in trips.values())


# ===== backend


@asynccontextmanager
async def backend(trips: dict[str, dict[str, float]]) -> AsyncIterator[httpx.AsyncClient]:
    served: list[asyncio.Task[None]] = []
    server = await asyncio.start_server(lambda *streams: served.append(asyncio.ensure_future(answer(trips, *streams))), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            yield client
        await asyncio.gather(*served)


async def test_the_backend_answers_as_late_as_client_and_region_are_apart() -> None:
    async with backend({"192.0.2.1": {"westus2": 60.0}}) as client:
        for region, delay in (("westus2", 0.06), ("westeurope", 0.0)):
            began = time.monotonic()
            response = await client.get("/7", headers={"x-forwarded-for": "192.0.2.1, 127.0.0.1", REGION: region})
            assert time.monotonic() - began >= delay
            assert (response.status_code, response.json()) == (200, {"client": "192.0.2.1", "region": region})


# ===== guard


@linux
def test_the_guard_ends_what_a_demo_started_and_what_that_started_when_the_demo_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    starts = f"import subprocess, time; subprocess.Popen({sleeps!r}, start_new_session=True); time.sleep(600)"
    code = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {guard.__file__!r}, {str(folder)!r}], stdin=subprocess.PIPE, start_new_session=True)\n"
        f"os.environ[{guard.MARK!r}] = {str(folder)!r}\n"
        f"subprocess.Popen([sys.executable, '-c', {starts!r}], start_new_session=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as demo:
        until(lambda: len([*guard.marked(str(folder))]) == 2)
        demo.kill()
    until(lambda: not folder.exists())
    assert [*guard.marked(str(folder))] == []


@linux
def test_the_guard_leaves_others_alone(tmp_path: Path) -> None:
    mine, other = str(tmp_path / "1"), str(tmp_path / "11")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=os.environ | {guard.MARK: other}) as process:
        until(lambda: [*guard.marked(other)] == [process.pid])
        assert guard.end(mine)
        assert process.poll() is None


# ===== nodes


@pytest.mark.slow
async def test_a_node_that_does_not_start_says_why(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text("[http]\nlisten = 7\n")
    node = Node(file)
    with pytest.raises(NotStartedError, match=r"lbcore run edge\.toml ended: .*http\.listen"):
        await node.start()
    await node.kill()


# ===== the whole


def left(folder: Path) -> list[str]:
    """Give what a demo with this folder for temporary files has left: files and processes."""
    sign, found = f"{guard.MARK}={folder}".encode(), [str(path) for path in folder.iterdir()]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if sign in (entry / "environ").read_bytes():
                found.append(f"process {entry.name}")
    return found


@pytest.mark.heavy
@linux
def test_the_story_comes_out_right(tmp_path: Path) -> None:
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([*DEMO, "--once", "--json"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    assert done.stderr == ""
    story = json.loads(done.stdout)
    assert story["problems"] == []
    assert (done.returncode, story["ok"]) == (0, True)
    assert (story["lost"], story["unanswered"]) == (0, 0)
    assert story["requests"] > 500
    assert story["dns_queries"] > 200
    assert len(story["chapters"]) == 9
    assert all(chapter["seen"] and chapter["promised"] for chapter in story["chapters"])
    clients = {city: Client(city, address, origin) for city, address, origin in CLIENTS}
    regions = [region for region in REGIONS if region != REMOVED]
    for city, seen in story["clients"].items():
        assert clients[city].is_close(seen["dns"], regions)
        assert clients[city].is_close(seen["http"], regions)
    assert left(tmp_path) == []


@pytest.mark.slow
@linux
@pytest.mark.parametrize(("options", "number"), [([], signal.SIGINT), (["--once"], signal.SIGINT), (["--once"], signal.SIGKILL)])
def test_however_it_is_ended_nothing_is_left(options: list[str], number: signal.Signals, tmp_path: Path) -> None:
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen([*DEMO, *options], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout
        assert demo.stderr
        said = []
        while not said or "by one Save" not in said[-1]:
            said.append(demo.stdout.readline())
            assert said[-1], [*said, demo.stderr.read()]
        assert left(tmp_path)
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=40)
    expected = -signal.SIGKILL if number == signal.SIGKILL else 130 if options else 0
    assert (demo.returncode, errors) == (expected, "")
    until(lambda: not left(tmp_path))
