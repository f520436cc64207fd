"""Description of a network: its layers in the order of computation, and what follows from them alone.

The module (`network.Network`), parameter names, output sizes, padding masks, field of view and multiply-adds all derive
from these layers; the networks themselves are tables in `predecessors`, `vgg` and `resnet`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

# `pool` takes the maximum; `mean` goes over the whole map; `head` is an FC layer to the classes: the last one is the
# network's, others are auxiliary classifiers.
Kind = Literal[
    "conv",
    "batch_norm",
    "relu",
    "lrn",
    "pool",
    "mean_pool",
    "add",
    "concat",
    "zero_pad",
    "mean",
    "dropout",
    "fc",
    "head",
]
# Kinds with a kernel that moves over the map.
WINDOWS = ("conv", "pool", "mean_pool")
# Sizes of images, pixels: the least and the largest crop, and the largest shorter side after rescaling (S or Q).
LEAST_CROP, LARGEST_CROP, LARGEST_SCALE = 8, 2048, 4096
BATCH_NORM: Kind = "batch_norm"
# Kernel of an FC layer that spans the map of a crop, as fc6 does.
WHOLE_MAP = 0


class Layer(NamedTuple):
    """One layer of a network."""

    name: str  # conv3_2, relu3_2, lrn1_1, pool3, fc6, relu6
    kind: Kind
    block: int  # 1 to 5; 6, 7 and 8 are VGG's FC layers
    position: int = 0  # of a convolution within its block, of a residual unit within its stage, from 1
    kernel: int = 1  # height and width
    stride: int = 1
    padding: int = 0  # rows and columns on every side
    channels: int = 0  # of the output, at full width; 0: as the input, as many as classes (head), or `fc_width` (fc)
    has_bias: bool = True
    inputs: tuple[str, ...] = ()  # names of the layers whose outputs it reads; none: the layer before
    groups: int = 1  # of a convolution: each sees its share of the channels alone
    is_ceil: bool = False  # of a pooling: a last window that begins inside and ends outside counts, as Caffe rounds
    initial_bias: float = 0.0  # where the initialisation has no biases of its own
    dropout_rate: float = 0.0  # 0: the network's

    @property
    def has_kernel(self) -> bool:
        """Returns whether the layer has a kernel among its parameters."""
        return self.kind in ("conv", "fc", "head")

    @property
    def is_norm(self) -> bool:
        """Returns whether it is batch normalisation."""
        return self.kind == BATCH_NORM

    @property
    def has_params(self) -> bool:
        """Returns whether the layer has parameters."""
        return self.has_kernel or self.is_norm

    @property
    def is_fully_connected(self) -> bool:
        """Returns whether it is an FC layer."""
        return self.kind in ("fc", "head")

    @property
    def sees_neighbors(self) -> bool:
        """Returns whether an output depends on inputs beyond the stride's own square, so that padding matters."""
        return self.kind in WINDOWS and (self.kernel > self.stride or self.is_ceil)

    @property
    def padding_after(self) -> int:
        """Returns the rows and columns of padding at the bottom and the right."""
        return self.padding + (self.stride - 1) * self.is_ceil

    def scaled_channels(self, width_multiplier: float) -> int:
        """Returns the output channels at a width; at least 1 stays."""
        return max(1, round(self.channels * width_multiplier))

    def out_length(self, length: Any) -> Any:
        """Returns the rows (or columns) of the output for those of the input: a number, or an array of them."""
        return (length + self.padding + self.padding_after - self.kernel) // self.stride + 1


Layers = tuple[Layer, ...]


def with_inputs(layers: Layers) -> Iterator[tuple[Layer, tuple[str, ...]]]:
    """Yields each layer with the names of the outputs that it reads; the first reads "images"."""
    previous = "images"
    for layer in layers:
        yield layer, layer.inputs or (previous,)
        previous = layer.name


def resolve(layers: Layers, crop: int) -> Layers:
    """Returns the layers with the kernel of each that spans the map of a crop, in numbers; crop in pixels.

    Raises:
      ValueError: a crop too small for the layers.
    """
    resolved: list[Layer] = []
    sizes = {"images": crop}
    for layer, (first, *_) in with_inputs(layers):
        resolved.append(layer._replace(kernel=sizes[first]) if layer.kernel == WHOLE_MAP else layer)
        sizes[layer.name] = resolved[-1].out_length(sizes[first])
        if sizes[layer.name] < 1:
            raise ValueError(f"a crop of {crop} pixels is too small: nothing would be left of it at {layer.name}")
    return tuple(resolved)


