"""`lbcore run`: everything that this node's file asks for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lbcore.cli.common import UNAVAILABLE, AsJson, Failure, read_settings
from lbcore.config.roles import ROLES

__all__ = ["EXAMPLES", "run"]

logger = logging.getLogger(__name__)

EXAMPLES = """Example: lbcore run examples/edge.toml

\b
lbcore run lbcore.toml --only front-door --workers 4
kill -HUP PID      # the file again, documents, certificates; what is wrong is logged and changes nothing
kill -TERM PID     # calls under way are answered, within run.grace
"""

File = Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration.")]
Only = Annotated[str, typer.Option(metavar="ROLES", help=f"Some of {','.join(ROLES)}, in place of all that the file has tables for.")]
Workers = Annotated[int | None, typer.Option(metavar="N", min=1, max=256, help="Worker processes of each role, in place of the file's.")]


def run(config: File, only: Only = "", workers: Workers = None, as_json: AsJson = False) -> None:
    """Serve what the configuration has tables for: `http` the front door, `gateway` this node's gateway, `dns` DNS,
    `management` the service's management plane.

    A supervisor probes and judges; worker processes share its latency table and serve. Ends 0 when told to, 2 for a bad configuration,
    5 when an address is taken or workers cannot start. With --json every event is a JSON object on a line of its own.
    """
    from lbcore.cli.channel import Gone, Refused
    from lbcore.cli.supervisor import Supervisor

    settings = read_settings(config)
    roles = _only(only, settings.roles, config)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    supervisor = Supervisor(config, settings, roles, workers, _as_json if as_json else _as_text)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(supervisor.run())
    except (Gone, Refused, TimeoutError) as error:
        raise Failure(f"workers cannot start: {error or 'not in time'}", UNAVAILABLE) from error
    except OSError as error:
        raise Failure(f"cannot use {error.filename or 'the network'}: {error.strerror or error}", UNAVAILABLE) from error


def _only(only: str, there: Sequence[str], config: Path) -> list[str]:
    """Give the roles that `only` names, none = all; Failure when nothing could be run."""
    if not there:
        raise Failure(f"{config}: nothing to run; it has none of the tables {', '.join(f'[{table}]' for table in ROLES.values())}")
    wanted = [*dict.fromkeys(name.strip() for name in only.split(","))] if only else []
    for name in wanted:
        if name not in ROLES:
            raise Failure(f"--only: expected some of {', '.join(ROLES)}, got {name!r}")
        if name not in there:
            raise Failure(f"--only {name}: {config} has no table [{ROLES[name]}]")
    return wanted


def _as_json(event: str, **facts: Any) -> None:
    _say(json.dumps({"event": event} | facts))


def _as_text(event: str, **facts: Any) -> None:
    for line in _lines(event, facts):
        _say(line)


def _say(line: str) -> None:
    """Print, as long as somebody listens and the disk takes it: serving does not depend on that."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    except OSError as error:
        logger.error("standard output: %s", error.strerror or error)


def _lines(event: str, facts: dict[str, Any]) -> list[str]:
    match event:
        case "ready":
            served = [
                f"{role} at {', '.join(one['addresses'])}, {len(one['workers'])} worker{'s' * (len(one['workers']) != 1)}"
                for role, one in facts["serving"].items()
            ]
            return [*served, *([f"metrics at http://{facts['metrics']}/metrics"] if facts["metrics"] else []), "Ctrl-C ends it"]
        case "change":
            return ["{region}: {before} -> {after} ({cause})".format(**facts)]
        case "reloaded":
            return ["reloaded {how} in {seconds:.2f} s".format(**facts)]
        case "waiting":
            return ["waiting for the first rotation of {primary}: {error}".format(**facts)]
        case "rotation":
            return ["rotation {rotation} {how} in {seconds:.2f} s".format(**facts)]
        case "configuration":
            return ["gateway: revision {revision}".format(**facts)]
        case "sync" if facts["kind"] == "SyncStateChanged":
            return ["sync: {before} -> {state}".format(**facts)]
        case "left":
            left = ", ".join(f"{region} (process {pid})" for region, pid in facts["gateways"].items())
            return [f"gateways go on: {left}; the next start finds them, `kill PROCESS` ends one"]
        case "worker-started":
            return ["{role}: process {pid} serves as worker {number}".format(**facts, number=facts["worker"] + 1)]
    return []  # in the log
