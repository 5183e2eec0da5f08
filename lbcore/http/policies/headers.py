"""set-header and remove-header: of the request in `inbound` and `backend`, of the response in `outbound` and `on_error`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from lbcore.http import message
from lbcore.http.policies.context import Context, Head
from lbcore.http.policies.fields import FieldName, FieldValue
from lbcore.http.policies.policy import SECTIONS, Policy, Site, Step

__all__ = ["RemoveHeader", "SetHeader"]


def holder(context: Context) -> message.Request | Head:
    """Give whose fields a policy speaks of: the response's once there is one, else the request's."""
    return context.request if context.response is None else context.response


def without(fields: list[message.Field], name: bytes) -> list[message.Field]:
    """Give the fields that are not called so. name: lower case."""
    return [field for field in fields if field[0].lower() != name]


class SetHeader(Policy):
    """Write a header.

    exists: what becomes of those of that name: "replace" them, "append" another one, or "skip" when there is one
        { policy = "set-header", name = "x-tier", value = "gold", exists = "skip" }
    """

    kind: ClassVar[str] = "set-header"
    sections: ClassVar[frozenset[str]] = frozenset(SECTIONS)

    name: FieldName = Field(description="a header's name")
    value: FieldValue = Field(description="a header's value")
    exists: Literal["replace", "append", "skip"] = Field(default="replace", description='"replace", "append" or "skip"')

    def prepare(self, site: Site) -> Step:
        field, lower = (self.name.encode(), self.value.encode("latin-1")), self.name.lower().encode()

        def replace(context: Context) -> None:
            where = holder(context)
            where.fields = [*without(where.fields, lower), field]

        def append(context: Context) -> None:
            where = holder(context)
            where.fields = [*where.fields, field]

        def skip(context: Context) -> None:
            where = holder(context)
            if not any(name.lower() == lower for name, _ in where.fields):
                where.fields = [*where.fields, field]

        return {"replace": replace, "append": append, "skip": skip}[self.exists]


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
