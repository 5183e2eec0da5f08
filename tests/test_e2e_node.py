"""One node that is everything: management plane, front door and DNS in one file, against real processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from deployment import Lab, service
from nodes import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.heavy,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems have only 127.0.0.1"),
]
UK = "81.2.69.0/24"


@asynccontextmanager
async def everything(folder: Path) -> AsyncIterator[Lab]:
    """Run a node that is everything, with one region."""
    async with service(folder, "westus2", edges=(), started=False) as lab:
        lab.ports["primary"] = (8080, 5300)
        with lab.primary.file.open("a") as file:
            file.write(f'[http]\nlisten = "{lab.host}:8080"\n[dns]\nlisten = "{lab.host}:5300"\n')
        await lab.start()
        await until(lambda: serves(lab), "its own front door and DNS follow")
        yield lab


async def serves(lab: Lab) -> bool:
    return (await lab.get(edge="primary")).status_code == 200 and bool(await lab.dns(UK, "primary"))


async def answers(lab: Lab, region: str) -> bool:
    return await lab.dns(UK, "primary") == (await lab.addresses())[region]


async def test_a_node_that_is_everything_ends_with_its_supervisor_and_is_back_with_what_it_was(tmp_path: Path) -> None:
    async with everything(tmp_path) as lab:
        assert (await lab.save("westeurope"))["status"] == "Succeeded"
        await until(lambda: answers(lab, "westeurope"), "DNS answers with the region that was added")
        assert (await lab.get(edge="primary")).status_code == 200
        before = await lab.addresses()
        lab.primary.kill()
        await lab.primary.gone()
        assert lab.process("westus2") and lab.process("westeurope"), "gateways do not need the primary"
        await lab.primary.start()
        await until(lambda: answers(lab, "westeurope"), "DNS answers as before")
        assert await lab.addresses() == before and (await lab.get(edge="primary")).status_code == 200


async def test_its_management_process_may_die_alone_and_is_replaced_while_the_others_serve(tmp_path: Path) -> None:
    async with everything(tmp_path) as lab:
        (serving,) = lab.primary.events("ready")
        (pid,) = serving["serving"]["management"]["workers"]
        os.kill(pid, signal.SIGKILL)
        assert await serves(lab)
        await until(lambda: lab.reachable(), "the management plane is back")
        assert (await lab.save("westeurope"))["status"] == "Succeeded"
