"""The networks against Paper Tables 1 and 2, and the dense model against the model on crops."""

import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.networks import COLUMNS, PUBLISHED, shapes_of, small
from vgg_jax.models import NetworkSpec, make_network
from vgg_jax.models.description import endpoint_names
from vgg_jax.models.vgg import TABLE_1


def photos(*shape, seed=1):
    return 2 * jax.random.normal(jax.random.key(seed), (*shape, 3))


def _equations(jaxpr):
    """All, those of functions with a gradient of their own among them."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(inner)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_layers_and_multiplications_are_the_papers(name):
    parameters, layers, gmac = PUBLISHED[name]
    model = make_network(name)
    shapes = shapes_of(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    assert len(shapes) == layers
    count = 0
    for column in shapes.values():
        assert set(column) == {"kernel", "bias"}
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda p, x: model.apply({"params": p}, x))(shapes, image)
    for equation in _equations(jaxpr.jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            count += np.prod(out) * np.prod(kernel[:3])
        if equation.primitive.name == "dot_general":
            count += np.prod(equation.invars[1].aval.shape)
    assert count / 1e9 == pytest.approx(gmac, abs=0.006)


@pytest.mark.parametrize("name", COLUMNS)
def test_layers_are_those_of_table_1(name):
    shapes = shapes_of(make_network(name))
    block, place, inputs, expected = 1, 1, 3, {}
    for item in COLUMNS[name].split():
        if item == "M":
            block, place = block + 1, 1
            continue
        size, channels = map(int, item.split("-"))
        expected[f"conv{block}_{place}"] = (size, size, inputs, channels)
        place, inputs = place + 1, channels
    expected |= {"fc6": (7, 7, 512, 4096), "fc7": (1, 1, 4096, 4096), "fc8": (1, 1, 4096, 1000)}
    assert {layer: leaf["kernel"].shape for layer, leaf in shapes.items()} == expected
    assert all(leaf["bias"].shape == leaf["kernel"].shape[-1:] for leaf in shapes.values())


def test_there_is_normalisation_in_one_net_only():
    assert [name for name in TABLE_1 if "lrn1_1" in endpoint_names(NetworkSpec(name).layers())] == ["A-LRN"]
    model, variables = small("A-LRN")
    plain, _ = small("A")
    x = photos(2, 64, 64)
    assert np.abs(model.apply(variables, x)[0] - plain.apply(variables, x)[0]).max() > 1e-6


@pytest.mark.parametrize("name", TABLE_1)
def test_dense_on_the_crop_is_the_net_on_the_crop(name):
    # fc6 is a matrix product on the crop and a convolution elsewhere. The map of a crop with a strip added below
    # begins with the scores of a map cut to the crop's size: here computed from pool5 by an explicit convolution.
    model, variables = small(name)
    x = photos(2, 64 + 32, 64)
    logits, maps = model.apply(variables, x, endpoints=("pool5", "score_map"))
    assert maps["score_map"].shape == (2, 2, 1, 5)
    p = variables["params"]

    def by_matrix(pool5):
        v = pool5.reshape(2, -1)
        for layer in ("fc6", "fc7", "fc8"):
            v = v @ p[layer]["kernel"].reshape(v.shape[1], -1) + p[layer]["bias"]
            v = v if layer == "fc8" else jnp.maximum(v, 0)
        return v

    for row in (0, 1):
        wanted = by_matrix(maps["pool5"][:, row : row + 2])
        np.testing.assert_allclose(maps["score_map"][:, row, 0], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, np.asarray(maps["score_map"]).mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert np.abs(np.diff(maps["score_map"], axis=1)).max() > 1e-3  # the two places really differ


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE_1)
def test_a_padded_image_scores_as_the_unpadded_one_only_with_its_size(name):
    model, variables = small(name)
    x = photos(1, 75, 101)
    padded = jnp.pad(x, ((0, 0), (0, 53), (0, 27), (0, 0)), constant_values=33.0)
    alone, _ = model.apply(variables, x)
    with_size, _ = model.apply(variables, padded, sizes_Bx2=jnp.array([[75, 101]]))
    np.testing.assert_allclose(with_size, alone, rtol=1e-4, atol=1e-5)
    assert np.abs(model.apply(variables, padded)[0] - alone).max() > 1e-3


def test_endpoints_are_the_activations_of_a_net_written_out():
    model, variables = small("B")
    x = photos(2, 64, 64)
    _, maps = model.apply(variables, x, endpoints=endpoint_names(NetworkSpec("B").layers()))
    v, p = x, variables["params"]
    for block in range(1, 6):
        for place in (1, 2):
            layer = p[f"conv{block}_{place}"]
            v = lax.conv(v.transpose(0, 3, 1, 2), layer["kernel"].transpose(3, 2, 0, 1), (1, 1), "SAME")
            v = v.transpose(0, 2, 3, 1) + layer["bias"]
            np.testing.assert_allclose(maps[f"conv{block}_{place}"], v, rtol=1e-3, atol=1e-4)
            v = jnp.maximum(v, 0)
            np.testing.assert_allclose(maps[f"relu{block}_{place}"], v, rtol=1e-3, atol=1e-4)
        v = lax.reduce_window(v, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        np.testing.assert_allclose(maps[f"pool{block}"], v, rtol=1e-3, atol=1e-4)
    assert list(maps) == endpoint_names(NetworkSpec("B").layers())
    assert maps["relu7"].shape == (2, 1, 1, 24)


def test_sizes_are_arguments():
    model = make_network("A", num_classes=7, width_multiplier=0.25, fc_width=100, crop=96, param_dtype=jnp.bfloat16)
    shapes = shapes_of(model)
    assert shapes["conv1_1"]["kernel"].shape == (3, 3, 3, 16)
    assert shapes["fc6"]["kernel"].shape == (3, 3, 128, 100)
    assert shapes["fc8"]["kernel"].shape == (1, 1, 100, 7)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.slow
def test_bfloat16_computes_nearly_the_same_and_gives_float32_logits():
    model, variables = small("D")
    x = photos(2, 64, 64)
    exact, _ = model.apply(variables, x)
    rough, maps = make_network(
        "D", num_classes=5, width_multiplier=1 / 16, fc_width=24, dtype=jnp.bfloat16, crop=64
    ).apply(variables, x, endpoints=("pool3",))
    assert rough.dtype == jnp.float32
    assert maps["pool3"].dtype == jnp.bfloat16
    np.testing.assert_allclose(rough, exact, atol=0.05 * float(jnp.abs(exact).max()))
    assert np.abs(rough - exact).max() > 0


def test_dropout_only_when_training():
    model, variables = small("A")
    x = photos(1, 64, 64)
    rngs = [{"dropout": jax.random.key(i)} for i in (0, 1)]
    first, second = (model.apply(variables, x, train=True, rngs=r)[0] for r in rngs)
    assert np.abs(first - second).max() > 1e-6
    np.testing.assert_array_equal(model.apply(variables, x)[0], model.apply(variables, x)[0])


def test_what_cannot_be_is_refused_in_words():
    model, variables = small("A")
    with pytest.raises(ValueError, match=re.escape("fc6 spans a map of 2x2, but these images give one of 1x2")):
        model.apply(variables, photos(1, 32, 64))
    with pytest.raises(ValueError, match="the network has no endpoint pool6; it has images, conv1_1"):
        model.apply(variables, photos(1, 64, 64), endpoints=("pool6",))
    with pytest.raises(ValueError, match="no configuration 'F'; there are A, A-LRN, B"):
        small("F")
