"""`dns serve`: the responder of a configuration, with its probes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from lbcore.balancer import Balancer, Change
from lbcore.cli.common import DEFAULT_CONFIG, UNAVAILABLE, Commands, Config, Database, Failure, open_balancer, read_settings
from lbcore.config import Settings, split_listen

if TYPE_CHECKING:
    from lbcore.dns import Responder

__all__ = ["dns"]

dns = typer.Typer(cls=Commands, no_args_is_help=True, help="Answer DNS with the addresses of the closest healthy region.")

Listen = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where to listen, in place of dns.listen.")]
Probing = Annotated[bool, typer.Option("--probe/--no-probe", help="Probe the gateways meanwhile.")]


@dns.callback()
def group() -> None:
    """Answer DNS with the addresses of the closest healthy region."""


@dns.command(epilog="Example: lbcore dns serve --config examples/three-regions.toml --listen 127.0.0.1:5353")
def serve(config: Config = DEFAULT_CONFIG, listen: Listen = None, geo: Database = None, probe: Probing = True) -> None:
    """Answer over UDP and TCP until interrupted; every change of a region is a line on stdout."""
    from lbcore.dns import Profile, Responder

    settings = read_settings(config)
    host, port = _split(listen) if listen else settings.dns_listen
    lb = open_balancer(settings, geo)
    responder = Responder(lb, Profile(**settings.dns_options()))
    lb.on_change(_tell)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(responder, host, port, settings, lb if probe else None))
    except OSError as error:
        raise Failure(f"cannot listen on {host} port {port}: {error.strerror or error}", UNAVAILABLE) from error


def _split(listen: str) -> tuple[str, int]:
    try:
        return split_listen(listen)
    except ValueError:
        raise Failure(f"--listen: expected an address and port such as 127.0.0.1:5353, got {listen!r}") from None


def _tell(change: Change) -> None:
    print(f"{change.region}: {change.before} -> {change.after} ({change.cause})", flush=True)


async def _serve(responder: Responder, host: str, port: int, settings: Settings, probed: Balancer | None) -> None:
    """Run the responder and, where wanted, the Prober, whose first round comes before the first answer."""
    from lbcore.dns.server import Server
    from lbcore.sense.probe import Prober

    prober = Prober(probed, **settings.prober_options()) if probed else None
    if prober:
        await prober.first_round()
    async with Server(responder, host, port) as server:
        host, port = server.address
        print(f"answering for {responder.profile.owner} on {host} port {port}, UDP and TCP; Ctrl-C ends it", flush=True)
        await (prober.run() if prober else asyncio.get_running_loop().create_future())
