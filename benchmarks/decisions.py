"""How much a client loses by going where the prior says, before anybody measured anything.

Regret = round trip of the chosen region minus that of the best one, milliseconds. With n candidates the best of the first
n in the ranking counts: what is left once those are measured. Beside the prior stands the great circle, ranked in the
same run over the same sets of regions.
    python benchmarks/decisions.py            worlds: the city file of $LBCORE_DATA when set, and always a synthetic one
The city file (WonderNetwork pings of 2018) is for evaluation alone: no constant of the prior was chosen by it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lbcore.region import Region, catalogue
from lbcore.sense.prior import PathModel, Precision, great_circle_km, priors

F64 = NDArray[np.float64]

SEED = 1
DRAWS = 400
SIZES = (3, 5, 10, 30)
CANDIDATES = (1, 2, 3)
ASKED = {(5, 1): 0.88, (5, 2): 0.85, (5, 3): 0.75}
CITY_FILE = "clients/wondernetwork_2018_clients_to_azure_metros.csv"


@dataclass(frozen=True, slots=True)
class World:
    """Hold what is true and what two rankings go by, f64[clients, regions] each; NaN = never measured."""

    name: str
    truth: F64
    km: F64
    prior: F64


def recorded(path: Path) -> World:
    """Give the world of the city file: its cities that are no region's city, by the shipped prior."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    metros = {row["proxy_city"] for row in rows}
    rows = [row for row in rows if row["client_city"] not in metros]
    clients = {row["client_city"]: (float(row["client_lat"]), float(row["client_lon"])) for row in rows}
    regions = {row["region"]: (float(row["region_lat"]), float(row["region_lon"])) for row in rows}
    truth = np.full((len(clients), len(regions)), np.nan)
    for row in rows:
        truth[list(clients).index(row["client_city"]), list(regions).index(row["region"])] = float(row["rtt_ms"])
    lat, lon = np.array(list(clients.values()), np.float32).T
    point = np.full(len(clients), Precision.POINT, np.uint8)
    ms, _ = priors(lat, lon, point, [Region(name, lat=place[0], lon=place[1]) for name, place in regions.items()])
    km = great_circle_km(lat, lon, *np.array(list(regions.values())).T)
    return World(f"{len(clients)} cities, 2018", truth, km, ms.astype(np.float64))


def synthetic(clients: int = 200, hubs: int = 24) -> World:
    """Give a world of cables between hubs: round trips follow the cables, not the globe.

    Regions stand where the catalogue's do and publish their round trips; clients are scattered around them. A path goes to
    the nearest hub, along the shortest chain of cables, and from the last hub on, with a detour of its own over land.
    """
    rng = np.random.default_rng(SEED)
    known = np.array(sorted({(known.lat, known.lon) for known in catalogue().values() if known.provider == "azure"}))
    around = known[rng.integers(len(known), size=clients)] + rng.normal(0, 9, (clients, 2))
    around = np.clip(around, (-85, -180), (85, 180))
    places = np.concatenate([known, around])
    trips = _cable_ms(places, _spread(known, hubs), rng)
    count = len(known)
    model = PathModel.fit(known[:, 0], known[:, 1], np.where(np.eye(count, dtype=bool), np.nan, trips[:count, :count]))
    ends = (*around.T, *known.T)
    return World(f"{clients} places, cables between {hubs} hubs", trips[count:, :count], great_circle_km(*ends), model.expected(*ends))


def _spread(places: F64, count: int) -> F64:
    """Give `count` of the places, each the farthest from those before."""
    km = great_circle_km(*places.T, *places.T)
    chosen = [0]
    while len(chosen) < count:
        chosen.append(int(km[chosen].min(axis=0).argmax()))
    return places[chosen]


def _cable_ms(places: F64, hubs: F64, rng: np.random.Generator) -> F64:
    """Give round trips between all places: over land to a hub, by cable, over land; 3 ms of last mile; 5 % of noise."""
    km = great_circle_km(*hubs.T, *hubs.T)
    cable = np.where(np.argsort(np.argsort(km)) <= 2, km, np.inf)  # each hub has cables to its two nearest
    for hub in range(1, len(hubs)):  # and each to one that was there before, so that all are connected
        other = int(km[hub, :hub].argmin())
        cable[hub, other] = km[hub, other]
    cable = np.minimum(cable, cable.T)
    for via in range(len(hubs)):  # Floyd-Warshall
        cable = np.minimum(cable, cable[:, [via]] + cable[[via], :])
    land = great_circle_km(*places.T, *hubs.T)
    hub = land.argmin(axis=1)
    last = land.min(axis=1) * rng.uniform(1.2, 2.0, len(places))
    direct = great_circle_km(*places.T, *places.T) * 1.5
    path = last[:, np.newaxis] + cable[np.ix_(hub, hub)] + last
    path = np.where(hub[:, np.newaxis] == hub, np.minimum(direct, path), path)
    noise = np.exp(rng.normal(0, 0.05, path.shape))
    return np.asarray((3 + path / 80) * (noise + noise.T) / 2)


def sets(regions: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Give the sets of regions that services are made of; all of them at once when there is no choice."""
    rng = np.random.default_rng(SEED)
    for _ in range(DRAWS if size < regions else 1):
        yield rng.choice(regions, size, replace=False)


def regrets(world: World, ranking: F64, size: int) -> F64:
    """Give the regret of the best of the first 1, 2, 3 candidates, f64[trials, 3]: each set with each client that has all of it."""
    trials = []
    for chosen in sets(world.truth.shape[1], size):
        whole = np.isfinite(world.truth[:, chosen]).all(axis=1)
        truth, order = world.truth[whole][:, chosen], np.argsort(ranking[whole][:, chosen], axis=1, kind="stable")
        first = np.take_along_axis(truth, order, axis=1)[:, : max(CANDIDATES)]
        trials.append(np.minimum.accumulate(first, axis=1) - truth.min(axis=1, keepdims=True))
    return np.concatenate(trials)


def figures(regret: F64) -> str:
    return f"{regret.mean():6.2f} {np.quantile(regret, 0.95):6.1f} {np.quantile(regret, 0.99):6.1f}"


def report(world: World) -> Iterator[str]:
    """Give the lines of a world's table."""
    yield f"\n{world.name} x {world.truth.shape[1]} regions; regret in ms"
    yield f"{'regions':>7} {'candidates':>10} | {'great circle':^20} | {'prior':^20} | {'ratio':>5} | asked"
    yield f"{'':>7} {'':>10} | {'mean':>6} {'p95':>6} {'p99':>6} | {'mean':>6} {'p95':>6} {'p99':>6} | {'':>5} |"
    for size in SIZES:
        circle, prior = regrets(world, world.km, size), regrets(world, world.prior, size)
        for n in CANDIDATES:
            if n < min(size, 4):
                ratio = prior[:, n - 1].mean() / max(circle[:, n - 1].mean(), 1e-9)
                asked = f"<= {ASKED[size, n]}" if (size, n) in ASKED else ""
                yield f"{size:7} {n:10} | {figures(circle[:, n - 1])} | {figures(prior[:, n - 1])} | {ratio:5.2f} | {asked}"


def main() -> None:
    """Print the table of every world there is."""
    folder = os.environ.get("LBCORE_DATA")
    path = Path(folder or ".") / CITY_FILE
    if folder and path.exists():
        print(*report(recorded(path)), sep="\n")
    else:
        print("LBCORE_DATA holds no city file: the synthetic world alone")
    print(*report(synthetic()), sep="\n")


if __name__ == "__main__":
    main()
