"""Whole runs: killed and resumed is uninterrupted, signals save, what cannot continue says so."""

import contextlib
import gzip
import json
import math
import random
import re
import signal
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.command import as_flags, run_main, start_main
from tests.refusals import assert_refused, refused
from vgg_jax.config import recipe_of
from vgg_jax.data.sources import open_dataset
from vgg_jax.recipe import KEYS
from vgg_jax.runtime import lock
from vgg_jax.runtime.exceptions import Interrupted, UserError
from vgg_jax.runtime.sharding import make_mesh
from vgg_jax.training.checkpoints import load_variables
from vgg_jax.training.metrics import TrainMetrics
from vgg_jax.training.train import train
from vgg_jax.training.workdir import claim_workdir

QUICKSTART = "--config=configs/quickstart.py"


def flags(config, workdir):
    return QUICKSTART, f"--workdir={workdir}", *as_flags(config)


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def longer(tiny_config):
    """203 steps, a checkpoint every 4 and a line at each: time enough to be killed at any of the first 100."""
    tiny_config.num_epochs = 18.0
    tiny_config.log_every_steps = 1
    return tiny_config


def wait_for_step(process, workdir, step):
    path = workdir / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_text().count("train/loss") >= step:
            return
        time.sleep(0.02)


def assert_ends_with_advice(out, workdir):
    """Checks that the last line names what comes next, or says that the run has learnt nothing."""
    last, result = out.rstrip().splitlines()[-1], summary(workdir)
    if result["final_train_loss"] < 0.99 * math.log(3):
        assert last == f"next: vgg-jax report {workdir}; vgg-jax predict --workdir={workdir} IMAGE"
    else:
        assert last.startswith("WARNING: the run ends with a training loss of ")


def test_a_run_leaves_the_promised_files(tiny_config, tmp_path):
    status, out, err = run_main(*flags(tiny_config, tmp_path / "run"))
    assert (status, err) == (0, "")
    for promised in (
        "VGG A on",
        "90 training and 31 validation images, 3 classes",
        "conv1_1/kernel",
        "memory a device",
        "first step after",
    ):
        assert promised in out
    for promised in (
        "tensorboard --logdir",
        "finished at the end of the epochs: 34 steps, 3.02 epochs",
        "checkpoint: ",
    ):
        assert promised in out
    assert_ends_with_advice(out, tmp_path / "run")
    run = tmp_path / "run"
    before = summary(run)
    assert {"steps", "epochs", "seconds", "lr_drops", "best_top1_error", "final_top1_error", "params_sha256"} <= set(
        before
    )
    assert before["steps"] == 34  # ceil(3 * 90 / 8)
    assert before["starts"] == 1
    assert 0 < before["startup_seconds"] < before["seconds"]
    lines = metrics(run)
    assert [line["step"] for line in lines if "val/loss" in line] == [12, 23, 34]  # ends of epochs of 11.25 steps
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == [5, 10, 15, 20, 25, 30]
    blocks = [*(f"block{i}" for i in range(1, 6)), "fc6", "fc7", "fc8"]
    names = ["loss", "top1_error", "top5_error", "lr", "images_per_second", "input_wait"]
    names += [f"{norm}/{block}" for norm in ("gradient_norm", "update_ratio") for block in blocks]
    assert set(training[0]) == {"step"} | {f"train/{name}" for name in names}
    best = min(line["val/top1_error"] for line in lines if "val/loss" in line)
    assert before["best_top1_error"] == best
    assert 0 <= before["final_top1_error"] * 31 == pytest.approx(round(before["final_top1_error"] * 31))
    assert json.loads((run / "config.json").read_text())["batch_size"] == 8
    assert json.loads((run / "dataset.json").read_text())["class_names"] == ["arrow", "crescent", "cross"]
    assert list((run / "tensorboard").iterdir())
    assert (run / "checkpoints" / "34").is_dir()

    # The same command once more finds it finished; another configuration is turned away; neither changes anything.
    status, out, _ = run_main(*flags(tiny_config, run))
    assert status == 0
    assert "continuing from" in out
    assert summary(run) == before
    tiny_config.seed = 5
    assert_refused(run_main(*flags(tiny_config, run)), "holds another run (config.json): seed is 5, there it is 0")
    assert summary(run) == before


