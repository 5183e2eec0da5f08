"""Restart without loss: a new process takes the open sockets of the running one and what it has learned.

    new                                   running
    connects to the control socket   ->
                                     <-   sockets (SCM_RIGHTS), learned latencies, regions that are down
    serves on them, beside the other
    "finish"                         ->   reads no more, answers what it had taken
                                     <-   "stopped"
    closes what it does not need          ends its TCP connections and itself

At no moment does nobody read: what comes waits in sockets that both have. If the new process ends before "finish", the running one
goes on as if nothing had been; if the running one ends at any moment, the new one goes on with the sockets it has.
One packet of a SOCK_SEQPACKET connection is one message, JSON. Only the same user, or root, is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lbcore.errors import LbcoreError

__all__ = ["Control", "HandoverError", "Offer", "Predecessor", "take_over"]

logger = logging.getLogger(__name__)

VERSION = 1
LARGEST = 1 << 16
DESCRIPTORS = 200  # a message; the kernel takes 253
PATIENCE = 10.0  # seconds for an answer of the other process
PREPARING = 120.0  # seconds from the sockets to "finish"


class HandoverError(LbcoreError):
    """The running process and this one could not agree; nothing has changed."""


@dataclass(slots=True)
class Offer:
    """What a process hands over.

    dns: UDP sockets and listening TCP sockets; metrics: the listening socket of the metrics, None without
    state: the bytes of `Balancer.save`
    down: regions that are down, and why
    secrets: of DNS cookies, hexadecimal; the current one first
    """

    dns: list[socket.socket] = field(default_factory=list)
    metrics: socket.socket | None = None
    state: bytes = b""
    down: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[str] = field(default=(), repr=False)


class Control:
    """Let another process take over while the `async with` block runs.

    path: of the socket, mode 0600; whatever is there is replaced. busy: another process has the sockets as well
    offer: gives what to hand over; finish: returns when nothing is read any more and all that was taken is answered
    Raises OSError when the path cannot be bound.
    """

    def __init__(self, path: Path, offer: Callable[[], Awaitable[Offer]], finish: Callable[[], Awaitable[None]]) -> None:
        self._path, self._offer, self._finish = path, offer, finish
        self._listening: socket.socket | None = None
        self._inode = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.busy = False

    async def __aenter__(self) -> Self:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            fresh.unlink(missing_ok=True)
            made.bind(str(fresh))
            fresh.chmod(0o600)  # before anybody can connect
            made.listen(4)
            made.setblocking(False)
            self._inode = fresh.stat().st_ino
            fresh.replace(self._path)
        except OSError as error:
            made.close()
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror or str(error), str(self._path)) from error
        self._listening = made
        asyncio.get_running_loop().add_reader(made, self._accept)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._listening is not None
        asyncio.get_running_loop().remove_reader(self._listening)
        self._listening.close()
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:  # else it is the new process's
                self._path.unlink()
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self) -> None:
        assert self._listening is not None
        try:
            peer, _ = self._listening.accept()
        except OSError:
            return
        peer.setblocking(False)
        task = asyncio.create_task(self._talk(peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, peer: socket.socket) -> None:
        with peer:
            try:
                await self._hand_over(peer)
            except (OSError, ValueError, TimeoutError, EOFError) as error:
                logger.warning("take-over given up, this process goes on: %s", str(error) or type(error).__name__)

    async def _hand_over(self, peer: socket.socket) -> None:
        try:
            asked, _ = await _receive(peer, PATIENCE)
        except EOFError:
            return  # it only looked whether somebody serves here
        refusal = self._refusal(peer, asked)
        if refusal:
            peer.send(_message(do="refuse", why=refusal))
            return
        self.busy = True
        try:
            for message, descriptors in _messages(await self._offer()):
                socket.send_fds(peer, [message], descriptors)
            await _receive(peer, PREPARING, "finish")
            await self._finish()
            peer.send(_message(do="stopped"))
        finally:
            self.busy = False

    def _refusal(self, peer: socket.socket, asked: Mapping[str, Any]) -> str:
        if _user(peer) not in (os.getuid(), 0):
            return "it runs as another user"
        if asked.get("do") != "take over" or asked.get("version") != VERSION:
            return f"it speaks version {VERSION} of the protocol"
        return "somebody else is taking over" if self.busy else ""


def _messages(offer: Offer) -> Iterator[tuple[bytes, list[int]]]:
    """Give messages with descriptors: the state (a file, since it may be large), then the sockets, then the last."""
    with tempfile.TemporaryFile() as file:
        file.write(offer.state)
        file.flush()
        yield _message(do="offer", version=VERSION, pid=os.getpid(), down=dict(offer.down), secrets=[*offer.secrets]), [file.fileno()]
    sockets = [("dns", each.fileno()) for each in offer.dns]
    if offer.metrics is not None:
        sockets.append(("metrics", offer.metrics.fileno()))
    for at in range(0, len(sockets), DESCRIPTORS):
        part = sockets[at : at + DESCRIPTORS]
        yield _message(do="sockets", uses=[use for use, _ in part]), [descriptor for _, descriptor in part]
    yield _message(do="go"), []


class Predecessor:
    """The process that this one takes over from: what it offered, and the connection to it."""

    def __init__(self, peer: socket.socket, pid: int, offer: Offer) -> None:
        self.pid, self.offer = pid, offer
        self._peer = peer

    async def finish(self) -> None:
        """Tell it to finish, once this process serves; returns when it has stopped reading, or is gone."""
        try:
            self._peer.send(_message(do="finish"))
            await _receive(self._peer, PATIENCE, "stopped")
        except TimeoutError:
            logger.error("process %d did not say within %g s that it stopped; both answer now", self.pid, PATIENCE)
        except (OSError, EOFError, ValueError):
            logger.warning("process %d is gone before it was told to finish; this one goes on", self.pid)
        finally:
            self._peer.close()

    def close(self) -> None:
        """Give everything back: the other process goes on alone."""
        self._peer.close()
        for each in (*self.offer.dns, *([self.offer.metrics] if self.offer.metrics else [])):
            each.close()


async def take_over(path: Path) -> Predecessor | None:
    """Ask the process behind a control socket for what it has; None when there is none, or it ended meanwhile.

    Raises HandoverError when it refuses, OSError when the path cannot be used.
    """
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    offer = Offer()
    try:
        peer.connect(str(path))
        peer.setblocking(False)
        peer.send(_message(do="take over", version=VERSION))
        pid = await _take(peer, offer)
    except (FileNotFoundError, ConnectionError, EOFError):
        Predecessor(peer, 0, offer).close()
        return None
    except BaseException as error:
        Predecessor(peer, 0, offer).close()
        if isinstance(error, (TimeoutError, ValueError, LookupError, TypeError)):
            raise HandoverError(f"{path}: the running process does not answer as one should ({error or 'timeout'})") from None
        raise
    return Predecessor(peer, pid, offer)


async def _take(peer: socket.socket, offer: Offer) -> int:
    """Fill an offer with what comes, and give the sender's process id."""
    pid = 0
    while True:
        message, descriptors = await _receive(peer, PATIENCE, "offer", "sockets", "go", "refuse", most=DESCRIPTORS)
        try:
            match message["do"]:
                case "refuse":
                    raise HandoverError(f"the running process refuses to be taken over: {message['why']}")
                case "offer":
                    pid, offer.down, offer.secrets = int(message["pid"]), dict(message["down"]), list(message["secrets"])
                    offer.state = _content(descriptors[0])
                case "sockets":
                    _keep(offer, message["uses"], descriptors)
                case _:
                    return pid
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _content(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def _keep(offer: Offer, uses: Sequence[str], descriptors: list[int]) -> None:
    """Make sockets of descriptors, and take those off the list."""
    for use in uses:
        made = socket.socket(fileno=descriptors[0])
        del descriptors[0]
        if use == "dns":
            offer.dns.append(made)
        else:
            offer.metrics = made


def _message(**fields: object) -> bytes:
    return json.dumps(fields).encode()


async def _receive(peer: socket.socket, patience: float, *expected: str, most: int = 0) -> tuple[dict[str, Any], list[int]]:
    """Give the next message and its descriptors, at most so many; EOFError at the end, ValueError for one that is not expected."""
    async with asyncio.timeout(patience):
        await _readable(peer)
    content, descriptors, _, _ = socket.recv_fds(peer, LARGEST, most)
    try:
        if not content:
            raise EOFError("the other process is gone")
        message = json.loads(content)
        if not isinstance(message, dict) or (expected and message.get("do") not in expected):
            raise ValueError(f"unexpected message of {len(content)} bytes")  # it may hold secrets
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return message, descriptors


async def _readable(peer: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(peer, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(peer)


def _user(peer: socket.socket) -> int:
    """Give the user of the process at the other end; ours where the system does not tell: the socket's mode keeps others out."""
    if not hasattr(socket, "SO_PEERCRED"):
        return os.getuid()
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
