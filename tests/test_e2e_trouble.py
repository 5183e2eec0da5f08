"""What goes wrong beside the service: its store, its clock, its provisioner, who reports to it. Real processes, over REST."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployment import HELLO, Lab, additional, service
from nodes import ROOT, Node, until

from lbcore.sense.monitor import STATUS_PATH

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have only 127.0.0.1"),
]
US = "8.8.8.0/24"


# ===== the store


def locked(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


async def test_a_store_that_is_locked_is_told_of_and_serving_goes_on(tmp_path: Path) -> None:
    async with service(tmp_path, "westus2") as lab:
        await until(lambda: _answers(lab), "DNS answers")
        _, etag = await lab.api.body()
        other = locked(tmp_path / "store")
        answer = await lab.api.patch(additional("uksouth"), etag)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "StoreLocked") and answer.headers["retry-after"]
        assert (await lab.api.body())[1] == etag and (await lab.get()).status_code == 200 and await _answers(lab)
        other.execute("ROLLBACK")
        other.close()
        assert (await lab.api.finished(await lab.api.patch(additional("uksouth"), etag)))["status"] == "Succeeded"


async def _answers(lab: Lab) -> bool:
    return await lab.dns(US) != ()


def small(size: int) -> Callable[[], None]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


async def test_a_full_disk_is_told_of_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    async with service(tmp_path, "westus2", started=False) as lab:
        lab.issue()
        lab.primary = Node(lab.primary.file, preexec_fn=small(3 << 20))
        await lab.primary.start()
        acknowledged = [await lab.api.publish(HELLO)]
        await lab.settled()
        await lab.edges["edge"].start()
        await until(lambda: _answers(lab), "DNS answers")
        refused = None
        for number in range(40):
            big = HELLO["apis"][0] | {"display_name": str(number), "policies": answering("x" * 60_000)}
            now = await lab.api.ask("GET", "/gatewayConfiguration")
            apis = [big, *({**big, "name": f"more{place}", "path": f"/more{place}"} for place in range(4))]
            refused = await lab.api.ask("PUT", "/gatewayConfiguration", json={"apis": apis}, headers={"If-Match": now.headers["etag"]})
            if refused.status_code != 200:
                break
            acknowledged.append(refused.headers["etag"].strip('"').partition("-")[0])
        assert refused is not None and (refused.status_code, refused.json()["error"]["code"]) == (507, "StoreFull"), refused.text[:300]
        assert (await lab.get()).status_code == 200 and await _answers(lab)
        lab.primary.kill()
        await lab.primary.gone()
        lab.primary = Node(lab.primary.file)  # there is room again
        await lab.primary.start()
        found = {one["revision"] for one in (await lab.api.get("/gatewayConfiguration/revisions", limit=1000))["value"]}
        assert {*acknowledged} <= found
        assert (await lab.save("uksouth"))["status"] == "Succeeded"


def answering(text: str) -> dict[str, Any]:
    return {"inbound": [{"policy": "return-response", "status": 200, "body": text}]}


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:] = bytes(len(content) - 100)
    path.write_bytes(content)


def future(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to look like one" * 100)


@pytest.mark.parametrize("spoil", [damage, future, garbage])
async def test_a_store_that_cannot_be_used_is_named_left_alone_and_edges_serve_on(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    async with service(tmp_path, "westus2", "westeurope") as lab:
        await until(lambda: _answers(lab), "DNS answers")
        before = await lab.dns(US)
        await lab.primary.stop()
        spoil(tmp_path / "store")
        content = (tmp_path / "store").read_bytes()
        lab.primary.begin()
        assert await lab.primary.end() in (2, 5)
        assert "store" in lab.primary.log and "Traceback" not in lab.primary.log, lab.primary.log
        assert (tmp_path / "store").read_bytes() == content
        assert await lab.dns(US) == before and (await lab.get()).status_code == 200


async def test_a_second_primary_on_the_same_store_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with service(tmp_path, "westus2", edges=()) as lab:
        second = tmp_path / "second.toml"
        second.write_text(lab.primary.file.read_text().replace(f"{lab.host}:9180", f"{lab.host}:9181"))
        other = Node(second)
        other.begin()
        try:
            assert await other.end() in (3, 5)
            assert "Traceback" not in other.log and "store" in other.log, other.log
        finally:
            other.kill(group=True)
        assert (await lab.save("uksouth"))["status"] == "Succeeded"


# ===== who lies about itself


async def test_a_region_that_lies_about_its_revision_is_found_out_and_changes_nothing(tmp_path: Path) -> None:
    async with service(tmp_path, "westus2", "westeurope") as lab:
        _, etag = await lab.api.body()
        rotation = (await lab.api.ask("GET", "/rotation")).text
        liar = lab.node("westeurope")
        for number in ("9.9", "1.999", "0.0", "-1.2", "x", "1" * 5000):
            told = {"held": f'"{number}-{"0" * 64}"', "state": "InSync", "lag": 0.0, "refused": ""}
            answer = await liar.ask("GET", "/gatewayConfiguration", headers={"X-Lbcore-Sync": json.dumps(told)})
            assert answer.status_code in (200, 304, 400), (number, answer.text)
        fake = {"status": "serving", "calls": -1, "failures": 10**30}
        reports: list[Any] = [
            {"edge": "other", "at": time.time(), "rotation": "1.1", "regions": {}},  # another's name
            {"edge": "westeurope", "at": time.time(), "rotation": "999.999", "regions": {"westus2": fake}},
            {"edge": "westeurope", "at": 1e300, "rotation": {}, "regions": []},
            {"edge": "westeurope", "at": time.time(), "rotation": "1.1", "regions": {}, "learned": "!!!"},
            {"edge": "westeurope", "at": time.time(), "rotation": "1.1", "regions": {}, "idle": ["nowhere"] * 10_001},
            [], None, "x" * 100, {"edge": "westeurope", "learned": "A" * (2 << 20)},
        ]  # fmt: skip
        for report in reports:
            answer = await liar.ask("POST", "/reports", json=report)
            assert answer.status_code in (400, 403, 413), (str(report)[:80], answer.status_code, answer.text)
        for method, path in (("GET", ""), ("GET", "/locations"), ("PATCH", ""), ("GET", "/operations"), ("PUT", "/gatewayConfiguration")):
            assert (await liar.ask(method, path, json={} if method != "GET" else None)).status_code == 403, path
        down = {"status": "down", "calls": 10, "failures": 10}
        lie = {"edge": "westeurope", "at": time.time(), "rotation": "999.999", "regions": {"westus2": down}, "idle": ["westus2"]}
        assert (await liar.ask("POST", "/reports", json=lie)).status_code == 204  # it may say so, and nobody goes by it
        assert (await lab.api.body())[1] == etag and (await lab.api.ask("GET", "/rotation")).text == rotation
        assert (await lab.get()).status_code == 200
        assert "ConfigAhead" in {each["kind"] for each in (await lab.api.get("/events", limit=1000))["value"]}
        assert (await lab.api.get("/reports"))["configuration"]["westeurope"]["state"]


# ===== the provisioner


SCRIPT = """
import json, pathlib, sys, time
order, folder = json.load(sys.stdin), pathlib.Path(sys.argv[1])
play = json.loads((folder / "play.json").read_text()).get(order["name"], "do")
with (folder / "orders").open("a") as log:
    print(order["work"], order["name"], file=log)