def lengths(layers: Layers, length: int) -> dict[str, int]:
    """Returns the rows (or columns) of every layer's output, densely, for those of the image ("images"), pixels.

    0 and less: the image is too small for the layer.
    """
    result = {"images": length}
    for layer, (first, *_) in with_inputs(layers):
        result[layer.name] = layer.out_length(result[first])
    return result


def needed(layers: Layers, names: Iterable[str]) -> set[str]:
    """Returns the names of the layers on which these layers depend, and theirs."""
    result = set(names)
    for layer, inputs in reversed(tuple(with_inputs(layers))):
        if layer.name in result:
            result.update(inputs)
    return result


def last_features(layers: Layers, is_map: bool = False) -> str:
    """Returns the name of the last activations before the classifier; with `is_map` before all FC layers over a map."""
    return [x.name for x in layers if x.kind in ("relu", "concat") and (x.block < 6 or not is_map)][-1]


def auxiliary_heads(layers: Layers) -> tuple[str, ...]:
    """Returns the names of the auxiliary classifiers' last layers."""
    return tuple(layer.name for layer in layers[:-1] if layer.kind == "head")


def total_stride(layers: Layers, name: str = "") -> int:
    """Returns the pixels between neighbouring cells of the score map, or of the map of the layer `name`."""
    strides = {"images": 1}
    for layer, (first, *_) in with_inputs(layers):
        strides[layer.name] = strides[first] * layer.stride
    return strides[name or layers[-1].name]


def first_center(layers: Layers, name: str = "") -> float:
    """Returns the centre of the field of view of the score map's first cell, in pixels from the image's edge.

    With `name` it is the first cell of that layer's map.
    """
    centers, strides = {"images": 0.5}, {"images": 1}
    for layer, (first, *_) in with_inputs(layers):
        centers[layer.name] = centers[first] + strides[first] * ((layer.kernel - 1) / 2 - layer.padding)
        strides[layer.name] = strides[first] * layer.stride
    return centers[name or layers[-1].name]


def halo(layers: Layers) -> int:
    """Returns the number of last-map cells, from a cut of the image inwards, whose field of view crosses the cut.

    FC layers do not count; the cut is at a multiple of `total_stride`.
    """
    reach, strides = {"images": 0}, {"images": 1}
    for layer, inputs in with_inputs(layers):
        beyond = max(layer.padding, layer.kernel - layer.stride - layer.padding) if layer.kind in WINDOWS else 0
        reach[layer.name] = max(reach[name] for name in inputs) + strides[inputs[0]] * beyond
        strides[layer.name] = strides[inputs[0]] * layer.stride
    return -(-reach[layers[-1].name] // strides[layers[-1].name])


def head_kernel(layers: Layers) -> int:
    """Returns the rows and columns of the last map that one cell of the score map sees."""
    counted = needed(layers, [layers[-1].name])
    return 1 + sum(layer.kernel - 1 for layer in layers if layer.is_fully_connected and layer.name in counted)


def macs(layers: Layers, height: int, width: int, shapes: dict[str, tuple[int, ...]]) -> int:
    """Returns the multiply-adds for one image, densely, without auxiliary classifiers.

    Paper Table 2's networks take 7.6 to 19.6 * 10^9 at 224x224.

    Args:
      layers: of a network.
      height, width: of the image, pixels.
      shapes: of the kernels by layer, [h, w, inputs of one group, outputs].
    """
    rows, columns = lengths(layers, height), lengths(layers, width)
    counted = needed(layers, [layers[-1].name])
    # A pooled head sees one position.
    is_pooled = any(layer.kind == "mean" for layer in layers)
    return sum(
        (1 if layer.kind == "head" and is_pooled else rows[layer.name] * columns[layer.name])
        * math.prod(shapes[layer.name])
        for layer in layers
        if layer.has_kernel and layer.name in counted
    )


def layer_names(layers: Layers) -> list[str]:
    """Returns the names of the layers that have parameters, in the order of computation: conv1_1, ..., fc8."""
    return [layer.name for layer in layers if layer.has_params]


def endpoint_names(layers: Layers) -> list[str]:
    """Returns the endpoints of `Network.__call__`, in the order of computation: images, conv1_1, ..., score_map."""
    hidden = [layer.name for layer in layers if layer.kind != "dropout"]
    return ["images", *hidden[:-1], "score_map"] if layers[-1].kind == "head" else ["images", *hidden]
