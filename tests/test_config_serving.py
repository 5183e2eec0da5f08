"""`[http]`, `[gateway]` and `[run]` of lbcore.toml: defaults, what they become, and what is wrong with them, all at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lbcore import Balancer, ConfigError
from lbcore.cli.checking import check, check_all
from lbcore.cli.sharing import StaleError, Table, databases, join
from lbcore.config import Settings, load, parse
from lbcore.http.configured import engine_options, front_door, retry_budget
from lbcore.http.forward import Limits, Timeouts
from lbcore.http.front import FrontDoor

REGIONS: dict[str, Any] = {"regions": [{"name": "westeurope", "gateway": "http://127.0.0.1:1"}, {"name": "eastus"}]}


def of(folder: Path = Path(), **tables: Any) -> Settings:
    return parse({"service": REGIONS} | tables, "x.toml", folder)


def violations(folder: Path = Path(), **tables: Any) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        of(folder, **tables)
    return {each.where.removeprefix("x.toml: "): f"{each.expected} {each.nearest or ''}" for each in caught.value.violations}


def test_a_table_is_what_asks_for_a_role() -> None:
    assert of().roles == ()
    assert of(http={}, dns={}, gateway={"region": "West Europe"}).roles == ("front-door", "gateway", "dns")
    assert of(http={}).transport_options() == {"retries": 2, "keep_host": False}


def test_what_is_not_said_is_the_engines_default() -> None:
    assert engine_options(of(http={}).document.http) == {"trusted": [], "limits": Limits(), "timeouts": Timeouts()}
    said = of(http={"timeouts": {"head": 1.0, "total": 3}, "limits": {"body": 5}, "trusted": ["10.0.0.0/8"]}).document.http
    assert engine_options(said) == {"trusted": ["10.0.0.0/8"], "limits": Limits(body=5), "timeouts": Timeouts(head=1.0, total=3.0)}


def test_a_front_door_of_all_keys(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 16)
    settings = of(tmp_path, http={
        "retries": 1, "keep_host": True, "explain_to": ["127.0.0.0/8"], "patience": 0.5, "cut_streams": True, "workers": 4,
        "affinity": {"secret": "secret", "cookie": "at", "max_age": 60}, "budget": {"ratio": 0.5, "minimum": 8, "window": 5},
    })  # fmt: skip
    check(settings, ["front-door"])
    budget = retry_budget(settings, 4)
    assert budget.balance == 2 * 5, "a worker's share of the minimum"
    assert isinstance(front_door(settings, Balancer(settings.regions), FrontDoor, budget, name="x"), FrontDoor)


def test_unknown_keys_are_named_with_the_nearest() -> None:
    http = {"workes": 2, "timeouts": {"heat": 1}, "budget": {"ration": 1}}
    found = violations(http=http, gateway={"reg": "x", "unit": {"concurency": 1}})
    assert "workers" in found["http.workes"]
    assert "head" in found["http.timeouts.heat"] and "ratio" in found["http.budget.ration"]
    assert "concurrency" in found["gateway.unit.concurency"] and "region" in found["gateway.reg"] and "gateway.region" in found


@pytest.mark.parametrize(("table", "value", "where"), [
    ("http", {"listen": "8080"}, "http.listen"), ("http", {"workers": 0}, "http.workers"),
    ("http", {"trusted": ["10.0.0.1/8"]}, "http.trusted"), ("http", {"affinity": {"secret": "x", "cookie": "a b"}}, "http.affinity.cookie"),
    ("http", {"listen": []}, "http.listen"), ("http", {"timeouts": {"idle": 0}}, "http.timeouts.idle"), ("run", {"grace": -1}, "run.grace"),
    ("http", {"patience": float("nan")}, "http.patience"), ("http", {"access_log_sample": 0}, "http.access_log_sample"),
    ("http", {"listen": ["127.0.0.1:80", "127.0.0.1:80"]}, "http.listen"), ("run", {"metrics": "here"}, "run.metrics"),
    ("http", {"affinity": {"secret": "nowhere"}}, "http.affinity.secret"),
    ("gateway", {"region": "westeurop"}, "gateway.region"), ("gateway", {"region": "eastus", "unit": {"rate": 0}}, "gateway.unit.rate"),
    ("gateway", {"region": "eastus", "configuration": "nowhere.json"}, "gateway.configuration"),
])  # fmt: skip
def test_each_mistake_is_found(table: str, value: dict[str, Any], where: str) -> None:
    assert any(found.startswith(where) for found in violations(**{table: value}))


def test_tls_needs_both_files_and_they_must_be_there() -> None:
    found = violations(http={"listen_tls": "127.0.0.1:443", "certificate": "nowhere.pem"})
    assert "exists" in found["http.certificate"] and "listen_tls" in found["http.key"]


def test_two_roles_cannot_have_one_address() -> None:
    found = violations(http={"listen": ["127.0.0.1:8081"]}, gateway={"region": "eastus"})
    assert "http.listen" in found["gateway.listen[0]"]
    of(http={"listen": ["127.0.0.1:0"]}, gateway={"region": "eastus", "listen": "127.0.0.1:0"})


def test_check_finds_what_is_wrong_with_every_file_at_once(tmp_path: Path) -> None:
    apis = [{"name": "a", "path": "a"}, {"name": "b", "pat": "/b"}]
    (tmp_path / "apis.json").write_text(json.dumps({"epoch": 1, "sequence": 1, "apis": apis}))
    (tmp_path / "edge.pem").write_text("no certificate")
    with pytest.raises(ConfigError) as caught:
        check_all(of(tmp_path, gateway={"region": "eastus", "configuration": "apis.json"}))
    assert {each.where.rpartition(": ")[2] for each in caught.value.violations} >= {"apis[0].path", "apis[1].pat"}
    with pytest.raises(ConfigError):
        check_all(of(tmp_path, http={"listen_tls": "127.0.0.1:0", "certificate": "edge.pem", "key": "edge.pem"}))


# ===== the table that processes share


def test_who_joins_picks_from_the_same_table(tmp_path: Path) -> None:
    settings = of()
    table = Table(settings)
    other = join(settings, table.fd, table.fingerprint)
    table.lb.disable("westeurope")
    assert other.pick(None).name == "eastus"
    table.close()


def test_another_database_is_noticed(tmp_path: Path) -> None:
    settings = of()
    table = Table(settings)
    with pytest.raises(StaleError, match="database"):
        join(settings, table.fd, "another")
    table.close()


def test_a_database_that_was_replaced_looks_different(tmp_path: Path) -> None:
    (tmp_path / "lbcore.toml").write_text('[[service.regions]]\nname = "eastus"\n[latency]\ndatabase = "x.mmdb"\n')
    (tmp_path / "x.mmdb").write_bytes(b"1")
    settings = load(tmp_path / "lbcore.toml")
    before = databases(settings)
    (tmp_path / "y").write_bytes(b"2")
    os.replace(tmp_path / "y", tmp_path / "x.mmdb")
    assert databases(settings) != before
    assert settings.content.startswith(b"[[service")


def test_a_file_of_any_length_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "lbcore.toml"
    with file.open("wb") as opened:
        opened.truncate(1 << 33)
    with pytest.raises(ConfigError, match="at most 8 MiB"):
        load(file)


def test_metrics_have_an_address_of_their_own_and_logs_a_folder() -> None:
    http = {"listen": "127.0.0.1:9190", "access_log": "nowhere/calls.log"}
    assert {*violations(http=http)} == {"run.metrics", "http.access_log"}
