"""Several runs side by side, and a whole reproduction: plain values for the template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vgg_jax.recipe import scale_text
from vgg_jax.reporting.charts import COLORS, Chart, Line, YAxis, chart
from vgg_jax.reporting.curves import ABSENT, Chance, interval, percent
from vgg_jax.reporting.history import RunHistory, read_history
from vgg_jax.reporting.sections import model_title
from vgg_jax.runs import PlanDir, RunDir
from vgg_jax.runtime.console import duration
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.files import is_empty


class StageState(NamedTuple):
    """A line of the plan."""

    name: str
    configuration: str
    scale: str  # S in words
    starts_from: str  # another stage; "" for none
    histories: dict[int, RunHistory]  # by seed, those that were begun and can be read
    states: dict[int, str]  # by seed, in words


class Reproduction(NamedTuple):
    """Files of `vgg-jax reproduce`."""

    plan_dir: PlanDir
    stages: list[StageState]
    seeds: list[int]

    def histories(self) -> Iterator[RunHistory]:
        """Yields the runs that were begun, stage after stage."""
        for stage in self.stages:
            yield from stage.histories.values()


def read_reproduction(plan_dir: PlanDir) -> Reproduction:
    """Reads the plan and its runs.

    Raises:
      UserError: the plan is damaged. A run that is damaged only says so in its state.
    """
    plan, stages = plan_dir.plan(), []
    for stage in plan["stages"]:
        histories, states = {}, {}
        for seed in plan["seeds"]:
            history, states[seed] = _read_stage(plan_dir.run(stage["name"], seed), stage["name"])
            if history is not None:
                histories[seed] = history
        scale = scale_text(*map(int, stage["scales"]))
        stages.append(StageState(stage["name"], stage["configuration"], scale, stage["starts_from"], histories, states))
    return Reproduction(plan_dir, stages, plan["seeds"])


def _read_stage(run: RunDir, name: str) -> tuple[RunHistory | None, str]:
    """Returns a stage's run, None where it cannot be read, and its state in words."""
    if is_empty(run.path):
        return None, "not begun"
    if not run.is_run():
        return None, "no run in its directory"
    try:
        history = read_history(run.path, name)
    except UserError as error:
        return None, f"cannot be read: {error}"
    return history, history.state().replace("unfinished,", "running or stopped").replace("at most ", "")


def comparison(histories: Sequence[RunHistory], chance: Chance) -> dict[str, Any]:
    """Compares several runs on the same data: their best errors, their curves, differences of their configurations."""
    x_label = "epoch" if all(history.steps_per_epoch() for history in histories) else "step"

    def lines(metric: str) -> list[Line]:
        kinds = ["" if i < COLORS else "dashed" for i in range(len(histories))]
        return [
            Line(history.name, history.series(metric), i, kinds[i], dots=True) for i, history in enumerate(histories)
        ]

    rows = []
    for history in histories:
        speed, best = history.median("train/images_per_second"), history.best() or {}
        count = history.dataset.get("validation_images", 0)
        rows.append(
            {
                "name": history.name,
                "model": model_title(history),
                "state": history.state(),
                "top1": _best_error(history, "top1", 2) or ABSENT,
                "top1_interval": interval(best.get("val/top1_error"), count),
                "top5": _best_error(history, "top5", 2) or ABSENT,
                "top5_interval": interval(best.get("val/top5_error"), count),
                "seconds": duration(history.summary["seconds"]) if history.summary else ABSENT,
                "speed": ABSENT if speed is None else f"{speed:,.0f}",
            }
        )
    keys = dict.fromkeys(key for history in histories for key in history.config)
    values = {key: [str(history.config.get(key, ABSENT)) for history in histories] for key in keys}
    top1_lines = lines("val/top1_error")
    charts = [
        *_error_charts(
            {"Validation top-1 error": [*top1_lines, *chance.lines(top1_lines)]},
            x_label,
            YAxis(percent=True),
            f"A centre crop at every validation. {chance.sentence}",
        ),
        chart("Validation loss", lines("val/loss"), x_label),
    ]
    different = [(key, texts) for key, texts in values.items() if len(set(texts)) > 1]
    return {"rows": rows, "charts": [one for one in charts if one], "different": different, "chance": chance}


