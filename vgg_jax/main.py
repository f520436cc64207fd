"""`python -m vgg_jax.main --config=configs/vgg19.py`: trains what a configuration file describes."""

from __future__ import annotations

import logging as std_logging
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from vgg_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, e.g. configs/vgg19.py or configs/vgg19.py:S=384. Any value can be overridden: "
    "--config.batch_size=64 --config.data.dir=DIR (see vgg_jax/config.py)."
)  # fmt: skip
_WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Where checkpoints and logs go; the same workdir continues a run. Default: runs/<config>[-<argument>].",
)


def _parse(argv: list[str]) -> list[str]:
    """absl's parsing, with a sentence in place of a traceback where the configuration file cannot be had."""
    for argument in argv:
        file = argument.removeprefix("--config=").partition(":")[0]
        if argument.startswith("--config=") and not Path(file).is_file():
            _fail(f"--config={file}: there is no such file; configuration files lie in configs/.")
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, UserError) as error:  # a key that does not exist, a bad argument of the file
        _fail(" ".join(str(error.args[0]).split()))


def _fail(message: str, status: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def default_workdir(config: str) -> Path:
    """configs/vgg19.py:S=384 -> runs/vgg19-S=384."""
    file, _, argument = config.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(file).stem, argument.replace("/", "_"))))


def main(argv: list[str]) -> None:
    if argv[1:]:
        _fail(f"{argv[1]!r} is not a flag; flags begin with two dashes, as --config=configs/quickstart.py.")
    if _CONFIG.value is None:
        _fail("say what to train: --config=configs/quickstart.py, for example; --help lists the flags.")
    logging.set_verbosity(logging.FATAL)  # what libraries log would bury what this project says
    # When a checkpoint cannot be written, Orbax's threads print a traceback for every array; the error says it once.
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    from vgg_jax.train import Interrupted, train  # here, so that --help answers at once

    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(config_file)
    try:
        train(_CONFIG.value, workdir)
    except UserError as error:
        _fail(str(error))
    except Interrupted as interruption:
        _fail(str(interruption), 128 + interruption.signum)
    except KeyboardInterrupt:
        _fail("stopped; nothing that was saved is lost, the same command goes on.", 130)


def run() -> None:
    """The console script `vgg-jax`."""
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run()
