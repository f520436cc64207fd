"""What a convolution of a map smaller than its kernel costs on the CPU: as XLA computes it, and as `models` does.

python -m benchmarks.small_maps
"""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from vgg_jax.models.layers import Convolution
from vgg_jax.runtime.compilation import compile_step

ROUNDS, SIDE = 5, 2


def seconds(function: Callable, *arguments: jax.Array) -> float:
    """Returns the least time of a few calls of the function and its gradients."""

    def both(*arguments: jax.Array) -> tuple[jax.Array, ...]:
        y, gradients = jax.vjp(function, *arguments)
        return y, *gradients(y)

    step, times = compile_step(both, *arguments), []
    for _ in range(1 + ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(step(*arguments))
        times.append(time.perf_counter() - began)
    return min(times)


def main():
    print(f"jax {jax.__version__}, maps of {SIDE} x {SIDE}, kernels of 3 x 3, forward and both gradients")
    for batch, channels in ((128, 128), (16, 512), (128, 512)):
        x = jax.random.normal(jax.random.key(0), (batch, SIDE, SIDE, channels))
        layer = Convolution(channels, 3, padding=1, use_bias=False)
        kernel = 0.01 * jax.random.normal(jax.random.key(1), (3, 3, channels, channels))

        def as_xla(x, kernel):
            return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        def as_here(x, kernel, layer=layer):
            return layer.apply({"params": {"kernel": kernel}}, x)

        assert jnp.allclose(as_xla(x, kernel), as_here(x, kernel), atol=1e-3)
        theirs, ours = seconds(as_xla, x, kernel), seconds(as_here, x, kernel)
        print(f"batch {batch}, {channels} channels: {theirs * 1e3:,.1f} ms by XLA, {ours * 1e3:,.1f} ms here")


if __name__ == "__main__":
    main()