if play == "hang":
    time.sleep(1000)
if play == "break" :
    print(json.dumps({"publicIPAddresses": ["198.51.100.9"], "status": "failed", "message": "quota exceeded"})); sys.exit(1)
if play == "nonsense":
    print("<html>" * 100); sys.exit(0)
if order["work"] == "delete" and play != "stays":
    (folder / (order["name"] + ".site")).unlink(missing_ok=True)
if order["work"] == "delete":
    print("{}"); sys.exit(0)
sites = json.loads((folder / "sites.json").read_text())
place = sites[order["name"]]
address = sites["westus2"]["address"] if play == "same address" else place["address"]
(folder / (order["name"] + ".site")).touch()
print(json.dumps({"publicIPAddresses": [] if play == "no address" else [address], "gateway": place["gateway"]}))
"""


class Sites:
    """Stand-ins for gateways in a cloud of the operator's own: a status page for each region that was made."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.folder, self.names = folder, names
        self.revision = "1.1"
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        sites = {}
        for number, name in enumerate(self.names):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = name) -> None:
                try:
                    while True:
                        await self._answer(name, await reader.readuntil(b"\r\n\r\n"), writer)
                except (OSError, asyncio.IncompleteReadError):
                    pass
                finally:  # also when the test ends before its client: it would be garbage in another test
                    writer.transport.abort()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            self._servers.append(server)
            port = server.sockets[0].getsockname()[1]
            sites[name] = {"gateway": f"http://127.0.0.1:{port}", "address": f"198.51.100.{number + 1}"}
        (self.folder / "sites.json").write_text(json.dumps(sites))
        self.play()

    async def _answer(self, name: str, head: bytes, writer: asyncio.StreamWriter) -> None:
        if not (self.folder / f"{name}.site").exists():
            writer.transport.abort()
            return
        body = json.dumps({"status": "serving", "region": name, "revision": self.revision}).encode()
        body = body if STATUS_PATH.encode() in head else name.encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Lbcore-Region: %b\r\n\r\n%b" % (len(body), name.encode(), body))

    def play(self, **roles: str) -> None:
        """Have the commands misbehave for regions."""
        (self.folder / "play.json").write_text(json.dumps(roles))

    @property
    def orders(self) -> list[str]:
        return (self.folder / "orders").read_text().splitlines()

    def close(self) -> None:
        for server in self._servers:
            server.close()


