"""What images are, what is none, and that a part of one is exactly that part."""

import io
import math
import os
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from vgg_jax.data import image_kinds
from vgg_jax.data.decode import MAX_SCANS, check, decode, decode_part, is_cut_short, read_header
from vgg_jax.data.image_kinds import MAX_OTHER_PIXELS, DecodeError, read_file
from vgg_jax.data.orientation import orientation

WHOLE = (10**6, 10**6)  # larger than any image here: nothing may be decoded smaller


def encoded(array, form="PNG", mode=None, **options):
    image, file = Image.fromarray(array), io.BytesIO()
    (image if mode is None else image.convert(mode)).save(file, form, **options)
    return file.getvalue()


def smooth(width, height, seed=0):
    noise = np.random.RandomState(seed).randint(0, 256, (height // 9 + 2, width // 9 + 2, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def with_pillow(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


# Every kind of JPEG that Pillow writes.
KINDS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "4:1:1": {"subsampling": "4:1:1"},
    "progressive": {"subsampling": 2, "progressive": True},
    "restarts": {"subsampling": 2, "restart_marker_blocks": 3},
    "RGB": {"keep_rgb": True},
    "grey": {"mode": "L"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "height"), [(97, 150), (150, 97), (5, 40), (1, 1)])
def test_a_jpeg_is_decoded_as_pillow_decodes_it(kind, width, height):
    content = encoded(smooth(width, height), "JPEG", **KINDS[kind])
    assert read_header(content).size == (width, height)
    np.testing.assert_array_equal(decode(content), with_pillow(content))
    check(content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eighths", [1, 2, 3, 4, 8])
def test_a_part_of_a_jpeg_is_that_part_of_the_whole(kind, eighths):
    width, height = 301, 402
    content = encoded(smooth(width, height), "JPEG", **KINDS[kind])
    at_least = WHOLE if eighths == 8 else (math.ceil(width * eighths / 8), math.ceil(height * eighths / 8))
    whole, factor = decode_part(content, read_header(content), at_least, math.inf)
    assert factor == eighths / 8
    assert whole.shape == (math.ceil(height * factor), math.ceil(width * factor), 3)
    for bottom in (1, 16, 17, 100.5, 399, 402):
        part, same = decode_part(content, read_header(content), at_least, bottom)
        wanted = math.ceil(bottom * factor)
        assert same == factor
        np.testing.assert_array_equal(part[:wanted], whole[:wanted])
        if bottom <= 100 and kind != "progressive":  # whose scans go over the whole image
            assert len(part) < len(whole) / 2


@pytest.mark.parametrize("scale", range(256, 513))
def test_a_jpeg_is_decoded_as_small_as_s_allows_and_never_smaller(scale):
    for width, height in ((500, 375), (1024, 768), (900, 1601), (2048, 2100), (4097, 4096)):
        content = HEADERS[width, height]
        short, long = sorted((width, height))
        wanted = (scale, round(long * scale / short)) if width < height else (round(long * scale / short), scale)
        pixels, factor = decode_part(content, read_header(content), wanted, math.inf)
        assert (pixels.shape[1], pixels.shape[0]) == (math.ceil(width * factor), math.ceil(height * factor))
        assert pixels.shape[1] >= min(width, wanted[0])  # where the image itself is smaller, it is all there is
        assert pixels.shape[0] >= min(height, wanted[1])
        smaller = {1: 0.5, 0.5: 0.375, 0.375: 0.25, 0.25: 0.125}.get(factor)
        if smaller is not None:
            assert math.ceil(width * smaller) < wanted[0] or math.ceil(height * smaller) < wanted[1]


def _flat(width, height):
    return encoded(np.zeros((height, width), np.uint8), "JPEG")


HEADERS = {size: _flat(*size) for size in ((500, 375), (1024, 768), (900, 1601), (2048, 2100), (4097, 4096))}


def test_one_channel_and_cmyk_become_rgb():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    np.testing.assert_array_equal(decode(encoded(grey)), np.repeat(grey[..., None], 3, -1))
    red = np.zeros((16, 16, 3), np.uint8) + np.array([200, 30, 40], np.uint8)
    content = encoded(red, "JPEG", "CMYK")
    assert np.abs(decode(content).astype(int) - red).max() < 6
    assert np.abs(decode_part(content, read_header(content), (2, 2), 3)[0].astype(int) - red).max() < 6
    check(content)


@pytest.mark.parametrize(("form", "dtype"), [("PNG", np.uint16), ("TIFF", np.uint16), ("PPM", np.uint16)])
def test_sixteen_bits_are_divided_by_257_and_rounded(form, dtype):
    deep = np.arange(0, 65500, 5, dtype=dtype).reshape(100, -1)
    nearest = np.rint(deep / 257).astype(np.uint8)
    assert (nearest != deep // 257).any()
    np.testing.assert_array_equal(decode(encoded(deep, form))[..., 1], nearest)


def test_sixteen_bits_big_endian():
    deep = np.array([[0, 128, 129, 65535]], ">u2")
    file = io.BytesIO()
    Image.frombytes("I;16B", (4, 1), deep.tobytes()).save(file, "TIFF")
    assert Image.open(io.BytesIO(file.getvalue())).mode == "I;16B"
    np.testing.assert_array_equal(decode(file.getvalue())[0, :, 0], [0, 0, 1, 255])


@pytest.mark.parametrize("stored", [np.array([[0, 65535]], np.uint16), np.array([[0, 1]], np.float32)])
def test_a_deep_tiff_whose_zero_is_white_is_inverted(stored):
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(decode(file.getvalue())[0, :, 0], [255, 0])


def test_floats_from_0_to_1_are_multiplied_by_255():
    values = np.linspace(0, 1, 1000, dtype=np.float32).reshape(10, 100)
    np.testing.assert_array_equal(decode(encoded(values, "TIFF"))[..., 2], np.rint(values.astype(float) * 255))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.5, 1.5]], np.float32), "numbers from 0.5 to 1.5, whose white is unknown"),
        (np.array([[-0.1, 0.5]], np.float32), "numbers from -0.1"),
        (np.array([[0.5, np.nan]], np.float32), "numbers from nan to nan"),
        (np.array([[0.5, np.inf]], np.float32), "numbers from 0.5 to inf"),
        (np.array([[0, 65536]], np.int32), "integers of 32 bits, whose white is unknown; save 8 or 16 bits"),
        (np.array([[0, 252]], np.int32), "integers of 32 bits"),
        (np.array([[-1, 7]], np.int32), "integers of 32 bits"),
    ],
)
def test_numbers_whose_white_nothing_says_are_refused(values, reason):
    for function in (decode, check):
        with pytest.raises(DecodeError, match=reason):
            function(encoded(values, "TIFF"))


