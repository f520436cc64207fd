"""`python -m vgg_jax.main --config=configs/vgg19.py`: trains what a configuration file describes."""

from __future__ import annotations

from vgg_jax import cli

flags = cli.Flags()
_CONFIG, _workdir = cli.run_flags(
    flags,
    "A configuration by name or file: vgg19, vgg19:S=384, configs/vgg19.py:S=384. Any value can be overridden: "
    "--config.batch_size=64 --config.data.dir=DIR (see vgg_jax/config.py).",
    "Where checkpoints and logs go; the same workdir continues a run.",
)
_joined = cli.process_flags(flags)


def main(arguments: list[str]) -> None:
    if arguments:
        cli.fail(f"{arguments[0]!r} is not a flag; flags begin with two dashes, as --config=quickstart.")
    if _CONFIG.value is None:
        cli.fail("say what to train: --config=quickstart, for example; --help lists the flags.")
    joined = _joined()
    from vgg_jax.exceptions import Interrupted
    from vgg_jax.train import train  # here, so that --help answers at once

    try:
        with joined:
            train(_CONFIG.value, _workdir())
    except Interrupted as interruption:
        cli.fail(str(interruption), 128 + interruption.signum)


if __name__ == "__main__":
    cli.run(main, flags, outlives_stdout=True)
