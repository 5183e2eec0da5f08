"""Priors: what a round trip probably takes before anybody measured it."""

from __future__ import annotations

import csv
import ipaddress
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from lbcore import Balancer, PrefixMap
from lbcore.region import DATA, Region, catalogue
from lbcore.sense import paths_build, prior
from lbcore.sense.prior import Precision, great_circle_km, prior_ms, priors, published_ms

LONDON = (51.5, -0.1)

# ===== an oracle in plain Python, from the files and the formulae of the module's docstring


def plain_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Haversine, where the module takes the angle between unit vectors."""
    (lat, lon), (other_lat, other_lon) = (tuple(map(math.radians, place)) for place in (a, b))
    h = math.sin((lat - other_lat) / 2) ** 2 + math.cos(lat) * math.cos(other_lat) * math.sin((lon - other_lon) / 2) ** 2
    return 2 * 6371 * math.asin(min(1.0, math.sqrt(h)))


def plain_prior(client: tuple[float, float], region: tuple[float, float]) -> float:
    with (DATA / "round_trips.csv").open(newline="") as file:
        names = next(csv.reader(file))[1:]
    places = [(catalogue()[name].lat, catalogue()[name].lon) for name in names]
    weights = np.load(DATA / "path_model.npy").tolist()
    near_client = [0.3 + math.exp(-plain_km(client, place) / 4000) for place in places]
    near_region = [0.3 + math.exp(-plain_km(region, place) / 4000) for place in places]
    excess = sum(near_client[i] * weights[i][j] * near_region[j] for i in range(len(names)) for j in range(len(names)))
    km = plain_km(client, region)
    usual = 7 + km / 60
    return max(usual + math.sqrt(usual) * excess, km / 100, 1.0)


def at(*places: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    lat, lon = np.array(places, np.float32).T
    return lat, lon


def test_priors_equal_the_plain_model() -> None:
    places = [LONDON, (-33.9, 18.4), (35.7, 139.7), (0.0, 179.9), (89.0, 12.0), (25.0, 55.0)]
    regions = [Region("westeurope"), Region("eastus"), Region("sa-east-1"), Region("elsewhere", lat=13.7, lon=100.5)]
    ms, _ = priors(*at(*places), np.full(len(places), 3, np.uint8), regions)
    assert ms.dtype == np.float32 and ms.shape == (6, 4)
    expected = [[plain_prior(place, (region.lat or 0, region.lon or 0)) for region in regions] for place in places]
    np.testing.assert_allclose(ms, expected, rtol=1e-4)


def test_distances_equal_haversine() -> None:
    rng = np.random.default_rng(1)
    here, there = rng.uniform((-90, -180), (90, 180), (50, 2)), rng.uniform((-90, -180), (90, 180), (40, 2))
    expected = [[plain_km((a[0], a[1]), (b[0], b[1])) for b in there] for a in here]
    np.testing.assert_allclose(great_circle_km(*here.T, *there.T), expected, atol=0.01)


def test_the_stored_model_is_the_fit_of_the_published_round_trips() -> None:
    np.testing.assert_allclose(np.load(DATA / "path_model.npy"), prior.published_model().weights, atol=1e-4)


# ===== what the published round trips say


def test_published_round_trips_come_through() -> None:
    """Seen from a known region the prior is close to what is published for it, though the model smooths."""
    names, matrix = prior.read_round_trips(DATA / "round_trips.csv")
    regions = [Region(name) for name in names]
    ms, _ = priors(*at(*((r.lat, r.lon) for r in regions)), np.full(len(names), 3, np.uint8), regions)  # type: ignore[arg-type]
    known = np.isfinite(matrix)
    error = np.abs(np.log(ms[known] / matrix[known]))
    assert np.median(error) < 0.05
    assert np.quantile(error, 0.95) < 0.25


def test_published_round_trip_is_symmetric_and_unknown_without_a_publication() -> None:
    assert published_ms("westeurope", "eastus") == published_ms("eastus", "westeurope")
    assert published_ms("westeurope", "us-east-1") is None
    assert published_ms("westeurope", "moonbase") is None


def test_order_is_by_round_trip_not_by_kilometres() -> None:
    """Traffic from the Gulf to Africa's south goes by way of Europe: Johannesburg is nearer on the globe and later to answer."""
    gulf = catalogue()["qatarcentral"]
    africa, europe = Region("southafricanorth"), Region("northeurope")
    km = great_circle_km(gulf.lat, gulf.lon, [africa.lat, europe.lat], [africa.lon, europe.lon])[0]
    trips = [published_ms("qatarcentral", region.name) for region in (africa, europe)]
    assert abs(km[0] / km[1] - 1) < 0.2
    assert trips[0] is not None and trips[1] is not None and trips[0] > trips[1]
    assert prior_ms(gulf.lat, gulf.lon, africa) > prior_ms(gulf.lat, gulf.lon, europe)


def test_a_region_outside_the_matrix_borrows_from_its_neighbour() -> None:
    """A private site in Doha detours like Azure's region there, which a formula of kilometres cannot know."""
    gulf = catalogue()["qatarcentral"]
    private = prior_ms(19.1, 72.9, Region("mine", lat=gulf.lat + 0.2, lon=gulf.lon))
    assert private == pytest.approx(prior_ms(19.1, 72.9, Region("qatarcentral")), rel=0.05)


def test_no_prior_beats_light_in_glass() -> None:
    rng = np.random.default_rng(2)
    lat, lon = rng.uniform(-90, 90, 2000).astype(np.float32), rng.uniform(-180, 180, 2000).astype(np.float32)
    regions = [Region(name) for name in catalogue()]
    ms, _ = priors(lat, lon, np.full(2000, 3, np.uint8), regions)
    km = great_circle_km(lat, lon, [region.lat for region in regions], [region.lon for region in regions])
    assert (ms * 1.0001 >= km / 100).all()
    assert ms.min() > 1 and ms.max() < 700


