"""`config` against the real management API; and what commands say when it is fenced, or away."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from managing import HELLO, Managed, asked, given_json, managed, ok, refused, saved

from lbcore.cli import deployment
from lbcore.service.revisions import Number

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    with managed(tmp_path_factory.mktemp("plane")) as served:
        yield served


# ===== config


def document(body: str) -> dict[str, Any]:
    text = json.dumps(HELLO).replace('"1"', json.dumps(body))
    return dict(json.loads(text))


def test_configurations_are_published_compared_and_rolled_back(made: Managed) -> None:
    first = str(made.store.revisions.latest().number)  # type: ignore[union-attr]
    done = given_json(made, "config", "publish", saved(made, document("two")), "--why", "more")
    assert done["changed"]
    again = given_json(made, "config", "publish", saved(made, document("two")))
    assert (again["revision"], again["changed"]) == (done["revision"], False)
    assert "content already" in ok(made, "config", "publish", saved(made, document("two")))
    listed = given_json(made, "config", "revisions", "--limit", "2")["revisions"]
    assert [(row["revision"], row["why"]) for row in listed][0] == (done["revision"], "more")
    assert done["revision"] in ok(made, "config", "revisions")
    changes = given_json(made, "config", "diff", first, done["revision"])["changes"]
    assert [each["where"] for each in changes] == ["apis[hello].policies.inbound"]
    assert "apis[hello].policies.inbound" in ok(made, "config", "diff", first, saved(made, document("two")))
    assert ok(made, "config", "diff", first, first) == "the same\n"
    back = given_json(made, "config", "rollback", first, "--why", "it was wrong")
    assert Number(*map(int, back["revision"].split("."))) > Number(*map(int, done["revision"].split(".")))
    assert given_json(made, "config", "diff", first, back["revision"])["changes"] == []


def test_a_file_of_toml_is_published(made: Managed) -> None:
    assert given_json(made, "config", "publish", ROOT / "examples" / "apis" / "hello.toml")["revision"]
    assert given_json(made, "config", "diff", str(made.store.revisions.latest().number), ROOT / "examples" / "apis" / "hello.toml")[  # type: ignore[union-attr]
        "changes"
    ] == []


def test_what_is_not_published(made: Managed) -> None:
    before = made.store.revisions.latest()
    wrong = {"apis": [{"name": "a"}, {"name": "b", "path": 1}], "colour": 1}
    said = refused(made, 2, "config", "publish", saved(made, wrong))
    assert len(re.findall(r"^InvalidConfiguration ", said, re.MULTILINE)) >= 2
    assert "RevisionConflict" in refused(made, 3, "config", "publish", saved(made, document("3")), "--if-revision", "9.9")
    assert refused(made, 2, "config", "publish", saved(made, "[apis", "x.toml"))
    assert refused(made, 2, "config", "publish", saved(made, "{", "x.json"))
    assert refused(made, 4, "config", "rollback", "7.7")
    assert refused(made, 2, "config", "rollback", "first")
    assert refused(made, 4, "config", "diff", "7.7", "1.1")
    assert refused(made, 4, "config", "diff", "missing.json", "1.1")
    assert "--yes" in refused(made, 2, "config", "win", role="owner")
    assert made.store.revisions.latest() == before


def test_this_primary_wins(made: Managed) -> None:
    epoch = made.store.revisions.epoch
    done = given_json(made, "config", "win", "--yes", "--why", "restored elsewhere", role="owner")
    assert made.store.revisions.epoch == epoch + 1
    assert done["revision"].startswith(f"{epoch + 1}.")


# ===== an outage, a fence


def test_a_fenced_primary_says_where_to_go(tmp_path: Path) -> None:
    with managed(tmp_path, "westeurope") as made:
        made.store.fence(2, who="ann")
        for args in (("regions", "add", "eastasia"), ("config", "publish", saved(made, document("2")))):
            said = refused(made, 3, *args)
            assert "Fenced" in said
            assert "promoted" in said
        assert asked(made, "regions", "list").exit_code == 0, "reads go on"


def test_the_primary_is_away_while_a_command_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "PATIENCE", 0.0)
    with ExitStack() as stack:
        made = stack.enter_context(managed(tmp_path))
        made.regions.gate.clear()
        monkeypatch.setattr(deployment, "_pause", stack.close)
        done = asked(made, "regions", "add", "eastasia")
    assert done.exit_code == 5
    assert "goes on by itself" in done.stderr
