"""Regions for the tests of a management plane: some that run at once and are only remembered, and real gateway processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lbcore.sense.checks import ProbeResult
from lbcore.service.local import Local
from lbcore.service.progress import Granted
from lbcore.service.provisioning import Order, ProvisionError
from lbcore.service.rotation import Look
from lbcore.service.store import Store


class Regions:
    """A provisioner whose regions run at once, and who looks at them and probes them.

    broken: those that cannot be made;  down: those that answer no probe
    gate: closed, orders wait for it;  slow: seconds that each order takes
    """

    limit = 60.0

    def __init__(self, store: Store) -> None:
        self.store, self.broken, self.down = store, set[str](), set[str]()
        self.gate, self.slow = threading.Event(), 0.0
        self.gate.set()
        self._there: dict[str, str] = {}
        self._numbers = itertools.count(1)

    async def carry_out(self, order: Order) -> Granted:
        await asyncio.to_thread(self.gate.wait, self.limit)
        await asyncio.sleep(self.slow)
        if order.name in self.broken:
            raise ProvisionError("quota exceeded")
        if order.work == "delete":
            self._there.pop(order.name, None)
            return Granted()
        if order.name not in self._there or order.new_public:
            self._there[order.name] = f"203.0.113.{next(self._numbers)}"
        return Granted((self._there[order.name],), (), f"http://{order.name}.test")

    async def switch(self, name: str, disabled: bool) -> None: ...
    async def release(self, name: str, public_ips: tuple[str, ...]) -> None: ...
    async def close(self) -> None: ...

    async def look(self, name: str, gateway: str) -> Look:
        latest = self.store.revisions.latest()
        return Look("serving", name, latest.number if latest else None) if name in self._there else Look(cause="refused")

    async def probe(self, region: Any, *_: Any, **__: Any) -> ProbeResult:
        down = region.name in self.down
        return ProbeResult(region.name, not down, "timeout" if down else None, 1.0, 2.0, 200, None, time.monotonic())


def processes(tmp_path: Path) -> Iterator[Local]:
    """A provisioner of gateway processes, none of which outlives the test: `local = pytest.fixture(processes)`."""
    source = tmp_path / "document.json"
    source.write_text(json.dumps({"epoch": 1, "sequence": 1}))
    one = Local(tmp_path / "regions", source=str(source), port=0, grace=0.2, interval=0.05)
    yield one
    for path in (tmp_path / "regions").glob("*.lock"):
        if (process := one.process(path.stem)) is not None:
            os.kill(process, signal.SIGKILL)
    for child in one._children:
        child.wait(10)
