"""Curves as SVG that takes its colours from the page's style, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

_WIDTH, _HEIGHT = 400, 236  # user units: a phone shows a chart at about 0.8 pixels a unit
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 36
_MOST_POINTS = 400  # of a line; more are averaged
_MOST_DOTS = 120  # of a line, each with its value as a title
COLORS = 8  # of lines, classes c0 to c7 of the style


class Line(NamedTuple):
    """One curve."""

    label: str  # in the legend, once for all lines of this label
    points: Sequence[tuple[float, float]]
    color: int
    kind: str = ""  # classes of the style: `thin`, `dashed`
    dots: bool = False  # a dot for each point, with its value as a title


class Mark(NamedTuple):
    """A vertical line at something that happened."""

    x: float
    label: str


class YAxis(NamedTuple):
    """The form of a y axis."""

    percent: bool = False  # values are fractions, written as per cent
    log: bool = False  # logarithmic; values of zero and less are left out
    top: float | None = None  # its end; None: the largest value

    def text(self, value: float) -> str:
        return f"{100 * value:.4g} %" if self.percent else f"{value:.4g}"

    def tick(self, value: float) -> str:
        return f"{100 * value:g}%" if self.percent else _number_text(value)


_LINEAR = YAxis()


class Chart(NamedTuple):
    """A drawing with what stands around it."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]  # (classes, label)
    caption: str


class _Frame(NamedTuple):
    """The values at the ends of the axes: x from 0 to `right`, y from `low` to `high`, both log10 where `log`."""

    right: float
    low: float
    high: float
    log: bool

    def x(self, value: float) -> float:
        return round(_LEFT + value / self.right * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = min(((math.log10(value) if self.log else value) - self.low) / (self.high - self.low), 1)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    marks: Sequence[Mark] = (),
    y_axis: YAxis = _LINEAR,
    caption: str = "",
) -> Chart | None:
    """Draws lines over a common x axis that begins at 0; None where no line has two points, or one with a dot.

    Args:
      title: of the figure, also read out.
      lines: of any number of points.
      x_label: of the axis.
      marks: drawn behind the lines.
      y_axis: its form.
      caption: beneath.
    """
    drawn = [
        line._replace(points=thinned([(x, y) for x, y in line.points if not y_axis.log or y > 0], _MOST_POINTS))
        for line in lines
    ]
    drawn = [line for line in drawn if len(line.points) > 1 or (line.points and line.dots)]
    if not drawn:
        return None
    xs, ys = zip(*(point for line in drawn for point in line.points), strict=True)
    y_ticks, low, high = _y_ticks(ys, y_axis)
    frame = _Frame(max(xs) or 1, low, high, y_axis.log)
    parts = [f"<title>{escape(title)}</title>", *_axes(frame, y_ticks, y_axis, x_label), *_marks(marks, frame.x)]
    for line in drawn:
        parts += _curve(line, frame, y_axis, x_label)
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    legend = dict.fromkeys((f"c{line.color % COLORS} {line.kind}".rstrip(), line.label) for line in drawn)
    return Chart(title, Markup(svg), list(legend), caption)


def _axes(frame: _Frame, y_ticks: Sequence[float], y_axis: YAxis, x_label: str) -> list[str]:
    """Draws horizontal lines with their values, the values of the x axis, and its label."""
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{y_axis.tick(value)}</text>')
    for value in _ticks(0, frame.right, 5):
        if value <= frame.right * 1.0001:
            place = f'x="{frame.x(value)}" y="{_HEIGHT - _BOTTOM + 15}"'
            parts.append(f'<text {place} text-anchor="middle">{_number_text(value)}</text>')
    place = f'x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}"'
    return [*parts, f'<text class="axis" {place} text-anchor="end">{escape(x_label)}</text>']


def _curve(line: Line, frame: _Frame, y_axis: YAxis, x_label: str) -> list[str]:
    """Draws a line, and its dots where there are few."""
    color = f"c{line.color % COLORS}"
    at = [(frame.x(x), frame.y(y)) for x, y in line.points]
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in at)
    parts = [
        f'<path class="{f"line {color} {line.kind}".rstrip()}" d="{path}"><title>{escape(line.label)}</title></path>'
    ]
    if line.dots and len(at) <= _MOST_DOTS:
        for (x, y), point in zip(at, line.points, strict=True):
            text = escape(f"{line.label}, {x_label} {point[0]:.4g}: {y_axis.text(point[1])}")
            parts.append(f'<circle class="{color}" cx="{x:g}" cy="{y:g}" r="2.2"><title>{text}</title></circle>')
    return parts


def _y_ticks(ys: Sequence[float], y_axis: YAxis) -> tuple[list[float], float, float]:
    """Returns ticks and ends of the y axis; the ends of a logarithmic one are powers of ten.

    An axis begins at 0 unless that would flatten the curves, and a few values far above the others are cut off.
    """
    if y_axis.log:
        first, last = math.floor(math.log10(min(ys)) + 1e-9), math.ceil(math.log10(max(ys)) - 1e-9)
        last = max(last, first + 1)
        return (
            [10.0**power for power in range(first, last + 1, math.ceil((last - first) / 5))],
            float(first),
            float(last),
        )
    ordered = sorted(ys)
    most = ordered[-1]
    if most > 4 * ordered[-1 - len(ordered) // 20] > 0:
        most = 1.25 * ordered[-1 - len(ordered) // 20]
    least = ordered[0] if ordered[0] > most / 2 else min(0, ordered[0])
    if most > least:
        ticks = _ticks(least, most or 1 if y_axis.top is None else y_axis.top, 4)
    else:
        ticks = _ticks(0, most or 1, 4)
    return ticks, ticks[0], ticks[-1]


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Returns a bounded number of points: means of neighbours, and the last point unchanged."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    means = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in (points[i : i + size] for i in range(0, len(points), size))
    ]
    return [*means[:-1], points[-1]]


def _marks(marks: Sequence[Mark], to_x: Callable[[float], float]) -> list[str]:
    """Draws dashed lines; labels of near ones stand one below the other, those near the right edge to the left."""
    parts, before, row = [], -math.inf, 0
    for mark in marks:
        x = to_x(mark.x)
        to_left = x > _WIDTH - _RIGHT - 58
        row = row + 1 if x - before < (116 if to_left else 58) else 0  # a label to the left meets the one before it
        before = x
        parts.append(f'<path class="mark" d="M{x:g} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(
            f'<text class="mark" x="{x - 4 if to_left else x + 4:g}" y="{_TOP + 10 + 14 * row}" '
            f'text-anchor="{"end" if to_left else "start"}">{escape(mark.label)}</text>'
        )
    return parts


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Returns round numbers from at or below `low` to at or above `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _number_text(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}" if value == 0 or abs(value) >= 0.001 else f"{value:.0e}".replace("e-0", "e-")
