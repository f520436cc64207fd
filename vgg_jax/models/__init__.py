"""Pure Flax modules: images in, class scores out. Nothing here knows of data sets, files or devices."""

from __future__ import annotations

import functools
from typing import Any

from vgg_jax.models.description import Layer, Layers, resolve
from vgg_jax.models.network import Network, variable_shapes
from vgg_jax.models.predecessors import alexnet, googlenet
from vgg_jax.models.resnet import BOTTLENECK_STRIDES, CIFAR_DEPTHS, PLAIN_DEPTHS, SHORTCUTS, STAGES, resnet
from vgg_jax.models.vgg import HEADS, NO_HEAD, TABLE_1, vgg

__all__ = [
    "BOTTLENECK_STRIDES",
    "CONFIGURATIONS",
    "HEADS",
    "NO_HEAD",
    "SHORTCUTS",
    "Layer",
    "Layers",
    "Network",
    "describe",
    "is_vgg",
    "make_network",
    "paper_crop",
    "variable_shapes",
]

CONFIGURATIONS = (
    *TABLE_1,
    *(f"ResNet-{depth}" for depth in (*STAGES, *CIFAR_DEPTHS)),
    *(f"Plain-{depth}" for depth in PLAIN_DEPTHS),
    "AlexNet",
    "GoogLeNet",
)


def paper_crop(configuration: str) -> int:
    """Returns the height and width of the images that a network was published for, pixels."""
    if configuration == "AlexNet":
        return 227
    depth = configuration.partition("-")[2]
    return 32 if depth in map(str, CIFAR_DEPTHS) else 224


@functools.cache
def describe(
    configuration: str,
    crop: int | None = None,
    batch_norm: bool = False,
    head: str = "fc",
    shortcut: str = "",
    bottleneck_stride: str = "3x3",
    auxiliary: bool = False,
) -> Layers:
    """Returns the layers of a network.

    Args:
      configuration: one of CONFIGURATIONS.
      crop: height and width of training images, pixels; None: `paper_crop`.
      batch_norm, head: of a VGG, see `vgg.vgg`; NO_HEAD of a ResNet too, which then ends with its last map.
      shortcut, bottleneck_stride: of a ResNet, see `resnet.resnet`.
      auxiliary: of GoogLeNet, see `predecessors.googlenet`.

    Raises:
      ValueError: an unknown configuration or value, or a crop too small for it.
    """
    crop = crop or paper_crop(configuration)
    for value, known in (
        (batch_norm, (False, True)),
        (auxiliary, (False, True)),
        (head, (*HEADS, NO_HEAD)),
        (shortcut, ("", *SHORTCUTS)),
        (bottleneck_stride, BOTTLENECK_STRIDES),
    ):
        if value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(map(repr, known))}")
    if configuration in TABLE_1:
        return resolve(vgg(TABLE_1[configuration], batch_norm, head), crop)
    if configuration == "AlexNet":
        return resolve(alexnet(), crop)
    if configuration == "GoogLeNet":
        return resolve(googlenet(auxiliary), crop)
    if configuration not in CONFIGURATIONS:
        raise ValueError(f"no configuration {configuration!r}; there are {', '.join(CONFIGURATIONS)}")
    family, _, depth = configuration.partition("-")
    layers = resnet(int(depth), family == "ResNet", shortcut, bottleneck_stride)
    return resolve(layers[:-2] if head == NO_HEAD else layers, crop)


def is_vgg(configuration: str) -> bool:
    """Returns whether it is a network of the paper."""
    return configuration in TABLE_1


def make_network(
    configuration: str = "D", crop: int | None = None, description: dict[str, Any] | None = None, **attributes: Any
) -> Network:
    """Returns the module of a network.

    Args:
      configuration, crop: see `describe`.
      description: its other arguments.
      attributes: see `Network`.
    """
    crop = crop or paper_crop(configuration)
    return Network(layers=describe(configuration, crop, **(description or {})), crop=crop, **attributes)
