"""A node's gateway in worker processes: one that counts and logs its calls, and the document that all of them serve by."""

from __future__ import annotations

import logging
import mmap
import os
import ssl
import time
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any

from lbcore.config import Settings
from lbcore.errors import ConfigError
from lbcore.http._limits import Limits, Slots
from lbcore.http.accesslog import AccessLog
from lbcore.http.budget import RetryBudget
from lbcore.http.call import Call
from lbcore.http.configured import engine_options
from lbcore.http.forward import Forwarder, Response, Target
from lbcore.http.gateway import Configuration, Gateway, SharedUnits
from lbcore.http.gateway.calls import Visit
from lbcore.http.gateway.revision import Revision
from lbcore.http.metrics import Meter
from lbcore.http.policies import KeySets
from lbcore.http.workers import HttpWorker

__all__ = ["CountedGateway", "Documents", "GatewayWorker", "SharedCounts", "options", "shared_limits"]

logger = logging.getLogger(__name__)

ENTRIES = 65_536  # keys of rate limits at once


def shared_limits(fd: int | None = None) -> tuple[Limits, int]:
    """Give counters of rate limits in memory that processes share, and its descriptor; fd: of one that is there already."""
    size = Limits.nbytes_for(ENTRIES)
    if fd is None:
        fd = os.memfd_create("lbcore-limits")
        os.ftruncate(fd, size)
    return Limits(ENTRIES, buffer=mmap.mmap(fd, size)), fd


def options(settings: Settings, limits: Limits) -> dict[str, Any]:
    """Give the options of the node's Gateway, but for units."""
    section = settings.document.gateway
    assert section is not None
    engine = engine_options(section)
    tls = ssl.create_default_context(cafile=str(settings.folder / section.authorities)) if section.authorities else None
    return {
        "region": section.region, "service": settings.document.service.name, "gateway": section.name, "limits": limits, "keys": KeySets(),
        "regions": [region.name for region in settings.regions], "explain_to": section.explain_to, "tls": tls,
        "trusted": engine["trusted"], "timeouts": engine["timeouts"], "max_size": engine["limits"],
    }  # fmt: skip


def shared_slots(workers: int, fd: int | None = None) -> tuple[Slots, int]:
    """Give counts of calls under way in memory that so many processes share, and its descriptor; fd: of one that is there already."""
    size = Slots.nbytes_for(workers)
    if fd is None:
        fd = os.memfd_create("lbcore-slots")
        os.ftruncate(fd, size)
    return Slots(workers, buffer=mmap.mmap(fd, size)), fd


class SharedCounts:
    """What the workers of one generation share: `limits`, descriptor of the node's counters, and `slots`, of their own calls under way."""

    def __init__(self, limits: int, workers: int) -> None:
        self.limits = limits
        self._slots, self.slots = shared_slots(workers)

    def clear(self, worker: int) -> None:
        """Forget the calls of a worker that is gone."""
        self._slots.clear(worker)

    def close(self) -> None:
        """Let go of the memory; workers that have it keep it."""
        os.close(self.slots)


def units(settings: Settings, slots: Slots, worker: int, limits: Limits) -> SharedUnits:
    """Give the units of the node's region, as one of its workers takes from them."""
    section = settings.document.gateway
    assert section is not None
    wanted = section.unit.model_dump(exclude_none=True)
    return SharedUnits(settings.region(section.region).units, slots=slots, worker=worker, limits=limits, **wanted)


class CountedGateway(Gateway):
    """A gateway that counts its calls by API, and logs them. Options as Gateway."""

    def __init__(self, *, meter: Meter, access_log: AccessLog | None, **options: Any) -> None:
        super().__init__(**options, log=access_log.note if access_log is not None else None)
        self._meter, self._access_log = meter, access_log
        self.on_done = self._ended

    def begin(self, call: Call, /) -> Target | Response | Awaitable[Target | Response]:
        """Count the call."""
        self._meter.begun()
        return super().begin(call)

    def _ended(self, call: Call, visit: Visit | None) -> None:
        if call.status == 508 and not call.attempts and call.inbound.engine.heads.loops(call):
            self._meter.begun()  # the engine answered it without asking
        api = _label(visit.api, visit.version) if visit is not None and visit.api else ""
        self._meter.ended(call, api)
        if self._access_log is not None:
            self._access_log.offer(call, api or None, visit.revision if visit else None, visit.target if visit else None)


