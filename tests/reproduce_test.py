"""The plan of the paper's models: its graph, its lengths, running and going on, and the tables it fills."""

import json
import math
import re

import numpy as np
import pytest

from configs import paper as paper_file
from tests.command import as_flags, help_of, run_command
from tests.runs import make_run
from vgg_jax.config import flatten, paper_config, recipe_of, scaled_length
from vgg_jax.data.sources import open_dataset
from vgg_jax.reproduction.runner import plan_text, planned_runs, train_runs, write_plan
from vgg_jax.reproduction.stages import STAGES, SUBMISSION, Stage, chosen_stages, split_config, stage_config
from vgg_jax.reproduction.tables import TABLES, as_text, fill_tables, write_tables
from vgg_jax.runtime.exceptions import UserError


def plan_of(config, seeds=1):
    """The tiny model's, with epochs that end after a few steps."""
    whole = paper_file.get_config("crop=32")
    shared = config.copy_and_resolve_references()
    shared.num_epochs, shared.checkpoint_every_steps = 0.3, 0
    whole.plan.seeds, whole.plan.later_epochs = seeds, 0.2
    return shared, whole.plan


def test_the_graph_is_the_papers():
    by_name = {stage.name: stage for stage in STAGES}
    for i, stage in enumerate(STAGES):  # every start comes before what starts from it
        assert not stage.starts_from or stage.starts_from in {earlier.name for earlier in STAGES[:i]}
    for model in "BCDE":  # Paper §3.1: A's layers
        assert by_name[f"{model}-256"].starts_from == "A-256"
    for model in "CDE":  # S = 384 from S = 256, jitter from S = 384, each of the same configuration
        assert by_name[f"{model}-384"] == Stage(f"{model}-384", model, (384, 384), f"{model}-256")
        assert by_name[f"{model}-jitter"] == Stage(f"{model}-jitter", model, (256, 512), f"{model}-384")
    assert {name: by_name[name].configuration for name in ("A-256", "A-LRN-256")} == {
        "A-256": "A",
        "A-LRN-256": "A-LRN",
    }
    assert len(SUBMISSION) == 7
    assert set(SUBMISSION) <= set(by_name)
    assert by_name["D-jitter-fc"].overrides == {"optimizer.lr_factors": "conv*=0"}  # Paper §4.4


@pytest.mark.parametrize(
    ("crop", "wanted"),
    [(224, (256, 384, 512, 32)), (64, (73, 110, 146, 9)), (32, (37, 55, 73, 5)), (112, (128, 192, 256, 16))],
)
def test_lengths_follow_the_crop(crop, wanted):
    assert tuple(scaled_length(length, crop) for length in (256, 384, 512, 32)) == wanted


def test_at_crop_224_a_stage_is_the_configuration_file_of_its_net(tmp_path):
    shared, plan = split_config(paper_file.get_config())
    for name, configuration, argument in (("D-256", "D", None), ("E-384", "E", "S=384"), ("C-jitter", "C", "S=jitter")):
        (stage,) = (stage for stage in STAGES if stage.name == name)
        found = flatten(stage_config(shared, plan, stage, tmp_path, 0))
        wanted = flatten(paper_config(configuration, argument))
        theirs = {"init_from", "start_required", "num_epochs", "plateau.max_drops"}
        assert {key for key in wanted if found[key] != wanted[key]} <= theirs
        assert found["init_from"] == str(tmp_path / "seed0" / stage.starts_from)
    assert stage_config(shared, plan, STAGES[0], tmp_path, 2).seed == 2


