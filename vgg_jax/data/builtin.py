"""The built-in data set: ten classes of drawn objects on cluttered, textured grounds.

It is rendered, not downloaded, so that the first command a newcomer types trains on images, and it then takes the
very path ImageNet takes: JPEG records in ArrayRecord files, decoded, rescaled and cropped by the host.

The class is the shape of the one large object. Its colour, texture, place, rotation and size vary, small objects of
other classes and strokes lie about, so a model has to see shape at several scales: a linear model fails
(`benchmarks/builtin_linear.py`).
"""

from __future__ import annotations

import io
import math
from functools import partial

import numpy as np
from etils import epath
from PIL import Image, ImageDraw

from vgg_jax.data import prepared
from vgg_jax.data.records import Record

NAME = "vgg_jax_shapes/1.0.0"
COUNTS = {"train": 4000, "validation": 1000}
_FIRST_SEED = {"train": 0, "validation": 1_000_000}  # the splits never share a seed

Polygon = list[tuple[float, float]]


def _regular(corners: int, radius: float = 1.0, start: float = -math.pi / 2) -> Polygon:
    angles = (start + 2 * math.pi * i / corners for i in range(corners))
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _star() -> Polygon:
    outer, inner = _regular(5), _regular(5, 0.42, -math.pi / 2 + math.pi / 5)
    return [corner for pair in zip(outer, inner, strict=True) for corner in pair]


def _heart() -> Polygon:
    def height(t: float) -> float:
        return -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16

    return [(math.sin(t) ** 3, height(t)) for t in (2 * math.pi * i / 36 for i in range(36))]


def _crescent() -> Polygon:
    outer = [(math.cos(t), math.sin(t)) for t in (math.radians(50 + 260 * i / 24) for i in range(25))]
    inner = [
        (0.42 + 0.8 * math.cos(t), 0.8 * math.sin(t)) for t in (math.radians(290 - 220 * i / 20) for i in range(21))
    ]
    return outer + inner


_CROSS = [(-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)]
# Outlines in a box from -1 to 1, y downwards; a hole, where there is one, is drawn over the outline.
SHAPES: dict[str, tuple[Polygon, Polygon]] = {
    "arrow": ([(0, -1), (0.75, -0.15), (0.28, -0.15), (0.28, 1), (-0.28, 1), (-0.28, -0.15), (-0.75, -0.15)], []),
    "crescent": (_crescent(), []),
    "cross": (_CROSS + [(-x, -y) for x, y in _CROSS], []),
    "disc": (_regular(36), []),
    "heart": (_heart(), []),
    "hourglass": ([(-0.8, -1), (0.8, -1), (0.12, 0), (0.8, 1), (-0.8, 1), (-0.12, 0)], []),
    "ring": (_regular(36), _regular(36, 0.58)),
    "square": (_regular(4, start=math.pi / 4), []),
    "star": (_star(), []),
    "triangle": (_regular(3), []),
}
CLASS_NAMES = tuple(sorted(SHAPES))


def render(seed: int) -> tuple[Image.Image, int]:
    """Draws one image.

    Args:
      seed: 0 <= seed < 2**32; the class is seed % 10, everything else is drawn from a stream that the seed starts.

    Returns:
      An RGB image, shorter side 80 to 150, longer side up to 1.6 times that; and its class in [0, 10).
    """
    # RandomState because NumPy promises that its streams never change; Generator's may, between versions.
    rng = np.random.RandomState(seed)
    label = seed % len(CLASS_NAMES)
    short = int(rng.randint(80, 151))
    long = int(short * rng.uniform(1.0, 1.6))
    width, height = (long, short) if rng.rand() < 0.6 else (short, long)

    image = _ground(rng, width, height)
    _strokes(rng, image, count=int(rng.randint(0, 7)))

    # The object lies within the central square, or nearly: a centre crop at the training scale sees it.
    radius = short * rng.uniform(0.2, 0.42)
    reach = max(short / 2 - radius, 0) + 0.05 * short
    centre = (width / 2 + rng.uniform(-reach, reach), height / 2 + rng.uniform(-reach, reach))
    # Small objects of any class, which a model must learn to overlook.
    for _ in range(int(rng.randint(0, 4))):
        small = radius * rng.uniform(0.15, 0.3)
        _paint(rng, image, rng.randint(len(CLASS_NAMES)), small, (rng.uniform(0, width), rng.uniform(0, height)))
    _paint(rng, image, label, radius, centre)
    return image, label


