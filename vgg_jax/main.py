"""`python -m vgg_jax.main --config=configs/vgg19.py`: trains what a configuration file describes."""

from __future__ import annotations

from ml_collections import config_flags

from vgg_jax.commands import cli

flags = cli.Flags()
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A configuration by name or file: vgg19, vgg19:S=384, configs/vgg19.py:S=384. Any value can be overridden: "
    "--config.batch_size=64 --config.data.dir=DIR (see vgg_jax/config.py).", flag_values=flags.values
)  # fmt: skip
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Of checkpoints and logs; the same continues a run. Default: runs/<config>[-<argument>]."
)
_joined = cli.process_flags(flags)


def main(arguments: list[str]) -> None:
    if arguments:
        cli.fail(f"{arguments[0]!r} is not a flag; flags begin with two dashes, as --config=quickstart.")
    if _CONFIG.value is None:
        cli.fail("say what to train: --config=quickstart, for example; --help lists the flags.")
    joined = _joined()
    from vgg_jax.runtime.exceptions import Interrupted
    from vgg_jax.training.train import train  # here, so that --help answers at once

    try:
        with joined:
            train(_CONFIG.value, cli.run_workdir(flags, _WORKDIR.value))
    except Interrupted as interruption:
        cli.fail(str(interruption), 128 + interruption.signum)


if __name__ == "__main__":
    cli.run(main, flags, outlives_stdout=True)
