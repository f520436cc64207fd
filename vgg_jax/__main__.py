"""`vgg-jax COMMAND ...`, or `python -m vgg_jax COMMAND ...`: every command of this project by one name."""

from __future__ import annotations

import runpy
import sys

from vgg_jax.commands import cli
from vgg_jax.runtime.exceptions import did_you_mean

COMMANDS = {  # below `vgg_jax`, the module, and what it does
    "train": ("main", "train a network that a configuration describes"),
    "evaluate": ("commands.evaluate", "the paper's test protocol on trained networks, single or fused"),
    "predict": ("commands.predict", "the likeliest classes of your own images"),
    "convert": ("commands.convert", "weights of other frameworks in, and out again"),
    "report": ("commands.report", "runs as one HTML page"),
    "reproduce": ("commands.reproduce", "the paper's networks one after another, and its tables"),
    "prepare": ("commands.prepare", "make a data set ready, and find its bad images"),
    "transfer": ("commands.transfer", "how good features are for other data, by linear classifiers"),
    "describe": ("commands.describe", "what networks are made of, side by side or layer by layer"),
    "compile-check": ("commands.compile_check", "what a TPU slice would make of a run, without a TPU"),
}


def run() -> None:
    """Runs the command that the first argument names, as `python -m` would; without one, says which there are."""
    name, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in ("--help", "-h", "help"):
        lines = "".join(f"\n  vgg-jax {name:14}{what}" for name, (_, what) in COMMANDS.items())
        print(
            f"VGG in JAX ({cli.version()}):\n{lines}\n\nvgg-jax COMMAND --help lists a command's flags. To begin: vgg-jax "
            f"train --config=quickstart\nConfigurations: {', '.join(cli.configurations())}; or a path to a file."
        )
    elif name == "--version":
        print(cli.version())
    elif name.startswith("-"):
        cli.fail(f"{name} comes before a command; write vgg-jax train {name} ..., or another of {', '.join(COMMANDS)}.")
    elif name not in COMMANDS:
        cli.fail(f"{name!r} is no command.{did_you_mean(name, COMMANDS)} There are {', '.join(COMMANDS)}.")
    else:
        sys.argv[1:] = rest
        runpy.run_module(f"vgg_jax.{COMMANDS[name][0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    run()
