"""What all command lines of this project have in common: flags by absl, and one sentence for every mistake."""

from __future__ import annotations

import logging as std_logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, logging

from vgg_jax.errors import UserError


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the command line and calls `main` with what is not a flag; never returns.

    A UserError is printed without a traceback, exit status 2; Ctrl-C exits with 130.
    """
    app.run(lambda argv: _guarded(main, argv[1:]), flags_parser=_parse)


def fail(message: str, status: int = 2) -> NoReturn:
    """Prints one sentence and exits."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def default_workdir(config: str) -> Path:
    """configs/vgg19.py:S=384 -> runs/vgg19-S=384."""
    file, _, argument = config.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(file).stem, argument.replace("/", "_"))))


def _parse(argv: list[str]) -> list[str]:
    """absl's parsing, with a sentence in place of a traceback where the configuration file cannot be had."""
    for argument in argv:
        file = argument.removeprefix("--config=").partition(":")[0]
        if argument.startswith("--config=") and not Path(file).is_file():
            fail(f"--config={file}: there is no such file; configuration files lie in configs/.")
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, UserError) as error:  # a key that does not exist, a bad argument of the file
        fail(" ".join(str(error.args[0]).split()))


def _unraisable(ignored: sys.UnraisableHookArgs) -> None:
    """Says nothing; but a Ctrl-C that came while the garbage collector had called Python back comes again."""
    if ignored.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()


def _guarded(main: Callable[[list[str]], None], arguments: list[str]) -> None:
    logging.set_verbosity(logging.FATAL)  # what libraries log would bury what this project says
    # When a checkpoint cannot be written, Orbax's threads print a traceback for every array; the error says it once.
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)
    sys.unraisablehook = _unraisable
    try:
        main(arguments)
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print("error: stopped; nothing that was saved is lost, the same command goes on.", file=sys.stderr, flush=True)
        # At once: XLA's threads may be in the middle of compiling, and crash where Python takes itself down around them.
        os._exit(130)
