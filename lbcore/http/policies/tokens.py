"""validate-jwt: callers that an issuer vouches for."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from lbcore.http.message import Response
from lbcore.http.policies.conditions import condition
from lbcore.http.policies.context import Context
from lbcore.http.policies.fields import FieldName
from lbcore.http.policies.headers import without
from lbcore.http.policies.key_sets import KeySet, PublicKey
from lbcore.http.policies.policy import Policy, Site, Step
from lbcore.http.policies.values import request_value

try:
    import jwt
except ImportError as error:
    raise ImportError("validate-jwt needs PyJWT, which is not installed: pip install 'lbcore[http]'", name="jwt") from error

__all__ = ["ValidateJwt"]

_LONGEST = 16384
_MOST_KNOWN = 2000
_LEAST_SECRET = 32  # bytes, RFC 7518 §3.2
_NAMES = 'a list of "RS256", "ES256", "PS256", "EdDSA", "HS256" and their like; never "none"'

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512"
]  # fmt: skip


class _Refused(Exception):
    """Why a token is not accepted, in words that may be told."""


def _key_url(text: str) -> str:
    parts = urlsplit(text)
    safe = parts.scheme == "https" or parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
    if not safe or not parts.hostname or parts.username or parts.fragment:
        raise ValueError("an https:// URL (http:// on loopback only) of a JSON Web Key Set")
    return text


class ValidateJwt(Policy):
    """Let through only who shows a token (a JWT) that its issuer signed; the others get 401. `claims` is then what it says.

    issuer, audiences: whose tokens, and for whom; algorithms: what they may be signed with, each by name
    jwks: URL of the issuer's keys, for RS, PS, ES and EdDSA; or, for HS, a secret that is shared: secret_env, the name of an environment
        variable, or secret_file, a path; 32 bytes at least, read when the configuration is applied
    required: claims that must be there besides iss, aud and exp; require: a condition over `claims`, else 403
    leeway: seconds that clocks may differ; header: where the token is looked for, as "Bearer TOKEN"; forward: the backend sees it, too
    While no keys could be fetched at all, calls get 503.
        { policy = "validate-jwt", issuer = "https://login.contoso.test", audiences = ["orders"], algorithms = ["RS256"],
          jwks = "https://login.contoso.test/keys", require = '"orders.read" in claims["roles"]' }
    Source: RFC 7519, RFC 8725 (best current practices), RFC 6750 §3 (what is answered).
    """

    kind: ClassVar[str] = "validate-jwt"
    sections: ClassVar[frozenset[str]] = frozenset(("inbound",))

    issuer: str = Field(min_length=1, max_length=1000, description="the issuer as its tokens name it")
    audiences: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, description="a list of audiences")
    algorithms: list[Algorithm] = Field(min_length=1, description=_NAMES)
    jwks: Annotated[str, AfterValidator(_key_url)] | None = Field(default=None, description="an https:// URL of a JSON Web Key Set")
    secret_env: str | None = Field(default=None, description="the name of an environment variable")
    secret_file: str | None = Field(default=None, description="the path of a file")
    required: list[Annotated[str, Field(pattern=r"^[!#-\[\]-~]{1,200}$")]] = Field(default=[], description="a list of claims' names")
    require: str | None = Field(default=None, description="a condition")
    leeway: float = Field(default=0.0, ge=0, le=300, description="seconds, 0..300")
    header: FieldName = Field(default="authorization", description="a header's name")
    forward: bool = Field(default=True, description="true or false")

    @model_validator(mode="after")
    def _keys_suit(self) -> Self:
        if sum(source is not None for source in (self.jwks, self.secret_env, self.secret_file)) != 1:
            raise ValueError("one of jwks, secret_env and secret_file")
        if any(name.startswith("HS") is (self.jwks is not None) for name in self.algorithms):
            raise ValueError("HS algorithms with a secret, all others with jwks: whoever knows a public key could sign with it")
        if self.require is not None:
            condition(self.require, "inbound")
        return self

    def prepare(self, site: Site) -> Step:
        keys = site.keys.get(self.jwks) if self.jwks is not None and site.keys is not None else None
        if self.jwks is not None and keys is None:
            raise ValueError("a gateway that can fetch keys")
        return _Check(self, site.wall, keys, b"" if keys is not None else self._secret())

    def _secret(self) -> bytes:
        if self.secret_env is not None:
            secret = os.environb.get(self.secret_env.encode(), b"")
        else:
            try:
                secret = Path(self.secret_file or "").read_bytes().rstrip(b"\r\n")
            except OSError as error:
                raise ValueError(f"a file that can be read, as secret_file ({error.strerror})") from None
        if len(secret) < _LEAST_SECRET:
            raise ValueError(f"a secret of at least {_LEAST_SECRET} bytes, not of {len(secret)}")
        return secret


class _Check:
    """The step: at once when the key is there, else as a coroutine that fetches it."""

    def __init__(self, policy: ValidateJwt, wall: Callable[[], float], keys: KeySet | None, secret: bytes) -> None:
        self._policy, self._wall, self._keys, self._secret = policy, wall, keys, secret
        self._header = policy.header.lower().encode()
        self._allows = condition(policy.require, "inbound") if policy.require is not None else None
        self._known: dict[str, Mapping[str, Any]] = {}  # tokens that were found signed, by the keys there were then
        self._known_by: Sequence[PublicKey] = ()

    def __call__(self, context: Context) -> Response | Awaitable[Response | None] | None:
        try:
            token = self._token(context)
            if self._keys is not None:
                self._keys.keep_fresh()
                if self._keys.keys is not self._known_by:
                    self._known, self._known_by = {}, self._keys.keys
            if (claims := self._known.get(token)) is not None:
                return self._enter(context, claims)
            identifier, algorithm = self._named(token)
            if self._keys is None:
                return self._accept(context, token, self._secret, algorithm)
            key = self._keys.find(identifier, algorithm)
            if key is None:
                return self._fetch(context, token, identifier, algorithm)
            return self._accept(context, token, key.key, algorithm)
        except _Refused as refused:
            return self._deny(context, str(refused))

    async def _fetch(self, context: Context, token: str, identifier: str, algorithm: str) -> Response | None:
        assert self._keys is not None
        await self._keys.refresh()
        if not self._keys.keys:
            return context.deny("validate-jwt", 503, fields=[(b"Retry-After", b"5")])
        key = self._keys.find(identifier, algorithm)
        try:
            return self._accept(context, token, key.key, algorithm) if key is not None else self._deny(context, "the key is unknown")
        except _Refused as refused:
            return self._deny(context, str(refused))

    # ---- the token

    def _token(self, context: Context) -> str:
        scheme, _, token = request_value(context.request, self._header).partition(" ")
        if not scheme:
            raise _Refused("")
        if scheme.lower() != "bearer" or not token or len(token) > _LONGEST:
            raise _Refused("no bearer token")
        return token.strip(" ")

    def _named(self, token: str) -> tuple[str, str]:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise _Refused("malformed") from None
        algorithm, identifier = header.get("alg"), header.get("kid", "")
        if algorithm not in self._policy.algorithms or not isinstance(identifier, str):
            raise _Refused("the algorithm is not accepted")
        return identifier, algorithm

    def _accept(self, context: Context, token: str, key: Any, algorithm: str) -> Response | None:
        claims = MappingProxyType(self._verified(token, key, algorithm))
        response = self._enter(context, claims)
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[token] = claims
        return response

    def _enter(self, context: Context, claims: Mapping[str, Any]) -> Response | None:
        self._check_times(claims)
        context.claims = claims
        if self._allows is not None and not self._allows(context):
            context.claims = {}
            return context.deny("validate-jwt", 403, fields=[(b"WWW-Authenticate", b'Bearer error="insufficient_scope"')])
        if not self._policy.forward:
            context.request.fields = without(context.request.fields, self._header)
        return None

    def _verified(self, token: str, key: Any, algorithm: str) -> dict[str, Any]:
        policy = self._policy
        options: Any = {"require": ["iss", "aud", "exp", *policy.required], "verify_exp": False, "verify_nbf": False, "verify_iat": False}
        try:
            return jwt.decode(token, key, [algorithm], options, audience=policy.audiences, issuer=policy.issuer)
        except jwt.MissingRequiredClaimError as error:
            raise _Refused(f"the claim {error.claim} is missing") from None
        except jwt.InvalidIssuerError:
            raise _Refused("the issuer is another") from None
        except jwt.InvalidAudienceError:
            raise _Refused("the audience is another") from None
        except jwt.InvalidSignatureError:
            raise _Refused("the signature is not valid") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise _Refused("malformed") from None

    def _check_times(self, claims: Mapping[str, Any]) -> None:
        now, leeway = self._wall(), self._policy.leeway
        if now >= _time(claims, "exp", 0.0) + leeway:
            raise _Refused("expired")
        if now < _time(claims, "nbf", now) - leeway:
            raise _Refused("not valid yet")

    def _deny(self, context: Context, why: str) -> Response:
        told = f'Bearer error="invalid_token", error_description="{why}"' if why else "Bearer"
        return context.deny("validate-jwt", 401, fields=[(b"WWW-Authenticate", told.encode("ascii", "replace"))])


def _time(claims: Mapping[str, Any], name: str, missing: float) -> float:
    """Give a NumericDate (RFC 7519 §2)."""
    value = claims.get(name, missing)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e15:
        raise _Refused(f"{name} is no time")
    return float(value)
