"""Secrets of DNS cookies in a running server: configured for all servers of an address, or drawn, renewed and handed over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from lbcore.dns._cookies import Cookies
from lbcore.errors import ConfigError, Violation

__all__ = ["Secrets", "read"]

SIZE = 16
AGE = 86_400.0  # seconds: "a few hours to a day" is the lifetime that RFC 7873 §7.1 asks for


class Secrets:
    """The current secret of server cookies and the one before it, in `.cookies`.

    path: a file of one or two secrets that servers of one address share, 32 hexadecimal digits a line, and comments after "#". The
        first makes cookies, those of the second are taken as well: the one before it, or the one that comes next. None = drawn here
    Raises ConfigError for a file of anything else or that cannot be read.
    Source: RFC 9018 §5 (rollover); the form is that of Unbound's and NSD's `cookie-secret-file`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._configured = read(path) if path else None
        self._pair = self._configured or _drawn()
        self.cookies = Cookies(*self._pair)

    @property
    def pair(self) -> list[str]:
        """Give both, for the process that takes over."""
        return [secret.hex() for secret in self._pair]

    def inherit(self, pair: Sequence[str]) -> None:
        """Go on with those of another process, or at least take its cookies where this one's secret is configured."""
        current, before = map(bytes.fromhex, pair)
        if self._configured is None:
            self._use(current, before)
        elif self._configured[0] == self._configured[1]:
            self._use(self._configured[0], current)

    def configure(self, path: Path | None) -> None:
        """Read the file again, or another one, or change to a drawn secret. Where it has but one, cookies of the last are still taken.

        Raises ConfigError as the constructor does; then nothing changes.
        """
        fresh = read(path) if path else None
        if fresh != self._configured:
            self._configured = fresh
            current, before = fresh or _drawn()
            self._use(current, before if before != current else self._pair[0])

    async def renew(self) -> None:
        """Draw another one each day, unless it is configured."""
        while True:
            await asyncio.sleep(AGE)
            if self._configured is None:
                self._use(_drawn()[0], self._pair[0])

    def _use(self, current: bytes, before: bytes) -> None:
        self._pair = (current, before)
        self.cookies.replace(*self._pair)


def read(path: Path) -> tuple[bytes, bytes]:
    """Give the two secrets of a file, the only one twice."""
    expected = "one or two lines of 32 hexadecimal digits"
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text(errors="replace").splitlines()]
        secrets = [bytes.fromhex(line) for line in lines if line]
    except OSError as error:
        expected, secrets = f"a file that can be read ({error.strerror})", []
    except ValueError:
        secrets = []
    if len(secrets) not in (1, 2) or any(len(secret) != SIZE for secret in secrets):
        raise ConfigError([Violation("dns.cookie_secret", str(path), expected)])
    return secrets[0], secrets[-1]


def _drawn() -> tuple[bytes, bytes]:
    secret = os.urandom(SIZE)
    return secret, secret
