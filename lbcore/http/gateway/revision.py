"""Revision: one configuration compiled for one gateway. Immutable: a call that began with one ends with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lbcore.errors import ConfigError, LbcoreError, Violation
from lbcore.http.gateway.backends import Backend, Backends
from lbcore.http.gateway.configuration import Configuration
from lbcore.http.gateway.document import ApiEntry
from lbcore.http.gateway.router import Router
from lbcore.http.policies import Pipeline, Policies, Site, build

__all__ = ["Entrance", "Revision", "StaleRevisionError"]


class StaleRevisionError(LbcoreError):
    """Refuse a configuration that is older than the one in use, or another one of the same number."""

    def __init__(self, offered: Configuration, current: Configuration) -> None:
        self.offered, self.current = offered.revision, current.revision
        same = offered.revision == current.revision
        said = "is in use with another content" if same else f"is older than {current.revision}, which is in use"
        super().__init__(f"revision {offered.revision} {said}")


@dataclass(frozen=True, slots=True, eq=False)
class Entrance:
    """One version of an API as calls find it."""

    name: str
    version: str
    backend: str
    pipeline: Pipeline


class Revision:
    """What a gateway serves by.

    name: such as "1.7"; lines: of every response's head; everywhere: the policies of all APIs, for calls that reach none
    backends: by name, those that have a URL here; used: names of those that APIs use by themselves
    calls: how many hold it
    """

    __slots__ = ("backends", "calls", "configuration", "everywhere", "lines", "name", "router", "used")

    def __init__(self, configuration: Configuration, site: Site, held: Backends) -> None:
        self.configuration, self.name, self.calls = configuration, configuration.revision, 0
        self.lines = head_lines(site.region, self.name)
        names = {entry.name: entry for entry in configuration.backends}
        site = replace(site, backends=names)
        self.everywhere, violations = build([(configuration.policies, site)])
        entrances = []
        for api, policies in zip(configuration.apis, configuration.api_policies, strict=True):
            entrance, found = _entrance(api, policies, configuration.policies, site)
            entrances.append((api, entrance))
            violations += (each for each in found if each not in violations)
        if violations:
            raise ConfigError(violations)
        self.router: Router = Router(entrances)
        self.used = frozenset(api.backend for api in configuration.apis if api.backend)
        self.backends: Mapping[str, Backend] = held.hold(configuration.backends)

    def as_dict(self) -> dict[str, Any]:
        """Give what says which one it is, in JSON types."""
        return {"revision": self.name, "sha256": self.configuration.sha256, "apis": len(self.configuration.apis)}


def _entrance(api: ApiEntry, own: Policies, everywhere: Policies, site: Site) -> tuple[Entrance, Sequence[Violation]]:
    scope = "/".join(part for part in ("api", api.name, api.version) if part)
    pipeline, violations = build([(everywhere, site), (own, replace(site, scope=scope))])
    return Entrance(api.name, api.version, api.backend, pipeline), violations


def head_lines(region: str, revision: str) -> bytes:
    """Give the lines that every response carries."""
    return f"X-Lbcore-Region: {region}\r\nX-Lbcore-Revision: {revision}\r\n".encode("ascii")
