"""Target: where a call goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbcore.http.upstream import Upstream

__all__ = ["Target"]


@dataclass(slots=True, eq=False)
class Target:
    """Where a call goes.

    name: of the region or backend; prefix: path that goes before a request's, without the last slash
    host: what Host becomes, None = it stays; first_byte: seconds, None = the engine's
    """

    upstream: Upstream
    name: str = ""
    prefix: bytes = b""
    host: bytes | None = None
    first_byte: float | None = None
