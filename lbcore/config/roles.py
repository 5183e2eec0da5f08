"""What a node does: tables `[management]`, `[http]`, `[gateway]`, `[dns]` of its file, and what is wrong between their keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lbcore.config.fields import split_listen
from lbcore.config.schema import Document
from lbcore.config.serving import Served
from lbcore.errors import nearest
from lbcore.region import canonical

__all__ = ["ROLES", "listens", "problems", "roles"]

Where = tuple[str | int, ...]
Problem = tuple[Where, object, str, str | None]

ROLES = {"management": "management", "front-door": "http", "gateway": "gateway", "dns": "dns"}  # and the table that asks for each
AFFINITY = ("http", "affinity", "secret")
SHORTEST_SECRET = 16  # bytes


def roles(document: Document) -> tuple[str, ...]:
    """Give what the file asks this node to do."""
    return tuple(role for role, table in ROLES.items() if table in document.model_fields_set)


def listens(document: Document) -> dict[tuple[str, str], list[tuple[str, int]]]:
    """Give the addresses of every role by role and key of its table."""
    found = {}
    for role in roles(document):
        section = getattr(document, ROLES[role])
        for key in ("listen", "listen_tls") if isinstance(section, Served) else ("listen",):
            wanted = getattr(section, key)
            found[role, key] = [split_listen(each) for each in ([wanted] if isinstance(wanted, str) else wanted)]
    return found


def problems(document: Document, folder: Path) -> Iterator[Problem]:
    """Give what is wrong between the keys of what is served."""
    for role in roles(document):
        section = getattr(document, table := ROLES[role])
        if isinstance(section, Served):
            yield from _served(section, table, folder)
    yield from _twice(document)
    yield from _affinity(document, folder)
    yield from _gateway(document, folder)


def _served(section: Served, table: str, folder: Path) -> Iterator[Problem]:
    if not section.listen and not section.listen_tls:
        yield (table, "listen"), [], "at least one address, here or in listen_tls", None
    if section.access_log and not (folder / section.access_log).parent.is_dir():
        yield (table, "access_log"), section.access_log, "a file in a folder that exists", None
    for key in ("certificate", "key"):
        name = getattr(section, key)
        if section.listen_tls and not name:
            yield (table, key), name, "the path of a PEM file, which listen_tls needs", None
        elif name:
            yield from _missing((table, key), name, folder)


def _missing(where: Where, name: str, folder: Path) -> Iterator[Problem]:
    if not (folder / name).is_file():
        yield where, name, f"a file that exists (looked for {folder / name})", None


def _twice(document: Document) -> Iterator[Problem]:
    """Look for addresses on which two things would listen over TCP."""
    first: dict[tuple[str, int], str] = {}
    for (role, key), addresses in listens(document).items():
        for number, address in enumerate(addresses):
            where = f"{ROLES[role]}.{key}"
            before = first.setdefault(address, where)
            if before != where and address[1]:
                yield (ROLES[role], key, number), f"{address[0]}:{address[1]}", f"an address of its own; {before} has this one", None
    metrics = document.run.metrics
    if metrics and (address := split_listen(metrics)) in first and address[1]:
        yield ("run", "metrics"), metrics, f"an address of its own; {first[address]} has this one", None


def _affinity(document: Document, folder: Path) -> Iterator[Problem]:
    if document.http.affinity is None:
        return
    name = document.http.affinity.secret
    missing = [*_missing(AFFINITY, name, folder)]
    yield from missing
    if not missing and (found := (folder / name).stat().st_size) < SHORTEST_SECRET:
        yield AFFINITY, name, f"a file of at least {SHORTEST_SECRET} bytes (it has {found})", None


def _gateway(document: Document, folder: Path) -> Iterator[Problem]:
    section = document.gateway
    if section is None:
        return
    names = [canonical(region.name) for region in _regions(document)]
    if canonical(section.region) not in names and (names or document.sync is None):
        near = nearest(canonical(section.region), names)
        yield ("gateway", "region"), section.region, f"one of the regions {', '.join(names)}", near[0] if near else None
    elif not (section.region.isascii() and section.region.isprintable()):
        yield ("gateway", "region"), section.region, "a name in ASCII, which X-Lbcore-Region can say", None
    if section.configuration:
        yield from _missing(("gateway", "configuration"), section.configuration, folder)


def _regions(document: Document) -> list[Any]:
    primary = document.service.primary
    return [*([primary] if primary else []), *document.service.regions]
