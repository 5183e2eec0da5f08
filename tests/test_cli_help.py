"""Every command says what it does, with an example that is a real command line; reading commands have --json."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from lbcore.cli.app import app

SILENT = {("demo",), ("dns", "serve"), ("regions", "answer")}


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give every command that is no group, with the words that name it."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))
    if not hasattr(command, "commands"):
        yield words, command


ALL = dict(commands(typer.main.get_command(app)))


def parsed(words: list[str]) -> tuple[str, ...]:
    """Parse a command line without running it; the words of its command."""
    group, context, path = typer.main.get_command(app), None, list[str]()
    while True:
        context = group.make_context(words[0] if words else "", words[1:] if path else words, parent=context, resilient_parsing=False)
        if not hasattr(group, "commands"):
            return tuple(path)
        name, group, words = group.resolve_command(context, [*context._protected_args, *context.args])
        path.append(name)
        words = [name, *words]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_has_an_example(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 0
    shown = " ".join(done.stdout.split())
    found = re.search(r"Example: (lbcore .*)", shown)
    assert found, shown
    assert found[1].startswith("lbcore " + " ".join(words))


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_the_example_is_a_command_line(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    line = str(ALL[words].epilog).removeprefix("Example: ").splitlines()[0]
    assert parsed(shlex.split(line, comments=True)[1:]) == words


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_what_is_printed_can_be_json(words: tuple[str, ...]) -> None:
    options = {option for each in ALL[words].params for option in each.opts}
    assert "--json" in options or words in SILENT, options
