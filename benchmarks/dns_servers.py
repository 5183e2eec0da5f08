"""The DNS servers that are compared: how each is set up, run on one core, and watched.

All listen on 127.0.0.1, answer for the world of `dns_world`, and have one thread for UDP; else each runs as deployed, so that
PowerDNS has its packet cache. `Server.seconds` is the processor time of all of a server's threads and processes.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dns_world import CENTRES, NAME, ZONE, Centre, address, packets, subnets

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")
PACKAGES = ("gdnsd", "knot", "knot-module-geoip", "pdns-server", "pdns-backend-geoip", "nsd", "dnsperf")
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
METRICS = 10_000  # lbcore's metrics are at its port and so many
PATIENCE = 60.0  # seconds that a server has until its first answer


def compiled(source: str, folder: Path) -> str:
    """Compile one of our C programs and give its path."""
    program = folder / Path(source).stem
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-o", str(program), str(HERE / source)], check=True)
    return str(program)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a server is set up with: its own empty folder, a port, the City database."""

    folder: Path
    port: int
    database: Path

    def write(self, name: str, text: str) -> str:
        """Write a file of the folder and give its path."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to compare: `write` sets it up and gives its command; right: which answers are (see dns_peers.expected)."""

    name: str
    program: str
    write: Callable[[Setting], list[str]]
    right: str = "any"


# ---- set up


def _lbcore(setting: Setting) -> list[str]:
    text = f'schema_version = 1\n[service]\nname = "www"\ndomain = "{ZONE}"\n'
    for at, centre in enumerate(CENTRES):
        place = f'name = "{centre.name}"\nlat = {centre.lat}\nlon = {centre.lon}\ngateway = "https://{centre.name}.{ZONE}"\n'
        table = "service.primary" if at == 0 else "[service.regions]"
        text += f'\n[{table}]\n{place}addresses = ["{address(at)}"]\nalways_serve = true\n'
    text += f'\n[latency]\ndatabase = "{setting.database}"\n\n[dns]\nlisten = "127.0.0.1:{setting.port}"\n'
    text += f'metrics = "127.0.0.1:{setting.port + METRICS}"\n'
    return [sys.executable, "-m", "lbcore", "dns", "serve", "--config", setting.write("lbcore.toml", text)]


def _gdnsd(setting: Setting) -> list[str]:
    setting.write(f"zones/{ZONE}", "@ SOA ns hostmaster 1 7200 1800 259200 30\n@ NS ns\nns A 192.0.2.53\nwww 30 DYNA geoip!www\n")
    text = gdnsd_options(setting.folder, setting.port) + "plugins => { geoip => {\n" + gdnsd_map("world", setting.database, CENTRES)
    addresses = ", ".join(f"{centre.name} => {address(at)}" for at, centre in enumerate(CENTRES))
    text += f"  resources => {{ www => {{ map => world, service_types => up, dcmap => {{ {addresses} }} }} }}\n}} }}\n"
    setting.write("config", text)
    return ["gdnsd", "-c", str(setting.folder), "start"]


def gdnsd_options(folder: Path, port: int) -> str:
    """Give the options section of gdnsd's configuration."""
    return f"""options => {{
  listen => [ 127.0.0.1 ], dns_port => {port}, udp_threads => 1, tcp_threads => 1, edns_client_subnet => true
  run_dir => {folder}/run, state_dir => {folder}/state
}}
"""


def gdnsd_map(name: str, database: Path, centres: tuple[Centre, ...], limit: int = 3) -> str:
    """Give gdnsd's map that goes by distance; limit: data centres in an answer's order."""
    names = ", ".join(centre.name for centre in centres)
    places = "\n".join(f"      {centre.name} => [ {centre.lat}, {centre.lon} ]" for centre in centres)
    return f"""  maps => {{ {name} => {{
    geoip2_db => {database}, datacenters => [ {names} ], auto_dc_limit => {limit}
    auto_dc_coords => {{
{places}
    }}
  }} }}
"""


def _by_place() -> Iterator[tuple[str, str]]:
    """Give what goes to which address, as "continent;country"."""
    for at, centre in enumerate(CENTRES):
        for continent in centre.continents:
            yield f"{continent};*", address(at)
        for country in centre.countries:
            yield country, address(at)


def _zone_file() -> str:
    return f"$ORIGIN {ZONE}.\n$TTL 30\n@ SOA ns hostmaster 1 7200 1800 259200 30\n@ NS ns\nns A 192.0.2.53\nwww A {address(0)}\n"


def _knot(setting: Setting) -> list[str]:
    places = "".join(f'  - geo: "{place}"\n    A: {to}\n' for place, to in _by_place())
    geo, zone = setting.write("geo.conf", f"{NAME}:\n{places}"), setting.write("zone", _zone_file())
    return ["knotd", "-c", setting.write("knot.conf", f"""
server:
    rundir: {setting.folder}
    listen: 127.0.0.1@{setting.port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
    edns-client-subnet: on
database:
    storage: {setting.folder}
log:
  - target: stderr
    any: error
mod-geoip:
  - id: world
    config-file: {geo}
    ttl: 30
    mode: geodb
    geodb-file: {setting.database}
    geodb-key: [ continent/code, country/iso_code ]
zone:
  - domain: {ZONE}
    file: {zone}
    module: mod-geoip/world
    journal-content: none
""")]  # fmt: skip


