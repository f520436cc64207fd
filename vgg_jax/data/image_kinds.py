"""The kinds of image files that are read, the bounds of what is read, and how Pillow opens them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
from pathlib import Path

from PIL import Image, features

# The bounds of an image; what is beyond them is refused, from its header where that says so. Decoding one then takes
# less than a gigabyte and half a minute.
MAX_BYTES = 2**29  # of a file
MAX_PIXELS = 89_478_485  # of a JPEG, which takes 3 bytes for each. Pillow's own threshold.
MAX_OTHER_PIXELS = 2**25  # of other kinds; Pillow makes several copies of them, 4 bytes a pixel

# The kinds of file that are read. Pillow knows more, and starts other programs for some (EPS).
KINDS = (
    *("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"),
    *(["AVIF"] if features.check("avif") else []),
    *(["JPEG2000"] if features.check("jpg_2000") else []),
)
# Endings of files that are looked for in folders.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *([".avif"] if "AVIF" in KINDS else []),
    *([".jp2", ".j2k", ".jpx"] if "JPEG2000" in KINDS else []),
)
# Images of other kinds, by what they contain near their beginning.
_OTHER_KINDS = {
    rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)": "HEIC",
    rb"....ftyp(avif|avis)": "AVIF",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL",
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^<]*)?(<!--.*?-->\s*|<!DOCTYPE svg[^<]*)*<svg": "SVG",
    rb"%PDF": "PDF",
    rb"%!PS|\xc5\xd0\xd3\xc6": "PostScript",
    rb"8BPS": "PSD",
    rb"\0\0\x01\0": "ICO",
}
_PNG = b"\x89PNG\r\n\x1a\n"


class DecodeError(ValueError):
    """Bytes that are not a whole, sound image; the message says what is wrong with them."""


def read_file(path: Path) -> bytes:
    """Reads a file that may be an image.

    Raises:
      DecodeError: no regular file (a device, a pipe), or more than MAX_BYTES.
      OSError: of reading.
    """
    # Opening a pipe must not wait for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise DecodeError(f"{status.st_size:,} bytes, more than {MAX_BYTES:,}")
        return file.read()


def is_named_like_an_image(path: Path) -> bool:
    """Returns whether a file's name ends as an image's."""
    return path.suffix.lower() in SUFFIXES


def open_image(encoded: bytes) -> Image.Image:
    """Opens an image by Pillow; raises DecodeError for another kind of file, a damaged header or too many pixels."""
    if not encoded:
        raise DecodeError("0 bytes")
    # Pillow's plugins raise many kinds of errors on hostile bytes.
    try:
        image = identified(_without_remarks(encoded))
    except Exception as error:
        raise DecodeError(str(error) or type(error).__name__) from error
    if image is None:
        for pattern, kind in _OTHER_KINDS.items():
            if re.match(pattern, encoded[:1000], re.DOTALL):
                raise DecodeError(f"an image of the kind {kind}, which is not read")
        raise DecodeError("not an image")
    refuse_impossible(image.size, MAX_PIXELS if image.format == "JPEG" else MAX_OTHER_PIXELS)
    return image


def identified(encoded: bytes) -> Image.Image | None:
    """Opens an image as `Image.open` does, without its warning of many pixels; returns None if it is not one."""
    Image.preinit()
    for kind in KINDS:
        if kind not in Image.OPEN:
            Image.init()
        factory, accepts = Image.OPEN[kind]
        accepted = not accepts or accepts(encoded[:16])
        if not accepted or isinstance(accepted, str):
            continue
        with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
            return factory(io.BytesIO(encoded), "")
    return None


def _without_remarks(encoded: bytes) -> bytes:
    """Returns a PNG without texts and colour profile, of which Pillow bounds the size; other kinds unchanged."""
    if encoded[:8] != _PNG:
        return encoded
    chunks, at = [_PNG], 8
    while at + 8 <= len(encoded):
        end = at + 12 + int.from_bytes(encoded[at : at + 4], "big")
        if encoded[at + 4 : at + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            chunks.append(encoded[at:end])
        at = end
    return b"".join(chunks)


def refuse_impossible(size: tuple[int, int], most: int, num_bytes: int | None = None) -> None:
    """Raises DecodeError for a size that would only cost memory: too large, or more than the bytes can hold."""
    pixels = size[0] * size[1]
    if pixels == 0:
        raise DecodeError(f"a size of {size[0]} x {size[1]}")
    if pixels > most:
        raise DecodeError(f"{size[0]} x {size[1]} pixels, more than {most:,}")
    # Every block of 8 x 8 pixels takes a bit at the least, in a Huffman-coded JPEG.
    if num_bytes is not None and pixels > 512 * num_bytes:
        raise DecodeError(f"{size[0]} x {size[1]} pixels in only {num_bytes} bytes")
