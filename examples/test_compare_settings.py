"""The same comparison under pytest-benchmark: speed is what it reports, quality and reproducibility are what it asserts.

    python -m pytest examples/test_compare_settings.py
"""

from __future__ import annotations

from typing import Any

import pytest
from benchmark_harness import SETTINGS, WORLD, decide, regret_ms

from lbcore.sim import Event, events


@pytest.fixture(scope="module")
def recorded() -> list[Event]:
    """Ten minutes of a synthetic world; `read_events("day.jsonl")` gives a recording of your own."""
    return list(events(WORLD))


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, recorded: list[Event], benchmark: Any) -> None:
    decisions = benchmark.pedantic(decide, args=(recorded, SETTINGS[name]), rounds=3)
    assert decisions == decide(recorded, SETTINGS[name])  # to the last decision, on every machine
    benchmark.extra_info["regret_ms"] = round(regret_ms(decisions), 2)
    assert benchmark.extra_info["regret_ms"] < 60
