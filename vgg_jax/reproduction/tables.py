"""Paper Tables 3 to 6 and the ablation of §4.1 with this data's figures, mean and spread over seeds, next to the paper's."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vgg_jax.evaluation import paper
from vgg_jax.evaluation.protocol import Request, evaluate
from vgg_jax.reproduction.stages import STAGES, SUBMISSION, Stage, workdir_of
from vgg_jax.runs import PlanDir, RunDir
from vgg_jax.runtime.files import write_json, write_text

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

# (heading, what it shows, cells)
TABLES: tuple[tuple[str, str, tuple[Cell, ...]], ...] = (
    (
        "Table 3",
        "single test scale, dense",
        tuple(
            Cell((s.name,), "dense", "single", paper.SINGLE_SCALE[s.configuration, _training_scale(s)]) for s in _LISTED
        ),
    ),
    (
        "Table 4",
        "three test scales, dense",
        tuple(
            Cell((s.name,), "dense", "multi", paper.MULTI_SCALE[s.configuration, _training_scale(s)])
            for s in _LISTED
            if (s.configuration, _training_scale(s)) in paper.MULTI_SCALE
        ),
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


def fill(
    directory: Path,
    seeds: Sequence[int],
    stages: Sequence[Stage],
    say: Callable[[str], None],
    data_dir: str = "",
) -> dict[str, Any]:
    """Evaluates whatever the tables can have of these stages; probabilities that are there are not computed again.

    Args:
      directory: of the plan.
      seeds: of its runs.
      stages: of the plan; cells that need others are left out.
      say: for a line about each cell.
      data_dir: where prepared data lies, if not where it lay for the runs.

    Returns:
      {"tables": [{"heading", "title", "rows": [...]}], "missing": [...]}, errors as fractions, spread the sample standard
      deviation over seeds (null for one). A row without a finished run has no errors.
    """
    planned = {stage.name for stage in stages}
    missing: dict[str, None] = {}
    tables = []
    for heading, title, cells in TABLES:
        rows = []
        for cell in cells:
            if not planned.issuperset(cell.stages):
                continue
            rows_of_seeds = []
            for seed in seeds:
                workdirs = [workdir_of(directory, name, seed) for name in cell.stages]
                absent = [
                    name
                    for name, workdir in zip(cell.stages, workdirs, strict=True)
                    if not RunDir(workdir).is_finished()
                ]
                missing |= dict.fromkeys(f"{name}, seed {seed}: not finished yet" for name in absent)
                if not absent:
                    rows_of_seeds.append(_row(workdirs, cell, data_dir))
            rows.append(_merged(cell, rows_of_seeds))
            if rows_of_seeds:
                say(f"{heading}: {_line(rows[-1])}")
        if rows:
            tables.append({"heading": heading, "title": title, "rows": rows})
    return {"tables": tables, "missing": list(missing)}


def write(content: dict[str, Any], directory: Path) -> str:
    """Writes tables.json and tables.md in `directory`; returns the latter's text."""
    text = markdown(content)
    write_json(PlanDir(directory).tables_file, content)
    write_text(PlanDir(directory).tables_text, text)
    return text


def markdown(content: dict[str, Any]) -> str:
    """Returns the tables as Markdown; errors in per cent, top-1/top-5."""
    lines = []
    for table in content["tables"]:
        lines += [f"### {table['heading']}: {table['title']}", ""]
        lines += ["| model | S at crop 224 | test | Q | top-1/top-5 error, % | images x seeds | paper (ImageNet) |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        for row in table["rows"]:
            figures, count = "not trained", ""
            if row["top1_error"] is not None:
                figures = _figures(row)
                count = f"{row['images']:,} x {row['seeds']}"
            published = f"{row['paper']['top1']}/{row['paper']['top5']}" if row["paper"] else ""
            lines.append(
                f"| {row['model']} | {row['scales']} | {row['protocol']} | {row['test_scales']} | {figures} | {count} | "
                f"{published} |"
            )
        lines.append("")
    if content["missing"]:
        lines += ["Missing:", "", *(f"- {text}" for text in content["missing"]), ""]
    return "\n".join(lines)


def _row(workdirs: list[Path], cell: Cell, data_dir: str) -> dict[str, Any]:
    # Both parts at once where any is wanted: their probabilities are kept, and one compilation serves.
    request = Request(tuple(map(str, workdirs)), cell.protocol, cell.scales, data_dir=data_dir)
    rows = evaluate(request, quiet=True)["rows"]
    # The last row is the average of everything that was asked for.
    return rows[-1]


def _merged(cell: Cell, rows_of_seeds: list[dict[str, Any]]) -> dict[str, Any]:
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
    for metric in ("top1", "top5"):
        errors = [
            row[f"{metric}_error"] for row in rows_of_seeds if row[f"{metric}_error"] is not None
        ]  # top-5 of few classes
        merged[f"{metric}_error"] = statistics.fmean(errors) if errors else None
        merged[f"{metric}_spread"] = statistics.stdev(errors) if len(errors) > 1 else None
    return merged


def _figures(row: dict[str, Any]) -> str:
    return "/".join(_per_cent(row, metric) for metric in ("top1", "top5") if row[f"{metric}_error"] is not None)


def _per_cent(row: dict[str, Any], metric: str) -> str:
    spread = row[f"{metric}_spread"]
    return f"{100 * row[f'{metric}_error']:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']}, S {row['scales']}, {row['protocol']} at Q {row['test_scales']}: "
        f"{_figures(row)} % ({row['seeds']} seeds)"
    )
