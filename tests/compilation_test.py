"""Programs that are kept for the next start: taken, bounded, and done without where the directory is bad."""

import contextlib
import os
import warnings

import jax
import jax.numpy as jnp
import pytest

from vgg_jax.runtime import compilation
from vgg_jax.runtime.compilation import keep_compiled, warn_of_unseen_gpu


@pytest.fixture
def keep(monkeypatch):
    """`keep_compiled` without the directory of these tests, with everything kept, and its warnings."""
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in options}
    monkeypatch.setattr(compilation, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr("warnings.showwarning", lambda message, *_: said.append(f"from JAX: {message}"))
    jax.config.update("jax_compilation_cache_dir", None)
    said = []
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(keep_compiled(*arguments, warn=said.append)), said
    for name, value in before.items():
        jax.config.update(name, value)
    compilation.compilation_cache.reset_cache()


def entries(directory):
    return {file.name: file.read_bytes() for file in directory.glob("*-cache")}


def compute(number):
    """Compiles a program that no other number has, anew for each call, as a function of its own."""

    def program(x):
        return x + number

    return float(jax.jit(program)(jnp.float32(1)))


@pytest.mark.filterwarnings("default:Error reading persistent")
def test_a_program_is_compiled_once_and_damage_is_warned_of_once_and_mended(tmp_path, keep):
    keep_there, said = keep
    assert keep_there(str(tmp_path)) == str(tmp_path)
    assert compute(2) == 3
    assert compute(5) == 6
    cached = entries(tmp_path)
    names = [name for name in cached if name.startswith("jit_program-")]
    assert len(names) == 2
    for name in names:
        (tmp_path / name).write_bytes(cached[name][:100])  # as where a process is killed in the middle
    assert compute(2) == 3
    assert compute(5) == 6
    assert len(said) == 1
    assert said[0].startswith(f"WARNING: what is kept of compiled programs in {tmp_path} is damaged")
    mended = entries(tmp_path)
    assert sorted(mended) == sorted(cached)
    assert all(len(mended[name]) > 100 for name in names)


def test_what_is_set_for_jax_and_for_warnings_ends_with_the_context(tmp_path, keep):
    before = warnings.showwarning
    with keep_compiled(str(tmp_path)) as directory:
        assert jax.config.jax_compilation_cache_dir == directory
        assert warnings.showwarning is not before
    assert not jax.config.jax_compilation_cache_dir
    assert warnings.showwarning is before
    assert keep[1] == []


def test_what_was_used_longest_ago_is_removed_beyond_the_bound(tmp_path, keep, monkeypatch):
    for i in range(4):
        (tmp_path / f"{i}-cache").write_bytes(bytes(100))
        os.utime(tmp_path / f"{i}-cache", (1000 + i, 1000 + i))
    (tmp_path / "mine.txt").write_bytes(bytes(1000))
    monkeypatch.setattr(compilation, "_MAX_BYTES", 250)
    keep[0](str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2-cache", "3-cache", "mine.txt"]


def test_where_nobody_says_where_it_is_the_users_or_of_several_processes_the_workdirs(tmp_path, keep, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert keep[0]() == str(tmp_path / "home" / "vgg_jax" / "compiled")
    assert keep[0]("auto", tmp_path / "run") == str(tmp_path / "home" / "vgg_jax" / "compiled")  # it is set
    assert keep[0]("") == ""
    assert keep[0]("auto", tmp_path / "run") == str(tmp_path / "run" / "compiled")
    assert keep[1] == []


@pytest.mark.parametrize("obstacle", ["a file", "full", "another user's", "no home"])
def test_a_directory_that_cannot_be_used_is_warned_of_and_done_without(tmp_path, keep, monkeypatch, obstacle):
    directory, reason = tmp_path / "vgg_jax" / "compiled", "Not a directory"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if obstacle == "a file":
        (tmp_path / "vgg_jax").write_text("")
    elif obstacle == "full":
        monkeypatch.setattr(compilation, "_LEAST_FREE", 2**62)
        reason = "No space left on device"
    elif obstacle == "no home":
        monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-knows/cache")
        directory, reason = "~/.cache", "the home directory is unknown"
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        reason = "it is another user's"
    assert keep[0]() == ""
    assert keep[1] == [
        f"WARNING: compiled programs cannot be kept in {directory} ({reason}), so that this start and the next "
        "compile anew; JAX_COMPILATION_CACHE_DIR=DIR chooses another directory."
    ]
    assert compute(7) == 8
    assert not jax.config.jax_compilation_cache_dir


def test_a_gpu_that_jax_does_not_see_is_said(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(compilation, "_NVIDIA_DRIVER", tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    warn_of_unseen_gpu(said.append)
    assert said == []
    monkeypatch.delenv("JAX_PLATFORMS")
    warn_of_unseen_gpu(said.append)
    assert len(said) == 1
    assert "pip install 'vgg-jax[gpu]'" in said[0]
