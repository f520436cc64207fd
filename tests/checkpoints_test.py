"""Checkpoints hold all of the state, and a bad one is said to be bad."""

import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.steps_test import some_steps
from vgg_jax.checkpoints import Checkpoints, load_params
from vgg_jax.errors import UserError
from vgg_jax.transplant import start_from


@pytest.fixture
def state(tiny_config):
    return some_steps(tiny_config, 2, with_state=True)[1]


def shapes_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def other(state, factor):
    return jax.tree.map(lambda x: (x * factor).astype(x.dtype), state)


def test_everything_comes_back_bit_for_bit(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    progress = {"seconds": 1.5, "best_top1_error": 0.25, "best_step": 2, "last": {"top1_error": 0.25}}
    checkpoints.save(2, state, progress, 0.25)
    checkpoints.wait()
    again = Checkpoints(tmp_path)
    assert again.latest_step() == 2
    restored, known = again.restore(2, shapes_of(state))
    assert known == progress
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert np.abs(restored.opt_state["momentum"].trace["fc6"]["kernel"]).max() > 0
    assert int(restored.step) == 2


def test_latest_and_best_are_kept(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, error in ((1, 0.5), (2, 0.2), (3, None), (4, 0.3), (5, None)):
        progress = {"best_step": 2 if step >= 2 else 1}
        checkpoints.save(step, other(state, step), progress, error)
    checkpoints.save(5, other(state, 50), {"best_step": 2}, 0.1)  # is there already, and stays
    checkpoints.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "5"]
    path, params = load_params(tmp_path)
    assert path == tmp_path / "checkpoints" / "2"
    jax.tree.map(np.testing.assert_array_equal, params, other(state.params, 2))
    _, latest = load_params(tmp_path / "checkpoints" / "5")
    jax.tree.map(np.testing.assert_array_equal, latest, other(state.params, 5))


def test_memory_may_be_reused_while_a_checkpoint_is_written(state, tmp_path):
    kept = jax.tree.map(np.array, state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"best_step": 1}, 0.5)
    overwrite = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)
    shapes = shapes_of(state)
    overwrite(state)
    checkpoints.wait()
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(1, shapes)[0], kept)


def test_an_unfinished_write_is_no_checkpoint(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"best_step": 1}, 0.5)
    checkpoints.wait()
    checkpoints.close()
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp")
    assert Checkpoints(tmp_path).latest_step() == 1


def test_a_damaged_checkpoint_is_named(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"best_step": 1}, 0.5)
    checkpoints.wait()
    for file in (tmp_path / "checkpoints" / "1" / "state").rglob("*"):
        if file.is_file() and "manifest" in file.name:
            file.write_bytes(b"spoilt")
    again = Checkpoints(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"the checkpoint {tmp_path}/checkpoints/1 cannot be read")):
        again.restore(1, shapes_of(state))


def test_a_write_that_fails_says_what_is_kept(state, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"best_step": 1}, 0.5)
    checkpoints.wait()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    # Orbax reports a write's failure when the next one begins, or at the end.
    for method, call in (
        ("save", lambda: checkpoints.save(2, state, {}, 0.5)),
        ("wait_until_finished", checkpoints.wait),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, method, full)
            with pytest.raises(
                UserError, match="No space left on device. Free some space .*; the last good one is .*/1."
            ):
                call()


def test_starting_from_a_checkpoint(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state, {"best_step": 7}, 0.5)
    checkpoints.wait()
    fresh = other(state.params, 3)
    params, report = start_from(str(tmp_path), fresh, np.zeros(3))
    jax.tree.map(np.testing.assert_array_equal, params, state.params)
    assert report == f"all layers start from {tmp_path}/checkpoints/7"


def test_where_there_is_no_checkpoint_it_is_said(tmp_path):
    with pytest.raises(
        UserError, match="is neither a run's workdir, with checkpoints/ in it, nor a checkpoints/<step>"
    ):
        load_params(tmp_path)
    with pytest.raises(UserError, match=r"config.init_from: .* is neither a run's workdir"):
        start_from(str(tmp_path), {}, np.zeros(3))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="there is no finished checkpoint in"):
        load_params(tmp_path)
    with pytest.raises(UserError, match=r"checkpoints/3 cannot be read"):
        load_params(tmp_path / "checkpoints" / "3")
