"""`lbcore run` and SIGHUP: what is wrong changes nothing, what is right costs no call; certificates, logs, regions."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from pathlib import Path

import pytest
import trustme
from running import Load, Run, Start, alive, eventually, gateways, regions, start

__all__ = ["start"]
pytestmark = pytest.mark.slow

HTTP = '[http]\nlisten = "127.0.0.1:0"\nworkers = 2\n'
RUN = '\n[run]\nmetrics = "127.0.0.1:0"\ngrace = 5.0\ndrain = 5.0\n'


def rewrite(run: Run, text: str) -> None:
    run.file("lbcore.toml").write_text(text if "[run]" in text else text + RUN)
    run.signal(signal.SIGHUP)


async def test_a_bad_file_is_logged_whole_and_changes_nothing(start: Start) -> None:
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP)
        async with Load(run.address()) as load:
            await load.more(50)
            rewrite(run, regions(made) + HTTP + 'patience = "long"\nworkes = 3\n[gateway]\nregion = "westeurop"\n')
            errors = "\n".join((await run.says("reload-failed"))["errors"])
            assert "http.patience" in errors and "http.workes" in errors and "'workers'" in errors
            rewrite(run, "this is no TOML")
            await run.says("reload-failed", 2)
            rewrite(run, regions(made) + HTTP + 'listen_tls = "127.0.0.1:0"\ncertificate = "lbcore.toml"\nkey = "lbcore.toml"\n')
            await run.says("reload-failed", 3)
            await load.more(50)
        assert load.lost == load.unconnected == 0
        assert all(alive(pid) for pid in run.workers())
        assert (await run.metrics())["lbcore_reloads_total"] == {("ok",): 0, ("failed",): 3}


async def test_another_region_is_served_by_new_workers_and_no_call_is_lost(start: Start) -> None:
    async with gateways("westeurope", "northeurope") as (first, second):
        run = await start(regions([first]) + HTTP)
        async with Load(run.address(), clients=12) as load:
            await load.more(200)
            rewrite(run, regions([second]) + HTTP)
            new = (await run.says("reloaded"))["serving"]["front-door"]
            assert not {*new} & {*run.workers()}
            await eventually(lambda: not any(alive(pid) for pid in run.workers()))
            before = first.paths["/load?x"]
            await load.more(200)
            assert first.paths["/load?x"] == before
        assert load.lost == load.unconnected == 0
        assert load.statuses.keys() == {200}
        found = await run.metrics()
        assert found["lbcore_http_begun_total"][()] == load.answered, "counters of the workers before are kept"
        assert found["lbcore_workers"] == {("front-door",): 2}


async def test_what_was_learned_outlives_the_workers(start: Start) -> None:
    """A region that is down is down in the next generation before any probe has failed again."""
    async with gateways("westeurope", "eastus") as (first, second):
        run = await start(regions([first, second]) + HTTP)
        await second.kill()
        while (await run.metrics())["lbcore_region_status"]["eastus", "down"] == 0:
            await asyncio.sleep(0.1)
        rewrite(run, regions([first, second]).replace("interval_in_seconds = 1", "interval_in_seconds = 10") + HTTP)
        await run.says("reloaded")
        assert (await run.metrics())["lbcore_region_status"]["eastus", "down"] == 1
        await second.start()


async def test_another_number_of_workers_and_another_address(start: Start) -> None:
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP)
        address = run.address()
        async with Load(address) as load:
            await load.more(50)
            rewrite(run, regions(made) + '[http]\nlisten = ["127.0.0.1:0", "127.0.0.2:0"]\nworkers = 1\n')
            assert len((await run.says("reloaded"))["serving"]["front-door"]) == 1
            await load.more(50)
            rewrite(run, regions(made) + HTTP.replace("workers = 2", "workers = 3"))
            assert len((await run.says("reloaded", 2))["serving"]["front-door"]) == 3
            await load.more(50)
        assert load.lost == load.unconnected == 0, "one worker took what waited in both sockets"


async def test_the_same_file_again_reaches_the_running_workers(start: Start) -> None:
    async with gateways("westeurope") as made:
        text = regions(made) + HTTP + 'access_log = "calls.log"\naccess_log_sample = 1\n'
        run = await start(text)
        async with Load(run.address()) as load:
            await load.more(50)
            log, moved = run.file("calls.log"), run.file("calls.log.1")
            log.rename(moved)
            rewrite(run, text)
            assert (await run.says("reloaded"))["how"] == "in the running workers"
            await load.more(50)
        await eventually(lambda: len(log.read_text().splitlines()) + len(moved.read_text().splitlines()) == load.answered)
        assert len(log.read_text().splitlines()) >= 42
        line = json.loads(log.read_text().splitlines()[-1])
        assert line["path"] == "/load" and line["to"] == "westeurope" and line["bytes"] == 10 and line["status"] == 200
        assert all(alive(pid) for pid in run.workers())


def write_certificate(authority: trustme.CA, folder: Path) -> bytes:
    made = authority.issue_cert("localhost")
    folder.joinpath("edge.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    folder.joinpath("edge.key").write_bytes(made.private_key_pem.bytes())
    return ssl.PEM_cert_to_DER_cert(made.cert_chain_pems[0].bytes().decode())


async def test_certificates_are_replaced_while_connections_go_on(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    first = write_certificate(authority, tmp_path)
    async with gateways("westeurope") as made:
        text = regions(made) + '[http]\nlisten = []\nlisten_tls = "127.0.0.1:0"\ncertificate = "edge.pem"\nkey = "edge.key"\nworkers = 2\n'
        run = await start(text)

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
            reader, writer = await asyncio.open_connection(*run.address(), ssl=trusting, server_hostname="localhost")
            return reader, writer, writer.get_extra_info("ssl_object").getpeercert(True)

        reader, writer, seen = await connect()
        assert seen == first
        second = write_certificate(authority, tmp_path)
        rewrite(run, text)
        assert (await run.says("reloaded"))["how"] == "in the running workers"
        for _ in range(4):
            _, other, seen = await connect()
            assert seen == second
            other.transport.abort()
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.transport.abort()
        tmp_path.joinpath("edge.key").write_text("no key")
        rewrite(run, text)
        assert "edge.key" in "".join((await run.says("reload-failed"))["errors"]) or run.events("reload-failed")
        _, other, seen = await connect()
        assert seen == second
        other.transport.abort()


async def test_many_signals_are_one_more_reload(start: Start) -> None:
    async with gateways("westeurope") as made:
        run = await start(regions(made) + HTTP)
        for _ in range(20):
            run.signal(signal.SIGHUP)
        await run.says("reloaded")
        await asyncio.sleep(0)
        run.signal(signal.SIGTERM)
        assert await run.ended() == 0
        assert len(run.events("reloaded")) <= 3
