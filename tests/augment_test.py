"""Flip, colour shift and mean against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vgg_jax.data.colors import IMAGENET_STATISTICS, ColorStatistics
from vgg_jax.training.augment import augment, normalize

STATISTICS = ColorStatistics(
    mean_rgb=np.array([10.0, 20.0, 30.0], np.float32),
    color_vectors=np.array([[50.0, 3.0, 1.0], [40.0, -2.0, -4.0], [45.0, -1.5, 2.0]], np.float32),
)


def images(count):
    return jnp.asarray(np.random.RandomState(0).randint(0, 256, (count, 4, 6, 3)), jnp.uint8)


def test_the_mean_is_subtracted_and_nothing_divided():
    x = images(3)
    np.testing.assert_array_equal(normalize(x, STATISTICS), np.float32(x) - [10, 20, 30])


def test_about_half_are_mirrored_and_the_others_left():
    x = images(400)
    result = np.asarray(augment(jax.random.key(0), x, STATISTICS, flip=True, color_std=0))
    plain = np.asarray(normalize(x, STATISTICS))
    mirrored = (result == plain[:, :, ::-1]).all((1, 2, 3))
    untouched = (result == plain).all((1, 2, 3))
    assert (mirrored ^ untouched).all()
    assert 0.4 < mirrored.mean() < 0.6
    np.testing.assert_array_equal(augment(jax.random.key(0), x, STATISTICS, flip=False, color_std=0), plain)


def test_the_colour_shift_is_krizhevskys():
    # [p1 p2 p3][a1 l1, a2 l2, a3 l3]^T with a ~ N(0, 0.1): covariance 0.01 V V^T, the same for all pixels of an image.
    x = jnp.zeros((20_000, 1, 2, 3), jnp.uint8)
    shift = np.asarray(augment(jax.random.key(1), x, STATISTICS, color_std=0.1)) + STATISTICS.mean_rgb
    np.testing.assert_allclose(shift[:, 0, 0], shift[:, 0, 1], atol=1e-5)
    wanted = 0.01 * STATISTICS.color_vectors @ STATISTICS.color_vectors.T
    np.testing.assert_allclose(np.cov(shift[:, 0, 0].T), wanted, atol=0.03 * wanted.max())
    np.testing.assert_allclose(shift.mean((0, 1, 2)), 0, atol=0.15)


def test_imagenets_constants_are_on_the_scale_of_pixels():
    # Krizhevsky 2012 §4.1, ImageNet: l1 = 255 * 0.2175 along (-0.5675, -0.5808, -0.5836), which has length 1.
    lengths = np.linalg.norm(IMAGENET_STATISTICS.color_vectors, axis=0)
    np.testing.assert_allclose(lengths, 255 * np.array([0.2175, 0.0188, 0.0045]), rtol=1e-3)
    np.testing.assert_allclose(
        IMAGENET_STATISTICS.color_vectors[:, 0], 55.4625 * np.array([-0.5675, -0.5808, -0.5836]), rtol=1e-6
    )
    np.testing.assert_allclose(IMAGENET_STATISTICS.mean_rgb, [123.68, 116.779, 103.939])


@pytest.mark.parametrize("batch", [2, 8])
def test_another_key_draws_anew(batch):
    x = images(batch)
    first, second = (augment(jax.random.key(k), x, STATISTICS) for k in (0, 1))
    assert np.abs(first - second).max() > 0.1
