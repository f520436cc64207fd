"""The curves of one run."""

from __future__ import annotations

import functools

import numpy as np

from vgg_jax.reporting.charts import Chart, Line, Mark, chart
from vgg_jax.reporting.history import RunHistory

ABSENT = "\N{EN DASH}"


def percent(fraction: float | None, digits: int = 1) -> str:
    return ABSENT if fraction is None else f"{100 * fraction:.{digits}f} %"


def rate_text(rate: float) -> str:
    """Returns "1e-3", "2.5e-3"."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def run_charts(run: RunHistory) -> list[Chart]:
    """Draws loss, error, a rate that changes gradually, speed, and norms by block where they are logged."""
    x_label = "epoch" if run.steps_per_epoch() else "step"
    marks = [Mark(x, f"lr {rate_text(rate)}") for x, rate in run.rate_drops()]
    drops = " Dashed: drops of the learning rate." if marks else ""
    is_gradual = run.config["schedule.name"] == "cosine" or run.config["schedule.warmup_epochs"] > 0
    classes = run.config["model.num_classes"]
    draw = functools.partial(chart, x_label=x_label, marks=marks)
    charts = [
        draw(
            "Error",
            [
                Line("training, top-1", run.series("train/top1_error"), 7, "thin"),
                Line("validation, top-1", run.series("val/top1_error"), 0, dots=True),
                Line("validation, top-5", run.series("val/top5_error"), 1, dots=True),
            ],
            percent=True,
            caption="Training error is of augmented crops, with dropout; validation of a centre crop. Guessing is wrong in "
            f"{percent(1 - 1 / classes)}.{drops}",
        ),
        draw(
            "Loss",
            [
                Line("training", run.series("train/loss"), 7, "thin"),
                Line("validation", run.series("val/loss"), 0, dots=True),
            ],
            caption=f"Cross-entropy without L2; guessing has ln {classes} = {np.log(classes):.2f}.{drops}",
        ),
        draw("Learning rate", [Line("learning rate", run.series("train/lr"), 4)] if is_gradual else []),
        draw("Gradient norm by block", _by_block(run, "train/gradient_norm"), log=True),
        draw(
            "Update relative to parameters, by block",
            _by_block(run, "train/update_ratio"),
            log=True,
            caption="Norm of an update over the norm of what it updates.",
        ),
        draw("Images a second", [Line("images a second", run.series("train/images_per_second"), 2, "thin")]),
        draw(
            "Time spent waiting for input",
            [Line("input wait", run.series("train/input_wait"), 3, "thin")],
            percent=True,
            top=max((y for _, y in run.series("train/input_wait")), default=0) or 0.01,
        ),
    ]
    return [one for one in charts if one is not None]


def _by_block(run: RunHistory, prefix: str) -> list[Line]:
    return [Line(block, points, i, "thin") for i, (block, points) in enumerate(run.series_by_block(prefix).items())]
