"""`vgg-jax train --config=CONFIG [flags]`: trains the network that a configuration describes.

    vgg-jax train --config=quickstart
    vgg-jax train --config=vgg16 --config.data.dir=DIR --workdir=runs/mine

`python -m vgg_jax.main --config=CONFIG` is the same.
"""

from __future__ import annotations

from ml_collections import config_flags

from vgg_jax.commands import cli, configuration, processes

flags = cli.Flags()
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A configuration by name or file: vgg19, vgg19:S=384, configs/vgg19.py:S=384. Any value can be overridden: "
    "--config.batch_size=64 --config.data.dir=DIR (see vgg_jax/recipe.py).",
    flag_values=flags.values,
)
flags.DEFINE_string(
    "workdir",
    "",
    "Directory of checkpoints and logs; name it again to continue the run. Default: runs/<config>[-<argument>].",
)
_joined = processes.define(flags)


def main(arguments: list[str]) -> None:
    cli.no_arguments(arguments, "--config=quickstart")
    cli.require(_CONFIG.value is not None, "what to train: --config=quickstart")
    cli.use_huge_pages()
    joined = _joined()
    from vgg_jax.training.train import train

    with joined:
        workdir = configuration.run_workdir(flags.values)
        given = config_flags.get_override_values(flags.values["config"])
        train(configuration.with_start(_CONFIG.value, given, workdir), workdir)


if __name__ == "__main__":
    cli.run(main, flags, outlives_stdout=True)
