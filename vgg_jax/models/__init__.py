"""Pure Flax modules: images in, class scores out. Nothing here knows of data sets, files or devices."""

from __future__ import annotations

from typing import Any

from vgg_jax.models.description import Layer, Layers
from vgg_jax.models.network import Network, variable_shapes
from vgg_jax.models.spec import ALIASES, CHOICES, CONFIGURATIONS, NETWORK_KEYS, NetworkSpec
from vgg_jax.models.vgg import NO_HEAD

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
