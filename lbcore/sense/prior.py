"""Say what a round trip probably takes before anybody measured it.

The published round trips between cloud regions show where paths detour: Doha is later to answer Johannesburg than Dublin,
which is as far. The model is kriging on pairs: every published pair (s, t) shows an excess over what its distance alone suggests, and the
excess of an unknown pair (client, region) is a weighted sum of those, weighted by how near s is to the client *and* t to
the region. So a region outside the matrix borrows from its neighbours, of any provider, and far from every known place
little but the distance is left. Formally a Gaussian process on (ms - baseline) / sqrt(baseline), whose kernel for two pairs is
k(client, s) k(region, t), made symmetric, with k(a, b) = FLOOR + exp(-km(a, b) / RANGE_KM). The constants and the square
root were chosen by cross-validation on the published matrices alone, places left out and whole providers left out
(benchmarks/prior_validation.py), never on the cities that benchmarks/decisions.py judges by. Inverse-distance weighting,
tried beside it, came out worse: its errors are heavier in the tail, and a provider's own detours pass for geography.

Source: Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), §2.2, §4.2.4; the baseline is a fit of
the relative error of published round trips.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lbcore.region import DATA, Region, catalogue

__all__ = [
    "PRIORS",
    "PathModel",
    "Precision",
    "baseline_ms",
    "distances",
    "great_circle_km",
    "prior_ms",
    "priors",
    "published_matrix",
    "published_ms",
]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

EARTH_RADIUS_KM = 6371.0
FIBRE_KM_PER_MS = 100.0  # light in glass, there and back: no round trip is faster
RANGE_KM = 4_000.0
FLOOR = 0.3
NOISE = 0.1
LEAST_MS = 1.0
FLAT_MS = 80.0
CHUNK = 16_384  # clients per step: bounds memory at 100,000s of groups


class Precision(IntEnum):
    """How precisely a client is located: nowhere, in a large country, in a small country or a subdivision, at a point."""

    NONE = 0
    WIDE = 1
    REGION = 2
    POINT = 3


# Deviation of the prior as a share of it, by Precision. The point's is DESIGN §5's; a country says less.
WIDTH = np.array([0.70, 0.60, 0.45, 0.35], np.float32)


def baseline_ms(km: ArrayLike) -> F64:
    """Give the round trip, milliseconds, that a distance in km suggests by itself: 7 ms + km/60."""
    return 7.0 + np.asarray(km, np.float64) / 60.0


def great_circle_km(lat: ArrayLike, lon: ArrayLike, other_lat: ArrayLike, other_lon: ArrayLike) -> F64:
    """Give the distances in km, f64[n, m], from n places to m others; degrees in, NaN for unknown places."""
    cosine = _unit_vectors(lat, lon) @ _unit_vectors(other_lat, other_lon).T
    return EARTH_RADIUS_KM * np.arccos(np.clip(cosine, -1.0, 1.0))


def _unit_vectors(lat: ArrayLike, lon: ArrayLike) -> F64:
    phi, theta = np.radians(np.atleast_1d(np.asarray(lat, np.float64))), np.radians(np.atleast_1d(np.asarray(lon, np.float64)))
    return np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)], axis=-1)


def read_round_trips(path: Path) -> tuple[list[str], F64]:
    """Give region names and their symmetric matrix of milliseconds, NaN where nothing is published."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header[1:], np.array([[float(ms or "nan") for ms in row[1:]] for row in rows])


@dataclass(frozen=True, slots=True)
class PathModel:
    """Hold what a matrix of round trips says of paths: known places (degrees, f64[n]) and the weights between them, f64[n, n].

    range_km, floor: the kernel's constants, see the module's text
    """

    lat: F64
    lon: F64
    weights: F64
    range_km: float = RANGE_KM
    floor: float = FLOOR

    @classmethod
    def fit(cls, lat: F64, lon: F64, matrix: F64, range_km: float = RANGE_KM, floor: float = FLOOR, noise: float = NOISE) -> PathModel:
        """Learn from the symmetric f64[n, n] round trips in ms (NaN = unknown) between n places; about a second for 90 places."""
        km = great_circle_km(lat, lon, lat, lon)
        i, j = np.nonzero(np.triu(np.isfinite(matrix), 1))
        k = floor + np.exp(km / -range_km)
        covariance = (k[np.ix_(i, i)] * k[np.ix_(j, j)] + k[np.ix_(i, j)] * k[np.ix_(j, i)]) / 2
        covariance[np.diag_indices_from(covariance)] += noise
        weights = np.zeros_like(matrix)
        usual = baseline_ms(km[i, j])
        weights[i, j] = np.linalg.solve(covariance, (matrix[i, j] - usual) / np.sqrt(usual)) / 2
        return cls(lat, lon, weights + weights.T, range_km, floor)

    def expected(self, lat: ArrayLike, lon: ArrayLike, to_lat: ArrayLike, to_lon: ArrayLike) -> F64:
        """Give the expected round trips in ms, f64[n, m], from n places to m others; NaN where a place is NaN."""
        km = great_circle_km(lat, lon, to_lat, to_lon)
        here, there = self._nearness(lat, lon), self._nearness(to_lat, to_lon)
        usual = baseline_ms(km)
        excess = np.sqrt(usual) * (here @ (self.weights @ there.T))
        return np.asarray(np.maximum(usual + excess, np.maximum(km / FIBRE_KM_PER_MS, LEAST_MS)))

    def _nearness(self, lat: ArrayLike, lon: ArrayLike) -> F64:
        return np.asarray(self.floor + np.exp(great_circle_km(lat, lon, self.lat, self.lon) / -self.range_km))