@pytest.mark.slow
def test_few_images_are_trained_on_for_the_least_number_of_steps_and_again_after_a_stop(tiny_config, tmp_path):
    tiny_config.num_epochs, tiny_config.min_epoch_steps, tiny_config.schedule.name = 2.0, 20, "cosine"
    tiny_config.log_every_steps = 1
    process = start_main(*flags(tiny_config, tmp_path / "run"))
    wait_for_step(process, tmp_path / "run", 25)
    process.kill()
    process.communicate()
    status, out, err = run_main(*flags(tiny_config, tmp_path / "run"))
    assert (status, err) == (0, "")
    assert "at most 2 epochs of 20 steps" in out
    assert "finished at the end of the epochs: 40 steps, 2.00 epochs" in out
    assert [line["step"] for line in metrics(tmp_path / "run") if "val/loss" in line] == [20, 40]
    rates = [line["train/lr"] for line in metrics(tmp_path / "run") if "train/lr" in line]
    assert rates[0] == pytest.approx(tiny_config.optimizer.learning_rate)
    assert rates[-1] < 0.01 * rates[0]


@pytest.mark.slow
def test_eight_devices_train_as_one(tiny_config, tmp_path):
    for devices in (1, 8):
        assert run_main(*flags(tiny_config, tmp_path / str(devices)), devices=devices)[0] == 0
    single, eight = (
        [line["train/loss"] for line in metrics(tmp_path / str(n)) if "train/loss" in line] for n in (1, 8)
    )
    assert eight == pytest.approx(single, rel=1e-4)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_is_uninterrupted(longer, tmp_path):
    assert run_main(*flags(longer, tmp_path / "whole"))[0] == 0
    expected = summary(tmp_path / "whole")
    rng = random.Random()
    for i in range(3):
        workdir, step = tmp_path / f"killed{i}", rng.randint(1, 100)
        process = start_main(*flags(longer, workdir))
        wait_for_step(process, workdir, step)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"ended before it was killed at step {step}"
        assert not (workdir / "summary.json").exists()
        status, _, err = run_main(*flags(longer, workdir))
        assert status == 0, err
        result = summary(workdir)
        assert result["params_sha256"] == expected["params_sha256"], f"killed at step {step}"
        for name in ("steps", "lr_drops", "best_top1_error", "final_top1_error", "best_step"):
            assert result[name] == expected[name], name
        steps = [line["step"] for line in metrics(workdir) if "train/loss" in line]
        assert steps == list(range(1, result["steps"] + 1))  # no step is missing, none stands there twice
        assert load_variables(workdir)[0] == workdir / "checkpoints" / str(result["best_step"])
    longer.seed = 1
    assert run_main(*flags(longer, tmp_path / "other"))[0] == 0
    assert summary(tmp_path / "other")["params_sha256"] != expected["params_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_says_how_to_continue(longer, tmp_path, number):
    process = start_main(*flags(longer, tmp_path / "run"))
    wait_for_step(process, tmp_path / "run", 7)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name} after step" in err
    assert "Give the same command again to continue" in err
    assert "Traceback" not in err
    last = max(line["step"] for line in metrics(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / str(last)).is_dir()  # the very step, not the last regular one
    if number == signal.SIGTERM:  # a whole run more, so for one of them
        status, out, _ = run_main(*flags(longer, tmp_path / "run"))
        assert status == 0
        assert f"continuing from {tmp_path}/run/checkpoints/{last}" in out


def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(tiny_config, tmp_path):
    tiny_config.checkpoint_every_steps = 1
    tiny_config.optimizer.learning_rate = 1e6
    status, _, err = run_main(*flags(tiny_config, tmp_path / "run"))
    assert status == 2
    assert "training has diverged: at step" in err
    assert "--config.optimizer.learning_rate=100000)" in err
    bad = int(err.split("at step ")[1].split()[0])
    steps = [int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")]
    assert all(step < bad for step in steps)


def test_a_validation_that_is_not_finite_replaces_nothing(tiny_config, tmp_path, monkeypatch):
    tiny_config.eval_every_epochs, tiny_config.checkpoint_every_steps = 0.2, 0
    losses = iter([1.1, math.nan])
    monkeypatch.setattr(
        "vgg_jax.training.train.evaluate", lambda *_: {"top1_error": 0.5, "top5_error": 0.0, "loss": next(losses)}
    )
    with refused(r"has diverged: at step 5 the validation loss is nan\..*; in a new --workdir"):
        train(tiny_config, tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["3"]
    assert [line["val/loss"] for line in metrics(tmp_path / "run") if "val/loss" in line] == [1.1]
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_a_weight_decay_that_explodes_is_divergence_and_leaves_json(tiny_config, tmp_path):
    tiny_config.num_epochs, tiny_config.log_every_steps, tiny_config.checkpoint_every_steps = 1.0, 1, 0
    tiny_config.optimizer.update({"name": "adamw", "l2": 1.0, "learning_rate": 100.0})
    with refused("has diverged: at step"):
        train(tiny_config, tmp_path / "run", quiet=True)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


@pytest.mark.slow
def test_guessing_is_noticed_and_explained(tiny_config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vgg_jax.training.diagnostics.STEPS_TO_LEAVE_CHANCE", 10)
    tiny_config.num_epochs = 1.0
    tiny_config.model.init = "std001"
    tiny_config.optimizer.learning_rate = 1e-6
    train(tiny_config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "the loss is still 1.0986, which is guessing (ln 3 = 1.0986)" in out
    assert "--config.init_from=DIR" in out


@pytest.mark.slow
def test_a_run_of_a_deeper_net_starts_from_net_a_with_frozen_layers(tiny_config, tmp_path, capsys):
    tiny_config.num_epochs = 0.5
    train(tiny_config, tmp_path / "a", quiet=True)
    tiny_config.model.configuration = "B"
    tiny_config.init_from, tiny_config.optimizer.lr_factors = str(tmp_path / "a"), "conv*=0"
    train(tiny_config, tmp_path / "b")
    assert (
        "conv1_1, conv2_1, conv3_1, conv3_2, fc6, fc7, fc8\nrandom: conv1_2, conv2_2, conv4_1"
        in capsys.readouterr().out
    )
    a, b = (load_variables(tmp_path / name)[1]["params"] for name in "ab")
    for layer in ("conv1_1", "conv2_1", "conv3_1", "conv3_2"):  # frozen: still net A's, to the last bit
        np.testing.assert_array_equal(b[layer]["kernel"], a[layer]["kernel"])
    assert (b["fc6"]["kernel"] != a["fc6"]["kernel"]).any()
    line = [line for line in metrics(tmp_path / "b") if "train/loss" in line][-1]
    assert line["train/update_ratio/block1"] == line["train/gradient_norm/block5"] == 0 < line["train/update_ratio/fc6"]


@pytest.mark.slow
def test_starting_from_another_run(tiny_config, tmp_path, capsys):
    tiny_config.num_epochs = 1.0
    train(tiny_config, tmp_path / "first", quiet=True)
    tiny_config.init_from = str(tmp_path / "first")
    tiny_config.optimizer.learning_rate = 1e-12
    train(tiny_config, tmp_path / "second")
    assert "all layers start from" in capsys.readouterr().out
    first, second = (summary(tmp_path / name) for name in ("first", "second"))
    assert second["final_loss"] == pytest.approx(first["final_loss"], rel=1e-4)
    assert second["steps"] == first["steps"]


@pytest.mark.slow
def test_a_wrong_start_is_found_before_anything_is_packed(tiny_config, tmp_path, capsys):
    tiny_config.data.dir = str(tmp_path / "data")
    tiny_config.init_from = str(tmp_path / "nothing")
    with refused(r"config.init_from: .*nothing is neither a run's workdir"):
        train(tiny_config, tmp_path / "run")
    tiny_config.init_from = ""
    other = tiny_config.copy_and_resolve_references()
    other.model.fc_width, other.num_epochs, other.data.dir = 8, 0.1, str(tmp_path / "other")
    train(other, tmp_path / "first", quiet=True)
    capsys.readouterr()
    tiny_config.init_from = str(tmp_path / "first")
    with refused(r"does not fit: fc6/kernel is \[1, 1, 32, 8\] there and \[1, 1, 32, 16\] here"):
        train(tiny_config, tmp_path / "run")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_shorter_than_its_checkpoint_is_refused(tiny_config, tmp_path):
    tiny_config.num_epochs = 1.0
    train(tiny_config, tmp_path / "run", quiet=True)
    tiny_config.num_epochs = 0.5
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    with refused(r"config.num_epochs=0.5 ends at step 6, .* already at step 12"):
        train(tiny_config, tmp_path / "run", quiet=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    tiny_config.num_epochs = 2.0  # longer is fine
    assert train(tiny_config, tmp_path / "run", quiet=True)["steps"] == 23


@pytest.mark.parametrize(
    ("seed", "step", "sentence"),
    [
        (7, 3, "holds another run (config.json): seed is 0, there it is 7"),
        (0, 900, "is already at step 900; give at least"),
    ],
)
def test_what_another_start_made_before_the_lock_was_there_counts(
    tiny_config, tmp_path, monkeypatch, seed, step, sentence
):
    theirs = tiny_config.copy_and_resolve_references()
    theirs.seed = seed

    @contextlib.contextmanager
    def locked_late(directory, say):
        claim_workdir(directory, recipe_of(theirs), open_dataset(recipe_of(theirs)).description())
        (directory / "checkpoints" / str(step)).mkdir(parents=True)
        with locked(directory, say) as check:
            yield check

    locked = lock.locked
    monkeypatch.setattr("vgg_jax.runtime.lock.locked", locked_late)
    with refused(re.escape(sentence)):
        train(tiny_config, tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == seed


def test_processes_with_other_images_are_told_before_anything_is_compiled_or_written(
    tiny_config, tmp_path, monkeypatch
):
    facts = {}

    def check_same(of_this):
        facts.update(of_this)
        if "train_images" in facts:
            raise UserError("not alike")

    monkeypatch.setattr("vgg_jax.training.train.distributed.check_same", check_same)
    monkeypatch.setattr("vgg_jax.training.train._compile", lambda _: pytest.fail("compiled"))
    with refused("not alike"):
        train(tiny_config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    assert re.fullmatch("[0-9a-f]{8}", facts["the images' colours"])
    assert not [name for name, value in facts.items() if isinstance(value, list) and not isinstance(value[0], str)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "few_params", [pytest.param(1e7, marks=pytest.mark.every_python, id="one step"), pytest.param(0, id="two steps")]
)
def test_metrics_of_a_resumed_run_are_those_of_an_uninterrupted_one(tiny_config, tmp_path, monkeypatch, few_params):
    monkeypatch.setattr("vgg_jax.training.steps._FEW_PARAMS", few_params)
    tiny_config.num_epochs = 2.0
    train(tiny_config, tmp_path / "whole", quiet=True)
    tiny_config.num_epochs = 8 / 11.25  # ends between two log lines
    assert train(tiny_config, tmp_path / "run", quiet=True)["steps"] == 8
    tiny_config.num_epochs = 2.0
    train(tiny_config, tmp_path / "run", quiet=True)
    rows = [[line for line in metrics(tmp_path / name) if "train/loss" in line] for name in ("whole", "run")]
    for line in (line for lines in rows for line in lines):
        del line["train/images_per_second"], line["train/input_wait"]
    assert rows[0] == rows[1]
    assert [line["step"] for line in rows[1]] == [5, 10, 15, 20]


@pytest.mark.parametrize("bad", ["loss", "parameter"])
def test_values_that_are_not_finite_are_noticed_before_they_are_saved(tiny_config, bad):
    console = SimpleNamespace(progress=lambda *_: None)
    window = TrainMetrics(recipe_of(tiny_config), 11.25, 34, SimpleNamespace(), console, None)
    loss = math.nan if bad == "loss" else 1.5
    window.add(3, {"loss": jnp.float32(loss), "top1_error": 0.5, "top5_error": 0.0, "lr": 1e-3})
    bias = [0.0, 1.0 if bad == "loss" else -math.inf]  # such a unit is dead, and the loss does not show it
    with refused(f"training has diverged: at step 3 the loss is {loss:.4g}[.,]"):
        window.flush({"conv1_1": {"bias": jnp.array(bias)}})


def test_a_narrow_terminal_shows_the_time_left(tiny_config):
    lines = []
    console = SimpleNamespace(progress=lambda _, line: lines.append(line), log=lambda _: None, print=lambda _: None)
    window = TrainMetrics(recipe_of(tiny_config), 11.25, 34, SimpleNamespace(write=lambda *_: None), console, None)
    for step in range(1, 8):
        window.add(
            step,
            {"loss": 1.5, "top1_error": 0.5, "top5_error": 0.0, "lr": 1e-3, "update_ratio/fc6": 1e-3 * step},
        )
    assert window.sums()["norms"] == {"update_ratio/fc6": 5e-3}  # of the step that is logged; no other is fetched
    assert len(lines) == 6
    for line in lines:
        assert re.match(r"at most \d+ s left \| epoch ", line)


@pytest.mark.slow
def test_a_short_run_has_metrics_and_top5_error_counts_from_six_classes(tiny_config, tmp_path, capsys):
    tiny_config.num_epochs, tiny_config.log_every_steps = 1.0, 100
    train(tiny_config, tmp_path / "run")
    assert [line["step"] for line in metrics(tmp_path / "run") if "train/loss" in line] == [11]
    out = capsys.readouterr().out
    assert "validation top-1 error" in out
    assert "top-5" not in out  # three classes


@pytest.mark.slow
def test_a_lengthened_run_keeps_its_best_checkpoint(tiny_config, tmp_path, monkeypatch):
    results = iter([(0.5, 1.1), (0.7, 1.0), (0.6, 1.0), (0.5, 1.6), (0.4, 1.0)])
    monkeypatch.setattr(
        "vgg_jax.training.train.evaluate",
        lambda *_: dict(zip(("top1_error", "loss"), next(results), strict=True), top5_error=0.0),
    )
    best = []
    for epochs in (1.0, 2.0, 4.0, 5.0):  # each opens the workdir again
        tiny_config.num_epochs = epochs
        result = train(tiny_config, tmp_path / "run", quiet=True)
        directory, _ = load_variables(tmp_path / "run")
        assert str(directory) == result["best_checkpoint"]
        best.append((result["best_top1_error"], result["best_step"]))
    assert best == [(0.5, 12), (0.5, 12), (0.5, 12), (0.4, 57)]
    assert result["starts"] == 4


@pytest.mark.slow
def test_a_run_ends_as_ever_where_events_cannot_be_written(tiny_config, tmp_path, monkeypatch, capsys):
    tiny_config.num_epochs, tiny_config.log_every_steps = 1.0, 1
    expected = train(tiny_config, tmp_path / "expected", quiet=True)
    monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda _: open("/dev/full", "wb"))
    assert train(tiny_config, tmp_path / "run")["params_sha256"] == expected["params_sha256"]
    assert capsys.readouterr().out.count("No space left on device; training continues") == 1
    assert [line["step"] for line in metrics(tmp_path / "run")] == [*range(1, 12), 12, 12]


@pytest.mark.slow
@pytest.mark.usefixtures("fully_optimised")
def test_real_photographs_are_learnt(tiny_config, real_images, tmp_path):
    root = real_images / "imagenette-5k"
    if not root.is_dir():
        pytest.skip(f"no imagenette-5k in {real_images}")
    tiny_config.data.root, tiny_config.data.val_split, tiny_config.model.num_classes = str(root), "val", 10
    tiny_config.data.dir = str(tmp_path / "data")
    tiny_config.model.width_multiplier, tiny_config.model.fc_width = 0.25, 128
    tiny_config.model.dropout_rate = 0.1
    tiny_config.image.crop, tiny_config.image.scale_min, tiny_config.image.scale_max = 48, 55, 55
    tiny_config.batch_size, tiny_config.num_epochs, tiny_config.optimizer.learning_rate = 32, 3.0, 1e-2
    tiny_config.checkpoint_every_steps, tiny_config.log_every_steps = 0, 50
    status, _, err = run_main(*flags(tiny_config, tmp_path / "run"))
    assert status == 0, err
    assert summary(tmp_path / "run")["best_top1_error"] < 0.8  # guessing is 0.9


@pytest.mark.slow
def test_a_run_that_ends_where_it_was_stopped_is_evaluated_there(tiny_config, tmp_path, monkeypatch):
    tiny_config.num_epochs, tiny_config.plateau.patience = 2.0, 1
    with monkeypatch.context() as patch:
        patch.setattr(
            "vgg_jax.runtime.distributed.Stop.after", lambda _, step: step == 15
        )  # epochs end after 12 and 23
        patch.setattr("vgg_jax.runtime.distributed.Stop.signum", signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(tiny_config, tmp_path / "run", quiet=True)
    tiny_config.num_epochs = 15 / 11.25
    ended = train(tiny_config, tmp_path / "run", quiet=True)
    last = metrics(tmp_path / "run")[-1]
    assert (ended["steps"], last["step"]) == (15, 15)
    assert ended["final_loss"] == last["val/loss"]
    # What is evaluated between epochs does not count as a sign of a plateau.
    tiny_config.num_epochs = 2.0
    train(tiny_config, tmp_path / "whole", quiet=True)
    tiny_config.num_epochs = 17 / 11.25
    train(tiny_config, tmp_path / "in parts", quiet=True)
    tiny_config.num_epochs = 2.0
    train(tiny_config, tmp_path / "in parts", quiet=True)
    plateaus = [
        json.loads(next((tmp_path / name).glob("checkpoints/23/progress/metadata")).read_text())["plateau"]
        for name in ("whole", "in parts")
    ]
    assert plateaus[0] == plateaus[1]


EXTREMES = [
    (key, bound)
    for key, limits in KEYS.items()
    if limits.least > -math.inf
    for bound in dict.fromkeys((limits.least, limits.greatest))
]


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), EXTREMES)
def test_the_ends_of_every_range_run_or_are_refused_in_a_sentence(tiny_config, tmp_path, monkeypatch, key, value):
    monkeypatch.setattr("vgg_jax.runtime.distributed.Stop.after", lambda _, step: step >= 2)
    monkeypatch.setattr("vgg_jax.runtime.distributed.Stop.signum", signal.SIGTERM)
    if key not in ("batch_size", "model_parallel"):  # one device compiles and saves faster
        monkeypatch.setattr("vgg_jax.training.train.make_mesh", lambda _: make_mesh(devices=jax.devices()[:1]))
    if key == "image.scale_max":
        tiny_config.image.scale_min = 32
    section, _, name = key.rpartition(".")
    (tiny_config[section] if section else tiny_config)[name] = value
    ended: Exception | None = None
    try:
        train(tiny_config, tmp_path / "run", quiet=True)
    except (Interrupted, UserError) as error:
        ended = error
    if isinstance(ended, Interrupted):
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
    elif ended:
        assert "\n" not in str(ended)
        assert len(str(ended)) < 600


@pytest.mark.slow
def test_some_steps_are_traced_for_tensorboard_and_perfetto(tiny_config, tmp_path, capsys):
    tiny_config.num_epochs, tiny_config.profile_steps = 0.5, "(3, 4)"
    traced = train(tiny_config, tmp_path / "run")
    directory = tmp_path / "run" / "tensorboard"
    assert f"traced steps 3 to 4: tensorboard --logdir {directory}" in capsys.readouterr().out
    (written,) = directory.glob("plugins/profile/*/perfetto_trace.json.gz")
    assert any(
        "dot" in event.get("name", "") for event in json.loads(gzip.decompress(written.read_bytes()))["traceEvents"]
    )
    assert list(written.parent.glob("*.xplane.pb"))
    tiny_config.profile_steps = ""
    assert train(tiny_config, tmp_path / "other", quiet=True)["params_sha256"] == traced["params_sha256"]
