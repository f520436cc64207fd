"""Class score maps over images: where a model sees a class (Paper §3.2's dense evaluation, as an image)."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vgg_jax import features
from vgg_jax.data.colors import ColorStatistics
from vgg_jax.data.crops import rescaled, rescaled_size
from vgg_jax.data.decode import size_of
from vgg_jax.data.records import Records
from vgg_jax.evaluation.results import top5_classes
from vgg_jax.evaluation.run import decoded
from vgg_jax.evaluation.trained_model import TrainedModel
from vgg_jax.models import Layers, Network, NetworkSpec
from vgg_jax.models.description import first_center, last_features, total_stride
from vgg_jax.training.augment import normalize

_SIDE = 320  # shorter side of a panel, pixels
_LONGEST_PANEL = 4  # times that, the longer side at most
LONGEST = 8  # times Q: longer images are not drawn
_GAP = 12
_MOST_PROGRAMS = 8  # programs, each of one shape
# Colours from the lowest to the highest score: dark blue, blue, grey, orange, red.
_COLORS = np.array([[20, 30, 110], [60, 120, 210], [190, 190, 190], [245, 160, 50], [200, 20, 20]], np.float64)


def spread(total: int, count: int) -> list[int]:
    """Returns up to `count` numbers below `total`, ascending, spread evenly."""
    return sorted({round(i) for i in np.linspace(0, total - 1, min(count, total))})


def image_for_map(records: Records, index: int, scale: int) -> np.ndarray | None:
    """Returns an image [H, W, 3] uint8 at scale Q; None where it is too long to look at.

    Raises:
      UserError: it cannot be decoded.
    """
    size = decoded(records, index, lambda encoded: rescaled_size(*size_of(encoded), scale))
    return None if max(size) > LONGEST * scale else decoded(records, index, lambda encoded: rescaled(encoded, scale))


def classes_to_draw(probs_K: np.ndarray, label: int) -> list[tuple[str, int]]:
    """Returns (heading, class) of the maps: the true and the predicted class, or the second where they are one.

    Args:
      probs_K: of the image.
      label: the true class; negative where it is unknown.
    """
    first, second = (int(k) for k in top5_classes(probs_K[None])[0, :2])
    if label < 0:
        return [("predicted", first), ("second", second)]
    return (
        [("true and predicted", label), ("second", second)]
        if label == first
        else [("true", label), ("predicted", first)]
    )


def on_one_device(trained: TrainedModel) -> dict:
    """Returns a model's variables as one of this process's devices holds them; nothing is copied."""
    return jax.tree.map(lambda x: x.addressable_data(0), trained.variables)


def score_map(trained: TrainedModel, variables: dict, image_HxWx3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class score map [h, w, K] of one image, float32, and its probabilities [K].

    Args:
      trained: any model.
      variables: of `on_one_device`.
      image_HxWx3: uint8, rescaled, no side smaller than the crop.
    """
    forward = _forward(trained.model, image_HxWx3.shape)
    scores, probs_K = forward(variables, trained.statistics, image_HxWx3[None])
    return np.asarray(scores), np.asarray(probs_K)


# Only a few images are drawn, so each shape has its own compilation and no bucket. The last programs stay in memory.
@functools.lru_cache(_MOST_PROGRAMS)
def _forward(model: Network, shape: tuple[int, ...]) -> Callable[..., Any]:
    del shape

    def forward(variables: dict, statistics: ColorStatistics, images: jax.Array) -> Any:
        logits, maps = model.apply(variables, normalize(images, statistics), endpoints=("score_map",))
        return maps["score_map"][0], jax.nn.softmax(logits)[0]

    return jax.jit(forward)


def class_cams(
    trained: TrainedModel, variables: dict, image_HxWx3: np.ndarray, classes: list[tuple[str, int]]
) -> np.ndarray:
    """Returns `features.grad_cam` of one image for each of `classes`, [h, w, len(classes)] float32.

    Args:
      trained, variables, image_HxWx3: as for `score_map`.
      classes: of `classes_to_draw`.
    """
    images, numbers = np.stack([image_HxWx3] * len(classes)), np.array([index for _, index in classes])
    cams = _cams(trained.model, trained.recipe.model.network, images.shape)
    cams_nxhxw = cams(variables, trained.statistics.mean_rgb, images, numbers)
    return np.moveaxis(np.asarray(cams_nxhxw), 0, -1)


