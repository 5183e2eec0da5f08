"""A backup comes back by command, into a primary that runs: every region follows, and what is lost is named (R47, R50, V25)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployment import HELLO, service
from nodes import until
from typer.testing import CliRunner

from lbcore.cli.app import app
from lbcore.sense.monitor import STATUS_PATH

pytestmark = pytest.mark.heavy


def lbcore(*args: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [*map(str, args), "--json"])
    assert done.exit_code == code, done.stdout + done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


async def revision(gateway: str) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        return str((await client.get(gateway + STATUS_PATH)).json()["revision"])


async def test_regions_that_hold_later_revisions_follow_a_primary_that_went_back(tmp_path: Path) -> None:
    async with service(tmp_path, "westus2", "westeurope", edges=()) as lab:
        file, config = tmp_path / "contoso.zip", lab.primary.file
        body, _ = await lab.api.body()
        gateways = [body["properties"]["gatewayAddress"], body["properties"]["additionalLocations"][0]["gatewayAddress"]]

        async def hold(wanted: str) -> None:
            for gateway in gateways:

                async def holds(gateway: str = gateway) -> bool:
                    return await revision(gateway) == wanted

                await until(holds, f"{gateway} holds {wanted}")

        async def publish(*numbers: int) -> None:
            for number in numbers:
                text = json.dumps(HELLO).replace('"hello"}]', f'"hello {number}"}}]')
                assert await lab.api.publish(json.loads(text)) == f"1.{number}"

        await publish(2, 3, 4, 5)
        assert lbcore("backup", file, "--config", config)["revision"] == "1.5"
        await publish(6, 7, 8, 9)
        await hold("1.9")
        await lab.save("eastasia")  # after the backup: West Europe is gone, East Asia is there
        lost = ["1.6", "1.7", "1.8", "1.9"]
        done = lbcore("restore", file, "--config", config, "--why", "the upgrade went wrong")
        assert (done["revision"], done["lost"]) == ("2.5", lost)
        assert [step["name"] for step in (*done["left"]["creates"], *done["left"]["deletes"])] == ["westeurope", "eastasia"]
        gateways[1] = next(row["gatewayAddress"] for row in (await lab.api.get("/locations"))["value"] if row["name"] == "eastasia")
        await hold("2.5")
        events = [event for event in (await lab.api.get("/events"))["value"] if event["kind"] == "ConfigRolledBack"]
        assert {event["region"] for event in events} <= {"westus2", "eastasia"}
        assert events
        assert all(event["detail"]["lost"] == lost for event in events)

        token = tmp_path / "owner.token"
        token.write_text(lab.tokens["owner"])
        where = ("--url", lab.url, "--token-file", token)
        assert lbcore("regions", "save", *where)["status"] == "Succeeded"
        assert [row["name"] for row in lbcore("regions", "list", *where)["locations"]] == ["westus2", "westeurope"]