def _ground(rng: np.random.RandomState, width: int, height: int) -> Image.Image:
    """Returns smooth noise in three octaves around a random colour."""
    ground = Image.new("RGB", (width, height), tuple(int(v) for v in rng.randint(20, 140, 3)))
    for cells, weight in ((3, 0.25), (9, 0.2), (max(width, height) // 3, rng.uniform(0.05, 0.2))):
        noise = Image.fromarray(rng.randint(0, 256, (cells, cells, 3)).astype(np.uint8))
        ground = Image.blend(ground, noise.resize(ground.size, Image.Resampling.BILINEAR), weight)
    return ground


def _strokes(rng: np.random.RandomState, image: Image.Image, count: int) -> None:
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        ends = [(int(rng.randint(image.width)), int(rng.randint(image.height))) for _ in range(int(rng.randint(2, 4)))]
        draw.line(ends, fill=tuple(map(int, rng.randint(0, 256, 3))), width=int(rng.randint(1, 4)))


def _paint(
    rng: np.random.RandomState, image: Image.Image, label: int, radius: float, centre: tuple[float, float]
) -> None:
    """Lays one object, turned, slightly stretched and of uneven colour, over the image."""
    outline, hole = SHAPES[CLASS_NAMES[label]]
    angle, stretch = math.radians(rng.uniform(-40, 40)), rng.uniform(0.8, 1.25)
    cos, sin = math.cos(angle), math.sin(angle)
    box = math.ceil(radius * 1.3) * 2 + 1

    def turned(x: float, y: float) -> tuple[int, int]:
        x, y = x * stretch, y / stretch
        return round(3 * (radius * (x * cos - y * sin) + box / 2)), round(3 * (radius * (x * sin + y * cos) + box / 2))

    # The mask is drawn three times as large and scaled down: smooth edges.
    mask = Image.new("L", (3 * box, 3 * box))
    for polygon, value in ((outline, 255), (hole, 0)):
        if polygon:
            ImageDraw.Draw(mask).polygon([turned(x, y) for x, y in polygon], fill=value)
    mask = mask.resize((box, box), Image.Resampling.BOX)
    left, top = round(centre[0] - box / 2), round(centre[1] - box / 2)

    # A light colour some way from the ground it lies on, uneven by up to 30 in each channel.
    behind = np.asarray(image.crop((left, top, left + box, top + box)).resize((1, 1), Image.Resampling.BOX))[0, 0]
    colour = rng.uniform(100, 255, 3)
    while np.abs(colour - behind).sum() < 140:
        colour = rng.uniform(100, 255, 3)
    patch = (colour + rng.uniform(-30, 30, (3, 3, 3))).round().clip(0, 255).astype(np.uint8)
    fill = Image.fromarray(patch).resize((box, box), Image.Resampling.BILINEAR)
    image.paste(fill, (left, top), mask)


def prepare(data_dir: epath.Path) -> prepared.Prepared:
    """Renders and packs the 4,000 training and 1,000 validation images, 400 and 100 a class."""
    splits = {
        split: [
            prepared.Entry(_file_name(_FIRST_SEED[split], index), 6000, partial(_record, _FIRST_SEED[split], index))
            for index in range(count)
        ]
        for split, count in COUNTS.items()
    }
    return prepared.pack(data_dir / NAME, prepared.Description(NAME, str(__doc__), CLASS_NAMES, "jpeg"), splits)


def _file_name(first_seed: int, index: int) -> str:
    return f"{CLASS_NAMES[(first_seed + index) % len(CLASS_NAMES)]}_{index:05d}.jpg"


def _record(first_seed: int, index: int) -> Record:
    image, label = render(first_seed + index)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=90)
    return {"image": encoded.getvalue(), "label": label, "file_name": _file_name(first_seed, index).encode()}
