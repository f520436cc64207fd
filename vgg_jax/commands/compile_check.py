"""`vgg-jax compile-check --config=configs/vgg19.py --topology=v5e:4x4`: what a TPU slice would make of a run.

Compiles the train step with the real TPU compiler. No TPU is needed, nor any data.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import config_flags

from vgg_jax.commands import cli

flags = cli.Flags()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The run's configuration, by name or file. Values as for training: --config.batch_size=4096 "
    "--config.model.dtype=bfloat16.", flag_values=flags.values
)  # fmt: skip
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "The slice, chip:shape: v5e:4x4, v4:2x2x1, v5p:4x4x4, v6e:16x16, TPU7x:2x2x1, ..."
)
_SHARDING = flags.DEFINE_string(
    "sharding", "", "How parameters lie: one of replicated, fsdp, fc_model_parallel, or all, which compiles each. Default: "
    "config.sharding."
)  # fmt: skip
_DENSE = flags.DEFINE_bool(
    "dense", False, "Compile dense evaluation too, for which every device holds the whole model (one compilation more)."
)
_LARGEST = flags.DEFINE_bool(
    "largest_batch",
    False,
    "Search the largest batch that fits, to an eighth (some compilations more for each sharding).",
)
_JSON = flags.DEFINE_string("json", "", "File for the results.")


def main(arguments: list[str]) -> None:
    if arguments:
        cli.fail(f"{arguments[0]!r} is not a flag; flags begin with two dashes, as --topology=v5e:4x4.")
    if _CONFIG.value is None:
        cli.fail("say what to compile: --config=vgg19, for example; --help lists the flags.")
    if not _TOPOLOGY.value:
        cli.fail("say for which slice: --topology=v5e:4x4, for example; --help lists the flags.")
    import jax  # here, so that --help answers at once

    # The compiler needs no device, and a busy one would be in the way. Reading the configuration has imported JAX, which then no
    # longer looks at JAX_PLATFORMS.
    jax.config.update("jax_platforms", "cpu")
    from vgg_jax.runtime.compilation import check_devices
    from vgg_jax.tpu.memory_report import check

    check_devices()
    destination = Path(_JSON.value).expanduser() if _JSON.value else None
    check(_CONFIG.value, _TOPOLOGY.value, _SHARDING.value, _DENSE.value, _LARGEST.value, destination)


if __name__ == "__main__":
    cli.run(main, flags)
