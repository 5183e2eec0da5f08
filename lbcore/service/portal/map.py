"""Map: the world, the service's regions on it, and where client groups go at what latency, as one SVG. Pure functions.

Patterson's cylindrical projection: a cylinder, so that what leaves the map on one side comes back on the other. It is centred on 11
degrees east, where the edge runs through Bering Strait. The outline of the land is another file (`land.svg`, made by `land_build`), which
lies beneath and need not be sent again when the figures change.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from lbcore.service.portal.words import band, ms, percent, tone

__all__ = ["CENTRE", "HEIGHT", "NORTH", "SOUTH", "WIDTH", "Flow", "Site", "project", "route", "world"]

WIDTH, HEIGHT = 1000.0, 446.0  # units of the view box
CENTRE = 11.0  # degrees east, in the middle of the map
NORTH, SOUTH = 83.7, -56.0  # degrees; what lies beyond is drawn at the edge
STEPS = 24  # straight pieces of a route that goes round half the planet
FONT = 15.0  # as portal.css has it; a letter is taken to be 0.58 of it wide
LETTER = 0.58 * FONT
LONGEST = 28  # letters of a label
MARK = 7.0  # half the width of a region's mark


@dataclass(frozen=True, slots=True)
class Site:
    """A region on the map. lat, lon: decimal degrees; status: any word that `words.tone` knows."""

    name: str
    lat: float
    lon: float
    status: str
    primary: bool = False


@dataclass(frozen=True, slots=True)
class Flow:
    """A client group and the region where it goes. lat, lon: of the group; ms: estimated round trip; share: of all addresses, 0 to 1.

    to_lat, to_lon: of the region; failover: whether it goes there because its own region cannot be reached
    """

    group: str
    lat: float
    lon: float
    region: str
    to_lat: float
    to_lon: float
    ms: float
    share: float
    failover: bool = False


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def hits(self, other: _Box) -> bool:
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom

    @property
    def inside(self) -> bool:
        return self.left >= 0 and self.top >= 0 and self.right <= WIDTH and self.bottom <= HEIGHT


def project(lat: float, lon: float) -> tuple[float, float]:
    """Give the point of the view box for a place in decimal degrees: x to the right, y downwards.

    Any longitude is brought round; a latitude off the map gives the point at its edge. ValueError for NaN and infinities.
    Source: T. Patterson, B. Šavrič, B. Jenny, "Introducing the Patterson Cylindrical Projection", 2014.
    """
    if not (math.isfinite(lat) and math.isfinite(lon)):
        raise ValueError(f"a place needs finite degrees, got {lat!r}, {lon!r}")
    x = (lon - CENTRE + 180.0) % 360.0 / 360.0 * WIDTH
    y = (_northing(NORTH) - _northing(min(NORTH, max(SOUTH, lat)))) / (2 * math.pi) * WIDTH
    return x, min(HEIGHT, max(0.0, y))


def _northing(lat: float) -> float:
    phi = math.radians(lat)
    square = phi * phi
    return phi * (1.0148 + square * square * (0.23185 + square * (-0.14499 + square * 0.02406)))


def route(lat: float, lon: float, to_lat: float, to_lon: float) -> list[list[tuple[float, float]]]:
    """Give the shortest way over the globe as lines of points in the view box; two lines where it leaves the map at one side."""
    start, end = _vector(lat, lon), _vector(to_lat, to_lon)
    angle = math.acos(max(-1.0, min(1.0, sum(a * b for a, b in zip(start, end, strict=True)))))
    if math.sin(angle) < 1e-6:  # the same place, or the antipodes, where every way is the shortest
        return [[project(lat, lon), project(to_lat, to_lon)]]
    steps = max(2, math.ceil(STEPS * angle / math.pi))
    lines: list[list[tuple[float, float]]] = [[]]
    for step in range(steps + 1):
        point = _between(start, end, angle, step / steps)
        if lines[-1] and abs(point[0] - lines[-1][-1][0]) > WIDTH / 2:
            _over_the_edge(lines, point)
        lines[-1].append(point)
    return lines


def _vector(lat: float, lon: float) -> tuple[float, float, float]:
    north, east = math.radians(lat), math.radians(lon)
    return math.cos(north) * math.cos(east), math.cos(north) * math.sin(east), math.sin(north)


def _between(start: Sequence[float], end: Sequence[float], angle: float, part: float) -> tuple[float, float]:
    a, b = math.sin((1 - part) * angle), math.sin(part * angle)
    x, y, z = (a * p + b * q for p, q in zip(start, end, strict=True))
    return project(math.degrees(math.atan2(z, math.hypot(x, y))), math.degrees(math.atan2(y, x)))


def _over_the_edge(lines: list[list[tuple[float, float]]], point: tuple[float, float]) -> None:
    """End the line at the side where it leaves the map, and begin another where it comes back."""
    x, y = lines[-1][-1]
    leaving, entering = (WIDTH, 0.0) if x > WIDTH / 2 else (0.0, WIDTH)
    to_edge, beyond = abs(leaving - x), abs(point[0] - entering)
    at = y + (point[1] - y) * to_edge / ((to_edge + beyond) or 1.0)
    lines[-1].append((leaving, at))
    lines.append([(entering, at)])


def world(sites: Sequence[Site], flows: Sequence[Flow] = (), *, title: str = "Regions and where clients go") -> Markup:
    """Give the map of the regions and the flows of clients as one `<svg>` element, for laying over the land's outline.

    Colours are classes of the style sheet: `tone-…` of a region's status, `band-…` of a flow's latency.
    """
    routes = Markup("").join(_flow(flow) for flow in sorted(flows, key=lambda flow: flow.share))
    marks = Markup("").join(_mark(site, label) for site, label in zip(sites, _labels(sites), strict=True))
    return Markup(
        '<svg class="map-live" viewBox="0 0 {:g} {:g}" role="img" aria-labelledby="map-title map-desc">'
        '<title id="map-title">{}</title><desc id="map-desc">{}</desc><g>{}</g><g>{}</g></svg>'
    ).format(WIDTH, HEIGHT, title, _told(sites, flows), routes, marks)


def _told(sites: Sequence[Site], flows: Sequence[Flow]) -> str:
    regions = "; ".join(f"{site.name} is {site.status}" for site in sites) or "no regions"
    moved = sum(flow.failover for flow in flows)
    return f"{regions}. {len(flows)} client groups are shown, {moved} of them away from their closest region."


def _flow(flow: Flow) -> Markup:
    lines = route(flow.lat, flow.lon, flow.to_lat, flow.to_lon)
    path = "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in line) for line in lines)
    x, y = project(flow.lat, flow.lon)
    share = min(1.0, max(0.0, flow.share))
    told = f"{flow.group} to {flow.region}: {ms(flow.ms)}, {percent(flow.share)} of addresses{', failed over' if flow.failover else ''}"
    return Markup(
        '<g class="flow band-{}{}"><title>{}</title><path d="{}" stroke-width="{:.2f}"/><circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/></g>'
    ).format(
        band(flow.ms), " failover" if flow.failover else "", told, path, 0.8 + 5 * math.sqrt(share), x, y, 1.5 + 9 * math.sqrt(share),
    )  # fmt: skip


SHAPES = {
    "good": Markup('<circle r="{0:g}"/>').format(MARK - 1),
    "warn": Markup('<path d="M0-{0:g}L{0:g} {1:g}H-{0:g}Z"/>').format(MARK, MARK - 1),
    "bad": Markup('<path d="M-{0:g}-{0:g}H{0:g}V{0:g}H-{0:g}Z"/><path class="cut" d="M-3-3L3 3M3-3L-3 3"/>').format(MARK - 1),
    "off": Markup('<circle class="hollow" r="{0:g}"/>').format(MARK - 2),
    "busy": Markup('<path d="M0-{0:g}L{0:g} 0 0 {0:g}-{0:g} 0Z"/>').format(MARK),
}


def _mark(site: Site, label: tuple[float, float, str] | None) -> Markup:
    x, y = project(site.lat, site.lon)
    kind = tone(site.status)
    text = Markup("") if label is None else Markup('<text x="{:.1f}" y="{:.1f}">{}</text>').format(label[0] - x, label[1] - y, label[2])
    ring = Markup('<circle class="ring" r="{:g}"/>').format(MARK + 4) if site.primary else Markup("")
    role = ", primary" if site.primary else ""
    return Markup(
        '<g class="site tone-{}" transform="translate({:.1f} {:.1f})"><title>{}</title><g class="mark">{}{}</g>{}</g>'
    ).format(kind, x, y, f"{site.name}{role}: {site.status}", ring, SHAPES[kind], text)


def _labels(sites: Sequence[Site]) -> Iterator[tuple[float, float, str] | None]:
    """Give where each region's name starts, on its base line; None where there is no room. Those in trouble choose first."""
    points = [project(site.lat, site.lon) for site in sites]
    taken = [_Box(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in points]
    found: dict[int, tuple[float, float, str]] = {}
    order = sorted(range(len(sites)), key=lambda index: (tone(sites[index].status) == "good", not sites[index].primary, index))
    for index in order:
        text = shortened(sites[index].name)
        box = next((box for box in _around(*points[index], len(text) * LETTER) if box.inside and not any(map(box.hits, taken))), None)
        if box is not None:
            taken.append(box)
            found[index] = (box.left, box.bottom - 0.25 * FONT, text)
    return (found.get(index) for index in range(len(sites)))


def shortened(text: str, longest: int = LONGEST) -> str:
    """Give a text of at most so many letters, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _around(x: float, y: float, width: float) -> Iterable[_Box]:
    away, half = MARK + 4, FONT / 2
    for left, top in (
        (x + away, y - half), (x - away - width, y - half), (x - width / 2, y - away - FONT), (x - width / 2, y + away),
        (x + away, y - FONT - 2), (x + away, y + 2), (x - away - width, y - FONT - 2), (x - away - width, y + 2),
    ):  # fmt: skip
        yield _Box(left, top, left + width, top + FONT)
