"""Rotations: the store, looked at again and again, becomes the rotation that edges get and that the own Balancer follows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from lbcore.errors import ServiceError
from lbcore.service.configuration import Latest, Report, Tag, read_tags
from lbcore.service.model import ServiceState
from lbcore.service.profile import TRAFFIC_MANAGER, Profile
from lbcore.service.reports import Edges
from lbcore.service.revisions import Number
from lbcore.service.rotation import Listed, Look, StatusPages
from lbcore.service.rotation_document import Rotation, document
from lbcore.service.statuses import all_regions, always_served, switched_off
from lbcore.service.store import Document
from lbcore.service.stored import Stored
from lbcore.service.watching import Watching

__all__ = ["DataPlane", "Known", "Rotations"]

LEAVING = ("Draining", "Terminating")
WAIT = 0.05  # seconds between two looks whether edges follow
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Known:
    """One look at the store."""

    state: ServiceState | None
    manager: Document | None
    epoch: int
    sequence: int  # of the last state, also of a service that is gone


class Rotations:
    """Make the rotation of what is stored, and wait for edges to follow it.

    domain: of the service, also while there is none;  edges: those that report;  watching: follows each rotation
    monitor_files: settings of `Monitor` that only the primary's own file has;  remember: is told the profile's TTL in seconds
    `latest`, `watch` and `put` are those of configurations, for `remote.answer`.
    """

    def __init__(
        self, stored: Stored, profile: Profile, edges: Edges, watching: Watching, *, domain: str, monitor_files: Mapping[str, Any],
        remember: Callable[[int], object],
    ) -> None:  # fmt: skip
        self._stored, self._profile, self._edges, self._watching = stored, profile, edges, watching
        self._domain, self._monitor_files, self._remember = domain, monitor_files, remember
        self.known = Known(None, None, 0, 0)
        self.properties: Body = {}  # of the profile in use, as GET shows them
        self.heard = False  # whether anybody hears of a rotation already
        self._rotation: Rotation | None = None
        self._awaited: Number | None = None  # the rotation in which a region has gone, or serves no longer
        self._turned = asyncio.Condition()
        self._refreshing = asyncio.Lock()
        self._draining_since: dict[str, Number] = {}

    async def refresh(self) -> None:
        """Bring the rotation in line with what is stored; it changes nothing when nothing has changed."""
        async with self._refreshing:
            known: Known = await self._stored.call(self._look)
            if known == self.known and self._rotation is not None:
                return
            self._turn(known)  # what raises is tried again with the next look
            before, self.known = self.known, known
        if before.state != known.state:
            self._stored.changes.tell("state")
        async with self._turned:
            self._turned.notify_all()

    def _look(self) -> Known:
        store = self._stored.store
        with store.database.reading() as connection:  # of one moment: a profile from before a restore has a number that is too high
            manager, epoch = store.document_of(connection, TRAFFIC_MANAGER), store.revisions.epoch_of(connection)
            return Known(store.read(connection), manager, epoch, store.sequence_of(connection))

    def _turn(self, known: Known) -> None:
        """Make the rotation of a state, and let the own Balancer follow it."""
        manager, body = self._profile.used(known.manager, known.state.service) if known.state else (None, {})
        turned = int(known.manager.etag.partition("-")[0]) if known.manager else 0  # a profile's change is another number, too
        sequence = known.sequence + turned
        made = document(known.state, body, service=self._stored.name, domain=self._domain, epoch=known.epoch, sequence=sequence)
        before = self._rotation
        if before is None or not _same(before, made):
            self._rotation = made
            if before is None or _loses(before, made):  # what the one before this primary waited for is not known
                self._awaited = made.number
            self._stored.changes.tell("rotation")
        for name in [*self._draining_since]:
            if (place := made.get(name)) is None or not place.draining:
                del self._draining_since[name]
        for place in made.regions:
            if place.draining:
                self._draining_since.setdefault(place.name, made.number)
        self.properties = properties = body.get("properties", {})
        off = {place.name for place in made.regions} if properties.get("profileStatus") == "Disabled" else switched_off(properties)
        monitor = replace(manager.monitor, **self._monitor_files) if manager else self._watching.monitor
        if manager is not None:
            self._remember(manager.ttl)
        self._watching.follow(made.regions, monitor, off, always_served(properties))

    def rotation(self) -> Rotation | None:
        """Give the rotation, None without a service. Its `tag` is its ETag, its `document` what edges get."""
        return self._rotation if self.known.state is not None else None

    async def wait(self, tag: str, timeout: float) -> Rotation | None:
        """Give the rotation as soon as its tag is another one than `tag`, at the latest after `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.watch(read_tags(tag))
        return self.rotation()

    async def show(self, listed: Mapping[str, Listed]) -> None:
        """Be the data plane's half for operations: tell edges, and wait for those that are heard of to follow when a region goes."""
        before = self._awaited
        await self.refresh()
        state = self.known.state
        if not self.heard:  # nobody hears anything yet
            return
        leaving = state is not None and any(one.provisioning_state in LEAVING for one in state.states.values())
        while self._awaited is not None and (leaving or self._awaited != before) and not self._edges.follow(self._awaited):
            await asyncio.sleep(WAIT)

    def idle(self, name: str) -> bool:
        """Say whether every edge that is heard of has nothing under way in a draining region; False when nobody says so."""
        since = self._draining_since.get(name)
        return since is not None and self._edges.idle(name, since)

    def names(self) -> Collection[str]:
        """Give the regions that are wanted or not gone yet."""
        return all_regions(self.known.state) if self.known.state else ()

    @property
    def number(self) -> Number | None:
        """Give the number of the last rotation, also of a service that is gone; None before the first one."""
        return self._rotation.number if self._rotation else None

    # ===== the protocol of configurations

    async def latest(self, known: Collection[Tag] = (), report: Report | None = None) -> Latest | None:
        """Give the rotation, without its bytes to who knows it; None without a service."""
        rotation = self.rotation()
        if rotation is None:
            return None
        (tag,) = read_tags(rotation.tag)
        return Latest(tag, None if tag in known else rotation.document)

    async def watch(self, known: Collection[Tag] = ()) -> bool:
        """Wait until there is another one than those known. Stop it with a timeout."""
        async with self._turned:
            await self._turned.wait_for(lambda: (now := self.rotation()) is not None and read_tags(now.tag)[0] not in known)
        return True

    async def put(self, document: Mapping[str, Any], *, who: str, why: str = "", if_revision: Number | None = None) -> Tag:
        """Refuse: it follows from the state."""
        raise ServiceError("NotSupported", "the rotation follows from the service; it cannot be put")


class DataPlane:
    """What operations need of the data plane."""

    def __init__(self, rotations: Rotations, pages: StatusPages) -> None:
        self._rotations, self._pages = rotations, pages

    async def show(self, listed: Mapping[str, Listed]) -> None:
        """Tell edges, as `Rotations.show`."""
        await self._rotations.show(listed)

    async def look(self, name: str, gateway: str) -> Look:
        """Ask a region's gateway how it is."""
        return await self._pages.look(name, gateway)

    async def idle(self, name: str) -> bool:
        """Say whether edges have nothing under way there, as `Rotations.idle`."""
        return self._rotations.idle(name)


def _same(before: Rotation, after: Rotation) -> bool:
    """Say whether two documents tell the same, numbers aside; another epoch is told always."""
    return replace(before, number=after.number) == replace(after, tag=before.tag) and before.number.epoch == after.number.epoch


def _loses(before: Rotation, after: Rotation) -> bool:
    """Say whether a region may get no new clients any more, or none at all."""
    serving = [{one.name for one in each.regions if one.enabled and not one.draining} for each in (before, after)]
    there = [{one.name for one in each.regions} for each in (before, after)]
    return bool(serving[0] - serving[1] or there[0] - there[1])
