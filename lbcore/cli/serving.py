"""One running `dns serve`: started, taken over, reloaded and ended, with its probes, metrics and query log.

SIGHUP reloads, SIGUSR2 starts this command anew to take over, SIGTERM and SIGINT end it gracefully. systemd is told how things
stand where it asks for that (NOTIFY_SOCKET).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from lbcore.balancer import Balancer, Change
from lbcore.cli.common import Failure
from lbcore.cli.cookies import Secrets
from lbcore.cli.systemd import notify, raise_limit
from lbcore.config import Settings, load, split_listen
from lbcore.dns import Responder
from lbcore.dns._rrl import RateLimiter
from lbcore.dns.configured import zones_of
from lbcore.dns.handover import Control, HandoverError, Offer, Predecessor, take_over
from lbcore.dns.metrics import DnsCollector
from lbcore.dns.querylog import QueryLog
from lbcore.dns.server import Server
from lbcore.errors import LbcoreError
from lbcore.learned import Learned
from lbcore.metrics import MetricsPage, Reloads
from lbcore.sense.probe import Prober

__all__ = ["Serving"]

logger = logging.getLogger(__name__)

GRACE = 5.0  # seconds that TCP clients get when this process ends
ONLY_AT_START = (  # of [dns]
    "listen", "threads", "control", "metrics", "query_log", "query_log_sample", "nsid", "version", "cookies",
    "rate_limit",
)  # fmt: skip


class Serving:
    """Serve a configuration until told to end.

    file, settings: the configuration, and what was read from it. lb: made from it
    addresses, threads, database, probe: as the command line has them
    """

    def __init__(
        self, file: Path, settings: Settings, lb: Balancer, addresses: Sequence[tuple[str, int]], *,
        threads: int | None = None, database: Path | None = None, probe: bool = True,
    ) -> None:  # fmt: skip
        self._file, self._settings, self._lb, self._addresses = file, settings, lb, addresses
        self._section = settings.document.dns
        self._threads, self._database = threads or self._section.threads, database
        self._secrets = Secrets(settings.cookie_secret) if self._section.cookies else None
        self._responder = self._make_responder()
        self._prober = Prober(lb, **settings.prober_options()) if probe else None
        self._probing: asyncio.Task[None] | None = None
        self._reloads, self._reload = Reloads(), asyncio.Lock()
        self._reload_waits = False
        self._successor: subprocess.Popen[bytes] | None = None
        self._log: QueryLog | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None

    def _make_responder(self) -> Responder:
        section = self._section
        limit = RateLimiter(**section.rate_limit.model_dump()) if section.rate_limit.rate else None
        return Responder(
            self._lb, zones_of(self._settings), nsid=section.nsid.encode(), version=section.version, rrl=limit,
            cookies=self._secrets.cookies if self._secrets else None,
        )  # fmt: skip

    async def run(self, taking_over: bool = False) -> None:
        """Serve; OSError when an address cannot be bound, HandoverError when the running process does not hand over."""
        self._end = asyncio.Event()
        raise_limit()
        if self._prober:
            await self._prober.first_round()
        predecessor = await self._find_predecessor(taking_over)
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._start(stack, predecessor.offer if predecessor else Offer())
                if predecessor:
                    await predecessor.finish()
                    self._server.release()
                self._tell()
                await self._end.wait()
                notify("STOPPING=1")
                if self._broken:
                    raise self._broken
                self._server.handed_over |= self._control is not None and self._control.busy
        finally:
            if predecessor:
                predecessor.close()

    async def _find_predecessor(self, wanted: bool) -> Predecessor | None:
        control = self._control_path
        if control is None:
            return None
        if wanted:
            predecessor = await take_over(control)
            if predecessor:
                self._inherit(predecessor.offer)
            return predecessor
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe, contextlib.suppress(OSError):
            probe.connect(str(control))
            raise HandoverError(f"{control}: another process serves there; --take-over replaces it")
        return None

    @property
    def _control_path(self) -> Path | None:
        return self._settings.folder / self._section.control if self._section.control else None

    def _inherit(self, offer: Offer) -> None:
        """Take over what the other process has learned."""
        Learned(offer.state, offer.down).give(self._lb)
        if self._secrets and offer.secrets:
            self._secrets.inherit(offer.secrets)

    # ---- start

    async def _start(self, stack: contextlib.AsyncExitStack, offer: Offer) -> None:
        self._lb.on_change(_tell)
        stack.enter_context(self._signals())
        stack.push_async_callback(self._end_tasks)
        if self._section.query_log:
            self._log = stack.enter_context(QueryLog(self._settings.folder / self._section.query_log, self._section.query_log_sample))
        self._server = await stack.enter_async_context(
            Server(
                self._responder, listen=self._addresses, threads=self._threads, grace=GRACE, inherited=offer.dns, log=self._log
            )
        )  # fmt: skip
        self._page = await self._show_metrics(stack, offer.metrics)
        self._control: Control | None = None
        if self._control_path is not None:
            self._control = await stack.enter_async_context(Control(self._control_path, self._offer, self._finish))
        self._probe()
        if self._secrets:
            self._spawn(self._secrets.renew())

    async def _show_metrics(self, stack: contextlib.AsyncExitStack, inherited: socket.socket | None) -> MetricsPage | None:
        """Show metrics; DNS goes on without them where the address is taken."""
        if not self._section.metrics:
            return None
        host, port = split_listen(self._section.metrics)
        if inherited is not None and inherited.getsockname()[:2] != (host, port) and port:
            inherited.close()
            inherited = None
        collector = DnsCollector(self._server, self._lb, reloads=self._reloads, log=self._log)
        try:
            return await stack.enter_async_context(MetricsPage(collector, host, port, listening=inherited))
        except OSError as error:
            logger.error("no metrics at %s: %s", self._section.metrics, error.strerror or error)
            return None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTERM: self._end.set, signal.SIGINT: self._end.set, signal.SIGUSR2: self._start_successor,
            signal.SIGHUP: self.reload_soon,
        }  # fmt: skip
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def _probe(self) -> None:
        if self._prober:
            self._probing = asyncio.create_task(self._prober.run())
            self._probing.add_done_callback(self._probing_ended)

    def _probing_ended(self, task: asyncio.Task[None]) -> None:
        """End with the error of the probes, if there is one: health that nobody watches is worse than none."""
        if not task.cancelled() and (error := task.exception()):
            self._broken = error
            self._end.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        tasks = [*self._tasks, *([self._probing] if self._probing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tell(self) -> None:
        where = ", ".join(f"{host} port {port}" for host, port in self._server.addresses)
        names = ", ".join(str(name) for zone in self._responder.zones for name in zone.steered_names)
        print(f"answering for {names} on {where}, UDP and TCP; Ctrl-C ends it", flush=True)
        if self._page is not None:
            host, port = self._page.socket.getsockname()[:2]
            print(f"metrics at http://{f'[{host}]' if ':' in host else host}:{port}/metrics", flush=True)
        notify(f"READY=1\nMAINPID={os.getpid()}")

    # ---- hand over

    async def _offer(self) -> Offer:
        learned = await asyncio.to_thread(Learned.of, self._lb)
        secrets = self._secrets.pair if self._secrets else ()
        return Offer(self._server.sockets, self._page.socket if self._page else None, learned.state, learned.down, secrets)

    async def _finish(self) -> None:
        self._server.handed_over = True
        await self._server.stop_reading()
        self._end.set()

    def _start_successor(self) -> None:
        """Start this command anew; whether it takes over is seen when it does."""
        if not self._section.control:
            logger.error("SIGUSR2: needs dns.control, the socket at which the new process asks for this one's sockets")
            return
        if self._successor is not None and self._successor.poll() is None:
            logger.warning("SIGUSR2: process %d is about to take over already", self._successor.pid)
            return
        command = [sys.executable, *sys.orig_argv[1:]]
        if "--take-over" not in command:
            command.append("--take-over")
        try:
            self._successor = subprocess.Popen(command)
        except OSError as error:
            logger.error("SIGUSR2: the new process cannot be started: %s", error)
            return
        self._spawn(_watch(self._successor))

    # ---- reload

    def reload_soon(self) -> None:
        """Reload, after the reload that is under way; however often it is asked for until then, once."""
        if not self._reload_waits:
            self._reload_waits = True
            self._spawn(self.reload())

    async def reload(self) -> None:
        """Read configuration, zones, keys and database again; whatever is wrong is logged and changes nothing."""
        async with self._reload:
            self._reload_waits = False
            began = time.monotonic()
            notify(f"RELOADING=1\nMONOTONIC_USEC={int(began * 1e6)}")
            if self._log:
                self._log.reopen()
            try:
                await self._apply(await asyncio.to_thread(load, self._file))
            except Exception as error:
                self._reloads.note(False, time.monotonic() - began)
                for line in str(error).splitlines():
                    logger.error("reload: %s", line)
                unexpected = not isinstance(error, (LbcoreError, Failure, OSError, ValueError))
                logger.error("reload failed; everything stays as it was", exc_info=unexpected)
            else:
                self._reloads.note(True, time.monotonic() - began)
                print(f"reloaded {self._file} in {self._reloads.seconds:.2f} s", flush=True)
            notify("READY=1")

    async def _apply(self, settings: Settings) -> None:
        """Change to other settings; what may fail comes first."""
        zones = await asyncio.to_thread(zones_of, settings, self._responder.zones)
        prober = Prober(self._lb, **settings.prober_options()) if self._prober else None
        if self._secrets:
            self._secrets.configure(settings.cookie_secret)
        before, after = self._settings.document, settings.document
        if self._database is None and before.latency != after.latency:
            await asyncio.to_thread(self._lb.set_locate, settings.balancer_options()["locate"])
        else:
            await asyncio.to_thread(self._lb.reload_locate)
        if settings.regions != self._settings.regions:
            self._lb.set_regions(settings.regions)
        await asyncio.to_thread(self._responder.reload, zones)
        if before.traffic_manager.monitor != after.traffic_manager.monitor:
            await self._replace_prober(prober)
        self._warn_of(settings)
        self._settings = settings

    async def _replace_prober(self, prober: Prober | None) -> None:
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
        self._prober = prober
        self._probe()

    def _warn_of(self, settings: Settings) -> None:
        """Name what has changed in the file and holds only from the next start."""
        before, after = self._settings.document, settings.document
        late = [f"dns.{key}" for key in ONLY_AT_START if getattr(self._section, key) != getattr(after.dns, key)]
        late += ["detector"] * (before.detector != after.detector)
        estimating = ("estimator", "ewma_tau_seconds")
        late += [f"latency.{key}" for key in estimating if getattr(before.latency, key) != getattr(after.latency, key)]
        if late:
            logger.warning("reload: %s: in effect from the next start, say by SIGUSR2", ", ".join(late))


async def _watch(successor: subprocess.Popen[bytes]) -> None:
    """See a successor that ends while this process still serves, which then goes on."""
    while (code := successor.poll()) is None:
        await asyncio.sleep(0.2)
    logger.error("the process that was to take over ended with exit code %d; this one goes on", code)


def _tell(change: Change) -> None:
    print(f"{change.region}: {change.before} -> {change.after} ({change.cause})", flush=True)
