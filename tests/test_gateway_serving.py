"""The gateway on real sockets: routes, headers of every response, status path, backends, what fails."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest
from gatewaying import document, serving, until
from proxying import OK, Reader, Writer, answering, answers, origin, read_request, resetting, talk, understand

from lbcore.http.forward import Timeouts
from lbcore.http.gateway import Gateway, StaleRevisionError
from lbcore.http.message import Request


def request_for(path: str) -> Request:
    return Request(b"GET", path.encode(), [], {b"host": b"a"}, True, False)


STATUS = "/status-0123456789abcdef"


async def echo(reader: Reader, writer: Writer) -> None:
    """Answer with the request's target."""
    while True:
        head = await read_request(reader)
        body = head.split(b" ")[1]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


async def test_a_call_is_routed_to_its_backend_below_the_apis_path() -> None:
    async with origin(echo) as there, serving(document(f"{there.url}/base/")) as here:
        for path, sent in (("/orders/7?a=/b", "/base/7?a=/b"), ("/orders", "/base/"), ("/orders/", "/base/"), ("/orders?x", "/base/?x"),
                           ("/%6Frders/7/%41?q", "/base/7/%41?q")):
            answer = await here.ask(path=path)
            assert (answer.status, answer.body.decode()) == (200, sent)
            assert answer.field(b"x-lbcore-region") == b"westeurope" and answer.field(b"x-lbcore-revision") == b"1.1"
        heard = understand(bytes(there.got[0]))[0]
        assert heard.field(b"host") == there.url.removeprefix("http://").encode() and heard.field(b"x-forwarded-host") == b"api.example"


