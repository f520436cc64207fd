"""TrivialAugment: one operation of a list, at a random strength, for each image (Müller & Hutter 2021, the wide space)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

STRENGTHS = 31  # equally spaced from none to the greatest


def _affine(*row_of: tuple[float, float, float]) -> Callable[[Image.Image, float], Image.Image]:
    """Returns the operation that takes the pixel (x, y) of its result, from the centre, from where two rows of factors say.

    Each row is (at x, at y, pixels), of which what the strength multiplies stands beside the identity.
    """

    def apply(image: Image.Image, strength: float) -> Image.Image:
        identity = np.array([[1.0, 0, 0], [0, 1, 0]])
        matrix = identity + strength * np.array(row_of)
        center = np.array([image.width / 2, image.height / 2])
        matrix[:, 2] += center - matrix[:, :2] @ center
        return image.transform(image.size, Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.BILINEAR)

    return apply


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, strength: kind(image).enhance(1 + 0.99 * strength)


# (operation of an image and a strength, whether the strength may be negative). Strengths are 0 to 1.
OPERATIONS: dict[str, tuple[Callable[[Image.Image, float], Image.Image], bool]] = {
    "identity": (lambda image, _: image, False),
    "shear_x": (_affine((0, 0.99, 0), (0, 0, 0)), True),
    "shear_y": (_affine((0, 0, 0), (0.99, 0, 0)), True),
    "translate_x": (_affine((0, 0, 32), (0, 0, 0)), True),
    "translate_y": (_affine((0, 0, 0), (0, 0, 32)), True),
    "rotate": (lambda image, strength: image.rotate(135 * strength, Image.Resampling.BILINEAR), True),
    "brightness": (_enhance(ImageEnhance.Brightness), True),
    "color": (_enhance(ImageEnhance.Color), True),
    "contrast": (_enhance(ImageEnhance.Contrast), True),
    "sharpness": (_enhance(ImageEnhance.Sharpness), True),
    "posterize": (lambda image, strength: ImageOps.posterize(image, 8 - round(6 * strength)), False),
    "solarize": (lambda image, strength: ImageOps.solarize(image, round(256 * (1 - strength))), False),
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
