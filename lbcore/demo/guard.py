"""Ends everything that a demo started, and removes its folder, once the demo has ended, in whatever way it did.

    python guard.py FOLDER        begins when its stdin ends

Whatever the demo starts, and what that starts, inherits MARK = FOLDER in its environment: by that it is found, in whichever session it is.
Started as a script, so it imports nothing but the standard library. Linux only, as gateways on loopback addresses of their own are.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["MARK", "end", "marked"]

MARK = "LBCORE_DEMO"
LIMIT = 20.0  # seconds


def marked(folder: str) -> Iterator[int]:
    """Give the numbers of the processes that a demo with this folder started, and that have not ended."""
    sign = os.fsencode(f"{MARK}={folder}")
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if sign in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
            except OSError:
                continue  # another user's, or it has just ended


def end(folder: str) -> bool:
    """Kill them all, and those that they start meanwhile; say whether none is left."""
    deadline = time.monotonic() + LIMIT
    while left := [*marked(folder)]:
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except OSError:
                continue
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


if __name__ == "__main__":
    sys.stdin.buffer.read()
    there = end(sys.argv[1])
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    sys.exit(0 if there else 1)
