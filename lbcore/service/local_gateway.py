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
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from lbcore.errors import LbcoreError
from lbcore.http.gateway import Configuration, Gateway, Units
from lbcore.http.inbound import Inbound
from lbcore.service.remote import follow

__all__ = ["READY", "main", "serve"]

logger = logging.getLogger(__name__)

FOLLOWED = ("follow", "primary", "token_file", "ca", "source", "interval")  # settings that say who brings configurations
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


class _Bringing:
    """Lets configurations be brought to a gateway, by whom the settings name last."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway, self._task, self._by = gateway, cast("asyncio.Future[None] | None", None), dict[str, Any]()

    async def be(self, settings: Settings) -> None:
        """Follow whom these settings name; nothing happens when that is who is followed."""
        by = {key: settings.get(key) for key in FOLLOWED} | {"written": _written(settings.get("token_file"))}
        if by != self._by:
            await self.end()
            self._by, bring = by, following(settings)
            if bring is not None:
                self._task = asyncio.ensure_future(bring(self._gateway, settings))
                self._task.add_done_callback(_told_of_its_end)

    async def end(self) -> None:
        """Follow nobody."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None


def _written(path: str | None) -> int:
    """Give when a file was written, 0 when there is none."""
    with suppress(OSError):
        return os.stat(path).st_mtime_ns if path else 0
    return 0


def _told_of_its_end(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        logger.error("nobody brings configurations any more; the last one is served on", exc_info=task.exception())


async def serve(path: Path, ready: Callable[[], object] = lambda: None) -> None:
    """Serve by the settings in a file until SIGTERM; `ready` is called when clients can come."""
    told: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.put_nowait, number)
    settings = json.loads(path.read_bytes())
    options = {"units": Units(settings["units"]), "keep": settings["keep"], "trusted": settings.get("trusted", NEAR)}
    async with Gateway(settings["region"], service=settings["service"], **options) as gateway:
        places = Places(gateway)
        await _apply(gateway, places, settings)
        bringing = _Bringing(gateway)
        await bringing.be(settings)
        ready()
        while await told.get() == signal.SIGHUP:
            await _again(gateway, places, bringing, path)
        await bringing.end()
        gateway.drain()
        await places.be(set())
        await gateway.close(settings["grace"])


async def _again(gateway: Gateway, places: Places, bringing: _Bringing, path: Path) -> None:
    try:
        settings = json.loads(path.read_bytes())
        await _apply(gateway, places, settings)
        await bringing.be(settings)
    except (OSError, ValueError, KeyError) as error:
        logger.error("%s serves as before: %s", gateway.region, error)


def main(argument: str) -> int:
    """Serve until told to end; 3 when another process does."""
    logging.basicConfig(format="%(asctime)s %(levelname)s: %(message)s", level=logging.WARNING)
    path = Path(argument)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until `serve` minds it: a primary that has just come back may send it at any moment
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