def _label(api: str, version: str) -> str:
    return f"{api}/{version}" if version else api


class Documents:
    """The document that a node's gateway serves by: read from its file, checked, and the last good ones kept.

    Without a file, or when it cannot be used, the newest that was kept is served by. keep: False = as if there were no folder for it
    """

    def __init__(self, settings: Settings, limits: Limits, keep: bool = True) -> None:
        section = settings.document.gateway
        assert section is not None
        self._file = settings.folder / section.configuration if section.configuration else None
        following = settings.following
        folder = settings.folder / section.keep if section.keep else following.keep if following is not None else None
        folder = folder if keep else None
        self._options = options(settings, limits)
        self._trial = Gateway(**self._options, keep=folder)
        self._regions = [region.name for region in settings.regions]

    def read(self) -> None:
        """Take the file as it is now; ConfigError with all that is wrong, StaleRevisionError for an older one, OSError: nothing changes.

        The first one is served by even where it cannot be kept.
        """
        if self._file is None:
            return
        try:
            found = Configuration.from_file(self._file, regions=self._regions)
            try:
                self._trial.apply(found)
            except OSError as error:
                if self.configuration is not None:
                    raise
                logger.error("gateway.keep: revision %s is served and not kept: %s", found.revision, error)
                self._trial = Gateway(**self._options)
                self._trial.apply(found)
        except ConfigError as error:
            raise ConfigError(replace(each, where=f"{self._file}: {each.where}") for each in error.violations) from None

    async def take(self, document: object) -> Revision:
        """Serve by another one, which is kept first; errors as Gateway.update."""
        return await self._trial.update(document)

    def replaces(self, other: Documents) -> None:
        """Go on from what another one has, if that is newer or the same."""
        if other.configuration is not None:
            self._trial.apply(other.configuration)

    @property
    def revision(self) -> Revision | None:
        """Give what is served by, as a Gateway has it."""
        return self._trial.revision

    @property
    def configuration(self) -> Configuration | None:
        """Give what is served by."""
        revision = self.revision
        return revision.configuration if revision is not None else None

    @property
    def text(self) -> str:
        """Give it as JSON, "" when there is none."""
        return self.configuration.canonical.decode() if self.configuration is not None else ""

    @property
    def labels(self) -> list[str]:
        """Give what its APIs are counted under."""
        return [_label(api.name, api.version) for api in self.configuration.apis] if self.configuration is not None else []


class GatewayWorker(HttpWorker):
    """A gateway. name: of the node in Via; text: of its document, "" = none.

    number, workers: which one it is of how many; limits, slots: descriptors of the counters that they share
    """

    def __init__(self, settings: Settings, meter: Meter, name: str, text: str, number: int, workers: int, limits: int, slots: int) -> None:
        section = settings.document.gateway
        assert section is not None
        super().__init__("gateway", section, settings, meter)
        counters, under_way = shared_limits(limits)[0], shared_slots(workers, slots)[0]
        taken = units(settings, under_way, number, counters)
        self._budget = RetryBudget(time.monotonic, minimum=10.0 / workers)
        self._gateway = self._serving = CountedGateway(
            **options(settings, counters), units=taken, budget=self._budget, name=name, meter=meter, access_log=self._log
        )
        if not settings.region(section.region).enabled:
            self._gateway.disable()
        if text:
            self._gateway.apply(Configuration.from_json(text.encode()))

    async def document(self, text: str, labels: Sequence[str]) -> None:
        """Serve by another document."""
        self._meter.label(labels)
        await self._gateway.update(Configuration.from_json(text.encode()))

    def _gauges(self, engine: Forwarder) -> dict[str, float]:
        load = self._gateway.units.load
        capacity = {"capacity_avg": load.average, "capacity_max": load.most, "advice": self._gateway.units.scale_advice}
        return super()._gauges(engine) | capacity | {"budget": self._budget.balance}
