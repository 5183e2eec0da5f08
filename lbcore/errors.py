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
import errno
from collections.abc import Iterable, Mapping, Sequence
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

# Classes by name, so that none of the libraries needs to be imported: httpx and httpcore, asyncio and http.client, requests.
_NOT_THE_PATH = frozenset(("PoolTimeout", "UnsupportedProtocol", "LocalProtocolError", "ProxyError"))  # the caller's own pool, words, proxy
_CUT_OFF = frozenset(("TransportError", "IncompleteReadError", "IncompleteRead"))
_PATH_OS_ERRORS = frozenset(("ConnectionError", "gaierror", "ChunkedEncodingError"))
_PATH_ERRNOS = frozenset((
    errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ESHUTDOWN, errno.ENOTCONN, errno.EPROTO,
    errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET,
))  # fmt: skip


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


def shown(value: object) -> object:
    """Give a value as a violation shows it: what would fill the screen is shortened, a table told by its size."""
    if isinstance(value, Mapping):
        return f"a table of {len(value)}"
    if isinstance(value, list | tuple | str | bytes) and len(value) > 100 or len(repr(value)) > 100:
        return repr(value[:100] if isinstance(value, list | tuple | str | bytes) else value)[:97] + "..."
    return value


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

    Not the path's fault: files, permissions, a full disk and other local OSErrors, an answer with an error status, the
    caller's own connection pool or proxy, a request that cannot be sent. A URLError's reason decides for it.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _NOT_THE_PATH:
        return None
    if "URLError" in names:
        reason = getattr(error, "reason", None)  # of an HTTPError, and of a URL that is none, only words
        return cause_of(reason) if isinstance(reason, BaseException) else None
    if isinstance(error, TimeoutError) or "TimeoutException" in names:
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if "SSLError" in names:
        return "tls"
    if "ConnectError" in names:
        return "tls" if "certificate" in str(error).lower() or "ssl" in str(error).lower() else "refused"
    if isinstance(error, OSError):
        return _cause_of_os_error(error, names)
    return "reset" if names & _CUT_OFF else None


def _cause_of_os_error(error: OSError, names: set[str]) -> str | None:
    """Tell the path's errors, which are few, from the machine's own, which are many."""
    if "Timeout" in names or error.errno == errno.ETIMEDOUT:
        return "timeout"
    if error.errno == errno.ECONNREFUSED:
        return "refused"
    several = type(error) is OSError and error.errno is None  # asyncio, when no address of a name could be connected to
    return "reset" if several or names & _PATH_OS_ERRORS or error.errno in _PATH_ERRNOS else None
