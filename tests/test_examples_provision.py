"""examples/provision.py: a provisioner of one's own does what an operation asks of one, also when orders come twice."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lbcore.service.external import External
from lbcore.service.model import location
from lbcore.service.progress import Granted
from lbcore.service.provisioning import Order, ProvisionError

SCRIPT = Path(__file__).parent.parent / "examples" / "provision.py"
CREATE = Order(work="create", service="contoso", name="westeurope", location=location("westeurope"), network_mode="None")


def test_regions_come_move_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD", str(tmp_path / "cloud"))
    called = {work: [sys.executable, str(SCRIPT), work] for work in ("create", "update", "delete", "wait")}
    external = External(**called, environment=["CLOUD"], pause=0.0)

    async def story() -> None:
        first = await external.carry_out(CREATE)
        assert first == Granted(("192.0.2.1",), (), "http://192.0.2.1:8081")
        assert await external.carry_out(CREATE) == first
        grown = replace(CREATE, work="update", location=location("westeurope", units=3), public_ips=first.public_ips)
        assert await external.carry_out(grown) == first
        moved = await external.carry_out(replace(grown, new_public=True))
        assert moved.public_ips != first.public_ips
        assert await external.carry_out(replace(grown, new_public=True)) == moved
        other = await external.carry_out(replace(CREATE, name="eastasia"))
        assert other.public_ips not in (first.public_ips, moved.public_ips)
        gone = replace(CREATE, work="delete")
        for _ in range(2):
            assert await external.carry_out(gone) == Granted()
        monkeypatch.setenv("CLOUD", "/dev/null/none")
        with pytest.raises(ProvisionError, match="create command"):
            await external.carry_out(CREATE)

    asyncio.run(story())
