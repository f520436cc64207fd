"""Mean RGB and colour vectors of a training split, computed once and kept beside the prepared data (PAPER.md §5.8)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from vgg_jax.augment import ColorStatistics
from vgg_jax.data.decode import decode


def color_statistics(
    records: Sequence[dict[str, Any]], progress: Callable[[Any], Any] = lambda iterable: iterable, threads: int = 8
) -> ColorStatistics:
    """Mean and principal axes of the RGB values of a split; every picture counts the same, whatever its size.

    Args:
      records: each with the encoded picture under "image".
      progress: wraps the iterable of pictures, to show how far it is.
      threads: pictures decoded at once.
    """

    def moments(index: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.asarray(decode(records[index]["image"])).reshape(-1, 3).astype(np.float64)
        return pixels.mean(0), pixels.T @ pixels / len(pixels)

    first, second = np.zeros(3), np.zeros((3, 3))
    with ThreadPoolExecutor(threads) as pool:
        # Added in the order of the records, so that the sum is the same to the last bit for any number of threads.
        for mean, square in progress(pool.map(moments, range(len(records)))):
            first += mean
            second += square
    mean = first / len(records)
    return ColorStatistics(mean.astype(np.float32), _color_vectors(second / len(records) - np.outer(mean, mean)))


def _color_vectors(covariance: np.ndarray) -> np.ndarray:
    variances, axes = np.linalg.eigh(covariance)
    # An axis may point either way; its draw is symmetric, but runs should agree: most positive component sums win.
    axes = axes * np.where(axes.sum(0) < 0, -1.0, 1.0)
    return (axes * np.sqrt(variances.clip(0)))[:, ::-1].astype(np.float32)  # the largest first


def save_statistics(path: epath.Path, statistics: ColorStatistics) -> None:
    """Writes them as JSON, whole or not at all."""
    text = json.dumps({name: value.tolist() for name, value in statistics._asdict().items()}, indent=1)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text)
    unfinished.rename(path)


def load_statistics(path: epath.Path) -> ColorStatistics:
    """Reads what `save_statistics` wrote."""
    return ColorStatistics(
        **{name: np.array(value, np.float32) for name, value in json.loads(path.read_text()).items()}
    )
