"""The optax chain against Krizhevsky's update written by hand."""

import numpy as np
import optax
import pytest

from vgg_jax.config import default_config, recipe_of
from vgg_jax.training.optimizer import make_optimizer


@pytest.mark.parametrize("mask", ["kernels", "all"])
def test_ten_steps_and_two_drops_are_krizhevskys_update(mask):
    config = default_config()
    config.optimizer.l2_mask = mask
    optimizer = make_optimizer(recipe_of(config))
    rng = np.random.RandomState(0)
    w = {"conv": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}}
    v = {"conv": {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)}}
    params = {"conv": {name: value.astype(np.float32) for name, value in w["conv"].items()}}
    state = optimizer.init(params)
    for step in range(10):
        rate = 1e-2 * 0.1 ** sum(step >= at for at in (4, 7))
        gradient = {"conv": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}}
        for name in ("kernel", "bias"):
            decay = 5e-4 if name == "kernel" or mask == "all" else 0.0
            v["conv"][name] = 0.9 * v["conv"][name] - rate * (gradient["conv"][name] + decay * w["conv"][name])
            w["conv"][name] = w["conv"][name] + v["conv"][name]
        gradient = {"conv": {name: value.astype(np.float32) for name, value in gradient["conv"].items()}}
        updates, state = optimizer.update(gradient, state, params, learning_rate=np.float32(rate))
        params = optax.apply_updates(params, updates)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(params["conv"][name], w["conv"][name], rtol=2e-6, atol=1e-6)
        # The rate is inside the buffer: after a drop it still carries updates of the higher rate.
        np.testing.assert_allclose(state["momentum"].trace["conv"][name], v["conv"][name], rtol=2e-5, atol=1e-7)


def test_layers_have_their_own_rates():
    config = default_config()
    config.model.configuration = "A"
    config.optimizer.lr_factors = "classifier=10, conv1_*=0,conv*=0.5"
    layers = {"conv1_1": 0.0, "conv2_1": 0.5, "fc6": 1.0, "fc8": 10.0}
    rng = np.random.RandomState(1)
    params = {layer: {"kernel": rng.normal(size=(3, 4)).astype(np.float32)} for layer in layers}
    gradients = [{layer: {"kernel": rng.normal(size=(3, 4)).astype(np.float32)} for layer in layers} for _ in range(3)]
    optimizer = make_optimizer(recipe_of(config))
    state, found = optimizer.init(params), params
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, found, learning_rate=np.float32(1e-2))
        found = optax.apply_updates(found, updates)
    for layer, factor in layers.items():  # each as if it were alone, at a rate of its own
        w, v = params[layer]["kernel"].astype(np.float64), 0.0
        for gradient in gradients:
            v = 0.9 * v - 1e-2 * factor * (gradient[layer]["kernel"] + 5e-4 * w)
            w = w + v
        np.testing.assert_allclose(found[layer]["kernel"], w, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(found["conv1_1"]["kernel"], params["conv1_1"]["kernel"])
