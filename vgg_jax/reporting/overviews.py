"""Several runs side by side, and a whole reproduction: plain values for the template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vgg_jax.reporting.charts import COLORS, Chart, Line, chart
from vgg_jax.reporting.curves import ABSENT, percent
from vgg_jax.reporting.history import RunHistory
from vgg_jax.reporting.reproduction_state import Reproduction, StageState
from vgg_jax.reporting.sections import title
from vgg_jax.runtime.console import duration


def comparison(runs: Sequence[RunHistory]) -> dict[str, Any]:
    """Compares several runs."""
    x_label = "epoch" if all(run.steps_per_epoch() for run in runs) else "step"

    def overlay(name: str, title: str, **options: Any) -> Chart | None:
        lines = [
            Line(run.name, run.series(name), i, "" if i < COLORS else "dashed", dots=True) for i, run in enumerate(runs)
        ]
        return chart(title, lines, x_label, **options)

    charts = [
        overlay("val/top1_error", "Validation top-1 error", percent=True, caption="A centre crop at every validation."),
        overlay("val/loss", "Validation loss"),
    ]
    rows = []
    for run in runs:
        best, speed = run.best(), run.median("train/images_per_second")
        rows.append(
            {
                "name": run.name,
                "model": title(run),
                "state": run.state(),
                "top1": percent(best["val/top1_error"] if best else None, 2),
                "top5": percent(best.get("val/top5_error") if best else None, 2),
                "seconds": duration(run.summary["seconds"]) if run.summary else ABSENT,
                "speed": ABSENT if speed is None else f"{speed:,.0f}",
            }
        )
    keys = dict.fromkeys(key for run in runs for key in run.config)
    different = [
        (key, [str(run.config.get(key, ABSENT)) for run in runs])
        for key in keys
        if len({str(run.config.get(key)) for run in runs}) > 1
    ]
    return {"rows": rows, "charts": [one for one in charts if one], "different": different}


def reproduction_overview(reproduction: Reproduction) -> dict[str, Any]:
    """Returns the plan with the state of its stages, the tables, and the curves by configuration."""
    stages: list[dict[str, Any]] = [
        {
            "name": stage.name,
            "model": stage.configuration,
            "scale": stage.training_scale(),
            "starts_from": stage.starts_from,
            "cells": [_stage_cell(stage, seed) for seed in reproduction.seeds],
        }
        for stage in reproduction.stages
    ]
    done = sum(cell["kind"] == "finished" for stage in stages for cell in stage["cells"])
    return {
        "directory": str(reproduction.directory),
        "seeds": reproduction.seeds,
        "stages": stages,
        "done": done,
        "all": len(stages) * len(reproduction.seeds),
        "tables": [_table(table) for table in reproduction.tables],
        "missing": reproduction.missing,
        "charts": _by_configuration(reproduction),
    }


def _stage_cell(stage: StageState, seed: int) -> dict[str, str]:
    run, words = stage.runs.get(seed), stage.states[seed]
    best = run.best() if run else None
    kind = "finished" if words == "finished" else "empty" if words == "not begun" else "partial"
    return {"kind": kind, "state": words, "best": percent(best["val/top1_error"]) if best else ""}


def _table(table: dict[str, Any]) -> dict[str, Any]:
    """Errors in per cent; the protocol is said once where all rows have the same."""

    def ours(row: dict[str, Any], name: str) -> str:
        error, spread = row.get(f"{name}_error"), row.get(f"{name}_spread")
        return ABSENT if error is None else f"{100 * error:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")

    def theirs(row: dict[str, Any], name: str) -> str:
        error = (row.get("paper") or {}).get(name)
        return ABSENT if error is None else f"{error:.1f}"

    rows = [
        {
            "model": str(row["model"]),
            "scales": str(row.get("scales") or ""),
            "test_scales": str(row.get("test_scales") or "").replace(",", ", ").replace(",  ", ", "),
            "protocol": str(row.get("protocol") or "").replace("_", " "),
            "images": f"{row['images']:,}" if row.get("images") else "",
            "seeds": row.get("seeds") or "",
            "top1": ours(row, "top1"),
            "top5": ours(row, "top5"),
            "paper1": theirs(row, "top1"),
            "paper5": theirs(row, "top5"),
        }
        for row in table["rows"]
    ]
    protocols = {row["protocol"] for row in rows}
    protocol = protocols.pop() if len(protocols) == 1 else ""
    return {"heading": table["heading"], "title": table["title"], "rows": rows, "protocol": protocol}


def _by_configuration(reproduction: Reproduction) -> list[Chart]:
    """Draws a chart for each configuration: stages in colours, the second of a scale dashed, seeds as thin lines, a common error axis."""
    groups: dict[str, list[Line]] = {}
    color: dict[str, int] = {}  # the same training scale has the same colour everywhere
    for stage in reproduction.stages:
        number = color.setdefault(stage.training_scale(), len(color))
        lines = groups.setdefault(stage.configuration, [])
        kind = "thin dashed" if any(line.color == number for line in lines) else "thin"
        lines += [
            Line(stage.name, run.series("val/top1_error"), number, kind, dots=len(stage.runs) == 1)
            for run in stage.runs.values()
        ]
    ends = [max((y for _, y in line.points), default=0.0) for lines in groups.values() for line in lines]
    top = max(ends, default=1.0) or 1.0
    charts = [
        chart(f"VGG {name}: validation top-1 error", lines, "epoch", percent=True, top=top)
        for name, lines in groups.items()
    ]
    return [one for one in charts if one is not None]
