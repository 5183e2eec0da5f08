"""lbcore's DNS server for minutes, as fast as dnsperf can ask on the other core: memory, losses, and whether the counters agree."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
from dns_load import Load, dnsperf_input
from dns_servers import METRICS, PATH, PEERS, Server, Setting, start
from dns_world import subnets
from rich.console import Console
from rich.table import Table

WARM_UP = 0.1  # of the time, at least 5 s
GROWTH_MB = 1.0  # between the first and the last tenth after it


def counted(port: int) -> dict[str, float]:
    """Give the server's counters, summed over their labels; they are shown a moment after the first answer."""
    for _ in range(50):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port + METRICS}/metrics", timeout=10) as page:
            text = page.read().decode()
            break
        time.sleep(0.1)
    else:
        raise SystemExit("lbcore shows no metrics")
    found: dict[str, float] = {}
    for name, value in re.findall(r"^(lbcore_dns_\w+_total)(?:{.*})? (\S+)$", text, re.MULTILINE):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def watch(server: Server, asking: subprocess.Popen[str]) -> list[tuple[float, float]]:
    """Give the seconds and the server's megabytes, twice a second until the load ends."""
    begun, found = time.monotonic(), []
    while asking.poll() is None:
        found.append((time.monotonic() - begun, server.megabytes()))
        time.sleep(0.5)
    return found


def growth(memory: list[tuple[float, float]]) -> float:
    """Give the megabytes between the means of the first and the last tenth after the warm-up."""
    times, sizes = np.array(memory).T
    sizes = sizes[times > max(5.0, WARM_UP * times[-1])]
    tenth = max(1, len(sizes) // 10)
    return float(sizes[-tenth:].mean() - sizes[:tenth].mean())


def statistics(output: str) -> dict[str, float]:
    """Read what dnsperf counted."""
    names = {"sent": "Queries sent", "completed": "Queries completed", "lost": "Queries lost", "rate": "Queries per second"}
    return {key: float(match[1]) for key, text in names.items() if (match := re.search(rf"{text}:\s+([\d.]+)", output))}


def soak(database: Path, folder: Path, port: int, seconds: float, cores: tuple[int, int], console: Console) -> None:
    """Measure and print; cores: the server's and the load's."""
    load = Load(folder, subnets(), cores[1])
    stream = dnsperf_input(folder, load.queries, load.size)
    server = start(PEERS[0], Setting(folder / "lbcore", port, database), cores[0])
    command = f"taskset -c {cores[1]} dnsperf -B -d {stream} -s 127.0.0.1 -p {port} -l {seconds:g} -c 1 -T 1 -q 128"
    try:
        before, spent = counted(port), server.seconds()
        asking = subprocess.Popen(command.split(), stdout=subprocess.PIPE, text=True, env={"PATH": PATH})
        memory = watch(server, asking)
        found = statistics(asking.communicate()[0])
        after, spent = counted(port), server.seconds() - spent
    finally:
        server.stop()
    report(memory, found, {key: count - before.get(key, 0.0) for key, count in after.items()}, spent, console)


def report(memory: list[tuple[float, float]], found: dict[str, float], counts: dict[str, float], spent: float, console: Console) -> None:
    """Print the memory over time, both sides' counts, and the verdict."""
    shown = Table("seconds", "MB", title="memory")
    for at in np.linspace(0, len(memory) - 1, min(11, len(memory))).astype(int):
        shown.add_row(f"{memory[at][0]:.0f}", f"{memory[at][1]:.1f}")
    console.print(shown)
    queries, answered = counts.get("lbcore_dns_queries_total", 0), counts.get("lbcore_dns_answers_total", 0)
    client = [f"{found[key]:,.0f} {key}" for key in ("sent", "completed", "lost")]
    console.print(f"dnsperf: {', '.join(client)}, {found['rate']:,.0f} queries/s")
    console.print(f"server: {queries:,.0f} queries, {answered:,.0f} answers, {spent / max(queries, 1) * 1e6:.2f} µs of CPU a query")
    grown = growth(memory)
    right = found["lost"] == 0 and found["sent"] == found["completed"] == queries == answered
    verdict = "met" if right and grown < GROWTH_MB else "MISSED"
    console.print(f"{verdict}: grew by {grown:.2f} MB after warm-up, counters {'agree' if right else 'DISAGREE'}")
