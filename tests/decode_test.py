"""What pictures are, and what is none."""

import io

import numpy as np
import pytest
from PIL import Image

from vgg_jax.data.decode import DecodeError, decode, size_of


def encoded(array, form="PNG", mode=None):
    picture, file = Image.fromarray(array), io.BytesIO()
    (picture if mode is None else picture.convert(mode)).save(file, form)
    return file.getvalue()


def test_one_channel_and_cmyk_become_rgb():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    np.testing.assert_array_equal(np.asarray(decode(encoded(grey))), np.repeat(grey[..., None], 3, -1))
    red = np.zeros((16, 16, 3), np.uint8) + np.array([200, 30, 40], np.uint8)
    assert np.abs(np.asarray(decode(encoded(red, "JPEG", "CMYK"))).astype(int) - red).max() < 6


def test_sixteen_bits_are_divided_by_257():
    deep = np.array([[0, 257, 25700, 65535]], np.uint16)
    np.testing.assert_array_equal(np.asarray(decode(encoded(deep)))[0, :, 0], [0, 1, 100, 255])


def test_transparency_is_laid_on_white():
    picture = np.zeros((1, 2, 4), np.uint8)
    picture[0, 0] = [9, 8, 7, 255]
    np.testing.assert_array_equal(np.asarray(decode(encoded(picture)))[0], [[9, 8, 7], [255, 255, 255]])


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "0 bytes"), (b"<html>404</html>", "not a picture"), (b"\xff\xd8\xff\xe0 and no more", "Truncated")],
)
def test_what_is_no_picture_is_said_to_be_none(content, reason):
    for function in (decode, size_of):
        with pytest.raises(DecodeError, match=reason):
            function(content)


def test_real_files(real_pictures):
    folder = real_pictures / "hard-images"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    for file in sorted((folder / "decodable").iterdir()):
        picture = decode(file.read_bytes())
        assert picture.mode == "RGB", file
        assert picture.size == size_of(file.read_bytes()), file
    for file in sorted((folder / "bad").iterdir()):
        with pytest.raises(DecodeError):
            decode(file.read_bytes())
