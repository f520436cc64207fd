"""A whole reproduction: trains the runs of a plan that are not finished, and fills the paper's tables."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from vgg_jax.reproduction import runner, stages, tables
from vgg_jax.runtime.compilation import check_devices


class ReproductionRequest(NamedTuple):
    """What `vgg-jax reproduce` is asked for."""

    config: ConfigDict  # of the whole plan, see `stages.split_config`
    workdir: Path  # of all runs
    models: tuple[str, ...] = ()  # see `stages.chosen_stages`
    stages: tuple[str, ...] = ()
    dry_run: bool = False  # print the plan, train nothing


def reproduce(request: ReproductionRequest) -> None:
    """Prints the plan, trains its unfinished runs, and prints and writes the tables.

    Raises:
      UserError: see `runner.planned_runs`, `runner.write_plan` and `runner.run`.
      Interrupted: by a signal, after saving; the same request continues.
    """
    check_devices()
    shared, plan = stages.split_config(request.config)
    chosen = stages.chosen_stages(stages.STAGES, request.models, request.stages)
    directory = request.workdir
    runs = runner.planned_runs(chosen, shared, plan, directory, stages.STAGES)
    print(runner.describe(runs), flush=True)
    if request.dry_run:
        return
    runner.write_plan(runs, stages.STAGES, plan.seeds, directory)
    runner.run(runs)
    print("\n== tables ==", flush=True)
    content = tables.fill(directory, range(plan.seeds), stages.STAGES, lambda line: print(line, flush=True))
    print(tables.write(content, directory))
    print(
        f"the same: {directory / 'tables.md'}, {directory / 'tables.json'}; all of it: vgg-jax report "
        f"{shlex.quote(str(directory))}"
    )
