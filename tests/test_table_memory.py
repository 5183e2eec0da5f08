"""LatencyTable: snapshots that survive a restart, tables that share a block, counters."""

from __future__ import annotations

import gc
from multiprocessing import shared_memory
from typing import Any

import numpy as np
import pytest

from lbcore._fast import LatencyTable


def experienced(groups: int = 6, regions: int = 4, now: float = 1000.0, **options: Any) -> LatencyTable:
    """Give a table with priors everywhere, samples in about half of the cells, and homes."""
    rng = np.random.default_rng(groups * regions)
    table = LatencyTable(groups, regions, **options)
    table.seed_many(*priors(groups, regions))
    for _ in range(groups * regions):
        table.observe(int(rng.integers(groups)), int(rng.integers(regions)), float(rng.uniform(5, 90)), now - float(rng.uniform(0, 500)))
    table.tick(now)
    return table


def priors(groups: int, regions: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(groups + regions)
    return rng.uniform(5, 90, (groups, regions)).astype(np.float32), np.full((groups, regions), 20, np.float32)


def beliefs(table: LatencyTable) -> list[tuple[bytes, bytes, int]]:
    return [(table.estimates(g).tobytes(), table.deviations(g).tobytes(), table.home(g)) for g in range(table.groups)]


# -- snapshots ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1000.0, 3.0, 5e6, 67108864.0 * 3])
def test_a_restored_table_believes_and_picks_what_the_saved_one_did(start: float) -> None:
    """The clock of the new process starts anywhere; time is counted from the snapshot."""
    table, fresh = experienced(), LatencyTable(6, 4)
    fresh.seed_many(*priors(6, 4))
    fresh.restore(table.snapshot(1000.0), start, 0.0)
    for g in range(6):
        for r in range(4):
            table.observe(g, r, 30.0, 1000.0)
            fresh.observe(g, r, 30.0, start)
    assert beliefs(fresh) == beliefs(table)
    assert [fresh.pick(g) for g in range(6)] == [table.pick(g) for g in range(6)]


def test_the_time_between_saving_and_restoring_ages_what_was_learned() -> None:
    table, away = experienced(), LatencyTable(6, 4)
    away.seed_many(*priors(6, 4))
    away.restore(table.snapshot(1000.0), 50.0, 1800.0)
    for g in range(6):
        for r in range(4):
            table.observe(g, r, 30.0, 2800.0)
            away.observe(g, r, 30.0, 50.0)
    for g in range(6):
        assert table.estimates(g) == pytest.approx(away.estimates(g), rel=1e-4)
        assert table.deviations(g) == pytest.approx(away.deviations(g), rel=1e-4)


def test_what_was_never_measured_keeps_the_new_prior() -> None:
    old, new = LatencyTable(1, 2), LatencyTable(1, 2)
    old.observe(0, 0, 20.0, 0.0)
    new.seed(0, 0, 300.0, 5.0)
    new.seed(0, 1, 44.0, 5.0)
    new.restore(old.snapshot(0.0), 0.0, 0.0)
    assert new.estimates(0)[0] == old.estimates(0)[0]
    assert new.estimates(0)[1] == 44.0
    assert new.deviations(0)[0] == 5.0, "no more uncertain than the prior"
    for now in range(0, 7 * 21600, 60):
        new.tick(float(now))
    assert new.estimates(0)[0] == pytest.approx(300.0, rel=0.01), "drifts to the prior of this table, not of the saved one"


def test_groups_and_regions_are_restored_by_map() -> None:
    table, other = experienced(3, 3), LatencyTable(5, 4)
    groups, regions = np.array([4, 0xFFFFFFFF, 1], np.uint32), np.array([2, 65535, 0], np.uint16)
    other.restore(table.snapshot(1000.0), 7.0, 0.0, groups, regions)
    for old_group, new_group in ((0, 4), (2, 1)):
        for old_region, new_region in ((0, 2), (2, 0)):
            expected = table.estimates(old_group)[old_region]
            if measured(table, old_group, old_region):
                assert other.estimates(new_group)[new_region] == pytest.approx(expected, abs=2.0)
    untouched = [other.estimates(g).tolist() for g in (0, 2, 3)] + [other.estimates(g)[[1, 3]].tolist() for g in (1, 4)]
    assert all(value == 80.0 for row in untouched for value in row)


def measured(table: LatencyTable, group: int, region: int) -> bool:
    return bool(table.estimates(group)[region] != priors(table.groups, table.regions)[0][group, region])


@pytest.mark.parametrize("groups, regions", [([5, 0, 1], [0, 1, 2]), ([0, 1, 2], [9, 0, 1]), ([0, 1], [0, 1, 2]), ([0, 1, 2], [0])])
def test_a_map_that_leads_outside_is_refused(groups: list[int], regions: list[int]) -> None:
    data, other = experienced(3, 3).snapshot(1000.0), LatencyTable(3, 3)
    before = beliefs(other)
    with pytest.raises((ValueError, IndexError)):
        other.restore(data, 0.0, 0.0, np.array(groups, np.uint32), np.array(regions, np.uint16))
    assert beliefs(other) == before


def test_any_byte_changed_or_missing_is_a_value_error_that_changes_nothing() -> None:
    data, other = experienced().snapshot(1000.0), LatencyTable(6, 4)
    before = beliefs(other)
    broken = [data[:n] for n in (0, 1, 7, 8, 16, 31, 32, len(data) // 2, len(data) - 1)]
    broken += [data + b"\0", b"\0" * len(data), b"\xff" * len(data)]
    broken += [data[:n] + bytes([data[n] ^ bit]) + data[n + 1 :] for n in range(0, len(data), 1 + len(data) // 300) for bit in (1, 128)]
    for wrong in broken:
        with pytest.raises(ValueError):
            other.restore(wrong, 0.0, 0.0)
    assert beliefs(other) == before
    other.restore(data, 0.0, 0.0)
    assert beliefs(other) != before


def test_a_snapshot_of_another_shape_needs_maps() -> None:
    data = experienced().snapshot(1000.0)
    for groups, regions in ((5, 4), (7, 4), (6, 3), (6, 5)):
        with pytest.raises(ValueError):
            LatencyTable(groups, regions).restore(data, 0.0, 0.0)


def test_a_negative_age_is_refused() -> None:
    with pytest.raises(ValueError):
        LatencyTable(6, 4).restore(experienced().snapshot(1000.0), 0.0, -1.0)


def test_a_restored_home_keeps_its_hold_on_the_group() -> None:
    old, new = LatencyTable(1, 2), LatencyTable(1, 2)
    for table in (old, new):
        table.seed_many(np.array([[20, 40]], np.float32), np.ones((1, 2), np.float32))
    old.tick(0.0)
    for now in range(60):
        old.observe(0, 0, 20.0, float(now))
        old.observe(0, 1, 18.5, float(now))
    new.restore(old.snapshot(60.0), 5.0, 0.0)
    assert new.pick(0) == new.home(0) == 0
    new.tick(5.0)
    new.tick(30.0)
    assert new.home(0) == 0


# -- one block, several tables -----------------------------------------------------------------------------------


def test_two_tables_on_one_block_see_each_others_samples_regions_and_homes() -> None:
    block = bytearray(LatencyTable.nbytes_for(4, 6))
    one = LatencyTable(4, 3, region_capacity=6, buffer=block)
    two = LatencyTable(4, 3, region_capacity=6, buffer=block)
    one.observe(2, 1, 10.0, 0.0)
    assert beliefs(one) == beliefs(two)
    assert two.tick(0.0) == 0
    assert [one.home(g) for g in range(4)] == [0, 0, 1, 0]
    two.set_tier(1, 3, 1.0)
    assert one.pick(2) == 0
    region = two.add_region()
    one.seed(3, region, 5.0, 1.0)
    assert (two.regions, two.pick(3), one.eligible().tolist()) == (4, 0, [True, False, True, True])
    two.tick(2.0)
    two.tick(12.0)
    assert one.home(3) == region
    one.count(0, True)
    two.count(0, True)
    assert one.counts().tolist() == two.counts().tolist()


def test_a_block_keeps_what_was_learned_when_every_table_is_gone() -> None:
    block = bytearray(LatencyTable.nbytes_for(2, 2))
    LatencyTable(2, 2, region_capacity=2, buffer=block).observe(1, 1, 10.0, 0.0)
    gc.collect()
    assert LatencyTable(2, 2, region_capacity=2, buffer=block).pick(1) == 1


def test_a_table_keeps_its_block_alive() -> None:
    table = LatencyTable(50, 4, region_capacity=4, buffer=bytearray(LatencyTable.nbytes_for(50, 4)))
    gc.collect()
    junk = [bytearray(LatencyTable.nbytes_for(50, 4)) for _ in range(20)]
    table.tick(0.0)
    assert [table.home(g) for g in range(50)] == [0] * 50
    assert not any(map(any, junk))


def test_a_table_lost_in_a_reference_cycle_lets_go_of_its_block() -> None:
    view = memoryview(bytearray(LatencyTable.nbytes_for(4, 2)))
    knot: list[object] = [LatencyTable(4, 2, region_capacity=2, buffer=view)]
    knot.append(knot)
    del knot
    gc.collect()
    view.release()


@pytest.mark.parametrize("shape", [(5, 3, 6), (3, 3, 6), (4, 3, 5)])
def test_a_block_of_another_shape_is_refused(shape: tuple[int, int, int]) -> None:
    block = bytearray(LatencyTable.nbytes_for(8, 8))
    LatencyTable(4, 3, region_capacity=6, buffer=block)
    with pytest.raises(ValueError):
        LatencyTable(shape[0], shape[1], region_capacity=shape[2], buffer=block)


def test_a_block_that_is_too_small_read_only_or_something_else_is_refused() -> None:
    size = LatencyTable.nbytes_for(4, 6)
    noise = bytearray(np.random.default_rng(1).integers(1, 256, size, dtype=np.uint8).tobytes())
    for block in (bytearray(size - 1), bytearray(0), bytes(size), noise, "text", 5):
        with pytest.raises((ValueError, TypeError, BufferError)):
            LatencyTable(4, 3, region_capacity=6, buffer=block)


def test_a_table_in_shared_memory_lets_go_of_it() -> None:
    block = shared_memory.SharedMemory(create=True, size=LatencyTable.nbytes_for(4, 4))
    try:
        table = LatencyTable(4, 2, region_capacity=4, buffer=block.buf)
        table.observe(0, 1, 5.0, 0.0)
        assert table.pick(0) == 1
        del table
        gc.collect()
    finally:
        block.close()
        block.unlink()


def test_outcomes_are_counted_by_region_and_kind() -> None:
    table = LatencyTable(1, 3)
    for region, ok in ((0, True), (0, True), (2, False), (2, True)):
        table.count(region, ok)
    counts = table.counts()
    assert counts.dtype == np.uint64
    assert counts.reshape(3, -1, 2).sum(axis=1).tolist() == [[0, 2], [0, 0], [1, 1]], "failures, successes"
