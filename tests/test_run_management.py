"""The management plane of `lbcore run`: a process of its own that is kept, reloaded, ended; with real gateways on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from running import ROOT, Load, Run, Start, alive, eventually, start

from lbcore.cli.checking import check_all
from lbcore.config import load
from lbcore.errors import ConfigError
from lbcore.service import tokens
from lbcore.service.local import process_of
from lbcore.service.store import Store

__all__ = ["start"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="other systems have only 127.0.0.1")]

SERVICE = "/services/contoso"
FILE = """
[service]
name = "contoso"
[service.primary]
name = "West US 2"
[traffic_manager.monitor]
interval_in_seconds = 0.5
timeout_in_seconds = 0.4
[management]
listen = "127.0.0.1:0"
hold = 0
drain = 1
provisioner = { kind = "local", port = 0, interval = 0.2, grace = 0.5 }
MORE
[run]
metrics = ""
grace = 2
"""


CLIENTS: list[httpx.Client] = []


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    while CLIENTS:
        CLIENTS.pop().close()
    for lock in (tmp_path / "regions").glob("*.lock"):
        if (process := process_of(lock)) is not None:
            os.kill(process, signal.SIGKILL)


def text(more: str = "", extra: str = "") -> str:
    return FILE.replace("MORE", more) + extra


def token(run: Run, role: str = "owner") -> str:
    with Store(run.file("service.sqlite")) as store:
        return tokens.issue(store, role, "test", who="test")


class Api:
    """What a token's owner asks of a management plane."""

    def __init__(self, run: Run, role: str = "owner", **options: Any) -> None:
        scheme = "https" if "verify" in options else "http"
        host, port = run.address("management")
        headers = {"authorization": f"Bearer {token(run, role)}"}
        self.client = httpx.Client(base_url=f"{scheme}://{host}:{port}", headers=headers, timeout=20, trust_env=False, **options)
        CLIENTS.append(self.client)

    def get(self, path: str = "", status: int = 200) -> Any:
        answer = self.client.get(SERVICE + path)
        assert answer.status_code == status, answer.text
        return answer.json()

    def stands(self) -> str:
        with contextlib.suppress(httpx.TransportError):
            return str(self.get()["properties"]["provisioningState"])
        return ""


async def test_the_first_service_runs_and_the_plane_comes_back_when_it_dies(start: Start, tmp_path: Path) -> None:
    run = await start(text())
    api = Api(run)
    await eventually(lambda: api.stands() == "Succeeded")
    (address,) = api.get()["properties"]["publicIPAddresses"]
    assert re.fullmatch(r"127\.0\.\d+\.\d+", address)
    assert (tmp_path / "regions" / "westus2.token").stat().st_mode & 0o777 == 0o600
    await eventually(lambda: api.get("/operations")["value"][0]["status"] == "Succeeded")  # whose end is another ETag
    etag, gateway = api.get()["etag"], process_of(tmp_path / "regions" / "westus2.lock")
    row = {"properties": {"additionalLocations": [{"location": "westeurope"}]}}
    answer = api.client.patch(SERVICE, json=row, headers={"if-match": f'"{etag}"'})
    assert answer.status_code == 202
    await eventually(lambda: '"PATCH"' in (tmp_path / "audit.log").read_text())
    os.kill(run.workers("management")[0], signal.SIGKILL)  # whatever it was at
    assert (await run.says("worker-ended"))["code"] == -signal.SIGKILL
    await run.says("worker-started")
    await eventually(lambda: api.stands() == "Succeeded")
    assert [row["name"] for row in api.get()["properties"]["additionalLocations"]] == ["westeurope"]
    assert process_of(tmp_path / "regions" / "westus2.lock") == gateway  # the data plane has not noticed
    rotation = httpx.get(
        f"http://127.0.0.1:{run.address('management')[1]}/services/contoso/rotation", trust_env=False,
        headers={"authorization": f"Bearer {(tmp_path / 'regions' / 'westeurope.token').read_text().strip()}"},
    )  # fmt: skip
    assert [one["name"] for one in rotation.json()["regions"]] == ["westus2", "westeurope"]
    async with httpx.AsyncClient(base_url=api.client.base_url, headers=api.client.headers, timeout=30, trust_env=False) as client:
        held = {"if-none-match": rotation.headers["etag"], "prefer": "wait=30"}
        waiting = asyncio.create_task(client.head(f"{SERVICE}/rotation", headers=held))
        await asyncio.sleep(0.5)
        run.signal(signal.SIGTERM)
        assert (await waiting).status_code == 503  # who waits for a change is told, and not cut off
    assert (await run.says("left"))["gateways"]["westus2"] == gateway
    assert await run.ended() == 0 and not [line for line in run.lines if "Traceback" in line]
    assert process_of(tmp_path / "regions" / "westus2.lock") == gateway  # nor that nobody manages any more
    with Store(tmp_path / "service.sqlite") as store, store.lease():
        pass


