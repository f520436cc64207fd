"""A whole reproduction: trains the runs of a plan that are not finished, and fills the paper's tables."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from vgg_jax.reproduction import runner, stages, tables
from vgg_jax.runs import PlanDir
from vgg_jax.runtime.compilation import check_devices, keep_compiled
from vgg_jax.runtime.console import Console


class ReproductionRequest(NamedTuple):
    """A request to reproduce the paper's tables."""

    config: ConfigDict  # of the whole plan, see `stages.split_config`
    workdir: Path  # of all runs
    models: tuple[str, ...] = ()  # see `stages.chosen_stages`
    stages: tuple[str, ...] = ()
    dry_run: bool = False  # print the plan, train nothing
    format: str = "plain"  # of printed tables, see `text_tables`


def reproduce(request: ReproductionRequest) -> None:
    """Prints the plan, trains its unfinished runs, and prints and writes the tables.

    Raises:
      UserError: see `runner.planned_runs`, `runner.write_plan` and `runner.train_runs`.
      Interrupted: by a signal, after saving; the same request continues.
    """
    check_devices()
    console, plan_dir = Console(), PlanDir(request.workdir)
    shared, plan = stages.split_config(request.config)
    chosen = stages.chosen_stages(stages.STAGES, request.models, request.stages)
    runs = runner.planned_runs(chosen, shared, plan, plan_dir.path, stages.STAGES)
    console.print(runner.plan_text(runs, request.format))
    if request.dry_run:
        return
    runner.write_plan(runs, stages.STAGES, plan.seeds, plan_dir.path)
    with keep_compiled():
        runner.train_runs(runs)
        console.print("\n== tables ==")
        content = tables.fill_tables(plan_dir.path, range(plan.seeds), stages.STAGES, console.print)
    tables.write_tables(content, plan_dir.path)
    console.print(tables.as_text(content, request.format))
    files = f"{plan_dir.tables_text}, {plan_dir.tables_file}"
    console.print(f"the same: {files}; all of it: vgg-jax report {shlex.quote(str(plan_dir.path))}")
