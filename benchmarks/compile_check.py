"""The table of `benchmarks/compile_check.md`: models over TPU slices, as the TPU compiler sees them. No TPU is needed.

    python -m benchmarks.compile_check --nets=D,E --topologies=v5e:4x4,v6e:4x4 --images_per_chip=64

`--plain` compiles without training's compiler options (`compilation.COMPILER_OPTIONS`), for comparison.
`--text=DIR` writes the text of the compiled programs.
`--set` changes the configuration, as --set image.crop=96 model.fc_width=2048.
"""

import argparse
import os
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks import hlo
from benchmarks.roofline import roofline
from vgg_jax.config import flatten, paper_config, recipe_of
from vgg_jax.runtime import compilation
from vgg_jax.tpu.chips import parse_slice
from vgg_jax.tpu.compiled import GIB, compile_train, topology_devices

HEADER = (
    "| model | slice | sharding | images a chip | memory a device, GiB | TFLOP a device | HBM GB a device "
    "| collectives, MB | ms | of it waiting | images/s a chip | scaling efficiency | compiled in |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="D")
    parser.add_argument("--topologies", default="v5e:4x4")
    parser.add_argument("--shardings", default="replicated")
    parser.add_argument("--images_per_chip", type=int, default=64)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--text", type=Path)
    options = parser.parse_args()
    if options.plain:
        compilation.COMPILER_OPTIONS.clear()
    print(HEADER + "\n" + "| --- " * HEADER.count(" | ") + "| --- |", flush=True)
    for topology in options.topologies.split(","):
        topology = parse_slice(topology)
        devices = topology_devices(topology)
        for model in options.nets.split(","):
            for sharding in options.shardings.split(","):
                config = paper_config(model, None)
                config.model.dtype, config.sharding = "bfloat16", sharding
                config.batch_size = options.images_per_chip * topology.chips
                for key, _, value in (each.partition("=") for each in options.set):
                    kind = type(flatten(config)[key])
                    config.update_from_flattened_dict({key: value == "True" if kind is bool else kind(value)})
                if sharding == "fc_model_parallel":
                    config.model_parallel = 4
                began = time.monotonic()
                answer = compile_train(recipe_of(config), topology, devices)
                took = time.monotonic() - began
                memory = f"{answer.memory / GIB:.2f} of {answer.limit / GIB:.4g}"
                row = [model, topology.name, sharding, options.images_per_chip, memory]
                if options.text:
                    name = f"{model}-{topology.name.replace(':', '-')}-{sharding}.hlo"
                    (options.text / name).write_text(answer.hlo)
                if answer.hlo:
                    line = roofline(hlo.schedule(hlo.parse(answer.hlo), topology.devices), topology)
                    row += [
                        f"{answer.flops / 1e12:.3g}",
                        f"{line.hbm_bytes / 1e9:.3g}",
                        f"{sum(each.bytes for each in line.collectives) / 1e6:,.1f}",
                        f"{line.seconds * 1e3:.2f}",
                        f"{line.exposed_seconds * 1e3:.2f}",
                        f"{config.batch_size / line.seconds / topology.chips:,.0f}",
                        f"{line.efficiency:.1%}",
                    ]
                else:
                    row += ["does not fit", *[""] * 6]
                print(f"| {' | '.join(map(str, row))} | {took:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
