"""Grad-CAM: where in an image a class is seen."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vgg_jax.features.backbone import Backbone
from vgg_jax.features.endpoints import activations, check_size
from vgg_jax.models.description import last_features
from vgg_jax.runtime.exceptions import UserError, quoted


def grad_cam(
    model: Backbone, images: jax.Array, classes: jax.Array | None = None, layer: str = ""
) -> tuple[jax.Array, jax.Array]:
    """Computes where a class is seen: Grad-CAM (Selvaraju et al. 2017).

    It adds the maps of a layer, each weighted by the mean gradient of the class score with respect to it. Negative sums
    become 0. With global average pooling and the last map it is the class activation map (Zhou et al. 2016).

    Args:
      model: with a classifier.
      images: [..., H, W, 3], RGB on 0 to 255, large enough for the classifier: of a VGG's FC layers the crop.
      classes: [...] int; None for the likeliest of each image. Under jit they are not checked.
      layer: an endpoint that is a map; "" for the last before the classifier.

    Returns:
      The maps [..., h, w] float32, at least 0, and the classes [...] int32.

    Raises:
      UserError: a model without a classifier, a class that it does not have, or what `activations` refuses.
    """
    network = model.network
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
                f"classes {quoted(given.tolist())} for {math.prod(outer)} images and {network.num_classes} classes; "
                f"give one number from 0 to {network.num_classes - 1} for each image."
            )
    activation = activations(model, images, (layer,))[layer]
    check_size(model, images.shape[-3:-1], ("score_map",))
    x = images.reshape(-1, *images.shape[-3:]).astype(jnp.float32) - model.mean_rgb
    variables: Any = model.variables

    def scores(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, _ = network.apply(variables, x, offsets={layer: offset})
        chosen = logits.argmax(-1) if classes is None else jnp.reshape(jnp.asarray(classes), (-1,))
        return jnp.take_along_axis(logits, chosen[:, None], 1).sum(), chosen

    flat = activation.reshape(-1, *activation.shape[len(outer) :])
    gradient, chosen = jax.grad(scores, has_aux=True)(jnp.zeros_like(flat))
    weights = gradient.astype(jnp.float32).mean((1, 2))
    cams = jax.nn.relu(jnp.einsum("bhwc,bc->bhw", flat.astype(jnp.float32), weights))
    return cams.reshape(*outer, *cams.shape[1:]), chosen.astype(jnp.int32).reshape(outer)
