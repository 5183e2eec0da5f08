"""Inputs to begin with, and the words of the wire format; made anew for every run."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from fuzz import worlds

from lbcore.dns._cookies import Cookies

LABELS = (
    "api", "aPi", "any", "twin", "x.steer", "off", "none", "first", "drawn", "several", "geo", "nets", "nested", "few", "www", "web", "out",
    "mail", "long", "huge", "b.c", "a.wild", "sub", "a.sub", "ns", "nope",
)  # fmt: skip
NAMES = (
    *(f"{label}.example.com" for label in LABELS), *(f"{label}.example.org" for label in LABELS[::3]),
    "example.com", "eXample.ORG", "api.eu.example.com", "eu.example.com", "example.net", "", "version.bind",
)  # fmt: skip
TYPES = (1, 2, 5, 6, 15, 16, 28, 33, 41, 43, 46, 47, 48, 64, 65, 128, 249, 250, 251, 252, 255, 256, 65280, 0)


def name(text: str) -> bytes:
    """Give a name in wire form."""
    return b"".join(bytes((len(label),)) + label.encode() for label in text.split(".") if label) + b"\0"


def query(owner: bytes, rdtype: int = 1, rest: bytes = b"", *, flags: int = 0x100, counts: tuple[int, ...] = (), rdclass: int = 1) -> bytes:
    """Give a packet. counts: of all four sections; default: one question, and a record when there is a rest."""
    head = struct.pack("!HH4H", 0x1234, flags, *(counts or (1, 0, 0, 1 if rest else 0)))
    return head + owner + struct.pack("!HH", rdtype, rdclass) + rest


def opt(*options: bytes, payload: int = 1232, flags: int = 0, owner: bytes = b"\0") -> bytes:
    """Give an OPT record. flags: extended code, version and DO, as its TTL has them."""
    data = b"".join(options)
    return owner + struct.pack("!HHIH", 41, payload, flags, len(data)) + data


def option(code: int, data: bytes = b"") -> bytes:
    """Give an EDNS option."""
    return struct.pack("!HH", code, len(data)) + data


def subnet(family: int, source: int, address: bytes, scope: int = 0) -> bytes:
    """Give an ECS option; nothing makes its parts agree."""
    return option(8, struct.pack("!HBB", family, source, scope) + address)


def cookie(client: int) -> bytes:
    """Give a valid COOKIE option of one of CLIENTS."""
    answered = Cookies(worlds.SECRET).answer(bytes(8), worlds.CLIENTS[client], worlds.NOW)
    assert answered is not None
    return option(10, answered[1])


DO = 0x8000
OPTIONS = (
    subnet(1, 24, bytes((81, 2, 2))), subnet(1, 0, b""), subnet(2, 56, bytes.fromhex("20010200000300")),
    subnet(1, 32, bytes((81, 2, 3, 1))), subnet(2, 128, bytes(16)), subnet(1, 23, bytes((81, 2, 1))), subnet(1, 24, b"\1"),
    subnet(3, 8, b"\1"), subnet(1, 33, bytes(5)), subnet(1, 8, b"\x51", 8), subnet(0, 0, b""), subnet(2, 96, bytes(10) + b"\xff\xff"),
    option(8), option(8, b"\0\1"), *(option(10, bytes(size)) for size in (7, 8, 9, 16, 24, 40, 41)), option(3), option(3, b"x"),
    option(12, bytes(60)), option(11), option(15, b"\0\0"), option(65001, b"?"),
)  # fmt: skip


def packets() -> Iterator[bytes]:
    """Give queries of every kind, right and wrong."""
    api = name("api.example.com")
    for text in NAMES:
        yield query(name(text))
        yield query(name(text), 28, opt())
        yield query(name(text), 16, opt(flags=DO, payload=4096))
    for rdtype in TYPES:
        yield query(api, rdtype, opt(OPTIONS[0], flags=DO))
        yield query(name("www.example.com"), rdtype)
    for each in OPTIONS:
        yield query(api, 1, opt(each))
        yield query(api, 65, opt(OPTIONS[2], each, flags=DO))
        yield query(name("www.example.com"), 28, opt(each, option(3)))
        yield query(api, 1, opt(each)[:-1])
    yield from strange(api)


def strange(api: bytes) -> Iterator[bytes]:
    """Give what the issue names: loops, longest names, too long labels, many OPTs, no and two questions, truncated options, and more."""
    yield query(b"\xc0\x0c")  # a name that points at itself
    yield query(b"\xc0\x0e\xc0\x0c")
    yield query(b"\3api\xc0\x0c")
    yield query(name(f"{worlds.DEEP}.deep.example.com"), 16)
    deep = name(f"{worlds.DEEP}.deep.example.com")
    for size in (254, 255, 256):
        longest = bytes((size - len(deep) - 1,)) + b"l" * (size - len(deep) - 1) + deep
        yield query(longest, 16, opt(flags=DO))
    for octet in (63, 64, 65, 0x80, 0xBF, 0xFF):
        yield query(bytes((octet,)) + b"x" * octet + name("example.com"))
    for count in (2, 3, 50):
        yield query(api, 1, opt() * count, counts=(1, 0, 0, count))
    for questions in (0, 2, 65535):
        yield query(api, 1, counts=(questions, 0, 0, 0))
        yield query(api, 1, query(api)[12:], counts=(questions, 0, 0, 0))
    whole = query(api, 1, opt(*OPTIONS[:3]))
    yield from (whole[:size] for size in (0, 1, 11, 12, 13, len(api) + 12, len(api) + 16, len(api) + 20, len(whole) - 1))
    yield whole + b"\0"
    yield query(api, 1, opt(flags=0x10000))  # EDNS version 1
    yield query(api, 1, opt(owner=b"\1a\0"))
    yield query(api, 1, opt(option(12, bytes(4000))))
    yield from (query(api, 1, opt(payload=payload)) for payload in (0, 511, 512, 513, 1231, 1232, 1233, 65535))
    yield from (query(name("long.example.com"), 16, opt(payload=payload, flags=DO)) for payload in (700, 800, 900, 1000))
    yield query(api, 1, opt(), flags=0x8180)  # a response
    yield from (query(api, 1, flags=opcode << 11) for opcode in range(1, 16))
    yield query(api, 1, api + struct.pack("!HHIH", 250, 255, 0, 0))  # TSIG
    yield query(api, 1, api + struct.pack("!HHIH", 1, 1, 0, 4) + bytes(4), counts=(1, 1, 0, 0))
    yield from (query(api, 1, rdclass=rdclass) for rdclass in (0, 3, 254, 255))
    yield query(name("version.bind"), 16, rdclass=3)


def inputs(plain: bool = False) -> Iterator[bytes]:
    """Give the seeds. plain: a few without DO alone."""
    if plain:
        yield from (worlds.encode(query(name(text), 1, opt())) for text in NAMES[:8])
        return
    for number, packet in enumerate(packets()):
        yield worlds.encode(packet, number % len(worlds.WORLDS), number % len(worlds.CLIENTS), tcp=number % 4 == 0)
    for client in range(len(worlds.CLIENTS)):
        for world in range(len(worlds.WORLDS)):
            yield worlds.encode(query(name("api.example.com"), 28, opt(cookie(client), OPTIONS[0])), world, client)


def words() -> Iterator[bytes]:
    """Give what mutations put in."""
    yield from (name(text)[:-1] for text in NAMES if text)
    yield from {name(label)[:-1] for text in NAMES for label in text.split(".") if label}
    yield from (struct.pack("!HH", rdtype, 1) for rdtype in TYPES)
    yield from OPTIONS
    yield from (opt(), opt(flags=DO), opt(OPTIONS[0]), b"\xc0\x0c", struct.pack("!4H", 1, 0, 0, 1), b"\0\0\x29")
    yield from (cookie(client) for client in range(3))


def write(corpus: Path, dictionary: Path, *, plain: bool = False) -> None:
    """Write the seeds as files into a folder, and the dictionary in libFuzzer's form."""
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(inputs(plain)):
        (corpus / f"seed-{number:04}").write_bytes(data)
    quoted = ("".join(f"\\x{octet:02x}" for octet in word) for word in dict.fromkeys(words()) if len(word) <= 64)
    dictionary.write_text("".join(f'"{word}"\n' for word in quoted))
