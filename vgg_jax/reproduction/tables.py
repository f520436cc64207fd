"""Paper Tables 3 to 6 and the ablation of §4.1, next to the paper's values.

The errors are this data's, as mean and spread over seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vgg_jax.evaluation import paper
from vgg_jax.evaluation.protocol import Request, evaluate
from vgg_jax.reproduction.stages import STAGES, SUBMISSION, Stage
from vgg_jax.runs import PlanDir
from vgg_jax.runtime.files import write_json, write_text
from vgg_jax.runtime.text_tables import table_text

_CROPS = ("dense", "multi_crop", "dense+multi_crop")


class Cell(NamedTuple):
    """One figure of a table: which models, how they are tested, and what the paper has."""

    stages: tuple[str, ...]  # more than one: fused
    protocol: str
    scales: str  # single or multi
    paper: paper.TopKError | None


def _training_scale(stage: Stage) -> str:
    return "jitter" if stage.scales[0] != stage.scales[1] else f"S={stage.scales[0]}"


_BY_NAME = {stage.name: stage for stage in STAGES}
_LISTED = [stage for stage in STAGES if stage.name != "D-jitter-fc" and stage.configuration != "B-5x5"]


def _single(stage: Stage, published: dict[tuple[str, str], paper.TopKError], scales: str) -> Cell:
    return Cell((stage.name,), "dense", scales, published[stage.configuration, _training_scale(stage)])


_WITH_MULTI = [stage for stage in _LISTED if (stage.configuration, _training_scale(stage)) in paper.MULTI_SCALE]
# (heading, title, cells)
TABLES: tuple[tuple[str, str, tuple[Cell, ...]], ...] = (
    (
        "Table 3",
        "single test scale, dense",
        tuple(_single(stage, paper.SINGLE_SCALE, "single") for stage in _LISTED),
    ),
    (
        "Table 4",
        "three test scales, dense",
        tuple(_single(stage, paper.MULTI_SCALE, "multi") for stage in _WITH_MULTI),
    ),
    (
        "Table 5",
        "dense and multi-crop, three test scales",
        tuple(
            Cell((f"{model}-jitter",), protocol, "multi", paper.CROPS[model, protocol])
            for model in "DE"
            for protocol in _CROPS
        ),
    ),
    (
        "Table 6",
        "fusion, three test scales",
        (
            Cell(SUBMISSION, "dense", "multi", paper.SEVEN_NETS),
            *(Cell(("D-jitter", "E-jitter"), protocol, "multi", paper.FUSION[protocol]) for protocol in _CROPS),
        ),
    ),
    (
        "§4.1",
        "two 3x3 filters against one 5x5, a centre crop (the paper: B-5x5's top-1 error is 7 % higher)",
        tuple(Cell((name,), "center_crop", "single", None) for name in ("B-256", "B-5x5-256")),
    ),
)


def fill_tables(
    directory: Path,
    seeds: Sequence[int],
    stages: Sequence[Stage],
    say: Callable[[str], None],
    data_dir: str = "",
) -> dict[str, Any]:
    """Evaluates every cell whose stages are trained; cached probabilities are not computed again.

    Args:
      directory: of the plan.
      seeds: of its runs.
      stages: of the plan; cells that need others are left out.
      say: prints a line about each cell.
      data_dir: where prepared data lies, if not where it lay for the runs.

    Returns:
      {"tables": [{"heading", "title", "rows": [...]}], "missing": [...]}. Errors are fractions, a spread is the sample
      standard deviation over seeds (null for one). A row without a finished run has no errors.
    """
    planned, plan_dir = {stage.name for stage in stages}, PlanDir(directory)
    missing: dict[str, None] = {}
    tables = []
    for heading, title, cells in TABLES:
        rows = []
        for cell in cells:
            if not planned.issuperset(cell.stages):
                continue
            rows_of_seeds = []
            for seed in seeds:
                runs = {name: plan_dir.run(name, seed) for name in cell.stages}
                absent = [name for name, run in runs.items() if not run.is_finished()]
                missing |= dict.fromkeys(f"{name}, seed {seed}: not finished yet" for name in absent)
                if not absent:
                    workdirs = tuple(str(run.path) for run in runs.values())
                    request = Request(workdirs, cell.protocol, cell.scales, data_dir=data_dir)
                    # The last row is the mean over everything that was requested.
                    rows_of_seeds.append(evaluate(request, quiet=True)["rows"][-1])
            rows.append(_row_over_seeds(cell, rows_of_seeds))
            if rows_of_seeds:
                say(f"{heading}: {_row_text(rows[-1])}")
        if rows:
            tables.append({"heading": heading, "title": title, "rows": rows})
    return {"tables": tables, "missing": list(missing)}


def write_tables(content: dict[str, Any], directory: Path) -> None:
    """Writes the tables as JSON and as Markdown in `directory`."""
    write_json(PlanDir(directory).tables_file, content)
    write_text(PlanDir(directory).tables_text, as_text(content))


def as_text(content: dict[str, Any], table_format: str = "markdown") -> str:
    """Returns the tables as Markdown or as LaTeX; errors in per cent, top-1/top-5.

    Args:
      content: of `fill_tables`.
      table_format: see `text_tables`; plain is Markdown.
    """
    heading, item = ("% ", "% - ") if table_format == "latex" else ("### ", "- ")
    columns = ("model", "S at crop 224", "test", "Q", "top-1/top-5 error, %", "images x seeds", "paper (ImageNet)")
    lines = []
    for table in content["tables"]:
        rows = [columns, *map(_cells, table["rows"])]
        text = table_text(rows, table_format="latex" if table_format == "latex" else "markdown")
        lines += [f"{heading}{table['heading']}: {table['title']}", "", text, ""]
    if content["missing"]:
        lines += [f"{heading.replace('### ', '')}Missing:", "", *(f"{item}{text}" for text in content["missing"]), ""]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Returns the texts of one row."""
    is_trained = row["top1_error"] is not None
    errors = _errors_text(row) if is_trained else "not trained"
    count = f"{row['images']:,} x {row['seeds']}" if is_trained else ""
    published = f"{row['paper']['top1']}/{row['paper']['top5']}" if row["paper"] else ""
    return row["model"], row["scales"], row["protocol"], row["test_scales"], errors, count, published


