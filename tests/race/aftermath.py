"""What a storm of C threads leaves behind: table and model go on from the same state and must take the same decisions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from lbcore import _hammer
from lbcore._fast import LatencyTable

sys.path.insert(0, str(Path(__file__).parent.parent))
from model import ModelTable


def twin(table: LatencyTable) -> ModelTable:
    """Give a model in the table's state."""
    state: dict[str, Any] = _hammer.state(table)
    model = ModelTable(table.groups, table.regions, region_capacity=table.region_capacity)
    eligible, untouched = state.pop("eligible"), state["P0"] == 0
    for name, value in state.items():
        if np.shape(value) == untouched.shape and name != "sign":  # the table fills in a cell at its first touch
            value = np.where(untouched, getattr(model, name)[0, 0], value)
        setattr(model, name, value)
    assert np.array_equal(eligible, model._eligible()), "the eligible bits follow from the others"
    return model


def level(table: LatencyTable, now: float) -> None:
    """Where two samples of one cell met, the belief may be of one and the score of the other: the next sample sets that right."""
    state: dict[str, Any] = _hammer.state(table)
    beliefs = (state["x"] + state["penalty"])[:, : table.regions]
    scores = np.array([table.scores(g) for g in range(table.groups)])
    for g, r in np.argwhere((state["t"][:, : table.regions] > 0) & (beliefs != scores)).tolist():
        table.observe(g, r, float(state["x"][g, r]), now)


def storm(seed: int, regions: int, roles: list[str]) -> None:
    """Burst after burst, and after each the same calm on both: homes get worse, seconds pass.

    The clock hardly moves during a burst and a few seconds after it, so that ageing, which looks at every group once a
    minute, does not make good what a race spoiled.
    """
    table, now = LatencyTable(200, regions, region_capacity=regions + 2), 1000.0
    for burst in range(15):
        hammer = _hammer.Hammer(table, None, roles, 10_000, now, 1e-6, 100 * seed + burst)
        hammer.start()
        assert hammer.join() == 0
        level(table, now)
        model = twin(table)
        for step, ms in ((0.1, 0.0), (0.1, 90.0), (0.1, 0.0), (3.0, 200.0), (7.1, 0.0), (1.0, 0.0)):
            now += step
            for g in np.flatnonzero((model.homes >= 0) & (ms > 0)).tolist():
                for one in (table, model):
                    one.observe(g, int(model.homes[g]), ms, now)
            table.tick(now)
            model.tick(now)
            homes = np.array([table.home(g) for g in range(200)])
            assert np.array_equal(homes, model.homes), (seed, regions, roles, burst, now, np.flatnonzero(homes != model.homes))
        now += 1.0


def first_touches(seed: int) -> None:
    """Cells that nobody seeded, and their first samples from several threads: each is 5 to 64 ms, the flat prior is 80 ms."""
    table = LatencyTable(400, 8, region_capacity=8)
    hammer = _hammer.Hammer(table, None, ["write", "write"], 4000, 1000.0, 0.0, seed)
    hammer.start()
    assert hammer.join() == 0
    state: dict[str, Any] = _hammer.state(table)
    touched = state["t"] > 0
    estimates = state["x"][touched]
    assert estimates.min() > 4.9 and estimates.max() < 80.1, (seed, estimates.min(), estimates.max())
    assert np.all(state["P0"][touched] == 28.0**2) and np.all(state["mu0"][touched] == 80.0) and np.all(state["R"][touched] >= 1.0), seed


if __name__ == "__main__":
    for seed in range(200 * int(sys.argv[1])):
        first_touches(seed)
    for seed in range(int(sys.argv[1])):
        for regions in (2, 5, 66):
            storm(seed, regions, ["write", "write", "tick"])
            storm(seed, regions, ["write", "set", "set", "tick"])
            storm(seed, regions, ["write", "set", "tick", "read"])
