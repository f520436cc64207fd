"""Every preset's spread against its formula, with the fans counted by hand."""

import math

import jax
import numpy as np
import pytest

from tests.networks import init
from vgg_jax.models import make_network

# Narrow D at crop 64 (map 2x2): (fan_in, fan_out) by hand.
FANS = {
    "conv2_2": (9 * 32, 9 * 32),
    "conv3_1": (9 * 32, 9 * 64),
    "fc6": (2 * 2 * 128, 512),
    "fc8": (512, 40),
}
VARIANCE = {
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, fan_out: 2 / fan_in,
    "torch": lambda fan_in, fan_out: 1 / (3 * fan_in),  # of the uniform distribution within 1 / sqrt(fan_in)
    "paper": lambda fan_in, fan_out: 1e-2,
    "std001": lambda fan_in, fan_out: 1e-4,
}


@pytest.mark.parametrize("preset", VARIANCE)
def test_spread(preset):
    model = make_network("D", num_classes=40, width_multiplier=0.25, fc_width=512, init_preset=preset, crop=64)
    params = init(model)["params"]
    for layer, fans in FANS.items():
        kernel, wanted = np.asarray(params[layer]["kernel"]), math.sqrt(VARIANCE[preset](*fans))
        assert kernel.std() == pytest.approx(wanted, rel=0.05), layer
        assert abs(kernel.mean()) < 0.05 * wanted
        bias = np.asarray(params[layer]["bias"])
        if preset == "torch":
            assert 0.8 * fans[0] ** -0.5 < np.abs(bias).max() <= fans[0] ** -0.5
        else:
            assert not bias.any()


def test_fc6_of_the_whole_net_has_the_fans_of_its_matrix():
    # The stock initializer sees a 7x7 convolution and makes it sqrt(49 * (512 + 4096) / (25088 + 4096)) = 2.8 times too
    # small; only fc6's standard deviation is drawn here, from a corner of the kernel.
    from vgg_jax.models.initializers import PRESETS

    kernel, _ = PRESETS["glorot"](7 * 7 * 512, 4096)
    std = float(kernel(jax.random.key(0), (1000, 100)).std())
    assert std == pytest.approx(math.sqrt(2 / (25088 + 4096)), rel=0.02)
    stock = jax.nn.initializers.glorot_normal()(jax.random.key(0), (7, 7, 64, 64)).std()
    assert float(stock) == pytest.approx(math.sqrt(2 / (49 * 128)), rel=0.05)
    fc6 = init(make_network("A", width_multiplier=1 / 8, fc_width=64))
    ours = float(fc6["params"]["fc6"]["kernel"].std())
    assert ours == pytest.approx(math.sqrt(2 / (49 * 64 + 64)), rel=0.02)
    assert ours / float(stock) > 1.3
