"""Compiled routes: a plain performance profile goes the Balancer's own way."""

from __future__ import annotations

import pytest

from lbcore import Balancer, Region
from lbcore.dns.answers import Root
from lbcore.dns.profile import Endpoint, Profile
from lbcore.dns.route import compile_routes

CLIENTS = ("81.2.69.160", "8.8.8.8", "2001:200::1", "133.11.0.1", None)


@pytest.mark.parametrize("client", CLIENTS)
def test_performance_is_the_balancers_pick(client: str | None) -> None:
    lb = Balancer([Region("westeurope"), Region("eastus"), Region("japaneast")])
    program = compile_routes([Root(Profile("api", "example.com"))], lb)
    choice = program.choose(0, client, pair=True)
    assert choice[:4] == (lb.slot(lb.pick(client)), lb.slot(lb.rank(client)[1]), lb.match(client)[1], 30)
    lb.disable(lb.pick(client))
    assert program.choose(0, client).region == lb.slot(lb.pick(client)) == choice.second


def test_endpoints_narrow_the_choice() -> None:
    lb = Balancer([Region("westeurope"), Region("eastus"), Region("japaneast")])
    profile = Profile("api", "example.com", endpoints=(Endpoint("eastus"), Endpoint("japaneast"), Endpoint("westeurope", enabled=False)))
    program = compile_routes([Root(profile)], lb)
    assert program.choose(0, "81.2.69.160").region == lb.slot("eastus")
    with pytest.raises(IndexError, match="root 1"):
        program.choose(1, None)


def test_nothing_to_give_is_nodata() -> None:
    lb = Balancer([Region("westeurope", enabled=False)])
    assert compile_routes([Root(Profile("api", "example.com"))], lb).choose(0, None).region == -1
