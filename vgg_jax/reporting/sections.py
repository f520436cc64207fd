"""From what was read to what the page shows: figures, tables and sentences, plain values for the template."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vgg_jax.config import default_config, flatten, scale_text
from vgg_jax.evaluation import paper
from vgg_jax.evaluation.trained_model import TrainedModel, load_trained
from vgg_jax.models import NetworkSpec
from vgg_jax.reporting import images, predictions
from vgg_jax.reporting.curves import ABSENT, percent, rate_text, run_charts
from vgg_jax.reporting.history import RunHistory
from vgg_jax.runtime.console import duration
from vgg_jax.runtime.exceptions import UserError

_MOST_CLASSES = 20  # of a confusion matrix; of more, the hardest
_HARDEST = 15
_MOST_EPOCHS = 100  # rows of the table of validations


class Wanted(NamedTuple):
    """Amount of detail that a page shows of a run."""

    right: int = 0  # images of the surest right predictions
    wrong: int = 0  # likewise of the wrong ones
    maps: int = 0  # images with score maps
    may_compute: bool = False  # a centre crop's probabilities, where no evaluation is kept


class Place(NamedTuple):
    """Location of data, if not that of the runs; "" for that."""

    data_dir: str = ""
    data_root: str = ""


def run_section(run: RunHistory, detail: Wanted, location: Place, quiet: bool) -> dict[str, Any]:
    """Returns everything about one run; missing data is omitted, with a note."""
    notes = list(run.notes)
    if run.summary is None:
        written = run.written()
        since = f"; metrics.jsonl was last written {written}" if written else ""
        notes.insert(
            0,
            f"This run is not finished: {run.state().removeprefix('unfinished, ')}{since}. What follows is of the time until then.",
        )
    section: dict[str, Any] = {
        "name": run.name,
        "workdir": str(run.workdir),
        "title": title(run),
        "state": run.state(),
        "tiles": _tiles(run),
        "charts": run_charts(run),
        "validations": _validations(run),
        "configuration": _configuration(run),
        "drops": [(f"{round(x, 2):g}", rate_text(rate)) for x, rate in run.rate_drops()],
        "unit": "epoch" if run.steps_per_epoch() else "step",
        "notes": notes,
    }
    if not run.run.checkpoint_steps():
        notes.append("There is no checkpoint yet, so no filters and no predictions.")
        return section | _results(run)
    try:
        trained = load_trained(run.workdir)
    except UserError as error:
        notes.append(f"No filters and no predictions: {error}")
        return section | _results(run)
    section["checkpoint"] = str(trained.checkpoint)
    section["step_of_checkpoint"] = trained.checkpoint.name
    first = trained.model.layers[0].name
    kernel = np.asarray(trained.variables["params"][first]["kernel"])
    size = "{} x {}".format(*kernel.shape[:2])
    section["filters"] = {
        "image": images.filters(kernel),
        "count": kernel.shape[3],
        "size": size,
        "layer": first,
    }
    section["parameters"] = f"{sum(x.size for x in jax.tree.leaves(trained.variables['params'])):,}"
    return section | _predictions(run, trained, detail, location, quiet, notes)


def _predictions(
    run: RunHistory, trained: TrainedModel, detail: Wanted, location: Place, quiet: bool, notes: list[str]
) -> dict[str, Any]:
    """Returns errors, confusion, predictions and maps of one model."""
    cached = predictions.from_cache(trained, run.evaluations)
    if cached is None and detail.may_compute:
        try:
            run = run._replace(evaluations=predictions.compute(trained, *location, quiet=quiet))
            cached = predictions.from_cache(trained, run.evaluations)
        except UserError as error:
            notes.append(f"No predictions: {error}")
    section = _results(run)
    if cached is None:
        if not detail.may_compute:
            notes.append(
                f"No predictions: it was not evaluated yet (vgg-jax evaluate {shlex.quote(f'--workdir={run.workdir}')})."
            )
        return section
    split = None
    try:
        split = predictions.split_of(cached, trained, *location)
    except UserError as error:
        notes.append(f"The images cannot be shown: {error}")
    section["predictions"] = {
        "of": f"{cached.protocol.replace('_', ' ')}, Q = {cached.scales}, checkpoint {trained.checkpoint.name}, "
        f"{cached.data} {cached.split}, {len(cached.keys):,} images",
        "top1": percent(cached.top1_error),
        "top5": "" if cached.top5_error is None else percent(cached.top5_error),
        "classes": by_class(cached, trained.class_names),
    }
    try:
        section["predictions"] |= {
            "right": [
                predictions.sample(cached, trained, split, i) for i in predictions.surest_right(cached, detail.right)
            ],
            "wrong": [
                predictions.sample(cached, trained, split, i) for i in predictions.surest_wrong(cached, detail.wrong)
            ],
        }
        if split is not None and detail.maps:
            section["maps"] = predictions.score_maps(cached, trained, split, detail.maps)
            section["map_scale"] = predictions.map_scale(trained)
    except UserError as error:  # an image that can no longer be read
        notes.append(f"Some images cannot be shown: {error}")
    return section


def _results(run: RunHistory) -> dict[str, Any]:
    """Returns the cached evaluations."""
    return {"errors": _error_rows(run), "reference": _reference(run), "machine": _machine(run)}


def title(run: RunHistory) -> str:
    """Returns the kind of model: "VGG D, 0.25 x as wide, crop 64, S = 73"."""
    low, high = run.config["image.scale_min"], run.config["image.scale_max"]
    width = run.config["model.width_multiplier"]
    return ", ".join(
        [
            NetworkSpec.from_config(run.config).title,
            *([] if width == 1 else [f"{width:g} x as wide"]),
            f"crop {run.config['image.crop']}",
            f"S = {scale_text(low, high)}",
        ]
    )


def data_name(run: RunHistory) -> str:
    """Returns the data set's name in words."""
    root = run.config["data.root"]
    name = Path(root).name if run.config["data.name"] == "folder" and root else run.config["data.name"]
    classes = f"{len(run.dataset.get('class_names', ())) or run.config['model.num_classes']} classes"
    counts = [
        f"{run.dataset[key]:,} {word}"
        for key, word in (("train_images", "training"), ("validation_images", "validation"))
        if run.dataset.get(key)
    ]
    return f"{name}: {classes}" + (f", {' and '.join(counts)} images" if counts else "")


