"""`lbcore run` that follows a primary: processes, a primary that dies and comes back, an edge that dies meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import dns.asyncquery
import dns.message
import dns.rdatatype
import httpx
import pytest
from edging import SERVICE, Primary, Rotations, body, offer, region
from running import Gateway, Load, Run, Start, alive, eventually, gateways, start
from syncing import Source, latest

from lbcore.service.reports import read_report

__all__ = ["start"]
pytestmark = pytest.mark.slow

NAME = f"{SERVICE}.example.test"


def edge(primary: Primary, more: str = "") -> str:
    """Give an edge's file."""
    return f"""
[service]
name = "{SERVICE}"
[http]
listen = "127.0.0.1:0"
workers = 2
[dns]
listen = "127.0.0.1:0"
[sync]
primary = "{primary.url}"
token = "token"
interval = 1.0
name = "edge-1"
{more}
"""


@asynccontextmanager
async def primary_of(rotations: Rotations, **options: Any) -> AsyncIterator[Primary]:
    primary = await Primary(rotations, **options).start()
    try:
        yield primary
    finally:
        await primary.kill()


def listed(one: Gateway, address: str, **more: Any) -> dict[str, Any]:
    return region(one.name, f"http://127.0.0.1:{one.port}", [address], **more)


def at(number: int, *regions: Mapping[str, Any], **more: Any) -> Any:
    return offer(body((1, number), *regions, **more))


async def begun(start: Start, text: str, serves: bool = True) -> Run:
    run = await start(text, serves=False, files={"token": "s3cret\n"})
    if serves:
        run.ready = await run.says("ready")
    return run


async def addresses(run: Run, name: str = NAME) -> tuple[int, set[str]]:
    """Ask DNS, as one client; gives the response's code and the addresses."""
    host, port = run.address("dns")
    response = await dns.asyncquery.udp(dns.message.make_query(name, "A"), host, port=port, timeout=5)
    return response.rcode(), {record.address for rrset in response.answer for record in rrset if rrset.rdtype == dns.rdatatype.A}


async def told(primary: Primary, number: int) -> dict[str, Any]:
    """Wait for a report of a rotation, and give it."""

    def found() -> Any:
        return [each for each in primary.rotations.reports if each["rotation"] == f"1.{number}"]

    return (await eventually(found))[-1]  # type: ignore[no-any-return]


def idle(primary: Primary, number: int) -> set[str] | None:
    """Give what the last report says is idle, None when it is of another rotation."""
    last = primary.rotations.reports[-1]
    return set(last["idle"]) if last["rotation"] == f"1.{number}" else None


async def test_switches_are_bits_and_all_else_takes_new_workers_and_no_call_is_lost(start: Start) -> None:
    async with gateways("westeurope", "eastus", "westus2") as made, primary_of(Rotations()) as primary:
        a, b, c = (listed(one, f"192.0.2.{number}") for number, one in enumerate(made, 1))
        primary.rotations.publish(at(1, a, b))
        run = await begun(start, edge(primary))
        first, ips = made[0], {"192.0.2.1": "westeurope", "192.0.2.2": "eastus", "192.0.2.3": "westus2"}
        async with Load(run.address()) as load:
            await load.more(50)
            for number, off in enumerate(({"enabled": False}, {"draining": True}, {"enabled": False, "draining": True}), 2):
                primary.rotations.publish(at(2 * number, a | off, b))
                assert (await run.says("rotation", 2 * number - 3))["how"] == "in the running workers"
                await asyncio.sleep(0.05)  # calls that were on their way there
                before = first.paths["/load?x"]
                await load.more(100)
                assert first.paths["/load?x"] == before, "a region that was taken out gets nobody"
                assert await addresses(run) == (0, {"192.0.2.2"}), "neither does DNS send anybody there"
                assert await addresses(run, f"{SERVICE}-westeurope-01.regional.example.test") == (0, {"192.0.2.1"})
                expected = {"westeurope"} if off.get("draining") else set[str]()
                await eventually(lambda number=number, expected=expected: idle(primary, 2 * number) == expected)
                primary.rotations.publish(at(2 * number + 1, a, b))
                assert (await run.says("rotation", 2 * number - 2))["serving"]["front-door"] == run.workers()
                assert await addresses(run) in [(0, {ip}) for ip in ips]
            primary.rotations.publish(at(10, c, b, a))
            assert (await run.says("rotation", 7))["how"] == "with new workers"
            assert await addresses(run, f"{SERVICE}-westus2-01.regional.example.test") == (0, {"192.0.2.3"})
            primary.rotations.publish(at(11, c))
            await run.says("rotation", 8)
            before = first.paths["/load?x"] + made[1].paths["/load?x"]
            await load.more(100)
            assert first.paths["/load?x"] + made[1].paths["/load?x"] == before
            assert await addresses(run) == (0, {"192.0.2.3"})
            await eventually(lambda: not any(alive(pid) for pid in run.workers()))
        assert load.lost == load.unconnected == 0 and load.statuses.keys() == {200}
        report = read_report("edge-1", await told(primary, 11), 0.0)
        assert report.regions.keys() == {"westus2"} and report.regions["westus2"].status == "up" and report.rotation == (1, 11)
        await eventually(lambda: any("learned" in each for each in primary.rotations.reports[-5:]))
        events = [event["region"] for each in primary.rotations.reports for event in each["events"]]
        assert events.count("westeurope") >= 6, "what happened is told"
        found = await run.metrics()
        assert found["lbcore_rotation_sequence"] == {("1",): 11} and found["lbcore_rotation_state"]["InSync",] == 1
        assert found["lbcore_rotation_lag_seconds"][()] < 30 and found["lbcore_reports_total"]["sent",] > 3


