"""Running a plan: stage after stage, each in its workdir; what is finished stays."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vgg_jax.config import flatten
from vgg_jax.data.sources import open_dataset
from vgg_jax.models import NETWORK_KEYS
from vgg_jax.recipe import Recipe, scale_text
from vgg_jax.reproduction.stages import Stage, stage_config
from vgg_jax.runs import PlanDir, RunDir
from vgg_jax.runtime.console import Console, duration
from vgg_jax.runtime.exceptions import UserError, differences, writing_to
from vgg_jax.runtime.files import is_empty, write_json
from vgg_jax.runtime.text_tables import table_text
from vgg_jax.training.schedules import epoch_steps
from vgg_jax.training.train import train
from vgg_jax.training.workdir import claim_workdir
from vgg_jax.validation import validate

# Keys in which a run must agree with its stage to stand for it: its shape, its S, its data; not how it was trained.
_MODEL_KEYS = (*NETWORK_KEYS, "num_classes", "width_multiplier", "fc_width")
_KEYS_OF_STAGE = (
    *(f"model.{key}" for key in _MODEL_KEYS),
    *(f"image.{key}" for key in ("crop", "scale_min", "scale_max")),
    *(f"data.{key}" for key in ("name", "train_split", "val_split")),
)
_OTHER_WORKDIR = "choose another --workdir"


class PlannedRun(NamedTuple):
    """One stage with one seed, and how far it is."""

    stage: Stage
    seed: int
    config: ConfigDict
    recipe: Recipe  # of the configuration
    workdir: Path
    summary: dict[str, Any] | None  # of a finished run
    steps: int  # made so far, as its checkpoints say

    def name(self) -> str:
        """Returns seed0/D-256."""
        return f"seed{self.seed}/{self.stage.name}"


def planned_runs(
    stages: Sequence[Stage], shared: ConfigDict, plan: ConfigDict, directory: Path, everything: Sequence[Stage] = ()
) -> list[PlannedRun]:
    """Returns the runs of these stages in the order of execution, seed after seed.

    Args:
      stages: chosen ones, see `stages.chosen_stages`.
      shared, plan: of `stages.split_config`.
      directory: of the plan.
      everything: all stages of the plan; a start that is not among `stages` must be finished.

    Raises:
      UserError: a configuration that cannot work, a start that is neither planned nor finished, or a directory of a
        stage that holds a run of another model, S or data.
    """
    runs = []
    for seed in range(plan.seeds):
        for stage in stages:
            config = stage_config(shared, plan, stage, directory, seed)
            try:
                recipe = validate(config, jax.device_count())
            except UserError as error:
                raise UserError(f"stage {stage.name}: {error}") from error
            run_dir = PlanDir(directory).run(stage.name, seed)
            summary = run_dir.summary()
            if summary is not None:
                _check_stands_for(stage, recipe, run_dir)
            elif stage.starts_from and stage.starts_from not in {other.name for other in stages}:
                _check_start(stage, PlanDir(directory).run(stage.starts_from, seed), everything)
            steps = max(run_dir.checkpoint_steps(), default=0)
            runs.append(PlannedRun(stage, seed, config, recipe, run_dir.path, summary, steps))
    return runs


def _check_start(stage: Stage, start: RunDir, everything: Sequence[Stage]) -> None:
    """Raises UserError where the run that a stage starts from is not finished."""
    if start.is_finished():
        return
    name, remedy = stage.starts_from, "the plan has no such stage."
    if name in {other.name for other in everything}:
        remedy = f"train it first, by adding it to --stages: --stages={name},{stage.name}."
    raise UserError(f"stage {stage.name} starts from {name}, and there is no finished run in {start.path}; {remedy}")


def _check_stands_for(stage: Stage, recipe: Recipe, run_dir: RunDir) -> None:
    """Raises UserError where a finished run is of another model, S or data than its stage."""
    here, there = (
        {key: value for key, value in values.items() if key in _KEYS_OF_STAGE}
        for values in (recipe.given, flatten(run_dir.config()))
    )
    different = differences(here, there, "{key} is {first}, there it is {second}")
    if different:
        raise UserError(
            f"{run_dir.path} holds a run that is not stage {stage.name} of this plan: {'; '.join(different)}. Choose "
            "another --workdir, or move that run away. Nothing there was changed."
        )


def plan_text(runs: Sequence[PlannedRun], table_format: str = "plain") -> str:
    """Returns the plan as text: a line a run, with its length and its actual or expected time."""
    images = None
    with contextlib.suppress(UserError):  # the plan can be looked at before there is data
        images = len(open_dataset(runs[0].recipe).train)
    seconds_of: dict[str, list[float]] = {}
    for run in runs:
        if run.summary:
            seconds_of.setdefault(run.stage.name, []).append(run.summary["seconds"])
    lines = [("run", "configuration", "S", "starts from", "rate", "at most", "state")]
    seconds_left, some_unknown = 0.0, False
    for run in runs:
        recipe, stage = run.recipe, run.stage
        length, total = f"{recipe.num_epochs:g} epochs", None
        if images is not None:
            total = math.ceil(recipe.num_epochs * epoch_steps(images, recipe.batch_size, recipe.min_epoch_steps))
            length += f", {total:,} steps"
        if run.summary:
            state = f"finished: {run.summary['steps']:,} steps, {duration(run.summary['seconds'])}"
        else:
            state = f"stopped at step {run.steps:,}" if run.steps else "not begun"
            if known := seconds_of.get(stage.name):
                mean = statistics.fmean(known)
                seconds_left += mean * max(1 - run.steps / total if total else 1.0, 0.0)
                state += f", about {duration(mean)} by the other seeds"
            some_unknown |= not known
        scale, rate = scale_text(recipe.image.scale_min, recipe.image.scale_max), recipe.optimizer.learning_rate
        start = stage.starts_from or "random"
        lines.append((run.name(), stage.configuration, scale, start, f"{rate:g}", length, state))
    finished = sum(run.summary is not None for run in runs)
    more = f"; about {duration(seconds_left)} left" + " and what no finished run tells yet" * some_unknown
    if some_unknown and not seconds_left:
        more = "; no finished run tells yet how long they take"
    between = "\n" if table_format == "plain" else "\n\n"
    progress = f"{finished} of {len(runs)} runs finished{more * (finished < len(runs))}"
    return f"{table_text(lines, (), table_format)}{between}{progress}"


def write_plan(runs: Sequence[PlannedRun], stages: Sequence[Stage], seeds: int, directory: Path) -> None:
    """Writes the file that marks a plan's directory.

    Raises:
      UserError: the directory is another plan's, or cannot be written.
    """
    plan_dir, crop = PlanDir(directory), runs[0].recipe.image.crop
    contents = [stage._asdict() | {"scales": list(stage.scales)} for stage in stages]
    before, all_seeds = None, set(range(seeds))
    if plan_dir.is_plan():
        before = plan_dir.plan()
        old = {stage["name"]: stage for stage in before["stages"]}
        for stage in contents:
            if old.get(stage["name"], stage) != stage or before.get("crop") != crop:
                raise UserError(
                    f"--workdir={directory} holds another plan (its stage {stage['name']} or crop differs); "
                    f"{_OTHER_WORKDIR}. Nothing there was changed."
                )
        all_seeds.update(before["seeds"])
    elif not is_empty(directory):
        raise UserError(
            f"--workdir={directory} holds files, but no {plan_dir.plan_file.name}, so it is not a plan's directory; "
            "choose another."
        )
    content = {"stages": contents, "seeds": sorted(all_seeds), "crop": crop}
    if content != before:
        with writing_to(directory, _OTHER_WORKDIR):
            directory.mkdir(parents=True, exist_ok=True)
        write_json(plan_dir.plan_file, content)


def train_runs(runs: Sequence[PlannedRun], quiet: bool = False) -> None:
    """Trains what is not finished, one after another.

    Raises:
      UserError: of `train`, with the stage's name, or a finished run was on other data.
      Interrupted: by a signal, after saving; the same plan continues.
    """
    _check_same_images([run for run in runs if run.summary is not None])
    for number, run in enumerate(runs, start=1):
        if run.summary is not None:
            continue
        Console(quiet).print(f"\n== run {number} of {len(runs)}: {run.name()} ==")
        try:
            train(run.config, run.workdir, quiet)
        except UserError as error:
            raise UserError(f"stage {run.stage.name}, seed {run.seed}: {error}") from error


def _check_same_images(finished: Sequence[PlannedRun]) -> None:
    """Raises UserError where a run was on other data than its stage's, as far as these can be opened."""
    datasets: dict[str, dict[str, Any]] = {}
    for run in finished:
        key = str(run.recipe.data)
        with contextlib.suppress(UserError):  # tables are also made where the data no longer are
            datasets[key] = datasets.get(key) or open_dataset(run.recipe).description()
        if key in datasets:
            claim_workdir(run.workdir, run.recipe, datasets[key], write=False)