def published_model() -> PathModel:
    """Give a fresh fit to the published round trips; what `priors` uses is the stored one."""
    names, matrix = published_matrix()
    return PathModel.fit(*_places(names), matrix)


def _places(names: Sequence[str]) -> tuple[F64, F64]:
    known = catalogue()
    return np.array([known[name].lat for name in names]), np.array([known[name].lon for name in names])


@cache
def _stored_model() -> PathModel:
    names, _ = published_matrix()
    return PathModel(*_places(names), np.load(DATA / "path_model.npy").astype(np.float64))


@cache
def published_matrix() -> tuple[Sequence[str], F64]:
    """Give the regions with published round trips and their symmetric f64[n, n] matrix, ms, NaN = none; read-only.

    Source: NOTICE names the publications.
    """
    names, matrix = read_round_trips(DATA / "round_trips.csv")
    matrix.setflags(write=False)
    return names, matrix


def published_ms(region: str, other: str) -> float | None:
    """Give the published round trip between two catalogued regions (canonical names), ms; None when there is none."""
    names, matrix = published_matrix()
    if region not in names or other not in names:
        return None
    ms = float(matrix[names.index(region), names.index(other)])
    return None if np.isnan(ms) else ms


def prior_ms(lat: float, lon: float, region: Region) -> float:
    """Give the expected round trip in ms between a place (degrees) and a region; 80 when either place is unknown (NaN, None).

    Raises ValueError for coordinates out of range.
    """
    _check(lat, 90.0, "lat")
    _check(lon, 180.0, "lon")
    ms, _ = priors(np.array([lat], np.float32), np.array([lon], np.float32), np.array([Precision.POINT], np.uint8), [region])
    return float(ms[0, 0])


def _check(value: float, limit: float, name: str) -> None:
    if abs(value) > limit:
        raise ValueError(f"{name} must be within ±{limit:g} degrees, got {value!r}")


def priors(lat: F32, lon: F32, precision: NDArray[np.uint8], regions: Sequence[Region]) -> tuple[F32, F32]:
    """Give what to seed a table with: expected round trips and their deviations, both f32[groups, regions], ms.

    lat, lon: f32[groups] degrees, NaN = unknown; precision: u8[groups], values of Precision
    A group or region whose place is unknown gets the flat 80 ms. The deviation is a share of the prior that grows
    from 0.35 for a point to 0.7 for a client nobody can locate.
    Raises ValueError for coordinates out of range, arrays of different length or a precision above 3.
    """
    if not len(lat) == len(lon) == len(precision):
        raise ValueError(f"lat, lon and precision must have one entry per group, got {len(lat)}, {len(lon)}, {len(precision)}")
    if len(precision) and int(precision.max()) > Precision.POINT:
        raise ValueError(f"precision must be 0 to 3, got {int(precision.max())}")
    for name, degrees, limit in (("lat", lat, 90.0), ("lon", lon, 180.0)):
        if len(degrees) and not np.isnan(degrees).all():
            _check(float(degrees[np.nanargmax(np.abs(degrees))]), limit, name)
    ms = np.full((len(lat), len(regions)), FLAT_MS, np.float32)
    for rows in _chunks(len(lat)):
        ms[rows] = _expected(lat[rows], lon[rows], regions)
    deviation = ms * WIDTH[precision][:, np.newaxis]
    return ms, deviation


def distances(lat: F32, lon: F32, precision: NDArray[np.uint8], regions: Sequence[Region]) -> tuple[F32, F32]:
    """Give in the shape of `priors` what light in glass needs for the great circle, so that regions are ordered by distance alone.

    80 ms where either place is unknown: then the order of the regions decides.
    """
    to_lat = np.array([np.nan if region.lat is None else region.lat for region in regions])
    to_lon = np.array([np.nan if region.lon is None else region.lon for region in regions])
    ms = np.empty((len(lat), len(regions)), np.float32)
    for rows in _chunks(len(lat)):
        ms[rows] = great_circle_km(lat[rows], lon[rows], to_lat, to_lon) / FIBRE_KM_PER_MS
    ms[np.isnan(ms)] = FLAT_MS
    return ms, ms * WIDTH[precision][:, np.newaxis]


PRIORS: Mapping[str, Callable[..., tuple[F32, F32]]] = {"round_trip": priors, "distance": distances}


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def _expected(lat: F32, lon: F32, regions: Sequence[Region]) -> F64:
    to_lat = np.array([np.nan if region.lat is None else region.lat for region in regions])
    to_lon = np.array([np.nan if region.lon is None else region.lon for region in regions])
    ms = _stored_model().expected(lat, lon, to_lat, to_lon)
    return np.where(np.isnan(ms), FLAT_MS, ms)