def _powerdns(setting: Setting) -> list[str]:
    continents = {place[:2].lower(): to for place, to in _by_place() if place.endswith("*")}
    records = "".join(f"    {place}.{ZONE}:\n      - a: {to}\n" for place, to in (continents | {"default": address(0)}).items())
    zones = setting.write("zones.yaml", f"""domains:
- domain: {ZONE}
  ttl: 30
  records:
    {ZONE}:
      - soa: ns.{ZONE} hostmaster.{ZONE} 1 7200 1800 259200 30
      - ns: ns.{ZONE}
{records}  services:
    {NAME}: ['%cn.{ZONE}', 'default.{ZONE}']
""")  # fmt: skip
    setting.write("pdns.conf", f"""launch=geoip
local-address=127.0.0.1
local-port={setting.port}
receiver-threads=1
distributor-threads=1
edns-subnet-processing=yes
geoip-database-files=mmdb:{setting.database}
geoip-zones-file={zones}
socket-dir={setting.folder}
security-poll-suffix=
disable-syslog=yes
loglevel=3
""")  # fmt: skip
    return ["pdns_server", f"--config-dir={setting.folder}", "--daemon=no", "--guardian=no"]


def _nsd(setting: Setting) -> list[str]:
    zone = setting.write("zone", _zone_file())
    return ["nsd", "-d", "-c", setting.write("nsd.conf", f"""server:
  ip-address: 127.0.0.1@{setting.port}
  server-count: 1
  username: ""
  zonesdir: {setting.folder}
  database: ""
  pidfile: {setting.folder}/nsd.pid
  xfrdfile: ""
  zonelistfile: {setting.folder}/zone.list
  rrl-ratelimit: 0
  minimal-responses: yes
remote-control:
  control-enable: no
zone:
  name: {ZONE}
  zonefile: {zone}
""")]  # fmt: skip


def _floor(setting: Setting, *options: str) -> list[str]:
    return [compiled("dns_floor.c", setting.folder), "127.0.0.1", str(setting.port), *options]


PEERS = (
    Peer("lbcore", sys.executable, _lbcore, "lbcore"),
    Peer("gdnsd", "gdnsd", _gdnsd, "nearest"),
    Peer("floor", "cc", _floor, ""),
    Peer("floor DF", "cc", lambda setting: _floor(setting, "3"), ""),
    Peer("nsd (static)", "nsd", _nsd),
    Peer("Knot geoip", "knotd", _knot),
    Peer("PowerDNS geoip", "pdns_server", _powerdns),
)


# ---- run


def children(pid: int) -> Iterator[int]:
    """Give a process and all that came from it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from children(int(child))


@dataclass(slots=True)
class Server:
    """One server that runs on one core, since the first right answer."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    started: float  # seconds until the first answer
    log: Path
    times: list[float] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """Give its processes."""
        return [*children(self.process.pid)]

    def seconds(self) -> float:
        """Give the processor time spent so far, exactly: by the processes' CPU clocks."""
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in self.pids)  # Source: MAKE_PROCESS_CPUCLOCK, clock_getcpuclockid(3)

    def split(self) -> tuple[float, float]:
        """Give the processor time in user space and in the kernel; sampled at every tick, so right over seconds only."""
        ticks = [_stat(pid) for pid in self.pids]
        return sum(user for user, _ in ticks) / TICKS, sum(kernel for _, kernel in ticks) / TICKS

    def megabytes(self) -> float:
        """Give resident memory, all of it: shared libraries and mapped databases as well."""
        lines = [line for pid in self.pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _stat(pid: int) -> tuple[int, int]:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12])


def start(peer: Peer, setting: Setting, core: int) -> Server:
    """Set a server up, start it on a core and wait for its first answer; SystemExit with its log when none comes."""
    setting.folder.mkdir(parents=True)
    command, log = peer.write(setting), setting.folder / "log"
    begun = time.monotonic()
    with log.open("wb") as out:
        environment = os.environ | {"PATH": PATH, "PYTHONPATH": str(HERE.parent)}
        process = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=out, stderr=out, env=environment)
    while not answers(setting.port):
        if process.poll() is not None or time.monotonic() - begun > PATIENCE:
            process.kill()
            raise SystemExit(f"{peer.name} did not answer:\n{log.read_text()[-2000:]}")
    return Server(peer.name, setting.port, process, time.monotonic() - begun, log)


def answers(port: int) -> bool:
    """Ask once; tell whether a response without an error came within 5 ms."""
    query = struct.pack(">H", 4711) + packets(subnets(1))[0][2:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(0.005)
        asking.connect(("127.0.0.1", port))
        try:
            asking.send(query)
            answer = asking.recv(4096)
        except OSError:
            time.sleep(0.002)
            return False
    return answer[:2] == query[:2] and answer[2] >> 7 == 1 and answer[3] & 15 == 0


def missing(peers: tuple[Peer, ...] = PEERS) -> list[str]:
    """Give the programs that are not installed."""
    return sorted({peer.program for peer in peers if not shutil.which(peer.program, path=PATH)})


def install() -> None:
    """Install the peers from Debian; what Debian starts on port 53 then is the administrator's to stop."""
    subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES], check=True)
