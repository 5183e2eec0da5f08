"""Compiled routes: what profiles mean, against a brute-force reading; and the promises that DNS rests on: scope, TTL, no stale region."""

from __future__ import annotations

import ipaddress
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from routes import DOWN, KEYS, NAMES, SEVERAL, UP, Reading, World, clients, profiles, world_map, worlds

from lbcore import Balancer, PrefixMap, Region
from lbcore.dns.answers import Root
from lbcore.dns.geography import GROUP_OF
from lbcore.dns.profile import Endpoint, Profile
from lbcore.dns.route import Horizon, Program, compile_routes

NODATA, NXDOMAIN, SERVFAIL, REFUSED = -1, -2, -3, -4
CLIENTS = ("81.2.69.160", "8.8.8.8", "2001:200::1", "133.11.0.1", None)
LONDON, TOKYO = "81.2.69.160", "133.11.0.1"
turns = st.integers(0, 65535)
slow = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], deadline=None)


def balancer(*names: str, **options: bool) -> Balancer:
    """Give a Balancer of catalogued regions."""
    return Balancer([Region(name, **options) for name in names or ("westeurope", "eastus", "japaneast")])


def route(lb: Balancer, profile: Profile) -> Program:
    """Compile one profile."""
    return compile_routes([Root(profile)], lb)


def down(lb: Balancer, *names: str) -> None:
    """Let probes find regions down."""
    for name in names:
        for _ in range(3):
            lb.report(name, False, cause="refused", source="probe")
        assert lb.status(name) == "down"


def reading(world: World, profile: Profile, client: str | None, turn: int) -> Reading:
    """Give a Reading that numbers draws as the Program does."""
    found = Reading(world, client, turn)
    found.number(profile)
    return found


# ===== against the brute-force reading


@slow
@given(profiles(), worlds(), clients(), turns)
def test_a_choice_is_what_the_profile_says(profile: Profile, world: World, client: str | None, turn: int) -> None:
    program = compile_routes([Root(profile)], world)
    found = reading(world, profile, client, turn)
    region = found.walk(profile)
    choice = program.choose(0, client, turn, pair=True)
    assert choice.region == region
    assert choice.fail_open == (region >= 0 and not found.asserted and not world.eligible(region))
    assert choice.second == _second(world, profile, client, turn, region, choice.fail_open)


def _second(world: World, profile: Profile, client: str | None, turn: int, region: int, fail_open: bool) -> int:
    if region < 0 or fail_open:
        return -1
    found = reading(world, profile, client, turn)
    found.without = region
    second = found.walk(profile)
    return second if second >= 0 and (found.asserted or world.eligible(second)) else -1


@slow
@given(profiles(), worlds(), clients(), turns, st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=20))
def test_every_address_in_the_scope_gets_the_same(profile: Profile, world: World, client: str | None, turn: int, others: list[int]) -> None:
    program = compile_routes([Root(profile)], world)
    choice = program.choose(0, client, turn, pair=True)
    if client is None:
        assert choice.scope == 0
        return
    network = ipaddress.ip_network(f"{client}/{choice.scope}", strict=False)
    first, last = int(network.network_address), int(network.broadcast_address)
    make = type(network.network_address)
    for number in (first, last, *(first + other % (last - first + 1) for other in others)):
        assert program.choose(0, str(make(number)), turn, pair=True) == choice
        assert program.several(0, str(make(number)), turn) == program.several(0, client, turn)


@slow
@given(profiles(methods=("performance", "priority", "geographic", "subnet")), worlds(), clients(), st.data())
def test_an_answer_ends_before_health_could_change_it(profile: Profile, world: World, client: str | None, data: st.DataObject) -> None:
    horizon = Horizon(world.table.region_capacity)
    for slot in range(len(NAMES)):
        horizon[slot] = data.draw(st.sampled_from((0, 3, 7, 20, 59, 61, Horizon.NEVER)))
    program = compile_routes([Root(profile)], world, horizon=horizon)
    choice = program.choose(0, client)
    assert 5 <= choice.ttl <= 60
    slot = data.draw(st.integers(0, len(NAMES) - 1))
    world.table.set_tier(slot, 0 if world.table.tier(slot) else 3, 9.0)
    if program.choose(0, client).region != choice.region >= 0:
        assert choice.ttl <= max(5, horizon[slot])


