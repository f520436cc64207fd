"""What all command lines of this project have in common: flags by absl, and one sentence for every mistake."""

from __future__ import annotations

import functools
import importlib.metadata
import io
import logging as std_logging
import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from absl import flags as absl_flags
from absl import logging

from vgg_jax import __version__
from vgg_jax.runtime.exceptions import STOPPED, UserError, as_user_error, did_you_mean, sentence

_HELP = {"--help", "--helpfull", "--helpshort", "-help", "-h", "-?"}


class Flags:
    """The flags of one command: `DEFINE_string` and its like as in absl.flags, but apart from those of other commands."""

    def __init__(self) -> None:
        self.values = absl_flags.FlagValues()

    def __getattr__(self, name: str) -> Callable[..., absl_flags.FlagHolder[Any]]:
        return functools.partial(getattr(absl_flags, name), flag_values=self.values)


# Configuration keys, by which errors name values, as the flags of tools that have their own.
DATA_FLAGS = {
    "data.name": "--data_name",
    "data.dir": "--data_dir",
    "data.root": "--data_root",
    "data.exif": "--exif",
}


def run(
    main: Callable[[list[str]], None],
    flags: Flags,
    outlives_stdout: bool = False,
    key_flags: Mapping[str, str] = MappingProxyType({}),
) -> NoReturn:
    """Parses the command line, calls `main` with what is not a flag, and exits.

    A UserError is printed without a traceback, exit status 2; Ctrl-C exits with 130.

    Args:
      main: the command.
      flags: its own.
      outlives_stdout: continues where nobody reads what it prints any more; otherwise that ends the command quietly, as
        SIGPIPE would, exit status 141.
      key_flags: flags of this command in place of --config.KEY, by key; errors are printed with them.
    """
    _prepare_streams(outlives_stdout)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().addFilter(_is_not_a_librarys)
    # When a checkpoint cannot be written, Orbax's threads print a traceback for every array; the error says it once.
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)
    sys.unraisablehook = _unraisable
    absl_flags.FLAGS.mark_as_parsed()  # libraries define some for themselves
    try:
        if _HELP.intersection(sys.argv[1:]):
            print(f"{sys.modules[main.__module__].__doc__}\n{flags.values.get_help()}")
        elif "--version" in sys.argv[1:]:
            print(version())
        else:
            main(_parse(flags.values, sys.argv)[1:])
        sys.stdout and sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where Python flushes what is still to be printed
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr, flush=True)
        # At once: XLA's threads may be in the middle of compiling, and crash where Python takes itself down around them.
        os._exit(130)
    except Exception as error:
        if (known := as_user_error(error)) is None:
            raise
        fail(_with_flags(str(known), key_flags))
    sys.exit(0)


def _with_flags(message: str, key_flags: Mapping[str, str]) -> str:
    for key, flag in key_flags.items():
        message = message.replace(f"--config.{key}", flag).replace(f"config.{key}", flag)
    return message


# Their logs would bury this project's lines: they repeat what an error says, or report progress.
_CHATTY = ("absl", "array_record", "clu", "etils", "grain", "jax", "orbax", "tensorflow_datasets", "tensorboardX")


def _is_not_a_librarys(record: std_logging.LogRecord) -> bool:
    """Returns whether a log record is of other code than the chatty libraries'."""
    return not any(f"/site-packages/{library}/" in record.pathname for library in _CHATTY)


def version() -> str:
    """This package's version, and that of what its results depend on most."""
    return f"vgg_jax {__version__}, jax {importlib.metadata.version('jax')}, Python {platform.python_version()}"


def fail(message: str, status: int = 2) -> NoReturn:
    """Prints one sentence and exits."""
    print(sentence(message, status), file=sys.stderr)
    sys.exit(status)


def process_flags(flags: Flags) -> Callable[[], AbstractContextManager[None]]:
    """Defines the flags of tools that several processes run together; returns what joins this one to the others."""
    several = flags.DEFINE_bool(
        "distributed", False, "One of several processes that train or evaluate together. Alone where JAX finds them by "
        "itself (Cloud TPU, GKE, SLURM); elsewhere each is given the next three, which imply it. launch/local.sh starts "
        "several on this machine."
    )  # fmt: skip
    address = flags.DEFINE_string("coordinator_address", "", "HOST:PORT at which process 0 listens for the others.")
    count = flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
    index = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
    seconds = flags.DEFINE_integer(
        "join_timeout", 0, "Seconds to wait for the others at the start. Default: 60 with an address, else 300.",
        lower_bound=0, upper_bound=7 * 24 * 3600,
    )  # fmt: skip

    def joined() -> AbstractContextManager[None]:
        given = {
            "--coordinator_address": address.value or None,
            "--num_processes": count.value,
            "--process_id": index.value,
        }
        missing = [name for name, value in given.items() if value is None]
        if not missing:
            _check_processes(address.value, count.value or 0, index.value or 0)
        elif len(missing) < len(given):
            fail(
                "--coordinator_address=HOST:PORT, --num_processes=N and --process_id=I go together; missing: "
                f"{', '.join(missing)}."
            )
        elif not several.value:
            return nullcontext()
        from vgg_jax.runtime import session  # here, so that --help answers at once

        return session.joined(address.value, count.value, index.value, seconds.value)

    return joined


