"""The commands, `lbcore` on the shell; with `__main__` the only place where edges meet.

Exit codes: 0, 2 invalid input, 3 conflict, 4 not found, 5 unavailable. A command that lacks an extra names it and ends 2.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

EXTRAS = {
    "click": "cli", "pydantic": "cli", "rich": "cli", "typer": "cli", "cryptography": "dns", "dns": "dns", "prometheus_client": "dns",
    "httptools": "http", "jwt": "http", "uvloop": "http", "fastapi": "service", "jinja2": "service", "uvicorn": "service", "nats": "fleet",
}  # fmt: skip


def missing_extra(error: ImportError) -> str | None:
    """Give what to tell somebody whose installation lacks the module that `error` is about; None when no extra has it."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(module)
    return extra and f"this command needs {module}, which is not installed: pip install 'lbcore[{extra}]'"


def main() -> None:
    """Run the command line."""
    try:
        from lbcore.cli.app import app
    except ImportError as error:
        if not (message := missing_extra(error)):
            raise
        print(f"lbcore: {message}", file=sys.stderr)
        sys.exit(2)
    app()