@slow
@given(profiles(methods=("multivalue",)), worlds(), clients())
def test_several_are_the_closest_of_those_that_serve(profile: Profile, world: World, client: str | None) -> None:
    program, found = compile_routes([Root(profile)], world), reading(world, profile, client, 0)
    assume(found.walk(profile) == SEVERAL)
    states = [(found.state(endpoint), NAMES.index(endpoint.region)) for endpoint in found.endpoints(profile)]
    serving = [slot for state, slot in states if state == UP] or [slot for state, slot in states if state == DOWN]
    scores = world.table.scores(found.group)
    assert program.several(0, client) == sorted(serving, key=lambda slot: (scores[slot], slot))[: profile.max_return]


def test_the_map_of_the_tests_has_every_kind_of_place() -> None:
    prefixes = world_map()
    addresses = ("10.0.0.1", "10.64.0.1", "10.72.0.1", "10.72.19.9", "11.0.0.1", "9.9.9.9")
    assert {prefixes.lookup(address) for address in addresses} == {*range(len(KEYS))}


# ===== one conformance test per method (R28)


@pytest.mark.parametrize("client", CLIENTS)
def test_performance_is_the_balancers_pick(client: str | None) -> None:
    lb = balancer()
    program = route(lb, Profile())
    choice = program.choose(0, client, pair=True)
    assert choice[:4] == (lb.slot(lb.pick(client)), lb.slot(lb.rank(client)[1]), lb.match(client)[1], 30)
    lb.disable(lb.pick(client))
    assert program.choose(0, client).region == lb.slot(lb.pick(client)) == choice.second


def test_priority_serves_the_first_that_is_up_and_scope_is_the_worlds() -> None:
    lb = balancer()
    program = route(lb, Profile(method="priority", endpoints=(Endpoint("eastus", priority=2), Endpoint("japaneast", priority=1))))
    assert program.choose(0, LONDON, pair=True)[:3] == (lb.slot("japaneast"), lb.slot("eastus"), 0)
    down(lb, "japaneast")
    assert program.choose(0, LONDON)[:3] == (lb.slot("eastus"), -1, 0)
    down(lb, "eastus")
    assert program.choose(0, LONDON) == (lb.slot("japaneast"), -1, 0, 30, True)  # as if all were up
    lb.disable("japaneast")
    assert program.choose(0, LONDON).region == lb.slot("eastus")


def test_weighted_draws_by_weight_among_those_that_are_up() -> None:
    lb = balancer()
    profile = Profile(method="weighted", endpoints=tuple(map(Endpoint, NAMES3, (None,) * 3, (600, 300, 100))))
    program = route(lb, profile)
    drawn = Counter(program.choose(0, LONDON, turn).region for turn in range(65536))
    assert [drawn[lb.slot(name)] / 65536 for name in NAMES3] == pytest.approx([0.6, 0.3, 0.1], abs=0.01)
    down(lb, "westeurope")
    drawn = Counter(program.choose(0, LONDON, turn).region for turn in range(65536))
    assert [drawn[lb.slot(name)] / 65536 for name in NAMES3] == pytest.approx([0, 0.75, 0.25], abs=0.01)
    assert program.choose(0, LONDON).scope == 0


NAMES3 = ("westeurope", "eastus", "japaneast")


def test_two_draws_of_one_query_are_independent() -> None:
    lb = balancer("westeurope", "eastus", "japaneast", "brazilsouth")
    halves = [Profile(method="weighted", endpoints=(Endpoint(a), Endpoint(b))) for a, b in (NAMES3[:2], ("japaneast", "brazilsouth"))]
    program = route(lb, Profile(method="weighted", endpoints=tuple(Endpoint(profile=half) for half in halves)))
    drawn = Counter(program.choose(0, None, turn).region for turn in range(65536))
    assert [drawn[slot] / 65536 for slot in range(4)] == pytest.approx([0.25] * 4, abs=0.01)


