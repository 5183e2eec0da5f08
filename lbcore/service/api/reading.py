"""Reading: a request's JSON, taken for nothing but what RFC 8259 says it is, once, in full.

Refused: other encodings than UTF-8, duplicate names, NaN and infinities (1e999 as well), halves of surrogate pairs, deeper nesting than any
document of ours has. Whoever reads it next may rely on that.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from starlette.requests import ClientDisconnect, Request

from lbcore.errors import ServiceError
from lbcore.service.facts import shown

__all__ = ["DEEPEST", "LONG", "PATIENCE", "content_of", "parsed", "required_json"]

DEEPEST = 64  # objects and lists within one another
LONG = 1 << 16  # bytes that are read without a thread
PATIENCE = 30.0  # seconds for a body to come in
JSON_TYPES = ("application/json", "application/merge-patch+json")


async def required_json(request: Request) -> Any:
    """Give the JSON value of a request's body; ServiceError InvalidRequest, UnsupportedMediaType, RequestTooLarge."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    content = await content_of(request)
    if not content:
        raise ServiceError("InvalidRequest", "a body is needed: a JSON document", "body")
    if kind not in JSON_TYPES:
        raise ServiceError("UnsupportedMediaType", f"Content-Type must be application/json, got {shown(kind)}", "Content-Type")
    return await asyncio.to_thread(parsed, content) if len(content) > LONG else parsed(content)


async def content_of(request: Request) -> bytes:
    """Give a request's body."""
    try:
        async with asyncio.timeout(PATIENCE):
            return await request.body()
    except TimeoutError:
        raise ServiceError("InvalidRequest", f"the body did not come within {PATIENCE:g} s", "body") from None
    except ClientDisconnect:
        raise ServiceError("InvalidRequest", "the client went away before its body had come", "body") from None


def parsed(content: bytes) -> Any:
    """Give the value of a JSON text; ServiceError InvalidRequest."""
    try:
        value = json.loads(
            content.decode(), object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite, parse_int=_whole
        )  # fmt: skip
    except UnicodeDecodeError:
        raise _wrong("it is not UTF-8") from None
    except RecursionError:
        raise _wrong(f"it is nested deeper than {DEEPEST}") from None
    except json.JSONDecodeError as error:
        raise _wrong(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    _walk(value)
    return value


def _walk(value: Any) -> None:
    """Look at everything, level by level."""
    level = [value]
    for _ in range(DEEPEST + 1):
        below: list[Any] = []
        for each in level:
            if isinstance(each, str):
                _text(each)
            elif isinstance(each, dict):
                below += each
                below += each.values()
            elif isinstance(each, list):
                below += each
        if not below:
            return
        level = below
    raise _wrong(f"it is nested deeper than {DEEPEST}")


def _text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _wrong("it has half of a surrogate pair") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _wrong(f"an object has {shown(twice)} twice")
    return table


def _no_number(text: str) -> Any:
    raise _wrong(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _wrong("it has a number that is too large")
    return number


def _whole(text: str) -> int:
    if len(text) > 1000:
        raise _wrong("it has a number of over 1000 digits")
    return int(text)


def _wrong(what: str) -> ServiceError:
    return ServiceError("InvalidRequest", f"the body is no JSON document: {what}", "body")
