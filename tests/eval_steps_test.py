"""Frames, masks, mirror images, sides, strips and crops on the device: against the model on the image alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.networks import small
from vgg_jax.data.colors import ColorStatistics
from vgg_jax.evaluation import dense_steps, plan
from vgg_jax.evaluation.passes import GRID_CELLS
from vgg_jax.models.vgg import TABLE_1
from vgg_jax.training.augment import normalize

STATISTICS = ColorStatistics(np.array([120, 110, 100], np.float32), np.eye(3, dtype=np.float32))


# Batch normalisation, global average pooling, strided convolutions, overlapping pooling and shortcuts of every kind.
FOLLOWERS = {
    "D-BN": ("D", 64, {"batch_norm": True}),
    "A-GAP": ("A", 64, {"head": "gap"}),
    "ResNet-18": ("ResNet-18", 64, {}),
    "ResNet-50-C-1x1": ("ResNet-50", 64, {"shortcut": "C", "bottleneck_stride": "1x1"}),
    "ResNet-20": ("ResNet-20", 32, {}, 1 / 4),
    "Plain-20": ("Plain-20", 32, {}, 1 / 2),
    "AlexNet": ("AlexNet", 67, {}, 1 / 8),
    "GoogLeNet": ("GoogLeNet", 64, {}),
}


@functools.cache
def network_for(name):
    model, variables = small(*FOLLOWERS.get(name, (name,)))
    # Probabilities that are neither flat nor certain.
    logits = model.apply(variables, 60 * jax.random.normal(jax.random.key(7), (4, 70, 90, 3)))[0]
    variables["params"][model.layers[-1].name]["kernel"] *= 1 / np.ptp(logits, 1).mean()
    return model, variables


def noise(rng, height, width):
    return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def alone(model, params, photo):
    """The probability of an unpadded image and its mirror image."""
    pair = normalize(jnp.asarray(np.stack([photo, photo[:, ::-1]])), STATISTICS)
    scores = jax.jit(lambda p, x: model.apply(p, x)[0])(params, pair)
    return np.asarray(jax.nn.softmax(scores).mean(0))


def framed(photos, frame, fill=77):
    """Frames whose padding is not black: what lies outside an image must not matter."""
    frames = np.full((len(photos), *frame, 3), fill, np.uint8)
    for i, photo in enumerate(photos):
        frames[i, : photo.shape[0], : photo.shape[1]] = photo
    return frames, np.array([p.shape[:2] for p in photos], np.int32)


FAST = ("C", "A-GAP")  # 3x3 and 1x1 kernels, no FC layers


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in (*TABLE_1, *FOLLOWERS)]
)
def test_a_picture_in_a_frame_is_the_picture_alone_and_the_mask_matters(name):
    rng = np.random.default_rng(3)
    model, params = network_for(name)
    dense = jax.jit(dense_steps.make_dense(model, STATISTICS))
    for on_side in (False, True):
        photos = [noise(rng, 70, int(width)) for width in rng.integers(70, 200, 2)]
        if on_side:
            photos = [photo.swapaxes(0, 1) for photo in photos]  # upright ones
        laid = [photo.swapaxes(0, 1) for photo in photos] if on_side else photos
        frames, sizes = framed(laid, (70, 200))
        used = dense_steps.transpose_kernels(params) if on_side else params
        found = np.asarray(dense(used, frames, sizes, on_side))
        wanted = np.stack([alone(model, params, photo) for photo in photos])
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=1e-6)
        assert 0.01 < wanted.max(1).mean() < 0.99
        # The two sides really differ: without the sizes, on the wrong side, or with the other kernels it is not so.
        for other in (
            dense(used, frames, np.full_like(sizes, (70, 200)), on_side),
            dense(used, frames, sizes, not on_side),
            dense(params if on_side else dense_steps.transpose_kernels(params), frames, sizes, on_side),
        ):
            assert np.abs(np.asarray(other) - wanted).max() > 1e-4


def test_mirrored_exchanges_left_and_right_inside_the_picture():
    rng = np.random.default_rng(0)
    photos = [noise(rng, 5, 9), noise(rng, 4, 7)]
    frames, sizes = framed(photos, (6, 9))
    for on_side, wanted in ((False, lambda p: p[:, ::-1]), (True, lambda p: p[::-1])):
        found = np.asarray(dense_steps.mirrored(frames, sizes, on_side))
        for image, photo in zip(found, photos, strict=True):
            np.testing.assert_array_equal(image[: photo.shape[0], : photo.shape[1]], wanted(photo))


@pytest.mark.parametrize(
    "name",
    [
        "A-LRN",
        "B-5x5",
        pytest.param("D", marks=pytest.mark.slow),
        "A-GAP",
        "ResNet-18",
        pytest.param("ResNet-20", marks=pytest.mark.slow),
        pytest.param("AlexNet", marks=pytest.mark.slow),
        pytest.param("GoogLeNet", marks=pytest.mark.slow),
    ],
)
def test_strips_together_are_the_whole_picture(name):
    model, params = network_for(name)
    network = plan.geometry_of(model.layers, params["params"])
    length = plan.tile_length(network, model.crop)
    photo = noise(np.random.default_rng(1), 70, 2 * length + 45)
    cuts = plan.tiles(network, photo.shape[1], length)
    assert len(cuts) > 2
    frames, sizes = framed([photo[:, cut.start : cut.start + length] for cut in cuts], (70, length))
    step = jax.jit(dense_steps.make_tiles(model, STATISTICS))
    found = np.asarray(step(params, frames, sizes, np.array([(cut.first, cut.last) for cut in cuts]))).sum(0)
    images = normalize(jnp.asarray(photo[None]), STATISTICS)
    _, maps = model.apply(params, images, endpoints=("score_map",))
    wanted = np.asarray(maps["score_map"]).sum((0, 1, 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)
    # Were the columns that see a cut kept too, the sum over the same number of columns would differ.
    shifted = [(cut.first - (cut.start > 0), cut.last - (cut.start > 0)) for cut in cuts]
    assert np.abs(np.asarray(step(params, frames, sizes, np.array(shifted))).sum(0) - wanted).max() > 0.1


@pytest.mark.parametrize(("side", "crop", "offsets"), [(256, 224, [0, 8, 16, 24, 32]), (64, 64, [0] * 5)])
def test_the_grid_is_regular(side, crop, offsets):
    assert dense_steps.grid_offsets(side, crop).tolist() == offsets


def test_the_grid_of_any_side_is_the_formulas():
    for side in range(64, 200):
        wanted = [int(np.floor(i * (side - 64) / 4 + 0.5)) for i in range(5)]
        assert dense_steps.grid_offsets(side, 64).tolist() == wanted


def test_crops_cut_on_the_device_are_slices_of_the_picture():
    rng = np.random.default_rng(0)
    photos = [noise(rng, 40, 61), noise(rng, 40, 40), noise(rng, 40, 77)]
    for on_side in (False, True):
        frames, sizes = framed(photos, (40, 77))
        found = np.asarray(dense_steps.cut_grid(frames, sizes, on_side, 32))
        assert found.shape == (3, 25, 32, 32, 3)
        for crops, laid in zip(found, photos, strict=True):
            photo = laid.swapaxes(0, 1) if on_side else laid
            rows, columns = (dense_steps.grid_offsets(side, 32) for side in photo.shape[:2])
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    np.testing.assert_array_equal(crops[5 * i + j], photo[row : row + 32, column : column + 32])
        ten = np.asarray(dense_steps.cut_grid(frames, sizes, on_side, 32, GRID_CELLS["ten_crop"]))
        corners = {crop.tobytes() for crop in found[0][[0, 4, 12, 20, 24]]}
        assert {crop.tobytes() for crop in ten[0]} == corners