async def test_every_kind_of_response_says_region_and_revision() -> None:
    operations = [{"name": "get", "method": "GET", "path": "/{id}"}]
    apis = [{"name": "orders", "path": "/orders", "backend": "orders", "operations": operations}]
    async with origin(answering()) as there, serving(document(there.url, apis=apis)) as here:
        seen = {}
        for method, path in (("GET", "/orders/1"), ("HEAD", "/orders/1"), ("POST", "/orders/1"), ("GET", "/orders/1/2"), ("GET", "/x"),
                             ("GET", "/orders/../1"), ("GET", STATUS), ("POST", STATUS), ("GET", STATUS + "x")):
            answer = await here.ask(method, path)
            assert answer.field(b"x-lbcore-region") == b"westeurope" and answer.field(b"x-lbcore-revision") == b"1.1"
            seen[method, path] = answer.status
        assert [*seen.values()] == [200, 200, 405, 404, 404, 400, 200, 405, 404]
        assert (await here.ask("POST", "/orders/1")).field(b"allow") == b"GET, HEAD"
        there.kill()
        await until(lambda: not any(upstream.open for upstream in here.gateway.engine.upstreams.values()))
        answer = await here.ask()
        assert answer.status == 502 and answer.field(b"x-lbcore-revision") == b"1.1"
        refused = answers(await talk(here.port, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"))[0]
        assert refused.status == 400 and refused.field(b"x-lbcore-region") == b"westeurope"
        assert refused.field(b"x-lbcore-revision") == b"1.1" and refused.field(b"via") and refused.field(b"x-request-id")
        here.gateway.disable()
        answer = await here.ask()
        assert (answer.status, answer.field(b"x-lbcore-gateway"), answer.field(b"x-lbcore-revision")) == (503, b"disabled", b"1.1")


async def test_without_a_configuration_it_is_not_ready() -> None:
    async with serving() as here:
        answer = await here.ask()
        assert answer.status == 503 and answer.field(b"retry-after") == b"1" and answer.field(b"x-lbcore-revision") == b"none"
        answer = await here.ask(path=STATUS)
        assert answer.status == 503 and json.loads(answer.body)["status"] == "not ready"
        async with origin(answering()) as there:
            here.gateway.apply(document(there.url))
            assert (await here.ask()).status == 200
            assert (await here.ask(path=STATUS)).status == 200


async def test_status_disabled_draining_and_deep() -> None:
    async with origin(answering()) as there, serving(document(there.url)) as here:
        answer = await here.ask(path=STATUS + "?deep=1")
        assert answer.status == 200 and json.loads(answer.body)["backends"] == {"orders": "up"}
        there.kill()
        for _ in range(8):
            await here.ask()
        assert (await here.ask(path=STATUS)).status == 200
        answer = await here.ask(path=STATUS + "?deep=1")
        assert answer.status == 503 and json.loads(answer.body)["backends"] == {"orders": "down"}
        here.gateway.disable()
        assert json.loads((await here.ask(path=STATUS)).body)["status"] == "disabled"
        here.gateway.enable()
        here.gateway.drain()
        answer = await here.ask(path=STATUS)
        assert answer.status == 503 and json.loads(answer.body)["status"] == "draining"


async def test_an_older_or_another_configuration_of_the_same_number_is_refused() -> None:
    gateway = Gateway("westeurope")
    first = gateway.apply(document(sequence=5))
    assert gateway.apply(document(sequence=5)) is first is gateway.revision
    for older in (document(sequence=4), document("http://127.0.0.1:10", sequence=5), document(sequence=9, epoch=0)):
        with pytest.raises(StaleRevisionError):
            gateway.apply(older)
        assert gateway.revision is first
    assert gateway.apply(document(sequence=0, epoch=2)).name == "2.0"


async def test_regions_have_their_own_backends() -> None:
    async with origin(answering()) as one, origin(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwest")) as two:
        backends = [{"name": "orders", "urls": [one.url], "regions": {"West Europe": [two.url]}}]
        for region, body in (("westeurope", b"west"), ("eastus", b"ok")):
            async with serving(document(backends=backends), region) as here:
                assert (await here.ask()).body == body
        only = [{"name": "orders", "regions": {"westeurope": [two.url]}}]
        async with serving(document(backends=only), "eastus") as here:
            answer = await here.ask()
            assert answer.status == 503 and answer.body == b"no backend\n"


async def test_what_fails_goes_to_the_next_url_if_it_may() -> None:
    async def reset_after_request(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        resetting(writer)

    async with origin(reset_after_request) as bad, origin(answering()) as good:
        backends = [{"name": "orders", "urls": [bad.url, good.url]}]
        async with serving(document(backends=backends)) as here:
            assert (await here.ask()).status == 200 and len(bad.got) == 1
            assert (await here.ask("POST", body=b"x")).status == 502 and len(bad.got) == 2
            for _ in range(8):
                assert (await here.ask()).status == 200
            failures = len(bad.got)
            assert failures < 8  # by then it is known to be down
            assert (await here.ask("POST", body=b"x")).status == 200 and len(bad.got) == failures


async def test_explain_names_the_backend_to_those_who_may_know() -> None:
    apis = [{"name": "orders", "version": "v1", "path": "/orders", "backend": "orders",
             "operations": [{"name": "get", "method": "GET", "path": "/{id}"}]}]  # fmt: skip
    async with origin(answering()) as there:
        for networks, told in ((["127.0.0.0/8"], True), (["192.0.2.0/24"], False)):
            async with serving(document(there.url, apis=apis), explain_to=networks) as here:
                answer = await here.ask("GET", "/orders/v1/7", "X-Lbcore-Explain: 1")
                found: Any = answer.field(b"x-lbcore-explain")
                assert (found is not None) == told
                if told:
                    said = json.loads(found)
                    expected = ("orders", "v1", "get", "orders", there.url, "1.1", "westeurope")
                    assert tuple(said[key] for key in ("api", "version", "operation", "backend", "url", "revision", "region")) == expected


async def test_another_gateways_headers_behind_this_one_are_not_passed_on() -> None:
    theirs = b"X-Lbcore-Region: eastus\r\nx-lbcore-revision: 9.9\r\nX-Lbcore-Gateway: disabled\r\n"
    response = b"HTTP/1.1 200 OK\r\n" + theirs + b"X-Other: 1\r\nContent-Length: 0\r\n\r\n"
    async with origin(answering(response)) as there, serving(document(there.url)) as here:
        answer = await here.ask()
        assert [value for name, value in answer.fields if name.startswith(b"x-lbcore")] == [b"westeurope", b"1.1"]
        assert answer.field(b"x-other") == b"1"


async def test_a_call_keeps_its_revision_and_the_backends_of_it() -> None:
    hold = asyncio.Event()

    async def slow(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await hold.wait()
        writer.write(OK)

    async with origin(slow) as before, origin(answering()) as after, serving(document(before.url)) as here:
        waiting = asyncio.create_task(here.ask())
        await until(lambda: before.got)
        old = here.gateway.revision
        here.gateway.apply(document(after.url, sequence=2))
        answer = await here.ask()
        assert (answer.status, answer.field(b"x-lbcore-revision")) == (200, b"1.2")
        assert old is not None and old.calls == 1
        [upstream] = [each for each in here.gateway.engine.upstreams.values() if before.url.endswith(str(each.port))]
        assert not upstream.retired
        hold.set()
        answer = await waiting
        assert (answer.status, answer.field(b"x-lbcore-revision")) == (200, b"1.1")
        await until(lambda: old.calls == 0)
        assert upstream.retired


async def test_an_unchanged_backend_keeps_its_health_and_connections() -> None:
    async with origin(answering()) as there, serving(document(there.url)) as here:
        await here.ask()
        backend = here.gateway.revision.backends["orders"]  # type: ignore[union-attr]
        here.gateway.apply(document(there.url, sequence=2))
        await here.ask()
        assert here.gateway.revision.backends["orders"] is backend and len(there.got) == 1  # type: ignore[union-attr]


async def test_calls_leave_nothing_to_the_garbage_collector() -> None:
    async with origin(answering(), record=False) as there, serving(document(there.url)) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)

        async def ask(times: int) -> None:
            for _ in range(times):
                writer.write(b"GET /orders/1 HTTP/1.1\r\nHost: a\r\n\r\n")
                await reader.readuntil(b"ok")

        await ask(20)
        gc.collect()
        gc.disable()
        try:
            await ask(200)
            assert gc.collect() < 200
        finally:
            gc.enable()
        writer.close()


async def test_a_total_timeout_counts_from_the_calls_begin() -> None:
    async def silent(reader: Reader, writer: Writer) -> None:
        await reader.read()

    policies = {"inbound": [{"policy": "timeout", "total": 0.05}]}
    async with origin(silent) as there, serving(document(there.url, policies=policies), timeouts=Timeouts()) as here:
        answer = await here.ask()
        assert answer.status == 504 and answer.field(b"x-lbcore-revision") == b"1.1"
        assert (await here.ask()).status == 504


async def test_a_retry_policy_asks_again_after_some_statuses() -> None:
    count = 0

    async def sometimes(reader: Reader, writer: Writer) -> None:
        nonlocal count
        while True:
            await read_request(reader)
            count += 1
            writer.write(OK if count % 3 == 0 else b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    policies = {"backend": [{"policy": "retry", "count": 2, "statuses": [503]}]}
    async with origin(sometimes) as there, serving(document(there.url, policies=policies)) as here:
        assert (await here.ask()).status == 200 and count == 3
        assert (await here.ask("POST", body=b"x")).status == 503 and count == 4


async def test_a_client_that_leaves_while_a_policy_waits() -> None:
    async with origin(answering()) as there, serving(document(there.url)) as here:
        entered, release = asyncio.Event(), asyncio.Event()

        class Slow:
            """A pipeline whose inbound takes its time."""

            def inbound(self, context: Any) -> Any:
                async def wait() -> None:
                    entered.set()
                    await release.wait()

                return wait()

            def backend(self, context: Any) -> None:
                return None

        revision = here.gateway.revision
        assert revision is not None
        entrance = revision.router.find(request_for("/orders/1"))[0].api  # type: ignore[index]
        object.__setattr__(entrance, "pipeline", Slow())
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"GET /orders/1 HTTP/1.1\r\nHost: a\r\n\r\n")
        await entered.wait()
        resetting(writer)
        await until(lambda: not here.gateway.engine.inbounds)
        assert revision.calls == 0
        release.set()
        await asyncio.sleep(0)
        assert len(there.got) == 0
