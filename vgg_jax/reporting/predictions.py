"""Predictions on a split, from the best cached evaluation (centre crop if none)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vgg_jax.data.decode import decode
from vgg_jax.evaluation import heatmaps, measures, results
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


class PageOptions(NamedTuple):
    """The location of images, and how much a page shows of a run."""

    data_dir: str = ""  # of prepared data, if not that of the run
    data_root: str = ""  # of a folder of images, if not that of the run
    quiet: bool = False
    right: int = 0  # images of the most confident right predictions
    wrong: int = 0  # likewise of the wrong ones
    maps: int = 0  # images with score maps
    may_compute: bool = False  # a centre crop's probabilities, where no evaluation is cached

    def without_images(self) -> PageOptions:
        return self._replace(right=0, wrong=0, maps=0, may_compute=False)


class Predictions(NamedTuple):
    """A model's probabilities on a split, averaged as a protocol does, and their origin."""

    trained: TrainedModel
    request: Request  # that computed them
    scales: str  # test scales Q
    data: str
    split: str
    keys: np.ndarray  # [N] str
    labels: np.ndarray  # [N], as the model numbers classes
    probs_NxK: np.ndarray  # float64; zeros where the image was skipped
    top1_error: float  # fractions
    top5_error: float | None  # None with five classes or fewer
    map_scale: int  # Q of the score maps

    def predicted(self) -> np.ndarray:
        """Returns the most probable class of each image, [N]; -1 where it was skipped."""
        return np.where(self.probs_NxK.any(1), results.top5_classes(self.probs_NxK)[:, 0], -1)

    def surest_right(self, count: int) -> list[int]:
        """Returns images predicted rightly, the most confident of each class, most confident first."""
        order = self._by_confidence(self.predicted() == self.labels)
        _, firsts = np.unique(self.labels[order], return_index=True)
        return order[np.sort(firsts)][:count].tolist()

    def surest_wrong(self, count: int) -> list[int]:
        """Returns images predicted wrongly: the most confident of each true class, then the second of each, ..."""
        predicted = self.predicted()
        order = self._by_confidence((predicted != self.labels) & (predicted >= 0))
        labels = self.labels[order]
        rank_in_class = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)], int)
        return order[np.argsort(rank_in_class, kind="stable")][:count].tolist()

    def _by_confidence(self, chosen_N: np.ndarray) -> np.ndarray:
        """Returns the numbers of the chosen images, [n], the most confident first."""
        indices = np.flatnonzero(chosen_N)
        return indices[np.argsort(-self.probs_NxK[indices].max(1), kind="stable")]

    def open_split(self, options: PageOptions) -> Split:
        """Opens the split.

        Raises:
          UserError: its images are no longer there, or others are.
        """
        request = self.request._replace(
            data_dir=options.data_dir or self.request.data_dir, data_root=options.data_root or self.request.data_root
        )
        split = open_evaluated(request, self.trained, Console(quiet=True))
        if len(split.records) != len(self.keys):
            raise UserError(
                f"{split.data}, split {split.name}, has {len(split.records)} images now, and had {len(self.keys)} when "
                "it was evaluated; evaluate the run again."
            )
        return split

    def sample(self, split: Split | None, index: int) -> dict[str, Any]:
        """Returns the page's content on one image; without its pixels where there is no split."""
        probs_K, label, class_titles = self.probs_NxK[index], self.labels[index], self.trained.class_titles
        top3 = results.top5_classes(probs_K[None])[0, :3]
        pixels = decoded(split.records, index, decode) if split else None
        return {
            "key": str(self.keys[index]),
            "true": class_titles[label],
            "right": bool(top3[0] == label),
            "best": [(class_titles[k], float(probs_K[k]), bool(k == label)) for k in top3],
            "true_probability": float(probs_K[label]),
            "image": None if pixels is None else images.thumbnail(pixels, _THUMBNAIL),
        }

    def score_maps(self, split: Split, count: int) -> list[dict[str, Any]]:
        """Draws maps of the true and of the predicted, or the second, class, of images spread over the split.

        They are score maps; where one has a side of a single cell, which shows no place, Grad-CAM.
        """
        variables = heatmaps.on_one_device(self.trained)
        drawn = []
        for index in heatmaps.spread(len(self.keys), count + 2)[1:-1]:
            pixels = heatmaps.image_for_map(split.records, index, self.map_scale)
            if pixels is not None:
                drawn.append(self._drawn_maps(variables, pixels, index))
        return drawn

    def _drawn_maps(self, variables: dict, pixels: np.ndarray, index: int) -> dict[str, Any]:
        """Draws the maps of one image [H, W, 3] uint8, the split's number `index`."""
        trained, label, image = self.trained, int(self.labels[index]), Image.fromarray(pixels)
        scores, probs_K = heatmaps.score_map(trained, variables, pixels)
        classes = heatmaps.classes_to_draw(probs_K, label)
        is_cam = min(scores.shape[:2]) == 1
        cams = heatmaps.class_cams(trained, variables, pixels, classes) if is_cam else None
        maps = heatmaps.class_maps(scores, probs_K, classes, trained.class_titles, cams)
        shown, ends = (pixels.shape[:2], trained.model.layers), heatmaps.score_range(maps)
        panels = [
            heatmaps.overlay(image, one.scores_hxw, ends, *shown)
            if one.cam_hxw is None
            else heatmaps.cam_overlay(image, one.cam_hxw, *shown)
            for one in maps
        ]
        return {
            "key": str(self.keys[index]),
            "true": trained.class_titles[label],
            "image": images.jpeg(image, _MAP_SIDE),
            "is_cam": is_cam,
            "cells": "{} x {}".format(*(scores if cams is None else cams).shape[:2]),
            "maps": [(one, images.jpeg(panel, _MAP_SIDE)) for one, panel in zip(maps, panels, strict=True)],
        }