def _check_processes(address: str, count: int, index: int) -> None:
    if not re.fullmatch(r".+:\d{1,5}", address) or int(address.rpartition(":")[2]) > 65535:
        fail(f"--coordinator_address={address} has no port; write HOST:PORT, as localhost:1234.")
    if index >= count:
        fail(f"--process_id={index} is not below --num_processes={count}; processes are numbered from 0.")


def run_workdir(flags: Flags, workdir: str) -> Path:
    """Returns --workdir, or its default for the configuration given with --config."""
    from ml_collections import config_flags

    file = config_flags.get_config_filename(flags.values["config"])
    return Path(workdir).expanduser() if workdir else default_workdir(file)


def default_workdir(config: str) -> Path:
    """Returns runs/vgg19-S=384 for configs/vgg19.py:S=384."""
    file, _, argument = config.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(file).stem, argument.replace("/", "_"))))


def _prepare_streams(outlives_stdout: bool) -> None:
    """Lets anything be printed anywhere: letters that an ASCII terminal does not have, file names that are not text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):  # closed, or a notebook's
            continue
        stream.reconfigure(errors="backslashreplace")
        if outlives_stdout:
            raw = io.BufferedWriter(_Lossy(stream.fileno(), "w", closefd=False))
            wrapped = io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=stream.line_buffering)
            setattr(sys, name, wrapped)


class _Lossy(io.FileIO):
    """Drops what can no longer be written: the reader is gone, the terminal closed, the disk full."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _parse(values: absl_flags.FlagValues, argv: list[str]) -> list[str]:
    """Parses with absl; any mistake is one sentence and exit status 2, so that launchers do not try it again."""
    for argument in argv:
        name, _, value = argument.partition(" ")
        if argument.startswith("--") and value and "=" not in name:
            fail(f"{argument!r} is one word; write {name}={value} or, as two words, {argument}.")
    try:
        return values(_with_configuration_files(argv))
    except absl_flags.Error as error:
        _explain_configuration(str(error))
        text = " ".join(str(error).replace(" ?", "?").split()).rstrip(".")
        if len(text) > 600:
            text = f"{text[:200]} ... {text[-200:]}"
        fail(f"{text}. --help lists the flags.".replace("?.", "?"))
    except (AttributeError, KeyError, UserError) as error:  # a key that does not exist, a bad argument of the file
        cause = error.args[0] if isinstance(error.args[0], KeyError) else error
        message = ". ".join(str(cause.args[0]).splitlines())
        fail(f"the configuration has no key {message}" if message.startswith("'") else message)


def _explain_configuration(text: str) -> None:
    """Exits with a sentence if absl's error is a traceback of a configuration file, or of a section that was given a value."""
    if match := re.match(r"flag --config=(.*?): Error whilst parsing config file", text):
        cause, (_, colon, argument) = text.strip().splitlines()[-1].strip(), match[1].partition(":")
        if colon and "takes 0 positional arguments" in cause:
            fail(f"--config={match[1]}: this configuration takes no argument; leave {colon + argument} out.")
        fail(f"--config={match[1]} fails: {cause.rstrip('.')}. Mend it, or choose another.")
    if match := re.match(r"flag --config\.([\w.]+)=(.*): Failed to parse .* as a ConfigDict", text):
        from vgg_jax.config import KEYS

        section, value = match[1], match[2]
        keys = [key.removeprefix(f"{section}.") for key in KEYS if key.startswith(f"{section}.")] or ["KEY"]
        fail(
            f"--config.{section}={value}: {section} is a section of keys ({', '.join(keys)}); name one of them, as "
            f"--config.{section}.{keys[0]}={value}."
        )


def configurations() -> dict[str, Path]:
    """Returns the files of the configurations by name, within the installed package or next to it in a clone."""
    package = Path(__file__).parents[1]
    directories = [directory for directory in (package / "configs", package.parent / "configs") if directory.is_dir()]
    return {file.stem: file for directory in directories[:1] for file in sorted(directory.glob("*.py"))}


def _with_configuration_files(argv: list[str]) -> list[str]:
    """Replaces a configuration's name after --config, as vgg19:S=384, by its file."""
    expanded, config = [], ("--config", "-config")
    for before, argument in zip(["", *argv], argv, strict=False):
        flag, value = ("", argument) if before in config else argument.split("=", 1) if "=" in argument else ("", "")
        if before in config or flag in config:
            name, colon, rest = value.partition(":")
            known = configurations()
            if not Path(name).is_file() and name not in known:
                fail(
                    f"--config={name}: there is no such file, and no configuration of that name."
                    f"{did_you_mean(Path(name).stem, known)} There are {', '.join(known)}; a path to a file works too."
                )
            file = name if Path(name).is_file() else known[name]
            argument = f"{flag}{'=' if flag else ''}{file}{colon}{rest}"
        expanded.append(argument)
    return expanded


def _unraisable(ignored: sys.UnraisableHookArgs) -> None:
    """Says nothing; but a Ctrl-C that came while the garbage collector had called Python back comes again."""
    if ignored.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
