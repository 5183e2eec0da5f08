"""Where the table and the Picker meet bad luck: forks, replaced tables, racing setters, clocks that jump."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from lbcore import LatencyTable


def test_an_address_object_that_lets_another_thread_replace_the_table_crashes_nothing() -> None:
    code = """
        import ipaddress
        from lbcore._fast import LatencyTable, Picker
        from lbcore import PrefixMap
        maps = [PrefixMap.from_prefixes([("10.0.0.0/8", group)]) for group in (500_000, 1)]
        tables = [LatencyTable(each.groups, 2) for each in maps]
        class Address(ipaddress.IPv4Address):
            @property
            def packed(self):
                picker.replace(tables.pop(), maps.pop(), ("c", "d"))
                tables.clear(), maps.clear()
                return bytes([10, 0, 0, 1])
        picker = Picker(tables[0], maps[0], ("a", "b"))
        assert picker.pick(Address("10.0.0.1")) in "abcd"
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False).returncode == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_ticks_leaves_a_child_that_ticks() -> None:
    table = LatencyTable(1_000_000, 40, region_capacity=40)
    table.tick(0.0)
    table.set_share(0, 0.5)
    thread = threading.Thread(target=table.tick, args=(1.0,))
    thread.start()
    time.sleep(0.02)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        home = table.home(7)
        table.set_enabled(home, False)
        table.tick(2.0)
        os._exit(table.home(7) == home)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()


def test_an_exclusion_is_not_lost_to_a_sample_of_another_thread() -> None:
    table, n, stop = LatencyTable(4, 2), 200_000, threading.Event()
    samples = np.zeros(n, np.uint32), np.zeros(n, np.uint16), np.random.default_rng(1).uniform(10, 300, n).astype(np.float32)

    def learn() -> None:
        while not stop.is_set():
            table.observe_many(*samples, 1.0)

    thread = threading.Thread(target=learn)
    thread.start()
    lost = 0
    for i in range(1000):
        table.exclude(0, 0, bool(i % 2))
        time.sleep(0.0005)
        lost += table.excluded(0, 0) != bool(i % 2)
    stop.set()
    thread.join()
    assert lost == 0


def test_a_heartbeat_of_the_future_is_a_dead_owners() -> None:
    block = mmap.mmap(-1, LatencyTable.nbytes_for(4, 8))
    LatencyTable(4, 2, buffer=block).tick(1e6)
    os_getpid, os.getpid = os.getpid, lambda: 1
    try:
        late = LatencyTable(4, 2, buffer=block)
        late.tick(10.0)
        late.tick(20.0)
        assert late.owner == 1
    finally:
        os.getpid = os_getpid


def test_a_ramp_ends_though_the_tables_time_went_back() -> None:
    table = LatencyTable(100, 2)
    table.seed_many(np.tile(np.float32([10, 100]), (100, 1)), np.ones((100, 2), np.float32))
    table.tick(10000.0)
    for tier, now in ((3, 10001.0), (0, 10002.0)):
        table.set_tier(0, tier, now)
        table.tick(now)
    for second in range(120):
        table.tick(2800.0 + second)
    assert (table.homes() == 0).all()
