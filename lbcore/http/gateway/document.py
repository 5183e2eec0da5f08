"""The shape of a configuration's document as pydantic models: a field's description is what a violation says was expected."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from lbcore.http.gateway.router import ANY, split_template
from lbcore.sense.monitor import PATH

__all__ = ["ApiEntry", "BackendEntry", "Document", "OperationEntry", "ProbeEntry", "Versioning"]

URL_FORM = "a URL such as http://10.0.0.7:9001 or https://host/base: no query, fragment, user name or dot segments"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,78}[A-Za-z0-9])?"
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\]")
_URL = re.compile(r"https?://(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(/[!\"$-;=-\[\]^-~]*)?", re.IGNORECASE)
_METHOD = re.compile(r"[A-Z][A-Z-]{0,31}")
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_INTEGER = 2**53 - 1  # the largest that every reader of JSON keeps (RFC 8259 §6)


def _host(text: str) -> str:
    if len(text) > 255 or not _HOST.fullmatch(text.lower()):
        raise ValueError(text)
    return text.lower()


def _api_path(text: str) -> str:
    segments = split_template(text)
    if any(segment in ("", ANY) or segment.startswith("{") for segment in segments) or len(text) > 1024:
        raise ValueError(text)
    return text


def _template(text: str) -> str:
    split_template(text)
    if len(text) > 1024 or not text:
        raise ValueError(text)
    return text


def _method(text: str) -> str:
    if text != ANY and not _METHOD.fullmatch(text) or text == "CONNECT":
        raise ValueError(text)
    return text


def _version(text: str) -> str:
    if text and (not _TOKEN.fullmatch(text) or text in (".", "..")):
        raise ValueError(text)
    return text


def _url(text: str) -> str:
    found = _URL.fullmatch(text)
    parts = urlsplit(text)
    if found is None or len(text) > 2048 or parts.port == 0 or {".", ".."} & {*(found[1] or "").split("/")}:
        raise ValueError(text)
    if not all(0 < len(label) < 64 for label in (parts.hostname or "").removesuffix(".").split(".")):
        raise ValueError(text)
    return text


Url = Annotated[str, AfterValidator(_url)]
Urls = Annotated[list[Url], Field(max_length=64)]


class Section(BaseModel):
    """A table: no unknown keys, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ProbeEntry(Section):
    """How a backend is probed. The requests that it serves are evidence as well."""

    path: str = Field(default="/", pattern=f"^{PATH.pattern}$", max_length=1024, description="a path that starts with /")
    interval: float = Field(default=5.0, ge=0.05, le=3600, description="seconds within 0.05..3600")
    timeout: float = Field(default=2.0, ge=0.001, le=600, description="seconds within 0.001..600")
    tolerated: int = Field(default=2, ge=0, le=1000, description="a whole number of failures, 0..1000")
    rise: int = Field(default=2, ge=1, le=1000, description="a whole number of successes, 1..1000")


class BackendEntry(Section):
    """Where calls go: URLs for every region's gateway, others for some. The closest that is healthy is used, the next after a failure."""

    name: str = Field(pattern=f"^{_NAME}$", description="1..80 letters, digits and ._-, the first and last a letter or digit")
    urls: Urls = Field(default=[], description=f"a list of at most 64, each {URL_FORM}")
    regions: dict[str, Urls] = Field(default={}, max_length=1000, description=f"lists of URLs by region, each {URL_FORM}")
    keep_host: bool = Field(default=False, description="true = the backend sees the client's Host, false = its own")
    probe: ProbeEntry | None = Field(default=None, description="a table such as { path = \"/health\", interval = 5.0, timeout = 2.0 }")


class Versioning(Section):
    """How the version of an API is asked for."""

    by: Literal["path", "header", "query"] = Field(default="path", description='"path" (the segment after the API\'s), "header" or "query"')
    name: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,64}$", description="the name of the header or query parameter")


class OperationEntry(Section):
    """One operation of an API."""

    name: str = Field(pattern=f"^{_NAME}$", description="1..80 letters, digits and ._-, the first and last a letter or digit")
    method: Annotated[str, AfterValidator(_method)] = Field(description="a method in capitals, or * for any")
    path: Annotated[str, AfterValidator(_template)] = Field(
        default="/*", description="a path below the API's, such as /{id}/parts or /files/*: whole segments, parameters named once, decoded"
    )


class ApiEntry(Section):
    """One version of an API."""

    name: str = Field(pattern=f"^{_NAME}$", description="1..80 letters, digits and ._-, the first and last a letter or digit")
    version: Annotated[str, AfterValidator(_version)] = Field(default="", description="1..64 letters, digits and ._~-, or nothing")
    versioning: Versioning = Field(default=Versioning(), description='a table such as { by = "header", name = "Api-Version" }')
    hosts: list[Annotated[str, AfterValidator(_host)]] = Field(
        default=[], max_length=100, description="a list of at most 100 host names such as api.contoso.com or *.contoso.com, without port"
    )
    path: Annotated[str, AfterValidator(_api_path)] = Field(default="", description="a path such as /orders, without parameters, decoded")
    backend: str = Field(default="", description="the name of a backend")
    display_name: str = Field(default="", max_length=300, description="at most 300 characters")
    operations: list[OperationEntry] = Field(default=[], max_length=100_000, description="tables [[apis.operations]], at most 100000")
    policies: dict[str, Any] = Field(default={}, description="a table of inbound, backend, outbound and on_error")


class Document(Section):
    """A whole configuration; its APIs and backends are read one by one, so that one that is wrong hides nothing of the others."""

    epoch: int = Field(ge=0, le=_INTEGER, description=f"a whole number within 0..{_INTEGER}")
    sequence: int = Field(ge=0, le=_INTEGER, description=f"a whole number within 0..{_INTEGER}")
    apis: list[Any] = Field(default=[], max_length=10_000, description="tables [[apis]], at most 10000")
    backends: list[Any] = Field(default=[], max_length=10_000, description="tables [[backends]], at most 10000")
    policies: dict[str, Any] = Field(default={}, description="a table of inbound, backend, outbound and on_error")