def test_stages_have_values_of_their_own(tmp_path):
    config = paper_file.get_config("crop=64")
    with config.unlocked():
        config.plan.stages = {"E-*": {"optimizer": {"learning_rate": 1e-3}}, "E-384": {"num_epochs": 3.0}}
        config.plan.stages["D-256"] = {"schedule": {"drop_epochs": "1,2"}}  # or a tuple
    shared, plan = split_config(config)
    found = {stage.name: stage_config(shared, plan, stage, tmp_path, 0) for stage in STAGES}
    assert [found[name].optimizer.learning_rate for name in ("D-256", "E-256", "E-384")] == [1e-2, 1e-3, 1e-3]
    assert recipe_of(found["D-256"]).schedule.drop_epochs == (1.0, 2.0)
    assert [found[name].num_epochs for name in ("E-256", "E-384", "D-384")] == [74.0, 3.0, 20.0]
    with config.unlocked():
        config.plan.stages = {"E-*": {"optimizer": {"learning_rat": 1e-3}}}
    shared, plan = split_config(config)
    with pytest.raises(
        UserError, match=r"E-256 a value of optimizer.learning_rat, .* Did you mean 'optimizer.learning_rate'"
    ):
        stage_config(shared, plan, next(s for s in STAGES if s.name == "E-256"), tmp_path, 0)


def test_a_part_is_chosen_by_net_with_its_starts_or_by_stage_alone():
    assert [s.name for s in chosen_stages(STAGES, ["D"])] == ["A-256", "D-256", "D-384", "D-jitter", "D-jitter-fc"]
    assert [s.name for s in chosen_stages(STAGES, [], ["D-384"])] == ["D-384"]
    assert chosen_stages(STAGES) == list(STAGES)
    with pytest.raises(UserError, match=r"--stages=D-385: .* Did you mean 'D-384'"):
        chosen_stages(STAGES, [], ["D-385"])


def test_a_start_must_be_planned_or_finished(tiny_config, tmp_path):
    shared, plan = plan_of(tiny_config)
    with pytest.raises(
        UserError, match=r"D-384 starts from D-256, and there is no finished run in .*--stages=D-256,D-384"
    ):
        planned_runs(chosen_stages(STAGES, [], ["D-384"]), shared, plan, tmp_path, STAGES)
    lost = Stage("D-512", "D", (512, 512), "D-400")
    with pytest.raises(UserError, match="D-512 starts from D-400.*the plan has no such stage"):
        planned_runs([lost], shared, plan, tmp_path, STAGES)


def finished(directory, config, plan, name, seed, errors_by=0):
    """What a finished stage leaves, with random weights."""
    (stage,) = (stage for stage in STAGES if stage.name == name)
    its = stage_config(config, plan, stage, directory, seed)
    workdir = make_run(directory / f"seed{seed}" / name, its, seed + errors_by)
    (workdir / "summary.json").write_text(json.dumps({"steps": 7, "seconds": 90.0}))
    return workdir


def test_a_run_of_another_shape_or_data_does_not_stand_for_a_stage(tiny_config, tmp_path):
    shared, plan = plan_of(tiny_config)
    finished(tmp_path, shared, plan, "A-256", 0)
    stages = chosen_stages(STAGES, [], ["A-256"])
    (step,) = planned_runs(stages, shared, plan, tmp_path, STAGES)
    assert (step.summary["steps"], step.steps) == (7, 7)
    shared.optimizer.learning_rate = 1e-4  # how it was trained is its own
    assert planned_runs(stages, shared, plan, tmp_path, STAGES)[0].summary
    shared.model.batch_norm = True
    with pytest.raises(UserError, match="model.batch_norm is True, there it is False"):
        planned_runs(stages, shared, plan, tmp_path, STAGES)
    shared.model.batch_norm, shared.model.fc_width = False, 8
    with pytest.raises(
        UserError, match=r"holds a run that is not stage A-256 of this plan: model.fc_width is 8, there it is 16"
    ):
        planned_runs(stages, shared, plan, tmp_path, STAGES)


def test_a_finished_run_on_other_images_does_not_stand_for_a_stage(tiny_config, tmp_path):
    shared, plan = plan_of(tiny_config)
    workdir = finished(tmp_path, shared, plan, "A-256", 0)
    steps = planned_runs(chosen_stages(STAGES, [], ["A-256"]), shared, plan, tmp_path, STAGES)
    description = open_dataset(steps[0].recipe).description()
    (workdir / "dataset.json").write_text(json.dumps(description | {"name": "prepared elsewhere"}))
    train_runs(steps)
    (workdir / "dataset.json").write_text(json.dumps(description | {"train_images": 91}))
    with pytest.raises(UserError, match=r"on other images \(dataset.json\): train_images is 90, there it is 91"):
        train_runs(steps)
    shared.data.name, shared.data.root = "folder", str(tmp_path / "gone")
    steps = [step._replace(config=shared, recipe=recipe_of(shared)) for step in steps]
    train_runs(steps)  # tables are made without the images


