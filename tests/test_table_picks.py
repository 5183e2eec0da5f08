"""LatencyTable: which region a group uses now, in which order, and what happens when nothing is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lbcore._fast import LatencyTable

COUNTS = (1, 2, 3, 63, 64, 65, 200, 500)


def table_of(*rows: Sequence[float], sd: float = 0.5, **options: Any) -> LatencyTable:
    """Give a table with these priors (ms, one row a group), narrow enough that sigma plays no part."""
    ms = np.array(rows, np.float32)
    table = LatencyTable(*ms.shape, **options)
    table.seed_many(ms, np.full_like(ms, sd))
    return table


def homes(table: LatencyTable) -> list[int]:
    return [table.home(g) for g in range(table.groups)]


def picks(table: LatencyTable) -> list[int]:
    out = np.empty(table.groups, np.uint16)
    table.pick_many(np.arange(table.groups, dtype=np.uint32), out)
    assert [table.pick(g) if table.pick(g) >= 0 else 65535 for g in range(table.groups)] == out.tolist()
    return out.tolist()


def shuffled(groups: int, regions: int) -> LatencyTable:
    rng = np.random.default_rng(regions)
    return table_of(*rng.permuted(np.tile(np.arange(10, 10 + regions), (groups, 1)), axis=1).tolist())


def words(*regions: int, count: int = 1) -> Any:
    mask = np.zeros(count, np.uint64)
    for r in regions:
        mask[r // 64] |= np.uint64(1) << np.uint64(r % 64)
    return mask


# -- pick and rank -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regions", COUNTS)
def test_picks_are_the_lowest_before_and_after_the_first_tick(regions: int) -> None:
    table = shuffled(9, regions)
    lowest = [int(table.estimates(g).argmin()) for g in range(9)]
    assert homes(table) == [-1] * 9
    assert picks(table) == lowest
    table.tick(0.0)
    assert homes(table) == picks(table) == lowest


@pytest.mark.parametrize("regions", COUNTS)
def test_the_rank_is_every_region_by_latency(regions: int) -> None:
    table = shuffled(3, regions)
    rank = table.rank(1)
    assert rank.dtype == np.uint16
    assert rank.tolist() == np.argsort(table.estimates(1), kind="stable").tolist()


@pytest.mark.parametrize("regions", COUNTS)
def test_a_region_down_is_seen_by_the_very_next_pick_of_every_group(regions: int) -> None:
    """Regions go down one after another, without a tick between; each group follows its own rank to the end."""
    table = shuffled(5, regions)
    table.tick(0.0)
    ranks = [table.rank(g).tolist() for g in range(5)]
    down: set[int] = set()
    for r in np.random.default_rng(regions).permutation(regions).tolist()[: min(regions - 1, 80)]:
        table.set_tier(r, 3, 1.0)
        down.add(r)
        assert picks(table) == [next(r for r in rank if r not in down) for rank in ranks]
    assert not table.fail_open


def test_equal_latencies_go_to_the_lowest_region() -> None:
    table = table_of([30, 20, 20, 20])
    table.tick(0.0)
    assert (table.pick(0), table.rank(0).tolist()) == (1, [1, 2, 3, 0])


def test_a_penalty_orders_but_is_no_estimate() -> None:
    table = table_of([20, 25, 40])
    table.set_penalty(0, 15.0)
    assert table.rank(0).tolist() == [1, 0, 2]
    assert table.estimates(0).tolist() == [20.0, 25.0, 40.0]
    table.set_penalty(0, 0.0)
    assert table.pick(0) == 0


def test_the_home_leads_the_rank_though_another_is_a_little_better() -> None:
    table = table_of([20, 21])
    table.tick(0.0)
    table.seed(0, 1, 19.0, 0.5)
    assert (table.pick(0), table.rank(0).tolist()) == (0, [0, 1])


# -- fail open ---------------------------------------------------------------------------------------------------


def test_with_nothing_eligible_the_mildest_tier_serves() -> None:
    table = table_of([10, 20, 30, 40], [40, 30, 20, 10])
    for region, tier in enumerate((3, 2, 1, 1)):
        table.set_tier(region, tier, 5.0)
    assert table.fail_open
    assert picks(table) == [2, 3]
    assert table.rank(0).tolist() == [2, 3, 1, 0]


def test_with_all_probed_down_the_last_to_have_answered_serves() -> None:
    table = table_of([10, 20, 30])
    for region, at in ((0, 5.0), (2, 9.0), (1, 7.0)):
        table.set_tier(region, 3, at)
    assert table.rank(0).tolist() == [2, 1, 0]
    table.set_tier(1, 3, 50.0)
    assert table.pick(0) == 2, "being down already, region 1 has not answered at 50"


def test_draining_disabled_and_unsynced_regions_never_serve() -> None:
    table = table_of([10, 20, 30, 40])
    table.set_draining(0, True)
    table.set_enabled(1, False)
    table.set_synced(2, False)
    assert table.rank(0).tolist() == [3]
    table.set_tier(3, 3, 0.0)
    assert (table.pick(0), table.rank(0).tolist()) == (3, [3])
    table.set_enabled(3, False)
    assert (table.pick(0), table.rank(0).tolist(), picks(table)) == (-1, [], [65535])


def test_homes_outlast_a_time_without_any_region() -> None:
    table = table_of([10, 20], [20, 10])
    table.tick(0.0)
    for r in (0, 1):
        table.set_enabled(r, False)
    table.tick(1.0)
    assert homes(table) == [0, 1]


# -- exclusion, masks, shares ------------------------------------------------------------------------------------


def test_an_excluded_path_comes_last_for_its_group_alone() -> None:
    table = table_of([10, 20, 30], [10, 20, 30])
    table.tick(0.0)
    table.exclude(1, 0, True)
    assert table.excluded(1, 0) and not table.excluded(0, 0)
    table.tick(0.1)
    assert homes(table) == [0, 1]
    assert table.rank(1).tolist() == [1, 2, 0]
    assert table.estimates(1).tolist() == [10.0, 20.0, 30.0]
    table.exclude(1, 0, False)
    table.tick(0.2)
    table.tick(10.3)
    assert homes(table) == [0, 0]


def test_an_excluded_path_is_better_than_none() -> None:
    table = table_of([10, 20])
    table.exclude(0, 0, True)
    table.set_tier(1, 3, 0.0)
    table.tick(0.0)
    assert (table.pick(0), table.home(0), table.fail_open) == (0, 0, False)


def test_samples_and_seeds_do_not_lift_an_exclusion() -> None:
    table = table_of([10, 20])
    table.exclude(0, 0, True)
    table.observe(0, 0, 1.0, 0.0)
    table.seed(0, 0, 1.0, 1.0)
    table.set_penalty(0, 1.0)
    assert (table.pick(0), table.excluded(0, 0)) == (1, True)


def test_a_mask_keeps_a_home_within_it_and_scans_only_within_it() -> None:
    table = table_of([20, 21, 30, 40])
    table.tick(0.0)
    table.seed(0, 1, 19.0, 0.5)
    assert [table.pick_in(0, words(*within)) for within in ((0, 1), (1, 2, 3), (2, 3), ())] == [0, 1, 2, -1]
    table.set_tier(2, 3, 0.0)
    table.set_tier(3, 2, 0.0)
    assert table.pick_in(0, words(2, 3)) == 3, "fails open within the mask"
    assert table.pick_in(0, words(2)) == 2


@pytest.mark.parametrize("region", [0, 63, 64, 127, 128, 199])
def test_a_mask_reaches_every_region_of_a_wide_table(region: int) -> None:
    table = shuffled(4, 200)
    table.tick(0.0)
    mask = words(region, count=-(-table.region_capacity // 64))
    assert [table.pick_in(g, mask) for g in range(4)] == [region] * 4


def test_a_share_admits_that_share_of_groups_and_always_the_same() -> None:
    table = table_of(*[[10, 20]] * 4000)
    before: set[int] = set()
    for share in (0.25, 0.5):
        table.set_share(0, share)
        table.tick(0.0)
        inside = {g for g in range(4000) if table.home(g) == 0}
        assert len(inside) == pytest.approx(4000 * share, rel=0.05)
        assert inside > before
        before = inside


def test_a_share_of_nothing_turns_nobody_away_who_has_nowhere_else() -> None:
    table = table_of([10, 20])
    table.set_share(0, 0.0)
    table.tick(0.0)
    assert table.home(0) == 1
    table.set_tier(1, 3, 1.0)
    table.tick(1.0)
    assert table.home(0) == 0
