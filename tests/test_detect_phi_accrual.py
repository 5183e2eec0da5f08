"""PhiAccrual: Akka's and Cassandra's arithmetic and habits (ALGORITHMS §1.9)."""

from __future__ import annotations

import math
import statistics

import pytest
from detecting import DOWN, UP, probe, say
from hypothesis import given
from hypothesis import strategies as st

from lbcore.detect import PhiAccrual
from lbcore.detect.phi_accrual import _Beats, phi


@pytest.mark.parametrize(("elapsed", "tail", "expected"), [
    (1600, "logistic", 10.78), (1600, "erfc", 9.01), (1700, "logistic", 15.37), (1700, "erfc", 11.89),  # ALGORITHMS §1.9
    (1000, "logistic", 0.301), (1000, "erfc", 0.301),  # a coin toss
])  # fmt: skip
def test_values_of_the_reference(elapsed: float, tail: str, expected: float) -> None:
    assert phi(elapsed, 1000, 100, tail) == pytest.approx(expected, abs=0.006)


# The numbers of the next three are those of Akka's AccrualFailureDetectorSpec.


@pytest.mark.parametrize("tail", ["logistic", "erfc"])
def test_both_tails_are_a_normal_distribution(tail: str) -> None:
    table = {0: 0.5, 6: 0.7257, 15: 0.9332, 20: 0.97725, 25: 0.99379, 35: 0.99977, 40: 0.99997}
    for elapsed, cdf in table.items():
        assert 1 - 10 ** -phi(elapsed, 0, 10, tail) == pytest.approx(cdf, abs=0.001)
    assert 1 - 10 ** -phi(22, 20, 3, tail) == pytest.approx(0.7475, abs=0.001)


def test_outliers_neither_lose_precision_nor_raise() -> None:
    assert phi(10, 0, 1) == pytest.approx(38, abs=1)
    assert phi(-25, 0, 1) == 0.0


def test_realistic_values() -> None:
    cases = {0: 0.0, 500: 0.1, 1000: 0.3, 1200: 1.6, 1400: 4.7, 1600: 10.8, 1700: 15.3}
    for elapsed, expected in cases.items():
        assert phi(elapsed, 1000, 100) == pytest.approx(expected, abs=0.1)
    assert phi(1100, 1000, 500) < phi(1100, 1000, 100)


def test_the_exponential_tail_is_cassandras() -> None:
    # PHI_FACTOR = 1 / ln 10; convicted above 8: after 18.4 mean intervals
    assert phi(1000, 1000, 1, "exponential") == pytest.approx(0.4343, abs=1e-4)
    assert phi(18.4207 * 1000, 1000, 1, "exponential") == pytest.approx(8.0, abs=1e-4)


@pytest.mark.parametrize("tail", ["logistic", "erfc", "exponential"])
@given(data=st.data())
def test_phi_is_never_negative_never_nan_and_grows(tail: str, data: st.DataObject) -> None:
    mean, deviation = data.draw(st.floats(1e-3, 1e6)), data.draw(st.floats(1e-6, 1e6))
    times = sorted(data.draw(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=6)))
    values = [phi(time, mean, deviation, tail) for time in times]
    assert all(value >= 0 for value in values)
    assert all(later >= earlier - 1e-9 for earlier, later in zip(values, values[1:], strict=False))


def test_another_tail_is_refused() -> None:
    with pytest.raises(ValueError, match="tail must be one of"):
        phi(1, 1, 1, "fat")
    with pytest.raises(ValueError, match="tail must be one of"):
        PhiAccrual(tail="fat")


@given(st.lists(st.floats(0.001, 1e4), min_size=1, max_size=40))
def test_the_history_is_the_last_samples_exactly(intervals: list[float]) -> None:
    beats = _Beats(10, 0.0, [1.0])
    for seconds in intervals:
        beats.add(seconds)
    last = [round(seconds * 1e6) / 1e6 for seconds in [1.0, *intervals]][-10:]
    assert beats.mean == pytest.approx(statistics.fmean(last), rel=1e-12)
    assert beats.deviation == pytest.approx(statistics.pstdev(last), rel=1e-6, abs=1e-6)


