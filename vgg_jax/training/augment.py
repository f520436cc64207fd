"""Augmentation on the device, within the train step: mirror, colour shift, mean, mixup and cutmix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vgg_jax.data.colors import ColorStatistics


def normalize(images_BxHxWx3: jax.Array, statistics: ColorStatistics) -> jax.Array:
    """Converts uint8 RGB to float32 and subtracts the training set's mean; nothing is divided (Paper §2.1)."""
    return images_BxHxWx3.astype(jnp.float32) - statistics.mean_rgb


def augment(
    key: jax.Array, images_BxHxWx3: jax.Array, statistics: ColorStatistics, flip: bool = True, color_std: float = 0.1
) -> jax.Array:
    """Applies the random part of the paper's augmentation that is not the crop (Paper §3.1).

    Args:
      key: every image's draw depends on it and on the image's index in the batch alone, not on the devices.
      images_BxHxWx3: uint8 RGB crops.
      statistics: of the training split.
      flip: mirror each image with probability 1/2.
      color_std: standard deviation of the three draws, one a principal axis, that each image is shifted by
        (Krizhevsky 2012 §4.1); 0 shifts none.

    Returns:
      [B, H, W, 3] float32, mean subtracted.
    """
    flip_key, color_key = jax.random.split(key)
    batch = images_BxHxWx3.shape[0]
    if flip:
        mirrored_B = jax.random.bernoulli(flip_key, 0.5, (batch,))
        images_BxHxWx3 = jnp.where(mirrored_B[:, None, None, None], images_BxHxWx3[:, :, ::-1], images_BxHxWx3)
    images = normalize(images_BxHxWx3, statistics)
    if color_std:
        shift_Bx3 = color_std * jax.random.normal(color_key, (batch, 3)) @ statistics.color_vectors.T
        images += shift_Bx3[:, None, None, :]
    return images


def mix(
    key: jax.Array,
    images_BxHxWx3: jax.Array,
    labels_B: jax.Array,
    num_classes: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image and label with another of the batch: image i with image B - 1 - i.

    Args:
      key: of the step.
      images_BxHxWx3: float.
      labels_B: int.
      num_classes: K.
      mixup: a of Beta(a, a), from which the share of an image's own pixels is drawn, one for the batch (Zhang et al.
        2018).
      cutmix: likewise; a rectangle of the other image is pasted, and the share counts the pixels that stay (Yun et al.
        2019). With both, one of them is chosen with probability 1/2.

    Returns:
      The images, and targets [B, K] float32, the classes' shares, whose rows sum to 1.
    """
    targets = jax.nn.one_hot(labels_B, num_classes)
    if not (mixup or cutmix):
        return images_BxHxWx3, targets
    choice_key, share_key, center_key = jax.random.split(key, 3)
    pastes = jax.random.bernoulli(choice_key, 0.5) if mixup and cutmix else jnp.bool_(cutmix > 0)
    share = jax.random.beta(share_key, *(jnp.where(pastes, cutmix, mixup),) * 2)
    height, width = images_BxHxWx3.shape[1:3]
    # A rectangle of the image's proportions around any pixel; what lies outside the image is cut off.
    row, column = (jax.random.uniform(center_key, (2,)) * jnp.array([height, width])).astype(jnp.int32)
    half = jnp.sqrt(1 - share) / 2
    rows, columns = jnp.arange(height), jnp.arange(width)
    in_rows = jnp.abs(rows - row) < half * height
    in_columns = jnp.abs(columns - column) < half * width
    pasted_HxW = in_rows[:, None] & in_columns
    own_HxW = jnp.where(pastes, 1.0 - pasted_HxW, share)
    share = jnp.where(pastes, own_HxW.mean(), share)
    own = own_HxW[..., None]
    return own * images_BxHxWx3 + (1 - own) * images_BxHxWx3[::-1], share * targets + (1 - share) * targets[::-1]
