"""Pooling and batch normalisation against flax's, LRN against its closed form, FC layers against matrix products."""

import functools
from typing import get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn.initializers import glorot_uniform, normal

from vgg_jax.models import network
from vgg_jax.models.description import Kind
from vgg_jax.models.layers import BatchNorm, Convolution, FullyConnected, local_response_norm, max_pool, max_pool_2x2
from vgg_jax.weights import onnx_file


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 5, 4), (2, 2, 3, 1)])
@pytest.mark.parametrize("ties", [False, True])
def test_pooling_and_its_gradient_are_those_of_max_pool(shape, ties):
    x = jax.random.normal(jax.random.key(0), shape)
    if ties:  # after a ReLU most windows hold several zeros
        x = jnp.maximum(jnp.round(x), 0)

    def reference(v):
        return nn.max_pool(v, (2, 2), (2, 2))

    weights = jax.random.normal(jax.random.key(1), reference(x).shape)
    for function in (max_pool_2x2, reference):
        assert function(x).shape == (shape[0], shape[1] // 2, shape[2] // 2, shape[3])
    np.testing.assert_array_equal(max_pool_2x2(x), reference(x))
    ours, theirs = (jax.grad(lambda v, f=f: (weights * f(v)).sum())(x) for f in (max_pool_2x2, reference))
    np.testing.assert_array_equal(ours, theirs)
    # Forward mode: nn.max_pool knows none, but the two modes must agree.
    direction = jax.random.normal(jax.random.key(2), shape)
    _, forward = jax.jvp(max_pool_2x2, (x,), (direction,))
    assert float((weights * forward).sum()) == pytest.approx(float((theirs * direction).sum()), rel=1e-4, abs=1e-4)


def test_a_tie_has_one_winner_the_first():
    gradient = jax.grad(lambda v: max_pool_2x2(v).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])


@pytest.mark.parametrize("index", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_pooling_hands_nan_on(index):
    x = jnp.ones((1, 2, 2, 1)).at[0, index[0], index[1], 0].set(jnp.nan)
    assert np.isnan(max_pool_2x2(x)).all()


def test_pooling_has_no_scatter():
    gradient = jax.jit(jax.grad(lambda v: max_pool_2x2(v).sum())).lower(jnp.ones((1, 4, 4, 2))).as_text()
    assert "select_and_scatter" not in gradient
    assert (
        "select_and_scatter"
        in jax.jit(jax.grad(lambda v: nn.max_pool(v, (2, 2), (2, 2)).sum())).lower(jnp.ones((1, 4, 4, 2))).as_text()
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "before", "after"), [(3, 2, 1, 1), (3, 2, 0, 1), (3, 1, 1, 1), (3, 2, 0, 0), (2, 3, 0, 0)]
)
@pytest.mark.parametrize("ties", [False, True])
def test_overlapping_pooling_and_its_gradient_are_those_of_max_pool(kernel, stride, before, after, ties):
    x = jax.random.normal(jax.random.key(0), (2, 9, 12, 3))
    if ties:
        x = jnp.maximum(jnp.round(x), 0)

    def reference(v):
        return nn.max_pool(v, (kernel,) * 2, (stride,) * 2, ((before, after),) * 2)

    def ours(v):
        return max_pool(v, kernel, stride, before, after)

    weights = jax.random.normal(jax.random.key(1), reference(x).shape)
    np.testing.assert_array_equal(ours(x), reference(x))
    gradients = [jax.jit(jax.grad(lambda v, f=f: (weights * f(v)).sum())) for f in (ours, reference)]
    np.testing.assert_allclose(gradients[0](x), gradients[1](x), rtol=1e-6, atol=1e-6)
    assert "select_and_scatter" not in gradients[0].lower(x).as_text()
    assert np.isnan(ours(x.at[0, 4, 4, 0].set(jnp.nan))).any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batch_normalisation_is_flaxs(dtype):
    """Result, gradients and running averages, in training and after it."""
    x = (3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 6, 3))).astype(dtype)
    weights = jax.random.normal(jax.random.key(1), x.shape)
    params = {"scale": jnp.array([0.5, 1, 2]), "bias": jnp.array([1.0, 0, -1])}
    stats = {"mean": jnp.array([1.0, 2, 3]), "var": jnp.array([2.0, 1, 3])}
    theirs = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5, dtype=dtype)
    exact = 1e-5 if dtype == jnp.float32 else 2e-2
    for train in (True, False):
        results = []
        for make in (BatchNorm if dtype == jnp.float32 else functools.partial(BatchNorm, dtype=dtype), theirs):
            module = make(use_running_average=not train)

            def loss(params, x, module=module):
                variables = {"params": params, "batch_stats": stats}
                y, updated = module.apply(variables, x, mutable=["batch_stats"])
                return (weights * y).sum(), (y, updated)

            gradients, (y, updated) = jax.grad(loss, (0, 1), has_aux=True)(params, x)
            assert y.dtype == gradients[1].dtype == dtype
            results.append((gradients, y, updated))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=exact, atol=10 * exact
            ),
            *results,
        )


@pytest.mark.parametrize(("mean", "deviation"), [(0, 1), (50, 1), (500, 1), (5000, 1), (-5000, 1), (100, 0.01)])
def test_batch_normalisation_of_values_far_from_0_is_that_of_float64(mean, deviation):
    x = (mean + deviation * np.random.default_rng(0).normal(size=(8, 16, 16, 4))).astype(np.float32)
    x[0] += deviation  # images and channels differ
    x[..., 1] *= 2
    module = BatchNorm(use_running_average=False)
    y, updated = module.apply(module.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    exact = x.astype(np.float64)
    means, variances = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(y, (exact - means) / np.sqrt(variances + 1e-5), atol=1e-3)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * means, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * variances, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 4, 9])
