"""The curves of one run."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vgg_jax.evaluation import measures
from vgg_jax.reporting.charts import Chart, Line, Mark, YAxis, chart
from vgg_jax.reporting.history import RunHistory

ABSENT = "\N{EN DASH}"
# The line of chance is left out where the errors would lie in less than this part of the axis.
_FLATTENS = 5


def percent(fraction: float | None, digits: int = 1) -> str:
    return ABSENT if fraction is None else f"{100 * fraction:.{digits}f} %"


def _short(fraction: float) -> str:
    """Returns "80 %", "99.9 %"."""
    return f"{100 * fraction:.3g} %"


def interval(error: float | None, images: int, digits: int = 1) -> str:
    """Returns the 95 % interval of an error as "9.7 to 12.4 %"; "" where either is unknown."""
    if error is None or not images:
        return ""
    low, high = measures.error_interval(error, images)
    return f"{100 * low:.{digits}f} to {percent(high, digits)}"


def rate_text(rate: float) -> str:
    """Returns "1e-3", "2.5e-3"."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


class Chance(NamedTuple):
    """The top-1 error of guessing."""

    error: float  # a fraction
    sentence: str  # how it is guessed

    @property
    def text(self) -> str:
        return f"chance: {_short(self.error)}"

    def lines(self, others: Sequence[Line]) -> list[Line]:
        """Returns the line of a chart, as long as the others; none where it would flatten all of them."""
        points = [point for line in others for point in line.points]
        if not points or self.error > _FLATTENS * max(error for _, error in points):
            return []
        return [Line("chance", [(0, self.error), (max(x for x, _ in points), self.error)], 6, "thin dashed")]


def chance_of(num_classes: int, labels_N: np.ndarray | None = None, class_titles: Sequence[str] = ()) -> Chance:
    """Returns the error of guessing: of always answering the largest class, where the labels are known.

    Args:
      num_classes: K; without labels all count as equally large, which gives 1 - 1/K.
      labels_N: of the validation split, at least one.
      class_titles: of all classes, needed with labels.
    """
    equal = 1 - 1 / num_classes
    error = equal if labels_N is None else measures.guessing_error(labels_N)
    if labels_N is None or error > equal - 1e-9:
        return Chance(equal, f"Chance: guessing one of {num_classes:,} classes is wrong in {_short(equal)}.")
    largest = class_titles[int(np.bincount(labels_N).argmax())].replace("_", " ")
    return Chance(error, f"Chance: always answering the largest class, {largest}, is wrong in {_short(error)}.")


def run_charts(history: RunHistory, chance: Chance) -> list[Chart]:
    """Draws error, loss, a rate that changes gradually, speed, and norms by block where they are logged."""
    x_label = "epoch" if history.steps_per_epoch() else "step"
    marks = [Mark(x, f"lr {rate_text(rate)}") for x, rate in history.rate_drops()]
    drops = " Dashed: drops of the learning rate." if marks else ""
    is_gradual = history.config["schedule.name"] == "cosine" or history.config["schedule.warmup_epochs"] > 0
    classes = history.config["model.num_classes"]
    waits = history.series("train/input_wait")

    def line(label: str, name: str, color: int, kind: str = "", dots: bool = False) -> Line:
        return Line(label, history.series(name), color, kind, dots)

    draw = functools.partial(chart, x_label=x_label, marks=marks)
    error_lines = [
        line("training, top-1", "train/top1_error", 7, "thin"),
        line("validation, top-1", "val/top1_error", 0, dots=True),
        line("validation, top-5", "val/top5_error", 1, dots=True),
    ]
    charts = [
        draw(
            "Error",
            [*error_lines, *chance.lines(error_lines)],
            y_axis=YAxis(percent=True),
            caption="Training error is of augmented crops, with dropout; validation of a centre crop. "
            f"{chance.sentence}{drops}",
        ),
        draw(
            "Loss",
            [line("training", "train/loss", 7, "thin"), line("validation", "val/loss", 0, dots=True)],
            caption=f"Cross-entropy without L2; guessing has ln {classes} = {np.log(classes):.2f}.{drops}",
        ),
        draw("Learning rate", [line("learning rate", "train/lr", 4)] if is_gradual else []),
        draw("Gradient norm by block", _by_block(history, "train/gradient_norm"), y_axis=YAxis(log=True)),
        draw(
            "Update relative to parameters, by block",
            _by_block(history, "train/update_ratio"),
            y_axis=YAxis(log=True),
            caption="Norm of an update over the norm of what it updates.",
        ),
        draw("Images a second", [line("images a second", "train/images_per_second", 2, "thin")]),
        draw(
            "Time spent waiting for input",
            [Line("input wait", waits, 3, "thin")],
            y_axis=YAxis(percent=True, top=max((y for _, y in waits), default=0) or 0.01),
        ),
    ]
    return [one for one in charts if one is not None]


def _by_block(history: RunHistory, prefix: str) -> list[Line]:
    by_block = history.series_by_block(prefix)
    return [Line(block, points, i, "thin") for i, (block, points) in enumerate(by_block.items())]