def test_geographic_never_fails_over_to_another_mapping() -> None:
    lb = balancer()
    places = {"westeurope": ("GEO-EU", "GB"), "eastus": ("WORLD",), "japaneast": ("JP",)}
    program = route(lb, Profile(method="geographic", endpoints=tuple(Endpoint(name, geo=geo) for name, geo in places.items())))
    assert [program.choose(0, client).region for client in (LONDON, TOKYO, "8.8.8.8", None)] == [0, 2, 1, 1]
    down(lb, "westeurope")
    assert program.choose(0, LONDON, pair=True)[:2] == (0, -1)  # degraded, and answered all the same
    assert program.choose(0, LONDON).fail_open
    lb.disable("westeurope")
    assert program.choose(0, LONDON).region == NODATA
    assert program.choose(0, LONDON).scope == lb.match(LONDON)[1]
    lb.enable("westeurope")
    lb.drain("westeurope")
    assert program.choose(0, LONDON).region == NODATA  # Stopped


@pytest.mark.parametrize(("method", "key"), [("geographic", "geo"), ("subnet", "subnets")])
def test_a_mapped_client_stays_where_it_belongs_when_there_is_no_backup_either(method: str, key: str) -> None:
    lb = Balancer([Region(f"r{number}", 0, number) for number in range(40)])
    mine = {"geo": ("GB", *GROUP_OF.keys() - {"GB"}), "subnets": (f"{LONDON}/32", *(f"10.0.{number}.0/24" for number in range(38)))}[key]
    endpoints = tuple(Endpoint(f"r{number}", **{key: (place,)}) for number, place in enumerate(mine[:39]))  # type: ignore[arg-type]
    program = route(lb, Profile(method=method, endpoints=endpoints, fail_open="serve_backup", backup=("r39",)))
    for slot in range(39):
        lb.table.set_tier(slot, 3, 0.0)
    assert program.choose(0, LONDON)[:2] == (39, -1)
    lb.table.set_enabled(39, False)
    assert program.choose(0, LONDON)[:2] == (0, -1)
    assert program.choose(0, LONDON).fail_open
    assert program.several(0, LONDON) == []


def test_a_place_nobody_has_is_nodata_and_a_nested_profile_fails_over_within() -> None:
    lb = balancer()
    nested = Profile(method="priority", endpoints=(Endpoint("westeurope"), Endpoint("eastus")))
    program = route(lb, Profile(method="geographic", endpoints=(Endpoint(profile=nested, geo="GB"),)))
    assert program.choose(0, TOKYO).region == NODATA
    assert program.choose(0, LONDON).region == 0
    down(lb, "westeurope")
    assert program.choose(0, LONDON).region == 1


def test_a_subdivision_is_found_by_code_or_name() -> None:
    keys, flat = ["", "US/California", "AU/NSW"], [0.0] * 3
    prefixes = PrefixMap.from_ranges([0, 1 << 24, 2 << 24, 3 << 24], [0, 1, 2, 0], [0], [0], keys, flat, flat)
    endpoints = (Endpoint("eastus", geo="US-CA"), Endpoint("japaneast", geo="AU/New South Wales"), Endpoint("westeurope", geo="UK"))
    program = route(balancer(), Profile(method="geographic", endpoints=endpoints, geography=prefixes))
    assert [program.choose(0, client).region for client in ("1.2.3.4", "2.2.3.4", "3.0.0.0")] == [1, 2, NODATA]
    assert program.choose(0, "1.2.3.4").scope == 8  # of the profile's own map, not of the Balancer's


def test_subnet_sends_a_network_where_it_belongs_and_strangers_to_the_rest() -> None:
    lb = balancer()
    mapped = (Endpoint("westeurope", subnets=("10.0.0.0/8", "192.0.2.1-192.0.2.9")), Endpoint("eastus", subnets=("2001:db8::/32",)))
    program = route(lb, Profile(method="subnet", endpoints=(*mapped, Endpoint("japaneast"))))
    clients = ("10.255.0.1", "192.0.2.9", "192.0.2.10", "2001:db8::1", LONDON, None)
    assert [program.choose(0, client).region for client in clients] == [0, 0, 2, 1, 2, 2]
    assert [program.choose(0, client).scope for client in clients[:4]] == [8, 31, 31, 32]
    down(lb, "westeurope")
    assert program.choose(0, "10.0.0.1")[:2] == (2, -1)
    assert route(lb, Profile(method="subnet", endpoints=mapped)).choose(0, LONDON).region == NXDOMAIN
    assert route(lb, Profile(method="subnet", endpoints=mapped)).choose(0, "10.0.0.1") == (0, -1, 8, 30, True)


