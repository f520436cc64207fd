"""`vgg-jax compile-check --config=CONFIG --topology=SLICE [flags]`: what a TPU slice would make of a run.

    vgg-jax compile-check --config=vgg19 --topology=v5e:4x4

Compiles the train step with the TPU compiler. It needs no TPU and no data.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import config_flags

from vgg_jax.commands import cli

flags = cli.Flags()
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The run's configuration, by name or file. Values are overridden as for training: --config.batch_size=4096 "
    "--config.model.dtype=bfloat16.",
    flag_values=flags.values,
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", "", "The slice, chip:shape: v5e:4x4, v4:2x2x1, v5p:4x4x4, v6e:16x16, TPU7x:2x2x1, ..."
)
_SHARDING = flags.DEFINE_string(
    "sharding",
    "",
    "Sharding of the parameters: replicated, fsdp, fc_model_parallel, or all, which compiles each. Default: "
    "config.sharding.",
)
_DENSE = flags.DEFINE_bool(
    "dense", False, "Compile dense evaluation too, for which every device holds the whole model (one compilation more)."
)
_LARGEST = flags.DEFINE_bool(
    "largest_batch",
    False,
    "Search the largest batch that fits, to an eighth (some compilations more for each sharding).",
)
_JSON = flags.DEFINE_string("json", "", "File for the results as JSON.")


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--topology=v5e:4x4")
    cli.require(_CONFIG.value is not None, "what to compile: --config=vgg19")
    cli.require(_TOPOLOGY.value, "for which slice: --topology=v5e:4x4")
    cli.use_cpu()
    from vgg_jax.runtime.compilation import check_devices
    from vgg_jax.tpu.memory_report import check

    check_devices()
    destination = Path(_JSON.value).expanduser() if _JSON.value else None
    check(_CONFIG.value, _TOPOLOGY.value, _SHARDING.value, _DENSE.value, _LARGEST.value, destination)
