"""Zones and units as a share of a region: what is left of it, and when to scale."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.service.capacity import Gauge, advice, units_live
from lbcore.service.facts import Live
from lbcore.service.model import location


@pytest.mark.parametrize(
    ("units", "zones", "live", "left"),
    [
        (3, ["1", "2", "3"], Live(), 3), (3, ["1", "2", "3"], Live(zones_down=frozenset("1")), 2),
        (6, ["1", "2"], Live(zones_down=frozenset("2")), 3),
        (3, ["1", "2", "3"], Live(zones_down=frozenset("123")), 0), (3, ["1", "2", "3"], Live(zones_down=frozenset("9")), 3),
        (4, [], Live(units=1), 1), (4, [], Live(units=9), 4), (4, [], Live(zones_down=frozenset("1")), 4),
        (4, ["1", "2"], Live(units=3, zones_down=frozenset("1")), 2), (4, ["1", "2"], Live(units=1, zones_down=frozenset("1")), 1),
    ],
)  # fmt: skip
def test_a_zone_that_is_down_takes_its_share_of_the_units(units: int, zones: list[str], live: Live, left: int) -> None:
    assert units_live(location("westus2", units=units, zones=zones), live) == left


def test_the_gauge_is_a_share_of_what_the_live_units_can_do() -> None:
    assert Gauge.of([50, 150, 100], per_unit=100, units=2) == Gauge(50.0, 75.0)
    assert Gauge.of([500], per_unit=100, units=2) == Gauge(100.0, 100.0)
    assert Gauge.of([], per_unit=100, units=2) == Gauge(0.0, 0.0)
    assert Gauge.of([0], per_unit=100, units=0) == Gauge(100.0, 100.0)


@pytest.mark.parametrize(
    ("units", "zones", "average", "maximum", "advised"),
    [
        (1, [], 39.0, 60.0, 1), (1, [], 40.0, 60.0, 2), (2, [], 69.0, 90.0, 2), (2, [], 70.0, 90.0, 3), (31, [], 99.0, 99.0, 31),
        (3, ["1", "2", "3"], 80.0, 90.0, 6), (30, ["1", "2", "3"], 80.0, 90.0, 30), (6, ["1", "2", "3"], 5.0, 10.0, 3),
        (3, ["1", "2", "3"], 5.0, 10.0, 3), (2, [], 10.0, 20.0, 2), (2, [], 10.0, 19.0, 1), (2, [], 10.0, 25.0, 2), (1, [], 0.0, 0.0, 1),
    ],
)  # fmt: skip
def test_advice_follows_the_thresholds(units: int, zones: list[str], average: float, maximum: float, advised: int) -> None:
    assert advice(Gauge(average, maximum), location("westus2", units=units, zones=zones), 31) == advised


@given(st.integers(1, 31), st.floats(0, 100))
def test_advice_does_not_turn_back_on_itself(units: int, load: float) -> None:
    """Whatever constant load there is, following the advice comes to rest."""
    total, seen = load * units, [units]
    for _ in range(40):
        share = min(100.0, total / seen[-1])
        seen.append(advice(Gauge(share, share), location("westus2", units=seen[-1]), 31))
    assert seen[-1] == seen[-2]
    assert seen in (sorted(seen), sorted(seen, reverse=True))