def test_transparent_grey_of_sixteen_bits_is_laid_on_white():
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 500, 40_000]], np.uint16)).save(file, "PNG", transparency=500)
    np.testing.assert_array_equal(decode(file.getvalue())[0, :, 0], [0, 255, 156])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"])
def test_every_mode_of_eight_bits_becomes_rgb(mode):
    shades = np.repeat(np.array([[0, 51, 204, 255]], np.uint8)[..., None], 3, -1)
    colours = smooth(40, 20) if mode not in ("1", "L", "LA", "P", "PA") else shades
    colours = shades // 255 * 255 if mode == "1" else colours
    image = Image.fromarray(colours)
    if mode == "LAB":
        colours = colours // 4 + 96  # what Lab of 8 bits holds
        image = Image.fromarray(colours)
        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        image = ImageCms.applyTransform(image, to_lab)
    elif mode == "PA":
        image = image.convert("P").convert("PA")
    else:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF")
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow below 13 writes no sound TIFF of YCbCr")
    assert Image.open(io.BytesIO(file.getvalue())).mode == ("RGB" if mode == "RGBX" else mode)
    rounding = {"LAB": 4, "YCbCr": 3}.get(mode, 0)
    assert np.abs(decode(file.getvalue()).astype(int) - colours).max() <= rounding


