"""log: records of calls, in JSON types, without secrets."""

from __future__ import annotations

import math
import random
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo

from lbcore.http.policies.conditions import expression
from lbcore.http.policies.context import Context
from lbcore.http.policies.policy import SECTIONS, Policy, Site, Step, section_of

__all__ = ["Log"]

_LONGEST = 1000


def _told(text: str, info: ValidationInfo) -> str:
    expression(text, section_of(info), told=True)
    return text


def _plain(value: object) -> object:
    """Give what JSON can say of a value, not too much of it."""
    if isinstance(value, str):
        return value[:_LONGEST]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool) or isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return value
    return [_plain(each) for each in value[:20] if not isinstance(each, list | dict)] if isinstance(value, list) else None


class Log(Policy):
    """Write a record of the call: region, gateway, API, operation, revision, request id and section, and what `fields` say.

    fields: name -> expression; Authorization, Cookie and the like are refused
    sample: the share of calls that are written, 0 to 1
        { policy = "log", fields = { status = "response.status", who = 'claims["sub"]' }, sample = 0.1 }
    """

    kind: ClassVar[str] = "log"
    sections: ClassVar[frozenset[str]] = frozenset(SECTIONS)

    fields: dict[
        Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,40}$")], Annotated[str, AfterValidator(_told)]
    ] = Field(default={}, max_length=50, description="a table of name = expression")  # fmt: skip
    sample: float = Field(default=1.0, ge=0, le=1, description="a share, 0..1")

    def prepare(self, site: Site) -> Step:
        values = {name: expression(text, site.section, told=True) for name, text in self.fields.items()}
        sample, write, draw = self.sample, site.log, random.random
        fixed = {"region": site.region, "gateway": site.gateway, "section": site.section}

        def record(context: Context) -> None:
            if sample < 1.0 and draw() >= sample:
                return
            call = {"api": context.api, "version": context.version, "operation": context.operation, "revision": context.revision}
            name = context.call.request_id or context.call.inbound.engine.heads.identifier(context.call)
            identifier = {"request_id": name.decode("latin-1")}
            write(fixed | call | identifier | {name: _plain(value(context)) for name, value in values.items()})

        return record
