"""Plans an evaluation pass, on the host alone: which images go through the devices together, padded to which shape.

Real photographs have hundreds of shapes, and each would be a compilation. After rescaling, their shorter side is Q. So
a bucket is Q rows by some columns; a portrait image is transposed together with the network's kernels
(`steps.transpose_kernels`), which halves the number of buckets once more. Images too long for any bucket are cut into
tiles that overlap as far as the network sees.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from vgg_jax.data.crops import rescaled_size
from vgg_jax.evaluation.passes import GRID_CELLS, EvalPass
from vgg_jax.models import Layers, description
from vgg_jax.models.description import halo, head_kernel, lengths, total_stride

MAX_BUCKETS = 8  # a scale, so compilations: 24 at three scales
_CROP_BUCKETS = 4  # a scale, to cut crops from: cheap to compile, and padding costs nothing there
_GOOD_ENOUGH = 0.02  # of padding or empty slots; more buckets are not worth compiling
_SMALLER_BATCHES = 0.1  # of the work, that they must save
# Multiply-adds that a device could do while one more shape is compiled: 1.5 s at some 18 * 10^9 a second in a narrow
# net on two cores, and about as long at a thousand times as many on an accelerator.
_CPU_COMPILATION_MACS, _COMPILATION_MACS = 2.5e10, 5e13
MAX_PIXELS = 2**28  # of a rescaled image, 768 MiB as bytes; a larger one is skipped


class NetworkGeometry(NamedTuple):
    """The shapes from which the work and the field of view of a network follow."""

    layers: Layers
    kernels: dict[str, tuple[int, ...]]  # shapes by layer, each [h, w, inputs, outputs]

    def cells(self, length: int) -> int:
        """Returns the rows (or columns) of the score map for those of the image."""
        return lengths(self.layers, length)[self.layers[-1].name]


class Devices(NamedTuple):
    """The devices that share a batch."""

    number: int
    # Multiply-adds that all of them could do while one shape is compiled, roughly; few images then have few buckets.
    compilation_macs: float = 0


class Bucket(NamedTuple):
    """Images of a batch and the shape they are padded to."""

    indices: np.ndarray  # [n] int64, positions in the split, 1 <= n <= batch_size
    shape: tuple[int, int]  # rows and columns, pixels
    batch_size: int
    transposed: bool  # portrait images, rows and columns exchanged


class Tile(NamedTuple):
    """A part of a long image, and the columns of its score map that are those of the whole image's."""

    start: int  # first column of pixels, a multiple of `total_stride`
    first: int  # columns of the tile's score map to keep: from `first`
    last: int  # up to, without, `last`


class Job(NamedTuple):
    """Images that go through the devices together, and how."""

    kind: str  # center_crop, square_crop, dense, grid (crops cut on the device), host_grid (on the host), tiles
    bucket: Bucket
    macs: int  # with padding and empty slots
    needed: int  # without

    @property
    def is_long(self) -> bool:
        """Returns whether it is of one image that is too long for a bucket."""
        return self.kind in ("host_grid", "tiles")


def geometry_of(layers: Layers, params: dict) -> NetworkGeometry:
    """Returns the shapes of parameters, arrays or jax.ShapeDtypeStruct."""
    return NetworkGeometry(layers, {name: layer["kernel"].shape for name, layer in params.items() if "kernel" in layer})


def rescaled_sizes(sizes_Nx2: np.ndarray, scale: int) -> np.ndarray:
    """Returns (height, width) after rescaling, [N, 2] int64, for the images' own (width, height)."""
    sizes = [rescaled_size(int(width), int(height), scale)[::-1] for width, height in sizes_Nx2]
    return np.array(sizes, np.int64).reshape(-1, 2)


def skipped_images(eval_pass: EvalPass, sizes_Nx2: np.ndarray) -> np.ndarray:
    """Returns which images are too large, rescaled, to be computed: [N] bool; sizes are (width, height)."""
    # Only the crop is rescaled.
    if eval_pass.method == "center_crop":
        return np.zeros(len(sizes_Nx2), bool)
    return rescaled_sizes(sizes_Nx2, eval_pass.scale).prod(-1) > MAX_PIXELS


