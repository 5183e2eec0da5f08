"""Gateway: a region's data plane, a server. It takes calls by one immutable revision of its configuration at a time.

    document -> Configuration -> kept on disk -> Revision, in use from the next call on; `calls` has what becomes of each
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

from lbcore.balancer import TICK_INTERVAL
from lbcore.errors import ConfigError
from lbcore.http._limits import Limits as CallLimits
from lbcore.http.budget import RetryBudget
from lbcore.http.forward import Forwarder, Limits, Timeouts
from lbcore.http.gateway.backends import Backends
from lbcore.http.gateway.calls import Calls, refusal
from lbcore.http.gateway.configuration import Configuration
from lbcore.http.gateway.kept import Kept
from lbcore.http.gateway.revision import Revision, StaleRevisionError, head_lines
from lbcore.http.gateway.units import Units
from lbcore.http.policies import Deployment, KeySets, Site
from lbcore.http.serving import Server
from lbcore.region import canonical

__all__ = ["Gateway"]

logger = logging.getLogger(__name__)

_NONE = "none"  # the revision, before there is one


class Gateway(Calls, Server):
    """Serve HTTP/1.1 by a configuration of APIs and policies, in one region.

    region: its name; service, gateway: names that policies and the status path tell
    units: how much it takes, None = one unit; keep: folder for the last configurations applied, None = nothing is kept
    regions: the service's; a configuration that names another one is refused. None = any
    retries: further attempts of a call that has no retry policy, >= 0, within `budget`
    limits: counters of rate limits, None = this process's own; keys: JSON Web Key Sets; log: takes records of the policy log
    trusted: networks of proxies in front that are believed about their clients
    explain_to: networks of clients that are told api, operation, backend and URL when they send `X-Lbcore-Explain`
    tls: context for backends with https URLs, None = verified by the system's authorities; connections: options as Upstream
    max_size, timeouts, name: limits, timeouts and name as Forwarder; clock: monotonic seconds
    on_done: called with each call and its Visit (None where the gateway itself answered) at the end

    Every response says `X-Lbcore-Region` and `X-Lbcore-Revision`. Without a configuration, disabled or closing it answers 503.
    What a backend is sent is its URL's path and what follows the API's path and version, unless a policy has rewritten it.
    Use it as `async with Gateway("westeurope") as gateway: gateway.apply(document); await gateway.listen("127.0.0.1", 8081)`.
    Not synchronised between regions: rate limits, health of backends, units. Every region's gateway has its own.
    """

    PORT = 8081

    def __init__(
        self, region: str, *, service: str = "lbcore", gateway: str = "", units: Units | None = None,
        keep: str | os.PathLike[str] | None = None, regions: Sequence[str] = (), retries: int = 1, budget: RetryBudget | None = None,
        limits: CallLimits | None = None, keys: KeySets | None = None, log: Callable[[Mapping[str, object]], None] | None = None,
        trusted: Sequence[str] = (), explain_to: Sequence[str] = (), tls: ssl.SSLContext | None = None,
        connections: Mapping[str, Any] | None = None, max_size: Limits | None = None, timeouts: Timeouts | None = None,
        name: str | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.region = canonical(region)
        super().__init__(
            units or Units(clock=clock), Deployment(self.region, gateway or self.region, service), retries=retries,
            budget=budget or RetryBudget(clock), explain_to=explain_to, lines=head_lines(self.region, _NONE), clock=clock,
        )  # fmt: skip
        self._keys = keys or KeySets()
        told: dict[str, Any] = {"log": log} if log else {}
        self._site = Site(
            self.region, self.deployment.gateway, service, limits=limits or CallLimits(), keys=self._keys, clock=clock, **told
        )
        self._backends = Backends(self.region, clock, tls, connections)
        self._kept, self._regions = Kept(keep) if keep is not None else None, tuple(regions)
        self._options: dict[str, Any] = {
            "trusted": trusted, "limits": max_size, "timeouts": timeouts, "name": name or f"lbcore-{self.region}", "clock": clock
        }  # fmt: skip
        self._old: set[Revision] = set()  # that calls still hold
        self._updating = asyncio.Lock()
        self._disabled = self._draining = False
        self._set_shut()
        if self._kept is not None:
            self._restore(self._kept)

    def _restore(self, kept: Kept) -> None:
        """Serve the newest configuration that was kept and can be used."""
        for configuration in kept.read():
            try:
                self._use(configuration)
            except ConfigError as error:  # say, a policy that is not installed any more
                logger.error("revision %s, which was kept, cannot be used: %s", configuration.revision, error)
            else:
                logger.info("%s serves revision %s, which was kept", self.region, configuration.revision)
                return

    # ---- run

    async def __aenter__(self) -> Self:
        self._engine = Forwarder(self, **self._options)
        self._engine.heads.lines = self.lines
        self._backends.attach(self._engine)
        self._engine.keep(asyncio.get_running_loop().create_task(self._ticking()))
        self._draining = False
        self._set_shut()
        return self

    async def close(self, grace: float = 0.0) -> None:
        """Accept nobody new, wait `grace` seconds for calls under way, close."""
        self.drain()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close(grace)
            await self._keys.close()
            self._backends.detach()
            self._counters += engine.counters

    # ---- configuration

    @property
    def revision(self) -> Revision | None:
        """Give the revision in use, None before the first."""
        return self._revision

    def apply(self, document: object) -> Revision:
        """Serve by a configuration, or a document of one, from the next call on; calls under way end by the one they began with.

        Raises ConfigError with every violation, StaleRevisionError for an older one or another of the same number, OSError when it
        cannot be kept; the old one keeps serving then. The same again changes nothing. Reading a large document and keeping one
        takes time in which nobody is served: see `update`.
        """
        configuration = self._read(document)
        if self._is_news(configuration):
            if self._kept is not None:
                self._check(configuration)
                self._kept.write(configuration)
            self._use(configuration)
        return cast(Revision, self._revision)

    async def update(self, document: object) -> Revision:
        """Do as `apply`, and read and keep it in another thread meanwhile."""
        async with self._updating:
            configuration = await asyncio.to_thread(self._read, document)
            if self._is_news(configuration):
                if self._kept is not None:
                    self._check(configuration)
                    await asyncio.to_thread(self._kept.write, configuration)
                if self._is_news(configuration):  # `apply` may have been called meanwhile
                    self._use(configuration)
            return cast(Revision, self._revision)

    def _read(self, document: object) -> Configuration:
        return document if isinstance(document, Configuration) else Configuration.from_mapping(document, regions=self._regions)

    def _is_news(self, configuration: Configuration) -> bool:
        if self._revision is None:
            return True
        current = self._revision.configuration
        offered, used = (configuration.epoch, configuration.sequence), (current.epoch, current.sequence)
        if offered < used or offered == used and configuration.sha256 != current.sha256:
            raise StaleRevisionError(configuration, current)
        return offered > used

    def _check(self, configuration: Configuration) -> None:
        """Raise ConfigError for what could be read and cannot be used here: it must not be kept."""
        self._backends.release(Revision(configuration, self._site, self._backends).backends.values())

    def _use(self, configuration: Configuration) -> None:
        revision = Revision(configuration, self._site, self._backends)
        old, self._revision = self._revision, revision
        self.lines = revision.lines
        if self._engine is not None:
            self._engine.heads.lines = self.lines
        self._counters["revisions"] += 1
        self._set_shut()
        if old is not None:
            self._old.add(old)
            self._let_go(old)

    def _let_go(self, revision: Revision) -> None:
        """Let go of a revision that is not in use any more, once no call holds it."""
        if not revision.calls and revision in self._old:
            self._old.discard(revision)
            self._backends.release(revision.backends.values())

    # ---- whether it serves

    def disable(self) -> None:
        """Answer 503 from now on (R38); configurations are still applied."""
        self._disabled = True
        self._set_shut()

    def enable(self) -> None:
        """Serve again."""
        self._disabled = False
        self._set_shut()

    def drain(self) -> None:
        """Tell whoever asks the status path to send nobody new; calls that come are served still."""
        self._draining = True

    def _set_shut(self) -> None:
        if self._disabled:
            self.shut = refusal(b"disabled", b"30", (b"X-Lbcore-Gateway", b"disabled"))
        elif self._revision is None:
            self.shut = refusal(b"not ready: no configuration", b"1")
        else:
            self.shut = None

    def status(self, deep: bool = False) -> tuple[int, dict[str, Any]]:
        """Give status code and content of the status path's answer.

        deep: 503 also when a backend that an API uses here is down, which the shallow form says nothing of.
        """
        said = "disabled" if self._disabled else "not ready" if self._revision is None else "draining" if self._draining else "serving"
        load = self.units.load
        content: dict[str, Any] = {
            "status": said, "region": self.region, "gateway": self.deployment.gateway, "service": self.deployment.service,
            "revision": self._revision.name if self._revision else None, "units": self.units.count,
            "capacity": {"average": round(load.average, 1), "maximum": round(load.most, 1)}, "scale_advice": self.units.scale_advice,
        }  # fmt: skip
        healthy = said == "serving"
        if deep and self._revision is not None:
            health = {name: backend.up for name, backend in self._revision.backends.items()}
            content["backends"] = {name: "up" if up else "down" for name, up in health.items()}
            healthy = healthy and all(health.get(name, False) for name in self._revision.used)
        return 200 if healthy else 503, content

    # ---- time

    async def _ticking(self) -> None:
        while True:
            await asyncio.sleep(TICK_INTERVAL)
            try:
                self.tick()
            except Exception:
                logger.exception("tick failed; the next one tries again")

    def tick(self) -> None:
        """Look at the load, and let the backends' Balancers do what is due. Called every 100 ms."""
        self.deposit()
        self.units.tick(self._clock())
        self._backends.tick()
