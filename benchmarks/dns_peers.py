"""lbcore's DNS server beside gdnsd, Knot, PowerDNS, nsd and the kernel's own floor, on the same City database.

    python benchmarks/dns_peers.py --database GeoLite2-City.mmdb     all of them, alternating, and what was asked of lbcore
    python benchmarks/dns_peers.py --only lbcore,gdnsd,floor         some of them
    python benchmarks/dns_peers.py --churn                           quiet beside samples, a flapping region and reloads
    python benchmarks/dns_peers.py --soak 300                        as fast as it goes for so long: memory, losses, counters
    python benchmarks/dns_peers.py --install                         apt-get install the others first (as root)

Every figure is from one run in which the servers take turns; ratios are medians over rounds. Each server has one thread for UDP and
one core, the load has another. The load is A queries for one steered name with 50,000 random /24 client subnets (EDNS), the same
for all, with a fixed number outstanding; every answer is looked at. Processor time is the server's own CPU clock, in which the kernel
counts sending up to the load's socket. Its split into user and kernel is sampled, and so are shares of little time.

    lbcore          `lbcore dns serve`                       right: what a Balancer of its own picks
    gdnsd           geoip plugin, auto_dc_coords, ECS        right: the nearest by great circle
    floor           recvmmsg, set one bit, sendmmsg; DF: with IP_PMTUDISC_PROBE, which saves the kernel some work
    nsd             one static record: what an authoritative server costs that decides nothing
    Knot            geoip module by continent and country; PowerDNS: geoip backend by continent, with its packet cache (20 s)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import dns_servers
import numpy as np
from dns_churn import churn
from dns_load import Heard, Load
from dns_servers import PEERS, Peer, Server, Setting, start
from dns_soak import soak
from dns_world import ALL, city_database, nearest, picked, regions, subnets
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rounds import Timings

import lbcore

FIRST_PORT = 15_300
WARM_UP = 0.3  # seconds


@dataclass(slots=True)
class Figures:
    """What was measured of one server: per round, and in all."""

    cpu: list[float] = field(default_factory=list)  # seconds a query
    rate: list[float] = field(default_factory=list)  # queries a second
    split: tuple[float, float] = (0.0, 0.0)  # seconds in user space and kernel
    answers: int = 0
    faults: int = 0

    def take(self, cpu: float, split: Sequence[float], heard: Heard) -> None:
        """Take one round."""
        self.cpu.append(cpu / heard.received)
        self.rate.append(heard.received / heard.seconds)
        self.split = (self.split[0] + split[0], self.split[1] + split[1])
        self.answers += heard.received
        self.faults += heard.faults

    @property
    def user(self) -> float:
        """Give the share of the processor time in user space."""
        return self.split[0] / max(sum(self.split), 1e-9)


def expected(database: Path, nets: NDArray[np.uint32]) -> Mapping[str, NDArray[np.uint64]]:
    """Give which answers are right, by `Peer.right`."""
    balancer = lbcore.Balancer(regions(), locate=database)
    return {"any": np.full(len(nets), ALL), "nearest": nearest(database, nets), "lbcore": picked(balancer, nets)}


def one_round(server: Server, load: Load, right: Path | None, seconds: float, figures: Figures) -> None:
    """Load one server for so long and take what it cost."""
    cpu, split = server.seconds(), server.split()
    heard = load.run(server.port, seconds, right)
    figures.take(server.seconds() - cpu, np.subtract(server.split(), split).tolist(), heard)


def check(server: Server, load: Load, right: Path | None) -> None:
    """Ask for every subnet once before anything is timed; SystemExit when an answer is not right."""
    heard = load.run(server.port, 120.0, right, count=load.queries.stat().st_size // load.size)
    if heard.faults:
        raise SystemExit(f"{server.name} cannot be compared: {heard}\n{server.log.read_text()[-1000:]}")


def alternate(servers: Sequence[Server], load: Load, rights: Mapping[str, Path | None], rounds: int, slot: float) -> dict[str, Figures]:
    """Load the servers in turn, in an order that rotates."""
    found = {server.name: Figures() for server in servers}
    for server in servers:
        check(server, load, rights[server.name])
        load.run(server.port, WARM_UP)
    for turn in range(rounds):
        shift = turn % len(servers)
        for server in [*servers[shift:], *servers[:shift]]:
            one_round(server, load, rights[server.name], slot, found[server.name])
    return found


def started(peer: Peer, folder: Path, port: int, database: Path, core: int, starts: int) -> tuple[Server, float]:
    """Start a server several times; give the last one and the median seconds to the first answer."""
    times: list[float] = []
    for turn in range(starts):
        server = start(peer, Setting(folder / str(turn), port, database), core)
        times.append(server.started)
        if turn + 1 < starts:
            server.stop()
    return server, float(np.median(times))


@dataclass(frozen=True, slots=True)
class Asked:
    """One demand on lbcore: at most `limit` of its figure, or of its CPU time a query over another's."""

    text: str
    limit: float
    of: str = ""

    def figure(self, times: Timings, megabytes: float, start: float) -> float:
        """Give what it is about."""
        return times.ratio("lbcore", self.of) if self.of else megabytes if self.text.endswith("MB") else start


