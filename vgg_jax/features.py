"""VGG as a backbone: activations of named layers, and losses made of them, as pure functions.

    backbone = features.load("vgg16.safetensors")
    maps = features.activations(backbone, images, ("relu2_2", "relu4_3"))
    distance = features.lpips(backbone, features.load_lpips_heads("vgg.pth"), x, y)
    loss, gradient = jax.value_and_grad(features.perceptual_loss, argnums=1)(backbone, x, y, ("relu2_2",))

Images are float RGB on 0 to 255, [..., H, W, 3]; the weights' own preprocessing is applied. Everything works under jit,
grad and vmap; `backbone` is a pytree, so it can be an argument of a jitted function.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.models import Network, describe
from vgg_jax.models.description import endpoint_names, last_features, lengths, needed
from vgg_jax.runtime.exceptions import UserError, quoted
from vgg_jax.weights import containers, hub
from vgg_jax.weights.file import Weights, folded_params, load_weights, make_model


@flax.struct.dataclass
class Backbone:
    """A model for its activations.

    Attributes:
      params: {layer: {"kernel", "bias"}}, for RGB on 0 to 255 minus `mean_rgb`.
      mean_rgb: [3] float32.
      model: the module that takes them.
      model_state: statistics of batch normalisation, where it has any.
    """

    params: dict
    mean_rgb: jax.Array
    model: Network = flax.struct.field(pytree_node=False)
    model_state: dict = flax.struct.field(default_factory=dict)


def load(source: str | os.PathLike, dtype: str = "float32") -> Backbone:
    """Loads a backbone from a weights file of `vgg-jax convert`.

    Args:
      source: the file, or a name of published weights (`weights.hub`), as torchvision:vgg16.
      dtype: of the computation: float32 or bfloat16.

    Raises:
      UserError: the file cannot be read.
    """
    path, weights = hub.load(source)
    return from_weights(weights or load_weights(path), dtype)  # which says what is wrong with the path


def from_weights(weights: Weights, dtype: str = "float32") -> Backbone:
    """Returns the backbone of weights that are in memory."""
    return Backbone(
        params=jax.tree.map(jnp.asarray, folded_params(weights)),
        mean_rgb=jnp.asarray(weights.preprocessing.mean_rgb()),
        model=make_model(weights, dtype),
        model_state=jax.tree.map(jnp.asarray, weights.model_state),
    )


def activations(backbone: Backbone, images: jax.Array, layers: Sequence[str]) -> dict[str, jax.Array]:
    """Computes the activations of layers.

    Args:
      backbone: of `load`.
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
    known = endpoint_names(backbone.model.layers)
    if unknown := [layer for layer in layers if layer not in known]:
        raise UserError(f"the network has no layer {unknown[0]!r}; it has {', '.join(known)}.")
    if images.ndim < 3 or images.shape[-1] != 3:
        raise UserError(f"images of shape {list(images.shape)}: they must be [..., height, width, 3], RGB on 0 to 255.")
    _check_size(backbone, images.shape[-3:-1], layers)
    _check_range(images)
    outer = images.shape[:-3]
    x = images.reshape(-1, *images.shape[-3:]).astype(jnp.float32) - backbone.mean_rgb
    variables = {"params": backbone.params, **backbone.model_state}
    maps: Any = backbone.model.apply(variables, x, tuple(layers), method="activations")
    return {layer: maps[layer].reshape(*outer, *maps[layer].shape[1:]) for layer in layers}


def with_average_pooling(backbone: Backbone) -> Backbone:
    """Returns the backbone with means in place of maxima in its pooling layers, which style transfer prefers (Gatys et al. 2016)."""
    layers = backbone.model.layers
    if any(layer.kind == "pool" and (layer.padding or layer.padding_after) for layer in layers):
        raise UserError(
            "means can take the place of maxima where pooling has no padding, as in VGGs; this network's has."
        )
    layers = tuple(layer._replace(kind="mean_pool") if layer.kind == "pool" else layer for layer in layers)
    return dataclasses.replace(backbone, model=backbone.model.clone(layers=layers))


