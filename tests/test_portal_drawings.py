"""The portal's drawings: everything lies within the view box, whatever the figures; texts are escaped; the land is the land."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest

pytest.importorskip("markupsafe")

from hypothesis import given
from hypothesis import strategies as st

from lbcore.region import catalogue
from lbcore.service.portal import charts, land_build, map, words
from lbcore.service.portal.assets import FOLDER
from lbcore.service.portal.charts import Series
from lbcore.service.portal.map import HEIGHT, WIDTH, Flow, Site, project, route, world

LATS = st.floats(-90, 90)
LONS = st.floats(-720, 720)
SHARES = st.floats(allow_nan=True, allow_infinity=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff"), max_size=40)
STATUSES = st.sampled_from([*words.TONES, "a word nobody knows"])
SITES = st.lists(st.builds(Site, TEXTS, LATS, LONS, STATUSES, st.booleans()), max_size=8)
FLOWS = st.lists(st.builds(Flow, TEXTS, LATS, LONS, TEXTS, LATS, LONS, SHARES, st.floats(0, 1), st.booleans()), max_size=4)
VALUES = st.lists(st.none() | st.floats(allow_nan=True, allow_infinity=True), max_size=40)
SERIES = st.lists(st.builds(lambda name, values: Series(name, tuple(values)), TEXTS, VALUES), max_size=10)
END = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
NUMBER = re.compile(r"-?\d*\.?\d+")


def inside(x: float, y: float) -> bool:
    return 0 <= x <= WIDTH and 0 <= y <= HEIGHT


# ===== the map


@given(LATS, LONS)
def test_every_place_is_on_the_map(lat: float, lon: float) -> None:
    assert inside(*project(lat, lon))


@given(st.floats(-55, 83), st.floats(-55, 83))
def test_north_is_up(a: float, b: float) -> None:
    if b - a > 1e-6:
        assert project(b, 0)[1] < project(a, 0)[1]


@given(LATS, st.floats(-180, 180))
def test_longitude_comes_round(lat: float, lon: float) -> None:
    apart = abs(project(lat, lon)[0] - project(lat, lon + 360)[0])
    assert min(apart, WIDTH - apart) < 1e-6


def test_projection_is_pattersons() -> None:
    """The published polynomial, as PROJ has it: the pole lies 1.7907 radians' worth above the equator on a sphere of radius 1."""
    assert map._northing(90.0) == pytest.approx(1.790857183, abs=1e-8)
    assert map._northing(-45.0) == pytest.approx(-map._northing(45.0))
    assert project(0.0, map.CENTRE)[0] == WIDTH / 2


def test_a_place_needs_numbers() -> None:
    with pytest.raises(ValueError, match="finite"):
        project(math.nan, 0.0)


@given(LATS, LONS, LATS, LONS)
def test_route_stays_on_the_map_and_leads_there(lat: float, lon: float, to_lat: float, to_lon: float) -> None:
    lines = route(lat, lon, to_lat, to_lon)
    assert all(inside(*point) for line in lines for point in line)
    for place, point in (((lat, lon), lines[0][0]), ((to_lat, to_lon), lines[-1][-1])):
        expected = project(*place)
        apart = abs(expected[0] - point[0])
        if abs(place[0]) < 89.9:  # at a pole every longitude is the same place
            assert min(apart, WIDTH - apart) < 0.5
        assert abs(expected[1] - point[1]) < 0.5


def test_the_way_over_the_pacific_leaves_the_map_and_comes_back() -> None:
    first, second = route(35.7, 139.7, 47.2, -119.9)
    assert (first[-1][0], second[0][0]) == (WIDTH, 0.0)
    assert first[-1][1] == second[0][1]


@given(SITES, FLOWS, TEXTS)
def test_the_map_is_one_sound_drawing(sites: list[Site], flows: list[Flow], title: str) -> None:
    root = ElementTree.fromstring(world(sites, flows, title=title))
    assert root.find("title").text == (title or None)  # type: ignore[union-attr]
    for mark in root.iter("g"):
        if mark.get("class", "").startswith("site"):
            x, y = (float(each) for each in NUMBER.findall(mark.get("transform", "")))
            assert inside(x, y)
            for text in mark.iter("text"):
                left, base = x + float(text.get("x", "")), y + float(text.get("y", ""))
                assert inside(left - 0.2, base + 0.2) and inside(left + 0.58 * 15 * len(text.text or "") - 0.2, base - 10)
        for path in mark.findall("path[@stroke-width]"):
            numbers = [float(each) for each in NUMBER.findall(path.get("d", ""))]
            assert all(inside(*point) for point in zip(numbers[::2], numbers[1::2], strict=True))


