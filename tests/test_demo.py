"""The demo: its gateways, its numbers, and its story, played in a process of its own."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from lbcore.demo.gateway import ORIGIN
from lbcore.demo.world import CLIENTS, REGIONS, SAME_METRO_MS, GatewayProcess, World, round_trip
from lbcore.sense.geo import GeoIP, published_ms

ROOT = Path(__file__).parent.parent
DEMO = [sys.executable, "-m", "lbcore", "demo"]


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
    assert len(REGIONS) >= 5


@pytest.mark.slow
async def test_a_gateway_delays_fails_dies_and_returns_to_its_port() -> None:
    gateway = GatewayProcess("westeurope")
    await gateway.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}") as client:
            began = time.monotonic()
            answer = await client.get("/", headers={ORIGIN: "uaenorth"})
            assert time.monotonic() - began >= round_trip("uaenorth", "westeurope") / 1000
            assert (answer.status_code, answer.json()) == (200, {"region": "westeurope"})
            gateway.change("503", status=503)
            await wait_for_status(client, 503)
            await gateway.kill()
            with pytest.raises(httpx.TransportError):
                await client.get("/")
            await gateway.start()
            assert str(client.base_url) == f"http://127.0.0.1:{gateway.port}"
            await wait_for_status(client, 200)
    finally:
        await gateway.kill()


async def wait_for_status(client: httpx.AsyncClient, status: int) -> None:
    async with asyncio.timeout(10):
        while (await client.get("/")).status_code != status:
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_world_serves_everybody_and_ends_without_leftovers() -> None:
    async with asyncio.timeout(30):
        async with World() as world:
            while not all(client.by_dns == client.by_http == world.at(client) for client in world.clients):
                await asyncio.sleep(0.05)
            assert world.lost_since(0.0) == 0
            assert world.unanswered == 0
            ports = [gateway.port for gateway in world.gateways.values()]
        for port in [*ports, world.dns[1]]:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.slow
def test_the_story_comes_out_right() -> None:
    began = time.monotonic()
    done = subprocess.run([*DEMO, "--once", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert time.monotonic() - began < 90
    assert done.stderr == ""
    story = json.loads(done.stdout)
    assert story["problems"] == []
    assert (done.returncode, story["ok"]) == (0, True)
    assert set(story["clients"]) == {city for city, _, _ in CLIENTS}
    slow, killed, failing = story["chapters"]
    assert (slow["status"], killed["status"], failing["status"]) == ("up", "ejected", "ejected")
    assert slow["lost"] == killed["lost"] == 0
    assert 0 < failing["lost"] == story["lost"] < failing["sent"] / 4
    for chapter in (slow, killed, failing):
        assert chapter["noticed"] < 25
        assert chapter["all_back"] < 46
        assert chapter["moved"]
        assert chapter["region"] not in chapter["moved"].values()


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--once"]])
def test_an_interrupt_ends_it_quietly(options: list[str]) -> None:
    with subprocess.Popen([*DEMO, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout
        while "there:" not in (line := demo.stdout.readline()):
            assert line or demo.poll() is None
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=20)
    assert (demo.returncode, errors) == (130 if options else 0, "")
