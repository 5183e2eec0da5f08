"""Developing: the published APIs as those see them who call them. A pure function of one revision of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from lbcore.http.gateway.configuration import Configuration
from lbcore.http.gateway.document import ApiEntry
from lbcore.http.gateway.router import base
from lbcore.service.model import Service
from lbcore.service.portal.views import Api, ApiOperation, DeveloperPortal

__all__ = ["developer"]

MOST_OPERATIONS = 200  # of one API


def developer(configuration: Configuration, service: Service, published: datetime | None = None) -> DeveloperPortal:
    """Give the page of a configuration's APIs, by name and version."""
    apis = sorted(configuration.apis, key=lambda api: ((api.display_name or api.name).lower(), api.version))
    return DeveloperPortal(configuration.revision, tuple(_api(api, service) for api in apis), published)


def _api(api: ApiEntry, service: Service) -> Api:
    operations = tuple(ApiOperation(one.method, one.path, one.name) for one in api.operations[:MOST_OPERATIONS])
    return Api(api.name, api.display_name, api.version, tuple(_urls(api, service)), operations)


def _urls(api: ApiEntry, service: Service) -> Iterator[str]:
    """Give where an API is called: at the service's own name, or at those that it asks for."""
    path = "".join(f"/{segment}" for segment in base(api))
    by, name = api.versioning.by, api.versioning.name
    if api.version and by == "query":
        path += f"?{name}={api.version}"
    header = f" with {name}: {api.version}" if api.version and by == "header" else ""
    roots = [f"https://{host}" for host in api.hosts] or [service.gateway_url]
    yield from (f"{root}{path}{header}" for root in roots)
