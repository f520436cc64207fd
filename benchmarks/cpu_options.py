"""What the CPU's `steps.COMPILER_OPTIONS` are worth: net A's forward and backward pass at 224, batch 8, with and without.

python -m benchmarks.cpu_options
"""

import time

import jax
import jax.numpy as jnp

from vgg_jax.models import VGG
from vgg_jax.steps import COMPILER_OPTIONS

BATCH, GMAC = 8, 7.61  # Paper Table 2's net A, PAPER.md's count


def main():
    model = VGG("A")
    images = jax.random.normal(jax.random.key(0), (BATCH, 224, 224, 3))
    params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]

    def loss(p, x):
        return jnp.square(model.apply({"params": p}, x)).mean()

    for name, options in (("XLA's choice", {}), ("COMPILER_OPTIONS", COMPILER_OPTIONS["cpu"])):
        step = jax.jit(jax.grad(loss)).lower(params, images).compile(compiler_options=options)
        jax.block_until_ready(step(params, images))
        began = time.perf_counter()
        for _ in range(3):
            jax.block_until_ready(step(params, images))
        seconds = (time.perf_counter() - began) / 3
        print(f"{name}: {seconds:.2f} s, {6 * GMAC * BATCH / seconds:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