def _tiles(run: RunHistory) -> list[tuple[str, str, str]]:
    """Returns (figure, label, detail) of the headline figures."""
    best, speed = run.best(), run.median("train/images_per_second")
    per_epoch = run.steps_per_epoch()
    tiles = []
    if best is not None:
        at = f"best, step {int(best['step']):,}; centre crop"
        tiles.append((percent(best["val/top1_error"]), "validation top-1 error", at))
        if "val/top5_error" in best:
            tiles.append((percent(best["val/top5_error"]), "validation top-5 error", "at the same step"))
    epochs = f"{round(run.step() / per_epoch, 1):g} epochs" if per_epoch else "steps"
    stopped = {"plateau": "ended by the last plateau", "num_epochs": "all its epochs"}
    how = stopped.get(str(run.summary.get("stopped_by")), "") if run.summary else "not finished"
    tiles.append((f"{run.step():,}", f"steps, {epochs}" if per_epoch else "steps", how))
    if run.summary:
        drops = run.summary["lr_drops"]
        more = f"{drops} drop{'' if drops == 1 else 's'} of the rate"
        tiles.append((duration(run.summary["seconds"]), "training time", more))
    if speed is not None:
        waited = run.median("train/input_wait")
        wait = "" if waited is None else f"median; input wait {waited:.0%}"
        tiles.append((f"{speed:,.0f}", "images a second", wait))
    return tiles


