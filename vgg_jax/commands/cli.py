"""Shared code of the command lines: absl flags, and one sentence for every mistake.

A command is a module with `flags` and `main`. `main` checks the command line, then imports what loads JAX, so that
--help answers at once, and calls one function with a request made of the flags.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import io
import logging as std_logging
import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from absl import flags as absl_flags
from absl import logging

from vgg_jax import __version__
from vgg_jax.commands import configuration
from vgg_jax.runtime.exceptions import STOPPED, Interrupted, UserError, as_user_error, sentence
from vgg_jax.runtime.text_tables import FORMATS

Request = TypeVar("Request")
_HELP = {"--help", "--helpfull", "--helpshort", "-help", "-h", "-?"}


class Flags:
    """The flags of one command: `DEFINE_string` and similar as in absl.flags, apart from other commands."""

    def __init__(self, more_help: Callable[[], str] = str) -> None:
        """Args: more_help: returns what --help prints after the flags."""
        self.values, self.more_help = absl_flags.FlagValues(), more_help

    def request(self, kind: Callable[..., Request], **fields: Any) -> Request:
        """Returns a request of `fields` and, for its other fields, the flags of their names; lists become tuples."""
        names = [name for name in inspect.signature(kind).parameters if name in self.values and name not in fields]
        values = {name: self.values[name].value for name in names}
        return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}, **fields)

    def __getattr__(self, name: str) -> Callable[..., absl_flags.FlagHolder[Any]]:
        return functools.partial(getattr(absl_flags, name), flag_values=self.values)


def define_format(flags: Flags) -> absl_flags.FlagHolder[str]:
    """Defines --format, which help lists with the caller's own flags."""
    absl_flags.disclaim_key_flags()
    return flags.DEFINE_enum(
        "format", "plain", FORMATS, "Form of the printed tables: aligned text, Markdown or LaTeX (a tabular)."
    )


def run(
    main: Callable[[list[str]], None],
    flags: Flags,
    outlives_stdout: bool = False,
    key_flags: Mapping[str, str] = MappingProxyType({}),
) -> NoReturn:
    """Parses the command line, calls `main` with what is not a flag, and exits.

    A UserError is printed without a traceback, exit status 2. Ctrl-C exits with 130, a signal n with 128 + n once the
    state is saved.

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
            print(f"{sys.modules[main.__module__].__doc__}\n{flags.values.get_help()}{flags.more_help()}")
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
        # At once: XLA's threads may be in the middle of compiling, and crash where Python takes itself down around
        # them.
        os._exit(130)
    except Interrupted as interruption:
        fail(str(interruption), 128 + interruption.signum)
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


def _prepare_streams(outlives_stdout: bool) -> None:
    """Lets anything be printed anywhere: letters that an ASCII terminal does not have, file names that are not text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # Closed, or a notebook's.
        if not isinstance(stream, io.TextIOWrapper):
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


@contextlib.contextmanager
def devices() -> Iterator[None]:
    """Checks the devices, warns of an unseen GPU, and keeps what is compiled within; imports JAX.

    Raises:
      UserError: the environment asks JAX for devices that it cannot have, or to compile nothing.
    """
    from vgg_jax.runtime.compilation import check_devices, keep_compiled, warn_of_unseen_gpu

    check_devices()
    with keep_compiled():
        warn_of_unseen_gpu()
        yield


def use_cpu() -> None:
    """Lets JAX compute on the CPU whatever the environment says, where no device is needed; imports JAX."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def prefer_cpu() -> None:
    """Lets JAX compute on the CPU unless the environment says otherwise: a device is not needed, and may be busy."""
    if "JAX_PLATFORMS" not in os.environ:
        use_cpu()


def use_huge_pages() -> None:
    """Starts this program again with huge pages for glibc's allocator, a choice that only a new program can make.

    XLA's CPU backend allocates its buffers at every step. Linux then takes a tenth of the step to map pages of 4 KiB.
    Does nothing on other systems, with other C libraries, and where GLIBC_TUNABLES is set.
    """
    try:
        is_glibc = os.confstr("CS_GNU_LIBC_VERSION") is not None
    except (AttributeError, ValueError, OSError):
        is_glibc = False
    if is_glibc and sys.orig_argv and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def no_arguments(arguments: list[str], example: str) -> None:
    """Exits with a sentence if there are words that are not flags; `example` is a flag, as --workdir=runs/vgg16."""
    if arguments:
        fail(f"{arguments[0]!r} is not a flag; flags begin with two dashes, as {example}.")


def require(is_given: Any, sentence: str) -> None:
    """Exits with "say SENTENCE, for example; --help lists the flags." unless that flag is given."""
    if not is_given:
        fail(f"say {sentence}, for example; --help lists the flags.")


def _parse(values: absl_flags.FlagValues, argv: list[str]) -> list[str]:
    """Parses with absl; any mistake is one sentence and exit status 2, so that launchers do not try it again."""
    for argument in argv:
        name, _, value = argument.partition(" ")
        if argument.startswith("--") and value and "=" not in name:
            fail(f"{argument!r} is one word; write {name}={value} or, as two words, {argument}.")
    try:
        return values(configuration.with_files(argv))
    except absl_flags.Error as error:
        configuration.explain(str(error), "config" in values)
        text = " ".join(str(error).replace(" ?", "?").split()).rstrip(".")
        if len(text) > 600:
            text = f"{text[:200]} ... {text[-200:]}"
        fail(f"{text}. --help lists the flags.".replace("?.", "?"))
    # A file for another version, or with a slip of the pen.
    except (ImportError, SyntaxError) as error:
        fail(configuration.file_fails("the configuration file", error))
    # A key that does not exist, a bad argument of the file.
    except (AttributeError, KeyError, UserError) as error:
        cause = error.args[0] if isinstance(error.args[0], KeyError) else error
        message = ". ".join(str(cause.args[0]).splitlines())
        fail(f"the configuration has no key {message}" if re.match(r"'[^']*'(\.|$)", message) else message)


def _unraisable(ignored: sys.UnraisableHookArgs) -> None:
    """Says nothing; but a Ctrl-C that came while the garbage collector had called Python back comes again."""
    if ignored.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
