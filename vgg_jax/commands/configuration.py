"""The --config flag on a command line: a configuration by name or file, and one sentence for every mistake in it."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Collection
from pathlib import Path

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from vgg_jax.commands import keys
from vgg_jax.runtime.exceptions import UserError, did_you_mean, first_line


def run_workdir(values: absl_flags.FlagValues) -> Path:
    """Returns --workdir, or its default for the configuration given with --config."""
    file = config_flags.get_config_filename(values["config"])
    return Path(values["workdir"].value).expanduser() if values["workdir"].value else default_workdir(file)


def default_workdir(config: str) -> Path:
    """Returns runs/vgg19-S=384 for configs/vgg19.py:S=384."""
    file, _, argument = config.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(file).stem, argument.replace("/", "_"))))


def configurations() -> dict[str, Path]:
    """Returns the files of the configurations by name, within the installed package or next to it in a clone."""
    package = Path(__file__).parents[1]
    directories = [directory for directory in (package / "configs", package.parent / "configs") if directory.is_dir()]
    return {file.stem: file for directory in directories[:1] for file in sorted(directory.glob("*.py"))}


def config_file(config: str, flag: str = "") -> str:
    """Returns a configuration's file, with its argument behind a colon; vgg19:S=384 is one by name.

    Raises:
      UserError: there is no such file, and no configuration has that name; `flag` stands before it.
    """
    name, colon, argument = config.partition(":")
    known = configurations()
    if not Path(name).is_file() and name not in known:
        raise UserError(
            f"{flag}{name}: there is no such file, and no configuration of that name."
            f"{did_you_mean(Path(name).stem, known)} There are {', '.join(known)}; a path to a file works too."
        )
    return f"{name if Path(name).is_file() else known[name]}{colon}{argument}"


def with_files(argv: list[str]) -> list[str]:
    """Replaces a configuration's name after --config, as vgg19:S=384, by its file.

    Raises:
      UserError: there is no such file, and no configuration has that name.
    """
    expanded, config = [], ("--config", "-config")
    for before, argument in zip(["", *argv], argv, strict=False):
        flag, value = ("", argument) if before in config else argument.split("=", 1) if "=" in argument else ("", "")
        if before in config or flag in config:
            argument = f"{flag}{'=' if flag else ''}{config_file(value, '--config=')}"
        expanded.append(argument)
    return expanded


def load_config(config: str) -> ConfigDict:
    """Returns a configuration by name or file, with an argument if need be: vgg19:S=384.

    Raises:
      UserError: there is none, it refuses its argument, or its file fails.
    """
    path, colon, argument = config_file(config).partition(":")
    spec = importlib.util.spec_from_file_location(f"{Path(path).stem}_configuration", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a file of Python; name a configuration.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        takes_argument = bool(inspect.signature(module.get_config).parameters)
        if colon and not takes_argument:
            raise UserError(f"{config}: this configuration takes no argument; leave {colon + argument} out.")
        values = module.get_config(argument) if colon else module.get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(file_fails(config, error)) from error
    if not isinstance(values, ConfigDict):
        raise UserError(f"{config}: get_config() returns no ConfigDict; begin with vgg_jax.config.default_config().")
    return values


def with_start(config: ConfigDict, given: Collection[str], workdir: Path) -> ConfigDict:
    """Returns a configuration with the network of `init_from`, where its key `init_network` says so.

    A run that is continued keeps its own, so that the model it started from need no longer be there.

    Args:
      config: the configuration, as given.
      given: keys that keep their values.
      workdir: of the run.

    Raises:
      UserError: nothing to read at `init_from`.
    """
    from vgg_jax.recipe import NO_INIT_FROM

    if not config.get("init_network") or config.get("init_from", "") in ("", NO_INIT_FROM):
        return config
    from vgg_jax.config import resolved_copy
    from vgg_jax.runs import RunDir
    from vgg_jax.training.transplant import network_values

    values = network_values(str(workdir) if RunDir(workdir).is_run() else config.init_from)
    config = resolved_copy(config)
    config.update_from_flattened_dict({key: value for key, value in values.items() if key not in given})
    return config


def file_fails(config: str, error: Exception) -> str:
    """Returns the sentence about an exception of a configuration's file."""
    return f"{config} fails: {first_line(error).rstrip('.')}. Mend it, or choose another."


def explain(text: str, has_config: bool = True) -> None:
    """Raises UserError if absl's error comes from a configuration file, a value of a section, or a key without config.

    Args:
      text: of the error.
      has_config: whether the command has the flag --config.
    """
    unknown = re.match(r"Unknown command line flag '([\w.]+)'", text)
    if has_config and unknown and (known := keys.suggestions(unknown[1])):
        names = " or ".join(f"--config.{key}" for key in known)
        raise UserError(f"--{unknown[1]} is not a flag but a key of the configuration; write {names}.")
    if match := re.match(r"flag --config=(.*?): Error whilst parsing config file", text):
        cause, (_, colon, argument) = text.strip().splitlines()[-1].strip(), match[1].partition(":")
        if colon and "takes 0 positional arguments" in cause:
            raise UserError(f"--config={match[1]}: this configuration takes no argument; leave {colon + argument} out.")
        raise UserError(f"--config={match[1]} fails: {cause.rstrip('.')}. Mend it, or choose another.")
    if match := re.match(r"flag --config\.([\w.]+)=(.*): Failed to parse .* as a ConfigDict", text):
        from vgg_jax.recipe import KEYS

        section, value = match[1], match[2]
        inside = [key.removeprefix(f"{section}.") for key in KEYS if key.startswith(f"{section}.")] or ["KEY"]
        raise UserError(
            f"--config.{section}={value}: {section} is a section of keys ({', '.join(inside)}); name one of them, as "
            f"--config.{section}.{inside[0]}={value}."
        )
