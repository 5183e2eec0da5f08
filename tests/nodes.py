"""Processes of `lbcore run` for end-to-end tests, and waiting by conditions."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WAIT = 120.0  # seconds until a test gives up; nothing takes that long when all is well


async def until(what: Callable[[], Any], why: str, limit: float = WAIT, pause: float = 0.02) -> Any:
    """Wait until something holds, asked as a function or a coroutine function, and give it."""
    deadline = time.monotonic() + limit
    while True:
        found = what()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not in {limit:g} s: {why}"
        await asyncio.sleep(pause)


class Node:
    """One `lbcore run FILE`, again and again: `start` after `kill` finds what the last one left on disk."""

    def __init__(self, file: Path, **options: Any) -> None:
        self.file, self._options = file, options
        self.child: subprocess.Popen[bytes] | None = None
        self.output = file.with_suffix(".log")
        self._read_from = 0

    def begin(self) -> None:
        """Start it and do not wait."""
        assert self.child is None or self.child.poll() is not None
        self._read_from = self.output.stat().st_size if self.output.exists() else 0
        command = [sys.executable, "-m", "lbcore", "run", str(self.file), "--json"]
        with self.output.open("ab") as out:
            self.child = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **self._options
            )  # fmt: skip

    async def start(self) -> dict[str, Any]:
        """Start it; gives its word that it is ready."""
        self.begin()
        return await self.ready()

    async def ready(self) -> dict[str, Any]:
        """Wait for its word that it is ready."""
        found: list[dict[str, Any]] = await until(lambda: self.events("ready") or self.ended, f"{self.file.name} is ready")
        assert not self.ended, f"{self.file.name} ended with {self.child and self.child.returncode}:\n{self.log}"
        return found[-1]

    @property
    def ended(self) -> bool:
        return self.child is not None and self.child.poll() is not None

    async def end(self) -> int:
        """Wait until it has ended by itself; gives the exit code."""
        assert self.child is not None
        await until(lambda: self.ended, f"{self.file.name} ends")
        return self.child.returncode

    @property
    def log(self) -> str:
        """Give what it has said since its last start, on either output."""
        with self.output.open("rb") as file:
            file.seek(self._read_from)
            return file.read().decode(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        lines = [line for line in self.log.splitlines() if line.startswith('{"event"') and line.endswith("}")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group: supervisor and workers."""
        assert self.child is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, number)

    def kill(self, group: bool = False) -> None:
        """kill -9 of the supervisor alone, which its workers must notice by themselves, or of the group."""
        assert self.child is not None
        if group:
            self.signal(signal.SIGKILL)
        self.child.kill()
        self.child.wait()

    async def gone(self) -> None:
        """Wait until no process of its group is left."""
        assert self.child is not None
        group = self.child.pid
        await until(lambda: not members(group), f"the workers of {self.file.name} end as well")

    async def stop(self) -> int:
        """End it as an operator does."""
        assert self.child is not None
        self.child.send_signal(signal.SIGTERM)
        return await self.end()


def _stats() -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                yield int(folder.name), (folder / "stat").read_text().rpartition(")")[2].split()


def members(session: int) -> list[int]:
    """Give the living processes of a session."""
    return [pid for pid, stat in _stats() if int(stat[3]) == session and stat[0] != "Z"]


def naming(words: str) -> list[int]:
    """Give the living processes that have these words on their command line."""
    found = []
    for pid, stat in _stats():
        with contextlib.suppress(OSError):
            if stat[0] != "Z" and words.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found
