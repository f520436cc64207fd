"""Networks for tests: Paper Tables 1 and 2 written by hand, independently of the package, and narrow ones."""

import jax
import jax.numpy as jnp

from vgg_jax.models import NetworkSpec, make_network

# Paper Table 2: parameters with 1000 classes, weight layers, GMAC at 224.
PUBLISHED = {
    "A": (132_863_336, 11, 7.61),
    "A-LRN": (132_863_336, 11, 7.61),
    "B": (133_047_848, 13, 11.31),
    "C": (133_638_952, 16, 11.77),
    "D": (138_357_544, 16, 15.47),
    "E": (143_667_240, 19, 19.63),
    "B-5x5": (134_503_528, 8, 9.36),
}


# Paper Table 1, written out once more by hand: kernel size and output channels of every convolution.
COLUMNS = {
    "A": "3-64 M 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "A-LRN": "3-64 M 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "B": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 M 3-512 3-512 M 3-512 3-512 M",
    "C": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 1-256 M 3-512 3-512 1-512 M 3-512 3-512 1-512 M",
    "D": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 M 3-512 3-512 3-512 M 3-512 3-512 3-512 M",
    "E": "3-64 3-64 M 3-128 3-128 M 3-256 3-256 3-256 3-256 M 3-512 3-512 3-512 3-512 M 3-512 3-512 3-512 3-512 M",
    "B-5x5": "5-64 M 5-128 M 5-256 M 5-512 M 5-512 M",
}


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, model.crop, model.crop, 3)))["params"]


def init(model):
    """Random variables, compiled as one program."""
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, model.crop, model.crop, 3)))


def small(configuration, crop=64, description=None, width_multiplier=1 / 16, **options):
    """A narrow model with random biases and statistics as well, so that borders and padding matter."""
    model = make_network(
        NetworkSpec(configuration, **(description or {})),
        crop,
        num_classes=5,
        width_multiplier=width_multiplier,
        fc_width=24,
        init_preset="he",
        **options,
    )
    variables = init(model)
    draws = {
        "bias": lambda x: x,
        "mean": lambda x: x,
        "scale": lambda x: 1 + 0.3 * x,
        "var": lambda x: jnp.exp(0.3 * x),
    }
    for collection in variables.values():
        for i, layer in enumerate(collection.values()):
            for name in set(layer) - {"kernel"}:
                layer[name] = draws[name](jax.random.normal(jax.random.key(i), layer[name].shape))
    return model, variables
