"""`lbcore run`, the front door: workers that share what they learn, die, and are replaced; an end that loses nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections import Counter

import pytest
from running import Load, Start, alive, eventually, gateways, regions, start

__all__ = ["start"]
pytestmark = pytest.mark.slow

HTTP = '[http]\nlisten = "127.0.0.1:0"\n'


async def test_a_worker_that_is_killed_costs_its_calls_under_way_and_nothing_else(start: Start) -> None:
    async with gateways("westeurope", "eastus") as made:
        run = await start(regions(made) + HTTP + "workers = 2")
        victim, other = run.workers()
        async with Load(run.address(), clients=16) as load:
            await load.more(400)
            os.kill(victim, signal.SIGKILL)
            assert (await run.says("worker-ended"))["pid"] == victim
            new = await run.says("worker-started")
            await load.more(400)
            await load.stop()
        assert load.lost <= 16, "each client had one request under way"
        assert load.unconnected == 0, "its sockets are the other worker's meanwhile"
        found = await run.metrics()
        assert found["lbcore_worker_deaths_total"] == {("front-door",): 1}
        assert found["lbcore_workers"] == {("front-door",): 2}
        answered, lost = sum(found["lbcore_http_answered_total"].values()), found["lbcore_http_lost_total"][()]
        assert found["lbcore_http_begun_total"][()] == answered + lost
        assert abs(load.answered - answered) <= 16, "the kill falls between answering and counting, or between writing and arriving"
        assert sum(found["lbcore_http_answered_total"].values()) == load.answered
        assert found["lbcore_http_lost_total"][()] <= load.lost
        assert found["lbcore_http_under_way"] == {(): 0}
        assert alive(other) and alive(new["pid"])


async def test_connections_that_nobody_accepted_yet_outlive_the_worker_they_were_for(start: Start) -> None:
    """Both workers stand still while clients connect; then one is killed."""
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP + "workers = 2")
        victim, other = run.workers()
        for pid in (victim, other):
            os.kill(pid, signal.SIGSTOP)
        waiting = [await asyncio.open_connection(*run.address()) for _ in range(12)]
        for _, writer in waiting:
            writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        os.kill(victim, signal.SIGKILL)
        os.kill(other, signal.SIGCONT)
        async with asyncio.timeout(20):
            for reader, writer in waiting:
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.close()


async def test_what_one_worker_sees_fail_is_out_for_all(start: Start) -> None:
    """Probes see nothing of it: the status path answers, calls are hung up on."""
    async with gateways("westeurope", "eastus") as made:
        run = await start(regions(made) + HTTP + "workers = 2")
        async with Load(run.address(), clients=12) as load:
            await load.more(100)
            busy = max(made, key=lambda gateway: gateway.paths["/load?x"])
            idle = made[1 - made.index(busy)]
            await busy.kill()
            change = await run.says("change")
            assert change["region"] == busy.name and change["after"] in ("ejected", "down")
            await load.more(100)
            before = busy.paths.copy()
            await load.more(200)
            assert busy.paths == before
            assert idle.paths["/load?x"] > 200
            await busy.start()
        assert load.lost == 0
        assert load.statuses.keys() == {200}, "GETs are retried"


async def test_the_end_loses_nothing_under_load(start: Start) -> None:
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP + "workers = 2")
        async with Load(run.address(), clients=16) as load:
            await load.more(300)
            run.signal(signal.SIGTERM)
            assert await run.ended() == 0
            await eventually(lambda: load.unconnected)
            await load.stop()
        # What is sent while its idle connection is being closed crosses that on the way, and has come to nobody (RFC 9112 §9.6).
        assert load.answered == made[0].paths["/load?x"]
        assert not any(alive(pid) for pid in run.workers())


async def test_calls_under_way_at_the_end_have_the_grace(start: Start) -> None:
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP)
        made[0].mode = "hang"
        reader, writer = await asyncio.open_connection(*run.address())
        writer.write(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        await eventually(lambda: made[0].paths["/"])
        run.signal(signal.SIGTERM)
        await eventually(lambda: refused(run.address()))
        made[0].mode = "ok"
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert b"onnection: close" in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        assert await run.ended() == 0


def refused(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) != 0


async def test_workers_end_when_the_supervisor_is_killed(start: Start) -> None:
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP + "workers = 2")
        async with Load(run.address(), clients=8) as load:
            await load.more(100)
            run.signal(signal.SIGKILL)
            await run.ended()
            await eventually(lambda: not any(alive(pid) for pid in run.workers()))
            await load.stop()
        assert load.lost == 0, "they answered what they had"
        again = await start(regions(made) + HTTP.replace(":0", f":{run.address()[1]}"))
        assert again.address() == run.address(), "the port is free again"


async def test_metrics_add_up_over_workers_and_load_is_spread(start: Start) -> None:
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP + "workers = 2\naccess_log = \"calls.log\"\naccess_log_sample = 1\n")
        async with Load(run.address(), clients=32) as load:
            await load.more(2000)
        found = await run.metrics()
        assert found["lbcore_http_begun_total"] == {(): load.answered}
        assert found["lbcore_http_answered_total"] == {("westeurope", "2xx"): load.answered}
        assert found["lbcore_http_seconds_count"] == {("westeurope",): load.answered}
        assert "lbcore_http_failed_total" not in found
        log = run.file("calls.log")
        await eventually(lambda: len(log.read_text().splitlines()) == load.answered)
        by_worker = Counter(json.loads(line)["request_id"].partition("-")[0] for line in log.read_text().splitlines())
        assert len(by_worker) == 2
        assert min(by_worker.values()) > 0.05 * load.answered, "32 connections, each worker by chance a half of them"


async def test_an_address_that_is_taken_ends_with_5(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        run = await start("[[service.regions]]\nname = 'eastus'\n" + HTTP.replace(":0", f":{port}"), serves=False)
        assert await run.ended() == 5
        assert f"127.0.0.1 port {port}" in "".join(run.lines)


async def test_a_second_process_does_not_share_the_port_by_accident(start: Start) -> None:
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP)
        second = await start(regions(made) + HTTP.replace(":0", f":{run.address()[1]}"), serves=False)
        assert await second.ended() == 5


async def test_nothing_to_run_ends_with_2(start: Start) -> None:
    run = await start("[[service.regions]]\nname = 'eastus'\n", serves=False)
    assert await run.ended() == 2
    assert "nothing to run" in "".join(run.lines)
