"""The error tree: what lbcore raises when the *caller's world* is wrong.

LbcoreError
├── ConfigError          a file or settings object; every violation at once
├── UnknownRegionError   a region name nobody configured
├── NoRegionError        nothing is enabled, so nothing can be picked
├── ServiceError         the multi-region service refused; carries the REST code
└── NotPrimaryError      a write reached a secondary

Bugs of the caller (a string that is no address, a NaN) are the built-in ValueError, IndexError and
TypeError. A dead gateway or a failed probe is data, not an exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "CAUSES",
    "ConfigError",
    "LbcoreError",
    "NoRegionError",
    "NotPrimaryError",
    "ServiceError",
    "UnknownRegionError",
    "Violation",
    "cause_of",
]

CAUSES = ("refused", "timeout", "tls", "status", "reset")


class LbcoreError(Exception):
    """Give every lbcore error one base to catch."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong setting: where it stands, what it is, what was expected and the nearest valid choice."""

    where: str
    value: object
    expected: str
    nearest: str | None = None

    def __str__(self) -> str:
        hint = f"; did you mean {self.nearest!r}?" if self.nearest else ""
        return f"{self.where} = {self.value!r}: expected {self.expected}{hint}"


class ConfigError(LbcoreError):
    """Report every violation of one configuration together, in `.violations`."""

    def __init__(self, violations: Iterable[Violation]) -> None:
        self.violations = tuple(violations)
        super().__init__("\n".join(map(str, self.violations)))


class UnknownRegionError(LbcoreError, LookupError):
    """Name a region that is not configured: `.name`, and the closest known ones in `.nearest`."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.nearest: Sequence[str] = nearest(name, known, 3)
        hint = f"; did you mean {' or '.join(map(repr, self.nearest))}?" if self.nearest else ""
        super().__init__(f"unknown region {name!r}{hint}")


class NoRegionError(LbcoreError):
    """Say that no region can be picked: none is enabled, synced and not draining."""


class ServiceError(LbcoreError):
    """Refuse an operation on the service: `.code` and `.target` as the REST body has them."""

    def __init__(self, code: str, message: str, target: str | None = None, details: Sequence[ServiceError] = ()) -> None:
        self.code, self.target, self.details = code, target, tuple(details)
        super().__init__(f"{code}: {message}")


class NotPrimaryError(ServiceError):
    """Refuse a write on a secondary; `.target` is the primary's address."""

    def __init__(self, primary: str | None) -> None:
        super().__init__("NotPrimary", f"this region is a secondary; write to the primary at {primary or 'an unknown address'}", primary)


def nearest(name: str, known: Iterable[str], count: int = 1) -> Sequence[str]:
    """Give up to `count` of the known names that resemble `name`, the most alike first."""
    return difflib.get_close_matches(name.lower(), [*known], count, 0.5)


def cause_of(error: BaseException) -> str | None:
    """Give the cause of failure that an exception speaks of: refused, timeout, tls or reset; None when it is not the path's fault.

    Exceptions of httpx are told by the names of their classes, so that nothing needs to be imported.
    """
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    names = {kind.__name__ for kind in type(error).__mro__}
    if "SSLError" in names:
        return "tls"
    if "TimeoutException" in names:
        return "timeout"
    if "ConnectError" in names:
        return "tls" if "certificate" in str(error).lower() or "ssl" in str(error).lower() else "refused"
    return "reset" if isinstance(error, OSError) or "TransportError" in names else None
