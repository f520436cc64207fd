"""The class score map laid over the photograph: where a net sees a class (Paper §3.2's dense evaluation, as a picture)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vgg_jax.augment import normalize
from vgg_jax.evaluation.nets import Net
from vgg_jax.models import STRIDE
from vgg_jax.steps import compile_step

_SIDE = 320  # shorter side of a panel, pixels
_LONGEST = 4  # times that, the longer side at most
_GAP = 12
# Colours from the lowest to the highest score: dark blue, blue, grey, orange, red.
_COLORS = np.array([[20, 30, 110], [60, 120, 210], [190, 190, 190], [245, 160, 50], [200, 20, 20]], np.float64)


def score_map(net: Net, variables: dict, picture_HxWx3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The net's class score map [h, w, K] of one picture, float32, and its posterior [K].

    Args:
      net: any.
      variables: its variables, on the host.
      picture_HxWx3: uint8, rescaled, no side smaller than the crop.
    """
    # Only a few pictures are drawn, so each has its own compilation and no frame.
    shape = jax.ShapeDtypeStruct((1, *picture_HxWx3.shape), jnp.uint8)

    def forward(variables: dict, images: jax.Array) -> Any:
        scores, found = net.model.apply(variables, normalize(images, net.statistics), endpoints=("score_map",))
        return found["score_map"][0], jax.nn.softmax(scores)[0]

    shapes: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)
    scores, posterior = compile_step(forward, shapes, shape)(variables, picture_HxWx3[None])
    return np.asarray(scores), np.asarray(posterior)


def draw(
    picture_HxWx3: np.ndarray,
    scores_hxwxK: np.ndarray,
    posterior_K: np.ndarray,
    classes: list[tuple[str, int]],
    class_names: list[str],
    crop: int,
) -> Image.Image:
    """The photograph, and beside it once more for each class with that class's score map over it.

    Each place of the map is drawn where the centre of its crop lies; between them colours are interpolated, beyond the
    outermost they go on unchanged. One scale of colours serves all the maps of a picture.

    Args:
      picture_HxWx3: uint8, as the net saw it.
      scores_hxwxK: of `score_map`.
      posterior_K: likewise.
      classes: (what to call it, class) of each map, e.g. ("predicted", 3).
      class_names: of all classes.
      crop: the net's, pixels.
    """
    height, width = picture_HxWx3.shape[:2]
    zoom = _SIDE / min(height, width)
    size = (min(round(width * zoom), _LONGEST * _SIDE), min(round(height * zoom), _LONGEST * _SIDE))
    photograph = Image.fromarray(picture_HxWx3).resize(size, Image.Resampling.BICUBIC)
    shown = scores_hxwxK[..., [index for _, index in classes]]
    low, high = float(shown.min()), float(shown.max())
    font = ImageFont.load_default(15)
    panels = [(photograph, [f"{height} x {width} pixels", f"map of {shown.shape[0]} x {shown.shape[1]} places"])]
    for i, (what, index) in enumerate(classes):
        panel = overlay(photograph, shown[..., i], (low, high), (height, width), crop)
        panels.append((panel, [f"{what}: {class_names[index]}", f"posterior {posterior_K[index]:.1%}"]))
    panel_width = max(size[0], 230)
    canvas = Image.new("RGB", (_GAP + len(panels) * (panel_width + _GAP), size[1] + 2 * _GAP + 78), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (panel, lines) in enumerate(panels):
        left = _GAP + i * (panel_width + _GAP)
        canvas.paste(panel, (left, _GAP))
        for j, line in enumerate(lines):
            pen.text((left, 2 * _GAP + size[1] + 19 * j), line, "black", font)
    _draw_legend(canvas, pen, font, low, high, 2 * _GAP + size[1] + 44)
    return canvas


def overlay(
    photograph: Image.Image, map_hxw: np.ndarray, ends: tuple[float, float], seen: tuple[int, int], crop: int
) -> Image.Image:
    """One class's score map over a photograph of any size.

    Args:
      photograph: RGB.
      map_hxw: of one class.
      ends: the scores of the first and the last colour.
      seen: (height, width) of the picture as the net saw it.
      crop: the net's, pixels.
    """
    low, high = ends
    heat = _enlarged(map_hxw, seen, photograph.size, crop)
    colors = _colored((heat - low) / max(high - low, 1e-9))
    grey = np.asarray(photograph.convert("L").convert("RGB"), np.float64)
    return Image.fromarray((0.45 * grey + 0.55 * colors).astype(np.uint8))


def _enlarged(map_hxw: np.ndarray, seen: tuple[int, int], size: tuple[int, int], crop: int) -> np.ndarray:
    """A map over the picture: [size[1], size[0]] float64, bilinear between the centres of the map's crops."""

    def weights(places: int, pixels: int, length: int) -> np.ndarray:
        position = (np.arange(length) + 0.5) * pixels / length  # of each drawn pixel, in pixels the net saw
        place = ((position - crop / 2) / STRIDE).clip(0, places - 1)
        return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(places)))

    rows, columns = (weights(*args) for args in zip(map_hxw.shape, seen, size[::-1], strict=True))
    return rows @ map_hxw.astype(np.float64) @ columns.T


def _colored(values: np.ndarray) -> np.ndarray:
    """[0, 1] -> RGB, 0 to 255, in float64."""
    stops = np.linspace(0, 1, len(_COLORS))
    return np.stack([np.interp(values, stops, _COLORS[:, c]) for c in range(3)], -1)


def _draw_legend(canvas: Image.Image, pen: ImageDraw.ImageDraw, font: Any, low: float, high: float, top: int) -> None:
    bar = _colored(np.tile(np.linspace(0, 1, 160), (12, 1))).astype(np.uint8)
    text = f"score {low:.1f}"
    pen.text((_GAP, top), text, "black", font)
    left = _GAP + round(pen.textlength(text, font)) + 8
    canvas.paste(Image.fromarray(bar), (left, top + 3))
    pen.text((left + 168, top), f"{high:.1f}", "black", font)
