"""Consecutive counts as Traffic Manager's endpoint monitor does (REQUIREMENTS R31, R34, §2.2, §2.4)."""

from __future__ import annotations

import itertools

import pytest
from detecting import DOWN, UP, probe, say
from hypothesis import given
from hypothesis import strategies as st

from lbcore.detect import Consecutive, tally


def test_one_success_ends_the_first_check() -> None:
    detector = Consecutive()
    assert detector.verdict(0) is None  # CheckingEndpoint
    probe(detector, 0, True, 0.0)
    assert detector.verdict(0) is UP


def test_a_region_still_checked_goes_down_on_failure_tolerated_plus_one() -> None:
    detector = Consecutive(tolerated=2)
    verdicts = []
    for second in range(3):
        probe(detector, 0, False, second)
        verdicts.append(detector.verdict(0))
    assert verdicts == [None, None, DOWN]


def test_the_azure_default_goes_down_with_the_fourth_failure_and_returns_with_one_success() -> None:
    # R31: toleratedNumberOfFailures 3; §2.2: the first 200 restores
    detector = Consecutive(tolerated=3, rise=1)
    seen = []
    for second, ok in enumerate([True, False, False, False, True, False, False, False, False, True]):
        probe(detector, 7, ok, second)
        seen.append(detector.verdict(7))
    assert seen == [UP] * 8 + [DOWN, UP]


@pytest.mark.parametrize("rise", [1, 2, 5])
def test_rise_successes_in_a_row_bring_it_back(rise: int) -> None:
    detector = Consecutive(tolerated=0, rise=rise)
    probe(detector, 0, False, 0)
    for ok in [True] * (rise - 1) + [False] + [True] * (rise - 1):
        probe(detector, 0, ok, 1)
        assert detector.verdict(0) is DOWN
    probe(detector, 0, True, 2)
    assert detector.verdict(0) is UP


@pytest.mark.parametrize(("interval", "timeout", "tolerated"), [*itertools.product([5.0, 10.0, 30.0], [2.0, 5.0], range(10))])
def test_detection_and_failback_times_are_the_formulae(interval: float, timeout: float, tolerated: int) -> None:
    # §2.4, start-to-start: D = phase + N*I + T for timeouts; R = rise'th probe after recovery
    rise, phase = 2, 1.25
    detector = Consecutive(tolerated, rise)
    probe(detector, 0, True, 0.0)
    starts = (phase + step * interval for step in itertools.count())
    for start in starts:  # it failed at 0
        probe(detector, 0, False, start + timeout)
        if detector.verdict(0) is DOWN:
            break
    assert start + timeout == phase + tolerated * interval + timeout
    successes = 0
    for _start in starts:
        probe(detector, 0, True, _start)
        successes += 1
        if detector.verdict(0) is UP:
            break
    assert successes == rise and _start == start + rise * interval


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans())), st.integers(0, 4), st.integers(1, 4))
def test_equals_a_model_that_reads_the_whole_history(history: list[tuple[int, bool]], tolerated: int, rise: int) -> None:
    detector = Consecutive(tolerated, rise)
    past: dict[int, list[bool]] = {0: [], 1: [], 2: []}
    expected = dict.fromkeys(past)
    for second, (region, ok) in enumerate(history):
        probe(detector, region, ok, float(second))
        past[region].append(ok)
        if past[region][-tolerated - 1 :] == [False] * (tolerated + 1):
            expected[region] = DOWN
        elif ok and (expected[region] is None or past[region][-rise:] == [True] * rise):
            expected[region] = UP
        assert {index: detector.verdict(index) for index in past} == expected


@pytest.mark.parametrize(("vantages", "cut", "verdict"), [(3, 1, UP), (3, 2, DOWN), (2, 1, UP), (4, 2, UP), (5, 3, DOWN), (1, 1, DOWN)])
def test_vantages_decide_by_majority_and_a_tie_keeps_what_was(vantages: int, cut: int, verdict: object) -> None:
    # R34: three vantages, one partitioned -> stays Online; two -> Degraded
    detector = Consecutive(tolerated=1)
    for second in range(4):
        for vantage in range(vantages):
            probe(detector, 0, second == 0 or vantage >= cut, second, vantage=f"v{vantage}")
    assert detector.verdict(0) is verdict


def test_failures_in_a_row_are_not_added_up_over_vantages() -> None:
    detector = Consecutive(tolerated=2)
    for vantage in ("a", "b", "c", "d"):
        probe(detector, 0, False, 0.0, vantage=vantage)
    assert detector.verdict(0) is None


def test_a_silent_vantage_loses_its_vote_but_the_last_word_stays() -> None:
    detector = Consecutive(tolerated=0, rise=1, expiry=60.0)
    probe(detector, 0, False, 0.0, vantage="a")
    probe(detector, 0, False, 0.0, vantage="b")
    probe(detector, 0, True, 50.0, vantage="c")
    assert detector.verdict(0) is DOWN
    detector.sweep(61.0)  # a and b are gone
    assert detector.verdict(0) is UP
    detector.sweep(1000.0)
    assert detector.verdict(0) is UP


def test_invented_vantages_cannot_fill_the_memory() -> None:
    detector = Consecutive(tolerated=0)
    for number in range(500):
        probe(detector, 0, False, number, vantage=f"v{number}")
    assert len(detector._watches[0].streaks) == 64


def test_requests_are_not_counted_unless_asked_for() -> None:
    silent, passive = Consecutive(tolerated=0), Consecutive(tolerated=4, sources=["request"])  # 5: Envoy consecutive_5xx
    for _ in range(5):
        say(silent, 0, False, 0.0)
        say(passive, 0, False, 0.0)
    assert silent.verdict(0) is None
    assert passive.verdict(0) is DOWN and not passive.hard(0)


def test_down_by_probes_is_hard_and_says_why() -> None:
    detector = Consecutive(tolerated=3)
    probe(detector, 0, True, 0)
    assert not detector.hard(0) and detector.cause(0) == ""
    for second in range(4):
        probe(detector, 0, False, second, cause="timeout")
    assert detector.hard(0) and detector.cause(0) == "probe timeout x4"


def test_reset_begins_again() -> None:
    detector = Consecutive(tolerated=0)
    probe(detector, 0, False, 0)
    probe(detector, 1, False, 0)
    detector.reset(0)
    detector.reset(5)
    assert detector.verdict(0) is None and detector.verdict(1) is DOWN


@pytest.mark.parametrize("region", [-1, 65535, 10**30])
def test_a_region_no_table_can_have_is_refused(region: int) -> None:
    with pytest.raises(IndexError, match="0..65534"):
        probe(Consecutive(), region, True, 0)


@pytest.mark.parametrize("bad", [{"tolerated": -1}, {"rise": 0}, {"share": 1.5}, {"expiry": 0}, {"share": float("nan")}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Consecutive needs"):
        Consecutive(**bad)  # type: ignore[arg-type]


def test_route_53s_share_of_checkers() -> None:
    # Route 53: healthy while more than 18 % of the checkers say so
    assert tally([UP] * 2 + [DOWN] * 8, DOWN, share=0.82) is UP
    assert tally([UP] * 1 + [DOWN] * 9, UP, share=0.82) is DOWN


def test_undecided_vantages_count_in_the_whole() -> None:
    assert tally([DOWN, None, None], None) is None
    assert tally([UP, UP, None], None) is UP
    assert tally([], DOWN) is DOWN
