"""Pooled: >= 5 failures, >= 3 groups or vantages, share >= 50 % within 3 s (ALGORITHMS §3.6 no. 8, §3.7)."""

from __future__ import annotations

import math
import random

import pytest
from detecting import DOWN, UP, probe, say
from hypothesis import given
from hypothesis import strategies as st

from lbcore.detect import Backoff, Pooled


def fail(detector: Pooled, count: int, *, groups: int, now: float = 0.0, region: int = 0, **more: object) -> None:
    for number in range(count):
        say(detector, region, False, now, group=number % groups, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("failures", "successes", "groups", "verdict"),
    [(5, 0, 3, DOWN), (4, 0, 3, UP), (5, 5, 3, DOWN), (5, 6, 3, UP), (50, 0, 2, UP), (50, 51, 3, UP), (50, 50, 50, DOWN)],
)
def test_all_three_conditions_are_needed(failures: int, successes: int, groups: int, verdict: object) -> None:
    detector = Pooled()
    say(detector, 0, True, -10.0)  # it has answered before
    for number in range(successes):
        say(detector, 0, True, 0.0, group=number % groups)
    fail(detector, failures, groups=groups)
    assert detector.verdict(0) is verdict


def test_three_vantages_corroborate_as_three_groups_do() -> None:
    detector = Pooled()
    for number in range(5):
        say(detector, 0, False, 0.0, group=0, vantage=f"v{number % 3}")
    assert detector.verdict(0) is DOWN


def test_one_group_alone_loses_its_own_path_only() -> None:
    detector = Pooled()
    for group in range(2, 9):
        say(detector, 0, True, 0.0, group=group)
    fail(detector, 4, groups=1)
    assert detector.excluded(0) == frozenset()
    fail(detector, 1, groups=1)
    assert detector.excluded(0) == {0} and detector.verdict(0) is UP
    assert detector.excluded(1) == frozenset()


def test_a_groups_share_counts_its_own_requests_only() -> None:
    detector = Pooled()
    for _ in range(6):
        say(detector, 0, True, 0.0, group=4)
    for _ in range(5):
        say(detector, 0, False, 0.1, group=4)
    assert detector.excluded(0) == frozenset()  # 5 of 11
    say(detector, 0, False, 0.2, group=4)
    assert detector.excluded(0) == {4}  # 6 of 12


def test_exclusions_end_when_the_region_itself_goes_down() -> None:
    detector = Pooled()
    fail(detector, 10, groups=2)
    assert detector.excluded(0) == {0, 1} and detector.verdict(0) is not DOWN
    fail(detector, 1, groups=1)
    say(detector, 0, False, 0.0, group=2)
    assert detector.verdict(0) is DOWN and detector.excluded(0) == frozenset()


def test_failures_leave_the_window() -> None:
    detector = Pooled()
    fail(detector, 4, groups=4, now=0.0)
    fail(detector, 1, groups=1, now=3.1)
    assert detector.verdict(0) is None
    fail(detector, 4, groups=4, now=3.2)
    assert detector.verdict(0) is DOWN


EVENTS = st.lists(st.tuples(st.floats(0, 1.5), st.booleans(), st.integers(0, 4), st.sampled_from("abcd")), max_size=60)


@given(EVENTS, st.sampled_from([1, 4, 12]))
def test_equals_a_count_of_the_whole_window(events: list[tuple[float, bool, int, str]], buckets: int) -> None:
    detector = Pooled(buckets=buckets)
    past: list[tuple[int, bool, int, str]] = []
    now = 0.0
    for step, ok, group, vantage in events:
        now += step
        say(detector, 0, ok, now, group=group, vantage=vantage)
        past.append((math.floor(now * (buckets / 3.0)), ok, group, vantage))
        window = [entry for entry in past if entry[0] > past[-1][0] - buckets]
        failed = [entry for entry in window if not entry[1]]
        spread = max(len({entry[2] for entry in failed}), len({entry[3] for entry in failed}))
        own = [entry[1] for entry in window if entry[2] == group]
        if not ok and len(failed) >= 5 and 2 * len(failed) >= len(window) and spread >= 3:
            assert detector.verdict(0) is DOWN
            return
        assert detector.verdict(0) is not DOWN
        counts = detector._states[0].window
        assert (counts.total, counts.failed, counts.of(group)) == (len(window), len(failed), (own.count(False), len(own)))
        if not ok and own.count(False) >= 5 and 2 * own.count(False) >= len(own):
            assert group in detector.excluded(0)


