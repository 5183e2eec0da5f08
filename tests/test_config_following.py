"""`[sync]`: whom a node follows, and files whose regions come from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lbcore import Balancer, ConfigError
from lbcore.config import parse

PRIMARY = "https://primary.example:9180"


def refused(data: dict[str, Any], folder: Path = Path()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(data, folder=folder)
    return [violation.where.removeprefix("settings: ") for violation in caught.value.violations]


def test_a_file_that_follows_needs_no_regions_and_says_whom() -> None:
    settings = parse({"sync": {"primary": PRIMARY + "/"}, "http": {}, "dns": {}})
    assert settings.roles == ("front-door", "dns") and settings.regions == ()
    following = settings.following
    assert following is not None and following.primary == PRIMARY and following.interval == 10.0 and following.keep == Path("state")
    assert following.token is None and following.name
    with pytest.raises(ConfigError, match="the primary"):
        Balancer(**settings.balancer_options())
    assert parse({"service": {"regions": [{"name": "westus2"}]}}).following is None


def test_files_are_beside_the_configuration_and_the_token_is_its_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o640)
    sync = {"primary": PRIMARY, "token": "token", "ca": "ca.pem", "keep": "", "name": "edge-1"}
    assert refused({"sync": sync}, tmp_path) == ["sync.token", "sync.ca"] or refused({"sync": sync}, tmp_path) == ["sync.ca", "sync.token"]
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "ca.pem").write_text("")
    following = parse({"sync": sync}, folder=tmp_path).following
    assert following is not None and (following.token, following.ca, following.keep) == (tmp_path / "token", tmp_path / "ca.pem", None)


@pytest.mark.parametrize(
    "sync",
    [
        {}, {"primary": ""}, {"primary": "primary"}, {"primary": "http://10.0.0.1:9180"}, {"primary": "https://u:p@primary"}, {"primary": "ftp://x"},
        {"primary": "https://primary:0"}, {"primary": "https://primary:99999"}, {"primary": "https://primary?a=b"},
        {"primary": PRIMARY, "interval": 0.01}, {"primary": PRIMARY, "name": "a/b"}, {"primary": PRIMARY, "interval_seconds": 3},
        {"primary": PRIMARY, "token": "absent"},
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused(sync: dict[str, Any]) -> None:
    assert refused({"sync": sync}) == [f"sync.{key}" for key in [[*sync][-1] if sync else "primary"]]


def test_a_gateway_that_follows_has_no_document_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "apis.toml").write_text("")
    sync, gateway = {"primary": PRIMARY}, {"region": "westus2", "configuration": "apis.toml"}
    assert refused({"sync": sync, "gateway": gateway}, tmp_path) == ["gateway.configuration"]
    assert parse({"sync": sync, "gateway": {"region": "westus2"}}).following
    assert refused({"gateway": {"region": "westus2"}, "service": {}}) == ["gateway.region", "service.regions"]
