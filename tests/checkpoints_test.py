"""Checkpoints hold all of the state, and a bad one is said to be bad."""

import copy
import dataclasses
import errno
import json
import re
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.first_steps import some_steps
from vgg_jax.runtime.digests import params_sha256
from vgg_jax.runtime.exceptions import UserError, first_line
from vgg_jax.training.checkpoints import Checkpoints, Progress, load_variables
from vgg_jax.training.schedules import Plateau
from vgg_jax.training.transplant import read_donor, start_from


@pytest.fixture
def state(tiny_config):
    return some_steps(tiny_config, 2, with_state=True)[1]


def shapes_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def other(state, factor):
    return jax.tree.map(lambda x: (x * factor).astype(x.dtype), state)


def saved(workdir, state, *steps, best):
    """Saves checkpoints, each with a state of its own, as one run does."""
    checkpoints = Checkpoints(workdir)
    for step in steps:
        checkpoints.save(step, other(state, step), Progress(best_step=min(best, step), seconds=1.5))
    checkpoints.wait()
    checkpoints.close()


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("error", "loss", "best"),
    [(0.5, 1.6079, 60), (0.5, 1.5999, 60), (0.5, 1.4, 110), (0.51, 1.0, 60), (0.49, 2.0, 110)],
)
def test_of_equal_errors_the_best_has_least_loss_then_comes_first(error, loss, best):
    progress = Progress()
    progress.observe(60, {"top1_error": 0.5, "loss": 1.5999})
    progress.observe(110, {"top1_error": error, "loss": loss})
    expected = (0.5, 1.5999) if best == 60 else (error, loss)
    assert (progress.best_step, progress.best_top1_error, progress.best_loss) == (best, *expected)
    assert (progress.last_step, progress.last) == (110, {"top1_error": error, "loss": loss})


