"""Activations of a model's layers, and models with other pooling or scaled kernels."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vgg_jax.features.backbone import Backbone
from vgg_jax.models.description import endpoint_names, lengths, needed
from vgg_jax.runtime.exceptions import UserError


def activations(model: Backbone, images: jax.Array, layers: Sequence[str]) -> dict[str, jax.Array]:
    """Computes the activations of layers.

    Args:
      model: of `vgg_jax.load`.
      images: [..., H, W, 3], RGB on 0 to 255, any number dtype, any size that leaves the layers a pixel; the FC layers
        need one of at least the model's crop.
      layers: names as `models.description.endpoint_names` lists them: conv1_1, relu1_1, pool1, ..., relu7, score_map.

    Returns:
      {layer: [..., h, w, C]} in the model's dtype.

    Warns once, outside jit, of images that look like [0, 1] or have negative values.

    Raises:
      UserError: a layer that the model does not have, none at all, or images too small or of another shape.
    """
    if isinstance(layers, str) or not layers:
        raise UserError(f"the layers are {layers!r}; name one or several in a tuple, as ({layers or 'relu3_3'!r},).")
    known = endpoint_names(model.network.layers)
    if unknown := [layer for layer in layers if layer not in known]:
        raise UserError(f"the network has no layer {unknown[0]!r}; it has {', '.join(known)}.")
    if images.ndim < 3 or images.shape[-1] != 3:
        raise UserError(f"images of shape {list(images.shape)}: they must be [..., height, width, 3], RGB on 0 to 255.")
    check_size(model, images.shape[-3:-1], layers)
    _check_range(images)
    outer = images.shape[:-3]
    x = images.reshape(-1, *images.shape[-3:]).astype(jnp.float32) - model.mean_rgb
    maps: Any = model.network.apply(model.variables, x, tuple(layers), method="activations")
    return {layer: maps[layer].reshape(*outer, *maps[layer].shape[1:]) for layer in layers}


def with_average_pooling(model: Backbone) -> Backbone:
    """Returns the model with average pooling in place of max pooling, for style transfer (Gatys et al. 2016)."""
    layers = model.network.layers
    if any(layer.kind == "pool" and (layer.padding or layer.padding_after) for layer in layers):
        raise UserError(
            "means can take the place of maxima where pooling has no padding, as in VGGs; this network's has."
        )
    layers = tuple(layer._replace(kind="mean_pool") if layer.kind == "pool" else layer for layer in layers)
    return dataclasses.replace(model, network=model.network.clone(layers=layers))


def with_normalized_activations(model: Backbone, images: Iterable[jax.Array]) -> Backbone:
    """Returns the model, scaled so that each channel's mean activation is 1 (Gatys et al. 2016).

    The network's logits stay the same, because a ReLU and pooling commute with positive factors. A channel that no
    image activates stays as it is.

    Args:
      model: of a VGG without normalisation layers.
      images: [..., H, W, 3], RGB on 0 to 255, of any sizes; each array counts as much as any other.

    Raises:
      UserError: another network, or no images.
    """
    layers = model.network.layers
    if any(layer.is_norm or layer.kind in ("lrn", "add", "concat") for layer in layers):
        raise UserError(
            "activations can be normalised for VGGs without normalisation layers; this network is another one."
        )
    names = [layer.name for layer in layers if layer.kind == "conv"]
    relus = [name.replace("conv", "relu") for name in names]
    mean = functools.partial(jnp.mean, dtype=jnp.float32)
    means = jax.jit(
        lambda x, b: {name: mean(y, tuple(range(y.ndim - 1))) for name, y in activations(b, x, relus).items()}
    )
    by_image = [means(x, model) for x in images]
    if not by_image:
        raise UserError("there is no image to normalise activations by.")
    activity = jax.tree.map(lambda *each: jnp.mean(jnp.stack(each), 0), *by_image)
    params, before = dict(model.params), jnp.ones(3)
    for layer in layers:
        if not layer.has_kernel:
            continue
        leaves, after = params[layer.name], jnp.float32(1)
        if layer.kind == "conv":
            activation = activity[layer.name.replace("conv", "relu")]
            after = jnp.where(activation > 0, activation, 1)
        params[layer.name] = {
            "kernel": leaves["kernel"] * before[:, None] / after,
            "bias": leaves["bias"] / after,
        }
        before = jnp.broadcast_to(after, leaves["bias"].shape)
    return dataclasses.replace(model, params=params)


def check_size(model: Backbone, size: tuple[int, ...], layers: Sequence[str]) -> None:
    """Raises UserError where images are too small for the layers."""
    network = model.network.layers
    # Without auxiliary classifiers, which may want larger images.
    used = needed(network, [network[-1].name if layer == "score_map" else layer for layer in layers])

    def fits(length: int) -> bool:
        return min(rows for name, rows in lengths(network, length).items() if name in used) > 0

    if min(size) < (least := next(filter(fits, itertools.count(1)))):
        raise UserError(
            f"images of {size[0]} x {size[1]} pixels are too small for {', '.join(layers)}; they must be at least "
            f"{least} x {least}."
        )


def _check_range(images: jax.Array) -> None:
    """Warns of images that are not on 0 to 255; once, since Python shows a warning from one line once."""
    if isinstance(images, jax.core.Tracer) or not images.size:
        return
    low, high = float(images.min()), float(images.max())
    if low < 0 or 0 < high <= 1:  # an image that is black throughout is one of either range
        warnings.warn(
            f"images have values from {low:.3g} to {high:.3g}, and those of this package are RGB on 0 to 255: "
            "scale them.",
            stacklevel=2,
        )