@functools.lru_cache(_MOST_PROGRAMS)
def _cams(network: Network, spec: NetworkSpec, shape: tuple[int, ...]) -> Callable[..., jax.Array]:
    del shape

    def cams(variables: dict, mean_rgb: jax.Array, images: jax.Array, classes: jax.Array) -> jax.Array:
        state = {name: tree for name, tree in variables.items() if name != "params"}
        model = features.Backbone(variables["params"], mean_rgb, network, spec, state)
        return features.grad_cam(model, images, classes)[0]

    return jax.jit(cams)


class ClassMap(NamedTuple):
    """One class's score map of an image, and its captions."""

    heading: str  # as "predicted"
    name: str  # of the class
    probability: float
    scores_hxw: np.ndarray
    cam_hxw: np.ndarray | None = None  # Grad-CAM, drawn next to the scores, from 0 to its largest value


def class_maps(
    scores_hxwxK: np.ndarray,
    probs_K: np.ndarray,
    classes: list[tuple[str, int]],
    class_names: list[str],
    cams_hxwxn: np.ndarray | None = None,
) -> list[ClassMap]:
    """Returns the maps of some classes.

    Args:
      scores_hxwxK: of `score_map`.
      probs_K: of the image.
      classes: (heading, class) of each map, as of `classes_to_draw`.
      class_names: of all classes.
      cams_hxwxn: of `class_cams`; None for none.
    """
    cams = [None] * len(classes) if cams_hxwxn is None else list(np.moveaxis(cams_hxwxn, -1, 0))
    return [
        ClassMap(heading, class_names[k], float(probs_K[k]), scores_hxwxK[..., k], cam)
        for (heading, k), cam in zip(classes, cams, strict=True)
    ]


