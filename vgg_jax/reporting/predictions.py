"""What a net makes of a split: from posteriors that are kept, the most thorough there are, or a centre crop's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from vgg_jax.console import Console
from vgg_jax.data.crops import rescaled, rescaled_size
from vgg_jax.data.decode import decode, size_of
from vgg_jax.evaluation import maps, results
from vgg_jax.evaluation.compute import reading
from vgg_jax.evaluation.nets import Net
from vgg_jax.evaluation.posteriors import Source, view_name
from vgg_jax.evaluation.protocol import Request, evaluate, opened
from vgg_jax.evaluation.store import Posteriors, Store
from vgg_jax.evaluation.views import PROTOCOLS, View
from vgg_jax.exceptions import UserError
from vgg_jax.reporting import pictures
from vgg_jax.reporting.runs import read_json

_THUMBNAIL = 168  # pixels
_MAP_SIDE = 256  # pixels
_LONGEST_MAP = 3  # times the shorter side: pictures longer than that are not drawn


class Predictions(NamedTuple):
    """Posteriors of a split, averaged as a protocol does, and what they are of."""

    protocol: str
    scales: str  # test scales Q
    data: str
    split: str
    request: Request  # that computed them
    keys: np.ndarray  # [N] str
    labels: np.ndarray  # [N], as the net numbers classes
    posteriors: np.ndarray  # [N, K] float64; zeros where the picture was refused
    top1_error: float  # fractions
    top5_error: float | None  # None with five classes or fewer

    def predicted(self) -> np.ndarray:
        """The likeliest class of each picture, [N]; -1 where it was refused."""
        return np.where(self.posteriors.any(1), results.best(self.posteriors)[:, 0], -1)


def kept(net: Net, evaluations: list[tuple[Path, dict[str, Any]]]) -> Predictions | None:
    """The most thorough evaluation of this checkpoint alone whose posteriors are whole; its own validation split first."""
    candidates = []
    for path, content in evaluations:
        views = content["nets"][0].get("views", []) if len(content["nets"]) == 1 else []
        of_net = bool(views) and content["nets"][0].get("params_sha256") == net.digest and content["rows"]
        if of_net and content["request"].get("protocol") in PROTOCOLS:
            request = content["request"]
            other_data = bool(request.get("data_name") or request.get("data_root"))
            other_split = request.get("split") not in ("", None, net.config.data.val_split)
            candidates.append(((other_data, other_split, -len(views), path.name), path, content))
    for _, path, content in sorted(candidates, key=lambda candidate: candidate[0]):
        found = _averaged(net, path.parent, content)
        if found is not None:
            return found
    return None


def compute(net: Net, data_dir: str, data_root: str, quiet: bool) -> None:
    """Evaluates a centre crop on the run's validation split, and keeps it like any other evaluation.

    Raises:
      UserError: as `protocol.evaluate`.
    """
    evaluate(Request((str(net.checkpoint),), protocol="center_crop", data_dir=data_dir, data_root=data_root), quiet)


def _averaged(net: Net, directory: Path, content: dict[str, Any]) -> Predictions | None:
    request = Request(**{name: content["request"][name] for name in Request._fields if name in content["request"]})
    by_part: dict[str, list[Posteriors]] = {part: [] for part in PROTOCOLS[request.protocol]}
    scales = []
    for description in content["nets"][0]["views"]:
        view = View(**description)
        name = view_name(net, view)
        if content["nets"][0]["dtype"] != net.config.model.dtype:
            return None  # kept beside the run's own under another name
        try:
            settings = read_json(directory / f"{name}.json")
            found = Store(directory, name, settings, len(net.class_names)).load()
        except (UserError, KeyError):
            return None
        if found is None or settings.get("params_sha256") != net.digest:
            return None
        by_part[view.part].append(found)
        scales.append(view.scale)
    every = [one for part in by_part.values() for one in part]
    first, refused = every[0], np.any([one.refused for one in every], 0)
    if (first.labels < 0).any():
        return None
    mean = results.average(results.average(one.posteriors for one in part) for part in by_part.values())
    mean[refused] = 0
    top1_error, top5_error = results.errors(mean, first.labels, refused)
    return Predictions(
        request.protocol,
        ", ".join(map(str, sorted(set(scales)))),
        content["data"]["name"],
        content["data"]["split"],
        request,
        first.keys,
        first.labels,
        mean,
        top1_error,
        top5_error if mean.shape[1] > 5 else None,
    )


def source_of(found: Predictions, net: Net, data_dir: str, data_root: str) -> Source:
    """The pictures that predictions are of.

    Raises:
      UserError: they are no longer there, or others are.
    """
    request = found.request._replace(
        data_dir=data_dir or found.request.data_dir, data_root=data_root or found.request.data_root
    )
    source = opened(request, net, Console(quiet=True))
    if len(source.records) != len(found.keys):
        raise UserError(
            f"{source.data}, split {source.split}, has {len(source.records)} pictures now, and had {len(found.keys)} when "
            "it was evaluated; evaluate the run again."
        )
    return source


def confusion(found: Predictions, classes: int) -> np.ndarray:
    """[K, K] int64: pictures by true class (row) and predicted class; refused ones are in no column."""
    predicted = found.predicted()
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (found.labels[predicted >= 0], predicted[predicted >= 0]), 1)
    return matrix


def surest_right(found: Predictions, count: int) -> list[int]:
    """Pictures predicted rightly, the surest of each class, surest first."""
    sure = found.posteriors.max(1)
    right = np.flatnonzero(found.predicted() == found.labels)
    order = right[np.argsort(-sure[right], kind="stable")]
    _, firsts = np.unique(found.labels[order], return_index=True)
    return [int(i) for i in order[np.sort(firsts)][:count]]


def surest_wrong(found: Predictions, count: int) -> list[int]:
    """Pictures predicted wrongly, surest first."""
    predicted = found.predicted()
    wrong = np.flatnonzero((predicted != found.labels) & (predicted >= 0))
    return [int(i) for i in wrong[np.argsort(-found.posteriors[wrong].max(1), kind="stable")][:count]]


def shown(found: Predictions, net: Net, source: Source | None, index: int) -> dict[str, Any]:
    """What the page says of one picture; without its pixels where there is no source."""
    best = results.best(found.posteriors[index][None])[0, :3]
    picture = reading(source.records, index, decode) if source else None
    return {
        "key": str(found.keys[index]),
        "true": net.class_names[found.labels[index]],
        "right": bool(best[0] == found.labels[index]),
        "best": [(net.class_names[k], float(found.posteriors[index, k]), bool(k == found.labels[index])) for k in best],
        "true_posterior": float(found.posteriors[index, found.labels[index]]),
        "picture": None if picture is None else pictures.thumbnail(picture, _THUMBNAIL),
    }


def map_scale(net: Net) -> int:
    """Q of the score maps in pixels: twice S, and at least four places of the map on the shorter side."""
    low, high = net.config.image.scale_min, net.config.image.scale_max
    return max(low + high, net.config.image.crop + 96)


def score_maps(found: Predictions, net: Net, source: Source, count: int) -> list[dict[str, Any]]:
    """Score maps of the true and of the predicted, or the second, class; of pictures spread evenly over the split."""
    variables, scale, crop = jax.device_get(net.variables), map_scale(net), net.config.image.crop
    drawn = []
    for index in np.unique(np.linspace(0, len(found.keys) - 1, count + 2).round().astype(int)[1:-1]):
        size = reading(source.records, int(index), lambda encoded: rescaled_size(*size_of(encoded), scale))
        if max(size) > _LONGEST_MAP * scale:
            continue
        pixels = reading(source.records, int(index), lambda encoded: rescaled(encoded, scale))
        scores, posterior = maps.score_map(net, variables, pixels)
        label, predicted = int(found.labels[index]), int(posterior.argmax())
        classes = [("true", label), ("predicted here", predicted)]
        if label == predicted:
            classes = [("true and predicted here", label), ("second", int(results.best(posterior[None])[0, 1]))]
        photograph = Image.fromarray(pixels)
        ends = float(scores[..., [k for _, k in classes]].min()), float(scores[..., [k for _, k in classes]].max())
        drawn.append(
            {
                "key": str(found.keys[index]),
                "true": net.class_names[label],
                "picture": pictures.jpeg(photograph, _MAP_SIDE),
                "places": f"{scores.shape[0]} x {scores.shape[1]}",
                "maps": [
                    {
                        "what": what,
                        "class": net.class_names[k],
                        "posterior": float(posterior[k]),
                        "picture": pictures.jpeg(
                            maps.overlay(photograph, scores[..., k], ends, pixels.shape[:2], crop), _MAP_SIDE
                        ),
                    }
                    for what, k in classes
                ],
            }
        )
    return drawn