async def test_the_primary_dies_the_edge_dies_and_serves_on_and_catches_up(start: Start) -> None:
    async with gateways("westeurope", "eastus") as made:
        a, b = (listed(one, f"192.0.2.{number}") for number, one in enumerate(made, 1))
        primary = await Primary(Rotations(at(1, a, b))).start()
        run = await begun(start, edge(primary))
        primary.rotations.publish(at(2, a | {"enabled": False}, b))
        await run.says("rotation")
        await eventually(lambda: (run.file("state") / "rotation-1-2.json").exists())
        await primary.kill()
        while not (await run.metrics())["lbcore_rotation_state"]["Orphaned",]:
            await asyncio.sleep(0.1)
        os.killpg(run.child.pid, signal.SIGKILL)
        newest = run.file("state") / "rotation-1-3.json"
        newest.write_bytes(b"lbcore-rotation 1 damaged\n{}")
        run = await begun(start, edge(primary))
        await run.logs("rotation-1-3.json cannot be used")
        async with Load(run.address()) as load:
            await load.more(50)
            assert load.bodies.keys() == {b"eastus"} and await addresses(run) == (0, {"192.0.2.2"})
            primary.rotations.publish(at(1, a))  # an older one: a primary that lost its memory
            await primary.start()
            await run.logs("is older than 1.2")
            primary.rotations.publish(at(7, a))
            await run.says("rotation")
            await load.more(50)
            assert load.bodies[b"westeurope"] and await addresses(run) == (0, {"192.0.2.1"})
        assert load.lost == load.unconnected == 0 and load.statuses.keys() == {200}
        await primary.kill()


async def test_nothing_is_served_before_the_first_rotation_and_waiting_ends_when_told(start: Start) -> None:
    async with gateways("westeurope") as [one], primary_of(Rotations()) as primary:
        await primary.kill()
        run = await begun(start, edge(primary), serves=False)
        assert (await run.says("waiting"))["primary"] == primary.url
        run.signal(signal.SIGTERM)
        assert await run.ended() == 0
        run = await begun(start, edge(primary), serves=False)
        await run.says("waiting")
        await primary.start()
        assert "no service" in (await run.says("waiting", 2))["error"]
        primary.rotations.publish(at(1, listed(one, "192.0.2.1") | {"gateway": "ftp://nonsense"}))
        assert "rotation 1.1" in (await run.says("waiting", 3))["error"]
        primary.rotations.publish(at(2, listed(one, "192.0.2.1"), networkType="Internal"))
        run.ready = await run.says("ready")
        host, port = run.address()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://{host}:{port}/")).text == "westeurope", "the front door serves in any network"
        assert await addresses(run) == (0, set()) and (await addresses(run, f"x.{NAME}"))[0] == 3
        primary.rotations.publish(at(3, listed(one, "192.0.2.1")))
        await run.says("rotation")
        assert await addresses(run) == (0, {"192.0.2.1"})


