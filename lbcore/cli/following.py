"""Edge: what `[sync]` adds to the supervisor: it starts by a rotation, follows its primary from then on, and reports to it.

    the primary is there       the latest rotation is asked for first
    it is not, one was kept    that one serves
    neither                    nothing is served yet: this waits
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from lbcore.cli.generation import Tell
from lbcore.config import Settings
from lbcore.config.following import Following
from lbcore.errors import ConfigError
from lbcore.metrics import counter, gauge
from lbcore.region import canonical
from lbcore.service.edge import Follower, Reporter, kept_rotations
from lbcore.service.remote import Link, Remote
from lbcore.service.rotation_document import Rotation
from lbcore.service.sync import Pulling, Serving, State, Sync

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["Edge", "Node"]

logger = logging.getLogger(__name__)

FIRST = 3.0  # seconds that a primary has to answer while something kept could serve
AGAIN = 1.0  # seconds between two looks while nothing can
T = TypeVar("T")


class Node(Serving, Protocol):
    """What follows: the supervisor. `revision` and `update` are its gateway's."""

    async def switch(self, rotation: Rotation) -> bool:
        """Do at once what can be, and say whether the rest takes new workers; ConfigError for a rotation that cannot be served by."""

    async def rotate(self, rotation: Rotation) -> None:
        """Serve by a rotation; errors as `switch`."""

    async def look(self) -> Mapping[str, Any]:
        """Give the body of a report."""

    def reported(self, body: Mapping[str, Any]) -> None:
        """Know that the primary has taken one."""


