"""A network as a picture: a box for each layer with a kernel or a pooling, in the order of computation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from vgg_jax.models.summary import LayerRow

_COLORS = {
    "conv": "#7aa6da",
    "pool": "#e0a458",
    "mean": "#e0a458",
    "fc": "#8fbc8f",
    "head": "#5f9e6e",
    "concat": "#b6a3d4",
}
_NAMES = {
    "conv": "convolution",
    "pool": "pooling",
    "fc": "fully connected",
    "head": "to the classes",
    "add": "shortcut",
    "concat": "Inception module",
}
_UNIT, _GAP, _MARGIN, _TEXT = 34, 6, 24, 15  # pixels


def draw_network(title: str, rows: Sequence[LayerRow]) -> Image.Image:
    """Draws a network.

    A box is as high as its map (by the logarithm of its side) and as wide as its channels (likewise). An arc leads from
    where a shortcut leaves to where it is added. Projections on shortcuts are not drawn, and an Inception module is one
    box, its output.

    Args:
      title: the network's name.
      rows: of `summary.layer_rows`.
    """
    modules = "|".join(row.name.removeprefix("concat") for row in rows if row.kind == "concat")
    in_module = re.compile(rf"(conv|pool)({modules})(_\w+)?" if modules else r"(?!)")
    boxes = [row for row in rows if row.kind in _COLORS and not row.is_projection and not in_module.fullmatch(row.name)]
    heights = [round(_UNIT * (1 + math.log2(row.output[0]))) for row in boxes]
    has_label = [i == 0 or row.output != boxes[i - 1].output for i, row in enumerate(boxes)]
    widths = [
        max(30 if label else 8, round(3 * math.log2(row.output[2])))
        for row, label in zip(boxes, has_label, strict=True)
    ]
    tallest = max(heights)
    arcs = 40 if any(row.kind == "add" for row in rows) else 0
    base = _MARGIN + 2 * _TEXT + arcs + tallest
    width = max(2 * _MARGIN + sum(widths) + _GAP * (len(boxes) - 1), 660)
    canvas = Image.new("RGB", (width, base + 7 * _TEXT), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT - 2)
    parameters = sum(row.parameters for row in rows)
    pen.text(
        (_MARGIN, _MARGIN // 2), f"{title}: {rows[-1].depth} weight layers, {parameters:,} parameters", "black", font
    )
    left, ends = _MARGIN, dict[str, tuple[int, int]]()
    for row, height, box_width, label in zip(boxes, heights, widths, has_label, strict=True):
        pen.rectangle((left, base - height, left + box_width, base), _COLORS[row.kind], "#33475b")
        ends[row.name] = (left + box_width, base - height)
        if label:
            pen.text((left, base + 6), f"{row.output[0]}", "black", font)
            pen.text((left, base + 6 + _TEXT), f"{row.output[2]}", "black", font)
        left += box_width + _GAP
    _draw_arcs(pen, rows, ends)
    pen.text(
        (_MARGIN, base + 10 + 2 * _TEXT),
        "below: height and width of the map, and its channels, where they change",
        "#555",
        font,
    )
    x = _MARGIN
    for kind in dict.fromkeys(row.kind for row in boxes if row.kind in _NAMES):
        pen.rectangle((x, base + 12 + 4 * _TEXT, x + 12, base + 24 + 4 * _TEXT), _COLORS[kind], "#33475b")
        pen.text((x + 18, base + 10 + 4 * _TEXT), _NAMES[kind], "black", font)
        x += 36 + round(pen.textlength(_NAMES[kind], font))
    return canvas


def _draw_arcs(pen: ImageDraw.ImageDraw, rows: Sequence[LayerRow], ends: dict[str, tuple[int, int]]) -> None:
    """Draws an arc over each block, from the sum before it, or the stem, to its own."""
    start = last = None
    for row in rows:
        if row.name in ends:
            last = ends[row.name]
            start = last if row.block == 1 else start
        elif row.kind == "add" and start and last:
            top = min(start[1], last[1]) - 22
            pen.arc((start[0], top, last[0], top + 40), 180, 360, "#b5475b", 2)
            start = last
