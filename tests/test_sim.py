"""The workshop: replay on a virtual clock gives the same answers every time; worlds are seeded and mean what they say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from lbcore import Balancer, ConfigError, Region
from lbcore.sim import (
    Answer,
    Event,
    Outage,
    Outcome,
    Query,
    Sample,
    VirtualClock,
    Weather,
    World,
    events,
    read_events,
    replay,
    season,
    write_events,
)

REGIONS = [Region("westeurope"), Region("eastus"), Region("southeastasia")]
ENGLAND, VIRGINIA = "81.2.69.160", "18.204.0.1"


def balancer(**settings: object) -> Balancer:
    return Balancer(REGIONS, clock=VirtualClock(), **settings)  # type: ignore[arg-type]


def answers(recorded: Iterable[Event], **settings: object) -> list[Answer]:
    return list(replay(balancer(**settings), recorded))


def small(seed: int = 7, **changes: object) -> World:
    return World(REGIONS, groups=12, duration=120.0, seed=seed, **changes)  # type: ignore[arg-type]


# ===== the clock


def test_a_virtual_clock_moves_forwards_only() -> None:
    clock = VirtualClock(5.0)
    clock.advance(7.0)
    clock.advance(6.0)
    assert clock() == 7.0


def test_replay_refuses_a_balancer_on_a_real_clock() -> None:
    with pytest.raises(TypeError, match=r"clock=VirtualClock\(\)"):
        list(replay(Balancer(REGIONS), [Query(0.0)]))


# ===== replay


def test_same_events_and_settings_give_the_same_answers() -> None:
    recorded = list(events(small(outages=[Outage(0, 30.0, 60.0)])))
    first = answers(recorded)
    assert len(first) > 500
    assert first == answers(recorded)
    assert len({answer.region for answer in first}) > 1


def test_other_settings_may_decide_otherwise() -> None:
    recorded = list(events(small()))
    assert answers(recorded) != answers(recorded, estimator="ewma", tau=1.0)


def test_every_query_gets_its_answer_in_order() -> None:
    recorded = list(events(small()))
    asked = [(event.at, event.client) for event in recorded if isinstance(event, Query)]
    assert [(answer.at, answer.client) for answer in answers(recorded)] == asked


def test_an_outage_in_the_recording_moves_the_clients_and_its_end_brings_them_home() -> None:
    failures = [Outcome(10.0 + n / 10, "westeurope", False, f"81.{2 + n % 5 * 16}.69.160", "refused") for n in range(20)]
    recorded: list[Event] = [Query(9.0, ENGLAND), *failures, Query(12.5, ENGLAND), Query(200.0, ENGLAND)]
    probes = [Outcome(13.0 + n, "westeurope", True, source="probe") for n in range(3)]
    replies = answers(sorted([*recorded, *probes], key=lambda event: event.at))
    assert [answer.region for answer in replies] == ["westeurope", "eastus", "westeurope"]
    assert not any(answer.fail_open for answer in replies)


def test_it_says_when_it_fails_open_and_when_nobody_is_left() -> None:
    lb = balancer()
    stream = replay(lb, [Query(1.0, ENGLAND), Query(2.0, ENGLAND), Query(3.0, ENGLAND)])
    assert not next(stream).fail_open
    for region in REGIONS:
        lb.disable(region)
    assert next(stream) == Answer(2.0, ENGLAND, None, True)
    lb.enable("eastus")
    assert next(stream).region == "eastus"


def test_time_passes_between_events_by_ticks() -> None:
    lb = balancer()
    list(replay(lb, [Query(0.0), Query(10.0)], tick=0.5))
    assert lb.stats()["ticks"] == 21
    assert lb.clock() == 10.0


def test_a_late_event_happens_at_once() -> None:
    lb = balancer()
    assert [answer.at for answer in replay(lb, [Query(5.0), Query(3.0)])] == [5.0, 3.0]
    assert lb.clock() == 5.0


def test_events_may_bear_wall_clock_times() -> None:
    lb = balancer()
    replies = list(replay(lb, [Query(1.7e9), Query(1.7e9 + 10.0)], tick=0.5))
    assert [answer.at for answer in replies] == [1.7e9, 1.7e9 + 10.0]
    assert lb.stats()["ticks"] == 21


def test_the_time_between_two_recordings_passes_by_ticks() -> None:
    lb = balancer()
    list(replay(lb, [Query(1.7e9)]))
    before = lb.stats()["ticks"]
    list(replay(lb, [Query(1.7e9 + 60.0)], tick=0.5))
    assert lb.stats()["ticks"] == before + 121


@pytest.mark.parametrize("at", [math.nan, math.inf])
def test_an_event_without_a_time_is_refused(at: float) -> None:
    with pytest.raises(ValueError, match="finite seconds"):
        answers([Query(at)])


@pytest.mark.parametrize("tick", [0.0, -1.0, math.nan])
def test_a_tick_must_take_time(tick: float) -> None:
    with pytest.raises(ValueError, match="tick must be positive"):
        list(replay(balancer(), [], tick=tick))


def test_a_tick_that_is_lost_in_the_rounding_of_the_times_is_refused() -> None:
    with pytest.raises(ValueError, match="tick must be seconds enough"):
        list(replay(balancer(), [Query(1.7e9), Query(1.7e9 + 1)], tick=1e-8))


# ===== files


def test_events_survive_a_file(tmp_path: Path) -> None:
    recorded = list(itertools.islice(events(small()), 500))
    write_events(tmp_path / "day.jsonl", recorded)
    assert {type(event) for event in recorded} == {Sample, Outcome, Query}
    assert read_events(tmp_path / "day.jsonl") == recorded


def test_every_bad_line_of_a_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    path.write_text(
        '{"kind": "query", "at": 1.0}\n'
        "not json\n"
        '{"kind": "sample", "at": 1.0, "region": "eastus", "ms": 3.0}\n'
        '{"kind": "weather", "at": 1.0}\n'
        '{"kind": "sample", "at": 1.0}\n'
        "[1, 2]\n"
        '{"at": 1.0}\n'
    )
    with pytest.raises(ConfigError) as caught:
        read_events(path)
    assert [violation.where.rsplit(":", 1)[1] for violation in caught.value.violations] == ["2", "4", "5", "6", "7"]


# ===== worlds


def test_a_world_is_its_seed() -> None:
    one, same, other = small(1), small(1), small(2)
    assert (one.ms == same.ms).all() and list(one.requests()) == list(same.requests())
    assert not (one.ms == other.ms).any()


def test_luck_belongs_to_the_request_not_to_who_chose() -> None:
    world = small()
    request = next(world.requests())
    replies = [world.reply(request, region) for region in (0, 1, 0)]
    assert replies[0] == replies[2]
    means = world.round_trips(request.at)[request.group]
    assert replies[0].ms / replies[1].ms == pytest.approx(means[0] / means[1])


def test_requests_and_beacons_come_in_order_and_as_often_as_asked() -> None:
    world = small()
    requests, beacons = list(world.requests(2.0)), list(world.beacons(10.0))
    for times in ([request.at for request in requests], [request.at for request, _ in beacons]):
        assert times == sorted(times) and 0 <= times[0] and times[-1] < world.duration
    assert len(requests) == pytest.approx(2.0 * 12 * 120, rel=0.1)
    assert len(beacons) == 12 * 3 * 12
    pairs = {(request.group, region) for request, region in beacons}
    assert len(pairs) == 12 * 3


def test_recorded_events_are_in_order_and_know_no_future() -> None:
    recorded = list(events(small()))
    assert all(earlier.at <= later.at for earlier, later in itertools.pairwise(recorded))
    world = small()
    sent = min(world.beacons(), key=lambda beacon: world.reply(*beacon).at)
    first = next(event for event in recorded if isinstance(event, Sample))
    assert first.at == pytest.approx(sent[0].at + first.ms / 1000)


def test_the_mean_of_many_measurements_is_the_truth() -> None:
    world = small(weather=Weather(noise=0.2, tail=0.0, failures=0.0, path_events=0.0))
    ratios = [world.reply(request, 1, timeout=60.0).ms / world.round_trips(request.at)[request.group, 1] for request in world.requests(5.0)]
    assert np.mean(ratios) == pytest.approx(math.exp(0.2**2 / 2), rel=0.01)


def test_a_share_of_requests_fails_for_no_reason() -> None:
    world = small(weather=Weather(failures=0.05, tail=0.0))
    causes = [world.reply(request, 0).cause for request in world.requests(10.0)]
    assert causes.count("reset") / len(causes) == pytest.approx(0.05, rel=0.15)
    assert set(causes) == {None, "reset"}


@pytest.mark.parametrize(
    ("kind", "cause", "share"),
    [
        ("hard", "timeout", 1.0),
        ("refused", "refused", 1.0),
        ("gray", "timeout", 0.3),
        ("flapping", "timeout", 0.5),
        ("local", "timeout", 1 / 3),
    ],
)
def test_outages_fail_as_their_kind_says(kind: str, cause: str, share: float) -> None:
    weather = Weather(failures=0.0, tail=0.0)
    world = small(outages=[Outage(1, 40.0, 80.0, kind)], weather=weather)  # type: ignore[arg-type]
    during = [request for request in world.requests(20.0) if 40.0 <= request.at < 80.0]
    causes = [world.reply(request, 1).cause for request in during]
    assert causes.count(cause) / len(causes) == pytest.approx(share, abs=0.06)
    assert {world.reply(request, 0).cause for request in during} == {None}
    assert {world.reply(request, 1).cause for request in world.requests() if request.at >= 80.0} == {None}


def test_a_slow_region_takes_three_times_as_long() -> None:
    slow, well = small(outages=[Outage(2, 40.0, 80.0, "slow")]), small()
    assert slow.round_trips(50.0)[:, 2] == pytest.approx(3 * well.round_trips(50.0)[:, 2])
    assert slow.round_trips(39.0) == pytest.approx(well.round_trips(39.0))


def test_what_nobody_answers_costs_the_timeout() -> None:
    world = small(outages=[Outage(0, 10.0, 20.0)])
    assert world.expected(15.0, timeout=2.0)[:, 0] == pytest.approx(2000.0)
    assert world.expected(25.0) == pytest.approx(world.round_trips(25.0))


def test_groups_of_a_world_are_groups_of_the_balancer_with_priors_near_the_truth() -> None:
    weather = Weather(error=0.0, mislocated=0.0, path_events=0.0, diurnal=0.0, near_ties=0.0)
    world = World(REGIONS, groups=200, duration=10.0, weather=weather)
    lb = Balancer(REGIONS, locate=world.map, clock=VirtualClock())
    assert [lb.match(client)[0] for client in world.clients] == list(range(1, 201))
    priors = np.stack([lb.table.estimates(group) for group in range(1, 201)])
    assert np.median(np.abs(np.log(priors / world.round_trips(0.0)))) < 0.2


def test_near_ties_are_near() -> None:
    world = World(REGIONS, groups=400, duration=1.0, weather=Weather(near_ties=0.5, path_events=0.0, diurnal=0.0))
    best = np.sort(world.round_trips(0.0), axis=1)
    assert np.mean(best[:, 1] - best[:, 0] < 5) > 0.45


def test_a_season_has_one_outage_of_every_kind() -> None:
    outages = season(3, 3600.0, seed=4)
    assert {outage.kind for outage in outages} == {"hard", "refused", "gray", "slow", "flapping", "local"}
    assert all(earlier.end < later.start for earlier, later in itertools.pairwise(outages))
    assert outages == season(3, 3600.0, seed=4) != season(3, 3600.0, seed=5)


def test_a_world_needs_regions_groups_and_time() -> None:
    for bad in ({"regions": []}, {"groups": 0}, {"duration": 0.0}):
        with pytest.raises(ValueError, match="a world needs"):
            World(**({"regions": REGIONS} | bad))  # type: ignore[arg-type]


def test_a_world_of_regions_nobody_published_is_refused() -> None:
    with pytest.raises(ValueError, match="no place has published round trips"):
        World([Region("here", lat=0.0, lon=0.0)])
