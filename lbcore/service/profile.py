"""Profile: the Traffic Manager's document of one service, as it is stored, read for the service and changed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from lbcore.errors import ServiceError
from lbcore.service import traffic_manager as profiles
from lbcore.service.body import patched
from lbcore.service.model import Service
from lbcore.service.store import Document
from lbcore.service.stored import Stored
from lbcore.service.timing import Failover, failover

__all__ = ["TRAFFIC_MANAGER", "Profile"]

logger = logging.getLogger(__name__)

TRAFFIC_MANAGER = "trafficManager"  # the store's name of that document
Body = dict[str, Any]


class Profile:
    """Read and change the profile.

    first: the profile of a new service, as PATCH takes it;  changed: is awaited after each change
    """

    def __init__(self, stored: Stored, first: Mapping[str, Any], *, changed: Callable[[], Awaitable[object]]) -> None:
        self._stored, self._first, self._changed = stored, first, changed
        self._last: tuple[str, Service, profiles.TrafficManager] | None = None

    async def begin(self, who: str) -> None:
        """Store the first profile where there is none. who: for the history"""
        if await self._stored.call(self._stored.store.document, TRAFFIC_MANAGER) is None:
            with suppress(ServiceError):  # fenced: it is not ours to write
                put = partial(self._stored.store.put, TRAFFIC_MANAGER, dict(self._first), who=who, why="first start")
                await self._stored.call(put)

    async def traffic_manager(self) -> tuple[Body, str]:
        """Give what GET of the profile shows, and its ETag; ResourceNotFound without a service."""
        state = await self._stored.state()
        manager = await self.of(state.service)
        stored = await self._document()
        return profiles.traffic_manager_body(manager, state.service), stored.etag

    async def current(self) -> profiles.TrafficManager:
        """Give the profile in use; ResourceNotFound without a service."""
        return await self.of((await self._stored.state()).service)

    async def set_traffic_manager(
        self, patch: object, *, who: str, why: str = "", if_match: str | None = None, merge: bool = True
    ) -> tuple[Body, str]:
        """Change the profile, and give it. merge: as PATCH; else the whole is replaced. Nothing is written when nothing changes.

        Refusals in order: 404, fenced, 428, 412, every violation (V20-V23). Not refused while an operation runs: nothing is deployed.
        """
        state = await self._stored.state()
        before, stored = await self.traffic_manager()
        await self._stored.refuse_fenced()
        self._stored.refuse_unseen(stored, if_match)
        manager = profiles.read(patched(before, patch) if merge else patch, state.service)
        after = profiles.traffic_manager_body(manager, state.service)
        if after == before:
            return before, stored
        seen = f'"{stored}"' if stored else if_match  # If-Match: * does not mean that what others change meanwhile may be lost
        put = partial(self._stored.store.put, TRAFFIC_MANAGER, _storable(after), who=who, why=why, if_match=seen)
        written = await self._stored.call(put)
        await self._changed()
        self._stored.changes.tell("state")
        return after, written.etag

    async def failover_times(self, patch: object = None) -> Failover:
        """Give the times that the profile implies, or would with a patch; violations as `set_traffic_manager`."""
        state = await self._stored.state()
        manager = await self.of(state.service)
        if patch is not None:
            manager = profiles.read(patched(profiles.traffic_manager_body(manager, state.service), patch), state.service)
        return failover(manager.monitor, manager.ttl)

    async def _document(self) -> Document:
        found: Document | None = await self._stored.call(self._stored.store.document, TRAFFIC_MANAGER)
        return found or Document(dict(self._first), "")

    async def of(self, service: Service, *, fresh: bool = False) -> profiles.TrafficManager:
        """Read the stored profile for a service, violations as `read`. fresh: for a new one, which it need not fit."""
        stored = await self._document()
        try:
            return self._read(stored, service)
        except ServiceError:
            if not fresh:
                raise
        put = partial(self._stored.store.put, TRAFFIC_MANAGER, dict(self._first), who="service", why="of a new service")
        return self._read(await self._stored.call(put), service)

    def _read(self, stored: Document, service: Service) -> profiles.TrafficManager:
        if self._last is None or self._last[:2] != (stored.etag, service):
            self._last = stored.etag, service, profiles.read(stored.body, service)
        return self._last[2]

    def used(self, stored: Document | None, service: Service) -> tuple[profiles.TrafficManager, Body]:
        """Give the profile for a service, and as GET shows it; the usual one where the stored one does not fit."""
        stored = stored or Document(dict(self._first), "")
        try:
            manager = self._read(stored, service)
        except ServiceError as error:
            logger.error("the profile that is stored does not fit the service; the usual one is used: %s", error)
            manager = profiles.read({}, service)
        return manager, profiles.traffic_manager_body(manager, service)


def _storable(body: Body) -> Body:
    return {"properties": {key: value for key, value in body["properties"].items() if key != "failover"}}
