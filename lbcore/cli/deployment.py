"""Following a long-running operation of the service: a bar for each region on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lbcore.cli.common import CONFLICT, UNAVAILABLE, Failure, console, print_json, print_table
from lbcore.cli.remote import Management, Unreachable
from lbcore.errors import ServiceError

__all__ = ["finish", "follow"]

PATIENCE = 60.0  # seconds for which a management plane may be away: it goes on with the operation when it is back
PAUSE = 0.5  # seconds between two looks
PASSING = ("ManagementPlaneUnavailable", "StoreLocked", "StoreUnavailable")  # such as while it is started again
WAITING = {"status": "waiting", "percent": 0}
INTERRUPTED = 130  # as shells have it

Body = dict[str, Any]
Show = Callable[[Body], None]


def follow(there: Management, path: str, *, quiet: bool = False) -> Body:
    """Wait until an operation is over, and give it as it ended; `path`: of the operation. Unreachable when nobody answers for a minute."""
    try:
        with _nothing() if quiet else _bars() if console(stderr=True).is_terminal else _lines() as show:
            operation = there.get(path).body
            show(operation)
            while operation["status"] == "InProgress":
                _pause()
                operation = _look(there, path)
                show(operation)
    except KeyboardInterrupt:
        print("lbcore: it goes on without this command; `lbcore regions wait` follows it again", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    result: Body = operation
    return result


def _pause() -> None:
    time.sleep(PAUSE)


def _look(there: Management, path: str) -> Body:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return dict(there.get(path).body)
        except (Unreachable, ServiceError) as error:
            if isinstance(error, ServiceError) and error.code not in PASSING:
                raise
            if time.monotonic() > deadline:
                message = f"{error}\nthe operation goes on by itself when the primary is back; `lbcore regions wait` follows it again"
                raise Failure(message, UNAVAILABLE) from error
        _pause()


def finish(operation: Body, as_json: bool) -> None:
    """Print how an operation ended; Failure unless it succeeded."""
    if as_json:
        print_json(operation)
    else:
        rows = [(name, each.get("status"), each.get("message")) for name, each in _regions(operation)]
        if rows:
            print_table(["region", "state", "reason"], rows)
        print(f"operation {operation['id']}: {operation['status']}")
    if operation["status"] == "Canceled":
        raise Failure("the operation was canceled: nothing was changed", CONFLICT)
    if operation["status"] != "Succeeded":
        what = (operation.get("error") or {}).get("message") if isinstance(operation.get("error"), dict) else operation.get("error")
        message = f"{what or 'not every region came to what is wanted'}\nmend the cause, then save the same again: it plans what is left"
        raise Failure(message, UNAVAILABLE)


def _regions(operation: Body) -> list[tuple[str, Body]]:
    """Give each region of the operation with how far it is, those that it has not begun with, too."""
    plan = operation.get("plan") or {}
    planned = {step["name"]: WAITING for key in ("creates", "updates", "deletes") for step in plan.get(key, ())}
    return [*(planned | (operation.get("locations") or {})).items()]


@contextmanager
def _bars() -> Iterator[Show]:
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[state]}")
    with Progress(*columns, TimeElapsedColumn(), console=console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def show(operation: Body) -> None:
            for name, each in _regions(operation):
                if name not in tasks:
                    tasks[name] = progress.add_task(escape(name), total=100, state="")
                words = " ".join(filter(None, (each.get("status"), each.get("message"))))
                progress.update(tasks[name], completed=each.get("percent", 0), state=escape(words))

        yield show


@contextmanager
def _lines() -> Iterator[Show]:
    seen: dict[str, tuple[object, object]] = {}

    def show(operation: Body) -> None:
        for name, each in _regions(operation):
            now = each.get("status"), each.get("message")
            if seen.get(name) != now:
                seen[name] = now
                print(f"{name}: {' '.join(str(part) for part in now if part)}, {each.get('percent', 0)} %", file=sys.stderr, flush=True)

    yield show


@contextmanager
def _nothing() -> Iterator[Show]:
    yield lambda operation: None