@pytest.mark.parametrize("form", ["AVIF", "JPEG2000"])
def test_newer_kinds_are_read_where_pillow_reads_them(form):
    if form not in image_kinds.KINDS:
        pytest.skip(f"Pillow was built without {form}")
    content = encoded(smooth(40, 20), form)
    check(content)
    np.testing.assert_array_equal(decode(content), with_pillow(content))


def test_remarks_in_a_png_do_not_matter():
    remarks = PngImagePlugin.PngInfo()
    remarks.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    remarks.add_text("long", "y" * 70_000_000, zip=True)
    image = smooth(40, 20)
    content = encoded(image, pnginfo=remarks, icc_profile=b"z" * 5_000_000)
    with pytest.raises(ValueError, match="Decompressed data too large"):
        Image.open(io.BytesIO(content)).load()
    check(content)
    np.testing.assert_array_equal(decode(content), image)


def many_scans(count):
    content = encoded(smooth(64, 64), "JPEG", progressive=True)
    at = content.rindex(b"\xff\xda")
    return content[:at] + content[at:-2] * (count - content.count(b"\xff\xda") + 1) + content[-2:]


def test_scans_are_counted_before_any_is_decoded(monkeypatch):
    decode(many_scans(MAX_SCANS))
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_args, **_options: pytest.fail("was decoded"))
    for function in (decode, check, read_header):
        with pytest.raises(DecodeError, match=rf"{MAX_SCANS + 1} scans of 64 x 64 pixels, more than {MAX_SCANS} scans"):
            function(many_scans(MAX_SCANS + 1))


def test_only_regular_files_of_a_bounded_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 8 * 10**9)  # sparse
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises((DecodeError, IsADirectoryError), match="not a regular file|Is a directory"):
            read_file(path)
    with pytest.raises(DecodeError, match="8,000,000,000 bytes, more than 536,870,912"):
        read_file(tmp_path / "large")


