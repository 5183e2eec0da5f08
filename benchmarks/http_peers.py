"""The front door beside nginx, haproxy, and the usual Python proxy (uvicorn + httpx): processor time a request.

    python benchmarks/http_peers.py                          all, alternating, and what was asked of lbcore
    python benchmarks/http_peers.py --only nginx,lbcore      some of them
    python benchmarks/http_peers.py --rounds 10 --seconds 2 --connections 32

Needs wrk, nginx and haproxy (apt-get install wrk nginx haproxy) and, for the last peer, uvicorn. Each proxy has core 0 for itself, wrk
and the upstream (nginx, 104 bytes) share core 1; keep-alive on both sides, no TLS. Within a round the proxies take turns, in an order
that rotates; ratios are medians over rounds. Processor time is user + system time of the proxy's process from /proc, so that it does
not matter that core 1 limits the fast ones. `bare` forwards bytes with httptools on uvloop and decides nothing: the floor for Python.
The load has no think time: what is compared is cost, not latency.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from rich.console import Console
from rich.table import Table

UPSTREAM = 18_900
BODY = "0123456789abcdef" * 6 + "01234567"
HERE = Path(__file__)
TICKS = os.sysconf("SC_CLK_TCK")

# of ASGI
Receive: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

NGINX = """
worker_processes 1; daemon off; pid {folder}/{name}.pid; error_log {folder}/{name}.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d;
  scgi_temp_path {folder}/e;
  upstream there {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }}
}}
"""
ANSWER = f'default_type text/plain; return 200 "{BODY}";'
FORWARD = (
    'proxy_pass http://there; proxy_http_version 1.1; proxy_set_header Connection ""; '
    "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;"
)
HAPROXY = """
global
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option forwardfor
frontend in
  bind 127.0.0.1:{port}
  default_backend there
backend there
  http-reuse always
  server one 127.0.0.1:{upstream}
