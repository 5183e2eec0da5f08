"""`config`: what every region's gateway serves by, published under numbers."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from lbcore.cli.common import AsJson, Commands, Failure, print_json, print_table, user_files
from lbcore.cli.planning import read_json
from lbcore.cli.regions import Why
from lbcore.cli.remote import ADVICE, Management, connected

__all__ = ["config"]

CONFIGURATION = "/gatewayConfiguration"
HINTS = ADVICE | {"InvalidConfiguration": "nothing was published; docs/gateway.md and docs/policies.md say what may stand there"}

config = typer.Typer(cls=Commands, no_args_is_help=True)

Document = Annotated[Path, typer.Argument(metavar="FILE", help="APIs, backends and policies, in TOML (*.toml) or JSON.")]
Revision = Annotated[str, typer.Argument(metavar="REVISION", help="Such as 1.7.")]
Side = Annotated[str, typer.Argument(help="A revision such as 1.7, or a file.")]
IfRevision = Annotated[str, typer.Option(metavar="REVISION", help="Only if that is the latest. Default: whatever it is when this begins.")]
Limit = Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="How many at most.")]
Sure = Annotated[bool, typer.Option("--yes", help="Yes, every region is to follow this primary.")]


@config.callback()
def group() -> None:
    """Publish, compare and roll back what the gateways serve by."""


@config.command(epilog="Example: lbcore config publish examples/apis/orders.toml --why \"orders v2\"")
@connected
def publish(there: Management, file: Document, if_revision: IfRevision = "", why: Why = "", json: AsJson = False) -> None:
    """Publish a configuration as the next revision; every region's gateway serves by it within seconds. All that is wrong is listed."""
    document = _document(file)
    before = there.send("HEAD", CONFIGURATION).etag
    guard = {"if-match": f'"{if_revision}"'} if if_revision else {"if-match": before} if before else {"if-none-match": "*"}
    done = there.send("PUT", CONFIGURATION, document, headers=guard, why=why)
    _published(done.body, same=done.etag == before, json=json)


@config.command(epilog="Example: lbcore config revisions --limit 5")
@connected
def revisions(there: Management, limit: Limit = 20, json: AsJson = False) -> None:
    """List what was published, the newest first."""
    rows = there.get(f"{CONFIGURATION}/revisions", limit=limit).body["value"]
    if json:
        print_json({"service": there.name, "revisions": rows})
    else:
        print_table(["revision", "at", "who", "why", "SHA-256"], [
            (row["revision"], row["at"], row["who"], row["why"], row["sha256"][:12]) for row in rows
        ])  # fmt: skip


@config.command(epilog="Example: lbcore config diff 1.6 1.7")
@connected
def diff(there: Management, before: Side, after: Side, json: AsJson = False) -> None:
    """Say what changes from one revision or file to another."""
    from lbcore.service.difference import difference

    changes = difference(_side(there, before), _side(there, after))
    if json:
        print_json({"before": before, "after": after, "changes": [each._asdict() for each in changes]})
    elif not changes:
        print("the same")
    else:
        rows = [(each.where, each.action, _short(each.before), _short(each.after)) for each in changes]
        print_table(["where", "", "before", "after"], rows)


@config.command(epilog="Example: lbcore config rollback 1.6 --why \"orders v2 loses baskets\"")
@connected
def rollback(there: Management, revision: Revision, why: Why = "", json: AsJson = False) -> None:
    """Publish the content of an older revision again, as a new one."""
    before = there.send("HEAD", CONFIGURATION).etag
    done = there.send("POST", f"{CONFIGURATION}/rollback", {"revision": revision}, etag=before, why=why)
    _published(done.body, same=done.etag == before, json=json)


@config.command(epilog="Example: lbcore config win --yes --why \"restored on another machine\"")
@connected
def win(there: Management, yes: Sure = False, why: Why = "", json: AsJson = False) -> None:
    """Begin an epoch beyond all that regions report, so that they follow this primary, though they hold a later one from elsewhere."""
    if not yes:
        raise Failure("regions that follow another primary would leave it; say --yes if this one is to win")
    done = there.send("POST", f"{CONFIGURATION}/win", {"why": why} if why else {})
    _published(done.body or {}, same=False, json=json)


def _published(body: dict[str, Any], *, same: bool, json: bool) -> None:
    if json:
        print_json(body | {"changed": not same})
    else:
        print(f"revision {body.get('revision') or 'none yet'}" + (": the latest has this content already" if same else ""))


def _document(file: Path) -> Any:
    if file.suffix.lower() != ".toml":
        return read_json(file)
    with user_files():
        try:
            return tomllib.loads(file.read_bytes().decode())
        except tomllib.TOMLDecodeError as error:
            raise Failure(f"{file}: expected TOML ({error})") from error


def _side(there: Management, side: str) -> Any:
    if side.replace(".", "", 1).isdigit():
        return there.get(f"{CONFIGURATION}/revisions/{side}").body
    document = _document(Path(side))
    if not isinstance(document, dict):
        raise Failure(f"{side}: expected an object")
    return document


def _short(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
