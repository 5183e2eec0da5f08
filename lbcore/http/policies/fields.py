"""Names and values of header fields that a policy may write, and which it may not."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from lbcore.http.message import FORWARDED, HOP_BY_HOP

__all__ = ["FieldName", "FieldValue", "clean"]

# Written by the engine, from what it knows of the message and of the client (RFC 9112 §6, RFC 7239)
OWNED = HOP_BY_HOP | FORWARDED | {b"content-length", b"date", b"expect", b"host"}
OUR_WORD = b"x-lbcore-"  # says which gateway answered

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110 §5.6.2
_VALUE = re.compile(r"[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?|")  # RFC 9110 §5.5
_NOT_IN_A_VALUE = re.compile(r"[^ \t!-~\x80-\xff]+")
_LONGEST = 4096


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("a header's name: letters, digits and !#$%&'*+.^_`|~-, at most 100")
    lower = text.lower().encode()
    if lower in OWNED or lower.startswith((OUR_WORD, b"x-forwarded-")):
        raise ValueError(f"a header that policies may write; {text} is the gateway's own")
    return text


def _value(text: str) -> str:
    if len(text) > _LONGEST or not _VALUE.fullmatch(text):
        raise ValueError("a header's value: visible Latin-1 with blanks between, at most 4096, no line break")
    return text


FieldName = Annotated[str, AfterValidator(_name)]
FieldValue = Annotated[str, AfterValidator(_value)]


def clean(text: str) -> bytes:
    """Give a text that came with a call as a field's value: what cannot stand in one is left out, and all beyond 4096 bytes."""
    if not _VALUE.fullmatch(text) or len(text) > _LONGEST:
        text = _NOT_IN_A_VALUE.sub("", text).strip(" \t")[:_LONGEST].rstrip(" \t")
    return text.encode("latin-1")
