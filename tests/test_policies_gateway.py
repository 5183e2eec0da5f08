"""Policies where they work: a gateway and backends on real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from gatewaying import document, serving
from jwt.algorithms import ECAlgorithm
from proxying import OK, Reader, Writer, answering, origin, read_request, understand

KEY = ec.generate_private_key(ec.SECP256R1())


def policies(**sections: list[dict[str, Any]]) -> dict[str, Any]:
    return {"policies": sections}


def api(**sections: list[dict[str, Any]]) -> dict[str, Any]:
    operation = {"name": "any", "method": "*", "path": "/{id}"}
    return {"apis": [{"name": "orders", "path": "/orders", "backend": "orders", "operations": [operation], "policies": sections}]}


async def test_tokens_are_checked_by_the_issuer_s_keys() -> None:
    keys = json.dumps({"keys": [json.loads(ECAlgorithm.to_jwk(KEY.public_key())) | {"kid": "e"}]}).encode()
    served = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(keys), keys)
    async with origin(answering(served)) as issuer, origin(answering()) as there:
        rule = {"policy": "validate-jwt", "issuer": "me", "audiences": ["orders"], "algorithms": ["ES256"], "jwks": f"{issuer.url}/keys"}
        who = {"policy": "set-header", "name": "x-user", "expression": 'claims["sub"]'}
        async with serving(document(there.url, **policies(inbound=[rule | {"forward": False}, who]))) as here:
            said = {"iss": "me", "aud": "orders", "sub": "ann", "exp": time.time() + 60}
            bearer = f"Authorization: Bearer {jwt.encode(said, KEY, 'ES256', {'kid': 'e'})}"
            found = await asyncio.gather(*(here.ask("POST", "/orders/1", bearer, body=b"x" * 5000) for _ in range(10)))
            assert [answer.status for answer in found] == [200] * 10
            assert len(issuer.got) == 1
            assert (await here.ask("GET", "/orders/1", bearer)).status == 200
            refused = await here.ask()
            assert refused.status == 401 and refused.field(b"www-authenticate") == b"Bearer"
            assert (await here.ask("GET", "/orders/1", bearer[:-5])).status == 401
        heard = [each for got in there.got for each in understand(bytes(got))]
        assert len(heard) == 11
        assert {each.field(b"x-user") for each in heard} == {b"ann"}
        assert {each.field(b"authorization") for each in heard} == {None}
        assert sorted({len(each.body) for each in heard}) == [0, 5000]


async def test_each_region_counts_by_itself() -> None:
    """R43: a limit of 4 a minute lets 8 in over two regions."""
    limit = {"policy": "rate-limit", "calls": 4, "period": 60}
    async with origin(answering()) as there:
        allowed = 0
        for region in ("westeurope", "eastus"):
            async with serving(document(there.url, **policies(inbound=[limit])), region) as here:
                found = [await here.ask() for _ in range(6)]
                assert [answer.status for answer in found] == [200] * 4 + [429] * 2
                assert found[0].field(b"ratelimit") == b'"default";r=3;t=60'
                assert 50 <= int(found[5].field(b"retry-after") or b"") <= 62
                assert here.gateway.apply(document(there.url, 2, **policies(inbound=[limit])))
                assert (await here.ask()).status == 429  # a new revision does not start anew
                allowed += sum(answer.status == 200 for answer in found)
        assert allowed == 8


async def test_pages_of_other_origins() -> None:
    app = b"https://app.contoso.test"
    cors = {"policy": "cors", "origins": [app.decode()], "methods": ["PUT"], "credentials": True}
    answer = b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nVary: Accept\r\nContent-Length: 2\r\n\r\nok"
    async with origin(answering(answer)) as there:
        limit = {"policy": "rate-limit", "calls": 1, "period": 60}
        async with serving(document(there.url, **policies(inbound=[cors, limit]))) as here:
            asked = f"Origin: {app.decode()}", "Access-Control-Request-Method: PUT"
            preflight = await here.ask("OPTIONS", "/orders/1", *asked)
            assert (preflight.status, preflight.field(b"access-control-allow-origin")) == (204, app)
            assert (await here.ask("OPTIONS", "/orders/1", "Origin: https://evil.test", asked[1])).status == 403
            for status in (200, 429):
                found = await here.ask("PUT", "/orders/1", asked[0])
                assert found.status == status
                assert found.field(b"access-control-allow-origin") == app
                assert b"Origin" in [value for name, value in found.fields if name == b"vary"]


async def test_paths_backends_and_headers_on_the_way() -> None:
    """R44: the region decides about the backend."""
    rules = {
        "inbound": [
            {"policy": "validate-api-key", "query": "key", "keys": [{"name": "partner", "sha256": hashlib.sha256(b"s3cret").hexdigest()}]},
            {"policy": "rewrite-path", "path": "/v2/items/{id}", "when": 'request.method != "POST"'},
            {"policy": "set-header", "name": "X-Caller", "expression": 'variables["key"]'},
        ],
        "backend": [{"policy": "set-backend", "backend": "west", "when": 'deployment.region == "westeurope"'}],
        "outbound": [
            {"policy": "remove-header", "name": "server"},
            {"policy": "set-header", "name": "x-served-by", "expression": "deployment.region"},
        ],
    }
    answer = b"HTTP/1.1 200 OK\r\nServer: x/1.0\r\nContent-Length: 2\r\n\r\nok"
    async with origin(answering(answer)) as one, origin(answering(answer)) as two:
        backends = [{"name": "orders", "urls": [one.url]}, {"name": "west", "urls": [two.url + "/base"]}]
        for region, there, base in (("westeurope", two, b"/base"), ("eastus", one, b"")):
            async with serving(document(backends=backends, **api(**rules)), region) as here:
                found = await here.ask("GET", "/orders/a%20b?key=s3cret&x=1")
                assert (found.status, found.field(b"server"), found.field(b"x-served-by")) == (200, None, region.encode())
                assert (await here.ask("POST", "/orders/7?key=s3cret")).status == 200
                assert (await here.ask("GET", "/orders/7")).status == 401
            heard = [each for got in there.got for each in understand(bytes(got))]
            assert [each.target for each in heard] == [base + b"/v2/items/a%20b?x=1", base + b"/7"]
            assert {each.field(b"x-caller") for each in heard} == {b"partner"}


async def test_failures_are_retried_bounded_and_worded() -> None:
    async def stall(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        await asyncio.sleep(30)

    rules = {
        "backend": [{"policy": "retry", "count": 1, "causes": [], "statuses": [503]}, {"policy": "timeout", "total": 0.2}],
        "on_error": [
            {"policy": "set-header", "name": "x-cause", "expression": "error.cause"},
            {"policy": "return-response", "status": 500, "body": "sorry", "when": "response.status == 404"},
        ],
    }
    unavailable = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    async with origin(answering(unavailable)) as bad, origin(answering()) as good, origin(stall) as silent:
        backends = [{"name": "orders", "urls": [bad.url, good.url]}, {"name": "silent", "urls": [silent.url]}]
        apis = [{"name": name, "path": f"/{name}", "backend": name} for name in ("orders", "silent")]
        async with serving(document(backends=backends, apis=apis, **policies(**rules))) as here:
            found = [(await here.ask("GET")).status for _ in range(4)]
            assert found == [200] * 4
            assert {(await here.ask("POST", body=b"x")).status for _ in range(4)} <= {200, 503}  # what may not come twice did not
            late = await here.ask("GET", "/silent/1")
            assert (late.status, late.field(b"x-cause")) == (504, b"timeout")
            lost = await here.ask("GET", "/nothing")
            assert (lost.status, lost.body, lost.field(b"x-cause")) == (500, b"sorry", None)


async def test_answers_from_here() -> None:
    rules = {
        "inbound": [{"policy": "mock-response", "status": 201, "body": "{}", "when": 'parameters["id"] == "mock"'}],
        "outbound": [{"policy": "return-response", "status": 502, "body": "hidden", "when": "response.status >= 500"}],
    }
    broken = b"HTTP/1.1 500 Oops\r\nContent-Length: 6\r\n\r\nsecret"
    async with origin(answering(broken)) as there, serving(document(there.url, **api(**rules))) as here:
        assert (await here.ask(path="/orders/mock")).status == 201
        found = await here.ask()
        assert (found.status, found.body) == (502, b"hidden")
        assert found.field(b"x-lbcore-revision") == b"1.1"
    async with origin(answering(OK)) as there, serving(document(there.url, **api(**rules))) as here:
        assert (await here.ask()).body == b"ok"
