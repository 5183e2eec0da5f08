"""set-backend, timeout and retry: where a call goes, how long it may take, when it goes there again."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from lbcore.errors import nearest
from lbcore.http.policies import context
from lbcore.http.policies.context import Context
from lbcore.http.policies.policy import Policy, Site, Step, of_region

__all__ = ["Retry", "SetBackend", "Timeout"]

BEFORE = frozenset(("inbound", "backend"))


class _UnknownBackend(ValueError):
    def __init__(self, name: str, known: list[str]) -> None:
        super().__init__(f"one of the backends {', '.join(known) or '(there is none)'}, not {name!r}")
        self.nearest = next(iter(nearest(name, known)), None)


class SetBackend(Policy):
    """Send the call to another backend.

    backend: its name; regions: region's name -> backend's name, for gateways there, before `backend`. A region that has neither: no change
        { policy = "set-backend", backend = "stock-us", regions = { westeurope = "stock-eu" } }
    """

    kind: ClassVar[str] = "set-backend"
    sections: ClassVar[frozenset[str]] = BEFORE

    backend: str = Field(default="", description="a backend's name")
    regions: dict[str, str] = Field(default={}, description="a table of region = backend")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.backend and not self.regions:
            raise ValueError("backend, regions or both")
        return self

    def prepare(self, site: Site) -> Step:
        for name in (*self.regions.values(), self.backend):
            if name and name not in site.backends:
                raise _UnknownBackend(name, sorted(site.backends))
        chosen = of_region(self.regions, site.region, self.backend)

        def choose(context: Context) -> None:
            context.backend = chosen or context.backend

        return choose


class Timeout(Policy):
    """Bound how long the call may take, in seconds, in place of the gateway's own bounds; then the client gets 504.

    first_byte: until the backend begins to answer, from the request's last byte, for each attempt; total: for all of it, of a WebSocket
        until it is open
        { policy = "timeout", first_byte = 2.0, total = 10 }
    """

    kind: ClassVar[str] = "timeout"
    sections: ClassVar[frozenset[str]] = BEFORE

    first_byte: float | None = Field(default=None, gt=0, le=3600, description="seconds above 0, at most 3600")
    total: float | None = Field(default=None, gt=0, le=86400, description="seconds above 0, at most 86400")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.first_byte is None and self.total is None:
            raise ValueError("first_byte, total or both")
        return self

    def prepare(self, site: Site) -> Step:
        bound = context.Timeout(self.first_byte, self.total)

        def limit(context: Context) -> None:
            context.timeout = bound

        return limit


class Retry(Policy):
    """Send the call again when it fails, to another of the backend's URLs if there is one; only what does no harm when it comes twice.

    count: at most so often; causes: after which failures; statuses: after which answers
    Never sent again: what has begun to be answered, and what is neither idempotent nor unsent (RFC 9110 §9.2.2).
        { policy = "retry", count = 2, statuses = [502, 503] }
    """

    kind: ClassVar[str] = "retry"
    sections: ClassVar[frozenset[str]] = BEFORE

    count: int = Field(ge=0, le=10, description="a whole number, 0..10")
    causes: list[Literal["refused", "timeout", "tls", "reset"]] = Field(
        default=["refused", "reset", "timeout", "tls"], description='a list of "refused", "timeout", "tls", "reset"'
    )
    statuses: list[int] = Field(default=[], description="a list of statuses 400..599")

    @model_validator(mode="after")
    def _are_failures(self) -> Self:
        if any(not 400 <= status <= 599 for status in self.statuses):
            raise ValueError("statuses 400..599")
        return self

    def prepare(self, site: Site) -> Step:
        rule = context.Retry(self.count, frozenset(self.causes), frozenset(self.statuses))

        def allow(context: Context) -> None:
            context.retry = rule

        return allow
