"""Training and validation crops: isotropic rescaling to a shorter side, then a square (Paper §3.1, §3.2)."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from vgg_jax.data.decode import decode, decode_part, read_header

try:
    import cykooz_resizer
except ImportError:  # it has no build for Linux on ARM
    cykooz_resizer = None
else:
    _RGB = cykooz_resizer.PixelType.U8x3
    _BILINEAR = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)

Box = tuple[float, float, float, float]


def rescaled_size(width: int, height: int, scale: int) -> tuple[int, int]:
    """Returns (width, height) after rescaling the shorter side to `scale`, the longer rounded to nearest."""
    short, long = sorted((width, height))
    long = (2 * long * scale + short) // (2 * short)
    return (scale, long) if width <= height else (long, scale)


def random_crop(encoded: bytes, rng: np.random.Generator, scale_min: int, scale_max: int, crop: int) -> np.ndarray:
    """Returns one random crop of an isotropically rescaled image (Paper §3.1).

    S is an integer, uniform in [scale_min, scale_max]; the crop lies anywhere in the rescaled image, uniformly. JPEGs
    are decoded only as large as S needs and only the crop is resized.

    Args:
      encoded: the image's bytes.
      rng: draws S and the place.
      scale_min, scale_max: pixels, crop <= scale_min <= scale_max.
      crop: side of the crop in pixels.

    Returns:
      [crop, crop, 3] uint8 RGB.

    Raises:
      DecodeError: as `decode`.
    """
    scale = int(rng.integers(scale_min, scale_max + 1))
    header = read_header(encoded)
    width, height = rescaled_size(*header.size, scale)
    left = int(rng.integers(width - crop + 1))
    top = int(rng.integers(height - crop + 1))
    x, y = header.size[0] / width, header.size[1] / height
    # The last row of the crop depends on what lies below it, as far as an output row, or an input row, is high.
    pixels, f = decode_part(encoded, header, (width, height), bottom=(top + crop) * y + max(1.0, y))
    box = (f * x * left, f * y * top, f * x * (left + crop), f * y * (top + crop))
    return _resize_fast(pixels, box, (crop, crop))


def center_crop(encoded: bytes, scale: int, crop: int) -> np.ndarray:
    """Returns the central crop of `rescaled`, to the last bit.

    Args and result as in `random_crop`; where the margin is odd, the larger part is at the bottom or right.
    """
    image = rescaled(encoded, scale)
    height, width, _ = image.shape
    left, top = (width - crop) // 2, (height - crop) // 2
    return image[top : top + crop, left : left + crop]


def rescaled(encoded: bytes, scale: int) -> np.ndarray:
    """Returns the whole image, decoded exactly and rescaled to a shorter side of `scale` pixels (Paper §3.2).

    Returns:
      [H, W, 3] uint8 RGB, of `rescaled_size`.

    Raises:
      DecodeError: as `decode`.
    """
    pixels = decode(encoded)
    height, width, _ = pixels.shape
    return _resize(pixels, (0, 0, width, height), rescaled_size(width, height, scale))


def _resize(pixels: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Resizes what lies in a box, bilinear and antialiased, as Pillow does; computes nothing else.

    Args:
      pixels: [h, w, 3] uint8.
      box: left, top, right, bottom, in pixels, whole or not.
      size: (width, height) of the result.
    """
    pixels, box = _surroundings(pixels, box, size)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box=box))


def _resize_fast(pixels: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Resizes as `_resize` does but for rounding, with vector instructions: a fifth of the time."""
    if cykooz_resizer is None:
        return _resize(pixels, box, size)
    pixels, (left, top, right, bottom) = _surroundings(pixels, box, size)
    source = cykooz_resizer.ImageData(pixels.shape[1], pixels.shape[0], _RGB, pixels.tobytes())
    result = cykooz_resizer.ImageData(*size, _RGB)
    options = cykooz_resizer.ResizeOptions(
        _BILINEAR, crop_box=cykooz_resizer.CropBox(left, top, right - left, bottom - top)
    )
    cykooz_resizer.Resizer().resize(source, result, options)
    return np.frombuffer(result.rust_image.buffer(), np.uint8).reshape(size[1], size[0], 3)


def _surroundings(pixels: np.ndarray, box: Box, size: tuple[int, int]) -> tuple[np.ndarray, Box]:
    """Returns the part of the image that the pixels of a resized box depend on, and the box in it."""
    height, width, _ = pixels.shape
    left, top, right, bottom = box
    # Rounding may carry a far edge past the image's by a part in 10^16.
    right, bottom = min(right, width), min(bottom, height)
    across, down = max(1.0, (right - left) / size[0]), max(1.0, (bottom - top) / size[1])
    x, y = max(0, math.floor(left - across)), max(0, math.floor(top - down))
    part = pixels[y : math.ceil(bottom + down), x : math.ceil(right + across)]
    return part, (left - x, top - y, right - x, bottom - y)
