"""The optax chain against Krizhevsky's update written by hand, the plateau against a written trace."""

import math
from fractions import Fraction

import numpy as np
import optax
import pytest

from vgg_jax.config import default_config
from vgg_jax.optimizer import learning_rate, lr_drops, make_optimizer, observe_error, plateaued_for_good


def config_with(patience=2, min_improvement=0.01):
    config = default_config()
    config.plateau.patience, config.plateau.min_improvement = patience, min_improvement
    return config


@pytest.mark.parametrize("mask", ["kernels", "all"])
def test_ten_steps_and_two_drops_are_krizhevskys_update(mask):
    config = config_with(patience=1)
    config.optimizer.l2_mask = mask
    optimizer = make_optimizer(config)
    rng = np.random.RandomState(0)
    w = {"conv": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}}
    v = {"conv": {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)}}
    params = {"conv": {name: value.astype(np.float32) for name, value in w["conv"].items()}}
    state = optimizer.init(params)
    state = observe_error(state, 0.5, 1000, config)
    rate = 1e-2
    for step in range(10):
        if step in (4, 7):  # an evaluation that is no better
            state = observe_error(state, 0.5, 1000, config)
            rate /= 10
        assert float(learning_rate(state, config)) == pytest.approx(rate, rel=1e-6)
        gradient = {"conv": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}}
        for name in ("kernel", "bias"):
            decay = 5e-4 if name == "kernel" or mask == "all" else 0.0
            v["conv"][name] = 0.9 * v["conv"][name] - rate * (gradient["conv"][name] + decay * w["conv"][name])
            w["conv"][name] = w["conv"][name] + v["conv"][name]
        gradient = {"conv": {name: value.astype(np.float32) for name, value in gradient["conv"].items()}}
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(params["conv"][name], w["conv"][name], rtol=2e-6, atol=1e-6)
        # The rate is inside the buffer: after the drop it still carries what the higher rate put there.
        np.testing.assert_allclose(state["momentum"].trace["conv"][name], v["conv"][name], rtol=2e-5, atol=1e-7)
    assert lr_drops(state, config) == 2


def test_plateau_follows_a_written_trace():
    config = config_with(patience=2, min_improvement=0.01)
    state = make_optimizer(config).init({"conv": {"kernel": np.zeros((1, 1), np.float32)}})
    # (error, drops afterwards): improvement means at least 0.01 under the best so far; two evaluations without make a
    # plateau, and the count starts again after a drop.
    trace = [
        (0.90, 0),
        (0.80, 0),
        (0.795, 0),  # too little: one
        (0.70, 0),  # improved: the count starts again
        (0.75, 0),  # one
        (0.695, 1),  # two: the first drop
        (0.60, 1),
        (0.60, 1),  # one
        (0.61, 2),  # two: the second
        (0.62, 2),  # one
        (0.63, 3),  # two: the third and last
        (0.50, 3),
        (0.50, 3),  # one
    ]
    for error, drops in trace:
        state = observe_error(state, error, 1000, config)
        assert lr_drops(state, config) == drops, error
        assert float(learning_rate(state, config)) == pytest.approx(1e-2 * 0.1**drops, rel=1e-5)
        assert not plateaued_for_good(state, config)
    state = observe_error(state, 0.495, 1000, config)  # two: the plateau after the last drop
    assert plateaued_for_good(state, config)
    assert lr_drops(state, config) == 3


@pytest.mark.parametrize("images", [1000, 50_000, 31])
def test_the_least_improvement_itself_counts_and_one_image_less_does_not(images):
    for least in (0.001, 0.01, 0.1):
        config = config_with(patience=1, min_improvement=least)
        fresh = make_optimizer(config).init({"conv": {"kernel": np.zeros((1, 1), np.float32)}})
        needed = math.ceil(Fraction(str(least)) * images)
        for wrong in range(needed, images, max(1, images // 300)):
            state = observe_error(fresh, wrong / images, images, config)
            for fewer, drops in ((needed, 0), (needed - 1, 1)):
                after = observe_error(state, (wrong - fewer) / images, images, config)
                assert lr_drops(after, config) == drops, (wrong, fewer)


def test_only_the_evaluation_moves_the_schedule():
    config = config_with(patience=1)
    optimizer = make_optimizer(config)
    params = {"conv": {"kernel": np.ones((2, 2), np.float32)}}
    state = optimizer.init(params)
    for _ in range(5):
        _, state = optimizer.update(params, state, params)
    assert float(state["plateau"].scale) == 1.0
    assert np.isinf(state["plateau"].best_value)


def test_layers_have_their_own_rates():
    config = config_with()
    config.model.configuration = "A"
    config.optimizer.lr_factors = "fc8=10, conv1_*=0,conv*=0.5"
    layers = {"conv1_1": 0.0, "conv2_1": 0.5, "fc6": 1.0, "fc8": 10.0}
    rng = np.random.RandomState(1)
    params = {layer: {"kernel": rng.normal(size=(3, 4)).astype(np.float32)} for layer in layers}
    gradients = [{layer: {"kernel": rng.normal(size=(3, 4)).astype(np.float32)} for layer in layers} for _ in range(3)]
    optimizer = make_optimizer(config)
    state, found = optimizer.init(params), params
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, found)
        found = optax.apply_updates(found, updates)
    for layer, factor in layers.items():  # each as if it were alone, at a rate of its own
        w, v = params[layer]["kernel"].astype(np.float64), 0.0
        for gradient in gradients:
            v = 0.9 * v - 1e-2 * factor * (gradient[layer]["kernel"] + 5e-4 * w)
            w = w + v
        np.testing.assert_allclose(found[layer]["kernel"], w, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(found["conv1_1"]["kernel"], params["conv1_1"]["kernel"])
