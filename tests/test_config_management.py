"""`[management]` and the keys of a service that is provisioned: what they mean, and that everything wrong with them is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from edging import rotation

from lbcore import ConfigError
from lbcore.config import parse, read
from lbcore.config.management import Management, plane_url
from lbcore.service.edge import settings_of

SERVICE = {"name": "contoso", "primary": {"name": "West US 2"}, "regions": [{"name": "westeurope"}]}


def wrong(data: dict[str, Any], folder: Path = Path()) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        parse(data, folder=folder)
    return {violation.where.removeprefix("settings: "): violation.expected for violation in caught.value.violations}


def test_a_management_plane_needs_nothing_but_its_table() -> None:
    settings = parse({"management": {}})
    assert settings.roles == ("management",) and settings.regions == () and settings.following is None
    section = settings.document.management
    assert section is not None and plane_url(section) == "http://127.0.0.1:9180"
    assert parse({"service": SERVICE, "management": {}}).primary is not None


def test_where_others_reach_it() -> None:
    assert plane_url(Management(listen="0.0.0.0:1", certificate="c", key="k")) == "https://127.0.0.1:1"
    assert plane_url(Management(listen="[::1]:7")) == "http://[::1]:7"
    assert plane_url(Management(url="https://primary.example/")) == "https://primary.example"
    assert plane_url(Management(listen="127.0.0.1:0"), ("127.0.0.1", 41)) == "http://127.0.0.1:41"


def test_the_world_is_not_listened_to_without_tls(tmp_path: Path) -> None:
    assert [*wrong({"management": {"listen": "192.0.2.1:9180"}})] == ["management.certificate", "management.key"]
    (tmp_path / "c.pem").touch()
    found = wrong({"management": {"certificate": "c.pem", "key": "k.pem", "standby_token": "t", "store": "a/b"}}, tmp_path)
    assert [*found] == ["management.key", "management.standby_token", "management.store"]
    assert [*wrong({"management": {"certificate": "c.pem"}}, tmp_path)] == ["management.key"]
    (tmp_path / "k.pem").touch()
    assert parse({"management": {"listen": "192.0.2.1:9180", "certificate": "c.pem", "key": "k.pem"}}, folder=tmp_path)


def test_urls_are_safe_to_show_a_token_to() -> None:
    found = wrong(
        {"management": {"url": "http://example.com", "standby": ["https://a.example", "ftp://b"], "primary": "http://x@localhost"}}
    )
    assert [*found] == ["management.url", "management.standby[1]", "management.primary"]


def test_a_node_that_names_the_primary_manages_nothing() -> None:
    section = {"primary": "https://primary.example:9180", "standby": [], "provisioner": {"kind": "local"}}
    assert [*wrong({"management": section})] == ["management.standby", "management.provisioner"]
    settings = parse({"management": {"primary": "https://primary.example:9180"}, "service": {"regions": [{"name": "westus2"}]}})
    assert settings.roles == ("management",)


def test_settings_that_would_do_nothing_are_refused() -> None:
    regions = [{"name": "westeurope", "zones": ["1"], "virtual_network": {"subnet_resource_id": "x"}}]
    found = wrong({"service": {"tier": "Basic", "virtual_network_type": "Internal", "regions": regions}})
    assert [*found] == ["service.tier", "service.virtual_network_type", "service.regions[0].zones", "service.regions[0].virtual_network"]
    assert all("without [management]" in text for text in found.values())
    beside = {"primary": {"name": "westus2", "addresses": ["192.0.2.1"]}, "regions": [{"name": "westeurope", "always_serve": True}]}
    found = wrong({"service": beside, "management": {}})
    assert [*found] == ["service.primary.addresses", "service.regions[0].always_serve"]
    assert wrong({"service": {"regions": [{"name": "westeurope"}]}, "management": {}}).keys() == {"service.primary"}


def test_wrong_keys_name_the_right_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"management": {"strore": "x", "provisioner": {}}, "service": SERVICE | {"max_units_per_location": 3}})
    assert {v.where.removeprefix("settings: "): v.nearest for v in caught.value.violations} == {
        "management.strore": "store", "service.max_units_per_location": "management.max_units_per_location",
    }  # fmt: skip
    found = wrong({"management": {"provisioner": {"kind": "local", "token_file": "x"}}})
    assert [*found] == ["management.provisioner.token_file"]
    assert [*wrong({"management": {"provisioner": {}}})] == ["management.provisioner.kind"]


def test_addresses_are_listened_on_once() -> None:
    assert [*wrong({"service": SERVICE, "management": {"listen": "127.0.0.1:8080"}, "http": {}})] == ["http.listen[0]"]


def test_a_node_that_manages_serves_by_its_own_rotation_too() -> None:
    file = read(b'[service]\nname = "contoso"\n[service.primary]\nname = "West US 2"\n[management]\n[http]\n[sync]\n', "lbcore.toml")
    made = settings_of(file, rotation((1, 6)))
    assert [(region.name, region.addresses) for region in made.regions] == [("westeurope", ("192.0.2.1",))]
    assert made.following == file.following is not None
