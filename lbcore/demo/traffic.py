"""The demo's clients: each asks DNS with its subnet and calls the API at the front door, again and again, and remembers what it saw."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import dns.asyncquery
import dns.edns
import dns.exception
import dns.message
import httpx

from lbcore.demo.backend import answer_to
from lbcore.demo.places import CLIENTS, Client

__all__ = ["Outcome", "Traffic"]

CALL_EVERY, QUERY_EVERY = 0.75, 1.0  # seconds
TIMEOUT = 3.0
REMEMBERED = 20_000  # calls: more than any chapter has


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call went: when it ended, whose, which region answered ("" = none), and why it is lost ("" = it is not)."""

    at: float
    client: Client
    region: str
    lost: str


class Traffic:
    """Everybody's calls and queries while this is open.

    url: of the API; server: address and port of DNS; name: of the service
    known: gives the region that an address belongs to, "" when it is nobody's
    """

    def __init__(self, url: str, server: tuple[str, int], name: str, known: Callable[[str], Awaitable[str]]) -> None:
        self.clients = [Client(*each) for each in CLIENTS]
        self.outcomes: deque[Outcome] = deque(maxlen=REMEMBERED)
        self.calls = self.lost = self.queries = self.unanswered = 0
        self.last_named: dict[str, float] = {}  # region -> when DNS named it last
        self._url, self._server, self._name, self._known = url, server, name, known
        self._may, self._under_way = asyncio.Event(), 0
        self._may.set()

    async def __aenter__(self) -> Traffic:
        self._http = httpx.AsyncClient(timeout=TIMEOUT, trust_env=False, limits=httpx.Limits(max_keepalive_connections=len(self.clients)))
        habits = ((CALL_EVERY, self._call), (QUERY_EVERY, self._query))
        self._tasks = [asyncio.create_task(self._repeat(every, work, client)) for client in self.clients for every, work in habits]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.aclose()

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Let everybody wait, from when what is under way has ended."""
        self._may.clear()
        while self._under_way:
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            self._may.set()

    async def _repeat(self, every: float, work: Callable[[Client], Coroutine[Any, Any, None]], client: Client) -> None:
        """Do something again and again, start to start, out of step with everybody else."""
        loop = asyncio.get_running_loop()
        due = loop.time() + random.Random(f"{work.__name__} {client.city}").random() * every
        while True:
            await asyncio.sleep(due - loop.time())
            await self._may.wait()
            self._under_way += 1
            try:
                await work(client)
            finally:
                self._under_way -= 1
            due = max(due + every, loop.time())

    async def _call(self, client: Client) -> None:
        """Call the API at the front door, which believes a proxy on this machine about whom it speaks for."""
        began, region, lost = time.perf_counter(), "", ""
        try:
            response = await self._http.get(self._url, headers={"x-forwarded-for": client.address})
        except httpx.HTTPError as error:
            lost = repr(error)
        else:
            region = response.headers.get("x-lbcore-region", "")
            if response.status_code == 200 and response.text == answer_to(client.address, region):
                client.by_http, client.revision = region, response.headers["x-lbcore-revision"]
                client.ms = (time.perf_counter() - began) * 1000
            else:
                lost = f"{response.status_code} {response.text[:200]}"
        self.outcomes.append(Outcome(time.monotonic(), client, region, lost))
        self.calls += 1
        self.lost += lost != ""

    async def _query(self, client: Client) -> None:
        """Ask DNS the way the client's resolver would."""
        option = dns.edns.ECSOption(str(client.subnet.network_address), client.subnet.prefixlen)
        query = dns.message.make_query(self._name, "A", use_edns=True, options=[option])
        self.queries += 1
        try:
            answer = await dns.asyncquery.udp(query, self._server[0], timeout=TIMEOUT, port=self._server[1])
            region = await self._known(answer.answer[0][0].to_text())
        except (dns.exception.DNSException, OSError, LookupError):
            region = ""
        if region:
            client.by_dns = region
            self.last_named[region] = time.monotonic()
        else:
            self.unanswered += 1

    # ---- looking at it

    def since(self, at: float) -> tuple[int, list[Outcome]]:
        """Give how many calls ended since a moment of the monotonic clock, and those of them that were lost."""
        ended = [outcome for outcome in self.outcomes if outcome.at >= at]
        return len(ended), [outcome for outcome in ended if outcome.lost]
