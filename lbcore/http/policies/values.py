"""What conditions and policies read of a call, as text and numbers; what is missing is "" or 0, nothing here raises."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import unquote, unquote_plus

from lbcore.http.message import Field, Request
from lbcore.http.policies.context import Context

__all__ = [
    "cookie", "field_value", "is_named", "is_number", "member", "number", "path", "query", "query_value", "request_header",
    "request_value", "response_header", "same", "text",
]  # fmt: skip

_NUMBER = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,15})?")


def path(context: Context) -> str:
    """Give the path of the request's target as it is now, percent-decoded once."""
    raw = context.request.target.partition(b"?")[0].decode("latin-1")
    return unquote(raw) if "%" in raw else raw


def field_value(fields: Sequence[Field], name: bytes) -> str:
    """Give the values of a field, joined by ", " (RFC 9110 §5.3). name: lower case."""
    size = len(name)
    found = [value for key, value in fields if len(key) == size and key.lower() == name]
    return b", ".join(found).decode("latin-1") if found else ""


def request_value(request: Request, name: bytes) -> str:
    """Give a field of the request, whoever keeps it. name: lower case."""
    special = request.special.get(name)
    return field_value(request.fields, name) if special is None else special.decode("latin-1")


def request_header(name: str) -> Callable[[Context], str]:
    """Give what reads a header of the request."""
    lower = name.lower().encode("latin-1", "replace")
    return lambda context: request_value(context.request, lower)


def response_header(name: str) -> Callable[[Context], str]:
    """Give what reads a header of the response."""
    lower = name.lower().encode("latin-1", "replace")
    return lambda context: field_value(context.response.fields, lower) if context.response is not None else ""


def query_value(target: bytes, name: str) -> str:
    """Give the first value of a query's parameter, decoded."""
    for pair in target.partition(b"?")[2].decode("latin-1").split("&"):
        if is_named(pair, name):
            return unquote_plus(pair.partition("=")[2])
    return ""


def is_named(pair: str, name: str) -> bool:
    """Say whether one pair of a query has that name, however it is spelled."""
    key = pair.partition("=")[0]
    return key == name or ("%" in key or "+" in key) and unquote_plus(key) == name


def query(name: str) -> Callable[[Context], str]:
    """Give what reads a parameter of the query."""
    return lambda context: query_value(context.request.target, name)


def cookie(name: str) -> Callable[[Context], str]:
    """Give what reads a cookie, the first of its name."""

    def read(context: Context) -> str:
        for key, value in context.request.fields:
            if key.lower() != b"cookie":
                continue
            for pair in value.decode("latin-1").split(";"):
                found, _, content = pair.strip(" \t").partition("=")
                if found == name:
                    return content
        return ""

    return read


# ===== values of which nobody knows the type


def is_number(value: object) -> bool:
    """Say whether it is a number that can be compared: no flag, no NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not (isinstance(value, float) and math.isnan(value))


def same(one: object, other: object) -> bool:
    """Say whether two texts, numbers or flags are equal; 1 is not true. Anything else equals nothing, not even itself."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return isinstance(one, str | int | float) and isinstance(other, str | int | float) and one == other


def member(value: object, listed: object) -> bool:
    """Say whether a value is in a list; what is no list is one of itself alone."""
    return any(same(value, each) for each in listed) if isinstance(listed, list | tuple) else same(value, listed)


def text(value: object) -> str:
    """Give a text or number as text, "" for anything else."""
    if isinstance(value, str):
        return value
    return str(value)[:400] if is_number(value) and _small(value) else ""


def number(value: Any) -> int | float:
    """Give a number, also of a text that is one, 0 for anything else."""
    if is_number(value):
        return value  # type: ignore[no-any-return]
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value) if "." in value else int(value)
    return 0


def _small(value: Any) -> bool:
    """Say whether writing a number is cheap, and allowed: Python refuses integers of more than 4300 digits."""
    return isinstance(value, float) or -(1 << 256) < value < 1 << 256
