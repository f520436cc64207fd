"""Mean RGB, colour vectors and classes of a training split, computed once and stored next to the prepared data."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import urllib.parse
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vgg_jax.data.colors import ColorStatistics
from vgg_jax.data.decode import decode
from vgg_jax.data.disk import save_json
from vgg_jax.data.parallel import parallel_map
from vgg_jax.runtime.console import with_progress


class SplitStatistics(NamedTuple):
    """Statistics of a split."""

    colors: ColorStatistics
    class_images: list[int]  # images of each class, in the order of the labels; []: not known


def split_statistics(
    records: Sequence[dict[str, Any]], num_classes: int, threads: int | None = None
) -> SplitStatistics:
    """Computes mean and principal axes of a split's RGB values in one pass; every image counts the same at any size.

    Args:
      records: each with the encoded image under "image", and a "label"; negative ones are not counted.
      num_classes: of the data set.
      threads: images decoded at once; None: one for every core.
    """

    def of_record(index: int) -> tuple[np.ndarray, int]:
        record = records[index]
        return moments(decode(record["image"])), record["label"]

    of_images = parallel_map(of_record, range(len(records)), threads)
    of_images = with_progress(of_images, len(records), "mean and colour vectors (once)")
    all_moments, labels = zip(*of_images, strict=True)
    counts = np.bincount([label for label in labels if label >= 0], minlength=num_classes)
    return SplitStatistics(from_moments(all_moments), counts.tolist())


def moments(pixels_HxWx3: np.ndarray) -> np.ndarray:
    """Returns means of RGB and of their products over an image, [12] float64, exact but for the division."""
    pixels_Nx3 = pixels_HxWx3.reshape(-1, 3)
    # 256 products of two bytes are less than 2^24, so float32 sums them exactly, and in half the memory that threads
    # share.
    planes_3xN = np.zeros((3, -(-len(pixels_Nx3) // 256) * 256), np.float32)
    planes_3xN[:, : len(pixels_Nx3)] = pixels_Nx3.T
    planes = planes_3xN.reshape(3, -1, 256)
    products = np.empty((3, 3))
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        products[i, j] = products[j, i] = np.einsum("bp,bp->b", planes[i], planes[j]).sum(dtype=np.float64)
    sums = planes.sum(2).sum(1, dtype=np.float64)
    return np.concatenate([sums, products.ravel()]) / len(pixels_Nx3)


def from_moments(of_images: Sequence[np.ndarray]) -> ColorStatistics:
    """Returns the statistics of images of these `moments`, in any order the same to the last bit."""
    total = np.array([math.fsum(column) for column in zip(*of_images, strict=True)]) / len(of_images)
    mean, square = total[:3], total[3:].reshape(3, 3)
    return ColorStatistics(mean.astype(np.float32), _color_vectors(square - np.outer(mean, mean)))


def class_weights(records: Sequence[dict[str, Any]], num_classes: int) -> np.ndarray:
    """Returns weights [K] float32 inverse to the images of each class, of which the mean over all images is 1.

    A class without images has weight 0.
    """
    numbers = with_progress(range(len(records)), len(records), "images of each class")
    counts = np.bincount([records[i]["label"] for i in numbers], minlength=num_classes).astype(np.float64)
    present = counts > 0
    weights = np.zeros(num_classes, np.float32)
    weights[present] = len(records) / (present.sum() * counts[present])
    return weights


def _color_vectors(covariance: np.ndarray) -> np.ndarray:
    variances, axes = np.linalg.eigh(covariance)
    # An axis may point either way; its draw is symmetric, but runs should agree: most positive component sums win.
    axes = axes * np.where(axes.sum(0) < 0, -1.0, 1.0)
    # The largest first.
    return (axes * np.sqrt(variances.clip(0)))[:, ::-1].astype(np.float32)


def file_name(split: str) -> str:
    """Returns the name under which a split's statistics lie next to the prepared data."""
    return f"color_statistics-{urllib.parse.quote(split, safe='')}.json"


def save_statistics(path: epath.Path, statistics: SplitStatistics) -> None:
    """Writes them as JSON with a digest, as `save_json` does."""
    content = {name: value.tolist() for name, value in statistics.colors._asdict().items()}
    content["class_images"] = statistics.class_images
    save_json(path, content | {"sha256": _digest(content)})


def load_statistics(path: epath.Path) -> SplitStatistics:
    """Reads what `save_statistics` wrote; raises ValueError, KeyError or TypeError if its digest does not fit."""
    content = json.loads(path.read_text())
    if content.pop("sha256") != _digest(content):
        raise ValueError("its digest does not fit")
    class_images = content.pop("class_images")
    return SplitStatistics(
        ColorStatistics(**{name: np.array(value, np.float32) for name, value in content.items()}), class_images
    )


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
