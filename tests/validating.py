"""Debian's unbound on loopback, told to believe nothing of our zones but what it can validate."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.rcode
from dns.message import Message

WAIT = 20  # seconds until a test gives up; nothing waits that long when all is well

CONFIG = """
server:
    directory: "{directory}"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    verbosity: 1
    val-log-level: 2
    do-daemonize: no
    num-threads: 1
    interface: 127.0.0.1@{port}
    outgoing-interface: {source}
    do-ip6: no
    do-not-query-localhost: no
    access-control: 127.0.0.0/8 allow
    module-config: "validator iterator"
    harden-algo-downgrade: yes
    harden-below-nxdomain: yes
    qname-minimisation: yes
    aggressive-nsec: {aggressive}
    val-override-date: "{date}"
    val-bogus-ttl: 0
    infra-cache-min-rtt: 50
{anchors}
remote-control:
    control-enable: yes
    control-interface: {directory}/control
    control-use-cert: no
{stubs}
"""


class Unbound:
    """A running unbound. `ask` is what an application's resolver asks."""

    def __init__(self, program: str, directory: Path, port: int) -> None:
        self._program, self._directory, self._port = program, directory, port

    async def ask(self, name: str, rdtype: str) -> Message:
        """Give the answer, with its signatures."""
        query = dns.message.make_query(name, rdtype, want_dnssec=True)
        return await dns.asyncquery.udp(query, "127.0.0.1", port=self._port, timeout=WAIT)

    async def forget(self, name: str = ".", *, whole: bool = True) -> None:
        """Empty the cache: of a name and all below it, or of the name alone."""
        await self.control("flush_zone" if whole else "flush", name)

    async def control(self, *words: str) -> str:
        """Run unbound-control."""
        done = await asyncio.create_subprocess_exec(
            f"{self._program}-control", "-c", str(self._directory / "unbound.conf"), *words, stdout=-1, stderr=-2
        )
        out, _ = await asyncio.wait_for(done.communicate(), WAIT)
        assert done.returncode == 0, out.decode()
        return out.decode()


@contextlib.asynccontextmanager
async def unbound(
    program: str, directory: Path, zones: Mapping[str, int], anchors: Iterable[str], *,
    source: str = "127.0.0.1", date: str = "", aggressive: bool = False,
) -> AsyncIterator[Unbound]:  # fmt: skip
    """Run unbound while the block does.

    zones: the port of the server on 127.0.0.1 that each zone is asked at
    anchors: DS records that it trusts
    source: the address that it asks from, which to us is the client's
    date: what it takes for the time, YYYYMMDDHHMMSS; "" = the real one
    """
    directory.mkdir(exist_ok=True)
    stubs = "".join(f'stub-zone:\n    name: "{zone}"\n    stub-addr: 127.0.0.1@{at}\n' for zone, at in zones.items())
    trusted = "".join(f'    trust-anchor: "{anchor}"\n' for anchor in anchors)
    parts = {"anchors": trusted, "stubs": stubs, "source": source, "date": date, "aggressive": "yes" if aggressive else "no"}
    config = CONFIG.format(directory=directory, port="{port}", **parts)
    process, port = await _start(program, directory, config)
    try:
        yield Unbound(program, directory, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.wait(), WAIT)


async def _start(program: str, directory: Path, config: str) -> tuple[asyncio.subprocess.Process, int]:
    """Start it, at another port where somebody was quicker to take the one that was free."""
    for _ in range(10):
        port = _free_port()
        file = directory / "unbound.conf"
        file.write_text(config.format(port=port))
        with (directory / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(program, "-d", "-p", "-c", str(file), stdout=log, stderr=log)
        if await _answers(process, port):
            return process, port
    raise AssertionError((directory / "log").read_text())


async def _answers(process: asyncio.subprocess.Process, port: int) -> bool:
    """Wait until it takes queries; False when it ended instead."""
    query = dns.message.make_query("localhost", "A")
    for _ in range(WAIT * 20):
        if process.returncode is not None:
            return False
        with contextlib.suppress(OSError, dns.exception.Timeout):
            await dns.asyncquery.udp(query, "127.0.0.1", port=port, timeout=0.05)
            return True
    raise AssertionError("unbound does not answer")


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def secure(response: Message) -> bool:
    """Say whether the resolver vouches for an answer."""
    return bool(response.flags & dns.flags.AD)


def bogus(response: Message) -> bool:
    """Say whether the resolver refused what it got."""
    return response.rcode() == dns.rcode.SERVFAIL
