"""lbcore's DNS server under churn: the same process and tables, quiet and not, in turn (see dns_embedded.py for what happens)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from dns_load import Heard, Load
from dns_servers import HERE, answers
from dns_world import possible, regions, subnets
from rich.console import Console
from rich.table import Table

import lbcore

SLOT = 3.0  # seconds: several changes and reloads in each
LIMIT = 1.10  # times the quiet figure


@dataclass(slots=True)
class Side:
    """What was measured quiet, or under churn; seconds a query: of the threads that answer, of the whole process."""

    serving: list[float] = field(default_factory=list)
    process: list[float] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    done: dict[str, int] = field(default_factory=dict)

    def total(self, key: str) -> float:
        """Give a sum over the rounds of what was heard."""
        return float(sum(getattr(heard, key) for heard in self.heard))


class Embedded:
    """The process with the server in it."""

    def __init__(self, database: Path, port: int, core: int) -> None:
        command = ["taskset", "-c", str(core), sys.executable, str(HERE / "dns_embedded.py"), str(database), str(port)]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        self.port = port
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self._threads: Sequence[int] = self._line()["threads"]

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("dns_embedded.py ended")
        return dict(json.loads(line))

    def tell(self, what: str) -> dict[str, Any]:
        """Let it churn or be quiet; gives what it did since it was told something."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._line()

    def seconds(self) -> tuple[float, float]:
        """Give the processor time of the threads that answer, and of the process. Source: proc(5), /proc/PID/schedstat."""
        stats = [Path(f"/proc/{self.process.pid}/task/{thread}/schedstat").read_text() for thread in self._threads]
        return sum(int(stat.split()[0]) for stat in stats) * 1e-9, time.clock_gettime(~self.process.pid << 3 | 2)


@contextmanager
def embedded(database: Path, port: int, core: int) -> Iterator[Embedded]:
    """Run it, and wait until it answers."""
    running = Embedded(database, port, core)
    try:
        while not answers(port):
            pass
        yield running
    finally:
        running.process.terminate()
        running.process.wait()


def one_round(running: Embedded, load: Load, right: Path, what: str, side: Side) -> None:
    """Load it for a slot while it churns or is quiet."""
    running.tell(what)
    before = running.seconds()
    heard = load.run(running.port, SLOT, right)
    spent = np.subtract(running.seconds(), before) / heard.received
    side.serving.append(float(spent[0]))
    side.process.append(float(spent[1]))
    side.heard.append(heard)
    if what == "churn":
        for key, count in running.tell("quiet").items():
            side.done[key] = side.done.get(key, 0) + count


def churn(database: Path, folder: Path, port: int, rounds: int, cores: tuple[int, int], console: Console) -> None:
    """Measure and print; cores: the server's and the load's."""
    nets = subnets()
    load = Load(folder, nets, cores[1])
    right = load.masks("churn", possible(lbcore.Balancer(regions(), locate=database), nets))
    sides = {"quiet": Side(), "churn": Side()}
    with embedded(database, port, cores[0]) as running:
        load.run(port, 0.5)
        for turn in range(rounds):
            for what in [*sides][:: 1 if turn % 2 else -1]:
                one_round(running, load, right, what, sides[what])
    console.print(table(sides))
    console.print(verdict(sides))


def table(sides: dict[str, Side]) -> Table:
    """Give what was measured of either."""
    shown = Table("", title="lbcore's DNS server embedded in a process, one core")
    for head in ("serving thread, µs a query", "whole process", "queries/s", "answers", "lost", "wrong", "longest gap"):
        shown.add_column(head, justify="right")
    for name, side in sides.items():
        micros = [f"{np.median(times) * 1e6:.2f}" for times in (side.serving, side.process)]
        counts = [f"{side.total(key):,.0f}" for key in ("received", "lost", "wrong")]
        gap = max(heard.longest for heard in side.heard)
        shown.add_row(name, *micros, f"{side.total('received') / side.total('seconds'):,.0f}", *counts, f"{gap * 1e3:.0f} ms")
    return shown


def verdict(sides: dict[str, Side]) -> str:
    """Say what became of what was asked."""
    quiet, busy = sides["quiet"], sides["churn"]
    ratios = np.array(busy.serving) / np.array(quiet.serving)
    faults = sum(heard.faults for side in sides.values() for heard in side.heard)
    ratio, done = float(np.median(ratios)), ", ".join(f"{count:,} {key}" for key, count in busy.done.items())
    met = "met" if ratio <= LIMIT and not faults else "MISSED"
    spread = f"{ratios.min():.3f}..{ratios.max():.3f}"
    figure = f"{met}: {ratio:.3f}x the quiet figure ({spread}; asked <= {LIMIT}), {faults} lost or wrong"
    return f"{figure}; in {busy.total('seconds'):.0f} s {done}"
