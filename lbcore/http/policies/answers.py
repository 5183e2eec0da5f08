"""mock-response, return-response and set-status: answers that come from here."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from lbcore.http.message import Response
from lbcore.http.policies.context import Context, Reply
from lbcore.http.policies.fields import FieldName, FieldValue
from lbcore.http.policies.policy import SECTIONS, Policy, Site, Step

__all__ = ["MockResponse", "ReturnResponse", "SetStatus"]


class _Answer(Policy):
    status: int = Field(default=200, ge=200, le=599, description="a status 200..599")
    headers: dict[FieldName, FieldValue] = Field(default={}, description="a table of header = value")
    body: str = Field(default="", max_length=65536, description="a text of at most 65536 characters")

    @model_validator(mode="after")
    def _may_have_body(self) -> Self:
        if self.body and self.status in (204, 205, 304):
            raise ValueError("no body with status 204, 205 and 304")
        return self

    def prepare(self, site: Site) -> Step:
        fields = [(name.encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        response = Response(self.status, self.body.encode(), fields)
        return lambda context: response


class MockResponse(_Answer):
    """Answer in the backend's place, for clients that are written before it.

    { policy = "mock-response", status = 200, headers = { content-type = "application/json" }, body = '{"orders": []}' }
    """

    kind: ClassVar[str] = "mock-response"
    sections: ClassVar[frozenset[str]] = frozenset(("inbound",))


class ReturnResponse(_Answer):
    """End the call with this answer: before it is sent on, or in place of the backend's or the error's.

    { policy = "return-response", when = "error.cause == 'overload'", status = 503, headers = { retry-after = "5" }, body = "busy" }
    """

    kind: ClassVar[str] = "return-response"
    sections: ClassVar[frozenset[str]] = frozenset(SECTIONS)


class SetStatus(Policy):
    """Give an error another status; its headers and body stay.

    { policy = "set-status", when = 'error.policy == "ip-filter"', status = 404 }
    """

    kind: ClassVar[str] = "set-status"
    sections: ClassVar[frozenset[str]] = frozenset(("on_error",))

    status: int = Field(ge=400, le=599, description="a status 400..599")

    def prepare(self, site: Site) -> Step:
        status = self.status

        def change(context: Context) -> None:
            if isinstance(context.response, Reply):
                context.response.status = status

        return change
