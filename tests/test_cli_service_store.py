"""`token`, `backup`, `restore`, `promote`: what they do to the store, print, and end with; R47, R49, R50, V25 by command."""

from __future__ import annotations

import json
import re
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from service_worlds import contoso, running
from typer.testing import CliRunner, Result

from lbcore.cli.app import app
from lbcore.errors import ServiceError
from lbcore.service.backup import LIFETIME
from lbcore.service.model import Service, new_service
from lbcore.service.promotion import LEAP
from lbcore.service.revisions import Number
from lbcore.service.store import Store
from lbcore.service.tokens import Verifier


def lbcore(*args: object) -> Result:
    return CliRunner().invoke(app, [*map(str, args)], env={"COLUMNS": "140"})


def ok(*args: object) -> str:
    done = lbcore(*args)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def given_json(*args: object) -> Any:
    return json.loads(ok(*args, "--json"))


def refused(code: int, *args: object) -> str:
    """Give what stands on stderr of a command that ends so, prints nothing else, and has no traceback."""
    done = lbcore(*args)
    assert isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, done.stdout) == (code, "")
    return done.stderr


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "primary.sqlite") as opened:
        opened.save(running(contoso("westeurope", "eastasia")), who="ann", what="save")
        for number in range(1, 6):
            opened.revisions.put(b'{"apis":[%d]}' % number, who="ann")
        yield opened


@pytest.fixture
def path(primary: Store) -> Path:
    return primary.database.path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "contoso.zip"


def service(store: Store | Path) -> Service:
    if isinstance(store, Path):
        with Store(store) as opened:
            return service(opened)
    state = store.state()
    assert state is not None
    return state.service


# ===== token


def test_a_token_is_printed_once_alone_on_stdout(path: Path, primary: Store) -> None:
    done = lbcore("token", "create", "--role", "operator", "--name", "ann", "--store", path)
    assert (done.exit_code, done.stderr) == (0, "")
    text = done.stdout.removesuffix("\n")
    assert re.fullmatch(r"lbcore_\w{12}_[\w-]{43}", text)
    found = Verifier(primary).authenticate(text)
    assert (found.role, found.name) == ("operator", "ann")
    secret = text.split("_", 2)[2]
    assert secret not in ok("token", "list", "--store", path) + ok("token", "list", "--store", path, "--json")
    assert secret.encode() not in path.read_bytes()


def test_a_token_in_a_file_is_for_its_owner_alone(path: Path, primary: Store, tmp_path: Path) -> None:
    file = tmp_path / "ann.token"
    file.write_text("old")
    file.chmod(0o644)
    said = ok("token", "create", "--role", "reader", "--name", "ann", "--store", path, "--file", file)
    text = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Verifier(primary).authenticate(text).role == "reader"
    assert text not in said
    made = given_json("token", "create", "--role", "reader", "--name", "bob", "--store", path, "--file", file)
    assert "token" not in made
    assert [*tmp_path.glob(".ann*")] == []


def test_a_file_that_cannot_be_written_makes_no_token(path: Path, primary: Store, tmp_path: Path) -> None:
    refused(4, "token", "create", "--role", "reader", "--name", "ann", "--store", path, "--file", tmp_path / "none" / "file")
    assert primary.tokens.all() == []
    refused(2, "token", "create", "--role", "king", "--name", "ann", "--store", path, "--file", tmp_path / "file")
    assert [*tmp_path.glob("*file*")] == []


def test_tokens_are_listed_and_revoked(path: Path, primary: Store) -> None:
    text = given_json("token", "create", "--role", "node", "--name", "West Europe", "--expires", "90d", "--store", path)["token"]
    [row] = given_json("token", "list", "--store", path)["tokens"]
    assert (row["role"], row["name"], row["revoked"]) == ("node", "westeurope", None)
    ends = datetime.fromisoformat(row["expires"])
    assert timedelta(days=89) < ends - datetime.now(UTC) <= timedelta(days=90)
    assert row["id"] in ok("token", "list", "--store", path)
    assert given_json("token", "revoke", row["id"], "--store", path) == {"id": row["id"], "revoked": True}
    with pytest.raises(ServiceError, match="revoked"):
        Verifier(primary).authenticate(text)
    assert row["id"] in refused(4, "token", "revoke", row["id"], "--store", path)
    assert primary.history(limit=1)[0].who.endswith("on the primary's machine")


@pytest.mark.parametrize("time", ["", "0d", "90", "-1d", "1y", "d", "99999999w", "٣d"])
def test_when_a_token_ends_is_checked(path: Path, time: str) -> None:
    assert "--expires" in refused(2, "token", "create", "--role", "reader", "--name", "a", "--expires", time, "--store", path)