def _row_over_seeds(cell: Cell, rows_of_seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Merges one row over seeds."""
    stages = [_BY_NAME[name] for name in cell.stages]
    trained = list(dict.fromkeys(_training_scale(stage).removeprefix("S=") for stage in stages))
    merged: dict[str, Any] = {
        "model": stages[0].configuration if len(stages) == 1 else " + ".join(cell.stages),
        "stages": list(cell.stages),
        "scales": ", ".join(trained),
        "test_scales": rows_of_seeds[0]["scales"] if rows_of_seeds else "",
        "protocol": cell.protocol,
        "images": rows_of_seeds[0]["images"] if rows_of_seeds else 0,
        "seeds": len(rows_of_seeds),
        "paper": cell.paper and cell.paper._asdict(),
    }
    for metric in ("top1", "top5"):  # of few classes there is no top-5 error
        errors = [row[f"{metric}_error"] for row in rows_of_seeds if row[f"{metric}_error"] is not None]
        merged[f"{metric}_error"] = statistics.fmean(errors) if errors else None
        merged[f"{metric}_spread"] = statistics.stdev(errors) if len(errors) > 1 else None
    return merged


def _errors_text(row: dict[str, Any]) -> str:
    """Returns the errors in per cent, as "27.0 ± 0.3/8.8 ± 0.1"."""
    pairs = [(row[f"{metric}_error"], row[f"{metric}_spread"]) for metric in ("top1", "top5")]
    return "/".join(
        f"{100 * error:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")
        for error, spread in pairs
        if error is not None
    )


def _row_text(row: dict[str, Any]) -> str:
    return (
        f"{row['model']}, S {row['scales']}, {row['protocol']} at Q {row['test_scales']}: "
        f"{_errors_text(row)} % ({row['seeds']} seeds)"
    )
