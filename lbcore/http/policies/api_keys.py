"""validate-api-key: callers that a configuration knows by a secret it does not contain."""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lbcore.http.message import Response
from lbcore.http.policies.context import Context
from lbcore.http.policies.fields import FieldName
from lbcore.http.policies.headers import without
from lbcore.http.policies.policy import Policy, Site, Step
from lbcore.http.policies.values import is_named, query_value, request_value

__all__ = ["ValidateApiKey"]

_LONGEST = 1024
_NO_KEY = hashlib.sha256().hexdigest()


class Key(BaseModel):
    """One caller: a name, and the SHA-256 of its key in hexadecimal."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(min_length=1, max_length=100)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ValidateApiKey(Policy):
    """Let through only who shows a key; the others get 401. `variables["key"]` is then the key's name.

    keys: the callers, by the SHA-256 of their keys (`printf %s KEY | sha256sum`): keys should be random, 16 bytes at least
    header: where the key is looked for; query: the name of a parameter, in place of the header
    forward: the backend sees it, too
        { policy = "validate-api-key", header = "x-api-key", keys = [{ name = "partner", sha256 = "2bb8…" }] }
    """

    kind: ClassVar[str] = "validate-api-key"
    sections: ClassVar[frozenset[str]] = frozenset(("inbound",))

    keys: list[Key] = Field(
        min_length=1, max_length=10_000, description='tables { name = "…", sha256 = "…" }: 64 lower-case hexadecimal digits'
    )
    header: FieldName = Field(default="x-api-key", description="a header's name")
    query: str = Field(default="", max_length=100, pattern=r"^[A-Za-z0-9._~-]*$", description="a parameter's name")
    forward: bool = Field(default=False, description="true or false")

    @model_validator(mode="after")
    def _differ(self) -> Self:
        for texts in ([key.name for key in self.keys], [key.sha256[:16] for key in self.keys]):
            if len({*texts}) < len(texts):
                raise ValueError("keys with different names and hashes")
        if any(key.sha256 == _NO_KEY for key in self.keys):
            raise ValueError("hashes of keys, not of the empty text: whoever shows no key would be let in")
        return self

    def prepare(self, site: Site) -> Step:
        # Found by a part, compared in whole and in constant time: how long it takes tells nothing of a key, whose hash nobody can choose.
        known = {bytes.fromhex(key.sha256[:16]): (bytes.fromhex(key.sha256), key.name) for key in self.keys}
        nobody = (bytes(32), "")
        lower, query, forward = self.header.lower().encode(), self.query, self.forward

        def check(context: Context) -> Response | None:
            request = context.request
            shown = query_value(request.target, query) if query else request_value(request, lower)
            found = hashlib.sha256(shown[:_LONGEST].encode("utf-8", "replace")).digest()
            wanted, name = known.get(found[:8], nobody)
            if not hmac.compare_digest(found, wanted) or len(shown) > _LONGEST:
                return context.deny("validate-api-key", 401, fields=[(b"WWW-Authenticate", b"ApiKey")])
            context.variables["key"] = name
            if not forward:
                _forget(context, lower, query)
            return None

        return check


def _forget(context: Context, header: bytes, query: str) -> None:
    request = context.request
    if not query:
        request.fields = without(request.fields, header)
        return
    path, _, pairs = request.target.partition(b"?")
    left = b"&".join(pair for pair in pairs.split(b"&") if not is_named(pair.decode("latin-1"), query))
    request.target = path + b"?" + left if left else path