def beat(detector: PhiAccrual, times: list[float], region: int = 0, vantage: str = "v") -> None:
    for now in times:
        probe(detector, region, True, now, vantage=vantage)
        detector.sweep(now)


def first_down(detector: PhiAccrual, start: float, step: float = 0.01) -> float:
    now = start
    while detector.verdict(0) is not DOWN:
        now += step
        detector.sweep(now)
    return now - start


def test_no_heartbeat_no_opinion() -> None:
    detector = PhiAccrual()
    probe(detector, 0, False, 0.0)
    detector.sweep(1e6)
    assert detector.verdict(0) is None and detector.phi(0, 1e6) == 0.0


def test_one_heartbeat_is_enough_to_be_missed() -> None:
    # Akka: the first history is interval -/+ interval / 4, so that a region that answered once is suspected too
    detector = PhiAccrual(1.0, pause=0.0, local_pause=100.0)
    beat(detector, [0.0])
    y = 5.23  # deviations where the logistic tail reaches 8: 5.23 (1.5976 + 0.070566 * 5.23^2) = 18.4 = 8 ln 10
    assert first_down(detector, 0.0) == pytest.approx(1.0 + 0.25 * y, abs=0.02)


def akka(**settings: float) -> PhiAccrual:
    """The detector of Akka's own spec: first estimate 1 s, min deviation 100 ms, no pause."""
    return PhiAccrual(1.0, **{"pause": 0.0, "local_pause": 1e9, **settings})  # type: ignore[arg-type]


def test_akka_guesses_from_one_heartbeat() -> None:
    detector = akka()
    beat(detector, [0.0])
    assert detector.phi(0, 1.0) == pytest.approx(0.3, abs=0.2)
    assert detector.phi(0, 2.0) == pytest.approx(4.5, abs=0.3)
    assert detector.phi(0, 3.0) > 15.0


def test_akka_misses_heartbeats() -> None:
    detector = akka(threshold=3.0)
    beat(detector, [0.0, 1.0, 1.1])
    detector.sweep(1.2)
    assert detector.verdict(0) is UP
    detector.sweep(8.2)
    assert detector.verdict(0) is DOWN


def test_akka_returns_after_a_long_outage_and_still_notices_the_next() -> None:
    detector = akka(pause=3.0)
    beat(detector, [float(second) for second in range(1000)])
    detector.sweep(1299.0)
    assert detector.verdict(0) is DOWN
    beat(detector, [1299.1])
    assert detector.verdict(0) is UP
    beat(detector, [1300.1])
    detector.sweep(1307.1)
    assert detector.verdict(0) is DOWN


def test_akka_forgets_beyond_the_sample_size() -> None:
    detector = akka(samples=3)
    beat(detector, [0.0, 0.1, 0.2, 0.3])
    before = detector.phi(0, 0.4)
    beat(detector, [1.0, 1.5, 2.0, 2.5])
    assert before > 0.3 and detector.phi(0, 3.0) == pytest.approx(before, abs=0.001)


@pytest.mark.parametrize(("samples", "intervals", "mean", "variance"), [
    (20, [100, 200, 125, 340, 130], 179.0, 7584.0), (600, [1000], 1000.0, 0.0), (3, [100, 110, 90], 100.0, 66.6666667),
    (3, [100, 110, 90, 140], 113.333333, 422.222222), (3, [100, 110, 90, 140, 80], 103.333333, 688.88888889),
])  # fmt: skip
def test_akkas_statistics(samples: int, intervals: list[int], mean: float, variance: float) -> None:
    beats = _Beats(samples, 0.0, intervals)
    assert beats.mean == pytest.approx(mean, abs=1e-5) and beats.deviation**2 == pytest.approx(variance, abs=1e-5)


