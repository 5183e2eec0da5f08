"""Calls, sites and pipelines for the tests of policies: no sockets, no engine, a clock that is set by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lbcore.errors import Violation
from lbcore.http.message import Field, Request, Response
from lbcore.http.policies import Context, Deployment, Pipeline, Reply, Site, build, read_policies

SPECIAL = frozenset((b"host", b"content-length", b"x-forwarded-for", b"x-forwarded-proto", b"via"))


@dataclass
class Inbound:
    secure: bool = False


@dataclass
class Call:
    """As much of the engine's Call as policies look at."""

    request: Request
    client: str = "192.0.2.1"
    inbound: Inbound = field(default_factory=Inbound)
    extra: bytes = b""
    request_id: bytes = b"id-1"
    begun_at: float = 0.0
    attempts: int = 0


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def request(method: str = "GET", target: str = "/", fields: Sequence[tuple[str, str]] = (), host: str = "api.contoso.test") -> Request:
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    special = {b"host": host.encode()} | {name.lower(): value for name, value in pairs if name.lower() in SPECIAL}
    ordinary = [pair for pair in pairs if pair[0].lower() not in SPECIAL]
    return Request(method.encode(), target.encode("latin-1"), ordinary, special, True, False)


def context(
    method: str = "GET", target: str = "/", fields: Sequence[tuple[str, str]] = (), *, client: str = "192.0.2.1",
    region: str = "westeurope", claims: Mapping[str, Any] | None = None, secure: bool = False, host: str = "api.contoso.test", **known: Any,
) -> Context:  # fmt: skip
    call = Call(request(method, target, fields, host), client, Inbound(secure))
    made = Context(call, Deployment(region, "gateway-1", "contoso"), **known)
    if claims is not None:
        made.claims = claims
    return made


def head(status: int = 200, *fields: tuple[str, str]) -> Reply:
    return Reply(status, [(name.encode(), value.encode("latin-1")) for name, value in fields])


def pipeline(site: Site | None = None, **sections: Sequence[Mapping[str, Any]]) -> Pipeline:
    """Give the pipeline of one scope's policies, which must be without violations."""
    read, violations = read_policies(sections)
    built, more = build([(read, site or Site(region="westeurope"))])
    assert [*violations, *more] == []
    return built


def refusals(site: Site | None = None, **sections: Any) -> list[Violation]:
    read, violations = read_policies(sections)
    return [*violations, *build([(read, site or Site())])[1]]


def run(made: Pipeline, call: Context, section: str = "inbound") -> Response | None:
    """Run inbound or backend to its end, in a loop of its own where it waits."""
    result = getattr(made, section)(call)
    if result is None or isinstance(result, Response):
        return result

    async def wait() -> Response | None:
        ended: Response | None = await result
        return ended

    return asyncio.run(wait())


def value(fields: Sequence[Field], name: str) -> str | None:
    """Give the only value of a field, None without; joined by | when there are several."""
    found = [content.decode("latin-1") for key, content in fields if key.decode().lower() == name.lower()]
    return "|".join(found) if found else None


def added(call: Context) -> list[Field]:
    """Give the lines that policies added to the response's head."""
    lines = call.call.extra.decode("latin-1").split("\r\n")
    assert lines.pop() == ""
    return [(name.encode(), content.encode("latin-1")) for name, _, content in (line.partition(": ") for line in lines)]
