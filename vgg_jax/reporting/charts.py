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


class Chart(NamedTuple):
    """A drawing with what stands around it."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]  # (classes, label)
    caption: str


def chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    marks: Sequence[Mark] = (),
    percent: bool = False,
    log: bool = False,
    top: float | None = None,
    end: float | None = None,
    caption: str = "",
) -> Chart | None:
    """Draws lines over a common x axis that begins at 0; None where no line has two points, or one with a dot.

    Args:
      title: of the figure, also read out.
      lines: at least one.
      x_label: of the axis.
      marks: drawn behind the lines.
      percent: y are fractions, written as per cent.
      log: a logarithmic y axis; values of zero and less are left out.
      top: the y axis's end; None: the largest value.
      end: the x axis's end; None: the last point.
      caption: beneath.
    """
    drawn = [
        line._replace(points=thinned([(x, y) for x, y in line.points if not log or y > 0], _MOST_POINTS))
        for line in lines
    ]
    drawn = [line for line in drawn if len(line.points) > 1 or (line.points and line.dots)]
    if not drawn:
        return None
    xs, ys = zip(*(point for line in drawn for point in line.points), strict=True)
    x_ticks = _ticks(0, end or max(xs) or 1, 5)
    right = max(end or 0, *xs) or 1
    y_ticks, low, high = _y_axis(ys, log, top)

    def to_svg(x: float, y: float) -> tuple[float, float]:
        share = ((math.log10(y) if log else y) - low) / (high - low)
        return (
            round(_LEFT + x / right * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    def text(value: float) -> str:
        return f"{100 * value:.4g} %" if percent else f"{value:.4g}"

    parts = [f"<title>{escape(title)}</title>"]
    for value in y_ticks:
        y = to_svg(0, value)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        shown = f"{100 * value:g}%" if percent else _number(value)
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{shown}</text>')
    for value in x_ticks:
        if value <= right * 1.0001:
            x = to_svg(value, y_ticks[0])[0]
            parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{_number(value)}</text>')
    parts.append(
        f'<text class="axis" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>'
    )
    parts += _marks(marks, lambda x: to_svg(x, y_ticks[0])[0])
    for line in drawn:
        at = [to_svg(x, min(y, 10.0**high) if log else min(y, high)) for x, y in line.points]
        classes = f"line c{line.color % COLORS} {line.kind}".rstrip()
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in at)
        parts.append(f'<path class="{classes}" d="{path}"><title>{escape(line.label)}</title></path>')
        if line.dots and len(at) <= _MOST_DOTS:
            parts += [
                f'<circle class="c{line.color % COLORS}" cx="{x:g}" cy="{y:g}" r="2.2"><title>'
                f"{escape(f'{line.label}, {x_label} {point[0]:.4g}: {text(point[1])}')}</title></circle>"
                for (x, y), point in zip(at, line.points, strict=True)
            ]
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    legend = dict.fromkeys((f"c{line.color % COLORS} {line.kind}".rstrip(), line.label) for line in drawn)
    return Chart(title, Markup(svg), list(legend), caption)


def _y_axis(ys: Sequence[float], log: bool, top: float | None) -> tuple[list[float], float, float]:
    """Returns ticks and ends of the y axis; the ends of a logarithmic one are powers of ten.

    An axis begins at 0 unless that would flatten the curves, and a few values far above the others are cut off.
    """
    if log:
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
    ticks = _ticks(least, top if top is not None else most or 1, 4) if most > least else _ticks(0, most or 1, 4)
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


def _number(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}" if value == 0 or abs(value) >= 0.001 else f"{value:.0e}".replace("e-0", "e-")
