"""`vgg-jax train --config=CONFIG [flags]`: trains the network that a configuration describes.

    vgg-jax train --config=quickstart
    vgg-jax train --config=vgg16 --config.data.dir=DIR --workdir=runs/mine

`python -m vgg_jax.main --config=CONFIG` is the same.
"""

from __future__ import annotations

from ml_collections import config_flags

from vgg_jax.commands import cli, configuration, keys, processes

flags = cli.Flags(lambda: f"\n\nKeys of the configuration and their defaults:\n\n{keys.keys_text()}")
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A configuration by name or file: vgg19, vgg19:S=384, configs/vgg19.py:S=384. Any value can be overridden: "
    "--config.batch_size=64 --config.data.dir=DIR (listed below).",
    flag_values=flags.values,
)
flags.DEFINE_string(
    "workdir",
    "",
    "Directory of checkpoints and logs; name it again to continue the run. Default: runs/<config>[-<argument>].",
)
_PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "Print every key with its value and its comment, and stop.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Print network, data and the memory a step needs, and stop; writes nothing into --workdir.",
)
_joined = processes.define(flags)


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--config=quickstart")
    cli.require(_CONFIG.value is not None, "what to train: --config=quickstart")
    workdir = configuration.run_workdir(flags.values)
    given = config_flags.get_override_values(flags.values["config"])
    if _PRINT_CONFIG.value:
        from vgg_jax.config import flatten

        print(keys.keys_text(flatten(configuration.with_start(_CONFIG.value, given, workdir))))
        return
    cli.use_huge_pages()
    joined = _joined()
    from vgg_jax.training.train import dry_run, train

    with joined:
        begin = dry_run if _DRY_RUN.value else train
        begin(configuration.with_start(_CONFIG.value, given, workdir), workdir)


if __name__ == "__main__":
    cli.run(main, flags, outlives_stdout=True)
