"""PrefixMap: build time and memory, look-ups from text beside maxminddb (C) and maxminddb-rust, batches.

    LBCORE_GEO=folder python -m pytest benchmarks/bench_prefix.py      the largest City *.mmdb there; without it a synthetic database
Peers decode a record for each address, which is what a user replaces. Each ratio is the median of rounds that take turns in this
one process; the loop over a list of addresses is in every figure, and `loop` is that loop alone.
"""

from __future__ import annotations

import ipaddress
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import maxminddb
import maxminddb_rust
import numpy as np
import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPNetwork, IPSet

from lbcore._prefix import PrefixMap

ROUNDS = 11
COUNT = 10_000
HOT = 200


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = Path(os.environ.get("LBCORE_GEO", "/nowhere")).glob("*.mmdb")
    largest = max(files, key=lambda path: ("City" in path.name, path.stat().st_size), default=None)
    return largest or synthetic(tmp_path_factory.mktemp("geo") / "synthetic.mmdb")


def synthetic(path: Path, networks: int = 20_000) -> Path:
    """Write a database of random networks, /12 to /24 and /32 to /48, in places all over the world."""
    draw = random.Random(1)
    writer = MMDBWriter(6, ipv4_compatible=True)
    for turn in range(networks):
        place = {"latitude": draw.uniform(-60, 70), "longitude": draw.uniform(-180, 180)}
        country = {"iso_code": draw.choice(["FR", "DE", "US", "JP", "BR"])}
        record = {"country": country, "location": place, "subdivisions": [{"iso_code": "X"}]}
        address = f"{ipaddress.IPv4Address(draw.getrandbits(32))}/{draw.randint(12, 24)}"
        if turn % 2:
            address = f"{ipaddress.IPv6Address(1 << 125 | draw.getrandbits(125))}/{draw.randint(32, 48)}"
        writer.insert_network(IPSet([IPNetwork(address).cidr]), record)
    writer.to_db_file(str(path))
    return path


@pytest.fixture(scope="module")
def map(database: Path) -> PrefixMap:
    return PrefixMap.from_mmdb(database)


@pytest.fixture(scope="module")
def peers(database: Path) -> Iterator[dict[str, Callable[[str], Any]]]:
    with maxminddb.open_database(database, maxminddb.MODE_MMAP_EXT) as reader:
        yield {"maxminddb": reader.get, "maxminddb-rust": maxminddb_rust.open_database(str(database)).get}


def random_address(draw: random.Random, version: int) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Give any IPv4 address, or one in the IPv6 blocks that the registries hand out most from."""
    if version == 4:
        return ipaddress.IPv4Address(draw.getrandbits(32))
    return ipaddress.IPv6Address(draw.choice([0x2001, 0x2400, 0x2600, 0x2800, 0x2A00]) << 112 | draw.getrandbits(117))


def addresses(version: int, hot: bool) -> list[str]:
    """Give texts: `HOT` of them over and over, or all different; see random_address."""
    draw = random.Random(version)
    texts = [str(random_address(draw, version)) for _ in range(HOT if hot else COUNT)]
    return texts * (COUNT // len(texts))


def looper(call: Callable[[Any], Any] | None, items: list[Any]) -> Callable[[], None]:
    def loop() -> None:
        if call is None:
            for _ in items:
                pass
        else:
            for item in items:
                call(item)

    return loop


def alternate(loops: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Give the median nanoseconds an address of each loop, the loops taking turns."""
    taken: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(ROUNDS):
        for name, loop in loops.items():
            start = time.perf_counter_ns()
            loop()
            taken[name].append((time.perf_counter_ns() - start) / COUNT)
    return {name: statistics.median(rounds) for name, rounds in taken.items()}


def show(benchmark: Any, title: str, figures: dict[str, float]) -> None:
    own = figures["PrefixMap"]
    parts = [f"{name} {ns:.1f} ns" + (f" ({ns / own:.1f}x)" if name not in ("PrefixMap", "loop") else "") for name, ns in figures.items()]
    print(f"\n{title}: " + ", ".join(parts))
    benchmark.extra_info.update({name: round(ns, 1) for name, ns in figures.items()})


def test_build(benchmark: Any, database: Path) -> None:
    map = benchmark.pedantic(PrefixMap.from_mmdb, (database,), rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {"file": database.name, "groups": map.groups, "MB": round(map.nbytes / 1e6, 1)}
    print(f"\n{database.name}: {map.groups} groups, {map.nbytes / 1e6:.1f} MB, {benchmark.stats['median']:.2f} s")


@pytest.mark.parametrize("hot", [True, False], ids=["hot", "random"])
@pytest.mark.parametrize("version", [4, 6])
def test_lookup(benchmark: Any, map: PrefixMap, peers: dict[str, Callable[[str], Any]], version: int, hot: bool) -> None:
    texts = addresses(version, hot)
    calls = {"PrefixMap": map.lookup, "loop": None} | peers
    loops = {name: looper(call, texts) for name, call in calls.items()}
    show(benchmark, f"IPv{version} {'hot' if hot else 'random'}", alternate(loops))
    benchmark.pedantic(loops["PrefixMap"], rounds=ROUNDS)


@pytest.mark.parametrize("version", [4, 6])
def test_match(benchmark: Any, map: PrefixMap, version: int) -> None:
    texts = addresses(version, False)
    show(benchmark, f"match IPv{version} random", alternate({"PrefixMap": looper(map.match, texts), "lookup": looper(map.lookup, texts)}))
    benchmark.pedantic(looper(map.match, texts), rounds=ROUNDS)


@pytest.mark.parametrize("version", [4, 6])
def test_lookup_many(benchmark: Any, map: PrefixMap, version: int) -> None:
    draw = np.random.default_rng(version)
    batch: Any = draw.integers(0, 1 << 32, 1_000_000, np.uint32) if version == 4 else draw.integers(0, 256, (1_000_000, 16), np.uint8)
    if version == 6:
        batch[:, 0] = 0x20 | batch[:, 0] & 0x1F
    out = np.empty(len(batch), np.uint32)
    benchmark.pedantic(map.lookup_many, (batch, out), rounds=ROUNDS)
    print(f"\nlookup_many IPv{version} random: {benchmark.stats['median'] * 1e9 / len(batch):.1f} ns an address")


def test_from_prefixes(benchmark: Any) -> None:
    draw = random.Random(3)
    pairs = [(f"{ipaddress.IPv4Address(draw.getrandbits(24) << 8)}/24", turn % 4096) for turn in range(100_000)]
    benchmark.pedantic(PrefixMap.from_prefixes, (pairs,), rounds=5)
    print(f"\nfrom_prefixes: {benchmark.stats['median'] * 1e6 / len(pairs):.2f} us a network")
