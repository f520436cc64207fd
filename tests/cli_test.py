"""What all command lines share: Ctrl-C stops them with a sentence, even where it comes at a bad moment."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

IN_THE_COLLECTOR = """
import gc, signal, time
from vgg_jax import cli

def main(_):
    # JAX has such a callback; what is raised in it, Python drops.
    gc.callbacks.append(lambda phase, _: signal.raise_signal(signal.SIGINT) if phase == "start" else None)
    gc.collect()
    gc.callbacks.clear()
    time.sleep(60)

cli.run(main)
"""
ANYWHERE = """
import signal
from vgg_jax import cli
cli.run(lambda _: signal.raise_signal(signal.SIGINT))
"""


@pytest.mark.parametrize("code", [ANYWHERE, IN_THE_COLLECTOR])
def test_ctrl_c_stops_with_a_sentence(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert done.returncode == 130
    assert done.stderr == "error: stopped; nothing that was saved is lost, the same command goes on.\n"
