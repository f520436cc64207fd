"""A directory is written whole or not at all."""

import os
import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY
from vgg_jax.runtime.files import is_empty, write_directory


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_gets_its_name_when_it_is_whole(tmp_path):
    final = tmp_path / "data" / ("x" * 255)
    with write_directory(final) as unfinished:
        (unfinished / "a").write_text("1")
        assert not final.exists()
        assert is_empty(final.parent)
    assert (names(final.parent), names(final)) == ([final.name], ["a"])
    # An empty one that was there is replaced, another stays.
    (tmp_path / "empty").mkdir()
    with write_directory(tmp_path / "empty") as unfinished:
        (unfinished / "a").write_text("1")
    assert names(tmp_path / "empty") == ["a"]
    with pytest.raises(OSError, match="not empty"), write_directory(final) as unfinished:
        (unfinished / "b").write_text("1")
    assert (names(final.parent), names(final)) == ([final.name], ["a"])


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="bad"), write_directory(tmp_path / "data") as unfinished:
        (unfinished / "a").write_text("1")
        raise ValueError("bad")
    assert names(tmp_path) == []


def test_of_two_that_write_at_once_the_first_whole_one_stays(tmp_path):
    final = tmp_path / "data"
    with write_directory(final, is_whole=lambda path: (path / "a").exists()) as second:
        with write_directory(final) as first:
            (first / "a").write_text("first")
        (second / "a").write_text("second")
    assert (final / "a").read_text() == "first"
    assert names(tmp_path) == ["data"]


KILLED = """
import sys, time
from pathlib import Path
from vgg_jax.runtime.files import write_directory
with write_directory(Path(sys.argv[1])) as unfinished:
    (unfinished / "a").write_text("1")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_has_left_is_removed_when_it_is_old(tmp_path):
    for name in ("data", "data"):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / name)], cwd=REPOSITORY, stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"writing\n"
        process.kill()
        process.wait()
    old, _ = (tmp_path / name for name in names(tmp_path))
    os.utime(old, (time.time() - 90_000,) * 2)
    code = KILLED.replace("time.sleep(60)", "")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], cwd=REPOSITORY, check=True)
    left = names(tmp_path)
    assert left[0] == "data"
    assert len(left) == 2  # the one that may still be written
    assert old.name not in left
