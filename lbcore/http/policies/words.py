"""Words of conditions: what they mean for a call, and their types."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from lbcore.http.policies import values
from lbcore.http.policies.context import Context

__all__ = ["ANY", "FLAG", "FUNCTIONS", "LIST", "MAPS", "NAMES", "NUMBER", "SECRET", "TEXT", "Value"]

Value = Callable[[Context], Any]

TEXT, NUMBER, FLAG, LIST, ANY = "a text", "a number", "true or false", "a list", "anything"

SECRET = frozenset(("authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key"))
"""headers whose values are told to nobody"""

_RESPONDING = ("outbound", "on_error")

NAMES: dict[str, tuple[str, Value, tuple[str, ...]]] = {
    "request.method": (TEXT, lambda context: context.request.method.decode("latin-1"), ()),
    "request.path": (TEXT, values.path, ()),
    "request.host": (TEXT, lambda context: context.request.host.decode("latin-1").lower(), ()),
    "request.scheme": (TEXT, lambda context: "https" if context.call.inbound.secure else "http", ()),
    "request.size": (NUMBER, lambda context: context.request.length or 0, ()),
    "client.address": (TEXT, lambda context: context.client, ()),
    "api": (TEXT, lambda context: context.api, ()),
    "version": (TEXT, lambda context: context.version, ()),
    "operation": (TEXT, lambda context: context.operation, ()),
    "revision": (TEXT, lambda context: context.revision, ()),
    "backend": (TEXT, lambda context: context.backend, ()),
    "deployment.region": (TEXT, lambda context: context.deployment.region, ()),
    "deployment.gateway": (TEXT, lambda context: context.deployment.gateway, ()),
    "deployment.service": (TEXT, lambda context: context.deployment.service, ()),
    "response.status": (NUMBER, lambda context: context.response.status if context.response else 0, _RESPONDING),
    "error.cause": (TEXT, lambda context: context.error.cause if context.error else "", ("on_error",)),
    "error.policy": (TEXT, lambda context: context.error.policy if context.error else "", ("on_error",)),
}
"""name: its type, what gives it, the sections where it is known (none = all)"""

MAPS: dict[str, tuple[str, Callable[[str], Value], tuple[str, ...]]] = {
    "request.header": (TEXT, values.request_header, ()),
    "request.query": (TEXT, values.query, ()),
    "request.cookie": (TEXT, values.cookie, ()),
    "parameters": (TEXT, lambda key: lambda context: context.parameters.get(key, ""), ()),
    "variables": (TEXT, lambda key: lambda context: context.variables.get(key, ""), ()),
    "claims": (ANY, lambda key: lambda context: context.claims.get(key), ()),
    "response.header": (TEXT, values.response_header, _RESPONDING),
}
"""name: the type of what it holds, what gives that for a key, the sections"""

FUNCTIONS: dict[str, tuple[str, tuple[str, ...], Callable[..., Any]]] = {
    "lower": (TEXT, (TEXT,), str.lower),
    "upper": (TEXT, (TEXT,), str.upper),
    "text": (TEXT, (ANY,), values.text),
    "length": (NUMBER, (TEXT,), len),
    "number": (NUMBER, (ANY,), values.number),
    "starts_with": (FLAG, (TEXT, TEXT), str.startswith),
    "ends_with": (FLAG, (TEXT, TEXT), str.endswith),
    "contains": (FLAG, (TEXT, TEXT), operator.contains),
}
"""name: its type, its arguments', what it does; `in_network` takes any number of literals besides"""
