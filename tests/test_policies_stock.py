"""Stock policies without a file of their own: headers, paths, backends, bounds, addresses, API keys, answers, records."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from policing import context, head, pipeline, refusals, request, run, value

from lbcore.http.message import Response, check_target
from lbcore.http.policies import Failure, Retry, Site, Timeout
from lbcore.http.policies.api_keys import ValidateApiKey

# ===== set-header, remove-header


@pytest.mark.parametrize(("exists", "seen"), [("replace", "new"), ("append", "one|two|new"), ("skip", "one|two")])
def test_set_header(exists: str, seen: str) -> None:
    policy = {"policy": "set-header", "name": "X-Tier", "value": "new", "exists": exists}
    run(pipeline(inbound=[policy]), call := context(fields=[("x-tier", "one"), ("a", "b"), ("X-TIER", "two")]))
    assert value(call.request.fields, "x-tier") == seen
    run(pipeline(inbound=[policy]), call := context(fields=[("a", "b")]))
    assert call.request.fields == [(b"a", b"b"), (b"X-Tier", b"new")]
    pipeline(outbound=[policy]).outbound(context(), answer := head(200, ("x-tier", "one"), ("x-tier", "two")))
    assert value(answer.fields, "x-tier") == seen


def test_set_header_by_an_expression_writes_what_a_header_can_hold() -> None:
    made = pipeline(inbound=[{"policy": "set-header", "name": "x-user", "expression": 'claims["sub"]'}])
    for subject, seen in (("ann", "ann"), ("a\r\nHost: b", "aHost: b"), (" é\u20ac ", "é"), (5, "5"), (None, ""), ("x" * 9999, "x" * 4096)):
        run(made, call := context(claims={"sub": subject}))
        assert value(call.request.fields, "x-user") == seen


def test_remove_header() -> None:
    run(
        pipeline(inbound=[{"policy": "remove-header", "name": "COOKIE"}]),
        call := context(fields=[("Cookie", "a"), ("b", "c"), ("cookie", "d")]),
    )
    assert call.request.fields == [(b"b", b"c")]


OWNED = ["connection", "Transfer-Encoding", "content-length", "host", "keep-alive", "upgrade", "te", "trailer", "date", "via", "forwarded"]
FORGED = [
    "X-Forwarded-For",
    "x-forwarded-proto",
    "X-Forwarded-Anything",
    "x-real-ip",
    "x-request-id",
    "X-Lbcore-Region",
    "proxy-authorization",
]


@pytest.mark.parametrize("name", [*OWNED, *FORGED, "", "a b", "a:", "a\r\nb", "é", "a\0", "a" * 101])
def test_what_only_the_gateway_may_say_is_refused(name: str) -> None:
    for policy in ({"policy": "set-header", "name": name, "value": "x"}, {"policy": "mock-response", "headers": {name: "x"}}):
        assert len(refusals(inbound=[policy])) == 1


@pytest.mark.parametrize("text", ["a\r\nb: c", "a\nb", "a\0", "\x7f", " a", "a ", "\u20ac", "x" * 4097])
def test_values_that_no_header_can_hold_are_refused(text: str) -> None:
    assert len(refusals(inbound=[{"policy": "set-header", "name": "x-a", "value": text}])) == 1


# ===== rewrite-path


@pytest.mark.parametrize(
    ("path", "query", "target"),
    [
        ("/v2/orders/{id}", "keep", b"/v2/orders/a%2Fb%20c?x=1&y=%20"),
        ("/v2/{id}.json", "drop", b"/v2/a%2Fb%20c.json"),
        ("/", "keep", b"/?x=1&y=%20"),
    ],
)
def test_rewrite_path(path: str, query: str, target: bytes) -> None:
    made = pipeline(inbound=[{"policy": "rewrite-path", "path": path, "query": query}])
    assert run(made, call := context(target="/orders/1?x=1&y=%20", parameters={"id": "a/b c"})) is None
    assert call.request.target == target


@pytest.mark.parametrize("identifier", ["", "..", ".", "..;x", "%2e%2e", None])
def test_parameters_that_would_climb_or_are_missing_are_refused(identifier: str | None) -> None:
    made = pipeline(inbound=[{"policy": "rewrite-path", "path": "/v2/{id}/x"}])
    response = run(made, context(parameters={} if identifier is None else {"id": identifier}))
    if identifier == "%2e%2e":  # that is a name with a percent sign, and stays one
        assert response is None
    else:
        assert response is not None and response.status == 400


@pytest.mark.parametrize(
    "path", ["", "v2", "//v2", "/a b", "/a?b", "/a#b", "/a%2", "/{}", "/{a b}", "/{a", "/a}", "/../b", "/a/%2E./b", "/é", "/a\r\n", "/a\\b"]
)
def test_paths_that_are_none_are_refused(path: str) -> None:
    assert len(refusals(inbound=[{"policy": "rewrite-path", "path": path}])) == 1


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=5))
def test_whatever_a_parameter_says_it_stays_one_segment(one: str, other: str) -> None:
    made = pipeline(inbound=[{"policy": "rewrite-path", "path": "/a/{one}-{other}/{one}"}])
    assume(not any(0xD800 <= ord(character) < 0xDC80 or 0xDCFF < ord(character) < 0xE000 for character in one + other))
    response = run(made, call := context(target="/?q", parameters={"one": one, "other": other}))
    if response is None:
        check_target(call.request)  # the engine's own judge of what may be sent
        path, _, query = call.request.target.partition(b"?")
        assert query == b"q"
        assert [unquote_to_bytes(part).decode(errors="surrogateescape") for part in path.split(b"/")] == ["", "a", f"{one}-{other}", one]
    else:
        assert response.status == 400
        assert one.partition(";")[0] in (".", "..")


# ===== set-backend, timeout, retry

BACKENDS = {"orders": 1, "stock-eu": 2, "stock-us": 3}


@pytest.mark.parametrize(("region", "backend"), [("westeurope", "stock-eu"), ("eastus", "stock-us"), ("eastasia", "other")])
def test_set_backend_by_region(region: str, backend: str) -> None:
    """R44: west goes to one backend, otherwise to another; responses differ by region."""
    policy = {"policy": "set-backend", "regions": {"West Europe": "stock-eu", "eastus": "stock-us"}}
    run(pipeline(Site(region=region, backends=BACKENDS), backend=[policy]), call := context(backend="other"), "backend")
    assert call.backend == backend
    run(pipeline(Site(region=region, backends=BACKENDS), inbound=[policy | {"backend": "orders"}]), call := context(backend="other"))
    assert call.backend == ("orders" if backend == "other" else backend)


def test_set_backend_by_a_condition_over_the_region() -> None:
    policy = {"policy": "set-backend", "backend": "stock-us", "when": 'deployment.region != "westeurope"'}
    for region, backend in (("westeurope", "orders"), ("eastus", "stock-us")):
        run(pipeline(Site(region=region, backends=BACKENDS), inbound=[policy]), call := context(region=region, backend="orders"))
        assert call.backend == backend


def test_timeout_and_retry_set_the_bounds() -> None:
    policies = [
        {"policy": "timeout", "first_byte": 2, "total": 1.5},
        {"policy": "retry", "count": 2, "causes": ["refused"], "statuses": [503]},
    ]
    run(pipeline(backend=policies), call := context(), "backend")
    assert call.timeout == Timeout(2.0, 1.5)
    assert call.retry == Retry(2, frozenset({"refused"}), frozenset({503}))


# ===== ip-filter


@pytest.mark.parametrize(
    ("client", "allow", "deny", "status"),
    [
        ("10.1.2.3", ["10.0.0.0/8"], [], 0), ("11.1.2.3", ["10.0.0.0/8"], [], 403), ("10.66.0.1", ["10.0.0.0/8"], ["10.66.0.0/16"], 403),
        ("192.0.2.1", [], ["192.0.2.1"], 403), ("192.0.2.2", [], ["192.0.2.1"], 0), ("::ffff:10.0.0.1", ["10.0.0.0/8"], [], 0),
        ("fd00::1%eth0", ["fd00::/8"], [], 0), ("2001:db8::1", ["10.0.0.0/8"], [], 403), ("", ["0.0.0.0/0"], [], 403),
        ("", [], ["::/0"], 0),
    ],
)  # fmt: skip
def test_ip_filter(client: str, allow: list[str], deny: list[str], status: int) -> None:
    response = run(pipeline(inbound=[{"policy": "ip-filter", "allow": allow, "deny": deny}]), context(client=client))
    assert (response.status if response else 0) == status


# ===== validate-api-key

KEYS = [{"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in (("partner", "k3y one"), ("own", "k3y-two"))]


@pytest.mark.parametrize("shown", [None, "", "k3y", "K3Y-TWO", "k3y-two ", "x" * 2000, KEYS[1]["sha256"], "é"])
def test_whoever_shows_no_key_is_not_let_in(shown: str | None) -> None:
    response = run(
        pipeline(inbound=[{"policy": "validate-api-key", "keys": KEYS}]), call := context(fields=[("X-Api-Key", shown)] if shown else [])
    )
    assert response is not None and response.status == 401
    assert value(response.fields, "www-authenticate") == "ApiKey"
    assert call.error == Failure("policy", "validate-api-key")
    assert "key" not in call.variables


@pytest.mark.parametrize("forward", [True, False])
def test_keys_open_are_named_and_kept_from_the_backend(forward: bool) -> None:
    made = pipeline(inbound=[{"policy": "validate-api-key", "keys": KEYS, "forward": forward}])
    assert run(made, call := context(fields=[("X-API-Key", "k3y-two"), ("a", "b")])) is None
    assert call.variables["key"] == "own"
    assert value(call.request.fields, "x-api-key") == ("k3y-two" if forward else None)


@pytest.mark.parametrize(
    ("target", "left"),
    [
        ("/?key=k3y+one", b"/"),
        ("/a?x=1&key=k3y%20one&y=2", b"/a?x=1&y=2"),
        ("/a?x=1&%6bey=k3y+one&key=z", b"/a?x=1"),
        ("/a?keys=1&key=k3y-two", b"/a?keys=1"),
    ],
)
def test_keys_may_stand_in_the_query(target: str, left: bytes) -> None:
    made = pipeline(inbound=[{"policy": "validate-api-key", "keys": KEYS, "query": "key"}])
    assert run(made, call := context(target=target)) is None
    assert call.request.target == left


def test_keys_that_cannot_be_told_apart_are_refused() -> None:
    same = {"name": "other", "sha256": KEYS[0]["sha256"]}
    for keys in (
        [KEYS[0], same],
        [KEYS[0], KEYS[1] | {"name": "partner"}],
        [KEYS[0] | {"sha256": "00"}],
        [{"name": "x", "key": "k3y"}],
        [],
    ):
        assert refusals(inbound=[{"policy": "validate-api-key", "keys": keys}])


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=20, unique_by=lambda each: each[:8]), st.text(max_size=30))
def test_only_the_hash_of_what_is_shown_counts(hashes: list[bytes], shown: str) -> None:
    policy = ValidateApiKey.model_validate(
        {"keys": [{"name": str(n), "sha256": each.hex()} for n, each in enumerate(hashes)], "query": "k"}
    )
    step = policy.prepare(Site())
    call = context(target=request(target="/").target.decode() + "?k=" + "".join(f"%{byte:02x}" for byte in shown.encode()))
    assert (step(call) is None) is (hashlib.sha256(shown.encode()).digest() in hashes)


# ===== answers


def test_mock_response_answers_for_the_backend() -> None:
    policy = {
        "policy": "mock-response",
        "status": 201,
        "headers": {"content-type": "application/json"},
        "body": "{}",
        "when": 'api == "new"',
    }
    made = pipeline(inbound=[policy])
    assert run(made, context(api="new")) == Response(201, b"{}", [(b"content-type", b"application/json")])
    assert run(made, context(api="old")) is None


def test_errors_are_worded_by_policies() -> None:
    made = pipeline(on_error=[
        {"policy": "set-status", "status": 404, "when": 'error.policy == "ip-filter"'},
        {"policy": "return-response", "status": 503, "headers": {"retry-after": "5"}, "body": "busy", "when": "response.status == 502"},
        {"policy": "set-header", "name": "x-cause", "expression": "error.cause"},
    ])  # fmt: skip
    call = context()
    call.error = Failure("refused")
    response = made.on_error(call, Response(502))
    assert (response.status, response.body) == (503, b"busy")
    assert (value(response.fields, "retry-after"), value(response.fields, "x-cause")) == ("5", "refused")
    call.error = Failure("policy", "ip-filter")
    assert made.on_error(call, Response(403)).status == 404


# ===== log


def records(call: Any, section: str = "inbound", **policy: Any) -> list[Any]:
    written: list[Any] = []
    made = pipeline(Site(region="westeurope", gateway="g", log=written.append), **{section: [{"policy": "log", **policy}]})
    if section == "outbound":
        made.outbound(call, head(404))
    else:
        run(made, call)
    return written


def test_log_says_what_it_is_told_to_in_json() -> None:
    call = context(
        "GET", "/a?b=c", claims={"sub": "ann", "roles": ["a", 1, {}], "n": float("nan"), "big": 1 << 99}, api="orders", revision="1.7"
    )
    fields = {"sub": 'claims["sub"]', "roles": 'claims["roles"]', "n": 'claims["n"]', "big": 'claims["big"]', "status": "response.status"}
    [record] = records(call, "outbound", fields=fields | {"get": 'request.method == "GET"', "none": 'claims["none"]'})
    assert record == {
        "region": "westeurope", "gateway": "g", "section": "outbound", "api": "orders", "version": "", "operation": "", "revision": "1.7",
        "request_id": "id-1", "sub": "ann", "roles": ["a", 1], "n": None, "big": None, "status": 404, "get": True, "none": None,
    }  # fmt: skip
    assert json.loads(json.dumps(record, allow_nan=False)) == record


SECRETS = [
    'request.header["Authorization"]',
    'request.cookie["sid"]',
    'lower(request.header["COOKIE"])',
    'request.header["x-api-key"] == "a"',
]


@pytest.mark.parametrize("text", SECRETS)
def test_log_is_told_no_secrets(text: str) -> None:
    [violation] = refusals(inbound=[{"policy": "log", "fields": {"x": text}}])
    assert "without secrets" in str(violation)
    assert "without secrets" in str(refusals(outbound=[{"policy": "log", "fields": {"x": 'response.header["Set-Cookie"]'}}])[0])


@pytest.mark.parametrize(("sample", "least", "most"), [(0.0, 0, 0), (1.0, 400, 400), (0.25, 50, 150)])
def test_log_writes_a_share(sample: float, least: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    monkeypatch.setattr("random.random", random.Random(1).random)
    assert least <= sum(len(records(context(), sample=sample)) for _ in range(400)) <= most
