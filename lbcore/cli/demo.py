"""`demo`: a whole service on loopback."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lbcore.cli.common import UNAVAILABLE, AsJson, Failure, console, print_json, quiet_logs

__all__ = ["demo"]

WIDTH = 120  # of pictures, in characters
INTERRUPTED = 130

Once = Annotated[bool, typer.Option("--once", help="Play the story once, print a summary; ends 1 when it came out wrong.")]
Picture = Annotated[Path | None, typer.Option("--svg", metavar="FILE", help="With --once: write what is printed as a picture.")]


def demo(once: Once = False, json: AsJson = False, svg: Picture = None) -> None:
    """Run a whole service on loopback, with portal, regions, front door, DNS and clients on six continents, and let parts of it fail."""
    from lbcore.demo import BrokenError, play_once, watch

    if (json or svg) and not once:
        raise Failure("--json and --svg need --once")
    if sys.platform != "linux":
        raise Failure("the demo gives every gateway a loopback address of its own, which only Linux has", UNAVAILABLE)
    quiet_logs()
    try:
        if not once:
            asyncio.run(watch(console()))
            return
        screen = _screen(json, svg)
        summary = asyncio.run(play_once(screen))
    except BrokenError as error:
        raise Failure(f"the demo broke off: {error}", UNAVAILABLE) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED if once else 0) from None
    if json:
        print_json(summary)
    if svg:
        screen.save_svg(str(svg), title="lbcore demo --once")
    raise typer.Exit(0 if summary["ok"] else 1)


def _screen(json: bool, svg: Path | None) -> Console:
    """Give where the story is printed: nowhere beside JSON, wide for a picture."""
    if not json and not svg:
        return console()
    return Console(file=io.StringIO() if json else None, width=WIDTH, record=svg is not None, highlight=False)
