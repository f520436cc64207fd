"""One reader knows the files of a run, of this version and of earlier ones."""

import json
import math
import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from vgg_jax.config import default_config, recipe_of
from vgg_jax.evaluation.protocol import Request
from vgg_jax.runs import PlanDir, RunDir
from vgg_jax.runtime.exceptions import UserError


@pytest.fixture
def files(tmp_path):
    """The directory of a run that has written its configuration."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.write_config(recipe_of(default_config()))
    return run


def test_a_run_or_its_checkpoint_leads_to_the_run(tmp_path):
    for step in ("5", "40", "7.damaged", "9.orbax-checkpoint-tmp"):
        (tmp_path / "run" / "checkpoints" / step).mkdir(parents=True)
    run = RunDir.containing(tmp_path / "run")
    assert run == RunDir.containing(tmp_path / "run" / "checkpoints" / "5") == RunDir(tmp_path / "run")
    assert run.checkpoint_steps() == [5, 40]
    assert RunDir(tmp_path / "none").checkpoint_steps() == []
    # A workdir may have any name.
    (tmp_path / "checkpoints" / "3" / "checkpoints").mkdir(parents=True)
    assert RunDir.containing(tmp_path / "checkpoints" / "3").path == tmp_path / "checkpoints" / "3"


def test_a_configuration_of_an_earlier_version_is_completed(files):
    assert recipe_of(files.config()).given == recipe_of(default_config()).given
    content = json.loads(files.config_file.read_text())
    del content["optimizer"]["norms_follow"], content["augment"], content["data"]["exif"]
    files.config_file.write_text(json.dumps(content | {"of_a_later_version": 1}))
    config = files.config()
    assert config.optimizer.norms_follow is False
    assert config.augment == default_config().augment
    assert config.data.exif is False
    assert config.of_a_later_version == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"model": {"configuration": "A"}, "batch_size": 0}', "is not a run's configuration: config.batch_size is 0"),
        ('{"model": 3}', "is not a run's configuration: "),
        ("[]", "holds no JSON object, but list"),
        ("{}", "is not a run's configuration: model.configuration is missing"),
        ("{", r"cannot be read \(.*\); bring it back from a copy"),
    ],
)
def test_a_damaged_configuration_gets_one_sentence(files, content, sentence):
    files.config_file.write_text(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(files.config_file))} {sentence}"):
        files.config()


def test_a_summary_is_of_a_finished_run(files):
    assert files.summary() is None
    assert not files.is_finished()
    files.write_summary({"steps": 7, "seconds": 1.5})
    assert files.summary() == {"steps": 7, "seconds": 1.5}
    files.write_summary({"steps": -7, "seconds": 1.5})
    with pytest.raises(UserError, match="summary.json has 'steps' as -7"):
        files.summary()


def test_metrics_are_read_line_by_line(files):
    assert files.metrics() == ([], 0)
    lines = [b'{"step": 3, "loss": null}', b"\0\0", b'{"step": "3"}', b'{"step": %d}' % 10**30, b'{"step": 4}']
    files.metrics_file.write_bytes(b"\n".join(lines) + b'\n{"step": 5, "lo')
    rows, damaged = files.metrics()
    assert ([row["step"] for row in rows], damaged) == ([3, 4], 3)
    assert math.isnan(rows[0]["loss"])


def test_results_hold_any_request(files):
    """Every field of a request has its kind, so that a field that is added later is checked too."""
    request = Request(("run",), exif=True)._asdict()
    content = {"rows": [], "models": [], "data": {"name": "a/1", "split": "validation"}, "request": request}
    path = files.evaluation("7", "a") / "results-dense-default.json"
    path.parent.mkdir(parents=True)
    for key in request:
        path.write_text(json.dumps(content))
        assert files.evaluations() == ([(path, json.loads(path.read_text()))], [])
        path.write_text(json.dumps(content | {"request": request | {key: {"a": 1}}}))
        evaluations, notes = files.evaluations()
        assert evaluations == []
        assert f"has '{key}' as " in notes[0]


def test_a_plan_leads_to_its_runs(tmp_path):
    plan = PlanDir(tmp_path)
    assert not plan.is_plan()
    assert plan.tables() == {"tables": [], "missing": []}
    assert plan.run("D-256", 1).path == tmp_path / "seed1" / "D-256"
    stage = {"name": "A-73", "configuration": "A", "scales": [73, 73], "starts_from": ""}
    plan.plan_file.write_text(json.dumps({"seeds": [0], "stages": [stage]}))
    assert plan.plan()["stages"] == [stage]
    for spoilt in ({"configuration": "Z"}, {"scales": [73]}, {"scales": "x"}):
        plan.plan_file.write_text(json.dumps({"seeds": [0], "stages": [stage | spoilt]}))
        with pytest.raises(UserError, match="plan.json is not a plan of a reproduction"):
            plan.plan()


def test_reading_a_run_needs_neither_orbax_nor_optax():
    code = "import sys, vgg_jax.runs; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"orbax", "optax", "vgg_jax.reporting", "vgg_jax.evaluation"} & set(done.stdout.split())


def test_no_other_module_knows_where_a_run_keeps_its_files():
    names = re.compile(
        r'"(checkpoints|dataset\.json|summary\.json|metrics\.jsonl|tensorboard|plan\.json|tables\.json)"'
    )
    modules = [file for file in (REPOSITORY / "vgg_jax").rglob("*.py") if file.name != "runs.py"]
    knowing = [file.name for file in modules if names.search(file.read_text())]
    assert knowing == ["train.py"]  # `check_same({"checkpoints": ...})`, which is a word in a message
