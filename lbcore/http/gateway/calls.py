"""Calls: what becomes of each call of a gateway. The engine's Handler; compiled, see calls.pxd.

    begin: status path? -- units: room? -- revision held -- router -- inbound -- backend -- the backend's closest healthy URL
    answered: outbound, headers; retry: the next URL; failed: on_error; done: revision and unit given back
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from lbcore.http.budget import RetryBudget
from lbcore.http.call import Call
from lbcore.http.exchange import FAILURES, SMALL
from lbcore.http.gateway.backends import Backend, Way
from lbcore.http.gateway.revision import Entrance, Revision
from lbcore.http.gateway.router import Match, Miss, Route
from lbcore.http.gateway.units import Units
from lbcore.http.heads import Trusted
from lbcore.http.message import Field, Response
from lbcore.http.policies import Context, Deployment, Failure
from lbcore.http.response import ResponseReader
from lbcore.http.target import Target
from lbcore.sense.monitor import STATUS_PATH

__all__ = ["Calls", "Visit"]

_STATUS = STATUS_PATH.encode()
_OURS = frozenset((b"x-lbcore-region", b"x-lbcore-gateway", b"x-lbcore-revision"))  # 15 to 17 letters
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
        self.held, self.target = held, self.request.target


class Calls:
    """Take calls by the revision in use.

    units: which calls there is room for; retries, budget: of calls that have no retry policy; explain_to: who may know where calls go
    lines: of every response's head; shut: what everybody is answered, None = calls are served
    on_done: called with each call and its Visit (None where the gateway itself answered) at the end
    """

    def __init__(
        self, units: Units, deployment: Deployment, *, retries: int, budget: RetryBudget, explain_to: Sequence[str], lines: bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        if retries < 0:
            raise ValueError(f"retries must be at least 0, got {retries!r}")
        self.units, self.deployment, self.lines = units, deployment, lines
        self.on_done: Callable[[Call, Visit | None], object] | None = None
        self.shut: Response | None = None
        self._revision: Revision | None = None
        self._retries, self._budget, self._undeposited = retries, budget, 0
        self._explain_to = Trusted(explain_to) if explain_to else None
        self._clock = clock
        self._counters: Counter[str] = Counter()

    def status(self, deep: bool = False) -> tuple[int, dict[str, Any]]:
        """Give status code and content of the status path's answer."""
        raise NotImplementedError  # the Gateway's to say: a compiled class has no abstract methods

    def _let_go(self, revision: Revision) -> None:
        """Take a revision that is not in use any more and that no call holds."""

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
        call.extra = self.lines
        if call.request.target.startswith(_STATUS):
            return self._tell_status(call)
        if self.shut is not None:
            return self.shut
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
        if call.finished or self.shut is not None:
            self.units.leave()
            return self.shut or Response(503)
        call.extra = self.lines
        decision = self._enter(call)
        return decision if isinstance(decision, (Target, Response)) else await decision

    def _overloaded(self, seconds: float) -> Response:
        self._counters["overloaded"] += 1
        return refusal(b"overloaded", b"%d" % seconds)

    def _enter(self, call: Call) -> Target | Response | Awaitable[Target | Response]:
        revision = cast(Revision, self._revision)
        call.state = visit = Visit(call, self.deployment, revision)
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
            return following or self._leave_if_there(visit)
        return await self._after_backend(visit, following)

    async def _after_backend(self, visit: Visit, waiting: Awaitable[Response | None]) -> Target | Response:
        return await waiting or self._leave_if_there(visit)

    def _leave_if_there(self, visit: Visit) -> Target | Response:
        """Go on after something was waited for, unless the client is gone by now."""
        return Response(503) if visit.call.finished else self._leave_for(visit)

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
            return self._failed(visit, refusal(b"no backend", b"1"), "no-backend")
        visit.origin = origin
        request = visit.request
        if not visit.rewritten and (request.target is visit.target or _same_path(request.target, visit.target)):
            request.target = cast(Route, visit.route).below(request.target)
        if visit.timeout is not None and visit.timeout.total is not None:
            left = visit.timeout.total - (self._clock() - visit.call.begun_at)
            visit.timer = asyncio.get_running_loop().call_later(max(0.0, left), visit.call.expire)
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
        self.deposit()
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
        if head.status == 101 and visit.timer is not None:
            visit.timer.cancel()  # a WebSocket is open: from now on it ends when nobody uses it
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
            if 15 <= len(field[0]) <= 17 and field[0].lower() in _OURS:
                head.fields = [field for field in head.fields if field[0].lower() not in _OURS]  # another gateway's, behind this
                break
        instead = cast(Entrance, visit.entrance).pipeline.outbound(visit, head)
        if self._explain_to is not None and call.request.field(b"x-lbcore-explain") is not None and call.client in self._explain_to:
            call.extra += self._explanation(visit)
        return instead

    def _succeeded(self, visit: Visit, call: Call) -> None:
        way, lb = cast(Way, visit.way), cast(Backend, visit.origin).lb
        took = call.head_at - call.sent_at
        if took >= 0 and call.request.received <= SMALL:
            lb.answered(way.name, took * 1000.0, None, gen=visit.gen)
        else:
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
                self._let_go(revision)
        if self.on_done is not None:
            self.on_done(call, visit)
        call.state = None  # or the two would hold each other until the garbage collector comes

    def _explanation(self, visit: Visit) -> bytes:
        way = cast(Way, visit.way)
        told = {
            "region": self.deployment.region, "revision": visit.revision, "api": visit.api, "version": visit.version,
            "operation": visit.operation, "backend": visit.backend, "url": way.url, "attempts": visit.call.attempts,
            "health": cast(Backend, visit.origin).health(),
        }  # fmt: skip
        return f"X-Lbcore-Explain: {json.dumps(told, separators=(',', ':'))}\r\n".encode("ascii")

    def deposit(self) -> None:
        """Let the calls since the last time count for the budget of retries."""
        if self._undeposited:
            self._budget.deposit(self._undeposited)
            self._undeposited = 0


def _same_path(one: bytes, other: bytes) -> bool:
    return one.partition(b"?")[0] == other.partition(b"?")[0]


def refusal(why: bytes, seconds: bytes, *fields: Field) -> Response:
    """Give a 503 that says why, and after how many seconds to try again."""
    return Response(503, why + b"\n", ((b"Retry-After", seconds), *fields))
