"""One process of `lbcore run`: it serves a role on the supervisor's behalf, and ends gracefully when the supervisor does.

    python -m lbcore.cli.worker ROLE CHANNEL SOCKETS      descriptors: of the channel, and of what listening sockets come through
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol

from lbcore.balancer import Balancer
from lbcore.cli.channel import answer
from lbcore.cli.sharing import join
from lbcore.config import Settings, read
from lbcore.listener import Listener

__all__ = ["Node", "Role", "main"]

logger = logging.getLogger(__name__)

Asked = Mapping[str, Any]


class Role(Protocol):
    """What a process serves."""

    async def open(self) -> None:
        """Be ready."""

    async def accept(self, places: Sequence[int], given: Mapping[int, Listener]) -> None:
        """Serve on these sockets, by number, and close others. given: those that it did not have."""

    async def document(self, text: str, labels: Sequence[str]) -> None:
        """Serve by another document."""

    async def reload(self) -> None:
        """Take certificates and the like as they are now."""

    async def metrics(self) -> str:
        """Give metrics that are in no shared memory, as a page has them."""

    async def busy(self) -> dict[str, int]:
        """Give how many calls are under way to regions, by name."""

    async def finish(self, grace: float, last: bool) -> None:
        """End, within `grace` seconds. last: nobody serves on the sockets after this."""


class Node:
    """What the supervisor asks of this process."""

    def __init__(self, role: str, taking: socket.socket) -> None:
        self._name, self._taking = role, taking
        self._role: Role = _Nothing()
        self._grace = 0.0
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.do = {name: getattr(self, name) for name in ("open", "accept", "document", "reload", "metrics", "busy", "ping", "finish")}

    async def open(self, asked: Asked) -> None:
        """Be ready to serve."""
        if self._name == "management":
            settings = read(asked["content"].encode(), asked["file"])
            self._grace = settings.document.run.grace
            self._role = await _managing(settings, asked["address"])
            return
        settings = _followed(read(asked["content"].encode(), asked["file"]), asked["rotation"], asked["follows"])
        self._grace = settings.document.run.grace
        lb = join(settings, asked["table"], asked["fingerprint"])
        os.close(asked["table"])
        role = make(self._name, settings, lb, asked)
        await role.open()
        self._role = role

    async def accept(self, asked: Asked) -> None:
        """Serve on some of the sockets."""
        given = {number: Listener(self._take(), tls, proxied) for number, tls, proxied in asked["given"]}
        await self._role.accept(asked["places"], given)

    def _take(self) -> socket.socket:
        _, fds, _, _ = socket.recv_fds(self._taking, 1, 1)  # it was sent before it was told of
        return socket.socket(fileno=fds[0])

    async def document(self, asked: Asked) -> None:
        """Serve by another document."""
        await self._role.document(asked["document"], asked["labels"])

    async def reload(self, asked: Asked) -> None:
        """Take certificates and the like as they are now."""
        await self._role.reload()

    async def metrics(self, asked: Asked) -> str:
        """Give metrics that are in no shared memory."""
        return await self._role.metrics()

    async def busy(self, asked: Asked) -> dict[str, int]:
        """Give how many calls are under way to regions."""
        return await self._role.busy()

    async def ping(self, asked: Asked) -> None:
        """Be there."""

    async def finish(self, asked: Asked) -> None:
        """Begin to end."""
        self.end(asked["grace"], asked["last"])

    def end(self, grace: float | None = None, last: bool = False) -> None:
        """Begin to end, unless that has begun."""
        if not self._tasks:
            self._spawn(self._finish(self._grace if grace is None else grace, last))

    def _orphaned(self) -> None:
        if not self._tasks:
            logger.warning("the supervisor is gone; answering what is under way")
        self.end(last=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)

    async def _finish(self, grace: float, last: bool) -> None:
        try:
            await self._role.finish(grace, last)
        finally:
            self._ended.set()

    async def run(self, channel: socket.socket) -> None:
        """Do what the supervisor asks; without it, end."""
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(ignored, signal.SIG_IGN)  # they are meant for the supervisor, which decides
        asking = asyncio.create_task(answer(channel, self.do))
        asking.add_done_callback(lambda _: self._orphaned())
        await self._ended.wait()
        asking.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Nothing:
    """What is served before anything is."""

    async def open(self) -> None: ...
    async def accept(self, places: Sequence[int], given: Mapping[int, Listener]) -> None: ...
    async def document(self, text: str, labels: Sequence[str]) -> None: ...
    async def reload(self) -> None: ...
    async def metrics(self) -> str:
        return ""

    async def busy(self) -> dict[str, int]:
        return {}

    async def finish(self, grace: float, last: bool) -> None: ...


def _followed(settings: Settings, rotation: str, follows: bool) -> Settings:
    """Give the settings with the primary's rotation, "" = there is none yet."""
    if not follows:
        return settings
    from lbcore.service.edge import read_rotation, settings_of

    return settings_of(settings, read_rotation(rotation.encode()) if rotation else None)


async def _managing(settings: Settings, address: Sequence[Any]) -> Role:
    """Give the management plane: it has no part in the table that others share."""
    from lbcore.cli.management_worker import ManagementWorker

    role = ManagementWorker(settings, (str(address[0]), int(address[1])))
    await role.open()
    return role


def make(role: str, settings: Settings, lb: Balancer, asked: Asked) -> Role:
    """Give what serves a role."""
    if role == "dns":
        from lbcore.cli.dns_worker import DnsWorker

        return DnsWorker(settings, lb)
    from lbcore.http.metrics import Meter
    meter = Meter(asked["meter"])
    meter.label(asked["labels"])
    if role == "gateway":
        from lbcore.http.regional import GatewayWorker

        shared = {key: asked[key] for key in ("number", "workers", "limits", "slots")}
        return GatewayWorker(settings, meter, asked["name"], asked["document"], **shared)
    from lbcore.http.workers import DoorWorker

    return DoorWorker(settings, lb, meter, asked["name"], asked["workers"])


def main(role: str, channel_fd: int, taking_fd: int) -> None:
    """Serve until told to end, or until the supervisor is gone."""
    logging.basicConfig(format=f"%(levelname)s: {role} [%(process)d]: %(message)s", level=logging.WARNING)
    node, channel = Node(role, socket.socket(fileno=taking_fd)), socket.socket(fileno=channel_fd)
    try:
        import uvloop
    except ImportError:
        asyncio.run(node.run(channel))  # works the same, at more processor time a request
    else:
        uvloop.run(node.run(channel))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
