"""The history of a run: its files, read once, with what the page derives from them; also while it still trains."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any, NamedTuple

from vgg_jax.config import flatten
from vgg_jax.runs import RunDir
from vgg_jax.training.schedules import epoch_steps

_REMEDY = "bring it back from a copy, or leave its directory out of the report"
Point = tuple[float, float]
Evaluations = list[tuple[Path, dict[str, Any]]]


class RunHistory(NamedTuple):
    """A run's files; what is not written yet is None or empty."""

    run: RunDir
    name: str  # for a person, as short as the runs next to it allow
    config: dict[str, Any]  # flat: {"model.configuration": "D", ...}
    dataset: dict[str, Any]  # {} before it is written
    metrics: list[dict[str, float]]  # in the order of steps
    summary: dict[str, Any] | None  # of a finished run only
    evaluations: Evaluations  # files of results, and their content
    notes: list[str]  # what could not be read, in sentences

    @property
    def workdir(self) -> Path:
        return self.run.path

    def step(self) -> int:
        """Returns the last known step."""
        last = int(self.metrics[-1]["step"]) if self.metrics else 0
        return max(last, self.summary["steps"] if self.summary else 0)

    def steps_per_epoch(self) -> float | None:
        images = self.dataset.get("train_images")
        batch_size, least = self.config["batch_size"], self.config["min_epoch_steps"]
        return epoch_steps(images, batch_size, least) if images else None

    def total_steps(self) -> int | None:
        """Returns the steps that the epochs allow; a plateau may end the run before."""
        per_epoch = self.steps_per_epoch()
        return math.ceil(self.config["num_epochs"] * per_epoch) if per_epoch else None

    def series(self, name: str) -> list[Point]:
        """Returns (epoch, or step where the epoch's length is unknown; value) of a metric, finite values only."""
        unit = self.steps_per_epoch() or 1
        points = ((line["step"] / unit, line[name]) for line in self.metrics if name in line)
        return [(x, y) for x, y in points if math.isfinite(y)]

    def series_by_block(self, prefix: str) -> dict[str, list[Point]]:
        """Returns {block: series} of a metric by block, as `train/gradient_norm/block1`, in the logged order."""
        names = dict.fromkeys(name for line in self.metrics for name in line if name.startswith(prefix + "/"))
        return {name.removeprefix(prefix + "/"): self.series(name) for name in names}

    def best(self) -> dict[str, float] | None:
        """Returns the validation line of least top-1 error, then of least loss, then the first, as checkpoints do."""

        def rank(line: dict[str, float]) -> tuple[float, float]:
            error, loss = line["val/top1_error"], line.get("val/loss", math.inf)
            return error, loss if math.isfinite(loss) else math.inf

        lines = [line for line in self.metrics if math.isfinite(line.get("val/top1_error", math.nan))]
        return min(lines, key=rank, default=None)

    def median(self, name: str) -> float | None:
        values = sorted(line[name] for line in self.metrics if name in line)
        return values[len(values) // 2] if values else None

    def rate_drops(self) -> list[tuple[float, float]]:
        """Returns (epoch or step, new rate) of each drop, at the last validation before the first line that shows it.

        The cosine, which lowers the rate at every step, has none.
        """
        if self.config["schedule.name"] == "cosine":
            return []
        unit = self.steps_per_epoch() or 1
        drops: list[tuple[float, float]] = []
        rate, before, validated = None, 0.0, None
        for line in self.metrics:
            if "val/top1_error" in line:
                validated = line["step"]
            if "train/lr" in line:
                if rate is not None and line["train/lr"] < 0.999 * rate:
                    at = validated if validated is not None and validated >= before else before
                    drops.append((at / unit, line["train/lr"]))
                rate, before = line["train/lr"], line["step"]
        return drops

    def written(self) -> str:
        """Returns when the last metrics were written, local time; "" where there are none."""
        if not self.run.metrics_file.exists():
            return ""
        seconds = self.run.metrics_file.stat().st_mtime
        return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")

    def state(self) -> str:
        """Returns "finished", or the progress in words."""
        if self.summary:
            return "finished"
        if not self.metrics:
            return "nothing logged yet"
        total = self.total_steps()
        return f"unfinished, at step {self.step():,}" + (f" of at most {total:,}" if total else "")


def read_history(workdir: Path, name: str) -> RunHistory:
    """Reads a workdir.

    Raises:
      UserError: a file of the run that is broken. Broken results of evaluations are noted and left out.
    """
    run = RunDir(workdir, _REMEDY)
    config = flatten(run.config())
    dataset = run.dataset() if run.dataset_file.exists() else {}
    metrics, damaged = run.metrics()
    metrics.sort(key=lambda line: line["step"])
    if config["model.num_classes"] <= 5:
        metrics = [{name: value for name, value in line.items() if "top5" not in name} for line in metrics]
    notes = [f"{damaged} lines of {run.metrics_file} are damaged and left out."] if damaged else []
    summary = run.summary()
    if summary and metrics and metrics[-1]["step"] > summary["steps"]:
        summary = None  # of before the run was continued
    evaluations, broken = run.evaluations()
    return RunHistory(run, name, config, dataset, metrics, summary, evaluations, notes + broken)
