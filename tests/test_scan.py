"""Every scan (scalar, AVX2, AVX-512, as far as this machine has them) finds the lowest score, ties to the lowest index."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lbcore import LatencyTable
from lbcore._table import limit_scan


@pytest.fixture(params=[0, 1, 2], ids=["scalar", "avx2", "avx512"])
def scan_level(request: pytest.FixtureRequest) -> Iterator[None]:
    limit_scan(request.param)
    yield
    limit_scan(2)


@pytest.mark.usefixtures("scan_level")
@pytest.mark.parametrize("regions", [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 200, 500, 1030])
def test_the_lowest_eligible_score_wins_at_every_width(regions: int) -> None:
    rng = np.random.default_rng(regions)
    groups = 40
    ms = rng.integers(1, 12, (groups, regions)).astype(np.float32)  # many ties
    table = LatencyTable(groups, regions, region_capacity=regions)
    table.seed_many(ms, np.ones_like(ms))
    for down in (0.0, 0.3, 0.9):
        up = rng.random(regions) >= down
        for region in range(regions):
            table.set_enabled(region, bool(up[region]))
        expected = np.where(up, ms, np.inf).argmin(1) if up.any() else np.full(groups, -1)
        assert [table.pick(group) for group in range(groups)] == expected.tolist()


@pytest.mark.usefixtures("scan_level")
def test_excluded_paths_come_after_all_others_at_every_width() -> None:
    for regions in (3, 70):
        table = LatencyTable(1, regions, region_capacity=regions)
        ms = np.arange(1, regions + 1, dtype=np.float32)[np.newaxis]
        table.seed_many(ms, ms)
        for region in range(regions - 1):
            table.exclude(0, region, True)
            assert table.pick(0) == region + 1
        table.exclude(0, regions - 1, True)
        assert table.pick(0) == 0
