"""Pipeline: the policies of one API, global ones included, compiled to lists of steps.

inbound   global -> API \\                              a Response ends the call;
backend   global -> API  > the call                     what denies it passes through on_error
outbound  API -> global    its response
on_error  API -> global    ... or what went wrong
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from dataclasses import replace

from lbcore.errors import Violation
from lbcore.http.message import Response
from lbcore.http.policies.conditions import condition
from lbcore.http.policies.context import Context, Failure, Head, Reply
from lbcore.http.policies.policy import SECTIONS, Policy, Site, Step
from lbcore.http.policies.reading import Policies

__all__ = ["Pipeline", "build"]

logger = logging.getLogger(__name__)

_Steps = tuple[tuple[str, Step], ...]  # kind, step


class Pipeline:
    """What is done for each call of one API. Every method runs in the event loop."""

    def __init__(self, inbound: _Steps = (), backend: _Steps = (), outbound: _Steps = (), on_error: _Steps = ()) -> None:
        self._inbound, self._backend, self._outbound, self._on_error = inbound, backend, outbound, on_error

    def inbound(self, context: Context, /) -> Response | Awaitable[Response | None] | None:
        """Do what comes before the backend is chosen; a Response is the client's answer."""
        return self._run(self._inbound, context) if self._inbound else None

    def backend(self, context: Context, /) -> Response | Awaitable[Response | None] | None:
        """Do what comes between that and the call; a Response is the client's answer."""
        return self._run(self._backend, context) if self._backend else None

    def outbound(self, context: Context, head: Head, /) -> Response | None:
        """Do what is done to a backend's response: changes its fields, or gives a Response to be sent in its place."""
        context.response = head
        if context.replaced:
            head.fields = [field for field in head.fields if field[0].lower() not in context.replaced]
        for kind, step in self._outbound:
            try:
                instead = step(context)
            except Exception:
                return self._bug(kind, context)
            if isinstance(instead, Response):
                return self._ended(instead, context)
        return None

    def on_error(self, context: Context, response: Response, /) -> Response:
        """Do what is done to an error; `context.error` says which. Gives what the client gets."""
        if not self._on_error:
            return response
        context.response = reply = Reply.of(response)
        for kind, step in self._on_error:
            try:
                instead = step(context)
            except Exception:  # what it should have done to an error is missed; the others go on
                logger.exception("policy %s raised", kind)
                continue
            if isinstance(instead, Response):
                context.response = reply = Reply.of(instead)
        return reply.response()

    def _run(self, steps: _Steps, context: Context, first: int = 0) -> Response | Awaitable[Response | None] | None:
        for number in range(first, len(steps)):
            kind, step = steps[number]
            try:
                result = step(context)
            except Exception:
                return self._bug(kind, context)
            if result is None:
                continue
            return self._ended(result, context) if isinstance(result, Response) else self._wait(result, steps, context, number)
        return None

    async def _wait(self, waiting: Awaitable[Response | None], steps: _Steps, context: Context, number: int) -> Response | None:
        try:
            result = await waiting
        except Exception:
            return self._bug(steps[number][0], context)
        if result is not None:
            return self._ended(result, context)
        rest = self._run(steps, context, number + 1)
        return rest if rest is None or isinstance(rest, Response) else await rest

    def _ended(self, response: Response, context: Context) -> Response:
        return response if context.error is None else self.on_error(context, response)

    def _bug(self, kind: str, context: Context) -> Response:
        """A policy that raises lets nothing through: it may be the one that guards the door."""
        logger.exception("policy %s raised", kind)
        context.error = Failure("exception", kind)
        return self.on_error(context, Response(500))


def build(scopes: Sequence[tuple[Policies, Site]]) -> tuple[Pipeline, list[Violation]]:
    """Give the pipeline of one API and what is wrong with it. scopes: the global one, then the API's."""
    violations: list[Violation] = []
    lists: dict[str, list[tuple[str, Step]]] = {}
    for section in SECTIONS:
        steps = lists[section] = []
        for policies, site in scopes if section in ("inbound", "backend") else reversed(scopes):
            for where, policy in getattr(policies, section):
                try:
                    steps.append((policy.kind, _step(policy, replace(site, section=section))))
                except ValueError as error:
                    violations.append(Violation(where, policy.kind, str(error), getattr(error, "nearest", None)))
    return Pipeline(**{section: tuple(steps) for section, steps in lists.items()}), violations


def _step(policy: Policy, site: Site) -> Step:
    step = policy.prepare(site)
    if policy.when is None:
        return step
    holds = condition(policy.when, site.section)
    return lambda context: step(context) if holds(context) else None