def with_normalized_activations(backbone: Backbone, images: Iterable[jax.Array]) -> Backbone:
    """Returns the backbone with kernels and biases scaled so that each channel's mean activation is 1 (Gatys et al. 2016).

    The network's logits stay the same, because a ReLU and pooling commute with positive factors. A channel that none of the
    images activates stays as it is.

    Args:
      backbone: of a VGG without normalisation layers.
      images: [..., H, W, 3], RGB on 0 to 255, of any sizes; each array counts as much as any other.

    Raises:
      UserError: another network, or no images.
    """
    layers = backbone.model.layers
    if any(layer.kind in ("batch_norm", "lrn", "add", "concat") for layer in layers):
        raise UserError(
            "activations can be normalised for VGGs without normalisation layers; this network is another one."
        )
    names = [layer.name for layer in layers if layer.kind == "conv"]
    relus = [name.replace("conv", "relu") for name in names]
    mean = functools.partial(jnp.mean, dtype=jnp.float32)
    means = jax.jit(
        lambda x, b: {name: mean(y, tuple(range(y.ndim - 1))) for name, y in activations(b, x, relus).items()}
    )
    found = [means(x, backbone) for x in images]
    if not found:
        raise UserError("there is no image to normalise activations by.")
    of_all = jax.tree.map(lambda *of_each: jnp.mean(jnp.stack(of_each), 0), *found)
    params, before = dict(backbone.params), jnp.ones(3)
    for layer in layers:
        if not layer.has_kernel:
            continue
        leaves, after = params[layer.name], jnp.float32(1)
        if layer.kind == "conv":
            activation = of_all[layer.name.replace("conv", "relu")]
            after = jnp.where(activation > 0, activation, 1)
        params[layer.name] = {
            "kernel": leaves["kernel"] * before[:, None] / after,
            "bias": leaves["bias"] / after,
        }
        before = jnp.broadcast_to(after, leaves["bias"].shape)
    return dataclasses.replace(backbone, params=params)


def _check_size(backbone: Backbone, size: tuple[int, ...], layers: Sequence[str]) -> None:
    """Raises UserError where images are too small for the layers."""
    network = backbone.model.layers
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
            f"images have values from {low:.3g} to {high:.3g}, and those of this package are RGB on 0 to 255: scale them.",
            stacklevel=2,
        )


def perceptual_loss(
    backbone: Backbone, x: jax.Array, y: jax.Array, layers: Sequence[str], weights: Sequence[float] | None = None
) -> jax.Array:
    """Computes how far two images are apart in the activations of layers (Johnson et al. 2016, feature reconstruction).

    Args:
      backbone, layers: as for `activations`.
      x, y: images of one shape.
      weights: of the layers; None: 1 each.

    Returns:
      A float32 scalar: the weighted sum over layers of the mean squared difference of their activations.
    """
    return _weighted(backbone, x, y, layers, weights, lambda a: a)


