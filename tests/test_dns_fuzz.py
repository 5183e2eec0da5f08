"""Packets of chance and of malice: nothing raises, nothing outgrows its limit, everything is counted once."""

from __future__ import annotations

import random
import struct
from typing import Any

import dns.message
import dns.name
import dns.rcode
import pytest
from conftest import Clock
from dns.dnssectypes import Algorithm
from dns.edns import GenericOption, OptionType
from hypothesis import given
from hypothesis import strategies as st
from resolving import OWNER, PROFILE, balancer, subnet

from lbcore.dns import Responder, Zone
from lbcore.dns._cookies import Cookies
from lbcore.dns._wire import Wire
from lbcore.dns.dnssec import Signer
from lbcore.dns.keys import Key, Timing

CLIENT = "81.2.2.1"
CLOCK = Clock(1_790_000_000.0)
KEY = Key.generate(dns.name.from_text("example.com."), algorithm=Algorithm.ED25519, zsk=False, timing=Timing(activate=CLOCK()))
RECORDS = '*.txt TXT "any"\nsub NS ns.sub\nns.sub A 192.0.2.54\nwww CNAME api.eu\n'
ZONE = Zone("example.com", {"api.eu": PROFILE}, RECORDS, {"@": "api.eu"}, keys=Signer("example.com", [KEY], clock=CLOCK))
PLAIN = Responder(balancer(CLOCK), ZONE, nsid=b"ams-1")
FULL = Responder(balancer(CLOCK), ZONE, nsid=b"ams-1", version="1", cookies=Cookies(bytes(16)), clock=CLOCK)
COMPILED = Wire(nsid=b"ams-1")
PLAIN.on_prepared(COMPILED.publish)
OUTCOMES = (
    "dropped", "noerror", "nodata", "nxdomain", "referral", "refused", "formerr", "notimp", "badvers", "badcookie", "notauth", "servfail",
)  # fmt: skip
CODES = {"NOERROR", "NXDOMAIN", "REFUSED", "FORMERR", "NOTIMP", "BADVERS", "BADCOOKIE", "NOTAUTH"}


def check(packet: bytes, tcp: bool) -> None:
    """Whatever comes in, both paths say the same where both say something, and more options change nothing about that."""
    answer = sound(PLAIN, packet, tcp)
    sound(FULL, packet, tcp)
    assert tcp or COMPILED.answer(packet, CLIENT) in (None, answer)


def sound(responder: Responder, packet: bytes, tcp: bool) -> bytes | None:
    """No answer, or one that dnspython reads, is of the same id and opcode, and fits."""
    counters = responder.counters
    before = counters["queries"]
    answer = responder.answer(packet, CLIENT, tcp=tcp)
    assert counters["queries"] == before + 1 == sum(counters[name] for name in OUTCOMES)
    assert (answer is None) == (len(packet) < 12 or bool(packet[2] & 0x80))
    if answer is None:
        return None
    assert len(answer) <= (65_535 if tcp else 1232)
    assert answer[:2] == packet[:2]
    assert (answer[2] & 0xF9) == (packet[2] & 0x79 | 0x80)  # QR set, opcode and RD kept; AA and TC are the server's
    assert not answer[3] & 0xF0  # RA, Z, AD, CD
    response = dns.message.from_wire(answer) if not packet[2] & 0x78 else None
    assert response is None or dns.rcode.to_text(response.rcode()) in CODES
    return answer


def queries() -> list[bytes]:
    """Some good queries to spoil."""
    found = []
    cookie, nsid = GenericOption(OptionType.COOKIE, b"12345678"), GenericOption(OptionType.NSID, b"")
    forms: tuple[dict[str, Any], ...] = (
        {}, subnet("81.2.2.0/24"), subnet("2001:db8::/56") | {"payload": 4096}, {"want_dnssec": True},
        {"use_edns": 0, "options": [cookie, nsid]},
    )  # fmt: skip
    for name in (OWNER, "example.com", "nope.example.com", "example.net", "x.txt.example.com", "x.sub.example.com", "www.example.com"):
        for rdtype in ("A", "ANY", "NS"):
            found += [dns.message.make_query(name, rdtype, **form).to_wire() for form in forms]
    return [*found, dns.message.make_query("version.bind", "TXT", "CH").to_wire()]


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
    for responder in (PLAIN, FULL):
        assert {name for name in OUTCOMES if not responder.counters[name]} <= {"badcookie", "notauth", "servfail"}
        assert not responder.counters["servfail"]
    assert sum(COMPILED.answer(packet, CLIENT) is not None for packet in good) > len(good) / 2


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
