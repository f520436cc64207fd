"""Descriptors: a layer's activations over a whole image and its mirror image, averaged (Paper, Appendix B)."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vgg_jax import features
from vgg_jax.data.colors import ColorStatistics
from vgg_jax.data.decode import size_of
from vgg_jax.data.parallel import parallel_map
from vgg_jax.evaluation.cache import RowCache, Rows
from vgg_jax.evaluation.dense_steps import make_descriptors
from vgg_jax.evaluation.passes import EvalPass
from vgg_jax.evaluation.plan import MAX_PIXELS, Job, buckets, rescaled_sizes
from vgg_jax.evaluation.run import CompiledSteps, EvalStats, decoded, key_of, run_jobs
from vgg_jax.evaluation.split import EvalProgress, cached_as_they_come
from vgg_jax.features import Backbone
from vgg_jax.models import Network
from vgg_jax.runtime.console import Console, duration
from vgg_jax.runtime.digests import params_sha256
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.runtime.sharding import make_mesh, replicated

_FORMAT = 1  # of what is cached; another format is computed again
_MOST = float(np.finfo(np.float32).max)


class Images(NamedTuple):
    """Encoded images, wherever they lie."""

    records: Any  # as `data.records.Records` gives them
    digest: bytes  # another one where there are others


class _ModelOnDevices(NamedTuple):
    model: Network
    variables: dict
    statistics: ColorStatistics
    mesh: Mesh


class _LayerCaches(NamedTuple):
    """The caches of several layers that are computed side by side."""

    caches: Sequence[RowCache]
    widths: Sequence[int]

    def split(self, rows_nxD: np.ndarray) -> list[np.ndarray]:
        """Returns the columns of each layer."""
        return np.split(rows_nxD, np.cumsum(self.widths)[:-1], axis=1)

    def add_shard(self, indices: np.ndarray, rows: np.ndarray) -> None:
        """Writes the rows of some images, each layer's to its cache."""
        for cache, columns in zip(self.caches, self.split(rows), strict=True):
            cache.add_shard(indices, columns)

    def shards(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images that all layers' shards have: indices [n], each once, and rows [n, D]."""
        shards = [cache.shards() for cache in self.caches]
        common: np.ndarray = functools.reduce(np.intersect1d, [indices for indices, _ in shards])
        return common, np.concatenate([rows[np.searchsorted(indices, common)] for indices, rows in shards], 1)


def descriptors(
    model: Backbone, layers: Sequence[str], images: Images, scale: int, directory: Path, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Computes descriptors, or loads the cached ones; what was computed before an interruption is not computed again.

    Args:
      model: of `vgg_jax.load`.
      layers: endpoints of the network.
      images: rescaled to a shorter side of `scale` pixels and seen whole.
      scale: Q.
      directory: of the cache, which has a file for each layer, scale, model and set of images.
      batch_size: images of Q x Q pixels at once, over all devices; it bounds memory and changes no result.

    Returns:
      {layer: [N, C] float32}, finite, not normalised.

    Raises:
      UserError: an image that cannot be read, is too large or has activations that are not finite, by name; or the disk
        is full.
    """
    widths = _widths(model, layers, scale)
    caches = {layer: _cache(model, layer, widths[layer], images, scale, directory) for layer in layers}
    loaded = {layer: arrays for layer, cache in caches.items() if (arrays := cache.load_arrays()) is not None}
    if missing := [layer for layer in caches if layer not in loaded]:
        together = _LayerCaches([caches[layer] for layer in missing], [widths[layer] for layer in missing])
        computed = _computed(model, missing, images.records, scale, together, batch_size)
        for layer, rows in zip(missing, together.split(computed), strict=True):
            loaded[layer] = {"descriptors": rows}
            caches[layer].finish_arrays(loaded[layer])
    return {layer: loaded[layer]["descriptors"] for layer in layers}


def normalized(descriptors_NxD: np.ndarray) -> np.ndarray:
    """Returns rows of length 1; a row of zeros stays."""
    norms = np.linalg.norm(descriptors_NxD, axis=1, keepdims=True)
    return descriptors_NxD / np.maximum(norms, np.finfo(np.float32).tiny)


def _computed(
    model: Backbone, layers: Sequence[str], records: Any, scale: int, caches: _LayerCaches, batch_size: int
) -> np.ndarray:
    """Returns the descriptors of layers side by side, [N, D]; an interrupted run's come from its shards."""
    began, mesh, stats = time.monotonic(), make_mesh(), EvalStats()
    indices, rows = caches.shards()
    descriptors_NxD = np.empty((len(records), rows.shape[1]), np.float32)
    descriptors_NxD[indices] = rows
    pending = np.setdiff1d(np.arange(len(records)), indices)
    variables = jax.device_put(model.variables, replicated(mesh))
    statistics = ColorStatistics(np.asarray(model.mean_rgb), np.zeros((3, 3), np.float32))
    dense = make_descriptors(model.network, statistics, layers)
    compiled = CompiledSteps(_ModelOnDevices(model.network, variables, statistics, mesh), stats, dense)
    jobs = _jobs(records, pending, scale, batch_size, mesh.size)
    console, name = Console(), f"descriptors, Q={scale}"
    progress = EvalProgress(console, stats, sum(job.macs for job in jobs))
    progress.start(name, len(records), len(pending))
    chunks = run_jobs(compiled, EvalPass("dense", scale, scale, True), jobs, records, os.cpu_count() or 1, stats)
    for chunk in cached_as_they_come(_finite(chunks, records), caches, progress):
        descriptors_NxD[chunk.indices] = chunk.probs_nxK
    elapsed = time.monotonic() - began
    pace = f", {1000 * elapsed / len(pending):.0f} ms an image" if len(pending) else ""
    console.print(f"{name}: {len(pending):,} images in {duration(elapsed)}{pace}")
    return descriptors_NxD


def _jobs(records: Any, pending: np.ndarray, scale: int, batch_size: int, devices: int) -> list[Job]:
    """Returns dense jobs that hold every pending image once; raises UserError where one is too large."""

    def at_once(length: int) -> int:
        return devices * max(1, batch_size * scale // (length * devices))

    sizes = np.ones((len(records), 2), np.int64)
    if len(pending):
        sizes[pending] = list(parallel_map(lambda i: decoded(records, i, size_of), pending.tolist()))
    rescaled_Nx2 = rescaled_sizes(sizes, scale)
    if len(large := pending[rescaled_Nx2[pending].prod(-1) > MAX_PIXELS]):
        raise UserError(f"{key_of(records[large[0]], large[0])} has too many pixels at Q={scale}; leave it out.")
    batches = buckets(rescaled_Nx2, pending, lambda length: length, at_once)
    # Work in columns of pixels.
    return [
        Job("dense", bucket, bucket.batch_size * bucket.shape[1], int(rescaled_Nx2[bucket.indices].max(-1).sum()))
        for bucket in batches
    ]


def _finite(chunks: Any, records: Any) -> Any:
    """Passes chunks through; raises UserError at descriptors that are not finite."""
    for chunk in chunks:
        if not (finite := np.isfinite(chunk.probs_nxK).all(1)).all():
            index = int(chunk.indices[~finite][0])
            raise UserError(
                f"the activations of {key_of(records[index], index)} are not finite; check the weights, or leave the "
                "image out."
            )
        yield chunk


def _widths(model: Backbone, layers: Sequence[str], scale: int) -> dict[str, int]:
    """Returns the number of channels of each layer."""
    image = jax.ShapeDtypeStruct((scale, scale, 3), jnp.float32)
    shapes: Any = jax.eval_shape(lambda x: features.activations(model, x, tuple(layers)), image)
    return {layer: shapes[layer].shape[-1] for layer in layers}


def _cache(model: Backbone, layer: str, num_columns: int, images: Images, scale: int, directory: Path) -> RowCache:
    network = model.network  # the same parameters may be computed with in another way
    settings = {
        "format": _FORMAT,
        "params_sha256": params_sha256(model.params, model.model_state),
        "mean_rgb": np.asarray(model.mean_rgb, np.float32).tolist(),
        "network": str(network.layers),
        "dtype": str(jnp.dtype(network.dtype)),
        "layer": layer,
        "scale": scale,
        "images": len(images.records),
        "images_sha256": images.digest.hex(),
    }
    name = f"{layer}-Q{scale}-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]}"
    return RowCache(directory, name, settings, Rows("descriptors", num_columns, -_MOST, _MOST))
