"""Charts: figures over time as SVG. Pure functions.

The drawing is stretched to whatever width there is, with lines of constant width; names of ticks and series are HTML beside it, so that
they stay legible on a phone. Colours and dashes are classes of the style sheet: `series-0` to `series-7`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeGuard

from markupsafe import Markup

from lbcore.service.portal.words import ms, percent, seconds

__all__ = ["Chart", "Legend", "Series", "bar", "latency", "share", "sparkline"]

WIDTH, HEIGHT = 600.0, 160.0  # units of the view box
MOST, MOST_SPARKS = 300, 60  # points of a line; of more, the largest of each stretch are kept
SERIES = 8  # that an eye can tell apart, each with a class in the style sheet
TICKS = 4  # stretches between the names on an axis
SPARK_WIDTH, SPARK_HEIGHT = 100.0, 24.0


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one region at even distances in time, oldest first; None = not known then."""

    name: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Legend:
    """A line's name, its class and its newest value in words."""

    name: str
    style: str
    newest: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing and what stands beside it: names of ticks on the left from top to bottom, below from left to right."""

    title: str
    svg: Markup
    left: tuple[str, ...]
    below: tuple[str, ...]
    legend: tuple[Legend, ...]


def latency(series: Sequence[Series], end: datetime, span: float, *, name: str = "latency") -> Chart:
    """Give lines of latency, ms, over the `span` seconds before `end`; of more than 8 the slowest now.

    name: of the drawing's ids, unique on a page
    """
    title = f"Latency, the {SERIES} slowest of {len(series)}" if len(series) > SERIES else "Latency"
    series = _largest(series, SERIES)
    known = [value for line in series for value in line.values if _known(value)]
    top = _round_up(max(known, default=100.0))
    lines = Markup("").join(_line(line.values, top, _style(index, series)) for index, line in enumerate(series))
    told = "; ".join(f"{line.name} {ms(_newest(line))}" for line in series)
    left = tuple(ms(top * (TICKS - tick) / TICKS) for tick in range(TICKS + 1))
    return _chart(title, name, lines, f"Newest values: {told or 'none'}.", left, series, ms, end, span)


def share(series: Sequence[Series], end: datetime, span: float, *, of: str = "clients", name: str = "share") -> Chart:
    """Give the regions' shares of the clients, 0 to 1, stacked upon each other, over the `span` seconds before `end`. of: what is counted

    Of more than 8 regions the largest now, and all others as one.
    """
    if len(series) > SERIES:
        kept = _largest(series, SERIES - 1)
        series = [*kept, _together([line for line in series if line not in kept])]
    areas = Markup("").join(_area(lower, upper, _style(index, series)) for index, (lower, upper) in enumerate(_stacked(series)))
    told = "; ".join(f"{line.name} {percent(_newest(line))}" for line in series)
    left = tuple(percent((TICKS - tick) / TICKS) for tick in range(TICKS + 1))
    return _chart(f"Share of {of}", name, areas, f"Newest values: {told or 'none'}.", left, series, percent, end, span)


def sparkline(values: Sequence[float | None], label: str) -> Markup:
    """Give a small line without axes, from its lowest to its highest value; `label` says what it shows."""
    kept = _fewer(values, MOST_SPARKS)
    known = [value for value in kept if _known(value)]
    low, high = min(known, default=0.0), max(known, default=1.0)
    spread = (high - low) or 1.0
    points = [(value - low) / spread if _known(value) else None for value in kept]
    path = _path(points, SPARK_WIDTH, SPARK_HEIGHT - 4, 2.0)
    return Markup(
        '<svg class="spark" viewBox="0 0 {:g} {:g}" preserveAspectRatio="none" role="img"><title>{}</title><path d="{}"/></svg>'
    ).format(SPARK_WIDTH, SPARK_HEIGHT, label, path)


def _chart(
    title: str, name: str, drawn: Markup, told: str, left: tuple[str, ...], series: Sequence[Series], say: Callable[[float | None], str],
    end: datetime, span: float,
) -> Chart:  # fmt: skip
    grid = Markup("").join(
        Markup('<path class="grid" d="M0 {0:g}H{1:g}"/>').format(HEIGHT * tick / TICKS, WIDTH) for tick in range(TICKS + 1)
    )
    svg = Markup(
        '<svg class="plot" viewBox="0 0 {:g} {:g}" preserveAspectRatio="none" role="img" aria-labelledby="{n}-title {n}-desc">'
        '<title id="{n}-title">{}</title><desc id="{n}-desc">{}</desc>{}{}</svg>'
    ).format(WIDTH, HEIGHT, f"{title}, last {seconds(span)}", told, grid, drawn, n=name)
    legend = tuple(Legend(line.name, _style(index, series), say(_newest(line))) for index, line in enumerate(series))
    return Chart(title, svg, left, tuple(_times(end, span)), legend)


def _times(end: datetime, span: float) -> Iterator[str]:
    form = "%H:%M" if span >= 15 * 60 else "%H:%M:%S"
    for tick in range(TICKS + 1):
        yield datetime.fromtimestamp(end.timestamp() - span * (TICKS - tick) / TICKS, UTC).strftime(form)


def _style(index: int, series: Sequence[Series]) -> str:
    return f"series-{index % SERIES}" if index < len(series) else ""


def _line(values: Sequence[float | None], top: float, style: str) -> Markup:
    points = [value / top if _known(value) else None for value in _fewer(values)]
    return Markup('<path class="line {}" d="{}"/>').format(style, _path(points, WIDTH, HEIGHT))


def _path(points: Sequence[float | None], width: float, height: float, margin: float = 0.0) -> str:
    """Give the lines through the points, 0 at the bottom and 1 at the top; a gap where there is none, a dash where one stands alone."""
    step = width / max(1, len(points) - 1)
    parts, pen = [], "M"
    for index, value in enumerate(points):
        if value is None:
            pen = "M"
            continue
        x, y = min(width, index * step), margin + height * (1 - min(1.0, max(0.0, value)))
        parts.append(f"{pen}{x:.1f} {y:.1f}")
        alone = pen == "M" and (index + 1 == len(points) or points[index + 1] is None)
        if alone:
            parts.append(f"H{min(width, x + 2):.1f}")
        pen = "L"
    return "".join(parts)


def _stacked(series: Sequence[Series]) -> Iterator[tuple[list[float], list[float]]]:
    """Give the lower and the upper edge of each area; unknown counts as none, and what is more than all is cut off."""
    columns = max((len(line.values) for line in series), default=0)
    kept = min(columns, MOST)
    base = [0.0] * kept
    for line in series:
        values = (*((None,) * (columns - len(line.values))), *line.values)
        thinned = [values[index * columns // kept] for index in range(kept)]
        upper = [min(1.0, low + max(0.0, value or 0.0)) if _known(value) else low for low, value in zip(base, thinned, strict=True)]
        yield base, upper
        base = upper


def _area(lower: Sequence[float], upper: Sequence[float], style: str) -> Markup:
    if not upper:
        return Markup("")
    step = WIDTH / max(1, len(upper) - 1)
    over = [(min(WIDTH, i * step), HEIGHT * (1 - value)) for i, value in enumerate(upper)]
    under = [(min(WIDTH, i * step), HEIGHT * (1 - value)) for i, value in enumerate(lower)]
    if len(upper) == 1:
        over, under = [*over, (WIDTH, over[0][1])], [*under, (WIDTH, under[0][1])]
    edge = "L".join(f"{x:.1f} {y:.1f}" for x, y in (*over, *reversed(under)))
    return Markup('<path class="area {}" d="M{}Z"/>').format(style, edge)


def _largest(series: Sequence[Series], count: int) -> list[Series]:
    """Give the series of the largest newest values, in the order in which they came."""
    order = sorted(range(len(series)), key=lambda index: value if _known(value := _newest(series[index])) else -math.inf, reverse=True)
    return [series[index] for index in sorted(order[:count])]


def _together(series: Sequence[Series]) -> Series:
    """Give the sum of several series; shorter ones lack their oldest values."""
    length = max(len(line.values) for line in series)
    columns = zip(*((*((None,) * (length - len(line.values))), *line.values) for line in series), strict=True)
    return Series(f"{len(series)} others", tuple(sum(value for value in column if _known(value)) for column in columns))


def _fewer(values: Sequence[float | None], most: int = MOST) -> list[float | None]:
    """Give at most so many values: the largest of each stretch, so that no spike is lost."""
    if len(values) <= most:
        return [*values]
    stretches = ([*values[i * len(values) // most : (i + 1) * len(values) // most]] for i in range(most))
    return [max((value for value in stretch if _known(value)), default=None) for stretch in stretches]


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _newest(line: Series) -> float | None:
    return line.values[-1] if line.values else None


def _round_up(value: float) -> float:
    """Give the next of 1.2, 2, 4, 8 x 10^n, at least 0.4, which four stretches divide into figures of one digit after the point."""
    value = max(value, 0.4)
    power = 10.0 ** math.floor(math.log10(value))
    return next((factor * power for factor in (1.2, 2, 4, 8) if value <= factor * power), 12 * power)


def bar(value: float | None, most: float, spread: float = 0.0) -> Markup:
    """Give a bar of `value` on a scale from 0 to `most`, with a line from value - spread to value + spread. The figure stands beside it."""
    scale = SPARK_WIDTH / most if most > 0 and math.isfinite(most) else 0.0
    at, low, high = (min(SPARK_WIDTH, max(0.0, scale * each)) for each in _around(value, spread))
    return Markup(
        '<svg class="bar" viewBox="0 0 {0:g} 10" preserveAspectRatio="none" aria-hidden="true"><rect y="2" width="{1:.1f}" height="6"/>'
        '<path d="M{2:.1f} 5H{3:.1f}"/></svg>'
    ).format(SPARK_WIDTH, at, low, high)


def _around(value: float | None, spread: float) -> tuple[float, float, float]:
    known = value if value is not None and math.isfinite(value) else 0.0
    width = spread if math.isfinite(spread) else 0.0
    return known, known - width, known + width
