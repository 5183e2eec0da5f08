"""Packets put together at will, right and wrong: both DNS paths say the same of them, or the compiled one leaves them to the other.

Coverage-guided fuzzing of the same worlds, by the same judge, is in `test_dns_coverage_fuzz.py`.
"""

from __future__ import annotations

import struct

import dns.message
import dns.rcode
import pytest
from fuzz import judge, seeds, worlds
from fuzz.seeds import name, opt, option, query, subnet
from hypothesis import given
from hypothesis import strategies as st

API = name("api.example.com")
LIMITED = next(world for world in worlds.WORLDS if world.rate and world.cookies)
UNLIMITED = [world for world in worlds.WORLDS if not world.rate]


def masked(answer: bytes | None) -> bytes | None:
    """Give an answer without its server cookie, which has the time in it."""
    if answer is None or (at := answer.find(b"\0\x0a\0\x18")) < 0:
        return answer
    return answer[: at + 12] + bytes(16) + answer[at + 28 :]


def answers_of(
    packet: bytes, client: bytes = worlds.CLIENTS[0], world: worlds.World = worlds.WORLDS[0]
) -> tuple[bytes | None, bytes | None]:
    """Give what each path says; they agree, and the judge has nothing against it."""
    fast, slow = world.wire.answer(packet, client), world.unlimited.answer(packet, client)
    assert (slow is None) == judge.must_be_dropped(packet), packet.hex()
    assert fast is None or masked(fast) == masked(slow), packet.hex()
    for answer in (fast, slow):
        if answer is not None:
            judge.check(packet, answer)
    return fast, slow


def rcode(answer: bytes | None) -> str:
    assert answer is not None
    return dns.rcode.to_text(dns.message.from_wire(answer).rcode())


def test_every_seed_of_the_fuzzers() -> None:
    told = {True: 0, False: 0}
    for data in seeds.inputs():
        case = worlds.decode(data)
        fast, slow = answers_of(case.packet, case.client, UNLIMITED[case.world % len(UNLIMITED)])
        told[fast is not None] += slow is not None
    assert min(told.values()) > 100  # both paths had something to do


# ===== what the issue names


def of_size(octets: int) -> bytes:
    """Give a name of 206 octets or more."""
    return name(".".join(["a" * 63, "b" * 63, "c" * 63, "d" * (octets - 206), "example.com"]))


