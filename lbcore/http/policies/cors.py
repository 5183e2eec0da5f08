"""cors: which web pages of other origins may call, told to browsers."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from lbcore.http.message import Response, tokens
from lbcore.http.policies.context import Context
from lbcore.http.policies.policy import Policy, Site, Step
from lbcore.http.policies.values import request_value

__all__ = ["Cors"]

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_ANSWERED = frozenset((
    b"access-control-allow-credentials", b"access-control-allow-headers", b"access-control-allow-methods", b"access-control-allow-origin",
    b"access-control-expose-headers", b"access-control-max-age",
))  # fmt: skip


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise ValueError('an origin such as "https://app.contoso.test", lower case and without a path, or "*"')
    return text


def _token(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError("a name: letters, digits and !#$%&'*+.^_`|~-")
    return text


_Tokens = list[Annotated[str, AfterValidator(_token)]]


class Cors(Policy):
    """Answer preflight requests, and say on every response whether its page may read it. What the backend says of that is left out.

    origins: exact, or ["*"]; methods, headers: what may be sent, "*" = any; expose: response headers that pages may read
    credentials: cookies and authorization may be sent; not together with a "*" anywhere, nor the origin "null", which any page can have
    max_age: seconds that browsers may remember a preflight
    Of several that a call meets the first decides, which is the global one.
    A preflight of another origin, method or header is answered with 403; any other call passes, and the browser shows its page nothing.
        { policy = "cors", origins = ["https://app.contoso.test"], methods = ["GET", "PUT"], headers = ["content-type"] }
    Source: Fetch standard, "HTTP extensions: CORS protocol".
    """

    kind: ClassVar[str] = "cors"
    sections: ClassVar[frozenset[str]] = frozenset(("inbound",))

    origins: list[Annotated[str, AfterValidator(_origin)]] = Field(min_length=1, description="a list of origins")
    methods: _Tokens = Field(default=["GET", "HEAD", "POST"], description="a list of methods")
    headers: _Tokens = Field(default=[], description="a list of headers' names")
    expose: _Tokens = Field(default=[], description="a list of headers' names")
    credentials: bool = Field(default=False, description="true or false")
    max_age: int = Field(default=600, ge=0, le=86400, description="seconds, 0..86400")

    @model_validator(mode="after")
    def _no_secrets_for_everybody(self) -> Self:
        if self.credentials and not {"*", "null"}.isdisjoint((*self.origins, *self.methods, *self.headers, *self.expose)):
            raise ValueError('credentials only for origins, methods and headers by name, without "*" and "null"')
        return self

    def prepare(self, site: Site) -> Step:
        origins = frozenset(self.origins)
        anybody = "*" in origins
        rest, vary = self._on_every_response(), b"" if anybody else b"Vary: Origin\r\n"

        def share(context: Context) -> Response | None:
            request = context.request
            if context.replaced >= _ANSWERED:
                return None  # two answers are none to a browser
            context.replaced |= _ANSWERED
            origin = request_value(request, b"origin")
            allowed = origin != "" and (anybody or origin in origins)
            if request.method == b"OPTIONS" and origin and request.field(b"access-control-request-method") is not None:
                return self._preflight(context, origin, allowed, anybody)
            if allowed:
                context.add(b"Access-Control-Allow-Origin: %b\r\n%b%b" % (b"*" if anybody else origin.encode("latin-1"), rest, vary))
            elif vary:
                context.add(vary)
            return None

        return share

    def _on_every_response(self) -> bytes:
        exposed = f"Access-Control-Expose-Headers: {', '.join(self.expose)}\r\n" if self.expose else ""
        return (exposed + ("Access-Control-Allow-Credentials: true\r\n" if self.credentials else "")).encode()

    def _preflight(self, context: Context, origin: str, allowed: bool, anybody: bool) -> Response:
        request = context.request
        method = request_value(request, b"access-control-request-method")
        wanted = {name.decode("latin-1") for name in tokens(request_value(request, b"access-control-request-headers").encode("latin-1"))}
        known = {name.lower() for name in self.headers}
        vary = (b"Vary", b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers")
        if not (allowed and (method in self.methods or "*" in self.methods) and (wanted <= known or "*" in known)):
            return context.deny("cors", 403, fields=[vary])
        fields = [(b"Access-Control-Allow-Origin", b"*" if anybody else origin.encode("latin-1"))]
        fields.append((b"Access-Control-Allow-Methods", ", ".join(self.methods).encode()))
        if self.headers:
            fields.append((b"Access-Control-Allow-Headers", ", ".join(self.headers).encode()))
        if self.credentials:
            fields.append((b"Access-Control-Allow-Credentials", b"true"))
        return Response(204, fields=[*fields, (b"Access-Control-Max-Age", b"%d" % self.max_age), vary])
