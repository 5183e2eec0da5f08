"""Land: makes `static/land.svg` of Natural Earth's outline. Run once; the result is checked in.

    npm pack world-atlas@2.0.2
    python -m lbcore.service.portal.land_build world-atlas-2.0.2.tgz

Reads the TopoJSON of 1:110m land, leaves Antarctica and specks out, joins arcs to rings, projects, drops points that nobody would miss,
and writes one path of whole tenths of a unit, each point relative to the one before.
Source: TopoJSON specification 1.0; M. Visvalingam, J. D. Whyatt, "Line generalisation by repeated elimination of points", 1993.
"""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lbcore.service.portal.map import CENTRE, HEIGHT, SOUTH, WIDTH, project

__all__ = ["land", "main", "outline", "rings", "simplified"]

Point = tuple[float, float]
TARGET = Path(__file__).with_name("static") / "land.svg"
SPECK = 1.0  # square units: what is smaller is left out
FINEST = 0.12  # square units: points whose triangle with their neighbours is smaller are left out


def rings(topology: Mapping[str, Any]) -> Iterator[list[Point]]:
    """Give the rings of the object "land" as (lon, lat) points, decimal degrees."""
    (sx, sy), (tx, ty) = topology["transform"]["scale"], topology["transform"]["translate"]
    arcs = [[(x * sx + tx, y * sy + ty) for x, y in _summed(arc)] for arc in topology["arcs"]]
    for geometry in topology["objects"]["land"]["geometries"]:
        for polygon in geometry["arcs"]:
            for ring in polygon:
                yield _joined(arcs[index] if index >= 0 else arcs[~index][::-1] for index in ring)


def _summed(arc: Iterable[Sequence[int]]) -> Iterator[tuple[int, int]]:
    x = y = 0
    for dx, dy in arc:
        x, y = x + dx, y + dy
        yield x, y


def _joined(parts: Iterable[list[Point]]) -> list[Point]:
    """Join arcs, each of which begins where the one before ended; the ring's last point is its first, and left out."""
    ring: list[Point] = []
    for part in parts:
        ring += part[1:] if ring else part
    return ring[:-1]


def simplified(ring: Sequence[Point], finest: float = FINEST) -> list[Point]:
    """Give the ring without the points that matter least, one after another, until every triangle is of `finest` square units."""
    points = [*ring]
    while len(points) > 3:
        areas = [_triangle(points[i - 1], points[i], points[(i + 1) % len(points)]) for i in range(len(points))]
        least = min(range(len(points)), key=areas.__getitem__)
        if areas[least] >= finest:
            break
        del points[least]
    return points


def _triangle(a: Point, b: Point, c: Point) -> float:
    return abs((b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])) / 2


def _area(ring: Sequence[Point]) -> float:
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, [*ring[1:], ring[0]], strict=True))) / 2


def _drawn(ring: Sequence[Point]) -> list[Point]:
    """Project a ring as a whole: to the side of the map on which its middle lies, cut off where the map ends."""
    east = _unwound(ring)
    turn = (sum(east) / len(east) - CENTRE + 180.0) // 360.0
    points = []
    for lon, (_, lat) in zip(east, ring, strict=True):
        x = (lon - CENTRE + 180.0 - 360.0 * turn) / 360.0 * WIDTH
        points.append((min(WIDTH, max(0.0, x)), project(lat, lon)[1]))
    return points


def _unwound(ring: Sequence[Point]) -> list[float]:
    """Give the longitudes without the leaps at the date line: beyond it they count on."""
    east = [ring[0][0]]
    for lon, _ in ring[1:]:
        east.append(lon - 360.0 * round((lon - east[-1]) / 360.0))
    return east


def outline(topology: Mapping[str, Any]) -> str:
    """Give the outline as an SVG path in the view box of `map`."""
    shapes = (_drawn(ring) for ring in rings(topology) if max(lat for _, lat in ring) > SOUTH)
    return "".join(_path(simplified(shape)) for shape in shapes if _area(shape) >= SPECK)


def _path(ring: Sequence[Point]) -> str:
    tenths = [(round(10 * x), round(10 * y)) for x, y in ring]
    moves = [(x - a, y - b) for (a, b), (x, y) in zip(tenths, tenths[1:], strict=False)]
    numbers = "".join(f"{'' if _tenth(dx).startswith('-') else ' '}{_tenth(dx)}{'' if dy < 0 else ' '}{_tenth(dy)}" for dx, dy in moves)
    return f"M{_tenth(tenths[0][0])} {_tenth(tenths[0][1])}l{numbers.strip()}z"


def _tenth(value: int) -> str:
    return f"{value / 10:g}".replace("0.", ".", 1) if abs(value) < 10 else f"{value / 10:g}"


def land(path: str) -> str:
    """Give the file: one path with the id "land", without colours, for `<use href="land.svg#land">`."""
    note = "Natural Earth 1:110m land (public domain), by way of world-atlas 2.0.2; made by lbcore.service.portal.land_build"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}">'
    return f'<!-- {note} -->\n{head}<path id="land" d="{path}"/></svg>\n'


def main(package: str) -> None:
    """Write static/land.svg from the npm package's file."""
    with tarfile.open(package) as archive:
        file = archive.extractfile("package/land-110m.json")
        assert file is not None, "not world-atlas: no package/land-110m.json in it"
        topology = json.load(file)
    TARGET.write_text(land(outline(topology)), encoding="utf-8")
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
