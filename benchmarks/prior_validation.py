"""How the constants of the prior were chosen: cross-validation on the published round trips alone.

A region of the matrix plays the client, and what the model may know of it is taken away. "places": its surroundings
(folds of neighbouring places). "networks": its provider, since a client's network is never the one the matrix was measured in;
and both at once. Regret and candidates as in decisions.py, sets of 5, 10 and 30 regions, as a ratio to the great circle's.
    python benchmarks/prior_validation.py      a few minutes; needs nothing but lbcore/data
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from lbcore.region import catalogue
from lbcore.sense.geo import GEOGRAPHY, unpack
from lbcore.sense.prior import PathModel, great_circle_km, published_matrix

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]
Model = Callable[[F64, F64, F64], PathModel]

NAMES, MATRIX = published_matrix()
KNOWN = [catalogue()[name] for name in NAMES]
PLACES = np.array([(known.lat, known.lon) for known in KNOWN])
PROVIDER = np.array([known.provider for known in KNOWN])
KM = great_circle_km(*PLACES.T, *PLACES.T)
AZURE = PROVIDER == "azure"

SIZES = (5, 10, 30)
FOLDS = 64  # so that clients are about as far from a known place as addresses are: main prints both
DRAWS = 25
SAME_METRO_KM = 30.0
LEAST_TARGETS = 12
GRID = (
    (4000.0, 0.3, 0.1), (2000.0, 0.3, 0.1), (8000.0, 0.3, 0.1), (12000.0, 0.3, 0.2),
    (4000.0, 0.3, 0.05), (4000.0, 0.3, 0.2), (4000.0, 0.3, 0.4), (4000.0, 0.1, 0.1), (4000.0, 1.0, 0.1), (6000.0, 0.3, 0.2),
)  # fmt: skip


def folds() -> Iterator[Mask]:
    """Give sets of neighbouring places, each around one that lies far from those before; together they are all places."""
    centres = [0]
    while len(centres) < FOLDS:
        centres.append(int(KM[centres].min(axis=0).argmax()))
    owner = KM[centres].argmin(axis=0)
    return (owner == fold for fold in range(FOLDS))


def cases() -> Iterator[tuple[str, Mask, Mask]]:
    """Give (kind, places the model may know, places that play clients)."""
    for fold in folds():
        yield "places", ~fold, fold
        yield "networks and places", AZURE & ~fold, ~AZURE & fold
        yield "networks and places", ~AZURE & ~fold, AZURE & fold
    yield "networks", AZURE, ~AZURE
    yield "networks", ~AZURE, AZURE


@cache
def region_sets(client: int, size: int) -> tuple[NDArray[np.int64], ...]:
    """Give sets of regions with a published round trip from the client, no two in one metropolis."""
    rng = np.random.default_rng(client * 100 + size)
    targets = np.flatnonzero(np.isfinite(MATRIX[client]) & (KM[client] > 2 * SAME_METRO_KM))
    if len(targets) < LEAST_TARGETS:
        return ()
    return tuple(_apart(rng.permutation(targets), size) for _ in range(DRAWS))


def _apart(targets: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    chosen: list[int] = []
    for target in targets:
        if len(chosen) < size and (KM[target, chosen] > SAME_METRO_KM).all():
            chosen.append(int(target))
    return np.array(chosen)


def regret(truth: F64, ranking: F64) -> F64:
    """Give the regret of the best of the first 1, 2 and 3 candidates, ms."""
    return np.asarray(np.minimum.accumulate(truth[np.argsort(ranking)[:3]]) - truth.min())


def judge(fit: Model) -> dict[str, float]:
    """Give for each kind of case the mean ratio of regret to the great circle's, over sizes and candidates."""
    sums: dict[tuple[str, int], list[F64]] = {}
    for kind, known, clients in cases():
        at = np.flatnonzero(known)
        model = fit(PLACES[at, 0], PLACES[at, 1], MATRIX[np.ix_(at, at)])
        expected = model.expected(*PLACES.T, *PLACES.T)
        for client in np.flatnonzero(clients).tolist():
            for size in SIZES:
                for chosen in region_sets(client, size):
                    truth = MATRIX[client, chosen]
                    both = np.stack([regret(truth, expected[client, chosen]), regret(truth, KM[client, chosen])])
                    sums.setdefault((kind, size), []).append(both)
    ratios = {key: np.divide(*np.mean(trials, axis=0)).mean() for key, trials in sums.items()}
    kinds = dict.fromkeys(kind for kind, _ in ratios)
    return {kind: float(np.mean([ratio for (of, _), ratio in ratios.items() if of == kind])) for kind in kinds}


def distances() -> Iterator[str]:
    """Give how far the nearest known place is: from the world's IPv4 addresses, and from the clients of a fold."""
    ranges, _ = unpack(GEOGRAPHY)
    sizes = np.diff(ranges["v4_starts"].astype(np.int64), append=1 << 32)
    addresses = np.bincount(ranges["v4_groups"], sizes, len(ranges["keys"]))[1:]
    km = great_circle_km(ranges["lat"][1:], ranges["lon"][1:], *PLACES.T).min(axis=1)
    order = np.argsort(km)
    share = np.cumsum(addresses[order]) / addresses.sum()
    clients = np.concatenate([KM[fold][:, ~fold].min(axis=1) for fold in folds()])
    for quantile in (0.25, 0.5, 0.75, 0.9):
        world = km[order][np.searchsorted(share, quantile)]
        yield f"{quantile:4.0%} of addresses within {world:5.0f} km, of clients {np.quantile(clients, quantile):5.0f} km"


def main() -> None:
    """Print how well the folds resemble the world, then the table: constants, ratio by kind of case, mean."""
    print(*distances(), sep="\n")
    print(f"{'range km':>8} {'floor':>6} {'noise':>6} | places  networks and places  networks | mean")
    for km, floor, noise in GRID:
        ratios = judge(partial(PathModel.fit, range_km=km, floor=floor, noise=noise))
        cells = f"{ratios['places']:6.3f}  {ratios['networks and places']:19.3f}  {ratios['networks']:8.3f}"
        print(f"{km:8.0f} {floor:6.2f} {noise:6.2f} | {cells} | {np.mean(list(ratios.values())):.3f}", flush=True)


if __name__ == "__main__":
    main()