class Edge:
    """Follow for a node. following, settings: of its file; gateway: whether it has one; tell: is told events

    OSError or ssl.SSLError for an authority that cannot be used. Use `first`, then the Edge as a context manager.
    """

    def __init__(self, following: Following, settings: Settings, node: Node, gateway: bool, tell: Tell) -> None:
        self._node, self._tell = node, tell
        self.following = following
        self._service = settings.document.service.name
        self._links: list[Link] = []
        kept = kept_rotations(following.keep) if following.keep is not None else None
        options: dict[str, Any] = {"interval": following.interval, "on_event": self._told}
        self.rotation = Follower(_Nobody(), self._rotate, kept, region=following.name, **options)
        section = settings.document.gateway
        self.configuration = Sync(node, _Nobody(), region=canonical(section.region), **options) if gateway and section else None
        self.reporter = Reporter(Link(""), following.name, node.look, taken=node.reported)
        self._tasks: list[asyncio.Task[None]] = []
        self.prepare(following)()

    def prepare(self, following: Following) -> Callable[[], None]:
        """Give what makes this ask another primary, or the same by another token or authority, from the next look on.

        OSError or ssl.SSLError for an authority that cannot be used.
        """
        tls = ssl.create_default_context(cafile=str(following.ca)) if following.ca is not None else None
        options: dict[str, Any] = {"token": following.token or "", "tls": tls}  # the file is read for every request
        url = f"{following.primary}/services/{self._service}"
        rotation, configuration = (Remote(f"{url}/{name}", **options) for name in ("rotation", "gatewayConfiguration"))
        return partial(self._use, following, rotation, configuration, Link(f"{url}/reports", **options))

    def _use(self, following: Following, rotation: Remote, configuration: Remote, reports: Link) -> None:
        left, self._links = self._links, [rotation, configuration, reports]
        self.following, self.reporter.link, self.rotation.source = following, reports, rotation
        self.rotation.interval = following.interval
        if self.configuration is not None:
            self.configuration.source, self.configuration.interval = configuration, following.interval
        if left:
            self._tasks.append(asyncio.create_task(_close(left)))

    # ---- start

    async def first(self, begin: Callable[[Rotation | None], Awaitable[T]]) -> T:
        """Give what `begin` makes of the rotation to start with; what that raises, but ConfigError, ends this.

        A gateway's node does not wait for one: its region is listed only once its gateway serves.
        """
        made, broken = list[T](), list[Exception]()

        async def use(rotation: Rotation) -> None:
            try:
                made.append(await begin(rotation))
            except ConfigError:
                raise
            except Exception as error:
                broken.append(error)
                raise

        kept = await asyncio.to_thread(self.rotation.kept)
        self.rotation.rotation = kept[0] if kept else None  # nothing older is taken from now on
        self.rotation.use = use
        await self.rotation.pull(FIRST if kept else None)
        if kept and not made and not broken:
            await self._start_by(kept, use)
        if not made and not broken and self.configuration is not None:
            made.append(await begin(None))
        await self._wait(made, broken)
        self.rotation.use, self.rotation.soon = self._rotate, self._node.switch
        return made[0]

    async def _start_by(self, kept: list[Rotation], use: Callable[[Rotation], Awaitable[None]]) -> None:
        """Start by the newest that was kept and can be used."""
        for rotation in kept:
            try:
                await use(rotation)
            except ConfigError as error:
                logger.error("rotation %s, which was kept, cannot be used: %s", rotation.number, error)
            except Exception:
                return  # told by `first`
            else:
                self.rotation.rotation = rotation
                if self.rotation.error:
                    logger.warning("rotation %s, which was kept, serves: %s", rotation.number, self.rotation.error)
                return
        self.rotation.rotation = None

    async def _wait(self, made: list[Any], broken: list[Exception]) -> None:
        said: str | None = None
        while not made:
            if broken:
                raise broken[0]
            if said != (error := self.rotation.error or "it has no service yet"):
                said = error
                logger.warning("nothing is served before the first rotation of %s comes: %s", self.following.primary, error)
                self._tell("waiting", primary=self.following.primary, error=error)
            await asyncio.sleep(min(AGAIN, self.rotation.interval))
            await self.rotation.pull()

    # ---- run

    async def __aenter__(self) -> Self:
        works = [self.rotation.run(), self.reporter.run()]
        if self.configuration is not None:
            works.append(self.configuration.run())
        self._tasks += map(asyncio.create_task, works)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _close(self._links)

    async def _rotate(self, rotation: Rotation) -> None:
        await self._node.rotate(rotation)
        asyncio.get_running_loop().call_soon(self.reporter.hurry)  # the primary waits until edges have let go of a region

    def _told(self, kind: str, detail: dict[str, Any]) -> None:
        self._tell("sync", kind=kind, **detail)

    # ---- tell

    def metrics(self) -> Iterator[Metric]:
        """Give how far this node follows."""
        yield from _following("rotation", self.rotation, {})
        if self.configuration is not None:
            yield from _following("config", self.configuration, {"region": self.configuration.region})
        unkept = {(): float(bool(self.rotation.unkept))}
        yield gauge("lbcore_rotation_unkept", "1: the rotation that is served could not be kept on disk", (), unkept)
        reports = {(outcome,): self.reporter.counters[outcome] for outcome in ("sent", "unreachable", "refused", "failed")}
        yield counter("lbcore_reports", "Reports to the primary, by outcome", ("outcome",), reports)


class _Nobody:
    """The source before there is one."""

    async def latest(self, known: object = (), report: object = None) -> None:
        return None

    async def watch(self, known: object = ()) -> bool:
        return False


def _following(what: str, pulling: Pulling, labels: Mapping[str, str]) -> Iterator[Metric]:
    names, values = tuple(labels), tuple(labels.values())
    lag = {values: pulling.lag}
    yield gauge(f"lbcore_{what}_lag_seconds", f"For how long the latest {what} has not been known to be in use", names, lag)
    states = {(*values, str(state)): float(state is pulling.state) for state in State}
    yield gauge(f"lbcore_{what}_state", f"Whether the latest {what} is followed: one state is 1", (*names, "state"), states)
    refused = {values: float(bool(pulling.refused))}
    yield gauge(f"lbcore_{what}_refused", f"1: what the primary offers as {what} cannot be used", names, refused)
    if (held := pulling.held) is not None:
        number = {(*values, str(held.number.epoch)): held.number.sequence}
        yield gauge(f"lbcore_{what}_sequence", f"The sequence of the {what} in use", (*names, "epoch"), number)


async def _close(links: list[Link]) -> None:
    for link in links:
        await link.close()
