"""set-header and remove-header: of the request in `inbound` and `backend`, of the response in `outbound` and `on_error`."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from lbcore.http import message
from lbcore.http.policies.conditions import Value
from lbcore.http.policies.conditions import expression as compiled
from lbcore.http.policies.context import Context, Head
from lbcore.http.policies.fields import FieldName, FieldValue, clean
from lbcore.http.policies.policy import SECTIONS, Expression, Policy, Site, Step
from lbcore.http.policies.values import text

__all__ = ["RemoveHeader", "SetHeader"]


def holder(context: Context) -> message.Request | Head:
    """Give whose fields a policy speaks of: the response's once there is one, else the request's."""
    return context.request if context.response is None else context.response


def without(fields: list[message.Field], name: bytes) -> list[message.Field]:
    """Give the fields that are not called so, with "_" for "-" either: CGI and WSGI cannot tell them apart. name: lower case."""
    size, plain = len(name), name.replace(b"_", b"-")
    return [field for field in fields if len(field[0]) != size or field[0].lower().replace(b"_", b"-") != plain]


class SetHeader(Policy):
    """Write a header.

    value: what it says; or expression: what gives that for each call (what cannot stand in a header is left out)
    exists: what becomes of those of that name: "replace" them, "append" another one, or "skip" when there is one
        { policy = "set-header", name = "x-user", expression = 'claims["sub"]', exists = "skip" }
    """

    kind: ClassVar[str] = "set-header"
    sections: ClassVar[frozenset[str]] = frozenset(SECTIONS)

    name: FieldName = Field(description="a header's name")
    value: FieldValue | None = Field(default=None, description="a header's value")
    expression: Expression | None = Field(default=None, description="an expression")
    exists: Literal["replace", "append", "skip"] = Field(default="replace", description='"replace", "append" or "skip"')

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.value is None) is (self.expression is None):
            raise ValueError("either value or expression")
        return self

    def prepare(self, site: Site) -> Step:
        name, lower, give, exists = self.name.encode(), self.name.lower().encode(), self._give(site), self.exists
        fixed = None if self.value is None else (name, self.value.encode("latin-1"))

        def write(context: Context) -> None:
            where = holder(context)
            others = where.fields if exists == "append" else without(where.fields, lower)
            if exists != "skip" or len(others) == len(where.fields):
                where.fields = [*others, fixed or (name, clean(text(give(context))))]

        return write

    def _give(self, site: Site) -> Value:
        return compiled(self.expression, site.section) if self.expression is not None else lambda context: ""


class RemoveHeader(Policy):
    """Remove every header of a name.

    { policy = "remove-header", name = "server" }
    """

    kind: ClassVar[str] = "remove-header"
    sections: ClassVar[frozenset[str]] = frozenset(SECTIONS)

    name: FieldName = Field(description="a header's name")

    def prepare(self, site: Site) -> Step:
        lower = self.name.lower().encode()

        def remove(context: Context) -> None:
            where = holder(context)
            where.fields = without(where.fields, lower)

        return remove
