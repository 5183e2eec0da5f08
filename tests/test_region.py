"""Region and the catalogue of cloud regions."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from lbcore.region import Region, canonical, catalogue


def test_spellings_of_a_region_are_one_name() -> None:
    assert canonical("West US 2") == canonical("WestUS2") == canonical("westus2") == "westus2"
    assert Region("West US 2") == Region("westus2")
    assert Region("West US 2").display_name == "West US 2"


def test_catalogue_holds_three_providers() -> None:
    assert Counter(known.provider for known in catalogue().values()) == {"azure": 63, "aws": 34, "gcp": 41}


def test_catalogue_keys_are_canonical_and_every_partner_exists() -> None:
    for name, known in catalogue().items():
        assert name == known.name == canonical(name)
        assert canonical(known.display_name) == name or known.provider != "azure"
        assert known.paired in {"", "swedensouth", *catalogue()}  # Sweden South is closed to most subscriptions, so never listed
        assert known.zones >= 1


def test_catalogue_is_read_only_and_read_once() -> None:
    assert catalogue() is catalogue()
    with pytest.raises(TypeError):
        catalogue()["moonbase"] = catalogue()["westeurope"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "lat", "lon"),
    [("westeurope", 52.37, 4.90), ("southeastasia", 1.28, 103.83), ("spaincentral", 40.43, -3.42), ("sa-east-1", -22.70, -47.37)],
)
def test_catalogue_places_regions(name: str, lat: float, lon: float) -> None:
    region = Region(name)
    assert region.lat is not None and region.lon is not None
    assert math.isclose(region.lat, lat, abs_tol=0.01) and math.isclose(region.lon, lon, abs_tol=0.01)


def test_coordinates_given_win_over_the_catalogue() -> None:
    region = Region("westeurope", lat=1.0, lon=2.0)
    assert (region.lat, region.lon) == (1.0, 2.0)


def test_a_region_nobody_knows_has_no_place() -> None:
    region = Region("moonbase")
    assert region.lat is None and region.lon is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"name": "  "}, "needs a name"),
        ({"lat": 90.5, "lon": 0.0}, r"lat must be within ±90 degrees, got 90\.5"),
        ({"lat": 0.0, "lon": -180.5}, r"lon must be within ±180 degrees, got -180\.5"),
        ({"lat": math.nan, "lon": 0.0}, "lat must be within"),
        ({"lat": 0.0, "lon": math.inf}, "lon must be within"),
        ({"lat": 0.0}, "lat and lon go together"),
        ({"lon": 0.0}, "lat and lon go together"),
        ({"units": 0}, "units must be a whole number, at least 1, got 0"),
        ({"units": math.nan}, "units must be a whole number"),
        ({"addresses": ["192.0.2.256"]}, r"192\.0\.2\.256"),
    ],
)
def test_a_region_that_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Region(**({"name": "here"} | arguments))  # type: ignore[arg-type]


def test_one_address_must_still_be_a_sequence() -> None:
    with pytest.raises(TypeError, match="sequence of addresses, got one string"):
        Region("here", addresses="192.0.2.1")  # type: ignore[arg-type]
