"""Initialisation presets: how a layer's random start follows from its fans."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, normal, zeros


def _symmetric_uniform(bound: float) -> Initializer:
    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# (fan_in, fan_out) -> (initializer of the kernel, initializer of the bias). fan_in and fan_out count the connections
# into an output and out of an input: size^2 * channels for a convolution, rows and columns of the matrix for FC layers.
PRESETS: dict[str, Callable[[int, int], tuple[Initializer, Initializer]]] = {
    # Glorot & Bengio 2010, normal form: variance 2 / (fan_in + fan_out). The authors' own later remark (Paper §3.1).
    "glorot": lambda fan_in, fan_out: (normal(math.sqrt(2 / (fan_in + fan_out))), zeros),
    # He et al. 2015, normal form: variance 2 / fan_in.
    "he": lambda fan_in, fan_out: (normal(math.sqrt(2 / fan_in)), zeros),
    # PyTorch's default of Conv2d and Linear: kernel and bias uniform within 1 / sqrt(fan_in).
    "torch": lambda fan_in, fan_out: (_symmetric_uniform(fan_in**-0.5), _symmetric_uniform(fan_in**-0.5)),
    # As printed in Paper §3.1, "zero mean and 10^-2 variance": standard deviation 0.1. Does not train (§5.1).
    "paper": lambda fan_in, fan_out: (normal(0.1), zeros),
    # The other reading of that sentence, standard deviation 0.01, as Krizhevsky 2012.
    "std001": lambda fan_in, fan_out: (normal(0.01), zeros),
}
