"""A whole reproduction as it stands: the plan, how far each of its stages is, and the paper's tables so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from vgg_jax.config import scale_text
from vgg_jax.models import CONFIGURATIONS
from vgg_jax.reporting.runs import Run, is_run, read_json, read_run, state
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.files import is_unfinished


class StageState(NamedTuple):
    """A line of the plan."""

    name: str
    configuration: str
    scales: tuple[int, int]
    starts_from: str  # another stage; "" for none
    runs: dict[int, Run]  # by seed, those that were begun and can be read
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


def is_reproduction(directory: Path) -> bool:
    return (directory / "plan.json").is_file()


def read_reproduction(directory: Path) -> Reproduction:
    """Reads the plan, the stages and the tables.

    Raises:
      UserError: plan.json or tables.json is broken. A stage that is broken only says so in its state.
    """
    plan = read_json(directory / "plan.json")
    try:
        seeds = [int(seed) for seed in plan["seeds"]]
        requested = [
            (str(one["name"]), one["configuration"], [int(scale) for scale in one["scales"]], str(one["starts_from"]))
            for one in plan["stages"]
        ]
        for name, configuration, scales, _ in requested:
            if configuration not in CONFIGURATIONS or len(scales) != 2:
                raise ValueError(f"stage {name!r} has the configuration {configuration!r} and the scales {scales}")
        if not seeds or not requested:
            raise ValueError("it has no stages or no seeds")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{directory / 'plan.json'} is no plan of a reproduction ({error!r}).") from error
    stages = []
    for name, configuration, scales, starts_from in requested:
        runs, states = {}, {}
        for seed in seeds:
            run, states[seed] = _stage_run(directory / f"seed{seed}" / name, name)
            if run is not None:
                runs[seed] = run
        stages.append(StageState(name, configuration, (scales[0], scales[1]), starts_from, runs, states))
    tables, missing = _tables(directory / "tables.json")
    return Reproduction(directory, stages, seeds, tables, missing)


def _stage_run(workdir: Path, name: str) -> tuple[Run | None, str]:
    if not workdir.is_dir() or all(map(is_unfinished, workdir.iterdir())):
        return None, "not begun"
    if not is_run(workdir):
        return None, "no run in its directory"
    try:
        run = read_run(workdir, name)
    except UserError as error:
        return None, f"cannot be read: {error}"
    if run.summary or not run.metrics:
        return run, state(run)
    return run, state(run).replace("unfinished,", "running or stopped").replace("at most ", "")


def _tables(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    if not path.exists():
        return [], []
    content = read_json(path)
    try:
        for table in content.get("tables", []):
            if "heading" not in table:  # as earlier versions wrote them
                table["heading"] = f"Table {table['number']}"
            table["title"]
            for row in table["rows"]:
                row["model"], row["top1_error"], row["top5_error"]
                for key in ("images", "top1_error", "top1_spread", "top5_error", "top5_spread"):
                    if not isinstance(row.get(key, 0), int | float | None):
                        raise TypeError(f"{key} is {row[key]!r}")
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds no tables of a reproduction ({error!r}); make them again.") from error
    return content.get("tables", []), [str(line) for line in content.get("missing", [])]
