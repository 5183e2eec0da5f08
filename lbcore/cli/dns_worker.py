"""DnsWorker: the DNS of `lbcore run`, in a process of its own on the table that the supervisor judges.

As that process judges nothing, it cannot tell how long probes will not change a region: answers live for `ttl`, never for less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from lbcore.balancer import Balancer
from lbcore.cli.cookies import Secrets
from lbcore.config import Settings
from lbcore.dns import Responder
from lbcore.dns._rrl import RateLimiter
from lbcore.dns.configured import zones_of
from lbcore.dns.metrics import DnsCollector
from lbcore.dns.querylog import QueryLog
from lbcore.dns.server import Server
from lbcore.listener import Listener
from lbcore.metrics import text_of

__all__ = ["DnsWorker"]


class DnsWorker:
    """Serve DNS on the supervisor's behalf; errors of zones as `zones_of`, OSError for a query log that cannot be opened."""

    def __init__(self, settings: Settings, lb: Balancer) -> None:
        section = self._section = settings.document.dns
        self._settings = settings
        self._secrets = Secrets(settings.cookie_secret) if section.cookies else None
        limit = RateLimiter(**section.rate_limit.model_dump()) if section.rate_limit.rate else None
        self._responder = Responder(
            lb, zones_of(settings), nsid=section.nsid.encode(), version=section.version, rrl=limit,
            cookies=self._secrets.cookies if self._secrets else None,
        )  # fmt: skip
        self._log = QueryLog(settings.folder / section.query_log, section.query_log_sample) if section.query_log else None
        self._server: Server | None = None
        self._renewing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Be ready."""
        if self._secrets:
            self._renewing = asyncio.create_task(self._secrets.renew())

    async def accept(self, places: Sequence[int], given: Mapping[int, Listener]) -> None:
        """Serve on these sockets, all of them at once; on none: leave them to another process, which reads them already."""
        if not places and self._server is not None:
            self._server.handed_over = True
            await self._server.stop_reading()
        elif self._server is None and given:
            sockets = [listener.socket for listener in given.values()]
            listen = [*dict.fromkeys(each.getsockname()[:2] for each in sockets)]
            server = Server(self._responder, listen=listen, threads=self._section.threads, inherited=sockets, log=self._log)
            self._server = await server.__aenter__()

    async def document(self, text: str, labels: Sequence[str]) -> None:
        """Have none."""
        raise ValueError("DNS has no document")

    async def reload(self) -> None:
        """Read zones and keys again, and open the query log anew."""
        if self._log is not None:
            self._log.reopen()
        zones = await asyncio.to_thread(zones_of, self._settings, self._responder.zones)
        await asyncio.to_thread(self._responder.reload, zones)

    async def metrics(self) -> str:
        """Give them as a page has them."""
        if self._server is None:
            return ""
        return (await asyncio.to_thread(text_of, DnsCollector(self._server, None, log=self._log))).decode()

    async def busy(self) -> dict[str, int]:
        """Give nothing: who was told an address goes there by himself."""
        return {}

    async def finish(self, grace: float, last: bool) -> None:
        """Answer what has come; TCP clients have `grace` seconds."""
        if self._server is not None:
            self._server.grace = grace
            if last:
                self._server.release()  # nobody else has the sockets any more
            else:
                self._server.handed_over = True
            await self._server.__aexit__(None, None, None)
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])
        if self._log is not None:
            await asyncio.to_thread(self._log.__exit__)
