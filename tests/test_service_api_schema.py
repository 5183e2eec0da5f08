"""The OpenAPI document is kept: schemathesis asks what it allows and what it forbids, of a real server with a real store."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from desks import APIS, Desk, listening, managed

# What is no schema's to say (a region that does not exist, an ETag that does not hold) is refused as documented, so both lists have it.
SETTINGS = """
[checks]
positive_data_acceptance.expected-statuses = [{accepted}]
negative_data_rejection.expected-statuses = [{refused}]

[parameters]
"path.name" = "contoso"
"header.If-Match" = "*"
"""
ACCEPTED = '"2xx", "304", "400", "401", "403", "404", "409", "412", "413", "428", "429", "503"'
REFUSED = '"4xx", "503"'


async def judged(desk: Desk, url: str, folder: Path, *options: str) -> str:
    """Run schemathesis against a server, and give what it printed when it found something, "" else."""
    settings = folder / "schemathesis.toml"
    settings.write_text(SETTINGS.format(accepted=ACCEPTED, refused=REFUSED))
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings), "run", f"{url}/openapi.json", "--checks", "all",
        "--header", f"Authorization: Bearer {desk.tokens['owner']}", "--seed", "1", "--generation-database", "none", "--no-color",
        "--suppress-health-check", "all", "--warnings", "off", *options,
    ]  # fmt: skip
    ran = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=folder)
    out, _ = await ran.communicate()
    return "" if ran.returncode == 0 else out.decode()


@pytest.mark.slow
async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    async with managed(tmp_path) as desk, listening(desk.app) as url:
        await desk.save("westeurope")
        await desk.ask("PUT", "gatewayConfiguration", json=APIS)
        assert await judged(desk, url, tmp_path, "--phases", "examples,fuzzing", "--max-examples", "3") == ""


EXAMPLES = "50" if os.environ.get("LBCORE_PROFILE") == "heavy" else "5"
ENDS = ("delete_service", "promote")  # after which there is not much left to be asked


@pytest.mark.heavy
@pytest.mark.parametrize("left_out", [(), ENDS], ids=["all", "but the ends"])
async def test_schemathesis_finds_nothing_in_many_tries(tmp_path: Path, left_out: tuple[str, ...]) -> None:
    """All phases: examples, every bound of every schema, random requests, and requests that follow from answers."""
    async with managed(tmp_path, require_if_match=False) as desk, listening(desk.app) as url:
        await desk.save("westeurope", "eastasia")
        await desk.ask("PUT", "gatewayConfiguration", json=APIS)
        options = [each for name in left_out for each in ("--exclude-operation-id", name)]
        assert await judged(desk, url, tmp_path, "--max-examples", EXAMPLES, *options) == ""
        assert {line["status"] for line in desk.audit} >= {200, 201, 202, 400, 404, 409}
