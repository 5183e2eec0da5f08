"""Affinity: a cookie that keeps a client at the region it was at, as long as that region is healthy."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from lbcore.http.message import Request
from lbcore.region import Region

__all__ = ["Affinity"]


class Affinity:
    """Remember a client's region in a session cookie.

    secret: makes the value one that clients cannot choose; the same in all front doors of a service, at least 16 bytes
    cookie: its name; max_age: seconds it lasts, None = until the browser is closed
    It never outlives the region: a region that is down, disabled or draining is not returned to, and whoever answers instead sets the
    cookie anew. Raises ValueError for a short secret or a name that is no token.
    """

    def __init__(self, secret: bytes, *, cookie: str = "lbcore-region", max_age: int | None = None) -> None:
        if len(secret) < 16:
            raise ValueError(f"secret must have at least 16 bytes, got {len(secret)}")
        if not cookie or not all(letter.isalnum() or letter in "-_." for letter in cookie) or not cookie.isascii():
            raise ValueError(f"cookie must be a name of letters, digits, '-', '_' and '.', got {cookie!r}")
        self._secret, self._name = secret, cookie.encode()
        self._age = b"" if max_age is None else b"; Max-Age=%d" % max_age
        self._values: dict[str, bytes] = {}

    def region_of(self, request: Request, regions: Sequence[Region]) -> Region | None:
        """Give the region that the request's cookie names, whatever its health; None without a valid cookie."""
        value = self._given(request)
        return next((region for region in regions if value == self._value(region)), None) if value else None

    def cookie_for(self, request: Request, region: Region, secure: bool) -> bytes:
        """Give the line that sets the cookie, b"" if the client has it."""
        value = self._value(region)
        if self._given(request) == value:
            return b""
        flags = b"; Path=/; HttpOnly; SameSite=Lax" + (b"; Secure" if secure else b"")
        return b"Set-Cookie: %b=%b%b%b\r\n" % (self._name, value, flags, self._age)

    def _given(self, request: Request) -> bytes:
        for name, value in request.fields:
            if name.lower() == b"cookie":
                for pair in value.split(b";"):
                    key, _, text = pair.strip().partition(b"=")
                    if key == self._name:
                        return text.strip(b'"')
        return b""

    def _value(self, region: Region) -> bytes:
        known = self._values.get(region.name)
        if known is None:
            known = self._values[region.name] = hmac.digest(self._secret, region.name.encode(), "sha256").hex()[:24].encode()
        return known
