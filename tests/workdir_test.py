"""A workdir holds one run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.refusals import refused
from vgg_jax.config import default_config, recipe_of
from vgg_jax.runtime import lock
from vgg_jax.training import workdir

DATA = {"name": "a/1", "class_names": ["x", "y"], "train_images": 3, "mean_rgb": [120.5, 110.25, 100.125]}
DIGESTS = {"train": "5f" * 32, "validation": "6a" * 32}


@pytest.fixture
def run(tmp_path):
    """A workdir with a checkpoint."""
    config = default_config()
    workdir.claim_workdir(tmp_path / "run", recipe_of(config), DATA)
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    return tmp_path / "run"


def test_the_same_run_may_go_on_and_for_longer(run):
    config = default_config()
    config.num_epochs, config.log_every_steps, config.data.dir = 100.0, 7, "/elsewhere"
    workdir.check_workdir(run, recipe_of(config))
    workdir.claim_workdir(run, recipe_of(config), {**DATA, "name": "b/1"})
    assert json.loads((run / "config.json").read_text())["num_epochs"] == 100.0


def test_a_run_of_version_0_5_is_the_same_and_its_file_keeps_its_form(run):
    """Its config.json has texts and no tuple; the default is a tuple now."""
    content = json.loads((run / "config.json").read_text())
    assert content["schedule"]["drop_epochs"] == "30,60"
    assert list(content) == sorted(content)
    content["schedule"]["drop_epochs"] = "60, 30"
    (run / "config.json").write_text(json.dumps(content))
    workdir.check_workdir(run, recipe_of(default_config()))
    config = default_config()
    config.schedule.drop_epochs = (30, 61)
    with refused("schedule.drop_epochs is '30,61', there it is '30,60'"):
        workdir.check_workdir(run, recipe_of(config))


def test_a_run_of_an_earlier_version_keeps_the_factors_of_its_normalisation(run):
    config = default_config()
    config.model.batch_norm, config.optimizer.lr_factors = True, "conv*=0"
    content = json.loads((run / "config.json").read_text())
    for follow, count in ((None, 1), (False, 1), (True, 0)):
        content["optimizer"]["norms_follow"] = follow
        if follow is None:  # version 0.4 did not have the key
            del content["optimizer"]["norms_follow"]
        (run / "config.json").write_text(json.dumps(content))
        continued, lines = workdir.continued_recipe(run, recipe_of(config))
        assert (continued.optimizer.norms_follow, len(lines)) == (bool(follow), count)
    assert config.optimizer.norms_follow
    assert workdir.continued_recipe(run / "none", recipe_of(config)) == (recipe_of(config), [])


def test_another_run_is_refused_and_nothing_is_changed(run):
    before = (run / "config.json").read_text()
    config = default_config()
    config.model.configuration, config.seed = "E", 3
    with refused(r"holds another run \(config.json\): model.configuration is 'E', there it is 'D'; seed is 3"):
        workdir.check_workdir(run, recipe_of(config))
    with refused(r"\(dataset.json\): train_images is 4, there it is 3"):
        workdir.claim_workdir(run, recipe_of(default_config()), {**DATA, "train_images": 4})
    assert (run / "config.json").read_text() == before


def test_other_images_are_refused_with_a_way_out(run):
    workdir.claim_workdir(
        run, recipe_of(default_config()), DATA | {"image_digests": DIGESTS}
    )  # of version 0.4, which had no digests
    assert json.loads((run / "dataset.json").read_text())["image_digests"] == DIGESTS
    workdir.claim_workdir(run, recipe_of(default_config()), DATA | {"name": "b/1", "image_digests": DIGESTS})
    others = DATA | {"image_digests": DIGESTS | {"validation": "7b" * 32}, "mean_rgb": [1.0, 2.0, 3.0]}
    with refused("the images of validation have changed") as caught:
        workdir.claim_workdir(run, recipe_of(default_config()), others)
    assert f"--config.init_from={run}." in str(caught.value)
    assert "120.5" not in str(caught.value)
    with refused(r"holds a run on other images \(dataset.json\): another mean_rgb\. "):
        workdir.claim_workdir(
            run, recipe_of(default_config()), DATA | {"image_digests": DIGESTS, "mean_rgb": [1.0, 2.0, 3.0]}
        )
    workdir.claim_workdir(
        run, recipe_of(default_config()), DATA | {"image_digests": DIGESTS, "mean_rgb": [120.50001, 110.25, 100.125]}
    )
    assert json.loads((run / "dataset.json").read_text())["image_digests"] == DIGESTS


def test_class_names_of_another_unicode_form_are_the_same(run):
    for name in ("caf\u00e9", "cafe\u0301"):  # version 0.4 wrote either
        (run / "dataset.json").write_text(json.dumps(DATA | {"class_names": ["x", name]}))
        workdir.claim_workdir(run, recipe_of(default_config()), DATA | {"class_names": ["x", "caf\u00e9"]})


def test_a_run_without_a_checkpoint_may_begin_anew_with_other_values(tmp_path):
    workdir.claim_workdir(tmp_path, recipe_of(default_config()), DATA)
    config = default_config()
    config.seed = 3
    workdir.check_workdir(tmp_path, recipe_of(config))


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with refused("holds files, but no config.json, so it is not a run's directory"):
        workdir.check_workdir(tmp_path, recipe_of(default_config()))


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with refused("file is a file; choose another --workdir"):
        workdir.check_workdir(tmp_path / "file" / "run", recipe_of(default_config()))
    with refused("no permission for"):
        workdir.check_workdir(tmp_path.__class__("/proc/1/run"), recipe_of(default_config()))
    assert not (tmp_path / "run").exists()


def test_a_bucket_is_no_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(r"--workdir=gs://bucket/run: a workdir is a directory; mount the bucket"):
        workdir.check_workdir(Path("gs://bucket/run"), recipe_of(default_config()))


def test_a_spoilt_config_is_named(run):
    (run / "config.json").write_text("{")
    with refused(r"config.json cannot be read"):
        workdir.check_workdir(run, recipe_of(default_config()))


def test_a_run_that_was_killed_in_its_first_moment_begins_anew(tmp_path):
    for name in ("dataset.json.unfinished", "config.json.0123abcd.unfinished"):
        (tmp_path / name).write_text('{"na')
    (tmp_path / "lock.json").write_text("")
    workdir.check_workdir(tmp_path, recipe_of(default_config()))
    (tmp_path / "dataset.json").write_text("{}")
    workdir.check_workdir(tmp_path, recipe_of(default_config()))


HOLDING = """
import sys, time
from pathlib import Path
from vgg_jax.runtime import lock
with lock.locked(Path(sys.argv[1]), print):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that runs in `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.wait()


def test_two_runs_in_one_workdir_are_refused_and_a_dead_one_is_replaced(tmp_path, holder):
    in_use = refused(f"is in use by process {holder.pid} on .*; stop that run first")
    with in_use, lock.locked(tmp_path, print):
        pass
    assert (tmp_path / "lock.json").exists()
    holder.kill()
    holder.wait()
    said = []
    with lock.locked(tmp_path, said.append) as check:
        check()
        assert json.loads((tmp_path / "lock.json").read_text())["process"] == os.getpid()
    assert len(said) == 1
    assert f"WARNING: process {holder.pid} on " in said[0]
    assert "has ended without releasing" in said[0]
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("no_kernel_locks", [False, True])
def test_a_run_on_another_machine_is_watched_for_signs_of_life(tmp_path, monkeypatch, no_kernel_locks):
    def unsupported(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lock.fcntl, "flock", unsupported)  # of another machine, a bucket's kernel knows nothing
    machines = iter(["one", "one" if no_kernel_locks else "other", "other"])
    monkeypatch.setattr(lock, "_machine", lambda: next(machines))
    said = []
    with lock.locked(tmp_path, said.append):
        with refused("is in use by process"), lock.locked(tmp_path, said.append):
            pass
        assert "waiting 0 s to see whether that run is alive" in said[0]
        left = (tmp_path / "lock.json").read_bytes()
    (tmp_path / "lock.json").write_bytes(left)  # as if it had been killed
    with lock.locked(tmp_path, said.append):
        assert "has ended without releasing" in said[-1]


def test_a_run_whose_workdir_was_taken_over_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    with lock.locked(tmp_path, print) as check:
        content = json.loads((tmp_path / "lock.json").read_text())
        other = json.dumps({**content, "id": "another", "process": 7, "host": "elsewhere"}).ljust(511) + "\n"
        with open(tmp_path / "lock.json", "r+") as file:
            file.write(other)
        until = time.monotonic() + 10
        with refused("was taken over by process 7 on elsewhere.*nothing that was saved is lost"):
            while time.monotonic() < until:
                check()
                time.sleep(0.01)
    assert (tmp_path / "lock.json").read_text() == other  # it is the other's now
