"""From what was read to what the page shows: figures, tables and sentences, plain values for the template."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vgg_jax.config import default_config, recipe_of
from vgg_jax.evaluation import paper
from vgg_jax.evaluation.split import Split
from vgg_jax.evaluation.trained_model import TrainedModel, load_trained
from vgg_jax.models import NetworkSpec
from vgg_jax.recipe import Recipe, scale_text
from vgg_jax.reporting import images
from vgg_jax.reporting.classes import by_class
from vgg_jax.reporting.curves import ABSENT, Chance, chance_of, interval, percent, rate_text, run_charts
from vgg_jax.reporting.history import RunHistory
from vgg_jax.reporting.predictions import PageOptions, Predictions, cached_predictions, compute_evaluations
from vgg_jax.runtime.console import duration
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.training.diagnostics import guessing
from vgg_jax.weights import imagenet_classes

_MOST_EPOCHS = 100  # rows of the table of validations


def run_section(history: RunHistory, options: PageOptions) -> dict[str, Any]:
    """Returns everything about one run; missing data is omitted, with a note."""
    notes = list(history.notes)
    if history.summary is None:
        written, state = history.written(), history.state().removeprefix("unfinished, ")
        since = f"; metrics.jsonl was last written {written}" if written else ""
        sentence = f"This run is not finished: {state}{since}. The figures below cover the run so far."
        notes.insert(0, sentence)
    else:
        loss = history.summary.get("final_train_loss")
        known = loss if isinstance(loss, float) else None
        if text := guessing(Recipe.from_values(history.config), history.step(), known):
            notes.insert(0, text)
    trained, cached = _loaded(history, notes), None
    if trained is not None:
        history, cached = _evaluated(history, trained, options, notes)
    chance = _chance(history, cached)
    section: dict[str, Any] = {
        "name": history.name,
        "workdir": str(history.workdir),
        "title": model_title(history),
        "state": history.state(),
        "chance": chance,
        "tiles": _tiles(history, chance),
        "charts": run_charts(history, chance),
        "validations": _validations(history),
        "configuration": _configuration(history),
        "drops": [(f"{round(x, 2):g}", rate_text(rate)) for x, rate in history.rate_drops()],
        "unit": "epoch" if history.steps_per_epoch() else "step",
        "notes": notes,
        "errors": _error_rows(history),
        "reference": _reference(history),
        "is_imagenet": history.dataset.get("class_names") == list(imagenet_classes.titles()),
        "machine": _machine_rows(history),
    }
    if trained is not None:
        section |= _model(trained)
    if cached is not None:
        section |= _predictions(cached, options, notes)
    return section


def _loaded(history: RunHistory, notes: list[str]) -> TrainedModel | None:
    """Returns the model of the best checkpoint; None, with a note, where there is none or it cannot be read."""
    if not history.run.checkpoint_steps():
        notes.append("There is no checkpoint yet, so no filters and no predictions.")
        return None
    try:
        return load_trained(history.workdir)
    except UserError as error:
        notes.append(f"No filters and no predictions: {error}")
        return None


def _evaluated(
    history: RunHistory, trained: TrainedModel, options: PageOptions, notes: list[str]
) -> tuple[RunHistory, Predictions | None]:
    """Returns the history with the evaluations, and the predictions of the best; computes one where there is none."""
    cached = cached_predictions(trained, history.evaluations)
    if cached is None and options.may_compute:
        try:
            history = history._replace(evaluations=compute_evaluations(trained, options))
            cached = cached_predictions(trained, history.evaluations)
        except UserError as error:
            notes.append(f"No predictions: {error}")
    elif cached is None:
        command = f"vgg-jax evaluate {shlex.quote(f'--workdir={history.workdir}')}"
        notes.append(f"No predictions: it was not evaluated yet ({command}).")
    return history, cached


def _chance(history: RunHistory, cached: Predictions | None) -> Chance:
    """Returns the error of guessing on the run's validation split, from its labels where they are cached."""
    validation = history.dataset.get("name"), history.config["data.val_split"]
    if cached is None or (cached.data, cached.split) != validation:
        return chance_of(history.config["model.num_classes"])
    return chance_of(history.config["model.num_classes"], cached.labels, cached.trained.class_titles)


