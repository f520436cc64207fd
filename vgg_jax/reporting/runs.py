"""What a training run has left in its workdir, read as it is: also where it is unfinished, or still being written."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vgg_jax.config import default_config, flatten
from vgg_jax.evaluation.protocol import Request
from vgg_jax.runtime import files
from vgg_jax.runtime.exceptions import UserError, quoted
from vgg_jax.training.metrics import read_metrics
from vgg_jax.validation import check_values

_MOST_BITS = 63  # of an integer
Point = tuple[float, float]
Evaluations = list[tuple[Path, dict[str, Any]]]


class Run(NamedTuple):
    """A workdir's files; what is not there yet is None or empty."""

    workdir: Path
    name: str  # for a person, as short as the runs next to it allow
    config: dict[str, Any]  # flat: {"model.configuration": "D", ...}
    dataset: dict[str, Any]  # dataset.json; {} before it is written
    metrics: list[dict[str, float]]  # lines of metrics.jsonl, in the order of steps
    summary: dict[str, Any] | None  # of a finished run only
    written: str  # when metrics.jsonl was last written, local time; "" where there is none
    evaluations: Evaluations  # files results-*.json below evaluation/, and what they say
    notes: list[str]  # what could not be read, in sentences

    def step(self) -> int:
        """Returns the last known step."""
        last = int(self.metrics[-1]["step"]) if self.metrics else 0
        return max(last, self.summary["steps"] if self.summary else 0)

    def steps_per_epoch(self) -> float | None:
        images = self.dataset.get("train_images")
        return images / self.config["batch_size"] if images else None

    def total_steps(self) -> int | None:
        """Steps that the epochs allow; a plateau may end the run before."""
        per_epoch = self.steps_per_epoch()
        return math.ceil(self.config["num_epochs"] * per_epoch) if per_epoch else None

    def series(self, name: str) -> list[Point]:
        """Returns (epoch, or step where the epoch's length is unknown; value) of a metric, finite values only."""
        unit = self.steps_per_epoch() or 1
        points = ((line["step"] / unit, line[name]) for line in self.metrics if name in line)
        return [(x, y) for x, y in points if math.isfinite(y)]

    def best(self) -> dict[str, float] | None:
        """Returns the validation line of least top-1 error, then of least loss, then the earlier one, as checkpoints are chosen."""

        def rank(line: dict[str, float]) -> tuple[float, float]:
            error, loss = line["val/top1_error"], line.get("val/loss", math.inf)
            return error, loss if math.isfinite(loss) else math.inf

        lines = [line for line in self.metrics if math.isfinite(line.get("val/top1_error", math.nan))]
        return min(lines, key=rank, default=None)

    def median(self, name: str) -> float | None:
        values = sorted(line[name] for line in self.metrics if name in line)
        return values[len(values) // 2] if values else None


def is_run(directory: Path) -> bool:
    return (directory / "config.json").is_file()


def read_run(workdir: Path, name: str) -> Run:
    """Reads a workdir.

    Raises:
      UserError: a file of the run that is broken. Broken results of evaluations are noted and left out.
    """
    config = _config(workdir / "config.json")
    dataset = read_json(workdir / "dataset.json") if (workdir / "dataset.json").exists() else {}
    if dataset:
        counts = [key for key in ("train_images", "validation_images") if key in dataset]
        _known(workdir / "dataset.json", dataset, {"class_names": list} | dict.fromkeys(counts, int))
        _known_texts(workdir / "dataset.json", "class_names", dataset["class_names"])
    summary = read_json(workdir / "summary.json") if (workdir / "summary.json").exists() else None
    if summary is not None:
        _known(workdir / "summary.json", summary, {"steps": int, "seconds": float, "lr_drops": int})
    path = workdir / "metrics.jsonl"
    metrics, notes = _metrics(path, config["model.num_classes"])
    if summary and metrics and metrics[-1]["step"] > summary["steps"]:
        summary = None  # of before the run was continued
    written = ""
    if path.exists():
        written = datetime.datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    evaluations, broken = read_evaluations(workdir)
    return Run(workdir, name, config, dataset, metrics, summary, written, evaluations, notes + broken)


def lr_drops(run: Run) -> list[tuple[float, float]]:
    """Returns (epoch or step, new rate) of each drop, at the last validation before the first line that shows it.

    The cosine, which lowers the rate at every step, has none.
    """
    if run.config["schedule.name"] == "cosine":
        return []
    unit = run.steps_per_epoch() or 1
    drops: list[tuple[float, float]] = []
    rate, before, validated = None, 0.0, None
    for line in run.metrics:
        if "val/top1_error" in line:
            validated = line["step"]
        if "train/lr" in line:
            if rate is not None and line["train/lr"] < 0.999 * rate:
                at = validated if validated is not None and validated >= before else before
                drops.append((at / unit, line["train/lr"]))
            rate, before = line["train/lr"], line["step"]
    return drops


def norms(run: Run, prefix: str) -> dict[str, list[Point]]:
    """Returns {block: series} of a metric by block, as `train/gradient_norm/block1`, in the logged order."""
    names = dict.fromkeys(name for line in run.metrics for name in line if name.startswith(prefix + "/"))
    return {name.removeprefix(prefix + "/"): run.series(name) for name in names}


def state(run: Run) -> str:
    """Returns "finished", or the progress in words."""
    if run.summary:
        return "finished"
    if not run.metrics:
        return "nothing logged yet"
    total = run.total_steps()
    return f"unfinished, at step {run.step():,}" + (f" of at most {total:,}" if total else "")


def check_same_data(runs: Sequence[Run]) -> None:
    """Raises UserError where runs have other classes or another validation split than the first."""
    known = [run for run in runs if run.dataset]
    for run in known[1:]:
        first, other = ((one.dataset["class_names"], one.dataset.get("validation_images")) for one in (known[0], run))
        if first != other:
            raise UserError(
                f"{known[0].workdir} and {run.workdir} are runs on different data ({_data(known[0])}; {_data(run)}), so "
                "their errors cannot stand side by side; write a report of each."
            )


def _data(run: Run) -> str:
    images = run.dataset.get("validation_images")
    return f"{run.dataset.get('name', 'no name')}, {len(run.dataset['class_names'])} classes" + (
        f", {images:,} validation images" if images else ""
    )


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: the file cannot be read, or holds something else.
    """
    content = files.read_json(path, "bring it back from a copy, or leave its directory out of the report")
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object, but {type(content).__name__}; it is not a file of this program.")
    _check_sizes(path, content)
    return content


def _check_sizes(path: Path, value: Any) -> None:
    """Raises UserError at a number that no float holds."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise UserError(f"{path} has {quoted(value)}, which is not of this program; bring it back from a copy.")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_sizes(path, part)


def _config(path: Path) -> dict[str, Any]:
    try:
        flat = flatten(ConfigDict(read_json(path)))
        check_values(flat)
    except (TypeError, ValueError, AttributeError, UserError) as error:
        raise UserError(f"{path} is no run's configuration: {str(error).rstrip('.')}.") from error
    if "model.configuration" not in flat:
        raise UserError(f"{path} is no run's configuration: model.configuration is missing; bring it back from a copy.")
    return flatten(default_config()) | flat


def _known(path: Path, content: Any, kinds: dict[str, Any]) -> None:
    """Raises UserError where a value is not of its kind: a type, `int` for a count and `float` for a finite number, or several."""
    for key, kind in kinds.items():
        value = content.get(key) if isinstance(content, dict) else None
        if not any(_is(value, one) for one in (kind if isinstance(kind, tuple) else (kind,))):
            raise UserError(
                f"{path} has {key!r} as {quoted(value)}, which is not of this program; bring it back from a copy."
            )


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and value >= 0
    return isinstance(value, kind)


def _known_texts(path: Path, key: str, values: Any) -> None:
    """Raises UserError where values are not a list of texts."""
    for value in values if isinstance(values, list) else [values]:
        _known(path, {key: value}, {key: str})


def _metrics(path: Path, classes: int) -> tuple[list[dict[str, float]], list[str]]:
    """Returns all sound lines by step, without the top-5 error of five classes or fewer, and notes on the others."""
    try:
        lines, damaged = read_metrics(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); mend its permissions or bring it back.") from error
    sound = [
        line
        for line in lines
        if not any(isinstance(value, int) and value.bit_length() > _MOST_BITS for value in line.values())
    ]
    lines, damaged = sound, damaged + len(lines) - len(sound)
    if classes <= 5:
        lines = [{name: value for name, value in line.items() if "top5" not in name} for line in lines]
    notes = [f"{damaged} lines of {path} are damaged and left out."] if damaged else []
    return sorted(lines, key=lambda line: line["step"]), notes


def read_evaluations(workdir: Path) -> tuple[Evaluations, list[str]]:
    """Returns the results of evaluations in a workdir, and notes on those that are damaged."""
    evaluations, notes = [], []
    for path in sorted(workdir.glob("evaluation/*/*/results-*.json")):
        try:
            content = read_json(path)
            _check_evaluation(path, content)
            evaluations.append((path, content))
        except UserError as error:
            notes.append(f"An evaluation is left out: {error}")
    return evaluations, notes


def _check_evaluation(path: Path, content: dict[str, Any]) -> None:
    """Raises UserError where results of an evaluation are not as `protocol.evaluate` writes them."""
    _known(path, content, {"rows": list, "models": list, "data": dict, "request": dict})
    _known(path, content["data"], {"name": str, "split": str})
    for model in content["models"]:
        _known(path, model, {"checkpoint": str, "params_sha256": str, "dtype": str, "passes": list})
        for one in model["passes"]:
            _known(path, one, {"method": str, "scale": int, "crop": int, "mirrored": bool})
    for row in content["rows"]:
        text, may_lack = dict.fromkeys(("models", "protocol", "scales"), str), (float, NoneType)
        _known(
            path, row, {**text, "images": int, "top1_error": float, "top5_error": may_lack, "paper": (dict, NoneType)}
        )
        if row.get("paper"):
            _known(path, row["paper"], dict.fromkeys(("top1", "top5"), may_lack))
    defaults = Request(())._asdict()
    for key, value in content["request"].items():
        if isinstance(defaults.get(key), tuple):
            _known_texts(path, key, value)
        elif key in defaults:
            _known(path, content["request"], {key: type(defaults[key])})
