"""FrontDoor: takes a call anywhere and sends it to the closest healthy gateway, around a failed region at once.

    client's address -> lb.pick -> forward -> time to the head -> lb.observe, lb.report
                                      \\-- refused, reset, timeout, tls -> lb.report -> next in rank, within the retry budget
    waits too long for an answer -> lb.waiting, every 100 ms: evidence before any timeout
    a group moves because of latency -> one GET in a while goes to where it was, so that it can return
    a region goes down -> its idle connections are closed, calls that still wait there go elsewhere if they may be repeated
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, cast

from lbcore.balancer import LOOK_INTERVAL, TICK_INTERVAL, Change
from lbcore.errors import NoRegionError, UnknownRegionError
from lbcore.http.affinity import Affinity
from lbcore.http.budget import RetryBudget
from lbcore.http.exchange import FAILURES, SMALL
from lbcore.http.explore import Explorer
from lbcore.http.forward import Call, Forwarder, Limits, Response, Target, Timeouts
from lbcore.http.heads import Trusted
from lbcore.http.inbound import Inbound
from lbcore.http.response import ResponseReader
from lbcore.http.routes import Route, Routes, Ticking
from lbcore.http.serving import Server
from lbcore.region import Region
from lbcore.sense.geo import Client

__all__ = ["Affinity", "FrontDoor"]

logger = logging.getLogger(__name__)

_GONE = frozenset(("down", "ejected", "disabled", "draining"))
_FAILED = frozenset(("down", "ejected"))
_STOOD_STILL = TICK_INTERVAL / 2  # seconds
_SLOWER = 4.0  # times a region's usual time to the first byte, after which a call that waits is evidence


# A call's `state`: the route of its attempt, the region's generation when that began, the regions where it was before.
_Way = tuple[Route, int, tuple[str, ...]]


class FrontDoor(Server):
    """Serve HTTP/1.1 and forward every call to the closest healthy region's gateway.

    retries: how many further regions one call may be sent to, >= 0; budget: of retries, None = RetryBudget's defaults
    keep_host: False = Host and TLS server name are the gateway's (the client's stands in X-Forwarded-Host), True = the client's
    trusted: networks of proxies in front that are believed about their clients
    explain_to: networks of clients whose responses carry `Server-Timing`, and `X-Lbcore-Explain` when they send that field
    affinity: keeps a client at its region while that is healthy
    patience: seconds a call may wait for its answer before that is evidence against the region (or four times what is usual there)
    cut_streams: True = responses and WebSockets under way from a region that goes down are cut off at once; False = they may finish,
        which the timeouts bound
    tls: context for gateways with https URLs, None = verified by the system's authorities; limits, timeouts, name: as Forwarder

    A group that moved because of latency sends one GET in a while to where it was (after 5 s, then ever more rarely), so as to return.
    Retried is what failed before any of its response was passed on, if nothing of it was sent or it is idempotent and its body was
    kept (`limits.replay`). Only what was sent before costs budget: the rest is moved, not multiplied. 502, 503 and 504 count as
    failures of the region but are the client's answer.
    Use it as `async with FrontDoor(lb) as door: await door.listen("127.0.0.1", 8080)`, or `await FrontDoor(lb).serve(...)`.
    Source: RFC 9110 §9.2.2 (what may be repeated), Finagle (budget), Envoy (outlier detection of passive failures).
    """

    PORT = 8080

    def __init__(
        self, lb: Ticking, *, retries: int = 2, budget: RetryBudget | None = None, keep_host: bool = False, trusted: Sequence[str] = (),
        explain_to: Sequence[str] = (), affinity: Affinity | None = None, patience: float = 1.0, cut_streams: bool = False,
        tls: ssl.SSLContext | None = None, limits: Limits | None = None, timeouts: Timeouts | None = None, name: str | None = None,
    ) -> None:  # fmt: skip
        if retries < 0:
            raise ValueError(f"retries must be at least 0, got {retries!r}")
        self._lb, self._retries, self._keep_host, self._patience = lb, retries, keep_host, patience
        self._budget = budget or RetryBudget(lb.clock)
        self._affinity, self._cut_streams, self._tls = affinity, cut_streams, tls
        self._explain_to = Trusted(explain_to) if explain_to else None
        self._options: dict[str, Any] = {"trusted": trusted, "limits": limits, "timeouts": timeouts, "name": name, "clock": lb.clock}
        self._routes: Routes
        self._explorer: Explorer
        self._undeposited = 0
        self._waited: dict[tuple[str, int], Client] = {}
        self._counters: Counter[str] = Counter()
        self._unfollow: Callable[[], object] = lambda: None

    # ---- run

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._engine = Forwarder(self, **self._options)
        self._routes = Routes(self._lb, self._engine, self._keep_host, self._tls)
        self._explorer = Explorer(self._lb)
        self._unfollow = self._lb.on_change(lambda change: loop.is_closed() or loop.call_soon_threadsafe(self._changed, change))
        self._engine.keep(loop.create_task(self._repeating(self.tick, TICK_INTERVAL)))
        if self._lb.shared:
            self._engine.keep(loop.create_task(self._repeating(lambda late: self._lb.look(), LOOK_INTERVAL)))
        return self

    async def close(self, grace: float = 0.0) -> None:
        """Accept nobody new, wait `grace` seconds for calls under way, close."""
        engine, self._engine = self._engine, None
        if engine is not None:
            self._unfollow()
            await engine.close(grace)
            self._counters += engine.counters

    # ---- a call's way

    def begin(self, call: Call, /) -> Target | Response:
        """Pick the region."""
        self._undeposited += 1
        try:
            region = self._lb.pick(call.client or None)
            if self._explorer.away and call.sent_all and call.request.method == b"GET":
                region = self._explored(call) or region
            if self._affinity is not None:
                region = self._kept(call) or region
            route = self._routes.known.get(region.name)
            if route is None or route.region is not region:
                route = self._routes.of(region) or self._routes.any(call.client or None)
            call.state = route, self._lb.generation(route.target.name), ()
        except NoRegionError:
            return Response(503, fields=[(b"Retry-After", b"1")])
        except UnknownRegionError:  # removed since it was picked
            return Response(503, fields=[(b"Retry-After", b"0")])
        return route.target

    def _explored(self, call: Call) -> Region | None:
        region = self._explorer.take(call.client or None)
        self._counters["explored"] += region is not None
        return region

    def _kept(self, call: Call) -> Region | None:
        assert self._affinity is not None
        region = self._affinity.region_of(call.request, self._lb.regions)
        return region if region is not None and self._routes.serves(region, call.client or None) else None

    def retry(self, call: Call, cause: str | None, /) -> Target | None:
        """Report the failure and give the next in rank that was not tried."""
        self._failed(call, cause)
        return self._elsewhere(call, True) if call.repeatable else None

    def _elsewhere(self, call: Call, failed: bool = False) -> Target | None:
        before, _, tried = cast(_Way, call.state)
        tried = (*tried, before.target.name)
        route = self._routes.next(call.client or None, tried, failed) if len(tried) <= self._retries else None
        if route is None:
            return None
        self._deposit()
        if call.started and not self._budget.withdraw():  # what was never sent is moved, not multiplied
            self._counters["budget_exhausted"] += 1
            return None
        self._counters["retries"] += 1
        call.state = route, self._routes.generation(route), tried
        return route.target

    # ---- what is learned

    def answered(self, call: Call, head: ResponseReader, /) -> Target | None:
        """Learn from a response's head."""
        route, gen, _ = cast(_Way, call.state)
        if head.status in FAILURES:
            self._failed(call, "status")
        else:
            try:
                name, client = route.target.name, call.client or None
                took = call.head_at - call.sent_at
                if took >= 0 and call.request.received <= SMALL:
                    route.usual += (took - route.usual) * 0.05
                    self._lb.answered(name, took * 1000.0, client, gen=gen)
                    if self._explorer.away:
                        self._explorer.learned(route.region, took * 1000.0, client)
                else:
                    self._lb.report(name, True, client, gen=gen)
            except UnknownRegionError:
                pass  # removed while the call was under way
        if self._affinity is not None and head.status not in FAILURES:
            call.extra += self._affinity.cookie_for(call.request, route.region, call.inbound.secure)
        if self._explain_to is not None and call.client in self._explain_to:
            call.extra += self._explanation(call, route)
        return None

    def failed(self, call: Call, response: Response, /) -> Response:
        """Answer as the engine would: what there is to learn was learned in `retry`."""
        return response

    def done(self, call: Call, /) -> None:
        """Report a response that was cut off."""
        if call.cut:
            self._failed(call, call.cause)

    def _failed(self, call: Call, cause: str | None) -> None:
        self._counters[f"failed_{cause or 'here'}"] += 1
        route, gen, _ = cast(_Way, call.state)
        if cause is not None:
            try:
                self._lb.report(route.target.name, False, call.client or None, cause=cause, gen=gen)
            except UnknownRegionError:
                pass

    def _explanation(self, call: Call, route: Route) -> bytes:
        waited, took = (call.sent_at - call.begun_at) * 1000.0, (call.head_at - call.sent_at) * 1000.0
        name = json.dumps(route.region.name)  # ASCII, quoted
        text = f"Server-Timing: lbcore;dur={max(0.0, waited):.3f}, gateway;dur={max(0.0, took):.3f};desc={name}\r\n"
        if call.request.field(b"x-lbcore-explain") is not None:
            text += f"X-Lbcore-Explain: {json.dumps(self._lb.explain(call.client or None).as_dict(), separators=(',', ':'))}\r\n"
        return text.encode("ascii")

    def under_way(self) -> dict[str, int]:
        """Give how many calls and relays are under way to regions, by name."""
        if self._engine is None:
            return {}
        calls = [inbound.call for inbound in self._engine.inbounds] + [relay.call for relay in self._engine.relays]
        return dict(Counter(call.target.name for call in calls if call is not None and call.target is not None))

    # ---- regions that change

    def _changed(self, change: Change) -> None:
        """Use a region's connections no more; calls that wait there go elsewhere."""
        route = self._routes.known.get(change.region)
        if route is None or change.after not in _GONE or self._engine is None:
            return
        route.target.upstream.close_idle()
        if change.after in _FAILED:
            calls = [inbound.call for inbound in self._engine.inbounds]
            for call in calls:
                if call is not None and call.target is route.target:
                    self._leave(call)
            for relay in [*self._engine.relays] if self._cut_streams else ():
                if relay.call.target is route.target:
                    relay.close()

    def _leave(self, call: Call) -> None:
        """Take a call away from a region that is down, if it may be sent again."""
        if call.status:
            if self._cut_streams:
                call.failed("reset")
        elif call.repeatable and (target := self._elsewhere(call)) is not None:
            self._counters["moved"] += 1
            call.redirect(target)

    # ---- time

    async def _repeating(self, act: Callable[[float], object], interval: float) -> None:
        while True:
            due = time.monotonic() + interval
            await asyncio.sleep(interval)
            try:
                act(time.monotonic() - due)
            except Exception:
                logger.exception("a tick failed; the next one tries again")

    def tick(self, late: float = 0.0) -> None:
        """Tell the Balancer who waits, and let it do what is due. Called every 100 ms.

        late: seconds that the call comes late. From half an interval on it accuses nobody: this process, or all of its machine, stood
        still, and the answers may be there already, unread. Source: Lifeguard, arXiv 1707.00788 (local health).
        """
        self._deposit()
        self._tell_waiting([] if late > _STOOD_STILL else self.engine.inbounds)
        self._lb.tick()
        self._explorer.tick()
        self._routes.tidy()

    def _deposit(self) -> None:
        if self._undeposited:
            self._budget.deposit(self._undeposited)
            self._undeposited = 0

    def _tell_waiting(self, inbounds: Iterable[Inbound]) -> None:
        """Count the calls that wait longer than they should, by region and group; when that was enough, take them elsewhere."""
        now, counts, clients, late = self._lb.clock(), Counter[tuple[str, int]](), dict[tuple[str, int], Client](), list[Call]()
        for inbound in inbounds:
            call = inbound.call
            if call is not None and self._is_late(call, now):
                late.append(call)
                key = call.state[0].target.name, self._lb.match(call.client or None)[0]
                counts[key] += 1
                clients[key] = call.client or None
        for (name, group), client in (self._waited | clients).items():
            try:
                self._lb.waiting(name, counts[name, group], client)
            except UnknownRegionError:
                pass
        self._waited = clients
        for call in late:
            if self._routes.excluded(call.state[0].target.name, call.client or None):  # a path that is broken is told to nobody as a change
                self._leave(call)

    def _is_late(self, call: Call, now: float) -> bool:
        if call.status or call.state is None or call.finished:
            return False
        since = call.wanted_at if call.connection is None else call.sent_at if call.sent_all else now
        route, gen, _ = cast(_Way, call.state)
        return now - since > max(self._patience, _SLOWER * route.usual) and gen == self._routes.generation(route)
