"""`regions` against the real management API: what they change, print, and end with."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from managing import PATIENCE, TIMES, Managed, asked, given_json, lbcore, managed, names, ok, refused, saved, state

from lbcore.cli import deployment, regions
from lbcore.service.provisioning import Manual

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    with managed(tmp_path_factory.mktemp("plane"), "westeurope") as made:
        yield made


@pytest.fixture
def made(served: Managed) -> Iterator[Managed]:
    """Give the management plane, and leave it with West US 2 and West Europe, one unit each."""
    yield served
    served.regions.broken.clear()
    served.regions.gate.set()
    served.settled()
    if [(each.name, each.units) for each in state(served).service.locations] != [("westus2", 1), ("westeurope", 1)]:
        wish = {"sku": {"capacity": 1}, "properties": {"additionalLocations": [{"location": "westeurope"}]}}
        ok(served, "regions", "save", saved(served, wish), "--acknowledge-vip-change", "--force", "--yes")


# ===== list


def test_the_regions_are_listed(made: Managed) -> None:
    rows = given_json(made, "regions", "list", role="reader")["locations"]
    assert [(row["name"], row["primary"], row["provisioningState"]) for row in rows] == [
        ("westus2", True, "Succeeded"), ("westeurope", False, "Succeeded"),
    ]  # fmt: skip
    assert {row["endpointMonitorStatus"] for row in rows} <= {"Online", "CheckingEndpoint"}
    lines = ok(made, "regions", "list", role="reader").splitlines()
    assert re.search(r"West US 2 +westus2 \(primary\) +1 +automatic +Succeeded +\w+ +203\.0\.113\.\d+ +http://westus2\.test", lines[1])


# ===== one row


def test_a_region_comes_grows_and_goes(made: Managed) -> None:
    said = asked(made, "regions", "add", "East Asia", "--units", "2", "--why", "clients in Asia ☃")
    assert said.exit_code == 0, said.stderr
    assert re.search(r"create +East Asia +2 units", said.stdout)
    assert "sla: 99.99" in said.stdout
    assert re.search(r"^eastasia: Succeeded.*100 %$", said.stderr, re.MULTILINE)
    assert re.search(r"operation \w+: Succeeded", said.stdout)
    assert names(made) == ["westus2", "westeurope", "eastasia"]
    assert any(entry.why == "clients in Asia ☃" for entry in made.store.history())
    grown = given_json(made, "regions", "scale", "eastasia", "--units", "3")
    assert (grown["status"], grown["locations"]["eastasia"]["status"]) == ("Succeeded", "Succeeded")
    assert state(made).service.get("eastasia").units == 3
    assert [each.name for each in state(made).service.locations if each.units == 3] == ["eastasia"]
    ok(made, "regions", "remove", "EastAsia", "--yes")
    assert names(made) == ["westus2", "westeurope"]
    assert "eastasia" not in state(made).states


def test_without_yes_nothing_is_removed(made: Managed) -> None:
    assert "--yes" in refused(made, 2, "regions", "remove", "westeurope")
    assert "--yes" in lbcore("regions", "remove", "westeurope", "--url", "http://127.0.0.1:9").stderr


def test_the_primary_scales_and_stays(made: Managed) -> None:
    ok(made, "regions", "scale", "westus2", "--units", "2")
    assert state(made).service.primary.units == 2
    said = refused(made, 2, "regions", "remove", "West US 2", "--yes")
    assert "CannotRemovePrimary" in said
    assert "lbcore promote" in said


def test_a_region_is_switched_off_and_on(made: Managed) -> None:
    ok(made, "regions", "scale", "westeurope", "--disable")
    assert state(made).service.get("westeurope").disable_gateway
    assert "CannotDisableAllGateways" in refused(made, 3, "regions", "scale", "westus2", "--disable")
    assert "disabled" in ok(made, "regions", "list")
    ok(made, "regions", "scale", "westeurope", "--enable")
    assert not state(made).service.get("westeurope").disable_gateway


@pytest.mark.parametrize(
    ("code", "args", "words"),
    [
        (2, ["add", "westeurope"], "DuplicateLocation"),
        (2, ["add", "westeurop"], "LocationNotAvailable"),
        (2, ["add", "eastasia", "--units", "0"], "InvalidSkuCapacity"),
        (2, ["add", "eastasia", "--zones", "1,1"], "InvalidZone"),
        (2, ["add", "eastasia", "--subnet", "x"], "InvalidResourceId"),
        (2, ["scale", "westeurope"], "--units"),
        (4, ["scale", "westeurop", "--units", "2"], "'westeurope'"),
        (4, ["remove", "eastasia", "--yes"], "eastasia"),
        (2, ["save", "none.txt.toml.json"], "no such file"),
        (4, ["wait", "0123"], "0123"),
        (3, ["cancel"], "over"),
    ],
)
def test_what_is_refused_changes_nothing(made: Managed, code: int, args: list[str], words: str) -> None:
    if args[0] == "save":
        code = 4
    assert words in refused(made, code, "regions", *args)


def test_vip_changes_must_be_acknowledged(made: Managed) -> None:
    said = refused(made, 3, "regions", "scale", "westeurope", "--zones", "1")
    address = state(made).of("westeurope").public_ips[0]
    assert f"VIP change: West Europe: public, now {address}, because of zones" in said
    assert "--acknowledge-vip-change" in said
    alone = asked(made, "regions", "scale", "westeurope", "--zones", "1", "--json")
    assert (alone.exit_code, alone.stdout) == (3, "")
    assert address in alone.stderr
    ok(made, "regions", "scale", "westeurope", "--zones", "1", "--acknowledge-vip-change")
    assert state(made).of("westeurope").public_ips[0] != address
    ok(made, "regions", "scale", "westeurope", "--zones", "", "--acknowledge-vip-change")


# ===== operations


def test_all_violations_are_a_table(made: Managed) -> None:
    rows = [{"location": "westus2"}, {"location": "atlantis", "colour": 1}]
    wish = {"sku": {"capacity": 99}, "properties": {"additionalLocations": rows}}
    said = refused(made, 2, "regions", "save", saved(made, wish))
    for code in ("InvalidSkuCapacity", "DuplicateLocation", "LocationNotAvailable", "UnknownProperty"):
        assert re.search(rf"^{code} +\S", said, re.MULTILINE), said


def test_no_wait_wait_and_conflict(made: Managed, monkeypatch: pytest.MonkeyPatch) -> None:
    made.regions.gate.clear()
    started = given_json(made, "regions", "add", "eastasia", "--no-wait")
    assert started["status"] == "InProgress"
    said = refused(made, 3, "regions", "add", "uksouth")
    assert "OperationInProgress" in said
    assert "lbcore regions wait" in said
    monkeypatch.setattr(deployment, "_pause", made.regions.gate.set)
    done = asked(made, "regions", "wait")
    assert done.exit_code == 0
    lines = [line.partition(",")[0] for line in done.stderr.splitlines()]
    assert lines[0] in ("eastasia: waiting", "eastasia: Activating")
    assert lines[-1] == "eastasia: Succeeded"
    assert "Succeeded" in done.stdout
    assert given_json(made, "regions", "wait", started["id"])["status"] == "Succeeded"


def test_regions_take_up_what_was_changed_around_them(made: Managed) -> None:
    before = {name: one.public_ips for name, one in state(made).states.items()}
    done = given_json(made, "regions", "refresh")
    assert ([*done["locations"]], done["kind"]) == (["westus2", "westeurope"], "network")
    assert [*given_json(made, "regions", "refresh", "West Europe")["locations"]] == ["westeurope"]
    assert {name: one.public_ips for name, one in state(made).states.items()} == before
    refused(made, 4, "regions", "refresh", "eastasia")


def test_an_operation_is_taken_back_before_it_begins(tmp_path: Path) -> None:
    with managed(tmp_path) as made:
        made.plane.runner._times = replace(TIMES, hold=PATIENCE)
        started = given_json(made, "regions", "add", "eastasia", "--no-wait")
        assert given_json(made, "regions", "cancel")["status"] == "Canceled"
        assert names(made) == ["westus2"]
        assert asked(made, "regions", "wait", started["id"]).exit_code == 3


def test_ctrl_c_ends_the_command_alone(made: Managed, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    made.regions.gate.clear()
    monkeypatch.setattr(deployment, "_pause", interrupted)
    done = asked(made, "regions", "add", "eastasia")
    assert done.exit_code == 130
    assert "lbcore regions wait" in done.stderr
    made.regions.gate.set()
    made.settled()
    assert names(made) == ["westus2", "westeurope", "eastasia"]


def test_a_region_that_fails_ends_5_and_is_carried_on_with(made: Managed) -> None:
    made.regions.broken.add("eastasia")
    done = asked(made, "regions", "add", "eastasia")
    assert done.exit_code == 5
    assert re.search(r"eastasia +Failed +.*quota exceeded", done.stdout)
    assert "save the same again" in done.stderr
    assert [step["name"] for step in given_json(made, "regions", "plan")["creates"]] == ["eastasia"]
    made.regions.broken.clear()
    ok(made, "regions", "save")
    assert state(made).of("eastasia").provisioning_state == "Succeeded"
    assert "nothing to do" in ok(made, "regions", "plan")
    assert "nothing to deploy" in ok(made, "regions", "save")


def test_somebody_else_was_faster(made: Managed, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = regions._plan

    def slow(*args: Any) -> Any:
        found = planned(*args)
        made.store.save(state(made), who="bob", what="touch")
        return found

    monkeypatch.setattr(regions, "_plan", slow)
    said = refused(made, 3, "regions", "scale", "westus2", "--units", "2")
    assert "PreconditionFailed" in said
    assert "look again" in said


def test_regions_that_people_make(tmp_path: Path) -> None:
    with managed(tmp_path, provisioner=(manual := Manual()), founded=False) as made:

        def asks(work: str) -> int:
            deadline = time.monotonic() + PATIENCE
            while not (found := given_json(made, "regions", "orders", role="reader")["orders"]):
                assert time.monotonic() < deadline
            assert [(each["work"], each["name"]) for each in found] == [(work, "westus2")]
            return int(found[0]["id"])

        wish = saved(made, '[service]\nname = "contoso"\n[service.primary]\nname = "westus2"\nunits = 2\n', "wish.toml")
        ok(made, "regions", "save", wish, "--no-wait")
        order = asks("create")
        assert re.search(rf"{order} +create +westus2 +2 ", ok(made, "regions", "orders"))
        assert asked(made, "regions", "answer", "westus2", "99", "--address", "192.0.2.1").exit_code == 4
        assert asked(made, "regions", "answer", "westus2", order, "--refuse", "no", "--address", "192.0.2.1").exit_code == 2
        ok(made, "regions", "answer", "West US 2", order, "--refuse", "no machine is left")
        made.settled()
        assert "no machine is left" in asked(made, "regions", "wait").stdout
        ok(made, "regions", "save", "--no-wait")
        made.regions._there["westus2"] = "192.0.2.1"
        ok(made, "regions", "answer", "westus2", asks("create"), "--address", "192.0.2.1", "--gateway", "http://192.0.2.1:8081")
        ok(made, "regions", "wait")
        assert (state(made).of("westus2").public_ips, manual.requests) == (("192.0.2.1",), ())


# ===== plan and save


def test_a_plan_of_a_file_says_what_save_then_does(made: Managed) -> None:
    toml = '[service.primary]\nname = "westus2"\nunits = 2\n[[service.regions]]\nname = "eastasia"\nunits = 3\n'
    file = saved(made, toml, "wish.toml")
    plan = given_json(made, "regions", "plan", file)
    assert plan["from"] == "service"
    steps = [(step["action"], step["name"]) for key in ("creates", "updates", "deletes") for step in plan[key]]
    assert steps == [("create", "eastasia"), ("update", "westus2"), ("delete", "westeurope")]
    assert names(made) == ["westus2", "westeurope"], "a plan changes nothing"
    text = ok(made, "regions", "plan", file, role="reader")
    for words in ("update  West US 2    1 -> 2 units", "delete  West Europe", "failover: down ", "sla: 99.99"):
        assert words in text
    assert "--yes" in refused(made, 2, "regions", "save", file), "it removes West Europe"
    done = given_json(made, "regions", "save", file, "--yes")
    assert [*done["locations"]] == ["eastasia", "westus2", "westeurope"]
    assert [(each.name, each.units) for each in state(made).service.locations] == [("westus2", 2), ("eastasia", 3)]
    assert given_json(made, "regions", "plan", file)["empty"]


def test_a_file_without_a_primary_leaves_it_alone(made: Managed) -> None:
    file = saved(made, '[[service.regions]]\nname = "westeurope"\n[[service.regions]]\nname = "West US 2"\n', "wish.toml")
    assert given_json(made, "regions", "plan", file)["empty"]
    file = saved(made, '[[service.regions]]\nname = "westeurope"\n', "wish.toml")
    assert given_json(made, "regions", "plan", file)["empty"]
    file = saved(made, '[service.primary]\nname = "westeurope"\n', "wish.toml")
    assert "PropertyChangeNotAllowed" in refused(made, 2, "regions", "save", file)


def test_a_plan_needs_no_management_plane() -> None:
    done = lbcore("regions", "plan", ROOT / "examples" / "three-regions.toml", "--offline")
    assert done.exit_code == 0, done.stderr
    assert "sla: 99.99" in done.stdout.splitlines()
    assert re.search(r"create +West Europe +3 units", done.stdout)
    assert lbcore("regions", "plan", ROOT / "examples" / "three-regions.toml").stdout == done.stdout, "whoever listens there"
    found = json.loads(lbcore("regions", "plan", ROOT / "examples" / "three-regions.toml", "--offline", "--json").stdout)
    assert (found["from"], found["sla"], len(found["creates"])) == ("file", 99.99, 3)


def test_zones_and_networks_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "wish.toml"
    subnet = "/subscriptions/s/resourceGroups/r/providers/Microsoft.Network/virtualNetworks/v/subnets/n"
    file.write_text(
        f"""[service]\ntier = "Premium"\nvirtual_network_type = "External"\n[service.primary]\nname = "westus2"\nunits = 3\n"""
        f"""zones = ["1", "2", "3"]\nvirtual_network = {{ subnet_resource_id = "{subnet}", location = "westus2" }}\n"""
    )
    done = lbcore("regions", "plan", file, "--offline", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["sla"] == 99.99
    file.write_text(file.read_text().replace("units = 3", "units = 4"))
    assert "UnitsNotMultipleOfZones" in lbcore("regions", "plan", file, "--offline").stderr


def test_a_plan_of_a_file_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "lbcore.toml"
    file.write_text('[[service.regions]]\nname = "westus2"\n[[service.regions]]\nname = "westeurope"\nunits = 99\n')
    done = lbcore("regions", "plan", file, "--offline")
    assert done.exit_code == 2
    assert "InvalidSkuCapacity" in done.stderr
    file.write_text('[management]\nprimary = "http://127.0.0.1:9180"\n')
    assert "names no region" in lbcore("regions", "plan", file, "--offline").stderr, "or it would remove them all"
    for text in ("[1]", "{", "null"):
        (tmp_path / "wish.json").write_text(text)
        assert lbcore("regions", "plan", tmp_path / "wish.json", "--offline").exit_code == 2


def test_a_service_that_is_not_there_is_created(tmp_path: Path) -> None:
    with managed(tmp_path, founded=False) as made:
        assert asked(made, "regions", "list").exit_code == 4
        file = tmp_path / "three.toml"
        file.write_text('[service]\nname = "contoso"\ndomain = "example.net"\n[[service.regions]]\nname = "eastasia"\n')
        done = asked(made, "regions", "save", file)
        assert done.exit_code == 0, done.stderr
        assert (state(made).service.primary.name, state(made).service.domain) == ("eastasia", "example.net")


# ===== whom it asks


@pytest.mark.parametrize("args", [("regions", "list"), ("regions", "add", "eastasia"), ("config", "revisions"), ("config", "win", "--yes")])
def test_nobody_answers(args: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = lbcore(*args, "--url", f"http://127.0.0.1:{port}")
    assert (done.exit_code, done.stdout) == (5, "")
    assert "nobody answers" in done.stderr
    assert "regions serve on" in done.stderr
    wrong = lbcore("regions", "plan", ROOT / "examples" / "three-regions.toml", "--url", f"http://127.0.0.1:{port}")
    assert wrong.exit_code == 5, "who names a management plane wants its plan"


@pytest.mark.parametrize("url", ["", "ftp://127.0.0.1", "http://", "127.0.0.1:9180", "http://a@127.0.0.1", "http://127.0.0.1:x", "http://127.0.0.1/?a=b"])
def test_a_url_that_is_none(url: str) -> None:
    done = lbcore("regions", "list", "--url", url)
    assert done.exit_code == 2
    assert "--url" in done.stderr


def test_a_token_goes_over_no_open_network(made: Managed) -> None:
    done = lbcore("regions", "list", "--url", "http://192.0.2.1:9180", "--token-file", made.token())
    assert done.exit_code == 2
    assert "https" in done.stderr
    assert made.token().read_text().strip() not in done.stderr


def test_who_may_not(made: Managed, tmp_path: Path) -> None:
    assert "lbcore token create" in lbcore("regions", "list", "--url", made.url).stderr
    assert lbcore("regions", "list", "--url", made.url).exit_code == 2
    assert "another role" in refused(made, 2, "regions", "add", "eastasia", role="reader")
    assert "another role" in refused(made, 2, "config", "win", "--yes")
    for content in (b"", b"a b", b"\xff", b"lbcore_\n_x"):
        (tmp_path / "bad").write_bytes(content)
        assert lbcore("regions", "list", "--url", made.url, "--token-file", tmp_path / "bad").exit_code == 2
    assert lbcore("regions", "list", "--url", made.url, "--token-file", tmp_path / "none").exit_code == 4


def test_the_environment_says_where(made: Managed) -> None:
    done = lbcore("regions", "list", LBCORE_URL=made.url, LBCORE_TOKEN_FILE=str(made.token()))
    assert done.exit_code == 0, done.stderr
    assert lbcore("regions", "list", LBCORE_URL=made.url, LBCORE_TOKEN_FILE=str(made.token()), LBCORE_SERVICE="fabrikam").exit_code == 4
