"""`dns serve`: the responder of a configuration, with its probes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

import typer

from lbcore.cli.common import CONFLICT, DEFAULT_CONFIG, UNAVAILABLE, Commands, Config, Database, Failure, open_balancer, read_settings
from lbcore.cli.keys import keygen, settime
from lbcore.config import split_listen

__all__ = ["dns"]

dns = typer.Typer(cls=Commands, no_args_is_help=True, help="Answer DNS with the addresses of the closest healthy region.")

Listen = Annotated[
    list[str] | None, typer.Option(metavar="HOST:PORT", help="Where to listen, in place of dns.listen; may be given several times.")
]
Threads = Annotated[int | None, typer.Option(metavar="N", min=1, max=256, help="UDP threads for each address, in place of dns.threads.")]
TakeOver = Annotated[bool, typer.Option("--take-over", help="Take the sockets of the process at dns.control; without one, just start.")]
Probing = Annotated[bool, typer.Option("--probe/--no-probe", help="Probe the gateways meanwhile.")]

EXAMPLES = """Example: lbcore dns serve --config examples/three-regions.toml --listen 127.0.0.1:5353

\b
lbcore dns serve --listen 192.0.2.53:53 --listen "[2001:db8::53]:53" --threads 2
lbcore dns serve --take-over      # beside a running one, which then ends; no query is lost
"""


@dns.callback()
def group() -> None:
    """Answer DNS with the addresses of the closest healthy region."""


dns.command(epilog="Example: lbcore dns keygen example.com --directory keys")(keygen)
dns.command(epilog="Example: lbcore dns settime keys/Kexample.com.+013+12345 --inactive now --delete +2h")(settime)


@dns.command(epilog=EXAMPLES)
def serve(
    config: Config = DEFAULT_CONFIG, listen: Listen = None, threads: Threads = None, geo: Database = None, probe: Probing = True,
    take_over: TakeOver = False,
) -> None:  # fmt: skip
    """Answer over UDP and TCP until interrupted; every change of a region is a line on stdout.

    SIGHUP reads configuration, zones, keys and database again; SIGUSR2 starts this command anew, which takes over.
    """
    from lbcore.cli.serving import Serving
    from lbcore.dns.handover import HandoverError

    settings = read_settings(config)
    if take_over and not settings.document.dns.control:
        raise Failure("--take-over: needs dns.control, the socket at which the running process is asked")
    addresses = [_split(each) for each in listen] if listen else settings.dns_listen
    lb = open_balancer(settings, geo)
    serving = Serving(config, settings, lb, addresses, threads=threads, database=geo, probe=probe)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(serving.run(take_over))
    except HandoverError as error:
        raise Failure(str(error), CONFLICT) from error
    except OSError as error:
        raise Failure(f"cannot use {error.filename or 'the network'}: {error.strerror or error}", UNAVAILABLE) from error


def _split(listen: str) -> tuple[str, int]:
    try:
        return split_listen(listen)
    except ValueError:
        raise Failure(f"--listen: expected an address and port such as 127.0.0.1:5353, got {listen!r}") from None
