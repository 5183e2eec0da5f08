"""Print what one DNS answer costs before it reaches a socket, and how that grows: by names, by regions, by kind of question.

    python benchmarks/dns_growth.py                  ns an answer, s and MB to prepare
    python benchmarks/dns_growth.py --database FILE  with a city database in place of the embedded table

Parse, look-up of the name, look-up of the client's network, pick and writing, for 20,000 random /24 networks as client subnets;
CPU time of the thread, median of the rounds. The kernel's part is in dns_peers.py.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import time
from collections.abc import Iterator

import dns.edns
import dns.message
from build_floors import compiled
from rich.console import Console
from rich.table import Table

import lbcore
from lbcore.dns import Profile
from lbcore.dns._wire import Wire
from lbcore.dns.prepare import build
from lbcore.dns.route import compile_routes
from lbcore.dns.zone import Zone

NETWORKS, ROUNDS = 20_000, 15
NAMES = (1, 1_000, 10_000, 100_000)
REGIONS = (2, 8, 64, 512)
QUESTIONS = {
    "A, client subnet": ("api.example.com", "A", True), "A": ("api.example.com", "A", False), "NODATA": ("api.example.com", "TXT", False),
    "static TXT": ("n0.example.com", "TXT", False), "NXDOMAIN": ("no.such.example.com", "A", False), "REFUSED": ("example.net", "A", False),
}  # fmt: skip


def regions(count: int) -> list[lbcore.Region]:
    """Give regions spread over the globe."""
    places = random.Random(1)
    return [
        lbcore.Region(f"r{i}", places.uniform(-60, 70), places.uniform(-180, 180), addresses=(f"192.0.2.{i % 250 + 1}",))
        for i in range(count)
    ]


def packets(name: str, rdtype: str, tailored: bool) -> list[bytes]:
    """Give queries that differ in their id and, when tailored, in their client subnet."""
    draw = random.Random(2)
    networks = [f"{draw.randrange(1, 224)}.{draw.randrange(256)}.{draw.randrange(256)}.0" for _ in range(NETWORKS if tailored else 1)]
    options = [[dns.edns.ECSOption(network, 24)] if tailored else [] for network in networks]
    return [dns.message.make_query(name, rdtype, use_edns=0, options=option).to_wire() for option in options]


def wire_of(names: int, count: int, database: str | None) -> Wire:
    """Give a compiled path that answers for one steered name, `count` regions and `names` static ones."""
    lb = lbcore.Balancer(regions(count), database)
    records = "".join(f'n{i} 60 IN TXT "{i}"\n' for i in range(names))
    answers = build([Zone("example.com", {"api": Profile(name="api", zone="example.com")}, records=records)], lb.objects)
    wire = Wire()
    wire.publish(answers, compile_routes(answers.roots, lb))
    return wire


def nanoseconds(wire: Wire, asked: list[bytes]) -> float:
    """Give the median ns of one answer."""
    answer_all, repeat = compiled("responding").answer_all, max(1, 200_000 // len(asked))
    taken = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        assert answer_all(wire, asked, repeat) == repeat * len(asked)
        taken.append((time.thread_time() - began) / repeat / len(asked))
    return statistics.median(taken) * 1e9


def rows(database: str | None) -> Iterator[tuple[str, ...]]:
    """Measure one size after the other."""
    for names, count in dict.fromkeys([*((names, 8) for names in NAMES), *((1, count) for count in REGIONS)]):
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wire = wire_of(names, count, database)
        prepared, grown = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        costs = [f"{nanoseconds(wire, packets(*question)):.0f}" for question in QUESTIONS.values()]
        yield (f"{names:,}", f"{count:,}", *costs, f"{prepared:.2f}", f"{grown / 1024:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="a city database (mmdb)")
    table = Table("static names", "regions", *(f"{question}, ns" for question in QUESTIONS), "prepared in, s", "MB more at the peak")
    for row in rows(parser.parse_args().database):
        table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
