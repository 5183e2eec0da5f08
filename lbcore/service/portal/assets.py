"""Assets: the files that pages load, by name, each with its type and a hash for caches. What is not listed is not there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

__all__ = ["FOLDER", "Asset", "files", "url"]

FOLDER = Path(__file__).with_name("static")
PREFIX = "/portal/static/"
TYPES = {
    "htmx.min.js": "text/javascript; charset=utf-8",
    "sse.min.js": "text/javascript; charset=utf-8",
    "portal.js": "text/javascript; charset=utf-8",
    "portal.css": "text/css; charset=utf-8",
    "land.svg": "image/svg+xml",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file's bytes, its content type, and the SHA-256 of the bytes in hexadecimal."""

    body: bytes
    type: str
    sha256: str


@cache
def files() -> Mapping[str, Asset]:
    """Give every file that may be served, by name; read once."""
    bodies = {name: (FOLDER / name).read_bytes() for name in TYPES}
    return MappingProxyType({name: Asset(body, TYPES[name], hashlib.sha256(body).hexdigest()) for name, body in bodies.items()})


def url(name: str) -> str:
    """Give the address of a file; it changes with the content, so that what it gives may be kept for ever. KeyError for another name."""
    return f"{PREFIX}{name}?v={files()[name].sha256[:12]}"
