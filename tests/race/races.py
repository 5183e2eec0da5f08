"""Everything at once on one table: C threads read, write, set and tick while Python does all that needs the GIL.

Run under ThreadSanitizer, where any report fails it: `python races.py ROUNDS SEED`. Prints "quiet" when it is through.
`races.py race` races on purpose, to see that the sanitizer is awake.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading

import numpy as np

from lbcore import _hammer
from lbcore._fast import LatencyTable, Picker
from lbcore._prefix import PrefixMap

GROUPS = 300


def new_map(seed: int) -> PrefixMap:
    rng = random.Random(seed)
    v4 = [(f"{rng.randrange(1, 224)}.{rng.randrange(256)}.0.0/{rng.randrange(9, 17)}", rng.randrange(1, GROUPS)) for _ in range(200)]
    nets = {net.split("/")[0].rsplit(".", 2)[0] + ".0.0/16": group for net, group in v4}
    return PrefixMap.from_prefixes([*nets.items(), ("2001:db8::/32", 1), ("2a00::/12", 2)])


def new_table(regions: int) -> LatencyTable:
    return LatencyTable(GROUPS, regions, region_capacity=regions + 4)


def meddle(table: LatencyTable, rng: random.Random) -> None:
    """Do one thing that needs the GIL."""
    g, r = rng.randrange(GROUPS), rng.randrange(table.regions)
    many = np.array([rng.randrange(GROUPS) for _ in range(64)], np.uint32)
    acts = [
        lambda: table.exclude(g, r, rng.random() < 0.3),
        lambda: table.seed(g, r, rng.uniform(1, 90), rng.uniform(1, 30)),
        lambda: table.set_penalty(r, rng.choice([0.0, 20.0])),
        lambda: table.set_share(r, rng.random()),
        lambda: table.add_region(),
        lambda: table.remove_region(r),
        lambda: (table.rank(g), table.estimates(g), table.deviations(g), table.eligible(), table.counts(), table.fail_open),
        lambda: (table.homes(), table.scores(g), table.ages(g, 5.0), table.forced(g), table.pending(g), table.excluded(g, r)),
        lambda: table.seed_many(np.full((GROUPS, table.regions), 30, np.float32), np.full((GROUPS, table.regions), 9, np.float32)),
        lambda: table.restore(table.snapshot(5.0), 5.0, 1.0),
        lambda: table.pick_many(many, np.empty(64, np.uint16)),
        lambda: table.observe_many(many, np.full(64, r, np.uint16), np.full(64, 20, np.float32), 3.0),
        lambda: table.count(r, rng.random() < 0.5, g, rng.randrange(6)),
        lambda: (table.outcomes(), table.refused(r), table.recoveries(r), table.news, table.waiting(5.0)),
        lambda: table.tell_waiting(np.ones((table.regions, 8), np.uint16), rng.uniform(0.0, 9.0)),
        lambda: table.pick(g),
    ]
    with contextlib.suppress(IndexError, OverflowError):  # the region went away, or there is no room for another
        rng.choice(acts)()


def ask(picker: Picker, stop: threading.Event, seed: int) -> None:
    rng = random.Random(seed)
    while not stop.is_set():
        with contextlib.suppress(LookupError):
            assert isinstance(picker.pick(f"{rng.randrange(1, 224)}.{rng.randrange(256)}.1.1"), str)


def keep_ticking(table: LatencyTable, stop: threading.Event) -> None:
    now = 1.0
    while not stop.is_set():
        now += 0.1
        table.tick(now, 50)


def storm(rounds: int, seed: int, regions: int, *, c_ticker: bool) -> int:
    """Hammer a table of so many regions while tables, maps and objects behind a Picker are replaced; give impossible results.

    One C thread ticks, or two Python threads that meet: `LatencyTable.tick` is for any thread.
    """
    rng = random.Random(seed)
    table, prefixes = new_table(regions), new_map(seed)
    picker = Picker(table, prefixes, tuple(map(str, range(regions + 4))))
    stop = threading.Event()
    threads = [threading.Thread(target=ask, args=(picker, stop, n)) for n in range(2)]
    if not c_ticker:
        threads += [threading.Thread(target=keep_ticking, args=(table, stop)) for _ in range(2)]
    roles = ["read", "read", "write", "write", "set", "set", "look"] + ["tick"] * c_ticker
    hammer = _hammer.Hammer(table, prefixes, roles, rounds, 1.0, 1 / 64, seed)
    hammer.start()
    for thread in threads:
        thread.start()
    while _hammer.Hammer.running():
        meddle(table, rng)
        if rng.random() < 0.02:
            other = rng.choice([table, new_table(rng.choice([2, regions, 70]))])
            picker.replace(other, new_map(rng.randrange(99)), tuple(map(str, range(other.region_capacity))))
    stop.set()
    for thread in threads:
        thread.join()
    return hammer.join()


def main(argument: str, seed: str = "1") -> None:
    if argument == "race":
        hammer = _hammer.Hammer(new_table(1), None, ["race", "race"], 300_000, 1.0, 0.0, 1)
        hammer.start()
        hammer.join()
        return
    for regions, c_ticker in ((3, True), (66, True), (7, False)):
        wrong = storm(int(argument), int(seed), regions, c_ticker=c_ticker)
        if wrong:
            sys.exit(f"{wrong} impossible results with {regions} regions")
    print("quiet")


if __name__ == "__main__":
    main(*sys.argv[1:])
