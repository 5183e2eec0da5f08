"""rewrite-path: where in the backend a call goes."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal
from urllib.parse import quote

from pydantic import AfterValidator, Field

from lbcore.http.message import Response
from lbcore.http.policies.context import Context
from lbcore.http.policies.policy import Policy, Site, Step

__all__ = ["RewritePath"]

# RFC 3986 §3.3: what stands in a path's segment as it is; "%" only as part of an escape
_SEGMENT = "-._~!$&'()*+,;=:@"
_TEMPLATE = re.compile(rf"/(?:[A-Za-z0-9/{re.escape(_SEGMENT)}]|%[0-9A-Fa-f]{{2}}|\{{[A-Za-z_][A-Za-z0-9_-]*\}})*")
_PLAIN = re.compile(rf"[A-Za-z0-9{re.escape(_SEGMENT)}]*").fullmatch
_PARAMETER = re.compile(r"\{([^}]*)\}")
_FORM = 'a path such as "/v2/orders/{id}", percent-encoded'
_LONGEST = 8192


def _template(text: str) -> str:
    if not _TEMPLATE.fullmatch(text) or text.startswith("//") or _climbs(text) or len(text) > 2000:
        raise ValueError(_FORM)
    return text


def _climbs(path: str) -> bool:
    """Say whether a path has a segment that servers take for "here" or "up": escaped or not, also before a `;` (Tomcat's parameters)."""
    plain = path.replace("%2e", ".").replace("%2E", ".")
    return "." in plain and any(segment.partition(";")[0] in (".", "..") for segment in plain.split("/"))


class RewritePath(Policy):
    """Replace the path, in whole; what the backend's URL ends with still goes before it.

    path: `{name}` is a parameter of the operation's path, escaped so that it stays one segment. A call whose parameter is missing, or
        would climb out of its place ("..", "."), is answered with 400
    query: "keep" or "drop" what stands behind the path
        { policy = "rewrite-path", path = "/v2/orders/{id}" }
    """

    kind: ClassVar[str] = "rewrite-path"
    sections: ClassVar[frozenset[str]] = frozenset(("inbound", "backend"))

    path: Annotated[str, AfterValidator(_template)] = Field(description=_FORM)
    query: Literal["keep", "drop"] = Field(default="keep", description='"keep" or "drop"')

    def prepare(self, site: Site) -> Step:
        parts, keep = _PARAMETER.split(self.path), self.query == "keep"
        fixed, names = parts[::2], parts[1::2]

        def rewrite(context: Context) -> Response | None:
            path = [fixed[0]]
            for name, rest in zip(names, fixed[1:], strict=True):
                value = context.parameters.get(name, "")
                if not value:
                    return context.deny("rewrite-path", 400)
                path += (value if _PLAIN(value) else quote(value, safe=_SEGMENT, errors="surrogateescape"), rest)
            text = "".join(path)
            if len(text) > _LONGEST or names and _climbs(text):
                return context.deny("rewrite-path", 400)
            _, mark, query = context.request.target.partition(b"?") if keep else (b"", b"", b"")
            context.request.target = text.encode("ascii") + mark + query
            context.rewritten = True
            return None

        return rewrite