def test_labels_do_not_lie_on_each_other() -> None:
    sites = [Site(each.display_name, each.lat, each.lon, "Online") for each in catalogue().values() if each.provider == "azure"]
    labels = [label for label in map._labels(sites) if label is not None]
    boxes = [(x, y, x + 0.58 * 15 * len(text), y - 15) for x, y, text in labels]
    assert len(boxes) > 15
    for index, (left, bottom, right, top) in enumerate(boxes):
        for other in boxes[:index]:
            assert right <= other[0] or other[2] <= left or bottom <= other[3] or other[1] <= top


def test_who_is_in_trouble_is_named_first() -> None:
    crowd = [Site(f"neighbour {number}", 50 + number / 50, 8, "Online") for number in range(30)] + [Site("trouble", 50.3, 8, "Degraded")]
    assert [*map._labels(crowd)][-1] is not None


# ===== the land


def test_the_land_is_small_and_on_the_map() -> None:
    text = (FOLDER / "land.svg").read_text(encoding="utf-8")
    assert len(text) <= 40_000
    root = ElementTree.fromstring(text)
    (path,) = [*root]
    assert (path.get("id"), root.get("viewBox")) == ("land", f"0 0 {WIDTH:g} {HEIGHT:g}")
    shapes = [*polygons(path.get("d", ""))]
    assert len(shapes) > 60
    assert all(inside(x + 0.06, y + 0.06) or inside(x - 0.06, y - 0.06) for shape in shapes for x, y in shape)


@pytest.mark.parametrize(
    ("place", "land"),
    [
        ((48.8, 9.2), True), ((39.0, -98.0), True), ((-25.0, 135.0), True), ((66.0, -173.0), True), ((30.0, -40.0), False),
        ((0.0, -150.0), False),
    ],
)  # fmt: skip
def test_land_lies_where_it_lies(place: tuple[float, float], land: bool) -> None:
    """Stuttgart, Kansas, the Simpson Desert and Chukotka beyond the date line; the Atlantic and the Pacific."""
    path = ElementTree.fromstring((FOLDER / "land.svg").read_text(encoding="utf-8"))[0].get("d", "")
    assert (sum(crossings(shape, *project(*place)) for shape in polygons(path)) % 2 == 1) is land


def polygons(path: str) -> list[list[tuple[float, float]]]:
    shapes = []
    for ring in path.split("z")[:-1]:
        start, moves = ring[1:].split("l")
        x, y = (float(each) for each in start.split())
        shape = [(x, y)]
        numbers = [float(each) for each in re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+)", moves)]
        for dx, dy in zip(numbers[::2], numbers[1::2], strict=True):
            x, y = x + dx, y + dy
            shape.append((x, y))
        shapes.append(shape)
    return shapes


def crossings(shape: list[tuple[float, float]], x: float, y: float) -> int:
    sides = zip(shape, [*shape[1:], shape[0]], strict=True)
    return sum((a[1] > y) != (b[1] > y) and x < a[0] + (y - a[1]) * (b[0] - a[0]) / (b[1] - a[1]) for a, b in sides)


def test_rings_are_read_from_topojson() -> None:
    """Two arcs that share their ends; the second is used backwards."""
    topology = {
        "transform": {"scale": [2.0, 1.0], "translate": [10.0, 20.0]},
        "arcs": [[[0, 0], [1, 0], [0, 1]], [[0, 0], [0, 1], [1, 0]]],
        "objects": {"land": {"geometries": [{"arcs": [[[0, ~1]]]}]}},
    }
    assert [*land_build.rings(topology)] == [[(10.0, 20.0), (12.0, 20.0), (12.0, 21.0), (10.0, 21.0)]]


def test_points_that_matter_least_go_first() -> None:
    ring = [(0.0, 0.0), (5.0, 0.01), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)]
    assert land_build.simplified(ring, 1.0) == [point for point in ring if point != (5.0, 0.01)]


# ===== charts


@given(SERIES, st.sampled_from([charts.latency, charts.share]), st.floats(1, 1e6))
def test_a_chart_stays_within_its_box(series: list[Series], draw: object, span: float) -> None:
    chart = draw(series, END, span)  # type: ignore[operator]
    root = ElementTree.fromstring(chart.svg)
    for path in root.findall("path"):
        for x, y in points_of(path.get("d", "")):
            assert 0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT
    assert root.get("role") == "img"
    assert {root.find("title").get("id"), root.find("desc").get("id")} == {*root.get("aria-labelledby", "").split()}  # type: ignore[union-attr]
    if len(series) <= charts.SERIES:
        assert [line.name for line in chart.legend] == [each.name for each in series]
    assert len(chart.legend) == min(len(series), charts.SERIES)
    assert len(chart.left) == len(chart.below) == charts.TICKS + 1


def points_of(path: str) -> list[tuple[float, float]]:
    found, y = [], 0.0
    for letter, numbers in re.findall(r"([MLH])([^MLHZ]*)", path):
        values = [float(each) for each in NUMBER.findall(numbers)]
        y = values[1] if letter != "H" else y
        found.append((values[0], y))
    return found


