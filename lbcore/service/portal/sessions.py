"""Sessions: who is signed in to the portal. A token is entered once; the browser then holds a cookie with a random id, of which only the
hash is kept here. A session ends when nobody uses it for a while, when it is old, when its token ends, and when the primary restarts.

    cookie           HttpOnly, SameSite=Strict, with TLS also Secure and __Host-: no script reads it, no other site's request carries it
    forgery token    one for each session, in every form and every request of htmx; beside it the browser's own word on where it comes from
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lbcore.service.tokens import Principal

__all__ = ["Session", "Sessions", "from_here"]

IDLE, LONGEST = 1800.0, 43_200.0  # seconds
MOST, MOST_OF_ONE = 1000, 20  # sessions, of all tokens and of one
BITS = 256


@dataclass(slots=True)
class Session:
    """Somebody who is signed in.

    principal: whose token it was;  csrf: what every form sends back
    since, used: when it began and was used last, seconds of the Sessions' clock;  streams: of events that are open
    """

    principal: Principal
    since: float
    used: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(BITS // 8), repr=False)
    streams: int = 0
    ended: bool = False

    def genuine(self, given: str) -> bool:
        """Say whether a form or request carries this session's token against forgery."""
        return hmac.compare_digest(self.csrf.encode(), given.encode("utf-8", "replace"))


class Sessions:
    """The sessions of one process.

    idle, longest: seconds without use and in all after which one ends;  clock: monotonic seconds
    Of too many, those that were used longest ago end.
    """

    def __init__(self, *, idle: float = IDLE, longest: float = LONGEST, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle, self._longest, self._clock = idle, longest, clock
        self._sessions: dict[bytes, Session] = {}  # by the id's hash, the one used last at the end

    def open(self, principal: Principal) -> tuple[str, Session]:
        """Begin a session; give its id, which nothing here keeps, and the session."""
        self._sweep()
        of_one = self._of(principal)
        for key in of_one[: max(0, len(of_one) - MOST_OF_ONE + 1)]:
            self._end(key)
        while len(self._sessions) >= MOST:
            self._end(next(iter(self._sessions)))
        id, now = secrets.token_urlsafe(BITS // 8), self._clock()
        session = Session(principal, now, now)
        self._sessions[_hash(id)] = session
        return id, session

    def find(self, id: str | None) -> Session | None:
        """Give the session of an id and note that it is used; None for one that is unknown or has ended."""
        if not id:
            return None
        key = _hash(id)
        session = self._sessions.get(key)
        if session is None:
            return None
        if not self.alive(session):
            self._end(key)
            return None
        session.used = self._clock()
        self._sessions[key] = self._sessions.pop(key)
        return session

    def alive(self, session: Session) -> bool:
        """Say whether a session has not ended; asking is no use of it."""
        now = self._clock()
        return not session.ended and now - session.used < self._idle and now - session.since < self._longest

    def close(self, id: str | None) -> None:
        """End the session of an id, if there is one."""
        if id:
            self._end(_hash(id))

    def revoke(self, session: Session) -> None:
        """End every session of this session's token: it was revoked, or has expired."""
        for key in self._of(session.principal):
            self._end(key)

    def __len__(self) -> int:
        return len(self._sessions)

    def _of(self, principal: Principal) -> list[bytes]:
        return [key for key, each in self._sessions.items() if each.principal.id == principal.id]

    def _end(self, key: bytes) -> None:
        if (session := self._sessions.pop(key, None)) is not None:
            session.ended = True

    def _sweep(self) -> None:
        for key in [key for key, each in self._sessions.items() if not self.alive(each)]:
            self._end(key)


def _hash(id: str) -> bytes:
    return hashlib.sha256(id.encode("utf-8", "replace")).digest()


def from_here(headers: Mapping[str, str], scheme: str) -> bool:
    """Say whether a request that changes something comes from this portal's own pages, as far as the browser tells.

    headers: by lower-case name;  scheme: http or https, that the request came by
    Source: Fetch Metadata (Sec-Fetch-Site), RFC 6454 (Origin). What is no browser sends neither: the token against forgery decides.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    host = headers.get("host", "")
    return origin is None or origin in (f"{scheme}://{host}", f"https://{host}")  # something before it may have taken TLS off
