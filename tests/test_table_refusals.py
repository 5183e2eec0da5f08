"""LatencyTable: what it refuses to hear. A refusal says why, and leaves no trace."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest

from lbcore._fast import LatencyTable

F = np.float32

SHAPES: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((0, 1), {}),
    ((-1, 1), {}),
    ((1, -1), {}),
    ((1, 4), {"region_capacity": 3}),
    ((1, 1), {"region_capacity": 65536}),
    ((1, 1), {"estimator": "median"}),
    ((1, 1), {"estimator": "ewma", "tau": 0.0}),
    ((1, 1), {"estimator": "ewma", "tau": math.nan}),
]


@pytest.mark.parametrize("args, options", SHAPES)
def test_a_table_that_makes_no_sense_is_refused(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        LatencyTable(*args, **options)


BAD_MS = [math.nan, math.inf, -math.inf, -1.0, -1e-30, 1e39]


@pytest.mark.parametrize("ms", BAD_MS)
def test_a_latency_that_is_no_latency_is_refused_and_leaves_no_trace(ms: float) -> None:
    """1e39 is finite, but not in the table's float32."""
    table = LatencyTable(2, 2)
    before = table.snapshot(0.0)
    calls = [
        lambda: table.observe(0, 0, ms, 0.0),
        lambda: table.seed(0, 0, ms, 1.0),
        lambda: table.set_penalty(0, ms),
        lambda: table.observe_many(np.array([0, 1], np.uint32), np.array([0, 1], np.uint16), with_bad(ms), 0.0),
        lambda: table.seed_many(np.array([[1, 1], [1, with_bad(ms)[1]]], F), np.ones((2, 2), F)),
    ]
    for call in calls:
        with pytest.raises(ValueError):
            call()
    assert table.snapshot(0.0) == before
    assert table.estimates(0).tolist() == table.estimates(1).tolist() == [80.0, 80.0]


def with_bad(ms: float) -> Any:
    """Give a good and a bad sample as the float32 that the caller would have made of them."""
    with np.errstate(over="ignore"):
        return np.array([5.0, ms], np.float64).astype(F)


@pytest.mark.parametrize("sd", [0.0, *BAD_MS])
def test_a_prior_without_width_is_refused(sd: float) -> None:
    with pytest.raises(ValueError):
        LatencyTable(1, 1).seed(0, 0, 10.0, sd)


@pytest.mark.parametrize("now", [math.nan, math.inf, -math.inf])
def test_a_time_that_is_no_time_is_refused(now: float) -> None:
    table = LatencyTable(1, 1)
    one = np.zeros(1, np.uint32), np.zeros(1, np.uint16), np.ones(1, F)
    saved = table.snapshot(0.0)
    calls = [
        lambda: table.observe(0, 0, 1.0, now),
        lambda: table.observe_many(*one, now),
        lambda: table.set_tier(0, 1, now),
        lambda: table.tick(now),
        lambda: table.snapshot(now),
        lambda: table.restore(saved, now, 0.0),
        lambda: table.restore(saved, 0.0, now),
    ]
    for call in calls:
        with pytest.raises(ValueError):
            call()
    assert table.pick(0) == 0


def test_times_of_any_finite_size_leave_the_table_sound() -> None:
    """A clock may be absurd; estimates and picks stay what they can be."""
    table = LatencyTable(3, 3)
    table.observe(1, 1, 30.0, 0.0)
    for now in (-1.0, 1e9, 1e15, 1e300, -1e300, 5e-324, 2.0**63, 12.0):
        for call in (lambda at: table.observe(1, 1, 30.0, at), lambda at: table.set_tier(2, 3, at), table.tick):
            with contextlib.suppress(ValueError):
                call(now)
    assert np.isfinite(table.estimates(1)).all() and np.isfinite(table.deviations(1)).all()
    assert table.pick(1) == 1


@pytest.mark.parametrize("ms, sd", [(3e38, 1e-3), (1e-40, 3e38), (3e38, 3e38), (0.0, 1e-45), (1e20, 1e20)])
def test_numbers_at_the_edge_of_float32_never_become_nan(ms: float, sd: float) -> None:
    """Either refused as too large or believed; never a NaN, which would order before every latency."""
    table = LatencyTable(1, 2)
    calls = [
        lambda: table.seed(0, 0, ms, sd),
        lambda: table.observe(0, 0, ms, 0.0),
        lambda: table.observe(0, 0, 5.0, 1.0),
        lambda: table.tick(60.0),
    ]
    for call in calls:
        with contextlib.suppress(ValueError):
            call()
    assert not np.isnan(table.estimates(0)).any() and not np.isnan(table.deviations(0)).any()


WRONG_CELLS = [(-1, 0), (3, 0), (0, -1), (0, 2), (0, 3), (2**31, 0), (0, 65535)]