@given(st.lists(st.none() | st.floats(-1e6, 1e6), max_size=900), TEXTS)
def test_a_sparkline_stays_within_its_box(values: list[float | None], label: str) -> None:
    root = ElementTree.fromstring(charts.sparkline(values, label))
    assert root.find("title").text == (label or None)  # type: ignore[union-attr]
    path = root.find("path").get("d", "")  # type: ignore[union-attr]
    assert all(0 <= x <= charts.SPARK_WIDTH and 0 <= y <= charts.SPARK_HEIGHT for x, y in points_of(path))


@given(st.none() | st.floats(), st.floats(), st.floats())
def test_a_bar_stays_within_its_box(value: float | None, most: float, spread: float) -> None:
    rect, line = ElementTree.fromstring(charts.bar(value, most, spread))
    numbers = [float(rect.get("width", "")), *(x for x, _ in points_of(line.get("d", "")))]
    assert all(0 <= number <= charts.SPARK_WIDTH for number in numbers)


def test_no_spike_is_lost_when_points_are_left_out() -> None:
    values = [1.0] * 5000
    values[1234] = 900.0
    assert max(charts._fewer(values)) == 900.0  # type: ignore[type-var]
    assert len(charts._fewer(values)) == charts.MOST


def test_what_is_unknown_is_a_gap() -> None:
    assert charts._path([0.0, None, 1.0, 1.0], 30, 10) == "M0.0 10.0H2.0M20.0 0.0L30.0 0.0"


def test_shares_are_stacked() -> None:
    (_, first), (lower, upper) = charts._stacked([Series("a", (0.25, 0.5)), Series("b", (0.75, 0.5))])
    assert first == lower == [0.25, 0.5]
    assert upper == [1.0, 1.0]


def test_of_many_regions_those_that_matter_are_drawn() -> None:
    many = [Series(f"r{number}", (0.0, number / 100)) for number in range(14)]
    slow = charts.latency(many, END, 60)
    assert (slow.title, [line.name for line in slow.legend]) == ("Latency, the 8 slowest of 14", [f"r{number}" for number in range(6, 14)])
    stacked = charts.share(many, END, 60).legend
    assert [(line.name, line.newest) for line in stacked[-2:]] == [("r13", "13 %"), ("7 others", "21 %")]


@given(st.floats(-1, 1e9))
def test_names_of_ticks_are_what_they_stand_for(value: float) -> None:
    top = charts._round_up(value)
    assert value <= top <= max(0.4, 2.01 * value)
    for tick in range(5):
        shown = words.ms(top * tick / 4).removesuffix(" ms").replace(",", "")
        assert float(shown) == pytest.approx(top * tick / 4, rel=1e-9)


def test_axes_have_even_figures() -> None:
    chart = charts.latency([Series("a", (31.0, 73.0))], END, 3600)
    assert chart.left == ("80 ms", "60 ms", "40 ms", "20 ms", "0 ms")
    assert chart.below == ("02:00", "02:15", "02:30", "02:45", "03:00")


# ===== words


@pytest.mark.parametrize(
    ("given", "shown"),
    [(0, "0 s"), (0.4, "0.4 s"), (9.0, "9 s"), (45, "45 s"), (59.7, "1 min"), (190, "3 min 10 s"), (7500, "2 h 5 min"), (273600, "3 d 4 h"),
     (None, "—"), (math.inf, "—"), (math.nan, "—")],
)  # fmt: skip
def test_durations(given: float | None, shown: str) -> None:
    assert words.seconds(given) == shown


def test_figures() -> None:
    assert [words.ms(each) for each in (0.0, 0.44, 9.96, 12.4, 12345.0, None)] == ["0 ms", "0.4 ms", "10 ms", "12 ms", "12,345 ms", "—"]
    assert [words.percent(each) for each in (0.0, 0.0004, 0.042, 1.0, math.nan)] == ["0 %", "<0.1 %", "4.2 %", "100 %", "—"]
    assert [words.band(each) for each in (0.0, 50.0, 199.9, 200.0, math.nan)] == ["near", "fair", "far", "poor", "poor"]


def test_what_nobody_knows_is_not_shown_as_well() -> None:
    assert words.tone("Exploded") == "warn"


def test_subnets_in_short() -> None:
    assert words.subnet("/subscriptions/s/resourceGroups/r/providers/Microsoft.Network/virtualNetworks/weu/subnets/apim") == "weu / apim"
    assert words.subnet("weu") == "weu"


def test_ago() -> None:
    assert words.ago(datetime(2026, 11, 22, 2, 59, 48, tzinfo=UTC), END) == "12 s ago"
    assert words.ago(datetime(2026, 11, 22, 3, 1, tzinfo=UTC), END) == "just now"