def test_the_plan_is_described_with_steps_and_known_times(tiny_config, tmp_path):
    shared, plan = plan_of(tiny_config, seeds=2)
    finished(tmp_path, shared, plan, "A-256", 0)
    text = plan_text(planned_runs(chosen_stages(STAGES, ["B"]), shared, plan, tmp_path, STAGES))
    steps = math.ceil(0.3 * 90 / 8)
    assert re.search(
        rf"seed0/A-256 +A +37 +random +0.001 +0.3 epochs, {steps} steps +finished: 7 steps, 1 min 30 s", text
    )
    assert re.search(r"seed0/B-256 +B +37 +A-256 .* not begun\n", text)
    assert re.search(r"seed1/A-256 .* not begun, about 1 min 30 s by the other seeds", text)
    assert text.endswith("1 of 4 runs finished; about 1 min 30 s left and what no finished run tells yet")


def test_a_directory_belongs_to_one_plan(tiny_config, tmp_path):
    shared, plan = plan_of(tiny_config)
    steps = planned_runs(STAGES, shared, plan, tmp_path / "plan", STAGES)
    write_plan(steps, STAGES, 1, tmp_path / "plan")
    kept = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert kept["seeds"] == [0]
    assert kept["stages"][3]["starts_from"] == "A-256"
    write_plan(steps, STAGES, 3, tmp_path / "plan")  # more seeds are the same plan
    assert json.loads((tmp_path / "plan" / "plan.json").read_text())["seeds"] == [0, 1, 2]
    with pytest.raises(UserError, match=r"holds another plan \(its stage A-256 or crop differs\)"):
        write_plan(steps, [STAGES[0]._replace(configuration="B"), *STAGES[1:]], 1, tmp_path / "plan")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UserError, match="holds files, but no plan.json"):
        write_plan(steps, STAGES, 1, tmp_path / "other")
    # What a kill leaves is not a file of somebody else's: the names of this version, and of earlier ones.
    (tmp_path / "killed").mkdir()
    for name in ("plan.json.unfinished", "plan.json.0123abcd.unfinished"):
        (tmp_path / "killed" / name).touch()
    write_plan(steps, STAGES, 1, tmp_path / "killed")


def test_the_tables_have_every_figure_of_the_paper():
    cells = {int(heading[-1]): cells for heading, _, cells in TABLES if heading.startswith("Table")}
    assert [len(cells[number]) for number in (3, 4, 5, 6)] == [12, 10, 6, 4]
    assert [cell.stages for cell in TABLES[-1][2]] == [("B-256",), ("B-5x5-256",)]  # §4.1
    assert {(cell.protocol, cell.scales, cell.paper) for cell in TABLES[-1][2]} == {("center_crop", "single", None)}
    assert [(cell.paper.top1, cell.paper.top5) for cell in cells[6]] == [
        (24.7, 7.5),
        (24.0, 7.1),
        (23.9, 7.2),
        (23.7, 6.8),
    ]
    for _, _, its in TABLES:
        for cell in its:
            assert set(cell.stages) <= {stage.name for stage in STAGES}


