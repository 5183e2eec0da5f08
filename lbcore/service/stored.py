"""Stored: the store as one event loop uses it: in threads, refused where it must not be written, and with news of it for who subscribed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from lbcore.errors import ServiceError
from lbcore.service.model import ServiceState
from lbcore.service.notices import Notices
from lbcore.service.record import matches
from lbcore.service.store import Store

__all__ = ["Stored"]

logger = logging.getLogger(__name__)


class Stored:
    """Read and write the store of one service.

    store: opened;  name: of the service;  require_if_match: whether a write must say which state it has seen (V17)
    call: runs what blocks, as asyncio.to_thread
    """

    def __init__(
        self, store: Store, name: str, *, require_if_match: bool = True, call: Callable[..., Awaitable[Any]] = asyncio.to_thread
    ) -> None:
        self.store, self.name, self.call, self._required = store, name, call, require_if_match
        self.changes = Notices()

    async def found(self) -> ServiceState | None:
        """Give the service with what runs of it; None when there is none."""
        state: ServiceState | None = await self.call(self.store.state)
        return state

    async def state(self) -> ServiceState:
        """Give the service with what runs of it; ServiceError ResourceNotFound when there is none."""
        found = await self.found()
        if found is None:
            raise ServiceError("ResourceNotFound", f"there is no service {self.name!r}", self.name)
        return found

    def named(self, name: str) -> None:
        """Refuse another service's name: ServiceError ResourceNotFound."""
        if name.lower() != self.name.lower():
            raise ServiceError("ResourceNotFound", f"there is no service {ascii(name)[:80]} here; this is {self.name!r}", name)

    async def fence(self) -> int | None:
        """Give the epoch of the primary that has taken over; None while this one may write."""
        epoch: int | None = await self.call(_fence_of, self.store)
        return epoch

    async def event(self, kind: str, region: str = "", /, **detail: Any) -> None:
        """Write an event, and tell of it; that it cannot be written is only logged."""
        try:
            await self.call(partial(self.store.events.add, kind, region, **detail))
        except ServiceError as error:
            logger.warning("event %s was not written: %s", kind, error)
        self.changes.tell("events")

    # ===== refusals before a body is looked at; the journal asks again, in the transaction that counts

    async def refuse_fenced(self) -> None:
        """Raise ServiceError Fenced when another primary has taken over."""
        if (epoch := await self.fence()) is not None:
            raise ServiceError("Fenced", f"another primary has taken over with epoch {epoch}; this one is read-only")

    def refuse_unseen(self, etag: str, if_match: str | None, *, writes: bool = True) -> None:
        """Raise ServiceError PreconditionRequired or PreconditionFailed unless If-Match holds. etag: "" = there is nothing yet"""
        if writes and if_match is None and etag and self._required:
            raise ServiceError("PreconditionRequired", "say which state you have seen: If-Match with its ETag, or *", "If-Match")
        if not matches(if_match, etag):
            now = f"it is {etag} now" if etag else "there is nothing yet"
            raise ServiceError("PreconditionFailed", f"If-Match does not hold: {now}", "If-Match")

    async def refuse_busy(self) -> None:
        """Raise what `Store.refuse_while_busy` raises while an operation runs."""
        await self.call(_refuse_while_busy, self.store)


def _fence_of(store: Store) -> int | None:
    return store.fenced


def _refuse_while_busy(store: Store) -> None:
    with store.database.reading() as connection:
        store.refuse_while_busy(connection)
