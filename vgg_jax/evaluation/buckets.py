"""Which pictures are computed together, padded to how large a frame: exact dense evaluation with few compilations.

Real photographs have hundreds of shapes, and each would be a compilation. After rescaling, their shorter side is Q. So a
frame is Q rows by some columns; a picture that stands upright is laid on its side, and the net's kernels with it
(`forward.laid_on_side`), which halves the number of frames once more. Pictures too long for any frame are cut into
strips that overlap as far as the net sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vgg_jax.models import CONFIGURATIONS, STRIDE

MAX_FRAMES = 8  # frames a scale, so compilations: 24 at three scales
_GOOD_ENOUGH = 0.02  # of padding; more frames are not worth compiling


class Batch(NamedTuple):
    """Pictures that are computed together."""

    indices: np.ndarray  # [n] int64, places in the split, 1 <= n <= slots
    frame: tuple[int, int]  # rows and columns, pixels
    slots: int  # pictures the compiled function takes
    on_side: bool  # upright pictures, rows and columns exchanged


class Strip(NamedTuple):
    """A part of a long picture, and which columns of its score map are those of the whole picture's."""

    start: int  # first column of pixels, a multiple of 32
    first: int  # columns of the strip's score map to keep: from `first`
    last: int  # up to, without, `last`


def multiplications(params: dict, configuration: str, height: int, width: int) -> int:
    """Multiply-adds of the net on one image, densely (at 224x224: Paper Table 2's nets take 7.6 to 19.6 * 10^9)."""
    total = 0
    for layer in CONFIGURATIONS[configuration]:
        height, width = height // layer.stride, width // layer.stride
        if layer.has_params:
            kernel = params[layer.name]["kernel"]
            if layer.kind == "fc":
                height, width = height - kernel.shape[0] + 1, width - kernel.shape[1] + 1
            total += height * width * kernel.size
    return total


def frame_lengths(lengths_N: np.ndarray, cost: Callable[[int], int], most: int = MAX_FRAMES) -> list[int]:
    """The lengths of frames that pad a set of pictures with the least computation, ascending.

    The best of all choices, by dynamic programming over the sorted lengths; no more frames than it takes to bring
    padding below 2 %.

    Args:
      lengths_N: the pictures' longer sides, pixels.
      cost: of a picture in a frame of a length.
      most: frames at most.
    """
    unique, counts = np.unique(lengths_N, return_counts=True)
    costs = np.array([cost(int(length)) for length in unique], np.float64)
    pictures = np.concatenate([[0], np.cumsum(counts)])
    least = float(counts @ costs)
    best = np.full(len(unique) + 1, np.inf)  # best[j]: of the shortest j lengths, with as many frames as rounds so far
    best[0] = 0
    impossible = np.triu_indices(len(best))
    chosen: list[np.ndarray] = []  # chosen[k][j]: how many lengths the frames before the last one take
    while len(chosen) < min(most, len(unique)):
        # Row j, column i: the last frame holds lengths i to j - 1, so it is as long as length j - 1.
        totals = best[None, :] + (pictures[:, None] - pictures[None, :]) * np.concatenate([[0], costs])[:, None]
        totals[impossible] = np.inf
        chosen.append(totals.argmin(1))
        best = totals.min(1)
        if best[-1] <= (1 + _GOOD_ENOUGH) * least:
            break
    found, end = [], len(unique)
    for split in reversed(chosen):
        found.append(int(unique[end - 1]))
        end = int(split[end])
    return found[::-1]


def plan(
    sizes_Nx2: np.ndarray,
    indices: np.ndarray,
    cost: Callable[[int], int],
    slots: Callable[[int], int],
    most: int = MAX_FRAMES,
) -> list[Batch]:
    """Every picture in one batch.

    Empty slots are in the last batch of each orientation only: a batch takes the longest pictures left, whether or not
    a shorter frame would do for some of them, since a slot costs the same full or empty.

    Args:
      sizes_Nx2: (height, width) after rescaling, pixels, of all pictures of the split; one side of each is Q.
      indices: [n] int, of the pictures to plan for.
      cost: of a picture in a frame of a length.
      slots: pictures of a batch with a frame of a length.
      most: frames at most.
    """
    if not len(indices):
        return []
    heights, widths = sizes_Nx2[indices].T
    lengths, scale = np.maximum(heights, widths), int(np.minimum(heights, widths)[0])
    frames = np.array(frame_lengths(lengths, cost, most))
    batches = []
    for on_side in (False, True):
        left = np.flatnonzero((heights > widths) == on_side)
        left = left[np.argsort(-lengths[left], kind="stable")]
        while len(left):
            frame = int(frames[np.searchsorted(frames, lengths[left[0]])])
            count = slots(frame)
            batches.append(Batch(indices[left[:count]], (scale, frame), count, on_side))
            left = left[count:]
    return batches


def strip_length(params: dict, configuration: str, scale: int) -> int:
    """Pixels beyond which a picture is computed in strips, and their length: four times Q or four times their overlap."""
    overlap = params["fc6"]["kernel"].shape[1] - 1 + 2 * _halo(configuration)
    return STRIDE * max(4 * scale // STRIDE, 4 * overlap)


def strips(params: dict, configuration: str, length: int, strip: int) -> list[Strip]:
    """Strips whose kept columns together are the score map of the whole picture, each column once.

    A strip begins at a multiple of 32, so that its poolings fall where the picture's do. Near a cut the net sees the
    strip's zero padding where the picture has pixels; the columns that see a cut are left to the neighbour.

    Args:
      params: shapes are read only.
      configuration: a key of models.CONFIGURATIONS.
      length: columns of the picture, pixels.
      strip: of `strip_length`; a multiple of 32.
    """
    kernel, halo = params["fc6"]["kernel"].shape[1], _halo(configuration)
    wanted, found = length // STRIDE - kernel + 1, []
    done = 0
    while done < wanted:
        begin = max(0, done - halo)
        cells = min(strip, length - begin * STRIDE) // STRIDE
        ends = begin * STRIDE + strip >= length
        columns = cells - kernel + 1 - (0 if ends else halo)
        found.append(Strip(begin * STRIDE, done - begin, columns))
        done = begin + columns
    return found


def _halo(configuration: str) -> int:
    """How many cells of the last map, from a cut inwards, have pixels beyond the cut in sight of the convolutions."""
    radius, stride = 0, 1  # in pixels
    for layer in CONFIGURATIONS[configuration]:
        radius += stride * (layer.kernel - 1) // 2 if layer.kind == "conv" else 0
        stride *= layer.stride
    return -(-radius // stride)
