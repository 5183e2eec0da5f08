"""Names in wire form, lower case, uncompressed: what answers are looked up by.

A label's length byte is never a letter, so `lower` is safe.
"""

from __future__ import annotations

from collections.abc import Iterator

import dns.name
from dns.name import Name

__all__ = ["ROOT", "WILD", "ancestors", "from_key", "key_of", "labels", "order", "parent", "within"]

ROOT = b"\0"
WILD = b"\1*"  # how a wildcard's name begins


def key_of(name: Name) -> bytes:
    """Give an absolute name's key."""
    return b"".join([bytes((len(label),)) + label for label in name.labels]).lower()


def from_key(key: bytes) -> Name:
    """Give the name of a key, for dnspython."""
    return dns.name.Name((*labels(key), b""))


def labels(key: bytes) -> list[bytes]:
    """Give a key's labels without the root's, the leftmost first."""
    found, at = [], 0
    while size := key[at]:
        found.append(key[at + 1 : at + 1 + size])
        at += 1 + size
    return found


def parent(key: bytes) -> bytes:
    """Give the name one label above; not for the root."""
    return key[1 + key[0] :]


def ancestors(key: bytes, origin: bytes) -> Iterator[bytes]:
    """Give a name and all above it, up to its zone's."""
    while key != origin:
        yield key
        key = parent(key)
    yield origin


def within(key: bytes, origin: bytes) -> bool:
    """Say whether a name is `origin` or lies below it; the bytes alone could end alike in the midst of a label."""
    while len(key) > len(origin):
        key = parent(key)
    return key == origin


def order(key: bytes) -> list[bytes]:
    """Give what sorts names canonically.

    Source: RFC 4034 §6.1.
    """
    return labels(key)[::-1]
