"""TrivialAugment: one operation of a list, at a random strength, for each image.

The operations and strengths are the wide space of Müller & Hutter 2021.

Geometry is the authors' (github.com/automl/trivialaugment): the nearest pixel, shears about the top left corner.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

STRENGTHS = 31  # equally spaced from none to the greatest

Operation = Callable[[Image.Image, float], Image.Image]  # of a strength from -1 to 1


def _affine(x_row: Callable[[float], list[float]], y_row: Callable[[float], list[float]]) -> Operation:
    """Returns the operation that reads pixel (x, y) of its result, from the top left corner, at (rows @ (x, y, 1)).

    Args:
      x_row: of a strength, the row of x: [at x, at y, pixels].
      y_row: likewise of y.
    """

    def apply(image: Image.Image, strength: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, (*x_row(strength), *y_row(strength)))

    return apply


def _whole(strength: float, greatest: int) -> int:
    """Returns a strength's share of the greatest value without its fraction, as the authors' integer parameters."""
    return int(round(strength * greatest, 6))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, strength: kind(image).enhance(1 + 0.99 * strength)


# (operation of an image and a strength, whether the strength may be negative). Strengths are 0 to 1.
OPERATIONS: dict[str, tuple[Operation, bool]] = {
    "identity": (lambda image, _: image, False),
    "shear_x": (_affine(lambda s: [1, 0.99 * s, 0], lambda _: [0, 1, 0]), True),
    "shear_y": (_affine(lambda _: [1, 0, 0], lambda s: [0.99 * s, 1, 0]), True),
    "translate_x": (_affine(lambda s: [1, 0, _whole(s, 32)], lambda _: [0, 1, 0]), True),
    "translate_y": (_affine(lambda _: [1, 0, 0], lambda s: [0, 1, _whole(s, 32)]), True),
    "rotate": (lambda image, strength: image.rotate(_whole(strength, 135)), True),
    "brightness": (_enhance(ImageEnhance.Brightness), True),
    "color": (_enhance(ImageEnhance.Color), True),
    "contrast": (_enhance(ImageEnhance.Contrast), True),
    "sharpness": (_enhance(ImageEnhance.Sharpness), True),
    "posterize": (lambda image, strength: ImageOps.posterize(image, 8 - _whole(strength, 6)), False),
    "solarize": (lambda image, strength: ImageOps.solarize(image, 256 - _whole(strength, 256)), False),
    "autocontrast": (lambda image, _: ImageOps.autocontrast(image), False),
    "equalize": (lambda image, _: ImageOps.equalize(image), False),
}


def trivial_augment(image_HxWx3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies one of OPERATIONS, each as likely, at one of STRENGTHS strengths, negative half the time where it may be.

    Args:
      image_HxWx3: uint8 RGB. What comes in from outside it is black.
      rng: draws operation, strength and sign.

    Returns:
      [H, W, 3] uint8 RGB.
    """
    operation, has_sign = tuple(OPERATIONS.values())[rng.integers(len(OPERATIONS))]
    strength = int(rng.integers(STRENGTHS)) / (STRENGTHS - 1)
    sign = -1 if rng.integers(2) and has_sign else 1
    return np.asarray(operation(Image.fromarray(image_HxWx3), sign * strength))
