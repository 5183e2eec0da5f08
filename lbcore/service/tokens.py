"""Tokens: who may speak to the management plane, and as what.

    lbcore_<id>_<secret>      id: 12 hexadecimal digits, may be shown;  secret: 256 random bits, seen once, kept as its SHA-256

    reader    sees everything        operator  changes the service, too        owner  everything: tokens, restore, promote, delete as well
    node      is one region or edge, which is the token's name: takes configuration and rotation, reports; nothing else
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from lbcore.errors import ServiceError
from lbcore.region import canonical
from lbcore.service.store import Store
from lbcore.service.tokenrows import TokenRow

__all__ = ["ROLES", "Attempts", "Principal", "TooManyAttemptsError", "Verifier", "issue"]

ROLES = ("node", "reader", "operator", "owner")
_FORM = re.compile(r"lbcore_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NODE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PEOPLE = ROLES[1:]
_NOTED = 60.0  # seconds between two notes that a token is in use
_MOST = 10_000  # clients, and tokens of clients, that are remembered
_NOBODY = bytes(32)
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a token stands for. bound: the region or edge that a node is, canonical; "" = a person"""

    id: str
    name: str
    role: str
    bound: str = ""

    @property
    def who(self) -> str:
        """Give what history and logs call them."""
        return f"{self.name} ({self.id})"

    def may(self, role: str) -> bool:
        """Say whether they may what a reader, operator or owner may; a node is none of these, and a person no node."""
        if role not in _PEOPLE or self.role not in _PEOPLE:
            return role == self.role
        return _PEOPLE.index(role) <= _PEOPLE.index(self.role)


class TooManyAttemptsError(ServiceError):
    """Refuse to look at a token; `.retry_after` is in seconds."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__("TooManyAttempts", f"too many wrong tokens came from this address; try again in {retry_after:.0f} s")


def issue(store: Store, role: str, name: str, *, who: str, expires: float | None = None) -> str:
    """Make a token and give its text, which nobody can give again.

    role: one of ROLES;  name: of the person or program, of a node that of its region or edge;  expires: wall-clock seconds, None = never
    Raises ServiceError InvalidProperty.
    """
    _refuse_unless(role in ROLES, f"a role is one of {', '.join(ROLES)}; got {ascii(role)[:80]}", "role")
    name = canonical(name) if role == "node" else name.strip()
    _refuse_unless(bool(name) and len(name) <= 200 and name.isprintable(), "a name is 1-200 printable characters", "name")
    _refuse_unless(role != "node" or bool(_NODE.fullmatch(name)), "the name of a node is that of its region or edge", "name")
    late = expires is None or store.clock() < expires < 1e11
    _refuse_unless(late, "the time at which it expires must be in the future", "expires")
    id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    store.tokens.add(id, name, role, _digest(secret), who=who, expires=expires)
    return f"lbcore_{id}_{secret}"


class Attempts:
    """How often each client was wrong: `most` times within `per` seconds at first, then as often as that lets it on average."""

    def __init__(self, most: int = 10, per: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause, self._burst, self._clock = per / most, per - per / most, clock
        self._until: OrderedDict[str, float] = OrderedDict()

    def wait(self, address: str) -> float:
        """Give the seconds until it may try again, 0 = now."""
        return max(0.0, self._until.get(_network(address), 0.0) - self._clock() - self._burst)

    def failed(self, address: str) -> None:
        """Count one."""
        client, now = _network(address), self._clock()
        self._until[client] = max(now, self._until.get(client, now)) + self._pause
        self._until.move_to_end(client)
        if len(self._until) > _MOST:
            self._until.popitem(last=False)


@dataclass
class Verifier:
    """Says whom a token stands for. It reads the store: call it from a thread; any may.

    A client that was wrong too often gets TooManyAttemptsError for every token but those that were right from there before, so that nobody
    is locked out by a neighbour. The same wrong token again, from a program that goes on with an old one, is no other attempt.
    """

    store: Store
    attempts: Attempts = field(default_factory=Attempts)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, bytes], bool] = OrderedDict()  # client and token -> whether it was right
        self._noted: OrderedDict[str, float] = OrderedDict()

    def authenticate(self, text: str, address: str = "") -> Principal:
        """Give whose token it is. address: of the client

        Raises ServiceError AuthenticationFailed, TooManyAttemptsError, and what the store raises. None of them shows the token.
        """
        match, attempt = _FORM.fullmatch(text), (_network(address), _digest(text))
        with self._lock:
            wait = self.attempts.wait(address)
            if wait > 0 and attempt not in self._known:
                raise TooManyAttemptsError(wait)
        try:
            row = self._row(match[1], _digest(match[2])) if match else self._row("", _NOBODY)
            self._refuse_ended(row)
        except ServiceError as error:
            if error.code == "AuthenticationFailed":
                self._failed(attempt)
            raise
        with self._lock:
            _remember(self._known, attempt, True)
        self._note(row.id)
        return _principal(row)

    def _failed(self, attempt: tuple[str, bytes]) -> None:
        with self._lock:
            if self._known.get(attempt) is not False:
                self.attempts.failed(attempt[0])
            _remember(self._known, attempt, False)

    def still(self, id: str) -> Principal:
        """Give whose token an id is of that was authenticated before, such as a session's; AuthenticationFailed when it has ended since."""
        found = self.store.tokens.find(id)
        if found is None:
            raise ServiceError("AuthenticationFailed", "this token is not known")
        self._refuse_ended(found[0])
        return _principal(found[0])

    def _row(self, id: str, digest: bytes) -> TokenRow:
        row, kept = self.store.tokens.find(id) or (None, _NOBODY)
        if not hmac.compare_digest(kept, digest) or row is None:
            raise ServiceError("AuthenticationFailed", "this token is not known")
        return row

    def _refuse_ended(self, row: TokenRow) -> None:
        if row.revoked is not None:
            raise ServiceError("AuthenticationFailed", "this token was revoked")
        if row.expires is not None and row.expires <= self.store.clock():
            raise ServiceError("AuthenticationFailed", "this token has expired")

    def _note(self, id: str) -> None:
        """Note that a token is in use, once a minute; a store that cannot be written now refuses nobody."""
        now = self.clock()
        with self._lock:
            if now - self._noted.get(id, -_NOTED) < _NOTED:
                return
            _remember(self._noted, id, now)
        with suppress(ServiceError):
            self.store.tokens.used(id)


def _principal(row: TokenRow) -> Principal:
    return Principal(row.id, row.name, row.role, row.name if row.role == "node" else "")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _network(address: str) -> str:
    """Give whom an address belongs to: of IPv6 it is the /64, any of which one client may use."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # a /64 that was made here, or a name
        return address[:100]
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(getattr(found, "ipv4_mapped", None) or found)


def _remember(table: OrderedDict[K, V], key: K, value: V) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > _MOST:
        table.popitem(last=False)


def _refuse_unless(good: bool, message: str, target: str) -> None:
    if not good:
        raise ServiceError("InvalidProperty", message, target)
