"""Pure Flax modules: images in, class scores out. Nothing here knows of data sets, files or devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from vgg_jax.models.description import Layer, Layers
from vgg_jax.models.network import Network, variable_shapes
from vgg_jax.models.spec import ALIASES, CHOICES, CONFIGURATIONS, NETWORK_KEYS, NetworkSpec, known_name
from vgg_jax.models.vgg import NO_HEAD
from vgg_jax.runtime.exceptions import UserError

__all__ = [
    "ALIASES",
    "CHOICES",
    "CONFIGURATIONS",
    "NETWORK_KEYS",
    "NO_HEAD",
    "Layer",
    "Layers",
    "Network",
    "NetworkSpec",
    "create_model",
    "known_name",
    "make_network",
    "variable_shapes",
]


def make_network(network: NetworkSpec | str = "D", crop: int | None = None, **attributes: Any) -> Network:
    """Returns the module of a network.

    Args:
      network: or a name that `NetworkSpec.parse` knows.
      crop: height and width of training images, pixels; None: `NetworkSpec.paper_crop`.
      attributes: see `Network`.
    """
    spec = NetworkSpec.parse(network) if isinstance(network, str) else network
    crop = crop or spec.paper_crop
    return Network(layers=spec.layers(crop), crop=crop, **attributes)


def create_model(
    name: str, num_classes: int = 1000, crop: int | None = None, seed: int = 0, **attributes: Any
) -> tuple[Network, dict[str, Any]]:
    """Returns the Flax module of a network, and variables that are initialised at random.

    `network.apply(variables, images)` takes RGB on 0 to 255 minus a mean, [B, H, W, 3], and returns
    (logits, endpoints).

    Args:
      name: that `NetworkSpec.parse` knows: vgg16_bn, D-BN-GAP, resnet50.
      num_classes: K.
      crop: height and width of training images, pixels; None: `NetworkSpec.paper_crop`.
      seed: of the initialisation.
      attributes: see `Network`.

    Raises:
      UserError: an unknown name, no class, or a crop that is too small for the network.
    """
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; it must be at least 1.")
    spec = NetworkSpec.parse(name)
    try:
        network = make_network(spec, crop, num_classes=num_classes, **attributes)
    except ValueError as error:
        raise UserError(f"crop is {crop}, and {error} of {spec.name}; give a larger one.") from error
    images = jnp.zeros((1, network.crop, network.crop, 3))
    return network, dict(jax.jit(network.init)(jax.random.key(seed), images))
