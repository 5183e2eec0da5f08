"""cors: preflight requests, what every response says, and a browser's own rules as the judge."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policing import added, context, head, pipeline, refusals, run, value

from lbcore.http.message import Response
from lbcore.http.policies import Context, Pipeline

APP = "https://app.contoso.test"
OTHER = "https://evil.test"


def cors(**more: Any) -> Pipeline:
    return pipeline(inbound=[{"policy": "cors", "origins": [APP], "methods": ["GET", "PUT"], "headers": ["Content-Type"], **more}])


def preflight(origin: str = APP, method: str = "PUT", headers: str = "") -> Context:
    fields = [("Origin", origin), ("Access-Control-Request-Method", method)]
    return context("OPTIONS", fields=[*fields, ("Access-Control-Request-Headers", headers)] if headers else fields)


def test_a_preflight_is_answered_here() -> None:
    response = run(cors(max_age=60, credentials=True), preflight(headers="content-type"))
    assert response is not None and response.status == 204
    assert value(response.fields, "access-control-allow-origin") == APP
    assert value(response.fields, "access-control-allow-methods") == "GET, PUT"
    assert value(response.fields, "access-control-allow-headers") == "Content-Type"
    assert value(response.fields, "access-control-allow-credentials") == "true"
    assert value(response.fields, "access-control-max-age") == "60"
    assert value(response.fields, "vary") == "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


@pytest.mark.parametrize(
    "call", [preflight(OTHER), preflight(method="DELETE"), preflight(headers="x-a"), preflight(headers="content-type, x-a")]
)
def test_a_preflight_that_asks_for_too_much_is_refused(call: Context) -> None:
    response = run(cors(), call)
    assert response is not None and response.status == 403
    assert value(response.fields, "access-control-allow-origin") is None


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "DELETE"])
def test_a_response_says_who_may_read_it(method: str) -> None:
    assert run(cors(expose=["x-a"], credentials=True), call := context(method, fields=[("Origin", APP)])) is None
    fields = added(call)
    assert value(fields, "access-control-allow-origin") == APP
    assert value(fields, "access-control-expose-headers") == "x-a"
    assert value(fields, "access-control-allow-credentials") == "true"
    assert value(fields, "vary") == "Origin"


@pytest.mark.parametrize("fields", [[], [("Origin", OTHER)], [("Origin", "null")], [("Origin", APP), ("Origin", OTHER)]])
def test_others_get_their_response_and_no_leave_to_read_it(fields: list[tuple[str, str]]) -> None:
    assert run(made := cors(), call := context(fields=fields)) is None
    assert added(call) == [(b"Vary", b"Origin")]
    made.outbound(call, answer := head(200, ("Access-Control-Allow-Origin", "*"), ("access-control-allow-credentials", "true"), ("a", "b")))
    assert answer.fields == [(b"a", b"b")]


def test_what_is_refused_later_can_be_read_by_the_page() -> None:
    made = pipeline(inbound=[{"policy": "cors", "origins": [APP]}, {"policy": "return-response", "status": 429}])
    response = run(made, call := context(fields=[("Origin", APP)]))
    assert response == Response(429, b"", [])
    assert value(added(call), "access-control-allow-origin") == APP


def test_anybody_is_a_star_and_needs_no_vary() -> None:
    run(made := pipeline(inbound=[{"policy": "cors", "origins": ["*"]}]), call := context(fields=[("Origin", OTHER)]))
    assert added(call) == [(b"Access-Control-Allow-Origin", b"*")]
    run(made, call := context())
    assert added(call) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"origins": ["*"], "credentials": True}, {"origins": ["null"], "credentials": True}, {"origins": []},
        {"origins": [APP], "headers": ["*"], "credentials": True},
        {"origins": ["https://app.contoso.test/"]}, {"origins": ["https://App.contoso.test"]}, {"origins": ["app.contoso.test"]},
        {"origins": ["https://*.contoso.test"]}, {"origins": [APP], "methods": ["G T"]}, {"origins": [APP], "headers": ["a\r\nb"]},
    ],
)  # fmt: skip
def test_rules_that_cannot_be_meant_are_refused(keys: dict[str, Any]) -> None:
    assert len(refusals(inbound=[{"policy": "cors", **keys}])) == 1


ORIGINS = [APP, OTHER, "http://app.contoso.test", "null", "https://app.contoso.test.evil.test"]


@given(
    st.lists(st.sampled_from(ORIGINS), min_size=1, max_size=3), st.sampled_from(ORIGINS), st.booleans(),
    st.sampled_from(["GET", "PUT", "DELETE"]), st.lists(st.sampled_from(["a", "B", "c"]), max_size=2),
)  # fmt: skip
def test_a_browser_lets_through_what_was_meant_and_nothing_else(
    origins: list[str], origin: str, credentials: bool, method: str, wanted: list[str]
) -> None:
    """The Fetch standard's CORS check and CORS-preflight fetch (§4.8, §4.10), with credentials included."""
    credentials = credentials and "null" not in origins
    made = pipeline(
        inbound=[{"policy": "cors", "origins": origins, "methods": ["GET", "PUT"], "headers": ["A", "b"], "credentials": credentials}]
    )
    answer = run(made, preflight(origin, method, ",".join(wanted)))
    assert answer is not None
    passes = 200 <= answer.status < 300 and value(answer.fields, "access-control-allow-origin") == origin
    passes = passes and (value(answer.fields, "access-control-allow-credentials") == "true") is credentials
    passes = passes and method in (value(answer.fields, "access-control-allow-methods") or "").split(", ")
    allowed = (value(answer.fields, "access-control-allow-headers") or "").lower().split(", ")
    passes = passes and all(name.lower() in allowed for name in wanted)
    assert passes is (origin in origins and method != "DELETE" and "c" not in wanted)
    run(made, call := context(method, fields=[("Origin", origin)]))
    assert (value(added(call), "access-control-allow-origin") == origin) is (origin in origins)
