"""LatencyTable: when a group's home moves, how it comes back, and how regions come and go."""

from __future__ import annotations

from typing import Any

import pytest
from test_table_picks import homes, picks, shuffled, table_of

from lbcore._fast import LatencyTable

# -- switching ---------------------------------------------------------------------------------------------------


def settled(*ms: float, **options: Any) -> LatencyTable:
    table = table_of(ms, **options)
    table.tick(0.0)
    return table


@pytest.mark.parametrize("home, better, moves", [(20.0, 17.1, False), (20.0, 16.9, True), (200.0, 190.1, False), (200.0, 189.9, True)])
def test_a_home_is_left_for_three_milliseconds_and_five_percent_or_more(home: float, better: float, moves: bool) -> None:
    table = settled(home, home + 20)
    table.seed(0, 1, better, 0.5)
    for now in range(1, 30):
        table.tick(float(now))
    assert table.home(0) == int(moves)


def look_again(table: LatencyTable) -> None:
    """Have group 0 evaluated once more, at rest: what the table notes about the others is exact from then on."""
    table.seed(0, 1, float(table.estimates(0)[1]), 0.5)
    table.tick(0.05)


def test_steps_too_small_to_notice_add_up() -> None:
    """First another becomes a little better than home, then home a little worse than the third: no step alone is news."""
    table = settled(30, 40, estimator="ewma", tau=1e-3)
    look_again(table)
    table.observe(0, 1, 28.5, 0.1)
    table.tick(0.2)
    assert table.home(0) == 0
    table.observe(0, 0, 42.0, 0.3)
    table.tick(0.4)
    assert table.home(0) == 1


def test_a_region_that_was_no_better_when_it_came_is_better_once_home_is_worse() -> None:
    table = table_of([30, 40, 28.5], estimator="ewma", tau=1e-3)
    table.set_enabled(2, False)
    table.tick(0.0)
    look_again(table)
    table.set_enabled(2, True)
    table.tick(0.1)
    assert table.home(0) == 0
    table.observe(0, 0, 42.0, 0.3)
    table.tick(0.4)
    assert table.home(0) == 2


def test_a_home_whose_old_samples_are_forgotten_gives_way() -> None:
    """Believed 20 ms long ago, the idle estimate drifts to its prior of 80, past the other region and its sigma."""
    table = table_of([80, 30], sd=28.0)
    for now in range(60):
        table.observe(0, 0, 20.0, float(now))
    for now in range(60, 43260, 60):
        table.tick(float(now))
        assert now > 60 or table.home(0) == 0
    assert table.home(0) == 1


def test_a_home_is_left_after_ten_seconds_and_not_before() -> None:
    table = settled(20, 40)
    table.seed(0, 1, 15.0, 0.5)
    seen = {}
    for tenth in range(1, 120):
        table.tick(tenth / 10)
        seen[tenth] = table.home(0)
    assert (seen[100], seen[101]) == (0, 1)


def test_a_tick_without_the_advantage_starts_the_ten_seconds_again() -> None:
    table = settled(20, 40)
    for now, better in ((1, 15.0), (8, 19.0), (9, 15.0), (18, 15.0)):
        table.seed(0, 1, better, 0.5)
        table.tick(float(now))
    assert table.home(0) == 0
    table.tick(19.0)
    assert table.home(0) == 1


def test_another_challenger_does_not_start_the_ten_seconds_again() -> None:
    table = settled(20, 40, 40)
    table.seed(0, 1, 15.0, 0.5)
    table.tick(1.0)
    table.seed(0, 2, 14.0, 0.5)
    table.tick(6.0)
    table.tick(11.0)
    assert table.home(0) == 2


def test_a_much_better_region_is_taken_at_once() -> None:
    table = settled(20, 40)
    table.seed(0, 1, 10.9, 0.5)
    table.tick(0.1)
    assert table.home(0) == 1


def test_uncertain_estimates_need_a_larger_advantage() -> None:
    """One sigma of both estimates together: sqrt(2) x 10 ms here, against 10 ms of advantage."""
    unsure, sure = settled(40, 60, sd=10.0), settled(40, 60, sd=1.0)
    for table, sd in ((unsure, 10.0), (sure, 1.0)):
        table.seed(0, 1, 30.0, sd)
        for now in range(1, 30):
            table.tick(float(now))
    assert (unsure.home(0), sure.home(0)) == (0, 1)


def test_who_was_forced_away_returns_without_waiting_to_be_certain() -> None:
    """Sigma is 42 ms and home only 10 ms better: by the ordinary rule the group would stay away for good."""
    table = settled(30, 40, sd=30.0)
    table.set_tier(0, 3, 1.0)
    table.tick(1.0)
    assert table.home(0) == 1
    table.set_tier(0, 0, 100.0)
    for now in range(100, 145):
        table.tick(float(now))
    assert table.home(0) == 0


# -- recovery ----------------------------------------------------------------------------------------------------


def returned(table: LatencyTable, region: int) -> float:
    return sum(table.home(g) == region for g in range(table.groups)) / table.groups


RETURNS = ["set_tier", "set_enabled", "set_draining", "set_synced"]