def plan_pass(
    eval_pass: EvalPass,
    network: NetworkGeometry,
    sizes_Nx2: np.ndarray,
    indices: np.ndarray,
    batch_size: int,
    devices: Devices,
) -> list[Job]:
    """Returns jobs that hold every image once, those of long images last.

    An empty slot costs as much as a full one, so that batches are smaller than they may be where there are few images.

    Args:
      eval_pass: what is computed.
      network: of `geometry_of`.
      sizes_Nx2: (width, height) of all images of the split.
      indices: [n] int, of the images to compute, none of them skipped.
      batch_size: images of the crop's size that the model sees at once at most, over all devices: mirror images and
        crops all count; a larger image counts proportionally. At least one image a device.
      devices: that share a batch.
    """
    plans: list[tuple[int, list[Job]]] = []
    rescaled_Nx2 = np.zeros_like(sizes_Nx2)
    rescaled_Nx2[indices] = rescaled_sizes(sizes_Nx2[indices], eval_pass.scale)
    while not plans or batch_size >= devices.number:
        jobs = _jobs(eval_pass, network, rescaled_Nx2, indices, batch_size, devices)
        plans.append((sum(job.macs for job in jobs), jobs))
        slots = sum(job.bucket.batch_size for job in jobs if not job.is_long)
        if slots - sum(len(job.bucket.indices) for job in jobs if not job.is_long) <= _GOOD_ENOUGH * slots:
            break
        batch_size = min(batch_size - 1, int(0.8 * batch_size))
    least = min(total for total, _ in plans)
    return next(jobs for total, jobs in plans if total <= (1 + _SMALLER_BATCHES) * least)


