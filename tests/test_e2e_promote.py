"""Another location becomes the primary, by real processes and by command; the old one comes back and does not write (R49, R47)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployment import HELLO, SERVICE, Lab, tables
from nodes import Node, until
from typer.testing import CliRunner

from lbcore.cli.app import app

pytestmark = pytest.mark.heavy


def lbcore(*args: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, args)], env={"COLUMNS": "160"})
    assert done.exit_code == code, done.stdout + done.stderr
    return done.stdout + done.stderr


class Pair(Lab):
    """A primary in West US 2, and beside it a machine that stands by; regions run where both can manage them."""

    def __init__(self, folder: Path) -> None:
        (folder / "new").mkdir()
        self.new_folder = folder / "new"
        super().__init__(folder, ("westus2", "westeurope"), ())
        self.new_url = self.url.replace("9180", "9280")
        file = self.new_folder / "new.toml"
        self.new = Node(file)
        self.write_new({"primary": self.url})
        create = "token", "create", "--store", self.new_folder / "store"
        lbcore(*create, "--role", "reader", "--name", "watch", "--file", folder / "watch.token")
        lbcore(*create, "--role", "owner", "--name", "ann", "--file", self.owner)
        standby = {"standby": [self.new_url], "standby_token": "watch.token"}
        self.primary = self._write("primary", self._primary({"management": standby}))

    @property
    def owner(self) -> Path:
        return self.new_folder / "owner.token"

    def write_new(self, management: dict[str, Any]) -> None:
        listen = self.new_url.removeprefix("http://")
        document = {"service": {"name": SERVICE}, "management": {"listen": listen, "store": "store"} | management}
        self.new.file.write_text(tables(document))

    def end(self) -> None:
        if self.new.child is not None:
            self.new.kill(group=True)
        super().end()


@asynccontextmanager
async def pair(folder: Path) -> AsyncIterator[Pair]:
    """Run the primary with two regions, and the machine that stands by."""
    made = Pair(folder)
    try:
        await made.start()
        await made.new.start()
        yield made
    finally:
        await made.close()


def said(body: str) -> dict[str, Any]:
    return dict(json.loads(json.dumps(HELLO).replace('"hello"}]', f'"{body}"}}]')))


async def answers(url: str) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(url + "/hello")).text


@pytest.mark.parametrize("planned", [True, False])
async def test_west_europe_becomes_the_primary_and_the_old_one_does_not_write(tmp_path: Path, planned: bool) -> None:
    async with pair(tmp_path) as lab:
        async with httpx.AsyncClient(trust_env=False) as client:
            elsewhere = await client.get(f"{lab.new_url}/services/{SERVICE}")
        assert (elsewhere.status_code, elsewhere.json()["error"]["target"]) == (421, lab.url)
        body, _ = await lab.api.body()
        gateways = [body["properties"]["gatewayAddress"], body["properties"]["additionalLocations"][0]["gatewayAddress"]]
        file, epoch = tmp_path / "contoso.zip", "--force"
        if planned:
            told = json.loads(lbcore("promote", lab.primary.file, "--location", "westeurope", "--json"))
            epoch = f"--epoch={told['epoch']}"
            assert (await lab.api.patch(body | {"zones": []})).json()["error"]["code"] == "Fenced"
        lbcore("backup", file, "--config", lab.primary.file)
        lab.primary.kill(group=True)
        await lab.new.stop()
        lab.write_new({"provisioner": {"kind": "local", "folder": str(lab.folder / "regions"), "port": 0, "interval": 1.0}})
        done = json.loads(lbcore("promote", lab.new.file, "--location", "westeurope", "--backup", file, epoch, "--json"))
        assert (done["primary"], done["epoch"], done["lost"]) == ("westeurope", 2 if planned else 17, [])
        await lab.new.start()
        await served_by_the_new_one(lab, gateways, f"{done['epoch']}.2")
        await does_not_write(lab, done["epoch"])
        await served_by_the_new_one(lab, gateways, f"{done['epoch']}.3")


async def served_by_the_new_one(lab: Pair, gateways: list[str], revision: str) -> None:
    """The new primary writes, and every region follows it."""
    where = ("--url", lab.new_url, "--token-file", lab.owner)
    rows = json.loads(lbcore("regions", "list", "--json", *where))["locations"]
    assert [(row["name"], row["primary"]) for row in rows] == [("westeurope", True), ("westus2", False)]
    document = lab.new_folder / "apis.json"
    document.write_text(json.dumps(said(f"revision {revision}")))
    assert json.loads(lbcore("config", "publish", document, "--json", *where))["revision"] == revision
    for gateway in gateways:

        async def follows(gateway: str = gateway) -> bool:
            return await answers(gateway) == f"revision {revision}"

        await until(follows, f"{gateway} follows the new primary")


async def does_not_write(lab: Pair, epoch: int) -> None:
    """The old primary is back: whatever it is asked to write is refused, what it shows stays."""
    await lab.primary.start()
    before, etag = await lab.api.body()
    assert (await lab.api.ask("GET")).headers["X-Lbcore-Epoch"] == "1"
    refused = [
        await lab.api.patch({"sku": {"capacity": 2}}, etag),
        await lab.api.ask("PUT", "/gatewayConfiguration", json=said("from the old one"), headers={"If-Match": "*"}),
        await lab.api.ask("PATCH", "/trafficManager", json={"properties": {"dnsConfig": {"ttl": 9}}}, headers={"If-Match": "*"}),
    ]
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in refused] == [(409, "Fenced")] * 3
    assert f"epoch {epoch}" in refused[0].json()["error"]["message"]
    assert (await lab.api.body()) == (before, etag)
    token = lab.folder / "old.token"
    token.write_text(lab.tokens["owner"])
    assert "lbcore: another location was promoted" in lbcore(
        "regions", "scale", "westus2", "--units", "2", "--url", lab.url, "--token-file", token, code=3
    )
