"""What the transports promise, both on real gateways on loopback: every test runs for httpx.Client and for httpx.AsyncClient."""

from __future__ import annotations

import asyncio
import gc
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import trustme
from conftest import Clock
from gateways import WAIT, Gateway, Loop

from lbcore import Balancer, NoRegionError, PrefixMap, Region
from lbcore.http.transport import AsyncBalancedTransport, BalancedTransport, RetryBudget

pytestmark = pytest.mark.slow

NAMES = ("near", "middle", "far")
URL = "https://api.example"


class Caller:
    """An httpx client over a balanced transport, sync or async, called the same way."""

    def __init__(self, asynchronous: bool, lb: Balancer, **options: Any) -> None:
        self.transport: Any = (AsyncBalancedTransport if asynchronous else BalancedTransport)(lb, **options)
        self.loop = Loop() if asynchronous else None
        self._client: Any = (httpx.AsyncClient if asynchronous else httpx.Client)(transport=self.transport, timeout=WAIT)

    def __call__(self, method: str = "GET", path: str = "/", *, client: str | None = None, content: Any = None, **options: Any) -> Any:
        options["extensions"] = options.get("extensions", {}) | ({} if client is None else {"lbcore_client": client})
        if self.loop is None:
            return self._client.request(method, URL + path, content=content, **options)
        if isinstance(content, Iterator):
            content = asynchronously(content)
        return self.loop.run(self._client.request(method, URL + path, content=content, **options))

    def parts(self, between: Callable[[], object]) -> Iterator[bytes]:
        """Give the parts of a streamed response, calling `between` after the first."""
        if self.loop is not None:
            yield from self.loop.run(self._parts(between))
            return
        with self._client.stream("GET", URL) as response:
            for number, part in enumerate(response.iter_raw()):
                if not number:
                    between()
                yield part

    async def _parts(self, between: Callable[[], object]) -> list[bytes]:
        found: list[bytes] = []
        async with self._client.stream("GET", URL) as response:
            async for part in response.aiter_raw():
                if not found:
                    between()
                found.append(part)
        return found

    def together(self, count: int, **options: Any) -> list[httpx.Response]:
        if self.loop is not None:
            return list(self.loop.run(self._together(count)))
        with ThreadPoolExecutor(16) as threads:
            return [future.result(WAIT) for future in [threads.submit(self) for _ in range(count)]]

    async def _together(self, count: int) -> list[httpx.Response]:
        return await asyncio.gather(*(self._client.get(URL) for _ in range(count)))

    def close(self) -> None:
        if self.loop is None:
            self._client.close()
        else:
            self.loop.run(self._client.aclose())
            self.loop.close()


