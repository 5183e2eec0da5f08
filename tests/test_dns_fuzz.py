"""Packets of chance and of malice: nothing raises, nothing outgrows its limit, everything is counted once."""

from __future__ import annotations

import random
import struct

import dns.message
import dns.rcode
import pytest
from conftest import Clock
from hypothesis import given
from hypothesis import strategies as st
from resolving import OWNER, PROFILE, balancer, subnet

from lbcore.dns import Responder

RESPONDER = Responder(balancer(Clock()), PROFILE)
OUTCOMES = ("dropped", "noerror", "nodata", "nxdomain", "refused", "formerr", "notimp", "badvers", "notauth", "servfail")
CODES = {"NOERROR", "NXDOMAIN", "REFUSED", "FORMERR", "NOTIMP", "BADVERS", "NOTAUTH"}


def check(packet: bytes, tcp: bool) -> None:
    """Whatever comes in: no answer, or one that dnspython reads, is of the same id and opcode, and fits."""
    before = RESPONDER.counters["queries"]
    answer = RESPONDER.answer(packet, "81.2.2.1", tcp=tcp)
    assert RESPONDER.counters["queries"] == before + 1 == sum(RESPONDER.counters[name] for name in OUTCOMES)
    assert (answer is None) == (len(packet) < 12 or bool(packet[2] & 0x80))
    if answer is None:
        return
    assert len(answer) <= (65_535 if tcp else 1232)
    assert answer[:2] == packet[:2]
    assert (answer[2] & 0xF9) == (packet[2] & 0x79 | 0x80)  # QR set, opcode and RD kept; AA and TC are the server's
    assert not answer[3] & 0xF0  # RA, Z, AD, CD
    response = dns.message.from_wire(answer) if not packet[2] & 0x78 else None
    assert response is None or dns.rcode.to_text(response.rcode()) in CODES


def queries() -> list[bytes]:
    """Some good queries to spoil."""
    found = []
    for name in (OWNER, "example.com", "nope.example.com", "example.net"):
        for rdtype in ("A", "ANY", "NS"):
            found.append(dns.message.make_query(name, rdtype).to_wire())
            found.append(dns.message.make_query(name, rdtype, **subnet("81.2.2.0/24")).to_wire())
            found.append(dns.message.make_query(name, rdtype, **subnet("2001:db8::/56"), payload=4096).to_wire())
    return found


@given(st.binary(max_size=600), st.booleans())
def test_any_bytes(packet: bytes, tcp: bool) -> None:
    check(packet, tcp)


@given(st.binary(max_size=300), st.tuples(*[st.integers(0, 2)] * 4), st.booleans())
def test_any_bytes_behind_a_plausible_header(body: bytes, counts: tuple[int, ...], tcp: bool) -> None:
    check(b"\x55\xaa\x01\0" + struct.pack("!4H", *counts) + body, tcp)


def test_mutated_queries() -> None:
    rng = random.Random(7871)
    good = queries()
    for _ in range(4000):
        packet = bytearray(rng.choice(good))
        for _ in range(rng.randint(1, 4)):
            spoil(packet, rng)
        check(bytes(packet), rng.random() < 0.2)
    assert all(RESPONDER.counters[name] for name in ("noerror", "nxdomain", "refused", "formerr", "notimp", "badvers", "dropped"))
    assert not RESPONDER.counters["servfail"]


def spoil(packet: bytearray, rng: random.Random) -> None:
    """Change, insert, remove or repeat a few bytes, or cut the end off."""
    at = rng.randrange(len(packet) + 1)
    kind = rng.randrange(6)
    if kind <= 1 and at < len(packet):
        packet[at] = rng.choice((0, 1, 0xC0, 0xFF, rng.randrange(256)))
    elif kind == 2:
        packet[at:at] = rng.randbytes(rng.randint(1, 8))
    elif kind == 3:
        del packet[at : at + rng.randint(1, 8)]
    elif kind == 4:
        packet[at:at] = packet[max(0, at - rng.randint(1, 40)) : at]
    else:
        del packet[max(at, 3) :]


@pytest.mark.parametrize("repeats", [200, 5000])
def test_a_packet_of_many_records_costs_no_more_than_its_bytes(repeats: int) -> None:
    head = b"\0\x01\0\0\0\x01" + struct.pack("!HHH", 0, 0, 65_535)
    check(head + b"\x01a\0\0\x01\0\x01" + b"\xc0\x0c\0\x01\0\x01\0\0\0\0\0\0" * repeats, True)
