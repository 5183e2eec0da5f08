"""Configuration: what every gateway should serve, as immutable revisions behind one small protocol.

    latest(known) -> the latest revision; without its bytes when it is one of those known
    watch(known)  -> waits until there may be another one: a hint, nothing depends on it
    put(document, if_revision) -> the next revision; what is wrong with a document is refused before

`primary.Primary` is it over the store, `remote.Remote` over HTTP; an engine without a primary may be it, too. Rate counters, caches,
latencies and health are no configuration: every region has its own, and nothing here synchronises them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lbcore.errors import ConfigError, LbcoreError, ServiceError
from lbcore.http.gateway.configuration import Configuration
from lbcore.service.codes import Violation, refusal
from lbcore.service.logbook import clean
from lbcore.service.revisions import Number

__all__ = [
    "LARGEST_NUMBER", "NOTHING", "Configurations", "Latest", "Report", "SourceRefusedError", "SourceUnreachableError", "Tag",
    "canonical_bytes", "document_of", "if_revision_of", "number_of", "read_number", "read_tags", "tag_of", "validated",
]  # fmt: skip

NOTHING = Number(0, 0)  # if_revision: there must be none yet
LARGEST_NUMBER = 2**53 - 1
_NUMBER = re.compile(r"(0|[1-9][0-9]{0,15})\.(0|[1-9][0-9]{0,15})")
_TAG = re.compile(rf'(?:W/)?"{_NUMBER.pattern}-([0-9a-f]{{64}})"')


# ===== the protocol


class Tag(NamedTuple):
    """Which revision: its number, and the SHA-256 of its document, hexadecimal. str() is its ETag, quotes and all."""

    number: Number
    sha256: str

    def __str__(self) -> str:
        return f'"{self.number}-{self.sha256}"'


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest revision.

    body: the document as canonical JSON, numbers and all, whose SHA-256 the tag has; None when the one who asked knows it
    lost: revisions that the one who asked has seen and this one does not build upon
    """

    tag: Tag
    body: bytes | None = None
    lost: tuple[Number, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a region says of itself when it asks. lag: seconds; refused: why it does not take the latest revision, "" = it does"""

    region: str
    state: str
    held: Tag | None
    lag: float
    refused: str = ""


class Configurations(Protocol):
    """Where configurations come from."""

    async def latest(self, known: Collection[Tag] = (), report: Report | None = None) -> Latest | None:
        """Give the latest revision, None when there is none yet.

        Raises SourceUnreachableError when nobody answers, SourceRefusedError for an answer that cannot be true, or not meant for us.
        """
        ...

    async def watch(self, known: Collection[Tag] = ()) -> bool:
        """Wait until the latest revision is none of those known, or as long as is sensible; say whether it may be. Raises as `latest`."""
        ...

    async def put(self, document: Mapping[str, Any], *, who: str, why: str = "", if_revision: Number | None = None) -> Tag:
        """Publish a document as the next revision, and give which one it became; its `epoch` and `sequence` are the source's to give.

        if_revision: what must be the latest still, NOTHING = none; None = whatever it is
        Raises ServiceError InvalidConfiguration with every violation (V24), RevisionConflict, Fenced, NotPrimary.
        """
        ...


class SourceUnreachableError(LbcoreError):
    """Say that a source gave no answer."""


class SourceRefusedError(LbcoreError):
    """Refuse an answer of a source: `.reason` is one word, such as "hash" or "number"."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


# ===== tags and numbers as text


def tag_of(configuration: Configuration) -> Tag:
    """Give the tag of a configuration that a gateway has read."""
    return Tag(Number(configuration.epoch, configuration.sequence), configuration.sha256)


def read_tags(header: str | None) -> tuple[Tag, ...]:
    """Give the tags that an ETag or If-None-Match header names, at most ten; what is none of ours is passed over."""
    found = (_TAG.fullmatch(part.strip()) for part in (header or "")[:2000].split(","))
    return tuple(Tag(Number(int(match[1]), int(match[2])), match[3]) for match in found if match is not None)[:10]


def number_of(text: str) -> Number | None:
    """Give the number that a text such as "1.7" is, None for anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None or max(int(match[1]), int(match[2])) > LARGEST_NUMBER:
        return None
    return Number(int(match[1]), int(match[2]))


def read_number(text: str) -> Number:
    """Read "1.7"; ServiceError InvalidProperty for anything else."""
    number = number_of(text.strip())
    if number is None:
        raise ServiceError("InvalidProperty", f"{ascii(text[:60])} is no revision such as 1.7", "revision")
    return number


def if_revision_of(if_match: str | None, if_none_match: str | None = None) -> Number | None:
    """Give the if_revision of a PUT's headers: If-Match with "1.7" or a whole ETag, `If-None-Match: *` for the first; None without any."""
    if (if_none_match or "").strip() == "*":
        return NOTHING
    if if_match is None or if_match.strip() == "*":
        return None
    return read_number(if_match.strip().removeprefix('"').removesuffix('"').partition("-")[0])


# ===== documents


def validated(document: object, regions: Iterable[str] = (), check: Callable[[Configuration], object] | None = None) -> bytes:
    """Give the bytes to keep of a document: canonical JSON without numbers, which are given later.

    regions: that it may name, none = any; check: a further look, which may raise ConfigError
    Raises ServiceError InvalidConfiguration with every violation in `details` (V24).
    """
    try:
        numbers = {"epoch": LARGEST_NUMBER, "sequence": LARGEST_NUMBER}  # the longest: whatever it will be, the document is not too large
        configuration = Configuration.from_mapping({**document, **numbers} if isinstance(document, Mapping) else document, regions=regions)
        if check is not None:
            check(configuration)
    except ConfigError as error:
        raise refusal([Violation("InvalidConfiguration", clean(str(each)), clean(each.where)) for each in error.violations]) from error
    return canonical_bytes({key: value for key, value in json.loads(configuration.canonical).items() if key not in numbers})


def document_of(body: bytes, number: Number) -> dict[str, Any]:
    """Give the document that a gateway serves by for a revision's bytes."""
    return {**json.loads(body), "epoch": number.epoch, "sequence": number.sequence}


def canonical_bytes(document: Mapping[str, Any]) -> bytes:
    """Write JSON as the gateway's Configuration does: of what was read from such bytes it is the same bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
