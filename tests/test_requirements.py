"""docs/requirements.md: each requirement once, and every test that it names is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "requirements.md"
ROW = re.compile(r"^\| (R\d+) \| (.+?) \| (met|partly|not met) \| (.*?) \| (.*?) \|$", re.MULTILINE)
LAST = 70


class Row(NamedTuple):
    number: str
    promise: str
    state: str
    tests: str
    words: str


def rows() -> list[Row]:
    return [Row(*found) for found in ROW.findall(PAGE.read_text())]


def named_in(text: str) -> Iterator[tuple[str, str]]:
    """Give file and name of each test; a name that follows others of its file stands alone."""
    file = ""
    for part in re.findall(r"`([^`]+)`", text):
        before, colons, name = part.rpartition("::")
        file = before or (part if not colons else file)
        yield file, name if colons else ""


def test_every_requirement_has_its_row_once_and_in_order() -> None:
    assert [row.number for row in rows()] == [f"R{number}" for number in range(1, LAST + 1)]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.number)
def test_the_tests_of_a_row_are_there(row: Row) -> None:
    named = [*named_in(row.tests)]
    assert named or row.state == "not met", f"{row.number} is {row.state} and names no test"
    for file, name in named:
        path = ROOT / "tests" / file
        assert path.is_file(), f"{row.number}: there is no tests/{file}"
        if name:
            assert re.search(rf"^(async )?def {re.escape(name)}\(", path.read_text(), re.MULTILINE), f"{row.number}: no {name} in {file}"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.number)
def test_whatever_is_not_wholly_met_says_why(row: Row) -> None:
    assert row.state == "met" or row.words, f"{row.number} is {row.state}; why?"


def test_the_summary_lists_what_is_not_met() -> None:
    summary = PAGE.read_text().partition("## Not met, and partly")[2]
    assert re.findall(r"\bR\d+\b", summary) == [row.number for row in rows() if row.state != "met"]