ASKED = (
    Asked("<= 0.97x gdnsd", 0.97, "gdnsd"), Asked("<= 1.10x floor", 1.10, "floor"), Asked("<= 0.65x Knot geoip", 0.65, "Knot geoip"),
    Asked("<= 0.25x PowerDNS geoip", 0.25, "PowerDNS geoip"), Asked("<= 120 MB", 120.0), Asked("<= 1.8 s to the first answer", 1.8),
)  # fmt: skip


def table(found: Mapping[str, Figures], megabytes: Mapping[str, float], starts: Mapping[str, float]) -> Table:
    """Give the table of servers."""
    times = Timings({name: np.array(figures.cpu) for name, figures in found.items()})
    heads = ("CPU µs a query", "user", "kernel", "x gdnsd", "x floor", "queries/s", "faults", "MB", "first answer")
    shown = Table("server", title="DNS servers, one core")
    for head in heads:
        shown.add_column(head, justify="right")
    for name, figures in found.items():
        total = times.seconds(name) * 1e6
        ratios = [f"{times.ratio(name, other):.3f}" if other in found else "-" for other in ("gdnsd", "floor")]
        shown.add_row(
            name, f"{total:.2f}", f"{total * figures.user:.2f}", f"{total * (1 - figures.user):.2f}", *ratios,
            f"{np.median(figures.rate):,.0f}", f"{figures.faults:,}", f"{megabytes[name]:.0f}", f"{starts[name]:.2f} s",
        )  # fmt: skip
    return shown


def verdicts(found: Mapping[str, Figures], megabytes: Mapping[str, float], starts: Mapping[str, float]) -> Table:
    """Give what was asked of lbcore and what became of it."""
    times = Timings({name: np.array(figures.cpu) for name, figures in found.items()})
    shown = Table("asked", "measured", "rounds from", "to", "verdict", title="lbcore")
    for asked in ASKED:
        if asked.of and asked.of not in found:
            continue
        figure = asked.figure(times, megabytes["lbcore"], starts["lbcore"])
        spread = times.rounds["lbcore"] / times.rounds[asked.of] if asked.of else np.array([figure])
        verdict = "met" if figure <= asked.limit else "MISSED"
        shown.add_row(asked.text, f"{figure:.3g}", f"{spread.min():.3g}", f"{spread.max():.3g}", verdict)
    return shown


def compare(chosen: argparse.Namespace, folder: Path, console: Console) -> None:
    """Run the servers in turn and print what they cost."""
    peers = [peer for peer in PEERS if not chosen.only or peer.name in chosen.only.split(",")]
    if lacking := dns_servers.missing(tuple(peers)):
        raise SystemExit(f"not installed: {', '.join(lacking)}; --install gets them, --only leaves them out")
    nets, servers, starts = subnets(), [], {}
    load = Load(folder, nets, chosen.load_core, chosen.outstanding)
    files = {kind: load.masks(kind, bits) for kind, bits in expected(chosen.database, nets).items()}
    with ExitStack() as stack:
        for number, peer in enumerate(peers):
            place = folder / peer.program.rpartition("/")[2] / str(number)
            server, starts[peer.name] = started(peer, place, FIRST_PORT + number, chosen.database, chosen.core, chosen.starts)
            stack.callback(server.stop)
            servers.append(server)
        rights = {peer.name: files.get(peer.right) for peer in peers}
        found = alternate(servers, load, rights, chosen.rounds, chosen.slot)
        megabytes = {server.name: server.megabytes() for server in servers}
    console.print(table(found, megabytes, starts))
    if "lbcore" in found:
        console.print(verdicts(found, megabytes, starts))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, help="City database; else GeoLite2-City.mmdb below $LBCORE_GEO")
    parser.add_argument("--only", default="", metavar="NAMES", help=f"some of {', '.join(peer.name for peer in PEERS)}")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--slot", type=float, default=0.5, metavar="SECONDS", help="how long each server is loaded within a round")
    parser.add_argument("--outstanding", type=int, default=128, help="queries under way at once")
    parser.add_argument("--starts", type=int, default=3, help="how often each server is started, for the median")
    parser.add_argument("--core", type=int, default=0, help="the servers' core")
    parser.add_argument("--load-core", type=int, default=1)
    parser.add_argument("--churn", action="store_true", help="lbcore under samples, changes and reloads")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="lbcore for a long time")
    parser.add_argument("--install", action="store_true", help="install the others from Debian first")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    chosen = arguments()
    if chosen.install:
        dns_servers.install()
    chosen.database = city_database(chosen.database).resolve()
    console = Console(width=None if Console().is_terminal else 150)
    cores = (chosen.core, chosen.load_core)
    with tempfile.TemporaryDirectory(prefix="lbcore-dns-") as name:
        if chosen.churn:
            churn(chosen.database, Path(name), FIRST_PORT, chosen.rounds, cores, console)
        elif chosen.soak:
            soak(chosen.database, Path(name), FIRST_PORT, chosen.soak, cores, console)
        else:
            compare(chosen, Path(name), console)


if __name__ == "__main__":
    main()