"""


@dataclass(slots=True)
class Peer:
    """A proxy under test: how it is started, and what was measured: (user, system) seconds a request and requests a second."""

    name: str
    command: Callable[[Path, int], Sequence[str]]
    port: int
    pids: list[int] = field(default_factory=list)
    cpu: list[tuple[float, float]] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)

    @property
    def microseconds(self) -> list[float]:
        """Give the processor time a request of each round, µs."""
        return [(user + system) * 1e6 for user, system in self.cpu]


def nginx(folder: Path, port: int, name: str = "nginx", location: str = FORWARD) -> Sequence[str]:
    """Write a configuration and give the command."""
    path = folder / f"{name}.conf"
    path.write_text(NGINX.format(folder=folder, name=name, port=port, upstream=UPSTREAM, location=location))
    return "nginx", "-c", str(path)


def haproxy(folder: Path, port: int) -> Sequence[str]:
    """Write a configuration and give the command."""
    path = folder / "haproxy.cfg"
    path.write_text(HAPROXY.format(port=port, upstream=UPSTREAM))
    return "haproxy", "-db", "-f", str(path)


def this(role: str) -> Callable[[Path, int], Sequence[str]]:
    """Give the command of a proxy that this file holds."""
    return lambda folder, port: (sys.executable, str(HERE), "--serve", role, "--port", str(port))


PEERS = {
    "nginx": nginx,
    "haproxy": haproxy,
    "bare": this("bare"),
    "lbcore": this("lbcore"),
    "lbcore-gateway": this("gateway"),
    "uvicorn+httpx": this("httpx"),
}


# ===== proxies in Python


def serve_lbcore(port: int) -> None:
    """Serve a front door of five regions: locate, pick, forward, observe, report."""
    import uvloop

    import lbcore
    from lbcore.http.front import FrontDoor

    names = ("westeurope", "eastus", "japaneast", "brazilsouth", "australiaeast")
    lb = lbcore.Balancer([lbcore.Region(name, gateway=f"http://127.0.0.1:{UPSTREAM}") for name in names])
    uvloop.run(FrontDoor(lb).serve("127.0.0.1", port))


def serve_gateway(port: int) -> None:
    """Serve a regional gateway: ten APIs of ten operations, units; a header in, a rate limit by client, a header out."""
    import uvloop

    from lbcore.http.gateway import Gateway, Units

    operations = [{"name": f"o{n}", "method": "GET", "path": f"/things{n}/{{id}}"} for n in range(9)]
    apis = [
        {"name": f"api{n}", "path": f"/api{n}" if n else "", "backend": "there",
         "operations": [{"name": "home", "method": "GET", "path": "/"}, *operations]} for n in range(10)
    ]  # fmt: skip
    policies = {
        "inbound": [
            {"policy": "set-header", "name": "x-tier", "value": "gold"},
            {"policy": "rate-limit", "calls": 100_000, "period": 1, "by": "client"},
        ],
        "outbound": [{"policy": "set-header", "name": "x-served-by", "value": "lbcore"}],
    }
    backends = [{"name": "there", "urls": [f"http://127.0.0.1:{UPSTREAM}"]}]
    gateway = Gateway("westeurope", units=Units(100))
    gateway.apply({"epoch": 1, "sequence": 1, "apis": apis, "backends": backends, "policies": policies})
    uvloop.run(gateway.serve("127.0.0.1", port))


def serve_bare(port: int) -> None:
    """Serve the floor: parse heads, pass bytes on over one upstream connection for each client."""
    import asyncio

    import httptools
    import uvloop

    class Side(asyncio.Protocol):
        def __init__(self, other: Side | None = None) -> None:
            self.other = other
            parser = httptools.HttpRequestParser if other is None else httptools.HttpResponseParser
            self.parser, self.data = parser(self), b""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def on_header(self, name: bytes, value: bytes) -> None:
            pass

        def on_message_complete(self) -> None:
            data, self.data = self.data, b""
            if self.other is None:
                loop.create_task(self.connect(data))
            else:
                self.other.transport.write(data)

        async def connect(self, data: bytes) -> None:
            _, self.other = await loop.create_connection(lambda: Side(self), "127.0.0.1", UPSTREAM)
            self.other.transport.write(data)

        def data_received(self, data: bytes) -> None:
            self.data = data
            self.parser.feed_data(data)

        def connection_lost(self, error: Exception | None) -> None:
            if self.other is not None:
                self.other.transport.close()

    async def main() -> None:
        await (await loop.create_server(Side, "127.0.0.1", port)).serve_forever()

    loop = uvloop.new_event_loop()
    loop.run_until_complete(main())


def serve_httpx(port: int) -> None:
    """Serve the usual ASGI proxy: uvicorn, and one httpx.AsyncClient that keeps its connections."""
    import httpx
    import uvicorn

    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{UPSTREAM}", trust_env=False, limits=httpx.Limits(max_connections=256))

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        body = (await receive()).get("body", b"")
        response = await client.request(scope["method"], scope["path"], content=body, headers=scope["headers"])
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.headers.raw})
        await send({"type": "http.response.body", "body": response.content})

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", lifespan="off")


SERVE = {"lbcore": serve_lbcore, "gateway": serve_gateway, "bare": serve_bare, "httpx": serve_httpx}


# ===== measuring


@contextmanager
def running(command: Sequence[str], core: int, port: int) -> Iterator[list[int]]:
    """Run a server on one core; gives its processes once it answers."""
    process = subprocess.Popen(["taskset", "-c", str(core), *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield [process.pid, *children(process.pid)]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(port: int) -> None:
    """Wait until the right answer comes; RuntimeError when it does not."""
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                if answer.read().decode() == BODY:
                    return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"no right answer from port {port}")


def children(pid: int) -> list[int]:
    """Give the processes that a process started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu(pids: Sequence[int]) -> tuple[float, float]:
    """Give user and system seconds so far."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(stat[11]) for stat in stats) / TICKS, sum(int(stat[12]) for stat in stats) / TICKS


def load(port: int, connections: int, seconds: float) -> int:
    """Give how many requests were answered; RuntimeError if any was not answered with 200."""
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", f"http://127.0.0.1:{port}/"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(output)
    return int(output.partition(" requests in")[0].split()[-1])


def measure(peer: Peer, connections: int, seconds: float) -> None:
    """Take one round of one peer."""
    before, start = cpu(peer.pids), time.monotonic()
    requests = load(peer.port, connections, seconds)
    after = cpu(peer.pids)
    peer.cpu.append(((after[0] - before[0]) / requests, (after[1] - before[1]) / requests))
    peer.rate.append(requests / (time.monotonic() - start))


def ratio(peer: Peer, other: Peer) -> float:
    """Give the median over rounds of the ratio within a round."""
    return statistics.median(mine / theirs for mine, theirs in zip(peer.microseconds, other.microseconds, strict=True))


def table(peers: Sequence[Peer]) -> Table:
    """Show what was measured."""
    by_name = {peer.name: peer for peer in peers}
    shown = Table(title="HTTP/1.1, keep-alive, 104-byte body: processor time a request")
    for column in ("proxy", "µs a request", "user", "system", "requests/s", "x nginx", "asked"):
        shown.add_column(column, justify="left" if column == "proxy" else "right")
    for peer in peers:
        user, system = (statistics.median(part[index] for part in peer.cpu) * 1e6 for index in (0, 1))
        times = f"{ratio(peer, by_name['nginx']):.2f}" if "nginx" in by_name else "-"
        cost = statistics.median(peer.microseconds)
        rate = statistics.median(peer.rate)
        shown.add_row(peer.name, f"{cost:.1f}", f"{user:.1f}", f"{system:.1f}", f"{rate:.0f}", times, asked(peer, by_name))
    return shown


def asked(peer: Peer, by_name: dict[str, Peer]) -> str:
    """Say what was asked of a peer, and whether it holds."""
    most = {"lbcore": 2.0, "lbcore-gateway": 3.0}.get(peer.name)
    if most is not None and "nginx" in by_name:
        return f"<= {most:.1f}x nginx: {'yes' if ratio(peer, by_name['nginx']) <= most else 'no'}"
    if peer.name == "uvicorn+httpx" and "lbcore" in by_name:
        times = ratio(peer, by_name["lbcore"])
        return f">= 10x lbcore: {'yes' if times >= 10 else 'no'} ({times:.0f}x)"
    return ""


def compare(names: Sequence[str], rounds: int, seconds: float, connections: int) -> list[Peer]:
    """Run the peers side by side and measure them in turns."""
    peers = [Peer(name, PEERS[name], UPSTREAM + 1 + index) for index, name in enumerate(names)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.chmod(folder, 0o755)
        stack.enter_context(running(nginx(folder, UPSTREAM, "upstream", ANSWER), 1, UPSTREAM))
        for peer in peers:
            peer.pids = stack.enter_context(running(peer.command(folder, peer.port), 0, peer.port))
            load(peer.port, connections, 1)  # warm
        for turn in range(rounds):
            shift = turn % len(peers)
            for peer in peers[shift:] + peers[:shift]:
                measure(peer, connections, seconds)
    return peers


def main() -> None:
    """Parse arguments and compare, or serve as one of the proxies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(PEERS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--serve", choices=SERVE, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        SERVE[options.serve](options.port)
        return
    names = [name for name in options.only.split(",") if name]
    missing = [program for program in ("wrk", "taskset", "nginx", "haproxy") if shutil.which(program) is None]
    if missing or (os.cpu_count() or 1) < 2 or not {*names} <= {*PEERS}:
        sys.exit(f"needs two cores, and {', '.join(missing) or 'names among ' + ', '.join(PEERS)}")
    Console().print(table(compare(names, options.rounds, options.seconds, options.connections)))


if __name__ == "__main__":
    main()
