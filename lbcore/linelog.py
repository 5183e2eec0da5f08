"""LineLog: a log of JSON lines, written by a thread of its own, so that a slow or full disk delays nobody.

Nobody rotates here: logrotate moves the file away and sends HUP, `reopen` does the rest. Processes may write to one file: every line
is appended whole.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import logging
import os
import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

__all__ = ["LineLog", "stamp"]

logger = logging.getLogger(__name__)

WAITING = 10_000  # lines between those who log and the thread that writes; more are dropped and counted
LAST_WORDS = 5.0  # seconds for writing what is left when it closes
AT_ONCE = 256  # lines that go to the file together
T = TypeVar("T")


class LineLog(Generic[T]):
    """Write lines to a file; a context manager that closes with everything written.

    kind: what messages call it. A subclass says in `describe` what a line holds; that runs in the writing thread.
    `written` and `dropped` count lines; `mode`: of a file that is made. Raises OSError when the file cannot be opened.
    """

    mode: ClassVar[int] = 0o666

    def __init__(self, path: Path, kind: str, *, wall: Callable[[], datetime.datetime] | None = None) -> None:
        self.written = self.dropped = 0
        self._path, self._kind, self._wall = path, kind, wall or (lambda: datetime.datetime.now(datetime.UTC))
        self._queue: queue.Queue[T | None] = queue.Queue(WAITING)
        self._moved = self._ending = self._failing = self._torn = False
        self._file = _open(path, self.mode)
        self._thread = threading.Thread(target=self._run, name=f"lbcore-{kind.replace(' ', '-')}", daemon=True)
        self._thread.start()

    def describe(self, work: T, /) -> dict[str, Any]:
        """Give what the line says; what it raises drops the line."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._wake()
        self._thread.join(LAST_WORDS)
        if not self._thread.is_alive():
            _close(self._file)

    def put(self, work: T, /) -> None:
        """Hand something to the writer; never waits."""
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            self.dropped += 1

    def reopen(self) -> None:
        """Open the file anew before the next line, after it was moved away. The old stays in use if that fails."""
        self._moved = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(queue.Full):  # then it is awake
            self._queue.put_nowait(None)

    def _run(self) -> None:
        while True:
            works = self._next()
            if self._moved:
                self._try(self._reopen, 0)
            lines = [line for work in works if (line := self._line(work))]
            if lines:
                self._try(partial(self._append, lines), len(lines))
            if self._ending and self._queue.empty():
                return

    def _next(self) -> list[T]:
        """Wait for something to write, and take what else is there."""
        first = self._queue.get()
        works = [] if first is None else [first]
        with contextlib.suppress(queue.Empty):
            while first is not None and len(works) < AT_ONCE:
                first = self._queue.get_nowait()
                works += [] if first is None else [first]
        return works

    def _try(self, what: Callable[[], None], lines: int) -> None:
        """Do it; what fails, a full disk say, costs these lines, and the next ones get their chance."""
        try:
            what()
        except Exception as error:
            self.dropped += lines
            if not self._failing:
                logger.error("%s %s: %s", self._kind, self._path, error)
            self._failing = True

    def _reopen(self) -> None:
        self._moved = False
        old, self._file = self._file, _open(self._path, self.mode)
        _close(old)

    def _append(self, lines: list[bytes]) -> None:
        """Write lines in one piece, which nobody else's gets into."""
        data = b"\n" * self._torn + b"".join(lines)
        taken = self._file.write(data)
        self._torn = taken < len(data) and (taken > 0 or self._torn)
        if taken < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += len(lines)
        self._failing = False

    def _line(self, work: T) -> bytes:
        made = list[bytes]()
        self._try(lambda: made.append(json.dumps({"time": stamp(self._wall())} | self.describe(work)).encode() + b"\n"), 1)
        return b"".join(made)


def _open(path: Path, mode: int) -> Any:
    return open(path, "ab", buffering=0, opener=partial(os.open, mode=mode))


def _close(file: Any) -> None:
    with contextlib.suppress(OSError):
        file.close()


def stamp(now: datetime.datetime) -> str:
    """Give a time in UTC as RFC 3339 has it, with milliseconds."""
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
