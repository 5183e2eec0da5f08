"""Where the Balancer's parts meet: slots and detector state, shared tables and takeovers, clocks that jump, readers beside writers."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Clock

import lbcore
from lbcore import Region

NAMES = ("westeurope", "eastus", "southeastasia", "brazilsouth", "westus2", "japaneast", "uksouth")
MANY = tuple(lbcore.region.catalogue())


def regions(*names: str, **changed: object) -> list[Region]:
    return [Region(name, **changed) for name in names]  # type: ignore[arg-type]


def balancer(clock: Clock, *names: str, **options: object) -> lbcore.Balancer:
    return lbcore.Balancer(regions(*(names or NAMES)), clock=clock, **options)  # type: ignore[arg-type]


def map_of(groups: int) -> lbcore.PrefixMap:
    return lbcore.PrefixMap.from_prefixes([(f"10.{n}.0.0/16", n + 1) for n in range(groups)])


def fail_probes(lb: lbcore.Balancer, *names: str, times: int = 3) -> None:
    for _ in range(times):
        for name in names:
            lb.report(name, False, source="probe", cause="timeout")


def eject(lb: lbcore.Balancer, name: str) -> None:
    for n in range(12):
        lb.report(name, False, f"10.{n % 6}.0.1", cause="refused")


def advance(lb: lbcore.Balancer, seconds: float, step: float = 0.1) -> None:
    for _ in range(round(seconds / step)):
        lb.clock.advance(step)  # type: ignore[attr-defined]
        lb.tick()


# ---- slots, verdicts and exclusions when regions or tables change


def test_a_down_region_stays_down_when_others_are_removed_and_the_table_grows(clock: Clock) -> None:
    lb = balancer(clock)
    fail_probes(lb, "uksouth")
    lb.set_regions(regions("uksouth", *(name for name in MANY[:70] if name != "uksouth")))
    assert lb.status("uksouth") == "down"
    lb.report(lb.regions[1], True, source="probe")
    lb.tick()
    assert lb.status("uksouth") == "down"
    for _ in range(2):
        lb.report("uksouth", True, source="probe")
    assert lb.status("uksouth") == "up"


def test_a_broken_path_stays_excluded_when_the_table_grows(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope", locate=map_of(8))
    for _ in range(10):
        lb.report("eastus", False, "10.3.0.1", cause="refused")
    assert lb.table.excluded(4, lb.slot("eastus"))
    lb.set_regions(regions("eastus", "westeurope", *(name for name in MANY[:30] if name not in ("eastus", "westeurope"))))
    assert lb.table.excluded(4, lb.slot("eastus"))
    advance(lb, 20)
    assert not lb.table.excluded(4, lb.slot("eastus"))


def test_a_smaller_database_does_not_trip_over_the_groups_of_the_last_one(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope", locate=map_of(200))
    for _ in range(10):
        lb.report("eastus", False, "10.150.0.1", cause="refused")
    lb.set_locate(map_of(3))
    advance(lb, 1)
    lb.report("westeurope", True, source="probe")
    advance(lb, 30)
    assert lb.status("eastus") == "up"


def test_what_was_excluded_by_the_old_databases_numbers_excludes_nobody_of_the_new_one(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope", locate=lbcore.PrefixMap.from_prefixes([("10.0.0.0/16", 1), ("10.1.0.0/16", 2)]))
    for _ in range(10):
        lb.report("eastus", False, "10.1.0.1", cause="refused")
    other = lbcore.PrefixMap.from_ranges(
        np.array([0, 10 << 24], np.uint32), np.array([0, 1], np.uint32), np.array([0], np.uint64), np.array([0], np.uint32),
        ("", "2"), np.array([np.nan, np.nan], np.float32), np.array([np.nan, np.nan], np.float32),
    )  # the network of key "2" is group 1 here
    lb.set_locate(other)
    lb.tick()
    assert [lb.table.excluded(group, lb.slot("eastus")) for group in range(2)] == [False, True]


def test_a_region_that_must_always_serve_is_up_from_then_on(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope")
    fail_probes(lb, "eastus")
    lb.set_regions([Region("eastus", always_serve=True), Region("westeurope")])
    assert lb.status("eastus") == "up"
    lb.set_regions(regions("eastus", "westeurope"))
    assert lb.status("eastus") == "down"


def test_enabled_follows_the_new_list_where_it_changed_and_the_operator_where_it_did_not(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope")
    lb.set_regions([Region("eastus", enabled=False), Region("westeurope")])
    assert lb.status("eastus") == "disabled"
    assert lb.pick("8.8.8.8").name == "westeurope"
    lb.enable("eastus")
    lb.set_regions([Region("eastus", enabled=False), Region("westeurope"), Region("uksouth")])
    assert lb.status("eastus") == "up"
    lb.set_regions([Region("eastus", enabled=False), *regions("westeurope", *(n for n in MANY[:30] if n not in ("eastus", "westeurope")))])
    assert lb.status("eastus") == "up"


def test_a_disabled_region_does_not_use_up_the_ejections(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope", "uksouth", locate=map_of(8))
    eject(lb, "eastus")
    lb.disable("eastus")
    eject(lb, "westeurope")
    assert lb.status("westeurope") == "ejected"
    lb.enable("eastus")
    assert [lb.status(name) for name in ("eastus", "westeurope")].count("ejected") == 1


def test_replacing_every_region_leaves_no_moment_without_one(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope")
    seen: list[str] = []
    layout = type(lb._layout)
    remove, update = layout.remove, layout.update

    def watched(method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            result = method(*args)
            seen.append(lb.pick("8.8.8.8").name)
            return result

        return call

    layout.remove, layout.update = watched(remove), watched(update)  # type: ignore[method-assign, assignment]
    try:
        lb.set_regions(regions("uksouth", "japaneast"))
    finally:
        layout.remove, layout.update = remove, update  # type: ignore[method-assign]
    assert len(seen) == 3
    assert lb.pick("8.8.8.8").name in ("uksouth", "japaneast")


def test_replacing_all_regions_again_and_again_does_not_grow_the_table(clock: Clock) -> None:
    lb = balancer(clock, *MANY[:5])
    for n in range(12):
        lb.set_regions(regions(*MANY[n * 5 : n * 5 + 5]))
        assert {lb.pick(client).name for client in ("8.8.8.8", "81.2.69.160")} <= set(MANY[n * 5 : n * 5 + 5])
    assert lb.table.region_capacity <= 16


# ---- requests under way when a region goes


def test_an_attempt_survives_the_removal_of_its_region(clock: Clock) -> None:
    for error in (None, ConnectionResetError()):
        lb = balancer(clock, "eastus", "westeurope")
        lookups = 0
        slot = lb.slot

        def vanishing(region: object, lb: lbcore.Balancer = lb, slot: Callable[..., int] = slot) -> int:
            nonlocal lookups
            lookups += 1
            if lookups == 1:
                lb.set_regions(regions("uksouth"))
            return slot(region)

        lb.slot = vanishing  # type: ignore[method-assign]
        try:
            with lb.attempt("8.8.8.8") as attempt:
                assert attempt.region.name in ("eastus", "westeurope")
                if error:
                    raise error
        except ConnectionResetError as raised:
            assert raised is error


def test_an_outcome_is_charged_to_the_region_it_names_though_slots_change_meanwhile(clock: Clock) -> None:
    """The lock is held by who replaces the regions; whoever waits for it must not come with a slot found before."""
    lb = balancer(clock, "eastus", "westeurope")
    threads = []
    with lb._lock:
        for call in (lambda: lb.report("eastus", False, source="probe"), lambda: lb.disable("eastus"), lambda: lb.drain("eastus")):
            thread = threading.Thread(target=_swallow, args=(call,))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join(0.2)
        lb.set_regions(regions("westeurope"))
        lb.set_regions(regions("westeurope", "uksouth"))
    for thread in threads:
        thread.join()
    assert lb.status("uksouth") == "up"
    assert lb.guard.verdict(lb.slot("uksouth")) is None


def _swallow(call: Callable[[], object]) -> None:
    try:
        call()
    except lbcore.UnknownRegionError:
        pass


def test_readers_never_see_half_of_a_change() -> None:
    lb = lbcore.Balancer(regions(*NAMES))
    stop, errors = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                lb.pick("8.8.8.8")
                assert lb.rank("8.8.8.8")
                assert lb.explain("8.8.8.8").text()
                lb.stats()
                lb.observe("uksouth", 10.0, "8.8.8.8")
            except lbcore.UnknownRegionError:
                pass
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for count in range(60):
            lb.set_regions(regions(*NAMES[: 3 + count % 5], *MANY[40 : 40 + count % 3]))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert errors == []


# ---- callbacks


def test_every_callback_hears_changes_in_the_order_in_which_they_happened(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope")
    last: dict[str, str] = {}
    lb.on_change(lambda change: change.after == "disabled" and lb.enable(change.region))
    lb.on_change(lambda change: last.__setitem__(change.region, change.after))
    lb.disable("eastus")
    assert lb.status("eastus") == "up"
    assert last == {"eastus": "up"}


def test_a_callback_may_change_regions_and_databases(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope", "uksouth")

    def replace(change: lbcore.Change) -> None:
        lb.set_regions(regions("westeurope", *MANY[50:70]))
        lb.set_locate(map_of(4))
        lb.report("westeurope", True)

    lb.on_change(replace)
    fail_probes(lb, "eastus")
    assert lb.pick("8.8.8.8").name != "eastus"
    lb.tick()


def test_a_callback_hears_nothing_after_its_end(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope")
    heard: list[str] = []
    ends = [lb.on_change(lambda change, word=word: heard.append(word)) for word in ("first", "same", "same")]  # type: ignore[misc]
    lb.disable("eastus")
    assert heard == ["first", "same", "same"]
    for end, left, change in zip(ends, (2, 1, 0), (lb.enable, lb.disable, lb.enable), strict=True):
        heard.clear()
        end()
        end()  # once is enough
        change("eastus")
        assert heard == ["same"] * left


def test_a_callback_registered_twice_ends_once_at_a_time(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope")
    heard: list[lbcore.Change] = []
    end, _ = lb.on_change(heard.append), lb.on_change(heard.append)
    end()
    end()
    lb.disable("eastus")
    assert len(heard) == 1


def test_a_callback_that_ends_itself_keeps_no_other_from_hearing(clock: Clock) -> None:
    lb = balancer(clock, "eastus", "westeurope")
    heard: list[str] = []
    end = lb.on_change(lambda change: (heard.append("once"), end()))
    lb.on_change(lambda change: heard.append("always"))
    lb.disable("eastus")
    lb.enable("eastus")
    assert heard == ["once", "always", "always"]


# ---- time


@pytest.mark.parametrize("start", [0.0, -1e6, 1e9])
def test_any_origin_of_time_will_do(start: float) -> None:
    clock = Clock(start)
    lb = balancer(clock, "eastus", "westeurope")
    before = lb.pick("8.8.8.8")
    for _ in range(3):
        lb.observe("eastus", 10.0, "8.8.8.8")
    fail_probes(lb, before.name)
    assert lb.pick("8.8.8.8") is not before
    for _ in range(2):
        lb.report(before, True, source="probe")
    advance(lb, 35)
    assert lb.pick("8.8.8.8") is before


def test_a_clock_set_back_by_hours_stops_nothing(clock: Clock) -> None:
    clock.now = 1e6
    lb = balancer(clock, "eastus", "westeurope", locate=map_of(40))
    before = lb.table.homes().tolist()
    ticks = lb.stats()["ticks"]
    fail_probes(lb, "eastus")
    eject(lb, "westeurope")
    for _ in range(2):
        lb.report("eastus", True, source="probe")
    lb.tick()
    clock.advance(-7200)
    for _ in range(600):  # whoever only reports keeps it ticking
        clock.advance(0.2)
        lb.observe("eastus", 80.0)
    assert lb.stats()["ticks"] > ticks + 60
    assert [lb.status(name) for name in ("eastus", "westeurope")] == ["up", "up"]
    assert lb.table.homes().tolist() == before


# ---- shared tables


def shared(groups: lbcore.PrefixMap, capacity: int = 8) -> mmap.mmap:
    return mmap.mmap(-1, lbcore.LatencyTable.nbytes_for(groups.groups, capacity))


def as_process(monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
    monkeypatch.setattr(os, "getpid", lambda: pid)


def test_a_new_owner_does_not_judge_the_history_of_counts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = map_of(40)
    block = shared(groups)
    as_process(monkeypatch, 1)
    first = balancer(clock, "eastus", "westeurope", "uksouth", locate=groups, buffer=block)
    as_process(monkeypatch, 2)
    second = balancer(clock, "eastus", "westeurope", "uksouth", locate=groups, buffer=block)
    as_process(monkeypatch, 1)
    for n in range(40):
        first.report("eastus", False, f"10.{n}.0.1", cause="refused")
    first.tick()
    assert first.status("eastus") == "ejected"
    for _ in range(200):
        first.report("eastus", True, "10.1.0.1")
        advance(first, 0.3, 0.3)
    assert first.status("eastus") == "up"
    as_process(monkeypatch, 2)
    advance(second, 1)
    third = balancer(clock, "eastus", "westeurope", "uksouth", locate=groups, buffer=block)  # a worker started afresh
    clock.advance(10)
    as_process(monkeypatch, 3)
    third.tick()
    third.tick()
    assert third.table.owner == 3
    assert third.status("eastus") == "up"
    clock.advance(10)
    as_process(monkeypatch, 2)
    advance(second, 1)
    assert second.table.owner == 2
    assert second.status("eastus") == "up"


def test_a_new_owner_keeps_what_the_last_one_decided_until_it_knows_better(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = map_of(4)
    block = shared(groups)
    as_process(monkeypatch, 1)
    first = balancer(clock, "eastus", "westeurope", "uksouth", locate=groups, buffer=block)
    fail_probes(first, "eastus")
    assert first.status("eastus") == "down"
    as_process(monkeypatch, 2)
    second = balancer(clock, "eastus", "westeurope", "uksouth", locate=groups, buffer=block)
    clock.advance(10)
    second.tick()
    second.report("westeurope", True, source="probe")
    second.tick()
    assert second.table.owner == 2
    assert second.status("eastus") == "down"
    fail_probes(second, "eastus", times=3)
    assert second.status("eastus") == "down"
    for _ in range(2):
        second.report("eastus", True, source="probe")
    assert second.status("eastus") == "up"


def test_what_the_last_owner_decided_ends_when_the_new_one_hears_nothing(clock: Clock) -> None:
    groups = map_of(4)
    block = shared(groups)
    first = balancer(clock, "eastus", "westeurope", locate=groups, buffer=block)
    fail_probes(first, "eastus")
    again = balancer(clock, "eastus", "westeurope", locate=groups, buffer=block)  # restarted under the same pid, as containers are
    advance(again, 50, 1)
    assert again.status("eastus") == "down"
    advance(again, 15, 1)
    assert again.status("eastus") == "up"


def test_the_path_of_one_group_in_a_shared_table_excludes_no_other_group(clock: Clock) -> None:
    groups = map_of(40)
    lb = balancer(clock, "eastus", "westeurope", "uksouth", locate=groups, buffer=shared(groups))
    for _ in range(40):
        lb.report("eastus", False, "10.20.0.1", cause="refused")
    lb.tick()
    excluded = [group for group in range(41) if lb.table.excluded(group, 0)]
    assert set(excluded) <= {21}


def test_a_late_worker_with_other_regions_is_refused_and_changes_nothing(clock: Clock) -> None:
    groups = map_of(4)
    block = shared(groups)
    lb = balancer(clock, "eastus", "westeurope", "uksouth", locate=groups, buffer=block)
    before = [lb.table.estimates(group).tolist() for group in range(5)]
    for names in (("eastus", "westeurope"), ("eastus", "westeurope", "uksouth", "japaneast")):
        with pytest.raises(ValueError, match="regions"):
            balancer(clock, *names, locate=groups, buffer=block)
    assert [lb.table.estimates(group).tolist() for group in range(5)] == before
    assert [lb.status(region) for region in lb.regions] == ["up"] * 3


def test_a_late_worker_takes_over_what_the_operator_wants(clock: Clock) -> None:
    groups = map_of(4)
    block = shared(groups)
    given = [Region("eastus"), Region("westeurope", enabled=False), Region("uksouth")]
    lb = lbcore.Balancer(given, groups, clock=clock, buffer=block)
    lb.disable("eastus")
    lb.enable("westeurope")
    late = lbcore.Balancer(given, groups, clock=clock, buffer=block)
    for each in (lb, late):
        assert [each.status(region) for region in each.regions] == ["disabled", "up", "up"]
    late.disable("uksouth")
    assert lb.status("uksouth") == "disabled"


# ---- forks, databases, files


def test_a_database_that_cannot_replace_the_old_one_leaves_it_in_use(clock: Clock) -> None:
    groups = map_of(4)
    lb = balancer(clock, "eastus", "westeurope", locate=groups, buffer=shared(groups))
    with pytest.raises(ValueError, match="shared"):
        lb.set_locate(None)
    assert lb.reload_locate() is False
    assert lb.map is groups


def test_state_of_another_estimator_is_refused_by_name(clock: Clock, tmp_path: Path) -> None:
    lb = balancer(clock, "eastus", locate=map_of(2), estimator="ewma")
    lb.observe("eastus", 5.0, "10.0.0.1")
    lb.save(tmp_path / "state")
    other = balancer(clock, "eastus", locate=map_of(2))
    with pytest.raises(ValueError, match="state.*estimator"):
        other.load(tmp_path / "state")
    assert other.table.estimates(1).tolist() == [80.0]


def test_groups_come_home_although_the_table_was_replaced_during_the_outage(clock: Clock) -> None:
    lb = balancer(clock)
    before = lb.table.homes().tolist()
    fail_probes(lb, "westeurope")
    advance(lb, 1)
    lb.set_regions([*lb.regions, *(Region(name, enabled=False) for name in MANY[:40] if name not in NAMES)])
    for _ in range(2):
        lb.report("westeurope", True, source="probe")
    advance(lb, 45)
    assert lb.table.homes().tolist() == before


def test_an_unsynced_region_stays_out_when_the_table_grows(clock: Clock) -> None:
    lb = balancer(clock)
    lb.table.set_synced(1, False)
    lb.set_regions([*lb.regions, *(region for region in regions(*MANY[:40]) if region.name not in NAMES)])
    assert not lb.table.eligible()[1]


def test_who_follows_is_told_once_of_each_step_however_many_regions_go() -> None:
    regions = [Region(f"r{i}", i, i) for i in range(20)]
    lb = lbcore.Balancer(regions)
    told: list[list[Region]] = []
    end = lb.on_publish(lambda: told.append([region for region in lb.objects if region]))
    lb.set_regions(regions[:2])
    assert told == [regions, regions[:2]]
    end()
    lb.set_regions(regions[:1])
    assert len(told) == 2
