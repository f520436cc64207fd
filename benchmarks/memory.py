"""`python -m benchmarks.memory`: what parameters and momentum of nets A and E take on each of 8 devices, by sharding.

Nothing runs: the shapes and shardings of the train state are those that training compiles for (`jax.eval_shape`), so the
bytes are exact, on any kind of device but for padding in its memory's layout. Counted besides: one batch of uint8 crops,
which lies ahead. Not counted: activations, gradients and the compiler's workspace, which depend on the device; a run says
at its start what the compiler asks for there.
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
                f"| {configuration} | `{rules}` | {data} x {parallel} | {size / 2**20:,.1f} MiB | {batch / 2**20:,.1f} MiB |"
            )


if __name__ == "__main__":
    main()
