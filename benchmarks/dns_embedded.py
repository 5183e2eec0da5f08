"""lbcore's DNS server within somebody's process, which on demand learns, sees regions come and go, and reloads.

    python dns_embedded.py DATABASE PORT        prints {"threads": [...]}: the native ids of the threads that answer

Lines on stdin: "churn" and "quiet" begin and end it; each is answered by a line with what was done since the last:
    samples   10,000 a second, of random clients and regions, each within 10 % of what is expected of the region
    changes   of one region's status: probes fail in the first half of each second, and succeed in the second
    reloads   of the zones, one a second: everything is prepared anew
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
from dns_world import FLAPPING, SAMPLE_NOISE, ZONE, regions, subnets

import lbcore
from lbcore.detect import Consecutive, Guard
from lbcore.dns import Profile, Responder
from lbcore.dns.server import Server
from lbcore.dns.zone import Zone

SAMPLES_PER_SECOND, STEP = 10_000, 0.01  # seconds


class Churn:
    """What happens beside the answering, each kind in a thread of its own, while `on` is set."""

    def __init__(self, lb: lbcore.Balancer, responder: Responder, zone: Zone) -> None:
        self._lb, self._responder, self._zone = lb, responder, zone
        self.on = threading.Event()
        self.done = {"samples": 0, "changes": 0, "reloads": 0}
        self._samples, self._until = self._next_sample(), 0.0  # seconds until which samples were taken
        lb.on_change(lambda change: self._count("changes"))
        for work, every in ((self._learn, STEP), (self._flap, 0.5), (self._reload, 1.0)):
            threading.Thread(target=self._repeat, args=(work, every), daemon=True).start()

    def _repeat(self, work: Callable[[], None], every: float) -> None:
        due = time.monotonic()
        while self.on.wait():
            due = max(due + every, time.monotonic())
            work()
            time.sleep(max(0.0, due - time.monotonic()))

    def start(self) -> None:
        """Begin."""
        self._until = time.monotonic()
        self.on.set()

    def _count(self, kind: str, many: int = 1) -> None:
        self.done[kind] += many

    def _next_sample(self) -> Iterator[tuple[str, float, bytes]]:
        """Give region, milliseconds and client, for ever the same hundred thousand."""
        rng, lb = np.random.default_rng(2), self._lb
        names = [region.name for region in lb.regions]
        clients = [int(net).to_bytes(4, "big") for net in rng.choice(subnets(), 100_000)]
        noise = rng.uniform(1 - SAMPLE_NOISE, 1 + SAMPLE_NOISE, len(clients))
        chosen = rng.integers(len(names), size=len(clients))
        expected = [float(lb.table.estimates(lb.map.lookup(client))[at]) for client, at in zip(clients, chosen, strict=True)]
        samples = [*zip([names[at] for at in chosen], (noise * expected).tolist(), clients, strict=True)]
        while True:
            yield from samples

    def _learn(self) -> None:
        """Observe what is due since the last time, however long that took."""
        now = time.monotonic()
        many, self._until = int((now - self._until) * SAMPLES_PER_SECOND), now
        for (region, ms, client), _ in zip(self._samples, range(many), strict=False):
            self._lb.observe(region, ms, client)
        self._count("samples", many)

    def _flap(self) -> None:
        up = self._lb.status(FLAPPING) == "up"
        self._lb.report(FLAPPING, not up, cause="refused" if up else None, source="probe")

    def _reload(self) -> None:
        self._responder.reload(self._zone)
        self._count("reloads")

    def quiet(self) -> None:
        """End it, with every region up."""
        self.on.clear()
        time.sleep(0.6)
        self._lb.report(FLAPPING, True, source="probe")


async def obey(churn: Churn) -> None:
    """Do what stdin says until it ends."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        if line == b"churn\n":
            churn.start()
        else:
            await asyncio.to_thread(churn.quiet)
        print(json.dumps(churn.done), flush=True)
        churn.done.update(dict.fromkeys(churn.done, 0))


async def main() -> None:
    detector = Guard(Consecutive(tolerated=0, rise=1), hold_down=None)  # with one, a region that flaps would soon be kept down
    lb = lbcore.Balancer(regions(always=False), sys.argv[1], detector)
    zone = Zone(ZONE, {"www": Profile("www", ZONE)})
    responder = Responder(lb, zone)
    async with Server(responder, "127.0.0.1", int(sys.argv[2])):
        churn = Churn(lb, responder, zone)
        serving = [thread.native_id for thread in threading.enumerate() if thread.name.startswith("lbcore-dns-")]
        print(json.dumps({"threads": serving}), flush=True)
        with contextlib.suppress(asyncio.CancelledError):
            await obey(churn)


if __name__ == "__main__":
    asyncio.run(main())
