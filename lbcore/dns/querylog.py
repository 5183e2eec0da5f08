"""A sampled log of answers: one JSON object a line, written by a thread of its own, so that a slow disk delays no answer.

    time       when it was logged, UTC, RFC 3339 with milliseconds
    client     the network that asked: /24 or /48, never the address
    transport  "udp" or "tcp"
    id, name, type, class   of the question, the name as it was asked, without the last dot
    rcode      NOERROR, NXDOMAIN, ...; aa, tc: the flags of the answer
    answer     its records' data as zone files write it, at most eight; size: its bytes
    ecs        {"network": the client subnet, at most /24 or /48 of it, "scope": bits} when the query had one, else null

Fields are added, never renamed. Nobody rotates here: logrotate moves the file away and sends HUP, `reopen` does the rest.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype

__all__ = ["QueryLog", "entry"]

logger = logging.getLogger(__name__)

WAITING = 10_000  # answers between those who answer and the thread that writes; more are dropped and counted
MOST_RECORDS = 8
LAST_WORDS = 5.0  # seconds for writing what is left when it closes


class QueryLog:
    """Write one of `sample` answers to a file; a context manager that closes with everything written.

    sample: 1 = every answer. `offer` counts and samples, `take` writes what somebody else sampled (the compiled loop).
    `written` and `dropped` count lines. Raises OSError when the file cannot be opened, ValueError for a sample below 1.
    """

    def __init__(self, path: Path, sample: int = 1, *, wall: Callable[[], datetime.datetime] | None = None) -> None:
        if sample < 1:
            raise ValueError(f"sample must be at least 1, got {sample}")
        self.sample, self.written, self.dropped = sample, 0, 0
        self._path, self._wall = path, wall or (lambda: datetime.datetime.now(datetime.UTC))
        self._left = sample
        self._queue: queue.Queue[tuple[bytes, str, str] | None] = queue.Queue(WAITING)
        self._moved = self._ending = self._failing = False
        self._file = _open(path)
        self._thread = threading.Thread(target=self._run, name="lbcore-querylog", daemon=True)
        self._thread.start()

    def __enter__(self) -> QueryLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._wake()
        self._thread.join(LAST_WORDS)
        if not self._thread.is_alive():
            _close(self._file)

    def offer(self, answer: bytes, client: str, transport: str) -> None:
        """Take every `sample`-th answer; for one thread."""
        self._left -= 1
        if self._left <= 0:
            self._left = self.sample
            self.take(answer, client, transport)

    def take(self, answer: bytes, client: str, transport: str) -> None:
        """Hand one answer to the writer; never waits."""
        try:
            self._queue.put_nowait((answer, client, transport))
        except queue.Full:
            self.dropped += 1

    def reopen(self) -> None:
        """Open the file anew before the next line, after it was moved away. The old stays in use if that fails."""
        self._moved = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(queue.Full):  # then it is awake
            self._queue.put_nowait(None)

    def _run(self) -> None:
        while True:
            work = self._queue.get()
            try:
                if self._moved:
                    self._reopen()
                if work is not None:
                    self._write(*work)
                    self._failing = False
            except Exception as error:  # a full disk; whatever it is, the next line gets its chance
                self.dropped += work is not None
                if not self._failing:
                    logger.error("query log %s: %s", self._path, error)
                self._failing = True
            if self._ending and self._queue.empty():
                return

    def _reopen(self) -> None:
        self._moved = False
        old, self._file = self._file, _open(self._path)
        _close(old)

    def _write(self, answer: bytes, client: str, transport: str) -> None:
        self._file.write(json.dumps({"time": _stamp(self._wall())} | entry(answer, client, transport)) + "\n")
        if self._queue.empty():
            self._file.flush()
        self.written += 1


def _open(path: Path) -> TextIO:
    return path.open("a", encoding="utf-8")


def _close(file: TextIO) -> None:
    with contextlib.suppress(OSError):  # a full disk does not take the last lines; the file is closed all the same
        file.close()


def _stamp(now: datetime.datetime) -> str:
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def entry(answer: bytes, client: str, transport: str) -> dict[str, Any]:
    """Give what is logged of an answer, but for the time; DNSException for bytes that are none (dnspython's)."""
    message = dns.message.from_wire(answer, ignore_trailing=True)
    question = message.question[0] if message.question else None
    records = [rdata.to_text() for rrset in message.answer for rdata in rrset]
    return {
        "client": _network(client), "transport": transport, "id": message.id,
        "name": question.name.to_text(omit_final_dot=True) if question is not None else None,
        "type": dns.rdatatype.to_text(question.rdtype) if question is not None else None,
        "class": dns.rdataclass.to_text(question.rdclass) if question is not None else None,
        "rcode": dns.rcode.to_text(message.rcode()),
        "aa": bool(message.flags & dns.flags.AA), "tc": bool(message.flags & dns.flags.TC),
        "answer": records[:MOST_RECORDS], "size": len(answer), "ecs": _subnet(message),
    }  # fmt: skip


def _subnet(message: dns.message.Message) -> dict[str, Any] | None:
    for option in message.options:
        if isinstance(option, dns.edns.ECSOption):
            return {"network": _network(option.address, option.srclen), "scope": option.scopelen}
    return None


def _network(address: str, bits: int = 128) -> str:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    parsed = mapped or parsed
    return str(ipaddress.ip_network((parsed, min(bits, 24 if parsed.version == 4 else 48)), strict=False))
