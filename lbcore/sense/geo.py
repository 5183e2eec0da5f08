"""Locate a client: the user's own GeoIP database, or the coarse geography that lbcore carries.

Both become a PrefixMap, so a location is always that of the client's group; what a location says of round trips is in
`lbcore.sense.prior`.
"""

from __future__ import annotations

import json
import lzma
import os
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lbcore.region import DATA
from lbcore.sense.prior import Precision, prior_ms, priors, published_ms

if TYPE_CHECKING:
    from lbcore._prefix import PrefixMap

__all__ = ["Client", "GeoIP", "Location", "Precision", "embedded_map", "prior_ms", "priors", "published_ms"]

# A client: its address as text, 4 or 16 bytes, or an object; None is this process itself.
Client = str | bytes | IPv4Address | IPv6Address | None


@dataclass(frozen=True, slots=True)
class Location:
    """Where a client's group is: degrees, the country's ISO 3166 code ("" = unknown) and how precise that is."""

    lat: float
    lon: float
    country: str
    precision: Precision


class GeoIP:
    """Locate clients by a city or country database in the mmdb format, or (path None) by the embedded coarse table.

    Raises ValueError naming the file for one that is no usable database, OSError for one that cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._stamp = self._file_stamp()
        self.map: PrefixMap = embedded_map() if self.path is None else _read(self.path)

    def locate(self, client: Client) -> Location | None:
        """Give where a client is (address as str, bytes or ipaddress object), None when that is unknown.

        Private and reserved addresses, and those the database leaves out, are unknown. ValueError for what is no address.
        """
        prefixes = self.map
        group = prefixes.lookup(client)
        if group == 0:
            return None
        lat, lon = prefixes.locations
        place = float(lat[group]), float(lon[group])
        return Location(*place, prefixes.countries[group], Precision(int(prefixes.precision[group])))

    def reload(self) -> bool:
        """Read the file again if it changed since; True when `.map` is a new one.

        Raises ValueError or OSError, once per change, when the new file cannot be used: the map in use stays.
        """
        stamp = self._file_stamp()
        if self.path is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        self.map = _read(self.path)
        return True

    def _file_stamp(self) -> tuple[int, int, int] | None:
        if self.path is None:
            return None
        status = self.path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns


def _read(path: Path) -> PrefixMap:
    from lbcore._prefix import PrefixMap

    try:
        return PrefixMap.from_mmdb(path)
    except ValueError as error:
        raise ValueError(f"{path}: no usable GeoIP database: {error}") from error


@cache
def embedded_map() -> PrefixMap:
    """Give the embedded coarse geography: country, and subdivision where the country is wide (about 1,200 groups).

    Source: DB-IP Lite (CC BY 4.0), reduced by lbcore.sense.geo_build; see NOTICE.
    """
    from lbcore._prefix import PrefixMap

    return PrefixMap.from_ranges(**unpack(DATA / "geography.xz"))


def unpack(path: Path) -> dict[str, Any]:
    """Give the arguments of PrefixMap.from_ranges that a geography file holds; ValueError naming it when it is damaged."""
    try:
        with lzma.open(path) as file:
            raw = file.read()
        head, body = raw.split(b"\n", 1)
        header = json.loads(head)
        v4_starts, v4_groups, used = _family(body, 0, header["v4"])
        v6_starts, v6_groups, _ = _family(body, used, header["v6"])
    except (lzma.LZMAError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: no usable geography file: {error}") from error
    return {
        "v4_starts": (v4_starts << (32 - header["v4"]["bits"])).astype(np.uint32),
        "v4_groups": v4_groups,
        "v6_starts": v6_starts << np.uint64(64 - header["v6"]["bits"]),
        "v6_groups": v6_groups,
        "keys": tuple(header["keys"]),
        "lat": np.array(header["lat"], np.float32),
        "lon": np.array(header["lon"], np.float32),
    }


def _family(body: bytes, offset: int, shape: dict[str, int]) -> tuple[NDArray[np.uint64], NDArray[np.uint32], int]:
    """Give one family's range starts and groups, and the offset behind them: byte planes, steps before groups."""
    count, step_bytes = shape["ranges"], (shape["bits"] + 7) // 8
    rows = np.frombuffer(body, np.uint8, (step_bytes + 2) * count, offset).reshape(-1, count)
    steps = np.zeros(count, np.uint64)
    for plane in range(step_bytes):
        steps |= rows[plane].astype(np.uint64) << np.uint64(8 * plane)
    groups = rows[step_bytes].astype(np.uint32) | rows[step_bytes + 1].astype(np.uint32) << np.uint32(8)
    return np.cumsum(steps, dtype=np.uint64), groups, offset + rows.size
