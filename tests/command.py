"""The program as a user runs it: in a process of its own."""

import os
import subprocess
import sys

from tests.conftest import REPOSITORY
from vgg_jax.config import flatten


def as_flags(config) -> list[str]:
    """The command line that makes configs/quickstart.py the given configuration."""
    return [f"--config.{key}={value}" for key, value in flatten(config).items()]


def start_module(module: str, *arguments, devices: int = 1, **options) -> subprocess.Popen:
    """Starts `python -m <module>` as a user would, from the repository."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def run_module(module: str, *arguments, devices: int = 1) -> tuple[int, str, str]:
    """Runs it to the end: (exit status, standard output, standard error)."""
    process = start_module(module, *arguments, devices=devices)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def start_command(name: str, *arguments, **options) -> subprocess.Popen:
    """Starts `python -m vgg_jax NAME`, which is `vgg-jax NAME`."""
    return start_module("vgg_jax", name, *arguments, **options)


def run_command(name: str, *arguments, devices: int = 1) -> tuple[int, str, str]:
    return run_module("vgg_jax", name, *arguments, devices=devices)


def start_main(*arguments, **options) -> subprocess.Popen:
    return start_module("vgg_jax.main", *arguments, **options)


def run_main(*arguments, devices: int = 1) -> tuple[int, str, str]:
    return run_module("vgg_jax.main", *arguments, devices=devices)


def help_of(tool: str) -> str:
    """Returns what `vgg-jax TOOL --help` prints; it must not load what takes seconds to load."""
    code = (
        f"import sys, runpy; sys.argv = ['vgg-jax', '{tool}', '--help']\n"
        "try: runpy.run_module('vgg_jax', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'safetensors', 'tensorflow_datasets'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout
