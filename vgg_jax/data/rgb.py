"""Conversion of any kind of pixels to 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from vgg_jax.data.image_kinds import open_image

_BITS_PER_SAMPLE = 258  # the tag of TIFF 6.0, section 8
_PHOTOMETRIC = 262  # the tag of TIFF 6.0, section 8; 0 is WhiteIsZero


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image of any of Pillow's modes in 8-bit RGB, transparency on white.

    Raises:
      ValueError: numbers of an unknown range.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow gives 16 bits of PNG and PPM the same mode.
        if image.mode == "I" and 32 in _bits(image):
            raise ValueError("integers of 32 bits, whose white is unknown; save 8 or 16 bits")
        deep = _deep_to_rgb(np.asarray(image), image.info.get("transparency"))
        # Pillow inverts TIFF's photometric interpretation WhiteIsZero at 8 bits alone.
        return ImageOps.invert(deep) if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0 else deep
    # Pillow converts this to nothing else.
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def has_16_bits(encoded: bytes) -> bool:
    """Returns whether a sound image has 16 bits a channel; Pillow's mode says so of grey ones alone."""
    image = open_image(encoded)
    # IHDR's bit depth.
    is_deep_png = image.format == "PNG" and encoded[24:25] == b"\x10"
    return is_deep_png or image.mode.startswith("I") or 16 in _bits(image)


def _bits(image: Image.Image) -> tuple[int, ...]:
    """Returns the bits of each channel of a TIFF; () of other kinds."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, ())
    return bits if isinstance(bits, tuple) else (bits,)


def _deep_to_rgb(grey_HxW: np.ndarray, transparent: object) -> Image.Image:
    """Converts grey of 16 bits, of integers that hold 16 bits, or of floats from 0 to 1, which Pillow would clip."""
    least, greatest = grey_HxW.min(), grey_HxW.max()
    if grey_HxW.dtype.kind == "f":
        if not 0 <= least <= greatest <= 1:
            raise ValueError(f"numbers from {least:g} to {greatest:g}, whose white is unknown; save 8 or 16 bits")
        bytes_HxW = np.rint(grey_HxW.astype(np.float64) * 255).astype(np.uint8)
    else:
        if not 0 <= least <= greatest <= 65535:
            raise ValueError(f"integers from {least} to {greatest}, whose white is unknown; save 8 or 16 bits")
        # No half to round: 257 is odd.
        bytes_HxW = ((grey_HxW.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if isinstance(transparent, int):
        bytes_HxW[grey_HxW == transparent] = 255
    return Image.fromarray(bytes_HxW).convert("RGB")
