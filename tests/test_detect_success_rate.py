"""SuccessRate: Envoy's and A50's numbers, our floor, two to four regions (ALGORITHMS F4, §1.4, §3.6 no. 2)."""

from __future__ import annotations

import pytest
from detecting import DOWN, UP, probe, say

from lbcore.detect import Detector, SuccessRate
from lbcore.detect.success_rate import mean_threshold, peers_threshold


def interval(detector: Detector, percents: dict[int, float], now: float, volume: int = 200) -> dict[int, object]:
    """Report one interval of traffic, sweep at its end (`now`), give the verdicts."""
    detector.sweep(now - 10.0)
    for region, percent in percents.items():
        for number in range(volume):
            say(detector, region, number < round(volume * percent / 100), now - 5.0)
    detector.sweep(now)
    return {region: detector.verdict(region) for region in percents}


def test_envoys_example_has_the_threshold_52() -> None:
    # outlier_detection docs: mean 90, stdev 20, factor 1.9
    assert mean_threshold([50, 100, 100, 100, 100]) == 52.0
    assert mean_threshold([0.5, 1, 1, 1, 1]) == pytest.approx(0.52)


@pytest.mark.parametrize(("worst", "verdict"), [(50, DOWN), (51, DOWN), (100, UP)])
def test_envoys_example_ejects(worst: int, verdict: object) -> None:
    detector = SuccessRate()
    assert interval(detector, {0: worst, 1: 100, 2: 100, 3: 100, 4: 100}, 10.0) == {0: verdict, 1: UP, 2: UP, 3: UP, 4: UP}


def test_ninety_nine_percent_is_no_outlier_among_hundreds() -> None:
    # envoyproxy/envoy#37723: a tiny deviation ejects at 99 %
    rates = [0.99, *[1.0] * 9]
    assert 0.99 < mean_threshold(rates)
    detector = SuccessRate()
    assert set(interval(detector, {region: 100 * rate for region, rate in enumerate(rates)}, 10.0).values()) == {UP}


@pytest.mark.parametrize(("percents", "down"), [
    ((94, 100), [0]), ((95, 100), []), ((100, 60), [1]), ((60, 60), []), ((0, 0), []),
    ((100, 100, 90), [2]), ((99, 100, 98), []), ((100, 99, 50, 98), [2]), ((85, 100, 90), []), ((80, 100, 90), [0]),
])  # fmt: skip
def test_two_to_four_regions_are_held_against_each_other(percents: tuple[int, ...], down: list[int]) -> None:
    verdicts = interval(SuccessRate(), dict(enumerate(percents)), 10.0)
    assert [region for region, verdict in verdicts.items() if verdict is DOWN] == down


def test_peers_threshold_is_median_and_mad_of_the_others() -> None:
    assert peers_threshold([0.9]) == 0.9
    assert peers_threshold([1.0, 0.9, 0.7], 2.0) == pytest.approx(0.9 - 2 * 1.4826 * 0.1)


def test_a_lone_region_is_never_ejected() -> None:
    assert interval(SuccessRate(), {0: 0}, 10.0) == {0: None}


def test_below_the_volume_nobody_is_compared() -> None:
    assert interval(SuccessRate(), {0: 10, 1: 100}, 10.0, volume=99) == {0: UP, 1: UP}
    assert interval(SuccessRate(), {0: 10, 1: 100}, 10.0, volume=100) == {0: DOWN, 1: UP}
    assert interval(SuccessRate(min_hosts=5), {0: 10, 1: 100, 2: 100, 3: 100}, 10.0) == {0: UP, 1: UP, 2: UP, 3: UP}


def test_every_interval_counts_anew() -> None:
    detector = SuccessRate()
    detector.sweep(0.0)
    for region in (0, 1):
        for number in range(60):
            say(detector, region, region == 1 or number > 30, 1.0)
    detector.sweep(10.0)
    for region in (0, 1):
        for number in range(60):
            say(detector, region, region == 1 or number > 30, 11.0)
    detector.sweep(20.0)
    assert detector.verdict(0) is UP  # 60 in each interval, never 100


def test_ejection_ends_by_time_or_by_probes() -> None:
    detector = SuccessRate()
    interval(detector, {0: 10, 1: 100}, 10.0)
    assert detector.cause(0) == "10.0 % of requests succeeded, below 95.0 %"
    detector.sweep(19.9)
    assert detector.verdict(0) is DOWN
    detector.sweep(20.0)
    assert detector.verdict(0) is UP and detector.cause(0) == ""
    interval(detector, {0: 10, 1: 100}, 30.0)
    probe(detector, 0, True, 31.0)
    probe(detector, 0, True, 32.0)
    assert detector.verdict(0) is UP


@pytest.mark.parametrize("bad", [{"interval": 0}, {"volume": 0}, {"min_hosts": 1}, {"factor": -1}, {"floor": 2}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="SuccessRate needs"):
        SuccessRate(**bad)  # type: ignore[arg-type]


def test_reset_forgets() -> None:
    detector = SuccessRate()
    interval(detector, {0: 10, 1: 100}, 10.0)
    detector.reset(0)
    assert detector.verdict(0) is None
