"""Following: whom a node follows, by `[sync]`, and what must be so for that."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from lbcore.config.fields import Section, is_loopback
from lbcore.config.management import plane_url

if TYPE_CHECKING:
    from lbcore.config.schema import Document

__all__ = ["Following", "Sync", "following", "problems"]

Where = tuple[str | int, ...]
Problem = tuple[Where, object, str, str | None]

URL = 'the URL of the primary\'s management plane such as "https://primary.example:9180"; http on loopback alone'
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
OWN_TOKEN = "edge.token"  # beside the store of a node that follows its own management plane


def _primary(text: str) -> str:
    if text:
        url = urlsplit(text)
        beside = url.query or url.fragment or url.username is not None or url.port == 0
        if url.scheme not in ("http", "https") or not url.hostname or beside:
            raise ValueError(text)
        if url.scheme == "http" and not is_loopback(url.hostname):  # whoever listens would have the token
            raise ValueError(text)
    return text.rstrip("/")


class Sync(Section):
    """`[sync]`: the primary that this node follows."""

    primary: Annotated[str, AfterValidator(_primary)] = Field(default="", max_length=2000, description=URL)
    token: str = Field(default="", description='the path of a file that only its owner may read, or ""')
    ca: str = Field(default="", description='the path of a PEM file, or "" for the system\'s authorities')
    interval: float = Field(default=10.0, ge=0.1, le=3600, description="seconds 0.1..3600 between two looks")
    keep: str = Field(default="state", description='the path of a folder, or "" to keep nothing')
    name: str = Field(
        default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$",
        description='at most 63 letters, digits, - _ . of which the first is a letter or digit, or "" for the machine\'s name',
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Following:
    """Whom a node follows.

    primary: URL of its management plane; token, ca: files, None = none; interval: seconds
    keep: folder for the last good ones, None = nothing is kept; name: this edge's
    """

    primary: str
    token: Path | None
    ca: Path | None
    interval: float
    keep: Path | None
    name: str


def following(document: Document, folder: Path) -> Following | None:
    """Give whom a sound document follows, None = nobody: with `[sync]` its primary, else its own management plane."""
    own = _own(document, folder)
    if document.sync is None and (own is None or not {"http", "dns"} & document.model_fields_set):
        return None
    section = document.sync or Sync()
    if section.primary or own is None:
        primary, token, ca = section.primary, None, None
    else:
        primary, token, ca = own
    return Following(
        primary, folder / section.token if section.token else token, folder / section.ca if section.ca else ca, section.interval,
        folder / section.keep if section.keep else None, section.name or _machine(),
    )  # fmt: skip


def _own(document: Document, folder: Path) -> tuple[str, Path, Path | None] | None:
    """Give URL, token and authority of the document's own management plane."""
    section = document.management
    if section is None or section.primary:
        return None
    authority = folder / section.certificate if section.certificate else None
    return plane_url(section), (folder / section.store).parent / OWN_TOKEN, authority


def _machine() -> str:
    found = NAME.match(re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()))
    return found[0] if found else "edge"


def problems(document: Document, folder: Path) -> Iterator[Problem]:
    """Give what is wrong with `[sync]` and beside it."""
    section = document.sync
    if section is None:
        return
    if not section.primary and (document.management is None or document.management.primary):
        yield ("sync", "primary"), section.primary or None, URL, None
    for key in ("token", "ca"):
        name = getattr(section, key)
        if name and not (folder / name).is_file():
            made = "; `lbcore token create` on the primary's machine makes it" if key == "token" else ""
            yield ("sync", key), name, f"a file that exists (looked for {folder / name}){made}", None
    if section.token and (file := folder / section.token).is_file() and file.stat().st_mode & 0o077:
        yield ("sync", "token"), section.token, f"a file that only its owner may read: chmod 600 {file}", None
    if document.gateway is not None and document.gateway.configuration:
        yield ("gateway", "configuration"), document.gateway.configuration, "none beside [sync]: the primary publishes it", None