def test_multivalue_gives_several_the_closest_first() -> None:
    lb = balancer()
    program = route(lb, Profile(method="multivalue", max_return=2))
    assert program.choose(0, LONDON).region == SEVERAL
    assert program.choose(0, LONDON).scope == lb.match(LONDON)[1]
    assert program.several(0, LONDON) == [lb.slot(region) for region in lb.rank(LONDON)[:2]]
    down(lb, "westeurope")
    assert program.several(0, LONDON) == [lb.slot(region) for region in lb.rank(LONDON)[:2]] == [1, 2]
    assert route(lb, Profile()).several(0, LONDON) == []


# ===== switches, thresholds, policies


def test_a_disabled_profile_is_nxdomain_and_nothing_wanted_is_nodata() -> None:
    assert route(balancer(), Profile(enabled=False)).choose(0, LONDON)[:3] == (NXDOMAIN, -1, 0)
    assert route(balancer("eastus", enabled=False), Profile()).choose(0, LONDON).region == NODATA
    assert route(balancer(), Profile(endpoints=(Endpoint("eastus", enabled=False),))).choose(0, LONDON).region == NODATA


@pytest.mark.parametrize(
    ("policy", "region"),
    [("serve_all", 2), ("serve_last_good", 1), ("serve_backup", 0), ("nodata", NODATA), ("servfail", SERVFAIL), ("refuse", REFUSED)],
)
def test_nothing_up_is_answered_as_the_policy_says(policy: str, region: int) -> None:
    lb = balancer()
    backup = ("westeurope",) if policy == "serve_backup" else ()
    endpoints = (Endpoint("japaneast"), Endpoint("eastus"))
    program = route(lb, Profile(method="priority", endpoints=endpoints, fail_open=policy, backup=backup))
    assert program.choose(0, LONDON).region == 2
    down(lb, "japaneast")
    lb.table.set_tier(1, 1, 0.0)  # degraded: likelier to answer than one that is down
    assert program.choose(0, LONDON)[:2] == (region, -1)
    assert program.choose(0, LONDON).fail_open == (region > 0)


def test_too_few_children_send_traffic_elsewhere_at_the_very_verdict() -> None:
    lb = balancer()
    child = Profile(method="priority", endpoints=(Endpoint("westeurope"), Endpoint("eastus")))
    program = route(lb, Profile(method="priority", endpoints=(Endpoint(profile=child, min_children=2), Endpoint("japaneast"))))
    assert program.choose(0, LONDON).region == 0
    down(lb, "eastus")
    assert program.choose(0, LONDON).region == 2  # the child has one left, and two are wanted
    down(lb, "japaneast")
    assert program.choose(0, LONDON).region == 0


def test_always_serve_outlives_its_verdict_but_not_the_operator() -> None:
    lb = balancer()
    program = route(lb, Profile(method="priority", endpoints=(Endpoint("eastus", always_serve=True), Endpoint("japaneast"))))
    down(lb, "eastus")
    assert program.choose(0, LONDON) == (1, -1, 0, 30, False)
    lb.disable("eastus")
    assert program.choose(0, LONDON).region == 2


def families(region: Region, direct: bool) -> tuple[bool, bool]:
    """Say which families a region has addresses of; ukwest has a host name alone."""
    if not region.addresses:
        return not direct, not direct
    return any("." in address for address in region.addresses), any(":" in address for address in region.addresses)


def test_family_any_narrows_to_regions_that_have_it_and_mute_regions_are_left_out() -> None:
    four, six = Region("westeurope", addresses=["192.0.2.1"]), Region("eastus", addresses=["2001:db8::1"])
    lb, wide = Balancer([four, six, Region("ukwest")]), Profile(family="any")
    asked = [(wide, 28, True), (wide, 28, False), (wide, 1, True), (wide, 0, False), (wide, 0, True)]
    roots = [Root(Profile(), 28), *(Root(*one) for one in asked)]
    program = compile_routes(roots, lb, families=families)
    assert [program.choose(root, LONDON).region for root in range(6)] == [2, 1, 2, 0, 2, 0]


# ===== TTL, refusals, what it costs