def _jobs(
    eval_pass: EvalPass,
    network: NetworkGeometry,
    rescaled_Nx2: np.ndarray,
    indices: np.ndarray,
    batch_size: int,
    devices: Devices,
) -> list[Job]:
    """Returns `plan_pass`'s jobs with batches as large as they may be; sizes are of `rescaled_sizes`."""
    scale, crop, seen = eval_pass.scale, eval_pass.crop, eval_pass.images_seen()
    count, crop_macs = devices.number, macs(network, crop, crop)
    crops_at_once = count * max(1, batch_size // (seen * count))

    def crop_job(kind: str, bucket: Bucket) -> Job:
        return Job(kind, bucket, bucket.batch_size * seen * crop_macs, len(bucket.indices) * seen * crop_macs)

    if eval_pass.method in ("center_crop", "square_crop"):
        chunks = [indices[i : i + crops_at_once] for i in range(0, len(indices), crops_at_once)]
        return [crop_job(eval_pass.method, Bucket(chunk, (crop, crop), crops_at_once, False)) for chunk in chunks]

    lengths_N = rescaled_Nx2.max(-1)
    strip = tile_length(network, scale)
    is_long = lengths_N[indices] > strip
    short, long = indices[~is_long], indices[is_long]
    if eval_pass.method in GRID_CELLS:
        grids = buckets(rescaled_Nx2, short, lambda length: length, lambda _: crops_at_once, _CROP_BUCKETS)
        alone = [Bucket(np.array([index]), (crop, crop), count, False) for index in long]
        return [crop_job("grid", bucket) for bucket in grids] + [crop_job("host_grid", bucket) for bucket in alone]

    def at_once(length: int) -> int:
        return count * max(1, batch_size * crop**2 // (seen * scale * length * count))

    macs_of = functools.cache(lambda length: macs(network, scale, int(length)))
    jobs = []
    for bucket in buckets(rescaled_Nx2, short, macs_of, at_once, overhead=devices.compilation_macs / seen):
        needed = seen * sum(macs_of(lengths_N[i]) for i in bucket.indices)
        jobs.append(Job("dense", bucket, bucket.batch_size * seen * macs_of(bucket.shape[1]), needed))
    for index in long:
        length, size = int(lengths_N[index]), at_once(strip)
        batches = -(-2 * len(tiles(network, length, strip)) // size)
        bucket = Bucket(np.array([index]), (scale, strip), size, bool(rescaled_Nx2[index, 0] > rescaled_Nx2[index, 1]))
        computed = batches * size * macs(network, scale, strip)
        jobs.append(Job("tiles", bucket, computed, 2 * macs(network, scale, length)))
    return jobs


def devices_of(mesh: jax.sharding.Mesh) -> Devices:
    """Returns the devices of a mesh, all of which share a batch."""
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    return Devices(mesh.shape["data"], mesh.size * (_CPU_COMPILATION_MACS if is_cpu else _COMPILATION_MACS))


def macs(network: NetworkGeometry, height: int, width: int) -> int:
    """Returns the multiply-adds of one image, dense (at 224x224 Paper Table 2's networks: 7.6 to 19.6 * 10^9)."""
    return description.macs(network.layers, height, width, network.kernels)


def bucket_lengths(
    lengths_N: np.ndarray, cost: Callable[[int], int], most: int = MAX_BUCKETS, overhead: float = 0
) -> list[int]:
    """Returns the lengths of buckets that pad a set of images with the least computation, ascending.

    The best of all choices, by dynamic programming over the sorted lengths; no more buckets than it takes to bring
    padding below 2 %, and none that saves less than `overhead`.

    Args:
      lengths_N: the images' longer sides, pixels.
      cost: of an image in a bucket of a length.
      most: buckets at most.
      overhead: of a bucket, in the unit of `cost`.
    """
    unique, counts = np.unique(lengths_N, return_counts=True)
    costs = np.array([cost(int(length)) for length in unique], np.float64)
    images = np.concatenate([[0], np.cumsum(counts)])
    least = float(counts @ costs)
    best = np.full(len(unique) + 1, np.inf)  # best[j]: of the shortest j lengths, with as many buckets as rounds so far
    best[0] = 0
    impossible = np.triu_indices(len(best))
    chosen: list[np.ndarray] = []  # chosen[k][j]: how many lengths the buckets before the last one take
    totals_by_count: list[float] = []
    while len(chosen) < min(most, len(unique)):
        # Row j, column i: the last bucket holds lengths i to j - 1, so it is as long as length j - 1.
        totals = best[None, :] + (images[:, None] - images[None, :]) * np.concatenate([[0], costs])[:, None]
        totals[impossible] = np.inf
        chosen.append(totals.argmin(1))
        best = totals.min(1)
        totals_by_count.append(float(best[-1]) + overhead * len(chosen))
        if best[-1] <= (1 + _GOOD_ENOUGH) * least:
            break
    chosen = chosen[: int(np.argmin(totals_by_count)) + 1]
    lengths, end = [], len(unique)
    for split in reversed(chosen):
        lengths.append(int(unique[end - 1]))
        end = int(split[end])
    return lengths[::-1]


def buckets(
    sizes_Nx2: np.ndarray,
    indices: np.ndarray,
    cost: Callable[[int], int],
    batch_size: Callable[[int], int],
    most: int = MAX_BUCKETS,
    overhead: float = 0,
) -> list[Bucket]:
    """Returns batches that hold every image once.

    Batches are filled longest-first, because an empty slot costs as much as a full one; only the last batch of each
    orientation has empty slots.

    Args:
      sizes_Nx2: (height, width) after rescaling, pixels, of all images of the split; one side of each is Q.
      indices: [n] int, of the images to plan for.
      cost: of an image in a bucket of a length.
      batch_size: images of a batch in a bucket of a length.
      most: shapes at most.
      overhead: of a shape, in the unit of `cost`.
    """
    if not len(indices):
        return []
    heights, widths = sizes_Nx2[indices].T
    lengths, scale = np.maximum(heights, widths), int(np.minimum(heights, widths)[0])
    shapes = np.array(bucket_lengths(lengths, cost, most, overhead))
    batches = []
    for transposed in (False, True):
        remaining = np.flatnonzero((heights > widths) == transposed)
        remaining = remaining[np.argsort(-lengths[remaining], kind="stable")]
        while len(remaining):
            length = int(shapes[np.searchsorted(shapes, lengths[remaining[0]])])
            count = batch_size(length)
            batches.append(Bucket(indices[remaining[:count]], (scale, length), count, transposed))
            remaining = remaining[count:]
    return batches


def tile_length(network: NetworkGeometry, scale: int) -> int:
    """Returns the pixels beyond which an image is tiled, and a tile's length: four times Q or the overlap."""
    stride, overlap = total_stride(network.layers), head_kernel(network.layers) - 1 + 2 * halo(network.layers)
    return stride * max(4 * scale // stride, 4 * overlap)


def tiles(network: NetworkGeometry, length: int, strip: int) -> list[Tile]:
    """Returns tiles whose kept columns together are the score map of the whole image, each column once.

    A tile begins at a multiple of the total stride, so that its poolings fall where the image's do. Near a cut the
    network sees the tile's zero padding where the image has pixels; the columns that see a cut are left to the
    neighbour.

    Args:
      network: of `geometry_of`.
      length: columns of the image, pixels.
      strip: of `tile_length`; a multiple of the total stride.
    """
    stride, hidden = total_stride(network.layers), halo(network.layers)
    columns, cuts, done = network.cells(length), [], 0
    while done < columns:
        begin = max(0, done - hidden)
        is_last = begin * stride + strip >= length
        last = network.cells(min(strip, length - begin * stride)) - (0 if is_last else hidden)
        cuts.append(Tile(begin * stride, done - begin, last))
        done = begin + last
    return cuts