def _model(trained: TrainedModel) -> dict[str, Any]:
    """Returns the checkpoint, its size and the filters of its first layer."""
    layer = trained.model.layers[0].name
    kernel = np.asarray(trained.variables["params"][layer]["kernel"])
    size = "{} x {}".format(*kernel.shape[:2])
    return {
        "checkpoint": str(trained.checkpoint),
        "step_of_checkpoint": trained.checkpoint.name,
        "filters": {"image": images.filters(kernel), "count": kernel.shape[3], "size": size, "layer": layer},
        "parameters": f"{sum(x.size for x in jax.tree.leaves(trained.variables['params'])):,}",
    }


def _predictions(cached: Predictions, options: PageOptions, notes: list[str]) -> dict[str, Any]:
    """Returns errors, confusion, predictions and maps of one model."""
    split, count = None, len(cached.keys)
    try:
        split = cached.open_split(options)
    except UserError as error:
        notes.append(f"The images cannot be shown: {error}")
    predictions: dict[str, Any] = {
        "of": f"{cached.request.protocol.replace('_', ' ')}, Q = {cached.scales}, checkpoint "
        f"{cached.trained.checkpoint.name}, {cached.data} {cached.split}, {count:,} images",
        "top1": f"{percent(cached.top1_error)} ({interval(cached.top1_error, count)})",
        "top5": "" if cached.top5_error is None else percent(cached.top5_error),
        "classes": by_class(cached),
    }
    section: dict[str, Any] = {"predictions": predictions}
    try:
        predictions |= {
            "right": [cached.sample(split, i) for i in cached.surest_right(options.right)],
            "wrong": [cached.sample(split, i) for i in cached.surest_wrong(options.wrong)],
        }
        if split is not None and options.maps:
            section["maps"] = _maps(cached, split, options.maps)
    except UserError as error:  # an image that can no longer be read
        notes.append(f"Some images cannot be shown: {error}")
    return section


def _maps(cached: Predictions, split: Split, count: int) -> dict[str, Any]:
    """Returns maps of some images, and the heading and the sentence above them."""
    drawn = cached.score_maps(split, count)
    kinds = {one["is_cam"] for one in drawn}
    return {"drawn": drawn, "scale": cached.map_scale, "has_maps": False in kinds, "has_cams": True in kinds}


def model_title(history: RunHistory) -> str:
    """Returns the kind of model: "VGG D, 0.25 x as wide, crop 64, S = 73"."""
    config = history.config
    width, scale = config["model.width_multiplier"], scale_text(config["image.scale_min"], config["image.scale_max"])
    wide = "" if width == 1 else f", {width:g} x as wide"
    return f"{NetworkSpec.from_config(config).title}{wide}, crop {config['image.crop']}, S = {scale}"


def data_name(history: RunHistory) -> str:
    """Returns the data set's name in words."""
    root = history.config["data.root"]
    name = Path(root).name if history.config["data.name"] == "folder" and root else history.config["data.name"]
    classes = f"{len(history.dataset.get('class_names', ())) or history.config['model.num_classes']} classes"
    counts = [
        f"{history.dataset[key]:,} {word}"
        for key, word in (("train_images", "training"), ("validation_images", "validation"))
        if history.dataset.get(key)
    ]
    return f"{name}: {classes}" + (f", {' and '.join(counts)} images" if counts else "")


