"""One region's gateway as a process of its own, for the provisioner `local`.

    python -m lbcore.service.local_gateway FILE      settings as JSON; it holds the lock FILE.lock, .json left out

In the lock file is its number and, once clients can come, READY.
SIGHUP: the settings again. SIGTERM: refuse probes, answer what is under way, end. It does not need whoever started it.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from lbcore.errors import LbcoreError
from lbcore.http.gateway import Configuration, Gateway, Units
from lbcore.http.inbound import Inbound
from lbcore.service.remote import follow

__all__ = ["READY", "main", "serve"]

logger = logging.getLogger(__name__)

READY = b" ready"  # follows the process's number in the lock file
NEAR = ("127.0.0.0/8",)  # whoever comes to a loopback address is on this machine: its front door is believed about its clients

Settings = Mapping[str, Any]
Following = Callable[[Gateway, Settings], Awaitable[None]]


async def follow_file(gateway: Gateway, settings: Settings) -> None:
    """Serve by a file's document, and by the next one that is put in its place, for ever."""
    seen: tuple[int, int] | None = None
    while True:
        try:
            found = os.stat(settings["source"])
            mark = found.st_mtime_ns, found.st_ino
            if mark != seen:
                await gateway.update(await asyncio.to_thread(Configuration.from_file, Path(settings["source"])))
                seen = mark
        except (OSError, LbcoreError, ValueError) as error:
            logger.warning("%s keeps its configuration: %s", gateway.region, error)
        await asyncio.sleep(settings["interval"])


def following(settings: Settings) -> Following | None:
    """Give what brings configurations: `follow`, a function as module:name, or `primary`, or the file `source`; None for none."""
    if name := settings.get("follow"):
        module, _, function = str(name).partition(":")
        return cast(Following, getattr(import_module(module), function))
    if settings.get("primary"):
        return follow
    return follow_file if settings.get("source") else None


class Places:
    """The addresses on which a gateway listens."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._servers: dict[tuple[str, int], asyncio.Server] = {}

    async def be(self, wanted: set[tuple[str, int]]) -> None:
        """Listen on exactly these: on new ones first."""
        for place in sorted(wanted - self._servers.keys()):
            self._servers[place] = await asyncio.get_running_loop().create_server(self._inbound, *place, backlog=1024)
        for place in self._servers.keys() - wanted:
            self._servers.pop(place).close()

    def _inbound(self) -> asyncio.Protocol:
        return cast(asyncio.Protocol, Inbound(self._gateway.engine))


def _wanted(settings: Settings) -> set[tuple[str, int]]:
    found = (settings["public"], settings["private"], *settings["previous"])
    return {(str(host), int(port)) for host, port in filter(None, found)}


async def _apply(gateway: Gateway, places: Places, settings: Settings) -> None:
    gateway.units.resize(settings["units"])
    if settings["disabled"]:
        gateway.disable()
    else:
        gateway.enable()
    await places.be(_wanted(settings))


@asynccontextmanager
async def _brought(gateway: Gateway, settings: Settings) -> AsyncIterator[None]:
    """Let configurations be brought for as long as this lasts."""
    bring = following(settings)
    task = asyncio.ensure_future(bring(gateway, settings)) if bring else None
    if task is not None:
        task.add_done_callback(_told_of_its_end)
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.wait({task})


def _told_of_its_end(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        logger.error("nobody brings configurations any more; the last one is served on", exc_info=task.exception())


async def serve(path: Path, ready: Callable[[], object] = lambda: None) -> None:
    """Serve by the settings in a file until SIGTERM; `ready` is called when clients can come."""
    settings = json.loads(path.read_bytes())
    told: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.put_nowait, number)
    options = {"units": Units(settings["units"]), "keep": settings["keep"], "trusted": settings.get("trusted", NEAR)}
    async with Gateway(settings["region"], service=settings["service"], **options) as gateway:
        places = Places(gateway)
        await _apply(gateway, places, settings)
        async with _brought(gateway, settings):
            ready()
            while await told.get() == signal.SIGHUP:
                await _again(gateway, places, path)
            gateway.drain()
        await places.be(set())
        await gateway.close(settings["grace"])


async def _again(gateway: Gateway, places: Places, path: Path) -> None:
    try:
        await _apply(gateway, places, json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError) as error:
        logger.error("%s serves as before: %s", gateway.region, error)


def main(argument: str) -> int:
    """Serve until told to end; 3 when another process does."""
    logging.basicConfig(format="%(asctime)s %(levelname)s: %(message)s", level=logging.WARNING)
    path = Path(argument)
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _locked(lock):
        return 3
    me = str(os.getpid()).encode()
    os.ftruncate(lock, 0)
    os.pwrite(lock, me, 0)
    asyncio.run(serve(path, lambda: os.pwrite(lock, me + READY, 0)))
    return 0


def _locked(lock: int) -> bool:
    """Take the lock; whoever looks whether it is free holds it for a moment, too."""
    for _ in range(40):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
