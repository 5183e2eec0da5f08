"""Audit: one line for every write, and for everybody who was turned away. No body, no query and no header is in it, so no secret is."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

from lbcore.linelog import LineLog
from lbcore.service.logbook import clean

__all__ = ["Audit", "AuditLog", "logged"]

Audit = Callable[[dict[str, Any]], object]
logger = logging.getLogger("lbcore.audit")

READING = ("GET", "HEAD", "OPTIONS")
_TOKEN = re.compile(r"(lbcore_[0-9a-f]{12}_)[A-Za-z0-9_-]+")  # that somebody put where it does not belong
TURNED_AWAY = (401, 403, 413, 421, 429)


class AuditLog(LineLog[dict[str, Any]]):
    """The lines in a file of their own, which its owner alone reads: AuditLog(path, "audit log").put is an Audit."""

    mode = 0o600

    def describe(self, work: dict[str, Any], /) -> dict[str, Any]:
        """Give what the line says."""
        return work


def logged(line: dict[str, Any]) -> None:
    """Write a line as JSON to the logger lbcore.audit."""
    logger.info("%s", json.dumps(line))


def worth(method: str, status: int) -> bool:
    """Say whether a request is to be written down."""
    return method not in READING or status in TURNED_AWAY


def line(
    *, request: str, client: str, method: str, path: str, status: int, code: str, known: dict[str, Any], seconds: float
) -> dict[str, Any]:  # fmt: skip
    """Give a line. known: what the request turned out to be: who, id, role, why, operation"""
    said = {key: _shown(str(known[key]), 1000) for key in ("who", "role", "why", "operation") if known.get(key)}
    return {
        "request": request, "client": client, "method": _shown(method, 20), "path": _shown(path, 300), "status": status,
        **({"code": code} if code else {}), **said, "ms": round(seconds * 1000, 1),
    }  # fmt: skip


def _shown(text: str, most: int) -> str:
    return clean(_TOKEN.sub(r"\1…", text))[:most]
