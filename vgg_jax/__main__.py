"""`vgg-jax COMMAND ...`, or `python -m vgg_jax COMMAND ...`: every command of this project by one name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from vgg_jax.commands import cli, configuration
from vgg_jax.runtime.exceptions import did_you_mean


class Command(NamedTuple):
    """A command: a module of `vgg_jax` with `flags` and `main`, and the arguments of `cli.run`."""

    module: str
    summary: str
    outlives_stdout: bool = False
    key_flags: Mapping[str, str] = MappingProxyType({})


# Flags that stand for configuration keys, by which errors name values.
_DATA = {
    "data.name": "--data_name",
    "data.dir": "--data_dir",
    "data.root": "--data_root",
    "data.exif": "--exif",
}
_TRANSFER = {"data.dir": "--data_dir", "data.name=": "--data_root=tfds:", "data.name": "--data_root"}
COMMANDS = {
    "train": Command("main", "train a network that a configuration describes", True),
    "evaluate": Command(
        "commands.evaluate", "the paper's test protocol on trained networks, single or fused", key_flags=_DATA
    ),
    "predict": Command("commands.predict", "the likeliest classes of your own images"),
    "convert": Command("commands.convert", "weights of other frameworks in, and out again"),
    "report": Command("commands.report", "runs as one HTML page", key_flags=_DATA),
    "reproduce": Command("commands.reproduce", "the paper's networks one after another, and its tables", True),
    "prepare": Command(
        "commands.prepare", "make a data set ready, and find its bad images", key_flags=_DATA | {"data.name": "NAME"}
    ),
    "transfer": Command(
        "commands.transfer", "how good features are for other data, by linear classifiers", key_flags=_TRANSFER
    ),
    "describe": Command("commands.describe", "what networks are made of, side by side or layer by layer"),
    "completion": Command("commands.completion", "a script by which bash or zsh completes this command"),
    "compile-check": Command("commands.compile_check", "what a TPU slice would make of a run, without a TPU"),
}


def run() -> None:
    """Runs the command that the first argument names; without one, lists the commands."""
    name, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name in ("--help", "-h", "help"):
        lines = "".join(f"\n  vgg-jax {name:14}{command.summary}" for name, command in COMMANDS.items())
        print(
            f"VGG in JAX ({cli.version()}):\n{lines}\n\nvgg-jax COMMAND --help lists a command's flags. To begin: "
            f"vgg-jax train --config=quickstart\nConfigurations: {', '.join(configuration.configurations())}; or a "
            "path to a file."
        )
    elif name == "--version":
        print(cli.version())
    elif name.startswith("-"):
        cli.fail(f"{name} comes before a command; write vgg-jax train {name} ..., or another of {', '.join(COMMANDS)}.")
    elif name not in COMMANDS:
        cli.fail(f"{name!r} is no command.{did_you_mean(name, COMMANDS)} There are {', '.join(COMMANDS)}.")
    else:
        command = COMMANDS[name]
        module = importlib.import_module(f"vgg_jax.{command.module}")
        # absl shows first the flags of the module that argv[0] names.
        sys.argv = [module.__name__, *rest]
        cli.run(module.main, module.flags, command.outlives_stdout, command.key_flags)


if __name__ == "__main__":
    run()
