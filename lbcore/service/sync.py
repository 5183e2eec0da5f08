"""Sync: keep a gateway at the latest revision, and serve by the last good one when nobody says which that is.

`Pulling` is how anything that has revisions is followed; `Sync` does it for a gateway's configurations, `edge.Follower` for rotations.

    Empty --> Syncing --> InSync <--> Stale (for more than 3 intervals not sure of the latest revision)
                 ^           '------> Orphaned (the same, for the source does not answer)
                 '------------------------'

It serves in every state but Empty; a gateway keeps its revisions on disk itself (`Gateway(keep=…)`). Of two revisions the one of the
later epoch wins, then the one of the higher sequence; a source that offers an older one, or another one of the same number, is refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from lbcore.errors import ConfigError, ServiceError
from lbcore.http.gateway.configuration import Configuration
from lbcore.http.gateway.revision import Revision, StaleRevisionError
from lbcore.service.configuration import Latest, Report, SourceRefusedError, SourceUnreachableError, Tag, tag_of

__all__ = ["JITTER", "Pulling", "Serving", "Source", "State", "Sync", "check_hash"]

logger = logging.getLogger(__name__)

JITTER = 0.2  # of the interval, both ways
STALE_AFTER = 3.0  # intervals
PAUSE = 0.1, 1.0  # of the interval, seconds, whichever is less: hints come no closer than that
ERRORS = 500  # characters


class State(StrEnum):
    """How far a gateway follows its source."""

    EMPTY = "Empty"
    SYNCING = "Syncing"
    IN_SYNC = "InSync"
    STALE = "Stale"
    ORPHANED = "Orphaned"


class Serving(Protocol):
    """What is kept at the latest revision: a Gateway, or what stands for several processes of one."""

    @property
    def revision(self) -> Revision | None:
        """Give the revision in use."""
        ...

    async def update(self, document: object) -> Revision:
        """Serve by a configuration, as Gateway.update; errors as there."""
        ...


class Source(Protocol):
    """Where revisions come from; `Configurations` is one."""

    async def latest(self, known: Collection[Tag] = (), report: Report | None = None) -> Latest | None:
        """Give the latest revision, as Configurations.latest."""
        ...

    async def watch(self, known: Collection[Tag] = ()) -> bool:
        """Wait until there may be another one, as Configurations.watch."""
        ...


class Pulling(ABC):
    """Follow a source: `run()` until cancelled.

    region: that reports are of; interval: seconds between two looks, ± 20 %, > 0; timeout: seconds for one, > 0
    on_event: called with a kind and its detail: SyncStateChanged, and of KIND + Applied, RolledBack, Refused
    clock: monotonic seconds; draw: gives within [0, 1), for the jitter
    A published revision is in use after interval · 1.2 + the time to fetch and take it up, at once when the hint gets through (R42).
    Waiting is asynchronous; reading and keeping a document are for threads.
    """

    KIND: ClassVar[str]
    ORDINARY: ClassVar[frozenset[str]] = frozenset()  # reasons to refuse that are no trouble as long as nothing is in use

    def __init__(
        self, source: Source, *, region: str = "", interval: float = 10.0, timeout: float = 10.0,
        on_event: Callable[[str, dict[str, Any]], object] | None = None, clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        if not interval > 0 or not timeout > 0:
            raise ValueError(f"interval and timeout must be over 0, got {interval!r} and {timeout!r}")
        self.source, self.region, self.interval, self.timeout = source, region, interval, timeout
        self._on_event, self._clock, self._draw = on_event, clock, draw
        self._began = clock()
        self._sure: float | None = None  # when the gateway was known to have the latest revision, last
        self._behind = self._applying = self._asked = self._unreachable = False
        self._unusable: tuple[Tag, str] | None = None  # need not be fetched again, and why
        self._last = State.EMPTY
        self.refused, self.error = "", ""  # why the latest revision is not in use; why nothing is known of it
        self.counters: Counter[str] = Counter()  # pulls, applied, unchanged, unreachable, refused_<reason>, hints
        self._hint = asyncio.Event()
        self._pulling = asyncio.Lock()

    # ---- what is known

    @property
    @abstractmethod
    def held(self) -> Tag | None:
        """Give the tag of the revision in use."""

    @abstractmethod
    async def take_up(self, tag: Tag, body: bytes) -> Tag:
        """Come to serve by a revision that is newer than the one in use, or by a later one still; gives which.

        Raises SourceRefusedError for what is not what its tag says, ConfigError for what no second look would change.
        """

    @property
    def lag(self) -> float:
        """Give for how many seconds the latest revision has not been known to be in use; from the start, when it never was."""
        return max(0.0, self._clock() - (self._began if self._sure is None else self._sure))

    @property
    def state(self) -> State:
        """Give the state at this moment."""
        if self.held is None:
            return State.SYNCING if self._applying else State.EMPTY
        if self._applying or not self._asked:
            return State.SYNCING
        if self._sure is not None and self.lag <= STALE_AFTER * self.interval:
            return State.SYNCING if self._behind else State.IN_SYNC
        return State.ORPHANED if self._unreachable else State.STALE

    def report(self) -> Report | None:
        """Give what the source is told with every look, None = nothing."""
        return None

    def as_dict(self) -> dict[str, Any]:
        """Give all of it in JSON types."""
        held = self.held
        return {
            "state": str(self.state), "revision": str(held.number) if held else None, "sha256": held.sha256 if held else None,
            "lag": round(self.lag, 3), "refused": self.refused, "error": self.error, "counters": dict(self.counters),
        }  # fmt: skip

    # ---- run

    async def run(self) -> None:
        """Look every interval, and when the source hints, until cancelled."""
        watching = asyncio.create_task(self._watch())
        try:
            while True:
                due = asyncio.get_running_loop().time() + self.interval * (1 - JITTER + 2 * JITTER * self._draw())
                await self.pull()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await self._hint.wait()
                self._hint.clear()
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    async def pull(self, timeout: float | None = None) -> State:
        """Look once, and give the state afterwards. Never raises for anything that the source does. timeout: for this one, seconds"""
        async with self._pulling:
            began = self._clock()
            self.counters["pulls"] += 1
            try:
                async with asyncio.timeout(self.timeout if timeout is None else timeout):
                    latest = await self.source.latest(self._known(), self.report())
                await self._take(latest)
            except (SourceUnreachableError, ServiceError, TimeoutError) as error:  # ServiceError: the store of a primary in this process
                self._cannot_reach(error)
            except SourceRefusedError as error:
                self._refuse(error.reason, str(error))
            except Exception as error:  # a source of whatever kind, a disk that is full: the next look may end better
                if not isinstance(error, OSError):
                    logger.exception("%s: the look at the source failed", self.region)
                self._refuse("failed", repr(error))
            else:
                self._sure, self._behind, self._unreachable, self.refused, self.error = began, False, False, "", ""
            self._asked = True
            return self._settle()

    async def _watch(self) -> None:
        """Turn what the source hints into looks; a source that hints without end, or cannot, costs little."""
        loop = asyncio.get_running_loop()
        while True:
            began, good = loop.time(), False
            try:
                if await self.source.watch(self._known()):
                    self.counters["hints"] += 1
                    self._hint.set()
                good = True
            except (SourceUnreachableError, SourceRefusedError, OSError, TimeoutError) as error:
                logger.debug("%s: no hints: %s", self.region, error)
            except Exception:
                logger.exception("%s: no hints", self.region)
            pause = min(PAUSE[0] * self.interval, PAUSE[1]) if good and not self.refused else self.interval
            await asyncio.sleep(max(0.0, began + pause - loop.time()) if good and not self._hint.is_set() else pause)

    # ---- take what is offered

    def _known(self) -> tuple[Tag, ...]:
        unusable = self._unusable and self._unusable[0]
        return tuple(tag for tag in (self.held, unusable) if tag is not None)

    async def _take(self, latest: Latest | None) -> None:
        """Come to serve by what the source says is the latest revision, or raise."""
        held = self.held
        if latest is None:
            if held is not None:
                raise SourceRefusedError("none", f"the source has no revision, {held.number} is in use")
            return
        if latest.tag == held:
            self.counters["unchanged"] += 1
            self._unusable = None
            return
        self._behind = True
        if self._unusable is not None and latest.tag == self._unusable[0]:
            raise SourceRefusedError("invalid", self._unusable[1])
        if held is not None and latest.tag.number <= held.number:
            raise SourceRefusedError("stale", _stale(latest.tag, held))
        if latest.body is None:
            raise SourceRefusedError("tag", f"revision {latest.tag.number} without its document")
        await self._apply(latest, latest.body, held)

    async def _apply(self, latest: Latest, body: bytes, held: Tag | None) -> None:
        self._applying = not self.refused  # what is refused again and again is no news each time
        self._settle()
        try:
            tag = await self.take_up(latest.tag, body)
        except StaleRevisionError as error:
            raise SourceRefusedError("stale", str(error)) from error
        except ConfigError as error:  # nothing that a second look would change
            self._unusable = latest.tag, f"revision {latest.tag.number} cannot be used: {error}"
            raise SourceRefusedError("invalid", self._unusable[1]) from error
        finally:
            self._applying = False
        self.counters["applied"] += 1
        self._unusable = None
        logger.info("%s serves revision %s", self.region, tag.number)
        self._tell(f"{self.KIND}Applied", revision=str(tag.number), sha256=tag.sha256)
        if held is not None and held.number.epoch < tag.number.epoch:
            lost = [*map(str, latest.lost)]
            words = ", ".join(lost) or "nothing"
            logger.warning("%s: %s has given way to %s, a later epoch; lost: %s", self.region, held.number, tag.number, words)
            self._tell(f"{self.KIND}RolledBack", held=str(held.number), to=str(tag.number), lost=lost)

    # ---- say what becomes of it

    def _cannot_reach(self, error: Exception) -> None:
        self.counters["unreachable"] += 1
        if not self._unreachable:
            logger.warning("%s: the source does not answer: %s", self.region, error or "no answer in time")
        self._unreachable, self.error = True, (str(error) or "no answer in time")[:ERRORS]

    def _refuse(self, reason: str, message: str) -> None:
        self.counters[f"refused_{reason}"] += 1
        said, message = self.refused, message[:ERRORS]
        self._unreachable, self.refused, self.error = False, message, message
        if message != said:
            ordinary = reason in self.ORDINARY and self.held is None
            level = logging.INFO if ordinary else logging.ERROR
            logger.log(level, "%s: what the source offers is refused (%s): %s", self.region, reason, message)
            self._tell(f"{self.KIND}Refused", reason=reason, message=message)

    def _settle(self) -> State:
        state = self.state
        if state != self._last:
            before, self._last = self._last, state
            self._tell("SyncStateChanged", before=str(before), state=str(state), lag=round(self.lag, 3))
        return state

    def _tell(self, kind: str, **detail: Any) -> None:
        if self._on_event is not None:
            try:
                self._on_event(kind, {"region": self.region, **detail})
            except Exception:
                logger.exception("%s: on_event failed for %s", self.region, kind)


class Sync(Pulling):
    """Keep a gateway at its source's latest revision. Options as Pulling; kinds of events: ConfigApplied, ConfigRolledBack, ConfigRefused.

    Nothing here is in the way of a call.
    """

    KIND = "Config"

    def __init__(self, gateway: Serving, source: Source, **options: Any) -> None:
        self.gateway = gateway
        super().__init__(source, **options)

    @property
    def held(self) -> Tag | None:
        """Give the tag of the revision in use."""
        revision = self.gateway.revision
        return None if revision is None else tag_of(revision.configuration)

    def report(self) -> Report:
        """Give what the source is told with every look."""
        return Report(self.region, self.state, self.held, round(self.lag, 3), self.refused)

    async def take_up(self, tag: Tag, body: bytes) -> Tag:
        """Serve by a configuration."""
        configuration = await asyncio.to_thread(_checked, tag, body)
        await self.gateway.update(configuration)
        return tag


def _stale(offered: Tag, held: Tag) -> str:
    how = "is in use with another content" if offered.number == held.number else f"is older than {held.number}, which is in use"
    return f"revision {offered.number} {how}"


def check_hash(tag: Tag, body: bytes) -> None:
    """Raise SourceRefusedError for bytes that are not those that their tag says."""
    if hashlib.sha256(body).hexdigest() != tag.sha256:
        raise SourceRefusedError("hash", f"what was sent as revision {tag.number} has another SHA-256 than it was said to have")


def _checked(tag: Tag, body: bytes) -> Configuration:
    """Read a document that must be the very one that its tag says."""
    check_hash(tag, body)
    configuration = Configuration.from_json(body)
    if tag_of(configuration) != tag:
        raise SourceRefusedError("number", f"what was sent as revision {tag.number} is {configuration.revision}, or not canonical JSON")
    return configuration
