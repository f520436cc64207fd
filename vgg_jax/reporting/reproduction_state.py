"""A whole reproduction as it stands: the plan, how far each of its stages is, and the paper's tables so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vgg_jax.config import scale_text
from vgg_jax.reporting.history import RunHistory, read_history
from vgg_jax.runs import PlanDir, RunDir
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.files import is_unfinished


class StageState(NamedTuple):
    """A line of the plan."""

    name: str
    configuration: str
    scales: tuple[int, int]
    starts_from: str  # another stage; "" for none
    runs: dict[int, RunHistory]  # by seed, those that were begun and can be read
    states: dict[int, str]  # by seed, in words

    def training_scale(self) -> str:
        low, high = self.scales
        return scale_text(low, high)


class Reproduction(NamedTuple):
    """Files of `vgg-jax reproduce`."""

    directory: Path
    stages: list[StageState]
    seeds: list[int]
    tables: list[dict[str, Any]]
    missing: list[str]


def read_reproduction(plan_dir: PlanDir) -> Reproduction:
    """Reads the plan, the stages and the tables.

    Raises:
      UserError: the plan or the tables are broken. A stage that is broken only says so in its state.
    """
    plan, stages = plan_dir.plan(), []
    for stage in plan["stages"]:
        runs, states = {}, {}
        for seed in plan["seeds"]:
            run, states[seed] = _stage_run(plan_dir.run(stage["name"], seed), stage["name"])
            if run is not None:
                runs[seed] = run
        low, high = stage["scales"]
        stages.append(
            StageState(stage["name"], stage["configuration"], (low, high), stage["starts_from"], runs, states)
        )
    tables = plan_dir.tables()
    return Reproduction(plan_dir.path, stages, plan["seeds"], tables["tables"], tables["missing"])


def _stage_run(stage_run: RunDir, name: str) -> tuple[RunHistory | None, str]:
    if not stage_run.path.is_dir() or all(map(is_unfinished, stage_run.path.iterdir())):
        return None, "not begun"
    if not stage_run.is_run():
        return None, "no run in its directory"
    try:
        run = read_history(stage_run.path, name)
    except UserError as error:
        return None, f"cannot be read: {error}"
    if run.summary or not run.metrics:
        return run, run.state()
    return run, run.state().replace("unfinished,", "running or stopped").replace("at most ", "")