def reproduction_overview(reproduction: Reproduction) -> dict[str, Any]:
    """Returns the plan with the state of its stages, the tables, and the curves by configuration.

    Raises:
      UserError: the tables are damaged.
    """
    tables = reproduction.plan_dir.tables()
    states = [state for stage in reproduction.stages for state in stage.states.values()]
    groups = _lines_by_configuration(reproduction)
    errors = [y for lines in groups.values() for line in lines for _, y in line.points]
    common_axis = YAxis(percent=True, top=max(errors, default=1.0) or 1.0)
    return {
        "seeds": reproduction.seeds,
        "stages": [(stage, [_stage_cell(stage, seed) for seed in reproduction.seeds]) for stage in reproduction.stages],
        "done": states.count("finished"),
        "all": len(states),
        "tables": [_table(table) for table in tables["tables"]],
        "missing": tables["missing"],
        "charts": _error_charts(groups, "epoch", common_axis),
    }


def _stage_cell(stage: StageState, seed: int) -> dict[str, str]:
    history, state = stage.histories.get(seed), stage.states[seed]
    kind = {"finished": "finished", "not begun": "empty"}.get(state, "partial")
    return {"kind": kind, "state": state, "best": _best_error(history, "top1", 1) if history else ""}


def _best_error(history: RunHistory, name: str, digits: int) -> str:
    """Returns an error of the best validation; "" where there is none."""
    error = (history.best() or {}).get(f"val/{name}_error")
    return "" if error is None else percent(error, digits)


def _lines_by_configuration(reproduction: Reproduction) -> dict[str, list[Line]]:
    """Returns a chart's lines for each configuration: thin ones for seeds, in one colour for each training scale.

    The lines of a configuration's second stage at one scale are dashed.
    """
    groups: dict[str, list[Line]] = {}
    colors: dict[str, int] = {}
    for stage in reproduction.stages:
        color = colors.setdefault(stage.scale, len(colors))
        lines = groups.setdefault(f"VGG {stage.configuration}: validation top-1 error", [])
        kind = "thin dashed" if any(line.color == color for line in lines) else "thin"
        lines += [
            Line(stage.name, history.series("val/top1_error"), color, kind, dots=len(stage.histories) == 1)
            for history in stage.histories.values()
        ]
    return groups


def _error_charts(groups: dict[str, list[Line]], x_label: str, y_axis: YAxis, caption: str = "") -> list[Chart]:
    """Draws a chart of errors for each title that has points."""
    charts = (chart(title, lines, x_label, y_axis=y_axis, caption=caption) for title, lines in groups.items())
    return [one for one in charts if one is not None]


def _table(table: dict[str, Any]) -> dict[str, Any]:
    """Returns a table with errors in per cent; the protocol is said once where all rows have the same."""
    rows = []
    for row in table["rows"]:
        published = row.get("paper") or {}
        figures: dict[str, str] = {}
        for k in ("1", "5"):
            error, spread, papers = row.get(f"top{k}_error"), row.get(f"top{k}_spread"), published.get(f"top{k}")
            deviation = "" if spread is None else f" ± {100 * spread:.1f}"
            figures[f"top{k}"] = ABSENT if error is None else f"{100 * error:.1f}{deviation}"
            figures[f"paper{k}"] = ABSENT if papers is None else f"{papers:.1f}"
        rows.append(
            {
                "model": str(row["model"]),
                "scales": str(row.get("scales") or ""),
                "test_scales": str(row.get("test_scales") or "").replace(",", ", ").replace(",  ", ", "),
                "protocol": str(row.get("protocol") or "").replace("_", " "),
                "images": f"{row['images']:,}" if row.get("images") else "",
                "seeds": row.get("seeds") or "",
                **figures,
            }
        )
    protocols = {row["protocol"] for row in rows}
    protocol = protocols.pop() if len(protocols) == 1 else ""
    return {"heading": table["heading"], "title": table["title"], "rows": rows, "protocol": protocol}
