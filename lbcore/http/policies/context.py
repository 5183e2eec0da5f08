"""Context: what a policy sees of a call, and what it may change. One for each call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from lbcore.http.message import Field, Request, Response

__all__ = ["Context", "Deployment", "Failure", "Head", "Reply", "Retry", "Timeout"]


class Head(Protocol):
    """A response's head."""

    status: int
    fields: list[Field]


@dataclass(frozen=True, slots=True)
class Deployment:
    """Which gateway this is: its region's name, its own, its service's."""

    region: str = ""
    gateway: str = ""
    service: str = "lbcore"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call failed.

    cause: refused, timeout, tls, status, reset, overload...; "policy" = one refused it, "exception" = one raised
    policy: its kind, "" = none
    """

    cause: str
    policy: str = ""


@dataclass(frozen=True, slots=True)
class Timeout:
    """How long a call may take, seconds; None = the gateway's. first_byte: of the response, from the request's last; total: of all."""

    first_byte: float | None = None
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """When a call is sent again, if that does no harm. count: at most so often; causes, statuses: after which failures, which answers."""

    count: int
    causes: frozenset[str]
    statuses: frozenset[int]


@dataclass(slots=True)
class Reply:
    """An answer made here that policies may change: the Head of an error."""

    status: int
    fields: list[Field]
    body: bytes = b""

    @classmethod
    def of(cls, response: Response) -> Reply:
        """Take what a Response says."""
        return cls(response.status, [*response.fields], response.body)

    def response(self) -> Response:
        """Give it as it is now."""
        return Response(self.status, self.body, self.fields)


class Context:
    """What is known of a call.

    call: the engine's; request: its request, whose fields and target may be changed; client: address, after the trust list
    api, version, operation: names, "" = none; revision: such as "1.7"; parameters: of the path, percent-decoded
    backend: name, may be changed; timeout, retry: None = the gateway's own
    response: in `outbound` and `on_error`, its fields may be changed; error: in `on_error`
    claims: of a token that was found valid
    rewritten: the path of the request's target is the backend's own now, of which the API's path must not be cut off
    replaced: lower-case names of response fields that are this gateway's word: the backend's are left out
    """

    # Most calls never set these: defaults of the class cost nothing.
    timeout: Timeout | None = None
    retry: Retry | None = None
    response: Head | None = None
    error: Failure | None = None
    claims: Mapping[str, Any] = MappingProxyType({})
    replaced: frozenset[bytes] = frozenset()
    rewritten = False
    _variables: dict[str, str] | None = None

    def __init__(
        self, call: Any, deployment: Deployment, api: str = "", version: str = "", operation: str = "", revision: str = "",
        backend: str = "", parameters: Mapping[str, str] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.call, self.deployment = call, deployment
        self.request: Request = call.request
        self.client: str = call.client
        self.api, self.version, self.operation, self.revision = api, version, operation, revision
        self.backend, self.parameters = backend, parameters

    @property
    def variables(self) -> dict[str, str]:
        """Give what policies tell each other."""
        if self._variables is None:
            self._variables = {}
        return self._variables

    def deny(self, policy: str, status: int, body: bytes = b"", fields: Sequence[Field] = ()) -> Response:
        """Give the response by which a policy refuses the call; `on_error` hears of it."""
        self.error = Failure("policy", policy)
        return Response(status, body, fields)

    def add(self, fields: bytes) -> None:
        """Add lines to the response's head, whoever makes it. fields: each "Name: value\\r\\n"."""
        self.call.extra += fields
