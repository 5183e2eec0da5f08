"""ManagementWorker: the management plane of `lbcore run`, in a process of its own that has the store. One at a time: the store's lease."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn

from lbcore.cli.patience import Patient
from lbcore.config import Settings
from lbcore.config.following import OWN_TOKEN
from lbcore.config.management import plane_url
from lbcore.errors import ServiceError
from lbcore.listener import Listener
from lbcore.service.api import application, secondary
from lbcore.service.api.audit import Audit, AuditLog
from lbcore.service.api.guard import loopback_name
from lbcore.service.founding import NodeTokens, plane_of, store_path
from lbcore.service.plane import Plane
from lbcore.service.portal.routes import mount
from lbcore.service.standby import Standby
from lbcore.service.store import Store

__all__ = ["ManagementWorker"]

logger = logging.getLogger(__name__)

PATIENCE = 2.0  # seconds for answers under way at the end: those that wait for changes would wait for ever
LEASE = 10.0  # seconds for the process before this one to let go of the store
PAUSE = 0.1
MOST = 1000  # connections, and requests under way; the next is answered 503
MOMENT = 0.2  # seconds for answers that are being read
ASK = 3.0  # seconds between two questions whether the primary answers, and for an answer


class _Server(uvicorn.Server):
    """A server whose end is the supervisor's to say."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class Closing:
    """An application that can be ended while requests wait for changes: they are answered 503, streams end.

    Source: ASGI 3.0; RFC 9110 §15.6.4.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._under_way: dict[asyncio.Task[Any], bool] = {}  # whether it only reads
        self._closing = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        self._under_way[task] = scope["method"] in ("GET", "HEAD")
        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            if not self._closing:
                raise
            task.uncancel()
            await _cut(send, begun)
        finally:
            del self._under_way[task]

    async def close(self) -> None:
        """Give reads a moment and writes `PATIENCE` seconds, then end them."""
        self._closing = True
        for patience, all_of_them in ((MOMENT, False), (PATIENCE, True)):
            if self._under_way:
                await asyncio.wait({*self._under_way}, timeout=patience if self._waits(all_of_them) else 0.0)
            for task, reads in [*self._under_way.items()]:
                if reads or all_of_them:
                    task.cancel()

    def _waits(self, all_of_them: bool) -> bool:
        return any(reads != all_of_them for reads in self._under_way.values())


async def _cut(send: Any, begun: bool) -> None:
    """End an answer that has begun, else say that there is none for now."""
    if not begun:
        text = {"code": "ManagementPlaneUnavailable", "message": "the management plane is ending, or about to be back", "target": None}
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": text | {"details": [text]}}).encode()})
    else:
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class ManagementWorker:
    """Serve the management plane on the supervisor's behalf; errors of the store and of the provisioner as they raise them.

    address: where it listens
    """

    def __init__(self, settings: Settings, address: tuple[str, int]) -> None:
        self._settings, self._address = settings, address
        section = settings.document.management
        assert section is not None
        self._section = section
        self._stack = AsyncExitStack()
        self._audit_log: AuditLog | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Be ready: the store is ours, what was interrupted goes on."""
        self._app = Closing(await self._elsewhere() if self._section.primary else await self._here())

    async def _here(self) -> Any:
        async with AsyncExitStack() as stack:
            store = stack.enter_context(await asyncio.to_thread(Store, store_path(self._settings)))
            await asyncio.to_thread(self._give_token, store)
            await self._stand_by(store, stack)
            plane = plane_of(self._settings, store, plane_url(self._section, self._address))
            await _entered(stack, plane)
            app = application(plane, **self._allowed(), audit=self._audit(stack))
            mount(app, plane, app.state.verifier, secure=bool(self._section.certificate))
            self._stack = stack.pop_all()
        return app

    def _allowed(self) -> dict[str, Any]:
        """Give whom the API's guard lets in by their Host header: behind a certificate it has been checked already."""
        section = self._section
        return {"allowed": None if section.certificate else partial(_is_ours, urlsplit(section.url).hostname)}

    async def _elsewhere(self) -> Any:
        ca = self._settings.following.ca if self._settings.following else None
        asking = _Asking(self._section.primary, ca)
        task = asyncio.create_task(asking.run())
        self._stack.push_async_callback(_cancelled, task)
        return secondary(self._section.primary, lambda: asking.reached, **self._allowed(), audit=self._audit(self._stack))

    def _audit(self, stack: AsyncExitStack) -> Audit:
        """Give where writes and refusals are written down."""
        if not self._section.audit_log:
            return lambda line: None
        self._audit_log = stack.enter_context(AuditLog(self._settings.folder / self._section.audit_log, "audit log"))
        return self._audit_log.put

    def _give_token(self, store: Store) -> None:
        """Let the front door and the DNS of this very file follow, unless they were given a token."""
        following, sync = self._settings.following, self._settings.document.sync
        if following is not None and not (sync and (sync.token or sync.primary)):
            NodeTokens(store, store_path(self._settings).parent).file(OWN_TOKEN.removesuffix(".token"), bound=following.name)

    async def _stand_by(self, store: Store, stack: AsyncExitStack) -> None:
        """Ask whether another primary has taken over, before anything is done, and go on asking."""
        section, folder = self._section, self._settings.folder
        if not section.standby:
            return
        tls = ssl.create_default_context(cafile=str(folder / section.standby_ca)) if section.standby_ca else None
        token = folder / section.standby_token if section.standby_token else None
        watch = Standby(store, self._settings.document.service.name, section.standby, token=token, tls=tls)
        await watch.look()
        task = asyncio.create_task(watch.run())
        stack.push_async_callback(_cancelled, task)

    async def accept(self, places: Sequence[int], given: Mapping[int, Listener]) -> None:
        """Serve on these sockets."""
        if self._server is not None or not given:
            return
        folder, section = self._settings.folder, self._section
        files: dict[str, Any] = {}
        if section.certificate:
            files = {"ssl_certfile": str(folder / section.certificate), "ssl_keyfile": str(folder / section.key)}
        config = uvicorn.Config(
            self._app, log_config=None, access_log=False, lifespan="on", server_header=False, timeout_graceful_shutdown=int(PATIENCE) + 1,
            timeout_keep_alive=int(Patient.KEPT), proxy_headers=False, ws="none", http=Patient,  # whose heads have at most 64 KiB
            limit_concurrency=MOST, **files,
        )  # fmt: skip
        config.load()
        self._server = _Server(config)
        for listener in given.values():  # accepted ones inherit it; asyncio itself sets it only where a socket says that it is TCP
            listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._serving = asyncio.create_task(self._server.serve([listener.socket for listener in given.values()]))
        while not self._server.started:
            if self._serving.done():
                raise OSError("the server of the management plane has ended as it began; the log says why")
            await asyncio.sleep(0.01)

    async def document(self, text: str, labels: Sequence[str]) -> None:
        """Have none."""
        raise ValueError("the management plane has no document of its own")

    async def reload(self) -> None:
        """Take the certificate as it is now, and open the audit log anew."""
        if self._audit_log is not None:
            self._audit_log.reopen()
        if self._server is not None and self._section.certificate:
            folder, section = self._settings.folder, self._section
            context = self._server.config.ssl
            assert context is not None
            await asyncio.to_thread(context.load_cert_chain, folder / section.certificate, folder / section.key)

    async def metrics(self) -> str:
        """Give them: GET /metrics of the management plane has its own."""
        return ""

    async def busy(self) -> dict[str, int]:
        """Have nothing under way in regions."""
        return {}

    async def finish(self, grace: float, last: bool) -> None:
        """Answer what is under way, for two seconds at most, and let go of the store: an operation goes on at the next start."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._app.close()
            done, _ = await asyncio.wait({self._serving}, timeout=PATIENCE + 2.0)
            if not done:
                self._server.force_exit = True
                self._serving.cancel()
                await asyncio.wait({self._serving}, timeout=1.0)
        await self._stack.aclose()


def _is_ours(name: str | None, host: str) -> bool:
    """Say whether a Host header names this machine, or what the file says that others call it."""
    try:
        return loopback_name(host) or (name is not None and urlsplit(f"//{host}").hostname == name)
    except ValueError:  # half of an IPv6 address, say
        return False


class _Asking:
    """Knows whether the primary answers. ca: file of its authority, None = the system's"""

    def __init__(self, primary: str, ca: Path | None) -> None:
        self._url, self._ca, self.reached = f"{primary}/healthz", ca, True

    async def run(self) -> None:
        """Ask every few seconds until cancelled."""
        tls = await asyncio.to_thread(ssl.create_default_context, cafile=str(self._ca)) if self._ca else self._url.startswith("https:")
        async with httpx.AsyncClient(verify=tls, timeout=ASK, trust_env=False) as client:
            while True:
                try:
                    self.reached = (await client.head(self._url)).status_code < 500
                except (httpx.HTTPError, OSError):
                    self.reached = False
                await asyncio.sleep(ASK)


async def _entered(stack: AsyncExitStack, plane: Plane) -> None:
    """Enter a plane; the process before this one may take a moment to let go of the store."""
    deadline = asyncio.get_running_loop().time() + LEASE
    while True:
        try:
            await stack.enter_async_context(plane)
        except ServiceError as error:
            if error.code != "StoreLocked" or asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(PAUSE)
        else:
            return


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
