"""Training and validation crops: isotropic rescaling to a shorter side, then a square (Paper §3.1, §3.2)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from vgg_jax.data.decode import Header, decode, decode_part, read_header
from vgg_jax.data.image_kinds import read_file
from vgg_jax.runtime.exceptions import UserError

try:
    import cykooz_resizer
# It has no build for Linux on ARM.
except ImportError:
    cykooz_resizer = None
else:
    _RGB = cykooz_resizer.PixelType.U8x3
    _BILINEAR = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)

Box = tuple[float, float, float, float]
_LARGE = 2**24  # pixels of a rescaled image, 48 MiB


def rescaled_size(width: int, height: int, scale: int) -> tuple[int, int]:
    """Returns (width, height) after rescaling the shorter side to `scale`, the longer rounded to nearest."""
    short, long = sorted((width, height))
    long = (2 * long * scale + short) // (2 * short)
    return (scale, long) if width <= height else (long, scale)


def random_crop(
    encoded: bytes, rng: np.random.Generator, scale_min: int, scale_max: int, crop: int, padding: int = 0
) -> np.ndarray:
    """Returns one random crop of an isotropically rescaled image (Paper §3.1).

    S is an integer, uniform in [scale_min, scale_max]; the crop lies anywhere in the rescaled and padded image,
    uniformly. JPEGs are decoded only as large as S needs and only the crop is resized.

    Args:
      encoded: the image's bytes.
      rng: draws S and the place.
      scale_min, scale_max: pixels, crop <= scale_min + 2 padding, scale_min <= scale_max.
      crop: side of the crop in pixels.
      padding: black pixels on every side of the rescaled image (He et al. 2015, §4.2).

    Returns:
      [crop, crop, 3] uint8 RGB.

    Raises:
      DecodeError: as `decode`.
    """
    scale = int(rng.integers(scale_min, scale_max + 1))
    header = read_header(encoded)
    width, height = rescaled_size(*header.size, scale)
    left = int(rng.integers(width + 2 * padding - crop + 1)) - padding
    top = int(rng.integers(height + 2 * padding - crop + 1)) - padding
    if not padding:
        return _part(encoded, header, (width, height), (left, top, left + crop, top + crop))
    inside = (max(0, left), max(0, top), min(width, left + crop), min(height, top + crop))
    padded = np.zeros((crop, crop, 3), np.uint8)
    part = _part(encoded, header, (width, height), inside)
    padded[inside[1] - top :, inside[0] - left :][: part.shape[0], : part.shape[1]] = part
    return padded


def random_resized_crop(encoded: bytes, rng: np.random.Generator, area_min: float, crop: int) -> np.ndarray:
    """Returns a random part of an image, resized to a square (Szegedy et al. 2014, §6).

    The part's share of the image's area is uniform in [area_min, 1], and the logarithm of its aspect ratio in
    [log 3/4, log 4/3]. After ten draws that do not fit, it is the largest central part of such an aspect ratio.

    Args and result as in `random_crop`.
    """
    header = read_header(encoded)
    width, height = header.size
    for _ in range(10):
        area = width * height * rng.uniform(area_min, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    # In pixels of the image as if it had been resized whole.
    x, y = crop / w, crop / h
    return _part(encoded, header, (width * x, height * y), (left * x, top * y, left * x + crop, top * y + crop))


def _part(encoded: bytes, header: Header, size: tuple[float, float], box: Box) -> np.ndarray:
    """Returns a box of an image resized to (width, height), decoded only as large and as far as it needs."""
    x, y = header.size[0] / size[0], header.size[1] / size[1]
    left, top, right, bottom = box
    # The last row depends on what lies below it, as far as an output row, or an input row, is high.
    whole = (math.ceil(size[0]), math.ceil(size[1]))
    pixels, f = decode_part(encoded, header, whole, bottom=bottom * y + max(1.0, y))
    return _resize_fast(
        pixels, (f * x * left, f * y * top, f * x * right, f * y * bottom), (round(right - left), round(bottom - top))
    )


def center_crop(encoded: bytes, scale: int, crop: int) -> np.ndarray:
    """Returns the central crop of `rescaled`, to the last bit; of a long strip up to rounding.

    Args and result as in `random_crop`; where the margin is odd, the larger part is at the bottom or right.
    """
    header = read_header(encoded)
    width, height = rescaled_size(*header.size, scale)
    left, top = (width - crop) // 2, (height - crop) // 2
    if width * height > _LARGE:
        return _part(encoded, header, (width, height), (left, top, left + crop, top + crop))
    image = rescaled(encoded, scale)
    return image[top : top + crop, left : left + crop]


def square_crops(encoded: bytes, scale: int, crop: int) -> np.ndarray:
    """Returns crops of the squares at both ends and in the middle of `rescaled` (Szegedy et al. 2014, §7).

    Of each square the corners and the centre, and the square itself, resized.

    Args:
      encoded: the image's bytes.
      scale: side of the squares in pixels.
      crop: side of the crops in pixels, at most `scale`.

    Returns:
      [18, crop, crop, 3] uint8 RGB.

    Raises:
      DecodeError: as `decode`.
    """
    image = rescaled(encoded, scale)
    height, width, _ = image.shape
    corners = [(top, left) for top in (0, scale - crop) for left in (0, scale - crop)]
    corners.append(((scale - crop) // 2,) * 2)
    crops = []
    for margin in (0, (max(height, width) - scale) // 2, max(height, width) - scale):
        top, left = (margin, 0) if height > width else (0, margin)
        square = image[top : top + scale, left : left + scale]
        crops += [square[top : top + crop, left : left + crop] for top, left in corners]
        crops.append(_resize(square, (0, 0, scale, scale), (crop, crop)))
    return np.stack(crops)


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


def read_rescaled(path: Path, scale: int, crop: int = 0) -> np.ndarray:
    """Reads a file's image by `rescaled`, or with a `crop` in pixels by `center_crop`: uint8 RGB.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        encoded = read_file(path)
        return center_crop(encoded, scale, crop) if crop else rescaled(encoded, scale)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; remove it, or give another image.") from error


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
