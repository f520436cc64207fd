"""Pure Flax modules: images in, class scores out. Nothing here knows of data sets, files or devices."""

from vgg_jax.models.description import CONFIGURATIONS, STRIDE, Layer, endpoint_names, layer_names
from vgg_jax.models.vgg import VGG

__all__ = ["CONFIGURATIONS", "STRIDE", "VGG", "Layer", "endpoint_names", "layer_names"]
