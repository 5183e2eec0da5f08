"""`lbcore run` when things go wrong around it: workers that die together or stand still, signals too early, nobody who listens."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, load_pem_private_key
from mmdb_writer import MMDBWriter
from netaddr import IPSet
from running import ROOT, WAIT, Run, Start, eventually, gateways, regions, start

__all__ = ["start"]
pytestmark = pytest.mark.slow

HTTP = '[http]\nlisten = "127.0.0.1:0"\n'
GATEWAY = '[gateway]\nregion = "westeurope"\nlisten = "127.0.0.1:0"\n'
END = '[run]\nmetrics = "127.0.0.1:0"\ngrace = 1.0\ndrain = 1.0\n'


async def test_workers_that_die_together_are_all_replaced(start: Start) -> None:
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP + "workers = 3")
        pids = run.workers()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await run.says("worker-started", times=3)
        found = await run.metrics()
        assert found["lbcore_workers"] == {("front-door",): 3}
        assert found["lbcore_worker_deaths_total"] == {("front-door",): 3}


async def test_roles_come_and_go_with_the_file(start: Start) -> None:
    async with gateways("westeurope") as made:
        base = regions(made) + HTTP
        run = await start(base + GATEWAY + END)
        address, file = run.address("gateway"), run.file("lbcore.toml")
        file.write_text(base + END)
        run.signal(signal.SIGHUP)
        assert (await run.says("reloaded"))["serving"].keys() == {"front-door"}
        await eventually(lambda: not connects(address), "nobody serves it any more")
        file.write_text(base + GATEWAY + END)
        run.signal(signal.SIGHUP)
        assert (await run.says("reloaded", times=2))["serving"].keys() == {"front-door", "gateway"}


def connects(address: tuple[str, int]) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(address) == 0


async def test_only_holds_for_what_the_file_gets_later(start: Start) -> None:
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP + END, "--only", "front-door,front-door")
        run.file("lbcore.toml").write_text(regions(made) + HTTP + GATEWAY + END)
        run.signal(signal.SIGHUP)
        assert (await run.says("reloaded"))["serving"].keys() == {"front-door"}


# ===== signals before it serves


async def halted(start: Start, text: str) -> tuple[Run, int]:
    """Start it and stop its first worker before that is ready."""
    run = await start(text, serves=False)
    children = Path(f"/proc/{run.child.pid}/task/{run.child.pid}/children")
    first = int((await eventually(lambda: children.read_text().split()))[0])
    os.kill(first, signal.SIGSTOP)
    return run, first


async def test_a_reload_that_is_asked_for_at_the_start_comes_after_it(start: Start) -> None:
    async with gateways("westeurope") as made:
        run, worker = await halted(start, regions(made) + HTTP)
        run.signal(signal.SIGHUP)
        os.kill(worker, signal.SIGCONT)
        await run.says("reloaded")
        assert run.events("ready") and not run.events("reload-failed")


async def test_a_start_that_takes_forever_can_be_ended(start: Start) -> None:
    async with gateways("westeurope") as made:
        run, worker = await halted(start, regions(made) + HTTP)
        run.signal(signal.SIGTERM)
        assert await run.ended() == 0
        assert not run.events("ready") and not Path(f"/proc/{worker}").exists()


# ===== who listens


async def test_standard_output_that_nobody_reads_any_more_ends_nothing(tmp_path: Path) -> None:
    async with gateways("westeurope") as made:
        file = tmp_path / "lbcore.toml"
        file.write_text(regions(made) + HTTP + '[run]\nmetrics = "127.0.0.1:0"\ngrace = 1.0\n')
        command = [sys.executable, "-m", "lbcore", "run", str(file), "--json"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            try:
                run = Run(child, tmp_path / "none")
                assert child.stdout is not None
                run.ready = json.loads(await asyncio.to_thread(child.stdout.readline))
                child.stdout.close()
                for died in (1, 2):
                    before = (await children(child.pid))[0]
                    os.kill(before, signal.SIGKILL)
                    while (await run.metrics())["lbcore_worker_deaths_total"] != {("front-door",): died}:
                        await asyncio.sleep(0.02)
                    while (await run.metrics())["lbcore_workers"] != {("front-door",): 1}:
                        await asyncio.sleep(0.02)
                child.terminate()
                assert await run.ended() == 0
            finally:
                child.kill()


async def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_metrics_are_shown_while_a_worker_stands_still(start: Start) -> None:
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP + "workers = 2")
        os.kill(run.workers()[0], signal.SIGSTOP)
        assert (await run.metrics())["lbcore_workers"] == {("front-door",): 2}
        os.kill(run.workers()[0], signal.SIGCONT)


async def test_metrics_on_an_ipv6_address_are_named_as_a_url_has_them(start: Start) -> None:
    with socket.socket(socket.AF_INET6) as trial:
        try:
            trial.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
    async with gateways("westeurope") as made, httpx.AsyncClient(timeout=WAIT) as client:
        run = await start(regions(made) + '[http]\nlisten = "[::1]:0"\n' + END.replace("127.0.0.1", "[::1]"))
        assert (await client.get(f"http://{run.ready['metrics']}/metrics")).status_code == 200
        address = run.ready["serving"]["front-door"]["addresses"][0]
        assert (await client.get(f"http://{address}/")).text == "westeurope"


async def test_a_broken_database_is_refused_as_often_as_it_is_tried(start: Start, tmp_path: Path) -> None:
    writer = MMDBWriter(6, "Test-City", float_type="f64")
    writer.insert_network(IPSet(["2001:db8::/32"]), {"location": {"latitude": 50.0, "longitude": 8.0}})
    writer.to_db_file(str(tmp_path / "clients.mmdb"))
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP + END + '[latency]\ndatabase = "clients.mmdb"\n')
        run.file("clients.mmdb").write_bytes(b"not a database")
        for times in (1, 2):
            run.signal(signal.SIGHUP)
            await run.says("reload-failed", times)
        assert not run.events("reloaded")


async def test_only_that_names_nothing_is_refused(start: Start) -> None:
    for only in (",", "front-door,", "gateway"):
        run = await start("[[service.regions]]\nname = 'eastus'\n" + HTTP, "--only", only, serves=False)
        assert await run.ended() == 2
        assert "--only" in "".join(run.lines)


# ===== what is odd in the file


async def test_a_region_of_any_name_can_be_explained(start: Start) -> None:
    async with gateways("westeurope") as made, httpx.AsyncClient(timeout=WAIT) as client:
        text = regions(made).replace('name = "westeurope"', 'name = "Zürich \\"1\\""\nlat = 47.4\nlon = 8.5')
        run = await start(text + HTTP + 'explain_to = ["127.0.0.0/8"]\n')
        found = await client.get("http://{}:{}/".format(*run.address()), headers={"X-Lbcore-Explain": "1"})
        assert 'desc="z\\u00fcrich\\"1\\""' in found.headers["server-timing"] and "x-lbcore-explain" in found.headers
        assert (await run.metrics())["lbcore_http_exceptions_total"] == {(): 0}
        run.file("lbcore.toml").write_text(text + HTTP + GATEWAY.replace("westeurope", 'Zürich \\"1\\"') + END)
        run.signal(signal.SIGHUP)
        assert "ASCII" in "".join((await run.says("reload-failed"))["errors"])


async def test_a_document_that_cannot_be_kept_is_served_at_the_start_all_the_same(start: Start) -> None:
    document = {"epoch": 1, "sequence": 1, "apis": [{"name": "a", "path": "/a"}]}
    document["policies"] = {"inbound": [{"policy": "mock-response", "status": 200}]}
    region = "[[service.regions]]\nname = 'westeurope'\n"
    kept = GATEWAY + 'configuration = "apis.json"\nkeep = "apis.json"\n'
    run = await start(region + kept, files={"apis.json": json.dumps(document)})
    async with httpx.AsyncClient(timeout=WAIT) as client:
        found = await client.get("http://{}:{}/a".format(*run.address("gateway")))
    assert (found.status_code, found.headers["x-lbcore-revision"]) == (200, "1.1")
    assert (await run.metrics())["lbcore_gateway_overloaded_total"] == {(): 0}
    assert "not kept" in await run.logs("gateway.keep")


async def test_a_key_with_a_passphrase_is_refused_by_name_and_asks_nobody(start: Start) -> None:
    made = trustme.CA().issue_cert("localhost")
    key = load_pem_private_key(made.private_key_pem.bytes(), None)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")).decode()
    text = "[[service.regions]]\nname = 'westeurope'\n" + HTTP + 'listen_tls = "127.0.0.1:0"\ncertificate = "c.pem"\nkey = "k.pem"\n'
    run = await start(text, serves=False, files={"c.pem": made.cert_chain_pems[0].bytes().decode(), "k.pem": secret})
    assert await run.ended() == 2
    assert "k.pem" in "".join(run.lines)