def _validations(run: RunHistory) -> list[tuple[str, ...]]:
    """Rows of the table behind the curves: epoch, step, loss, top-1, top-5."""
    unit = run.steps_per_epoch()
    lines = [line for line in run.metrics if "val/top1_error" in line]
    every = -(-len(lines) // _MOST_EPOCHS) or 1
    shown = lines[::-every][::-1] if every > 1 else lines  # the last is among them
    return [
        (
            f"{line['step'] / unit:.4g}" if unit else ABSENT,
            f"{int(line['step']):,}",
            f"{line.get('val/loss', float('nan')):.4f}",
            percent(line["val/top1_error"], 2),
            percent(line.get("val/top5_error"), 2),
        )
        for line in shown
    ]


def _configuration(run: RunHistory) -> list[tuple[str, str, bool]]:
    """Returns (key, value, whether it differs from the paper's defaults)."""
    default = flatten(default_config())
    return [(key, str(value), key in default and value != default[key]) for key, value in run.config.items()]


def _machine(run: RunHistory) -> list[tuple[str, str]]:
    """Returns hardware and versions, as far as the run or its evaluations record them."""
    rows: list[tuple[str, str]] = []
    latest = run.evaluations[-1][1] if run.evaluations else {}
    for origin, content in (("training", run.summary or {}), ("evaluation", latest)):
        versions = content.get("versions")
        if isinstance(versions, dict):
            rows.append((f"{origin}: versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
        rows += [(f"{origin}: {key}", str(content[key])) for key in ("devices", "host") if content.get(key)]
    if not any(name.startswith("training") for name, _ in rows):
        why = "not recorded" if run.summary else "recorded when the run is finished"
        rows.insert(0, ("training: versions, devices", why))
    speed, wait = run.median("train/images_per_second"), run.median("train/input_wait")
    if speed is not None:
        rows.append(("throughput", f"{speed:,.0f} images a second (median over the log)"))
    if wait is not None:
        rows.append(("input wait", f"{wait:.1%} of the time (median)"))
    if run.summary:
        rows.append(("training time", duration(run.summary["seconds"])))
        rows.append(("parameters, sha256", str(run.summary.get("params_sha256", ABSENT))))
    return rows


def _error_rows(run: RunHistory) -> list[dict[str, Any]]:
    """Returns the rows of all cached evaluations, each once, with the paper's figures where results name them.

    Of fusions, those of the models that this run was fused with are left out.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    for path, content in run.evaluations:
        shown_rows = content["rows"]
        if len(content["models"]) > 1:
            # The run's own come first: each pass, their means where there are several, and the mean over methods.
            methods = Counter(one["method"] for one in content["models"][0]["passes"])
            own = sum(count + (count > 1) for count in methods.values()) + (len(methods) > 1)
            shown_rows = shown_rows[:own] + [row for row in shown_rows[own:] if row["models"].startswith("fusion")]
        for row in shown_rows:
            published = (
                paper.TopKError(row["paper"].get("top1"), row["paper"].get("top5")) if row.get("paper") else None
            )
            shown = {
                "model": row["models"],
                "checkpoint": path.parent.parent.name,
                "data": f"{content['data'].get('name', '')} {content['data'].get('split', '')}",
                "protocol": row["protocol"].replace("_", " "),
                "scales": row["scales"].replace(",", ", "),
                "images": f"{row['images']:,}",
                "top1": percent(row["top1_error"], 2),
                "top5": percent(row.get("top5_error"), 2),
                "paper": f"{published.text(' / ')} %" if published else "",
            }
            rows.setdefault(tuple(shown.values()), shown)
    return list(rows.values())


def _reference(run: RunHistory) -> list[tuple[str, str, str]]:
    """Returns the paper's figures of this configuration: (training scale, single scale, multi-scale), top-1 / top-5."""
    configuration = NetworkSpec.from_config(run.config).name

    def text(errors: paper.TopKError | None) -> str:
        return f"{errors.top1} / {errors.top5} %" if errors else ABSENT

    return [
        (
            scale,
            text(paper.SINGLE_SCALE.get((configuration, scale))),
            text(paper.MULTI_SCALE.get((configuration, scale))),
        )
        for scale in ("S=256", "S=384", "jitter")
        if (configuration, scale) in paper.SINGLE_SCALE
    ]


def by_class(cached: predictions.Predictions, class_names: list[str]) -> dict[str, Any]:
    """Returns the confusion matrix of few classes, or the hardest of many."""
    matrix = predictions.confusion(cached, len(class_names))
    counts = np.bincount(cached.labels, minlength=len(matrix))
    errors = 1 - np.diag(matrix) / np.maximum(counts, 1)
    if len(matrix) <= _MOST_CLASSES:
        shares = matrix / np.maximum(counts, 1)[:, None]
        rows = [
            {
                "name": name,
                "cells": [
                    (int(n), round(100 * float(share)), i == j) for j, (n, share) in enumerate(zip(*row, strict=True))
                ],
                "images": int(counts[i]),
                "error": percent(float(errors[i]), 0).replace(" ", "\u00a0"),
            }
            for i, (name, row) in enumerate(zip(class_names, zip(matrix, shares, strict=True), strict=True))
        ]
        return {"matrix": rows, "hardest": [], "count": len(matrix)}
    wrong = matrix - np.diag(np.diag(matrix))
    hardest = [int(i) for i in np.argsort(-errors, kind="stable") if counts[i]][:_HARDEST]
    rows = [
        {
            "name": class_names[i],
            "images": int(counts[i]),
            "error": percent(float(errors[i])),
            "share": round(100 * float(errors[i])),
            "taken_for": ", ".join(
                f"{class_names[j].replace('_', ' ')} ({wrong[i, j]})"
                for j in np.argsort(-wrong[i], kind="stable")[:3]
                if wrong[i, j]
            ),
        }
        for i in hardest
    ]
    return {"matrix": [], "hardest": rows, "count": len(matrix)}