async def test_settings_of_its_own_take_another_process_at_the_same_address(start: Start, tmp_path: Path) -> None:
    run = await start(text())
    api = Api(run)
    await eventually(lambda: api.stands() == "Succeeded")
    (first,) = run.workers("management")
    assert api.client.patch(SERVICE, json={"sku": {"capacity": 2}}).status_code == 428
    run.file("lbcore.toml").write_text(text("require_if_match = false"))
    run.signal(signal.SIGHUP)
    await run.says("reloaded")
    assert api.client.patch(SERVICE, json={"sku": {"capacity": 2}}).status_code == 202 and not alive(first)
    run.file("lbcore.toml").write_text(text(extra='[http]\nlisten = "127.0.0.1:0"\n'))
    run.signal(signal.SIGHUP)
    errors = (await run.says("reload-failed"))["errors"]  # whether a node follows its own plane takes a start
    assert "comes or goes" in errors[0] and api.stands()


async def test_settings_by_which_it_does_not_start_leave_it_as_it_was(start: Start) -> None:
    run = await start(text())
    api = Api(run)
    run.file("broken.sqlite").write_text("no store of anybody")
    run.file("lbcore.toml").write_text(text('store = "broken.sqlite"'))
    run.signal(signal.SIGHUP)
    errors = (await run.says("reload-failed"))["errors"]
    assert "StoreCorrupt" in errors[0]
    await eventually(lambda: api.stands() == "Succeeded")
    run.file("lbcore.toml").write_text(text("require_if_match = false"))
    run.signal(signal.SIGHUP)
    await run.says("reloaded")  # and nobody waits for ever
    assert api.stands() == "Succeeded"