async def asynchronously(parts: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield await asyncio.to_thread(lambda part=part: part)
        await asyncio.sleep(0)


class World:
    """Three gateways and a Balancer for which "near" is closest, then "middle", then "far"."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.gateways = {name: Gateway(name) for name in NAMES}
        self.lb = world([(name, gateway.url) for name, gateway in self.gateways.items()], clock)

    def __getattr__(self, name: str) -> Gateway:
        return self.gateways[name]

    def close(self) -> None:
        for gateway in self.gateways.values():
            gateway.close()


class Lenient:
    """A detector that gives no region up."""

    def report(self, region: int, ok: bool, **_: Any) -> None: ...

    def sweep(self, now: float) -> None: ...

    def verdict(self, region: int) -> None: ...

    def reset(self, region: int) -> None: ...


def world(regions: list[tuple[str, str]], clock: Callable[[], float], detector: Any = None) -> Balancer:
    """Give a Balancer whose regions are ever farther away, except that group 1 (81.2.69.0/24) is closest to the last."""
    found = [Region(name, 0, number, gateway=url) for number, (name, url) in enumerate(regions)]
    lb = Balancer(found, PrefixMap.from_prefixes([("81.2.69.0/24", 1)]), detector, clock)
    for slot in range(len(found)):
        lb.table.seed(0, slot, 10.0 + 100 * slot, 1.0)
        lb.table.seed(1, slot, 10.0 + 100 * (len(found) - slot), 1.0)
    lb.tick()
    return lb


@pytest.fixture
def gateways(clock: Clock) -> Iterator[World]:
    world = World(clock)
    yield world
    world.close()


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Iterator[Callable[..., Caller]]:
    """Make callers of one kind; they are closed after the test."""
    callers: list[Caller] = []

    def make(lb: Balancer, **options: Any) -> Caller:
        callers.append(Caller(request.param, lb, **options))
        return callers[-1]

    yield make
    for caller in callers:
        caller.close()


Call = Callable[..., Caller]


class Reports:
    """What a Balancer was told, which it still hears."""

    def __init__(self, lb: Balancer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.outcomes: list[tuple[str, bool, str | None, object]] = []
        self.samples: list[tuple[str, float, object]] = []
        self.generations: list[int | None] = []
        report, observe = lb.report, lb.observe

        def watch_report(region: str, ok: bool, client: Any = None, *, cause: str | None = None, gen: int | None = None) -> None:
            self.outcomes.append((region, ok, cause, client))
            self.generations.append(gen)
            report(region, ok, client, cause=cause, gen=gen)

        def watch_observe(region: str, ms: float, client: Any = None) -> None:
            self.samples.append((region, ms, client))
            observe(region, ms, client)

        monkeypatch.setattr(lb, "report", watch_report)
        monkeypatch.setattr(lb, "observe", watch_observe)


# ===== where to


def test_a_request_goes_to_the_closest_gateway(gateways: World, call: Call) -> None:
    caller = call(gateways.lb)
    response = caller("GET", "/orders?id=1&x=%2F")
    assert (response.text, response.extensions["lbcore_region"]) == ("near", "near")
    seen = gateways.near.seen[0]
    assert (seen.method, seen.path, seen.headers["host"]) == ("GET", "/base/orders?id=1&x=%2F", f"localhost:{gateways.near.port}")
    assert str(response.request.url) == f"{URL}/orders?id=1&x=%2F"  # what the caller asked for


def test_a_request_may_be_made_for_a_client(gateways: World, call: Call) -> None:
    assert call(gateways.lb)(client="81.2.69.7").text == "far"
    assert call(gateways.lb, client_address="81.2.69.7")().text == "far"
    assert call(gateways.lb, client_address="81.2.69.7")(client="9.9.9.9").text == "near"


def test_a_client_that_is_no_address_is_the_caller_s_mistake(gateways: World, call: Call) -> None:
    with pytest.raises(ValueError, match="nonsense"):
        call(gateways.lb)(client="nonsense")


def test_the_request_s_own_host_may_be_kept(gateways: World, call: Call) -> None:
    call(gateways.lb, keep_host=True)()
    assert gateways.near.seen[0].headers["host"] == "api.example"


def test_a_region_without_a_gateway_is_passed_over(clock: Clock, gateways: World, call: Call) -> None:
    lb = world([("mute", ""), ("far", gateways.far.url)], clock)
    assert call(lb)().extensions["lbcore_region"] == "far"
    with pytest.raises(NoRegionError, match="gateway"):
        call(world([("mute", "")], clock))()


def test_nothing_enabled_is_an_error_of_the_balancer(gateways: World, call: Call) -> None:
    for name in NAMES:
        gateways.lb.disable(name)
    with pytest.raises(NoRegionError):
        call(gateways.lb)()


def test_a_region_that_went_down_gets_nothing_more(gateways: World, call: Call) -> None:
    caller = call(gateways.lb)
    assert caller().text == "near"
    gateways.lb.disable("near")
    assert caller().text == "middle"
    assert len(gateways.near.seen) == 1


# ===== what is learned


def answering(clock: Clock, seconds: float) -> httpx.MockTransport:
    def handle(request: httpx.Request) -> httpx.Response:
        clock.advance(seconds)
        return httpx.Response(200)

    return httpx.MockTransport(handle)


def test_the_time_to_the_headers_is_learned(clock: Clock, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    lb = world([("a", "http://a.example"), ("b", "http://b.example")], clock)
    reports = Reports(lb, monkeypatch)
    caller = call(lb, transport=answering(clock, 0.25))
    caller()
    caller("POST", client="81.2.69.7", content=b"x" * 100)
    assert reports.samples == [("a", 250.0, None), ("b", 250.0, "81.2.69.7")]
    assert reports.outcomes == [("a", True, None, None), ("b", True, None, "81.2.69.7")]


@pytest.mark.parametrize("content", [lambda: b"x" * 20_000, lambda: iter([b"x"])], ids=["long", "stream"])
def test_the_time_of_an_upload_is_no_latency(
    clock: Clock, call: Call, monkeypatch: pytest.MonkeyPatch, content: Callable[[], Any]
) -> None:
    lb = world([("a", "http://a.example")], clock)
    reports = Reports(lb, monkeypatch)
    call(lb, transport=answering(clock, 9.0))("POST", content=content())
    assert (reports.samples, reports.outcomes) == ([], [("a", True, None, None)])


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_gateway_error_is_the_caller_s_answer_and_the_region_s_failure(
    gateways: World, call: Call, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    reports = Reports(gateways.lb, monkeypatch)
    gateways.near.mode = str(status)
    caller = call(gateways.lb)
    assert caller().status_code == status
    assert reports.outcomes == [("near", False, "status", None)]
    assert (reports.samples, gateways.middle.seen) == ([], [])
    assert caller.transport.counters == {"requests": 1, "failed_status": 1}


@pytest.mark.parametrize("status", [200, 404, 429, 500])
def test_other_statuses_are_no_failure_of_the_region(
    gateways: World, call: Call, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    reports = Reports(gateways.lb, monkeypatch)
    gateways.near.mode = str(status)
    assert call(gateways.lb)().status_code == status
    assert reports.outcomes == [("near", True, None, None)]


def test_failures_end_the_trying_of_a_region(gateways: World, call: Call) -> None:
    gateways.near.kill()
    caller = call(gateways.lb)
    for _ in range(100):
        assert caller().text == "middle"
        if gateways.lb.pick(None).name != "near":
            break
    before = caller.transport.counters["retries"]
    assert before < 100
    assert caller().text == "middle"
    assert caller.transport.counters["retries"] == before


# ===== retries


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH"])
def test_a_refused_request_was_never_sent_and_goes_to_the_next_region(
    gateways: World, call: Call, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    reports = Reports(gateways.lb, monkeypatch)
    gateways.near.kill()
    caller = call(gateways.lb)
    assert caller(method, content=b"body").extensions["lbcore_region"] == "middle"
    assert reports.outcomes == [("near", False, "refused", None), ("middle", True, None, None)]
    assert caller.transport.counters == {"requests": 1, "retries": 1, "failed_refused": 1}
    assert gateways.middle.seen[0].body == b"body"


@pytest.mark.parametrize(("mode", "cause"), [("hang", "timeout"), ("reset", "reset")])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"])
def test_an_idempotent_request_is_sent_again(
    gateways: World, call: Call, monkeypatch: pytest.MonkeyPatch, method: str, mode: str, cause: str
) -> None:
    reports = Reports(gateways.lb, monkeypatch)
    gateways.near.mode = mode
    response = call(gateways.lb)(method, content=b"body", timeout=httpx.Timeout(WAIT, read=0.1 if mode == "hang" else WAIT))
    assert response.extensions["lbcore_region"] == "middle"
    assert reports.outcomes == [("near", False, cause, None), ("middle", True, None, None)]
    assert [seen.body for seen in (*gateways.near.seen, *gateways.middle.seen)] == [b"body", b"body"]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_what_may_not_be_repeated_is_not(gateways: World, call: Call, method: str) -> None:
    gateways.near.mode = "reset"
    caller = call(gateways.lb)
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        caller(method, content=b"pay")
    assert (len(gateways.near.seen), gateways.middle.seen, gateways.far.seen) == (1, [], [])
    assert caller.transport.counters == {"requests": 1, "failed_reset": 1}


def test_an_idempotency_key_makes_it_repeatable(gateways: World, call: Call) -> None:
    gateways.near.mode = "reset"
    response = call(gateways.lb)("POST", content=b"pay", headers={"Idempotency-Key": '"8e03978e"'})
    assert response.text == "middle"
    assert gateways.middle.seen[0].headers["idempotency-key"] == '"8e03978e"'


def test_a_streamed_body_cannot_be_sent_twice(gateways: World, call: Call) -> None:
    gateways.near.mode = "reset"
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        call(gateways.lb)("PUT", content=iter([b"a", b"b"]))
    assert (gateways.near.seen[0].body, gateways.middle.seen) == (b"ab", [])


def test_a_streamed_body_that_was_not_touched_can_be_sent(gateways: World, call: Call) -> None:
    gateways.near.kill()
    assert call(gateways.lb)("POST", content=iter([b"a", b"b"])).text == "middle"
    assert gateways.middle.seen[0].body == b"ab"


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_each_request_visits_so_many_further_regions(gateways: World, call: Call, retries: int) -> None:
    for name in ("near", "middle"):
        gateways.gateways[name].mode = "reset"
    caller = call(gateways.lb, retries=retries)
    if retries < 2:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            caller()
    else:
        assert caller().text == "far"
    assert [len(gateways.gateways[name].seen) for name in NAMES] == [1, int(retries > 0), int(retries > 1)]


def test_every_region_is_visited_once_at_most(gateways: World, call: Call) -> None:
    for gateway in gateways.gateways.values():
        gateway.mode = "reset"
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        call(gateways.lb, retries=9)()
    assert [len(gateway.seen) for gateway in gateways.gateways.values()] == [1, 1, 1]


def test_a_region_known_to_be_down_is_no_place_to_retry(gateways: World, call: Call) -> None:
    gateways.near.mode = "reset"
    gateways.lb.disable("middle")
    assert call(gateways.lb)().text == "far"
    gateways.lb.disable("far")
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        call(gateways.lb)()


def test_an_empty_budget_ends_retries(gateways: World, call: Call, clock: Clock) -> None:
    gateways.near.mode = "reset"
    lb = world([(name, gateway.url) for name, gateway in gateways.gateways.items()], clock, Lenient())
    caller = call(lb, budget=RetryBudget(clock, ratio=0.2, minimum=0.1))  # one, and one for each five requests
    outcomes = []
    for _ in range(10):
        try:
            outcomes.append(caller().text)
        except (httpx.ReadError, httpx.RemoteProtocolError):
            outcomes.append("failed")
    assert outcomes.count("middle") == 3
    assert caller.transport.counters["budget_exhausted"] == 7


def test_a_body_cut_off_is_told_and_charged_but_not_repeated(gateways: World, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports(gateways.lb, monkeypatch)
    gateways.near.mode = "cut"
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        call(gateways.lb)()
    assert reports.outcomes == [("near", True, None, None), ("near", False, "reset", None)]
    assert gateways.middle.seen == []


@pytest.mark.parametrize("error", [httpx.PoolTimeout, httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.ProxyError, KeyError])
def test_the_caller_s_own_trouble_is_no_failure_of_the_region(
    clock: Clock, call: Call, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        raise error("here")

    lb = world([("a", "http://a.example"), ("b", "http://b.example")], clock)
    reports = Reports(lb, monkeypatch)
    with pytest.raises(error):
        call(lb, transport=httpx.MockTransport(handle))()
    assert reports.outcomes == []


def test_an_error_of_the_caller_s_body_is_no_failure_of_the_region(gateways: World, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> Iterator[bytes]:
        yield b"a"
        raise OSError("disk")

    reports = Reports(gateways.lb, monkeypatch)
    with pytest.raises(OSError, match="disk"):
        call(gateways.lb)("PUT", content=body())
    assert reports.outcomes == []


def test_a_report_says_when_the_request_began(clock: Clock, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The region goes down and recovers while a request is under way: its failure is old news."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.host == "a.example":
            for ok in (False, False, False, True, True):
                lb.report("a", ok, cause=None if ok else "refused", source="probe")
            assert lb.status("a") == "up"
            raise httpx.ReadError("late")
        return httpx.Response(200)

    lb = world([("a", "http://a.example"), ("b", "http://b.example")], clock)
    report, seen = lb.report, []

    def watch(region: str, ok: bool, client: Any = None, *, gen: int | None = None, **options: Any) -> None:
        seen.append((region, ok, gen, lb.generation(region)))
        report(region, ok, client, gen=gen, **options)

    monkeypatch.setattr(lb, "report", watch)
    call(lb, transport=httpx.MockTransport(handle))()
    assert [entry for entry in seen if entry[2] is not None] == [("a", False, 0, 1), ("b", True, 0, 0)]


def test_a_region_may_be_removed_while_a_request_is_under_way(clock: Clock, call: Call) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        lb.set_regions([region for region in lb.regions if region.name != "a"])
        return httpx.Response(200)

    lb = world([("a", "http://a.example"), ("b", "http://b.example")], clock)
    assert call(lb, transport=httpx.MockTransport(handle))().extensions["lbcore_region"] == "a"


@pytest.mark.parametrize("retried", [False, True])
def test_a_region_removed_between_pick_and_send_is_no_error_of_the_request(
    clock: Clock, call: Call, monkeypatch: pytest.MonkeyPatch, retried: bool
) -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        if retried and request.url.host == "a.example":
            raise httpx.ConnectError("refused")
        return httpx.Response(200)

    def vanishing(region: str) -> int:
        if region == gone:
            lb.set_regions([each for each in lb.regions if each.name != gone])
        return generation(region)

    gone = "b" if retried else "a"
    lb = world([("a", "http://a.example"), ("b", "http://b.example"), ("c", "http://c.example")], clock)
    generation = lb.generation
    monkeypatch.setattr(lb, "generation", vanishing)
    assert call(lb, transport=httpx.MockTransport(handle))().extensions["lbcore_region"] == gone
    assert gone not in [region.name for region in lb.regions]


@pytest.mark.parametrize("length", ["abc", "", "1" * 5000])
def test_a_content_length_that_is_no_number_loses_no_response(
    clock: Clock, call: Call, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    lb = world([("a", "http://a.example")], clock)
    reports = Reports(lb, monkeypatch)
    caller = call(lb, transport=answering(clock, 0.25))
    assert caller("POST", content=b"x", headers={"Content-Length": length}).status_code == 200
    assert (reports.samples, reports.outcomes) == ([], [("a", True, None, None)])


# ===== TLS


def test_a_gateway_without_a_valid_certificate_is_a_failure_by_cause_tls(
    clock: Clock, gateways: World, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    secure = Gateway("secure", context)
    try:
        lb = world([("secure", secure.url), ("far", gateways.far.url)], clock)
        reports = Reports(lb, monkeypatch)
        assert call(lb)().text == "far"
        assert reports.outcomes[0] == ("secure", False, "tls", None)
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
        caller = call(lb)
        kind: Any = httpx.HTTPTransport if caller.loop is None else httpx.AsyncHTTPTransport
        assert call(lb, transport=lambda region: kind(verify=trusting))().text == "secure"
        with pytest.raises(httpx.ConnectError, match="api.example"):  # the name is the request's own now
            call(lb, transport=lambda region: kind(verify=trusting), keep_host=True, retries=0)()
    finally:
        secure.close()


# ===== bodies


def test_a_response_is_passed_on_as_it_comes(gateways: World, call: Call) -> None:
    gateways.near.mode = "stream"
    assert list(call(gateways.lb).parts(gateways.near.proceed.set)) == [b"first", b"-rest"]


def test_a_request_is_passed_on_as_it_comes(gateways: World, call: Call) -> None:
    def parts() -> Iterator[bytes]:
        yield b"first"
        assert gateways.near.first_part.wait(WAIT), "the first part waits for the second"
        yield b"-second"

    assert call(gateways.lb)("POST", content=parts()).text == "near"
    assert gateways.near.seen[0].body == b"first-second"


# ===== connections


def test_connections_are_kept_and_those_of_a_region_that_goes_down_closed(gateways: World, call: Call) -> None:
    caller = call(gateways.lb)
    assert [caller().text for _ in range(5)] == ["near"] * 5
    assert gateways.near.connections == 1
    gateways.lb.disable("near")
    assert gateways.near.all_closed.wait(WAIT)
    gateways.lb.enable("near")
    for _ in range(400):
        gateways.lb.clock.advance(0.1)  # type: ignore[attr-defined]
        gateways.lb.tick()
    assert caller().text == "near"
    assert gateways.near.connections == 2


def test_a_response_under_way_outlives_its_region(gateways: World, call: Call) -> None:
    def down() -> None:
        gateways.lb.disable("near")
        gateways.near.proceed.set()

    gateways.near.mode = "stream"
    assert list(call(gateways.lb).parts(down)) == [b"first", b"-rest"]
    assert gateways.near.all_closed.wait(WAIT)


def test_closing_the_client_closes_all_connections(gateways: World, call: Call) -> None:
    caller = call(gateways.lb)
    caller()
    caller(client="81.2.69.7")
    (caller._client.close if caller.loop is None else lambda: caller.loop and caller.loop.run(caller._client.aclose()))()
    assert gateways.near.all_closed.wait(WAIT) and gateways.far.all_closed.wait(WAIT)


def test_a_transport_of_the_caller_s_is_closed_with_it_and_not_before(clock: Clock, call: Call) -> None:
    class Counting(httpx.MockTransport):
        closed = 0

        def close(self) -> None:
            self.closed += 1

        async def aclose(self) -> None:
            self.closed += 1

    inner = Counting(lambda request: httpx.Response(200))
    lb = world([("a", "http://a.example"), ("b", "http://b.example")], clock)
    caller = call(lb, transport=inner)
    caller()
    lb.disable("a")
    caller()
    assert inner.closed == 0
    (caller._client.close if caller.loop is None else lambda: caller.loop and caller.loop.run(caller._client.aclose()))()
    assert inner.closed == 1


def test_a_gateway_that_moved_gets_a_new_connection(gateways: World, call: Call) -> None:
    caller = call(gateways.lb)
    caller()
    moved = [Region("near", 0, 0, gateway=gateways.middle.url), *gateways.lb.regions[1:]]
    gateways.lb.set_regions(moved)
    assert caller().text == "middle"
    assert gateways.near.all_closed.wait(WAIT)


def test_a_balancer_keeps_no_transport_alive(clock: Clock, call: Call) -> None:
    lb = world([("a", "http://a.example"), ("b", "http://b.example")], clock)
    transport = BalancedTransport(lb, transport=answering(clock, 0))
    gone = weakref.ref(transport)
    del transport
    gc.collect()
    assert gone() is None
    lb.disable("a")


def test_a_closed_transport_leaves_nothing_in_the_balancer(clock: Clock, call: Call) -> None:
    lb = world([("a", "http://a.example"), ("b", "http://b.example")], clock)
    stays, goes = call(lb, transport=answering(clock, 0)), call(lb, transport=answering(clock, 0))
    for _ in range(2):
        goes.transport.close() if goes.loop is None else goes.loop.run(goes.transport.aclose())
        assert [cell.cell_contents() for callback in lb._callbacks for cell in callback.__closure__ or ()] == [stays.transport._changed]


# ===== many at once


def test_many_requests_at_once_while_a_region_dies(gateways: World, call: Call) -> None:
    caller = call(gateways.lb)
    assert {response.text for response in caller.together(50)} == {"near"}
    gateways.near.kill()
    assert {response.text for response in caller.together(50)} == {"middle"}
    assert caller.transport.counters["requests"] == 100


def test_a_cancelled_request_leaves_nothing_behind(gateways: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports(gateways.lb, monkeypatch)
    gateways.near.mode = "hang"

    async def cancelled() -> None:
        transport = AsyncBalancedTransport(gateways.lb)
        async with httpx.AsyncClient(transport=transport, timeout=WAIT) as client:
            request = asyncio.create_task(client.get(URL))
            while not gateways.near.seen:
                await asyncio.sleep(0.001)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            gateways.lb.disable("near")
            assert await asyncio.to_thread(gateways.near.all_closed.wait, WAIT)

    asyncio.run(cancelled())
    assert reports.outcomes == []


def test_changes_told_in_another_thread_close_connections_in_theirs(gateways: World, call: Call) -> None:
    caller = call(gateways.lb)
    caller()
    thread = threading.Thread(target=gateways.lb.disable, args=("near",))
    thread.start()
    thread.join(WAIT)
    assert gateways.near.all_closed.wait(WAIT)
    assert caller().text == "middle"


# ===== the budget


def test_the_budget_is_a_share_of_requests_and_a_reserve(clock: Clock) -> None:
    budget = RetryBudget(clock, ratio=0.2, minimum=1.0, window=10.0)
    assert [budget.withdraw() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(5):
        budget.deposit()
    assert [budget.withdraw(), budget.withdraw()] == [True, False]
    clock.advance(20)
    assert budget.balance == pytest.approx(10)


def test_credits_expire_with_the_window(clock: Clock) -> None:
    budget = RetryBudget(clock, ratio=1.0, minimum=0.0, window=10.0)
    for _ in range(10):
        budget.deposit()
        clock.advance(1)
    assert budget.balance == pytest.approx(9, abs=1)
    clock.advance(-500)  # a clock set back
    assert budget.balance == pytest.approx(9, abs=1)
    clock.advance(511)
    assert not budget.withdraw()


def test_default_budget_is_finagle_s(clock: Clock) -> None:
    budget = RetryBudget(clock)
    for _ in range(100):
        budget.deposit()
    assert budget.balance == pytest.approx(10 * 10 + 20)


@pytest.mark.parametrize("options", [{"ratio": -1}, {"minimum": float("nan")}, {"window": 0}, {"window": float("inf")}])
def test_a_budget_out_of_range_is_refused(clock: Clock, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RetryBudget(clock, **options)


def test_retries_below_zero_are_refused(clock: Clock, call: Call) -> None:
    with pytest.raises(ValueError, match="retries"):
        BalancedTransport(world([("a", "http://a.example")], clock), retries=-1)
