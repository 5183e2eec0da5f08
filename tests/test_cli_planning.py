"""Wishes in files mean the same to `regions save` as to a primary that founds its service with them; anything else is refused in a line."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from deployment import tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lbcore.cli.app import app
from lbcore.cli.common import Failure
from lbcore.cli.planning import Wish, plan_alone
from lbcore.config import load
from lbcore.errors import LbcoreError
from lbcore.service.body import accepted, from_body
from lbcore.service.founding import service_of

REGIONS = ("westus2", "West Europe", "eastasia", "UK South", "japaneast", "canadaeast")
FOLDER = "/subscriptions/s/resourceGroups/r/providers/Microsoft.Network"
quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def entries(draw: st.DrawFn, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name}
    found |= draw(st.fixed_dictionaries({}, optional={
        "units": st.sampled_from([1, 2, 3, 6]), "enabled": st.booleans(), "gateway": st.just("http://127.0.0.1:8081"),
        "zones": st.lists(st.sampled_from("123"), unique=True),
    }))  # fmt: skip
    if draw(st.booleans()):
        found |= {"lat": draw(st.floats(-90, 90)), "lon": draw(st.floats(-180, 180))}
    return found


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(REGIONS), unique=True, min_size=1))
    first, *others = [draw(entries(name)) for name in names]
    service: dict[str, Any] = {"name": "contoso", "domain": "example.net"}
    if mode := draw(st.sampled_from(["", "None", "External", "Internal"])):
        service["virtual_network_type"] = mode
    if mode in ("External", "Internal"):
        for entry in (first, *others):
            subnet = f"{FOLDER}/virtualNetworks/v/subnets/n"
            entry["virtual_network"] = {"subnet_resource_id": subnet, "location": entry["name"]}
    return {"service": service, "service.primary": first, "service.regions": others, "management": {}}


@quick
@given(files())
def test_a_file_means_the_same_to_save_and_at_the_first_start(tmp_path: Path, document: dict[str, Any]) -> None:
    file = tmp_path / "wish.toml"
    file.write_text(tables(document))
    founded = service_of(load(file))
    wish = Wish(file)
    body = wish.body("")
    body["properties"]["domain"] = wish.domain
    read, wrong = from_body(body, "contoso")
    assert wrong == []
    assert read == founded


@quick
@given(files(), st.integers(0, 5))
def test_rows_stand_where_the_primary_is(tmp_path: Path, document: dict[str, Any], place: int) -> None:
    """Of a file without a primary the service's own is that row, wherever it stands; without such a row nothing is said of it."""
    first, others = document.pop("service.primary"), document["service.regions"]
    others.insert(min(place, len(others)), first)
    del document["management"]
    for entry in others:
        for key in ("zones", "virtual_network"):
            entry.pop(key, None)
    document["service"] = {"name": "contoso"}
    file = tmp_path / "wish.toml"
    file.write_text(tables(document))
    primary = "".join(first["name"].split()).lower()
    body = Wish(file).body(primary)
    assert body["location"] == first["name"]
    assert [row["location"] for row in body["properties"]["additionalLocations"]] == [row["name"] for row in others if row is not first]
    elsewhere = Wish(file).body("brazilsouth")
    assert "location" not in elsewhere
    assert len(elsewhere["properties"]["additionalLocations"]) == len(others)


@quick
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(string.printable, max_size=8),
                    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.sampled_from(
                        ["service", "primary", "regions", "name", "units", "zones", "location", "sku", "properties", "additionalLocations"]
                    ), each, max_size=4), max_leaves=12))  # fmt: skip
def test_whatever_stands_in_a_file_is_a_plan_or_a_refusal(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "wish.json"
    file.write_text(json.dumps(content))
    try:
        assert "sla" in plan_alone(Wish(file), "contoso")
    except (Failure, LbcoreError) as error:
        assert str(error)


@pytest.mark.parametrize("text", [
    "", "[service", "service = 1", "[service]\nregions = 1", "[[service.regions]]\nname = 1", "[service]\nzones = []",
    "[service]\nprimary = 3", "[[service.regions]]\nname = 'eastus'\nzones = 'x'", "\x00", "[management]\n",
])  # fmt: skip
def test_a_file_of_toml_that_is_no_wish(tmp_path: Path, text: str) -> None:
    file = tmp_path / "wish.toml"
    file.write_text(text)
    done = CliRunner().invoke(app, ["regions", "plan", str(file), "--offline"])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2
    assert done.stderr.startswith("lbcore: ")


def test_the_plan_alone_is_that_of_a_service_that_begins(tmp_path: Path) -> None:
    file = tmp_path / "wish.toml"
    file.write_text('[service]\nname = "contoso"\n[service.primary]\nname = "westus2"\n')
    plan = plan_alone(Wish(file), "")
    wanted = accepted(Wish(file).body(""), "contoso", None)
    assert [step["name"] for step in plan["creates"]] == [each.name for each in wanted.locations]
    assert plan["sla"] == 99.95