def _tiles(history: RunHistory, chance: Chance) -> list[tuple[str, str, str]]:
    """Returns (figure, label, detail) of the headline figures."""
    best, speed = history.best(), history.median("train/images_per_second")
    per_epoch = history.steps_per_epoch()
    tiles = []
    if best is not None:
        count = history.dataset.get("validation_images", 0)
        for k, where in (("1", f"best, step {int(best['step']):,}; centre crop"), ("5", "at the same step")):
            if (error := best.get(f"val/top{k}_error")) is not None:
                spread = interval(error, count)
                label = f"validation top-{k} error" + (f"; {chance.text}" if k == "1" else "")
                tiles.append((percent(error), label, f"95 %: {spread}; {where}" if spread else where))
    epochs = f"{round(history.step() / per_epoch, 1):g} epochs" if per_epoch else "steps"
    stopped = {"plateau": "ended by the last plateau", "num_epochs": "all its epochs"}
    how = stopped.get(str(history.summary.get("stopped_by")), "") if history.summary else "not finished"
    tiles.append((f"{history.step():,}", f"steps, {epochs}" if per_epoch else "steps", how))
    if history.summary:
        drops = history.summary.get("lr_drops")
        more = "" if drops is None else f"{drops} drop{'' if drops == 1 else 's'} of the rate"
        tiles.append((duration(history.summary["seconds"]), "training time", more))
    if speed is not None:
        waited = history.median("train/input_wait")
        wait = "" if waited is None else f"median; input wait {waited:.0%}"
        tiles.append((f"{speed:,.0f}", "images a second", wait))
    return tiles


def _validations(history: RunHistory) -> list[tuple[str, ...]]:
    """Rows of the table behind the curves: epoch, step, loss, top-1, top-5."""
    unit = history.steps_per_epoch()
    lines = [line for line in history.metrics if "val/top1_error" in line]
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


def _configuration(history: RunHistory) -> list[tuple[str, str, bool]]:
    """Returns (key, value, whether it differs from the paper's defaults)."""
    default = recipe_of(default_config()).given
    return [(key, str(value), key in default and value != default[key]) for key, value in history.config.items()]


def _machine_rows(history: RunHistory) -> list[tuple[str, str]]:
    """Returns hardware and versions, as far as the run or its evaluations record them."""
    rows: list[tuple[str, str]] = []
    latest = history.evaluations[-1][1] if history.evaluations else {}
    for origin, content in (("training", history.summary or {}), ("evaluation", latest)):
        versions = content.get("versions")
        if isinstance(versions, dict):
            rows.append((f"{origin}: versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
        rows += [(f"{origin}: {key}", str(content[key])) for key in ("devices", "host") if content.get(key)]
    if not any(name.startswith("training") for name, _ in rows):
        why = "not recorded" if history.summary else "recorded when the run is finished"
        rows.insert(0, ("training: versions, devices", why))
    speed, wait = history.median("train/images_per_second"), history.median("train/input_wait")
    if speed is not None:
        rows.append(("throughput", f"{speed:,.0f} images a second (median over the log)"))
    if wait is not None:
        rows.append(("input wait", f"{wait:.1%} of the time (median)"))
    if history.summary:
        rows.append(("training time", duration(history.summary["seconds"])))
        rows.append(("parameters, sha256", str(history.summary.get("params_sha256", ABSENT))))
    return rows


def _error_rows(history: RunHistory) -> list[dict[str, Any]]:
    """Returns the rows of all cached evaluations, each once, with the paper's figures where results name them.

    Of fusions, those of the models that this run was fused with are left out.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    for path, content in history.evaluations:
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
                "top1_interval": interval(row["top1_error"], row["images"]),
                "top5": percent(row.get("top5_error"), 2),
                "top5_interval": interval(row.get("top5_error"), row["images"]),
                "paper": f"{published.text(' / ')} %" if published else "",
            }
            rows.setdefault(tuple(shown.values()), shown)
    return list(rows.values())


def _reference(history: RunHistory) -> list[tuple[str, str, str]]:
    """Returns the paper's figures of this configuration: (training scale, single scale, multi-scale), top-1 / top-5."""
    configuration = NetworkSpec.from_config(history.config).name

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
