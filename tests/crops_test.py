"""Crops against the plain way: decode whole, rescale whole, cut."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from vgg_jax.data import crops
from vgg_jax.data.crops import center_crop, random_crop, random_resized_crop, rescaled, rescaled_size


def jpeg(image, subsampling=2):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92, subsampling=subsampling)
    return file.getvalue()


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def smooth_picture(width, height, seed=0):
    noise = np.random.RandomState(seed).randint(0, 256, (height // 12 + 2, width // 12 + 2, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


class Draws:
    """A generator whose draws are given."""

    def __init__(self, *values):
        self.values, self.ranges = list(values), []

    def integers(self, low, high=None):
        self.ranges.append((0, low) if high is None else (low, high))
        return self.values.pop(0)


@pytest.mark.parametrize(
    ("size", "scale", "wanted"),
    [
        ((500, 375), 256, (341, 256)),
        ((375, 500), 256, (256, 341)),
        ((300, 300), 384, (384, 384)),
        ((3, 2), 5, (8, 5)),
        ((1000, 1), 384, (384000, 384)),
    ],
)
def test_rescaled_size(size, scale, wanted):
    assert rescaled_size(*size, scale) == wanted


@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (120, 411), (64, 64)])
@pytest.mark.parametrize("scale", [256, 307, 512])
def test_a_random_crop_is_cut_from_the_rescaled_picture(width, height, scale):
    encoded = jpeg(smooth_picture(width, height))
    whole = Image.open(io.BytesIO(encoded)).convert("RGB")
    size = rescaled_size(width, height, scale)
    left, top = (size[0] - 224) // 3, size[1] - 224
    rng = Draws(scale, left, top)
    crop = random_crop(encoded, rng, 256, 512, 224)
    assert rng.ranges == [(256, 513), (0, size[0] - 223), (0, size[1] - 223)]  # S and places, ends included
    assert crop.shape == (224, 224, 3)
    assert crop.dtype == np.uint8
    plain = np.asarray(whole.resize(size, Image.Resampling.BILINEAR))[top : top + 224, left : left + 224]
    # DCT scaling and resizing of the crop alone change a pixel by less than 2 of 255 on average.
    assert np.abs(crop.astype(int) - plain).mean() < 2
    elsewhere = np.asarray(whole.resize(size, Image.Resampling.BILINEAR))[:224, :224]
    assert (left, top) == (0, 0) or np.abs(crop.astype(int) - elsewhere).mean() > 4


@pytest.mark.parametrize("size", [(500, 375), (230, 300), (1300, 1100), (3000, 2100)])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_what_lies_below_the_crop_changes_nothing(size, subsampling, monkeypatch):
    encoded = jpeg(smooth_picture(*size), subsampling)
    short = [random_crop(encoded, np.random.default_rng(i), 256, 512, 224) for i in range(40)]
    rows, real = [], crops.decode_part

    def whole(content, header, at_least, bottom):
        pixels, factor = real(content, header, at_least, math.inf)
        rows.append(pixels.shape[0] / factor - bottom)
        return pixels, factor

    monkeypatch.setattr(crops, "decode_part", whole)
    np.testing.assert_array_equal(
        short, [random_crop(encoded, np.random.default_rng(i), 256, 512, 224) for i in range(40)]
    )
    assert max(rows) > size[1] / 5, "nothing was left out"


@pytest.mark.parametrize("size", [(500, 375), (1300, 1100), (300, 411)])
def test_the_fast_resizer_is_the_exact_one_but_for_rounding(size, monkeypatch):
    encoded = jpeg(smooth_picture(*size))
    fast = [random_crop(encoded, np.random.default_rng(i), 256, 512, 224) for i in range(20)]
    monkeypatch.setattr(crops, "cykooz_resizer", None)
    exact = [random_crop(encoded, np.random.default_rng(i), 256, 512, 224) for i in range(20)]
    difference = np.abs(np.stack(fast).astype(int) - np.stack(exact))
    assert difference.max() <= 2
    assert difference.mean() < 0.3
    assert difference.mean() > 0, "both are the same resizer"


def test_real_photographs_are_cropped_as_the_plain_way_does(real_images):
    folder = real_images / "imagenet-sample-120"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    differences = []
    for i, file in enumerate(sorted(folder.iterdir())):
        rng = np.random.default_rng(i)
        crop = random_crop(file.read_bytes(), rng, 256, 512, 224)
        # Decode whole, rescale whole, cut: with Pillow, at the same draws.
        rng = np.random.default_rng(i)
        image = Image.open(file).convert("RGB")
        size = rescaled_size(*image.size, int(rng.integers(256, 513)))
        left, top = int(rng.integers(size[0] - 223)), int(rng.integers(size[1] - 223))
        plain = np.asarray(image.resize(size, Image.Resampling.BILINEAR))[top : top + 224, left : left + 224]
        differences.append(np.abs(crop.astype(int) - plain).mean())
    # Levels of 255, an image: rounding alone where nothing was decoded smaller; DCT scaling is a sharper filter.
    assert np.mean(differences) < 0.25
    assert np.max(differences) < 4


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 301), (500, 375), (331, 333), (224, 700), (256, 256)])
@pytest.mark.parametrize("scale", [224, 225, 256, 301])
def test_the_centre_crop_is_central_and_that_of_the_rescaled_picture_to_the_last_bit(width, height, scale):
    encoded = jpeg(smooth_picture(width, height))
    plain = np.asarray(
        Image.open(io.BytesIO(encoded)).resize(rescaled_size(width, height, scale), Image.Resampling.BILINEAR)
    )
    left, top = (plain.shape[1] - 224) // 2, (plain.shape[0] - 224) // 2
    np.testing.assert_array_equal(center_crop(encoded, scale, 224), plain[top : top + 224, left : left + 224])
    np.testing.assert_array_equal(rescaled(encoded, scale), plain)


def test_the_centre_of_a_long_strip_is_resized_alone(monkeypatch):
    encoded = png(np.asarray(smooth_picture(400, 300)))
    exact = center_crop(encoded, 64, 48)
    monkeypatch.setattr("vgg_jax.data.crops._LARGE", 0)
    assert np.abs(center_crop(encoded, 64, 48).astype(int) - exact).max() <= 1
    monkeypatch.undo()
    monkeypatch.setattr("vgg_jax.data.crops.rescaled", None)  # of 256 x 5,120,000 pixels
    strip = np.full((20_000, 1, 3), 7, np.uint8)
    assert (center_crop(png(strip), 256, 224) == 7).all()


def test_random_crops_reach_every_place_and_scale():
    encoded = jpeg(smooth_picture(60, 50))
    rng = np.random.default_rng(0)
    found = {random_crop(encoded, rng, 50, 52, 48).tobytes() for _ in range(1500)}
    places = sum((w - 47) * (h - 47) for w, h in (rescaled_size(60, 50, s) for s in (50, 51, 52)))
    assert places == 13 * 3 + 14 * 4 + 15 * 5
    assert 0.98 * places < len(found) <= places


def test_a_padded_crop_is_a_slice_of_the_padded_picture():
    picture = np.random.default_rng(1).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    encoded = png(picture)
    padded = np.pad(picture, ((4, 4), (4, 4), (0, 0)))
    places = [padded[top : top + 32, left : left + 32].tobytes() for top in range(9) for left in range(9)]
    rng = np.random.default_rng(0)
    found = [random_crop(encoded, rng, 32, 32, 32, padding=4).tobytes() for _ in range(1200)]
    assert set(found) == set(places)  # all 81, and nothing else


def test_a_resized_crop_is_a_part_of_the_picture_of_the_promised_area_and_aspect():
    """The image's red is the column and its green the row, so a crop says by itself where it lies."""
    rows, columns = np.mgrid[:200, :250].astype(np.uint8)
    encoded = png(np.stack([columns, rows, rows * 0], -1))
    rng, shares, aspects = np.random.default_rng(0), [], []
    for _ in range(400):
        crop = random_resized_crop(encoded, rng, 0.08, 48).astype(float)
        assert crop.shape == (48, 48, 3)
        # Between the centres of the first and the last pixel lie 47 of 48 parts of the side.
        w, h = (crop[24, -2, 0] - crop[24, 1, 0]) * 48 / 45, (crop[-2, 24, 1] - crop[1, 24, 1]) * 48 / 45
        shares.append(w * h / (200 * 250))
        aspects.append(w / h)
    assert min(shares) == pytest.approx(0.08, abs=0.02)
    assert max(shares) == pytest.approx(1, abs=0.1)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert min(aspects) == pytest.approx(3 / 4, abs=0.05)
    assert max(aspects) == pytest.approx(4 / 3, abs=0.05)


def test_a_resized_crop_of_a_strip_is_its_middle():
    rows, columns = np.mgrid[:10, :240].astype(np.uint8)
    encoded = png(np.stack([columns, rows, rows * 0], -1))
    crop = random_resized_crop(encoded, np.random.default_rng(0), 0.9, 16)
    assert crop[8, [0, -1], 0].tolist() == pytest.approx([113, 126], abs=2)  # 13 of 240 columns around the 120th
