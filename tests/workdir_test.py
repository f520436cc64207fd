"""A workdir holds one run."""

import json
from pathlib import Path

import pytest

from vgg_jax import workdir
from vgg_jax.config import default_config
from vgg_jax.errors import UserError

DATA = {"name": "a/1", "class_names": ["x", "y"], "train_images": 3}


@pytest.fixture
def run(tmp_path):
    """A workdir with a checkpoint."""
    config = default_config()
    workdir.claim(tmp_path / "run", config, DATA)
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    return tmp_path / "run"


def test_the_same_run_may_go_on_and_for_longer(run):
    config = default_config()
    config.num_epochs, config.log_every_steps, config.data.dir = 100.0, 7, "/elsewhere"
    workdir.check(run, config)
    workdir.claim(run, config, {**DATA, "name": "b/1"})
    assert json.loads((run / "config.json").read_text())["num_epochs"] == 100.0


def test_another_run_is_refused_and_nothing_is_changed(run):
    before = (run / "config.json").read_text()
    config = default_config()
    config.model.configuration, config.seed = "E", 3
    with pytest.raises(
        UserError, match=r"holds another run \(config.json\): model.configuration is 'E', there it is 'D'; seed is 3"
    ):
        workdir.check(run, config)
    with pytest.raises(UserError, match=r"\(dataset.json\): train_images is 4, there it is 3"):
        workdir.claim(run, default_config(), {**DATA, "train_images": 4})
    assert (run / "config.json").read_text() == before


def test_a_run_without_a_checkpoint_may_begin_anew_with_other_values(tmp_path):
    workdir.claim(tmp_path, default_config(), DATA)
    config = default_config()
    config.seed = 3
    workdir.check(tmp_path, config)


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds files, but no config.json, so it is no run's directory"):
        workdir.check(tmp_path, default_config())


def test_a_workdir_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file; choose another --workdir"):
        workdir.check(tmp_path / "file" / "run", default_config())
    with pytest.raises(UserError, match="no permission for"):
        workdir.check(tmp_path.__class__("/proc/1/run"), default_config())
    assert not (tmp_path / "run").exists()


def test_a_bucket_is_no_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--workdir=gs://bucket/run: a workdir is a directory; mount the bucket"):
        workdir.check(Path("gs://bucket/run"), default_config())


def test_a_spoilt_config_is_named(run):
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        workdir.check(run, default_config())
