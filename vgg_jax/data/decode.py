"""Encoded bytes -> an RGB picture, whatever kind of file it is."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


class DecodeError(ValueError):
    """Bytes that are not a whole, sound picture; the message says what is wrong with them."""


def decode(encoded: bytes, at_least: tuple[int, int] | None = None) -> Image.Image:
    """Decodes a picture to RGB.

    The kind is told by the content, not by a name. Grey, palette, CMYK and 16-bit pictures (divided by 257) become
    8-bit RGB; transparent ones are laid on white. Orientation tags are ignored (PAPER.md §5.9).

    Args:
      encoded: a whole JPEG, PNG, or any other file that Pillow reads.
      at_least: (width, height) in pixels. A JPEG larger than that may be decoded at 1/2, 1/4 or 1/8 (DCT scaling), as
        small as it goes without falling below. None decodes exactly, at full size.

    Raises:
      DecodeError: not a picture, cut short, or more than about 179 million pixels.
    """
    try:
        picture = Image.open(io.BytesIO(encoded))
        if at_least is not None:
            picture.draft("RGB", at_least)
        picture.load()
        return _to_rgb(picture)
    except Exception as error:  # Pillow's plugins raise many kinds on hostile bytes
        raise DecodeError(_reason(encoded, error)) from error


def size_of(encoded: bytes) -> tuple[int, int]:
    """(width, height) in pixels, from the header alone; raises DecodeError as `decode` does."""
    try:
        return Image.open(io.BytesIO(encoded)).size
    except Exception as error:
        raise DecodeError(_reason(encoded, error)) from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip to white
        return Image.fromarray((np.asarray(picture) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _reason(encoded: bytes, error: Exception) -> str:
    if not encoded:
        return "0 bytes"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture"
    return str(error) or type(error).__name__
