"""What commands share: exit codes, errors in one line each, reading the configuration, printing tables and JSON."""

from __future__ import annotations

import ipaddress
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lbcore.balancer import Balancer
from lbcore.cli import missing_extra
from lbcore.config import Settings, load
from lbcore.errors import ConfigError, LbcoreError, NoRegionError, NotPrimaryError, ServiceError, UnknownRegionError

__all__ = [
    "CONFLICT", "INVALID", "NOT_FOUND", "UNAVAILABLE", "Commands", "Failure", "open_balancer", "print_json", "print_table", "read_followed",
    "read_settings",
]  # fmt: skip

UsageError: Any = typer.BadParameter.__mro__[1]  # click's; newer typers carry a click of their own
INVALID, CONFLICT, NOT_FOUND, UNAVAILABLE = 2, 3, 4, 5
DEFAULT_CONFIG = Path("lbcore.toml")


class Failure(Exception):
    """End the command with a message, one line per problem, and an exit code."""

    def __init__(self, message: str, code: int = INVALID) -> None:
        self.code = code
        super().__init__(message)


class Commands(typer.core.TyperGroup):
    """Turn what users get wrong into lines on stderr; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; end with the exit code of what went wrong."""
        try:
            return super().invoke(ctx)
        except ImportError as error:
            if not (message := missing_extra(error)):
                raise
            code = INVALID
        except (Failure, LbcoreError) as error:
            message, code = str(error), exit_code(error)
        except UsageError as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # not a mistake
                raise
            message, code = f"{error.format_message()} (see {error.ctx.command_path} --help)", INVALID
        for line in message.splitlines():
            print(f"lbcore: {line}", file=sys.stderr)
        raise typer.Exit(code)


def exit_code(error: Exception) -> int:
    """Give the exit code that stands for an error."""
    match error:
        case Failure():
            return error.code
        case UnknownRegionError():
            return NOT_FOUND
        case NoRegionError() | NotPrimaryError():
            return UNAVAILABLE
        case ServiceError():
            return service_exit_code(error)
    return INVALID


def service_exit_code(error: ServiceError) -> int:
    """Give the exit code of a refusal by the service, as REST's status is."""
    from lbcore.service.codes import exit_code_of

    return exit_code_of(error)


@contextmanager
def user_files(default: int = INVALID) -> Iterator[None]:
    """Turn what goes wrong with a file the user named into a Failure."""
    try:
        yield
    except FileNotFoundError as error:
        raise Failure(f"{error.filename}: no such file", NOT_FOUND) from error
    except OSError as error:
        raise Failure(f"{error.filename or 'file'}: {error.strerror or error}") from error
    except ValueError as error:
        raise Failure(str(error), default) from error


def _client(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise typer.BadParameter(f"expected an IPv4 or IPv6 address such as 203.0.113.7, got {text!r}") from None
    return text


Client = Annotated[str, typer.Argument(callback=_client, metavar="CLIENT", help="IPv4 or IPv6 address of a client.")]
Config = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="Configuration.")]
Database = Annotated[Path | None, typer.Option("--geo", metavar="DB", help="Database (mmdb) in place of the configured one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_settings(file: Path) -> Settings:
    """Read the configuration; Failure when the file cannot be read, ConfigError when it is wrong."""
    if file == DEFAULT_CONFIG and not file.exists():
        raise Failure(f"{file}: no such file here; name one with --config FILE (examples/three-regions.toml is the smallest)", NOT_FOUND)
    with user_files():
        return load(file)


def read_followed(file: Path) -> Settings:
    """Read the configuration, of a node that follows a primary with the last rotation that it has kept; errors as `read_settings`."""
    settings = read_settings(file)
    if settings.following is None or settings.following.keep is None:
        return settings
    from lbcore.service.edge import kept_rotations, settings_of

    for rotation in kept_rotations(settings.following.keep).read():
        try:
            return settings_of(settings, rotation)
        except ConfigError:  # the file says another thing than when it was kept
            continue
    return settings


def open_balancer(settings: Settings, database: Path | None = None) -> Balancer:
    """Build the Balancer, `database` instead of the configured one; Failure when a database cannot be used."""
    with user_files():
        options = settings.balancer_options() if database is None else settings.balancer_options() | {"locate": database}
        return Balancer(**options)


def console(stderr: bool = False) -> Console:
    """Give a console for this terminal; pipes get room for a table."""
    terminal = Console(stderr=stderr, highlight=False)
    return terminal if terminal.is_terminal else Console(stderr=stderr, highlight=False, width=140)


def print_json(data: object) -> None:
    """Print plain JSON types, indented."""
    print(json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None, stderr: bool = False) -> None:
    """Print rows under headings; what starts with ">" in a heading is aligned right."""
    named = any(heading.strip(">") for heading in headings)
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, show_header=named)
    for heading in headings:
        table.add_column(heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left")
    for row in rows:
        table.add_row(*(escape("" if value is None else str(value)) for value in row))
    console(stderr).print(table)


def quiet_logs() -> None:
    """Keep the library's log lines off the screen, where commands say the same in their own words."""
    logging.getLogger("lbcore").setLevel(logging.CRITICAL)
