"""Management: what the keys of the multi-region service mean: `[management]`, tier, network and zones; and what must be so for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from lbcore.config.fields import Listen, Section, is_loopback, split_listen

if TYPE_CHECKING:
    from lbcore.config.schema import Document

__all__ = ["Management", "NetworkMode", "VirtualNetwork", "plane_url", "problems"]

Where = tuple[str | int, ...]
Problem = tuple[Where, object, str, str | None]

NetworkMode = Literal["None", "External", "Internal"]
URL = 'a URL such as "https://primary.example:9180"; http on loopback alone'
PROVISIONER = 'a table such as { kind = "local", folder = "regions" }'
OWN = ("primary", "token_file", "ca")  # options of a provisioner that the plane itself gives


def _url(text: str) -> str:
    """Read the base URL of a management plane, "" = none."""
    if text:
        url = urlsplit(text)
        if (
            url.scheme not in ("http", "https")
            or not url.hostname
            or url.query
            or url.fragment
            or url.username is not None
            or url.port == 0
        ):
            raise ValueError(text)
        if url.scheme == "http" and not is_loopback(url.hostname):  # whoever listens would have the token
            raise ValueError(text)
    return text.rstrip("/")


Url = Annotated[str, AfterValidator(_url)]


class VirtualNetwork(Section):
    """`virtual_network` of a region: the subnet in which it is put."""

    subnet_resource_id: str = Field(default="", max_length=1000, description="the id of a subnet")
    location: str = Field(default="", max_length=100, description="the region of the subnet's virtual network")
    public_ip_address_id: str = Field(default="", max_length=1000, description="the id of a public IP address")


class Management(Section):
    """`[management]`: the management plane of this node's service, or, with `primary`, where that is."""

    listen: Listen = Field(default="127.0.0.1:9180", description='an address and port such as "127.0.0.1:9180"')
    certificate: str = Field(default="", description="the path of a PEM file")
    key: str = Field(default="", description="the path of a PEM file")
    url: Url = Field(default="", max_length=2000, description=URL)
    store: str = Field(default="service.sqlite", min_length=1, description="the path of a file")
    audit_log: str = Field(default="audit.log", description='the path of a file, or ""')
    provisioner: dict[str, Any] = Field(default={"kind": "local"}, description=PROVISIONER)
    require_if_match: bool = Field(default=True, description="true or false")
    drain: float = Field(default=30.0, ge=0, le=86_400, description="seconds 0..86400")
    hold: float = Field(default=2.0, ge=0, le=3600, description="seconds 0..3600")
    strict_azure: bool = Field(default=False, description="true or false")
    max_units_per_location: int = Field(default=31, ge=1, le=1_000_000, description="a whole number of units, at least 1")
    standby: list[Url] = Field(default=[], max_length=100, description=f"a list, each {URL}")
    standby_token: str = Field(default="", description='the path of a file that only its owner may read, or ""')
    standby_ca: str = Field(default="", description='the path of a PEM file, or "" for the system\'s authorities')
    primary: Url = Field(default="", max_length=2000, description=URL)


def plane_url(section: Management, address: tuple[str, int] | None = None) -> str:
    """Give where others reach the management plane. address: where it listens, None = as the file says"""
    host, port = address or split_listen(section.listen)
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return section.url or f"{'https' if section.certificate else 'http'}://{f'[{shown}]' if ':' in shown else shown}:{port}"


def problems(document: Document, folder: Path, founding: bool) -> Iterator[Problem]:
    """Give what is wrong between the keys of the multi-region service. founding: as for `parse`"""
    section = document.management
    if section is None:
        yield from _idle(document)
        return
    if section.primary:
        yield from _beside_primary(section)
    elif founding:
        yield from _founding(document)
    yield from _listening(section)
    for key in ("certificate", "key", "standby_token", "standby_ca"):
        name = getattr(section, key)
        if name and not (folder / name).is_file():
            yield ("management", key), name, f"a file that exists (looked for {folder / name})", None
    if section.standby_token and (file := folder / section.standby_token).is_file() and file.stat().st_mode & 0o077:
        yield ("management", "standby_token"), section.standby_token, f"a file that only its owner may read: chmod 600 {file}", None
    if not (folder / section.store).parent.is_dir():
        yield ("management", "store"), section.store, "a file in a folder that exists", None
    if section.audit_log and not (folder / section.audit_log).parent.is_dir():
        yield ("management", "audit_log"), section.audit_log, "a file in a folder that exists", None
    yield from _provisioner(section)


def _listening(section: Management) -> Iterator[Problem]:
    host, _ = split_listen(section.listen)
    for key, other in (("certificate", "key"), ("key", "certificate")):
        if getattr(section, other) and not getattr(section, key):
            yield ("management", key), getattr(section, key), f"the path of a PEM file, as {other} is given", None
        elif not getattr(section, key) and not is_loopback(host):  # tokens would pass in the clear
            yield ("management", key), getattr(section, key), f"the path of a PEM file, for {host} is not this machine's loopback", None


def _beside_primary(section: Management) -> Iterator[Problem]:
    for key in ("provisioner", "standby", "standby_token", "standby_ca"):
        if key in section.model_fields_set:
            yield ("management", key), getattr(section, key), "no such key beside primary: this node manages nothing", None


def _provisioner(section: Management) -> Iterator[Problem]:
    if not isinstance(section.provisioner.get("kind"), str):
        yield ("management", "provisioner", "kind"), section.provisioner.get("kind"), 'a provisioner\'s name such as "local"', None
    for key in OWN:
        if key in section.provisioner and section.provisioner.get("kind") == "local":
            yield ("management", "provisioner", key), section.provisioner[key], "no such key: the management plane itself gives it", None


def _idle(document: Document) -> Iterator[Problem]:
    """Tell what means nothing without a management plane."""
    expected = "no such key without [management], which provisions the service; a wish has it: `lbcore regions plan FILE --offline`"
    for key in ("tier", "virtual_network_type"):
        if key in document.service.model_fields_set:
            yield ("service", key), getattr(document.service, key), expected, None
    for where, entry in _entries(document):
        for key in ("zones", "virtual_network"):
            if key in entry.model_fields_set:
                yield (*where, key), str(getattr(entry, key)), expected, None


def _founding(document: Document) -> Iterator[Problem]:
    """Tell what the first service cannot have: whoever provisions a region gives it addresses."""
    if document.service.primary is None and document.service.regions:
        yield ("service", "primary"), None, "the table [service.primary]: the region in which the service is created", None
    for where, entry in _entries(document):
        for key, instead in (("addresses", "its provisioner gives them"), ("always_serve", "[[traffic_manager.endpoints]] says it")):
            if key in entry.model_fields_set:
                yield (*where, key), getattr(entry, key), f"no such key beside [management]: {instead}", None


def _entries(document: Document) -> Iterator[tuple[Where, Any]]:
    if document.service.primary is not None:
        yield ("service", "primary"), document.service.primary
    yield from ((("service", "regions", index), entry) for index, entry in enumerate(document.service.regions))
