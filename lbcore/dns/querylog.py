"""A sampled log of answers: one JSON object a line, written as `linelog` does.

    time       when it was logged, UTC, RFC 3339 with milliseconds
    client     the network that asked: /24 or /48, never the address
    transport  "udp" or "tcp"
    id, name, type, class   of the question, the name as it was asked, without the last dot
    rcode      NOERROR, NXDOMAIN, ...; aa, tc: the flags of the answer
    answer     its records' data as zone files write it, at most eight; size: its bytes
    ecs        {"network": the client subnet, at most /24 or /48 of it, "scope": bits} when the query had one, else null

Fields are added, never renamed.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype

from lbcore.linelog import LineLog

__all__ = ["QueryLog", "entry"]

MOST_RECORDS = 8


class QueryLog(LineLog[tuple[bytes, str, str]]):
    """Write one of `sample` answers to a file; a context manager that closes with everything written.

    sample: 1 = every answer. `offer` counts and samples, `take` writes what somebody else sampled (the compiled loop).
    `written` and `dropped` count lines. Raises OSError when the file cannot be opened, ValueError for a sample below 1.
    """

    def __init__(self, path: Path, sample: int = 1, *, wall: Callable[[], datetime.datetime] | None = None) -> None:
        if sample < 1:
            raise ValueError(f"sample must be at least 1, got {sample}")
        super().__init__(path, "query log", wall=wall)
        self.sample = self._left = sample

    def offer(self, answer: bytes, client: str, transport: str) -> None:
        """Take every `sample`-th answer; for one thread."""
        self._left -= 1
        if self._left <= 0:
            self._left = self.sample
            self.take(answer, client, transport)

    def take(self, answer: bytes, client: str, transport: str) -> None:
        """Hand one answer to the writer; never waits."""
        self.put((answer, client, transport))

    def describe(self, work: tuple[bytes, str, str], /) -> dict[str, Any]:
        """Give an answer's fields."""
        return entry(*work)


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
