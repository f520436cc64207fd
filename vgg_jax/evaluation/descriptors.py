"""Descriptors of images: what a layer sees of a whole image, averaged over space and over the mirror image (Paper, Appendix B)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax import features
from vgg_jax.compilation import compile_step
from vgg_jax.console import duration
from vgg_jax.data.crops import rescaled
from vgg_jax.data.decode import DecodeError, size_of
from vgg_jax.data.parallel import parallel_map, progress
from vgg_jax.evaluation.plan import MAX_PIXELS, Bucket, buckets, rescaled_sizes
from vgg_jax.evaluation.steps import mirrored, transpose_kernels
from vgg_jax.exceptions import UserError, writing_to
from vgg_jax.features import Backbone
from vgg_jax.files import FREE_SPACE, unfinished_path
from vgg_jax.models.description import lengths
from vgg_jax.sharding import batch_sharding, make_mesh, replicated
from vgg_jax.state import params_sha256


class Images(NamedTuple):
    """Encoded images, wherever they lie."""

    num_images: int
    encoded: Callable[[int], bytes]  # of an image by its number; may raise OSError
    name: Callable[[int], str]  # by which messages name it
    digest: bytes  # another one where there are others


def descriptors(
    backbone: Backbone, layers: Sequence[str], images: Images, scale: int, directory: Path, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Computes descriptors, or takes those that are kept; what was computed before an interruption is not computed again.

    Args:
      backbone: of `features.load`.
      layers: endpoints of the network.
      images: rescaled to a shorter side of `scale` pixels and seen whole.
      scale: Q.
      directory: where they are kept, a file for each layer, scale, backbone and set of images.
      batch_size: images of Q x Q pixels at once, over all devices; it bounds memory and changes no result.

    Returns:
      {layer: [N, C] float32}, not normalised.

    Raises:
      UserError: an image that cannot be read, or one too large, by name; or the disk is full.
    """
    kept = {layer: _open(backbone, layer, images, scale, directory) for layer in layers}
    pending = np.flatnonzero(np.isnan([array[:, 0] for array in kept.values()]).any(0))
    if not len(pending):
        return {layer: np.asarray(array) for layer, array in kept.items()}
    sizes = np.ones((images.num_images, 2), np.int64)
    sizes[pending] = list(parallel_map(lambda i: _read(images, i, size_of), pending.tolist()))
    rescaled_Nx2 = rescaled_sizes(sizes, scale)
    if len(large := pending[rescaled_Nx2[pending].prod(-1) > MAX_PIXELS]):
        raise UserError(f"{images.name(large[0])} has too many pixels at Q={scale}; leave it out.")
    mesh, compiled = make_mesh(), dict[tuple[int, int], Any]()
    devices = mesh.size
    began, decoding_s = (time.monotonic(), time.process_time()), list[float]()

    def at_once(length: int) -> int:
        return devices * max(1, batch_size * scale // (length * devices))

    variables: Any = {"params": backbone.params, **backbone.model_state}
    upright = jax.device_put(variables, replicated(mesh))
    transposed = jax.device_put(transpose_kernels(variables), replicated(mesh))
    jobs = buckets(rescaled_Nx2, pending, lambda length: length, at_once)

    def decode(i: int) -> np.ndarray:
        before = time.thread_time()
        pixels: np.ndarray = _read(images, i, lambda encoded: rescaled(encoded, scale))
        decoding_s.append(time.thread_time() - before)
        return pixels

    in_order = (int(i) for job in jobs for i in job.indices)
    decoded = parallel_map(decode, in_order, ahead=max(16, 2 * batch_size))
    shown = progress(range(len(pending)), len(pending), f"descriptors, Q={scale}")
    for job in jobs:
        batch = _batch(job, [next(decoded) for _ in job.indices])
        arguments = (*(jax.device_put(array, batch_sharding(mesh)) for array in batch), np.bool_(job.transposed))
        used = transposed if job.transposed else upright
        if job.shape not in compiled:
            compiled[job.shape] = compile_step(_step(backbone, layers), used, *arguments)
        with writing_to(directory, FREE_SPACE):
            for layer, found in compiled[job.shape](used, *arguments).items():
                kept[layer][job.indices] = np.asarray(found)[: len(job.indices)]
                kept[layer].flush()
        for _ in job.indices:
            next(shown)
    shown.close()
    elapsed, cpu = time.monotonic() - began[0], time.process_time() - began[1]
    print(
        f"descriptors, Q={scale}: {len(pending):,} images in {duration(elapsed)}, {1000 * elapsed / len(pending):.0f} ms an image; "
        f"decoding took {sum(decoding_s) / cpu:.1%} of the processor's time",
        flush=True,
    )
    return {layer: np.asarray(array) for layer, array in kept.items()}


def normalized(descriptors_NxD: np.ndarray) -> np.ndarray:
    """Returns rows of length 1; a row of zeros stays."""
    norms = np.linalg.norm(descriptors_NxD, axis=1, keepdims=True)
    return descriptors_NxD / np.maximum(norms, np.finfo(np.float32).tiny)


def _step(backbone: Backbone, layers: Sequence[str]) -> Any:
    network = backbone.model

    def step(variables: dict, images_BxHxWx3: jax.Array, sizes_Bx2: jax.Array, is_transposed: jax.Array) -> Any:
        pair = jnp.stack([images_BxHxWx3, mirrored(images_BxHxWx3, sizes_Bx2, is_transposed)], 1)
        images = pair.reshape(-1, *pair.shape[2:]).astype(jnp.float32) - backbone.mean_rgb
        sizes = jnp.repeat(sizes_Bx2, 2, 0)
        maps: Any = network.apply(variables, images, tuple(layers), sizes, method="activations")
        of_layers: Any = lengths(network.layers, sizes)  # type: ignore[arg-type]  # rows and columns of each layer's output
        means = {}
        for layer in layers:
            places: Any = of_layers[network.layers[-1].name if layer == "score_map" else layer]
            means[layer] = maps[layer].astype(jnp.float32).sum((1, 2)) / places.prod(-1, keepdims=True)
        return {layer: mean.reshape(pair.shape[0], 2, -1).mean(1) for layer, mean in means.items()}

    return step


def _batch(job: Bucket, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns images [B, H, W, 3] uint8 in the top left corners of their bucket's shape, and their sizes [B, 2] int32."""
    padded = np.zeros((job.batch_size, *job.shape, 3), np.uint8)
    sizes = np.full((job.batch_size, 2), job.shape, np.int32)
    for i, image in enumerate(images):
        laid = image.swapaxes(0, 1) if job.transposed else image
        padded[i, : laid.shape[0], : laid.shape[1]] = laid
        sizes[i] = laid.shape[:2]
    return padded, sizes


def _read(images: Images, i: int, function: Callable[[bytes], Any]) -> Any:
    try:
        return function(images.encoded(i))
    except (OSError, DecodeError) as error:
        raise UserError(
            f"{images.name(i)} cannot be read: {error}; leave it out. What was computed so far is kept."
        ) from error


def _open(backbone: Backbone, layer: str, images: Images, scale: int, directory: Path) -> np.memmap:
    """Returns the kept descriptors of a layer, mapped into memory; rows that are not computed yet are NaN."""
    parameters = params_sha256(backbone.params, backbone.model_state)
    network = backbone.model  # the same parameters may be computed with in another way
    mean = np.asarray(backbone.mean_rgb, np.float32).tolist()
    digest = hashlib.sha256(f"{parameters}{mean}{network.layers}{jnp.dtype(network.dtype)}".encode() + images.digest)
    file = directory / f"{layer}-Q{scale}-{digest.hexdigest()[:12]}.npy"
    image = jax.ShapeDtypeStruct((scale, scale, 3), jnp.float32)
    activations: Any = jax.eval_shape(lambda x: features.activations(backbone, x, (layer,)), image)
    shape = (images.num_images, activations[layer].shape[-1])
    try:
        array = np.lib.format.open_memmap(file, mode="r+")
        if array.shape == shape and array.dtype == np.float32:
            return array
    except (OSError, ValueError):
        pass  # none yet, or damaged
    with writing_to(directory, FREE_SPACE):
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = unfinished_path(file)
        array = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
        array[:] = np.nan
        array.flush()
        unfinished.replace(file)
    return np.lib.format.open_memmap(file, mode="r+")
