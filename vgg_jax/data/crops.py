"""Training and validation crops: isotropic rescaling to a shorter side, then a square (Paper §3.1, §3.2)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vgg_jax.data.decode import decode, size_of


def rescaled_size(width: int, height: int, scale: int) -> tuple[int, int]:
    """(width, height) after rescaling the shorter side to `scale`, the longer rounded to nearest (PAPER.md §5.5)."""
    short, long = sorted((width, height))
    long = (2 * long * scale + short) // (2 * short)
    return (scale, long) if width <= height else (long, scale)


def random_crop(encoded: bytes, rng: np.random.Generator, scale_min: int, scale_max: int, crop: int) -> np.ndarray:
    """One random crop of an isotropically rescaled picture (Paper §3.1).

    S is an integer, uniform in [scale_min, scale_max]; the crop lies anywhere in the rescaled picture, uniformly. JPEGs
    are decoded only as large as S needs and only the crop is resized.

    Args:
      encoded: the picture's bytes.
      rng: draws S and the place.
      scale_min, scale_max: pixels, crop <= scale_min <= scale_max.
      crop: side of the crop in pixels.

    Returns:
      [crop, crop, 3] uint8 RGB.

    Raises:
      DecodeError: as `decode`.
    """
    scale = int(rng.integers(scale_min, scale_max + 1))
    width, height = rescaled_size(*size_of(encoded), scale)
    left = int(rng.integers(width - crop + 1))
    top = int(rng.integers(height - crop + 1))
    return _cut(decode(encoded, at_least=(width, height)), (width, height), left, top, crop)


def center_crop(encoded: bytes, scale: int, crop: int) -> np.ndarray:
    """The central crop of the picture rescaled to a shorter side of `scale` pixels, decoded exactly.

    Args and result as in `random_crop`; where the margin is odd, the larger part is at the bottom or right.
    """
    picture = decode(encoded)
    width, height = rescaled_size(*picture.size, scale)
    return _cut(picture, (width, height), (width - crop) // 2, (height - crop) // 2, crop)


def rescaled(encoded: bytes, scale: int) -> np.ndarray:
    """The whole picture, decoded exactly and rescaled to a shorter side of `scale` pixels (Paper §3.2).

    Returns:
      [H, W, 3] uint8 RGB, of `rescaled_size`.

    Raises:
      DecodeError: as `decode`.
    """
    picture = decode(encoded)
    return np.asarray(picture.resize(rescaled_size(*picture.size, scale), Image.Resampling.BILINEAR))


def _cut(picture: Image.Image, size: tuple[int, int], left: int, top: int, crop: int) -> np.ndarray:
    """Rescales to `size` (bilinear, antialiased) and crops, computing nothing outside the crop."""
    x, y = picture.width / size[0], picture.height / size[1]
    box = (left * x, top * y, (left + crop) * x, (top + crop) * y)
    # Rounding may carry the far corner past the edge by a part in 10^16, which Pillow refuses.
    box = (box[0], box[1], min(box[2], picture.width), min(box[3], picture.height))
    return np.asarray(picture.resize((crop, crop), Image.Resampling.BILINEAR, box=box))
