"""rate-limit: who is counted, what callers are told, what is counted apart and what together."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policing import Clock, added, context, pipeline, refusals, run, value

from lbcore.http._limits import Limits
from lbcore.http.policies import Context, Pipeline, Site, build, read_policies
from lbcore.http.policies.rate_limit import network_of, share_of


def site(region: str = "westeurope", **more: Any) -> Site:
    return Site(region=region, limits=Limits(1024), clock=Clock(), **more)


def limit(**more: Any) -> dict[str, Any]:
    return {"policy": "rate-limit", "calls": 2, "period": 60, **more}


def lets_in(made: Pipeline, *calls: Context) -> list[bool]:
    return [run(made, call) is None for call in calls]


def test_whoever_calls_too_often_is_told_when_to_come_back() -> None:
    where = site()
    made = pipeline(where, inbound=[limit(name="gold")])
    for left in (1, 0):
        assert run(made, call := context()) is None
        assert value(added(call), "ratelimit-policy") == '"gold";q=2;w=60'
        assert value(added(call), "ratelimit") == f'"gold";r={left};t=60'
    response = run(made, call := context())
    assert response is not None and response.status == 429
    wait = int(value(response.fields, "retry-after") or "")
    assert 55 <= wait <= 64
    assert value(added(call), "ratelimit") == f'"gold";r=0;t={wait}'
    where.clock.now += wait  # type: ignore[attr-defined]
    assert run(made, context()) is None


def test_headers_may_be_left_out() -> None:
    made = pipeline(site(), inbound=[limit(headers=False)])
    for _ in range(3):
        run(made, call := context())
        assert added(call) == []


def test_the_headers_are_structured_fields() -> None:
    made = pipeline(site(), inbound=[limit(period=0.5, name="a-1")])
    run(made, call := context())
    item = r'"(?:[ !#-\[\]-~]|\\["\\])*"(?:;[a-z*][a-z0-9_.*-]*=-?[0-9]{1,15})*'  # RFC 8941 §4.1: a String with Integer parameters
    for name in ("ratelimit", "ratelimit-policy"):
        assert re.fullmatch(item, value(added(call), name) or "")


@pytest.mark.parametrize(
    ("by", "same", "others"),
    [
        ("client", [{}, {"client": "192.0.2.1"}], {"client": "192.0.2.2"}),
        ("client", [{"client": "2001:db8::1"}, {"client": "2001:db8::ffff:1"}], {"client": "2001:db8:0:1::1"}),
        ("all", [{}, {"client": "192.0.2.2"}], None),
        ('request.header["x-tenant"]', [{"fields": [("X-Tenant", "a")]}] * 2, {"fields": [("x-tenant", "b")]}),
        ('claims["sub"]', [{"claims": {"sub": "ann"}}] * 2, {"claims": {"sub": "bob"}}),
        ('lower(request.query["k"])', [{"target": "/?k=a"}, {"target": "/?k=A"}], {"target": "/?k=b"}),
    ],
)
def test_callers_are_told_apart(by: str, same: list[dict[str, Any]], others: dict[str, Any] | None) -> None:
    made = pipeline(site(), inbound=[limit(by=by)])
    assert lets_in(made, *(context(**keys) for keys in [*same, same[0]])) == [True, True, False]
    if others is not None:
        assert lets_in(made, context(**others)) == [True]


def test_api_keys_are_callers() -> None:
    made = pipeline(site(), inbound=[limit(by="key")])
    for key, seen in (("a", [True, True, False]), ("b", [True, True, False])):
        calls = [context() for _ in range(3)]
        for call in calls:
            call.variables["key"] = key
        assert lets_in(made, *calls) == seen


def test_limits_count_apart_unless_they_are_the_same() -> None:
    where = site()
    one, same = pipeline(where, inbound=[limit()]), pipeline(where, inbound=[limit()])  # a new revision, say
    assert lets_in(one, context(), context(), context()) == [True, True, False]
    assert lets_in(same, context()) == [False]
    for other in (limit(calls=3), limit(period=61), limit(name="x"), limit(by="all"), limit(when='request.method == "GET"')):
        assert lets_in(pipeline(where, inbound=[other]), context()) == [True]
    elsewhere = build([(read_policies({"inbound": [limit()]})[0], Site(scope="api/orders/v1", limits=where.limits, clock=where.clock))])[0]
    assert lets_in(elsewhere, context()) == [True]


def test_a_limit_holds_for_each_region_and_may_differ() -> None:
    """R43: nothing is synchronised: 4 a minute in 2 regions lets 8 in."""
    regions = [pipeline(site(name), inbound=[limit(calls=4)]) for name in ("westeurope", "eastus")]
    assert sum(sum(lets_in(made, *(context() for _ in range(6)))) for made in regions) == 8
    made = pipeline(site("westus2"), inbound=[limit(regions={"West US 2": 3, "eastus": 1})])
    assert sum(lets_in(made, *(context() for _ in range(6)))) == 3


@given(st.integers(1, 100_000), st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1, max_size=8))
def test_shares_hold_a_limit_over_all_regions(calls: int, units: dict[str, int]) -> None:
    shares = share_of(calls, units)
    assert shares.keys() == units.keys()
    assert sum(shares.values()) <= max(calls, len(units))
    assert all(share >= 1 for share in shares.values())
    for region, count in units.items():
        exact = calls * count / sum(units.values())
        assert exact - len(units) <= shares[region] <= max(1, exact)


@pytest.mark.parametrize(
    "keys", [{"calls": 0}, {"calls": 131072}, {"period": 0.01}, {"period": 1e9}, {"by": "clint"}, {"by": ""}, {"name": 'a"b'}]
)
def test_numbers_and_callers_out_of_range_are_refused(keys: dict[str, Any]) -> None:
    assert len(refusals(site(), inbound=[limit(**keys)])) == 1


@given(st.text(max_size=40))
def test_any_address_has_a_network(text: str) -> None:
    assert network_of(text) is not None
    assert network_of("2001:db8::1%eth0") == "2001:db8::/64"
