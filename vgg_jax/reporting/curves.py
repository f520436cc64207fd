"""The curves of one run."""

from __future__ import annotations

import functools

import numpy as np

from vgg_jax.reporting.charts import Chart, Line, Mark, YAxis, chart
from vgg_jax.reporting.history import RunHistory

ABSENT = "\N{EN DASH}"


def percent(fraction: float | None, digits: int = 1) -> str:
    return ABSENT if fraction is None else f"{100 * fraction:.{digits}f} %"


def rate_text(rate: float) -> str:
    """Returns "1e-3", "2.5e-3"."""
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def run_charts(history: RunHistory) -> list[Chart]:
    """Draws loss, error, a rate that changes gradually, speed, and norms by block where they are logged."""
    x_label = "epoch" if history.steps_per_epoch() else "step"
    marks = [Mark(x, f"lr {rate_text(rate)}") for x, rate in history.rate_drops()]
    drops = " Dashed: drops of the learning rate." if marks else ""
    is_gradual = history.config["schedule.name"] == "cosine" or history.config["schedule.warmup_epochs"] > 0
    classes = history.config["model.num_classes"]
    waits = history.series("train/input_wait")

    def line(label: str, name: str, color: int, kind: str = "", dots: bool = False) -> Line:
        return Line(label, history.series(name), color, kind, dots)

    draw = functools.partial(chart, x_label=x_label, marks=marks)
    charts = [
        draw(
            "Error",
            [
                line("training, top-1", "train/top1_error", 7, "thin"),
                line("validation, top-1", "val/top1_error", 0, dots=True),
                line("validation, top-5", "val/top5_error", 1, dots=True),
            ],
            y_axis=YAxis(percent=True),
            caption="Training error is of augmented crops, with dropout; validation of a centre crop. Guessing is "
            f"wrong in {percent(1 - 1 / classes)}.{drops}",
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