def grad_cam(
    backbone: Backbone, images: jax.Array, classes: jax.Array | None = None, layer: str = ""
) -> tuple[jax.Array, jax.Array]:
    """Computes where a class is seen: Grad-CAM (Selvaraju et al. 2017).

    The maps of a layer, each weighted by the mean gradient of the class score with respect to it, are added; what speaks against
    the class is 0. With global average pooling and the last map it is the class activation map (Zhou et al. 2016).

    Args:
      backbone: with a classifier.
      images: [..., H, W, 3], RGB on 0 to 255, large enough for the classifier: of a VGG's FC layers the crop.
      classes: [...] int; None for the likeliest of each image. Under jit they are not checked.
      layer: an endpoint that is a map; "" for the last before the classifier.

    Returns:
      The maps [..., h, w] float32, at least 0, and the classes [...] int32.

    Raises:
      UserError: a backbone without a classifier, a class that it does not have, or what `activations` refuses.
    """
    network = backbone.model
    if network.layers[-1].kind != "head":
        raise UserError("Grad-CAM explains a class, and this is a trunk, without a classifier; take a whole model.")
    layer = layer or last_features(network.layers, is_map=True)
    outer = images.shape[:-3]
    if classes is not None and not isinstance(classes, jax.core.Tracer):
        given = np.asarray(classes)
        if (
            given.dtype.kind not in "iu"
            or given.size != math.prod(outer)
            or not ((given >= 0) & (given < network.num_classes)).all()
        ):
            raise UserError(
                f"classes {quoted(given.tolist())} for {math.prod(outer)} images and {network.num_classes} classes; give one "
                f"number from 0 to {network.num_classes - 1} for each image."
            )
    activation = activations(backbone, images, (layer,))[layer]
    _check_size(backbone, images.shape[-3:-1], ("score_map",))
    x = images.reshape(-1, *images.shape[-3:]).astype(jnp.float32) - backbone.mean_rgb
    variables: Any = {"params": backbone.params, **backbone.model_state}

    def scores(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, _ = network.apply(variables, x, offsets={layer: offset})
        chosen = logits.argmax(-1) if classes is None else jnp.reshape(jnp.asarray(classes), (-1,))
        return jnp.take_along_axis(logits, chosen[:, None], 1).sum(), chosen

    flat = activation.reshape(-1, *activation.shape[len(outer) :])
    gradient, chosen = jax.grad(scores, has_aux=True)(jnp.zeros_like(flat))
    weights = gradient.astype(jnp.float32).mean((1, 2))
    found = jax.nn.relu(jnp.einsum("bhwc,bc->bhw", flat.astype(jnp.float32), weights))
    return found.reshape(*outer, *found.shape[1:]), chosen.astype(jnp.int32).reshape(outer)


LPIPS_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")  # of configuration D


def load_lpips_heads(source: str | os.PathLike) -> tuple[jax.Array, ...]:
    """Loads the calibrated weights of LPIPS for VGG-16: vgg.pth of the package `lpips`, version 0.1.

    Returns:
      [C] float32 for each of LPIPS_LAYERS.

    Raises:
      UserError: the file cannot be read, or is none of these heads.
    """
    path = Path(source).expanduser()
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
    backbone: Backbone, heads: Sequence[jax.Array], x: jax.Array, y: jax.Array, spatial: bool = False
) -> jax.Array:
    """Computes how different two images look: the learned distance of Zhang et al. 2018, version 0.1.

    Activations are normalised at each position over their channels; the squared differences are weighted by channel, averaged
    over positions, and summed over LPIPS_LAYERS.

    Args:
      backbone: of configuration D, with or without FC layers, trained as the heads were: torchvision's.
      heads: of `load_lpips_heads`.
      x, y: images of one shape, [..., H, W, 3], RGB on 0 to 255.
      spatial: return a map in place of its mean.

    Returns:
      [...] float32, or with `spatial` [..., H, W].

    Raises:
      UserError: images of two shapes, another network, or heads of another number or width than the layers.
    """
    if x.shape != y.shape:
        raise UserError(f"images of {list(x.shape)} and {list(y.shape)} cannot be compared; make them of one shape.")
    trunk, wanted = ([x for x in layers if x.block < 6] for layers in (backbone.model.layers, describe("D")))
    if trunk[: len(wanted) - 1] != wanted[:-1]:  # pool5 is not looked at
        raise UserError("LPIPS is of configuration D, and this backbone is of another network; load D.")
    if len(heads) != len(LPIPS_LAYERS):
        raise UserError(
            f"{len(heads)} LPIPS heads; give {len(LPIPS_LAYERS)}, one for each of {', '.join(LPIPS_LAYERS)}."
        )
    maps = activations(backbone, jnp.stack([x, y]), LPIPS_LAYERS)
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


def style_loss(
    backbone: Backbone, x: jax.Array, y: jax.Array, layers: Sequence[str], weights: Sequence[float] | None = None
) -> jax.Array:
    """Computes how far two images are apart in their co-occurring features, wherever they are (Gatys et al. 2016).

    Args:
      backbone, layers, weights: as for `perceptual_loss`.
      x, y: images; they may differ in height and width.

    Returns:
      A float32 scalar: the weighted sum over layers of the mean squared difference of their `gram` matrices.
    """
    return _weighted(backbone, x, y, layers, weights, gram)


def gram(map_HxWxC: jax.Array) -> jax.Array:
    """Computes the Gram matrix of a map [..., H, W, C]: [..., C, C] float32, products of channels averaged over positions."""
    f = map_HxWxC.reshape(*map_HxWxC.shape[:-3], -1, map_HxWxC.shape[-1]).astype(jnp.float32)
    return jnp.einsum("...nc,...nd->...cd", f, f) / f.shape[-2]


def total_variation(image_HxWx3: jax.Array) -> jax.Array:
    """Computes the mean squared difference of neighbouring pixels, a float32 scalar, which keeps a drawn image smooth."""
    x = image_HxWx3.astype(jnp.float32)
    return jnp.square(jnp.diff(x, axis=-2)).mean() + jnp.square(jnp.diff(x, axis=-3)).mean()


def _weighted(
    backbone: Backbone,
    x: jax.Array,
    y: jax.Array,
    layers: Sequence[str],
    weights: Sequence[float] | None,
    function: Callable,
) -> jax.Array:
    if weights is not None and len(weights) != len(layers):
        raise UserError(f"{len(weights)} weights for {len(layers)} layers; give one for each.")
    of_x, of_y = activations(backbone, x, layers), activations(backbone, y, layers)
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