def draw(image_HxWx3: np.ndarray, maps: Sequence[ClassMap], layers: Layers) -> Image.Image:
    """Draws the image, and next to it once more for each class with that class's score map over it.

    Each cell of the map is drawn at the centre of its crop; between the centres colours are interpolated, beyond the
    outermost they are constant. One scale of colours serves all the maps of an image.

    Args:
      image_HxWx3: uint8, as the model saw it.
      maps: of `class_maps`.
      layers: the model's.
    """
    height, width = image_HxWx3.shape[:2]
    zoom = _SIDE / min(height, width)
    size = (min(round(width * zoom), _LONGEST_PANEL * _SIDE), min(round(height * zoom), _LONGEST_PANEL * _SIDE))
    base = Image.fromarray(image_HxWx3).resize(size, Image.Resampling.BICUBIC)
    low, high = score_range(maps)
    font = ImageFont.load_default(15)
    panels = [(base, [f"{height} x {width} pixels", _cells_text(maps[0].scores_hxw)])]
    for one in maps:
        panel = overlay(base, one.scores_hxw, (low, high), (height, width), layers)
        panels.append((panel, [f"{one.heading}: {one.name}", f"probability {one.probability:.1%}"]))
        if one.cam_hxw is not None:
            panel = cam_overlay(base, one.cam_hxw, (height, width), layers)
            panels.append((panel, ["Grad-CAM of the same", _cells_text(one.cam_hxw)]))
    panel_width = max(size[0], 230)
    canvas = Image.new("RGB", (_GAP + len(panels) * (panel_width + _GAP), size[1] + 2 * _GAP + 78), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (panel, lines) in enumerate(panels):
        left = _GAP + i * (panel_width + _GAP)
        canvas.paste(panel, (left, _GAP))
        for j, line in enumerate(lines):
            pen.text((left, 2 * _GAP + size[1] + 19 * j), shortened(line, pen, font, panel_width), "black", font)
    _draw_legend(canvas, pen, font, low, high, 2 * _GAP + size[1] + 44)
    return canvas


def score_range(maps: Sequence[ClassMap]) -> tuple[float, float]:
    """Returns the least and the largest score of an image's maps, which share one scale of colours."""
    return min(float(one.scores_hxw.min()) for one in maps), max(float(one.scores_hxw.max()) for one in maps)


def _cells_text(map_hxw: np.ndarray) -> str:
    return f"map of {map_hxw.shape[0]} x {map_hxw.shape[1]} cells"


def shortened(line: str, pen: ImageDraw.ImageDraw, font: Any, width: int) -> str:
    """Returns a line that is drawn in at most `width` pixels; of a longer one the beginning, and "..."."""
    if pen.textlength(line, font) <= width:
        return line
    fits = bisect.bisect(range(len(line)), width, key=lambda n: round(pen.textlength(line[:n] + "...", font)))
    return line[: max(fits - 1, 0)].rstrip() + "..."


def overlay(
    image: Image.Image,
    map_hxw: np.ndarray,
    ends: tuple[float, float],
    seen: tuple[int, int],
    layers: Layers,
    name: str = "",
) -> Image.Image:
    """Returns one class's score map, or another layer's map, over an image of any size.

    Args:
      image: RGB.
      map_hxw: of one class.
      ends: the scores of the first and the last colour.
      seen: (height, width) of the image as the model saw it.
      layers: the model's.
      name: of the layer whose map it is; "" for the score map.
    """
    low, high = ends
    zooms = [drawn / pixels for drawn, pixels in zip(image.size[::-1], seen, strict=True)]
    strides, firsts = (
        [pixels * zoom for zoom in zooms] for pixels in (total_stride(layers, name), first_center(layers, name))
    )
    heat = (_enlarged(map_hxw, image.size, strides, firsts) - low) / max(high - low, 1e-9)
    grey = np.asarray(image.convert("L").convert("RGB"), np.float64)
    return Image.fromarray((0.45 * grey + 0.55 * _colored(heat)).astype(np.uint8))


def cam_overlay(image: Image.Image, cam_hxw: np.ndarray, seen: tuple[int, int], layers: Layers) -> Image.Image:
    """Returns one class's Grad-CAM over an image, as `overlay`; its colours go from 0 to its largest value."""
    share_hxw = cam_hxw / max(float(cam_hxw.max()), 1e-30)
    return overlay(image, share_hxw, (0, 1), seen, layers, last_features(layers, is_map=True))


def _enlarged(
    map_hxw: np.ndarray, size: tuple[int, int], strides: Sequence[float], firsts: Sequence[float]
) -> np.ndarray:
    """Enlarges a map to [size[1], size[0]] float64, bilinear between the centres of its cells.

    Args:
      map_hxw: the map.
      size: (width, height), drawn pixels.
      strides: drawn pixels from one cell to the next, down and across.
      firsts: drawn pixels from the edge to the centre of the first cell, down and across.
    """

    def weights(cells: int, stride: float, first: float, length: int) -> np.ndarray:
        cell = ((np.arange(length) + 0.5 - first) / stride).clip(0, cells - 1)
        return np.maximum(0, 1 - np.abs(cell[:, None] - np.arange(cells)))

    rows, columns = (weights(*args) for args in zip(map_hxw.shape, strides, firsts, size[::-1], strict=True))
    return rows @ map_hxw.astype(np.float64) @ columns.T


def _colored(values: np.ndarray) -> np.ndarray:
    """Returns the colours of values in [0, 1]: RGB, 0 to 255, float64."""
    stops = np.linspace(0, 1, len(_COLORS))
    return np.stack([np.interp(values, stops, _COLORS[:, c]) for c in range(3)], -1)


def _draw_legend(canvas: Image.Image, pen: ImageDraw.ImageDraw, font: Any, low: float, high: float, top: int) -> None:
    bar = _colored(np.tile(np.linspace(0, 1, 160), (12, 1))).astype(np.uint8)
    text = f"score {low:.1f}"
    pen.text((_GAP, top), text, "black", font)
    left = _GAP + round(pen.textlength(text, font)) + 8
    canvas.paste(Image.fromarray(bar), (left, top + 3))
    pen.text((left + 168, top), f"{high:.1f}", "black", font)
