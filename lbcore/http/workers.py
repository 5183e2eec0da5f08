"""Workers: a front door or a gateway in a process of its own, beside others of its kind that share sockets and latency table with it.

The supervisor starts it, says on which sockets it accepts, and reads its Meter. It judges nothing: the supervisor owns the table.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lbcore.balancer import Balancer
from lbcore.config import Settings
from lbcore.config.serving import Served
from lbcore.http.accepting import Acceptor
from lbcore.http.accesslog import AccessLog
from lbcore.http.call import Call
from lbcore.http.configured import access_log, certificates, front_door, retry_budget
from lbcore.http.forward import Forwarder, Response, Target
from lbcore.http.front import FrontDoor
from lbcore.http.metrics import Meter
from lbcore.listener import Listener

__all__ = ["Door", "DoorWorker", "HttpWorker", "Serving"]

logger = logging.getLogger(__name__)

FAREWELL = 1.0  # seconds in which clients with idle connections may send one more request, whose answer says that it is the last
PUBLISH = 0.5  # seconds


class Serving(Protocol):
    """What a worker serves with: a front door or a gateway, opened and closed by `async with`."""

    @property
    def engine(self) -> Forwarder:
        """Give the engine."""

    @property
    def counters(self) -> dict[str, int]:
        """Give what was counted."""

    async def __aenter__(self) -> Any:
        """Open it."""

    async def close(self, grace: float = 0.0) -> None:
        """Give calls under way `grace` seconds, and close."""


class Door(FrontDoor):
    """A front door that counts and logs its calls. meter, log: for that; others as FrontDoor."""

    def __init__(self, lb: Balancer, *, meter: Meter, log: AccessLog | None, **options: Any) -> None:
        super().__init__(lb, **options)
        self._meter, self._log = meter, log

    def begin(self, call: Call, /) -> Target | Response:
        """Count the call."""
        self._meter.begun()
        return super().begin(call)

    def done(self, call: Call, /) -> None:
        """Count how it ended."""
        super().done(call)
        if call.status == 508 and not call.attempts and call.inbound.engine.heads.loops(call):
            self._meter.begun()  # the engine answered it without asking
        self._meter.ended(call, call.target.name if call.target is not None else "")
        if self._log is not None:
            self._log.offer(call)


class HttpWorker:
    """Serve one role on the supervisor's behalf. section: of the settings, what is the role's.

    Raises what the configuration's files raise (OSError, ssl.SSLError, ValueError).
    """

    def __init__(self, role: str, section: Served, settings: Settings, meter: Meter) -> None:
        self._role, self._meter = role, meter
        self._certificates = certificates(settings, section)
        self._log = access_log(settings, section, role)
        self._serving: Serving
        self._accepting: dict[int, Acceptor] = {}
        self._publishing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Be ready to accept."""
        await self._serving.__aenter__()
        self._publishing = asyncio.create_task(self._publish())

    async def accept(self, places: Sequence[int], given: Mapping[int, Listener]) -> None:
        """Accept on these sockets from now on, by number, and on no others. given: those that it did not have."""
        for place, listener in given.items():
            tls = self._certificates.context if listener.tls and self._certificates else None
            acceptor = Acceptor(self._serving.engine, listener.socket, tls=tls, proxy_protocol=listener.proxy_protocol)
            await acceptor.open()
            self._accepting[place] = acceptor
        for place in self._accepting.keys() - {*places}:
            await self._accepting.pop(place).close()

    async def document(self, text: str, labels: Sequence[str]) -> None:
        """Serve by another document, a gateway's; its APIs are counted under these labels."""
        raise ValueError(f"a {self._role} has no document")

    async def reload(self) -> None:
        """Take certificates as they are now, and open the access log anew. What cannot be used raises, and the old stays."""
        if self._log is not None:
            self._log.reopen()
        if self._certificates is not None:
            self._certificates.reload()

    async def metrics(self) -> str:
        """Give nothing: all of them are in shared memory."""
        return ""

    async def busy(self) -> dict[str, int]:
        """Give how many calls are under way to regions: none, for a gateway's go to backends."""
        return {}

    async def finish(self, grace: float, last: bool) -> None:
        """Accept nobody new, answer who is there, within `grace` seconds. last: nobody accepts on the sockets after this."""
        engine, acceptors = self._serving.engine, [*self._accepting.values()]
        self._accepting.clear()
        engine.draining = True
        for acceptor in acceptors:
            await (acceptor.drain() if last else acceptor.close())
        began, loop = engine.loop.time(), engine.loop
        while engine.inbounds and loop.time() - began < min(FAREWELL, grace):
            await asyncio.sleep(0.01)
        await self._serving.close(max(0.0, grace - (loop.time() - began)))
        await self._close()

    async def _close(self) -> None:
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.wait([self._publishing])
        self._copy(None)
        if self._log is not None:
            await asyncio.to_thread(self._log.__exit__)
            self._copy(None)

    async def _publish(self) -> None:
        while True:
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self._copy(self._serving.engine)
            await asyncio.sleep(PUBLISH)

    def _copy(self, engine: Forwarder | None) -> None:
        counters, log = self._serving.counters, self._log
        if log is not None:
            counters |= {"log_written": log.written, "log_dropped": log.dropped}
        self._meter.copy(counters, self._gauges(engine) if engine is not None else {})

    def _gauges(self, engine: Forwarder) -> dict[str, float]:
        upstreams = [*engine.upstreams.values()]
        return {
            "connections": len(engine.inbounds), "relays": len(engine.relays),
            "upstream_open": sum(len(each.open) for each in upstreams), "upstream_idle": sum(len(each.idle) for each in upstreams),
        }  # fmt: skip


class DoorWorker(HttpWorker):
    """A front door, one of so many workers. name: of the node in Via."""

    def __init__(self, settings: Settings, lb: Balancer, meter: Meter, name: str, workers: int) -> None:
        section = settings.document.http
        super().__init__("front-door", section, settings, meter)
        self._budget = retry_budget(settings, workers)
        self._door = self._serving = front_door(settings, lb, Door, self._budget, meter=meter, log=self._log, name=name)

    async def busy(self) -> dict[str, int]:
        """Give how many calls are under way to regions, by name."""
        return self._door.under_way()

    def _gauges(self, engine: Forwarder) -> dict[str, float]:
        return super()._gauges(engine) | {"budget": self._budget.balance}