def test_a_jpeg_that_is_cut_short_is_told_apart():
    assert is_cut_short(GOOD[:-2])
    assert is_cut_short(GOOD[: len(GOOD) // 2])
    assert not is_cut_short(GOOD)
    assert not is_cut_short(GOOD + b"\0" * 9)
    assert not is_cut_short(PNG[:-9])


def test_transparency_is_laid_on_white():
    image = np.zeros((1, 2, 4), np.uint8)
    image[0, 0] = [9, 8, 7, 255]
    np.testing.assert_array_equal(decode(encoded(image))[0], [[9, 8, 7], [255, 255, 255]])
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([9, 8, 7, 0, 0, 0])
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=1)
    np.testing.assert_array_equal(decode(file.getvalue())[0], [[9, 8, 7], [255, 255, 255]])


def test_without_simplejpeg_pillow_decodes(monkeypatch):
    content = encoded(smooth(64, 48), "JPEG", quality=90)
    wanted = decode(content)
    monkeypatch.setattr("vgg_jax.data.decode.simplejpeg", None)
    np.testing.assert_array_equal(decode(content), wanted)
    part, factor = decode_part(content, read_header(content), (8, 8), 10.0)
    assert factor == 1.0
    np.testing.assert_array_equal(part, wanted)
    check(content)
    for damaged in (content[: len(content) // 2], content[:-2]):
        with pytest.raises(DecodeError):
            check(damaged)


def test_orientation_tags_are_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(smooth(40, 20), "JPEG", exif=exif)).shape == (20, 40, 3)


@pytest.mark.parametrize("form", ["GIF", "BMP", "WEBP", "TIFF", "PPM", "PNG"])
def test_the_kind_is_told_by_the_content(form):
    content = encoded(smooth(40, 20), form)
    check(content)
    np.testing.assert_array_equal(decode(content), with_pillow(content))


GOOD = encoded(smooth(200, 150), "JPEG", quality=95)
PNG = encoded(smooth(200, 150))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"<html>404</html>", "not an image"),
        (b"a line of text\n" * 100, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "kind PostScript, which is not read"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "an image of the kind HEIC, which is not read"),
        (b"\xff\x0a\x7a\x1f", "kind JPEG XL"),
        (b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "kind SVG"),
        (b"%PDF-1.7\n", "kind PDF"),
        (GOOD[:20], "JPEG header cut short"),
        (GOOD[:400], "JPEG header cut short|JPEG without"),
        (PNG[:40], "."),
    ],
)
def test_what_is_no_picture_is_said_to_be_none(content, reason):
    for function in (decode, check):
        with pytest.raises(DecodeError, match=reason):
            function(content)


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0x08]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GOOD[:-2], "Premature end"),
        (GOOD[: len(GOOD) * 6 // 10], "Premature end"),
        (GOOD[:-200] + GOOD[-2:], "Corrupt JPEG data: premature end of data segment"),
        (GOOD[:-2] + b"\x77" * 50 + GOOD[-2:], r"Corrupt JPEG data: \d+ extraneous bytes before marker 0xd9"),
        (PNG[:-12], "."),  # without its last chunk
        (flipped(PNG, len(PNG) // 2), "checksum|broken"),
        (encoded(smooth(60, 40), "GIF")[:-300], "truncated"),
        (encoded(smooth(60, 40), "BMP")[:-300], "truncated"),
    ],
)
def test_damage_that_decoders_may_accept_is_found(content, reason):
    with pytest.raises(DecodeError, match=reason):
        check(content)


def test_harmless_oddities_are_no_damage():
    check(GOOD + b"junk after the end" * 50)
    check(GOOD[:2] + b"\xff" * 3 + GOOD[2:])  # fill bytes
    at = GOOD.index(b"\xff\xdb")
    check(GOOD[:at] + b"stray" + GOOD[at:])  # bytes between the header's segments
    np.testing.assert_array_equal(decode(GOOD[:at] + b"stray" + GOOD[at:]), decode(GOOD))


@pytest.mark.parametrize("size", [(65535, 65535), (9000, 9000)])
def test_a_size_that_cannot_be_costs_no_memory(size, monkeypatch):
    at = GOOD.index(b"\xff\xc0") + 5
    bomb = GOOD[:at] + size[1].to_bytes(2, "big") + size[0].to_bytes(2, "big") + GOOD[at + 4 :]
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_args, **_options: pytest.fail("was decoded"))
    for function in (decode, read_header, check):
        with pytest.raises(DecodeError, match=f"{size[0]} x {size[1]} pixels"):
            function(bomb)


def test_a_png_with_too_many_pixels_is_refused_from_its_header():
    side = math.isqrt(MAX_OTHER_PIXELS) + 1
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    for function in (decode, check):
        with pytest.raises(DecodeError, match=f"{side} x {side} pixels, more than|exceeds limit"):
            function(file.getvalue())


def test_a_png_beyond_pillows_own_bound_is_refused_without_its_warning():
    file = io.BytesIO()
    Image.new("1", (2, 2)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = (10**4).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    for function in (decode, check):
        with pytest.raises(DecodeError, match=r"10000 x 10000 pixels, more than 33,554,432"):
            function(bytes(content))
    assert orientation(bytes(content)) == 1


def test_real_files(real_images):
    folder = real_images / "hard-images"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    for file in sorted((folder / "decodable").iterdir()):
        content = file.read_bytes()
        check(content)
        assert decode(content).shape[1::-1] == read_header(content).size == Image.open(file).size, file
    for kind in ("bad", "damaged"):
        for file in sorted((folder / kind).iterdir()):
            with pytest.raises(DecodeError):
                check(file.read_bytes())
