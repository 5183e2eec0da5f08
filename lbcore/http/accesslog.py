"""The access log: one JSON object a line for one answered call of so many, and for every call that failed.

    time        when it ended, UTC, RFC 3339 with milliseconds
    role        "front-door" or "gateway"
    client      its address, after the trust list
    method, host, path    of the request; the path without its query, at most 1,000 characters
    status      of the response, 0 = none was begun; bytes: of its body
    head_ms, ms from the request's head to that of a region or backend, null = none sent one; to the end
    to          the region or backend that answered last; api: null at a front door; revision: of the gateway's configuration
    attempts    how many were made
    cause       null, or why the call failed: refused, timeout, tls, status, reset, overload; "client" = it left
    request_id  as it was passed on

Records of a gateway's policy `log` stand in lines of their own: time, role, and log.

Fields are added, never renamed. Never here: the query, Authorization, Cookie, any body.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbcore.linelog import LineLog

if TYPE_CHECKING:
    from lbcore.http.call import Call

__all__ = ["AccessLog"]

LONGEST = 1000  # characters of what a client sent
Entry = tuple[Any, ...]


class AccessLog(LineLog[Entry]):
    """Write calls to a file; a context manager that closes with everything written.

    role: what serves; sample: 1 = every call. clock: of the calls, monotonic seconds. Errors as LineLog's, and ValueError for a sample
    below 1.
    """

    def __init__(
        self, path: Path, role: str, sample: int, clock: Callable[[], float], *, wall: Callable[[], datetime.datetime] | None = None
    ) -> None:
        if sample < 1:
            raise ValueError(f"sample must be at least 1, got {sample}")
        super().__init__(path, "access log", wall=wall)
        self._role, self._sample, self._left, self._clock = role, sample, sample, clock

    def offer(self, call: Call, api: str | None = None, revision: str | None = None, target: bytes | None = None) -> None:
        """Take a call that ended, if it failed or its turn has come. target: the request's, as the client sent it; None = unchanged."""
        self._left -= 1
        if self._left <= 0:
            self._left = self._sample
        elif call.cause is None and not call.cut and not call.aborted and call.status < 500:
            return
        request, now = call.request, self._clock()
        self.put((
            call.client, request.method, request.host, target or request.target, call.status, call.size,
            call.begun_at, call.head_at, now, call.target.name if call.target is not None else None, api, revision, call.attempts,
            "client" if call.aborted else call.cause or ("overload" if call.cut else None), call.request_id,
        ))  # fmt: skip

    def note(self, record: Mapping[str, object]) -> None:
        """Take a record of the policy `log`."""
        self.put((record,))

    def describe(self, work: Entry, /) -> dict[str, Any]:
        """Give a call's fields."""
        if len(work) == 1:
            return {"role": self._role, "log": work[0]}
        client, method, host, target, status, size, began, head, now, to, api, revision, attempts, cause, request_id = work
        return {
            "role": self._role, "client": client, "method": _text(method), "host": _text(host), "path": _text(target.partition(b"?")[0]),
            "status": status, "bytes": size, "head_ms": round((head - began) * 1000, 3) if head >= began and status else None,
            "ms": round((now - began) * 1000, 3), "to": to, "api": api, "revision": revision, "attempts": attempts, "cause": cause,
            "request_id": _text(request_id),
        }  # fmt: skip


def _text(data: bytes) -> str:
    return data[:LONGEST].decode("latin-1")
