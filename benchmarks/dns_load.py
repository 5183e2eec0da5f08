"""The load on a DNS server: the same random client subnets for each, a fixed number of queries outstanding (see dns_load.c)."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from dns_servers import compiled
from dns_world import packets
from numpy.typing import NDArray

OUTSTANDING = 128  # fits a socket's default buffer: nothing is dropped, however slow the server


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of the queries of one run. wrong: a code, a question or an address that cannot be right."""

    sent: int
    received: int
    lost: int
    wrong: int
    strange: int
    seconds: float
    longest: float  # seconds between two batches of answers

    @property
    def faults(self) -> int:
        """Give the queries that were not answered rightly, and answers nobody asked for."""
        return self.lost + self.wrong + self.strange


class Load:
    """Ask for subnets from one core; where a run stops, the next one on the same server goes on."""

    def __init__(self, folder: Path, nets: NDArray[np.uint32], core: int, outstanding: int = OUTSTANDING) -> None:
        self._program = ["taskset", "-c", str(core), compiled("dns_load.c", folder)]
        self._folder, self._outstanding = folder, outstanding
        wire, self.size = packets(nets)
        self.queries = folder / "queries"
        self.queries.write_bytes(wire)
        self._next: dict[int, int] = {}

    def masks(self, name: str, possible: NDArray[np.uint64]) -> Path:
        """Write down which answers are right and give the file for `run`."""
        path = self._folder / f"right-{name}"
        path.write_bytes(possible.tobytes())
        return path

    def run(self, port: int, seconds: float, right: Path | None = None, *, count: int | None = None, rate: float | None = None) -> Heard:
        """Ask for so many seconds or so often, at most `rate` queries a second."""
        first = self._next.get(port, 0)
        words = [*self._program, "127.0.0.1", str(port), str(self.queries), str(self.size), "-b", "-s", str(first), "-t", str(seconds)]
        options = {"-w": self._outstanding, "-m": right, "-n": count, "-q": rate}
        words += [word for key, value in options.items() if value is not None for word in (key, str(value))]
        found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        self._next[port] = first + found["sent"]
        return Heard(**{key: found[key] for key in Heard.__dataclass_fields__})


def dnsperf_input(folder: Path, queries: Path, size: int) -> Path:
    """Write the same queries as dnsperf reads them with -B: as a stream of TCP messages."""
    plain = np.frombuffer(queries.read_bytes(), np.uint8).reshape(-1, size)
    heads = np.broadcast_to(np.frombuffer(size.to_bytes(2, "big"), np.uint8), (len(plain), 2))
    path = folder / "dnsperf"
    path.write_bytes(np.concatenate([heads, plain], axis=1).tobytes())
    return path
