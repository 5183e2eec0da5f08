"""What every answer must be, whatever was asked; written from the RFCs, without a look at how lbcore reads packets."""

from __future__ import annotations

import struct

import dns.message
import dns.rcode
from fuzz import worlds

SERVER_COOKIE = 16
_NO_FAMILY, _IPV4 = bytes.fromhex("00080004 0000 00 00"), bytes.fromhex("00080004 0001 00 00")  # an address withheld, as dig does it
CODES = {"NOERROR", "NXDOMAIN", "REFUSED", "FORMERR", "NOTIMP", "BADVERS", "NOTAUTH", "BADCOOKIE"}
_OPT = 41
_known: set[bytes] = set()


def must_be_dropped(packet: bytes) -> bool:
    """Say whether a packet must not be answered: it has no whole header, or is itself a response."""
    return len(packet) < 12 or packet[2] & 0x80 != 0


def question_end(packet: bytes) -> int | None:
    """Give where the first question ends; None when it is cut short or compressed."""
    at = 12
    while at < len(packet) and packet[at] < 64:
        if packet[at] == 0:
            return at + 5 if at + 5 <= len(packet) and at - 11 <= 255 else None
        at += 1 + packet[at]
    return None


def payload_of(packet: bytes) -> int | None:
    """Give what the client's OPT takes; None without OPT, or when the packet ends before."""
    at = question_end(packet) if packet[4:6] == b"\0\1" else 12
    while at is not None and at < len(packet):
        while at < len(packet) and 0 < packet[at] < 64:
            at += 1 + packet[at]
        at += 1 if packet[at : at + 1] == b"\0" else 2
        rdtype, size, length = struct.unpack("!HH4xH", packet[at : at + 10].ljust(10, b"\0"))
        if rdtype == _OPT:
            return int(size)
        at += 10 + length
    return None


def check(packet: bytes, answer: bytes, tcp: bool = False) -> None:
    """Hold an answer to its query: size, id, flags, question, and that dnspython reads all of it. AssertionError says what is wrong."""
    assert not must_be_dropped(packet), "answers a response, or less than a header"
    assert len(answer) >= 12, "an answer is shorter than a header"
    assert answer[:2] == packet[:2], "another id"
    assert answer[2] & 0xF9 == 0x80 | packet[2] & 0x79, "QR, opcode or RD"
    assert answer[3] & 0xF0 == 0, "RA, Z, AD or CD"
    questions = int.from_bytes(answer[4:6])
    assert questions <= 1, "questions"
    if questions:
        end = question_end(packet)
        assert end is not None and answer[12:end] == packet[12:end], "another question"
    else:
        assert answer[3] & 15 in (0, 1, 4, 5, 7, 9) and int.from_bytes(answer[6:8]) == int.from_bytes(answer[8:10]) == 0, "no question"
    if not tcp and len(answer) > 512:
        payload = payload_of(packet)
        assert payload is not None and len(answer) <= min(payload, 1232), f"{len(answer)} bytes for {payload}"
    _read(answer)


def _read(answer: bytes) -> None:
    """Let dnspython read an answer, once each."""
    if answer[2] & 0x78:
        assert answer[6:10] == bytes(4), "records in answer to another opcode"
        return
    if answer[2:] in _known:
        return
    end = question_end(answer) or 12
    response = dns.message.from_wire(answer[:end] + answer[end:].replace(_NO_FAMILY, _IPV4))  # dnspython takes it for an error
    rcode = dns.rcode.to_text(response.rcode())
    assert rcode in CODES or (rcode == "SERVFAIL" and answer[12:16].lower() == worlds.FAILING), rcode
    if response.edns >= 0:
        assert response.payload == 1232, "payload"
    if len(_known) > 100_000:
        _known.clear()
    _known.add(answer[2:])


def check_slip(packet: bytes, answer: bytes) -> None:
    """Hold a rate-limited answer to its query: TC, no records, and no longer than the query but for a server cookie."""
    assert answer[2] & 2, "TC is not set"
    assert answer[6:10] == bytes(4), "records in a limited answer"
    assert len(answer) <= len(packet) + SERVER_COOKIE, f"{len(packet)} bytes make {len(answer)}"


def shows_cookie(packet: bytes) -> bool:
    """Say whether a query has a COOKIE option long enough for a server's cookie."""
    return b"\0\x0a\0\x18" in packet
