"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from lbcore.cli import choose, maintenance
from lbcore.cli.bench import bench
from lbcore.cli.common import Commands
from lbcore.cli.configs import config
from lbcore.cli.demo import demo
from lbcore.cli.dns import dns
from lbcore.cli.geo import geo
from lbcore.cli.regions import regions
from lbcore.cli.run import EXAMPLES, run
from lbcore.cli.tokens import token

__all__ = ["app"]

app = typer.Typer(
    cls=Commands, name="lbcore", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        from lbcore import __version__

        print(f"lbcore {__version__}")
        raise typer.Exit()


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]


@app.callback()
def lbcore(version: Version = False) -> None:
    """Which region's gateway should this client use now?"""


app.command(epilog="Example: lbcore pick 203.0.113.7 --config examples/three-regions.toml --json")(choose.pick)
app.command(epilog="Example: lbcore rank 8.8.8.8 --config examples/three-regions.toml")(choose.rank)
app.command(epilog="Example: lbcore explain 8.8.8.8 --config examples/three-regions.toml")(choose.explain)
app.command(epilog="Example: lbcore check examples/three-regions.toml --probe")(choose.check)
app.command(epilog="Example: lbcore demo --once")(demo)
app.command(epilog=EXAMPLES)(run)
app.add_typer(geo, name="geo")
app.add_typer(dns, name="dns")
app.add_typer(regions, name="regions")
app.add_typer(config, name="config")
app.add_typer(token, name="token")
app.command(epilog=maintenance.BACKUP)(maintenance.backup)
app.command(epilog=maintenance.RESTORE)(maintenance.restore)
app.command(epilog=maintenance.PROMOTE)(maintenance.promote)
app.command(epilog="Example: lbcore bench --regions 60")(bench)
