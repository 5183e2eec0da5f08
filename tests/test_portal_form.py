"""Drafts: what the page sends is read strictly, and wishes for exactly what its rows say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.service.portal.form import Draft, read, wish

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
TEXTS = st.text(max_size=20).map(str.strip)
DRAFTS = st.builds(
    Draft, TEXTS, st.sampled_from(["kept", "draft-add", "draft-change", "draft-delete"]), st.integers(-5, 50),
    st.lists(TEXTS, max_size=3).map(tuple), st.booleans(), TEXTS, TEXTS, st.dictionaries(st.just("geo"), JSON),
)  # fmt: skip
PRIMARY = Draft("West US 2", units=2)


@given(st.lists(DRAFTS, max_size=5))
def test_rows_come_back_as_they_were(rows: list[Draft]) -> None:
    assert read([PRIMARY.as_json(), *(row.as_json() for row in rows)]) == (PRIMARY, *rows)


@given(st.lists(JSON.map(json.dumps) | st.text(max_size=30), max_size=4))
def test_whatever_is_sent_is_read_or_refused(values: list[str]) -> None:
    try:
        read(values)
    except ValueError as error:
        assert str(error)


@given(st.sampled_from(["name", "state", "units", "zones", "disableGateway", "subnet", "publicIp", "carried"]), JSON)
def test_a_field_of_another_kind_is_refused(key: str, value: Any) -> None:
    row = json.loads(PRIMARY.as_json())
    kinds = {"units": int, "zones": list, "disableGateway": bool, "carried": dict}
    fits = type(value) is kinds.get(key, str) and (key != "zones" or all(isinstance(each, str) for each in value))
    if key == "state":
        fits = value in ("kept", "draft-change")
    row[key] = value
    if fits:
        read([json.dumps(row)])
    else:
        with pytest.raises(ValueError, match="."):
            read([json.dumps(row)])


@pytest.mark.parametrize(
    "values",
    [
        [], ["{}"], ["[" * 20_000], ["x" * 20_000], ["{" * 9_000], [Draft("a", "draft-delete").as_json()],
        [Draft("a", "draft-add").as_json()],
        [PRIMARY.as_json()] * 1001, ['{"name": "a", "name": 1}'], [PRIMARY.as_json().replace('"units": 2', '"units": true')],
    ],
)  # fmt: skip
def test_forms_that_the_page_never_sends(values: list[str]) -> None:
    with pytest.raises(ValueError, match="."):
        read(values)


def test_the_wish_is_the_whole_list() -> None:
    rows = (
        Draft("West US 2", "draft-change", 4, ("1", "2"), subnet="/s/a", public_ip="/p/a"),
        Draft("West Europe", "kept", 3, carried={"geo": {"lat": 1, "lon": 2}, "virtualNetworkConfiguration": {"location": "westeurope"}}),
        Draft("East Asia", "draft-delete"),
        Draft("japaneast", "draft-add", 2, disable_gateway=True, subnet="/s/b"),
    )
    assert wish(rows, "Premium", "External") == {
        "sku": {"name": "Premium", "capacity": 4},
        "zones": ["1", "2"],
        "properties": {
            "disableGateway": False, "virtualNetworkConfiguration": {"subnetResourceId": "/s/a"}, "publicIpAddressId": "/p/a",
            "virtualNetworkType": "External",
            "additionalLocations": [
                {
                    "geo": {"lat": 1, "lon": 2}, "location": "West Europe", "sku": {"capacity": 3}, "zones": [], "disableGateway": False,
                    "virtualNetworkConfiguration": None, "publicIpAddressId": None,
                },
                {
                    "location": "japaneast", "sku": {"capacity": 2}, "zones": [], "disableGateway": True,
                    "virtualNetworkConfiguration": {"subnetResourceId": "/s/b"}, "publicIpAddressId": None,
                },
            ],
        },
    }  # fmt: skip
