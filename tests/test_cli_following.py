"""Commands on the file of a node that follows: by the rotation that it has kept, or without any region."""

from __future__ import annotations

from pathlib import Path

from edging import SERVICE, region, rotation
from test_cli import given_json, lbcore, refused

from lbcore.service.edge import kept_rotations

FILE = f'[service]\nname = "{SERVICE}"\n[http]\n[dns]\n[sync]\nprimary = "https://primary.example"\n'


def test_before_the_first_rotation_there_is_nothing_to_choose_from(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(FILE)
    assert given_json("check", str(file))["regions"] == []
    assert "nothing wrong" in lbcore("check", str(file)).stdout
    code, lines = refused("pick", "203.0.113.7", "--config", str(file))
    assert code == 2 and "the primary" in lines[0]


def test_the_rotation_that_is_kept_is_gone_by(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(FILE)
    for number, name in enumerate(("westeurope", "westus2"), 1):
        found = rotation((1, number), region("eastus", enabled=False), region(name))
        kept_rotations(tmp_path / "state").keep(*found.number, found.document)
    assert given_json("pick", "203.0.113.7", "--config", str(file))["region"] == "westus2"
    rows = given_json("check", str(file))["regions"]
    assert [(row["region"], row["enabled"]) for row in rows] == [("eastus", False), ("westus2", True)]
    found = rotation((1, 3), service="fabrikam")
    kept_rotations(tmp_path / "state").keep(*found.number, found.document)
    assert lbcore("pick", "203.0.113.7", "--config", str(file)).stdout == "westus2\n", "another service's is none of this node's"
