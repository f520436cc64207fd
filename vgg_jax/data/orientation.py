"""EXIF orientation: how a camera was held. It is ignored unless `config.data.exif` asks for it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vgg_jax.data.decode import decode
from vgg_jax.data.image_kinds import identified, read_file

_ORIENTATION = 0x0112  # the tag of EXIF 2.32, section 4.6.4; 1 is upright
# What makes an image upright, [H, W, 3] to [H, W, 3] or [W, H, 3].
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def orientation(encoded: bytes) -> int:
    """Returns an image's EXIF orientation, 2 to 8; 1 where it is upright, or says nothing that can be read."""
    # Pillow would decode it, to look behind the pixels.
    if encoded[:4] == b"\x89PNG" and b"eXIf" not in encoded:
        return 1
    # Pillow raises many kinds of errors on hostile bytes.
    try:
        image = identified(encoded)
        value = image.getexif().get(_ORIENTATION, 1) if image else 1
    except Exception:
        return 1
    return value if value in _TURNS else 1


def upright(pixels_HxWx3: np.ndarray, number: int) -> np.ndarray:
    """Returns pixels turned as an EXIF orientation, 1 to 8, says."""
    return np.ascontiguousarray(_TURNS[number](pixels_HxWx3)) if number in _TURNS else pixels_HxWx3


def upright_image(encoded: bytes) -> bytes:
    """Returns an encoded image that is upright: the same bytes, or a PNG of the turned pixels, without loss."""
    number = orientation(encoded)
    if number == 1:
        return encoded
    file = io.BytesIO()
    Image.fromarray(upright(decode(encoded), number)).save(file, "PNG")
    return file.getvalue()


def read_image(path: Path, exif: bool) -> bytes:
    """Reads a file that may be an image as `read_file` does, and turns it upright where `exif` says so."""
    encoded = read_file(path)
    return upright_image(encoded) if exif else encoded
