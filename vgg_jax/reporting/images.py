"""Images as the page holds them: small, encoded, inside the HTML as data URIs."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

_ZOOM, _GAP = 8, 2  # pixels of a tile for each weight, and between tiles
_COLUMNS = 16


def jpeg(image: Image.Image, side: int) -> str:
    """Returns a data URI of an image no larger than `side` in either direction, as a JPEG."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _uri(small, "JPEG", quality=80, optimize=True)


def thumbnail(pixels_HxWx3: np.ndarray, side: int) -> str:
    """Returns a data URI of the square in the middle of an image, `side` pixels wide."""
    image = Image.fromarray(pixels_HxWx3)
    width, height = image.size
    least = min(width, height)
    left, top = (width - least) // 2, (height - least) // 2
    square = image.crop((left, top, left + least, top + least))
    return jpeg(square.resize((side, side), Image.Resampling.LANCZOS) if least > side else square, side)


def filters(kernel_hxwx3xC: np.ndarray) -> str:
    """Returns a data URI of a first layer's filters as colour tiles, the strongest first, a PNG without gaps.

    Grey is zero; each filter has a scale of its own, its largest weight being black or full colour.
    """
    kernels = np.asarray(kernel_hxwx3xC, np.float64).transpose(3, 0, 1, 2)
    kernels = kernels[np.argsort(-np.linalg.norm(kernels.reshape(len(kernels), -1), axis=1), kind="stable")]
    largest = np.abs(kernels).max((1, 2, 3), keepdims=True)
    tiles = 127.5 + 127.5 * kernels / np.maximum(largest, 1e-12)
    tiles = tiles.round().astype(np.uint8).repeat(_ZOOM, 1).repeat(_ZOOM, 2)
    count, height, width = tiles.shape[:3]
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    canvas = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 4), np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // columns * (height + _GAP), i % columns * (width + _GAP)
        canvas[y : y + height, x : x + width, :3] = tile
        canvas[y : y + height, x : x + width, 3] = 255
    return _uri(Image.fromarray(canvas), "PNG", optimize=True)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
