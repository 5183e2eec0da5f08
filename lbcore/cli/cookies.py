"""Secrets of DNS cookies in a running server: configured for all servers of an address, or drawn, renewed and handed over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from lbcore.dns._cookies import Cookies

__all__ = ["Secrets"]

SIZE = 16
AGE = 86_400.0  # seconds: "a few hours to a day" is the lifetime that RFC 7873 §7.1 asks for


class Secrets:
    """The current secret of server cookies and the one before it, in `.cookies`.

    configured: 32 hexadecimal digits that servers of one address share (RFC 9018 §3); "" = drawn here
    """

    def __init__(self, configured: str = "") -> None:
        self._configured = bytes.fromhex(configured)
        current = self._configured or os.urandom(SIZE)
        self._pair = (current, current)
        self.cookies = Cookies(*self._pair)

    @property
    def pair(self) -> list[str]:
        """Give both, for the process that takes over."""
        return [secret.hex() for secret in self._pair]

    def inherit(self, pair: Sequence[str]) -> None:
        """Go on with those of another process, or at least take its cookies where this one's secret is configured."""
        current, before = map(bytes.fromhex, pair)
        self._use(self._configured or current, current if self._configured else before)

    def configure(self, configured: str) -> None:
        """Change to another configured secret, or to a drawn one; cookies of the last one are still taken."""
        fresh = bytes.fromhex(configured)
        if fresh != self._configured:
            self._configured = fresh
            self._use(fresh or os.urandom(SIZE), self._pair[0])

    async def renew(self) -> None:
        """Draw another one each day, unless it is configured."""
        while True:
            await asyncio.sleep(AGE)
            if not self._configured:
                self._use(os.urandom(SIZE), self._pair[0])

    def _use(self, current: bytes, before: bytes) -> None:
        self._pair = (current, before)
        self.cookies.replace(*self._pair)