def test_successes_that_age_out_make_a_failing_share_visible_to_the_sweep() -> None:
    detector = Pooled()
    for number in range(20):
        say(detector, 0, True, 1.5, group=number)
    fail(detector, 6, groups=3, now=2.0)
    assert detector.verdict(0) is UP
    detector.sweep(3.5)
    assert detector.verdict(0) is DOWN


def test_an_outage_need_not_outweigh_the_success_before_it() -> None:
    detector = Pooled()
    for number in range(40):
        say(detector, 0, True, number / 20, group=number)
    for number in range(5):
        assert detector.verdict(0) is not DOWN
        say(detector, 0, False, 3.0 + number / 20, group=number)
    assert detector.verdict(0) is DOWN


def test_ejections_last_10_20_40_up_to_300_seconds() -> None:
    # ALGORITHMS §3.7: eject = min(300 s, 10 s * 2^(n-1))
    detector, now, lengths = Pooled(), 0.0, []
    for _ in range(8):
        fail(detector, 5, groups=3, now=now)
        start = now
        while detector.verdict(0) is DOWN:
            now += 1.0
            detector.sweep(now)
        lengths.append(now - start)
    assert lengths == [10, 20, 40, 80, 160, 300, 300, 300]


def test_every_healthy_minute_takes_one_step_back() -> None:
    backoff, detector = Backoff(), Pooled()
    fail(detector, 5, groups=3, now=0.0)
    detector.sweep(10.0)
    fail(detector, 5, groups=3, now=20.0)  # n = 2
    detector.sweep(40.0)
    ejection = detector._states[0].ejection
    assert [ejection.healed(backoff, 40.0 + later) for later in (0, 59, 60, 119, 120, 1e6)] == [2, 2, 1, 1, 0, 0]


def test_jitter_is_seeded_and_within_a_fifth() -> None:
    lengths = [Backoff(rng=random.Random(7)).seconds(3) for _ in range(2)]
    assert lengths[0] == lengths[1]
    rng = random.Random(1)
    drawn = [Backoff(rng=rng).seconds(3) for _ in range(1000)]
    assert 40 <= min(drawn) < 40.1 and 47.9 < max(drawn) <= 48


def test_two_probe_successes_in_a_row_end_an_ejection() -> None:
    # Envoy: a successful active health check un-ejects; here `rise` of them
    detector = Pooled()
    fail(detector, 5, groups=3)
    for ok, verdict in [(True, DOWN), (False, DOWN), (True, DOWN), (True, None)]:
        probe(detector, 0, ok, 1.0)
        assert detector.verdict(0) is verdict
    fail(detector, 4, groups=4, now=1.1)
    assert detector.verdict(0) is None  # it began with an empty window


def test_probes_end_the_exclusion_of_their_own_group_only() -> None:
    detector = Pooled()
    fail(detector, 10, groups=2)
    for _ in range(2):
        probe(detector, 0, True, 1.0, group=0)
    assert detector.excluded(0) == {1}


def test_exclusions_end_by_time_and_are_forgotten_when_healed() -> None:
    detector = Pooled()
    fail(detector, 5, groups=1)
    detector.sweep(9.9)
    assert detector.excluded(0) == {0}
    detector.sweep(10.0)
    assert detector.excluded(0) == frozenset() and len(detector._states[0].paths) == 1
    detector.sweep(70.0)
    assert len(detector._states[0].paths) == 0