async def test_a_front_door_beside_it_follows_and_is_reloaded_without_it(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    content = text(extra='[http]\nlisten = "127.0.0.1:0"\nretries = 1\n').replace("127.0.0.1:0", f"127.0.0.1:{port}", 1)
    run = await start(content)
    api = Api(run)
    await eventually(lambda: api.stands() == "Succeeded")
    managing = run.workers("management")
    async with Load(run.address(), clients=2) as load:
        await eventually(lambda: load.statuses[503] > 5)  # of the gateway, which has no configuration yet
        document = {"apis": [{"name": "hello", "path": "/", "policies": {"inbound": [{"policy": "return-response", "status": 200}]}}]}
        assert api.client.put(f"{SERVICE}/gatewayConfiguration", json=document, headers={"if-none-match": "*"}).status_code == 200
        await eventually(lambda: load.statuses[200] > 5)
        run.file("lbcore.toml").write_text(content.replace("retries = 1", "retries = 0"))
        run.signal(signal.SIGHUP)
        assert (await run.says("reloaded"))["how"] == "with new workers"
        assert alive(managing[0]) and not run.events("worker-ended")
        row = {"properties": {"additionalLocations": [{"location": "westeurope"}]}}
        assert api.client.patch(SERVICE, json=row, headers={"if-match": "*"}).status_code == 202
        await eventually(lambda: len(run.events("rotation")) and api.stands() == "Succeeded")
        await load.more(20)
    assert load.lost == 0


async def test_a_store_that_is_damaged_keeps_no_front_door_closed(start: Start) -> None:
    content = text(extra='[http]\nlisten = "127.0.0.1:0"\n')
    run = await start(content.replace("127.0.0.1:0", f"127.0.0.1:{free_port()}", 1))
    run.signal(signal.SIGTERM)
    assert await run.ended() == 0
    store, good = run.file("service.sqlite"), run.file("service.sqlite").read_bytes()
    for name in ("service.sqlite-wal", "service.sqlite-shm"):
        run.file(name).unlink(missing_ok=True)
    store.write_bytes(b"a disk that went bad")
    again = await start(run.file("lbcore.toml").read_text())
    assert httpx.get(f"http://127.0.0.1:{again.address()[1]}/", trust_env=False).status_code in (404, 503)  # the region's own word
    assert not again.workers("management") and await again.logs("StoreCorrupt")
    store.write_bytes(good)
    await again.says("worker-started")
    assert Api(again).get()["name"] == "contoso"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


async def test_tls_and_a_certificate_that_is_renewed(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def renew() -> None:
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        for index, part in enumerate((*issued.cert_chain_pems, authority.cert_pem)):  # the gateways' authority is the same file
            part.write_to_path(tmp_path / "chain.pem", append=index > 0)

    renew()
    run = await start(text('certificate = "chain.pem"\nkey = "key.pem"'))
    trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    api = Api(run, verify=trusted)
    await eventually(lambda: api.stands() == "Succeeded")
    before = serial(run)
    renew()
    run.signal(signal.SIGHUP)
    await run.says("reloaded")
    assert serial(run) != before and Api(run, verify=trusted).stands() == "Succeeded"


def serial(run: Run) -> str:
    return ssl.get_server_certificate(run.address("management"))


async def test_a_node_that_is_not_the_primary_says_who_is(start: Start) -> None:
    run = await start('[management]\nlisten = "127.0.0.1:0"\nprimary = "http://127.0.0.1:1"\n[run]\nmetrics = ""\n')
    host, port = run.address("management")
    with httpx.Client(base_url=f"http://{host}:{port}", trust_env=False) as client:
        await eventually(lambda: client.put("/services/contoso", json={}).status_code == 503)
        answer = client.get("/services/contoso")
        assert answer.json()["error"]["code"] == "ManagementPlaneUnavailable" and answer.headers["retry-after"]
        assert client.get("/portal/").status_code == 404 and client.get("/developer").status_code == 404
    run.signal(signal.SIGTERM)
    assert await run.ended() == 0


def checked(folder: Path, content: str) -> str:
    """Give what `lbcore check` says is wrong with a file, "" for nothing."""
    (folder / "x.toml").write_text(content)
    try:
        check_all(load(folder / "x.toml"))
    except ConfigError as error:
        return str(error)
    return ""


def test_check_tells_all_that_is_wrong_with_a_service(tmp_path: Path) -> None:
    (tmp_path / "c.pem").touch()
    (tmp_path / "k.pem").touch()
    found = checked(tmp_path, """
[service]
tier = "Basic"
[service.primary]
name = "westus2"
units = 9
[[service.regions]]
name = "westeurope"
[management]
listen = "0.0.0.0:9180"
certificate = "c.pem"
key = "k.pem"
provisioner = { kind = "local", colour = "red" }
""")  # fmt: skip
    for words in ("colour", "lbcore token create", "Basic", "1..2 units"):
        assert words in found, found
    found = checked(tmp_path, '[service.primary]\nname = "westus2"\n[management]\nprovisioner = { kind = "lokal" }\n')
    assert "external, local, manual" in found
    for name in ("primary.toml", "following.toml"):
        (tmp_path / "edge-1.token").touch(0o600)
        assert checked(tmp_path, (ROOT / "examples" / name).read_text()) == ""
