"""`token`: who may speak to the management plane. On the primary's machine, in its store; a token is shown once and kept nowhere."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lbcore.cli.common import (
    DEFAULT_CONFIG,
    NOT_FOUND,
    AsJson,
    Commands,
    Config,
    Failure,
    print_json,
    print_table,
    read_settings,
    user_files,
)
from lbcore.cli.remote import ADVICE, explained
from lbcore.errors import ServiceError

if TYPE_CHECKING:
    from lbcore.config import Settings
    from lbcore.service.store import Store
    from lbcore.service.tokenrows import TokenRow

__all__ = ["StoreFile", "opened_store", "shown_time", "store_path", "token", "who"]

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST = 100 * 365 * 86_400  # seconds

token = typer.Typer(cls=Commands, no_args_is_help=True)

StoreFile = Annotated[Path | None, typer.Option("--store", metavar="FILE", help="The primary's store, in place of management.store.")]
Role = Annotated[str, typer.Option(metavar="ROLE", help="reader, operator, owner; or node, for a region's gateway or an edge.")]
Name = Annotated[str, typer.Option(metavar="NAME", help="Whose it is; of a node, the name of the region or edge.")]
Expires = Annotated[str | None, typer.Option(metavar="90d", help="After how long it ends: s, m, h, d, w. Default: never.")]
Target = Annotated[Path | None, typer.Option("--file", metavar="FILE", help="Write it there, for your eyes alone, not to the screen.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="As `lbcore token list` shows it.")]


@token.callback()
def group() -> None:
    """Make, list and revoke what people and programs show the management plane."""


@token.command(epilog="Example: lbcore token create --role operator --name ann --expires 90d --file ann.token")
def create(
    role: Role, name: Name, expires: Expires = None, file: Target = None, config: Config = DEFAULT_CONFIG, store: StoreFile = None,
    json: AsJson = False,
) -> None:  # fmt: skip
    """Make a token. It is printed this once, alone on stdout, and kept nowhere: the store has its hash."""
    from lbcore.service.tokens import issue

    until = None if expires is None else time.time() + _seconds(expires)
    with opened_store(config, store, new=True) as opened, _written(file) as put:
        text = issue(opened, role, name, who=who(), expires=until)
        put(text)
        row = opened.tokens.all()[-1]
    if json:
        print_json(_facts(row) | ({"token": text} if file is None else {"file": str(file)}))
    else:
        print(text if file is None else f"{file}: token {row.id}, {row.role} {row.name}")


@token.command("list", epilog="Example: lbcore token list --config lbcore.toml")
def list_(config: Config = DEFAULT_CONFIG, store: StoreFile = None, json: AsJson = False) -> None:
    """List the tokens, those that have ended, too."""
    with opened_store(config, store) as opened:
        rows = [_facts(row) for row in opened.tokens.all()]
    if json:
        print_json({"tokens": rows})
    else:
        print_table(["id", "role", "name", "created", "expires", "used", "revoked"], [[*row.values()] for row in rows])


@token.command(epilog="Example: lbcore token revoke 0a1b2c3d4e5f")
def revoke(id: Id, config: Config = DEFAULT_CONFIG, store: StoreFile = None, json: AsJson = False) -> None:
    """End a token for good; the next request with it is refused."""
    with opened_store(config, store) as opened:
        ended = opened.tokens.revoke(id, who=who())
    if not ended:
        raise Failure(f"there is no token {id!r} that has not ended; `lbcore token list` shows them", NOT_FOUND)
    if json:
        print_json({"id": id, "revoked": True})
    else:
        print(f"token {id} is revoked")


def _facts(row: TokenRow) -> dict[str, Any]:
    times = {key: shown_time(getattr(row, key)) for key in ("created", "expires", "used", "revoked")}
    return {"id": row.id, "role": row.role, "name": row.name, **times}


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([1-9][0-9]{0,9})([smhdw])", text, re.ASCII)
    if match is None or (found := int(match[1]) * SECONDS[match[2]]) > LONGEST:
        raise Failure(f"--expires: expected a time such as 12h, 90d or 52w, got {text!r}")
    return found


@contextmanager
def _written(file: Path | None) -> Iterator[Any]:
    """Give what writes a token to a file that only its owner may read, whole or not at all; the file is tried before a token is made."""
    if file is None:
        yield lambda text: None
        return
    with user_files():
        handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w") as opened:
            yield lambda text: opened.write(f"{text}\n")
        with user_files():
            os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


# ===== the store


@contextmanager
def opened_store(config: Path, store: Path | None, *, new: bool = False, hints: dict[str, str] = ADVICE) -> Iterator[Store]:
    """Give the primary's store for the time of a `with`; Failure when it is not there, unless it may be `new`."""
    from lbcore.service.store import Store

    path = store if store is not None else store_path(read_settings(config), config)
    if not new and not path.is_file():
        raise Failure(f"{path}: no such store; this works on the primary's machine, with --store or management.store", NOT_FOUND)
    try:
        with Store(path) as opened:
            yield opened
    except ServiceError as error:
        raise explained(error, hints) from error


def store_path(settings: Settings, config: Path) -> Path:
    """Give where an lbcore.toml has the store."""
    section: Any = getattr(settings.document, "management", None)
    if section is None:
        raise Failure(f"{config}: it has no table [management], so this machine is no primary; name its store with --store FILE")
    return settings.folder / str(section.store)


def who() -> str:
    """Give what the history calls whoever runs the command."""
    try:
        return f"{getpass.getuser()} on the primary's machine"
    except (KeyError, OSError):  # a user without a name
        return f"user {os.getuid()} on the primary's machine"


def shown_time(at: float | None) -> str | None:
    """Give wall-clock seconds as people read them, UTC."""
    return None if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
