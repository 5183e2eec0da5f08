"""`lbcore run`: the gateway and its documents, DNS on the shared table, the example that shows all of them."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path

import dns.asyncquery
import dns.message
import httpx
import pytest
from running import ROOT, WAIT, Load, Run, Start, gateways, start

__all__ = ["start"]
pytestmark = pytest.mark.slow

REGION = '[[service.regions]]\nname = "westeurope"\nunits = 2\n'
GATEWAY = '[gateway]\nregion = "westeurope"\nlisten = "127.0.0.1:0"\nworkers = 2\nconfiguration = "apis.json"\nkeep = "kept"\n'


def document(sequence: int, *policies: dict[str, object]) -> str:
    inbound = [*policies, {"policy": "mock-response", "body": f"revision {sequence}"}]
    return json.dumps({"epoch": 1, "sequence": sequence, "apis": [{"name": "hello", "path": "/load", "policies": {"inbound": inbound}}]})


def publish(run: Run, text: str) -> None:
    run.file("apis.json").write_text(text)
    run.signal(signal.SIGHUP)


async def test_documents_are_published_under_load_and_every_answer_is_of_one(start: Start) -> None:
    run = await start(REGION + GATEWAY, files={"apis.json": document(1)})
    async with Load(run.address("gateway"), clients=12) as load:
        for sequence in (2, 3, 4):
            await load.more(100)
            publish(run, document(sequence))
            assert (await run.says("reloaded", sequence - 1))["how"] == "in the running workers"
            settled = load.bodies.copy()
            await load.more(100)
            fresh = load.bodies - settled
            assert fresh[b"revision %d" % sequence] >= 88, "but for those under way when it was published"
        assert load.bodies.keys() == {b"revision %d" % n for n in (1, 2, 3, 4)}
    assert load.lost == load.unconnected == 0 and load.statuses.keys() == {200}
    found = await run.metrics()
    assert found["lbcore_gateway_revision"] == {("1",): 4}
    assert found["lbcore_gateway_answered_total"] == {("hello", "2xx"): load.answered}
    assert found["lbcore_gateway_capacity_percent"].keys() == {("avg", "westeurope"), ("max", "westeurope")}
    assert found["lbcore_scale_advice"].keys() == {("westeurope",)}


async def test_a_bad_document_changes_nothing_and_is_not_the_end_of_a_restart(start: Start) -> None:
    run = await start(REGION + GATEWAY, files={"apis.json": document(7)})
    bad = json.dumps({"epoch": 1, "sequence": 8, "apis": [{"name": "hello", "path": "load", "polices": {}}], "backend": []})
    publish(run, bad)
    errors = "\n".join((await run.says("reload-failed"))["errors"])
    assert "apis[0].path" in errors and "'policies'" in errors and "backend" in errors and "apis.json" in errors
    publish(run, document(6))
    assert "1.6" in "\n".join((await run.says("reload-failed", 2))["errors"]), "never back"
    assert await asked(run) == ("revision 7", "1.7")
    run.signal(signal.SIGTERM)
    assert await run.ended() == 0
    again = await start(REGION + GATEWAY, files={"apis.json": bad})
    assert await asked(again) == ("revision 7", "1.7"), "which was kept"
    assert await again.logs("which was kept")


async def asked(run: Run) -> tuple[str, str]:
    async with httpx.AsyncClient(timeout=WAIT) as client:
        answer = await client.get("http://{}:{}/load".format(*run.address("gateway")))
    return answer.text, answer.headers["x-lbcore-revision"]


async def test_rate_limits_count_over_all_workers_and_outlive_them(start: Start) -> None:
    limit = {"policy": "rate-limit", "calls": 20, "period": 3600, "by": "client"}
    run = await start(REGION + GATEWAY, files={"apis.json": document(1, limit)})
    async with Load(run.address("gateway"), clients=10) as load:
        await load.more(100)
    assert load.statuses[200] == 20 and load.statuses.keys() == {200, 429}
    run.file("lbcore.toml").write_text(run.file("lbcore.toml").read_text().replace("workers = 2", "workers = 1"))
    run.signal(signal.SIGHUP)
    assert (await run.says("reloaded"))["how"] == "with new workers"
    async with Load(run.address("gateway"), clients=10) as load:
        await load.more(50)
    assert load.statuses.keys() == {429}


async def test_only_some_roles(start: Start) -> None:
    text = REGION + GATEWAY + '[http]\nlisten = "127.0.0.1:0"\n'
    run = await start(text, "--only", "gateway", "--workers", "1", files={"apis.json": document(1)})
    assert run.ready["serving"].keys() == {"gateway"} and len(run.workers("gateway")) == 1
    for words, code in ((("--only", "dns"), 2), (("--only", "gatewy"), 2)):
        other = await start(text, *words, serves=False)
        assert await other.ended() == code


# ===== DNS


async def resolve(run: Run) -> list[str]:
    host, port = run.address("dns")
    answer = await dns.asyncquery.udp(dns.message.make_query("api.example.test", "A"), host, port=port, timeout=WAIT)
    return [str(rdata) for rrset in answer.answer for rdata in rrset]


async def test_dns_follows_what_front_doors_see_and_a_reload_loses_no_query(start: Start) -> None:
    async with gateways("westeurope", "northeurope") as made:
        text = '[service]\nname = "api"\ndomain = "example.test"\n'
        for number, one in enumerate(made, 1):
            text += f'[[service.regions]]\nname = "{one.name}"\ngateway = "http://127.0.0.1:{one.port}"\naddresses = ["192.0.2.{number}"]\n'
        text += '[traffic_manager.monitor]\npath = "/"\ninterval_in_seconds = 10\n'
        text += '[http]\nlisten = "127.0.0.1:0"\n[dns]\nlisten = "127.0.0.1:0"\n'
        run = await start(text)
        (address,) = await resolve(run)
        out = int(address[-1]) - 1
        async with Load(run.address(), clients=10) as load:
            await load.more(100)
            await made[out].kill()
            assert (await run.says("change"))["region"] == made[out].name
        async with asyncio.timeout(WAIT):
            while await resolve(run) != [f"192.0.2.{2 - out}"]:
                await asyncio.sleep(0.02)
        assert (await run.metrics())["lbcore_dns_queries_total"]["fast", "udp"] >= 2
        enough = asyncio.Event()
        asking = asyncio.create_task(ask_until(run, enough))
        run.file("lbcore.toml").write_text(text.replace("192.0.2.", "192.0.2.10") + '[run]\nmetrics = "127.0.0.1:0"\n')
        run.signal(signal.SIGHUP)
        await run.says("reloaded")
        async with asyncio.timeout(WAIT):
            while await resolve(run) != [f"192.0.2.10{2 - out}"]:
                await asyncio.sleep(0.02)
        enough.set()
        await asking
        await made[out].start()


async def ask_until(run: Run, enough: asyncio.Event) -> None:
    """Ask one query after the other; one without an answer is an exception."""
    while not enough.is_set():
        assert await resolve(run)


async def test_the_example_works_as_it_is(start: Start, tmp_path: Path) -> None:
    (tmp_path / "apis").symlink_to(ROOT / "examples" / "apis")
    text = re.sub(r"127\.0\.0\.1:(8080|9190|5353)", "127.0.0.1:0", (ROOT / "examples" / "edge.toml").read_text())
    text = text.replace("http://127.0.0.1:8081", "http://127.0.0.2:18081").replace('"127.0.0.1:8081"', '"127.0.0.2:18081"')
    run = await start(text)
    async with httpx.AsyncClient(timeout=WAIT) as client:
        answer = await client.get("http://{}:{}/hello/world".format(*run.address()), headers={"X-Lbcore-Explain": "1"})
    assert answer.status_code == 200 and answer.json() == {"hello": "from the gateway"}
    assert answer.headers["x-lbcore-region"] == "westeurope" and json.loads(answer.headers["x-lbcore-explain"])["region"] == "westeurope"
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert await resolve(run) == ["127.0.0.1"]
    found = await run.metrics()
    assert found["lbcore_http_answered_total"] == {("westeurope", "2xx"): 1}
    assert found["lbcore_gateway_answered_total"]["hello", "2xx"] == 1
    assert found["lbcore_workers"] == {("front-door",): 2, ("gateway",): 1, ("dns",): 1}