LONGEST = of_size(255)
MALFORMED = {
    "points at itself": query(b"\xc0\x0c"),
    "points at each other": query(b"\xc0\x0e\xc0\x0c"),
    "loops behind a label": query(b"\3api\xc0\x0c"),
    "points ahead": query(b"\xc0\x12\0\0" + API),
    "256 octets": query(of_size(256)),
    "a label of 64": query(b"\x40" + b"x" * 64 + name("example.com")),
    "a label of 191": query(b"\xbf" + b"x" * 191 + name("example.com")),
    "no end": query(b"")[:12] + b"\x3f" * 200,
    "QDCOUNT 0": query(API, counts=(0, 0, 0, 0)),
    "QDCOUNT 0, no question": query(API)[:4] + bytes(8),
    "QDCOUNT 2": query(API, 1, query(API)[12:], counts=(2, 0, 0, 0)),
    "QDCOUNT 2, one question": query(API, counts=(2, 0, 0, 0)),
    "two OPTs": query(API, 1, opt() * 2, counts=(1, 0, 0, 2)),
    "300 OPTs": query(API, 1, opt() * 300, counts=(1, 0, 0, 300)),
    "more OPTs than there are": query(API, 1, opt(), counts=(1, 0, 0, 65_535)),
    "OPT with a name": query(API, 1, opt(owner=b"\1a\0")),
    "OPT among the answers": query(API, 1, opt(), counts=(1, 1, 0, 0)),
    "an option's head": query(API, 1, opt(b"\0\x03\0")),
    "an option longer than OPT": query(API, 1, opt(b"\0\x03\0\x05abcd")),
    "an option that ends behind the packet": query(API, 1, opt(b"\0\x08\xff\xff\0\1")),
    "OPT longer than the packet": query(API, 1, opt()[:-1] + b"\x09"),
    "OPT shorter than its options": query(API, 1, opt()[:-2] + b"\0\0" + option(3)),
    "ECS without an address": query(API, 1, opt(subnet(1, 24, b""))),
    "two ECS": query(API, 1, opt(subnet(1, 8, b"\1"), subnet(1, 8, b"\1"))),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_malformed_is_the_responders_and_a_format_error(what: str) -> None:
    fast, slow = answers_of(MALFORMED[what])
    assert fast is None
    assert rcode(slow) == "FORMERR"
    assert slow is not None and len(slow) <= len(MALFORMED[what]) + len(opt())


def test_a_name_of_255_octets_is_a_name() -> None:
    assert len(LONGEST) == 255
    fast, slow = answers_of(query(LONGEST, 1, opt(flags=seeds.DO)))
    assert fast == slow
    assert rcode(fast) == "NXDOMAIN"


@pytest.mark.parametrize("size", range(len(query(API, 1, opt(*seeds.OPTIONS[:1], option(3), option(10, bytes(8)))))))
def test_a_packet_cut_short(size: int) -> None:
    whole = query(API, 1, opt(seeds.OPTIONS[0], option(3), option(10, bytes(8))))
    assert answers_of(whole)[0] is not None
    fast, slow = answers_of(whole[:size])
    assert fast is None
    assert slow is None if size < 12 else rcode(slow) == "FORMERR"


# ===== anything

LABELS = st.sampled_from([b"api", b"A", b"*", b"www", b"several", b"sub", b"off", b"x" * 63]) | st.binary(max_size=70)
PREFIXED = LABELS.map(lambda label: bytes((len(label),)) + label)
ENDS = st.sampled_from([b"\0", name("example.com"), name("eXample.org"), name("eu.example.com"), b"\xc0\x0c", b"\xc0", b"", LONGEST[-200:]])
OWNERS = st.builds(lambda labels, end: b"".join(labels) + end, st.lists(PREFIXED, max_size=5), ENDS)
WIDTHS = st.integers(0, 40) | st.sampled_from([56, 64, 127, 128, 129, 255])
SUBNETS = st.builds(
    lambda family, source, address, exact: subnet(family, source, bytes((source + 7) // 8) if exact else address),
    st.sampled_from([0, 1, 2, 3]), WIDTHS, st.binary(max_size=18), st.booleans(),
)  # fmt: skip
OPTIONS = st.builds(option, st.sampled_from([3, 8, 10, 11, 12, 65001]), st.binary(max_size=42)) | SUBNETS | st.binary(max_size=6)
OPTS = st.builds(
    lambda options, payload, flags, cut: opt(*options, payload=payload, flags=flags)[: cut or None],
    st.lists(OPTIONS, max_size=4), st.sampled_from([0, 512, 700, 1232, 4096]), st.sampled_from([0, 0, 0x8000, 0x10000, 0x1008000]),
    st.sampled_from([0, 0, 0, -1, -3, 11]),
)  # fmt: skip
RECORDS = st.one_of(OPTS, OPTS, OWNERS.map(lambda owner: owner + struct.pack("!HHIH", 1, 1, 0, 4) + bytes(4)))
COUNTS = st.just(()) | st.tuples(*[st.sampled_from([0, 1, 1, 2, 65_535])] * 4)
PACKETS = st.builds(
    lambda owner, rdtype, records, flags, counts, rdclass: query(
        owner, rdtype, b"".join(records), flags=flags, counts=counts or (1, 0, 0, len(records)), rdclass=rdclass
    ),
    OWNERS, st.sampled_from(seeds.TYPES) | st.integers(0, 65_535), st.lists(RECORDS, max_size=3),
    st.sampled_from([0, 0x100, 0x100, 0x10, 0x2000, 0x8000]), COUNTS, st.sampled_from([1, 1, 1, 1, 3, 255]),
)  # fmt: skip


@given(PACKETS, st.sampled_from(worlds.CLIENTS), st.sampled_from(UNLIMITED), st.integers(0, 65_535))
def test_both_paths_say_the_same(packet: bytes, client: bytes, world: worlds.World, turn: int) -> None:
    answers_of(turn.to_bytes(2) + packet[2:], client, world)


# ===== rate limits


@pytest.mark.parametrize("path", ["compiled", "Responder"])
def test_a_forged_source_gets_little_whatever_types_are_asked(path: str) -> None:
    """Types and names that do not exist are the forger's to choose: they share what is allowed."""
    client, sent, slipped, asked = b"\xcb\0\x71\x01", 0, 0, 0
    LIMITED.now_ms += 10_000
    for rdtype in range(2000, 12_000, 50):
        for owner in (API, name(f"n{rdtype}.example.com")):
            packet = query(owner, rdtype, opt())
            answer = LIMITED.wire.answer(packet, client) if path == "compiled" else LIMITED.responder.answer(packet, client)
            asked += len(packet)
            if answer is not None and answer[2] & 2:
                judge.check_slip(packet, answer)
                slipped += 1
            elif answer is not None:
                sent += 1
    assert sent <= 2 * 2 * 4 * LIMITED.rate  # names; a name's hash may be about to carry; seconds that this may take
    assert 150 <= slipped <= 200


def test_a_limited_answer_keeps_its_code_and_says_nothing_else() -> None:
    client = b"\xcb\0\x72\x01"
    for owner, expected in ((name("nope.example.com"), "NXDOMAIN"), (name("example.net"), "REFUSED"), (API, "NOERROR")):
        packet = query(owner, 1, opt(option(3)))
        for ask in (LIMITED.wire.answer, LIMITED.responder.answer):
            got = [answer for _ in range(12) if (answer := ask(packet, client)) is not None and answer[2] & 2]
            assert got
            assert {rcode(answer) for answer in got} == {expected}
            assert all(len(answer) <= len(packet) for answer in got)