def test_ttl_is_fixed_without_a_minimum_or_a_horizon() -> None:
    lb, horizon = balancer(), Horizon(16)
    program = compile_routes([Root(Profile(ttl=60)), Root(Profile(ttl=60, ttl_min=5))], lb, horizon=horizon)
    horizon[0], horizon[lb.slot(lb.pick(TOKYO))] = 12, Horizon.NEVER
    assert [program.choose(root, LONDON).ttl for root in (0, 1)] == [60, 12]
    assert [program.choose(root, TOKYO).ttl for root in (0, 1)] == [60, 60]
    horizon[0] = 2
    assert program.choose(1, LONDON).ttl == 5
    assert route(lb, Profile(ttl=60, ttl_min=5)).choose(0, LONDON).ttl == 60


def test_what_does_not_fit_is_refused() -> None:
    lb = balancer()
    program = route(lb, Profile())
    for root in (-1, 1):
        with pytest.raises(IndexError, match=f"root {root} is not in 0..0"):
            program.choose(root, None)
    with pytest.raises(ValueError, match="not an IPv4 or IPv6 address"):
        program.choose(0, "nowhere")
    with pytest.raises(ValueError, match="horizon for 2"):
        compile_routes([], lb, horizon=Horizon(2))
    with pytest.raises(ValueError, match="groups, the table only"):
        Program(World.of([[1] * 6] * 6, [0] * 6, [True] * 6, False).table, lb.map, [], [])
    with pytest.raises(IndexError, match="slot 16"):
        Horizon(16)[16]


def test_500_regions() -> None:
    rng = np.random.default_rng(5)
    lb = Balancer([Region(f"r{i}", lat=float(rng.uniform(-60, 60)), lon=float(rng.uniform(-180, 180))) for i in range(500)])
    chosen = [Endpoint(f"r{i}") for i in rng.permutation(500)[:300]]
    nested = Profile(endpoints=tuple(chosen[100:]))
    flat, deep = route(lb, Profile(endpoints=tuple(chosen))), route(lb, Profile(endpoints=(*chosen[:100], Endpoint(profile=nested))))
    allowed = {lb.slot(endpoint.region) for endpoint in chosen}
    for client in (str(ipaddress.IPv4Address(int(number))) for number in rng.integers(0, 2**32, 300)):
        best = next(slot for region in lb.rank(client) if (slot := lb.slot(region)) in allowed)
        assert flat.choose(0, client).region == deep.choose(0, client).region == best


# ===== what random profiles seldom meet


def test_scope_is_the_longest_of_all_maps_on_the_way() -> None:
    lb = balancer()
    for subnet, scope in (("81.2.69.160/30", 30), ("81.0.0.0/8", lb.match(LONDON)[1])):
        program = route(lb, Profile(method="subnet", endpoints=(Endpoint(profile=Profile(), subnets=subnet),)))
        assert (program.choose(0, LONDON).region, program.choose(0, LONDON).scope) == (0, scope)


def test_a_backup_that_is_up_goes_before_one_that_is_not() -> None:
    lb = balancer()
    profile = Profile(endpoints=(Endpoint("japaneast"),), fail_open="serve_backup", backup=("eastus", "westeurope"))
    down(lb, "japaneast")
    lb.table.set_tier(1, 2, 0.0)
    assert route(lb, profile).choose(0, LONDON)[:2] == (0, -1)
    lb.table.set_tier(0, 2, 0.0)
    assert route(lb, profile).choose(0, LONDON) == (1, -1, 0, 30, True)


def test_a_fallback_that_is_down_takes_no_client_from_another() -> None:
    lb = balancer()
    program = route(lb, Profile(method="subnet", endpoints=(Endpoint("westeurope", subnets="10.0.0.0/8"), Endpoint("eastus"))))
    for slot in (0, 1):
        lb.table.set_tier(slot, 2, 0.0)
    assert program.choose(0, "10.0.0.1").region == 0


def test_an_answer_waits_for_a_nested_profile_that_may_offer_something_closer() -> None:
    lb, horizon = balancer(), Horizon(64)
    nested = Profile(method="priority", endpoints=(Endpoint("japaneast"), Endpoint("westeurope")))
    profile = Profile(endpoints=(Endpoint("eastus"), Endpoint(profile=nested)), ttl=60, ttl_min=5)
    program = compile_routes([Root(profile)], lb, horizon=horizon)
    horizon[0] = horizon[1] = Horizon.NEVER
    horizon[2] = 7
    assert program.choose(0, LONDON)[::3] == (1, 7)
    down(lb, "japaneast")
    assert program.choose(0, LONDON).region == 0