@pytest.mark.slow
def test_a_cell_is_the_mean_over_seeds_of_what_the_protocol_gives(net_config, tmp_path):
    shared, plan = plan_of(net_config, seeds=3)
    shared.image.crop = 64
    for seed in (0, 1):
        for name in ("D-jitter", "E-jitter"):
            finished(tmp_path, shared, plan, name, seed, errors_by=7 * (name == "E-jitter") + 13 * seed)
    content = fill_tables(tmp_path, range(3), STAGES, lambda line: None)
    assert {"E-jitter, seed 2: not finished yet", "A-256, seed 0: not finished yet"} <= set(content["missing"])
    fusion = next(table for table in content["tables"] if table["heading"] == "Table 6")["rows"][1]
    assert (fusion["model"], fusion["protocol"], fusion["seeds"], fusion["images"]) == (
        "D-jitter + E-jitter",
        "dense",
        2,
        10,
    )

    # Independently: probabilities kept on the disk, averaged over scales, then nets.
    errors = []
    for seed in (0, 1):
        models = []
        for name in ("D-jitter", "E-jitter"):
            files = sorted((tmp_path / f"seed{seed}" / name / "evaluation").glob("7/*/dense-*.npz"))
            kept = [np.load(file) for file in files if re.search(r"Q(73|110|146)\b", file.name)]
            assert len(kept) == 3
            models.append(np.mean([k["probs"].astype(np.float64) for k in kept], 0))
            labels = kept[0]["labels"]
        errors.append(np.mean(np.mean(models, 0).argmax(-1) != labels))
    assert errors[0] != errors[1]
    assert fusion["top1_error"] == pytest.approx(np.mean(errors))
    assert fusion["top1_spread"] == pytest.approx(np.std(errors, ddof=1))

    write_tables(content, tmp_path)
    text = (tmp_path / "tables.md").read_text()
    mean, spread = 100 * np.mean(errors), 100 * np.std(errors, ddof=1)
    assert (
        f"| D-jitter + E-jitter | jitter | dense | 73,110,146 | {mean:.1f} ± {spread:.1f} |" in text
    )  # three classes: no top-5
    assert text.count("| not trained |") == 12 + 10 + 6 + 4 + 2 - 2 - 2 - 6 - 3
    assert as_text(json.loads((tmp_path / "tables.json").read_text())) == as_text(content, "plain") == text
    assert f"D-jitter + E-jitter & jitter & dense & 73,110,146 & {mean:.1f} ± {spread:.1f} &" in as_text(
        content, "latex"
    )


def test_the_command_line():
    assert "--dry_run" in help_of("reproduce").replace("--[no]dry_run", "--dry_run")


@pytest.mark.slow
def test_a_plan_runs_stops_and_goes_on(tiny_config, tmp_path):
    shared, _ = plan_of(tiny_config)
    shared.image.scale_min = shared.image.scale_max = 37
    flags = [flag for flag in as_flags(shared) if not re.match(r"--config\.(init|image\.(crop|scale))", flag)]
    flags = ["--config=configs/paper.py:crop=32", f"--workdir={tmp_path}", "--config.plan.later_epochs=0.2", *flags]
    stages = "--stages=A-256,B-5x5-256,D-256,D-384,D-jitter-fc"
    status, out, err = run_command("reproduce", *flags, stages, "--dry_run")
    assert (status, err) == (0, "")
    assert "0 of 5 runs finished" in out
    assert list(tmp_path.iterdir()) == []
    status, out, err = run_command("reproduce", *flags, "--models=A")
    assert (status, err) == (0, "")
    digest = json.loads((tmp_path / "seed0" / "A-256" / "summary.json").read_text())["params_sha256"]
    before = (tmp_path / "seed0" / "A-256" / "summary.json").stat().st_mtime_ns
    status, out, err = run_command("reproduce", *flags, stages)
    assert (status, err) == (0, "")
    assert "run 1 of 5" not in out
    assert "run 2 of 5: seed0/B-5x5-256" in out
    assert (tmp_path / "seed0" / "A-256" / "summary.json").stat().st_mtime_ns == before  # finished stays finished
    assert "conv1_1, conv2_1, conv3_1, conv3_2, fc6, fc7, fc8" in out
    assert "all layers start from" in out
    assert re.search(r"\| D \| 384 \| dense \| 55 \| [\d.]+ \| 31 x 1 \| 26.8/8.7 \|", out)
    assert digest == json.loads((tmp_path / "seed0" / "A-256" / "summary.json").read_text())["params_sha256"]