def test_akkas_cluster_defaults_at_one_second() -> None:
    # heartbeat 1 s, pause 3 s, min deviation 100 ms, threshold 8
    detector = PhiAccrual(1.0)
    beat(detector, [float(second) for second in range(1100)])  # longer than the 1000 samples: the two invented ones are gone
    assert first_down(detector, 1099.0) == pytest.approx(1.0 + 3.0 + 0.1 * 5.23, abs=0.02)


def test_cassandras_window_convicts_after_18_4_means_and_ignores_long_intervals() -> None:
    detector = PhiAccrual(1.0, tail="exponential")
    beat(detector, [float(second) for second in range(1100)])
    beat(detector, [1102.5])  # longer than two gossip intervals: not learnt
    assert first_down(detector, 1102.5) == pytest.approx(18.42, abs=0.05)


def test_the_heartbeat_that_ends_an_outage_is_not_learnt() -> None:
    detector = PhiAccrual(1.0)
    beat(detector, [float(second) for second in range(20)])
    mean = detector._regions[0].beats["v"].mean
    for second in range(20, 80):
        detector.sweep(float(second))
    assert detector.verdict(0) is DOWN
    beat(detector, [80.0])
    assert detector.verdict(0) is UP and detector._regions[0].beats["v"].mean == mean


def test_verdicts_change_at_sweeps_only() -> None:
    detector = PhiAccrual(1.0)
    probe(detector, 0, True, 0.0)
    assert detector.verdict(0) is None
    detector.sweep(0.1)
    assert detector.verdict(0) is UP


def test_after_a_local_pause_nobody_is_suspected_for_five_seconds() -> None:
    # Cassandra: "Not marking nodes down due to local pause"
    detector = PhiAccrual(1.0)
    beat(detector, [float(second) for second in range(20)])
    detector.sweep(60.0)  # we slept for 41 s
    assert detector.verdict(0) is UP
    for tenth in range(49):
        detector.sweep(60.0 + tenth / 10)
    assert detector.verdict(0) is UP
    detector.sweep(65.0)
    assert detector.verdict(0) is DOWN


def test_vantages_decide_by_majority() -> None:
    detector = PhiAccrual(1.0)
    for second in range(30):
        for vantage in "abc":
            if second < 10 or vantage == "a":
                beat(detector, [float(second)], vantage=vantage)
    assert detector.verdict(0) is DOWN and detector.hard(0) and detector.cause(0).startswith("no heartbeat for 0.0 s")
    beat(detector, [30.0], vantage="b")
    assert detector.verdict(0) is UP


def test_requests_and_failures_are_no_heartbeats() -> None:
    detector = PhiAccrual(1.0)
    beat(detector, [float(second) for second in range(10)])
    for second in range(10, 40):
        probe(detector, 0, False, float(second))
        say(detector, 0, True, float(second))
        detector.sweep(float(second))
    assert detector.verdict(0) is DOWN


def test_a_clock_that_goes_back_is_harmless() -> None:
    detector = PhiAccrual(1.0)
    beat(detector, [10.0, 11.0, 5.0, 12.0])
    assert detector.verdict(0) is UP and math.isfinite(detector.phi(0, 0.0))


@pytest.mark.parametrize("bad", [{"interval": 0}, {"threshold": 0}, {"samples": 0}, {"min_deviation": 0}, {"pause": -1}, {"share": 2}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="PhiAccrual needs"):
        PhiAccrual(**bad)  # type: ignore[arg-type]


def test_reset_and_memory() -> None:
    detector = PhiAccrual(1.0, samples=8)
    beat(detector, [float(second) for second in range(100)])
    assert len(detector._regions[0].beats["v"]._intervals) == 8
    detector.reset(0)
    assert detector.verdict(0) is None