async def test_reloads_go_beside_it_and_what_is_wrong_changes_nothing(start: Start) -> None:
    more = primary_of(Rotations(), token="other")
    async with gateways("westeurope", "eastus") as made, primary_of(Rotations()) as primary, more as second:
        a, b = (listed(one, f"192.0.2.{number}") for number, one in enumerate(made, 1))
        primary.rotations.publish(at(1, a | {"draining": True}, b))
        second.rotations.publish(at(5, a))
        run = await begun(start, edge(primary))
        async with Load(run.address()) as load:
            await load.more(20)
            for wrong in (edge(primary, "[gateway]\n"), edge(primary).replace("[sync]", "[detector]"), "no TOML"):
                run.file("lbcore.toml").write_text(wrong)
                run.signal(signal.SIGHUP)
            await run.says("reload-failed")
            primary.rotations.publish(at(2, a, b, trafficManager={"properties": {"monitorConfig": {"path": "no"}}}))
            await run.logs("revision 1.2 cannot be used")
            run.file("lbcore.toml").write_text(edge(primary).replace("workers = 2", "workers = 1") + RUN)
            run.signal(signal.SIGHUP)
            assert len((await run.says("reloaded"))["serving"]["front-door"]) == 1
            assert load.bodies.keys() == {b"eastus"} and await addresses(run) == (0, {"192.0.2.2"}), "draining, in the new workers, too"
            run.file("token").write_text("other")
            run.file("lbcore.toml").write_text(edge(second).replace("workers = 2", "workers = 1") + RUN)
            run.signal(signal.SIGHUP)
            await run.says("rotation")
            await load.more(20)
            assert load.bodies[b"westeurope"] and await addresses(run) == (0, {"192.0.2.1"})
        assert load.lost == load.unconnected == 0


RUN = '\n[run]\nmetrics = "127.0.0.1:0"\ngrace = 5.0\ndrain = 5.0\n'


async def test_a_gateway_follows_the_configuration_and_serves_it_while_the_primary_is_away(start: Start) -> None:
    source = Source(latest((1, 1), "a"))
    async with primary_of(Rotations(at(1, region("eastus"))), configurations=source) as primary:
        text = edge(primary).replace("[http]", '[gateway]\nregion = "westeurope"').replace('[dns]\nlisten = "127.0.0.1:0"', "")
        run = await begun(start, text)
        async with httpx.AsyncClient() as client:

            async def revision() -> str:
                host, port = run.address("gateway")
                return (await client.get(f"http://{host}:{port}/status-0123456789abcdef")).headers["x-lbcore-revision"]

            await run.says("configuration")
            assert await revision() == "1.1", "it serves before it is listed: only what serves is listed"
            primary.rotations.publish(at(2, region("westeurope", units=2), region("eastus")))
            assert (await run.says("rotation"))["how"] == "with new workers"
            source.publish(latest((1, 2), "b"))
            await run.says("configuration", 2)
            assert await revision() == "1.2"
            found = await run.metrics()
            assert found["lbcore_config_sequence"] == {("1", "westeurope"): 2} and found["lbcore_config_lag_seconds"]["westeurope",] < 30
            await eventually(lambda: source.told and source.told[-1].held == latest((1, 2), "b").tag)
            primary.rotations.publish(at(3, region("westeurope", units=2, enabled=False), region("eastus")))
            assert (await run.says("rotation", 2))["how"] == "with new workers", "its gateway is told that it is disabled"
            host, port = run.address("gateway")
            answer = await client.get(f"http://{host}:{port}/orders")
            assert answer.status_code == 503 and answer.headers["x-lbcore-gateway"] == "disabled"
            source.publish(latest((1, 3), "c"))
            await run.says("configuration", 3)
            await primary.kill()
            os.killpg(run.child.pid, signal.SIGKILL)
            run = await begun(start, text)
            assert await revision() == "1.3"
            await primary.start()