@pytest.mark.parametrize("group, region", WRONG_CELLS)
def test_a_cell_outside_the_table_is_an_index_error(group: int, region: int) -> None:
    """Region 2 is a slot of the capacity that nobody configured."""
    table = LatencyTable(3, 2, region_capacity=4)
    calls = [
        lambda: table.observe(group, region, 1.0, 0.0),
        lambda: table.seed(group, region, 1.0, 1.0),
        lambda: table.exclude(group, region, True),
        lambda: table.excluded(group, region),
    ]
    for call in calls:
        with pytest.raises(IndexError):
            call()


@pytest.mark.parametrize("region", [-1, 2, 3, 4, 70000])
def test_a_region_that_is_not_configured_is_an_index_error(region: int) -> None:
    table = LatencyTable(3, 2, region_capacity=4)
    calls = [
        lambda: table.set_enabled(region, True),
        lambda: table.set_synced(region, True),
        lambda: table.set_draining(region, True),
        lambda: table.set_tier(region, 0, 0.0),
        lambda: table.tier(region),
        lambda: table.set_penalty(region, 1.0),
        lambda: table.set_share(region, 1.0),
        lambda: table.remove_region(region),
        lambda: table.count(region, True),
    ]
    for call in calls:
        with pytest.raises(IndexError):
            call()


@pytest.mark.parametrize("group", [-1, 3, 2**31])
def test_a_group_outside_the_table_is_an_index_error(group: int) -> None:
    table = LatencyTable(3, 2)
    words = np.array([3], np.uint64)
    for method in (table.pick, table.home, table.rank, table.estimates, table.deviations):
        with pytest.raises(IndexError):
            method(group)
    with pytest.raises(IndexError):
        table.pick_in(group, words)


@pytest.mark.parametrize("tier", [-1, 4, 255])
def test_there_are_four_tiers(tier: int) -> None:
    with pytest.raises(ValueError):
        LatencyTable(1, 1).set_tier(0, tier, 0.0)


@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan, math.inf])
def test_a_share_is_within_0_and_1(share: float) -> None:
    with pytest.raises(ValueError):
        LatencyTable(1, 1).set_share(0, share)


def test_what_is_no_number_is_a_type_error() -> None:
    table = LatencyTable(2, 2)
    wrong: Any = "1"
    calls = [
        lambda: table.observe(wrong, 0, 1.0, 0.0),
        lambda: table.observe(0, 0, wrong, 0.0),
        lambda: table.observe(0, 0, 1.0),  # type: ignore[call-arg]
        lambda: table.pick(wrong),
        lambda: table.pick(0.5),  # type: ignore[arg-type]
        lambda: table.pick(None),  # type: ignore[arg-type]
        lambda: table.tick(wrong),
        lambda: LatencyTable(wrong, 1),
        lambda: LatencyTable(1),  # type: ignore[call-arg]
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()


def test_arrays_of_the_wrong_length_or_type_are_refused() -> None:
    table = LatencyTable(4, 2)
    groups, regions, ms = np.zeros(3, np.uint32), np.zeros(3, np.uint16), np.ones(3, F)
    calls = [
        lambda: table.observe_many(groups[:2], regions, ms, 0.0),
        lambda: table.observe_many(groups, regions, ms[:2], 0.0),
        lambda: table.observe_many(groups[:, None], regions, ms, 0.0),
        lambda: table.seed_many(np.ones((4, 1), F), np.ones((4, 2), F)),
        lambda: table.seed_many(np.ones((3, 2), F), np.ones((3, 2), F)),
        lambda: table.pick_many(groups, np.empty(2, np.uint16)),
        lambda: table.pick_many(groups, np.empty(3, np.int64)),
    ]
    for call in calls:
        with pytest.raises((ValueError, TypeError)):
            call()
    assert table.estimates(0).tolist() == [80.0, 80.0]


@pytest.mark.parametrize("group, region", [(4, 0), (2**32 - 1, 0), (0, 2), (0, 65535)])
def test_one_wrong_index_refuses_the_whole_batch(group: int, region: int) -> None:
    table = LatencyTable(4, 2)
    groups, regions = np.array([1, group], np.uint32), np.array([1, region], np.uint16)
    with pytest.raises(IndexError):
        table.observe_many(groups, regions, np.ones(2, F), 0.0)
    if group >= 4:
        with pytest.raises(IndexError):
            table.pick_many(groups, np.empty(2, np.uint16))
    assert table.estimates(1).tolist() == [80.0, 80.0]


@pytest.mark.parametrize("group, region", [(2**32, 0), (-1, 0), (0.5, 0), (0, 65536), (0, -1), (0, 1.5)])
def test_an_index_too_wide_for_its_array_is_not_folded_into_another(group: float, region: float) -> None:
    """Arrays of other types are converted when that loses nothing, else refused."""
    table = LatencyTable(4, 2)
    with pytest.raises((IndexError, ValueError, TypeError, OverflowError)):
        table.observe_many(np.array([group]), np.array([region]), np.ones(1, F), 0.0)
    if group:
        with pytest.raises((IndexError, ValueError, TypeError, OverflowError)):
            table.pick_many(np.array([group]), np.empty(1, np.uint16))
    assert all(table.estimates(g).tolist() == [80.0, 80.0] for g in range(4))
