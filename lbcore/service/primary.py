"""Primary: the configurations of the service, kept in its store; published, rolled back, watched, and what regions report of theirs."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from lbcore.errors import ServiceError
from lbcore.http.gateway.configuration import Configuration
from lbcore.service.configuration import LARGEST_NUMBER, Latest, Report, Tag, canonical_bytes, document_of, validated
from lbcore.service.logbook import clean
from lbcore.service.revisions import Number, Revision
from lbcore.service.store import Store

__all__ = ["Primary"]

_MOST_LOST = 1000  # that one report can name
_MOST_REGIONS = 10_000
_POLL = 0.5  # seconds after which a revision is seen that another process has published
_PAUSE = 1.0  # seconds between two events of one kind and region


class Primary:
    """The configurations of the service, over the store: any number of tasks of one loop may use it.

    regions: gives the names that documents may use, none = any; check: a further look at a document, such as a gateway that tries it
    Store and documents are read in threads. It says in `store.events` when a report shows that something was lost or is wrong.
    """

    def __init__(
        self, store: Store, *, regions: Callable[[], Iterable[str]] = tuple, check: Callable[[Configuration], object] | None = None
    ) -> None:
        self._store, self._regions, self._check = store, regions, check
        self._made: tuple[Revision, Tag, bytes] | None = None  # the last one that was asked for
        self._changed: asyncio.Future[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._watching = 0
        self._reports: dict[str, Report] = {}
        self._said: dict[tuple[str, str], tuple[object, float]] = {}  # what, when

    async def latest(self, known: Collection[Tag] = (), report: Report | None = None) -> Latest | None:
        """Give the latest revision; a report is noted. ServiceError as the store raises it."""
        made = await asyncio.to_thread(self._read)
        if made is None:
            return None
        _, tag, body = made
        held = report.held if report is not None else next(iter(known), None)
        lost = await asyncio.to_thread(self._lost, held, tag) if held is not None and held.number.epoch != tag.number.epoch else ()
        if report is not None:
            await self._note(report, tag, lost)
        return Latest(tag, None if tag in known else body, lost)

    async def watch(self, known: Collection[Tag] = ()) -> bool:
        """Wait until there is another revision than those known, whichever process publishes it; give True. Stop it with a timeout."""
        self._watching += 1
        try:
            if self._watcher is None:
                self._watcher = asyncio.create_task(self._look())
            while True:
                if self._changed is None or self._changed.done():
                    self._changed = asyncio.get_running_loop().create_future()
                changed = self._changed  # before the look: what happens during it wakes this one
                if (made := await asyncio.to_thread(self._read)) is not None and made[1] not in known:
                    return True
                await asyncio.shield(changed)
        finally:
            self._watching -= 1
            if not self._watching and self._watcher is not None:
                self._watcher.cancel()
                self._watcher = None

    async def put(self, document: Mapping[str, Any], *, who: str, why: str = "", if_revision: Number | None = None) -> Tag:
        """Publish a document; one with the content of the latest revision gives that one, and no other is made."""
        body = await asyncio.to_thread(validated, document, self._regions(), self._check)
        return await self._put(body, who, why, if_revision)

    async def rollback(self, to: Number, *, who: str, why: str = "", if_revision: Number | None = None) -> Tag:
        """Publish the content of an older revision as a new one; ResourceNotFound for one that is not kept, else as `put`."""
        document = await self.document(to)
        return await self.put(document, who=who, why=why or f"rollback to {Number(*to)}", if_revision=if_revision)

    async def document(self, number: Number) -> dict[str, Any]:
        """Give the document of a revision; ResourceNotFound for one that is not kept."""
        wanted = Number(*number)
        body = await asyncio.to_thread(self._store.revisions.body, wanted)
        if body is None:
            raise ServiceError("ResourceNotFound", f"there is no revision {wanted}, or it is not kept any more", str(wanted))
        return document_of(body, wanted)

    async def win(self, *, who: str, why: str) -> Tag | None:
        """Begin an epoch beyond every one that a region has reported, so that all regions follow this primary; None without a revision.

        Never done by itself: a region that reports a later epoch may have it from another primary, or lie.
        """
        highest = max((report.held.number.epoch for report in self._reports.values() if report.held), default=0)
        if highest >= LARGEST_NUMBER:
            raise ServiceError("RevisionConflict", f"a region reports epoch {highest}: none is beyond it")
        await asyncio.to_thread(self._store.revisions.begin_epoch, who=who, why=why, at_least=highest + 1)
        self._wake()
        made = await asyncio.to_thread(self._read)
        return None if made is None else made[1]

    @property
    def reports(self) -> Mapping[str, Report]:
        """Give the last report of each region."""
        return dict(self._reports)

    async def in_sync(self, regions: Iterable[str]) -> dict[str, bool]:
        """Say of each region whether what it reported to hold is the latest revision, whatever it says of its state."""
        made = await asyncio.to_thread(self._read)
        found = {region: self._reports.get(region) for region in regions}
        return {region: made is not None and report is not None and report.held == made[1] for region, report in found.items()}

    # ---- how

    def _read(self) -> tuple[Revision, Tag, bytes] | None:
        revision = self._store.revisions.latest()
        if revision is None:
            return None
        made = self._made
        if made is None or made[0] != revision:
            stored = self._store.revisions.body(revision.number)
            if stored is None:  # pruned since: there is a later one
                return self._read()
            body = canonical_bytes(document_of(stored, revision.number))
            self._made = made = revision, Tag(revision.number, hashlib.sha256(body).hexdigest()), body
        return made

    async def _put(self, body: bytes, who: str, why: str, if_revision: Number | None) -> Tag:
        latest = await asyncio.to_thread(self._store.revisions.latest)
        same = latest is not None and latest.sha256 == hashlib.sha256(body).hexdigest() and if_revision in (None, latest.number)
        if latest is None or not same or self._store.fenced is not None:
            latest = await asyncio.to_thread(self._store.revisions.put, body, who=who, why=why, if_revision=if_revision)
            self._wake()
        whole = await asyncio.to_thread(lambda: canonical_bytes(document_of(body, latest.number)))
        return Tag(latest.number, hashlib.sha256(whole).hexdigest())

    def _wake(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def _look(self) -> None:
        """Look for what other processes publish, once for all who watch."""
        seen: Revision | None = None
        while True:
            with suppress(ServiceError):  # locked, say: the next time
                if (latest := await asyncio.to_thread(self._store.revisions.latest)) != seen:
                    seen = latest
                    self._wake()
            await asyncio.sleep(_POLL)

    def _lost(self, held: Tag, latest: Tag) -> tuple[Number, ...]:
        """Give what is lost of what a region has seen, no more than a thousand: what a region says may be anything."""
        last = min(held.number.sequence, latest.number.sequence + _MOST_LOST)
        return tuple(self._store.revisions.lost(Number(held.number.epoch, last)))[-_MOST_LOST:]

    # ---- what regions say

    async def _note(self, report: Report, latest: Tag, lost: tuple[Number, ...]) -> None:
        region, held = clean(report.region)[:100], report.held
        if region not in self._reports and len(self._reports) >= _MOST_REGIONS:
            return
        self._reports[region] = report
        wrong = held is not None and held.number == latest.number and held != latest
        ahead = held is not None and held.number > latest.number
        await self._say("ConfigRolledBack", region, lost, held=str(held and held.number), to=str(latest.number), lost=[*map(str, lost)])
        await self._say("ConfigAhead", region, ahead and held, held=str(held and held.number), latest=str(latest.number))
        await self._say("ConfigMismatch", region, wrong and held, held=str(held), latest=str(latest))
        await self._say("ConfigRefused", region, report.refused, reason=clean(report.refused), latest=str(latest.number))

    async def _say(self, kind: str, region: str, about: object, **detail: Any) -> None:
        """Write an event when what it is about changes to something, but not so often that a region's lies drive out all others."""
        before, at = self._said.get((kind, region), (None, -_PAUSE))
        if about == before or not about and not before:
            return
        now = time.monotonic()
        if about and now - at < _PAUSE:
            return
        self._said[kind, region] = about, now if about else at
        if about:
            await asyncio.to_thread(self._store.events.add, kind, region, **detail)
