"""What compiler options are worth on the CPU: net A's forward and backward pass at 224, batch 8, in turns.

python -m benchmarks.cpu_options
"""

import statistics
import time

import jax
import jax.numpy as jnp

from vgg_jax.models import make_network
from vgg_jax.runtime.compilation import COMPILER_OPTIONS

BATCH, ROUNDS, GMAC = 8, 4, 7.61  # multiply-adds of net A at 224


def main():
    model = make_network("A")
    images = jax.random.normal(jax.random.key(0), (BATCH, 224, 224, 3))
    params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]

    def loss(p, x):
        return jnp.square(model.apply({"params": p}, x)[0]).mean()

    fusion, onednn = COMPILER_OPTIONS["cpu"], {"xla_cpu_experimental_onednn_custom_call": True}
    choices = {"XLA's choice": {}, "COMPILER_OPTIONS": fusion, "oneDNN": onednn, "both": {**fusion, **onednn}}
    lowered = jax.jit(jax.grad(loss)).lower(params, images)
    steps = {name: lowered.compile(compiler_options=options) for name, options in choices.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            jax.block_until_ready(step(params, images))
            seconds[name].append(time.perf_counter() - began)
    print(f"jax {jax.__version__}")
    for name, (_, *rounds) in seconds.items():  # the first of each warms up
        middle = statistics.median(rounds)
        print(
            f"{name}: {middle:.2f} s ({min(rounds):.2f} to {max(rounds):.2f}), {6 * GMAC * BATCH / middle:.0f} GFLOP/s"
        )


if __name__ == "__main__":
    main()
