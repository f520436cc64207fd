"""Pictures -> posteriors, on the devices: the order of averaging of the paper (Paper §3.2, §4.3).

Scores are averaged over space, within one image; posteriors over mirror images and crops here, over scales, parts and
nets in `results`. Frames, and what lies on its side, are explained in `buckets`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.augment import ColorStatistics, normalize
from vgg_jax.evaluation.views import GRID
from vgg_jax.models import VGG


def laid_on_side(variables: dict) -> dict:
    """The parameters with which a net sees an image whose rows and columns are exchanged as it sees the image itself.

    Every kernel's rows and columns are exchanged; pooling, LRN and averages treat both alike.
    """
    return jax.tree.map(lambda x: x.swapaxes(0, 1) if x.ndim == 4 else x, variables)


def mirrored(frames_BxHxWx3: jax.Array, sizes_Bx2: jax.Array, on_side: jax.Array) -> jax.Array:
    """The pictures in their frames, left and right exchanged; what lies outside them is left undefined.

    Args:
      frames_BxHxWx3: any dtype.
      sizes_Bx2: int32, rows and columns of the picture in its frame.
      on_side: bool, whether left and right are the first and the last row instead of column.
    """
    columns_BxW = (sizes_Bx2[:, 1:] - 1 - jnp.arange(frames_BxHxWx3.shape[2])).clip(0)
    rows_BxH = (sizes_Bx2[:, :1] - 1 - jnp.arange(frames_BxHxWx3.shape[1])).clip(0)
    return jnp.where(
        on_side,
        jnp.take_along_axis(frames_BxHxWx3, rows_BxH[:, :, None, None], axis=1),
        jnp.take_along_axis(frames_BxHxWx3, columns_BxW[:, None, :, None], axis=2),
    )


def make_dense(model: VGG, statistics: ColorStatistics) -> Callable[..., Any]:
    """Dense evaluation of whole pictures (Paper §3.2).

    Returns:
      The function (variables, frames [B, H, W, 3] uint8, sizes [B, 2] int32, on_side bool) -> posteriors [B, K] float32:
      the mean over the picture and its mirror image of the soft-max of the scores averaged over space. With `on_side`
      the variables are those of `laid_on_side`.
    """

    def dense(variables: dict, frames_BxHxWx3: jax.Array, sizes_Bx2: jax.Array, on_side: jax.Array) -> Any:
        pair = jnp.stack([frames_BxHxWx3, mirrored(frames_BxHxWx3, sizes_Bx2, on_side)], 1)
        images = normalize(pair.reshape(-1, *pair.shape[2:]), statistics)
        logits, _ = model.apply(variables, images, sizes_Bx2=jnp.repeat(sizes_Bx2, 2, 0))
        return jax.nn.softmax(logits).reshape(pair.shape[0], 2, -1).mean(1)

    return dense


def make_strips(model: VGG, statistics: ColorStatistics) -> Callable[..., Any]:
    """Parts of pictures too long for a frame, see `buckets.strips`.

    Returns:
      The function (variables, frames [B, H, W, 3] uint8, sizes [B, 2] int32, keep [B, 2] int32) -> scores [B, K] float32,
      summed over all rows and over the columns from keep[:, 0] up to keep[:, 1] of each strip's score map.
    """

    def strip_scores(variables: dict, frames_BxHxWx3: jax.Array, sizes_Bx2: jax.Array, keep_Bx2: jax.Array) -> Any:
        images = normalize(frames_BxHxWx3, statistics)
        _, maps = model.apply(variables, images, sizes_Bx2=sizes_Bx2, endpoints=("score_map",))
        columns = jnp.arange(maps["score_map"].shape[2])
        kept = (columns >= keep_Bx2[:, :1]) & (columns < keep_Bx2[:, 1:])
        return jnp.where(kept[:, None, :, None], maps["score_map"], 0).sum((1, 2))

    return strip_scores


def make_crops(model: VGG, statistics: ColorStatistics, mirror: bool) -> Callable[..., Any]:
    """Several crops of each picture (Paper §4.3).

    Returns:
      The function (variables, crops [B, n, c, c, 3] uint8) -> posteriors [B, K] float32, the mean over a picture's crops
      and, with `mirror`, their mirror images.
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
    """Where the crops of the regular grid begin along a side: round(i (side - crop) / 4), i = 0 ... 4; [5] int64."""
    return (2 * np.arange(GRID) * (side - crop) + GRID - 1) // (2 * (GRID - 1))


def cut_grid(frames_BxHxWx3: jax.Array, sizes_Bx2: jax.Array, on_side: jax.Array, crop: int) -> jax.Array:
    """The 25 crops of each picture, upright, row by row: [B, 25, crop, crop, 3]; arguments as in `mirrored`."""
    # As `grid_offsets`, for sizes known on the device only.
    offsets_Bx2x5 = (2 * jnp.arange(GRID) * (sizes_Bx2[..., None] - crop) + GRID - 1) // (2 * (GRID - 1))

    def one(frame: jax.Array, offsets_2x5: jax.Array) -> Any:
        def at(row: jax.Array, column: jax.Array) -> Any:
            return jax.lax.dynamic_slice(frame, (row, column, 0), (crop, crop, 3))

        return jax.vmap(lambda row: jax.vmap(lambda column: at(row, column))(offsets_2x5[1]))(offsets_2x5[0])

    grid = jax.vmap(one)(frames_BxHxWx3, offsets_Bx2x5)  # [B, 5, 5, crop, crop, 3]
    upright = jnp.where(on_side, grid.transpose(0, 2, 1, 4, 3, 5), grid)
    return upright.reshape(grid.shape[0], GRID**2, crop, crop, 3)
