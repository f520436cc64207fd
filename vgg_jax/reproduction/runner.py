"""Running a plan: stage after stage, each an ordinary workdir; what is finished stays as it is."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from vgg_jax import config as config_lib
from vgg_jax.data.sources import open_dataset
from vgg_jax.models import NETWORK_KEYS
from vgg_jax.reproduction.stages import Stage, stage_config, workdir_of
from vgg_jax.runs import PlanDir, RunDir
from vgg_jax.runtime.console import aligned, duration
from vgg_jax.runtime.exceptions import UserError, writing_to
from vgg_jax.runtime.files import is_unfinished, write_json
from vgg_jax.training.train import train
from vgg_jax.training.workdir import claim_workdir
from vgg_jax.validation import validate

# What a run must share with its stage to stand in for it: its shape, its S, its data. How it was trained is its own.
_STANDS_FOR_STAGE = (
    *(f"model.{name}" for name in (*NETWORK_KEYS, "num_classes", "width_multiplier", "fc_width")),
    *("image.crop", "image.scale_min", "image.scale_max", "data.name", "data.train_split", "data.val_split"),
)


class PlannedRun(NamedTuple):
    """One stage with one seed, and how far it is."""

    stage: Stage
    seed: int
    config: ConfigDict
    workdir: Path
    summary: dict[str, Any] | None  # of a finished run
    steps: int  # made so far, as its checkpoints say


def planned_runs(
    stages: Sequence[Stage], shared: ConfigDict, plan: ConfigDict, directory: Path, everything: Sequence[Stage] = ()
) -> list[PlannedRun]:
    """Returns the runs of these stages in the order of execution, seed after seed.

    Args:
      stages: chosen ones, see `plan.chosen_stages`.
      shared, plan: of `plan.split_config`.
      directory: of the plan.
      everything: all stages of the plan; a start that is not among `stages` must be finished.

    Raises:
      UserError: a configuration that cannot work, a start that is neither planned nor finished, or a directory of a stage
        that holds a run of another model, S or data.
    """
    runs = []
    for seed in range(plan.seeds):
        for stage in stages:
            config = stage_config(shared, plan, stage, directory, seed)
            try:
                validate(config, jax.device_count())
            except UserError as error:
                raise UserError(f"stage {stage.name}: {error}") from error
            run_dir = _run_of(directory, stage.name, seed)
            summary = run_dir.summary()
            if summary is not None:
                _check_stands_for(stage, config, run_dir)
            steps = max(run_dir.checkpoint_steps(), default=0)
            runs.append(PlannedRun(stage, seed, config, run_dir.path, summary, steps))
    names = {stage.name for stage in stages}
    for step in runs:
        start = step.stage.starts_from
        if start and start not in names and step.summary is None:
            start_run = _run_of(directory, start, step.seed)
            if not start_run.is_finished():
                known = start in {stage.name for stage in everything}
                raise UserError(
                    f"stage {step.stage.name} starts from {start}, and there is no finished run in {start_run.path}; "
                    + (
                        f"train it first, by adding it to --stages: --stages={start},{step.stage.name}."
                        if known
                        else "the plan has no such stage."
                    )
                )
    return runs


def describe(steps: Sequence[PlannedRun]) -> str:
    """Returns the plan as text: a line a run, with its length and its actual or expected time."""
    images = None
    known: dict[str, list[float]] = {}
    for step in steps:
        if step.summary:
            known.setdefault(step.stage.name, []).append(step.summary["seconds"])
    with contextlib.suppress(UserError):  # the plan can be looked at before there is data
        images = len(open_dataset(steps[0].config).train)
    lines = [("run", "configuration", "S", "starts from", "rate", "at most", "state")]
    left, unknown = 0.0, False
    for step in steps:
        config, low, high = step.config, step.config.image.scale_min, step.config.image.scale_max
        length = f"{config.num_epochs:g} epochs"
        total = None if images is None else math.ceil(config.num_epochs * images / config.batch_size)
        if total is not None:
            length += f", {total:,} steps"
        if step.summary:
            state = f"finished: {step.summary['steps']:,} steps, {duration(step.summary['seconds'])}"
        else:
            state = f"stopped at step {step.steps:,}" if step.steps else "not begun"
            if step.stage.name in known:
                mean = sum(known[step.stage.name]) / len(known[step.stage.name])
                share = 1 - step.steps / total if total else 1.0
                left += mean * max(share, 0.0)
                state += f", about {duration(mean)} by the other seeds"
            else:
                unknown = True
        lines.append(
            (
                *(f"seed{step.seed}/{step.stage.name}", step.stage.configuration),
                *(config_lib.scale_text(low, high), step.stage.starts_from or "random"),
                *(f"{config.optimizer.learning_rate:g}", length, state),
            )
        )
    unfinished = sum(step.summary is None for step in steps)
    more = f"about {duration(left)} left" + (" and what no finished run tells yet" if unknown else "")
    if unknown and not left:
        more = "no finished run tells yet how long they take"
    return f"{aligned(lines)}\n{len(steps) - unfinished} of {len(steps)} runs finished" + (
        f"; {more}" if unfinished else ""
    )


def write_plan(steps: Sequence[PlannedRun], stages: Sequence[Stage], seeds: int, directory: Path) -> None:
    """Writes `plan.json`, which marks a plan's directory.

    Raises:
      UserError: it is another plan's, or cannot be written.
    """
    content = {
        "stages": [stage._asdict() | {"scales": list(stage.scales)} for stage in stages],
        "seeds": list(range(seeds)),
        "crop": steps[0].config.image.crop,
    }
    plan_dir = PlanDir(directory)
    before = plan_dir.plan() if plan_dir.is_plan() else None
    if before is None and directory.is_dir() and not all(map(is_unfinished, directory.iterdir())):
        raise UserError(
            f"--workdir={directory} holds files, but no plan.json, so it is no plan's directory; choose another."
        )
    if before is not None:
        old = {stage["name"]: stage for stage in before["stages"]}
        for stage in content["stages"]:
            if (stage["name"] in old and old[stage["name"]] != stage) or before.get("crop") != content["crop"]:
                raise UserError(
                    f"--workdir={directory} holds another plan (its stage {stage['name']} or crop differs); choose another "
                    "--workdir. Nothing there was changed."
                )
        content["seeds"] = sorted({*before["seeds"], *content["seeds"]})
    with writing_to(directory, "choose another --workdir"):
        directory.mkdir(parents=True, exist_ok=True)
    if content != before:
        write_json(plan_dir.plan_file, content)


def run(steps: Sequence[PlannedRun], quiet: bool = False) -> None:
    """Trains what is not finished, one after another.

    Raises:
      UserError: of `train`, with the stage's name, or a finished run was on other data.
      Interrupted: by a signal, after saving; the same plan continues.
    """
    _check_data([step for step in steps if step.summary is not None])
    for number, step in enumerate(steps, start=1):
        if step.summary is not None:
            continue
        if not quiet:
            print(f"\n== run {number} of {len(steps)}: seed{step.seed}/{step.stage.name} ==", flush=True)
        try:
            train(step.config, step.workdir, quiet)
        except UserError as error:
            raise UserError(f"stage {step.stage.name}, seed {step.seed}: {error}") from error


def _run_of(directory: Path, stage: str, seed: int) -> RunDir:
    return RunDir(workdir_of(directory, stage, seed), "mend it or move it away")


def _check_data(finished: Sequence[PlannedRun]) -> None:
    """Raises UserError where a run was on other data than its stage's, as far as these can be opened."""
    datasets: dict[str, dict[str, Any]] = {}
    for step in finished:
        key = str(step.config.data)
        with contextlib.suppress(UserError):  # tables are also made where the data no longer are
            datasets[key] = datasets.get(key) or open_dataset(step.config).description()
        if key in datasets:
            claim_workdir(step.workdir, step.config, datasets[key], write=False)


def _check_stands_for(stage: Stage, config: ConfigDict, run_dir: RunDir) -> None:
    here, there = config_lib.flatten(config), config_lib.flatten(run_dir.config())
    different = [
        f"{key} is {here[key]}, there it is {there.get(key)}"
        for key in _STANDS_FOR_STAGE
        if here[key] != there.get(key)
    ]
    if different:
        raise UserError(
            f"{run_dir.path} holds a run that is not stage {stage.name} of this plan: {'; '.join(different)}. Choose another "
            "--workdir, or move that run away. Nothing there was changed."
        )
