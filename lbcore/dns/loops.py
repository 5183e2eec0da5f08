"""Threads of the compiled loop, and the way back from them: what a loop leaves to the Responder arrives here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from lbcore.dns.responder import Responder

__all__ = ["FRAME", "Loops", "Wire", "compiled"]

logger = logging.getLogger(__name__)

FRAME = struct.Struct("=iIHH16sI")  # descriptor to answer on, kind, family (4, 6), port, address, scope id; the packet follows
ANSWER, SAMPLE = 0, 1
AT_ONCE = 64  # packets that are answered before it is others' turn
BUFFER = 4 << 20  # bytes that may wait for the Responder; what does not fit is dropped and counted
PATIENCE = 5.0  # seconds for threads to end

Take = Callable[[socket.socket, bytes, tuple[str | int, ...], bool], None]


class Wire(Protocol):
    """What the compiled loop must do."""

    def serve(self, udp: int, slow: int, /) -> None:
        """Answer what comes to a socket until `stop`; hand over the rest, FRAME before each packet, to `slow`."""

    def stop(self) -> None:
        """Let every `serve` end after answering what it has taken, and later ones at once."""

    def suspect(self, on: bool, /) -> None:
        """Say whether answers tell that health is frozen."""

    def counters(self) -> Mapping[str, Any]:
        """Give what all loops counted since the start."""


def compiled(responder: Responder, sample: int, ends: contextlib.ExitStack) -> Wire | None:
    """Give the compiled loop for a Responder, which keeps it up to date until `ends`; None where there is none: it is made for Linux.

    sample: one answer of so many comes back for the query log; 0 = none
    """
    if sys.platform != "linux":
        return None
    from lbcore.dns._wire import Wire as Compiled

    wire = Compiled(cookies=responder.cookies, rrl=responder.rrl, nsid=responder.nsid, sample=sample)
    ends.callback(responder.on_prepared(wire.publish))
    return wire


class Loops:
    """One thread of the compiled loop for each UDP socket.

    take: called in the event loop with (socket, packet, source, whether it is an answer to log) for what a loop hands over
    lost: called in the event loop with the socket of a thread that ended by an error
    """

    def __init__(self, wire: Wire, take: Take, lost: Callable[[socket.socket], None]) -> None:
        self._wire, self._take, self._lost = wire, take, lost
        self.counters, self.suspect = wire.counters, wire.suspect
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        # Packets, in order, and an end that is seen. Several threads write to one end.
        self._here, self._there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def start(self, sockets: Sequence[socket.socket]) -> None:
        """Serve these."""
        for end in (self._here, self._there):
            end.setblocking(False)
            for option in (socket.SO_SNDBUF, 32):  # SO_SNDBUFFORCE, root's
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        self._sockets = {each.fileno(): each for each in sockets}
        self._loop.add_reader(self._here, self._read)
        for number, each in enumerate(sockets):
            self._threads.append(threading.Thread(target=self._serve, args=(each,), name=f"lbcore-dns-{number}", daemon=True))
            self._threads[-1].start()

    async def stop(self) -> None:
        """End the threads, then hand over what they left; again does nothing."""
        if not self._threads:
            return
        end = self._loop.time() + PATIENCE
        self._wire.stop()
        while any(thread.is_alive() for thread in self._threads) and self._loop.time() < end:
            await asyncio.sleep(0.002)  # the event loop goes on answering meanwhile
        self._loop.remove_reader(self._here)
        while self._read():
            pass
        threads, self._threads = self._threads, []
        if any(thread.is_alive() for thread in threads):
            logger.error("a thread of the DNS loop did not end within %g s", PATIENCE)
            return  # it may still write: its descriptor must not become somebody else's
        self._here.close()
        self._there.close()

    def _serve(self, udp: socket.socket) -> None:
        try:
            self._wire.serve(udp.fileno(), self._there.fileno())
        except Exception:
            logger.exception("the compiled DNS loop ended by an error; the event loop goes on with its socket")
            with contextlib.suppress(RuntimeError):  # the event loop is gone
                self._loop.call_soon_threadsafe(self._lost, udp)

    def _read(self) -> int:
        """Hand over some packets; gives how many there were."""
        for taken in range(AT_ONCE):
            try:
                frame = self._here.recv(FRAME.size + 65_535)
            except (BlockingIOError, InterruptedError):
                return taken
            descriptor, kind, family, port, address, scope = FRAME.unpack_from(frame)
            udp = self._sockets.get(descriptor)
            if udp is not None and kind in (ANSWER, SAMPLE):
                self._take(udp, frame[FRAME.size :], _source(family, address, port, scope), kind == SAMPLE)
        return AT_ONCE


def _source(family: int, address: bytes, port: int, scope: int) -> tuple[str | int, ...]:
    if family == 4:
        return socket.inet_ntop(socket.AF_INET, address[:4]), port
    return socket.inet_ntop(socket.AF_INET6, address), port, 0, scope