# ===== width


def test_deviation_grows_as_the_location_gets_vague() -> None:
    lat, lon = at(LONDON, LONDON, LONDON, LONDON)
    ms, sd = priors(lat, lon, np.array([3, 2, 1, 0], np.uint8), [Region("eastus")])
    share = (sd / ms)[:, 0]
    assert share[0] == pytest.approx(0.35)
    assert (np.diff(share) > 0).all()
    assert (ms == ms[0]).all(), "precision is the width's business alone"


def test_an_unknown_place_has_the_flat_prior() -> None:
    nowhere = np.array([np.nan], np.float32)
    ms, sd = priors(nowhere, nowhere, np.zeros(1, np.uint8), [Region("eastus"), Region("moonbase")])
    assert (ms == 80).all()
    assert (sd >= 28).all()
    assert prior_ms(*LONDON, Region("moonbase")) == 80


def test_nothing_to_seed_is_fine() -> None:
    none = np.zeros(0, np.float32)
    assert priors(none, none, np.zeros(0, np.uint8), [Region("eastus")])[0].shape == (0, 1)
    assert priors(*at(LONDON), np.array([3], np.uint8), [])[0].shape == (1, 0)


def test_many_groups_are_seeded_like_one() -> None:
    """Groups are worked off in pieces; the seam must not show."""
    count = prior.CHUNK + 3
    lat, lon = np.linspace(-80, 80, count, dtype=np.float32), np.linspace(-170, 170, count, dtype=np.float32)
    regions = [Region("eastus"), Region("japaneast")]
    ms, _ = priors(lat, lon, np.full(count, 3, np.uint8), regions)
    for group in (0, prior.CHUNK - 1, prior.CHUNK, count - 1):
        assert ms[group, 1] == pytest.approx(prior_ms(float(lat[group]), float(lon[group]), regions[1]), rel=1e-5)


# ===== bad input


@pytest.mark.parametrize(
    ("lat", "lon", "message"), [(91.0, 0.0, r"lat .* ±90 .* 91\.0"), (0.0, -181.0, r"lon .* ±180 .* -181\.0"), (math.inf, 0.0, "lat")]
)
def test_coordinates_out_of_range_are_refused(lat: float, lon: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prior_ms(lat, lon, Region("eastus"))
    with pytest.raises(ValueError, match=message):
        priors(np.array([0, lat], np.float32), np.array([0, lon], np.float32), np.full(2, 3, np.uint8), [Region("eastus")])


def test_arrays_of_different_length_and_unknown_precision_are_refused() -> None:
    lat, lon = at(LONDON, LONDON)
    with pytest.raises(ValueError, match="one entry per group, got 2, 2, 1"):
        priors(lat, lon, np.zeros(1, np.uint8), [])
    with pytest.raises(ValueError, match="precision must be 0 to 3, got 4"):
        priors(lat, lon, np.full(2, Precision.POINT + 1, np.uint8), [])


# ===== where the files come from


@pytest.mark.real
def test_the_shipped_files_are_what_the_tool_makes_of_the_sources(data: Path, tmp_path: Path) -> None:
    paths_build.build(data, tmp_path)
    for name in ("regions.csv", "round_trips.csv"):
        assert (tmp_path / name).read_text() == (DATA / name).read_text()
    np.testing.assert_allclose(np.load(tmp_path / "path_model.npy"), np.load(DATA / "path_model.npy"), atol=1e-4)


def test_the_tool_refuses_two_providers_regions_of_one_name(tmp_path: Path) -> None:
    for provider in ("azure", "aws", "gcp"):
        (tmp_path / provider).mkdir()
        (tmp_path / provider / f"{provider}_regions.csv").write_text("name,location,lat,lon\nUS East,Somewhere,1,2\n")
    with pytest.raises(ValueError, match="must differ between providers, got twice: useast"):
        paths_build.read_regions(tmp_path)


# ===== by distance alone


def test_a_balancer_by_distance_ranks_as_haversine_does() -> None:
    rng = np.random.default_rng(8)
    n = 2000
    lat, lon = rng.uniform(-90, 90, n + 1).astype(np.float32), rng.uniform(-180, 180, n + 1).astype(np.float32)
    starts = np.arange(n, dtype=np.uint32) << 20
    keys = ["", *(f"record {i}" for i in range(n))]
    prefixes = PrefixMap.from_ranges(starts, np.arange(1, n + 1), [0], [0], keys, lat, lon)
    regions = [Region(f"r{i}", lat=float(rng.uniform(-80, 80)), lon=float(rng.uniform(-180, 180))) for i in range(9)]
    lb = Balancer(regions, prefixes, prior="distance")
    for group in range(1, n + 1):
        client = str(ipaddress.IPv4Address(int(starts[group - 1]) + 5))
        here = float(lat[group]), float(lon[group])
        km = [plain_km(here, (region.lat or 0.0, region.lon or 0.0)) for region in lb.rank(client)]
        assert all(nearer <= farther + 0.01 for nearer, farther in itertools.pairwise(km))
        assert lb.pick(client) is lb.rank(client)[0]


def test_a_client_at_an_unknown_place_gets_the_regions_in_their_order() -> None:
    lb = Balancer([Region("japaneast"), Region("westeurope"), Region("eastus")], prior="distance")
    assert [region.name for region in lb.rank("10.0.0.1")] == ["japaneast", "westeurope", "eastus"]
    with pytest.raises(ValueError, match="prior must be one of round_trip, distance, got 'nearest'"):
        Balancer([Region("eastus")], prior="nearest")
