"""LatencyTable: what it believes of a path."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lbcore._fast import LatencyTable

F = np.float32


def estimate(table: LatencyTable, group: int = 0, region: int = 0) -> float:
    return float(table.estimates(group)[region])


def deviation(table: LatencyTable, group: int = 0, region: int = 0) -> float:
    return float(table.deviations(group)[region])


def learned(ms: float, count: int = 60, now: float = 0.0) -> LatencyTable:
    """Give a table of one cell that saw `count` equal samples, one a second, the last at `now`."""
    table = LatencyTable(1, 1)
    for ago in range(count - 1, -1, -1):
        table.observe(0, 0, ms, now - ago)
    return table


# -- prior and samples -------------------------------------------------------------------------------------------


def test_an_unmeasured_path_is_believed_to_take_80_ms_give_or_take_28() -> None:
    table = LatencyTable(2, 3)
    assert table.estimates(1).tolist() == [80.0] * 3
    assert table.deviations(1).tolist() == [28.0] * 3


def test_a_seed_is_the_estimate_until_a_sample_comes() -> None:
    table = LatencyTable(2, 2)
    table.seed(1, 0, 31.5, 9.25)
    assert (estimate(table, 1, 0), deviation(table, 1, 0)) == (31.5, 9.25)
    assert (estimate(table, 0, 0), estimate(table, 1, 1)) == (80.0, 80.0)


def test_the_first_sample_weighs_by_prior_variance_over_total() -> None:
    """Kalman gain P/(P+R) = 784/848 with R = (0.1 x 80)^2 (ALGORITHMS §3.2)."""
    table = LatencyTable(1, 1)
    table.observe(0, 0, 50.0, 1000.0)
    assert estimate(table) == pytest.approx(80 - 30 * 784 / 848, rel=1e-6)
    assert deviation(table) == pytest.approx(math.sqrt(784 * 64 / 848), rel=1e-6)


def test_the_noise_of_a_short_path_starts_at_one_square_millisecond() -> None:
    table = LatencyTable(1, 1)
    table.seed(0, 0, 2.0, 1.0)
    table.observe(0, 0, 3.0, 0.0)
    assert estimate(table) == pytest.approx(2.5, rel=1e-6)


def test_one_spike_moves_the_estimate_by_at_most_three_deviations_times_the_gain() -> None:
    table = learned(50.0)
    before = estimate(table)
    table.observe(0, 0, 5000.0, 1.0)
    assert before < estimate(table) < before + 5.0


def test_a_path_that_changed_for_good_is_believed_after_a_few_samples() -> None:
    table = learned(50.0)
    for now in range(1, 9):
        table.observe(0, 0, 90.0, float(now))
    assert estimate(table) == pytest.approx(90.0, abs=4.0)


def test_a_near_path_that_was_slow_for_a_while_is_believed_again_soon() -> None:
    table = LatencyTable(1, 1)
    table.seed(0, 0, 11.0, 11.0 * 0.35)
    for second in range(60):
        table.observe(0, 0, 11.0 if second < 20 or second >= 38 else 211.0, float(second))
        if second == 24:
            assert estimate(table) > 180
        if second == 43:
            assert estimate(table) < 35


def test_samples_of_one_instant_all_count() -> None:
    one, three = LatencyTable(1, 1), LatencyTable(1, 1)
    one.observe(0, 0, 40.0, 5.0)
    for _ in range(3):
        three.observe(0, 0, 40.0, 5.0)
    assert estimate(three) < estimate(one)
    assert deviation(three) < deviation(one)


def test_a_sample_from_before_the_last_one_counts_and_ages_nothing() -> None:
    backwards, still = LatencyTable(1, 1), LatencyTable(1, 1)
    for table, later in ((backwards, 900.0), (still, 1000.0)):
        table.observe(0, 0, 40.0, 1000.0)
        table.observe(0, 0, 44.0, later)
        table.observe(0, 0, 46.0, 1000.0)
    assert backwards.estimates(0).tobytes() == still.estimates(0).tobytes()


@pytest.mark.parametrize("idle, share", [(900.0, 1 - math.exp(-1)), (1800.0, 1 - math.exp(-2))])
def test_uncertainty_grows_back_to_the_prior_over_fifteen_minutes(idle: float, share: float) -> None:
    table = learned(50.0)
    narrow = deviation(table) ** 2
    table.tick(0.0)
    for now in range(60, int(idle) + 1, 60):
        table.tick(float(now))
    assert deviation(table) ** 2 == pytest.approx(narrow + (784 - narrow) * share, rel=1e-3)


def test_an_idle_estimate_drifts_home_over_six_hours() -> None:
    table = learned(20.0)
    before = estimate(table)
    table.tick(0.0)
    for now in range(60, 21601, 60):
        table.tick(float(now))
    assert estimate(table) == pytest.approx(80 + (before - 80) * math.exp(-1), rel=1e-4)


def test_how_often_a_table_ticks_does_not_change_what_it_believes() -> None:
    often, never = learned(20.0), learned(20.0)
    for now in range(0, 3601, 5):
        often.tick(float(now))
    for table in (often, never):
        table.observe(0, 0, 30.0, 3601.0)
    assert estimate(often) == pytest.approx(estimate(never), rel=1e-4)
    assert deviation(often) == pytest.approx(deviation(never), rel=1e-4)


def test_seeding_a_measured_path_keeps_what_was_measured() -> None:
    table = learned(50.0)
    before, width = estimate(table), deviation(table)
    table.seed(0, 0, 200.0, 60.0)
    assert (estimate(table), deviation(table)) == (before, width)
    table.seed(0, 0, 200.0, 0.5)
    assert (estimate(table), deviation(table)) == (before, 0.5)


@pytest.mark.parametrize("sd", [1e-3, 1e-20, 1e-30, 1e-44])
def test_a_seed_of_almost_no_width_is_believed(sd: float) -> None:
    """The square of a small float32 is zero; that is a certain prior, not a missing one."""
    table = LatencyTable(1, 2)
    table.seed(0, 0, 12.0, sd)
    table.tick(0.0)
    assert (estimate(table), table.home(0)) == (12.0, 0)
    table.observe(0, 0, 13.0, 1.0)
    assert 12.0 < estimate(table) < 13.0


def test_seed_many_equals_a_seed_for_each() -> None:
    rng = np.random.default_rng(1)
    ms, sd = rng.uniform(1, 200, (7, 5)).astype(F), rng.uniform(1, 50, (7, 5)).astype(F)
    many, each = LatencyTable(7, 5), LatencyTable(7, 5)
    many.seed_many(ms, sd)
    for g, r in np.ndindex(ms.shape):
        each.seed(g, r, float(ms[g, r]), float(sd[g, r]))
    for g in range(7):
        assert many.estimates(g).tobytes() == each.estimates(g).tobytes()
        assert many.deviations(g).tobytes() == each.deviations(g).tobytes()


def test_observe_many_equals_an_observe_for_each_in_order() -> None:
    rng = np.random.default_rng(2)
    groups, regions = rng.integers(0, 4, 200).astype(np.uint32), rng.integers(0, 3, 200).astype(np.uint16)
    ms = rng.uniform(1, 200, 200).astype(F)
    many, each = LatencyTable(4, 3), LatencyTable(4, 3)
    many.observe_many(groups, regions, ms, 77.0)
    for g, r, y in zip(groups, regions, ms, strict=True):
        each.observe(int(g), int(r), float(y), 77.0)
    for g in range(4):
        assert many.estimates(g).tobytes() == each.estimates(g).tobytes()


def test_belief_goes_on_across_the_wrap_of_the_stamp() -> None:
    """Stamps are 32 bits of 1/64 s: they wrap after 777 days."""
    wrap = 2.0**32 / 64
    across, before = LatencyTable(1, 1), LatencyTable(1, 1)
    for table, start in ((across, wrap - 50), (before, wrap / 4)):
        table.observe(0, 0, 40.0, start)
        table.observe(0, 0, 60.0, start + 100)
    assert across.estimates(0).tobytes() == before.estimates(0).tobytes()


# -- ewma --------------------------------------------------------------------------------------------------------


def test_ewma_takes_the_first_sample_and_then_weighs_by_time() -> None:
    table = LatencyTable(1, 1, estimator="ewma", tau=10.0)
    table.observe(0, 0, 100.0, 50.0)
    assert estimate(table) == 100.0
    table.observe(0, 0, 200.0, 60.0)
    assert estimate(table) == pytest.approx(100 * math.exp(-1) + 200 * (1 - math.exp(-1)), rel=1e-6)


def test_ewma_counts_the_samples_of_one_instant_alike() -> None:
    table = LatencyTable(1, 1, estimator="ewma", tau=10.0)
    for ms in (10.0, 20.0, 60.0):
        table.observe(0, 0, ms, 3.0)
    assert estimate(table) == pytest.approx(30.0, rel=1e-6)


def test_ewma_does_not_age_while_idle() -> None:
    table = LatencyTable(1, 1, estimator="ewma", tau=10.0)
    table.observe(0, 0, 100.0, 0.0)
    for now in range(0, 3600, 60):
        table.tick(float(now))
    assert estimate(table) == 100.0
