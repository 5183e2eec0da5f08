"""The Balancer's promises on a virtual clock: closest, next closest, fail open, home again; nothing lost, nothing raised."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import Clock
from hypothesis import given
from hypothesis import strategies as st

import lbcore
from lbcore.detect import Consecutive, Verdict

NAMES = ("westeurope", "eastus", "southeastasia", "brazilsouth", "westus2", "japaneast", "uksouth")
CLIENTS = ("81.2.69.160", "8.8.8.8", "1.1.1.1", "200.160.2.3", "202.12.27.33", "2001:67c:2e8:22::c100:68b", "10.0.0.1", None)


def balancer(clock: Clock, names: tuple[str, ...] = NAMES, **options: object) -> lbcore.Balancer:
    return lbcore.Balancer([lbcore.Region(name) for name in names], clock=clock, **options)  # type: ignore[arg-type]


def probe(lb: lbcore.Balancer, down: tuple[str, ...] = (), times: int = 1, interval: float = 5.0) -> None:
    """Probe every region `times` times; those in `down` time out."""
    for _ in range(times):
        lb.clock.advance(interval)  # type: ignore[attr-defined]
        for region in lb.regions:
            ok = region.name not in down
            lb.report(region, ok, cause=None if ok else "timeout", source="probe")
        lb.tick()


def run(lb: lbcore.Balancer, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        lb.clock.advance(0.1)  # type: ignore[attr-defined]
        lb.tick()


def picks(lb: lbcore.Balancer) -> list[str]:
    """The region of every group, by name."""
    every = np.arange(lb.table.groups, dtype=np.uint32)
    return [lb.regions[slot].name if slot != 65535 else "none" for slot in lb.table.pick_many(every).tolist()]


# ---- choosing


def test_a_client_goes_to_the_region_of_lowest_estimate_and_failover_to_the_next_in_rank(clock: Clock) -> None:
    lb = balancer(clock)
    for client in CLIENTS:
        rank = lb.rank(client)
        assert lb.pick(client) is rank[0]
        assert len(rank) == len(NAMES)
        lb.disable(rank[0])
        assert lb.pick(client) is rank[1]
        lb.disable(rank[1])
        assert lb.pick(client) is rank[2]
        lb.enable(rank[0])
        lb.enable(rank[1])
        run(lb, 45)


def test_a_region_down_is_visible_in_the_very_next_pick_of_every_group(clock: Clock) -> None:
    lb = balancer(clock)
    before = picks(lb)
    order = {group: lb.table.rank(group).tolist() for group in range(lb.table.groups)}
    assert "westeurope" in before
    table, slot = lb.table, lb.slot("westeurope")
    table.set_tier(slot, 3, clock())  # the bit alone: no tick in between
    after = picks(lb)
    for group, name in enumerate(after):
        expected = before[group] if before[group] != "westeurope" else lb.regions[order[group][1]].name
        assert name == expected


def test_after_recovery_every_group_is_home_within_the_ramp(clock: Clock) -> None:
    lb = balancer(clock)
    before = picks(lb)
    probe(lb, down=("westeurope",), times=3)
    assert lb.status("westeurope") == "down"
    assert "westeurope" not in picks(lb)
    probe(lb, times=2)
    assert lb.status("westeurope") == "up"
    share = []
    for _ in range(31):
        run(lb, 1)
        share.append(picks(lb).count("westeurope") / before.count("westeurope"))
    assert share == sorted(share)
    assert 0.05 < share[0] < 0.3
    assert picks(lb) == before


def test_all_down_fails_open_and_says_so_and_disabled_regions_stay_out(clock: Clock) -> None:
    lb = balancer(clock, NAMES[:3])
    lb.disable("eastus")
    probe(lb, down=NAMES, times=6)
    assert lb.fail_open
    assert lb.stats()["fail_open"] is True
    assert "eastus" not in picks(lb)
    decision = lb.explain("8.8.8.8")
    assert decision.reason == "fail_open"
    assert "fails open" in decision.text()


def test_all_disabled_raises_no_region(clock: Clock) -> None:
    lb = balancer(clock, NAMES[:2])
    for name in NAMES[:2]:
        lb.disable(name)
    with pytest.raises(lbcore.NoRegionError, match="enable one"):
        lb.pick("8.8.8.8")
    assert lb.rank("8.8.8.8") == []
    assert lb.explain("8.8.8.8").region is None


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_services_of_any_size_survive_the_loss_of_one_region(clock: Clock, count: int) -> None:
    lb = balancer(clock, NAMES[:count])
    probe(lb, down=NAMES[:1], times=4)
    assert lb.status(NAMES[0]) == "down"
    assert set(picks(lb)) <= set(NAMES[1:count] or NAMES[:1])
    assert lb.fail_open is (count == 1)


def test_pick_is_the_compiled_method_and_stays_valid_when_all_behind_it_is_replaced(clock: Clock) -> None:
    lb = balancer(clock, NAMES[:2])
    pick = lb.pick
    assert type(pick).__name__ == "builtin_function_or_method"
    lb.set_regions([lbcore.Region(name) for name in lbcore.region.catalogue()][:60])
    assert pick("81.2.69.160") is lb.rank("81.2.69.160")[0]
    lb.set_locate(lbcore.PrefixMap.from_prefixes([("81.2.69.0/24", 1)]))
    assert pick("81.2.69.160") is lb.rank("81.2.69.160")[0]
    lb.set_regions([lbcore.Region("koreacentral")])
    assert pick("81.2.69.160").name == "koreacentral"


@pytest.mark.parametrize("client", ["", "203.0.113.256", "1.2.3", "::1::", "localhost", b"123", 7, 1.5, "1.2.3.4 "])
def test_what_is_no_address_is_refused_and_changes_nothing(clock: Clock, client: object) -> None:
    lb = balancer(clock)
    for call in (lb.pick, lb.rank, lb.explain, lambda c: lb.observe("eastus", 1.0, c), lambda c: lb.report("eastus", True, c)):
        with pytest.raises((ValueError, TypeError)):
            call(client)
    assert lb.stats()["samples"] == 0


# ---- learning


@pytest.mark.parametrize("ms", [math.nan, math.inf, -math.inf, -1.0])
def test_a_bad_sample_is_refused(clock: Clock, ms: float) -> None:
    lb = balancer(clock)
    before = lb.table.estimates(0).tolist()
    with pytest.raises(ValueError, match="finite milliseconds"):
        lb.observe("eastus", ms)
    assert lb.table.estimates(0).tolist() == before


def test_samples_move_the_home_of_their_group_alone(clock: Clock) -> None:
    lb = balancer(clock)
    group = lb.match("81.2.69.160")[0]
    before = picks(lb)
    for _ in range(120):
        clock.advance(1.0)
        for region in lb.regions:
            lb.observe(region, 5.0 if region.name == "eastus" else 150.0, "81.2.69.160")
    after = picks(lb)
    assert after[group] == "eastus" == lb.pick("81.2.69.160").name
    assert [a for g, a in enumerate(after) if g != group] == [b for g, b in enumerate(before) if g != group]


def test_unknown_regions_causes_and_sources_are_named_with_what_was_expected(clock: Clock) -> None:
    lb = balancer(clock)
    with pytest.raises(lbcore.UnknownRegionError, match="'westeurope'") as error:
        lb.observe("westeurop", 10.0)
    assert error.value.nearest[0] == "westeurope"
    with pytest.raises(ValueError, match="refused, timeout, tls, status, reset"):
        lb.report("eastus", False, cause="bad luck")
    with pytest.raises(ValueError, match="probe, request or external"):
        lb.report("eastus", True, source="rumour")


def test_region_names_are_accepted_in_any_spelling(clock: Clock) -> None:
    lb = balancer(clock)
    lb.observe("West Europe", 10.0)
    assert lb.region("WestEurope") is lb.region("westeurope")


def test_an_attempt_measures_success_and_reports_the_cause_of_failure(clock: Clock) -> None:
    lb = balancer(clock, ("eastus", "westeurope"))
    slot = lb.slot("eastus")
    for _ in range(40):
        with lb.attempt(None) as attempt:
            clock.advance(0.020)
    assert attempt.region.name == "eastus"
    assert lb.table.estimates(0)[slot] == pytest.approx(20, abs=1)
    seen = []
    lb.guard.report = lambda region, ok, **rest: seen.append((ok, rest["cause"]))  # type: ignore[method-assign]
    for error in (ConnectionRefusedError(), TimeoutError(), ConnectionResetError(), KeyError("the caller's own bug")):
        with pytest.raises(type(error)), lb.attempt(None):
            raise error
    assert seen == [(False, "refused"), (False, "timeout"), (False, "reset")]


def test_requests_that_fail_for_many_groups_take_the_region_out_and_one_group_alone_only_its_path(clock: Clock) -> None:
    lb = balancer(clock)
    for _ in range(20):
        clock.advance(0.01)
        lb.report("westeurope", False, "81.2.69.160", cause="refused")
    assert lb.status("westeurope") == "up"
    assert lb.pick("81.2.69.160").name != "westeurope"
    assert "westeurope" in picks(lb)
    for client in CLIENTS[:4] * 3:
        clock.advance(0.01)
        lb.report("westeurope", False, client, cause="refused")
    assert lb.status("westeurope") == "ejected"
    assert "westeurope" not in picks(lb)


def test_requests_that_only_wait_are_evidence_before_any_timeout(clock: Clock) -> None:
    lb = balancer(clock)
    for client in CLIENTS[:4]:
        lb.waiting("westeurope", 3, client)
    assert lb.status("westeurope") == "ejected"
    with pytest.raises(ValueError, match="count"):
        lb.waiting("westeurope", -1)


def test_statistics_never_eject_more_than_a_minority(clock: Clock) -> None:
    lb = balancer(clock)
    for _ in range(30):
        for client in CLIENTS[:5]:
            for name in NAMES:
                clock.advance(0.001)
                lb.report(name, False, client, cause="status")
    run(lb, 6)  # past the freeze of a suspect vantage
    out = [name for name in NAMES if lb.status(name) == "ejected"]
    assert len(out) <= (len(NAMES) - 1) // 2
    assert not lb.fail_open


def test_a_region_that_always_serves_is_never_taken_out(clock: Clock) -> None:
    regions = [lbcore.Region("westeurope", always_serve=True), lbcore.Region("eastus")]
    lb = lbcore.Balancer(regions, clock=clock)
    probe(lb, down=("westeurope",), times=10)
    assert lb.status("westeurope") == "up"


# ---- what goes wrong around it


class Bomb(Consecutive):
    def report(self, *args: object, **rest: object) -> None:
        raise RuntimeError("boom")


def test_a_detector_that_raises_is_logged_and_keeps_its_verdict(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    lb = balancer(clock, detector=Bomb())
    with caplog.at_level(logging.ERROR):
        probe(lb, down=("eastus",), times=5)
    assert "boom" in caplog.text
    assert lb.status("eastus") == "up"
    assert lb.guard.verdict(lb.slot("eastus")) is not Verdict.DOWN


def test_callbacks_hear_every_change_once_outside_the_lock_and_may_raise(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    lb = balancer(clock)
    heard: list[lbcore.Change] = []

    def inquire(change: lbcore.Change) -> None:
        heard.append(change)
        thread = threading.Thread(target=lb.tick)  # would wait for ever if the lock were held
        thread.start()
        thread.join(5)
        assert not thread.is_alive()
        raise RuntimeError("callback bug")

    lb.on_change(inquire)
    probe(lb, down=("eastus",), times=4)
    probe(lb, times=2)
    assert [(c.region, c.before, c.after) for c in heard] == [("eastus", "up", "down"), ("eastus", "down", "up")]
    assert heard[0].cause == "probe timeout x3"
    assert "callback bug" in caplog.text


def test_a_clock_that_runs_backwards_harms_nothing(clock: Clock) -> None:
    lb = balancer(clock)
    generator = random.Random(5)
    for _ in range(500):
        clock.advance(generator.uniform(-50, 50))
        region = generator.choice(NAMES)
        lb.observe(region, generator.uniform(1, 300), generator.choice(CLIENTS))
        lb.report(region, generator.random() < 0.7, generator.choice(CLIENTS), cause="timeout")
        lb.tick()
    for group in range(lb.table.groups):
        assert np.isfinite(lb.table.estimates(group)).all()
    assert lb.pick("8.8.8.8") is lb.rank("8.8.8.8")[0]


def test_the_same_events_give_the_same_decisions() -> None:
    def story(seed: int) -> list[object]:
        clock, generator = Clock(), random.Random(seed)
        lb = balancer(clock)
        told: list[object] = []
        lb.on_change(told.append)
        for _ in range(400):
            clock.advance(generator.expovariate(10))
            region, client = generator.choice(NAMES), generator.choice(CLIENTS)
            lb.observe(region, generator.uniform(1, 300), client)
            lb.report(region, generator.random() < 0.5, client, cause="reset")
            told.append(lb.pick(client).name)
        return told

    assert story(1) == story(1)
    assert story(1) != story(2)


@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from(NAMES), st.sampled_from(CLIENTS), st.floats(0, 500)), max_size=40))
def test_every_decision_replays_from_its_json(steps: list[tuple[int, str, str | None, float]]) -> None:
    clock = Clock()
    lb = balancer(clock)
    for action, name, client, value in steps:
        clock.advance(value / 10)
        match action:
            case 0 | 1:
                lb.observe(name, value, client)
            case 2 | 3:
                lb.report(name, action == 2, client, cause="timeout")
            case 4 | 5:
                lb.report(name, action == 4, source="probe", cause="timeout")
            case 6:
                lb.disable(name)
            case 7:
                lb.enable(name)
            case 8:
                lb.drain(name, value > 250)
        decision = lb.explain(client)
        picked = lb.rank(client)[0].name if lb.rank(client) else None
        assert decision.region == picked == lbcore.Decision.replay(json.loads(json.dumps(decision.as_dict())))
        assert picked is None or lb.pick(client).name == picked
        assert decision.text()


# ---- regions come and go


def test_regions_come_and_go_while_what_stays_keeps_its_health_and_samples(clock: Clock) -> None:
    lb = balancer(clock, NAMES[:4])
    probe(lb, down=("eastus",), times=4)
    lb.observe("westeurope", 1.5, "8.8.8.8")
    lb.set_regions([lbcore.Region(name) for name in ("uksouth", *NAMES[:3])])
    assert lb.status("eastus") == "down"
    group = lb.match("8.8.8.8")[0]
    assert lb.table.estimates(group)[lb.slot("westeurope")] < 100
    with pytest.raises(lbcore.UnknownRegionError):
        lb.status("brazilsouth")
    assert set(picks_by_name(lb)) <= {region.name for region in lb.regions}
    many = [lbcore.Region(name) for name in list(lbcore.region.catalogue())[:70]]
    lb.set_regions([*lb.regions, *(region for region in many if region.name not in NAMES)])
    assert lb.status("eastus") == "down"
    assert lb.table.estimates(group)[lb.slot("westeurope")] < 100


def picks_by_name(lb: lbcore.Balancer) -> list[str]:
    slots = {lb.slot(region): region.name for region in lb.regions}
    return [slots[slot] for slot in lb.table.pick_many(np.arange(lb.table.groups, dtype=np.uint32)).tolist()]


@pytest.mark.parametrize("names", [(), ("eastus", "East US"), ("eastus", "eastus")])
def test_no_regions_or_regions_twice_are_refused_and_nothing_changes(clock: Clock, names: tuple[str, ...]) -> None:
    regions = [lbcore.Region(name) for name in names]
    with pytest.raises(ValueError, match="region"):
        lbcore.Balancer(regions, clock=clock)
    lb = balancer(clock)
    with pytest.raises(ValueError, match="region"):
        lb.set_regions(regions)
    assert tuple(region.name for region in lb.regions) == NAMES


# ---- memory


def test_what_was_learned_survives_a_restart_with_other_regions_and_another_database(clock: Clock, tmp_path: Path) -> None:
    lb = balancer(clock, locate=lbcore.PrefixMap.from_prefixes([("8.8.8.0/24", 1), ("1.1.1.0/24", 2)]))
    for _ in range(30):
        lb.observe("japaneast", 1.0, "8.8.8.8")
    lb.save(tmp_path / "state")
    other = balancer(Clock(5.0), ("uksouth", "japaneast"), locate=lbcore.PrefixMap.from_prefixes([("8.8.8.0/24", 1)]))
    other.load(tmp_path / "state")
    assert other.table.estimates(1)[1] == pytest.approx(1.0, abs=1)
    assert other.table.estimates(1)[0] == 80.0


@given(st.floats(0, 1, exclude_max=True), st.booleans())
def test_a_damaged_state_file_is_refused_by_name_and_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, where: float, truncated: bool
) -> None:
    lb = balancer(Clock())
    lb.observe("japaneast", 1.0, "8.8.8.8")
    path = tmp_path_factory.mktemp("state") / "state"
    lb.save(path)
    good = path.read_bytes()
    at = int(where * len(good))
    path.write_bytes(good[:at] if truncated else good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
    other = balancer(Clock())
    before = other.table.estimates(lb.match("8.8.8.8")[0]).tolist()
    with pytest.raises(ValueError, match="state"):
        other.load(path)
    assert other.table.estimates(lb.match("8.8.8.8")[0]).tolist() == before


@pytest.mark.slow
def test_kill_9_in_the_middle_of_a_save_leaves_a_file_that_loads(tmp_path: Path) -> None:
    path = tmp_path / "state"
    code = f"""
        import lbcore
        lb = lbcore.Balancer([lbcore.Region(n) for n in {NAMES}])
        print("ready", flush=True)
        while True:
            lb.observe("eastus", 5.0, "8.8.8.8")
            lb.save({str(path)!r})
    """
    generator = random.Random(9)
    for _ in range(12):
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        while not path.exists():
            assert child.poll() is None
        try:
            child.wait(generator.uniform(0, 0.05))
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        balancer(Clock()).load(path)


# ---- threads and processes


def test_threads_pick_observe_report_and_replace_at_once() -> None:
    lb = lbcore.Balancer([lbcore.Region(name) for name in NAMES])
    stop, errors = threading.Event(), []

    def work(seed: int) -> None:
        generator = random.Random(seed)
        try:
            while not stop.is_set():
                name, client = generator.choice(NAMES[:4]), generator.choice(CLIENTS)
                lb.pick(client)
                lb.observe(name, generator.uniform(1, 300), client)
                lb.report(name, generator.random() < 0.9, client, cause="reset")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for count in (7, 4, 5, 6, 4, 7) * 3:
        lb.set_regions([lbcore.Region(name) for name in NAMES[:count]])
        lb.set_locate(lbcore.PrefixMap.from_prefixes([("8.8.8.0/24", 1 + count % 3)]))
        lb.tick()
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_holds_the_lock_leaves_a_child_that_works(clock: Clock) -> None:
    lb = balancer(clock)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lb._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        lb.report("eastus", False, cause="refused")
        lb.tick()
        os._exit(0 if lb.pick("8.8.8.8") else 1)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_prefork_workers_share_one_table_and_the_owner_judges_what_they_saw(clock: Clock) -> None:
    from multiprocessing import shared_memory

    groups = lbcore.PrefixMap.from_prefixes([(f"10.{n}.0.0/16", n + 1) for n in range(40)])
    memory = shared_memory.SharedMemory(create=True, size=lbcore.LatencyTable.nbytes_for(groups.groups, 8))
    lb = balancer(clock, NAMES[:3], locate=groups, buffer=memory.buf)
    child = os.fork()
    if child == 0:
        for n in range(40):
            lb.report("eastus", False, f"10.{n}.0.1", cause="refused")
            lb.observe("westeurope", 3.0, f"10.{n}.0.1")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    lb.tick()
    assert lb.status("eastus") == "ejected"
    assert lb.table.estimates(7)[lb.slot("westeurope")] < 80
    del lb
    memory.close()
    memory.unlink()