def test_a_store_that_is_not_there_is_made_for_a_token_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, zip = tmp_path / "new.sqlite", tmp_path / "x.zip"
    for args in (("list",), ("revoke", "x")):
        assert str(path) in refused(4, "token", *args, "--store", path)
    refused(4, "backup", zip, "--store", path)
    refused(4, "promote", "--location", "westeurope", "--store", path)
    assert not path.exists()
    ok("token", "create", "--role", "reader", "--name", "watch", "--store", path)
    assert "no service" in refused(4, "backup", zip, "--store", path)
    assert not zip.exists()
    monkeypatch.chdir(tmp_path)
    assert "lbcore.toml" in refused(4, "token", "list")


# ===== backup and restore


def test_a_backup_and_the_way_back(primary: Store, path: Path, file: Path) -> None:
    ok("token", "create", "--role", "reader", "--name", "ann", "--store", path)
    made = given_json("backup", file, "--store", path)
    assert (made["service"], made["tier"], made["revision"]) == ("contoso", "Premium", "1.5")
    state = primary.state()
    assert state is not None
    primary.save(running(contoso("westeurope")), who="bob", what="save")
    for number in range(6, 10):
        primary.revisions.put(b"%d" % number, who="bob")
    done = given_json("restore", file, "--store", path, "--why", "the upgrade went wrong")
    assert (done["epoch"], done["revision"], done["lost"]) == (2, "2.5", ["1.6", "1.7", "1.8", "1.9"])
    assert service(primary) == state.service
    assert primary.revisions.body(Number(2, 5)) == b'{"apis":[5]}'
    assert [step["name"] for step in done["left"]["creates"]] == ["eastasia"], "what runs is not touched"
    assert len(primary.tokens.all()) == 1
    assert "the upgrade went wrong" in {entry.why for entry in primary.history(limit=2)}


def test_a_restore_says_what_is_lost_and_left(primary: Store, path: Path, file: Path) -> None:
    assert f"{file}: service contoso, Premium, revision 1.5, until " in ok("backup", file, "--store", path)
    primary.save(running(contoso("westeurope")), who="bob", what="save")
    primary.revisions.put(b"6", who="bob")
    said = ok("restore", file, "--store", path)
    assert "epoch 2, revision 2.5" in said
    assert "lost: 1.6" in said
    assert re.search(r"create +East Asia", said)


def test_into_a_new_store(path: Path, file: Path, tmp_path: Path) -> None:
    ok("backup", file, "--store", path)
    done = given_json("restore", file, "--store", tmp_path / "new.sqlite")
    assert (done["service"], done["primary"], done["revision"], done["lost"]) == ("contoso", "westus2", "2.5", [])
    assert done["left"]["empty"]