async def test_a_provisioner_that_hangs_breaks_or_lies_fails_its_region_alone(tmp_path: Path) -> None:
    cloud = tmp_path / "cloud"
    cloud.mkdir()
    (tmp_path / "command.py").write_text(SCRIPT)
    sites = Sites(cloud, ("westus2", "westeurope", "eastasia", "uksouth"))
    await sites.start()
    command = [sys.executable, str(tmp_path / "command.py"), str(cloud)]
    external = {"kind": "external", "create": command, "update": command, "delete": command, "limit": 4.0, "call_limit": 2.0}
    try:
        async with service(tmp_path, "westus2", primary={"management": {"provisioner": external}}) as lab:
            await until(lambda: _answers(lab), "DNS answers")
            assert (await lab.save("westeurope"))["status"] == "Succeeded"
            before = await lab.addresses()
            for play in ("hang", "break", "nonsense", "same address", "no address"):
                sites.play(eastasia=play)
                operation = await lab.save("westeurope", "eastasia")
                assert operation["status"] in ("Failed", "PartiallySucceeded"), (play, operation)
                shown = (await lab.api.ask("GET", "/rotation")).json()
                assert {one["name"] for one in shown["regions"]} == {"westus2", "westeurope"}, play
                found = await lab.addresses()
                assert {name: found[name] for name in before} == before
                reason = next(one["reason"] for one in (await lab.api.get("/locations"))["value"] if one["name"] == "eastasia")
                assert reason and "html" not in reason, (play, reason)
                assert await _answers(lab) and (await lab.get()).status_code == 200
            sites.play()
            assert (await lab.save("westeurope", "eastasia"))["status"] == "Succeeded"  # the same again: it is tried again
            sites.play(eastasia="stays")  # says that it is gone, and it is not
            assert (await lab.save("westeurope"))["status"] in ("Failed", "PartiallySucceeded")
            sites.play()
            assert (await lab.save("westeurope"))["status"] == "Succeeded"
            assert sites.orders.count("create eastasia") >= 6
    finally:
        sites.close()


# ===== the clock


CLOCK = """
import os, time
real = time.time
def shifted():
    try:
        with open(os.environ["SHIFT"]) as file:
            return real() + float(file.read() or 0.0)
    except OSError:
        return real()
time.time = shifted
"""
YEARS = 10 * 365 * 86_400.0


async def test_a_wall_clock_that_jumps_disturbs_nobody(tmp_path: Path) -> None:
    """The primary's clock jumps years ahead and behind while operations run; it starts with a clock that is years behind."""
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    shift = tmp_path / "shift"
    shift.write_text("0")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'clock'}{os.pathsep}{ROOT}", "SHIFT": str(shift)}
    async with service(tmp_path, "westus2", started=False) as lab:
        lab.primary = Node(lab.primary.file, env=environment)
        await lab.start()
        await until(lambda: _answers(lab), "DNS answers")
        for seconds in (YEARS, -YEARS, 0.0):
            shift.write_text(str(seconds))
            assert (await lab.save("uksouth"))["status"] == "Succeeded", seconds
            published = await lab.api.publish(HELLO | {"apis": [HELLO["apis"][0] | {"display_name": f"{seconds}"}]})
            await until(lambda published=published: _serves(lab, published), f"{published} is served")
            assert (await lab.save())["status"] == "Succeeded", seconds
            assert await _answers(lab)
        shift.write_text(str(-YEARS))
        lab.primary.kill(group=True)
        await lab.primary.start()
        assert (await lab.save("uksouth"))["status"] == "Succeeded"


async def _serves(lab: Lab, revision: str) -> bool:
    return (await lab.get()).headers.get("x-lbcore-revision") == revision