def test_the_best_of_an_earlier_version_has_no_loss_and_stays_at_a_tie(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    content = dataclasses.asdict(Progress(best_top1_error=0.5, best_step=60, last={"top1_error": 0.6, "loss": 1.0}))
    del content["best_loss"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vgg_jax.training.checkpoints.dataclasses.asdict", lambda _: content)
        checkpoints.save(80, state, Progress(best_step=60))
        checkpoints.wait()
    progress = checkpoints.restore(shapes_of(state)).progress
    progress.observe(110, {"top1_error": 0.5, "loss": 0.1})
    assert progress.best_step == 60
    progress.observe(120, {"top1_error": 0.4, "loss": 0.2})
    assert (progress.best_step, progress.best_loss) == (120, 0.2)


def test_everything_comes_back_bit_for_bit(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    progress = Progress(1.5, 0.25, 2, {"top1_error": 0.25}, Plateau(0.25, 3, 1), {"log": {"loss": 2.0}})
    checkpoints.save(2, state, progress)
    checkpoints.wait()
    restored = Checkpoints(tmp_path).restore(shapes_of(state))
    assert (restored.step, restored.progress, restored.warnings) == (2, progress, [])
    assert_equal(restored.state, state)
    assert np.abs(restored.state.opt_state["momentum"].trace["fc6"]["kernel"]).max() > 0
    assert int(restored.state.step) == 2


def test_averages_of_an_earlier_version_are_read(tiny_config, tmp_path):
    """Versions before 0.6 wrote them into the optimizer's state, as opt_state/ema."""
    tiny_config.ema_decay, tiny_config.model.batch_norm = 0.9, True
    state = some_steps(tiny_config, 2, with_state=True)[1]
    opt_state = copy.copy(state.opt_state)
    opt_state["ema"] = state.averages
    old = dataclasses.replace(state, opt_state=opt_state, averages=None)
    for name, written in (("old", old), ("new", state)):
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(2, written, Progress(best_step=2))
        checkpoints.wait()
        restored = checkpoints.restore(shapes_of(state))
        checkpoints.close()
        assert (restored.step, restored.warnings) == (2, [])
        assert_equal(restored.state, state)
        assert_equal(load_variables(tmp_path / name)[1], jax.device_get(state.averages))
        assert_equal(load_variables(tmp_path / name, averages=False)[1], jax.device_get(state.variables))


def test_latest_and_best_are_kept(state, tmp_path):
    saved(tmp_path, state, 1, 2, 3, 4, 5, best=2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, other(state, 50), Progress(best_step=2))  # is there already, and stays
    checkpoints.wait()
    assert names(tmp_path) == ["2", "5"]
    path, variables = load_variables(tmp_path)
    assert path == tmp_path / "checkpoints" / "2"
    assert_equal(variables, {"params": other(state.params, 2)})
    assert_equal(load_variables(tmp_path / "checkpoints" / "5")[1]["params"], other(state.params, 5))


@pytest.mark.parametrize(
    ("best_then", "left"), [(2, ["2", "7"]), (7, ["7"]), (6, ["6", "7"])], ids=["worse", "better", "better, then worse"]
)
def test_the_best_is_kept_when_the_directory_is_opened_again(state, tmp_path, best_then, left):
    saved(tmp_path, state, 1, 2, 5, best=2)
    assert names(tmp_path) == ["2", "5"]
    saved(tmp_path, state, 6, 7, best=best_then)
    assert names(tmp_path) == left
    assert load_variables(tmp_path)[0].name == str(best_then)


def test_a_best_that_is_gone_is_said_with_those_that_are_there(state, tmp_path):
    saved(tmp_path, state, 2, 5, best=2)
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    with pytest.raises(
        UserError, match=r"the best checkpoint .*/2 is not there; there are 5: name one of them, as .*/5\."
    ):
        load_variables(tmp_path)
    with pytest.raises(UserError, match=r"the checkpoint .*/3 is not there; there are 5: name one"):
        load_variables(tmp_path / "checkpoints" / "3")


def test_memory_may_be_reused_while_a_checkpoint_is_written(state, tmp_path):
    kept = jax.tree.map(np.array, state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, Progress(best_step=1))
    overwrite = jax.jit(lambda tree: jax.tree.map(jnp.zeros_like, tree), donate_argnums=0)
    shapes = shapes_of(state)
    overwrite(state)
    checkpoints.wait()
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(shapes).state, kept)


def test_an_unfinished_write_is_no_checkpoint(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, Progress(best_step=1))
    checkpoints.wait()
    checkpoints.close()
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp")
    assert Checkpoints(tmp_path).steps() == [1]


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "removed": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": flipped,
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize(
    "damage", ["flipped", *(pytest.param(name, marks=pytest.mark.slow) for name in DAMAGES if name != "flipped")]
)
def test_a_checkpoint_damaged_in_any_of_its_files_is_never_used(state, tmp_path, damage):
    saved(tmp_path / "whole", state, 3, 5, best=3)
    newest = tmp_path / "whole" / "checkpoints" / "5"
    files = [path.relative_to(newest) for path in sorted(newest.rglob("*")) if path.is_file()]
    assert len(files) > 5
    fallen_back = 0
    for file in files:
        workdir = tmp_path / "damaged"
        shutil.copytree(tmp_path / "whole", workdir)
        DAMAGES[damage](workdir / "checkpoints" / "5" / file)
        # Either the damage does no harm, or the older one is used and the newer is named.
        restored = Checkpoints(workdir).restore(shapes_of(state))
        assert_equal(restored.state, other(state, restored.step))
        assert [sentence.split()[2] for sentence in restored.warnings] == [str(newest).replace("whole", "damaged")] * (
            restored.step == 3
        )
        assert names(workdir) == (["3", "5"] if restored.step == 5 else ["3", "5.damaged"])
        fallen_back += restored.step == 3
        saved(workdir, state, 5, best=3)  # the run continues to the same step, and is whole again
        assert Checkpoints(workdir).restore(shapes_of(state)).step == 5
        shutil.rmtree(workdir)
    assert fallen_back >= 3  # data, their manifest, the progress


@pytest.mark.parametrize("item", ["state", "progress"])
def test_an_emptied_checkpoint_is_told_in_words(state, tmp_path, item):
    saved(tmp_path, state, 1, best=1)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / item)
    with pytest.raises(UserError, match=rf"checkpoints/1 cannot be read: .*/{item}") as caught:
        load_variables(tmp_path)
    assert "NoneType" not in str(caught.value)
    assert first_line(KeyError("no x in <bound method Composite.keys of Composite({...})>.")) == "'no x in (keys).'."


def test_a_progress_of_another_kind_is_damage(state, tmp_path):
    saved(tmp_path, state, 1, best=1)
    (tmp_path / "checkpoints" / "1" / "progress" / "metadata").write_text("{}")
    load_variables(tmp_path)  # as of versions without checksums


def test_the_same_checkpoint_can_be_damaged_twice(state, tmp_path):
    saved(tmp_path, state, 3, 5, best=3)
    for aside in (["5.damaged"], ["5.damaged", "5.damaged-2"]):
        for path in (tmp_path / "checkpoints" / "5").glob("state/manifest*"):
            path.write_bytes(b"spoilt")
        restored = Checkpoints(tmp_path).restore(shapes_of(state))
        assert (restored.step, names(tmp_path)) == (3, ["3", *aside])
        assert f"is damaged and now called {aside[-1]}" in restored.warnings[0]
        saved(tmp_path, state, 5, best=3)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError("out of memory")])
def test_what_may_pass_by_itself_is_no_damage(state, tmp_path, monkeypatch, error):
    saved(tmp_path, state, 1, 2, best=1)

    def failing(_):
        raise error

    monkeypatch.setattr("vgg_jax.training.checkpoints._read_progress", failing)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(type(error), match=str(error.args[-1])):
        checkpoints.restore(shapes_of(state))
    checkpoints.close()
    with pytest.raises(type(error)):
        load_variables(tmp_path)
    assert names(tmp_path) == ["1", "2"]