def test_what_is_not_restored(primary: Store, path: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standard, other = tmp_path / "standard.zip", tmp_path / "other.zip"
    for name, wanted in ((standard, contoso(tier="Standard")), (other, new_service("fabrikam", "westus2"))):
        with Store(tmp_path / f"{name.stem}.sqlite") as store:
            store.save(running(wanted), who="ann", what="save")
        ok("backup", name, "--store", tmp_path / f"{name.stem}.sqlite")
    ok("backup", file, "--store", path)
    before = primary.state()
    assert "SkuMismatch" in refused(3, "restore", standard, "--store", path)
    assert "NameMismatch" in refused(3, "restore", other, "--store", path)
    (tmp_path / "none.zip").write_bytes(b"PK")
    assert "InvalidBackup" in refused(2, "restore", tmp_path / "none.zip", "--store", path)
    refused(4, "restore", tmp_path / "missing.zip", "--store", path)
    now = time.time
    monkeypatch.setattr(Store.__init__, "__kwdefaults__", {"timeout": 5.0, "clock": lambda: now() + LIFETIME + 60})
    said = refused(3, "restore", file, "--store", path)
    assert "BackupExpired" in said
    assert "--allow-expired" in said
    assert primary.state() == before
    assert given_json("restore", file, "--store", path, "--allow-expired")["epoch"] == 2


def written(folder: Path, text: str) -> Path:
    file = folder / "lbcore.toml"
    file.write_text(text)
    return file


def test_the_file_says_where_the_store_is_and_of_whom(primary: Store, path: Path, file: Path, tmp_path: Path) -> None:
    config = written(tmp_path, '[service]\nname = "contoso"\n[service.primary]\nname = "westus2"\n[management]\nstore = "new.sqlite"\n')
    ok("token", "create", "--role", "owner", "--name", "ann", "--config", config)
    assert [row["name"] for row in given_json("token", "list", "--config", config)["tokens"]] == ["ann"]
    ok("backup", file, "--store", path)
    config.write_text(config.read_text().replace("contoso", "fabrikam"))
    assert "NameMismatch" in refused(3, "restore", file, "--config", config)
    config.write_text(config.read_text().replace("fabrikam", "contoso").replace("[service]", '[service]\ntier = "Standard"'))
    assert "SkuMismatch" in refused(3, "restore", file, "--config", config)
    config.write_text(config.read_text().replace("Standard", "Premium"))
    assert given_json("restore", file, "--config", config)["revision"] == "2.5"
    config = written(tmp_path, '[service.primary]\nname = "westus2"\n')
    assert "no table [management]" in refused(2, "token", "list", "--config", config)


# ===== promote


def test_a_planned_promotion(primary: Store, path: Path, file: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.sqlite"
    said = ok("promote", "--location", "westeurope", "--store", path)
    assert "epoch 2" in said
    assert given_json("promote", "--location", "westeurope", "--store", path) == {"location": "westeurope", "epoch": 2, "fenced": True}
    with pytest.raises(ServiceError, match="Fenced"):
        primary.revisions.put(b"{}", who="ann")
    ok("backup", file, "--store", path)
    done = given_json("promote", "--location", "West Europe", "--store", new, "--backup", file, "--epoch", 2)
    assert (done["primary"], done["epoch"], done["revision"], done["lost"]) == ("westeurope", 2, "2.5", [])
    assert [each.name for each in service(new).locations] == ["westeurope", "westus2", "eastasia"]
    assert primary.fenced == 2
    assert "Fenced" in refused(3, "restore", file, "--store", path)


def test_a_forced_promotion_and_back(primary: Store, path: Path, file: Path, tmp_path: Path) -> None:
    ok("backup", file, "--store", path)
    said = ok("promote", "--location", "westeurope", "--store", tmp_path / "new.sqlite", "--backup", file, "--force")
    assert f"West Europe is the primary: epoch {1 + LEAP}" in said
    ok("promote", "--location", "westeurope", "--store", path)
    done = given_json("promote", "--location", "westus2", "--store", path, "--force")
    assert (done["primary"], primary.fenced) == ("westus2", None)


def test_a_machine_that_stood_by_is_told_what_to_take_out_of_its_file(path: Path, file: Path, tmp_path: Path) -> None:
    ok("backup", file, "--store", path)
    config = written(tmp_path, '[management]\nstore = "new.sqlite"\nprimary = "https://primary.example:9180"\n')
    said = ok("promote", config, "--location", "westeurope", "--backup", file, "--force")
    assert "take primary = 'https://primary.example:9180' out of [management]" in said
    config.write_text('[service]\nname = "fabrikam"\n' + config.read_text())
    assert "NameMismatch" in refused(3, "promote", config, "--location", "westeurope", "--backup", file, "--force")


@pytest.mark.parametrize(
    ("code", "args"),
    [(2, ["--location", "westus2"]), (4, ["--location", "mars"]), (2, ["--location", "westeurope", "--epoch", "3", "--force"]),
     (2, ["--location", "westeurope", "--backup", "x.zip"]), (2, ["--location", "westeurope", "--epoch", "0"]), (2, [])],
)  # fmt: skip
def test_promotions_that_are_refused_change_nothing(primary: Store, path: Path, code: int, args: list[str]) -> None:
    before = primary.state()
    refused(code, "promote", *args, "--store", path)
    assert (primary.state(), primary.fenced, primary.revisions.epoch) == (before, None, 1)


def test_nobody_is_promoted_in_a_store_that_runs(primary: Store, path: Path, file: Path) -> None:
    ok("backup", file, "--store", path)
    with primary.lease():
        said = refused(5, "promote", "--location", "westeurope", "--store", path, "--backup", file, "--force")
    assert "`lbcore run` uses this store" in said
    assert service(primary).primary.name == "westus2"


def test_an_epoch_that_is_not_later_is_refused(primary: Store, path: Path, file: Path) -> None:
    ok("promote", "--location", "westeurope", "--store", path)
    ok("backup", file, "--store", path)
    said = refused(3, "promote", "--location", "westeurope", "--store", path, "--backup", file, "--epoch", 2)
    assert "--force when that cannot be asked" in said
    assert primary.fenced == 2
