"""Documents, gateways and their clients for the tests of the regional gateway: real sockets on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from proxying import QUICK, Answer, answers, request, talk

from lbcore.http.gateway import Gateway

Document = dict[str, Any]


def document(url: str = "http://127.0.0.1:9", sequence: int = 1, epoch: int = 1, **more: Any) -> Document:
    """Give a configuration with one API, "orders" at /orders, and one backend."""
    api = {"name": "orders", "path": "/orders", "backend": "orders"}
    return {"epoch": epoch, "sequence": sequence, "apis": [api], "backends": [{"name": "orders", "urls": [url]}]} | more


class Served:
    """A gateway that listens, and a client."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        self.gateway, self.port = gateway, port

    async def ask(self, method: str = "GET", path: str = "/orders/1", *fields: str, body: bytes = b"") -> Answer:
        """Send one request on its own connection."""
        [answer] = answers(await talk(self.port, request(method, path, body, *fields)), [method])
        return answer


@asynccontextmanager
async def serving(document: object = None, region: str = "westeurope", **options: Any) -> AsyncIterator[Served]:
    """Run a gateway; afterwards nothing of a call may be left."""
    async with Gateway(region, **{"timeouts": QUICK, **options}) as gateway:
        if document is not None:
            gateway.apply(document)
        _, port = await gateway.listen("127.0.0.1", 0)
        yield Served(gateway, port)
        engine = gateway.engine
        await until(lambda: not engine.inbounds)
        assert gateway.units.under_way == 0 and gateway.units.waiting == 0
        assert gateway.revision is None or gateway.revision.calls == 0


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