def _map_scale(probs: dict[EvalPass, Probs]) -> int:
    """Returns Q of the score maps: the largest evaluated whose own error is within the 95 % interval of the least."""
    errors = {
        eval_pass.scale: float(np.mean((cached.probs.argmax(1) != cached.labels) | cached.skipped))
        for eval_pass, cached in probs.items()
    }
    _, most = measures.error_interval(min(errors.values()), len(next(iter(probs.values())).labels))
    return max(scale for scale, error in errors.items() if error <= most)


def cached_predictions(trained: TrainedModel, evaluations: Evaluations) -> Predictions | None:
    """Returns the most thorough complete evaluation of this checkpoint alone; its own validation split first."""
    candidates = []
    for path, content in evaluations:
        models, request = content["models"], content["request"]
        passes = models[0]["passes"] if len(models) == 1 else []
        is_own = bool(passes) and models[0]["params_sha256"] == trained.digest and content["rows"]
        if is_own and request.get("protocol") in PROTOCOLS:
            other_data = bool(request.get("data_name") or request.get("data_root"))
            other_split = request.get("split") not in ("", None, trained.recipe.data.val_split)
            candidates.append(((other_data, other_split, -len(passes), path.name), path, content))
    for _, path, content in sorted(candidates, key=lambda candidate: candidate[0]):
        averaged = _averaged(trained, path.parent, content)
        if averaged is not None:
            return averaged
    return None


def compute_evaluations(trained: TrainedModel, options: PageOptions) -> Evaluations:
    """Evaluates a centre crop on the run's validation split, and caches it like any other evaluation.

    Returns:
      All evaluations of the model, those that `output_workdir` has put elsewhere included.

    Raises:
      UserError: as `protocol.evaluate`.
    """
    request = Request((str(trained.checkpoint),), protocol="center_crop")
    evaluate(request._replace(data_dir=options.data_dir, data_root=options.data_root), options.quiet)
    workdirs = (trained.workdir, workdir_below(trained, ""))
    return [evaluation for workdir in workdirs for evaluation in RunDir(workdir).evaluations()[0]]


def _averaged(trained: TrainedModel, directory: Path, content: dict[str, Any]) -> Predictions | None:
    """Returns the predictions of an evaluation; None where a pass is not cached, or a label is missing."""
    request = Request(**{name: content["request"][name] for name in Request._fields if name in content["request"]})
    model, data = content["models"][0], content["data"]
    if model["dtype"] != trained.recipe.model.dtype.name:
        return None  # cached next to the run's own under another name
    probs: dict[EvalPass, Probs] = {}
    for fields in model["passes"]:
        eval_pass = EvalPass(*(fields[name] for name in EvalPass._fields))
        try:
            cache = Cache.with_own_settings(directory, pass_name(trained, eval_pass), len(trained.class_names))
            cached = cache.load()
        except (UserError, KeyError, TypeError):
            return None
        origin = tuple(cache.settings.get(key) for key in ("params_sha256", "data", "split"))
        if cached is None or origin != (trained.digest, data["name"], data["split"]):
            return None
        probs[eval_pass] = cached
    first, skipped = next(iter(probs.values())), np.any([cached.skipped for cached in probs.values()], 0)
    if (first.labels < 0).any():
        return None
    mean_NxK = results.over_methods(probs, PROTOCOLS[request.protocol])
    mean_NxK[skipped] = 0
    top1_error, top5_error = results.topk_errors(mean_NxK, first.labels, skipped)
    return Predictions(
        trained,
        request,
        ", ".join(map(str, sorted({eval_pass.scale for eval_pass in probs}))),
        data["name"],
        data["split"],
        first.keys,
        first.labels,
        mean_NxK,
        top1_error,
        top5_error if mean_NxK.shape[1] > 5 else None,
        _map_scale(probs),
    )