def test_where_all_are_damaged_it_is_said_and_nothing_is_moved(state, tmp_path):
    saved(tmp_path, state, 3, 5, best=3)
    for path in (tmp_path / "checkpoints").glob("*/state/manifest*"):
        path.write_bytes(b"spoilt")
    match = re.escape(f"the checkpoint {tmp_path}/checkpoints/5 cannot be read, and there is no older one that can: ")
    with pytest.raises(UserError, match=match):
        Checkpoints(tmp_path).restore(shapes_of(state))
    with pytest.raises(UserError, match=re.escape(f"the checkpoint {tmp_path}/checkpoints/3 cannot be read")):
        load_variables(tmp_path)
    assert names(tmp_path) == ["3", "5"]


def test_a_damaged_best_gives_way_to_the_newest_sound_one(state, tmp_path, capsys):
    saved(tmp_path, state, 3, 5, best=3)
    for path in (tmp_path / "checkpoints" / "3" / "state").rglob("*"):
        if path.parent.name == "d":
            flipped(path)
    path, variables = load_variables(tmp_path)
    assert path.name == "5"
    assert_equal(variables["params"], other(state.params, 5))
    assert capsys.readouterr().err.startswith(f"WARNING: the checkpoint {tmp_path}/checkpoints/3 cannot be read: ")
    with pytest.raises(UserError, match="checkpoints/3 cannot be read"):
        load_variables(tmp_path / "checkpoints" / "3")


def test_an_older_versions_checkpoint_gives_its_parameters_but_cannot_be_continued(state, tmp_path):
    saved(tmp_path, state, 3, best=3)
    file = tmp_path / "checkpoints" / "3" / "progress" / "metadata"
    file.write_text(json.dumps({"best_step": 3, "best_top1_error": 0.5, "seconds": 1.0, "last": None, "window": {}}))
    with pytest.raises(UserError, match=r"checkpoints/3 was written by vgg_jax 0.2 or older .*init_from=.*/3\."):
        Checkpoints(tmp_path).restore(shapes_of(state))
    assert names(tmp_path) == ["3"]
    assert load_variables(tmp_path)[0].name == "3"


def test_model_state_comes_back_with_the_parameters(state, tmp_path):
    statistics = {"batch_stats": {"bn1_1": {"mean": jnp.arange(4.0), "var": jnp.ones(4)}}}
    state = dataclasses.replace(state, model_state=statistics)
    saved(tmp_path, state, 3, best=3)
    assert_equal(Checkpoints(tmp_path).restore(shapes_of(state)).state, other(state, 3))
    _, variables = load_variables(tmp_path)
    assert_equal(variables, other(state.variables, 3))
    digests = {params_sha256(state.params, tree) for tree in ({}, statistics, other(statistics, 2))}
    assert len(digests) == 3


def test_a_write_that_fails_says_what_is_kept(state, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, Progress(best_step=1))
    checkpoints.wait()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    # Orbax reports a write's failure when the next one begins, or at the end.
    for method, call in (
        ("save", lambda: checkpoints.save(2, state, Progress(best_step=1))),
        ("wait_until_finished", checkpoints.wait),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, method, full)
            with pytest.raises(
                UserError, match="No space left on device. Free some space .*; the last good one is .*/1."
            ):
                call()


@pytest.mark.parametrize("best", [1, 2])
def test_a_write_that_fails_in_the_background_is_told_without_another_one(state, tmp_path, best):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, Progress(best_step=1))
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the disk is full: a file of more bytes cannot be written
    try:
        checkpoints.save(2, state, Progress(best_step=best))
        until = time.monotonic() + 20
        with pytest.raises(UserError, match=f"could not be written .*; the last good one is {tmp_path}/checkpoints/1."):
            while time.monotonic() < until:
                checkpoints.check()
                time.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Checkpoints(tmp_path).restore(shapes_of(state)).step == 1


def test_starting_from_a_checkpoint(state, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state, Progress(best_step=7))
    checkpoints.wait()
    variables, report = start_from(read_donor(str(tmp_path)), other(state.variables, 3), np.zeros(3))
    assert_equal(variables, state.variables)
    assert report == f"all layers start from {tmp_path}/checkpoints/7"


def test_where_there_is_no_checkpoint_it_is_said(tmp_path):
    with pytest.raises(
        UserError, match="is neither a run's workdir, with checkpoints/ in it, nor a checkpoints/<step>"
    ):
        load_variables(tmp_path)
    with pytest.raises(UserError, match=r"config.init_from: .* is neither a run's workdir"):
        start_from(read_donor(str(tmp_path)), {}, np.zeros(3))
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="there is no finished checkpoint in"):
        load_variables(tmp_path)
    with pytest.raises(UserError, match="there is no finished checkpoint in"):
        load_variables(tmp_path / "checkpoints" / "3")
