"""LatencyTable and Picker under threads: no data race, no impossible answer, and no sample that the homes never hear of.

The C threads live in `race/hammer.pyx`, which is built with the core in a copy of the tree. What Python's own threads can
do (calls without the GIL against a ticking main thread) runs with every test run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_sanitizers import build, copy_of_tree, runtime

from lbcore._fast import LatencyTable

RACE = Path(__file__).parent / "race"


# -- Python threads ----------------------------------------------------------------------------------------------


def feed(table: LatencyTable, seed: int, now: float, batches: int) -> None:
    """Send batches of samples that swap which regions are good, so that homes must move all the time."""
    rng = np.random.default_rng(seed)
    for _ in range(batches):
        groups = rng.integers(0, table.groups, 2000).astype(np.uint32)
        regions = rng.integers(0, table.regions, 2000).astype(np.uint16)
        ms = (20 + 60 * ((groups + regions + rng.integers(0, 2)) % 2) + rng.uniform(0, 5, 2000)).astype(np.float32)
        table.observe_many(groups, regions, ms, now)


def left_behind(table: LatencyTable) -> int:
    """Give how many groups have a home that hysteresis would not keep."""
    count = 0
    for g in range(table.groups):
        ms, sd, home = table.estimates(g), table.deviations(g), table.home(g)
        best = int(ms.argmin())
        allowed = max(3.0, 0.05 * ms[home], np.hypot(sd[home], sd[best]))
        count += ms[home] - ms[best] > allowed * 1.0001
    return count


def test_samples_that_arrive_during_a_tick_reach_the_homes() -> None:
    """Ten seconds after a burst nearly every home follows belief, a minute later (all were aged) every one does.

    "Nearly": a sample that meets the evaluation of its own group may go unnoticed until the group is aged.
    """
    table, now, late = LatencyTable(500, 7), 5.0, 0
    for burst in range(20):
        feeders = [threading.Thread(target=feed, args=(table, 2 * burst + n, now, 6)) for n in range(2)]
        for thread in feeders:
            thread.start()
        while any(thread.is_alive() for thread in feeders):
            table.tick(now)
        for thread in feeders:
            thread.join()
        table.tick(now)
        table.tick(now + 10.5)
        late += left_behind(table)
        table.tick(now + 61.0)
        table.tick(now + 72.0)
        assert left_behind(table) == 0, burst
        now += 73.0
    assert late <= 20 * 500 / 1000


def test_bulk_picks_agree_with_some_moment_while_regions_go_down_and_up() -> None:
    """Region 0 is always up and region 1 better but flapping: a pick is one of the two, never another, never none."""
    table = LatencyTable(1000, 5)
    table.seed_many(np.tile(np.array([20, 10, 30, 40, 50], np.float32), (1000, 1)), np.ones((1000, 5), np.float32))
    table.tick(0.0)
    seen = set[int]()

    def read() -> None:
        groups, out = np.arange(1000, dtype=np.uint32), np.empty(1000, np.uint16)
        for _ in range(500):
            table.pick_many(groups, out)
            seen.update(np.unique(out).tolist())

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    n = 0
    while any(thread.is_alive() for thread in readers):
        n += 1
        table.set_tier(1, 3 * (n % 2), float(n))
        if n % 3 == 0:
            table.tick(float(n))
    for thread in readers:
        thread.join()
    assert seen <= {0, 1}
    assert n > 10


# -- C threads ---------------------------------------------------------------------------------------------------


def hammered_tree(folder: Path, **switches: str) -> Path:
    folder.mkdir(exist_ok=True)
    copy_of_tree(folder)
    shutil.copy(RACE / "hammer.pyx", folder / "lbcore" / "_hammer.pyx")
    build(folder, **switches)
    return folder


def run(folder: Path, *args: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"} | env
    return subprocess.run([*prefix, sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def instrumented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give one build for all modules that use it."""
    folder = tmp_path_factory.getbasetemp() / "thread"
    return folder if folder.exists() else hammered_tree(folder, LBCORE_SANITIZE="thread", CC="gcc")


@pytest.fixture
def watched(instrumented: Path, program: Callable[[str], str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script under ThreadSanitizer: 66 = it found a race. `setarch -R`: its shadow memory needs fixed addresses."""
    preload, setarch = runtime(program("gcc"), "libtsan.so"), program("setarch")
    env = {"LD_PRELOAD": preload, "TSAN_OPTIONS": "exitcode=66 halt_on_error=0 second_deadlock_stack=1", "PYTHONMALLOC": "malloc"}
    return lambda *args: run(instrumented, *args, prefix=(setarch, "-R"), **env)


@pytest.mark.sanitizer
def test_the_thread_sanitizer_is_awake(watched: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = watched("tests/race/races.py", "race")
    assert "ThreadSanitizer: data race" in done.stderr
    assert done.returncode == 66


@pytest.mark.sanitizer
@pytest.mark.parametrize("seed", ["1", "2"])
def test_readers_writers_setters_tickers_and_replacements_do_not_race(
    watched: Callable[..., subprocess.CompletedProcess[str]], seed: str
) -> None:
    done = watched("tests/race/races.py", "4000", seed)
    assert done.returncode == 0, done.stderr[-12000:]
    assert "quiet" in done.stdout
    assert "ThreadSanitizer" not in done.stderr


@pytest.mark.sanitizer
def test_after_a_storm_of_c_threads_the_table_goes_on_as_the_model_does(tmp_path: Path) -> None:
    """No mark, bit or sample was lost: from the state that the storm left, table and model take the same decisions."""
    folder = hammered_tree(tmp_path)
    done = run(folder, "tests/race/aftermath.py", "3")
    assert done.returncode == 0, done.stderr[-8000:]
