"""Decodes images; for training, only the region and scale that a crop needs.

JPEGs are decoded by simplejpeg (libjpeg-turbo, pixel for pixel what Pillow gives) where it is installed, everything
else by Pillow.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vgg_jax.data.image_kinds import MAX_PIXELS, DecodeError, open_image, refuse_impossible
from vgg_jax.data.rgb import to_rgb

# It has no build for every machine; Pillow decodes whole images in its place.
try:
    import simplejpeg
except ImportError:
    simplejpeg = None

MAX_SCANS = 100  # of a progressive JPEG; encoders make about ten
MAX_SCANNED_PIXELS = 2 * 10**9  # pixels times scans
_LARGE = 2**23  # pixels; of such images only so many are decoded at once, in a process:
_LARGE_AT_ONCE = threading.BoundedSemaphore(2)


def decode(encoded: bytes) -> np.ndarray:
    """Decodes an image exactly, at full size.

    The kind is told by the content, not by a name. Grey, palette, CMYK, YCCK and Lab images become RGB; 16 bits of grey
    are divided by 257, numbers from 0 to 1 multiplied by 255, and rounded; transparent images are laid on white; of
    several frames the first counts. Orientation tags are ignored.

    Args:
      encoded: a JPEG, PNG, GIF, BMP, WebP, TIFF or PPM file; AVIF and JPEG 2000 where Pillow was built with them.

    Returns:
      [H, W, 3] uint8 RGB.

    Raises:
      DecodeError: no such file, cut short where its decoder says so (`check` is stricter), numbers whose white nothing
        says, or beyond a bound above.
    """
    return decode_part(encoded, read_header(encoded), (MAX_PIXELS, MAX_PIXELS), math.inf)[0]


def decode_part(encoded: bytes, header: Header, at_least: tuple[int, int], bottom: float) -> tuple[np.ndarray, float]:
    """Decodes as little of an image as a crop of its rescaled form needs.

    A JPEG is decoded at 1/8, 1/4, 3/8 or 1/2 of its size (DCT scaling) where that is not below the required size, and
    not beyond the last required row: its header is given that height. Other images are decoded whole.

    Args:
      encoded: as in `decode`.
      header: of `read_header`.
      at_least: (width, height) that the image will be rescaled to, in pixels.
      bottom: number of required rows of the full-size image, from the top.

    Returns:
      [h, w, 3] uint8 RGB; and the factor f by which they are smaller: the point (x, y) of the full-size image is
      at (f x, f y). The rows equal the rows of the whole image decoded at this factor, to the last bit.

    Raises:
      DecodeError: as `decode`.
    """
    # No JPEG; or CMYK or YCCK, which need Pillow's conversion.
    if simplejpeg is None or header.components not in (1, 3):
        return _decode_with_pillow(encoded), 1.0
    width, height = header.size
    eighths = next(
        e
        for e in (1, 2, 3, 4, 8)
        if e == 8 or (-(-width * e // 8) >= at_least[0] and -(-height * e // 8) >= at_least[1])
    )
    rows = height
    if header.one_pass and bottom < height:
        # Smooth upsampling of chroma, where it has fewer rows, looks one of its rows further.
        further = 0 if header.unit_height == 8 else header.unit_height // 8
        rows = min(height, -(-(math.ceil(bottom) + further) // header.unit_height) * header.unit_height)
        # A view, as a slice would be one more copy.
        view, at = memoryview(encoded), header.height_at
        encoded = b"".join((view[:at], rows.to_bytes(2, "big"), view[at + 2 :]))
    reduced: dict[str, float] = {}
    # It takes the smallest size that is not below the one named, so it is told the size just worked out.
    if eighths < 8:
        width, height = -(-width * eighths // 8), -(-rows * eighths // 8)
        reduced = {"min_width": width, "min_height": height, "min_factor": 8 / eighths}
    try:
        with _large_ones_in_turn(header.size):
            # Not strict: a JPEG that was shortened ends with a warning. The warnings that matter, `check` reports.
            pixels = simplejpeg.decode_jpeg(encoded, strict=False, **reduced)
    # A kind that libjpeg-turbo's simple interface leaves out, as odd chroma subsampling, or damage.
    except ValueError:
        return _decode_with_pillow(encoded), 1.0
    return pixels, eighths / 8


class Header(NamedTuple):
    """An image's header; all but the size of JPEGs only."""

    size: tuple[int, int]  # width, height
    components: int = 0
    height_at: int = 0  # where in the file the height stands, two bytes
    pixels_at: int = 0  # where the first scan begins
    unit_height: int = 8  # rows of the smallest coded unit
    one_pass: bool = False  # sequential, and all components in one scan: decoding can end at any row


def read_header(encoded: bytes) -> Header:
    """Reads an image's header; raises DecodeError as `decode` does."""
    return _jpeg_header(encoded) or Header(open_image(encoded).size)


def size_of(encoded: bytes) -> tuple[int, int]:
    """Returns (width, height) in pixels, from the header alone; raises DecodeError as `decode` does."""
    return read_header(encoded).size


