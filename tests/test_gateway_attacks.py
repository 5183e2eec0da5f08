"""What attackers and tired operators try: forged fields and ids, messages that could be read in two ways, calls that never end."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import Awaitable
from typing import Any

import pytest
from gatewaying import document, serving, until
from policing import added, context, pipeline, refusals, run, value
from proxying import OK, QUICK, answering, answers, origin, read_request, request, resetting, talk, understand
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

import lbcore
from lbcore.errors import ConfigError
from lbcore.http.front import FrontDoor
from lbcore.http.gateway import Configuration, Units
from lbcore.http.policies.headers import RemoveHeader

LOOPBACK = ["127.0.0.0/8"]
MARKED = b"HTTP/1.1 200 OK\r\nX-Request-Id: backend's\r\nX-REQUEST-ID: another\r\nContent-Length: 2\r\n\r\nok"


# ===== one id, one client address


@pytest.mark.parametrize("trusted", [True, False])
async def test_one_request_id_from_the_front_door_to_the_backend(trusted: bool) -> None:
    async with origin(answering(MARKED)) as there, serving(document(there.url), trusted=LOOPBACK if trusted else []) as here:
        lb = lbcore.Balancer([lbcore.Region("westeurope", gateway=f"http://127.0.0.1:{here.port}")])
        async with FrontDoor(lb, timeouts=QUICK, trusted=LOOPBACK) as door:
            _, port = await door.listen("127.0.0.1", 0)
            data = await talk(port, request("GET", "/orders/1", b"", "X-Forwarded-For: 203.0.113.7", "X-Request-Id: the-client's"))
    [answer] = answers(data)
    [heard] = understand(bytes(there.got[0]))
    assert [content for name, content in answer.fields if name == b"x-request-id"] == [b"the-client's"]
    assert (heard.field(b"x-request-id") == b"the-client's") is trusted
    assert heard.field(b"x-forwarded-for") == (b"203.0.113.7, 127.0.0.1, 127.0.0.1" if trusted else b"127.0.0.1")


async def test_log_names_the_call_as_the_client_is_told() -> None:
    records: list[Any] = []
    log: dict[str, Any] = {"policies": {"inbound": [{"policy": "log"}], "outbound": [{"policy": "log"}]}}
    async with origin(answering()) as there, serving(document(there.url, **log), log=records.append) as here:
        answer = await here.ask()
    assert {record["request_id"].encode() for record in records} == {answer.field(b"x-request-id")} and len(records) == 2


async def test_what_only_proxies_may_say_is_not_read_from_others() -> None:
    told = {"policy": "return-response", "status": 418, "when": 'request.header["x-real-ip"] != ""'}
    async with origin(answering()) as there:
        for trusted in ([], LOOPBACK):
            async with serving(document(there.url, policies={"inbound": [told]}), trusted=trusted) as here:
                assert (await here.ask("GET", "/orders/1", "X-Real-IP: 10.0.0.1")).status == (418 if trusted else 200)


# ===== addresses of IPv4 in IPv6


async def test_clients_of_a_socket_for_both_are_counted_one_by_one() -> None:
    """By their /64, which all addresses of IPv4 have in common, they would be one."""
    limit = {"policy": "rate-limit", "calls": 1, "period": 60, "by": "client"}
    listening = socket.socket(socket.AF_INET6)
    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listening.bind(("::", 0))
    clients: list[str] = []
    async with origin(answering()) as there, serving(document(there.url, policies={"inbound": [limit]})) as here:
        here.gateway.on_done = lambda call, visit: clients.append(call.client)
        _, here.port = await here.gateway.listen(sock=listening)
        assert [(await here.ask()).status, (await here.ask()).status] == [200, 429]
    assert clients == ["127.0.0.1"] * 2


# ===== fields


def test_spellings_that_backends_cannot_tell_apart_go_together() -> None:
    made = pipeline(inbound=[{"policy": "set-header", "name": "x-user", "value": "ann"}, {"policy": "remove-header", "name": "X-Role"}])
    run(made, call := context(fields=[("X_User", "root"), ("x-user", "root"), ("x_role", "admin"), ("x-users", "b")]))
    assert [value(call.request.fields, name) for name in ("x-user", "x_user", "x_role", "x-users")] == ["ann", None, None, "b"]


def test_the_hash_of_no_key_is_refused() -> None:
    keys = [{"name": "partner", "sha256": hashlib.sha256(b"").hexdigest()}]
    assert "empty text" in str(refusals(inbound=[{"policy": "validate-api-key", "keys": keys}]))


def test_there_is_no_body_where_none_may_be() -> None:
    for status in (204, 205, 304):
        assert "no body" in str(refusals(inbound=[{"policy": "mock-response", "status": status, "body": "x"}]))


def test_the_first_cors_policy_decides() -> None:
    """Two answers are none to a browser."""
    rules = [{"policy": "cors", "origins": [origin]} for origin in ("https://a.test", "*")]
    run(pipeline(inbound=rules), call := context(fields=[("Origin", "https://a.test")]))
    assert [name for name, _ in added(call)] == [b"Access-Control-Allow-Origin", b"Vary"]


async def test_options_of_the_server_are_no_operation_of_an_api() -> None:
    api = {"name": "all", "path": "", "backend": "orders"}
    async with origin(answering()) as there, serving(document(there.url, apis=[api])) as here:
        assert (await here.ask("OPTIONS", "*")).status == 404
        assert (await here.ask("OPTIONS", "/x")).status == 200


# ===== calls that end once


async def _echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def test_a_websocket_outlives_the_timeout_of_its_call_and_holds_one_unit() -> None:
    bound: dict[str, Any] = {"policies": {"inbound": [{"policy": "timeout", "total": 0.1}]}}
    done: list[int] = []
    async with serve(_echo, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with serving(document(url, **bound)) as here:
            here.gateway.on_done = lambda call, visit: done.append(call.status)
            async with connect(f"ws://127.0.0.1:{here.port}/orders/chat", subprotocols=["a", "b"]) as opened:  # type: ignore[list-item]
                end = asyncio.get_running_loop().time() + 0.25
                while asyncio.get_running_loop().time() < end:
                    await opened.send("x")
                    assert await opened.recv() == "x"
                    await asyncio.sleep(0.02)
                assert here.gateway.units.under_way == 1 and done == []
            await until(lambda: done)
    assert done == [101]


async def test_a_call_without_time_left_is_not_tried_again() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    bound: dict[str, Any] = {"policies": {"inbound": [{"policy": "timeout", "total": 0.1}]}}
    async with origin(silent) as one, origin(silent) as other:
        backends = [{"name": "orders", "urls": [one.url, other.url]}]
        async with serving(document(backends=backends, **bound)) as here:
            assert (await here.ask()).status == 504
            assert "retries" not in here.gateway.counters and here.gateway.counters["failed_timeout"] == 1


@pytest.mark.parametrize("url", ["http://a..b:80", f"http://{'a' * 70}.test"])
def test_a_host_that_cannot_be_a_name_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="urls"):
        Configuration.from_mapping(document(url))


@pytest.mark.parametrize("where", ["queue", "policy", "backend", "body"])
async def test_whoever_leaves_gives_everything_back(where: str) -> None:
    """`serving` looks at units, revision and connections at its end."""
    waits = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waits.set()
        await reader.read()

    rule = {"policy": "validate-jwt", "issuer": "me", "audiences": ["a"], "algorithms": ["ES256"]}
    head = "Authorization: Bearer eyJhbGciOiJFUzI1NiIsImtpZCI6ImUifQ.e30.AAAA"
    async with origin(silent) as there:
        inbound = [rule | {"jwks": there.url}] if where == "policy" else []
        units = Units(1, concurrency=1)
        async with serving(document(there.url, policies={"inbound": inbound}), units=units) as here:
            asking = [await asyncio.open_connection("127.0.0.1", here.port)]
            more = ["Content-Length: 9"] if where == "body" else []
            asking[0][1].write(request("PUT" if more else "GET", "/orders/1", b"", head, *more))
            await waits.wait()
            if where == "queue":
                asking.append(await asyncio.open_connection("127.0.0.1", here.port))
                asking[1][1].write(request("GET", "/orders/2"))
                await until(lambda: units.waiting)
            for _, writer in reversed(asking):
                resetting(writer)
            await until(lambda: not here.gateway.engine.inbounds and not units.waiting)
            assert units.under_way == 0


async def test_a_policy_that_waits_and_gives_nonsense_is_500(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nonsense(context: Any) -> Any:
        return "no answer"

    def prepare(self: Any, site: Any) -> Any:
        step: Awaitable[Any] = nonsense  # type: ignore[assignment]
        return step

    monkeypatch.setattr(RemoveHeader, "prepare", prepare)
    async with origin(answering(OK)) as there:
        async with serving(document(there.url, policies={"inbound": [{"policy": "remove-header", "name": "x"}]})) as here:
            assert (await here.ask()).status == 500


def test_regions_that_are_none_are_found_in_policies_too() -> None:
    """A misspelt one would silently be no exception."""
    rules = [{"policy": "rate-limit", "calls": 1, "period": 60, "regions": {"westeruope": 2, "eastus": 3, "East US": 4}}]
    with pytest.raises(ConfigError) as caught:
        Configuration.from_mapping(document(policies={"inbound": rules}), regions=["westeurope", "eastus"])
    found = {violation.where: violation.nearest for violation in caught.value.violations}
    assert found == {"policies.inbound[0].regions.East US": None, "policies.inbound[0].regions.westeruope": "westeurope"}
