"""Losses and distances of images made of activations: perceptual, style, total variation, LPIPS."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.features.backbone import Backbone, load_backbone
from vgg_jax.features.endpoints import activations
from vgg_jax.models import NetworkSpec
from vgg_jax.runtime.exceptions import UserError
from vgg_jax.weights import containers, hub


def perceptual_loss(
    model: Backbone, x: jax.Array, y: jax.Array, layers: Sequence[str], weights: Sequence[float] | None = None
) -> jax.Array:
    """Computes how far two images are apart in the activations of layers (Johnson et al. 2016, feature reconstruction).

    Args:
      model: as for `activations`.
      x: images.
      y: images of the same shape.
      layers: as for `activations`.
      weights: of the layers; None: 1 each.

    Returns:
      A float32 scalar: the weighted sum over layers of the mean squared difference of their activations.
    """
    return _weighted(model, x, y, layers, weights, lambda a: a)


def style_loss(
    model: Backbone, x: jax.Array, y: jax.Array, layers: Sequence[str], weights: Sequence[float] | None = None
) -> jax.Array:
    """Computes how far two images are apart in their co-occurring features, wherever they are (Gatys et al. 2016).

    Args:
      model: as for `perceptual_loss`.
      x: images.
      y: images, which may have another height and width.
      layers: as for `perceptual_loss`.
      weights: as for `perceptual_loss`.

    Returns:
      A float32 scalar: the weighted sum over layers of the mean squared difference of their `gram` matrices.
    """
    return _weighted(model, x, y, layers, weights, gram)


def gram(map_HxWxC: jax.Array) -> jax.Array:
    """Computes the Gram matrix of a map [..., H, W, C]: [..., C, C] float32, the mean product of two channels."""
    f = map_HxWxC.reshape(*map_HxWxC.shape[:-3], -1, map_HxWxC.shape[-1]).astype(jnp.float32)
    return jnp.einsum("...nc,...nd->...cd", f, f) / f.shape[-2]


def total_variation(image_HxWx3: jax.Array) -> jax.Array:
    """Computes the mean squared difference of neighbouring pixels, a float32 scalar: a penalty on rough images."""
    x = image_HxWx3.astype(jnp.float32)
    return jnp.square(jnp.diff(x, axis=-2)).mean() + jnp.square(jnp.diff(x, axis=-3)).mean()


def _weighted(
    model: Backbone,
    x: jax.Array,
    y: jax.Array,
    layers: Sequence[str],
    weights: Sequence[float] | None,
    function: Callable,
) -> jax.Array:
    if weights is not None and len(weights) != len(layers):
        raise UserError(f"{len(weights)} weights for {len(layers)} layers; give one for each.")
    of_x, of_y = activations(model, x, layers), activations(model, y, layers)
    factors = [1.0] * len(layers) if weights is None else weights
    total = jnp.float32(0)
    for layer, factor in zip(layers, factors, strict=True):
        a, b = function(of_x[layer]).astype(jnp.float32), function(of_y[layer]).astype(jnp.float32)
        if a.shape != b.shape:
            raise UserError(
                f"images of {list(x.shape)} and {list(y.shape)} cannot be compared at {layer}; make them of one shape."
            )
        total += factor * jnp.square(a - b).mean()
    return total


LPIPS_TRUNK = "torchvision:vgg16"
LPIPS_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")  # of configuration D


def load_lpips_heads(source: str | os.PathLike) -> tuple[jax.Array, ...]:
    """Loads the calibrated weights of LPIPS for VGG-16: vgg.pth of the package `lpips`, version 0.1.

    Args:
      source: the name lpips:vgg, for which the file is fetched once and checked, or a path to it.

    Returns:
      [C] float32 for each of LPIPS_LAYERS.

    Raises:
      UserError: the file cannot be fetched or read, or holds other arrays.
    """
    path = hub.fetch_heads(source)
    with containers.open_tensors(path) as contents:
        arrays = {name: containers.read_array(contents, name) for name in contents.tensors}
    heads = [arrays.get(f"lin{i}.model.1.weight", np.zeros(0)) for i in range(len(LPIPS_LAYERS))]
    sizes = [head.size for head in heads]
    if len(arrays) != len(heads) or sizes != [64, 128, 256, 512, 512]:
        raise UserError(
            f"{path} holds no LPIPS heads of VGG-16, which are of 64, 128, 256, 512 and 512 channels; it has "
            f"{', '.join(f'{name} {list(array.shape)}' for name, array in list(arrays.items())[:5]) or 'nothing'}."
        )
    return tuple(jnp.asarray(head.reshape(-1)) for head in heads)


def lpips(
    x: jax.Array,
    y: jax.Array,
    net: Backbone | None = None,
    heads: str | os.PathLike | Sequence[jax.Array] = hub.LPIPS,
    spatial: bool = False,
) -> jax.Array:
    """Computes how different two images look: the learned distance of Zhang et al. 2018, version 0.1.

    Activations are normalised at each position over their channels. The squared differences are weighted by channel,
    averaged over positions, and summed over LPIPS_LAYERS.

    Args:
      x: images, [..., H, W, 3], RGB on 0 to 255.
      y: images of the same shape.
      net: of configuration D, with or without FC layers, trained as the heads were. None: torchvision:vgg16, fetched
        once; its convolutions stay in memory.
      heads: lpips:vgg, the calibrated ones, fetched once; a path to their file; or an array for each layer.
      spatial: return a map in place of its mean.

    Returns:
      [...] float32, or with `spatial` [..., H, W].

    Raises:
      UserError: images of two shapes, another network, or heads of another number or width than the layers.
    """
    if x.shape != y.shape:
        raise UserError(f"images of {list(x.shape)} and {list(y.shape)} cannot be compared; make them of one shape.")
    model = net or lpips_trunk()
    trunk, expected = (
        [layer for layer in layers if layer.block < 6] for layers in (model.network.layers, NetworkSpec("D").layers())
    )
    if trunk[: len(expected) - 1] != expected[:-1]:  # pool5 is not looked at
        raise UserError("LPIPS is of configuration D, and this model is of another network; load D.")
    if isinstance(heads, str | os.PathLike):
        heads = calibrated_heads() if heads == hub.LPIPS else load_lpips_heads(heads)
    if len(heads) != len(LPIPS_LAYERS):
        raise UserError(
            f"{len(heads)} LPIPS heads; give {len(LPIPS_LAYERS)}, one for each of {', '.join(LPIPS_LAYERS)}."
        )
    maps = activations(model, jnp.stack([x, y]), LPIPS_LAYERS)
    total: Any = 0.0
    for layer, head in zip(LPIPS_LAYERS, map(jnp.asarray, heads), strict=True):
        both = maps[layer].astype(jnp.float32)
        if both.shape[-1:] != head.shape:
            raise UserError(
                f"{layer} has {both.shape[-1]} channels and its head is for {head.size}; heads of VGG-16 go with a "
                "configuration D of full width."
            )
        # Where no channel is active, the root would have no gradient.
        both = both * jax.lax.rsqrt(jnp.square(both).sum(-1, keepdims=True) + 1e-20)
        distance = jnp.square(both[0] - both[1]) @ head
        if spatial:
            total += jax.image.resize(distance, (*distance.shape[:-2], *x.shape[-3:-1]), "linear", antialias=False)
        else:
            total += distance.mean((-2, -1))
    return total


@functools.cache
def lpips_trunk() -> Backbone:
    """Returns the convolutions of torchvision's VGG-16, which LPIPS was calibrated with; they stay in memory."""
    # A call within a jitted function must not keep arrays of its trace.
    with jax.ensure_compile_time_eval():
        model = load_backbone(LPIPS_TRUNK)
    spec = model.spec.without_head()
    network = model.network.clone(layers=spec.layers(model.crop))
    params = {layer.name: model.params[layer.name] for layer in network.layers if layer.has_kernel}
    return model.replace(params=params, network=network, spec=spec)


@functools.cache
def calibrated_heads() -> tuple[jax.Array, ...]:
    """Returns the heads of the name lpips:vgg; they stay in memory."""
    with jax.ensure_compile_time_eval():
        return load_lpips_heads(hub.LPIPS)
