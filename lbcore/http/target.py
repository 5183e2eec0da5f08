"""Target: where a call goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbcore.http.upstream import Upstream

__all__ = ["Target"]


class Target:
    """Where a call goes.

    name: of the region or backend; prefix: path that goes before a request's, without the last slash
    host: what Host becomes, None = it stays; first_byte: seconds, None = the engine's
    """

    def __init__(
        self, upstream: Upstream, name: str = "", prefix: bytes = b"", host: bytes | None = None, first_byte: float | None = None
    ) -> None:
        self.upstream, self.name, self.prefix, self.host, self.first_byte = upstream, name, prefix, host, first_byte