def take(table: LatencyTable, way: str, region: int, out: bool, now: float) -> None:
    if way == "set_tier":
        table.set_tier(region, 3 if out else 0, now)
    else:
        getattr(table, way)(region, out if way == "set_draining" else not out)


@pytest.mark.parametrize("way", RETURNS)
def test_groups_come_back_in_growing_shares_over_thirty_seconds(way: str) -> None:
    table = table_of(*[[10, 50]] * 4000)
    table.tick(0.0)
    take(table, way, 0, True, 1.0)
    table.tick(1.0)
    assert returned(table, 0) == 0
    take(table, way, 0, False, 60.0)
    for after, share in ((0, 0.1), (10, 0.4), (20, 0.7), (30, 1.0)):
        table.tick(60.0 + after)
        assert returned(table, 0) == pytest.approx(share, abs=0.02)


def test_a_region_seen_for_the_first_time_needs_no_ramp() -> None:
    table = table_of(*[[50]] * 500, region_capacity=2)
    table.tick(0.0)
    region = table.add_region()
    for g in range(500):
        table.seed(g, region, 10.0, 0.5)
    table.tick(1.0)
    assert homes(table) == [region] * 500


def test_a_ramp_lost_begins_again() -> None:
    table = table_of(*[[10, 50]] * 2000)
    for now, tier in ((0.0, 0), (1.0, 3), (2.0, 0), (31.5, 3), (32.0, 0)):
        table.set_tier(0, tier, now)
        table.tick(now)
    assert returned(table, 0) == pytest.approx(0.1, abs=0.02)


def test_a_ramp_holds_nobody_back_who_has_nowhere_else() -> None:
    table = table_of(*[[10, 50]] * 200)
    for r in (0, 1):
        table.set_tier(r, 3, 0.0)
    table.tick(1.0)
    table.set_tier(0, 0, 2.0)
    table.tick(2.0)
    assert homes(table) == [0] * 200


# -- regions that come and go ------------------------------------------------------------------------------------


def test_a_removed_region_is_nobodys_home_and_serves_nobody() -> None:
    table = table_of([10, 20, 30], [30, 20, 10])
    table.tick(0.0)
    table.remove_region(0)
    assert (homes(table), picks(table)) == ([-1, 2], [1, 2])
    assert table.rank(0).tolist() == [1, 2]
    assert table.eligible().tolist() == [False, True, True]
    table.tick(0.1)
    assert homes(table) == [1, 2]


def test_a_new_region_takes_the_lowest_free_slot_and_nothing_of_its_forerunner() -> None:
    table = table_of([10, 20, 30, 40], region_capacity=5)
    table.observe(0, 1, 1.0, 0.0)
    table.exclude(0, 1, True)
    table.set_penalty(1, 50.0)
    table.set_share(1, 0.0)
    table.set_tier(1, 3, 0.0)
    table.remove_region(3)
    table.remove_region(1)
    assert (table.add_region(), table.generation(1), table.generation(3), table.generation(0)) == (1, 1, 1, 0)
    assert (float(table.estimates(0)[1]), table.excluded(0, 1), table.tier(1)) == (80.0, False, 0)
    assert table.eligible().tolist() == [True, True, True, False]
    table.seed(0, 1, 5.0, 0.5)
    table.tick(1.0)
    assert table.home(0) == 1
    assert [table.add_region(), table.add_region()] == [3, 4]
    assert table.regions == 5
    with pytest.raises(OverflowError):
        table.add_region()


def test_there_is_room_for_twice_the_regions_unless_said_otherwise() -> None:
    table = LatencyTable(1, 3)
    assert table.regions == 3
    assert table.region_capacity >= 6
    assert [table.add_region() for _ in range(3)] == [3, 4, 5]


def test_a_table_can_lose_its_last_region_and_gain_one() -> None:
    table = table_of([10], [20])
    table.tick(0.0)
    table.remove_region(0)
    assert (picks(table), table.fail_open) == ([65535] * 2, True)
    table.tick(1.0)
    table.add_region()
    table.tick(2.0)
    assert homes(table) == [0, 0]


# -- bounded work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 7, 64])
def test_a_budget_spreads_the_same_result_over_calls(budget: int) -> None:
    table = shuffled(64, 5)
    lowest = picks(table)
    left = [table.tick(0.0, budget) for _ in range(-(-64 // budget))]
    assert left == [max(0, 64 - budget * (n + 1)) for n in range(len(left))]
    assert homes(table) == lowest


def test_groups_that_wait_for_their_ten_seconds_do_not_starve_the_others() -> None:
    """Groups 0..7 stay pending; with a budget of 4 the last group must be served all the same."""
    table = table_of(*[[20, 40]] * 16)
    table.tick(0.0)
    for g in range(8):
        table.seed(g, 1, 15.0, 0.5)
    table.tick(1.0)
    table.seed(15, 1, 5.0, 0.5)
    for call in range(8):
        table.tick(1.1 + call / 10, 4)
    assert table.home(15) == 1


def test_a_clock_that_goes_backwards_moves_nothing() -> None:
    table = settled(20, 40)
    table.seed(0, 1, 15.0, 0.5)
    for now in (100.0, 95.0, 50.0, 0.0, -1000.0, 104.0):
        table.tick(now)
        assert table.home(0) == 0
    table.tick(110.0)
    assert table.home(0) == 1
