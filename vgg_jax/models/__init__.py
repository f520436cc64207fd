"""Pure Flax modules: images in, class scores out. Nothing here knows of data sets, files or devices."""

from vgg_jax.models.vgg import CONFIGURATIONS, STRIDE, VGG, endpoint_names, layer_names

__all__ = ["CONFIGURATIONS", "STRIDE", "VGG", "endpoint_names", "layer_names"]
