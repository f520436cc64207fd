"""`python -m benchmarks.memory`: what parameters and momentum of nets A and E take on each of 8 devices, by sharding.

Nothing runs. The shapes and shardings of the train state are the ones that training compiles for (`jax.eval_shape`),
so the bytes are exact on any device, but for padding in its memory layout. One prefetched batch of uint8 crops is
counted too. Activations, gradients and the compiler's workspace are not counted: they depend on the device. A run
prints at its start how much memory the compiler asks for there.
"""

from __future__ import annotations

import jax

from vgg_jax.config import paper_config, recipe_of
from vgg_jax.runtime.sharding import bytes_a_device, make_mesh
from vgg_jax.training.state import state_shapes

CHOICES = [("replicated", 1), ("fsdp", 1), *(("fc_model_parallel", parallel) for parallel in (2, 4, 8))]


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    devices = jax.device_count()
    print("| model | sharding | mesh, data x model | parameters and momentum a device | batch a device |")
    print("| --- | --- | --- | --- | --- |")
    for configuration in ("A", "E"):
        config = paper_config(configuration, None)
        for rules, parallel in CHOICES:
            config.sharding, config.model_parallel = rules, parallel
            size = bytes_a_device(state_shapes(recipe_of(config), make_mesh(parallel)))
            data = devices // parallel
            batch = config.batch_size // data * config.image.crop**2 * 3
            print(
                f"| {configuration} | `{rules}` | {data} x {parallel} | {size / 2**20:,.1f} MiB "
                f"| {batch / 2**20:,.1f} MiB |"
            )


if __name__ == "__main__":
    main()
