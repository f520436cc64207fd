"""Jitted functions from images to probabilities, in the paper's order of averaging (Paper §3.2, §4.3).

Scores are averaged over space within one image; probabilities over mirror images and crops here, over scales, methods
and models in `results`. Buckets and transposed images are explained in `plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.data.colors import ColorStatistics
from vgg_jax.evaluation.passes import GRID, GRID_CELLS
from vgg_jax.models import Network
from vgg_jax.models.description import lengths
from vgg_jax.training.augment import normalize


def transpose_kernels(variables: dict) -> dict:
    """Transposes all kernels, so that the network on a transposed image equals the network on the image.

    Pooling, LRN and averages treat rows and columns alike.
    """
    return jax.tree.map(lambda x: x.swapaxes(0, 1) if x.ndim == 4 else x, variables)


def mirrored(images_BxHxWx3: jax.Array, sizes_Bx2: jax.Array, transposed: jax.Array) -> jax.Array:
    """Returns padded images with left and right exchanged; the padding is left undefined.

    Args:
      images_BxHxWx3: any dtype.
      sizes_Bx2: int32, rows and columns of each image.
      transposed: bool, whether left and right are the first and the last row instead of column.
    """
    columns_BxW = (sizes_Bx2[:, 1:] - 1 - jnp.arange(images_BxHxWx3.shape[2])).clip(0)
    rows_BxH = (sizes_Bx2[:, :1] - 1 - jnp.arange(images_BxHxWx3.shape[1])).clip(0)
    return jnp.where(
        transposed,
        jnp.take_along_axis(images_BxHxWx3, rows_BxH[:, :, None, None], axis=1),
        jnp.take_along_axis(images_BxHxWx3, columns_BxW[:, None, :, None], axis=2),
    )


def make_dense(model: Network, statistics: ColorStatistics) -> Callable[..., Any]:
    """Returns the function for dense evaluation of whole images (Paper §3.2).

    (variables, images [B, H, W, 3] uint8, sizes [B, 2] int32, transposed bool) -> probabilities [B, K] float32: the
    mean over the image and its mirror image of the soft-max of the scores averaged over space. With `transposed` the
    variables are of `transpose_kernels`.
    """

    def dense(variables: dict, images_BxHxWx3: jax.Array, sizes_Bx2: jax.Array, transposed: jax.Array) -> Any:
        pair = jnp.stack([images_BxHxWx3, mirrored(images_BxHxWx3, sizes_Bx2, transposed)], 1)
        images = normalize(pair.reshape(-1, *pair.shape[2:]), statistics)
        logits, _ = model.apply(variables, images, sizes_Bx2=jnp.repeat(sizes_Bx2, 2, 0))
        return jax.nn.softmax(logits).reshape(pair.shape[0], 2, -1).mean(1)

    return dense


def make_descriptors(model: Network, statistics: ColorStatistics, layers: Sequence[str]) -> Callable[..., Any]:
    """Returns the function for descriptors of whole images (Paper, Appendix B).

    It has the arguments of `make_dense`'s and returns [B, D] float32: for each layer, side by side, its activations
    averaged over space and over the mirror image.
    """

    def descriptors(variables: dict, images_BxHxWx3: jax.Array, sizes_Bx2: jax.Array, transposed: jax.Array) -> Any:
        pair = jnp.stack([images_BxHxWx3, mirrored(images_BxHxWx3, sizes_Bx2, transposed)], 1)
        images, sizes = normalize(pair.reshape(-1, *pair.shape[2:]), statistics), jnp.repeat(sizes_Bx2, 2, 0)
        maps: Any = model.apply(variables, images, tuple(layers), sizes, method="activations")
        sides: Any = lengths(model.layers, sizes)  # type: ignore[arg-type]  # rows and columns of each layer's output
        means = []
        for layer in layers:
            cells = sides[model.layers[-1].name if layer == "score_map" else layer].prod(-1, keepdims=True)
            mean = maps[layer].astype(jnp.float32).sum((1, 2)) / cells
            means.append(mean.reshape(pair.shape[0], 2, -1).mean(1))
        return jnp.concatenate(means, -1)

    return descriptors


def make_tiles(model: Network, statistics: ColorStatistics) -> Callable[..., Any]:
    """Returns the function for parts of images too long for a bucket, see `plan.tiles`.

    (variables, images [B, H, W, 3] uint8, sizes [B, 2] int32, keep [B, 2] int32) -> scores [B, K] float32, summed over
    all rows and over the columns from keep[:, 0] up to keep[:, 1] of each tile's score map.
    """

    def tile_scores(variables: dict, images_BxHxWx3: jax.Array, sizes_Bx2: jax.Array, keep_Bx2: jax.Array) -> Any:
        images = normalize(images_BxHxWx3, statistics)
        _, maps = model.apply(variables, images, sizes_Bx2=sizes_Bx2, endpoints=("score_map",))
        columns = jnp.arange(maps["score_map"].shape[2])
        keep = (columns >= keep_Bx2[:, :1]) & (columns < keep_Bx2[:, 1:])
        return jnp.where(keep[:, None, :, None], maps["score_map"], 0).sum((1, 2))

    return tile_scores


def make_crops(model: Network, statistics: ColorStatistics, mirror: bool) -> Callable[..., Any]:
    """Returns the function for several crops of each image (Paper §4.3).

    (variables, crops [B, n, c, c, 3] uint8) -> probabilities [B, K] float32, the mean over an image's crops and, with
    `mirror`, their mirror images.
    """

    def crops(variables: dict, crops_BxNxCxCx3: jax.Array) -> Any:
        batch = crops_BxNxCxCx3.shape[0]
        if mirror:
            crops_BxNxCxCx3 = jnp.concatenate([crops_BxNxCxCx3, crops_BxNxCxCx3[..., ::-1, :]], 1)
        images = normalize(crops_BxNxCxCx3.reshape(-1, *crops_BxNxCxCx3.shape[2:]), statistics)
        logits, _ = model.apply(variables, images)
        return jax.nn.softmax(logits).reshape(batch, crops_BxNxCxCx3.shape[1], -1).mean(1)

    return crops


def grid_offsets(side: int, crop: int) -> np.ndarray:
    """Returns the starts of the regular grid of crops along a side, [5] int64: round(i (side - crop) / 4)."""
    return (2 * np.arange(GRID) * (side - crop) + GRID - 1) // (2 * (GRID - 1))


def cut_grid(
    images_BxHxWx3: jax.Array,
    sizes_Bx2: jax.Array,
    transposed: jax.Array,
    crop: int,
    cells: Sequence[tuple[int, int]] = GRID_CELLS["multi_crop"],
) -> jax.Array:
    """Returns N crops of each image, not transposed: [B, N, crop, crop, 3].

    Args:
      images_BxHxWx3, sizes_Bx2, transposed: as in `mirrored`.
      crop: pixels.
      cells: [N] of the grid, (row, column), of the image as it stands.
    """
    # As `grid_offsets`, for sizes known on the device only.
    offsets_Bx2x5 = (2 * jnp.arange(GRID) * (sizes_Bx2[..., None] - crop) + GRID - 1) // (2 * (GRID - 1))

    rows, columns = np.array(cells).T

    def crops_of(image: jax.Array, offsets_2x5: jax.Array) -> Any:
        def at(row: jax.Array, column: jax.Array) -> Any:
            part = jax.lax.dynamic_slice(image, (offsets_2x5[0, row], offsets_2x5[1, column], 0), (crop, crop, 3))
            return jnp.where(transposed, part.swapaxes(0, 1), part)

        # Of a transposed image rows and columns are exchanged.
        return jax.vmap(at)(jnp.where(transposed, columns, rows), jnp.where(transposed, rows, columns))

    return jax.vmap(crops_of)(images_BxHxWx3, offsets_Bx2x5)
