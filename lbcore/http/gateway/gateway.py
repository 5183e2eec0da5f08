"""Gateway: a region's data plane. It takes calls by one immutable revision of its configuration at a time.

    begin: status path? -- units: room? -- revision held -- router -- inbound -- backend -- the backend's closest healthy URL
    answered: outbound, headers; retry: the next URL; failed: on_error; done: revision and unit given back
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

from lbcore.balancer import TICK_INTERVAL
from lbcore.errors import ConfigError
from lbcore.http._limits import Limits as CallLimits
from lbcore.http.budget import RetryBudget
from lbcore.http.exchange import FAILURES, SMALL
from lbcore.http.forward import Call, Field, Forwarder, Limits, Response, Target, Timeouts
from lbcore.http.gateway.backends import Backend, Backends, Way
from lbcore.http.gateway.configuration import Configuration
from lbcore.http.gateway.kept import Kept
from lbcore.http.gateway.revision import Entrance, Revision, StaleRevisionError, head_lines
from lbcore.http.gateway.router import Match, Miss, Route
from lbcore.http.gateway.units import Units
from lbcore.http.heads import Trusted
from lbcore.http.policies import Context, Deployment, Failure, KeySets, Site
from lbcore.http.response import ResponseReader
from lbcore.region import canonical
from lbcore.sense.monitor import STATUS_PATH

__all__ = ["Gateway", "Visit"]

logger = logging.getLogger(__name__)

_STATUS = STATUS_PATH.encode()
_NONE = "none"  # the revision, before there is one
_OURS = b"x-lbcore-re"  # X-Lbcore-Region, X-Lbcore-Revision
_CAUSES = {400: "bad-request", 404: "not-found", 405: "method-not-allowed"}
_JSON: Sequence[Field] = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"))


class Visit(Context):
    """A call's way through the gateway: what policies see of it, and what the gateway has to remember.

    held: the revision it began with; entrance: of the API, None = it reached none; target: the client's own; way: the last one taken
    tried: names of ways; gen: of the backend's URL when the attempt began
    """

    # Defaults of the class cost nothing.
    entrance: Entrance | None = None
    route: Route | None = None
    origin: Backend | None = None
    way: Way | None = None
    gen: int | None = None
    tried: tuple[str, ...] = ()
    timer: asyncio.TimerHandle | None = None

    def __init__(self, call: Call, deployment: Deployment, held: Revision) -> None:
        super().__init__(call, deployment, revision=held.name)
        self.held, self.target = held, call.request.target


class Gateway:
    """Serve HTTP/1.1 by a configuration of APIs and policies, in one region.

    region: its name; service, gateway: names that policies and the status path tell
    units: how much it takes, None = one unit; keep: folder for the last configurations applied, None = nothing is kept
    regions: the service's; a configuration that names another one is refused. None = any
    retries: further attempts of a call that has no retry policy, >= 0, within `budget`
    limits: counters of rate limits, None = this process's own; keys: JSON Web Key Sets; log: takes records of the policy log
    trusted: networks of proxies in front that are believed about their clients
    explain_to: networks of clients that are told api, operation, backend and URL when they send `X-Lbcore-Explain`
    tls: context for backends with https URLs, None = verified by the system's authorities; connections: options as Upstream
    max_size, timeouts, name: limits, timeouts and name as Forwarder; clock: monotonic seconds
    on_done: called with each call and its Visit (None where the gateway itself answered) at the end

    Every response says `X-Lbcore-Region` and `X-Lbcore-Revision`. Without a configuration, disabled or closing it answers 503.
    What a backend is sent is its URL's path and what follows the API's path and version, unless a policy has rewritten it.
    Use it as `async with Gateway("westeurope") as gateway: gateway.apply(document); await gateway.listen("127.0.0.1", 8081)`.
    Not synchronised between regions: rate limits, health of backends, units. Every region's gateway has its own.
    """

    on_done: Callable[[Call, Visit | None], object] | None = None

    def __init__(
        self, region: str, *, service: str = "lbcore", gateway: str = "", units: Units | None = None,
        keep: str | os.PathLike[str] | None = None, regions: Sequence[str] = (), retries: int = 1, budget: RetryBudget | None = None,
        limits: CallLimits | None = None, keys: KeySets | None = None, log: Callable[[Mapping[str, object]], None] | None = None,
        trusted: Sequence[str] = (), explain_to: Sequence[str] = (), tls: ssl.SSLContext | None = None,
        connections: Mapping[str, Any] | None = None, max_size: Limits | None = None, timeouts: Timeouts | None = None,
        name: str | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        if retries < 0:
            raise ValueError(f"retries must be at least 0, got {retries!r}")
        self.region = canonical(region)
        self.units = units or Units(clock=clock)
        self._deployment = Deployment(self.region, gateway or self.region, service)
        self._keys = keys or KeySets()
        told: dict[str, Any] = {"log": log} if log else {}
        self._site = Site(
            self.region, self._deployment.gateway, service, limits=limits or CallLimits(), keys=self._keys, clock=clock, **told
        )
        self._backends = Backends(self.region, clock, tls, connections)
        self._kept, self._regions = Kept(keep) if keep is not None else None, tuple(regions)
        self._retries, self._budget, self._undeposited = retries, budget or RetryBudget(clock), 0
        self._explain_to = Trusted(explain_to) if explain_to else None
        self._options: dict[str, Any] = {
            "trusted": trusted, "limits": max_size, "timeouts": timeouts, "name": name or f"lbcore-{self.region}", "clock": clock
        }  # fmt: skip
        self._clock = clock
        self._engine: Forwarder | None = None
        self._revision: Revision | None = None
        self._old: set[Revision] = set()  # that calls still hold
        self._updating = asyncio.Lock()
        self._lines = head_lines(self.region, _NONE)
        self._disabled = self._draining = False
        self._shut: Response | None = _refusal(b"not ready: no configuration", b"1")
        self._counters: Counter[str] = Counter()
        if self._kept is not None:
            self._restore(self._kept)

    def _restore(self, kept: Kept) -> None:
        """Serve the newest configuration that was kept and can be used."""
        for configuration in kept.read():
            try:
                self._use(configuration)
            except ConfigError as error:  # say, a policy that is not installed any more
                logger.error("revision %s, which was kept, cannot be used: %s", configuration.revision, error)
            else:
                logger.info("%s serves revision %s, which was kept", self.region, configuration.revision)
                return

    # ---- run

    @property
    def engine(self) -> Forwarder:
        """Give the engine; RuntimeError outside `async with`."""
        if self._engine is None:
            raise RuntimeError("the gateway is closed: use it inside `async with`")
        return self._engine

    @property
    def counters(self) -> dict[str, int]:
        """Give what was counted: requests, refused, retries, failed_<cause>, overloaded, missed_<status>, revisions..."""
        return dict(self._counters + (self._engine.counters if self._engine else Counter()))

    async def __aenter__(self) -> Self:
        self._engine = Forwarder(self, **self._options)
        self._backends.attach(self._engine)
        self._engine.keep(asyncio.get_running_loop().create_task(self._ticking()))
        self._draining = False
        self._set_shut()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def listen(self, host: str = "127.0.0.1", port: int = 8081, **options: Any) -> tuple[str, int]:
        """Accept clients on one more address and give it; options as Forwarder.listen (tls, sock, proxy_protocol...)."""
        return await self.engine.listen(host, port, **options)

    async def serve(self, host: str = "127.0.0.1", port: int = 8081, *, grace: float = 5.0, **options: Any) -> None:
        """Serve until cancelled; then calls under way have `grace` seconds."""
        async with self:
            await self.listen(host, port, **options)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await self.close(grace)

    async def close(self, grace: float = 0.0) -> None:
        """Accept nobody new, wait `grace` seconds for calls under way, close."""
        self.drain()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close(grace)
            await self._keys.close()
            self._backends.detach()
            self._counters += engine.counters

    # ---- configuration

    @property
    def revision(self) -> Revision | None:
        """Give the revision in use, None before the first."""
        return self._revision

    def apply(self, document: object) -> Revision:
        """Serve by a configuration, or a document of one, from the next call on; calls under way end by the one they began with.

        Raises ConfigError with every violation, StaleRevisionError for an older one or another of the same number, OSError when it
        cannot be kept; the old one keeps serving then. The same again changes nothing. Reading a large document and keeping one
        takes time in which nobody is served: see `update`.
        """
        configuration = self._read(document)
        if self._is_news(configuration):
            if self._kept is not None:
                self._check(configuration)
                self._kept.write(configuration)
            self._use(configuration)
        return cast(Revision, self._revision)

    async def update(self, document: object) -> Revision:
        """Do as `apply`, and read and keep it in another thread meanwhile."""
        async with self._updating:
            configuration = await asyncio.to_thread(self._read, document)
            if self._is_news(configuration):
                if self._kept is not None:
                    self._check(configuration)
                    await asyncio.to_thread(self._kept.write, configuration)
                if self._is_news(configuration):  # `apply` may have been called meanwhile
                    self._use(configuration)
            return cast(Revision, self._revision)

    def _read(self, document: object) -> Configuration:
        return document if isinstance(document, Configuration) else Configuration.from_mapping(document, regions=self._regions)

    def _is_news(self, configuration: Configuration) -> bool:
        if self._revision is None:
            return True
        current = self._revision.configuration
        offered, used = (configuration.epoch, configuration.sequence), (current.epoch, current.sequence)
        if offered < used or offered == used and configuration.sha256 != current.sha256:
            raise StaleRevisionError(configuration, current)
        return offered > used

    def _check(self, configuration: Configuration) -> None:
        """Raise ConfigError for what could be read and cannot be used here: it must not be kept."""
        self._backends.release(Revision(configuration, self._site, self._backends).backends.values())

    def _use(self, configuration: Configuration) -> None:
        revision = Revision(configuration, self._site, self._backends)
        old, self._revision = self._revision, revision
        self._lines = revision.lines
        self._counters["revisions"] += 1
        self._set_shut()
        if old is not None:
            self._old.add(old)
            self._retire(old)

    def _retire(self, revision: Revision) -> None:
        """Let go of a revision that is not in use any more, once no call holds it."""
        if not revision.calls and revision in self._old:
            self._old.discard(revision)
            self._backends.release(revision.backends.values())

    # ---- whether it serves

    def disable(self) -> None:
        """Answer 503 from now on (R38); configurations are still applied."""
        self._disabled = True
        self._set_shut()

    def enable(self) -> None:
        """Serve again."""
        self._disabled = False
        self._set_shut()

    def drain(self) -> None:
        """Tell whoever asks the status path to send nobody new; calls that come are served still."""
        self._draining = True

    def _set_shut(self) -> None:
        if self._disabled:
            self._shut = _refusal(b"disabled", b"30", (b"X-Lbcore-Gateway", b"disabled"))
        elif self._revision is None:
            self._shut = _refusal(b"not ready: no configuration", b"1")
        else:
            self._shut = None

    def status(self, deep: bool = False) -> tuple[int, dict[str, Any]]:
        """Give status code and content of the status path's answer.

        deep: 503 also when a backend that an API uses here is down, which the shallow form says nothing of.
        """
        said = "disabled" if self._disabled else "not ready" if self._revision is None else "draining" if self._draining else "serving"
        load = self.units.load
        content: dict[str, Any] = {
            "status": said, "region": self.region, "gateway": self._deployment.gateway, "service": self._deployment.service,
            "revision": self._revision.name if self._revision else None, "units": self.units.count,
            "capacity": {"average": round(load.average, 1), "maximum": round(load.most, 1)}, "scale_advice": self.units.scale_advice,
        }  # fmt: skip
        healthy = said == "serving"
        if deep and self._revision is not None:
            health = {name: backend.up for name, backend in self._revision.backends.items()}
            content["backends"] = {name: "up" if up else "down" for name, up in health.items()}
            healthy = healthy and all(health.get(name, False) for name in self._revision.used)
        return 200 if healthy else 503, content

    def _tell_status(self, call: Call) -> Response:
        path, _, query = call.request.target.partition(b"?")
        if path != _STATUS:
            return Response(404)
        if call.request.method not in (b"GET", b"HEAD"):
            return Response(405, fields=((b"Allow", b"GET, HEAD"),))
        status, content = self.status(b"deep=1" in query.split(b"&"))
        return Response(status, json.dumps(content).encode() + b"\n", _JSON)

    # ---- a call's way in

    def begin(self, call: Call, /) -> Target | Response | Awaitable[Target | Response]:
        """Route the call, run its policies and pick the URL; or wait for a unit."""
        call.extra = self._lines
        if call.request.target.startswith(_STATUS):
            return self._tell_status(call)
        if self._shut is not None:
            return self._shut
        if not self.units.enter(call.begun_at):
            return self._wait_for_unit(call)
        return self._enter(call)

    def _wait_for_unit(self, call: Call) -> Response | Awaitable[Target | Response]:
        waiting = self.units.wait(self._clock())
        if isinstance(waiting, float):
            return self._overloaded(waiting)
        return self._enter_later(call, waiting)

    async def _enter_later(self, call: Call, waiting: asyncio.Future[bool]) -> Target | Response:
        try:
            entered = await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.result():
                self.units.leave()
            raise
        if not entered:
            return self._overloaded(1.0)
        if call.finished or self._shut is not None:
            self.units.leave()
            return self._shut or Response(503)
        call.extra = self._lines
        decision = self._enter(call)
        return decision if isinstance(decision, (Target, Response)) else await decision

    def _overloaded(self, seconds: float) -> Response:
        self._counters["overloaded"] += 1
        return _refusal(b"overloaded", b"%d" % seconds)

    def _enter(self, call: Call) -> Target | Response | Awaitable[Target | Response]:
        revision = cast(Revision, self._revision)
        call.state = visit = Visit(call, self._deployment, revision)
        revision.calls += 1
        found = revision.router.find(call.request)
        if isinstance(found, Miss):
            return self._missed(visit, found)
        pipeline = self._reach(visit, found).pipeline
        answer = pipeline.inbound(visit)
        if answer is None:
            answer = pipeline.backend(visit)
            if answer is None:
                return self._leave_for(visit)
            return answer if isinstance(answer, Response) else self._after_backend(visit, answer)
        return answer if isinstance(answer, Response) else self._after_inbound(visit, answer)

    def _reach(self, visit: Visit, match: Match) -> Entrance:
        route, visit.parameters = match
        entrance: Entrance = route.api
        visit.entrance = entrance
        visit.api, visit.version, visit.backend, visit.operation = entrance.name, entrance.version, entrance.backend, route.operation
        visit.route = route
        return entrance

    async def _after_inbound(self, visit: Visit, waiting: Awaitable[Response | None]) -> Target | Response:
        answer = await waiting
        if answer is not None:
            return answer
        entrance = cast(Entrance, visit.entrance)
        following = entrance.pipeline.backend(visit)
        if following is None or isinstance(following, Response):
            return following or self._leave_for(visit)
        return await self._after_backend(visit, following)

    async def _after_backend(self, visit: Visit, waiting: Awaitable[Response | None]) -> Target | Response:
        return await waiting or self._leave_for(visit)

    def _missed(self, visit: Visit, miss: Miss) -> Response | Awaitable[Response]:
        """Answer what no operation is for. A CORS preflight request asks about another one, whose inbound policies may answer it."""
        if miss.preflight is not None:
            answer = self._reach(visit, miss.preflight).pipeline.inbound(visit)
            if isinstance(answer, Response):
                return answer
            if answer is not None:
                return self._miss_later(visit, miss, answer)
        return self._miss(visit, miss)

    async def _miss_later(self, visit: Visit, miss: Miss, waiting: Awaitable[Response | None]) -> Response:
        return await waiting or self._miss(visit, miss)

    def _miss(self, visit: Visit, miss: Miss) -> Response:
        self._counters[f"missed_{miss.status}"] += 1
        visit.entrance = miss.api
        if miss.api is not None:
            visit.api, visit.version = miss.api.name, miss.api.version
        fields: Sequence[Field] = ((b"Allow", ", ".join(miss.allow).encode()),) if miss.allow else ()
        return self._failed(visit, Response(miss.status, f"{miss.why}\n".encode(), fields), _CAUSES[miss.status])

    def _failed(self, visit: Visit, response: Response, cause: str) -> Response:
        """Let the policies of on_error have their say."""
        visit.error = Failure(cause)
        pipeline = visit.entrance.pipeline if visit.entrance is not None else visit.held.everywhere
        return pipeline.on_error(visit, response)

    # ---- to the backend

    def _leave_for(self, visit: Visit) -> Target | Response:
        """Pick the URL and bring the target into its form."""
        origin = visit.held.backends.get(visit.backend)
        if origin is None:
            self._counters["no_backend"] += 1
            return self._failed(visit, _refusal(b"no backend", b"1"), "no-backend")
        visit.origin = origin
        request = visit.request
        if not visit.rewritten and (request.target is visit.target or _same_path(request.target, visit.target)):
            request.target = cast(Route, visit.route).below(request.target)
        if visit.timeout is not None and visit.timeout.total is not None:
            visit.timer = self.engine.loop.call_later(visit.timeout.total, visit.call.expire)
        self._undeposited += 1
        return self._go(visit, origin.pick())

    def _go(self, visit: Visit, way: Way) -> Target:
        visit.way = way
        origin = cast(Backend, visit.origin)
        visit.gen = None if origin.only is way else origin.lb.generation(way.name)
        timeout = visit.timeout
        return way.target if timeout is None or timeout.first_byte is None else way.within(timeout.first_byte)

    def retry(self, call: Call, cause: str | None, /) -> Target | None:
        """Report the failure and give the next URL."""
        visit = cast(Visit, call.state)
        self._report(visit, cause)
        rule = visit.retry
        most = self._retries if rule is None else rule.count if cause in rule.causes else 0
        if not call.repeatable or len(visit.tried) >= most:
            return None
        if rule is None and cast(Backend, visit.origin).only is not None and call.started:
            return None  # the same again would only add to its trouble
        return self._again(visit)

    def _again(self, visit: Visit) -> Target | None:
        way, origin = cast(Way, visit.way), cast(Backend, visit.origin)
        self._deposit()
        if visit.call.started and not self._budget.withdraw():
            self._counters["budget_exhausted"] += 1
            return None
        self._counters["retries"] += 1
        visit.tried = (*visit.tried, way.name)
        return self._go(visit, origin.next(visit.tried))

    # ---- back

    def answered(self, call: Call, head: ResponseReader, /) -> Target | Response | None:
        """Learn from the response, try again what a policy says, and run the outbound policies."""
        visit = cast(Visit, call.state)
        if head.status in FAILURES:
            self._report(visit, "status")
        else:
            self._succeeded(visit, call)
        rule = visit.retry
        if rule is not None and head.status in rule.statuses and len(visit.tried) < rule.count and call.repeatable:
            following = self._again(visit)
            if following is not None:
                return following
        for field in head.fields:
            if len(field[0]) in (15, 17) and field[0].lower().startswith(_OURS):
                head.fields = [field for field in head.fields if not field[0].lower().startswith(_OURS)]  # another gateway's, behind this
                break
        instead = cast(Entrance, visit.entrance).pipeline.outbound(visit, head)
        if self._explain_to is not None and call.request.field(b"x-lbcore-explain") is not None and call.client in self._explain_to:
            call.extra += self._explanation(visit)
        return instead

    def _succeeded(self, visit: Visit, call: Call) -> None:
        way, lb = cast(Way, visit.way), cast(Backend, visit.origin).lb
        took = call.head_at - call.sent_at
        if took >= 0 and call.request.received <= SMALL:
            lb.observe(way.name, took * 1000.0)
        lb.report(way.name, True, gen=visit.gen)

    def _report(self, visit: Visit, cause: str | None) -> None:
        self._counters[f"failed_{cause or 'here'}"] += 1
        if cause is not None and visit.way is not None:
            cast(Backend, visit.origin).lb.report(visit.way.name, False, cause=cause, gen=visit.gen)

    def failed(self, call: Call, response: Response, /) -> Response:
        """Run the on-error policies."""
        visit = call.state
        return self._failed(visit, response, call.cause or "overload") if isinstance(visit, Visit) else response

    def done(self, call: Call, /) -> None:
        """Give back the unit and the revision."""
        visit = call.state
        if visit is not None:
            self.units.leave()
            if call.cut:
                self._report(visit, call.cause)
            if visit.timer is not None:
                visit.timer.cancel()
            revision = visit.held
            revision.calls -= 1
            if revision is not self._revision and not revision.calls:
                self._retire(revision)
        if self.on_done is not None:
            self.on_done(call, visit)

    def _explanation(self, visit: Visit) -> bytes:
        way = cast(Way, visit.way)
        told = {
            "region": self.region, "revision": visit.revision, "api": visit.api, "version": visit.version, "operation": visit.operation,
            "backend": visit.backend, "url": way.url, "attempts": visit.call.attempts, "health": cast(Backend, visit.origin).health(),
        }  # fmt: skip
        return f"X-Lbcore-Explain: {json.dumps(told, separators=(',', ':'))}\r\n".encode("ascii")

    # ---- time

    async def _ticking(self) -> None:
        while True:
            await asyncio.sleep(TICK_INTERVAL)
            try:
                self.tick()
            except Exception:
                logger.exception("tick failed; the next one tries again")

    def tick(self) -> None:
        """Look at the load, and let the backends' Balancers do what is due. Called every 100 ms."""
        self._deposit()
        self.units.tick(self._clock())
        self._backends.tick()

    def _deposit(self) -> None:
        if self._undeposited:
            self._budget.deposit(self._undeposited)
            self._undeposited = 0


def _same_path(one: bytes, other: bytes) -> bool:
    return one.partition(b"?")[0] == other.partition(b"?")[0]


def _refusal(why: bytes, seconds: bytes, *fields: Field) -> Response:
    return Response(503, why + b"\n", ((b"Retry-After", seconds), *fields))
