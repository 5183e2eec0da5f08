"""Local: regions as gateway processes on this machine, one loopback address each. They outlive the primary, which finds them again.

A folder holds, for each region: NAME.json, what its process serves; NAME.lock, which the process holds locked for as long as it lives and
in which it wrote its number, so that nobody else's process is ever taken for it; NAME.log; NAME/, its last configurations.
`local_gateway` is the process.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from lbcore import state
from lbcore.errors import ServiceError
from lbcore.service.progress import Granted
from lbcore.service.provisioning import Order, ProvisionError

__all__ = ["Local", "Tokens", "process_of", "running"]

logger = logging.getLogger(__name__)

_PUBLIC, _PRIVATE = "127.0", "127.128"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LAST_GRACE = 2.0  # seconds that a process has, beyond the grace of its calls, until it is killed


class Tokens(Protocol):
    """Who gives regions what they show to the primary."""

    def file(self, name: str) -> str:
        """Give the path of the file that has a region's token, made when missing."""

    def end(self, name: str) -> None:
        """Let a region's token hold no longer."""


class Local:
    """Start gateways on this machine.

    folder: for what the processes need, made when missing
    primary: URL of its gatewayConfiguration, which they follow;  token_file: with the token that it is shown;  ca: file of its authority
    revive: whether a process that died is started again; else it stays dead, as in drills, until this machine is restarted
    tokens: gives each region a token file of its own, in the place of token_file
    source: file with their configuration, where there is no primary
    port: of every gateway, on the region's own address, 0 = any that is free;  grace: seconds for calls under way when one stops
    limit: seconds to wait for a process;  interval: seconds between two looks of a gateway at its configuration
    options: of every gateway's process, such as `follow`, or `trusted` (networks of front doors, default those on this machine): see
        local_gateway
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, primary: str = "", token_file: str = "", ca: str = "", source: str = "",
        port: int = 8081, grace: float = 5.0, limit: float = 30.0, interval: float = 1.0, options: Mapping[str, Any] | None = None,
        revive: bool = False, tokens: Tokens | None = None,
    ) -> None:  # fmt: skip
        self._tokens, self._revive, self._tended = tokens, revive, False
        self._to_start: set[str] = set()  # that this machine's restart has ended
        self._trouble: dict[str, str] = {}  # with looking after a region, by name
        self._folder, self.limit, self._port = Path(folder).absolute(), limit, port
        follows = {"primary": primary, "token_file": token_file, "ca": ca, "source": source}
        self._common = follows | {"grace": grace, "interval": interval} | dict(options or {})
        self._grace = grace
        self._giving = threading.Lock()  # addresses, to one region after the other
        self._busy: dict[str, threading.Lock] = {}  # by region: an order that was given up may still be under way
        self._children: list[subprocess.Popen[bytes]] = []

    async def carry_out(self, order: Order) -> Granted:
        """Make a region run as it is ordered, or not run at all."""
        return await asyncio.to_thread(self._carry_out, order)

    async def switch(self, name: str, disabled: bool) -> None:
        """Let a region's gateway refuse, or take, clients."""
        await asyncio.to_thread(self._tell, name, {"disabled": disabled})

    async def release(self, name: str, public_ips: tuple[str, ...]) -> None:
        """Let a region's gateway listen no longer on addresses that it gave up."""
        await asyncio.to_thread(self._release, name, public_ips)

    async def revive(self) -> tuple[str, ...]:
        """Start what does not run any more, say after this machine's restart, with its addresses; give the names."""
        gone = [path.stem for path in sorted(self._folder.glob("*.json")) if self.process(path.stem) is None]
        for name in gone:
            await asyncio.to_thread(self._start, name)
        return tuple(gone)

    async def tend(self) -> None:
        """Look after the processes, at the start of a primary and every few seconds.

        At first they are brought in line with what is common to all now, such as the primary's URL. Those that this machine's restart has
        ended are started; those that died by themselves, or were killed in a drill, with `revive` alone.
        """
        await asyncio.to_thread(self._tend)

    async def close(self) -> None:
        """Leave the processes as they are."""

    def _tend(self) -> None:
        first, self._tended = not self._tended, True
        if not (first or self._revive or self._to_start):
            return
        names = [path.stem for path in sorted(self._folder.glob("*.json"))]
        restarted = first and self._rebooted()
        self._to_start = {*names} if restarted else self._to_start & {*names}
        for name in names:
            try:
                self._look_after(name, first, self._revive or name in self._to_start)
            except (ProvisionError, ServiceError, OSError) as error:  # the others are looked after still
                if self._trouble.get(name) != str(error):
                    logger.error("%s: %s; it is tried again", name, error)
                self._trouble[name] = str(error)
            else:
                self._to_start.discard(name)
                self._trouble.pop(name, None)
        if not self._to_start:  # else the next primary is to know, too
            self._mark_boot()

    def _look_after(self, name: str, first: bool, again: bool) -> None:
        with self._busy.setdefault(name, threading.Lock()):
            if first:
                self._bring_in_line(name)
            if not (first or again) or not (self._folder / f"{name}.json").exists() or self.process(name) is not None:
                return
            if again:
                logger.warning("%s does not run any more; it is started again", name)
                self._start(name)
            else:
                logger.warning("%s does not run any more; `lbcore regions refresh %s` starts it again", name, name)

    def _bring_in_line(self, name: str) -> None:
        settings = self._read(name)
        now = settings | self._common | self._own(name)
        if settings and now != settings:
            self._write(name, now)
            self._signal(name, signal.SIGHUP)

    def _own(self, name: str) -> dict[str, str]:
        return {"token_file": self._tokens.file(name)} if self._tokens is not None else {}

    def _rebooted(self) -> bool:
        """Say whether this machine was restarted since the mark was made."""
        try:
            return (self._folder / "boot").read_text() != _BOOT.read_text()
        except OSError:
            return False

    def _mark_boot(self) -> None:
        with suppress(OSError):
            now, mark = _BOOT.read_bytes(), self._folder / "boot"
            if self._folder.is_dir() and (not mark.exists() or mark.read_bytes() != now):
                state.write(mark, now)

    # ---- a region

    def _carry_out(self, order: Order) -> Granted:
        with self._busy.setdefault(order.name, threading.Lock()):
            return self._stop(order) if order.work == "delete" else self._run(order)

    def _run(self, order: Order) -> Granted:
        assert order.location is not None
        self._folder.mkdir(0o700, parents=True, exist_ok=True)
        with self._giving:
            settings = self._settings(order)
            self._write(order.name, settings)
        self._start(order.name)
        return self._granted(settings)

    def _settings(self, order: Order) -> dict[str, Any]:
        """Give what a region's process is to serve; an order that comes again gives the same."""
        old, location = self._read(order.name), order.location
        assert location is not None
        public, previous = old.get("public"), old.get("previous", [])
        if public is None or (order.new_public and public[0] in order.public_ips):
            previous = [*previous, public] if public else []
            public = self._place(_PUBLIC)
        private = old.get("private") if order.network_mode == "Internal" else None
        if order.network_mode == "Internal" and (private is None or (order.new_private and private[0] in order.private_ips)):
            private = self._place(_PRIVATE)
        return {
            **self._common, **self._own(order.name), "region": order.name, "service": order.service, "units": max(1, location.units),
            "public": public, "private": private, "previous": previous, "disabled": location.disable_gateway,
            "keep": str(self._folder / order.name),
        }  # fmt: skip

    def _granted(self, settings: Mapping[str, Any]) -> Granted:
        (host, port), private = settings["public"], settings["private"]
        return Granted((host,), (private[0],) if private else (), f"http://{host}:{port}")

    def _place(self, network: str) -> tuple[str, int]:
        """Give an address that no region has, with a port that is free there."""
        taken = {place[0] for path in self._folder.glob("*.json") for place in _places(_json(path))}
        for host in (f"{network}.{number // 250 + 1}.{number % 250 + 1}" for number in range(250 * 250)):
            if host not in taken:
                with suppress(OSError), socket.create_server((host, self._port)) as free:
                    return host, free.getsockname()[1]
        raise ProvisionError(f"no loopback address is left on which port {self._port} is free")

    def _start(self, name: str) -> None:
        """Start a region's process unless it runs; let one that runs take its settings anew."""
        if self._signal(name, signal.SIGHUP):
            return
        (self._folder / f"{name}.lock").write_bytes(b"")  # of the one before: its number may be another process's by now
        with (self._folder / f"{name}.log").open("ab") as log:
            path = str(self._folder / f"{name}.json")
            child = subprocess.Popen(
                [sys.executable, "-m", "lbcore.service.local_gateway", path], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, close_fds=True,
            )  # fmt: skip
        self._children = [one for one in self._children if one.poll() is None] + [child]
        deadline = time.monotonic() + self.limit
        while not (self._folder / f"{name}.lock").read_bytes().endswith(b" ready"):
            if child.poll() is not None:
                raise ProvisionError(f"its gateway ended at once, with {child.returncode}; see {name}.log")
            if time.monotonic() > deadline:
                raise ProvisionError(f"its gateway did not start within {self.limit:g} s")
            time.sleep(0.02)

    def _stop(self, order: Order) -> Granted:
        self._signal(order.name, signal.SIGTERM)
        if not self._gone(order.name, self._grace + _LAST_GRACE):
            self._signal(order.name, signal.SIGKILL)
            if not self._gone(order.name, _LAST_GRACE):
                raise ProvisionError("its gateway's process does not end")
        (self._folder / f"{order.name}.json").unlink(missing_ok=True)
        if self._tokens is not None:
            self._tokens.end(order.name)
        return Granted()

    def _gone(self, name: str, limit: float) -> bool:
        deadline = time.monotonic() + limit
        while self.process(name) is not None:
            for child in self._children:
                child.poll()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def _release(self, name: str, public_ips: tuple[str, ...]) -> None:
        kept = [place for place in self._read(name).get("previous", []) if place[0] not in public_ips]
        self._tell(name, {"previous": kept})

    def _tell(self, name: str, changed: Mapping[str, Any]) -> None:
        with self._busy.setdefault(name, threading.Lock()):
            settings = self._read(name)
            if not settings:
                raise ProvisionError("it does not run on this machine")
            self._write(name, settings | dict(changed))
            self._signal(name, signal.SIGHUP)

    # ---- its process

    def process(self, name: str) -> int | None:
        """Give the number of a region's process, None when none runs."""
        return process_of(self._folder / f"{name}.lock")

    def _signal(self, name: str, number: signal.Signals) -> bool:
        process = self.process(name)
        if process is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(process, number)
        return True

    def _read(self, name: str) -> dict[str, Any]:
        return _json(self._folder / f"{name}.json")

    def _write(self, name: str, settings: Mapping[str, Any]) -> None:
        state.write(self._folder / f"{name}.json", json.dumps(settings).encode())


def running(folder: Path) -> dict[str, int]:
    """Give the regions whose processes run, with their numbers. folder: of a Local"""
    found = {path.stem: process_of(path) for path in sorted(folder.glob("*.lock"))}
    return {name: process for name, process in found.items() if process is not None}


def process_of(lock: Path) -> int | None:
    """Give the number of the process that holds a lock file, None when nobody does."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        number = lock.read_text().partition(" ")[0]
        return int(number) if number.isdecimal() else None
    except FileNotFoundError:
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ProvisionError(f"{path.name} cannot be read: {error}") from None
    return found


def _places(settings: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    yield from (place for place in (settings.get("public"), settings.get("private"), *settings.get("previous", ())) if place)