def is_cut_short(encoded: bytes) -> bool:
    """Returns whether a JPEG has no end marker, so that decoders make up its last rows; False for other kinds."""
    if encoded[:2] != b"\xff\xd8" or encoded.endswith(b"\xff\xd9"):
        return False
    return encoded.find(b"\xff\xd9", read_header(encoded).pixels_at) < 0


def is_plain_jpeg(encoded: bytes) -> bool:
    """Returns whether a sound image is a grey or RGB JPEG, which every JPEG decoder reads."""
    return read_header(encoded).components in (1, 3)


def check(encoded: bytes) -> np.ndarray | None:
    """Decodes an image to find out whether it is whole and sound; stricter than `decode`, which continues where it can.

    Without simplejpeg, stray bytes among a JPEG's pixels are not found: Pillow does not say.

    Returns:
      [H, W, 3] uint8, as `decode` does, where that is at hand; else None.

    Raises:
      DecodeError: as `decode`, or a JPEG that lacks bytes, has extraneous bytes in its entropy-coded data, or has no
        end marker, or a PNG whose checksums or end are wrong. The message is the reason.
    """
    header = read_header(encoded)
    if not header.components:
        _verify_with_pillow(encoded)
        return _decode_with_pillow(encoded)
    if simplejpeg is None:
        if b"\xff\xd9" not in encoded[header.pixels_at :]:
            raise DecodeError("JPEG without an end marker")
        return _decode_with_pillow(encoded)
    is_cmyk = header.components == 4
    try:
        with _large_ones_in_turn(header.size):
            pixels: np.ndarray = simplejpeg.decode_jpeg(encoded, "CMYK" if is_cmyk else "RGB", strict=True)
    except ValueError as error:
        reason = str(error)
        if _DAMAGE.match(reason):
            raise DecodeError(reason) from error
        if b"\xff\xd9" not in encoded[header.pixels_at :]:
            raise DecodeError("JPEG without an end marker") from error
        # A harmless oddity, or a kind that Pillow alone reads, or nothing at all.
        _decode_with_pillow(encoded)
        return None
    return None if is_cmyk else pixels


# libjpeg-turbo's warnings that mean lost or wrong pixels. Stray bytes before the markers of the header are harmless.
_DAMAGE = re.compile(r"Premature end|Corrupt JPEG data(?!: \d+ extraneous bytes before marker 0x(?!d\d))")


_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _jpeg_header(encoded: bytes) -> Header | None:
    """Reads a JPEG's header, segment by segment, up to its first scan; None for a file of another kind.

    Raises:
      DecodeError: the header is cut short, or claims a size that is impossible.
    """
    if encoded[:2] != b"\xff\xd8":
        return None
    at, frame, unit_height = 2, None, 8
    while True:
        # Stray bytes between segments are passed over, as decoders do.
        at = encoded.find(b"\xff", at)
        if at < 0 or at + 4 > len(encoded):
            raise DecodeError("JPEG header cut short")
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4], "big")
        # Fill bytes, and markers without a segment.
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        segment = encoded[at + 4 : at + 2 + length]
        if marker in _FRAME_MARKERS and len(segment) >= 6:
            height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
            components = segment[5]
            unit_height = 8 * max([1, *(sampling & 15 for sampling in segment[7 : 6 + 3 * components : 3])])
            sequential = marker in (0xC0, 0xC1)
            frame = Header((width, height), components, at + 5, 0, unit_height, sequential)
        if marker in (0xDA, 0xD9):
            if frame is None:
                raise DecodeError("JPEG without a frame header")
            refuse_impossible(frame.size, MAX_PIXELS, len(encoded))
            one_pass = frame.one_pass and segment[:1] == bytes([frame.components])
            if not one_pass:
                _refuse_many_scans(encoded, at, frame.size)
            return frame._replace(pixels_at=at, one_pass=one_pass)
        at += 2 + length


def _refuse_many_scans(encoded: bytes, pixels_at: int, size: tuple[int, int]) -> None:
    end = encoded.find(b"\xff\xd9", pixels_at)
    scans = encoded.count(b"\xff\xda", pixels_at, end if end > 0 else len(encoded))
    if scans > MAX_SCANS or scans * size[0] * size[1] > MAX_SCANNED_PIXELS:
        raise DecodeError(
            f"{scans:,} scans of {size[0]} x {size[1]} pixels, more than {MAX_SCANS} scans or {MAX_SCANNED_PIXELS:,} "
            "pixels"
        )


@contextlib.contextmanager
def _large_ones_in_turn(size: tuple[int, int]) -> Iterator[None]:
    with _LARGE_AT_ONCE if size[0] * size[1] > _LARGE else contextlib.nullcontext():
        yield


def _decode_with_pillow(encoded: bytes) -> np.ndarray:
    image = open_image(encoded)
    try:
        with _large_ones_in_turn(image.size):
            image.load()
            return np.asarray(to_rgb(image))
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(str(error) or type(error).__name__) from error


def _verify_with_pillow(encoded: bytes) -> None:
    image = open_image(encoded)
    try:
        # Of the kinds here only PNG has something to verify: a checksum for every chunk, and the end.
        image.verify()
    except Exception as error:
        raise DecodeError(str(error) or type(error).__name__) from error
