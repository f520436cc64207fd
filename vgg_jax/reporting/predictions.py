"""Predictions on a split, from the best cached evaluation (centre crop if none)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vgg_jax.data.decode import decode
from vgg_jax.evaluation import heatmaps, results
from vgg_jax.evaluation.cache import Cache, Probs
from vgg_jax.evaluation.passes import PROTOCOLS, EvalPass
from vgg_jax.evaluation.protocol import Request, evaluate, open_evaluated, workdir_below
from vgg_jax.evaluation.run import decoded
from vgg_jax.evaluation.split import Split, pass_name
from vgg_jax.evaluation.trained_model import TrainedModel
from vgg_jax.reporting import images
from vgg_jax.reporting.history import Evaluations
from vgg_jax.runs import RunDir
from vgg_jax.runtime.console import Console
from vgg_jax.runtime.exceptions import UserError

_THUMBNAIL = 168  # pixels
_MAP_SIDE = 256  # pixels


class Predictions(NamedTuple):
    """Probabilities of a split, averaged as a protocol does, and their origin."""

    protocol: str
    scales: str  # test scales Q
    data: str
    split: str
    request: Request  # that computed them
    keys: np.ndarray  # [N] str
    labels: np.ndarray  # [N], as the model numbers classes
    probs_NxK: np.ndarray  # float64; zeros where the image was skipped
    top1_error: float  # fractions
    top5_error: float | None  # None with five classes or fewer

    def predicted(self) -> np.ndarray:
        """Returns the likeliest class of each image, [N]; -1 where it was skipped."""
        return np.where(self.probs_NxK.any(1), results.top5_classes(self.probs_NxK)[:, 0], -1)


def from_cache(trained: TrainedModel, evaluations: Evaluations) -> Predictions | None:
    """Returns the most thorough complete evaluation of this checkpoint alone; its own validation split first."""
    candidates = []
    for path, content in evaluations:
        models, request = content["models"], content["request"]
        passes = models[0].get("passes", []) if len(models) == 1 else []
        is_own = bool(passes) and models[0].get("params_sha256") == trained.digest and content["rows"]
        if is_own and request.get("protocol") in PROTOCOLS:
            other_data = bool(request.get("data_name") or request.get("data_root"))
            other_split = request.get("split") not in ("", None, trained.config.data.val_split)
            candidates.append(((other_data, other_split, -len(passes), path.name), path, content))
    for _, path, content in sorted(candidates, key=lambda candidate: candidate[0]):
        averaged = _averaged(trained, path.parent, content)
        if averaged is not None:
            return averaged
    return None


def compute(trained: TrainedModel, data_dir: str, data_root: str, quiet: bool) -> Evaluations:
    """Evaluates a centre crop on the run's validation split, and caches it like any other evaluation.

    Returns:
      All evaluations of the model, those that `output_workdir` has put elsewhere included.

    Raises:
      UserError: as `protocol.evaluate`.
    """
    evaluate(Request((str(trained.checkpoint),), protocol="center_crop", data_dir=data_dir, data_root=data_root), quiet)
    workdirs = (trained.workdir, workdir_below(trained, ""))
    return [evaluation for workdir in workdirs for evaluation in RunDir(workdir).evaluations()[0]]


def _averaged(trained: TrainedModel, directory: Path, content: dict[str, Any]) -> Predictions | None:
    request = Request(**{name: content["request"][name] for name in Request._fields if name in content["request"]})
    probs: dict[EvalPass, Probs] = {}
    for description in content["models"][0]["passes"]:
        eval_pass = EvalPass(*(description[name] for name in EvalPass._fields))
        name = pass_name(trained, eval_pass)
        if content["models"][0]["dtype"] != trained.config.model.dtype:
            return None  # cached next to the run's own under another name
        try:
            cache = Cache.with_own_settings(directory, name, len(trained.class_names))
            cached = cache.load()
        except (UserError, KeyError, TypeError):
            return None
        origin = tuple(cache.settings.get(key) for key in ("params_sha256", "data", "split"))
        if cached is None or origin != (trained.digest, content["data"]["name"], content["data"]["split"]):
            return None
        probs[eval_pass] = cached
    first, skipped = next(iter(probs.values())), np.any([cached.skipped for cached in probs.values()], 0)
    if (first.labels < 0).any():
        return None
    mean_NxK = results.over_methods(probs, PROTOCOLS[request.protocol])
    mean_NxK[skipped] = 0
    top1_error, top5_error = results.topk_errors(mean_NxK, first.labels, skipped)
    return Predictions(
        request.protocol,
        ", ".join(map(str, sorted({eval_pass.scale for eval_pass in probs}))),
        content["data"]["name"],
        content["data"]["split"],
        request,
        first.keys,
        first.labels,
        mean_NxK,
        top1_error,
        top5_error if mean_NxK.shape[1] > 5 else None,
    )


def split_of(predictions: Predictions, trained: TrainedModel, data_dir: str, data_root: str) -> Split:
    """Opens the split of predictions.

    Raises:
      UserError: its images are no longer there, or others are.
    """
    request = predictions.request._replace(
        data_dir=data_dir or predictions.request.data_dir, data_root=data_root or predictions.request.data_root
    )
    split = open_evaluated(request, trained, Console(quiet=True))
    if len(split.records) != len(predictions.keys):
        raise UserError(
            f"{split.data}, split {split.name}, has {len(split.records)} images now, and had {len(predictions.keys)} when "
            "it was evaluated; evaluate the run again."
        )
    return split


def confusion(predictions: Predictions, num_classes: int) -> np.ndarray:
    """Returns [K, K] int64, images by true class (row) and predicted class; skipped ones are in no column."""
    predicted = predictions.predicted()
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (predictions.labels[predicted >= 0], predicted[predicted >= 0]), 1)
    return matrix


def surest_right(predictions: Predictions, count: int) -> list[int]:
    """Returns images predicted rightly, the surest of each class, surest first."""
    sure = predictions.probs_NxK.max(1)
    right = np.flatnonzero(predictions.predicted() == predictions.labels)
    order = right[np.argsort(-sure[right], kind="stable")]
    _, firsts = np.unique(predictions.labels[order], return_index=True)
    return [int(i) for i in order[np.sort(firsts)][:count]]


def surest_wrong(predictions: Predictions, count: int) -> list[int]:
    """Returns images predicted wrongly, spread over their true classes: the surest of each first, then the second, ..."""
    predicted = predictions.predicted()
    wrong = np.flatnonzero((predicted != predictions.labels) & (predicted >= 0))
    order = wrong[np.argsort(-predictions.probs_NxK[wrong].max(1), kind="stable")]
    labels = predictions.labels[order]
    rank_in_class = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)], int)
    return [int(i) for i in order[np.argsort(rank_in_class, kind="stable")][:count]]


def sample(predictions: Predictions, trained: TrainedModel, split: Split | None, index: int) -> dict[str, Any]:
    """Returns what the page says of one image; without its pixels where there is no split."""
    probs_K, label = predictions.probs_NxK[index], predictions.labels[index]
    top3 = results.top5_classes(probs_K[None])[0, :3]
    pixels = decoded(split.records, index, decode) if split else None
    return {
        "key": str(predictions.keys[index]),
        "true": trained.class_names[label],
        "right": bool(top3[0] == label),
        "best": [(trained.class_names[k], float(probs_K[k]), bool(k == label)) for k in top3],
        "true_probability": float(probs_K[label]),
        "image": None if pixels is None else images.thumbnail(pixels, _THUMBNAIL),
    }


def map_scale(trained: TrainedModel) -> int:
    """Returns Q of the score maps in pixels: twice S, and at least four cells of the map on the shorter side."""
    low, high = trained.config.image.scale_min, trained.config.image.scale_max
    return max(low + high, trained.config.image.crop + 96)


def score_maps(predictions: Predictions, trained: TrainedModel, split: Split, count: int) -> list[dict[str, Any]]:
    """Draws score maps of the true and of the predicted, or the second, class; of images spread evenly over the split."""
    variables, scale = heatmaps.on_one_device(trained), map_scale(trained)
    drawn = []
    for index in heatmaps.spread(len(predictions.keys), count + 2)[1:-1]:
        pixels = heatmaps.image_for_map(split.records, index, scale)
        if pixels is None:
            continue
        scores, probs_K = heatmaps.score_map(trained, variables, pixels)
        label, image = int(predictions.labels[index]), Image.fromarray(pixels)
        classes = heatmaps.classes_to_draw(probs_K, label)
        shown = scores[..., [k for _, k in classes]]
        ends = float(shown.min()), float(shown.max())
        maps = [
            heatmaps.overlay(image, shown[..., i], ends, pixels.shape[:2], trained.model.layers)
            for i in range(len(classes))
        ]
        drawn.append(
            {
                "key": str(predictions.keys[index]),
                "true": trained.class_names[label],
                "image": images.jpeg(image, _MAP_SIDE),
                "cells": f"{scores.shape[0]} x {scores.shape[1]}",
                "maps": [
                    {
                        "heading": heading,
                        "class": trained.class_names[k],
                        "probability": float(probs_K[k]),
                        "image": images.jpeg(drawn_map, _MAP_SIDE),
                    }
                    for (heading, k), drawn_map in zip(classes, maps, strict=True)
                ],
            }
        )
    return drawn
