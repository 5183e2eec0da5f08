"""Locate a client: the user's own GeoIP database, or the coarse geography that lbcore carries.

Both become a PrefixMap, so a location is always that of the client's group; what a location says of round trips is in
`lbcore.sense.prior`.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbcore._prefix import PrefixMap
from lbcore.region import DATA
from lbcore.sense.prior import Precision, prior_ms, priors, published_ms

__all__ = ["Client", "GeoIP", "Location", "Precision", "embedded_map", "places", "prior_ms", "priors", "published_ms"]

F32 = NDArray[np.float32]

# A client: its address as text, 4 or 16 bytes, or an object; None is this process itself.
Client = str | bytes | IPv4Address | IPv6Address | None

GEOGRAPHY = DATA / "geography.z"

# Special-purpose networks (IANA registry, RFC 6890) that are smaller than the table's grain; it leaves the larger ones out.
RESERVED = ("192.0.0.0/24", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")


@dataclass(frozen=True, slots=True)
class Location:
    """Where a client's group is: degrees, the country's ISO 3166 code ("" = unknown) and how precise that is."""

    lat: float
    lon: float
    country: str
    precision: Precision


class GeoIP:
    """Locate clients by a city or country database in the mmdb format, or (path None) by the embedded coarse table.

    overrides: the user's own networks, as (network, group key); the longest wins over what the table says
    Raises ValueError naming the file for one that is no usable database, OSError for one that cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, overrides: Iterable[tuple[str, str]] = ()) -> None:
        self.path = None if path is None else Path(path)
        self._overrides = tuple(overrides)
        self._stamp = self._file_stamp()
        self._table = self._read()

    @property
    def map(self) -> PrefixMap:
        """Give the prefix map in use: addresses to groups."""
        return self._table[0]

    def _read(self) -> tuple[PrefixMap, F32, F32, NDArray[np.uint8]]:
        if self.path is not None:
            prefixes = PrefixMap.from_mmdb(self.path, overrides=self._overrides)
        elif self._overrides:
            prefixes = _embedded_with(unpack(GEOGRAPHY)[0], self._overrides)
        else:
            prefixes = embedded_map()
        return prefixes, *places(prefixes)

    def locate(self, client: Client) -> Location | None:
        """Give where a client is (address as str, bytes or ipaddress object), None when that is unknown.

        The place is the middle of the client's group: of a 2-degree cell, a subdivision or a country, as the precision says.
        Private and reserved addresses, and those the database leaves out, are unknown. ValueError for what is no address.
        """
        prefixes, lat, lon, precision = self._table
        group = prefixes.lookup(client)
        if group == 0 or np.isnan(lat[group]):
            return None
        return Location(float(lat[group]), float(lon[group]), prefixes.countries[group], Precision(int(precision[group])))

    def reload(self) -> bool:
        """Read the file again if it changed since; True when `.map` is a new one.

        Raises ValueError or OSError, once per change, when the new file cannot be used: the map in use stays.
        """
        stamp = self._file_stamp()
        if self.path is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        self._table = self._read()
        return True

    def _file_stamp(self) -> tuple[int, int, int] | None:
        if self.path is None:
            return None
        status = self.path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns


def places(prefixes: PrefixMap) -> tuple[F32, F32, NDArray[np.uint8]]:
    """Give what priors go by, per group: lat, lon (f32[groups], degrees, NaN = unknown) and precision (u8[groups]).

    A group of which only the country is known (a country database) stands at that country's centre, as WIDE.
    """
    lat, lon = (column.copy() for column in prefixes.locations)
    precision = prefixes.precision.copy()
    for group in np.flatnonzero(np.isnan(lat)):
        if (country := prefixes.countries[group]) and (centre := _embedded()[1].get(country)):
            (lat[group], lon[group]), precision[group] = centre, Precision.WIDE
    precision[np.isnan(lat)] = Precision.NONE
    return lat, lon, precision


def embedded_map() -> PrefixMap:
    """Give the embedded coarse geography: country, and subdivision where the country is wide (about 900 groups).

    Source: DB-IP Lite (CC BY 4.0), reduced by lbcore.sense.geo_build; see NOTICE.
    """
    return _embedded()[0]


@cache
def _embedded() -> tuple[PrefixMap, Mapping[str, tuple[float, float]]]:
    ranges, centres = unpack(GEOGRAPHY)
    return _embedded_with(ranges), centres


def _embedded_with(ranges: dict[str, Any], overrides: Sequence[tuple[str, str]] = ()) -> PrefixMap:
    own = {network for network, _ in overrides}
    reserved = [(network, "") for network in RESERVED if network not in own]
    return PrefixMap.from_ranges(**ranges, overrides=[*reserved, *overrides])


def unpack(path: Path) -> tuple[dict[str, Any], Mapping[str, tuple[float, float]]]:
    """Give what a geography file holds: the arguments of PrefixMap.from_ranges, and countries' centres (lat, lon).

    Raises ValueError naming the file when it is damaged.
    """
    try:
        head, body = zlib.decompress(path.read_bytes()).split(b"\n", 1)
        header = json.loads(head)
        v4_starts, v4_groups, used = _family(body, 0, header["v4"]["ranges"])
        v6_starts, v6_groups, _ = _family(body, used, header["v6"]["ranges"])
    except (zlib.error, ValueError, KeyError) as error:
        raise ValueError(f"{path}: no usable geography file: {error}") from error
    ranges = {
        "v4_starts": (v4_starts << np.uint64(32 - header["v4"]["bits"])).astype(np.uint32),
        "v4_groups": v4_groups,
        "v6_starts": v6_starts << np.uint64(64 - header["v6"]["bits"]),
        "v6_groups": v6_groups,
        "keys": tuple(header["keys"]),
        "lat": np.array(header["lat"], np.float32),
        "lon": np.array(header["lon"], np.float32),
        "precision": np.array(header["precision"], np.uint8),
    }
    return ranges, {country: (lat, lon) for country, (lat, lon) in header["countries"].items()}


def _family(body: bytes, offset: int, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32], int]:
    """Give one family's range starts and groups, and the offset behind them; see geo_build.pack."""
    short, low, high = np.frombuffer(body, np.uint8, 3 * count, offset).reshape(3, count)
    steps = short.astype(np.uint64)
    long = np.flatnonzero(short == 255)
    steps[long] = np.frombuffer(body, "<u8", len(long), offset + 3 * count)
    groups = low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(8)
    return np.cumsum(steps, dtype=np.uint64), groups, offset + 3 * count + 8 * len(long)
