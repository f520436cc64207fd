"""What all command lines of this project have in common: flags by absl, and one sentence for every mistake."""

from __future__ import annotations

import logging as std_logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

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


def process_flags() -> Callable[[], AbstractContextManager[None]]:
    """Defines the flags of tools that several processes run together; returns what joins this one to the others."""
    distributed = flags.DEFINE_bool(
        "distributed", False, "One of several processes that train or evaluate together. Alone where JAX finds them by "
        "itself (Cloud TPU, GKE, SLURM); elsewhere each is given the next three, which imply it. launch/local.sh starts "
        "several on this machine."
    )  # fmt: skip
    address = flags.DEFINE_string("coordinator_address", "", "HOST:PORT at which process 0 listens for the others.")
    count = flags.DEFINE_integer("num_processes", None, "How many processes there are.", lower_bound=1)
    index = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
    seconds = flags.DEFINE_integer(
        "join_timeout", 0, "Seconds to wait for the others at the start. Default: 60 with an address, else 300.",
        lower_bound=0,
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
        elif not distributed.value:
            return nullcontext()
        from vgg_jax import processes  # here, so that --help answers at once

        return processes.joined(address.value, count.value, index.value, seconds.value)

    return joined


def _check_processes(address: str, count: int, index: int) -> None:
    if not re.fullmatch(r".+:\d+", address):
        fail(f"--coordinator_address={address} has no port; write HOST:PORT, as localhost:1234.")
    if index >= count:
        fail(f"--process_id={index} is not below --num_processes={count}; processes are numbered from 0.")


def default_workdir(config: str) -> Path:
    """configs/vgg19.py:S=384 -> runs/vgg19-S=384."""
    file, _, argument = config.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(file).stem, argument.replace("/", "_"))))


def _parse(argv: list[str]) -> list[str]:
    """absl's parsing, with one sentence and exit status 2 for whatever is wrong, so that launchers do not try it again."""
    for argument in argv:
        file = argument.removeprefix("--config=").partition(":")[0]
        if argument.startswith("--config=") and not Path(file).is_file():
            fail(f"--config={file}: there is no such file; configuration files lie in configs/.")
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(
            f"{' '.join(str(error).replace(' ?', '?').split()).rstrip('.')}. --help lists the flags.".replace("?.", "?")
        )
    except (AttributeError, KeyError, UserError) as error:  # a key that does not exist, a bad argument of the file
        cause = error.args[0] if isinstance(error.args[0], KeyError) else error
        message = ". ".join(str(cause.args[0]).splitlines())
        fail(f"the configuration has no key {message}" if message.startswith("'") else message)


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