def test_lrn_is_krizhevskys_formula(channels):
    a = np.random.RandomState(0).normal(0, 60, (2, 3, 2, channels))
    expected = np.empty_like(a)
    for i in range(channels):
        window = range(max(0, i - 2), min(channels - 1, i + 2) + 1)
        total = sum(a[..., j] ** 2 for j in window)
        expected[..., i] = a[..., i] / (2 + 1e-4 * total) ** 0.75
    np.testing.assert_allclose(local_response_norm(jnp.float32(a)), expected, rtol=1e-5)


def test_lrn_sums_in_float32_whatever_it_is_given():
    a = jnp.full((1, 1, 1, 5), 300.0, jnp.bfloat16)
    expected = 300 / (2 + 1e-4 * 3 * 300**2) ** 0.75  # the first channel's window holds three
    result = local_response_norm(a)
    assert result.dtype == jnp.bfloat16
    assert float(result[0, 0, 0, 0]) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_fully_connected_layer_is_a_matrix_product(dtype):
    layer = FullyConnected(6, (3, 2), dtype=dtype)
    x = jax.random.normal(jax.random.key(0), (4, 3, 2, 5)).astype(dtype)
    params = layer.init(jax.random.key(1), x)["params"]
    weights = jax.random.normal(jax.random.key(2), (4, 6)).astype(dtype)

    def ours(params, x):
        return (weights * layer.apply({"params": params}, x).reshape(4, 6)).sum()

    def plain(params, x):
        kernel = params["kernel"].astype(dtype).reshape(30, 6)
        return (weights * (x.reshape(4, 30) @ kernel + params["bias"].astype(dtype))).sum()

    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == jnp.float32 else {"rtol": 0.02, "atol": 0.05}
    for mode in (jax.grad, jax.jacfwd):
        gradients = [mode(function, argnums=(0, 1))(params, x) for function in (ours, plain)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), **close), *gradients)
        assert jax.tree.map(lambda a: a.dtype, gradients[0]) == jax.tree.map(lambda a: a.dtype, gradients[1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("sides", [(13, 16), (2, 2), (1, 4)])
@pytest.mark.parametrize("settings", [(3, 1, 1, 1, True), (5, 2, 2, 2, True), (7, 2, 3, 1, False)])
def test_a_convolution_is_flaxs(settings, sides, dtype):
    """Parameters, result and gradients, also of maps smaller than the kernel, which the CPU computes otherwise.

    Flax's gradient of a bias in bfloat16 is another, see below.
    """
    size, stride, padding, groups, use_bias = settings
    inits = {"kernel_init": glorot_uniform(), "bias_init": normal(), "dtype": dtype}
    ours = Convolution(6, *settings, **inits)
    theirs = nn.Conv(6, (size, size), (stride, stride), padding, feature_group_count=groups, use_bias=use_bias, **inits)
    x = jax.random.normal(jax.random.key(0), (2, *sides, 4))
    variables = ours.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(1), x))
    result, expected = ours.apply(variables, x), theirs.apply(variables, x)
    assert result.dtype == expected.dtype == dtype
    params, weights = variables["params"], jax.random.normal(jax.random.key(2), result.shape)

    def gradients(layer):
        of_params, of_x = jax.grad(lambda p, x: (weights * layer.apply({"params": p}, x)).sum(), (0, 1))(params, x)
        return of_params if dtype == jnp.float32 else of_params["kernel"], of_x

    close = {"rtol": 1e-6, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 0.02, "atol": 0.1}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), **close),
        (result, gradients(ours)),
        (expected, gradients(theirs)),
    )


def test_an_empty_batch_is_not_an_error():
    for layer, side in ((FullyConnected(4, (2, 2)), 2), (FullyConnected(4, (2, 2)), 3), (Convolution(4, 3), 5)):
        params = layer.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))
        assert layer.apply(params, jnp.zeros((0, side, side, 3))).shape[0] == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("layer", [Convolution(8, 1), FullyConnected(8)])
def test_the_gradient_of_a_bias_is_not_lost_in_the_sum(layer, dtype, param_dtype):
    layer = layer.clone(dtype=dtype, param_dtype=param_dtype)
    x = jnp.zeros((8, 80, 80, 2))
    params = layer.init(jax.random.key(0), x)["params"]
    weights = (jax.random.normal(jax.random.key(1), (8, 80, 80, 8)) + 0.25).astype(jnp.bfloat16)
    gradient = jax.grad(lambda params: (weights * layer.apply({"params": params}, x)).astype(jnp.float32).sum())(params)
    expected = np.asarray(weights).astype(np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(
        np.float32(gradient["bias"]), expected, rtol=1e-5 if param_dtype == jnp.float32 else 1e-2
    )


def test_gradients_of_kernels_are_made_row_by_row_on_tpus_alone():
    layer = FullyConnected(6, (3, 2))
    x = jnp.ones((4, 3, 2, 5))
    params = layer.init(jax.random.key(1), x)["params"]
    step = jax.jit(jax.grad(lambda params, x: layer.apply({"params": params}, x).sum(), argnums=(0, 1))).trace(
        params, x
    )
    products = {
        platform: step.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.dot_general")
        for platform in ("tpu", "cpu", "cuda")
    }
    assert products == {"tpu": 6, "cpu": 2, "cuda": 2}  # the result itself is not needed


def test_every_kind_of_layer_has_a_function_and_an_onnx_operator():
    kinds = set(get_args(Kind))
    assert set(network.FUNCTIONS) == kinds - {"mean"}
    assert set(onnx_file.FUNCTIONS) == kinds