def test_probes_are_not_counted_as_requests() -> None:
    detector = Pooled()
    for number in range(50):
        probe(detector, 0, False, 0.0, group=number, vantage=f"v{number}")
    assert detector.verdict(0) is None and detector.excluded(0) == frozenset()


def test_requests_that_wait_too_long_count_before_they_time_out() -> None:
    detector = Pooled()
    for group in range(3):
        detector.waiting(0, 2, vantage="v", group=group, gen=0, now=0.5)
    assert detector.verdict(0) is DOWN and "waiting" in detector.cause(0)


def test_requests_that_hung_before_an_ejection_do_not_repeat_it() -> None:
    detector = Pooled()
    for group in range(3):
        detector.waiting(0, 2, vantage="v", group=group, gen=0, now=0.5)
    detector.waiting(0, 9, vantage="v", group=1, gen=0, now=0.9)
    for _ in range(2):
        probe(detector, 0, True, 1.0)
    detector.sweep(1.1)
    assert detector.verdict(0) is not DOWN


def test_waiting_is_a_gauge_and_is_taken_back() -> None:
    detector = Pooled()
    for now in (0.1, 0.2, 0.3):  # said again, not added up
        for group in range(3):
            detector.waiting(0, 1, vantage="v", group=group, gen=0, now=now)
    assert detector.verdict(0) is None
    detector.waiting(0, 0, vantage="v", group=0, gen=0, now=0.4)
    fail(detector, 2, groups=1, now=0.4)
    assert detector.verdict(0) is None  # 2 failures + 2 waiting
    detector.sweep(2.0)
    fail(detector, 2, groups=2, now=2.0)
    assert detector.verdict(0) is None  # nobody renewed the gauge


def test_a_slow_region_that_answers_is_not_ejected_for_waiting() -> None:
    # answers take 1.5 s, longer than 1 s is "waiting": 100 requests/s mean 50 waiting and 300 answered within the window
    detector = Pooled()
    for step in range(300):
        for group in range(3):
            say(detector, 0, True, step * 0.01, group=group)
    for group in range(3):
        detector.waiting(0, 50, vantage="v", group=group, gen=0, now=3.0)
    assert detector.verdict(0) is UP


def test_a_waiting_group_alone_is_excluded_alone() -> None:
    detector = Pooled()
    detector.waiting(0, 5, vantage="v", group=3, gen=0, now=0.0)
    assert detector.excluded(0) == {3} and detector.verdict(0) is None


def test_a_clock_that_goes_back_stands_still() -> None:
    detector = Pooled()
    for number, now in enumerate([100.0, 40.0, 99.0, -5.0, 100.0]):
        say(detector, 0, False, now, group=number)
    assert detector.verdict(0) is DOWN
    detector.sweep(0.0)
    assert detector.verdict(0) is DOWN


@pytest.mark.parametrize("now", [math.nan, math.inf])
def test_a_time_that_is_none_is_refused(now: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        say(Pooled(), 0, True, now)


@pytest.mark.parametrize("region", [-1, 65535, 10**12])
def test_a_region_no_table_can_have_is_refused(region: int) -> None:
    with pytest.raises(IndexError):
        say(Pooled(), region, True, 0.0)


@pytest.mark.parametrize("bad", [{"window": 0}, {"failures": 0}, {"share": 0}, {"share": 1.1}, {"spread": 0}, {"buckets": 0}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Pooled needs"):
        Pooled(**bad)  # type: ignore[arg-type]


def test_memory_does_not_grow_with_requests() -> None:
    detector = Pooled()
    for number in range(20_000):
        say(detector, number % 3, number % 10 == 0, number * 0.01, group=number % 50)
    states = detector._states.values()
    assert len(states) == 3 and all(len(bucket) <= 50 for state in states for bucket in [*state.window.tries, *state.window.fails])
    assert all(len(state.window.groups) <= 3 for state in states)


def test_reset_forgets_and_old_names_start_empty() -> None:
    detector = Pooled()
    fail(detector, 5, groups=3)
    detector.reset(0)
    assert detector.verdict(0) is None
